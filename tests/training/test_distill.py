"""Distillation: the loss of every kind against formulas in float64, and a student of an ensemble from the commands."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NO_DROPOUT, run_here, run_killed
from safetensors.torch import load_file
from scipy.special import log_softmax, rel_entr, softmax
from torch.nn.functional import kl_div

from bert_multitask.data.collate import Collator
from bert_multitask.data.rows import load_rows
from bert_multitask.evaluation.tables import find_tables, prediction_table, with_texts, write_predictions
from bert_multitask.model.errors import InputError
from bert_multitask.model.kinds import KINDS
from bert_multitask.model.losses import soft_divergence
from bert_multitask.model.tasks import TASKS, Task
from bert_multitask.training.arguments import RunArguments
from bert_multitask.training.distill import add_soft_labels

T = 2.5


def divergence(teacher: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """T² KL by scipy, from the teacher's probabilities and the model's logits."""
    p = teacher ** (1 / T) / (teacher ** (1 / T)).sum(-1, keepdims=True)
    return T**2 * rel_entr(p, softmax(logits / T, axis=-1)).sum(-1)


def test_the_divergence_is_hintons():
    logits, teacher = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    expected = T**2 * kl_div((logits / T).log_softmax(-1), (teacher / T).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(soft_divergence(logits, teacher.softmax(-1), T), expected)
    assert soft_divergence(logits, logits.softmax(-1), T).abs().max() < 1e-12, "0 where they agree"
    certain = torch.tensor([[1.0, 0.0]])
    assert soft_divergence(torch.zeros(1, 2), certain).item() == pytest.approx(np.log(2))


SCORES = Task("t", "regression", score_range=(0.0, 5.0))
EMOTIONS = Task("t", "multilabel", label_names=("a", "b", "c"))


@pytest.mark.parametrize(
    "name", ["classification", "binary", "multilabel", "mean_squared_error", "score_cross_entropy"]
)
def test_the_distance_of_each_kind(name):
    rng = np.random.default_rng(0)
    if name == "classification":
        task, logits, soft = TASKS["sst"], rng.normal(size=(4, 5)), rng.dirichlet(np.ones(5), 4)
        expected = divergence(soft, logits).mean()
    elif name == "binary":
        task, logits, soft = TASKS["quora"], rng.normal(size=4), rng.dirichlet(np.ones(2), 4)
        expected = divergence(soft, np.stack([np.zeros(4), logits], -1)).mean()
    elif name == "multilabel":
        task, logits, soft = EMOTIONS, rng.normal(size=(4, 3)), rng.uniform(size=(4, 3))
        both = np.stack([np.zeros((4, 3)), logits], -1)
        expected = divergence(np.stack([1 - soft, soft], -1), both).mean()
    else:
        task, logits, soft = replace(SCORES, loss=name), rng.uniform(0.1, 4.9, size=4), rng.uniform(0, 5, size=4)
        p, q = soft / 5, logits / 5
        squared = ((soft - logits) ** 2).mean()
        expected = squared if name == "mean_squared_error" else -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
    task = replace(task, distill_temperature=T)
    found = KINDS[task.kind].distil(task, torch.tensor(logits), torch.tensor(soft))
    assert found.shape == () and found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rdrop", [0.0, 1.0])
def test_the_loss_mixes_labels_and_teacher(make_trainer, rdrop):
    """(1 - w) CE + w T² KL, a share of a step as its rows; by scipy."""
    settings = {"distill_weight": 0.3, "distill_temperature": T, "rdrop_weight": rdrop}
    trainer = make_trainer(NO_DROPOUT, task_settings={"sst": settings})
    batch = next(
        batch for batch in trainer.get_train_dataloader() if batch["task"] == "sst" and len(batch["labels"]) > 3
    )
    soft = np.random.default_rng(1).dirichlet(np.ones(5), 4)
    trainer.step_rows, model = torch.tensor(8), trainer.model.train()
    inputs = batch | {"soft_labels": torch.tensor(soft, dtype=torch.float32)}
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(8)).item()
    logits = model(**batch).logits.detach().double().numpy()
    plain = -log_softmax(logits, axis=-1)[np.arange(4), batch["labels"].numpy()].sum() / 8
    assert loss == pytest.approx(0.7 * plain + 0.3 * divergence(soft, logits).mean() * 4 / 8, rel=1e-5)
    assert "soft_labels" in inputs, "the batch stays as it is"
    evaluated = trainer.compute_loss(model.eval(), inputs)
    assert evaluated.item() == pytest.approx(2 * plain, rel=1e-5), "evaluation is of the labels"


def test_a_student_of_two_teachers(monkeypatch, config, capsys):
    """By the commands: two runs, their ensemble's soft labels of the training rows, and a run that learns from them."""
    folder, short = config.parent, ["--max_steps", 6, "--eval_strategy", "no", "--logging_steps", 1, "--no_do_predict"]
    runs = [folder / "one", folder / "two"]
    for seed, run in enumerate(runs):
        assert run_here(monkeypatch, config, *short, "--seed", seed, "--learning_rate", 1e-2, "--output_dir", run) == 0
        assert run_here(monkeypatch, run, "--split", "train", "--output_dir", run / "soft", recipe="predict") == 0
    teacher = folder / "teacher"
    ensemble = [*runs, "--split", "train", "--vote", "soft", "--output_dir", teacher]
    assert run_here(monkeypatch, *ensemble, recipe="ensemble") == 0
    found = find_tables(teacher, "train")
    members = [find_tables(run / "soft", "train") for run in runs]
    assert {name: len(table.table) for name, table in found.items()} == {"sst": 11, "quora": 14, "sts": 9}
    mean = np.mean([member["sst"].table["probabilities"][:] for member in members], axis=0)
    np.testing.assert_allclose(found["sst"].table["probabilities"][:], mean, atol=1e-6)

    flags = ["--save_steps", 3, "--distill_from", teacher, "--output_dir", folder / "student"]
    assert run_here(monkeypatch, config, *short, *flags) == 0
    entries = [json.loads(line) for line in (folder / "student" / "history.jsonl").read_text().splitlines()]
    seen = {key for entry in entries for key in entry if key.startswith("distill_")}
    assert seen and seen <= {"distill_sst", "distill_quora", "distill_sts"}
    for entry in entries[:6]:
        (task,) = [name for name in ("sst", "quora", "sts") if f"loss_{name}" in entry]
        mixed = 0.5 * entry[f"loss_{task}"] + 0.5 * entry[f"distill_{task}"]
        assert entry["loss"] == pytest.approx(mixed, abs=1e-4)
    assert str(teacher) not in (folder / "student" / "config.json").read_text(), "a path of this machine"

    flags = [config, *short, "--save_steps", 3, "--output_dir", folder / "killed", "--distill_from"]
    run_killed(monkeypatch, 5, *flags, teacher)
    assert run_here(monkeypatch, *flags, runs[0] / "soft", "--resume_from_checkpoint") == 2
    assert "cannot be resumed with other settings: rows of" in capsys.readouterr().err
    assert run_here(monkeypatch, *flags, teacher, "--resume_from_checkpoint") == 0
    before, after = (load_file(folder / name / "model.safetensors") for name in ("student", "killed"))
    assert all(weight.equal(before[name]) for name, weight in after.items())


@pytest.fixture
def teacher(tmp_path, course_folder):
    """A folder with a table of sst's training rows, and the rows."""
    rows = load_rows(TASKS["sst"], str(course_folder))["train"]
    table = prediction_table(TASKS["sst"], rows["id"][:], np.random.default_rng(0).normal(size=(11, 5)))
    write_predictions(TASKS["sst"], with_texts(TASKS["sst"], table, rows), tmp_path / "teacher" / "sst-train")
    return str(tmp_path / "teacher"), rows, table


def test_rows_are_matched_by_id(teacher):
    folder, rows, table = teacher
    task = replace(TASKS["sst"], distill_from=folder)
    shuffled = rows.select([4, 0, 10])
    found = add_soft_labels(task, shuffled)
    np.testing.assert_allclose(found["soft_labels"][:], np.array(table["probabilities"][:])[[4, 0, 10]], rtol=1e-6)
    with pytest.raises(InputError, match="has no row 'new', which is one of 1 training rows"):
        add_soft_labels(task, rows.map(lambda row, n: row | {"id": "new" if n == 3 else row["id"]}, with_indices=True))
    with pytest.raises(InputError, match="its label_names is"):
        add_soft_labels(replace(task, label_names=tuple("abcde")), rows)
    with pytest.raises(InputError, match="there is no sst-train.parquet; `bert-multitask predict RUN --split train"):
        add_soft_labels(replace(task, distill_from=folder + "-nowhere"), rows)


def test_rows_with_the_ids_of_other_texts_are_refused(teacher, propagated_logs, caplog):
    """As of another version of the data: the teacher's answers would go to the wrong rows."""
    folder, rows, table = teacher
    task = replace(TASKS["sst"], distill_from=folder)
    changed = rows.map(lambda row, n: row | {"text": row["text"] + "!" * (n in (2, 3))}, with_indices=True)
    with pytest.raises(
        InputError, match=f"sst-train.parquet: 2 training rows have other texts there, '{rows[2]['id']}'"
    ):
        add_soft_labels(task, changed)
    assert not caplog.text
    write_predictions(task, table, Path(folder, "sst-train"))
    assert "soft_labels" in add_soft_labels(task, changed).column_names
    assert "sst-train.parquet: does not say of which texts it is" in caplog.text


@pytest.mark.parametrize("flag", ["distill_weight", "distill_temperature"])
def test_a_flag_without_a_teacher_is_refused(flag):
    with pytest.raises(InputError, match=f"--{flag} does nothing without --distill_from"):
        RunArguments(**{flag: 0.7}).load_tasks()
    assert RunArguments(**{flag: 0.7}, distill_from='{"sts": "x"}').load_tasks()


def test_a_collator_may_not_lose_them(make_trainer, tokenizer):
    trainer = make_trainer()
    rows = dict(trainer.train_dataset.tasks)
    rows["sst"] = rows["sst"].add_column("soft_labels", [[0.2] * 5] * 11)
    kept = make_trainer(given={"train_dataset": rows})
    assert next(b for b in kept.get_train_dataloader() if b["task"] == "sst")["soft_labels"].shape[1] == 5

    def lossy(batch):
        return {key: value for key, value in Collator(0)(batch).items() if key != "soft_labels"}

    with pytest.raises(InputError, match="drops the soft_labels of task 'sst'"):
        make_trainer(given={"train_dataset": rows, "data_collator": lossy})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distill_weight": 0}, "distill_weight is 0"),
        ({"distill_weight": 1.5}, "distill_weight is 1.5"),
        ({"distill_temperature": -1}, "distill_temperature is -1"),
        (
            {"kind": "token_classification", "distill_from": "x"},
            "'token_classification' cannot learn from a teacher; leave distill_from out",
        ),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        Task(**{"name": "t", "kind": "classification", "label_names": ("O", "B-X")} | fields)
