"""Bare training steps: by side, shape, rows and precision; and with SMART."""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor, nn

from .device import GPU, count_operations, time_steps
from .gpu_sides import OURS, SIDES, STOCK, DeviceRig, Step, build, chosen
from .rig import SMART_NAMES, WARM_UP
from .session import Session

# Shape, rows of a step, precision: what matters most, and the rest, of which fp32 comes last.
FIRST = [("minilm", 32, "tf32"), ("minilm", 256, "bf16"), ("bert-base", 32, "tf32"), ("bert-base", 256, "bf16")]
REST = [("minilm", 32, "bf16"), ("minilm", 256, "tf32"), ("bert-base", 32, "bf16"), ("bert-base", 256, "tf32")]
REST += [(shape, rows, "fp32") for shape in ("minilm", "bert-base") for rows in (32, 256)]
SMART = [(32, "tf32"), (256, "bf16"), (32, "bf16"), (256, "tf32")]


def steps(session: Session) -> None:
    """Seconds, launches, synchronisations and peak memory of a bare training step, ours and stock."""
    measure_steps(session, "steps", [("tiny", 8, "bf16")] if session.options.tiny else FIRST)


def more_steps(session: Session) -> None:
    """The same in the other precisions."""
    measure_steps(session, "more_steps", [("tiny", 8, "fp32")] if session.options.tiny else REST)


def measure_steps(session: Session, stage: str, settings: Iterable[tuple[str, int, str]]) -> None:
    """Report a step of both sides in settings, which have those of a shape beside each other."""
    rig = DeviceRig(session.options)
    batches = {rows: rig.device_batches(rows) for rows in sorted({rows for _, rows, _ in settings})}
    for rows, found in batches.items():
        real = sum(batch["attention_mask"].sum().item() for batch in found) / len(found)
        padded = sum(batch["attention_mask"].numel() for batch in found) / len(found)
        session.report(stage, rows=rows, **{"real tokens": round(real), "padded tokens": round(padded)})
    for shape, group in itertools.groupby(settings, itemgetter(0)):
        model, stock = build(shape)
        losses = {STOCK: (stock.model, stock.batch_loss), OURS: (model, lambda batch, model=model: model(**batch).loss)}
        for (_, rows, dtype), side in itertools.product(group, SIDES):
            measured = partial(measure_step, *losses[side], side, dtype, batches[rows])
            session.measure(stage, measured, rows=rows, shape=shape, dtype=dtype, side=side)


def measure_step(model: nn.Module, loss: Callable[[dict], Tensor], side: str, dtype: str, batches: list[dict]) -> dict:
    """Times and counts of a side's step, and the peak of the memory that is its own, weights included."""
    if GPU:
        torch.cuda.empty_cache()
        weights = sum(weight.nbytes for weight in model.parameters())
        others = (torch.cuda.memory_allocated() - weights) / 1e6
    step = Step(model, dtype, loss)
    with chosen(side):
        times = time_steps(step, batches)
        counts = count_operations(step, batches[WARM_UP : WARM_UP + 3])
    if GPU:
        times["peak MB"] = round(times["peak MB"] - others)
    return times | counts


def smart(session: Session) -> None:
    """A step with SMART against one without, both of ours, on batches of SST and STS."""
    rigs = {"plain": DeviceRig(session.options), "SMART": DeviceRig(session.options, smart=True)}
    for rows, dtype in [(8, "bf16")] if session.options.tiny else SMART:
        batches = [batch for batch in rigs["plain"].device_batches(rows) if batch["task"] in SMART_NAMES]
        for kind, rig in rigs.items():
            loss = partial(rig.trainer(0).compute_loss, rig.model)
            measured = partial(measure_step, rig.model, loss, OURS, dtype, batches)
            session.measure("smart", measured, rows=rows, dtype=dtype, side=f"{OURS}, {kind}")
