"""Do the tasks' gradients agree? Their cosines on the shared encoder, measured beside training."""

from collections.abc import Mapping
from itertools import combinations_with_replacement

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import Trainer, TrainerCallback

from ..model.modeling import by_name
from .randomness import kept_generators


class GradientCosines(TrainerCallback):
    """Measures, every so many steps, the cosine between the gradients of each two tasks' losses on the shared encoder;
    the tasks of a group are one.

    Each task has two batches of random training rows, so that `cosine_{a}_{a}`, between a task's two batches, says how
    alike the gradients of one task are: where it is small itself, a small cosine between tasks is no conflict. The
    losses are those of the labels, in a group each times its task's `loss_weight`; dropout is off, and a teacher's,
    SMART's and R-Drop's terms are left out. Training goes on as if nothing was measured. On the first process alone.

    Args:
        trainer: whose model has one shared encoder and several tasks.
        steps: from one measurement to the next.
    """

    def __init__(self, trainer: Trainer, steps: int):
        self.trainer, self.steps = trainer, steps
        self.found: dict[str, list[float]] = {}  # since the last log entry

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.global_step % self.steps == 0:
            with kept_generators(args.device):
                gradients = self.gradients(state.global_step)
            for key, value in cosines(gradients).items():
                self.found.setdefault(key, []).append(value)

    def gradients(self, step: int) -> dict[str, list[Tensor]]:
        """{task: the gradients of two batches of its rows, (P,) each}, drawn by the seed, the step and the task."""
        trainer, rows = self.trainer, self.trainer.train_dataset
        shared = trainer.model.encoder(next(iter(trainer.model.tasks)))
        weights = [weight for weight in shared.parameters() if weight.requires_grad]
        found, size = {}, trainer.args.per_device_train_batch_size
        trainer.model.eval()
        for number, (task, part) in enumerate(rows.tasks.items()):
            generator = np.random.default_rng([trainer.data_seed, step, number])
            drawn = generator.permutation(len(part))[: 2 * size].tolist()
            found[task] = []
            for half in filter(None, (drawn[::2], drawn[1::2])):
                batch = trainer.data_collator(rows.__getitems__([(task, row) for row in half]))
                parts = torch.autograd.grad(self.loss(batch), weights, allow_unused=True, materialize_grads=True)
                found[task].append(torch.cat([part.flatten() for part in parts]))
        trainer.model.train()
        return found

    def loss(self, batch: Mapping) -> Tensor:
        """A batch's loss of its labels, weighted as training weights the tasks of a group."""
        trainer = self.trainer
        inputs = {name: value for name, value in batch.items() if name != "soft_labels"}
        inputs = send_to_device(inputs, trainer.args.device)
        labels = by_name(inputs.pop("labels"), inputs["task"])
        outputs = trainer.model(**inputs)
        losses = {name: trainer.batch_loss(name, outputs, target, None) for name, target in labels.items()}
        return sum(trainer.model.tasks[name].loss_weight * loss for name, loss in losses.items())

    def take(self) -> dict[str, float]:
        """The means since they were last taken."""
        means = {key: float(np.mean(values)) for key, values in sorted(self.found.items())}
        self.found.clear()
        return means


def cosines(gradients: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """{cosine_{a}_{b}: between the first gradients of two tasks; cosine_{a}_{a}: between both of one}, in [-1, 1].

    A gradient of zeros has no direction; its cosines are left out.

    Args:
        gradients: {task: one or two of them, (P,)}.
    """
    found = {}
    for first, second in combinations_with_replacement(gradients, 2):
        pair = gradients[first] if first == second else [gradients[first][0], gradients[second][0]]
        if len(pair) == 2 and all(gradient.any() for gradient in pair):
            found[f"cosine_{first}_{second}"] = torch.cosine_similarity(*pair, dim=0).item()
    return found
