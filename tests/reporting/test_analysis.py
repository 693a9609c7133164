"""What is counted of predictions beside labels, against counts by hand and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.metrics import classification_report, confusion_matrix

from bert_multitask.evaluation.intervals import LEVEL
from bert_multitask.evaluation.tables import prediction_table, read_predictions, write_predictions
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import is_labelled, no_label
from bert_multitask.model.tasks import TASKS
from bert_multitask.reporting.analysis import (
    baseline_score,
    class_scores,
    confusion,
    error_by_length,
    label_predictions,
    worst,
)

COUNT = 200


@pytest.fixture
def make(tmp_path):
    """Predictions of random logits beside random labels; every seventh row has none."""

    def make(name: str, keep_probabilities: bool = True):
        task, rng = TASKS[name], np.random.default_rng(0)
        ids = [f"r{number}" for number in range(COUNT)]
        if task.score_range:
            labels, logits = rng.uniform(0, 5, COUNT).astype(np.float32), rng.uniform(0, 5, COUNT)
        else:
            labels = rng.integers(0, len(task.label_names), COUNT)
            logits = rng.standard_normal((COUNT, 5) if task.kind == "classification" else COUNT)
        labels[::7] = no_label(task.score_range is not None)
        texts = {"text": ["word " * (1 + number % 50) for number in range(COUNT)]}
        if task.text_pair:
            texts["text_pair"] = ["two words"] * COUNT
        table = prediction_table(task, ids, logits)
        if not keep_probabilities and "probabilities" in table.column_names:
            table = table.remove_columns("probabilities")
        write_predictions(task, table, tmp_path / f"{name}-dev")
        rows = Dataset.from_dict({"id": ids, **texts, "label": labels})
        return label_predictions(read_predictions(tmp_path / f"{name}-dev.parquet"), rows), logits, labels

    return make


@pytest.mark.parametrize("name", ["sst", "quora", "sts"])
def test_unlabelled_rows_are_left_out(make, name):
    predictions, _, labels = make(name)
    kept = [number for number in range(COUNT) if number % 7]
    assert predictions.ids == [f"r{number}" for number in kept]
    np.testing.assert_array_equal(predictions.labels, labels[kept])
    assert predictions.words.tolist() == [1 + number % 50 + 2 * (name != "sst") for number in kept]


def test_losses_and_errors(make):
    predictions, logits, labels = make("sst")
    kept = is_labelled(labels)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(predictions.losses, -log_p[kept, labels[kept]], rtol=1e-4)
    np.testing.assert_array_equal(predictions.errors, logits.argmax(1)[kept] != labels[kept])
    np.testing.assert_array_equal(predictions.distances, abs(logits.argmax(1)[kept] - labels[kept]))
    predictions, logits, labels = make("sts")
    np.testing.assert_allclose(predictions.losses, abs(logits - labels)[is_labelled(labels)], atol=1e-5)
    np.testing.assert_array_equal(predictions.losses, predictions.errors)


def test_confusion(make):
    """A true label is a column, which sums to 100 (paper, Figure 3)."""
    predictions, _, _ = make("sst")
    percent = confusion(predictions)
    np.testing.assert_allclose(percent.sum(0), 100)
    counts = confusion_matrix(predictions.labels, predictions.predicted)
    np.testing.assert_allclose(percent, 100 * counts.T / counts.sum(1))
    np.testing.assert_allclose(confusion(make("quora")[0]).sum(0), 100)
    none = predictions.select(np.flatnonzero(predictions.labels != 2))
    assert confusion(none)[:, 2].sum() == 0 and confusion(none).shape == (5, 5)


@pytest.mark.parametrize("name", ["sst", "sts"])
def test_error_by_length(make, name):
    predictions, _, _ = make(name)
    bins = error_by_length(predictions, bins=4)
    assert sum(bin.rows for bin in bins) == len(predictions)
    assert all(bin.high < after.low for bin, after in zip(bins, bins[1:], strict=False))
    assert all(abs(bin.rows - len(predictions) / 4) < 10 for bin in bins)
    for bin in bins:
        inside = predictions.errors[(bin.low <= predictions.words) & (predictions.words <= bin.high)]
        assert bin.error.value == pytest.approx(inside.mean())
        n, p, z = len(inside), inside.mean(), stats.norm.ppf((1 + LEVEL) / 2)
        if name == "sst":  # Wilson, 1927
            middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
            half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
            assert bin.error[1:] == pytest.approx((middle - half, middle + half))
        else:
            assert bin.error[1:] == pytest.approx((p - z * stats.sem(inside), p + z * stats.sem(inside)))


def test_rows_of_one_length_are_one_bin(make):
    predictions, _, _ = make("sst")
    same = predictions.select(np.flatnonzero(predictions.words == 3))
    assert [(bin.low, bin.high, bin.rows) for bin in error_by_length(same)] == [(3, 3, len(same))]


def test_the_worst_are_wrong_and_in_order(make):
    predictions, _, _ = make("sst")
    shown = predictions.select(worst(predictions)[:5])
    wrong = [(loss, i) for loss, error, i in zip(predictions.losses, predictions.errors, predictions.ids) if error]  # noqa: B905
    assert shown.ids == [i for _, i in sorted(wrong, reverse=True)[:5]]
    without = make("sst", keep_probabilities=False)[0]
    without = without.select(worst(without)[:5])
    assert without.probabilities is None and without.distances.min() == predictions.distances.max()
    right = predictions.select(np.flatnonzero(predictions.errors == 0))
    assert len(worst(right)) == 0


def test_class_scores_are_those_of_sklearn(make):
    predictions, _, _ = make("sst")
    report = classification_report(
        predictions.labels, predictions.predicted, target_names=TASKS["sst"].label_names, output_dict=True
    )
    for line in class_scores(predictions):
        expected = report[line.name]
        assert (line.precision, line.recall, line.f1, line.true) == pytest.approx(
            [expected[key] for key in ("precision", "recall", "f1-score", "support")]
        )
        assert line.predicted == (predictions.predicted == TASKS["sst"].label_names.index(line.name)).sum()
    assert class_scores(make("sts")[0]) == []


def test_baselines_are_those_of_sklearn(make):
    for name in ("sst", "quora"):
        part = make(name)[0]
        dummy = DummyClassifier(strategy="most_frequent").fit(part.labels[:, None], part.labels)
        assert baseline_score(part) == dummy.score(part.labels[:, None], part.labels)
    part = make("sts")[0]
    assert baseline_score(part) == 0, "a constant has no correlation"
    rmse = replace(part, task=replace(part.task, metric="rmse"))
    assert baseline_score(rmse) == pytest.approx(part.labels.std(dtype=float), rel=1e-6)


def test_tables_of_other_rows_are_refused(make, tmp_path):
    make("sst")
    table = read_predictions(tmp_path / "sst-dev.parquet")
    rows = Dataset.from_dict({"id": [f"r{n}" for n in range(COUNT)], "text": ["x"] * COUNT, "label": [0] * COUNT})
    rows.info.description = "ids-sst-dev.csv"
    with pytest.raises(InputError, match="sst-dev.parquet has 200 rows, and ids-sst-dev.csv has 150"):
        label_predictions(table, rows.select(range(150)))
    with pytest.raises(InputError, match="sst-dev.parquet: row 1 has id 'r0', and 'r199' in ids-sst-dev.csv"):
        label_predictions(table, rows.select(range(COUNT - 1, -1, -1)))
