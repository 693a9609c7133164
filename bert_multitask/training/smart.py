"""SMART regularisation (Jiang et al., 2020; the paper's section 4.4): a model's predictions may not change much when
its word embeddings do, nor from one optimizer step to the next.

The adversarial half is `smart_penalty`, a pure function. The other half, the Bregman proximal term, compares the model
with `MomentumTeacher`, the running mean of its own weights.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import TrainerCallback
from transformers.trainer_pt_utils import nested_detach

from ..model.errors import InputError
from ..model.packing import Packing

Logits = Tensor | dict[str, Tensor]


def smart_penalty(
    logits_fn: Callable[[Tensor], Logits],
    embeddings: Tensor,
    mask: Tensor,
    clean_logits: Logits,
    divergence: Callable[[Any, Any], Tensor],
    *,
    radius: float = 1e-5,
    step_size: float = 1e-3,
    noise_std: float = 1e-5,
    steps: int = 1,
    projection: str = "ball",
) -> Tensor:
    """The smoothness-inducing adversarial penalty R_s (paper, eq. 2).

    From Gaussian noise δ, `steps` times: δ ← Π(δ, ∂ Σ_rows ℓ_s(f(x + δ), f(x)) / ∂δ), where Π is one of PROJECTIONS;
    then the mean over rows of ℓ_s(f(x + δ), f(x)). With the default radius, the paper's, that is nearly 0 where dropout
    is off (docs/results.md). The ascent builds no gradient of any parameter. In the result the gradient flows through
    both predictions and through the embeddings, and not through δ.

    Args:
        logits_fn: embeddings -> logits, the model f. It is called `steps` + 1 times. Where it adds what it is given to
            something else, such as the embedding layer's output, the embeddings are zeros.
        embeddings: word embeddings x, float (B, ..., H).
        mask: 1 for real tokens and 0 for padding, (B, ...); padding is never perturbed.
        clean_logits: f(x), (B, ...); of several tasks {task: logits}.
        divergence: ℓ_s(perturbed, clean) -> (B,), one of `losses.DIVERGENCES`; of several tasks (T, B), and the
            perturbation raises their sum.
        radius: ε. Bound of |δ| in every component ("ball"), or the guard of a division ("unit").
        step_size: η, length of an ascent step.
        noise_std: σ, standard deviation of the noise that δ begins as.
        steps: ascent steps, at least 1.
        projection: key of PROJECTIONS.

    Returns:
        Scalar, or (T,), at least fp32.

    Raises:
        InputError: no such projection, or no step.

    Example:
        For a `MultitaskBertModel`:

            inputs = {"attention_mask": mask, "token_type_ids": segments}
            smart_penalty(
                lambda x: model("sst", inputs_embeds=x, **inputs).logits,
                model.encoder("sst").get_input_embeddings()(input_ids),
                mask,
                model("sst", input_ids, **inputs).logits,
                DIVERGENCES["symmetric_kl"],
                radius=1e-2,
                step_size=1e-2,
            )
    """
    if projection not in PROJECTIONS or steps < 1:
        raise InputError(
            f"projection {projection!r}, steps {steps}: expected {' or '.join(PROJECTIONS)}, at least 1 step"
        )
    project = PROJECTIONS[projection]
    real = mask.bool().unsqueeze(-1)
    fixed, target = embeddings.detach(), nested_detach(clean_logits)
    delta = noise_std * torch.randn_like(fixed).where(real, 0)
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(logits_fn(fixed + delta), target).sum(), delta)
        gradient = gradient.where(real, 0)  # padding has no part in the length of a row's gradient
        delta = project(delta.detach(), gradient, radius=radius, step_size=step_size).where(real, 0)
    return divergence(logits_fn(embeddings + delta), clean_logits).mean(-1)


def ball(delta: Tensor, gradient: Tensor, *, radius: float, step_size: float) -> Tensor:
    """One step of SMART's Algorithm 1: δ + η g / ‖g‖∞, the norm over each row, projected onto ‖δ‖∞ ≤ ε.

    Args:
        delta: δ, (B, ..., H).
        gradient: g, (B, ..., H).
        radius: ε.
        step_size: η.

    Returns:
        The new δ, every component within [-ε, ε].
    """
    norm = gradient.abs().flatten(1).amax(1).view(-1, *[1] * (gradient.dim() - 1))
    return (delta + step_size * gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(-radius, radius)


def unit(delta: Tensor, gradient: Tensor, *, radius: float, step_size: float) -> Tensor:
    """One step as smart-pytorch and MT-DNN take it: (δ + η g) / (‖δ + η g‖∞ + ε), the norm over each token.

    ε only guards the division, whatever those call it, and |δ| ends near 1 where word embeddings are of the order of
    .05. The gradient is raw, and small beside the noise: with the default step size δ is close to random.

    Args:
        delta: δ, (B, ..., H).
        gradient: g, (B, ..., H).
        radius: ε.
        step_size: η.

    Returns:
        The new δ, every component within (-1, 1).
    """
    moved = delta + step_size * gradient
    return moved / (moved.abs().amax(-1, keepdim=True) + radius)


PROJECTIONS = {"ball": ball, "unit": unit}
# What is perturbed, word embeddings or the embedding layer's output (ten times as large, since it is normalised) -> the
# smallest radius that half precision keeps.
PLACES = {"words": 1e-3, "embeddings": 1e-2}
REDUCTIONS = ("mean", "sum")  # over the rows of a step


def each_row_twice(batch: Mapping[str, object]) -> dict[str, object]:
    """A batch followed by itself, for one pass that predicts each row with two dropout masks.

    Tensors (B, …) become (2B, …), and a packing that of both; what is neither stays. It is how R-Drop runs (Liang et
    al., 2021, section 3).
    """

    def double(value: object) -> object:
        """One value of the batch."""
        if isinstance(value, Packing):
            return value.twice
        return torch.cat([value, value]) if isinstance(value, Tensor) else value

    return {key: double(value) for key, value in batch.items()}


class DropoutMasks:
    """The state of the random generators before a forward pass, so that a later pass can drop the same components.

    Args:
        inputs: tensors of the batch, which say the devices.
    """

    def __init__(self, *inputs: Tensor):
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(*inputs)

    def replay(self, function: Callable, *args):
        """Call the function with the masks of the first pass; the generators stay as they were before the call."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            return function(*args)


class MomentumTeacher(TrainerCallback):
    """The running mean of a model's weights, θ̃ ← β θ̃ + (1 - β) θ after every optimizer step, for the Bregman proximal
    term (Jiang et al., 2020). It begins as the model does; every checkpoint holds it.

    Args:
        model: to be trained.
        momentum: β.
    """

    def __init__(self, model: nn.Module, momentum: float):
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.mix = get_ema_multi_avg_fn(momentum)  # `AveragedModel`, around it, waits for the device at every step
        self.saved: int | None = None  # step of the last file

    @torch.no_grad()
    def logits(self, **inputs) -> Logits:
        """The teacher's predictions, without dropout."""
        return self.average(**inputs).logits

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs):
        self.average.to(model.device)
        if not state.global_step:
            self.average.load_state_dict(model.state_dict())
        else:
            file = self.file(args, state)
            if not file.exists():
                raise InputError(f"{file}: no such file, but --bregman_weight needs it; use a checkpoint that has one")
            load_model(self.average, file, device=str(model.device))

    def on_step_end(self, args, state, control, model: nn.Module, **kwargs):
        self.mix(list(self.average.parameters()), list(model.parameters()), None)
        if control.should_save:
            self.save(args, state)  # before the rest of the checkpoint, whose last file says that it is whole

    def on_save(self, args, state, control, **kwargs):
        self.save(args, state)  # with `--save_strategy best`, which is decided after the step

    def save(self, args, state) -> None:
        """Write the teacher's file in the checkpoint of the present step, once."""
        if state.is_world_process_zero and self.saved != state.global_step:
            self.file(args, state).parent.mkdir(parents=True, exist_ok=True)
            save_model(self.average, self.file(args, state))
            self.saved = state.global_step

    def file(self, args, state) -> Path:
        """The teacher's file in the checkpoint of the present step."""
        return Path(args.output_dir, f"checkpoint-{state.global_step}", "momentum_teacher.safetensors")
