"""Whole loops on a device: both Trainers with loader and logs, ours with CUDA graphs, and prediction."""

import itertools
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from bert_multitask.evaluation.predict import predict_tasks, read_rows

from .device import DEVICE, GPU, precision
from .gpu_sides import OURS, SIDES, STOCK, DeviceRig, chosen
from .peers import INPUTS, Stock
from .rig import NAMES, WARM_UP
from .session import Session

# Rows of a step, workers of the loader, precision.
SETTINGS = [(32, 0, "tf32"), (256, 4, "bf16"), (32, 0, "bf16"), (256, 0, "bf16")]
LONGER, LONGEST = 3, 8  # times the steps of a bare measurement; the latter with graphs, of which the first are captured
PAIRS = 4096


def loop(session: Session) -> None:
    """MultitaskTrainer against Trainer + BertForSequenceClassification in the same precision, loader and logs
    included."""
    train_loops(session, "loop", SIDES, LONGER)


def graphs(session: Session) -> None:
    """The same of ours with --cuda_graphs."""
    session.run_apart("graphs", loop_with_graphs, 90)  # a capture that fails may leave the device unusable


def loop_with_graphs(session: Session) -> None:
    """The stage `graphs`, in a process of its own; on a CPU, which has none, the loop as it is."""
    train_loops(session, "graphs", (OURS,), LONGEST, {"cuda_graphs": True} if GPU else {})


def train_loops(session: Session, stage: str, sides: Sequence[str], longer: int, own: dict | None = None) -> None:
    """Report the loops of some sides, of so many times the steps; `own` are training arguments of ours alone."""
    rig = DeviceRig(Namespace(**vars(session.options) | {"steps": longer * session.options.steps}))
    rig.own = own or {}
    settings = [(4, 0, "fp32"), (4, 0, "bf16")] if session.options.tiny else SETTINGS
    for (rows, workers, dtype), side in itertools.product(settings, sides):
        rig.batch_size, rig.workers = rows, workers
        trained = partial(train_loop, rig, side, dtype == "bf16")
        session.measure(stage, trained, rows=rows, workers=workers, dtype=dtype, side=side, **rig.own)


def train_loop(rig: DeviceRig, side: str, bf16: bool) -> dict:
    """Times of the steps after the warm-up, of their second half, and the share of ours in forward, backward and
    optimizer."""
    rig.options.bf16 = bf16
    with chosen(side):
        clock = rig.train_stock(0) if side == STOCK else rig.train(0)
    steps = len(clock.ends) - WARM_UP  # fewer than asked for where the plan is shorter
    result = {"steps": steps, "ms": clock.seconds / steps * 1e3, "rows/s": rig.batch_size * steps / clock.seconds}
    result["ms, second half"] = clock.second_half * 1e3
    if side != STOCK:
        result["inside"] = clock.inside / clock.seconds
    return {key: round(value, 3) for key, value in result.items()}


def predict(session: Session) -> None:
    """Pairs a second, tokens to logits, ours and the stock model, in the same batches of rows of similar length."""
    rig = DeviceRig(session.options)
    rig.model.to(DEVICE).eval(), rig.stock.model.to(DEVICE).eval()
    task, most = NAMES[1], 64 if session.options.tiny else PAIRS
    rows = rig.tokens[task]["train"]
    rows = rows.select(range(min(len(rows), most)))
    predictors = {
        STOCK: partial(predict_stock, rig.stock, DataCollatorWithPadding(rig.tokenizer)),
        OURS: lambda task, tokens, size: predict_tasks(rig.model, [task], tokens, size)[task],
    }
    first: dict[str, np.ndarray] = {}  # {side: its logits in the first precision}
    for size, dtype, side in itertools.product((64, 256), ("tf32", "bf16", "fp32"), SIDES):
        predicted = partial(time_prediction, partial(predictors[side], task), rows, size, dtype, side, first)
        session.measure("predict", predicted, rows=size, dtype=dtype, side=side)


def time_prediction(
    predict: Callable, rows: Dataset, size: int, dtype: str, side: str, first: dict[str, np.ndarray]
) -> dict:
    """Rows a second, and how far the logits are from the side's first, which are kept."""
    with chosen(side), precision(dtype):
        predict(rows.select(range(min(len(rows), 2 * size))), size)
        start = time.perf_counter()
        logits = predict(rows, size)
        seconds = time.perf_counter() - start
    before = first.setdefault(side, logits)
    return {
        "rows/s": round(len(rows) / seconds),
        "largest difference": round(float(np.abs(logits - before).max()), 6),
        "other decisions": int((logits.argmax(-1) != before.argmax(-1)).sum()),
    }


@torch.inference_mode()
def predict_stock(stock: Stock, pad: DataCollatorWithPadding, task: str, tokens: Dataset, size: int) -> np.ndarray:
    """What `predict_tasks` gives, by the stock model and Transformers' collator."""
    order = np.argsort(list(map(len, tokens["input_ids"][:])), kind="stable")[::-1]
    found = []
    for start in range(0, len(order), size):
        batch = pad(read_rows(tokens, order[start : start + size].tolist())).to(DEVICE)
        logits = stock.model(**{name: batch[name] for name in INPUTS}).logits
        found.append(stock.predict(task, logits).float().cpu())
    return torch.cat(found).numpy()[np.argsort(order)]
