"""What a report is of: a run folder, a folder of prediction tables or one table, read with the labels of its rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import DatasetDict

from .analysis import LabelledPredictions, label_predictions
from .arguments import RunArguments
from .configuration import InputError
from .data import load_rows, sample_rows, usable_rows
from .losses import UNLABELLED
from .schedule import SCHEDULES, count_batches
from .tasks import TASKS, Task


class Source:
    """A run, an ensemble or a table, with what it left.

    Args:
        path: of its folder, or of the table.
        split: whose predictions, "dev" or "test".
        tasks: {name: task}.
        rows: {name: the task's clean rows by split}.

    Attributes:
        record: what `run.json` says; None where there is no run.
        history: the entries of `history.jsonl`; none where there is no run.
        predictions: {name: predictions beside labels} of the tasks that have both.
        unscored: a sentence for each other task.

    Raises:
        InputError: there is no table, one is of other rows than the task's, or nothing can be scored.
    """

    def __init__(self, path: Path, split: str, tasks: Mapping[str, Task], rows: Mapping[str, DatasetDict]):
        self.path, self.split, self.tasks, self.rows = path, split, tasks, rows
        self.record = read_record(path)
        history = path / "history.jsonl"
        lines = history.read_text(encoding="utf-8").splitlines() if self.record and history.is_file() else ()
        self.history: list[dict] = list(map(json.loads, lines))
        tables = find_tables(path, split)
        self.predictions: dict[str, LabelledPredictions] = {}
        self.unscored: list[str] = []
        for name, task in tasks.items():
            if name not in tables:
                self.unscored.append(f"Task {name} is not scored: there are no predictions.")
            elif split not in rows[name] or set(rows[name][split]["label"][:]) <= {UNLABELLED}:
                self.unscored.append(f"Task {name} is not scored: no {split} row has a label.")
            else:
                self.predictions[name] = label_predictions(task, rows[name][split], tables[name])
        if not self.predictions:
            raise InputError(f"{path}: there is nothing to score. {' '.join(self.unscored)}")

    def plan(self) -> list[str] | None:
        """The task of each step of the run; None if the training rows are not as many as `run.json` says."""
        decides = self.record["decides"]
        for name in self.tasks:
            counted = decides.get(f"rows of {name}", {}).get("train", {}).get("rows")
            if counted != len(self.rows[name].get("train", ())):
                return None
        used = {name: usable_rows(task, self.rows[name]["train"], "train") for name, task in self.tasks.items()}
        sizes = {name: len(sample_rows(task, used[name], seed=0)) for name, task in self.tasks.items()}
        epochs = {name: task.epochs for name, task in self.tasks.items()}
        seed = decides["seed"] if decides["data_seed"] is None else decides["data_seed"]
        batches = count_batches(sizes, epochs, decides["rows of a step"], decides["budget"])
        plan = SCHEDULES[decides["schedule"]](batches, seed)
        return plan[: decides["max_steps"]] if decides["max_steps"] > 0 else plan


def open_sources(
    paths: Sequence[Path], split: str, data_dir: str | None = None, tasks: Sequence[str | dict | Task] | None = None
) -> list[Source]:
    """Read one source, or several of the same rows.

    Args:
        paths: run folders, folders of tables TASK-SPLIT.parquet, or such tables.
        split: "dev" or "test".
        data_dir: where the rows are, as for training; by default those of the first run among the paths.
        tasks: as for training; by default those of that run, or the presets that the first path's tables are named
            after.

    Raises:
        InputError: nothing says where the rows are or what the tasks are, or a source cannot be read.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; expected a run, or a folder of prediction tables")
    record = next(filter(None, map(read_record, paths)), None)
    if not (record or data_dir):
        raise InputError(f"{paths[0]} has no run.json that says where the labels are; name their folder: --data_dir")
    if not (record or tasks):
        names = find_tables(paths[0], split)
        if unknown := [name for name in names if name not in TASKS]:
            raise InputError(f"{paths[0]}: its task {unknown[0]!r} is no preset; describe the tasks with --tasks")
        tasks = [name for name in TASKS if name in names]
    run = RunArguments(**record["run"]) if record else RunArguments()
    run.data_dir, run.tasks = data_dir or run.data_dir, tasks or run.tasks
    specs = {task.name: task for task in run.load_tasks()}
    rows = {name: load_rows(task, run.data_dir) for name, task in specs.items()}
    return [Source(path, split, specs, rows) for path in paths]


def read_record(path: Path) -> dict | None:
    """What the `run.json` of a folder says; None where there is none."""
    file = path / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def find_tables(path: Path, split: str) -> dict[str, Path]:
    """{task: prediction table} of a run, of a folder of tables, or the one table that the path is."""
    ending = f"-{split}.parquet"
    folder = path / "predictions" if (path / "predictions").is_dir() else path
    files = [path] if path.is_file() else sorted(folder.glob(f"*{ending}"))
    if path.is_file() and not path.name.endswith(ending):
        raise InputError(f"{path}: expected a run, a folder, or a table called TASK{ending}")
    if not files:
        raise InputError(f"{folder} holds no table TASK{ending}; finish the run, or predict with the trained model")
    return {file.name.removesuffix(ending): file for file in files}
