"""Metrics against scikit-learn and scipy, and the overall score against the paper's own tables."""

import dataclasses

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    mean_absolute_error,
    root_mean_squared_error,
)

from bert_multitask.evaluation.intervals import Scores, resample
from bert_multitask.evaluation.metrics import (
    METRICS,
    TaskMetric,
    decide,
    describe_metric,
    describe_overall,
    find_metric,
    higher_is_better,
    overall_score,
    score,
    score_decisions,
    task_scores,
    unit_score,
)
from bert_multitask.model.errors import InputError, NonFiniteError
from bert_multitask.model.kinds import KINDS
from bert_multitask.model.losses import UNLABELLED
from bert_multitask.model.tasks import TASKS, Task

generator = np.random.default_rng(0)
YES_NO = Task("a", "binary", label_names=("no", "yes"))
THREE = Task("b", "classification", label_names=("x", "y", "z"))
SCORES = Task("c", "regression", score_range=(-1, 3))
SEVERAL = Task("d", "multilabel", label_names=("x", "y", "z"))
# task, and what scikit-learn or scipy makes of (references, predictions)
REFERENCES = {
    ("accuracy", YES_NO): accuracy_score,
    ("accuracy", THREE): accuracy_score,
    ("f1", YES_NO): lambda true, predicted: f1_score(true, predicted, zero_division=0),
    ("f1", THREE): lambda true, predicted: f1_score(true, predicted, average="macro", zero_division=0),
    ("macro_f1", YES_NO): lambda true, predicted: f1_score(true, predicted, average="macro", zero_division=0),
    ("macro_f1", THREE): lambda true, predicted: f1_score(true, predicted, average="macro", zero_division=0),
    ("matthews", YES_NO): matthews_corrcoef,
    ("matthews", THREE): matthews_corrcoef,
    ("pearson", SCORES): lambda true, predicted: pearsonr(true, predicted).statistic,
    ("spearman", SCORES): lambda true, predicted: spearmanr(true, predicted).statistic,
    ("rmse", SCORES): root_mean_squared_error,
    ("mae", SCORES): mean_absolute_error,
    ("micro_f1", SEVERAL): lambda true, predicted: f1_score(true, predicted, average="micro", zero_division=0),
    ("macro_f1", SEVERAL): lambda true, predicted: f1_score(true, predicted, average="macro", zero_division=np.nan),
    ("accuracy", SEVERAL): accuracy_score,
}


def with_metric(task: Task, metric: str) -> Task:
    """The task, scored by another metric."""
    return dataclasses.replace(task, metric=metric)


CASES = [
    pytest.param(with_metric(task, name), expected, id=f"{name}-{task.kind}")
    for (name, task), expected in REFERENCES.items()
]


def test_decisions():
    assert decide(TASKS["sst"], np.array([[0, 3, 1, 2, 2], [9, 0, 0, 0, 0]])).tolist() == [1, 0]
    assert decide(TASKS["quora"], np.array([-0.1, 0.0, 0.1])).tolist() == [0, 0, 1]
    assert decide(SEVERAL, np.array([[-0.1, 0.0, 0.1], [1, 2, -3]])).tolist() == [[0, 0, 1], [1, 1, 0]]
    assert decide(Task("e", "multilabel", label_names=("x",)), np.array([-1.0, 1.0])).tolist() == [[0], [1]]
    assert decide(TASKS["sts"], np.array([1.5, 4.0])).tolist() == [1.5, 4.0]


def test_a_label_that_a_reference_lacks_is_left_out():
    predictions, references = np.array([[1, 1, 0], [0, 1, 1]]), np.array([[1, UNLABELLED, 0], [0, 1, UNLABELLED]])
    known = references != UNLABELLED
    for name, expected in [
        ("accuracy", 1.0),
        ("macro_f1", 1.0),
        ("micro_f1", f1_score(references[known], predictions[known])),
    ]:
        assert score(with_metric(SEVERAL, name), predictions, references) == expected


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


def rows_of(task: Task, rows: int) -> st.SearchStrategy:
    """Predictions and references of a task, as `decide` gives them."""
    if task.score_range:
        values = arrays.arrays(np.float32, rows, elements=st.floats(-1, 3, width=32))
    elif KINDS[task.kind].width(task):
        values = arrays.arrays(np.int64, (rows, len(task.label_names)), elements=st.integers(0, 1))
    else:
        values = arrays.arrays(np.int64, rows, elements=st.integers(0, len(task.label_names) - 1))
    return st.tuples(values, values)


def test_every_metric_is_tested():
    """Those of tags in test_token_classification.py."""
    assert {(name, kind) for kind in KINDS if not KINDS[kind].words for name in KINDS[kind].keys["metric"]} == {
        (name, task.kind) for name, task in REFERENCES
    }
    assert METRICS.keys() == {key for kind in KINDS.values() for key in kind.keys["metric"].values()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "expected"), CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_metrics_are_those_of_sklearn_and_scipy(task, expected, data):
    predictions, references = data.draw(st.integers(2, 12).flatmap(lambda rows: rows_of(task, rows)))
    value = np.nan_to_num(expected(references.astype(float), predictions.astype(float)))  # undefined correlations are 0
    assert score(task, predictions, references) == pytest.approx(value, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "expected"), CASES)
def test_the_bootstrap_scores_each_resample_as_a_whole_set(task, expected):
    rng = np.random.default_rng(1)
    shape = (2, 50, 12, *[width for width in [KINDS[task.kind].width(task)] if width])
    predictions, references = rng.integers(0, 2, shape) if not task.score_range else rng.random(shape)
    metric = find_metric(task)
    together = metric.score(*metric.columns(predictions, references), axis=-1)
    one_by_one = [score(task, *pair) for pair in zip(predictions, references, strict=True)]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-12)
    drawn = resample(task, predictions[0], references[0], seed=0, number=0)
    assert np.isfinite(drawn).all() and drawn.std() > 0
    assert drawn.mean() == pytest.approx(together[0], abs=0.3)


@pytest.mark.parametrize(
    ("task", "predictions", "references"),
    [
        pytest.param(with_metric(YES_NO, "f1"), [0, 0], [0, 0], id="f1: no yes predicted, none true"),
        pytest.param(with_metric(YES_NO, "matthews"), [1, 1], [0, 1], id="matthews: one class predicted"),
        pytest.param(with_metric(THREE, "matthews"), [0, 2], [2, 2], id="matthews: one class true"),
        pytest.param(with_metric(SCORES, "pearson"), [0.1, 0.1], [1.0, 2.0], id="pearson: constant predictions"),
        pytest.param(with_metric(SCORES, "pearson"), [0.1], [1.0], id="pearson: one row"),
        pytest.param(with_metric(SCORES, "spearman"), [0.1, 2.0], [1.0, 1.0], id="spearman: constant references"),
        pytest.param(SEVERAL, [[0, 0, 0]] * 2, [[0, 0, 0]] * 2, id="micro F1: no label predicted, none true"),
        pytest.param(with_metric(SEVERAL, "macro_f1"), [[0, 0, 0]] * 2, [[0, 0, 0]] * 2, id="macro F1: the same"),
    ],
)
def test_undefined_scores_count_as_zero_with_a_warning(task, predictions, references):
    with pytest.warns(UserWarning, match="counted as 0"):
        assert score(task, np.array(predictions), np.array(references)) == 0
    with pytest.warns(UserWarning, match="counted as 0"):  # the same in a report
        assert Scores({"t": task}, {"t": np.array(predictions)}, {"t": np.array(references)})["t"].value == 0


@pytest.mark.parametrize(
    ("task", "logits"),
    [
        pytest.param(THREE, [[0, 1, 2], [0, np.nan, 1]], id="one logit of a class"),
        pytest.param(YES_NO, [0.5, -np.inf], id="an infinite logit of yes"),
        pytest.param(SCORES, [np.nan, 0.5], id="a score"),
        pytest.param(with_metric(SCORES, "rmse"), [np.inf, 0.5], id="an infinite score"),
    ],
)
def test_predictions_that_are_no_numbers_are_never_scored(task, logits):
    logits, labels = np.array(logits, np.float32), np.array([1, 1] if task.label_names else [0.5, 0.5], None)
    with pytest.raises(NonFiniteError, match=f"task '{task.name}': 1 of 2 predictions are NaN or infinite"):
        task_scores(task, logits, labels)
    if task.score_range:
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            Scores({"t": task}, {"t": logits}, {"t": labels})


def test_without_a_labelled_row_there_is_no_score():
    with pytest.raises(InputError, match="task 'a': no row has a label"):
        score_decisions(YES_NO, np.array([0, 1]), np.array([UNLABELLED, UNLABELLED]))


@pytest.mark.parametrize(
    ("task", "choices"),
    [
        pytest.param(with_metric(YES_NO, "rmse"), "accuracy, f1, macro_f1, matthews for kind 'binary'", id="rmse"),
        pytest.param(with_metric(THREE, "pearson"), "accuracy, f1, macro_f1, matthews", id="pearson of classes"),
        pytest.param(
            with_metric(SCORES, "f1"), "pearson, spearman, rmse, mae for kind 'regression'", id="f1 of scores"
        ),
        pytest.param(with_metric(SCORES, "F1"), "pearson, spearman, rmse, mae", id="another case"),
    ],
)
def test_a_metric_of_another_kind_is_refused(task, choices):
    with pytest.raises(InputError, match=f"task '{task.name}': metric is '{task.metric}'; choose one of {choices}"):
        find_metric(task)


@pytest.mark.parametrize(
    ("task", "value", "unit"),
    [
        (YES_NO, 0.7, 0.7),
        (with_metric(YES_NO, "f1"), 0.2, 0.2),
        (with_metric(THREE, "matthews"), -0.5, 0.25),
        (with_metric(SCORES, "spearman"), 0.5, 0.75),
        (with_metric(SCORES, "rmse"), 1.0, 0.75),  # a quarter of the range from -1 to 3
        (with_metric(SCORES, "mae"), 9.0, 0.0),
    ],
)
def test_the_overall_score_takes_metrics_in_the_unit_interval(task, value, unit):
    assert unit_score(task, value) == pytest.approx(unit)
    assert overall_score({"t": task}, {"t": {task.metric: value}}) == pytest.approx(unit)
    np.testing.assert_allclose(unit_score(task, np.array([value, value])), [unit, unit])


def test_metrics_in_words():
    tasks = {"a": with_metric(YES_NO, "f1"), "b": with_metric(THREE, "f1"), "c": with_metric(SCORES, "rmse")}
    assert [describe_metric(task) for task in tasks.values()] == [
        "f1 (of the second label)",
        "f1 (mean of the classes' F1)",
        "rmse (lower is better)",
    ]
    assert describe_overall(tasks) == "mean of f1, 1 - rmse / (highest - lowest score)"


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("eval_overall", True, True),
        ("eval_a_f1", True, True),
        ("c_rmse", True, False),
        ("eval_c_rmse", False, False),
        ("eval_c_loss", False, False),
        ("eval_a_mine", False, False),
        (None, None, None),
    ],
)
def test_a_metric_says_whether_higher_is_better(key, given, expected):
    tasks = {"a": with_metric(YES_NO, "f1"), "c": with_metric(SCORES, "rmse")}
    assert higher_is_better(tasks, key, given) is expected
    with pytest.raises(InputError, match="--greater_is_better is False"):
        higher_is_better(tasks, "a_f1", False)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - KINDS["token_classification"].keys["metric"].values()))
def test_metrics_are_evaluate_metrics(name):
    metric, pair = METRICS[name], np.array([[0, 1, 1, 0], [0, 1, 0, 1]])
    if isinstance(metric.value, datasets.List):
        pair = np.stack([pair, pair[::-1]], axis=-1)
    got = metric().compute(predictions=pair[0].tolist(), references=pair[1].tolist())
    assert list(got) == [name] and got[name] == metric.score(*metric.columns(*pair))


class WithoutAxis(TaskMetric):
    """Share of rows wrong, of one set of rows at a time; lower is better."""

    note = "lower is better"
    greater_is_better = False
    overall = "1 - {}"

    @staticmethod
    def score(predictions, references):
        assert predictions.ndim == 1
        return np.mean(predictions != references)

    @staticmethod
    def to_unit(values, task):
        return 1 - values


def test_a_metric_may_score_one_set_of_rows_at_a_time(monkeypatch):
    monkeypatch.setitem(METRICS, "error_rate", WithoutAxis)
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 2, (2, 20))
    wrong, right = (resample(with_metric(YES_NO, name), *pair, 0, 0) for name in ("error_rate", "accuracy"))
    np.testing.assert_allclose(wrong, 1 - right)
