"""Whole training runs on a device: the README's, to its end."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .device import GPU
from .session import Session

ROOT = Path(__file__).resolve().parents[2]
README = ["--learning_rate", "5e-5", "--lr_scheduler_type", "linear", "--warmup_steps", "0.1", "--max_grad_norm", "1.0"]
EPOCHS = json.dumps({"sst": 3, "quora": 1, "sts": 3})
LEAST = 60  # seconds without which there is no point in beginning
TINY = ["--max_steps", "3", "--max_train_samples", "32", "--per_device_train_batch_size", "4"]
TINY += ["--eval_strategy", "no", "--save_strategy", "no", "--do_predict", "False"]


class Run:
    """The README's run with more flags, in a process of its own, or one with each of several seeds, side by side. The
    session's folder gets them and their log."""

    def __init__(self, session: Session, name: str, flags: Sequence[str], seeds: Sequence[int]):
        self.folder, self.log = session.folder / name, session.folder / f"{name}.log"
        options, alone = session.options, len(seeds) == 1
        numbers = list(map(str, seeds))
        self.folders = {n: self.folder if alone else self.folder / f"seed-{n}" for n in numbers}
        command = [sys.executable, str(ROOT / "recipes/train_multitask.py"), "rr_tpe.yaml"]
        command += ["--model_name_or_path", options.model_name_or_path, "--data_dir", options.data_dir]
        command += ["--output_dir", str(self.folder), "--report_to", "none", "--disable_tqdm", "True"]
        command += ["--task_epochs", EPOCHS, *README, *flags, *(TINY if options.tiny else [])]
        command += ["--seed", *numbers] if alone else ["--seeds", *numbers, "--jobs", str(len(seeds))]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.start = time.perf_counter()
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def wait(self, limit: float) -> dict:
        """Seconds of all, and of each seed's run what `read_run` finds, when they end or so many seconds are over.

        Raises:
            RuntimeError: they were stopped, or failed; with the end of the log.
        """
        try:
            code = self.process.wait(timeout=max(1, limit))
        except subprocess.TimeoutExpired:
            self.process.terminate()
            code = self.process.wait()
        seconds = time.perf_counter() - self.start
        if code:
            raise RuntimeError(f"it ended with {code} after {seconds:.0f} s: {self.log.read_text()[-400:]}")
        return {"seconds": round(seconds, 1), "seeds": {n: read_run(folder) for n, folder in self.folders.items()}}


def read_run(folder: Path) -> dict:
    """Seconds of training and evaluation, steps and dev scores of a finished run."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    evaluations = [entry["eval_runtime"] for entry in history if "eval_runtime" in entry]
    scores = json.loads((folder / "metrics.json").read_text())
    return {
        "train_runtime": next(entry["train_runtime"] for entry in history if "train_runtime" in entry),
        "evaluations": len(evaluations),
        "evaluation_s": round(sum(evaluations), 1),
        "steps": max(entry.get("step", 0) for entry in history),
        "scores": {key: round(value, 4) for key, value in scores.items() if isinstance(value, float)},
    }


def report_runs(session: Session, stage: str, seeds: Sequence[int]) -> None:
    """Report the runs of some seeds side by side, on a GPU with CUDA graphs, too; those that outlast the session are
    ended."""
    tf32 = ["--tf32", "True"] if GPU else []
    variants = {"tf32-graphs": [*tf32, "--cuda_graphs", "True"]} if GPU else {}
    for name, flags in (variants | {"tf32": tf32}).items():

        def finish(name: str = name, flags: Sequence[str] = flags) -> dict:
            return Run(session, f"{stage}-{name}", flags, seeds).wait(session.remaining() - 10)

        session.measure(stage, finish, needs=LEAST, run=name)


def runs(session: Session) -> None:
    """The README's training run to its end, seed 0, alone on the device."""
    report_runs(session, "runs", [0])


def seeds(session: Session) -> None:
    """The same with three seeds, side by side: one keeps a core busy and the device mostly idle."""
    report_runs(session, "seeds", [0, 1] if session.options.tiny else [0, 1, 2])
