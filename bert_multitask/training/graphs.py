"""CUDA graphs of training steps: a step is recorded once for each shape of a batch, then replayed with one launch.

With few rows in a batch, a GPU waits for the CPU, which launches about five hundred kernels a step. A graph launches
them all at once. A graph is valid for tensors of one shape, so the collator rounds the shapes of batches up to make
them recur (`Collator`, `Packing`).
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin, parse_flag_from_env
from torch import Tensor, nn
from transformers import TrainerCallback

from ..model.errors import InputError
from ..model.modeling import MultitaskBertModel
from ..model.packing import Packing
from .arguments import MultitaskTrainingArguments

CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # the flag in older and newer Transformers
MAX_GRAPHS = 256  # each one keeps memory; batches of further shapes run eagerly


class Terms(NamedTuple):
    """The results of a micro-batch: its loss, {name: value} for the log, and {task: logits} without gradients."""

    loss: Tensor
    kept: dict[str, Tensor]
    predicted: dict[str, Tensor]


def check_graphs(model: MultitaskBertModel, args: MultitaskTrainingArguments, given: Mapping[str, object]) -> None:
    """Refuse --cuda_graphs with settings that a CUDA graph cannot record.

    Args:
        model: the model to train.
        args: the training arguments.
        given: {argument of the trainer: its value} for functions of the user's, None where not given.

    Raises:
        InputError: names the first such setting.
    """
    device, attention = args.device, model.config._attn_implementation
    compiles = args.torch_compile or TorchDynamoPlugin().backend != DynamoBackend.NO
    found = {
        f"on a {device.type}, only on an NVIDIA GPU": device.type != "cuda" or torch.version.hip is not None,
        "with several processes": args.world_size > 1,
        # These three may also come from Accelerate's configuration.
        "with --fp16, whose loss scale changes from step to step": args.mixed_precision == "fp16",
        "with --deepspeed": args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        "with --torch_compile or a dynamo_backend of Accelerate's": compiles,
        "with gradient checkpointing": any(getattr(args, name, False) for name in CHECKPOINTING),
        "with --smart_share_dropout": args.smart_share_dropout,
        "with --neftune_noise_alpha": args.neftune_noise_alpha is not None,
        f"with --optim {args.optim.value}, which updates weights in the backward pass": any(
            word in args.optim.value for word in ("layerwise", "lomo")
        ),
        "with an encoder that is not a BERT": not model.takes_packing,
        f"with attn_implementation {attention!r}, only with 'sdpa'": attention != "sdpa",
        "with a head that reads every token": any(
            getattr(head, "reads_tokens", False) for head in model.heads.values()
        ),
    } | {f"with a {name}": value is not None for name, value in given.items()}
    if reasons := [reason for reason, holds in found.items() if holds]:
        raise InputError(f"--cuda_graphs does not work {reasons[0]}; leave it out, or change that")


class StepGraphs(TrainerCallback):
    """The CUDA graphs of a training run: one for each task or group and shape of a batch, in one memory pool.

    The first batch of a shape runs eagerly, which also warms up its kernels. The second is recorded. A replay draws the
    same random numbers as eager kernels, so a resumed run, which records at other steps, computes the same weights.

    Args:
        terms: (model, inputs, {task: items}, rows of the step) -> `Terms`. It must run the same kernels for every batch
            of a shape, and read no value from the device.
    """

    def __init__(self, terms: Callable[..., Terms]):
        self.terms = terms
        self.seen: set[Hashable] = set()  # shapes that have run
        self.graphs: dict[Hashable, StepGraph] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}  # static tensors that the graphs add gradients to
        self.pool: Any = None
        self.settings: list = []  # those that the graphs were recorded with

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs):
        self.forget()
        self.args, self.parameters = args, list(model.parameters())
        self.dropouts = [part for part in model.modules() if isinstance(part, nn.Dropout)]

    def on_train_end(self, args, state, control, **kwargs):
        self.forget()  # frees memory; also, graphs read weights by address, and the end of training may replace these

    def forget(self) -> None:
        """Drop all graphs and their memory."""
        self.seen.clear()
        self.graphs.clear()
        self.gradients.clear()
        self.pool = None

    def current_settings(self, model: nn.Module) -> list:
        """The settings that a graph keeps from its recording, but that a user's callback may change between steps:
        which parameters are trained, dropout, the tasks' settings, SMART's flags."""
        return [
            [parameter.requires_grad for parameter in self.parameters],
            [part.p for part in self.dropouts],
            model.config.attention_probs_dropout_prob,
            dict(model.tasks),
            {name: value for name, value in vars(self.args).items() if name.startswith("smart_")},
        ]

    def step(self, model: nn.Module, inputs: Mapping, items: Mapping[str, Tensor], rows: Tensor) -> Terms | None:
        """Run a micro-batch forward and backward by its graph, and add its gradients to those of the parameters.

        Args:
            model: in training mode.
            inputs: the batch, on the device.
            items: {task: divisor of its summed loss}.
            rows: labelled rows of the step.

        Returns:
            None if there is no graph: the caller then runs the batch eagerly.
        """
        if (settings := self.current_settings(model)) != self.settings:
            self.forget()
            self.settings = settings
        given = {"inputs": inputs, "items": items, "rows": rows}
        key = shapes_of(given)
        if key not in self.graphs:
            if key not in self.seen or len(self.graphs) == MAX_GRAPHS:
                self.seen.add(key)
                return None
            for parameter in model.parameters():
                if parameter.requires_grad and parameter not in self.gradients:
                    self.gradients[parameter] = torch.zeros_like(parameter)
            self.graphs[key] = StepGraph(self, model, given)
        return self.graphs[key].replay(given)

    def record(self, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """Record the kernels of a function as a CUDA graph.

        Args:
            run: reads no value from the device.

        Returns:
            The tensors that `run` returned, and a function that replays the kernels and so overwrites these tensors.
        """
        self.pool = self.pool or torch.cuda.graph_pool_handle()  # graphs share it, since they run one after the other
        graph = torch.cuda.CUDAGraph()
        # Only calls of this thread are checked: others, such as a loader's that pins memory, may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = run()
        return outputs, graph.replay


class StepGraph:
    """The graph of a micro-batch: its static inputs, the parameters that it trains, and its static outputs.

    Args:
        owner: has the static gradients and the memory pool.
        model: in training mode.
        given: the arguments `inputs`, `items` and `rows` of `StepGraphs.step`.
    """

    def __init__(self, owner: StepGraphs, model: nn.Module, given: Mapping):
        self.given = change_tensors(given, Tensor.clone)
        self.inputs = by_dtype(self.given)

        def run() -> list[Tensor]:
            """Forward and backward. Returns the loss and the values for the log in one tensor, then the logits."""
            # `detach` copies the packings, too, without what was computed from them and cached.
            terms = owner.terms(model, **change_tensors(self.given, Tensor.detach))
            trained = {one: sums for one, sums in owner.gradients.items() if one.requires_grad}
            found = torch.autograd.grad(terms.loss, list(trained), allow_unused=True)
            # Idle heads have no gradient here and keep `grad` None, so that the optimizer leaves their moments alone.
            self.trained = [each for each, gradient in zip(trained.items(), found, strict=True) if gradient is not None]
            torch._foreach_add_([sums for _, sums in self.trained], [each for each in found if each is not None])
            self.names, self.tasks = list(terms.kept), list(terms.predicted)
            values = torch.stack([value.detach().float() for value in (terms.loss, *terms.kept.values())])
            return [values, *terms.predicted.values()]

        (self.values, *self.predicted), self.run = owner.record(run)

    @torch.no_grad()
    def replay(self, given: Mapping) -> Terms:
        """Replay the graph on a micro-batch; the argument is that of `__init__`."""
        for one, sums in self.trained:
            if one.grad is not None and one.grad is not sums:  # of an eager micro-batch of the same step
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
    """The tensors in nested dictionaries and packings, in order."""
    found: list[Tensor] = []
    change_tensors(value, lambda tensor: found.append(tensor) or tensor)
    return found


def by_dtype(value: Any) -> list[list[Tensor]]:
    """The tensors in nested dictionaries and packings, grouped by dtype so that one kernel copies each group."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors_of(value):
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def shapes_of(given: Mapping) -> Hashable:
    """What selects the graph of a micro-batch: its task, its tensors' shapes and dtypes, and its longest row."""
    inputs = given["inputs"]
    tensors = tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(given))
    return inputs["task"], tuple(inputs), inputs["packing"].longest, tensors
