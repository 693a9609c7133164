"""A long run: memory, open files and threads must not grow with its steps."""

import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from .runs import BREGMAN, SMART

EVERY = 0.02  # share of the soak between two samples
WARM_UP = 0.3  # share of the soak that is left out: caches fill, and the allocator's arenas
FASTEST = 200  # steps a second, at most
FLAGS = [*SMART, *BREGMAN, "--logging_steps", 50, "--eval_steps", 250, "--save_steps", 250]
JUDGED = 3000  # steps that a slope must be of to be judged: the allocator grows in leaps
TAIL = 4096  # bytes of the history that hold its last entry


class Sample(NamedTuple):
    """The state of a process: its step, resident memory in MiB, open files, threads."""

    step: int
    memory: float
    files: int
    threads: int


def last_step(history: Path) -> int:
    """The step of the last entry of a history."""
    if not history.exists():
        return 0
    with history.open("rb") as file:
        file.seek(-min(TAIL, history.stat().st_size), os.SEEK_END)
        steps = re.findall(rb'"step": (\d+)', file.read())
    return int(steps[-1]) if steps else 0


def fit(samples: list[Sample]) -> tuple[float, float]:
    """MiB per 1,000 steps, by least squares, and the standard error of that."""
    steps = np.array([sample.step for sample in samples]) / 1000
    memory = np.array([sample.memory for sample in samples])
    (slope, _), covariance = np.polyfit(steps, memory, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def test_soak(stage, work, option, result):
    seconds, folder = option("soak"), work / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    epochs = max(10, round(seconds * FASTEST / 16))  # an epoch of the three tasks has 6 + 8 + 5 steps
    run = stage.start(
        "shared-joint",
        folder,
        *FLAGS,
        "--task_epochs",
        str({"sst": epochs, "quora": epochs, "sts": epochs}).replace("'", '"'),
    )
    start, samples, process = time.monotonic(), [], psutil.Process(run.pid)
    while (now := time.monotonic() - start) < seconds:
        run.process.join(seconds * EVERY)
        if not run.process.is_alive():
            break
        with process.oneshot():
            memory = process.memory_info().rss / 2**20
            sample = Sample(last_step(folder / "history.jsonl"), memory, process.num_fds(), process.num_threads())
        if now > WARM_UP * seconds:
            samples.append(sample)
    run.signal(signal.SIGKILL)
    ended = run.finish()
    assert ended.was_killed, ended.printed[-3000:]
    slope, error = fit(samples)
    first, last = samples[0], samples[-1]
    result(
        f"a soak of {seconds} s: steps {first.step:,} to {last.step:,}, after a warm-up of {WARM_UP:.0%}",
        f"{len(samples)} samples; memory {first.memory:.0f} to {last.memory:.0f} MiB",
        f"{slope:+.2f} ± {error:.2f} MiB per 1,000 steps; files {first.files} to {last.files}, "
        f"threads {first.threads} to {last.threads}",
    )
    if last.step - first.step > JUDGED:
        assert slope - 2 * error < option("soak_bound")
    assert last.files <= first.files + 2 and last.threads <= first.threads + 1
