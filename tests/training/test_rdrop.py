"""R-Drop: two passes with different dropout, the mean of their losses, and the divergence between them."""

import math

import numpy as np
import pytest
import torch
from conftest import NO_DROPOUT, weights
from scipy.special import expit, log_softmax, rel_entr, softmax
from torch import nn

from bert_multitask.model.errors import InputError

RDROP = {"sst": {"rdrop_weight": 2.0}, "sts": {"rdrop_weight": 0.5}}


def logged(trainer, key: str) -> list[float]:
    return [log[key] for log in trainer.state.log_history if key in log]


def cross_entropy(logits, labels):
    return -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]


def classes_apart(first, second):
    p, q = softmax(first, axis=-1), softmax(second, axis=-1)
    return (rel_entr(p, q) + rel_entr(q, p)).sum(-1)


def answers_apart(first, second):
    both = [np.stack([1 - expit(logits), expit(logits)], -1) for logits in (first, second)]
    return (rel_entr(*both) + rel_entr(*both[::-1])).sum(-1)


REFERENCE = {
    "sst": (cross_entropy, classes_apart),
    "quora": (lambda x, y: np.logaddexp(0, x) - y * x, answers_apart),
    "sts": (lambda x, y: (x - y) ** 2, lambda x, y: (x - y) ** 2),
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", REFERENCE)
def test_the_loss_is_the_formula(make_trainer, name, bf16):
    """½ (ℓ(f1) + ℓ(f2)) + λ D(f1, f2) by scipy in float64, of the logits of both passes; a share of a step counts as
    its rows, and a row without a label as none."""
    trainer = make_trainer(task_settings={name: {"rdrop_weight": 3.0, "dropout": 0.4}}, bf16=bf16)
    batches = trainer.get_train_dataloader()
    batch = next(batch for batch in batches if batch["task"] == name and len(batch["labels"]) > 3)
    batch["labels"][1] = float("nan") if batch["labels"].is_floating_point() else -100
    model, got = trainer.model.train(), []
    hook = model.register_forward_hook(lambda module, inputs, output: got.append(output.logits))
    trainer.step_rows = torch.tensor(6)
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(6))
    hook.remove()
    (logits,) = got
    first, second = logits.detach().double().numpy().reshape(2, len(batch["labels"]), *logits.shape[1:])
    assert not np.allclose(first, second), "two passes"
    rows = np.array([0, 2, 3])
    labels = batch["labels"].numpy()[rows]
    nll, apart = REFERENCE[name]
    losses = (nll(first[rows], labels) + nll(second[rows], labels)).sum() / 2 / 6
    penalty = apart(first, second).mean() * 3 / 6
    assert loss.item() == pytest.approx(losses + 3 * penalty, rel=1e-4 if not bf16 else 1e-3)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[: len(first)].abs().sum() > 0 and gradient[len(first) :].abs().sum() > 0, "into both passes"


def test_a_step_without_a_label_adds_nothing(make_trainer):
    """Not 0 / 0: tokenised rows may lack labels, and a step may have such rows alone."""
    trainer = make_trainer(task_settings={"sst": {"rdrop_weight": 3.0}})
    batch = next(batch for batch in trainer.get_train_dataloader() if batch["task"] == "sst")
    batch["labels"].fill_(-100)
    _, items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=items).item() == 0


def test_a_batch_outside_of_a_step_is_all_of_it(make_trainer):
    """`compute_loss` in a loop of the user's, without the number of items: the term counts once, not once a row."""
    trainer = make_trainer(task_settings={"sst": {"rdrop_weight": 3.0}})
    batch = next(batch for batch in trainer.get_train_dataloader() if batch["task"] == "sst")
    _, items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    losses = []
    for given in (items, None):
        torch.manual_seed(0)
        losses.append(trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=given).item())
    assert len(batch["labels"]) > 1 and losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_it_joins_the_loss_of_its_tasks_alone(make_trainer):
    trainer = make_trainer(task_settings=RDROP, logging_steps=1)
    trainer.train()
    assert len(logged(trainer, "rdrop_sst")) == len(logged(trainer, "rdrop_sts")) == 6
    assert not logged(trainer, "rdrop_quora") and min(logged(trainer, "rdrop_sst")) > 0
    for log in trainer.state.log_history:
        for task, weight in (("sst", 2.0), ("sts", 0.5)):
            if f"rdrop_{task}" in log:
                assert log["loss"] == pytest.approx(log[f"loss_{task}"] + weight * log[f"rdrop_{task}"], rel=1e-4)


class Halves(nn.Module):
    """Dropout that can be repeated: it keeps every value of the first pass, and scales those of the second."""

    def forward(self, x):
        first, second = x.chunk(2)
        return torch.cat([first, 1.5 * second])


@pytest.mark.parametrize("pair_encoding", ["joint", "separate"])
def test_under_accumulation(make_trainer, pair_encoding):
    """One batch of 8, and shares of it, ragged and empty ones too, give the same weights."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pair_encoding": pair_encoding}
    runs = {}
    for rows, accumulation in [(8, 1), (2, 4)]:
        trainer = make_trainer(
            off,
            task_settings=RDROP,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            optim="sgd",
        )
        for name in RDROP:
            trainer.model.heads[name].dropout = Halves()
        trainer.train()
        runs[rows] = weights(trainer), logged(trainer, "loss"), logged(trainer, "rdrop_sst")
    assert min(runs[8][2]) > 1e-4
    for place in (1, 2):
        np.testing.assert_allclose(runs[2][place], runs[8][place], rtol=1e-3)
    for name, weight in runs[8][0].items():
        torch.testing.assert_close(runs[2][0][name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("more", [{"smart_weight": 1.0}, {"bregman_weight": 1.0}, {"class_weights": "balanced"}])
def test_beside_the_others(make_trainer, more):
    trainer = make_trainer(task_settings={"sst": {"rdrop_weight": 1.0} | more}, logging_steps=1, smart_radius=0.1)
    trainer.train()
    assert all(map(math.isfinite, logged(trainer, "loss"))) and min(logged(trainer, "rdrop_sst")) > 0


def test_mistakes_are_named(make_trainer, caplog, propagated_logs):
    both = {"sst": {"rdrop_weight": 1.0, "smart_weight": 1.0}}
    with pytest.raises(InputError, match="'sst' has a rdrop_weight.*--smart_share_dropout"):
        make_trainer(task_settings=both, smart_share_dropout=True)
    for field in NO_DROPOUT:  # attention's is a number that the encoder reads as it runs
        make_trainer(NO_DROPOUT | {field: 0.1}, task_settings=RDROP)
        assert "rdrop_weight does little" not in caplog.text
    make_trainer(NO_DROPOUT, task_settings=RDROP)
    assert "'sts': rdrop_weight does little" in caplog.text
