"""No operation of a training step has the CPU wait for a GPU: found on the CPU by what PyTorch dispatches."""

import itertools

import pytest
import torch
from conftest import SIZE
from torch.utils._python_dispatch import TorchDispatchMode

from bert_multitask.data.collate import Collator, without_label
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.kinds import KINDS
from bert_multitask.model.losses import LOSSES, mean_squared_error, no_label
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS

WAITS = "_local_scalar_dense item is_nonzero nonzero masked_select equal unique_consecutive repeat_interleave".split()


class NoWait(TorchDispatchMode):
    """Fails on what copies a value to the CPU, or has a shape that depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        by_truth = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        assert not by_truth and name not in WAITS, f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


TERMS = {"smart_weight": 1.0, "bregman_weight": 0.5}
WEIGHTS = {name: {label: 2.0 for label in TASKS[name].label_names} for name in ("sst", "quora")}
CASES = {
    "plain": {"sst": {"pooling": "mean"}} | {name: {"class_weights": weights} for name, weights in WEIGHTS.items()},
    "every term": dict.fromkeys(("sst", "quora", "sts"), TERMS | {"rdrop_weight": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_a_step_waits_for_nothing(request, make_trainer, case, attention):
    """Forward, loss, SMART's and R-Drop's passes, and backward, of a batch of each task."""
    if attention == "packed":
        request.getfixturevalue("packed_attention")
    trainer = make_trainer({"pair_encoding": "separate" if case == "plain" else "joint"}, task_settings=CASES[case])
    trainer.create_optimizer_and_scheduler(3)
    seen, batches = set(), iter(trainer.get_train_dataloader())
    while len(seen) < 3:
        (batch,), items = trainer.get_batch_samples(batches, 1, trainer.args.device)
        if batch["task"] not in seen:
            with NoWait():
                trainer.training_step(trainer.model, batch, items)
            seen.add(batch["task"])


def test_a_step_that_packs_its_own_batch_waits(make_trainer, packed_attention):
    """So the test above can fail."""
    trainer = make_trainer()
    (batch,), items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    del batch["packing"]
    with NoWait(), pytest.raises(AssertionError, match="waits for the device"):
        trainer.training_step(trainer.model, batch, items)


def test_a_device_that_could_read_freed_memory_waits(make_trainer, monkeypatch):
    """Apple's: PyTorch copies a tensor there after it was freed, if it is not told to wait. A meta device stands in."""
    trainer, moved, to = make_trainer(), [], torch.Tensor.to

    def note(tensor, device, non_blocking=False):
        moved.append(non_blocking)
        return to(tensor, device, non_blocking=non_blocking)

    monkeypatch.setattr(torch.Tensor, "to", note)
    batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("meta"))
    assert batches[0]["packing"].index.is_meta and len(moved) > 8 and not any(moved)


def test_means_of_the_weights_wait_for_nothing(make_trainer):
    trainer = make_trainer(task_settings={"sst": TERMS}, ema_decay=0.9)
    for keeper in (trainer.averaging, trainer.teacher):
        keeper.first = 0
        trainer.control.should_save = False
        for _ in range(2):
            with NoWait():
                keeper.on_step_end(trainer.args, trainer.state, trainer.control, model=trainer.model)


LOGITS = {"cross_entropy": 3, "binary_cross_entropy": None, "mean_squared_error": None, "score_cross_entropy": None}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"score_range": (0.0, 1.0)} if name == "score_cross_entropy" else {}) for name in LOSSES),
        ("cross_entropy", {"class_weights": (1.0, 2.0, 3.0), "label_smoothing": 0.1}),
        ("binary_cross_entropy", {"class_weights": (1.0, 2.0), "label_smoothing": 0.1}),
    ],
)
def test_losses_wait_for_nothing_and_pass_over_missing_labels(name, options):
    """The value and the gradient are those of the labelled rows alone."""
    classes = LOGITS[name]
    scores = classes is None and name != "binary_cross_entropy"
    torch.manual_seed(0)
    logits = torch.rand((6, classes) if classes else 6)
    labels = torch.rand(6) if scores else torch.tensor([0, 1, 1, 0, 1, 0])
    kept = torch.tensor([True, False, True, True, False, True])
    labels[~kept] = no_label(scores)
    whole, part = logits.clone().requires_grad_(), logits[kept].clone().requires_grad_()
    with NoWait():
        loss = LOSSES[name](logits=whole, labels=labels, **options)
        (gradient,) = torch.autograd.grad(loss, whole)
    expected = LOSSES[name](logits=part, labels=labels[kept], **options)
    torch.testing.assert_close(loss, expected)
    (others,) = torch.autograd.grad(expected, part)
    torch.testing.assert_close(gradient[kept], others)
    assert not gradient[~kept].any()


LABELS = {
    "classification": 1,
    "binary": 1,
    "regression": 0.5,
    "multilabel": [0, 1],
    "token_classification": [1, -100, 0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_waits_for_nothing(packed_attention, kind):
    """Its head and its loss, with one row that lacks its label."""
    task = {"name": "t", "kind": kind, "text": "text", "label": "label"}
    task |= {} if KINDS[kind].classes is None else {"label_names": ["O", "B-x"]}
    model = MultitaskBertModel(MultitaskBertConfig(**SIZE, vocab_size=99, tasks=[task])).train()
    row = {"task": "t", "input_ids": [1, 2, 3], "token_type_ids": [0, 0, 0], "labels": LABELS[kind]}
    short = {"input_ids": [1, 2], "token_type_ids": [0, 0], "labels": without_label(LABELS[kind])}
    batch = Collator(0, packs=True)([row | short, row])
    with NoWait():
        model(**batch).loss.backward()
    assert model.bert.embeddings.word_embeddings.weight.grad.isfinite().all()


def test_every_loss_of_a_kind_is_tried_above():
    assert set(itertools.chain.from_iterable(kind.keys["loss"] for kind in KINDS.values())) == LOGITS.keys()


def test_a_loss_by_truth_values_waits():
    labels = torch.tensor([1.0, float("nan")])
    with NoWait():
        mean_squared_error(logits=torch.zeros(2), labels=labels)
        with pytest.raises(AssertionError, match="waits for the device"):
            labels[labels == labels]
