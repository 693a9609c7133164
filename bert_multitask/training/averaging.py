"""The running mean of the weights (EMA), which is evaluated and saved instead of them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..model.errors import InputError

FILE = "weights_in_training.safetensors"  # of a checkpoint, whose model.safetensors has the mean


class AveragedWeights(TrainerCallback):
    """Keeps the mean of a model's weights over the last part of training: after its first step the weights themselves,
    and after each later one θ̃ ← β θ̃ + (1 - β) θ. Training itself does not read it, and ends with it.

    A checkpoint holds the mean as its model, and the weights that training goes on with in a file of their own.

    Args:
        model: to be trained.
        decay: β.
        start: share of the steps before that part, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float, start: float):
        self.model, self.start = model, start
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.mix = get_ema_multi_avg_fn(decay)  # `AveragedModel`, around it, waits for the device at every step
        self.has_begun = self.in_use = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within the block the model has the mean of its weights, where it has begun."""
        if self.in_use or not self.has_begun:
            yield
            return
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the weights and their mean. The parameters stay the same objects, which the optimizer holds."""
        for one, other in zip(self.model.parameters(), self.average.parameters(), strict=True):
            one.data, other.data = other.data, one.data
        self.in_use = not self.in_use

    def save(self, folder: Path) -> None:
        """Write the weights that training goes on with beside those that are saved, within `used`. Also before there is
        a mean: all checkpoints of a run have the same files (see `find_checkpoint`)."""
        save_model(self.average if self.in_use else self.model, folder / FILE)

    def update(self) -> None:
        """Begin with the weights, or go on with the mean."""
        if self.has_begun:
            self.mix(list(self.average.parameters()), list(self.model.parameters()), None)
        else:
            self.average.load_state_dict(self.model.state_dict())
        self.has_begun = True

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = int(self.start * state.max_steps) + 1
        self.average.to(self.model.device)
        self.has_begun = False
        if state.global_step < self.first:
            return
        file = Path(args.output_dir, f"checkpoint-{state.global_step}", FILE)
        if not file.exists():
            raise InputError(f"{file}: no such file, but --ema_decay needs it; use a checkpoint that has one")
        self.update()  # the checkpoint's model is the mean
        load_model(self.model, file, device=str(self.model.device))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.first:
            self.update()

    def on_train_end(self, args, state, control, **kwargs):
        best = args.load_best_model_at_end and state.best_model_checkpoint  # which Trainer has loaded
        if self.has_begun and not best:
            self.swap()
            self.in_use = False  # there is nothing to go back to
        self.has_begun = False


def uses_average(method: Callable) -> Callable:
    """Decorate a trainer's method that, in training, looks at the mean of the weights where there is one."""

    @wraps(method)
    def wrapped(self, *args, **kwargs):
        """The method, with the mean as the model's weights."""
        if self.averaging is None or not self.is_in_train:
            return method(self, *args, **kwargs)
        with self.averaging.used():
            return method(self, *args, **kwargs)

    return wrapped
