"""Whole training runs on a device: the README's, to its end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .device import GPU
from .gpu_sides import HAS_GRAPHS
from .session import Session

ROOT = Path(__file__).resolve().parents[2]
README = ["--learning_rate", "5e-5", "--lr_scheduler_type", "linear", "--warmup_steps", "0.1", "--max_grad_norm", "1.0"]
EPOCHS = json.dumps({"sst": 3, "quora": 1, "sts": 3})
TINY = ["--max_steps", "3", "--max_train_samples", "32", "--per_device_train_batch_size", "4"]
TINY += ["--eval_strategy", "no", "--save_strategy", "no", "--do_predict", "False"]


class Run:
    """The README's run, in a process of its own.

    Args:
        session: whose folder gets the run and its log.
        name: of both.
        flags: more, for `train_multitask.py`.
    """

    def __init__(self, session: Session, name: str, flags: Sequence[str]):
        self.name, self.folder, self.log = name, session.folder / name, session.folder / f"{name}.log"
        options = session.options
        command = [sys.executable, str(ROOT / "recipes/train_multitask.py"), "rr_tpe.yaml"]
        command += ["--model_name_or_path", options.model_name_or_path, "--data_dir", options.data_dir]
        command += ["--output_dir", str(self.folder), "--overwrite", "--report_to", "none", "--disable_tqdm", "True"]
        command += ["--task_epochs", EPOCHS, *README, *flags, *(TINY if options.tiny else [])]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}
        self.start = time.perf_counter()
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def wait(self, limit: float) -> dict:
        """Seconds, dev scores and steps, when it ends or so many seconds are over.

        Raises:
            RuntimeError: it was stopped, or failed; with the end of its log.
        """
        try:
            code = self.process.wait(timeout=max(1, limit))
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        seconds = time.perf_counter() - self.start
        if code:
            raise RuntimeError(f"it ended with {code} after {seconds:.0f} s: {self.log.read_text()[-400:]}")
        history = [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        evaluations = [entry["eval_runtime"] for entry in history if "eval_runtime" in entry]
        scores = json.loads((self.folder / "metrics.json").read_text())
        return {
            "seconds": round(seconds, 1),
            "train_runtime": next(entry["train_runtime"] for entry in history if "train_runtime" in entry),
            "evaluations": len(evaluations),
            "evaluation_s": round(sum(evaluations), 1),
            "steps": max(entry.get("step", 0) for entry in history),
            "scores": {key: round(value, 4) for key, value in scores.items() if isinstance(value, float)},
        }


def report_runs(session: Session, stage: str, flags: dict[str, Sequence[str]]) -> None:
    """Start runs at once and report each; those that outlast the session are ended."""
    runs = [Run(session, name, extra) for name, extra in flags.items()]
    for run in runs:
        session.measure(stage, lambda run=run: run.wait(session.remaining() - 3), needs=float("-inf"), run=run.name)


def runs(session: Session) -> None:
    """The README's training run to its end, seed 0, alone on the device, with and without CUDA graphs."""
    for name, flags in variants(0).items():
        report_runs(session, "runs", {name: flags})
        if session.options.tiny:
            return


def seeds(session: Session) -> None:
    """The same with seeds 1 and 2, side by side: one keeps a core busy and the device mostly idle. `seconds` are those
    until it was waited for, `train_runtime` is its own."""
    report_runs(session, "seeds", variants(1) if session.options.tiny else variants(1) | variants(2))


def variants(seed: int) -> dict[str, list[str]]:
    """{name: flags} of the runs of a seed."""
    flags = ["--seed", str(seed)] + (["--tf32", "True"] if GPU else [])
    found = {f"seed{seed}-tf32": flags}
    return found | ({f"seed{seed}-tf32-graphs": [*flags, "--cuda_graphs", "True"]} if GPU and HAS_GRAPHS else {})
