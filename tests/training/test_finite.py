"""Numbers that are not finite: the first stops the run, before anything is made of it."""

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import finish, launch, run_here
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from bert_multitask.model.errors import NonFiniteError
from bert_multitask.training.finite import NORM, SKIPPED, FirstBadStep

SAVING = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 4,
    "save_total_limit": None,
}


def test_the_first_bad_step_is_kept():
    bad = FirstBadStep()
    assert bad.read(Accelerator(cpu=True)) is None
    for step, loss, norm in [(1, 1.0, 2.0), (2, 0.0, float("inf")), (3, float("nan"), float("nan"))]:
        bad.note_loss(torch.tensor(loss), step)
        bad.note_norm(torch.tensor(norm), step)
    assert bad.read(Accelerator(cpu=True)) == (2, NORM)


def test_skipped_steps_are_bad_only_in_a_row():
    bad = FirstBadStep(scaled=True)
    for step in range(1, 200):
        bad.note_loss(torch.tensor(float("nan")), step)
        bad.note_norm(torch.tensor(1.0 if step == 60 else float("inf")), step)
        found = bad.read(Accelerator(cpu=True))
        assert found == (None if step < 50 else (50, SKIPPED))
    bad = FirstBadStep(scaled=True)
    for step, norm in enumerate([float("inf")] * 49 + [1.0] + [float("nan")] * 49, start=1):
        bad.note_loss(torch.tensor(1.0), step)
        bad.note_norm(torch.tensor(norm), step)
    assert bad.read(Accelerator(cpu=True)) is None


class Poison(TrainerCallback):
    """Sets one weight before one step, as a bad update would."""

    def __init__(self, step: int, value: float = float("nan"), parameter: str = "heads.sst"):
        self.step, self.value, self.parameter = step, value, parameter

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            weight = next(weight for name, weight in model.named_parameters() if name.startswith(self.parameter))
            with torch.no_grad():
                weight.view(-1)[0] = self.value


def bad_loss(kind: str):
    """A `compute_loss_func` that is wrong at its third call."""
    calls = []

    def loss(outputs, labels, num_items_in_batch):
        calls.extend([1] * outputs.logits.requires_grad)  # not those of evaluations
        good = cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        if len(calls) != 3 or not outputs.logits.requires_grad:
            return good
        if kind == "gradient":  # of sqrt at 0, while the loss is good
            return good + (outputs.logits.sum() * 0).abs().sqrt()
        return good * float(kind)

    return loss


@pytest.mark.parametrize(
    ("kind", "clip", "accumulation"),
    [("nan", 1.0, 1), ("inf", 1.0, 2), ("gradient", 1.0, 1), ("gradient", 0.0, 2), ("nan", 0.0, 1)],
)
def test_a_bad_step_stops_training(make_trainer, kind, clip, accumulation):
    trainer = make_trainer(
        given={"compute_loss_func": {"sst": bad_loss(kind)}},
        logging_steps=4,
        max_grad_norm=clip,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4 // accumulation,
        save_strategy="steps",
        save_steps=4,
    )
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    bad = [step for step, task in enumerate(trainer.plan, start=1) if task == "sst"][2 // accumulation]
    quantity = "gradient norm" if kind == "gradient" else "loss"
    message = str(caught.value)
    assert f"the {quantity} is not a finite number at step {bad}, a batch of task 'sst'" in message
    assert "rows strain" in message and "--learning_rate" in message
    check_left(trainer)


def check_left(trainer):
    """The checkpoints and the log before the bad step are whole; nothing of later steps is there."""
    folder = Path(trainer.args.output_dir)
    assert not (folder / "metrics.json").exists()
    for entry in trainer.state.log_history:
        json.dumps(entry, allow_nan=False)
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        json.loads(state.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("value", "parameter"),
    [(float("nan"), "heads.sst"), (float("inf"), "bert.embeddings.LayerNorm"), (float("nan"), "bert.encoder.layer.1")],
)
def test_a_bad_weight_stops_training(make_trainer, value, parameter):
    """At the next log, evaluation or save, whichever comes first."""
    trainer = make_trainer(callbacks=[Poison(2, value, parameter)], logging_steps=4, **SAVING)
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*"))


def test_a_learning_rate_of_1e30(make_trainer):
    trainer = make_trainer(learning_rate=1e30, logging_steps=100, **SAVING)
    with pytest.raises(
        NonFiniteError, match=r"step 2, a batch of task '\w+' \(rows .*learning_rate .1e\+30.*no checkpoint yet"
    ):
        trainer.train()


def test_the_teacher_of_bregman_saves_nothing_bad(make_trainer):
    """Its file is the first of a checkpoint."""
    weights = {"sst": {"bregman_weight": 1.0}}
    trainer = make_trainer(task_settings=weights, callbacks=[Poison(4)], **SAVING)
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*"))


def test_the_last_update_is_not_saved(make_trainer):
    """No loss follows it; the weights are looked at as they are saved."""
    trainer = make_trainer(max_steps=1, save_strategy="steps")
    trainer.train()
    trainer.model.heads["sts"].output.bias.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"heads\.sts\.output\.bias is not finite after step 1"):
        trainer.save_model()


@pytest.mark.parametrize("action", ["evaluate", "predict"])
def test_predictions_that_are_not_finite_are_not_scored(make_trainer, action):
    trainer = make_trainer()
    trainer.model.heads["sst"].classifier.weight.data[0] = float("nan")
    rows = trainer.eval_dataset["sst"]
    with pytest.raises(NonFiniteError, match=r"6 of 6 predictions of task 'sst' .* after step 0 .*rows sdev0, sdev1"):
        trainer.evaluate() if action == "evaluate" else trainer.predict(rows)


def test_after_the_last_step_numbers_are_looked_at(make_trainer):
    """Without any log, save or evaluation in between."""
    trainer = make_trainer(callbacks=[Poison(15)], logging_strategy="no")
    with pytest.raises(NonFiniteError, match="step 1[56]"):
        trainer.train()


def test_a_step_notes_without_reading(make_trainer, monkeypatch):
    """Reading waits for the device: once a log entry, not once a step."""
    reads, read = [], FirstBadStep.read
    monkeypatch.setattr(FirstBadStep, "read", lambda self, accelerator: reads.append(1) or read(self, accelerator))
    trainer = make_trainer(logging_steps=8)
    trainer.train()
    assert len(trainer.plan) == 16 and len(reads) <= 6


def test_rows_without_ids_are_called_by_their_numbers(make_trainer):
    trainer = make_trainer()
    rows = Dataset.from_dict(
        {key: trainer.eval_dataset["sst"][key][:] for key in ("input_ids", "token_type_ids", "labels")}
    )
    trainer.model.heads["sst"].classifier.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="rows 0, 1, 2"):
        trainer.evaluate({"sst": rows})


def test_a_bad_step_names_rows_without_ids_by_their_numbers_in_the_data(make_trainer):
    def without_ids(rows):
        return rows.remove_columns("id")

    given = make_trainer().train_dataset.tasks
    rows = {name: without_ids(part) for name, part in given.items()}
    trainer = make_trainer(given={"train_dataset": rows, "compute_loss_func": {"sst": bad_loss("nan")}})
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    step, names = re.search(r"at step (\d+), .*\(rows ([\d, ]+)\)", str(caught.value)).groups()
    batch = list(trainer.get_train_dataloader().batch_sampler)[int(step) - 1]
    assert names == ", ".join(str(number) for _, number in batch) != "0, 1, 2, 3"


def scaled(make_trainer, loss, plan=None):
    """A trainer whose loss is scaled as with --fp16, which a CPU has not."""
    trainer = make_trainer(given={"compute_loss_func": {"sst": loss}, "plan": plan}, logging_steps=1)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.bad = FirstBadStep(scaled=True)
    return trainer


@pytest.mark.parametrize("kind", ["gradient", "nan"])
def test_steps_that_the_scaler_skips_do_not_count(make_trainer, kind):
    trainer = scaled(make_trainer, bad_loss(kind))
    trainer.train()
    check_left(trainer)
    skipped = [step for step, task in enumerate(trainer.plan, start=1) if task == "sst"][2]
    entries = {entry["step"]: entry for entry in trainer.state.log_history if "learning_rate" in entry}
    assert len(entries) == 16 and "grad_norm" not in entries[skipped]
    assert ("loss_sst" in entries[skipped]) == (kind == "gradient")
    assert all("loss" in entry for step, entry in entries.items() if step != skipped)


def test_a_scaler_that_skips_every_step(make_trainer, monkeypatch):
    monkeypatch.setattr("bert_multitask.training.finite.PATIENCE", 3)

    def nothing(outputs, labels, num_items_in_batch):
        return outputs.logits.sum() * float("nan")

    trainer = scaled(make_trainer, nothing, plan=["sst"] * 16)
    with pytest.raises(NonFiniteError, match="--fp16 the gradient was not a finite number .* at step 3,"):
        trainer.train()


def test_a_recipe_ends_with_one_line(monkeypatch, config, capsys):
    flags = ["--learning_rate", "1e30", "--output_dir", str(config.parent / "bad")]
    assert run_here(monkeypatch, config, *flags) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "is not a finite number at step 2" in error[0]
    assert not (config.parent / "bad" / "metrics.json").exists()
    for line in (config.parent / "bad" / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.slow
def test_two_processes_stop_together(config):
    run = launch(config, "--learning_rate", 1e30, "--use_cpu", "--output_dir", config.parent / "two", processes=2)
    printed = finish(run, timeout=120)
    assert run.returncode and len(re.findall(r"^error: .*not finite numbers", printed, re.MULTILINE)) == 1, printed
    assert not (config.parent / "two" / "metrics.json").exists()
