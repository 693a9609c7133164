"""The cosines between the tasks' gradients: against NumPy in float64, of backward passes of a copy of the model."""

import copy
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import run_here, weights

from bert_multitask.model.errors import InputError
from bert_multitask.training.conflicts import cosines


def logged(trainer) -> list[dict]:
    keys = [{key: log[key] for key in log if key.startswith("cosine_")} for log in trainer.state.log_history]
    return [log for log in keys if log]


def test_they_are_those_of_backward_passes_and_change_nothing(make_trainer):
    trainer = make_trainer(logging_steps=4, gradient_cosine_steps=4, max_steps=8)
    calls, compute = [], trainer.cosines.loss

    def note(batch):
        calls.append((copy.deepcopy(trainer.model.state_dict()), batch))
        return compute(batch)

    trainer.cosines.loss = note
    trainer.train()
    found = logged(trainer)
    assert len(found) == 2 and len(calls) == 12, "two batches of each task, at steps 4 and 8"
    twin = make_trainer().model.eval()
    for entry, part in zip(found, (calls[:6], calls[6:]), strict=True):
        gradients: dict[str, list] = {}
        for state, inputs in part:
            twin.load_state_dict(state)
            twin.zero_grad()
            twin(**inputs).loss.backward()
            parts = [weight.grad for weight in twin.bert.parameters()]
            flat = [torch.zeros_like(w) if g is None else g for g, w in zip(parts, twin.bert.parameters(), strict=True)]
            gradients.setdefault(inputs["task"], []).append(torch.cat([g.flatten() for g in flat]).double().numpy())
        pairs = {f"cosine_{a}_{b}": (gradients[a][0], gradients[b][0]) for a, b in combinations(gradients, 2)}
        pairs |= {f"cosine_{task}_{task}": both for task, both in gradients.items()}
        assert entry.keys() == pairs.keys() and len(pairs) == 6
        for key, (one, other) in pairs.items():
            expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert entry[key] == pytest.approx(expected, abs=1e-4), key

    plain = make_trainer(logging_steps=4, max_steps=8)
    plain.train()
    assert not logged(plain)
    assert all(torch.equal(weights(plain)[name], weight) for name, weight in weights(trainer).items())


def test_what_a_cosine_is():
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0])
    found = cosines({"a": [one, -one], "b": [one + other, other], "c": [torch.zeros(2)]})
    assert found == pytest.approx({"cosine_a_a": -1.0, "cosine_a_b": 0.5**0.5, "cosine_b_b": 0.5**0.5})


def test_a_run_has_them_in_its_history_and_its_report(monkeypatch, config):
    flags = ["--max_steps", 6, "--logging_steps", 2, "--gradient_cosine_steps", 2]
    assert run_here(monkeypatch, config, *flags) == 0
    run = config.parent / "run"
    entries = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert sum("cosine_sst_quora" in entry for entry in entries) == 3
    assert run_here(monkeypatch, run, recipe="report") == 0
    assert "Gradients of the tasks" in (run / "report" / "report.md").read_text()


def test_mistakes_are_named(make_trainer):
    with pytest.raises(InputError, match="needs several tasks with a shared encoder"):
        make_trainer({"encoder_sharing": "per_task"}, gradient_cosine_steps=1)
    with pytest.raises(InputError, match="--gradient_cosine_steps is 0; expected at least 1"):
        make_trainer(gradient_cosine_steps=0)
