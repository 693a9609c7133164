"""How predictions are scored: `evaluate` metrics that need no download, and the overall score."""

import warnings
from collections.abc import Callable, Mapping

import datasets
import evaluate
import numpy as np
import torch
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score
from transformers import EvalPrediction

from .configuration import InputError
from .losses import LOSSES, is_labelled
from .tasks import Task


class Accuracy(evaluate.Metric):
    """Share of predictions that equal the reference, in [0, 1] (paper, section 5.2)."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, datasets.Value("int64"))

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class Pearson(evaluate.Metric):
    """Pearson correlation of predictions and references, in [-1, 1] (paper, section 5.2).

    It is undefined where either is constant or there are fewer than two; it then counts as 0, with a warning.
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, datasets.Value("float64"))

    def _compute(self, predictions, references) -> dict[str, float]:
        if len(references) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
            warnings.warn("the Pearson correlation of a constant is undefined; counted as 0", stacklevel=2)
            return {"pearson": 0.0}
        return {"pearson": float(pearsonr(predictions, references).statistic)}


def metric_info(description: str, value: datasets.Value) -> evaluate.MetricInfo:
    """What `evaluate` wants to know of a metric of one prediction and one reference a row."""
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="predictions and references, one a row",
        features=datasets.Features({"predictions": value, "references": value}),
    )


METRICS: dict[str, type[evaluate.Metric]] = {"accuracy": Accuracy, "pearson": Pearson}


def decide(task: Task, logits: np.ndarray) -> np.ndarray:
    """Logits -> predictions (B,): the most likely class, "yes" above logit 0, or the score itself."""
    if task.kind == "classification":
        return logits.argmax(-1)
    return (logits > 0).astype(np.int64) if task.kind == "binary" else logits


def task_scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """A task's mean loss and metric over its labelled rows.

    Args:
        task: whose rows.
        logits: (B, C) or (B,), as the model gives them.
        labels: (B,), `no_label` where a row has none.

    Returns:
        {"loss": …, the metric's name: …}
    """
    loss = LOSSES[task.loss](logits=torch.from_numpy(logits), labels=torch.from_numpy(labels))
    return {"loss": loss.item()} | score_decisions(task, decide(task, logits), labels)


def score_decisions(task: Task, decisions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """A task's metric over its labelled rows: {its name: …}.

    Args:
        task: whose rows.
        decisions: (B,), as `decide` gives them.
        labels: (B,), `no_label` where a row has none.
    """
    labelled = is_labelled(labels)
    metric = METRICS[task.metric](keep_in_memory=True)
    return metric.compute(predictions=decisions[labelled], references=labels[labelled])


def labelled_metrics(
    function: Callable[[EvalPrediction], Mapping[str, float]], task: Task, prediction: EvalPrediction
) -> dict[str, float]:
    """What a user's `compute_metrics` gives for a task's labelled rows; nothing where there are none.

    Args:
        function: the user's.
        task: whose rows.
        prediction: logits and labels of all rows, and losses and inputs where they are asked for.

    Raises:
        InputError: it gives no dictionary, a key that the task has already, or a number that is not finite.
    """
    labelled = is_labelled(prediction.label_ids)
    if not labelled.any():
        return {}
    fields = ("predictions", "label_ids", "inputs", "losses")
    values = {name: getattr(prediction, name) for name in fields}
    rows = {name: value[: len(labelled)][labelled] for name, value in values.items() if value is not None}
    metrics = function(EvalPrediction(**rows))
    if not isinstance(metrics, Mapping):
        raise InputError(
            f"compute_metrics gives a {type(metrics).__name__} for task {task.name!r}; expected {{key: number}}"
        )
    if taken := metrics.keys() & {task.metric, "loss"}:
        raise InputError(f"compute_metrics gives {min(taken)!r}, which task {task.name!r} has already; use another key")
    for key, value in metrics.items():
        if not np.all(np.isfinite(value)):
            raise InputError(f"compute_metrics gives {key} = {value} for task {task.name!r}; expected a finite number")
    return dict(metrics)


def overall_score(tasks: Mapping[str, Task], scores: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over the tasks of accuracy or (Pearson + 1) / 2, in [0, 1] (paper, section 5.2).

    Args:
        tasks: {name: task}.
        scores: {name: the task's `task_scores`}.
    """
    return float(np.mean([unit_score(task.metric, scores[name][task.metric]) for name, task in tasks.items()]))


def unit_score(metric: str, value: float | np.ndarray) -> float | np.ndarray:
    """A metric's value as the overall score takes it, in [0, 1]: accuracy as it is, Pearson as (r + 1) / 2."""
    return (value + 1) / 2 if metric == "pearson" else value
