"""The first step of a training with a number that is not finite."""

import torch
from accelerate import Accelerator
from torch import Tensor

NONE = torch.iinfo(torch.int64).max
LOSS, NORM, SKIPPED = QUANTITIES = (
    "the loss is not a finite number",
    "the gradient norm is not a finite number",
    "with --fp16 the gradient was not a finite number for 50 steps",
)
PATIENCE = 50  # steps; by then the scale of fp16's loss has gone from 2 ** 16 to nothing


class FirstBadStep:
    """Remembers the first step whose loss or gradient norm is not a finite number.

    Noting a value is a few operations on one number on its device, and waits for nothing; reading waits for the device.

    Args:
        scaled: whether fp16's loss scaler skips the steps whose gradient is not finite. They change no weight and do
            not count, unless there are PATIENCE of them in a row.
    """

    # A step and what was wrong with it are one integer, step * 3 + the place in QUANTITIES, so that the first is the
    # least, also of several processes.

    def __init__(self, scaled: bool = False):
        self.scaled = scaled
        self.first: Tensor | None = None  # integer (), NONE while all is finite
        self.losses: Tensor | None = None  # the same, of the losses of the step that is under way
        self.skipped: Tensor | int = 0  # steps in a row, up to the last

    def note_loss(self, loss: Tensor, step: int) -> None:
        """Look at the loss, a scalar, of a micro-batch of a step, from 1."""
        code = code_where(~torch.isfinite(loss.detach()), step, LOSS)
        self.losses = code if self.losses is None else torch.minimum(self.losses, code)

    def note_norm(self, norm: Tensor | float | None, step: int) -> None:
        """Look at the gradient norm of a step, after its losses; FSDP gives it as a DTensor, DeepSpeed perhaps not."""
        codes = [self.losses]
        if norm is not None:
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            bad = ~torch.isfinite(torch.as_tensor(whole, device=self.losses.device))
            codes.append(code_where(bad, step, NORM))
            if self.scaled:
                self.skipped = (self.skipped + 1) * bad
                codes = [torch.where(bad, NONE, self.losses), code_where(self.skipped == PATIENCE, step, SKIPPED)]
        for code in codes:
            self.first = code if self.first is None else torch.minimum(self.first, code)
        self.losses = None

    def read(self, accelerator: Accelerator) -> tuple[int, str] | None:
        """The first bad step of all processes, which have to call this together, and what was bad; None if there is
        none."""
        if self.first is None:
            return None
        code = int(accelerator.gather(self.first.to(accelerator.device)).min())
        step, quantity = divmod(code, len(QUANTITIES))
        return None if code == NONE else (step, QUANTITIES[quantity])


def code_where(bad: Tensor, step: int, quantity: str) -> Tensor:
    """The code of a step, integer (), where a value was bad, bool (); else NONE."""
    return torch.where(bad, len(QUANTITIES) * step + QUANTITIES.index(quantity), NONE)
