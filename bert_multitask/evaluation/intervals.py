"""How sure a score is: bootstrap intervals, and paired tests of two runs on the same rows."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..model.tasks import Task
from .metrics import find_metric, score, unit_score

RESAMPLES = 9_999
LEVEL = 0.95
BATCH = 4_000_000  # row numbers drawn at a time: 32 MB, and as much again for each column


class Estimate(NamedTuple):
    """A value and the bounds of its interval; they are nan where fewer than two rows gave the value."""

    value: float
    low: float
    high: float


def bounds(interval: Estimate, form: str) -> str:
    """An interval as `low to high`; words if every resample is the same, or there are none."""
    if not interval.low < interval.high:
        return "none: all resamples of a task are alike" if interval.low == interval.high else "none: too few rows"
    return f"{interval.low:{form}} to {interval.high:{form}}"


def resample(task: Task, predictions: np.ndarray, references: np.ndarray, seed: int, number: int) -> np.ndarray:
    """A task's metric on bootstrap resamples of its rows, each as large as the rows and drawn with replacement.

    The rows drawn depend on their count, the seed and the number alone. So the resamples of two runs on the same rows
    are paired: their differences are resamples of the difference. Tasks with different numbers are independent.

    Args:
        predictions: of the labelled rows, (N,).
        references: their labels, (N,).
        seed: of the draws.
        number: of the task, from 0; tasks with different numbers have independent draws.

    Returns:
        (RESAMPLES,); nan where there are fewer than two rows.
    """
    if len(references) < 2:
        return np.full(RESAMPLES, np.nan)
    metric = find_metric(task)
    with warnings.catch_warnings(action="ignore"):  # a resample may well have one class, or one score
        return stats.bootstrap(
            metric.task_columns(task, predictions, references),
            metric.score,  # scipy checks whether it takes an axis
            paired=True,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH // len(references)),
            method="percentile",
            rng=np.random.default_rng([seed, number]),
        ).bootstrap_distribution


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """A value with its percentile interval at LEVEL (Efron, 1979): the quantiles of its resamples."""
    tail = (1 - LEVEL) / 2
    return Estimate(float(value), *map(float, np.quantile(resampled, [tail, 1 - tail])))


def wilson(count: int, rows: int) -> Estimate:
    """The share count / rows, with Wilson's interval at LEVEL (Wilson, 1927)."""
    bounds = stats.binomtest(count, rows).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / rows, float(bounds.low), float(bounds.high))


class Scores:
    """The score of each task and the overall score of one set of predictions, with their resamples.

    Args:
        tasks: {name: task}; the order numbers them.
        predictions: {name: (N,) of the task's labelled rows}.
        references: the same of their labels.
        seed: of the resamples.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        predictions: Mapping[str, np.ndarray],
        references: Mapping[str, np.ndarray],
        seed: int = 0,
    ):
        self.tasks, self.rows = tasks, {name: len(labels) for name, labels in references.items()}
        self.values, self.resamples = {}, {}
        for number, (name, task) in enumerate(tasks.items()):
            pair = predictions[name], references[name]
            self.values[name] = score(task, *pair)
            self.resamples[name] = resample(task, *pair, seed, number)
        # The tasks' rows are resampled independently, so the mean of resamples is a resample of the mean.
        for scores in (self.values, self.resamples):
            scores["overall"] = np.mean([unit_score(task, scores[name]) for name, task in tasks.items()], axis=0)

    def __getitem__(self, name: str) -> Estimate:
        """A task's score, or the "overall" score, with its interval.

        Where all rows are right, or all are wrong, every resample is the same; a share then has Wilson's interval. The
        overall score has none then: its resamples would leave out that this task's score could have been another.
        """
        if name == "overall" and any(map(self.is_constant, self.tasks)):
            return Estimate(*[float(self.values[name])] * 3)
        value, rows = self.values[name], self.rows.get(name, 0)
        if rows > 1 and value in (0, 1) and find_metric(self.tasks[name]).share:
            return wilson(round(value) * rows, rows)
        return estimate(value, self.resamples[name])

    def difference(self, other: "Scores", name: str) -> Estimate:
        """This score minus the other's on the same rows, with the interval of the paired bootstrap. The overall score
        has none where a task's resamples are all alike in both."""
        value = self.values[name] - other.values[name]
        if name == "overall" and any(self.is_constant(task) and other.is_constant(task) for task in self.tasks):
            return Estimate(*[float(value)] * 3)
        return estimate(value, self.resamples[name] - other.resamples[name])

    def is_constant(self, name: str) -> bool:
        """Whether all resamples of a score are the same; with fewer than two rows there are none."""
        return np.ptp(self.resamples[name]) == 0


class McNemar(NamedTuple):
    """The rows that only the first run has right, those that only the second has right, and the p-value."""

    first: int
    second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test (1947) of two runs' accuracy, from which of the same rows each has right, truth values (N,).

    p is the probability of counts at least as far apart if both runs were equally good.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p = stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return McNemar(only_first, only_second, float(p))
