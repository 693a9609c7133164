"""How reliable probabilities are: calibration, temperature scaling, and decision thresholds.

M decisions between C classes, N rows, K thresholds.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from ..evaluation.metrics import METRICS, find_metric, score
from .analysis import LabelledPredictions

BINS = 10  # of confidence, of equal width
COOLEST, HOTTEST = 0.05, 20.0  # temperatures that are tried
CANDIDATES = 200  # thresholds that are tried


class Calibration(NamedTuple):
    """The predicted probabilities of the most probable classes, and how often these are the true ones.

    Attributes:
        confidence: mean probability of the most probable class.
        accuracy: share of the decisions in which that class is the true one.
        error: expected calibration error (Guo et al., 2017): the mean of |accuracy - confidence| over the bins, each
            weighted by its decisions.
        loss: mean of -ln of the true class's probability, in nats.
        bins: (mean confidence, accuracy, decisions) of the bins that have any, 3 × (B,).
    """

    confidence: float
    accuracy: float
    error: float
    loss: float
    bins: tuple[np.ndarray, np.ndarray, np.ndarray]


def calibration(chances: np.ndarray, true: np.ndarray) -> Calibration:
    """The calibration of M decisions, from their probabilities (M, C) and the true classes (M,)."""
    confidence, right = np.clip(chances.max(-1), 0, 1), chances.argmax(-1) == true
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence))
    counts = counts[counts > 0]  # the curve leaves out empty bins, too
    error = float(np.average(np.abs(accuracy - mean), weights=counts))
    whole = chances / chances.sum(-1, keepdims=True, dtype=np.float64)
    loss = float(log_loss(true, whole, labels=range(chances.shape[-1])))
    return Calibration(float(confidence.mean()), float(right.mean()), error, loss, (mean, accuracy, counts))


def scale(chances: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (M, C) after their logits are divided by a temperature; above 1 they come closer to each other."""
    return softmax(logits(chances) / temperature, axis=-1)


def logits(chances: np.ndarray) -> np.ndarray:
    """Logits whose softmax is these probabilities (M, C)."""
    return np.log(np.maximum(chances, np.finfo(np.float32).tiny, dtype=np.float64))


def fit_temperature(chances: np.ndarray, true: np.ndarray) -> float:
    """The temperature, from COOLEST to HOTTEST, with which the true classes (M,) have the lowest mean -ln p."""
    values = logits(chances)

    def loss(log_temperature: float) -> float:
        """Mean -ln p of the true classes."""
        scaled = log_softmax(values / np.exp(log_temperature), axis=-1)
        return -np.take_along_axis(scaled, true[:, None], axis=-1).mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log([COOLEST, HOTTEST]), method="bounded").x))


def folds(
    part: LabelledPredictions, other: LabelledPredictions | None
) -> list[tuple[LabelledPredictions, LabelledPredictions, np.ndarray]]:
    """Pairs of rows to fit on and rows to judge, with the numbers of the latter.

    Given other rows, such as dev's for a report of test, all of them are fitted on. Else each half of the rows, drawn
    with a fixed seed, is judged by what is fitted on the other half; no pair if there are fewer than four rows.
    """
    everything = np.arange(len(part))
    if other is not None:
        return [(other, part, everything)]
    if len(part) < 4:
        return []
    halves = train_test_split(everything, test_size=0.5, random_state=0)
    return [(part.select(one), part.select(two), two) for one, two in (halves, halves[::-1])]


def heated(part: LabelledPredictions, other: LabelledPredictions | None) -> tuple[float, Calibration | None]:
    """The temperature of a task's probabilities, fitted on other rows or else on all of these; and the calibration on
    rows that the temperature was not fitted on (see `folds`), None if there are too few."""
    temperature = fit_temperature(*(other or part).distributions)
    judged = []
    for fitted, rest, _ in folds(part, other):
        chances, true = rest.distributions
        judged.append((scale(chances, fit_temperature(*fitted.distributions)), true))
    return temperature, calibration(*map(np.concatenate, zip(*judged, strict=True))) if judged else None


def thresholds(part: LabelledPredictions) -> np.ndarray:
    """(K,): the thresholds of yes that score best on these rows; of equally good ones the one nearest to 1/2.

    A single threshold maximises the task's metric, several the F1 of each label. The candidates are 1/2 and the
    midpoints between CANDIDATES quantiles of the probabilities.
    """
    chances, labels = part.kind.yes(part.probabilities), part.labels.reshape(len(part), -1)
    metric = find_metric(part.task) if chances.shape[1] == 1 else METRICS["f1"]
    best = []
    for chance, label in zip(chances.T, labels.T, strict=True):
        chance, label = chance[label != part.kind.missing], label[label != part.kind.missing]
        values = np.unique(np.quantile(chance, np.linspace(0, 1, CANDIDATES))) if len(chance) else chance
        tried = np.append((values[1:] + values[:-1]) / 2, 0.5)
        tried = tried[np.argsort(abs(tried - 0.5), kind="stable")]
        with warnings.catch_warnings(action="ignore"):  # with some thresholds nothing is yes
            scores = [metric.score(*metric.columns((chance > value).astype(label.dtype), label)) for value in tried]
        best.append(tried[np.argmax(scores)] if len(chance) else 0.5)
    return np.array(best)


def threshold_score(part: LabelledPredictions, other: LabelledPredictions | None) -> float | None:
    """The task's score with thresholds chosen on other rows than those judged (see `folds`); None if there are too few
    rows."""
    chosen = part.predicted.copy()
    judged = folds(part, other)
    for fitted, rest, rows in judged:
        above = rest.kind.yes(rest.probabilities) > thresholds(fitted)
        chosen[rows] = above.astype(chosen.dtype).reshape(chosen[rows].shape)
    return score(part.task, chosen, part.labels) if judged else None
