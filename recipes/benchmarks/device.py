"""The accelerator, or the CPU where there is none: its precision, its clock, what it launches."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from transformers.utils.import_utils import enable_tf32

from .rig import WARM_UP

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
LISTED = 8  # kernels that are listed


def synchronise() -> None:
    """Wait until the device has done what it was told."""
    if GPU:
        torch.cuda.synchronize()


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Compute in fp32, in fp32 with TF32 products ("tf32") or with bf16 autocast ("bf16")."""
    enable_tf32(dtype == "tf32")  # as --tf32 does: PyTorch's other ways to say it would outlast that one
    try:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bf16"):
            yield
    finally:
        enable_tf32(False)


def time_steps(step: Callable[[dict], object], batches: Sequence[dict], warm_up: int = WARM_UP) -> dict[str, float]:
    """Milliseconds of a step, in two passes over the batches after the warm-up: waiting for the device after each step,
    with shapes that are new to it, and without waiting, with shapes that it knows."""
    for batch in batches[:warm_up]:
        step(batch)
    synchronise()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    timed, seconds = batches[warm_up:], []
    for batch in timed:
        start = time.perf_counter()
        step(batch)
        synchronise()
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    for batch in timed:
        step(batch)
    synchronise()
    rows = sum(len(batch["labels"]) for batch in timed)
    result = {"ms": median(seconds) * 1e3, "least ms": min(seconds) * 1e3, "rows/s": rows / sum(seconds)}
    result["ms, not waiting"] = (time.perf_counter() - start) / len(timed) * 1e3
    if GPU:
        result["peak MB"] = torch.cuda.max_memory_allocated() / 1e6
    return {key: round(value, 3) for key, value in result.items()}


def count_operations(step: Callable[[dict], object], batches: Sequence[dict]) -> dict:
    """What PyTorch's profiler counts in a step, on average over the batches: launches, operations and time of the
    device, synchronisations, and the largest kernels: name, number, milliseconds."""
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * GPU
    with torch.profiler.profile(activities=activities) as profile:
        for batch in batches:
            step(batch)
        synchronise()
    events, count = profile.key_averages(), len(batches)
    if not GPU:
        return {"aten calls a step": round(sum(e.count for e in events if e.key.startswith("aten::")) / count)}
    kernels = [event for event in events if is_device_operation(event)]
    calls = Counter({event.key: event.count for event in events if event.key.startswith("cu")})
    waits = {key: number for key, number in calls.items() if "Synchronize" in key or "Memcpy" in key}
    listed = sorted(kernels, key=lambda kernel: -kernel.self_device_time_total)[:LISTED]
    return {
        "launches a step": round(sum(number for key, number in calls.items() if "LaunchKernel" in key) / count),
        "device operations a step": round(sum(kernel.count for kernel in kernels) / count),
        "device ms a step": round(sum(kernel.self_device_time_total for kernel in kernels) / count / 1e3, 3),
        "syncs a step": {key: round(number / count, 1) for key, number in waits.items()},
        "kernels": [
            (k.key[:70], round(k.count / count, 1), round(k.self_device_time_total / count / 1e3, 3)) for k in listed
        ],
    }


def is_device_operation(event) -> bool:
    """Whether an entry of the profile is a kernel or a copy, and no mark that spans several."""
    is_mark = getattr(event, "is_user_annotation", False) or event.key.startswith(("Optimizer.", "ProfilerStep"))
    return event.device_type == torch.autograd.DeviceType.CUDA and not is_mark
