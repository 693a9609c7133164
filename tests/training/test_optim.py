"""The paper's optimizer against its formulas in float64, and against PyTorch's once the differences are matched."""

import copy

import torch

from bert_multitask.training.optim import PaperAdamW

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
