"""How predictions are scored: the table of metrics, and the overall score.

A method that overrides another has a docstring only where it adds to that one's.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import datasets
import evaluate
import numpy as np
import torch
from scipy import stats
from transformers import EvalPrediction
from transformers.trainer_utils import denumpify_detensorize

from ..model.errors import InputError, NonFiniteError, check_installed
from ..model.kinds import KINDS, find_entry
from ..model.losses import LOSSES, is_labelled, labelled_rows
from ..model.tasks import Task

LABELS = datasets.List(datasets.Value("int64"))  # of a row with several labels: 0 or 1 for each


class TaskMetric(evaluate.Metric):
    """The base of all metrics. A new metric is a subclass with a `score`, and an entry in METRICS.

    Attributes:
        kinds: kinds of tasks that it scores, besides those that name it; empty, and named by no kind: all kinds (see
            `kinds.choices`).
        value: type of a prediction and of a reference, for `evaluate`.
        unit: label of a plot's axis.
        note: what a reader of a table should know, shown beside the metric's name.
        greater_is_better: whether a higher value is a better one.
        overall: how a value enters the overall score, in words; {} is the metric's name.
        share: whether a value is the share of rows that are right; then Wilson's interval and McNemar's test apply.
        package: (package, extra of this project that installs it) that the metric needs; None, nothing.
        as_rows: turns the lists that `evaluate` gives into what `columns` takes.
    """

    kinds: tuple[str, ...] = ()
    value: datasets.Value | datasets.List = datasets.Value("int64")
    unit = ""
    note = ""
    greater_is_better = True
    overall = "{}"
    share = False
    package: tuple[str, str] | None = None
    as_rows = staticmethod(np.asarray)

    @classmethod
    def task_columns(cls, task: Task, predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, ...]:
        """`columns`, for metrics that need the task's label names."""
        return cls.columns(predictions, references)

    @staticmethod
    def columns(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, ...]:
        """Predictions and references (N, …) -> the arguments of `score`, one or several arrays (N,), such as counts."""
        return predictions, references

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        """The metric along an axis: (…, N) and (…, N) -> (…), so that the bootstrap scores many resamples at once.

        Without the argument `axis` it scores (N,) and (N,), and the bootstrap calls it for each resample.
        """
        raise NotImplementedError

    @staticmethod
    def to_unit(values: np.ndarray, task: Task) -> np.ndarray:
        """Values for the overall score: in [0, 1], higher is better."""
        return values

    @classmethod
    def describe_overall(cls, task: Task) -> str:
        """How a value of a task enters the overall score, in words."""
        return cls.overall.format(task.metric)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions and references, one a row",
            features=datasets.Features({"predictions": self.value, "references": self.value}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        name = next((name for name, metric in METRICS.items() if metric is type(self)), type(self).__name__)
        columns = self.columns(self.as_rows(predictions), self.as_rows(references))
        return {name: float(self.score(*columns))}


class Accuracy(TaskMetric):
    """Share of predictions that equal the reference, in [0, 1] (paper, section 5.2)."""

    unit = "share of rows right"
    share = True

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        return (predictions == references).mean(axis)


class MacroF1(TaskMetric):
    """The mean of every class's F1, in [0, 1]: `sklearn.metrics.f1_score(average="macro", zero_division=0)`.

    A class that occurs neither in the predictions nor in the references is left out of the mean.
    """

    unit = "macro F1"
    note = "mean of the classes' F1"

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        predicted, true, right = count_classes(predictions, references, axis)
        return mean_f1(right, predicted + true)


class CountedF1(TaskMetric):
    """F1 from counts: `columns` gives, of each row, how many decisions are right, and how many are predicted plus how
    many are true.

    It is undefined where nothing is predicted and nothing is true; it then counts as 0, with a warning.
    """

    @staticmethod
    def score(right: np.ndarray, both: np.ndarray, axis: int = -1) -> np.ndarray:
        right, both = right.sum(axis), both.sum(axis)
        return zero_where(both == 0, 2 * right / np.maximum(both, 1), "F1 of nothing predicted and nothing true")


class F1(CountedF1):
    """F1 of class 1, the second of the label names, in [0, 1]: `sklearn.metrics.f1_score(zero_division=0)`."""

    unit = "F1 of the second label"
    note = "of the second label"

    @staticmethod
    def columns(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row whether class 1 is both predicted and true, and in how many of the two it occurs."""
        predicted, true = predictions == 1, references == 1
        return predicted & true, np.add(predicted, true, dtype=np.int8)


class MicroF1(CountedF1):
    """F1 of all rows' labels together, in [0, 1]: `sklearn.metrics.f1_score(average="micro", zero_division=0)`."""

    value = LABELS
    unit = "micro F1"
    note = "F1 of all labels together"

    @staticmethod
    def columns(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row how many labels are both predicted and true, and how many are predicted plus how many true."""
        counts = count_labels(predictions, references)
        return (counts == 2).sum(-1), counts.sum(-1)


class LabelMacroF1(TaskMetric):
    """The mean of every label's F1, in [0, 1]: `sklearn.metrics.f1_score(average="macro", zero_division=nan)`.

    A label that occurs neither in the predictions nor in the references is left out of the mean. Where none occurs, it
    counts as 0, with a warning.
    """

    value = LABELS
    unit = "macro F1"
    note = "mean of the labels' F1"

    @staticmethod
    def columns(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of each label whether it is predicted, plus whether it is true: 0, 1 or 2 a row."""
        return tuple(np.moveaxis(count_labels(predictions, references), -1, 0))

    @staticmethod
    def score(*counts: np.ndarray, axis: int = -1) -> np.ndarray:
        right = np.array([(count == 2).sum(axis) for count in counts])
        return mean_f1(right, np.array([count.sum(axis) for count in counts]))


class ExactMatch(TaskMetric):
    """Share of rows of which every label is right, in [0, 1]: `sklearn.metrics.accuracy_score`. A label that a
    reference lacks is left out."""

    value = LABELS
    unit = "share of rows with all labels right"
    note = "rows with all labels right"
    share = True

    @staticmethod
    def columns(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray]:
        """Whether a row is right."""
        return (((predictions == references) | ~is_labelled(references)).all(-1),)

    @staticmethod
    def score(right: np.ndarray, axis: int = -1) -> np.ndarray:
        return right.mean(axis)


class Pearson(TaskMetric):
    """Pearson correlation of predictions and references, in [-1, 1] (paper, section 5.2).

    It is undefined where either is constant or there are fewer than two; it then counts as 0, with a warning.
    """

    value = datasets.Value("float64")
    unit = "Pearson's r"
    overall = "({} + 1) / 2"

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        predictions, references = predictions.astype(np.float64), references.astype(np.float64)
        constant = (np.ptp(predictions, axis) == 0) | (np.ptp(references, axis) == 0)
        values = np.zeros(constant.shape)
        if not constant.all():
            with warnings.catch_warnings(action="ignore"):  # of the constant ones
                values = stats.pearsonr(predictions, references, axis=axis).statistic
        return zero_where(constant, values, "the correlation of a constant")

    @staticmethod
    def to_unit(values: np.ndarray, task: Task) -> np.ndarray:
        """(r + 1) / 2 (paper, section 5.2)."""
        return (values + 1) / 2


class Spearman(Pearson):
    """Spearman's rank correlation of predictions and references, in [-1, 1]: Pearson's of their ranks.

    It is undefined where either is constant or there are fewer than two; it then counts as 0, with a warning.
    """

    unit = "Spearman's rho"

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        return Pearson.score(*(stats.rankdata(values, axis=axis) for values in (predictions, references)), axis)


class Matthews(Pearson):
    """Matthews correlation of predicted and true classes, in [-1, 1]: `sklearn.metrics.matthews_corrcoef`.

    It is undefined where the predictions or the references are all of one class; it then counts as 0, with a warning.
    """

    value = TaskMetric.value
    unit = "Matthews correlation"

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        predicted, true, right = count_classes(predictions, references, axis)
        square = float(references.shape[axis]) ** 2
        covariance = right.sum(0) * float(references.shape[axis]) - (predicted * true).sum(0)
        spread = (square - (predicted**2).sum(0)) * (square - (true**2).sum(0))
        value = covariance / np.sqrt(np.where(spread > 0, spread, 1))
        return zero_where(spread == 0, value, "the Matthews correlation of one class")


class MeanAbsoluteError(TaskMetric):
    """Mean of |prediction - reference|, in the score's units, 0 or more."""

    value = datasets.Value("float64")
    unit = "mean absolute error"
    note = "lower is better"
    greater_is_better = False
    overall = "1 - {} / (highest - lowest score)"

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.abs(np.subtract(predictions, references, dtype=np.float64)).mean(axis)

    @staticmethod
    def to_unit(values: np.ndarray, task: Task) -> np.ndarray:
        """One less the error as a share of the task's score range, and no less than 0; without a range 1 / (1 + e)."""
        if task.score_range is None:
            return 1 / (1 + values)
        low, high = task.score_range
        return np.clip(1 - values / (high - low), 0, 1)

    @classmethod
    def describe_overall(cls, task: Task) -> str:
        """As `to_unit`."""
        return super().describe_overall(task) if task.score_range else f"1 / (1 + {task.metric})"


class RootMeanSquaredError(MeanAbsoluteError):
    """Root of the mean squared difference of prediction and reference, in the score's units, 0 or more."""

    unit = "root mean squared error"

    @staticmethod
    def score(predictions: np.ndarray, references: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.sqrt(np.square(np.subtract(predictions, references, dtype=np.float64)).mean(axis))


class WordAccuracy(CountedF1):
    """Share of words whose tag is right, in [0, 1], of words that have a tag and a prediction. Every such word is
    predicted and true once, so this share is its F1."""

    value = datasets.List(datasets.Value("string"))
    unit = "share of words right"
    note = "of words"
    as_rows = staticmethod(list)  # of different lengths

    @classmethod
    def task_columns(cls, task: Task, predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, ...]:
        """`columns` of the names of the tags."""
        return cls.columns(*named_tags(task, predictions, references))

    @classmethod
    def columns(cls, predictions: Sequence, references: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """Lists of tags, N each -> spans that are right (N,), and spans of predictions and references together (N,)."""
        pairs = [(cls.spans(list(one)), cls.spans(list(two))) for one, two in zip(predictions, references, strict=True)]
        right = np.array([len(one & two) for one, two in pairs], np.int64)
        return right, np.array([len(one) + len(two) for one, two in pairs], np.int64)

    @staticmethod
    def spans(tags: list[str]) -> set[tuple[str, int, int]]:
        """What is counted of a row: {(type, number of its first word, of its last)}; here every word with its tag."""
        return {(tag, number, number) for number, tag in enumerate(tags)}


class EntityF1(WordAccuracy):
    """F1 of entities, in [0, 1]: `seqeval.metrics.f1_score`. One is right where its type, its first and its last word
    are. Tags are IOB1, IOB2 or IOBES, read as leniently as seqeval and conlleval do."""

    unit = "F1 of entities"
    note = "micro F1 of entities"
    package = ("seqeval", "ner")

    @staticmethod
    def spans(tags: list[str]) -> set[tuple[str, int, int]]:
        """The entities of a row."""
        from seqeval.metrics.sequence_labeling import get_entities

        return set(get_entities(tags))


METRICS: dict[str, type[TaskMetric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "macro_f1": MacroF1,
    "matthews": Matthews,
    "pearson": Pearson,
    "spearman": Spearman,
    "rmse": RootMeanSquaredError,
    "mae": MeanAbsoluteError,
    "micro_f1": MicroF1,
    "label_macro_f1": LabelMacroF1,
    "exact_match": ExactMatch,
    "word_accuracy": WordAccuracy,
    "entity_f1": EntityF1,
}


def named_tags(task: Task, predictions: np.ndarray, references: np.ndarray) -> tuple[list[list[str]], list[list[str]]]:
    """Tags of words or tokens, integer (N, W) each -> their names, of the words that have a tag and a prediction."""
    known = is_labelled(predictions) & is_labelled(references)
    names = np.array(task.label_names, object)
    return tuple(
        [names[row[kept]].tolist() for row, kept in zip(tags, known, strict=True)] for tags in (predictions, references)
    )


def span_counts(task: Task, predictions: np.ndarray, references: np.ndarray) -> dict[str, tuple[int, int, int]]:
    """{type: (right, predicted, true)}, sorted by type: how many spans of each type the task's metric counts in tags,
    integer (N, W) each."""
    spans = getattr(find_metric(task), "spans", WordAccuracy.spans)
    right, predicted, true = Counter(), Counter(), Counter()
    for ours, theirs in zip(*named_tags(task, predictions, references), strict=True):
        right.update(kind for kind, *_ in spans(ours) & spans(theirs))
        predicted.update(kind for kind, *_ in spans(ours))
        true.update(kind for kind, *_ in spans(theirs))
    return {name: (right[name], predicted[name], true[name]) for name in sorted(predicted | true)}


def count_classes(
    predictions: np.ndarray, references: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each class is predicted, is true, and is both, along an axis: three times float (C, …)."""
    columns = [(predictions == value, references == value) for value in np.union1d(predictions, references)]
    counted = [(predicted.sum(axis), true.sum(axis), (predicted & true).sum(axis)) for predicted, true in columns]
    return tuple(np.array(counts, np.float64) for counts in zip(*counted, strict=True))


def mean_f1(right: np.ndarray, both: np.ndarray) -> np.ndarray:
    """The mean F1 of the classes that occur; where none does, 0 with a warning: (C, …) and (C, …) -> (…).

    `right` is how often each class is both predicted and true, `both` how often predicted plus how often true.
    """
    occurring = (both > 0).sum(0)
    total = (2 * right / np.maximum(both, 1)).sum(0)
    return zero_where(occurring == 0, total / np.maximum(occurring, 1), "F1 without labels")


def count_labels(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Whether a label is predicted, plus whether it is true, and 0 where the reference lacks it: int8 (N, C)."""
    return ((predictions + references) * is_labelled(references)).astype(np.int8)


def zero_where(undefined: np.ndarray, values: np.ndarray, what: str) -> np.ndarray:
    """The values, but 0 where they are undefined, with one warning."""
    if np.any(undefined):
        warnings.warn(f"{what} is undefined; counted as 0", stacklevel=3)
    return np.where(undefined, 0.0, values)


def find_metric(task: Task) -> type[TaskMetric]:
    """The metric of a task.

    Raises:
        InputError: there is no such metric, it does not fit the task, or its package is not installed.
    """
    metric = find_entry(task, "metric", METRICS)
    if metric.package:
        check_installed(*metric.package, f"task {task.name!r}: metric {task.metric}")
    return metric


def decide(task: Task, logits: np.ndarray) -> np.ndarray:
    """Logits (B, …) -> predictions, in the form of labels (see `Kind.decide`).

    Raises:
        NonFiniteError: a logit is NaN or infinite.
    """
    check_finite(task, logits)
    return KINDS[task.kind].decide(logits)


def finite_rows(predictions: np.ndarray) -> np.ndarray:
    """Which rows of predictions (B, …) are finite numbers throughout: truth values (B,)."""
    return np.isfinite(predictions).all(tuple(range(1, predictions.ndim)))


def check_finite(task: Task, predictions: np.ndarray) -> None:
    """Raise NonFiniteError if a prediction is NaN or infinite."""
    bad = ~finite_rows(predictions)
    if bad.any():
        raise NonFiniteError(
            f"task {task.name!r}: {bad.sum()} of {len(bad)} predictions are NaN or infinite, the first in row "
            f"{bad.argmax() + 1}; look for such values in the model's weights"
        )


def task_scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """A task's mean loss and metric over its labelled rows.

    Args:
        logits: float (B, …), as the model gives them.
        labels: (B,) or (B, …), `no_label` if a row has none.

    Returns:
        {"loss": with the task's class weights and label smoothing, the metric's name: its value}

    Raises:
        InputError: no row has a label.
        NonFiniteError: a logit is NaN or infinite, or the metric's value is.
    """
    scores = score_decisions(task, decide(task, logits), labels)
    tensors = {"logits": torch.from_numpy(logits), "labels": torch.from_numpy(labels)}
    return {"loss": LOSSES[task.loss](**tensors, **task.loss_options).item()} | scores


def score_decisions(task: Task, decisions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """A task's metric over its labelled rows: {its name: its value}.

    Args:
        decisions: (B,) or (B, …), as `decide` gives them.
        labels: of the same shape, `no_label` if a row has none.

    Raises:
        InputError: no row has a label.
        NonFiniteError: the metric's value, or a prediction, is NaN or infinite.
    """
    labelled = labelled_rows(labels)
    return {task.metric: score(task, decisions[labelled], labels[labelled])}


def score(task: Task, predictions: np.ndarray, references: np.ndarray) -> float:
    """A task's metric over labelled rows: predictions as `decide` gives them, and labels of the same shape.

    Raises:
        InputError: there is no row.
        NonFiniteError: a prediction is NaN or infinite, or the metric's value is.
    """
    metric = find_metric(task)
    if not len(references):
        raise InputError(f"task {task.name!r}: no row has a label, so there is nothing to score")
    check_finite(task, predictions)
    value = float(metric.score(*metric.task_columns(task, predictions, references)))
    if not np.isfinite(value):
        raise NonFiniteError(f"task {task.name!r}: {task.metric} of {len(references):,} rows is {value}, not a number")
    return value


def signed(task: Task, value: float) -> float:
    """A value of the task's metric, negated if lower is better: the highest is the best."""
    return value if find_metric(task).greater_is_better else -value


def higher_is_better(tasks: Mapping[str, Task], key: str | None, given: bool | None) -> bool | None:
    """Whether a higher value of an evaluation's key is better: as the key's metric says, else as given.

    Args:
        tasks: {name: task}.
        key: `{task}_{metric}`, with or without eval_, or another.
        given: `TrainingArguments.greater_is_better`, which Transformers sets to True for keys that do not end in loss.

    Raises:
        InputError: a `given` of False contradicts the metric.
    """
    for name, task in tasks.items():
        if key in (f"{name}_{task.metric}", f"eval_{name}_{task.metric}"):
            known = find_metric(task).greater_is_better
            if given is False and known:
                raise InputError(f"--greater_is_better is False, but of {key} a higher value is better; leave it out")
            return known
    return given


def labelled_metrics(
    function: Callable[[EvalPrediction], Mapping[str, float]], task: Task, prediction: EvalPrediction
) -> dict[str, float]:
    """Call a user's `compute_metrics` on the labelled rows of a task's predictions; {} if there are none.

    Raises:
        InputError: the function does not return a dictionary, or returns a key that the task has already, or a value
            that is not a finite number.
    """
    labelled = labelled_rows(prediction.label_ids)
    if not labelled.any():
        return {}
    fields = {name: getattr(prediction, name) for name in ("predictions", "label_ids", "inputs", "losses")}
    rows = {name: value[: len(labelled)][labelled] for name, value in fields.items() if value is not None}
    metrics = denumpify_detensorize(function(EvalPrediction(**rows)))
    if not isinstance(metrics, Mapping):
        raise InputError(
            f"compute_metrics gives a {type(metrics).__name__} for task {task.name!r}; expected {{key: number}}"
        )
    if taken := metrics.keys() & {task.metric, "loss"}:
        raise InputError(f"compute_metrics gives {min(taken)!r}, which task {task.name!r} has already; use another key")
    for key, value in metrics.items():
        if not isinstance(key, str) or not isinstance(value, Real) or not np.isfinite(value):
            raise InputError(
                f"compute_metrics gives {key!r}: {value!r} for task {task.name!r}; expected names and finite numbers"
            )
    return dict(metrics)


def task_metrics(
    functions: Mapping[str, Callable], tasks: Mapping[str, Task], unit: str, prediction: EvalPrediction
) -> dict[str, float]:
    """Call users' `compute_metrics` on the labelled rows of a task, or of each task of a group; then a task's name
    comes before its keys.

    Args:
        functions: {task: the user's function} of some of the tasks.
        tasks: {name: task} of the rows.
        unit: name of the task or the group.
        prediction: as of `labelled_metrics`; of a group, its logits and labels are {task: …}.
    """
    if unit in tasks:
        return labelled_metrics(functions[unit], tasks[unit], prediction)
    found = {}
    for name, function in functions.items():
        own = {"predictions": prediction.predictions[name], "label_ids": prediction.label_ids[name]}
        own = EvalPrediction(**own, inputs=prediction.inputs, losses=prediction.losses)
        found |= {f"{name}_{key}": value for key, value in labelled_metrics(function, tasks[name], own).items()}
    return found


def join_scores(*parts: Mapping[str, float]) -> dict[str, float]:
    """Scores of several tasks as one dictionary.

    Raises:
        InputError: two of them have the same key.
    """
    joined: dict[str, float] = {}
    for part in parts:
        if taken := joined.keys() & part.keys():
            raise InputError(f"two scores would be called {min(taken)!r}; use another key in compute_metrics")
        joined |= part
    return joined


def overall_score(tasks: Mapping[str, Task], scores: Mapping[str, Mapping[str, float]]) -> float:
    """The mean of the tasks' scores (see `task_scores`), each brought to [0, 1] by its metric (paper, section 5.2)."""
    return float(np.mean([unit_score(task, scores[name][task.metric]) for name, task in tasks.items()]))


def score_keys(tasks: Mapping[str, Task], prefix: str = "eval") -> dict[str, str]:
    """{task: the key of its score in `metrics.json`}, and that of the overall score, in the order of tables."""
    return {name: f"{prefix}_{name}_{task.metric}" for name, task in tasks.items()} | {"overall": f"{prefix}_overall"}


def unit_score(task: Task, value: float | np.ndarray) -> float | np.ndarray:
    """A value of the task's metric, brought to [0, 1] for the overall score."""
    return find_metric(task).to_unit(value, task)


def describe_metric(task: Task) -> str:
    """A task's metric with its note: `rmse (lower is better)`."""
    note = find_metric(task).note
    return f"{task.metric} ({note})" if note else task.metric


def describe_overall(tasks: Mapping[str, Task]) -> str:
    """What the overall score of some tasks is: `mean of accuracy, (pearson + 1) / 2`."""
    parts = [find_metric(task).describe_overall(task) for task in tasks.values()]
    return f"mean of {', '.join(dict.fromkeys(parts))}"
