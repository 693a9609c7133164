"""The paper's optimizer, written out; and which parameters are trained at which rate, whatever the optimizer."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from ..model.errors import InputError
from ..model.modeling import MultitaskBertModel


def encoder_depths(encoder: nn.Module) -> dict[nn.Parameter, int]:
    """{parameter: its depth} of an encoder with `num_hidden_layers` layers: 0 of the embeddings, 1 of the lowest layer,
    and of the highest, and of what comes after the layers, their number.

    The layers are the first list of modules that has as many as the configuration says, and what is registered before
    them are the embeddings; so no name of an architecture is needed.

    Raises:
        InputError: there is no such list, as in models whose layers share their weights.
    """
    count = encoder.config.num_hidden_layers
    lists = [part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not lists:
        raise InputError(f"a {type(encoder).__name__} has no list of {count} layers, so they cannot be told apart")
    inside = {parameter: depth for depth, layer in enumerate(lists[0], start=1) for parameter in layer.parameters()}
    depths, depth = {}, 0
    for parameter in encoder.parameters():
        depth = depths[parameter] = inside.get(parameter, count if depth else 0)
    return depths


def freeze_layers(model: MultitaskBertModel, layers: int) -> None:
    """Do not train the embeddings and the lowest layers of a model's encoders.

    Args:
        layers: how many; 0, only the embeddings.

    Raises:
        InputError: the encoder does not have so many layers.
    """
    for encoder in {model.encoder(name) for name in model.tasks}:
        if not 0 <= layers <= (count := encoder.config.num_hidden_layers):
            raise InputError(f"--freeze_layers is {layers}; the encoder has {count} layers, so expected 0 to {count}")
        for parameter, depth in encoder_depths(encoder).items():
            if depth <= layers:
                parameter.requires_grad_(False)


def split_rates(
    optimizer: Optimizer, model: MultitaskBertModel, rate: float, head_rate: float | None, decay: float
) -> None:
    """Divide an optimizer's groups so that each parameter has the learning rate of its depth (Howard & Ruder, 2018).

    The encoder's highest layer has the rate, each layer below it the decay times the rate of the one above, and the
    embeddings the least. The groups with the rate itself come first, since it is the first group's that is logged.

    Args:
        optimizer: before its first step.
        rate: of the highest layer.
        head_rate: of what belongs to no encoder; by default `rate`.
        decay: factor from layer to layer, in (0, 1].
    """
    rates = {}
    for encoder in {model.encoder(name) for name in model.tasks}:
        depths = encoder_depths(encoder) if decay != 1 else dict.fromkeys(encoder.parameters(), 0)
        top = max(depths.values())
        rates |= {parameter: rate * decay ** (top - depth) for parameter, depth in depths.items()}
    other = rate if head_rate is None else head_rate
    groups = []
    for group in optimizer.param_groups:
        parts: dict[float, list] = {}
        for parameter in group["params"]:
            parts.setdefault(rates.get(parameter, other), []).append(parameter)
        groups += [group | {"params": part, "lr": own} for own, part in sorted(parts.items(), reverse=True)]
    optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] != rate)


class PaperAdamW(Optimizer):
    """Adam with the "efficient" bias correction (Kingma & Ba, 2015, end of section 2) and decoupled weight decay
    (Loshchilov & Hutter, 2019).

    At step t, with the gradient g:

        m ← β1 m + (1 - β1) g,    v ← β2 v + (1 - β2) g²
        θ ← θ - α √(1 - β2^t) / (1 - β1^t) · m / (√v + ε)
        θ ← θ - α λ θ

    Args:
        params: tensors, or groups of them.
        lr: α.
        betas: (β1, β2).
        eps: ε.
        weight_decay: λ.
    """

    # torch.optim.AdamW, the default (`--optim`), adds ε to √(v / (1 - β2^t)), so that its ε is this one's divided by
    # √(1 - β2^t), and decays θ before the step, not after it. With both matched, the two agree to 1e-6 (tests). Its
    # fused kernel is faster than these loops.

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; the others and their moments stay as they are.

        Args:
            closure: computes the loss anew, if given.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self.update(parameters, **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")})
        return loss

    def update(
        self, parameters: list[Tensor], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """One step of parameters, all at once: on a GPU the time of a step is that of launching its kernels."""
        (beta1, beta2), gradients = betas, [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            state["step"] += 1
        means, squares, steps = ([state[key] for state in states] for key in ("mean", "square", "step"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, eps)
        sizes = [lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step) for step in steps]
        torch._foreach_addcdiv_(parameters, means, roots, [-size for size in sizes])
        if weight_decay:
            torch._foreach_mul_(parameters, 1 - lr * weight_decay)


def paper_optimizer(args: TrainingArguments) -> tuple[type[PaperAdamW], dict]:
    """`PaperAdamW` and its settings, as Trainer's `optimizer_cls_and_kwargs`."""
    adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return PaperAdamW, {"lr": args.learning_rate} | adam
