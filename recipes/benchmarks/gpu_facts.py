"""The machine: what is installed, what the device reaches, what a launch costs."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from statistics import median

import torch

from bert_multitask.training.run_folder import installed_version

from .device import DEVICE, GPU, precision, synchronise
from .gpu_sides import OURS, Step, build, chosen
from .rig import NAMES
from .session import Session

PACKAGES = "torch triton transformers accelerate tokenizers huggingface_hub datasets evaluate pyarrow numpy".split()


def facts(session: Session) -> None:
    """The machine, what is installed, how long the first step takes, the cost of one launch."""
    session.measure("facts", describe_machine)
    session.measure("facts", first_step)
    if GPU:
        session.measure("facts", launch_cost)


def ceilings(session: Session) -> None:
    """What the device reaches."""
    if GPU:
        session.measure("ceilings", device_ceilings)


def first_step() -> dict:
    """Seconds of a small step, in which the libraries are loaded, so that no later measurement has them."""
    start = time.perf_counter()
    model, _ = build("tiny")
    ids = torch.randint(1000, (4, 16), device=DEVICE)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    labels = torch.zeros(4, dtype=torch.long, device=DEVICE)
    for dtype in ("tf32", "bf16"):
        with chosen(OURS):
            Step(model, dtype, lambda inputs: model(NAMES[0], **inputs, labels=labels).loss)(batch)
    synchronise()
    return {"seconds of the first steps": round(time.perf_counter() - start, 1)}


def describe_machine() -> dict:
    """Names and versions."""
    versions = {name: installed_version(name) for name in PACKAGES} | {"python": platform.python_version()}
    found = {"cores": len(os.sched_getaffinity(0)), "versions": versions}
    if not GPU:
        return found | {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return found | {"gpu": properties.name, "memory GB": properties.total_memory / 1e9, "driver": driver}


def rate(function: Callable[[], object], work: float) -> float:
    """Work by second of the device, the median of five calls after two."""
    for _ in range(2):
        function()
    seconds = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(), function(), end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return work / median(seconds)


def device_ceilings() -> dict:
    """Bytes that the device copies, and products of large matrices and of those of a step: few rows, narrow."""
    values = torch.randn(2**28, device=DEVICE)
    copied = torch.empty_like(values)
    found = {"copy, TB/s": rate(lambda: copied.copy_(values), 2 * values.nbytes) / 1e12}
    sizes = [(8192, 8192, 8192, 1)]
    sizes += [(tokens, width, 4 * width, 50) for tokens in (900, 7000) for width in (384, 768)]
    for dtype in ("fp32", "tf32", "bf16"):
        for rows, inner, columns, times in sizes:
            kind = torch.bfloat16 if dtype == "bf16" else torch.float32
            a, b = (torch.randn(shape, device=DEVICE, dtype=kind) for shape in ((rows, inner), (inner, columns)))
            work = times * 2 * rows * inner * columns
            with precision(dtype):
                reached = rate(lambda a=a, b=b, times=times: [a @ b for _ in range(times)], work)
            found[f"{rows} × {inner} × {columns} {dtype}, TFLOP/s"] = reached / 1e12
    return {"ceilings": {key: round(value, 2) for key, value in found.items()}}


def launch_cost() -> dict:
    """Microseconds that a launch takes the host, and until the device has done it."""
    number, value = 2000, torch.zeros(16, device=DEVICE)
    synchronise()
    start = time.perf_counter()
    for _ in range(number):
        value.add_(1)
    launched = time.perf_counter() - start
    synchronise()
    done = time.perf_counter() - start
    return {"microseconds a launch": {"host": launched / number * 1e6, "until done": done / number * 1e6}}
