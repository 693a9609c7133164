"""The paper's optimizer, written out."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")})
        return loss

    def update(
        self, parameter: Tensor, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """One step of one parameter."""
        state, gradient, (beta1, beta2) = self.state[parameter], parameter.grad, betas
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = lr * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        parameter.addcdiv_(state["mean"], state["square"].sqrt().add_(eps), value=-size)
        parameter.mul_(1 - lr * weight_decay)
