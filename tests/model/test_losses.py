"""The losses against formulas in float64, and the scaling that makes shares of a batch add up."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bert_multitask.model.losses import LOSSES, UNLABELLED, count_items, is_labelled

generator = np.random.default_rng(0)
LOGITS = {
    "cross_entropy": generator.normal(size=(6, 4)),
    "binary_cross_entropy": generator.normal(size=6),
    "mean_squared_error": generator.uniform(0, 5, size=6),
    "score_cross_entropy": generator.uniform(0.1, 4.9, size=6),
}
LABELS = {
    "cross_entropy": np.array([0, 3, UNLABELLED, 1, 2, 2]),
    "binary_cross_entropy": np.array([0, 1, UNLABELLED, 1, 0, 0]),
    "mean_squared_error": np.array([-100.0, 5.0, np.nan, 1.6, 2.2, 2.0]),
    "score_cross_entropy": np.array([0.0, 5.0, np.nan, 1.6, 2.2, 2.0]),
}


def loss(name: str) -> Callable:
    """The loss, of scores from 0 to 5 where it asks."""
    return partial(LOSSES[name], score_range=(0, 5)) if name == "score_cross_entropy" else LOSSES[name]


def reference(name: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The loss of each labelled row, from the formulas."""
    labelled = labels != -100 if labels.dtype.kind == "i" else ~np.isnan(labels)
    logits, labels = logits[labelled], labels[labelled]
    if name == "cross_entropy":
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return -np.log(probabilities[np.arange(len(labels)), labels])
    if name == "binary_cross_entropy":
        yes = 1 / (1 + np.exp(-logits))
        return -(labels * np.log(yes) + (1 - labels) * np.log(1 - yes))
    if name == "score_cross_entropy":
        yes, labels = logits / 5, labels / 5
        return -(labels * np.log(yes) + (1 - labels) * np.log(1 - yes))
    return (logits - labels) ** 2


def tensors(name: str) -> tuple:
    labels = torch.tensor(LABELS[name])
    return torch.tensor(LOGITS[name], dtype=torch.float32), labels.float() if labels.is_floating_point() else labels


@pytest.mark.parametrize("name", LOSSES)
def test_mean_over_labelled_rows(name):
    logits, labels = tensors(name)
    expected = reference(name, LOGITS[name], LABELS[name]).mean()
    assert loss(name)(logits=logits, labels=labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_shares_add_up_to_the_whole(name):
    logits, labels = tensors(name)
    shares = [loss(name)(logits=logits[part], labels=labels[part], num_items=5) for part in (slice(0, 3), slice(3, 6))]
    assert sum(shares).item() == pytest.approx(loss(name)(logits=logits, labels=labels).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_share_without_labels_adds_nothing(name):
    logits, labels = tensors(name)
    logits = logits[2:3].requires_grad_()
    for num_items in (None, 7, 0):
        value = loss(name)(logits=logits, labels=labels[2:3], num_items=num_items)
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, logits)
        assert not gradient.any()


def test_certain_scores_have_a_finite_loss_also_under_autocast():
    """As torch's own loss has, whose logarithms end at -100."""
    scores, labels = torch.tensor([0.0, 5.0]), torch.tensor([0.0, 0.0])
    with torch.autocast("cpu", torch.bfloat16):
        assert loss("score_cross_entropy")(logits=scores, labels=labels).item() == 50


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_give_a_full_precision_loss(name):
    logits, labels = tensors(name)
    assert loss(name)(logits=logits.bfloat16(), labels=labels).dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, UNLABELLED, 1], [True, False, True]),
        ([-100.0, np.nan, -1.0], [True, False, True]),
        ([[np.nan, np.inf], [0.0, -np.inf]], [[False, True], [True, True]]),
    ],
    ids=["classes", "scores", "two axes"],
)
def test_any_number_may_be_a_score(labels, expected):
    """A score of -100 is a label; among classes, -100 is none."""
    assert is_labelled(np.array(labels)).tolist() == expected
    assert is_labelled(torch.tensor(labels)).tolist() == expected


@pytest.mark.parametrize("name", LOSSES)
def test_labels_in_a_column_are_those_of_their_rows(name):
    """Labels (B, 1), as stock regression models take them, and not each row's label for every row."""
    logits, labels = tensors(name)
    assert loss(name)(logits=logits, labels=labels[:, None]).item() == loss(name)(logits=logits, labels=labels).item()


WEIGHTS = {"cross_entropy": (0.3, 2.0, 1.1, 0.6), "binary_cross_entropy": (0.7, 2.5)}
OPTIONS = {
    "weights": lambda name: {"class_weights": WEIGHTS[name]},
    "smoothing": lambda name: {"label_smoothing": 0.1},
    "both": lambda name: {"class_weights": WEIGHTS[name], "label_smoothing": 0.3},
}


def torch_loss(name: str, options: dict) -> torch.Tensor:
    """torch's own loss in float64; of a binary task as of two classes with the logits (0, x)."""
    logits, labels = torch.tensor(LOGITS[name]), torch.tensor(LABELS[name])
    if name == "binary_cross_entropy":
        logits = torch.stack([torch.zeros_like(logits), logits], -1)
    weight = torch.tensor(options["class_weights"], dtype=torch.float64) if "class_weights" in options else None
    return nn.CrossEntropyLoss(weight, label_smoothing=options.get("label_smoothing", 0.0))(logits, labels)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("option", OPTIONS)
def test_weights_and_smoothing_are_torchs(name, option):
    options = OPTIONS[option](name)
    got = LOSSES[name](logits=torch.tensor(LOGITS[name]), labels=torch.tensor(LABELS[name]), **options)
    torch.testing.assert_close(got, torch_loss(name, options), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("option", OPTIONS)
def test_weighted_shares_add_up_to_the_whole(name, option):
    options = OPTIONS[option](name)
    logits, labels = torch.tensor(LOGITS[name]), torch.tensor(LABELS[name])
    weights = torch.tensor(options["class_weights"]) if "class_weights" in options else None
    parts = [slice(0, 2), slice(2, 3), slice(3, 6)]  # the second has no label
    items = sum(count_items(labels[part], weights) for part in parts)
    shares = [LOSSES[name](logits=logits[part], labels=labels[part], num_items=items, **options) for part in parts]
    torch.testing.assert_close(sum(shares), torch_loss(name, options), rtol=1e-6, atol=0)
    assert shares[1] == 0


@pytest.mark.parametrize("count", [1, 3])
def test_several_labels_a_row(count):
    """The mean over the labels of each labelled row, as torch's, also by shares; a single logit has no axis."""
    logits = torch.tensor(generator.normal(size=(5, count)))
    labels = torch.tensor(generator.integers(0, 2, (5, count)))
    labels[1] = UNLABELLED
    kept = labels[:, 0] != UNLABELLED
    expected = functional.binary_cross_entropy_with_logits(logits[kept], labels[kept].double())
    given = logits if count > 1 else logits[:, 0]
    loss = LOSSES["binary_cross_entropy"]
    torch.testing.assert_close(loss(logits=given, labels=labels), expected, rtol=1e-12, atol=0)
    items = count_items(labels)
    shares = [loss(logits=given[part], labels=labels[part], num_items=items) for part in (slice(2), slice(2, 5))]
    torch.testing.assert_close(sum(shares), expected, rtol=1e-12, atol=0)


def test_binary_weights_and_pos_weight():
    """Weights (1, p) give the sum of torch's losses with pos_weight p, which torch divides by the number of rows."""
    kept = LABELS["binary_cross_entropy"] != UNLABELLED
    logits, labels = (torch.tensor(values["binary_cross_entropy"][kept]) for values in (LOGITS, LABELS))
    ours = LOSSES["binary_cross_entropy"](logits=logits, labels=labels, num_items=5, class_weights=(1, 3.0))
    theirs = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(logits, labels.double())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", WEIGHTS)
def test_equal_weights_change_nothing(name):
    logits, labels = tensors(name)
    weighted = LOSSES[name](logits=logits, labels=labels, class_weights=[0.2] * len(WEIGHTS[name]))
    torch.testing.assert_close(weighted, LOSSES[name](logits=logits, labels=labels))
