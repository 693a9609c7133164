"""The examples of CONTRIBUTING.md: each is in one place, and what it adds works in a run."""

import csv
import json
import math
import re
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, run_here
from torch import nn
from torch.nn import functional

from bert_multitask.evaluation.metrics import METRICS
from bert_multitask.model.heads import HEADS
from bert_multitask.model.kinds import KINDS
from bert_multitask.model.losses import LOSSES
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.training.schedule import SCHEDULES

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ROWS = [("a goal at last", "sport", "yes"), ("the vote is lost", "politics", "no")] * 4


@pytest.fixture
def names():
    """What the examples define, with their entries in the tables, which end with the test."""
    defined = {"__name__": __name__, "math": math, "torch": torch, "nn": nn, "functional": functional}
    with ExitStack() as tables:
        for table in (KINDS, HEADS, LOSSES, METRICS, SCHEDULES):
            tables.enter_context(patch.dict(table))
        for example in EXAMPLES:
            exec(example, defined)
        yield defined


def test_each_example_is_short():
    assert len(EXAMPLES) == 6
    for example in EXAMPLES:
        lines = [line for line in example.splitlines() if line and not line.startswith("from")]
        assert len(lines) <= 12, example


def test_a_run_with_all_that_is_added(names, monkeypatch, tmp_path, tiny_bert):
    (spec,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    _, topic = yaml.safe_load(spec)["tasks"]
    files = topic["files"]
    with open(tmp_path / "topic.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("title", "topic", "mine"), *ROWS])
    mine = {"name": "mine", "kind": "cautious", "text": "title", "label": "mine", "label_names": ["no", "yes"]}
    settings = {
        "model_name_or_path": tiny_bert,
        "data_dir": str(tmp_path),
        "output_dir": str(tmp_path / "run"),
        "tasks": [
            mine | {"files": dict(files), "epochs": 1},
            topic | {"head": "deep", "loss": "focal", "metric": "error_rate", "epochs": 10, "dropout": 0.0},
        ],
        "schedule": "small_first",
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert run_here(monkeypatch, tmp_path / "run.yaml") == 0
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    order = ["mine" if "loss_mine" in entry else "topic" for entry in history if "loss" in entry]
    assert order == 2 * ["mine"] + 20 * ["topic"]
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores["eval_topic_error_rate"] == 0, "a deep head on a focal loss learns two texts"
    weights = MultitaskBertModel.from_pretrained(tmp_path / "run").heads["topic"].state_dict()
    assert weights["layers.0.weight"].shape == (64, 32)


def test_the_kind_decides_and_the_loss_is_its_formula(names):
    logits = np.array([-1.0, 2.0, 2.3], np.float32)  # probabilities .27, .88, .91
    assert KINDS["cautious"].decide(logits).tolist() == [0, 0, 1]
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, -100, 1])
    true = logits.softmax(-1)[[0, 1, 2, 4], [0, 1, 2, 1]]
    expected = (-((1 - true) ** 2) * true.log()).mean()
    assert LOSSES["focal"](logits=logits, labels=labels) == pytest.approx(expected.item())


def test_the_layout_of_encoders(names, tiny_bert, tokenizer, tmp_path):
    model = names["AdaptedModel"].from_pretrained(tiny_bert, tasks=["sst", "sts"])
    inputs = tokenizer(["a b", "c"], padding=True, return_tensors="pt")
    model.eval()("sts", **inputs, labels=torch.tensor([1.0, 2.0])).loss.backward()
    assert [name for name, layer in model.adapters.items() if layer.weight.grad is not None] == ["sts"]
    plain = MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "sts"]).eval()
    plain.heads.load_state_dict(model.heads.state_dict())
    assert not torch.equal(plain("sst", **inputs).logits, model("sst", **inputs).logits)
    model.save_pretrained(tmp_path)
    again = names["AdaptedModel"].from_pretrained(tmp_path).eval()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    for name in ("sst", "sts"):
        torch.testing.assert_close(again(name, **inputs).logits, model(name, **inputs).logits)
