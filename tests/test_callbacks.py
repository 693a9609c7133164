"""The best weights of each task."""

import pytest
import torch
from conftest import weights
from safetensors import safe_open
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


def best(record: Record, key: str) -> tuple:
    """The first of the evaluations that scored highest."""
    return max(record.seen, key=lambda entry: (entry[1][key], -entry[0]))


def test_the_final_model_is_the_best_of_each_task(make_trainer, monkeypatch, tmp_path):
    record = Record()
    trainer = make_trainer(THREE, [record], **EVERY_EPOCH)
    scores = iter([[0.5, 0.1, 0.3], [0.4, 0.1, 0.3], [0.4, 0.9, 0.3], [0.4, 0.9, 0.8], [0.4, 0.9, 0.7]])
    keys = ("eval_sst_accuracy", "eval_quora_accuracy", "eval_sts_pearson")
    monkeypatch.setattr(trainer, "score", lambda *_: dict(zip(keys, next(scores), strict=True)) | {"eval_overall": 0.5})
    trainer.train()
    assert [step for step, *_ in record.seen] == [3, 6, 10, 13, 16]
    final = weights(trainer)
    for task, key, step in zip(("sst", "quora", "sts"), keys, (3, 10, 13), strict=True):
        best_step, _, copy = best(record, key)
        assert best_step == step
        for name in copy:
            if f".{task}." in name:
                assert torch.equal(final[name], copy[name]), name
        with safe_open(tmp_path / "run" / "best" / f"{task}.safetensors", "pt") as file:
            assert file.metadata()["step"] == str(step)
            assert all(f".{task}." in name for name in file.keys())  # noqa: SIM118: not a dictionary
    last = record.seen[-1][2]
    assert not all(torch.equal(final[name], last[name]) for name in final), "not the weights of the last step"


def test_an_evaluation_after_training_changes_nothing(make_trainer, tmp_path):
    trainer = make_trainer(THREE, **EVERY_EPOCH)
    trainer.train()
    files = {file: file.read_bytes() for file in (tmp_path / "run" / "best").iterdir()}
    assert len(files) == 3
    with torch.no_grad():
        trainer.model.heads["sst"].classifier.bias += torch.tensor([9.0, 0, 0, 0, 0])
    trainer.evaluate()
    assert all(file.read_bytes() == content for file, content in files.items())


def test_the_best_of_each_task_survive_a_stop(make_trainer, tmp_path):
    straight = make_trainer(THREE, **EVERY_EPOCH)
    straight.train()
    expected = weights(straight)
    # The stopped run had gone beyond the checkpoint: its later files must not count.
    resumed = make_trainer(THREE, **EVERY_EPOCH)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-10")
    assert all(torch.equal(weights(resumed)[name], weight) for name, weight in expected.items())


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
    assert not (tmp_path / "run" / "best").exists()
