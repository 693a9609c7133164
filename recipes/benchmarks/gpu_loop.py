"""Whole loops on a device: both Trainers with loader and logs, and prediction."""

import itertools
import time
from functools import partial

from bert_multitask.evaluation.predict import predict_logits

from .device import DEVICE, GPU, synchronise
from .gpu_sides import PACKED, PADDED, STOCK, DeviceRig, chosen
from .rig import NAMES
from .session import Session

# Rows of a step, workers of the loader, bf16.
SETTINGS = [(32, 0, False), (32, 0, True), (32, 2, False), (256, 0, True), (256, 4, True)]


def loop(session: Session) -> None:
    """MultitaskTrainer against Trainer + BertForSequenceClassification, loader and logs included; predict_logits."""
    rig = DeviceRig(session.options)
    rig.tf32 = True if GPU else None
    for (rows, workers, bf16), side in itertools.product(
        [(4, 0, False), (4, 0, True)] if session.options.tiny else SETTINGS, (STOCK, PADDED, PACKED)
    ):
        rig.batch_size, rig.workers = rows, workers
        trained = partial(train_loop, rig, side, bf16)
        session.measure("loop", trained, rows=rows, workers=workers, dtype="bf16" if bf16 else "tf32", side=side)
    for side, size in itertools.product((PADDED, PACKED), (64, 256)):
        predicted = partial(predict_loop, rig, side, size)
        session.measure("loop", predicted, what="predict_logits, fp32", side=side, rows=size)


def train_loop(rig: DeviceRig, side: str, bf16: bool) -> dict:
    """Times of the steps after the warm-up, and the share of ours in forward, backward and optimizer."""
    rig.options.bf16 = bf16
    with chosen(side):
        clock = rig.train_stock(0) if side == STOCK else rig.train(0)
    synchronise()
    steps = rig.options.steps
    result = {"ms": clock.seconds / steps * 1e3, "rows/s": rig.batch_size * steps / clock.seconds}
    if side != STOCK:
        result["inside"] = clock.inside / clock.seconds
    return {key: round(value, 3) for key, value in result.items()}


def predict_loop(rig: DeviceRig, side: str, size: int) -> dict:
    """Rows a second, of pairs, in batches of a size."""
    rows = rig.tokens[NAMES[1]]["train"]
    rows, model = rows.select(range(min(len(rows), 4096))), rig.model.to(DEVICE)
    with chosen(side):
        predict_logits(model, NAMES[1], rows.select(range(min(len(rows), 64))), size)
        start = time.perf_counter()
        predict_logits(model, NAMES[1], rows, size)
        return {"rows/s": round(len(rows) / (time.perf_counter() - start))}
