"""The folder a run leaves: what is in it, when it may be written, and how a run in it goes on."""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from .arguments import MultitaskTrainingArguments, RunArguments
from .configuration import InputError
from .tasks import Task

logger = logging.get_logger(__name__)

PACKAGES = ("bert_multitask", "torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors")


class RunFolder:
    """`--output_dir`, checked before anything is computed.

    A run is finished when its `metrics.json` exists, which is written last.

    Args:
        args: `output_dir` and `resume_from_checkpoint`.
        overwrite: whether a run that is there may be replaced.

    Raises:
        InputError: the folder holds a run (or something else) that the flags do not say what to do with.
    """

    def __init__(self, args: MultitaskTrainingArguments, overwrite: bool):
        self.args = args
        self.path = Path(args.output_dir)
        self.checkpoint = None
        self.overwrite = overwrite
        if args.resume_from_checkpoint:
            if overwrite:
                raise InputError("--overwrite and --resume_from_checkpoint exclude each other")
            self.checkpoint = self.find_checkpoint(args.resume_from_checkpoint)
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / "run.json").exists():
            raise InputError(f"--output_dir {self.path} exists and holds no run; choose another folder")
        if overwrite:
            return
        if (self.path / "metrics.json").exists():
            raise InputError(
                f"--output_dir {self.path} holds a finished run; choose another folder, or replace it with --overwrite"
            )
        if not args.resume_from_checkpoint:
            raise InputError(
                f"--output_dir {self.path} holds an unfinished run; go on with --resume_from_checkpoint, "
                "or start anew with --overwrite"
            )

    def find_checkpoint(self, name: str) -> str | None:
        """The checkpoint folder to resume from; None, with a word, where the run was stopped before its first."""
        if name != "last":
            if not Path(name, "trainer_state.json").is_file():
                raise InputError(f"--resume_from_checkpoint {name}: no checkpoint; expected a folder checkpoint-N")
            return name
        checkpoint = get_last_checkpoint(self.path) if self.path.is_dir() else None
        if checkpoint is None:
            logger.warning(f"{self.path} has no checkpoint yet; training starts from the beginning")
        return checkpoint

    def begin(self, run: RunArguments, plan: Sequence[str], tasks: Sequence[Task], data: dict) -> None:
        """Write `run.json`: the configuration, versions, commit and data fingerprints that make the run repeatable.

        Args:
            run: the run's arguments.
            plan: task of each optimizer step.
            tasks: as trained.
            data: {task: {split: {"rows": count, "sha256": fingerprint}}}.

        Raises:
            InputError: the run to resume had another plan or other data.
        """
        if self.args.process_index != 0:
            return
        order = [list(plan), self.args.seed, self.args.data_seed, data]
        record = {
            "plan": hashlib.sha256(json.dumps(order).encode()).hexdigest()[:16],
            "steps": len(plan),
            "processes": self.args.world_size,
            "run": dataclasses.asdict(run),
            "tasks": [task.to_config() for task in tasks],
            "data": data,
            "training": self.args.to_dict(),  # Transformers blanks the tokens
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "commit": git_commit(),
        }
        file = self.path / "run.json"
        if self.checkpoint and json.loads(file.read_text(encoding="utf-8"))["plan"] != record["plan"]:
            raise InputError(
                f"{self.path} cannot be resumed: its plan was made with other tasks, rows, epochs, batch size, budget "
                "or seed; use the flags it was started with, or another --output_dir"
            )
        if self.overwrite and self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(file, record)

    def finish(self, metrics: dict[str, float], tasks: Sequence[Task]) -> None:
        """Write `metrics.json`, which marks the run as finished, and print the dev scores."""
        if self.args.process_index != 0:
            return
        write_json(self.path / "metrics.json", metrics)
        print(f"\n{'dev score':24}")
        for task in tasks:
            print(f"{task.name:12} {task.metric:10} {metrics[f'eval_{task.name}_{task.metric}']:.4f}")
        print(f"{'overall':23} {metrics['eval_overall']:.4f}\n\nrun folder: {self.path}", flush=True)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    os.replace(draft, path)


def git_commit() -> str | None:
    """The commit of the project's checkout; None where it is installed without one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
