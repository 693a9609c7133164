"""The best weights of each task."""

import shutil

import pytest
import torch
from conftest import weights
from safetensors.torch import load_file
from transformers import TrainerCallback

EVERY_EPOCH = {
    "schedule": "sequential",
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 1000,
    "save_steps": 1000,
    "load_best_model_at_end": True,
    "save_total_limit": None,
}
THREE = {"encoder_sharing": "per_task"}


class Record(TrainerCallback):
    """Copies of the weights at each evaluation, with the scores."""

    def __init__(self):
        self.seen = []

    def on_evaluate(self, args, state, control, metrics, model, **kwargs):
        copy = {name: weight.clone() for name, weight in model.state_dict().items()}
        self.seen.append((state.global_step, metrics, copy))


KEYS = ("eval_sst_accuracy", "eval_quora_accuracy", "eval_sts_pearson")


def set_scores(trainer, monkeypatch, scores: list[list[float]]) -> None:
    """Make evaluations score these, one after the other, for KEYS."""
    left = iter(scores)
    monkeypatch.setattr(
        trainer, "join_metrics", lambda *_: dict(zip(KEYS, next(left), strict=True)) | {"eval_overall": 0.5}
    )


def best(record: Record, key: str) -> tuple:
    """The first of the evaluations that scored highest."""
    return max(record.seen, key=lambda entry: (entry[1][key], -entry[0]))


def test_the_final_model_is_the_best_of_each_task(make_trainer, monkeypatch, tmp_path):
    record = Record()
    trainer = make_trainer(THREE, [record], **EVERY_EPOCH)
    scores = [[0.5, 0.1, 0.3], [0.4, 0.1, 0.3], [0.4, 0.9, 0.3], [0.4, 0.9, 0.8], [0.4, 0.9, 0.7]]
    set_scores(trainer, monkeypatch, scores)
    trainer.train()
    assert [step for step, *_ in record.seen] == [3, 6, 10, 13, 16]
    final = weights(trainer)
    for task, key, step in zip(("sst", "quora", "sts"), KEYS, (3, 10, 13), strict=True):
        best_step, _, copy = best(record, key)
        assert best_step == step
        for name in copy:
            if f".{task}." in name:
                assert torch.equal(final[name], copy[name]), name
        assert all(f".{task}." in name for name in load_file(tmp_path / f"run/_best/{task}-{step}.safetensors"))
    last = record.seen[-1][2]
    assert not all(torch.equal(final[name], last[name]) for name in final), "not the weights of the last step"


def test_the_best_of_a_task_may_be_the_lowest(make_trainer, monkeypatch, tmp_path):
    """Also after a resume, which reads the best so far from its file."""
    monkeypatch.setattr("test_callbacks.KEYS", (*KEYS[:2], "eval_sts_rmse"))
    fields = {"sts": {"metric": "rmse"}}
    trainer = make_trainer(THREE, task_settings=fields, **EVERY_EPOCH)
    set_scores(trainer, monkeypatch, [[0.5, 0.5, 0.9], [0.5, 0.5, 0.4], [0.5, 0.5, 0.6]])
    with pytest.raises(StopIteration):  # a kill at the fourth
        trainer.train()
    files = sorted(file.name for file in (tmp_path / "run" / "_best").glob("sts-*"))
    assert files == ["sts-3.safetensors", "sts-6.safetensors"]
    resumed = make_trainer(THREE, task_settings=fields, **EVERY_EPOCH)
    set_scores(resumed, monkeypatch, [[0.5, 0.5, 0.5], [0.5, 0.5, 0.3]])
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-10")
    files = sorted(file.name for file in (tmp_path / "run" / "_best").glob("sts-*"))
    assert files == ["sts-16.safetensors", "sts-3.safetensors", "sts-6.safetensors"]


def test_an_evaluation_after_training_changes_nothing(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer(THREE, **EVERY_EPOCH)
    trainer.train()
    files = {file: file.read_bytes() for file in (tmp_path / "run" / "_best").iterdir()}
    assert len(files) >= 3
    set_scores(trainer, monkeypatch, [[1.0, 1.0, 1.0]])
    trainer.evaluate()
    assert files == {file: file.read_bytes() for file in (tmp_path / "run" / "_best").iterdir()}


def test_the_best_of_each_task_survive_a_kill(make_trainer, monkeypatch, tmp_path):
    """Killed after an evaluation that replaced the best and before its checkpoint was whole; the resumed run scores
    lower there, as on another machine it may."""
    trainer = make_trainer(THREE, **EVERY_EPOCH)
    set_scores(trainer, monkeypatch, [[0.5, 0.5, 0.5], [0.6, 0.6, 0.6]])
    with pytest.raises(StopIteration):  # the kill: at step 10, and so with checkpoint 6 as the last
        trainer.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    at_three = load_file(tmp_path / "run" / "_best" / "sst-3.safetensors")

    resumed = make_trainer(THREE, **EVERY_EPOCH)
    set_scores(resumed, monkeypatch, [[0.45, 0.7, 0.2]] + 3 * [[0.1, 0.1, 0.1]])
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-3")
    final = weights(resumed)
    assert all(torch.equal(final[name], weight) for name, weight in at_three.items())
    assert (tmp_path / "run" / "_best" / "quora-6.safetensors").exists()
    assert not (tmp_path / "run" / "_best" / "sst-6.safetensors").exists(), "left by the killed run"


def test_files_no_checkpoint_needs_are_removed(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer(THREE, **EVERY_EPOCH | {"save_total_limit": 1})
    set_scores(trainer, monkeypatch, [[step / 10] * 3 for step in range(5)])
    trainer.train()
    names = {file.name for file in (tmp_path / "run" / "_best").iterdir()}
    assert names == {f"{task}-{step}.safetensors" for task in ("quora", "sst", "sts") for step in (3, 16)}


@pytest.mark.parametrize("optimizer", [{"weight_decay": 0.5}, {"weight_decay": 0.5, "paper_optimizer": True}])
def test_one_task_leaves_the_others_alone(make_trainer, optimizer):
    """Not a bit of another task's parameters changes: no decay, no momentum drift, no clipping."""
    trainer = make_trainer(THREE, schedule="sequential", **optimizer)
    snapshots = []

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            snapshots.append(weights(trainer))

    before = weights(trainer)
    trainer.add_callback(Snapshot())
    trainer.train()
    for task, after in zip(trainer.plan, snapshots, strict=True):
        for name, weight in after.items():
            if f".{task}." not in name:
                assert torch.equal(weight, before[name]), (task, name)
        assert not torch.equal(first(after, task), first(before, task))
        before = after


def first(snapshot: dict, task: str) -> torch.Tensor:
    """A weight that the task trains."""
    return snapshot[f"encoders.{task}.embeddings.word_embeddings.weight"]


def test_a_shared_encoder_keeps_one_best_checkpoint(make_trainer, tmp_path):
    make_trainer(**EVERY_EPOCH).train()
    assert not (tmp_path / "run" / "_best").exists()
