"""Prediction tables of a split, written before or predicted now, with their rows, labels and scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from datasets import Dataset

from ..data.collate import join_rows
from ..data.labels import even_labels
from ..data.rows import usable_rows
from ..data.tokens import tokenise
from ..evaluation.metrics import overall_score, score_decisions, score_keys
from ..evaluation.predict import group_alike, predict_tasks
from ..evaluation.tables import Predictions, check_alike, find_tables, prediction_table, read_decisions, with_texts
from ..model.configuration import resolve_folder
from ..model.errors import InputError
from ..model.losses import labelled_rows
from ..model.tasks import TASKS, Task, load_task
from ..training.arguments import check_launch, parse_json
from .trained_run import Place, Records, TrainedRun

# The fields that say where a task's rows are and how they are read; a checkpoint's config.json does not have them.
SOURCE = ("text", "text_pair", "label", "id", "files", "dev_share", "quoting", "hub", "extra_train")


@dataclass
class Member:
    """What one of the names of `SplitTables` stands for.

    Attributes:
        name: as it was given, of an opened run its name.
        records: what its folder says of the rows.
        tables: {task: its table}, one row a prediction in file order. A task without such a split has no table.
        run: that makes the tables, where there are none.
    """

    name: str
    records: Records
    tables: dict[str, Predictions]
    run: TrainedRun | None = None

    @classmethod
    def open(cls, name: str | TrainedRun, split: str) -> Self:
        """Find the tables of a split or, without any, open the run."""
        run = name
        if isinstance(name, str):
            folder = Path(resolve_folder(name))
            if (tables := find_tables(folder, split)) or not is_run(folder):
                return cls(name, Records.read(folder), tables)
            run = TrainedRun.open(name)
        return cls(run.name, run.records, {}, run)


class SplitTables:
    """The prediction tables of one split, and the rows that they are of.

    A run without tables predicts them now. All rows are read and tokenised before the first model is loaded, and only
    once for runs with the same tokenizer and encoding. Of several processes each predicts a share of the rows, and all
    get the whole tables.

    Args:
        names: run folders, Hub ids, `package:NAME/PATH`, folders of prediction files, or such files. An opened run
            predicts now even if it has tables.
        split: train, dev or test.
        tasks: names of the tasks to take, or JSON of a task with its name and its files; by default all.
        data_dir: where the rows are (see `load_rows`); by default where the runs among `names` have theirs.
        batch_size: rows that a process predicts at a time.
        bf16: whether runs compute in bfloat16 (see `predict_tasks`).

    Attributes:
        members: what the names stand for, with their tables.
        tasks: {name: task} of all the tables, in the order of the argument or of the first run.
        places: {name: where its rows are} of the same.

    Raises:
        InputError: there is no such run, it has no such task, or nothing says where its rows are.
    """

    def __init__(
        self,
        names: Sequence[str | TrainedRun],
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        data_dir: str | None = None,
        batch_size: int = 64,
        bf16: bool = False,
    ):
        self.split, self.data_dir, self.batch_size, self.bf16 = split, data_dir, batch_size, bf16
        self.given = read_specs(tasks or ())
        self.read: dict[str, Dataset | None] = {}  # rows and tokens, by all that they depend on
        self.members = [Member.open(name, split) for name in names]
        self.known = [member.records.places for member in self.members if member.records.places]
        for member in self.members:
            known = member.run.tasks if member.run else member.tables
            if known and (missing := [task for task in self.given if task not in known]):
                raise InputError(f"--tasks names {missing[0]!r}; the tasks of {member.name} are {', '.join(known)}")
            member.tables = {task: member.tables[task] for task in member.tables if task in (self.given or known)}
        self.predict([member for member in self.members if member.run])
        found = {name: table.task for member in reversed(self.members) for name, table in member.tables.items()}
        order = self.given or [*next(iter(self.known), {}), *TASKS, *found]
        self.places = {name: self.locate(found[name]) for name in order if name in found}
        self.tasks = {name: place.task for name, place in self.places.items()}

    def rows(self, task: str) -> Dataset | None:
        """The clean rows of a task's tables, with or without labels; None where the task has no such split.

        Raises:
            InputError: nothing says where they are, or they are not there.
        """
        return self.read_rows(self.places[task], self.members[0].name)

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """{task: labels (N,), `no_label` where a row has none} of the tasks that have any, where the rows are known.

        Raises:
            InputError: the rows are not there, or not those of the tables.
        """
        found = {}
        for name, place in self.places.items():
            rows = self.read_rows(place, self.members[0].name) if place.is_known else None
            if rows is not None and labelled_rows(values := np.array(even_labels(rows["label"][:]))).any():
                table = next(member.tables[name] for member in self.members if name in member.tables)
                own = with_texts(place.task, rows, rows)
                check_alike([table, Predictions(place.task, own, f"{place.data_dir} ({name})")])
                found[name] = values
        return found

    def locate(self, task: Task, own: Mapping[str, Place] | None = None) -> Place:
        """Where a task's rows are: as the run itself says (`own`), else as the first other that has such a task."""
        known = [own, *self.known] if own else self.known
        preset = Place(TASKS.get(task.name), next(iter(known[0].values())).data_dir if known else None)
        source, data_dir, record = next((places[task.name] for places in known if task.name in places), preset)
        fields = {key: getattr(source, key) for key in SOURCE} if source else {}
        given = self.given.get(task.name, {})
        own_dev = {"dev_share": None} if "dev" in given.get("files", ()) else {}
        located = load_task(task.to_config() | fields | own_dev | given)
        return Place(located, self.data_dir or data_dir, record)

    def read_rows(self, place: Place, name: str) -> Dataset | None:
        """The clean rows at a place, read once; `name` is that of the run or tables, for messages."""
        task, data_dir, record = place
        if not task.files and not task.hub:
            example = json.dumps({"name": task.name, "files": {"train": "FILE", "dev": "FILE", "test": "FILE"}})
            raise InputError(f"{name} does not say where the rows of its task {task.name!r} are: --tasks '{example}'")
        if task.files and data_dir is None:
            raise InputError(f"{name} does not say where its rows are; name a folder, a URL or hub with --data_dir")
        key = repr(("rows", data_dir, task.name, task.label_names, *(getattr(task, field) for field in SOURCE)))
        if key not in self.read:
            try:
                rows = place.load(self.split)
            except InputError as error:  # in the rows, or in what the record says about them
                said = f" ({record} names the rows and their columns)" if record else ""
                raise InputError(f"{error}{said}") from error
            # Treated as a test split: rows with gaps are kept, with a warning.
            self.read[key] = None if rows is None else usable_rows(task, rows, "test")
        return self.read[key]

    def read_tokens(self, run: TrainedRun) -> dict[str, tuple[Task, Dataset, Dataset]]:
        """{task: (task, rows, tokens)} of a run's tasks that have the split."""
        tokenizer = run.load_tokenizer()
        places = {name: self.locate(run.tasks[name], run.records.places) for name in self.given or run.tasks}
        found = {}
        for name, place in places.items():
            if (rows := self.read_rows(place, run.name)) is None:
                continue
            task = place.task
            form = (task.by_words, task.truncation, task.prompt, task.pair_encoding or run.config.pair_encoding)
            # `self.read` keeps the rows, so their id is not used again.
            key = repr((name, id(rows), tokenizer.backend_tokenizer.to_str(), run.max_length, *form))
            if key not in self.read:
                self.read[key] = tokenise(task, rows, tokenizer, run.max_length, run.config.pair_encoding)
            found[name] = task, rows, self.read[key]
        return found

    def predict(self, members: Sequence[Member]) -> None:
        """Fill in the tables of members that are runs."""
        if not members:
            return
        processes = check_launch()
        with processes.local_main_process_first():  # writes the cache of tokens that the others read
            inputs = [self.read_tokens(member.run) for member in members]
        for member, own in zip(members, inputs, strict=True):
            model = member.run.load_model().to(processes.device) if own else None
            for names in same_tokens({name: tokens for name, (*_, tokens) in own.items()}):
                tokens = own[names[0]][-1]
                share = np.array_split(np.arange(len(tokens)), processes.num_processes)[processes.process_index]
                found = predict_tasks(model, names, tokens.select(share), self.batch_size, bf16=self.bf16)
                for name in names:
                    task, rows, tokens = own[name]
                    parts = [torch.from_numpy(part) for part in gather_object([found[name]])]
                    table = prediction_table(task, tokens["id"][:], join_rows(parts, 0).numpy(), tokens)
                    member.tables[name] = Predictions(task, with_texts(task, table, rows), member.name)


def same_tokens(tokens: Mapping[str, Dataset]) -> list[list[str]]:
    """The names of {task: tokens}, those with the same tokens together, such as a group's tasks."""
    columns = {name: part.select_columns(["input_ids", "token_type_ids"]) for name, part in tokens.items()}
    tables = {name: part.with_format("arrow")[:] for name, part in columns.items()}
    return group_alike(tables, lambda one, other: tables[one].equals(tables[other]))


def read_specs(specs: Sequence[str]) -> dict[str, dict]:
    """Read `--tasks`, names or JSON: {name: the fields given}.

    Raises:
        InputError: a value is damaged JSON, or has other fields than those of SOURCE.
    """
    given = {}
    for spec in specs:
        fields = {"name": spec}
        if spec.startswith("{"):
            fields = parse_json("--tasks", spec, 'JSON such as {"name": "nli", "files": {…}}')
        if other := sorted(set(fields) - {"name", *SOURCE}):
            raise InputError(
                f"--tasks: {other[0]!r} of {fields.get('name')!r} is the run's own; give only {', '.join(SOURCE)}"
            )
        given[fields.get("name")] = fields
    return given


def is_run(path: Path) -> bool:
    """Whether a path is that of a checkpoint, or may be a Hub id."""
    return not path.exists() or (path / "config.json").exists() or any(path.glob("checkpoint-*"))  # the last is refused


def score_tables(
    tasks: Mapping[str, Task], tables: Mapping[str, Dataset], labels: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The scores of the tasks that have labels, by the keys of `score_keys`.

    Args:
        tables: {name: prediction table}.
        labels: {name: labels (N,) of the table's rows} of the tasks to score.
    """
    scored = {name: tasks[name] for name in tables if name in labels}
    scores = {
        name: score_decisions(task, read_decisions(task, tables[name]), labels[name]) for name, task in scored.items()
    }
    flat = {f"eval_{name}_{key}": value for name in scores for key, value in scores[name].items()}
    return flat | {"eval_overall": overall_score(scored, scores)}


def describe_scores(
    scores: Mapping[str, Mapping[str, float]], tasks: Mapping[str, Task], title: str = "dev score"
) -> str:
    """The scores of several predictions as a table, a line each.

    Args:
        scores: {what predicted: its `score_tables`}, all of the same tasks.
        tasks: {name: task}.
        title: of the first column.
    """
    frame = pd.DataFrame.from_dict(scores, orient="index")
    keys = {key: name for name, key in score_keys(tasks).items() if key in frame}
    frame = frame[list(keys)].rename(columns=keys).rename_axis(columns=title)
    return frame.to_string(col_space=9, float_format="{:.4f}".format)
