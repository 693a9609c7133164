"""A task's predictions beside the labels, and statistics of its errors."""

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from scipy.stats import norm
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ..data.labels import even_labels
from ..evaluation.intervals import LEVEL, Estimate, wilson
from ..evaluation.metrics import score
from ..evaluation.tables import Predictions, check_alike, read_columns
from ..model.kinds import KINDS, Kind
from ..model.losses import labelled_rows
from ..model.tasks import Task


@dataclass(frozen=True)
class LabelledPredictions:
    """A task's predictions for the rows of a split that have a label.

    Args:
        task: whose predictions.
        ids: of the rows, N.
        texts: one text a row, or two.
        labels: classes, integer (N,), scores, float (N,), or labels of another form (N, …), see the task's kind.
        predicted: predictions of the same form.
        probabilities: of each class or label, (N, C); None for scores, and where the table has none.
    """

    task: Task
    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: np.ndarray) -> "LabelledPredictions":
        """The rows of these indices, in their order."""
        return replace(
            self,
            ids=[self.ids[index] for index in indices],
            texts=[self.texts[index] for index in indices],
            labels=self.labels[indices],
            predicted=self.predicted[indices],
            probabilities=None if self.probabilities is None else self.probabilities[indices],
        )

    @property
    def kind(self) -> Kind:
        """The kind of the task."""
        return KINDS[self.task.kind]

    @property
    def errors(self) -> np.ndarray:
        """(N,): for classes 1 where wrong and 0 where right, for scores |predicted - true|."""
        return self.kind.errors(self.predicted, self.labels)

    @property
    def distances(self) -> np.ndarray:
        """(N,): |predicted - true|, in numbers of classes (of use if they have an order) or in the score's units."""
        return self.kind.distances(self.predicted, self.labels)

    @property
    def losses(self) -> np.ndarray:
        """(N,): -ln of the true class's probability, in nats; for scores, and without probabilities, `distances`."""
        return self.kind.losses(self.predicted, self.labels, self.probabilities)

    @property
    def distributions(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`Kind.distributions` of these rows; None where there are no probabilities, or nothing is decided by them."""
        found = None if self.probabilities is None else self.kind.distributions(self.labels, self.probabilities)
        return found if found and len(found[1]) else None

    @property
    def words(self) -> np.ndarray:
        """(N,): the number of words of each row, both texts together."""
        return np.array([sum(len(text.split()) for text in texts) for texts in self.texts])


def label_predictions(table: Predictions, rows: Dataset) -> LabelledPredictions:
    """A prediction table beside the labels of its rows; rows without a label are left out.

    Args:
        table: of a task; its probabilities may be missing.
        rows: clean rows of the split, in the table's order.

    Raises:
        InputError: the table is of other rows, or has them in another order.
    """
    check_alike([Predictions(table.task, rows, rows.info.description), table])
    labels = np.array(even_labels(rows["label"][:]))
    columns = read_columns(table.task, table.table)
    return LabelledPredictions(
        task=table.task,
        ids=rows["id"][:],
        texts=row_texts(rows),
        labels=labels,
        predicted=columns[KINDS[table.task.kind].decision],
        probabilities=columns.get("probabilities"),
    ).select(np.flatnonzero(labelled_rows(labels)))


def row_texts(rows: Dataset) -> list[tuple[str, ...]]:
    """The text, or the two texts, of each clean row."""
    return list(zip(*(rows[name][:] for name in ("text", "text_pair") if name in rows.column_names), strict=True))


def confusion(predictions: LabelledPredictions) -> np.ndarray:
    """(C, C): percent of the rows of true class j that are predicted as class i (paper, Figure 3).

    Every column sums to 100, or to 0 where no row has that class.
    """
    classes = range(len(predictions.task.label_names))
    return 100 * confusion_matrix(predictions.labels, predictions.predicted, labels=classes, normalize="true").T


class LengthBin(NamedTuple):
    """Rows of similar length: from `low` to `high` words, and their mean error with its interval."""

    low: int
    high: int
    rows: int
    error: Estimate


def error_by_length(predictions: LabelledPredictions, bins: int = 6) -> list[LengthBin]:
    """The mean of `errors` in bins of rows by number of words, from short to long. Bins have about as many rows each;
    rows of one length stay together.
    """
    words, errors = predictions.words, predictions.errors
    edges = np.unique(np.quantile(words, np.linspace(0, 1, bins + 1)[1:], method="inverted_cdf"))
    number = np.searchsorted(edges, words)
    result = []
    for index in range(len(edges)):
        inside = number == index
        error = mean_interval(errors[inside], predictions.kind.shares)
        result.append(LengthBin(int(words[inside].min()), int(words[inside].max()), int(inside.sum()), error))
    return result


def mean_interval(errors: np.ndarray, share: bool) -> Estimate:
    """The mean of errors with its interval: Wilson's for a share, else mean ± z standard errors."""
    mean, count = float(errors.mean()), len(errors)
    if share:
        return wilson(int(errors.sum()), count)
    width = norm.ppf((1 + LEVEL) / 2) * errors.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return Estimate(mean, mean - width, mean + width)


def baseline_score(predictions: LabelledPredictions) -> float | None:
    """The task's score if every row has the same prediction, the most frequent label or the mean score of these rows;
    None where the kind of task has none."""
    guess = predictions.kind.baseline(predictions.labels)
    if guess is None:
        return None
    with warnings.catch_warnings(action="ignore"):  # a constant has no correlation, which counts as 0
        return score(predictions.task, guess, predictions.labels)


class ClassScore(NamedTuple):
    """A class: how many rows have it, how many are predicted to, and the precision, recall and F1, which are 0 where
    they are undefined."""

    name: str
    true: int
    predicted: int
    precision: float
    recall: float
    f1: float


def class_scores(predictions: LabelledPredictions) -> list[ClassScore]:
    """The scores of each class; none where the kind of task has no classes."""
    flags = predictions.kind.flags(predictions.task, predictions.predicted, predictions.labels)
    if flags is None or not len(flags[0]):
        return []
    found = []
    for name, predicted, true in zip(predictions.task.label_names, *(values.T for values in flags), strict=True):
        parts = precision_recall_fscore_support(true, predicted, average="binary", zero_division=0)[:3]
        found.append(ClassScore(name, int(true.sum()), int(predicted.sum()), *map(float, parts)))
    return found


def digits(rows: int) -> int:
    """How many decimals of a share of so many rows are shown: with fewer than 100 rows the second is one row."""
    return 2 if rows < 100 else 3 if rows < 10_000 else 4


def rounded(value: float | None, rows: int, sign: str = "") -> str:
    """A score of so many rows with the decimals that are shown; nothing for None."""
    return "" if value is None else f"{value:{sign}.{digits(rows)}f}"


def worst(predictions: LabelledPredictions) -> np.ndarray:
    """The numbers of the wrong rows, those with the highest `losses` first."""
    order = np.argsort(-predictions.losses, kind="stable")
    return order[predictions.errors[order] > 0]
