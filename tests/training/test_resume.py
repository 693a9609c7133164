"""A run that is stopped at any place and resumed ends with the bytes of one that never was."""

import itertools
import random

import numpy as np
import pytest
import torch
from conftest import Kill, losses, run_here
from safetensors.torch import load_file

from bert_multitask.training.trainer import MultitaskTrainer

LAYOUTS = {
    "shared": {},
    "per task": {"encoder_sharing": "per_task"},
    "separate pairs": {"pair_encoding": "separate"},
    "per task, separate pairs": {"encoder_sharing": "per_task", "pair_encoding": "separate"},
}


def generators() -> list[int]:
    """Hashes of the states of all generators of this process."""
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return [hash(repr(state)) for state in states]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("use", ["evaluate", "evaluate other rows", "predict"])
def test_evaluation_moves_no_generator(make_trainer, monkeypatch, layout, use):
    """Not even where a metric of the user's draws random numbers."""
    trainer = make_trainer(LAYOUTS[layout])
    score = trainer.score_task
    monkeypatch.setattr(
        trainer, "score_task", lambda *args: (random.random(), np.random.rand(), torch.rand(1), score(*args))[-1]
    )
    before = generators()
    if use == "predict":
        trainer.predict(trainer.eval_dataset["sst"])
    else:
        trainer.evaluate(dict(trainer.eval_dataset) if use == "evaluate other rows" else None)
    assert generators() == before


FLAGS = ["--max_steps", 9, "--eval_steps", 2, "--save_steps", 2, "--logging_steps", 1, "--save_total_limit", 9]
SMART = ["--smart_weight", 1, "--bregman_weight", 0.5]
PER_TASK = ["--encoder_sharing", "per_task"]


RUNS = {
    "shared": [],
    "shared, SMART": SMART,
    "per task": PER_TASK,
    "per task, sequential": [*PER_TASK, "--schedule", "sequential"],
    "per task, SMART, separate pairs": [*PER_TASK, *SMART, "--pair_encoding", "separate"],
}
# place -> the method in which the run is killed, and at which of its calls, first and after the resume.
PLACES = {
    "saving": ("_save_rng_state", 3, 2),
    "evaluating": ("evaluation_loop", 5, 3),  # at step 6, with an encoder per task
    "stepping": ("training_step", 6, 2),
}
QUICK = {("per task, sequential", "evaluating")}


@pytest.mark.parametrize(
    ("name", "place"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in itertools.product(RUNS, PLACES)],
)
def test_a_run_killed_in_an_adverse_place(monkeypatch, config, name, place):
    """Between an evaluation and the end of its checkpoint, in an evaluation, in a step: twice, and resumed twice."""
    flags = [*FLAGS, "--no_do_predict", *RUNS[name]]
    method, first, second = PLACES[place]
    whole, killed = config.parent / "whole", config.parent / "run"
    assert run_here(monkeypatch, config, *flags, "--output_dir", whole) == 0
    for call, resume in ((first, []), (second, ["--resume_from_checkpoint"])):
        with monkeypatch.context() as patch:
            count, original = [], getattr(MultitaskTrainer, method)

            def killing(self, *args, count=count, original=original, call=call, **kwargs):
                count.append(1)
                if len(count) == call:
                    raise Kill
                return original(self, *args, **kwargs)

            patch.setattr(MultitaskTrainer, method, killing)
            with pytest.raises(Kill):
                run_here(monkeypatch, config, *flags, *resume)
    assert run_here(monkeypatch, config, *flags, "--resume_from_checkpoint") == 0
    expected, got = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert expected.keys() == got.keys() and all(expected[name].equal(got[name]) for name in expected)
    assert losses(killed) == losses(whole)
    assert (killed / "metrics.json").read_text() == (whole / "metrics.json").read_text()


@pytest.mark.parametrize(("share", "expected"), [(0.4, 0), (0.6, 1)])
def test_shares_of_the_plan_are_compared_as_steps(make_trainer, tmp_path, monkeypatch, share, expected):
    """Transformers warns of settings that differ from the checkpoint's, which has numbers of steps: 2 of 5 is 0.4."""
    fixed = {"max_steps": 5, "save_total_limit": 9, "output_dir": str(tmp_path)}
    fixed |= {"eval_strategy": "steps", "save_strategy": "steps"}
    make_trainer(**fixed, eval_steps=0.4, save_steps=0.4).train()
    warned = []
    monkeypatch.setattr("transformers.trainer_utils.logger.warning_once", warned.append)
    trainer = make_trainer(**fixed, eval_steps=share, save_steps=share)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sum("save_steps" in text for text in warned) == expected and trainer.state.global_step == 5
