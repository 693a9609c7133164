"""The folder a run leaves: what is in it, when it may be written, and how a run in it goes on."""

import contextlib
import dataclasses
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from datasets import DatasetDict
from transformers import Trainer
from transformers.utils import logging

from ..data.readers import unique_keys
from ..data.records import to_json, write_json
from ..data.rows import HANDOUT, count_used, fingerprint, reads_course_files
from ..model.errors import InputError, explained
from ..model.fields import fits
from ..model.tasks import COLUMNS, Task, load_task, load_tasks
from .arguments import TASK_FIELDS, MultitaskTrainingArguments, RunArguments
from .checkpoints import find_checkpoint, is_copy, list_checkpoints, remove_state
from .folder_lock import FolderLock, contents, remove, writable
from .hub import PUBLIC

logger = logging.get_logger(__name__)

# Fields that decide nothing about a run's weights and scores; a resumed run must have the same value of every other,
# also of one that a later version of Transformers adds. First of the run:
HARMLESS_RUN = {
    *("tasks", *TASK_FIELDS),  # are in Task
    *("data_dir", "overwrite"),  # the rows themselves are compared
}
HARMLESS_TASK = {"ordered", *COLUMNS}  # is for reports; what the columns hold is compared, not their names
# and of training:
HARMLESS = {
    *("output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "debug", "skip_memory_metrics"),
    # Rows of a step are compared; how they are dealt to devices and processes, and by what, is rounding.
    *("per_device_train_batch_size", "gradient_accumulation_steps", "use_cpu", "local_rank", "torch_empty_cache_steps"),
    *("ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_use_gather_object"),
    # Logs.
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
    "gradient_cosine_steps",
    *("log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
    *("trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"),
    # What is kept and pushed.
    *("save_total_limit", "save_on_each_node", "enable_jit_checkpoint"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    "hub_revision",
    # The order of rows is the sampler's, whoever loads them.
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_in_order"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    "option",  # of train_single.py: learning_rate and freeze_encoder say what it does
}
PACKAGES = ("bert_multitask", "torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors")
# Fields of run.json that its readers need, and their types, which have names.
RECORDED = {"run": dict, "training": dict, "decides": dict, "tasks": list, "data_dir": str | None, "max_length": int}
TYPE_NAMES = {dict: "an object", list: "a list", str | None: "a text or null", int: "a whole number"}
TO_GO_ON = (1, 2)  # checkpoints that a run needs: the best and the last; more are kept for their own sake
# What a run may leave besides its checkpoints and run.json, as patterns.
WRITTEN = [
    "metrics.json",  # first: without it a run is unfinished
    *(pattern for pattern in PUBLIC if pattern != "*.py"),
    *(module.name for module in Path(__file__).parents[1].glob("model/*.py")),
    *("special_tokens_map.json", "added_tokens.json", "training_args.bin", "history.jsonl"),
    *("runs", "predictions", "report", "_best"),
]


class RunFolder:
    """`--output_dir`, held against other runs and checked before anything is computed.

    A run is finished when its `metrics.json` exists, which is written last. The first process holds the folder.

    Args:
        args: `output_dir` and `resume_from_checkpoint` are used.
        overwrite: whether a run that is in the folder may be replaced.
    """

    def __init__(self, args: MultitaskTrainingArguments, overwrite: bool):
        self.args, self.overwrite = args, overwrite
        self.path = Path(args.output_dir)
        self.checkpoint: str | None = None
        self.data: dict[str, dict] = {}  # {task: {split: what the card says of its rows}}, on the first process
        if args.resume_from_checkpoint and overwrite:
            raise InputError("--overwrite and --resume_from_checkpoint exclude each other")
        self.held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Hold the folder, check what it holds, and find the checkpoint to go on from.

        Raises:
            InputError: the folder cannot be written, another process writes it, or it holds a run (or something else)
                that the flags do not say what to do with.
        """
        with contextlib.ExitStack() as stack:
            if self.args.process_index == 0:
                stack.enter_context(FolderLock(self.path))
            self.check()
            if self.args.resume_from_checkpoint:
                best = self.args.load_best_model_at_end
                checkpoint = find_checkpoint(self.path, self.args.resume_from_checkpoint, best)
                self.checkpoint = None if checkpoint is None else str(checkpoint)
            self.held = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        """Let go of the folder."""
        self.held.close()

    def check(self) -> None:
        """Raises InputError if the folder holds something, and the flags do not say what to do with it. What is left of
        a run that was cut off before it began counts as nothing."""
        found = contents(self.path) - {"run.tmp"}
        if not found:
            return
        if "run.json" not in found:
            raise InputError(f"--output_dir {self.path} exists and holds no run; choose another folder")
        if self.overwrite:
            return
        if "metrics.json" in found:
            raise InputError(
                f"--output_dir {self.path} holds a finished run; choose another folder, or replace it with --overwrite"
            )
        if not self.args.resume_from_checkpoint:
            raise InputError(
                f"--output_dir {self.path} holds an unfinished run; go on with --resume_from_checkpoint, "
                "or start anew with --overwrite"
            )
        read_run(self.path)

    def clear(self) -> None:
        """Remove what a run left, and nothing else; `run.json` stays until it is replaced, so that the folder is known
        as a run's all the time."""
        remove([path for pattern in WRITTEN for path in self.path.glob(pattern)])
        remove(list_checkpoints(self.path).values())

    def begin(
        self, run: RunArguments, tasks: Sequence[Task], rows: Mapping[str, DatasetDict], trainer: Trainer
    ) -> None:
        """Write `run.json`: the configuration, versions, commit and data fingerprints that make the run repeatable, and
        the trainer's {task: batches in the whole plan}, from which a report draws the plan.

        Raises:
            InputError: the run to resume had other settings, or its folder cannot be written.
        """
        if self.args.process_index != 0:
            return
        data, used = fingerprints(rows), {name: count_used(splits) for name, splits in rows.items()}
        self.data = {
            name: {split: part | {"used": used[name][split]} for split, part in data[name].items()} for name in data
        }
        places = row_places(tasks, run.data_dir, trainer.processing_class.model_max_length)
        record = {
            "decides": deciding_settings(run, self.args, tasks, data),
            "used_rows": used,
            "run": dataclasses.asdict(run) | {"data_dir": places["data_dir"]},
            **places,
            "training": self.args.to_dict(),  # Transformers blanks the tokens
            "batches": dict(trainer.batches),
            "processes": self.args.world_size,
            "versions": {name: installed_version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "commit": git_commit(),
        }
        file = self.path / "run.json"
        if self.args.resume_from_checkpoint and file.exists():
            before = read_run(self.path)
            compare_settings(recorded_settings(before, record["decides"]), record["decides"], self.path)
        with writable(self.path):
            if self.overwrite:
                self.clear()
            write_json(file, record)

    def finish(self, metrics: dict[str, float]) -> None:
        """Write `metrics.json`, which marks the run as finished, and remove what only an unfinished run needs: the best
        weights of each task, which the model holds now, the state of the checkpoints beside their weights, and the
        checkpoint with the weights of the run folder, unless more are kept than going on needs."""
        if self.args.process_index != 0:
            return
        write_json(self.path / "metrics.json", metrics)
        shutil.rmtree(self.path / "_best", ignore_errors=True)
        for checkpoint in list_checkpoints(self.path).values():
            remove_state(checkpoint)
            if self.args.save_total_limit in TO_GO_ON and is_copy(checkpoint, self.path):
                remove([checkpoint])


def fingerprints(rows: Mapping[str, DatasetDict]) -> dict[str, dict]:
    """{task: {split: number of rows and fingerprint}} of {task: its clean rows by split}."""
    return {
        name: {split: {"rows": len(part), "sha256": fingerprint(part)} for split, part in splits.items()}
        for name, splits in rows.items()
    }


def deciding_settings(
    run: RunArguments, args: MultitaskTrainingArguments, tasks: Sequence[Task], data: Mapping[str, dict]
) -> dict[str, object]:
    """{name: value} of all that decides a run's weights and scores; `data` are its `fingerprints`."""
    training = args.to_dict()
    return (
        {field.name: training[field.name] for field in dataclasses.fields(args) if field.name not in HARMLESS}
        | {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name not in HARMLESS_RUN}
        | {"mixed precision": args.mixed_precision}  # Accelerate's configuration may say it
        | {"tasks": [task.name for task in tasks]}
        | {f"task {task.name}": deciding_fields(task) for task in tasks}
        | {f"rows of {name}": splits for name, splits in data.items()}
        | {"rows of a step": args.total_train_batch_size}
    )


def deciding_fields(task: Task) -> dict[str, object]:
    """What decides of a task: all but where its rows come from, and HARMLESS_TASK."""
    return {key: value for key, value in task.to_config().items() if key not in HARMLESS_TASK}


def recorded_settings(record: Mapping, names: Iterable[str]) -> dict[str, object]:
    """What decided a recorded run, {name: value}, with what an older version recorded elsewhere or did not know."""
    fields = [*dataclasses.fields(RunArguments), *dataclasses.fields(MultitaskTrainingArguments)]
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    known = defaults | record["training"] | record["run"]
    precision = "bf16" if known.get("bf16") else "fp16" if known.get("fp16") else "no"
    found = {name: known[name] for name in names if name in known} | {"mixed precision": precision} | record["decides"]
    for name, value in found.items():
        if name.startswith("task "):
            with contextlib.suppress(InputError):  # then the comparison refuses it
                found[name] = deciding_fields(load_task(value))
    return json.loads(to_json(found))


def compare_settings(before: Mapping, now: Mapping, path: Path) -> None:
    """Check that a run goes on, at `path`, with the settings that it began with.

    Raises:
        InputError: they differ; the message names the first setting that does.
    """
    before, now = (json.loads(to_json(settings)) for settings in (before, now))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path} cannot be resumed with other settings: {name} was {before.get(name)!r} and is "
                f"{now.get(name)!r}; use the flags it was started with, or another --output_dir"
            )


def read_run(folder: Path) -> dict | None:
    """All of `run.json` of the run that left a folder; None of a checkpoint without that file.

    Its `tasks`, `data_dir` and `max_length` say where the run's rows are and how they were read. Earlier versions did
    not write them; then they are worked out from the flags in `run`.

    Raises:
        InputError: `run.json` is there and is not a run's.
    """
    path = folder / "run.json"
    if not path.is_file():
        return None
    damage = (InputError, ValueError, KeyError, TypeError, RecursionError)
    with explained(f"{path}: is not the record of a run", *damage, hint="did another version write it?"):
        record = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
        if "tasks" not in record:
            run = RunArguments(**record["run"])
            record = row_places(run.load_tasks(), run.data_dir, run.max_length) | record
        for field, kind in RECORDED.items():
            if not fits(record[field], kind):
                raise TypeError(f"{field} is not {TYPE_NAMES[kind]}")
        if record["max_length"] < 1:
            raise ValueError(f"max_length is {record['max_length']}")
        load_tasks(record["tasks"])  # they are right
        return record


def row_places(tasks: Sequence[Task], data_dir: str, max_length: int) -> dict[str, object]:
    """What `run.json` says about a run's rows: its tasks with all their fields, where the rows are (None, where the
    tasks themselves say), and the tokens that a row may have."""
    if data_dir == HANDOUT and not any(map(reads_course_files, tasks)):
        data_dir = None
    return {"tasks": list(map(dataclasses.asdict, tasks)), "data_dir": data_dir, "max_length": max_length}


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
