"""What an extender adds in one table works everywhere: a metric, a loss, a divergence, a head, a schedule."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import yaml
from conftest import run_here
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional

from bert_multitask.evaluation.metrics import METRICS, TaskMetric
from bert_multitask.evaluation.tables import prediction_table
from bert_multitask.inference.ensemble import select_greedily
from bert_multitask.model.heads import HEADS, HeadLinear
from bert_multitask.model.losses import DIVERGENCES, LOSSES
from bert_multitask.model.tasks import load_task
from bert_multitask.reporting.report import setting_text, write_report
from bert_multitask.reporting.subject import open_sources
from bert_multitask.training.schedule import SCHEDULES

TEXTS = ["good movie", "bad movie", "nice film", "awful film", "great", "dull", "fine plot", "worst cast ever"]


class ErrorRate(TaskMetric):
    """Share of rows wrong, in [0, 1]; lower is better."""

    unit = "share of rows wrong"
    note = "lower is better"
    greater_is_better = False
    overall = "1 - {}"

    @staticmethod
    def score(predictions, references, axis=-1):
        return (predictions != references).mean(axis)

    @staticmethod
    def to_unit(values, task):
        return 1 - values


@pytest.fixture
def train(monkeypatch, tmp_path, tiny_bert):
    """Train a yes-or-no task and a score task of eight rows, with fields of the first; its run folder."""

    def train(*flags, **fields):
        for name, scale in (("a", 1), ("s", 0.5)):
            with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                rows = [[text, scale * (number % 2)] for number, text in enumerate(TEXTS)]
                csv.writer(file).writerows([["text", "label"], *rows])
        files = {name: dict.fromkeys(("train", "dev"), f"{name}.csv") for name in "as"}
        common = {"text": "text", "epochs": 2}
        one = {"name": "a", "kind": "binary", "label_names": ["neg", "pos"], "files": files["a"]} | common | fields
        two = {"name": "s", "kind": "similarity", "score_range": [0, 1], "metric": "rmse", "files": files["s"]} | common
        settings = {
            "model_name_or_path": tiny_bert,
            "data_dir": str(tmp_path),
            "output_dir": str(tmp_path / "run"),
            "tasks": [one, two],
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "eval_steps": 2,
            "report_to": "none",
            "disable_tqdm": True,
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        assert run_here(monkeypatch, tmp_path / "run.yaml", *flags) == 0
        return tmp_path / "run"

    return train


def read_history(run) -> list[dict]:
    """The entries of a run's history."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_a_metric(monkeypatch, train, sharing):
    """In one table: trained, logged, evaluated, kept the best by (the lowest), bootstrapped, carded and reported."""
    monkeypatch.setitem(METRICS, "error_rate", ErrorRate)
    run = train("--encoder_sharing", sharing, "--metric_for_best_model", "a_error_rate", metric="error_rate")
    history, scores = read_history(run), json.loads((run / "metrics.json").read_text())
    evaluations = [entry for entry in history if "eval_overall" in entry]
    assert all("error_rate_a" in entry or "rmse_s" in entry for entry in history if "loss" in entry)
    assert scores["eval_a_error_rate"] == min(entry["eval_a_error_rate"] for entry in evaluations)
    if sharing == "per_task":  # the best of each task, too
        assert scores["eval_s_rmse"] == pytest.approx(min(entry["eval_s_rmse"] for entry in evaluations))
    expected = (1 - scores["eval_a_error_rate"] + 1 - scores["eval_s_rmse"]) / 2
    assert scores["eval_overall"] == pytest.approx(expected)
    card = (run / "README.md").read_text(encoding="utf-8")
    assert f"| a | error_rate (lower is better) | {scores['eval_a_error_rate']:.4f} | " in card
    if sharing == "per_task":
        return  # a report is the same
    write_report(run, run / "report", other=run)
    page = (run / "report" / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert f"| a | {scores['eval_a_error_rate']:.2f} | " in page and "| 8 | error_rate (lower is better) |" in page
    assert "mean of 1 - error_rate, 1 - rmse / (highest - lowest score)" in page
    assert "| a (lower is better) | " in page


def focal(*, logits, labels, num_items=None):
    """Binary focal loss, without what the package's losses take besides."""
    losses = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).sum() / (len(labels) if num_items is None else num_items)


class DeepHead(nn.Module):
    """Two layers with a tanh between them."""

    def __init__(self, hidden_size, task, texts=1):
        super().__init__()
        self.layers = nn.Sequential(HeadLinear(hidden_size, 8), nn.Tanh(), HeadLinear(8, 1))

    def forward(self, embedding):
        return self.layers(embedding).squeeze(-1)


def test_a_loss_a_divergence_a_head_and_a_schedule(monkeypatch, train):
    monkeypatch.setitem(LOSSES, "focal", focal)
    monkeypatch.setitem(DIVERGENCES, "l1", lambda perturbed, clean: (perturbed - clean).abs())
    monkeypatch.setitem(HEADS, "deep", DeepHead)
    monkeypatch.setitem(SCHEDULES, "backwards", lambda batches, seed: [n for n in "sa" for _ in range(batches[n])])
    run = train(
        "--schedule", "backwards", "--logging_steps", 1, head="deep", loss="focal", divergence="l1", smart_weight=1.0
    )
    logged = [entry for entry in read_history(run) if "loss" in entry]
    assert ["loss_a" in entry for entry in logged] == [False] * 4 + [True] * 4
    assert all(math.isfinite(entry["smart_a"]) for entry in logged[4:])
    (source,) = open_sources([str(run)], "dev")
    assert source.plan() == ["s"] * 4 + ["a"] * 4  # as a report draws it


def test_ensembles_pick_the_lowest_error():
    task = load_task({"name": "s", "kind": "similarity", "score_range": [0, 1], "metric": "mae"})
    labels = np.linspace(0, 1, 6)
    tables = [prediction_table(task, list("abcdef"), labels + error) for error in (0.5, 0.1, 0.3)]
    assert select_greedily(task, tables, labels) == [1]


@pytest.mark.parametrize("fields", [{"class_weights": {"neg": 1, "pos": 2}}, {"label_smoothing": 0.1}], ids=str)
def test_a_loss_without_options_refuses_them(monkeypatch, train, tmp_path, capsys, fields):
    monkeypatch.setitem(LOSSES, "focal", focal)
    with pytest.raises(AssertionError):
        train(loss="focal", **fields)
    assert f"task 'a': loss 'focal' takes no {next(iter(fields))}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_f1_and_balanced_class_weights_of_a_run(train):
    run = train("--class_weights", '{"a": "balanced"}', metric="f1")
    scores = json.loads((run / "metrics.json").read_text())
    with open(run / "predictions" / "a-dev.csv", newline="", encoding="utf-8") as file:
        predicted = [row["label"] == "pos" for row in csv.DictReader(file)]
    assert scores["eval_a_f1"] == pytest.approx(f1_score([n % 2 for n in range(8)], predicted, zero_division=0))
    (spec,) = [spec for spec in json.loads((run / "config.json").read_text())["tasks"] if spec["name"] == "a"]
    assert spec["class_weights"] == {"neg": 1.0, "pos": 1.0}
    assert json.loads((run / "run.json").read_text())["decides"]["task a"]["class_weights"] == spec["class_weights"]
    assert setting_text(spec["class_weights"]) == "neg 1.0, pos 1.0"  # as a report shows it
