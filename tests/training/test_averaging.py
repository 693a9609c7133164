"""The running mean of the weights: the recurrence in float64, what is evaluated and saved, and the resume."""

import pytest
import torch
from conftest import run_here, weights
from transformers import TrainerCallback

from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.training.averaging import FILE

EMA = {"ema_decay": 0.8, "ema_start": 0.25}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
EVALUATES |= {"save_total_limit": None, "logging_steps": 1}


class Follow(TrainerCallback):
    """The mean, from its recurrence over the weights after each step; and what each evaluation saw."""

    def __init__(self, decay: float = 0.8, first: int = 5):
        self.decay, self.first, self.mean, self.seen = decay, first, None, {}

    def on_step_end(self, args, state, control, model, **kwargs):
        now = {name: weight.double().clone() for name, weight in model.named_parameters()}
        if state.global_step == self.first:
            self.mean = now
        elif self.mean:
            self.mean = {name: self.decay * self.mean[name] + (1 - self.decay) * now[name] for name in now}
        self.last = now

    def on_evaluate(self, args, state, control, model, **kwargs):
        now = {name: weight.double().clone() for name, weight in model.named_parameters()}
        self.seen[state.global_step] = (now, self.mean or self.last)


def same(found: dict, expected: dict) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].double(), weight, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("sharing", ["shared", pytest.param("per_task", marks=pytest.mark.slow)])
def test_the_mean_is_evaluated_saved_and_kept(make_trainer, sharing):
    follow = Follow()
    trainer = make_trainer({"encoder_sharing": sharing}, [follow], **EVALUATES | EMA)
    assert len(trainer.plan) // 4 + 1 == follow.first
    trainer.train()
    assert len(follow.seen) >= 4
    for found, expected in follow.seen.values():
        same(found, expected)
    same(dict(trainer.model.named_parameters()), follow.mean)
    assert any(not torch.allclose(follow.mean[name], follow.last[name], atol=1e-4) for name in follow.mean)

    plain = make_trainer({"encoder_sharing": sharing}, **EVALUATES)
    plain.train()
    assert losses(plain) == losses(trainer), "training does not read the mean"
    same(dict(plain.model.named_parameters()), follow.last)
    assert not hasattr(plain, "average") and plain.averaging is None


def losses(trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def scores(trainer) -> list[float]:
    return [log["eval_sts_loss"] for log in trainer.state.log_history if "eval_sts_loss" in log]


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_the_best_checkpoint_is_a_mean(make_trainer, sharing):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_sts_loss", "greater_is_better": False}
    trainer = make_trainer({"encoder_sharing": sharing}, **EVALUATES | EMA | (best if sharing == "shared" else {}))
    trainer.train()
    logged = scores(trainer)
    found = trainer.evaluate()
    assert found["eval_sts_loss"] == pytest.approx(min(logged) if sharing == "shared" else logged[-1], rel=1e-6)
    other = make_trainer({"encoder_sharing": sharing})
    other.model.load_state_dict(
        MultitaskBertModel.from_pretrained(f"{trainer.args.output_dir}/checkpoint-6").state_dict()
    )
    assert other.evaluate()["eval_sts_loss"] == pytest.approx(logged[1], rel=1e-6), "a checkpoint is what was scored"


@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_run_goes_on_bit_for_bit(make_trainer, step):
    """From before the mean began, and from after."""
    straight = make_trainer(**EVALUATES | EMA)
    straight.train()
    folder = f"{straight.args.output_dir}/checkpoint-{step}"
    resumed = make_trainer(**EVALUATES | EMA)
    resumed.train(resume_from_checkpoint=folder)
    expected = weights(straight)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
    assert losses(straight) == losses(resumed) and scores(straight) == scores(resumed)


def test_a_finished_model_is_saved_once(make_trainer, tmp_path):
    trainer = make_trainer(**EVALUATES | EMA)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").exists() and not (tmp_path / "run" / FILE).exists()


def test_training_ends_with_the_best_of_each_task(make_trainer):
    """Also where the best step has no checkpoint, so that Trainer loads none."""
    flags = EVALUATES | EMA | {"eval_steps": 1, "save_steps": 100, "learning_rate": 0.05, "max_steps": 9}
    flags["lr_scheduler_type"] = "constant"
    trainer = make_trainer({"encoder_sharing": "per_task"}, **flags | {"load_best_model_at_end": True})
    trainer.train()
    assert trainer.state.best_model_checkpoint is None, "else this tests nothing"
    found, logs = trainer.evaluate(), [log for log in trainer.state.log_history if "eval_overall" in log]
    for name, task in trainer.model.tasks.items():
        key = f"eval_{name}_{task.metric}"
        assert found[key] == pytest.approx(max(log[key] for log in logs[:9]), abs=1e-6), key


def test_a_checkpoint_without_the_weights_in_training_is_refused(make_trainer, tmp_path):
    make_trainer(**EVALUATES | EMA).train()
    folder = tmp_path / "run" / "checkpoint-6"
    (folder / FILE).unlink()
    with pytest.raises(InputError, match=f"{FILE}: no such file, but --ema_decay"):
        make_trainer(**EVALUATES | EMA).train(str(folder))
    assert (tmp_path / "run" / "checkpoint-3" / FILE).exists(), "before the mean began; the checkpoints are alike"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ema_decay", 1], "--ema_decay is 1.0; expected between 0 and 1"),
        (["--ema_decay", 0.9, "--ema_start", 1], "--ema_start is 1.0"),
        (["--ema_start", 0.5], "--ema_start does nothing without --ema_decay"),
    ],
)
def test_mistakes_are_named(monkeypatch, config, capsys, flags, message):
    assert run_here(monkeypatch, config, *flags) == 2
    assert message in capsys.readouterr().err
