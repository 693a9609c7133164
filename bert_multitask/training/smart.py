"""SMART regularisation (Jiang et al., 2020; the paper's section 4.4): keeps a model's predictions from changing much
when its word embeddings change a little, or from one optimizer step to the next.

The first is the adversarial penalty, `smart_penalty`, a pure function. The second is the Bregman proximal term. It
compares the model with `MomentumTeacher`, the running mean of its own weights.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import TrainerCallback
from transformers.trainer_pt_utils import nested_detach

from ..model.errors import InputError
from ..model.packing import Packing
from .averaging import load_weights

FILE = "momentum_teacher.safetensors"  # in a checkpoint
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

    δ starts as Gaussian noise. `steps` times, δ ← Π(δ, ∂ Σ_rows ℓ_s(f(x + δ), f(x)) / ∂δ), where Π is one of
    PROJECTIONS. The penalty is the mean over rows of ℓ_s(f(x + δ), f(x)). With the default radius, the paper's, it is
    nearly 0 without dropout (docs/results.md). The ascent steps compute no gradient of parameters. The penalty's
    gradient flows through both predictions and through the embeddings, but not through δ.

    Args:
        logits_fn: the model f, embeddings -> logits. It is called `steps` + 1 times. If it adds its argument to the
            embedding layer's output (--smart_place embeddings), give zeros as the embeddings.
        embeddings: word embeddings x, float (B, ..., H).
        mask: 1 for real tokens and 0 for padding, (B, ...); padding is never perturbed.
        clean_logits: f(x), (B, ...); for several tasks, {task: logits}.
        divergence: ℓ_s(perturbed, clean) -> (B,), one of `losses.DIVERGENCES`; for several tasks (T, B), and the ascent
            steps raise their sum.
        radius: ε, the bound on each |component| of δ ("ball"), or what is added to a divisor ("unit").
        step_size: η, length of an ascent step.
        noise_std: σ, standard deviation of the first δ.
        steps: ascent steps, at least 1.
        projection: key of PROJECTIONS.

    Returns:
        Scalar, or (T,), at least fp32.

    Raises:
        InputError: unknown projection, or fewer than 1 step.

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
        gradient = gradient.where(real, 0)  # so that padding does not count in the norm of a row's gradient
        delta = project(delta.detach(), gradient, radius=radius, step_size=step_size).where(real, 0)
    return divergence(logits_fn(embeddings + delta), clean_logits).mean(-1)


def ball(delta: Tensor, gradient: Tensor, *, radius: float, step_size: float) -> Tensor:
    """One step of SMART's Algorithm 1: δ + η g / ‖g‖∞, projected onto ‖δ‖∞ ≤ ε. The norm is taken over each row.

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
    """One step of smart-pytorch and MT-DNN: (δ + η g) / (‖δ + η g‖∞ + ε). The norm is taken over each token.

    ε only prevents a division by 0; it does not bound δ, though both packages present it as a radius. |δ| ends near 1,
    while word embeddings are near .05. The gradient is not normalised and is small compared to the noise, so with the
    default step size δ is close to random.

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
# What --smart_place perturbs -> the smallest radius that half precision does not round away. The embedding layer's
# output is normalised, so its values are about ten times as large as those of word embeddings.
PLACES = {"words": 1e-3, "embeddings": 1e-2}
REDUCTIONS = ("mean", "sum")  # over the rows of a step


def each_row_twice(batch: Mapping[str, object]) -> dict[str, object]:
    """A batch followed by itself, so that one pass predicts each row with two dropout masks, as R-Drop needs (Liang et
    al., 2021, section 3).

    Tensors (B, …) become (2B, …), and a packing becomes that of (2B, L). Other values stay.
    """

    def double(value: object) -> object:
        """One value of the batch, followed by itself."""
        if isinstance(value, Packing):
            return value.twice
        return torch.cat([value, value]) if isinstance(value, Tensor) else value

    return {key: double(value) for key, value in batch.items()}


class DropoutMasks:
    """Saves the state of the random generators before a forward pass, so that a later pass can use the same dropout.

    Args:
        inputs: tensors of the batch; the generators of their devices are saved.
    """

    def __init__(self, *inputs: Tensor):
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(*inputs)

    def replay(self, function: Callable, *args):
        """Call the function with the dropout masks of the first pass; leaves the generators as they are now."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            return function(*args)


class MomentumTeacher(TrainerCallback):
    """The running mean of a model's weights, for the Bregman proximal term (Jiang et al., 2020).

    It starts with the model's weights; after every optimizer step θ̃ ← β θ̃ + (1 - β) θ. It is saved in every checkpoint.

    Args:
        model: the model to train.
        momentum: β.
    """

    def __init__(self, model: nn.Module, momentum: float):
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.mix = get_ema_multi_avg_fn(momentum)  # not `AveragedModel`: that waits for the device at every step

    @torch.no_grad()
    def logits(self, **inputs) -> Logits:
        """The teacher's predictions, without dropout."""
        return self.average(**inputs).logits

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs):
        self.average.to(model.device)
        if state.global_step:
            load_weights(self.average, args, state, FILE, "--bregman_weight")
        else:
            self.average.load_state_dict(model.state_dict())

    def on_step_end(self, args, state, control, model: nn.Module, **kwargs):
        self.mix(list(self.average.parameters()), list(model.parameters()), None)

    def save(self, folder: Path) -> None:
        """Write the teacher's weights into a checkpoint."""
        save_model(self.average, folder / FILE)
