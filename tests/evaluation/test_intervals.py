"""Intervals and paired tests, against formulas and independent resampling."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from bert_multitask.evaluation.intervals import LEVEL, RESAMPLES, Scores, bounds, mcnemar
from bert_multitask.evaluation.metrics import overall_score
from bert_multitask.model.tasks import TASKS


@pytest.fixture
def data():
    """Two runs' predictions of 400 sst rows and 300 sts rows, and the labels."""
    rng = np.random.default_rng(0)
    labels = {"sst": rng.integers(0, 5, 400), "sts": rng.uniform(0, 5, 300)}
    runs = [
        {
            "sst": np.where(rng.random(400) < right, labels["sst"], (labels["sst"] + 1) % 5),
            "sts": labels["sts"] + noise * rng.standard_normal(300),
        }
        for right, noise in ((0.7, 1.0), (0.6, 1.5))
    ]
    return {name: TASKS[name] for name in labels}, runs, labels


def test_values_are_the_metrics(data):
    tasks, (first, _), labels = data
    scores = Scores(tasks, first, labels)
    assert scores["sst"].value == (first["sst"] == labels["sst"]).mean()
    assert scores["sts"].value == pytest.approx(np.corrcoef(first["sts"], labels["sts"])[0, 1])
    expected = overall_score(tasks, {name: {task.metric: scores[name].value} for name, task in tasks.items()})
    assert scores["overall"].value == pytest.approx(expected)


def test_intervals_are_those_of_the_formulas(data):
    """Accuracy against the binomial's normal interval, Pearson against Fisher's z, overall against the sum of the two
    tasks' variances."""
    tasks, (first, _), labels = data
    scores = Scores(tasks, first, labels)
    accuracy, r, overall = (scores[name] for name in ("sst", "sts", "overall"))
    z = stats.norm.ppf((1 + LEVEL) / 2)
    error = np.sqrt(accuracy.value * (1 - accuracy.value) / 400)
    np.testing.assert_allclose(accuracy[1:], [accuracy.value - z * error, accuracy.value + z * error], atol=0.006)
    fisher = stats.pearsonr(first["sts"], labels["sts"]).confidence_interval(LEVEL)
    np.testing.assert_allclose(r[1:], fisher, atol=0.01)
    half = (accuracy.high - accuracy.low) / 2, (r.high - r.low) / 4  # (r + 1) / 2 halves the second
    assert (overall.high - overall.low) / 2 == pytest.approx(np.hypot(*half) / 2, rel=0.05)


def test_intervals_are_those_of_plain_resampling(data):
    """A loop over resamples of our own, other random numbers."""
    tasks, runs, labels = data
    scores = [Scores(tasks, run, labels) for run in runs]
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        rows, pairs = rng.integers(0, 400, 400), rng.integers(0, 300, 300)
        accuracy = [(run["sst"] == labels["sst"])[rows].mean() for run in runs]
        r = [np.corrcoef(run["sts"][pairs], labels["sts"][pairs])[0, 1] for run in runs]
        drawn.append((np.array(accuracy) + (np.array(r) + 1) / 2) / 2)
    drawn = np.array(drawn)
    np.testing.assert_allclose(scores[0]["overall"][1:], np.quantile(drawn[:, 0], [0.025, 0.975]), atol=0.004)
    difference = scores[0].difference(scores[1], "overall")
    np.testing.assert_allclose(difference[1:], np.quantile(drawn[:, 0] - drawn[:, 1], [0.025, 0.975]), atol=0.004)
    assert difference.value == pytest.approx(scores[0]["overall"].value - scores[1]["overall"].value)


def test_paired_resamples_are_of_the_same_rows(data):
    """A run has no difference from itself, and one that differs in few rows has a narrow interval."""
    tasks, (first, _), labels = data
    scores = Scores(tasks, first, labels)
    for name in ("sst", "sts", "overall"):
        assert scores.difference(Scores(tasks, first, labels), name) == (0, 0, 0)
    changed = {**first, "sst": np.where(np.arange(400) < 8, 9, first["sst"])}
    paired, alone = scores.difference(Scores(tasks, changed, labels), "sst"), scores["sst"]
    lost = (first["sst"] == labels["sst"])[:8].sum() / 400
    assert paired.value == pytest.approx(lost)
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(lost * (1 - lost) / 400)
    assert paired[1:] == pytest.approx((lost - half, lost + half), abs=0.004)
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_seeds_and_tasks_draw_other_rows(data):
    tasks, (first, _), labels = data
    scores = Scores(tasks, first, labels)
    np.testing.assert_array_equal(scores.resamples["sst"], Scores(tasks, first, labels).resamples["sst"])
    assert not np.array_equal(scores.resamples["sst"], Scores(tasks, first, labels, seed=1).resamples["sst"])
    twice = {name: dataclasses.replace(TASKS["sst"], name=name) for name in ("one", "two")}
    both = Scores(twice, dict.fromkeys(twice, first["sst"]), dict.fromkeys(twice, labels["sst"]))
    assert abs(np.corrcoef(both.resamples["one"], both.resamples["two"])[0, 1]) < 0.05
    assert both.resamples["one"].shape == (RESAMPLES,)


def test_degenerate_scores():
    """A constant prediction has no correlation, and one row no interval."""
    tasks = {"sts": TASKS["sts"]}
    assert Scores(tasks, {"sts": np.ones(5)}, {"sts": np.arange(5.0)})["sts"] == (0, 0, 0)
    alone = Scores({"sst": TASKS["sst"]}, {"sst": np.array([1])}, {"sst": np.array([1])})["sst"]
    assert alone.value == 1 and np.isnan(alone.low) and np.isnan(alone.high)
    assert Scores(tasks, {"sts": np.ones(1)}, {"sts": np.ones(1)})["sts"].value == 0


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_has_the_interval_of_wilson(right):
    """The bootstrap's would have no width. Against Wilson's formula: n / (n + z²), and its mirror."""
    labels = np.zeros(60, int)
    found = Scores({"sst": TASKS["sst"]}, {"sst": labels + (not right)}, {"sst": labels})["sst"]
    bound = 60 / (60 + stats.norm.ppf((1 + LEVEL) / 2) ** 2)
    assert found == pytest.approx((1, bound, 1) if right else (0, 0, 1 - bound))
    assert {*map(type, found)} == {float}, "a model card's YAML holds no NumPy numbers"
    nearly = np.where(np.arange(60) < 1, 1, 0)
    scores = Scores({"sst": TASKS["sst"]}, {"sst": nearly}, {"sst": labels})
    assert scores["sst"][1:] == pytest.approx(np.quantile(scores.resamples["sst"], [0.025, 0.975]))


def test_the_overall_score_has_no_interval_where_a_task_is_all_right():
    """Its resamples would not vary with that task, though the task's score could have been lower."""
    tasks, labels = {name: TASKS[name] for name in ("sst", "sts")}, {"sst": np.zeros(9, int), "sts": np.arange(9.0)}
    scores, close = [labels["sts"] + np.resize(shift, 9) for shift in ([0.0, 1.0, -1.0], [0.0, 0.5])]
    right = Scores(tasks, labels | {"sts": scores}, labels)
    assert right["overall"].low == right["overall"].high == right["overall"].value and right["sts"].low < 1
    assert bounds(right["overall"], ".4f") == "none: all resamples of a task are alike"
    other = Scores(tasks, labels | {"sts": close}, labels)
    assert np.ptp(right.difference(other, "overall")) == 0 and np.ptp(right.difference(other, "sts")) > 0
    wrong = Scores(tasks, {"sst": np.array([0, 1, 0, 1, 0, 1, 0, 0, 0]), "sts": close}, labels)
    assert np.ptp(wrong["overall"]) > 0 and np.ptp(right.difference(wrong, "overall")) > 0


@pytest.mark.parametrize(("only_first", "only_second"), [(3, 11), (11, 3), (5, 5), (0, 4), (0, 0)])
def test_mcnemar(only_first, only_second):
    """Against the sum of the binomial's terms (exact McNemar)."""
    first, second = np.ones((2, 100), bool)
    first[:only_second] = False
    second[only_second : only_second + only_first] = False
    test = mcnemar(first, second)
    assert (test.first, test.second) == (only_first, only_second)
    n, k = only_first + only_second, min(only_first, only_second)
    expected = min(1, 2 * stats.binom.cdf(k, n, 0.5)) if n else 1
    assert test.p == pytest.approx(expected)
