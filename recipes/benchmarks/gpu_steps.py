"""Bare training steps: by side, shape, rows and precision; as one CUDA graph; compiled."""

import itertools
import time
from functools import partial

import torch
from torch import nn

from bert_multitask.model import encoder as modeling

from .device import GPU, count_operations, synchronise, time_steps
from .gpu_sides import PACKED, SIDES, STOCK, DeviceRig, Step, build, chosen
from .peers import Stock
from .rig import NAMES, WARM_UP
from .session import Session

DTYPES = ("tf32", "bf16", "fp32")


def shapes_and_rows(session: Session) -> tuple[list[str], list[int]]:
    """What is measured of models and rows of a step."""
    return (["tiny"], [8]) if session.options.tiny else (["minilm", "bert-base"], [32, 256])


def steps(session: Session) -> None:
    """Seconds, launches, synchronisations and peak memory of a bare training step, ours and stock."""
    shapes, sizes = shapes_and_rows(session)
    rig = DeviceRig(session.options)
    batches = {rows: rig.device_batches(rows) for rows in sizes}
    for rows, found in batches.items():
        real = sum(batch["attention_mask"].sum().item() for batch in found) / len(found)
        padded = sum(batch["attention_mask"].numel() for batch in found) / len(found)
        session.report("steps", rows=rows, **{"real tokens": round(real), "padded tokens": round(padded)})
    for shape in shapes:
        model, stock = build(shape)
        for rows, dtype, side in itertools.product(sizes, DTYPES if GPU else DTYPES[1:], SIDES):
            measured = partial(measure_step, model, stock, side, dtype, batches[rows])
            session.measure("steps", measured, rows=rows, shape=shape, dtype=dtype, side=side)


def measure_step(model: nn.Module, stock: Stock, side: str, dtype: str, batches: list[dict]) -> dict:
    """Times and counts of a side's step."""
    step = Step(stock.model, dtype, stock) if side == STOCK else Step(model, dtype)
    with chosen(side):
        times = time_steps(step, batches)
        counts = count_operations(step, batches[WARM_UP : WARM_UP + 3], largest=8)
    del step  # with its moments
    if GPU:
        torch.cuda.empty_cache()
    return times | counts


def graph(session: Session) -> None:
    """The same step of ours as one CUDA graph: what is left when launching costs nothing."""
    session.run_apart("graph", replay_steps, 120)


def replay_steps(session: Session) -> None:
    """The stage `graph`, in a process of its own."""
    shapes, sizes = shapes_and_rows(session)
    rig = DeviceRig(session.options)
    for shape in shapes:
        model, _ = build(shape)
        for rows, dtype in itertools.product(sizes, DTYPES[:2]):
            batch = next(batch for batch in rig.device_batches(rows) if batch["task"] in NAMES[:1])
            tokens = int(batch["attention_mask"].sum())
            replayed = partial(replay_step, model, batch, dtype)
            session.measure("graph", replayed, shape=shape, rows=rows, dtype=dtype, tokens=tokens)


def replay_step(model: nn.Module, batch: dict, dtype: str) -> dict:
    """Times of a step of one batch, launched kernel by kernel and replayed as a graph; where there is no GPU, the
    former alone. The batch brings its packing, whose lengths would have to cross to the CPU."""
    with chosen(PACKED):
        step = Step(model, dtype, capturable=GPU)
        if not GPU:
            return {"eager": time_steps(step, [batch] * 5), "loss": step(batch).item()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                step(batch)
        torch.cuda.current_stream().wait_stream(aside)
        eager = time_steps(step, [batch] * (WARM_UP + 9))
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            loss = step(batch)
        captured.replay()
        first = loss.item()
        replay = time_steps(lambda _: captured.replay(), [batch] * (WARM_UP + 40))
        return {"eager": eager, "replay": replay, "loss of the first replay": first, "loss of the last": loss.item()}


def compile(session: Session) -> None:
    """Our step with compiled add-norm and activation."""
    session.run_apart("compile", time_compiled, 120)


def time_compiled(session: Session) -> None:
    """The stage `compile`, in a process of its own."""
    shapes, sizes = shapes_and_rows(session)
    batches, (model, _) = DeviceRig(session.options).device_batches(sizes[0]), build(shapes[0])
    step = Step(model, DTYPES[0])
    with chosen(PACKED):
        session.measure("compile", lambda: time_steps(step, batches), side=PACKED)
        modeling.AddNorm.forward = torch.compile(modeling.AddNorm.forward, dynamic=True)
        for layer in model.bert.encoder["layer"]:
            layer.activation = torch.compile(layer.activation, dynamic=True)

        def compiled() -> dict:
            start = time.perf_counter()
            step(batches[0])
            synchronise()
            seconds = time.perf_counter() - start
            times = time_steps(step, batches)
            return {"seconds of the first step": seconds} | times | count_operations(step, batches[WARM_UP:][:3])

        session.measure("compile", compiled, side=f"{PACKED}, compiled")
