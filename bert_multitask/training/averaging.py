"""The running mean of the weights (EMA), which is evaluated and saved instead of the weights."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..model.errors import InputError

FILE = "weights_in_training.safetensors"  # in a checkpoint, whose model.safetensors has the mean


class AveragedWeights(TrainerCallback):
    """Keeps the running mean of a model's weights over the last part of training.

    After the first step of that part the mean is the weights; after each later step θ̃ ← β θ̃ + (1 - β) θ. The mean does
    not influence training, which ends with the mean as the model's weights. A checkpoint has the mean as its model, and
    the weights that training continues from in another file.

    Args:
        model: the model to train.
        decay: β.
        start: share of the steps before that part, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float, start: float):
        self.model, self.start = model, start
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.mix = get_ema_multi_avg_fn(decay)  # not `AveragedModel`: that waits for the device at every step
        self.has_begun = self.in_use = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """Give the model the mean of its weights within the block, if there is a mean yet."""
        if self.in_use or not self.has_begun:
            yield
            return
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the weights and their mean. The parameters stay the same objects, since the optimizer has them."""
        for one, other in zip(self.model.parameters(), self.average.parameters(), strict=True):
            one.data, other.data = other.data, one.data
        self.in_use = not self.in_use

    def save(self, folder: Path) -> None:
        """Write the weights that training continues from into a checkpoint; called within `used`. They are also written
        before there is a mean, because all checkpoints of a run must have the same files (see `find_checkpoint`)."""
        save_model(self.average if self.in_use else self.model, folder / FILE)

    def update(self) -> None:
        """Start the mean with the weights, or update it."""
        if self.has_begun:
            self.mix(list(self.average.parameters()), list(self.model.parameters()), None)
        else:
            self.average.load_state_dict(self.model.state_dict())
        self.has_begun = True

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = int(self.start * state.max_steps) + 1
        self.average.to(self.model.device)
        self.has_begun = False
        if state.global_step >= self.first:
            self.update()  # starts the mean with the checkpoint's model, which is the mean
            load_weights(self.model, args, state, FILE, "--ema_decay")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.first:
            self.update()

    def on_train_end(self, args, state, control, **kwargs):
        best = args.load_best_model_at_end and state.best_model_checkpoint  # Trainer has loaded its mean by now
        if self.has_begun and not best:
            self.swap()
        self.has_begun = self.in_use = False


def load_weights(model: nn.Module, args: TrainingArguments, state: TrainerState, name: str, flag: str) -> None:
    """Load a model's weights from a file of the checkpoint that training continues from.

    Raises:
        InputError: there is no such file, which the flag needs.
    """
    file = Path(args.output_dir, f"checkpoint-{state.global_step}", name)
    if not file.exists():
        raise InputError(f"{file}: no such file, but {flag} needs it; use a checkpoint that has one")
    load_model(model, file, device=str(model.device))


def uses_average(method: Callable) -> Callable:
    """Decorate a trainer's method: during training it sees the mean as the model's weights, if there is one."""

    @wraps(method)
    def wrapped(self, *args, **kwargs):
        """The method, with the mean as the model's weights during training."""
        if self.averaging is None or not self.is_in_train:
            return method(self, *args, **kwargs)
        with self.averaging.used():
            return method(self, *args, **kwargs)

    return wrapped
