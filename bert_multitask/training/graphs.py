"""CUDA graphs of training steps: a step is recorded once for each shape of a batch, and then replayed by one launch.

With few rows a GPU waits for the host, which launches some five hundred kernels for a step. A graph launches them at
once. It holds for tensors of one shape, so the collator rounds the shapes of batches up (`Collator`, `Packing`).
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from transformers import TrainerCallback

from ..model.errors import InputError
from ..model.modeling import MultitaskBertModel
from ..model.packing import Packing
from .arguments import MultitaskTrainingArguments

CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # the flag in older and newer Transformers


class Terms(NamedTuple):
    """What a micro-batch gives: its loss; {name: value} for the log; {task: logits} of its rows, without gradients."""

    loss: Tensor
    kept: dict[str, Tensor]
    predicted: dict[str, Tensor]


def check_graphs(model: MultitaskBertModel, args: MultitaskTrainingArguments, given: Mapping[str, object]) -> None:
    """Refuse --cuda_graphs where a graph would not hold what a step does.

    Args:
        model: to train.
        args: with the flag.
        given: {argument of the trainer: value}, of the user's own functions.

    Raises:
        InputError: names what is in the way.
    """
    device, attention = args.device, model.config._attn_implementation
    found = {
        f"on a {device.type}, only on an NVIDIA GPU": device.type != "cuda" or torch.version.hip is not None,
        "with several processes": args.world_size > 1,
        # Accelerate's configuration may say these two, too.
        "with --fp16, which scales the loss by what the last steps gave": args.mixed_precision == "fp16",
        "with --deepspeed": args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        "with --torch_compile": args.torch_compile,
        "with gradient checkpointing": any(getattr(args, name, False) for name in CHECKPOINTING),
        "with --smart_share_dropout": args.smart_share_dropout,
        "with --neftune_noise_alpha": args.neftune_noise_alpha is not None,
        f"with --optim {args.optim.value}, which updates weights in the backward pass": any(
            word in args.optim.value for word in ("layerwise", "lomo")
        ),
        "with an encoder that is no BERT": not model.takes_packing,
        f"with attn_implementation {attention!r}, only with 'sdpa'": attention != "sdpa",
        "with a head that reads every token": any(
            getattr(head, "reads_tokens", False) for head in model.heads.values()
        ),
    } | {f"with a {name}": value is not None for name, value in given.items()}
    if reasons := [reason for reason, holds in found.items() if holds]:
        raise InputError(f"--cuda_graphs does not work {reasons[0]}; leave it out, or change that")


class StepGraphs(TrainerCallback):
    """The graphs of a training, one for each task or group and shapes of a batch, in one pool of memory.

    The first batch of its shapes runs as usual, which also warms up what the kernels need; the second is recorded. A
    replay draws the random numbers that the kernels would have drawn one by one, so a resumed run, which records at
    other steps, goes on as an uninterrupted one.

    Args:
        terms: (model, inputs, {task: items}, rows of the step) -> `Terms`, the same for all steps of such shapes, and
            without a look at a value on the device.
    """

    def __init__(self, terms: Callable[..., Terms]):
        self.terms = terms
        self.graphs: dict[Hashable, StepGraph | None] = {}  # None, shapes that were seen once
        self.gradients: dict[nn.Parameter, Tensor] = {}  # which the graphs add to
        self.pool: Any = None
        self.settings: list = []  # as of the graphs

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs):
        self.forget()  # a training may end with other weights in the parameters than those that they read
        self.args, self.parameters = args, list(model.parameters())
        self.dropouts = [part for part in model.modules() if isinstance(part, nn.Dropout)]

    def forget(self) -> None:
        """Drop all graphs, and their memory."""
        self.graphs.clear()
        self.pool = None

    def current_settings(self, model: nn.Module) -> list:
        """What a graph holds as it was when it was recorded, and a user's callback may change between steps: which
        parameters are trained, the rates of dropout, the settings of the tasks and of SMART."""
        return [
            [one.requires_grad for one in self.parameters],
            [part.p for part in self.dropouts],
            model.config.attention_probs_dropout_prob,
            dict(model.tasks),
            {name: value for name, value in vars(self.args).items() if name.startswith("smart_")},
        ]

    def step(self, model: nn.Module, inputs: Mapping, items: Mapping[str, Tensor], rows: Tensor) -> Terms | None:
        """Forward and backward of a micro-batch, whose gradients are added to those that are there; None at the first
        batch of its shapes, which is left to do.

        Args:
            model: in training mode.
            inputs: the batch, on the device.
            items: {task: divisor of its summed loss}.
            rows: labelled rows of the step.
        """
        if (settings := self.current_settings(model)) != self.settings:
            self.forget()
            self.settings = settings
        given = {"inputs": inputs, "items": items, "rows": rows}
        key = shapes_of(given)
        if key not in self.graphs:
            self.graphs[key] = None
            return None
        if self.graphs[key] is None:
            for parameter in model.parameters():
                if parameter.requires_grad and parameter not in self.gradients:
                    self.gradients[parameter] = torch.zeros_like(parameter)
            self.graphs[key] = StepGraph(self, model, given)
        return self.graphs[key].replay(given)

    def record(self, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """A function's kernels as a CUDA graph: the tensors that it returns, and what computes them anew in place.

        Args:
            run: looks at no value on the device.
        """
        self.pool = self.pool or torch.cuda.graph_pool_handle()  # graphs share it, since they run one after the other
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as a loader's that pins memory, may call what this one may not.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = run()
        return outputs, graph.replay


class StepGraph:
    """The graph of one micro-batch: its static inputs, the parameters that it trains, and its static outputs.

    Args:
        owner: of the gradients and the memory.
        model: in training mode.
        given: `inputs`, `items` and `rows` as of `StepGraphs.step`.
    """

    def __init__(self, owner: StepGraphs, model: nn.Module, given: Mapping):
        self.given = change_tensors(given, Tensor.clone)
        self.inputs = by_dtype(self.given)

        def run() -> list[Tensor]:
            """Forward and backward; the values of the loss and the log in one tensor, and the logits."""
            # Of new packings, which remember nothing that was computed of them.
            terms = owner.terms(model, **change_tensors(self.given, Tensor.detach))
            trained = {one: sums for one, sums in owner.gradients.items() if one.requires_grad}
            found = torch.autograd.grad(terms.loss, list(trained), allow_unused=True)
            # Without those of which the loss is no function: an idle head stays as it is, by its moments, too.
            self.trained = [each for each, gradient in zip(trained.items(), found, strict=True) if gradient is not None]
            torch._foreach_add_([sums for _, sums in self.trained], [each for each in found if each is not None])
            self.names, self.tasks = list(terms.kept), list(terms.predicted)
            values = torch.stack([value.detach().float() for value in (terms.loss, *terms.kept.values())])
            return [values, *terms.predicted.values()]

        (self.values, *self.predicted), self.run = owner.record(run)

    @torch.no_grad()
    def replay(self, given: Mapping) -> Terms:
        """The micro-batch's terms, as of `StepGraphs.step`."""
        for one, sums in self.trained:
            if one.grad is not None and one.grad is not sums:  # of a micro-batch that ran as usual
                sums.copy_(one.grad)
        if fresh := [sums for one, sums in self.trained if one.grad is None]:
            torch._foreach_zero_(fresh)
        for one, sums in self.trained:
            one.grad = sums
        for static, new in zip(self.inputs, by_dtype(given), strict=True):
            torch._foreach_copy_(static, new)
        self.run()
        loss, *kept = self.values.clone().unbind()
        predicted = {name: logits.clone() for name, logits in zip(self.tasks, self.predicted, strict=True)}
        return Terms(loss, dict(zip(self.names, kept, strict=True)), predicted)


def change_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested dictionaries and packings, with each tensor changed by a function."""
    if isinstance(value, Mapping):
        return {key: change_tensors(part, function) for key, part in value.items()}
    if isinstance(value, Packing):
        return value.map(function)
    return function(value) if isinstance(value, Tensor) else value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested dictionaries and packings, in their order."""
    found: list[Tensor] = []
    change_tensors(value, lambda tensor: found.append(tensor) or tensor)
    return found


def by_dtype(value: Any) -> list[list[Tensor]]:
    """The same, those of one type together, so that one kernel copies them."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors_of(value):
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def shapes_of(given: Mapping) -> Hashable:
    """What a graph of a micro-batch depends on: its task, the shapes and types of its tensors, the longest row."""
    inputs = given["inputs"]
    tensors = tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(given))
    return inputs["task"], tuple(inputs), inputs["packing"].longest, tensors
