"""Calibration, temperatures and thresholds, against formulas, a search by hand and scikit-learn."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss

from bert_multitask.model.tasks import load_task
from bert_multitask.reporting.analysis import LabelledPredictions
from bert_multitask.reporting.plots import reliability
from bert_multitask.reporting.probabilities import (
    HOTTEST,
    calibration,
    fit_temperature,
    folds,
    heated,
    scale,
    threshold_score,
    thresholds,
)


def make(name_or_spec, labels, chances) -> LabelledPredictions:
    task, labels, chances = load_task(name_or_spec), np.array(labels), np.array(chances)
    ids = [f"r{number}" for number in range(len(labels))]
    return LabelledPredictions(task, ids, [("x",)] * len(labels), labels, chances.argmax(1), chances)


@pytest.fixture
def sure():
    """Decisions between five classes that are right as often as their probabilities say, and logits times 3."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.standard_normal((4000, 5))
    chances = softmax(logits, axis=1)
    labels = np.array([rng.choice(5, p=row) for row in chances])
    return labels, chances, softmax(3 * logits, axis=1)


def test_the_expected_calibration_error(sure):
    """Against a loop over the bins, as Guo et al. (2017) write it."""
    labels, calibrated, overconfident = sure
    for chances in (calibrated, overconfident):
        found = calibration(chances, labels)
        error = 0
        for low in np.arange(10) / 10:
            inside = (chances.max(1) > low) & (chances.max(1) <= low + 0.1)
            if inside.any():
                gap = (chances.argmax(1) == labels)[inside].mean() - chances.max(1)[inside].mean()
                error += inside.mean() * abs(gap)
        assert found.error == pytest.approx(error)
        assert found.accuracy == accuracy_score(labels, chances.argmax(1))
        assert found.loss == pytest.approx(-np.log(chances[np.arange(4000), labels]).mean())
        assert found.bins[2].sum() == 4000
    assert calibration(calibrated, labels).error < 0.03 < 0.2 < calibration(overconfident, labels).error


def test_all_right_and_certain():
    chances = np.eye(3)[[0, 1, 2, 2]]
    found = calibration(chances, np.array([0, 1, 2, 2]))
    assert found.error == 0 and found.accuracy == 1 and found.loss == pytest.approx(0)


def test_the_temperature(sure):
    """That of logits which were made too large; the lowest loss of a fine grid; and no change of what is predicted."""
    labels, calibrated, overconfident = sure
    temperature = fit_temperature(overconfident, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(scale(overconfident, 3.0), calibrated, atol=1e-6)
    losses = [log_loss(labels, scale(overconfident, value)) for value in np.linspace(2, 4, 41)]
    assert log_loss(labels, scale(overconfident, temperature)) <= min(losses) + 1e-6
    np.testing.assert_array_equal(scale(overconfident, temperature).argmax(1), overconfident.argmax(1))
    wrong = np.array([[0.1, 0.9], [0.9, 0.1]])
    assert fit_temperature(wrong, np.array([0, 1])) == pytest.approx(HOTTEST, rel=1e-3)


def test_nothing_is_judged_on_rows_that_it_was_fitted_on(sure):
    labels, _, overconfident = sure
    part = make("sst", labels, overconfident)
    both = folds(part, None)
    for fitted, rest, rows in both:
        assert not set(fitted.ids) & set(rest.ids) and rest.ids == [part.ids[row] for row in rows]
    assert sorted(both[0][0].ids + both[1][0].ids) == sorted(part.ids)
    dev = make("sst", labels[:500], overconfident[:500])
    assert [(fitted is dev, rest is part) for fitted, rest, _ in folds(part, dev)] == [(True, True)]
    temperature, after = heated(part, None)
    assert temperature == fit_temperature(overconfident, labels)
    assert after.error < calibration(overconfident, labels).error / 3
    few = part.select(np.arange(3))
    assert folds(few, None) == [] and heated(few, None)[1] is None


def test_thresholds():
    """Against each threshold between two rows, by scikit-learn."""
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.2
    yes = np.clip(0.25 * labels + rng.normal(0.2, 0.1, 300), 0.01, 0.99)
    chances = np.stack([1 - yes, yes], 1)
    for metric, measure in (("accuracy", accuracy_score), ("f1", f1_score)):
        spec = {"name": "rare", "kind": "binary", "label_names": ["no", "yes"], "metric": metric}
        part = make(spec, labels.astype(int), chances)
        (found,) = thresholds(part)
        best = max(measure(labels, yes > value) for value in np.sort(yes))
        assert measure(labels, yes > found) >= best - 0.01 > measure(labels, yes > 0.5)
        halves = [(thresholds(fitted)[0], rows) for fitted, _, rows in folds(part, None)]
        chosen = np.empty(300, bool)
        for value, rows in halves:
            chosen[rows] = yes[rows] > value
        assert threshold_score(part, None) == pytest.approx(measure(labels, chosen))
        assert threshold_score(part, part) == pytest.approx(measure(labels, yes > found))


def test_thresholds_of_several_labels():
    """Each label's own, for its F1; the score is the task's."""
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 2)) < [0.1, 0.5]).astype(int)
    chances = np.clip(0.3 * labels + rng.normal([0.2, 0.5], 0.1, (400, 2)), 0.01, 0.99)
    task = load_task({"name": "m", "kind": "multilabel", "label_names": ["rare", "common"]})
    part = LabelledPredictions(
        task, [f"r{n}" for n in range(400)], [("x",)] * 400, labels, (chances > 0.5).astype(int), chances
    )
    found = thresholds(part)
    for column in range(2):
        best = max(f1_score(labels[:, column], chances[:, column] > value) for value in np.sort(chances[:, column]))
        assert f1_score(labels[:, column], chances[:, column] > found[column]) >= best - 0.02
    expected = f1_score(labels, chances > found, average="micro")
    assert threshold_score(part, part) == pytest.approx(expected)
    assert expected > f1_score(labels, part.predicted, average="micro")


def test_a_threshold_that_changes_nothing_stays():
    part = make("quora", [0, 0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]])
    assert thresholds(part).tolist() == [0.5]


def test_the_picture_has_the_bins(sure):
    labels, calibrated, overconfident = sure
    before, after = calibration(overconfident, labels), calibration(calibrated, labels)
    (axis,) = reliability({"one": (before, after)}).axes
    for line, found in zip(axis.lines[1:], (before, after), strict=True):
        np.testing.assert_array_equal(line.get_xydata().T, found.bins[:2])
    assert len(reliability({"one": (before, None)}).axes[0].lines) == 2
