"""The random generators of a process, which evaluation must leave as they were."""

import random
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps

import numpy as np
import torch


@contextmanager
def kept_generators(device: torch.device):
    """Put Python's, NumPy's and PyTorch's generators, the device's too, back to where they were before the block."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type not in ("cpu", "mps") else []  # PyTorch forks no generator of mps
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def keeps_generators(method: Callable) -> Callable:
    """Decorate a trainer's method that may draw random numbers but must not move the generators.

    Data loaders draw a seed whenever they begin, and a resumed run begins more of them than one that was never stopped.
    """

    @wraps(method)
    def wrapped(self, *args, **kwargs):
        """The method, between keeping the generators and putting them back."""
        with kept_generators(self.args.device):
            return method(self, *args, **kwargs)

    return wrapped
