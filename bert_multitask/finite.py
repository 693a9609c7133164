"""The first step of a training with a number that is not finite."""

import torch
from accelerate import Accelerator
from torch import Tensor

NONE = torch.iinfo(torch.int64).max
QUANTITIES = ("loss", "gradient norm")  # in the order in which a step computes them


class FirstBadStep:
    """Remembers the first step whose loss or gradient norm is not a finite number.

    Noting a value is a few operations on one number on its device, and waits for nothing; reading waits for the device.
    """

    def __init__(self):
        self.code: Tensor | None = None  # the least of step * 2 + quantity, integer (), NONE while all are finite

    def note(self, quantity: str, value: Tensor | float, step: int) -> None:
        """Look at a value of a step.

        Args:
            quantity: one of QUANTITIES.
            value: scalar; a DTensor, as FSDP gives it, is put together first.
            step: from 1.
        """
        value = torch.as_tensor(value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
        code = torch.where(torch.isfinite(value), NONE, len(QUANTITIES) * step + QUANTITIES.index(quantity))
        self.code = code if self.code is None else torch.minimum(self.code, code)

    def read(self, accelerator: Accelerator) -> tuple[int, str] | None:
        """The first bad step of all processes, which have to call this together, and its quantity; None if there is
        none."""
        if self.code is None:
            return None
        code = int(accelerator.gather(self.code.to(accelerator.device)).min())
        step, quantity = divmod(code, len(QUANTITIES))
        return None if code == NONE else (step, QUANTITIES[quantity])
