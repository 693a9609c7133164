"""What the package does on a GPU, as stages that report while they run; `--tiny` runs them on a CPU."""

import tempfile
import time
from argparse import Namespace
from pathlib import Path

from .gpu_facts import facts
from .gpu_loop import loop
from .gpu_parity import parity
from .gpu_runs import runs, seeds
from .gpu_steps import compile, graph, steps
from .session import Session

STAGES = {stage.__name__: stage for stage in (facts, parity, steps, runs, loop, seeds, graph, compile)}


def gpu(options) -> dict:
    """The machine, parity, steps, whole runs, loops, CUDA graphs and compilation, one JSON object a line"""
    folder = Path(options.output_dir or tempfile.mkdtemp(prefix="benchmark-"))
    session = Session.begin(Namespace(**vars(options), bf16=False), folder)
    for name in options.stages:
        session.run(name, STAGES[name])
    return {"seconds": time.perf_counter() - session.start}
