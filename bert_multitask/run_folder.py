"""The folder a run leaves: what is in it, when it may be written, and how a run in it goes on."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from datasets import DatasetDict
from safetensors import safe_open
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import logging

from .arguments import MultitaskTrainingArguments, RunArguments
from .configuration import InputError, resolve_folder
from .data import fingerprint
from .tasks import Task

logger = logging.get_logger(__name__)

# Arguments that decide the weights, of training and of the run; a resumed run must have the same.
DECIDES = (
    "seed data_seed schedule budget max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim "
    "paper_optimizer weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 smart_projection "
    "smart_radius smart_step_size smart_noise_std smart_steps smart_share_dropout bregman_momentum"
).split()
DECIDES_RUN = (
    "model_name_or_path max_length encoder_dropout encoder_sharing pair_encoding pooling freeze_encoder".split()
)
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
        self.data: dict[str, dict] = {}  # {task: {split: rows and fingerprint}}, on the first process
        if args.resume_from_checkpoint:
            if overwrite:
                raise InputError("--overwrite and --resume_from_checkpoint exclude each other")
            self.checkpoint = self.find_checkpoint(args.resume_from_checkpoint)
            if self.checkpoint:
                check_checkpoint(Path(self.checkpoint))
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
        """The checkpoint folder to resume from; None, with a word, where the run was stopped before its first.

        A checkpoint without `trainer_state.json`, which is written last, was cut off while it was saved.
        """
        if name != "last":
            if not Path(name, "trainer_state.json").is_file():
                raise InputError(f"--resume_from_checkpoint {name}: no checkpoint; expected a folder checkpoint-N")
            if Path(name).resolve().parent != self.path.resolve():
                raise InputError(f"--resume_from_checkpoint {name}: not a checkpoint of the run in {self.path}")
            return name
        whole = [state.parent for state in self.path.glob("checkpoint-*/trainer_state.json")]
        if not whole:
            logger.warning(f"{self.path} has no checkpoint yet; training starts from the beginning")
            return None
        return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2])))

    def begin(
        self,
        run: RunArguments,
        tasks: Sequence[Task],
        rows: Mapping[str, DatasetDict],
        batch_size: int,
        batches: Mapping[str, int],
    ) -> None:
        """Write `run.json`: the configuration, versions, commit and data fingerprints that make the run repeatable.

        Args:
            run: the run's arguments.
            tasks: as trained.
            rows: {task: its clean rows by split}.
            batch_size: rows of one optimizer step.
            batches: {task: its batches in the whole plan}, from which a report draws the plan.

        Raises:
            InputError: the run to resume had other settings, or its folder cannot be written.
        """
        if self.args.process_index != 0:
            return
        self.data = fingerprints(rows)
        record = {
            "decides": deciding_settings(run, self.args, tasks, self.data, batch_size),
            "run": dataclasses.asdict(run),
            "training": self.args.to_dict(),  # Transformers blanks the tokens
            "batches": dict(batches),
            "processes": self.args.world_size,
            "versions": {name: installed_version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "commit": git_commit(),
        }
        file = self.path / "run.json"
        if self.args.resume_from_checkpoint and file.exists():
            _, before = read_run(str(self.path))
            compare_settings(before["decides"], record["decides"], self.path)
        try:
            if self.overwrite and self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(file, record)
        except OSError as error:
            raise InputError(f"--output_dir {self.path} cannot be written: {error}") from error

    def finish(self, metrics: dict[str, float], tasks: Sequence[Task]) -> None:
        """Write `metrics.json`, which marks the run as finished, and print the dev scores."""
        if self.args.process_index != 0:
            return
        write_json(self.path / "metrics.json", metrics)
        shutil.rmtree(self.path / "_best", ignore_errors=True)  # the model holds these weights now
        print(f"\n{'dev score':24}")
        for task in tasks:
            print(f"{task.name:12} {task.metric:10} {metrics[f'eval_{task.name}_{task.metric}']:.4f}")
        print(f"{'overall':23} {metrics['eval_overall']:.4f}\n\nrun folder: {self.path}", flush=True)


def fingerprints(rows: Mapping[str, DatasetDict]) -> dict[str, dict]:
    """{task: {split: number of rows and fingerprint}} of {task: its clean rows by split}."""
    return {
        name: {split: {"rows": len(part), "sha256": fingerprint(part)} for split, part in splits.items()}
        for name, splits in rows.items()
    }


def deciding_settings(
    run: RunArguments,
    args: MultitaskTrainingArguments,
    tasks: Sequence[Task],
    data: Mapping[str, dict],
    batch_size: int,
) -> dict[str, object]:
    """What decides a run's weights, {name: value}, of its arguments, tasks, `fingerprints` and rows of a step."""
    training = args.to_dict()
    return (
        {name: training[name] for name in DECIDES}
        | {name: getattr(run, name) for name in DECIDES_RUN}
        | {"tasks": [task.name for task in tasks]}
        | {f"task {task.name}": task.to_config() for task in tasks}
        | {f"rows of {name}": splits for name, splits in data.items()}
        | {"rows of a step": batch_size}
    )


def compare_settings(before: Mapping, now: Mapping, path: Path) -> None:
    """Refuse to go on, in a folder, with settings that would have given other results.

    Raises:
        InputError: names the first setting that differs.
    """
    now = json.loads(json.dumps(now, default=str))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path} cannot be resumed with other settings: {name} was {before.get(name)!r} and is "
                f"{now.get(name)!r}; use the flags it was started with, or another --output_dir"
            )


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint with a file that is cut off, or that holds more than tensors and plain data: unpickling
    anything else could run code; and one without the weights or the optimizer's state, which would begin anew.

    Raises:
        InputError: names the file.
    """
    needed = {"weights": ["model*.safetensors*"], "optimizer's state": ["optimizer*", "global_step*"]}  # DeepSpeed's
    for what, patterns in needed.items():
        if not any(file for pattern in patterns for file in folder.glob(pattern)):
            raise InputError(
                f"--resume_from_checkpoint {folder}: the {what} ({patterns[0]}) is not there; name another checkpoint "
                "of the run (--save_only_model leaves none to resume from)"
            )
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_bytes())
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif file.suffix in (".pt", ".pth", ".bin"):
                with safe_globals():  # NumPy's arrays, which the random states have
                    torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # mapped, so nothing is copied
        except Exception as error:  # damage shows in a dozen ways
            raise InputError(
                f"--resume_from_checkpoint {folder}: {file.name} is damaged, or not to be trusted "
                f"({str(error).partition(chr(10))[0]}); name another checkpoint of the run"
            ) from error


def read_run(name: str) -> tuple[RunArguments, dict] | None:
    """The arguments, and all of `run.json`, of the run that left a folder; None of a checkpoint without that file.

    Raises:
        InputError: `run.json` is there and is not a run's.
    """
    path = Path(resolve_folder(name), "run.json")
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return RunArguments(**record["run"]), record
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not the record of a run ({error}); did another version write it?") from error


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    os.replace(draft, path)


def installed_version(name: str) -> str | None:
    """The version of a package by its metadata; None where it has none, as a plain checkout of this one on the path."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the project's checkout; None where it is installed without one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
