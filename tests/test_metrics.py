"""Metrics against scikit-learn and scipy, and the overall score against the paper's own tables."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, log_loss

from bert_multitask.losses import UNLABELLED
from bert_multitask.metrics import METRICS, decide, overall_score, task_scores
from bert_multitask.tasks import TASKS

generator = np.random.default_rng(0)


def test_accuracy():
    predictions, references = generator.integers(0, 5, 50), generator.integers(0, 5, 50)
    got = METRICS["accuracy"]().compute(predictions=predictions, references=references)
    assert got == {"accuracy": accuracy_score(references, predictions)}


def test_pearson():
    predictions, references = generator.normal(size=50), generator.normal(size=50)
    got = METRICS["pearson"]().compute(predictions=predictions, references=references)
    assert got["pearson"] == pytest.approx(pearsonr(predictions, references).statistic)


@pytest.mark.parametrize(("predictions", "references"), [([1.0] * 4, [1, 2, 3, 4]), ([1, 2], [3, 3]), ([1.0], [2.0])])
def test_an_undefined_pearson_counts_as_zero_with_a_warning(predictions, references):
    with pytest.warns(UserWarning, match="counted as 0"):
        assert METRICS["pearson"]().compute(predictions=predictions, references=references) == {"pearson": 0.0}


def test_decisions():
    assert decide(TASKS["sst"], np.array([[0, 3, 1, 2, 2], [9, 0, 0, 0, 0]])).tolist() == [1, 0]
    assert decide(TASKS["quora"], np.array([-0.1, 0.0, 0.1])).tolist() == [0, 0, 1]
    assert decide(TASKS["sts"], np.array([1.5, 4.0])).tolist() == [1.5, 4.0]


def test_task_scores_leave_unlabelled_rows_out():
    logits = generator.normal(size=(6, 5)).astype(np.float32)
    labels = np.array([0, 1, UNLABELLED, 3, 4, UNLABELLED])
    kept = labels != UNLABELLED
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    scores = task_scores(TASKS["sst"], logits, labels)
    assert scores["accuracy"] == accuracy_score(labels[kept], logits[kept].argmax(-1))
    assert scores["loss"] == pytest.approx(log_loss(labels[kept], probabilities[kept], labels=range(5)), rel=1e-5)


@pytest.mark.parametrize(
    ("sst", "quora", "sts", "overall"),
    [(0.416, 0.721, 0.487, 0.627), (0.514, 0.903, 0.862, 0.783), (0.531, 0.915, 0.889, 0.797)],
    ids=["Baseline", "3-BERT + TPE", "Ensemble"],
)
def test_overall_score_gives_the_papers_table_4(sst, quora, sts, overall):
    tasks = {name: TASKS[name] for name in ("sst", "quora", "sts")}
    scores = {"sst": {"accuracy": sst}, "quora": {"accuracy": quora}, "sts": {"pearson": sts}}
    assert overall_score(tasks, scores) == pytest.approx(overall, abs=6e-4)
