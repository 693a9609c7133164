"""What the package does on a GPU, as stages that report while they run; `--tiny` runs them on a CPU."""

import tempfile
import time
from argparse import Namespace
from pathlib import Path

from .gpu_facts import ceilings, facts
from .gpu_loop import graphs, loop, predict
from .gpu_parity import parity
from .gpu_runs import runs, seeds
from .gpu_steps import more_steps, smart, steps
from .session import Session

# What matters most comes first: a session may end anywhere.
ORDER = (facts, steps, smart, loop, graphs, predict, parity, runs, seeds, more_steps, ceilings)
STAGES = {stage.__name__: stage for stage in ORDER}


def gpu(options) -> dict:
    """The machine, steps, SMART, loops, CUDA graphs, prediction, parity and whole runs, one JSON object a line"""
    folder = Path(options.output_dir or tempfile.mkdtemp(prefix="benchmark-"))
    session = Session.begin(Namespace(**vars(options), bf16=False), folder)
    for name in options.stages:
        session.run(name, STAGES[name])
    return {"seconds": time.perf_counter() - session.start}
