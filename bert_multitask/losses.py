"""The tasks' losses, pure functions of logits and labels, and the divergences by which SMART compares two predictions.

A loss sums over the labelled rows and divides by `num_items`: the number of labelled rows of the whole optimizer step
where a batch is one share of it (gradient accumulation, several processes), so that the shares add up to the mean over
the step, and the batch's own number otherwise.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

UNLABELLED = -100  # the class of a row without a label, as everywhere in Hugging Face; no class has a negative number


def no_label(scores: bool) -> int | float:
    """The label of a row without one: UNLABELLED among classes; NaN among scores, since any number may be a score."""
    return math.nan if scores else UNLABELLED


def is_labelled(labels: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Which rows have a label.

    Args:
        labels: scores, floating point, or classes, integer, of any shape (see `no_label`).

    Returns:
        Truth values of the same shape and kind.
    """
    scores = labels.is_floating_point() if isinstance(labels, Tensor) else labels.dtype.kind == "f"
    return labels == labels if scores else labels != UNLABELLED  # NaN alone is not itself


def cross_entropy(*, logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Negative log-likelihood of the true class, in nats (paper, section 4.1, SA).

    Args:
        logits: unnormalised scores, float (B, C).
        labels: classes in [0, C), or UNLABELLED, integer (B,).
        num_items: divisor of the sum; by default the number of labelled rows.

    Returns:
        Scalar, fp32.
    """
    total = functional.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="sum")
    return total / row_count(labels, num_items)


def binary_cross_entropy(*, logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Negative log-likelihood of the true answer under sigmoid(logit), in nats (paper, section 4.1, PD).

    Args:
        logits: float (B,).
        labels: 0, 1 or UNLABELLED, integer (B,).
        num_items: divisor of the sum; by default the number of labelled rows.

    Returns:
        Scalar, fp32.
    """
    labelled = is_labelled(labels)
    total = functional.binary_cross_entropy_with_logits(
        logits.float()[labelled], labels[labelled].float(), reduction="sum"
    )
    return total / row_count(labels, num_items)


def mean_squared_error(*, logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Squared difference between predicted and true score (paper, section 4.1, STS).

    Args:
        logits: predicted scores, float (B,).
        labels: true scores, or NaN where a row has none, float (B,).
        num_items: divisor of the sum; by default the number of labelled rows.

    Returns:
        Scalar, fp32.
    """
    labelled = is_labelled(labels)
    total = functional.mse_loss(logits.float()[labelled], labels[labelled].float(), reduction="sum")
    return total / row_count(labels, num_items)


def row_count(labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """The divisor of a loss: `num_items` if given, else the number of labelled rows; at least 1."""
    return torch.as_tensor(is_labelled(labels).sum() if num_items is None else num_items).clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
}


def symmetric_kl(perturbed: Tensor, clean: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of the class probabilities, in nats (paper, section 4.4, ℓ_s).

    Args:
        perturbed: unnormalised class scores, float (B, C).
        clean: the same.

    Returns:
        One divergence a row, (B,), at least fp32.
    """
    p, q = (functional.log_softmax(at_least_fp32(logits), dim=-1) for logits in (perturbed, clean))
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


def binary_symmetric_kl(perturbed: Tensor, clean: Tensor) -> Tensor:
    """`symmetric_kl` of the two answers' probabilities under sigmoid(logit): logits (B,) -> (B,), at least fp32."""
    p, q = at_least_fp32(perturbed), at_least_fp32(clean)
    return (p.sigmoid() - q.sigmoid()) * (p - q)


def squared_error(perturbed: Tensor, clean: Tensor) -> Tensor:
    """Squared difference of two predicted scores: (B,) -> (B,), at least fp32."""
    return (at_least_fp32(perturbed) - at_least_fp32(clean)).square()


def at_least_fp32(logits: Tensor) -> Tensor:
    """Half-precision logits as fp32: a divergence is a small difference of nearly equal numbers."""
    return logits if logits.dtype == torch.float64 else logits.float()


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "symmetric_kl": symmetric_kl,
    "binary_symmetric_kl": binary_symmetric_kl,
    "squared_error": squared_error,
}
