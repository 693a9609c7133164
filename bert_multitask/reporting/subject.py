"""What a report is about: a run, a folder of prediction tables or one table, with the labels of its rows."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from ..data.records import read_history
from ..evaluation.tables import find_tables
from ..inference.split_tables import SplitTables
from ..inference.trained_run import Records
from ..model.configuration import resolve_folder
from ..model.errors import InputError, explained
from ..model.tasks import Task
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
        records: of the run or the ensemble.
        history: the entries of `history.jsonl`; [] without a run.
        train: {name: clean training rows} of the tasks of which they are at hand.
    """

    name: str
    tasks: dict[str, Task]
    predictions: dict[str, LabelledPredictions]
    unscored: list[str]
    records: Records
    history: list[dict]
    train: dict[str, Dataset] = field(default_factory=dict)

    def plan(self) -> list[str] | None:
        """The task or group of each step of the run, made again from the batches in `run.json`, which have the order of
        the run; None if it has none. Raises InputError if `run.json` is damaged."""
        if not (record := self.records.run) or not record.get("batches"):
            return None
        damage = (KeyError, TypeError, ValueError, OverflowError, MemoryError)
        with explained(f"{self.name}/run.json: does not describe a plan", *damage):
            decides = record["decides"]
            batches = {name: int(record["batches"][name]) for name in recorded_units(decides)}
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
    if empty := [member for member in found.members if not member.tables]:
        raise InputError(f"{empty[0].name}: no table {{task}}-{split}.parquet or .csv, and no run to predict it")
    rows = {task: found.rows(task) for task in found.tasks}
    train = read_train(found)
    sources = []
    for member in found.members:
        predictions, unscored = {}, []
        for task in found.tasks:
            if task not in member.tables:
                unscored.append(f"Task {task} is not scored: there are no predictions.")
            elif task not in found.labels:
                unscored.append(f"Task {task} is not scored: no {split} row has a label.")
            else:
                predictions[task] = label_predictions(member.tables[task], rows[task])
        if not predictions:
            raise InputError(f"{member.name}: there is nothing to score. {' '.join(unscored)}")
        history = read_history(member.records.folder / "history.jsonl")
        sources.append(Source(member.name, found.tasks, predictions, unscored, member.records, history, train))
    return sources


def read_train(found: SplitTables) -> dict[str, Dataset]:
    """{task: clean training rows} of the tasks of which they are at hand; a report can do without."""
    train = {}
    for name, place in found.places.items():
        with contextlib.suppress(InputError):
            if (rows := place.load("train")) is not None:
                train[name] = rows
    return train


def open_dev(name: str, tasks: Sequence[str] | None, data_dir: str | None) -> dict[str, LabelledPredictions]:
    """{task: dev predictions beside labels} of a run or a folder, for a report of test to fit on; {} if they are not at
    hand."""
    with contextlib.suppress(InputError):
        if find_tables(Path(resolve_folder(name)), "dev"):
            return open_sources([name], "dev", tasks, data_dir)[0].predictions
    return {}
