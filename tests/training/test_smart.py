"""SMART against a reference in float64, against smart-pytorch's algorithm, and inside training."""

import math

import numpy as np
import pytest
import torch
from conftest import MINILM, NO_DROPOUT, weights
from launched import smooth_noise
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertModel

from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import DIVERGENCES
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.training import smart
from bert_multitask.training.smart import PLACES, PROJECTIONS, REDUCTIONS, DropoutMasks, MomentumTeacher, smart_penalty

ROWS, TOKENS, WIDTH, CLASSES = 3, 4, 5, 3
SETTINGS = {"radius": 1e-2, "step_size": 3e-2, "noise_std": 5e-3}
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


class Toy(nn.Module):
    """A smooth function of the embeddings in which tokens, padding too, act on each other."""

    def __init__(self, scores: bool = False):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(TOKENS * WIDTH, 8).double()
        self.second = nn.Linear(8, 1 if scores else CLASSES).double()
        self.scores = scores

    def forward(self, embeddings):
        logits = self.second(torch.tanh(self.first(embeddings.flatten(1))))
        return logits[:, 0] if self.scores else logits


@pytest.fixture
def embeddings():
    return torch.randn(ROWS, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def reference_divergence(name: str, p: np.ndarray, q: np.ndarray) -> float:
    """One row's divergence from its definition: KL(P||Q) + KL(Q||P), or the squared difference."""
    if name == "squared_error":
        return (p - q) ** 2
    if name == "binary_symmetric_kl":
        p, q = np.array([0.0, p]), np.array([0.0, q])  # softmax of these is (1 - sigmoid, sigmoid)
    if name == "token_symmetric_kl":
        return np.mean([reference_divergence("symmetric_kl", *token) for token in zip(p, q, strict=True)])
    p, q = np.exp(p) / np.exp(p).sum(), np.exp(q) / np.exp(q).sum()
    return sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_their_definitions(name):
    generator = np.random.default_rng(0)
    shape = {"symmetric_kl": (6, 4), "token_symmetric_kl": (6, 3, 4)}.get(name, (6,))
    p, q = generator.normal(size=(2, *shape))
    expected = [reference_divergence(name, *rows) for rows in zip(p, q, strict=True)]
    got = DIVERGENCES[name](torch.tensor(p), torch.tensor(q))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    half = DIVERGENCES[name](torch.tensor(p).bfloat16(), torch.tensor(q).bfloat16())
    assert half.dtype == torch.float32, "differences are taken in fp32"
    assert (DIVERGENCES[name](torch.tensor(p), torch.tensor(p)) == 0).all()


def test_the_divergence_of_several_labels_is_the_mean_of_theirs():
    p, q = np.random.default_rng(0).normal(size=(2, 6, 4))
    expected = [
        np.mean([reference_divergence("binary_symmetric_kl", *pair) for pair in zip(*rows, strict=True)])
        for rows in zip(p, q, strict=True)
    ]
    got = DIVERGENCES["binary_symmetric_kl"](torch.tensor(p), torch.tensor(q))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def reference_penalty(model, x, mask, noise, divergence, projection, steps):
    """SMART's Algorithm 1 row by row in float64, with gradients by central differences."""
    x, mask = x.numpy(), mask.numpy()

    def predict(embeddings, row):
        batch = x.copy()
        batch[row] = embeddings
        with torch.no_grad():
            return model(torch.tensor(batch))[row].numpy()

    total = 0.0
    for row in range(len(x)):
        clean = predict(x[row], row)
        delta = noise[row] * mask[row][:, None]
        for _ in range(steps):
            gradient = np.zeros_like(delta)
            for place in np.ndindex(*delta.shape):
                values = []
                for sign in (1, -1):
                    moved = x[row] + delta
                    moved[place] += sign * 1e-6
                    values.append(reference_divergence(divergence, predict(moved, row), clean))
                gradient[place] = (values[0] - values[1]) / 2e-6
            gradient = gradient * mask[row][:, None]  # padding is no part of the model's input
            if projection == "ball":
                step = delta + SETTINGS["step_size"] * gradient / np.abs(gradient).max()
                delta = np.clip(step, -SETTINGS["radius"], SETTINGS["radius"])
            else:
                step = delta + SETTINGS["step_size"] * gradient
                delta = step / (np.abs(step).max(-1, keepdims=True) + SETTINGS["radius"])
            delta = delta * mask[row][:, None]
        total += reference_divergence(divergence, predict(x[row] + delta, row), clean)
    return total / len(x)


@pytest.mark.parametrize("divergence", ["symmetric_kl", "squared_error"])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_penalty_is_the_formula(embeddings, monkeypatch, divergence, projection, steps):
    noise = SETTINGS["noise_std"] * torch.randn(embeddings.shape, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise / SETTINGS["noise_std"])
    model = Toy(scores=divergence == "squared_error")
    got = smart_penalty(
        model,
        embeddings,
        MASK,
        model(embeddings),
        DIVERGENCES[divergence],
        projection=projection,
        steps=steps,
        **SETTINGS,
    )
    expected = reference_penalty(model, embeddings, MASK, noise.numpy(), divergence, projection, steps)
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("radius", [1e-5, 5e-4])
def test_the_ball_holds_every_step(embeddings, monkeypatch, steps, radius):
    model, seen = Toy(), []

    def projected(*args, **kwargs):
        seen.append(ball(*args, **kwargs))
        return seen[-1]

    ball = PROJECTIONS["ball"]
    monkeypatch.setitem(PROJECTIONS, "ball", projected)
    perturbed = []

    def predict(x):
        perturbed.append(x.detach() - embeddings)
        return model(x)

    divergence = DIVERGENCES["symmetric_kl"]
    smart_penalty(predict, embeddings, MASK, model(embeddings), divergence, radius=radius, steps=steps)
    assert len(seen) == steps and len(perturbed) == steps + 1
    for delta in [*seen, *perturbed[1:]]:
        assert delta.abs().max() <= radius * (1 + 1e-9)
        assert delta[0].abs().max() == pytest.approx(radius, rel=1e-6), "the step is longer than the radius"
    for delta in perturbed:
        assert (delta[MASK == 0] == 0).all(), "padding is never perturbed"
        assert (delta[MASK == 1] != 0).all()


def test_unit_is_smart_pytorch(embeddings):
    """Without padding, with the same noise and divergence: the library that the paper names, and its algorithm here."""
    library = pytest.importorskip("smart_pytorch", reason="smart-pytorch is not installed")
    model, full = Toy(), torch.ones(ROWS, TOKENS)
    divergence = DIVERGENCES["symmetric_kl"]
    for steps in (1, 2):
        theirs = library.SMARTLoss(
            model,
            lambda p, q: divergence(p, q).sum(),
            lambda p, q: divergence(p, q).mean(),
            num_steps=steps,
            step_size=1e-3,
            epsilon=1e-5,
            noise_var=1e-5,
        )
        torch.manual_seed(3)
        expected = theirs(embeddings, model(embeddings))
        torch.manual_seed(3)
        got = smart_penalty(
            model, embeddings, full, model(embeddings), divergence, projection="unit", radius=1e-5, steps=steps
        )
        assert got.item() == pytest.approx(expected.item(), rel=1e-12)
        gradients = [torch.autograd.grad(value, list(model.parameters())) for value in (got, expected)]
        for ours, their in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, their)


def sym_kl_of_the_library(perturbed, clean):
    """smart-pytorch's `sym_kl_loss`, a divergence a row: each half is differentiated through one prediction alone."""
    p, q = (logits.log_softmax(-1) for logits in (perturbed, clean))
    halves = q.detach().exp() * (q.detach() - p), p.detach().exp() * (p.detach() - q)
    return sum(half.sum(-1) for half in halves)


def test_the_librarys_divergence_has_the_value_of_ours_and_half_its_gradient():
    """Near the clean prediction, where SMART works. The gradient of the library's half is p - q."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(6, CLASSES, dtype=torch.float64, generator=generator)
    perturbed = (clean + 1e-4 * torch.randn(clean.shape, dtype=torch.float64, generator=generator)).requires_grad_()
    ours, theirs = DIVERGENCES["symmetric_kl"](perturbed, clean), sym_kl_of_the_library(perturbed, clean)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value.sum(), perturbed)[0] for value in (ours, theirs)]
    torch.testing.assert_close(gradients[1], perturbed.detach().softmax(-1) - clean.softmax(-1))
    torch.testing.assert_close(gradients[0], 2 * gradients[1], rtol=1e-3, atol=0)


def test_the_librarys_own_losses():
    """Its symmetric KL sums over the batch, its KL is a mean; ours is one for each row."""
    library = pytest.importorskip("smart_pytorch", reason="smart-pytorch is not installed")
    p, q = torch.randn(2, 6, CLASSES, dtype=torch.float64).requires_grad_()
    ours = DIVERGENCES["symmetric_kl"](p, q)
    torch.testing.assert_close(library.sym_kl_loss(p, q), ours.sum())
    torch.testing.assert_close(library.kl_loss(p, q) + library.kl_loss(q, p), ours.mean())
    gradients = [
        torch.autograd.grad(value, (p, q)) for value in (library.sym_kl_loss(p, q), sym_kl_of_the_library(p, q).sum())
    ]
    for theirs, formula in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, formula)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("sst", {}),
        ("sst", {"pooling": "mean", "encoder_sharing": "per_task"}),
        ("sst", {"encoder_sharing": "adapters", "peft_config": {"r": 3}}),
        ("sts", {}),
        ("sts", {"pair_encoding": "separate"}),
    ],
    ids=["one text", "an encoder each", "adapters", "a pair", "apart"],
)
def test_training_takes_the_librarys_penalty_as_its_users_do(make_trainer, tiny_bert, monkeypatch, task, settings):
    """smart-pytorch on the stock BERT's embeddings: its value, and its gradient of all weights that are trained."""
    library = pytest.importorskip("smart_pytorch", reason="smart-pytorch is not installed")
    monkeypatch.setitem(DIVERGENCES, "symmetric_kl", sym_kl_of_the_library)
    smart = {"smart_projection": "unit", "smart_radius": 1e-5, **AS_USERS}
    trainer = make_trainer(NO_DROPOUT | settings, task_settings={task: {"smart_weight": 1.0}}, **smart)
    model, stock = trainer.model.eval(), BertModel.from_pretrained(tiny_bert, attn_implementation="eager").eval()
    batch = next(batch for batch in trainer.get_train_dataloader() if batch["task"] == task)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    flat = {key: value.flatten(0, -2) for key, value in inputs.items()}
    assert flat["attention_mask"].min() == 0
    embedded = stock.embeddings(flat["input_ids"], flat["token_type_ids"])

    def predict(embeddings):
        with_these = stock.embeddings.register_forward_hook(lambda *_: embeddings)
        hidden, mask = stock(**flat).last_hidden_state, flat["attention_mask"][..., None]
        with_these.remove()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        read = mean if settings.get("pooling") == "mean" else hidden[:, 0]
        return model.heads[task](read.unflatten(0, (-1, 2)) if settings.get("pair_encoding") else read)

    def squares(predicted, target):
        return functional.mse_loss(predicted, target, reduction="sum")

    loss = library.sym_kl_loss if task == "sst" else squares
    torch.manual_seed(3)
    expected = library.SMARTLoss(predict, loss, step_size=1e-3, epsilon=1e-5)(embedded, predict(embedded))
    rows = torch.tensor(len(batch["labels"]))
    torch.manual_seed(3)
    ((_, _, penalty),) = trainer.further_terms(batch, {task: [model(task, **inputs).logits]}, {}, None, rows)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-3) and penalty > 0

    ours = {name.replace(".base_layer", ""): weight for name, weight in model.encoder(task).named_parameters()}
    names = [name for name, weight in stock.named_parameters() if "pooler" not in name and ours[name].requires_grad]
    own, their = (
        torch.cat([part.flatten() for part in torch.autograd.grad(value, [*model.heads[task].parameters(), *of])])
        for value, of in ((penalty, [ours[name] for name in names]), (expected, map(stock.get_parameter, names)))
    )
    assert (own - their).norm() < 1e-2 * their.norm()


def test_a_sum_is_the_mean_times_the_rows_of_the_step(make_trainer, monkeypatch):
    monkeypatch.setattr(smart.torch, "randn_like", smooth_noise)
    penalties = []
    for reduction in REDUCTIONS:
        once = {"max_steps": 1, "logging_steps": 1, "schedule": "sequential", "per_device_train_batch_size": 5}
        trainer = make_trainer(NO_DROPOUT, task_settings=SMART_ON, smart_reduction=reduction, smart_radius=0.1, **once)
        trainer.train()
        penalties += logged(trainer, "smart_sst")
    assert penalties[1] == pytest.approx(5 * penalties[0], rel=1e-5)


def test_unit_perturbs_by_about_one_and_ball_by_the_radius(embeddings):
    """What the two projections make of the paper's ε = 1e-5."""
    model, largest = Toy(), {}
    for projection in PROJECTIONS:
        deltas = []

        def predict(x, deltas=deltas):
            deltas.append((x.detach() - embeddings).abs().max().item())
            return model(x)

        divergence = DIVERGENCES["symmetric_kl"]
        smart_penalty(predict, embeddings, MASK, model(embeddings), divergence, projection=projection)
        largest[projection] = deltas[-1]
    assert largest["ball"] == pytest.approx(1e-5, rel=1e-6) and 0.3 < largest["unit"] < 1


def test_the_ascent_builds_no_parameter_gradients(embeddings):
    model = Toy()
    model(embeddings).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    divergence = DIVERGENCES["symmetric_kl"]
    penalty = smart_penalty(model, embeddings, MASK, model(embeddings), divergence, **SETTINGS)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    penalty.backward()
    assert not any(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_gradient_flows_through_both_predictions_and_not_through_delta(embeddings, monkeypatch):
    """Against the derivative of ℓ(f(x + δ), f(x)) at the δ that was found."""
    model, found = Toy(), []
    x = embeddings.clone().requires_grad_()

    def predict(perturbed):
        found.append((perturbed - x).detach())
        return model(perturbed)

    divergence = DIVERGENCES["symmetric_kl"]
    penalty = smart_penalty(predict, x, MASK, model(x), divergence, **SETTINGS)
    expected = divergence(model(x + found[-1]), model(x)).mean()
    parameters = [x, *model.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(penalty, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_replay_drops_the_same_components():
    x = torch.ones(1000)
    masks = DropoutMasks(x)
    first = functional.dropout(x, 0.5)
    state = torch.get_rng_state()
    assert torch.equal(masks.replay(functional.dropout, x, 0.5), first)
    assert torch.equal(torch.get_rng_state(), state), "the generator goes on where it was"
    assert not torch.equal(functional.dropout(x, 0.5), first)


def logged(trainer, key: str) -> list[float]:
    return [log[key] for log in trainer.state.log_history if key in log]


AS_USERS = {"smart_place": "embeddings", "smart_reduction": "sum"}  # of smart-pytorch
SMART_ON = {"sst": {"smart_weight": 1.0}, "sts": {"smart_weight": 0.5}}


def test_smart_joins_the_loss_of_its_tasks_alone(make_trainer):
    trainer = make_trainer(NO_DROPOUT, task_settings=SMART_ON, logging_steps=1, smart_radius=0.1, smart_step_size=0.1)
    trainer.train()
    assert len(logged(trainer, "smart_sst")) == len(logged(trainer, "smart_sts")) == 6
    assert not logged(trainer, "smart_quora") and min(logged(trainer, "smart_sst")) > 0
    for log in trainer.state.log_history:
        for task, weight in (("sst", 1.0), ("sts", 0.5)):
            if f"smart_{task}" in log:
                assert log["loss"] == pytest.approx(log[f"loss_{task}"] + weight * log[f"smart_{task}"], rel=1e-4)


@pytest.mark.parametrize(
    ("pair_encoding", "settings"),
    [("joint", {}), ("joint", AS_USERS), pytest.param("separate", AS_USERS, marks=pytest.mark.slow)],
)
def test_smart_under_accumulation(make_trainer, monkeypatch, pair_encoding, settings):
    """One batch of 8, and shares of it, ragged and empty ones too, give the same weights."""
    monkeypatch.setattr(smart.torch, "randn_like", smooth_noise)
    runs = {}
    for rows, accumulation in [(8, 1), (2, 4), (1, 8)]:
        trainer = make_trainer(
            NO_DROPOUT | {"pair_encoding": pair_encoding},
            task_settings=SMART_ON,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            optim="sgd",
            learning_rate=1e-3,
            smart_radius=0.02,
            smart_step_size=0.02,
            smart_noise_std=0.01,
            **settings,
        )
        trainer.train()
        runs[rows] = weights(trainer), logged(trainer, "loss"), logged(trainer, "smart_sst")
    for rows in (2, 1):
        np.testing.assert_allclose(runs[rows][1], runs[8][1], rtol=1e-3)
        np.testing.assert_allclose(runs[rows][2], runs[8][2], rtol=2e-3)
        for name, weight in runs[8][0].items():
            torch.testing.assert_close(runs[rows][0][name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("smart_radius", 0.2),
        ("smart_step_size", 0.004),
        ("smart_noise_std", 0.05),
        ("smart_steps", 3),
        ("smart_projection", "unit"),
        ("smart_share_dropout", True),
        ("smart_place", "embeddings"),
        ("smart_reduction", "sum"),
    ],
)
def test_each_flag_changes_the_penalty(make_trainer, flag, value):
    settings = {"smart_radius": 0.01, "smart_step_size": 0.02, "smart_noise_std": 0.005, "max_steps": 3}
    penalties = []
    for changed in ({}, {flag: value}):
        trainer = make_trainer(task_settings=SMART_ON, logging_steps=3, schedule="sequential", **settings | changed)
        trainer.train()
        penalties += logged(trainer, "smart_sst")
    assert penalties[0] != penalties[1]
    if flag == "smart_share_dropout":
        assert penalties[1] < penalties[0], "other masks alone move the predictions"


@pytest.mark.parametrize("place", PLACES)
def test_shared_masks_leave_only_the_perturbation(make_trainer, place):
    """With a tiny ball, the penalty with shared masks is nearly 0; with masks of its own it is not."""
    penalties = {}
    for share in (True, False):
        settings = {"logging_steps": 1, "max_steps": 3, "smart_place": place}
        trainer = make_trainer(task_settings=SMART_ON, smart_share_dropout=share, **settings)
        trainer.train()
        penalties[share] = max(logged(trainer, "smart_sst") + logged(trainer, "smart_sts"))
    assert penalties[True] < 1e-6 < 1e-5 < penalties[False]


@pytest.mark.parametrize("place", PLACES)
def test_smart_with_bf16_and_separate_pairs_of_their_own_encoders(make_trainer, place):
    settings = {"encoder_sharing": "per_task", "pair_encoding": "separate", "pooling": "mean"}
    smart = {"smart_projection": "unit", "smart_place": place}
    trainer = make_trainer(settings, task_settings=SMART_ON, bf16=True, logging_steps=1, **smart)
    trainer.train()
    assert all(map(math.isfinite, logged(trainer, "loss"))) and min(logged(trainer, "smart_sst")) > 0


BREGMAN = {"sst": {"bregman_weight": 1.0}}


def test_the_teacher_is_the_running_mean(make_trainer):
    """θ̃ from its recurrence in float64, and the penalty's weight in the loss."""
    expected = []

    class Follow(smart.TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            now = {name: weight.double().clone() for name, weight in model.named_parameters()}
            last = expected[-1]
            expected.append({name: 0.9 * last[name] + 0.1 * weight for name, weight in now.items()})

    trainer = make_trainer(
        NO_DROPOUT, [Follow()], BREGMAN, bregman_momentum=0.9, logging_steps=1, schedule="sequential", max_steps=4
    )
    expected.append({name: weight.double().clone() for name, weight in trainer.model.named_parameters()})
    trainer.train()
    for name, weight in trainer.teacher.average.named_parameters():
        torch.testing.assert_close(weight.double(), expected[-1][name], atol=1e-6, rtol=1e-5, msg=name)
    penalties = logged(trainer, "bregman_sst")
    assert penalties[0] == pytest.approx(0, abs=1e-6) and penalties[-1] > 1e-6, "the teacher begins as the model"
    for log in trainer.state.log_history[:4]:
        assert log["loss"] == pytest.approx(log["loss_sst"] + log["bregman_sst"], rel=1e-4)


def test_the_momentum_changes_the_penalty(make_trainer):
    penalties = []
    for momentum in (0.5, 0.99):
        once = {"logging_steps": 1, "max_steps": 4, "schedule": "sequential"}
        trainer = make_trainer(NO_DROPOUT, None, BREGMAN, bregman_momentum=momentum, **once)
        trainer.train()
        penalties.append(logged(trainer, "bregman_sst")[-1])
    assert penalties[0] < penalties[1], "a slow teacher is farther behind"


def test_the_teacher_survives_a_stop(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
    both = {"sst": {"smart_weight": 1.0, "bregman_weight": 1.0}, "sts": {"smart_weight": 0.5}}
    straight = make_trainer(task_settings=both, **settings)
    straight.train()
    resumed = make_trainer(task_settings=both, **settings)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-5")
    assert all(torch.equal(weights(resumed)[name], weight) for name, weight in weights(straight).items())

    (tmp_path / "run" / "checkpoint-5" / "momentum_teacher.safetensors").unlink()
    with pytest.raises(InputError, match="momentum_teacher.safetensors: no such file"):
        make_trainer(task_settings=BREGMAN, **settings).train(f"{resumed.args.output_dir}/checkpoint-5")


def test_the_penalty_of_a_real_bert_in_both_encodings(tiny_bert):
    """`smart_penalty` by hand on the model, as the README shows it."""
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "sts"], pair_encoding="separate").eval()
    ids = torch.tensor([[[101, 7, 8, 102], [101, 9, 102, 0]]])
    embeddings = model.encoder("sts").embeddings.word_embeddings(ids)
    penalty = smart_penalty(
        lambda x: model("sts", inputs_embeds=x, attention_mask=ids != 0).logits,
        embeddings,
        ids != 0,
        model("sts", input_ids=ids, attention_mask=ids != 0).logits,
        DIVERGENCES["squared_error"],
        radius=0.1,
        step_size=0.1,
    )
    assert penalty.shape == () and penalty > 0


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"bf16": True}, True),
        ({}, False),
        ({"bf16": True, "smart_radius": 1e-3}, False),
        ({"bf16": True, "smart_projection": "unit"}, False),
        ({"bf16": True, "smart_radius": 1e-3, "smart_place": "embeddings"}, True),
        ({"bf16": True, "smart_radius": 1e-2, "smart_place": "embeddings"}, False),
    ],
)
def test_a_radius_that_rounding_takes_is_pointed_out(make_trainer, caplog, propagated_logs, settings, lost):
    make_trainer(task_settings=SMART_ON, **settings)
    assert ("is rounded away" in caplog.text) == lost
    assert "does nothing" not in caplog.text


def test_flags_of_smart_without_smart_are_pointed_out(make_trainer, caplog, propagated_logs):
    make_trainer(smart_radius=0.1)
    assert "--smart_radius does nothing: no task has a --smart_weight" in caplog.text


def test_a_smart_step_costs_eight_passes_where_a_plain_one_costs_three(make_trainer):
    """Counted by PyTorch: clean 1, ascent 2 (its backward makes no parameter gradients), perturbed 1, backward 4."""

    def operations(task_settings) -> int:
        trainer = make_trainer(task_settings=task_settings, schedule="sequential")
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        with FlopCounterMode(display=False) as counter:
            trainer.compute_loss(trainer.model, batch).backward()
        return counter.get_total_flops()

    assert operations(SMART_ON) / operations(None) == pytest.approx(8 / 3, rel=0.05)


def by_hand(trainer, model, batch, task) -> torch.Tensor:
    """The penalties' model, called in full."""
    keys = ("input_ids", "attention_mask", "token_type_ids")
    return model(task, **{key: batch[key] for key in keys}).logits


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("pair_encoding", "name"), [("joint", "sts"), ("separate", "quora")])
def test_the_trainers_passes_see_the_whole_batch(make_trainer, monkeypatch, pair_encoding, name, place):
    """With noise of 0 and a step of 0, both predictions are the clean one: segments and mask are given. And the teacher
    predicts without dropout."""
    settings = {name: {"smart_weight": 1.0, "bregman_weight": 1.0, "dropout": 0.5}}
    trainer = make_trainer({"pair_encoding": pair_encoding}, task_settings=settings, smart_place=place)
    batch = next(batch for batch in trainer.get_train_dataloader() if batch["task"] == name)
    assert batch["attention_mask"].min() == 0
    model = trainer.model.eval()  # no dropout in the student, so that passes can be compared
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(torch.randn_like(parameter))  # apart from the teacher
    monkeypatch.setattr(smart.torch, "randn_like", torch.zeros_like)
    monkeypatch.setitem(PROJECTIONS, "ball", lambda delta, gradient, **_: delta)
    clean = by_hand(trainer, model, batch, name)
    task = model.tasks[name]
    terms = {term: value for term, _, value in trainer.further_terms(batch, {name: [clean]}, {}, None, None)}
    assert terms["smart"].item() == pytest.approx(0, abs=1e-9)
    teacher = by_hand(trainer, trainer.teacher.average.eval(), batch, name)
    assert terms["bregman"].item() == pytest.approx(
        DIVERGENCES[task.divergence](clean, teacher).mean().item(), rel=1e-5
    ) and (terms["bregman"] > 1e-3)
    trainer.teacher.average.train()
    assert not torch.equal(by_hand(trainer, trainer.teacher.average, batch, name), teacher), "dropout matters"
    assert not MomentumTeacher(model.train(), 0.9).average.training


@pytest.mark.parametrize("radius", [1e-3, 1e-2])
def test_bf16_keeps_the_perturbation_of_scores(real_bert_batch, radius):
    """SMART on a score under autocast is within a few percent of fp32: heads are not in half precision."""
    model, batch = real_bert_batch
    penalties = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):

            def predict(x):
                return model("sts", inputs_embeds=x, attention_mask=batch["attention_mask"]).logits

            embeddings = model.encoder("sts").embeddings.word_embeddings(batch["input_ids"])
            penalty = smart_penalty(
                predict,
                embeddings,
                batch["attention_mask"],
                predict(embeddings),
                DIVERGENCES["squared_error"],
                radius=radius,
                step_size=radius,
            )
        penalties.append(penalty.item())
    assert penalties[1] == pytest.approx(penalties[0], rel=0.3) and penalties[0] > 1e-6


@pytest.fixture(scope="module")
def real_bert_batch(tokenizer):
    torch.manual_seed(0)
    model = MultitaskBertModel.from_pretrained(MINILM, tasks=["sts"]).eval()
    texts = ["A man is playing a guitar.", "Two dogs run through the snow towards a house."] * 4
    return model, tokenizer(texts, padding=True, return_tensors="pt")


def test_a_teacher_of_save_strategy_best_is_in_its_checkpoint(make_trainer, tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "best", "load_best_model_at_end": True}
    make_trainer(task_settings=BREGMAN, **best).train()
    checkpoints = list((tmp_path / "run").glob("checkpoint-*"))
    assert checkpoints and all((folder / "momentum_teacher.safetensors").exists() for folder in checkpoints)


@pytest.mark.parametrize("wrong", [{"projection": "l2"}, {"steps": 0}])
def test_mistakes_are_named(embeddings, wrong):
    with pytest.raises(InputError, match="expected ball or unit, at least 1 step"):
        smart_penalty(Toy(), embeddings, MASK, Toy()(embeddings), DIVERGENCES["symmetric_kl"], **wrong)
