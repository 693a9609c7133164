"""The tasks' losses, pure functions of logits and labels, and the divergences, by which SMART compares two predictions.

A loss sums over the labelled rows and divides by `num_items`, which is `count_items` of the batch. If the batch is one
share of an optimizer step (gradient accumulation, several processes), it is `count_items` of the whole step, so that
the shares add up to the mean over the step. An item is a labelled row, or each label of a row with several. With class
weights it counts as its label's weight, as in torch's weighted mean. A new loss is a function and an entry in LOSSES;
it does not have to take the options.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

UNLABELLED = -100  # the class of a row without a label, as in Transformers; classes are numbered from 0


def no_label(scores: bool) -> int | float:
    """The mark of a missing label: UNLABELLED for classes; NaN for scores, since any number may be a score."""
    return math.nan if scores else UNLABELLED


def is_labelled(labels: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Which labels are not the mark of a missing label (see `no_label`).

    Args:
        labels: scores, floating point, or classes, integer, of any shape.

    Returns:
        Booleans of the same shape, a tensor or an array as the labels are.
    """
    scores = labels.is_floating_point() if isinstance(labels, Tensor) else labels.dtype.kind == "f"
    return labels == labels if scores else labels != UNLABELLED  # only NaN is not equal to itself


def labelled_rows(labels: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Which rows have at least one label: labels (N, …) -> booleans (N,) (see `is_labelled`)."""
    labelled = is_labelled(labels)
    return labelled if labelled.ndim == 1 else labelled.any(tuple(range(1, labelled.ndim)))


def rows_with_label(labels: Mapping[str, Tensor]) -> Tensor:
    """Which rows have a label of at least one task: {task: labels (N, …)} -> booleans (N,)."""
    return torch.stack(list(map(labelled_rows, labels.values()))).any(0)


def cross_entropy(
    *,
    logits: Tensor,
    labels: Tensor,
    num_items: Tensor | float | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the true class, in nats (paper, section 4.1, SA).

    With the options it is `torch.nn.CrossEntropyLoss(weight=class_weights, label_smoothing=label_smoothing)`.

    Args:
        logits: unnormalised scores, float (B, C), or (B, L, C) of tokens.
        labels: classes in [0, C), or UNLABELLED, integer (B,) or (B, L).
        num_items: divisor of the sum; by default `count_items` of the labels.
        class_weights: C factors of the losses of each class; by default 1.
        label_smoothing: share of the true class that is spread over all classes, in [0, 1).

    Returns:
        Scalar, at least fp32.
    """
    logits = at_least_fp32(logits).flatten(0, -2)
    # Made on the device, because a copy from the CPU would wait for it.
    weights = None if class_weights is None else torch.stack([logits.new_full((), weight) for weight in class_weights])
    total = functional.cross_entropy(
        logits, labels.flatten(), weights, ignore_index=UNLABELLED, reduction="sum", label_smoothing=label_smoothing
    )
    return divide(total, count_items(labels, weights) if num_items is None else num_items)


def binary_cross_entropy(
    *,
    logits: Tensor,
    labels: Tensor,
    num_items: Tensor | float | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the true answer under sigmoid(logit), in nats (paper, section 4.1, PD). For rows with
    several labels it is the mean over all labels of all rows.

    It is `cross_entropy` of the two classes' logits (0, x), also with the options. So class weights (1, p) give the sum
    of `torch.nn.BCEWithLogitsLoss(pos_weight=p)`, but divided by the sum of the weights; torch divides by the number of
    rows.

    Args:
        logits: float (B,), or for several labels (B, C).
        labels: 0, 1 or UNLABELLED, integer (B,) or (B, C); also (B, 1) with logits (B,).
        num_items: divisor of the sum; by default `count_items` of the labels.
        class_weights: factors of the losses of "no" and "yes"; by default 1.
        label_smoothing: share of the true answer that is spread over both, in [0, 1).

    Returns:
        Scalar, at least fp32.
    """
    if class_weights is not None or label_smoothing:
        both = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        options = {"class_weights": class_weights, "label_smoothing": label_smoothing}
        return cross_entropy(logits=both, labels=labels, num_items=num_items, **options)
    logits, labelled = at_least_fp32(logits).view_as(labels), is_labelled(labels)
    losses = functional.binary_cross_entropy_with_logits(
        logits, labels.where(labelled, 0).to(logits.dtype), reduction="none"
    )
    total = losses.where(labelled, 0).sum()
    return divide(total, count_items(labels) if num_items is None else num_items)


def mean_squared_error(*, logits: Tensor, labels: Tensor, num_items: Tensor | float | None = None) -> Tensor:
    """Squared difference between predicted and true score (paper, section 4.1, STS).

    Args:
        logits: predicted scores, float (B,).
        labels: true scores, or NaN if a row has none, float (B,) or (B, 1).
        num_items: divisor of the sum; by default the number of labelled rows.

    Returns:
        Scalar, at least fp32.
    """
    labelled = is_labelled(labels)
    predicted, true = (at_least_fp32(values).where(labelled, 0) for values in (logits.view_as(labels), labels))
    total = functional.mse_loss(predicted, true.to(predicted.dtype), reduction="sum")
    return divide(total, count_items(labels) if num_items is None else num_items)


def score_cross_entropy(
    *,
    logits: Tensor,
    labels: Tensor,
    score_range: tuple[float, float],
    num_items: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy, in nats, of scores that are scaled from their range to [0, 1] and taken as probabilities:
    `torch.nn.BCELoss` of the scaled scores. It tells 4.9 from 5.0 better than the squared difference does.

    Args:
        logits: predicted scores within the range, float (B,).
        labels: true scores, or NaN if a row has none, float (B,) or (B, 1).
        score_range: lowest and highest score.
        num_items: divisor of the sum; by default the number of labelled rows.

    Returns:
        Scalar, at least fp32.
    """
    labelled, (low, high) = is_labelled(labels), score_range
    predicted, true = (
        ((at_least_fp32(values).where(labelled, low) - low) / (high - low)).clamp(0, 1)
        for values in (logits.view_as(labels), labels)
    )
    with torch.autocast(predicted.device.type, enabled=False):  # autocast refuses this loss, even in fp32
        total = functional.binary_cross_entropy(predicted, true.to(predicted.dtype), reduction="sum")
    return divide(total, count_items(labels) if num_items is None else num_items)


def count_items(labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The divisor of a sum of losses: the number of labels (B, …) that are not missing, or with class weights (C,) the
    sum of their weights."""
    labelled = is_labelled(labels)
    return labelled.sum() if class_weights is None else (class_weights[labels * labelled] * labelled).sum()


def divide(total: Tensor, items: Tensor | float) -> Tensor:
    """A sum of losses divided by its number of items; 0 if that is 0, as in a batch without labelled rows."""
    items = torch.as_tensor(items)
    return total / (items + (items == 0)).to(total.dtype)


cross_entropy.unit = binary_cross_entropy.unit = score_cross_entropy.unit = "nats"  # for plots
mean_squared_error.unit = "squared score"

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "score_cross_entropy": score_cross_entropy,
}


def symmetric_kl(perturbed: Tensor, clean: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of the class probabilities, in nats (paper, section 4.4, ℓ_s).

    Args:
        perturbed: unnormalised class scores, float (B, C), or (…, C).
        clean: the same.

    Returns:
        One divergence a row, (B,) or (…), at least fp32.
    """
    p, q = (functional.log_softmax(at_least_fp32(logits), dim=-1) for logits in (perturbed, clean))
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


def token_symmetric_kl(perturbed: Tensor, clean: Tensor) -> Tensor:
    """The mean of `symmetric_kl` over the tokens of each row.

    Args:
        perturbed: unnormalised class scores, float (B, L, C).
        clean: the same; where all C of a token are 0, it is padding.

    Returns:
        One divergence a row, (B,), at least fp32.
    """
    real = (clean != 0).any(-1)
    return (symmetric_kl(perturbed, clean) * real).sum(-1) / real.sum(-1).clamp(min=1)


def binary_symmetric_kl(perturbed: Tensor, clean: Tensor) -> Tensor:
    """`symmetric_kl` of "yes" and "no" under sigmoid(logit), in nats: logits (B,) -> (B,), at least fp32. For several
    labels, logits (B, C), it is the mean over the labels, as their loss is."""
    p, q = at_least_fp32(perturbed), at_least_fp32(clean)
    found = (p.sigmoid() - q.sigmoid()) * (p - q)
    return found.mean(-1) if found.ndim > 1 else found


def squared_error(perturbed: Tensor, clean: Tensor) -> Tensor:
    """Squared difference of two predicted scores: (B,) -> (B,), at least fp32."""
    return (at_least_fp32(perturbed) - at_least_fp32(clean)).square()


def at_least_fp32(logits: Tensor) -> Tensor:
    """Logits as fp32 if they are in half precision, where small differences of nearly equal numbers would be lost."""
    return logits if logits.dtype == torch.float64 else logits.float()


def soft_divergence(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(p ‖ q) of a teacher's and a model's class probabilities at temperature T, in nats (Hinton et al., 2015,
    section 2): p ∝ teacher^(1 / T), q = softmax(logits / T). T² cancels the 1/T² of the gradient, so that its size
    stays comparable.

    Args:
        logits: the model's, float (B, C), or (…, C).
        probabilities: the teacher's, in the same shape; they sum to 1 over the classes.
        temperature: T.

    Returns:
        One divergence a row, (B,) or (…), at least fp32.
    """
    student = at_least_fp32(logits).div(temperature).log_softmax(-1)
    teacher = probabilities.to(student.dtype).clamp(min=torch.finfo(student.dtype).tiny).log()
    teacher = teacher.div(temperature).log_softmax(-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "symmetric_kl": symmetric_kl,
    "token_symmetric_kl": token_symmetric_kl,
    "binary_symmetric_kl": binary_symmetric_kl,
    "squared_error": squared_error,
}
