"""The paper's optimizer against its formulas in float64, and against PyTorch's once the differences are matched."""

import copy
import re

import pytest
import torch
from conftest import run_here
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, TrainerCallback

from bert_multitask.model.errors import InputError
from bert_multitask.training.optim import PaperAdamW, encoder_depths

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0.1}


def gradients(steps: int = 20) -> torch.Tensor:
    return torch.randn(steps, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_every_step_is_the_formula():
    """Kingma & Ba (2015), end of section 2, then decoupled decay; scalar by scalar in Python's floats."""
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = PaperAdamW([parameter], **SETTINGS)
    (alpha, (beta1, beta2), eps, decay) = (SETTINGS[key] for key in ("lr", "betas", "eps", "weight_decay"))
    theta, m, v = start.tolist(), [0.0] * 5, [0.0] * 5
    for t, gradient in enumerate(gradients(), start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        for i, g in enumerate(gradient.tolist()):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            alpha_t = alpha * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
            theta[i] -= alpha_t * m[i] / (v[i] ** 0.5 + eps)
            theta[i] -= alpha * decay * theta[i]
        torch.testing.assert_close(parameter.data, torch.tensor(theta, dtype=torch.float64), atol=1e-12, rtol=0)


def test_agrees_with_torch_once_epsilon_and_decay_are_matched():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    paper = PaperAdamW([ours], **SETTINGS)
    torchs = torch.optim.AdamW([theirs], **SETTINGS | {"weight_decay": 0.0})
    plain = torch.nn.Parameter(ours.detach().clone())
    unmatched = torch.optim.AdamW([plain], **SETTINGS)
    for t, gradient in enumerate(gradients().float(), start=1):
        for parameter in (ours, theirs, plain):
            parameter.grad = gradient.clone()
        torchs.param_groups[0]["eps"] = SETTINGS["eps"] / (1 - SETTINGS["betas"][1] ** t) ** 0.5
        for optimizer in (paper, torchs, unmatched):
            optimizer.step()
        theirs.data -= SETTINGS["lr"] * SETTINGS["weight_decay"] * theirs.data  # after the step
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert (ours - plain).abs().max() > 1e-5, "what was matched does make a difference"


def test_idle_parameters_stay_and_state_is_saved():
    idle, busy = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizer = PaperAdamW([idle, busy], **SETTINGS)
    for gradient in gradients(3).float():
        busy.grad = gradient.clone()
        assert optimizer.step(lambda: 7.0) == 7.0
    assert (idle == 1).all() and idle not in optimizer.state, "no decay and no moments without a gradient"
    twin = torch.nn.Parameter(busy.detach().clone())
    other = PaperAdamW([torch.nn.Parameter(torch.ones(5)), twin], **SETTINGS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, one in ((busy, optimizer), (twin, other)):
        parameter.grad = torch.ones(5)
        one.step()
    assert torch.equal(busy, twin)


def test_the_flag_takes_it(make_trainer):
    trainer = make_trainer(paper_optimizer=True, adam_epsilon=1e-4, adam_beta1=0.8, max_steps=2, weight_decay=0.1)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is PaperAdamW
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.1, 0.0], "none for biases and LayerNorm, as with --optim"
    assert optimizer.param_groups[0]["eps"] == 1e-4 and optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    other = make_trainer(max_steps=1)
    other.train()
    assert type(other.optimizer.optimizer) is torch.optim.AdamW


def test_resumes_bit_for_bit(make_trainer):
    settings = {"paper_optimizer": True, "save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
    straight = make_trainer(**settings)
    straight.train()
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-5")
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


STOCK = {
    "bert": {"intermediate_size": 24},
    "roberta": {"intermediate_size": 24},
    "electra": {"intermediate_size": 24, "embedding_size": 8},
    "deberta-v2": {"intermediate_size": 24, "relative_attention": True, "pos_att_type": ["p2c"]},
    "distilbert": {"hidden_dim": 24},
    "modernbert": {"intermediate_size": 24, "pad_token_id": 0},
    "mpnet": {"intermediate_size": 24},
}


@pytest.mark.parametrize("architecture", STOCK)
def test_layers_are_found_in_any_encoder(architecture):
    """By the numbers in the parameters' own names."""
    names = {"distilbert": ("dim", "n_layers", "n_heads")}
    width, layers, attention = names.get(architecture, ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    settings = {width: 16, layers: 3, attention: 2, "vocab_size": 40} | STOCK[architecture]
    encoder = AutoModel.from_config(AutoConfig.for_model(architecture, **settings))
    depths = encoder_depths(encoder)
    found = set()
    for name, parameter in encoder.named_parameters():
        number = re.search(r"\blayers?\.(\d+)\.", name)
        expected = int(number[1]) + 1 if number else 0 if "embedding" in name and "rel" not in name else 3
        assert depths[parameter] == expected, name
        found.add(expected)
    assert {0, 1, 2, 3} <= found


def test_shared_layers_cannot_be_told_apart():
    albert = AutoModel.from_config(AutoConfig.for_model("albert", hidden_size=16, num_attention_heads=2, vocab_size=40))
    with pytest.raises(InputError, match="AlbertModel has no list of 12 layers"):
        encoder_depths(albert)


RATES = {"head_learning_rate": 0.5, "layer_decay": 0.5, "learning_rate": 0.1}


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_every_parameter_moves_at_its_rate(make_trainer, sharing):
    """One step of SGD moves a weight by its rate times its gradient: .1 for the highest of two layers, .05, .025."""
    gradients = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            gradients.update({name: grad.clone() for name, grad in grads.items()})

    settings = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0, "logging_steps": 1}
    trainer = make_trainer({"encoder_sharing": sharing}, [Keep()], **settings | RATES)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    seen = set()
    for name, weight in trainer.model.named_parameters():
        layer = re.search(r"layer\.(\d)\.", name)
        rate = 0.1 * 0.5 ** (1 - int(layer[1])) if layer else 0.025 if ".embeddings." in name else 0.5
        if name in gradients and ".pooler." not in name:
            torch.testing.assert_close(weight, before[name] - rate * gradients[name], atol=1e-6, rtol=1e-5, msg=name)
            seen.add(rate)
    assert seen == {0.5, 0.1, 0.05, 0.025}
    assert next(log["learning_rate"] for log in trainer.state.log_history) == 0.1


def test_rates_follow_the_schedule_and_keep_the_decay_of_weights(make_trainer):
    settings = {"lr_scheduler_type": "linear", "weight_decay": 0.3, "max_steps": 4}
    trainer = make_trainer(paper_optimizer=True, **settings | RATES)
    trainer.train()
    rates = {group["lr"] / group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {0.0}, "all have ended"
    pairs = {(group["initial_lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups}
    assert pairs == {(rate, decay) for rate in (0.5, 0.1, 0.05, 0.025) for decay in (0.3, 0.0)}
    held = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len(list(trainer.model.parameters()))


def test_without_the_flags_the_groups_are_trainers(make_trainer):
    trainer = make_trainer(max_steps=1)
    assert len(trainer.create_optimizer().param_groups) == 2


@pytest.mark.parametrize(("layers", "frozen"), [(0, 0), (1, 1), (2, 2)])
def test_frozen_layers_stay(monkeypatch, config, tiny_bert, layers, frozen):
    assert run_here(monkeypatch, config, "--freeze_layers", layers, "--max_steps", 2, "--no_do_predict") == 0
    before = {f"bert.{name}": weight for name, weight in load_file(f"{tiny_bert}/model.safetensors").items()}
    after = load_file(config.parent / "run" / "model.safetensors")
    for name in before.keys() - {key for key in before if "pooler" in key}:
        layer = re.search(r"layer\.(\d)\.", name)
        stays = ".embeddings." in name or (layer and int(layer[1]) < frozen)
        if name.endswith("key.bias"):
            continue  # its gradient is 0
        assert torch.equal(before[name], after[name]) == bool(stays), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze_layers", 3], "the encoder has 2 layers, so expected 0 to 2"),
        (["--freeze_layers", 1, "--freeze_encoder"], "leave out --freeze_layers"),
        (["--layer_decay", 0], "--layer_decay is 0.0; expected a share"),
        (["--head_learning_rate", -1], "--head_learning_rate is -1.0"),
    ],
)
def test_mistakes_are_named(monkeypatch, config, capsys, flags, message):
    assert run_here(monkeypatch, config, *flags) == 2
    assert message in capsys.readouterr().err


def test_an_optimizer_that_is_given_has_its_own_rates(make_trainer):
    with pytest.raises(InputError, match="--layer_decay do nothing with optimizers"):
        make_trainer(
            layer_decay=0.9, given={"optimizers": (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), None)}
        )
