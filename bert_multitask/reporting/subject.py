"""What a report is about: a run, a folder of prediction tables or one table, with the labels of its rows."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from ..data.records import read_history
from ..evaluation.tables import find_tables
from ..inference.split_tables import SplitTables, read_ensemble
from ..model.configuration import resolve_folder
from ..model.errors import InputError, explained
from ..model.tasks import Task
from ..training.run_folder import read_run
from ..training.schedule import SCHEDULES, first_steps
from .analysis import LabelledPredictions, label_predictions


@dataclass
class Source:
    """A run, an ensemble or a table, with its predictions and records.

    Attributes:
        name: folder, table or Hub id.
        tasks: {name: task}.
        predictions: {name: predictions beside labels} of the tasks that have both.
        unscored: a sentence for each other task.
        record: the contents of `run.json`; None without a run.
        history: the entries of `history.jsonl`; [] without a run.
        ensemble: the contents of `ensemble.json`; None without an ensemble.
        train: {name: clean training rows} of the tasks of which they are at hand.
    """

    name: str
    tasks: dict[str, Task]
    predictions: dict[str, LabelledPredictions]
    unscored: list[str]
    record: dict | None
    history: list[dict]
    ensemble: dict | None
    train: dict[str, Dataset] = field(default_factory=dict)

    def plan(self) -> list[str] | None:
        """The task or group of each step of the run, made again from the batches in `run.json`, which have the order of
        the run; None if it has none. Raises InputError if `run.json` is damaged."""
        if not (self.record and self.record.get("batches")):
            return None
        damage = (KeyError, TypeError, ValueError, OverflowError, MemoryError)
        with explained(f"{self.name}/run.json: does not describe a plan", *damage):
            decides = self.record["decides"]
            batches = {name: int(self.record["batches"][name]) for name in recorded_units(decides)}
            seed = decides["seed"] if decides["data_seed"] is None else decides["data_seed"]
            return first_steps(SCHEDULES[decides["schedule"]](batches, seed), decides["max_steps"])


def recorded_units(decides: Mapping) -> list[str]:
    """The tasks and groups of a recorded run, in its order."""
    return list(dict.fromkeys(decides.get(f"task {name}", {}).get("group") or name for name in decides["tasks"]))


def open_sources(
    names: Sequence[str], split: str, tasks: Sequence[str] | None = None, data_dir: str | None = None
) -> list[Source]:
    """Read one source, or several of the same rows; the arguments are those of `SplitTables`.

    Raises:
        InputError: a source has no table, one is of other rows, or nothing says where the rows are.
    """
    found = SplitTables(names, split, tasks=tasks, data_dir=data_dir)
    if empty := [name for name, tables in zip(names, found.tables, strict=True) if not tables]:
        raise InputError(f"{empty[0]}: no table {{task}}-{split}.parquet or .csv, and no run to predict it")
    rows = {task: found.rows(task) for task in found.tasks}
    train = read_train(found)
    sources = []
    for name, tables in zip(names, found.tables, strict=True):
        predictions, unscored = {}, []
        for task in found.tasks:
            if task not in tables:
                unscored.append(f"Task {task} is not scored: there are no predictions.")
            elif task not in found.labels:
                unscored.append(f"Task {task} is not scored: no {split} row has a label.")
            else:
                predictions[task] = label_predictions(tables[task], rows[task])
        if not predictions:
            raise InputError(f"{name}: there is nothing to score. {' '.join(unscored)}")
        history = read_history(Path(resolve_folder(name), "history.jsonl"))
        record, ensemble = read_run(name), read_ensemble(name)
        sources.append(Source(name, found.tasks, predictions, unscored, record, history, ensemble, train))
    return sources


def read_train(found: SplitTables) -> dict[str, Dataset]:
    """{task: clean training rows} of the tasks of which they are at hand; a report can do without."""
    train = {}
    for name, task in found.tasks.items():
        place = found.locate(task)
        with contextlib.suppress(InputError):
            if place.is_known and (rows := place.load("train")) is not None:
                train[name] = rows
    return train


def open_dev(name: str, tasks: Sequence[str] | None, data_dir: str | None) -> dict[str, LabelledPredictions]:
    """{task: dev predictions beside labels} of a run or a folder, for a report of test to fit on; {} if they are not at
    hand."""
    with contextlib.suppress(InputError):
        if Path(resolve_folder(name)).is_dir() and find_tables(name, "dev"):
            return open_sources([name], "dev", tasks, data_dir)[0].predictions
    return {}
