"""Predict a file of rows, part by part, and score it if it has labels.

A part is read, predicted and written whole before the next, so memory does not grow with the file. A job that was
stopped goes on: it keeps the parts that are there. Several processes share the parts.
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Dataset
from pyarrow import ArrowException, parquet
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.collate import join_rows
from ..data.labels import LabelReader, even_labels
from ..data.readers import fetch, is_url, read_tables
from ..data.records import to_json, write_json
from ..data.rows import clean_part, text_columns
from ..evaluation.intervals import Scores
from ..evaluation.metrics import overall_score, score, score_keys
from ..evaluation.tables import writing_predictions
from ..model.errors import InputError, explained
from ..model.kinds import KINDS
from ..model.losses import labelled_rows
from ..model.modeling import MultitaskBertModel
from ..model.tasks import Task
from ..training.arguments import check_launch
from ..training.folder_lock import FolderLock
from .pipeline import MultitaskPipeline, find_columns

logger = logging.get_logger(__name__)

PART = 32_768  # rows of a part
MOST_RESAMPLED = 100_000  # labelled rows of a task; with more, intervals take minutes, and are narrow
SETTINGS = "predict.json"
LOG_INTERVAL = 30  # seconds between two states of a progress bar in a log


@dataclasses.dataclass(frozen=True)
class RowFile:
    """A file of rows, checked from its first row to its last.

    Attributes:
        path: local, or an address.
        tasks: {name: task} to predict, with the file's columns of texts.
        labelled: names of the tasks that have labels in it.
        count: its rows.
        size: rows of a part.
        schema: of its columns.
        form: a task, which says how the file quotes.
    """

    path: str
    tasks: dict[str, Task]
    labelled: list[str]
    count: int
    size: int
    schema: pa.Schema
    form: Task

    @classmethod
    def open(cls, pipe: MultitaskPipeline, path: str, names: Sequence[str] | None, size: int) -> "RowFile":
        """Read a file once, so that every mistake in it is found before anything is predicted.

        Args:
            pipe: the pipeline that has the tasks.
            path: the file.
            names: of the tasks to predict; None, all whose columns the file has.
            size: rows of a part.

        Raises:
            InputError: the file cannot be read or has no rows, a task's columns are missing, a text or a label cannot
                be read, or it has a column of a name that predictions have.
        """
        places = pipe.run.records.places if pipe.run else {}
        known = pipe.tasks | {name: place.task for name, place in places.items()}
        form = known[pipe.find(next(iter(names or known))).name]
        count, labelled, schema, tasks = 0, set(), None, {}
        if not (is_url(path) or Path(path).is_file()):
            raise InputError(f"{path}: no such file; expected one of rows to predict")
        with show_progress("checking") as bar:
            for table in read_tables(path, form, size):
                if schema is None:
                    for name in names or pipe.answerable(table.column_names, path):
                        text, *pair = find_columns(pipe.find(name), table.column_names, path)
                        tasks[name] = dataclasses.replace(known[name], text=text, text_pair=pair[0] if pair else None)
                schema = join_schemas(schema, table.schema, path)
                for name, task in tasks.items():
                    try:
                        rows = clean_part(task, table, path, count + 1)
                    except InputError as error:
                        if names or len(tasks) == 1:
                            raise
                        raise InputError(f"{error}; if these are no rows of {name!r}, give --tasks others") from error
                    if not count:
                        pipe.shown_columns({name: task_texts(task, rows.select([0]))}, table.column_names)
                    if labelled_rows(np.array(even_labels(rows["label"][:]))).any():
                        labelled.add(name)
                count += len(table)
                bar.update(len(table))
        if not count:
            raise InputError(f"{path}: has no rows")
        return cls(path, tasks, [name for name in tasks if name in labelled], count, size, schema, form)

    def __iter__(self) -> Iterator[tuple[int, pa.Table]]:
        """Read the parts one after the other: (number, rows)."""
        return enumerate(read_tables(self.path, self.form, self.size, self.schema))

    def clean(self, name: str, number: int, table: pa.Table) -> Dataset:
        """The rows of a part, clean, for the task of that name."""
        return clean_part(self.tasks[name], table, self.path, number * self.size + 1)

    def part_rows(self, number: int) -> int:
        """How many rows a part has."""
        return min(self.size, self.count - number * self.size)

    def part_paths(self, folder: Path) -> list[Path]:
        """The files to write: one, or one for each part, numbered."""
        if self.count <= self.size:
            return [folder / "predictions.parquet"]
        return [folder / f"part-{number:05d}.parquet" for number in range(-(-self.count // self.size))]


def join_schemas(first: pa.Schema | None, second: pa.Schema, path: str) -> pa.Schema:
    """A schema that the rows of both fit: whole numbers become fractions, and a column without values takes any type.
    Raises InputError if a column has two types."""
    with explained(f"{path}: a column has values of several types", ArrowException):
        return second if first is None else pa.unify_schemas([first, second], promote_options="permissive")


def task_texts(task: Task, rows: Dataset) -> list[list[str]]:
    """The texts of clean rows, and of pairs their second texts."""
    return [rows[name][:] for name in text_columns(task)]


def predict_file(
    pipe: MultitaskPipeline,
    path: str,
    output_dir: Path,
    tasks: Sequence[str] | None = None,
    *,
    rows_per_part: int = PART,
) -> dict[str, float]:
    """Predict every row of a file.

    Args:
        pipe: of the model.
        path: a table (CSV, tab-separated), JSON lines or Parquet, local or with an address, compressed or not.
        output_dir: folder for the rows, in the file's order, with the predictions as further columns (see
            `MultitaskPipeline.shown_columns`). A file of at most `rows_per_part` rows leaves `predictions.csv` and
            `predictions.parquet`, a longer one `part-00000.parquet`, ….
        tasks: names of the tasks; by default all whose columns the file has.
        rows_per_part: rows that are read, predicted and written at a time.

    Returns:
        The scores of the tasks whose labels the file has, as in `metrics.json`: `eval_{task}_{metric}`, its bounds
        with `_low` and `_high`, `eval_{task}_rows`, and `eval_overall`. Empty on all processes but the first.

    Raises:
        InputError: as `RowFile.open`; or the folder cannot be written, another process writes it, or it has the
            predictions of another file, model or setting.
    """
    if rows_per_part < 1:
        raise InputError(f"rows_per_part is {rows_per_part}; expected at least 1")
    processes = check_launch()
    source = RowFile.open(pipe, path, tasks, rows_per_part)
    with FolderLock(output_dir) if processes.is_main_process else contextlib.nullcontext():
        if processes.is_main_process:
            begin(source, pipe, output_dir)
        processes.wait_for_everyone()
        predict_parts(source, pipe, output_dir, processes)
        processes.wait_for_everyone()
        if not processes.is_main_process:
            return {}
        if len(paths := source.part_paths(output_dir)) == 1:
            write_csv(paths[0], source)
        if not source.labelled:
            return {}
        scores = score_parts(source, output_dir)
        write_json(output_dir / "metrics.json", scores)
    return scores


def begin(source: RowFile, pipe: MultitaskPipeline, folder: Path) -> None:
    """Record in a folder what its parts are made of: the file, the weights and the settings.

    Raises:
        InputError: the folder has parts of another file, model or setting.
    """
    with open(fetch(source.path, source.form), "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    settings = {
        "rows": {"sha256": content, "count": source.count, "quoting": source.form.quoting},
        "weights": hash_weights(pipe.load()[0]),
        "tasks": [task.to_config() for task in source.tasks.values()],
        "max_length": pipe.max_length,
        "rows_per_part": source.size,
        "bf16": pipe.bf16,
    }
    record = folder / SETTINGS
    there = next((part for part in source.part_paths(folder) if part.exists()), None)
    with explained(f"{record}: cannot be read", OSError, ValueError, hint="delete the folder, or name another one"):
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
    if before is None and there:
        raise InputError(f"{there} is there, but no {SETTINGS} says what it is of; name another --output_dir")
    now = json.loads(to_json(settings))
    if changed := [key for key in now if before is not None and before.get(key, False) != now[key]]:
        raise InputError(
            f"{folder} has predictions with other {' and '.join(changed)} ({SETTINGS}); name another --output_dir, or "
            "delete it to begin again"
        )
    write_json(record, settings)


def hash_weights(model: MultitaskBertModel) -> str:
    """SHA-256 of a model's weights and their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def predict_parts(source: RowFile, pipe: MultitaskPipeline, folder: Path, processes: PartialState) -> None:
    """Write this process's share of the parts that are missing; the first process shows its progress."""
    paths = source.part_paths(folder)
    missing = [number for number, path in enumerate(paths) if not is_whole(path, source.part_rows(number))]
    processes.wait_for_everyone()  # before a new part is written, so that all have the same list
    mine = set(missing[processes.process_index :: processes.num_processes])
    if not missing and processes.is_main_process:
        logger.warning(f"{folder} has all predictions of this file and model already; they are kept")
    shares = f" (1 of {processes.num_processes} shares)" * (processes.num_processes > 1)
    if not mine:
        return
    with show_progress(f"predicting{shares}", sum(map(source.part_rows, mine))) as bar:
        for number, table in source:
            if number not in mine:
                continue
            texts = {name: task_texts(task, source.clean(name, number, table)) for name, task in source.tasks.items()}
            for name, values in pipe.shown_columns(texts, table.column_names, bar.update).items():
                table = table.append_column(name, pa.array(values))
            with writing_predictions(str(paths[number])) as draft:
                parquet.write_table(table.replace_schema_metadata(None), draft, write_page_checksum=True)


def show_progress(what: str, rows: int | None = None) -> Any:
    """A progress bar on the first process: rows done, rows/s and, if the number of rows is known, the time left. Where
    standard error is no terminal, as in the log of a large job, it is written every half minute."""
    shown = sys.stderr.isatty()
    return tqdm(  # not of Transformers, whose bars a pipe does not show: a log of a large job should
        desc=what,
        total=rows,
        unit=" rows",
        # A row of several tasks counts in shares, which are no whole numbers.
        bar_format=rows and "{l_bar}{bar}| {n:,.0f}/{total:,.0f} [{elapsed}<{remaining}, {rate_fmt}]",
        delay=0.1 if shown else LOG_INTERVAL,  # so that an error in the first rows has a line of its own
        mininterval=0.1 if shown else LOG_INTERVAL,
        leave=rows is not None,
        disable=not PartialState().is_main_process,
    )


def is_whole(path: Path, rows: int) -> bool:
    """Whether a part is there, with so many rows."""
    try:
        return path.exists() and parquet.read_metadata(path).num_rows == rows
    except (OSError, ArrowException):
        return False


def write_csv(path: Path, source: RowFile) -> None:
    """Write a part as a CSV file beside it, without the lists of its predictions."""
    table = parquet.read_table(path)
    added = [field for field in table.schema if field.name not in source.schema.names]
    table = table.drop_columns([field.name for field in added if pa.types.is_list(field.type)])
    with (
        writing_predictions(str(path.with_suffix(".csv"))) as draft,
        open(draft, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
            writer.writerow(
                json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value
                for value in row
            )


def score_parts(source: RowFile, folder: Path) -> dict[str, float]:
    """The scores of the parts' predictions (see `predict_file`)."""
    tasks = {name: source.tasks[name] for name in source.labelled}
    decisions: dict[str, list] = {name: [] for name in tasks}
    references: dict[str, list] = {name: [] for name in tasks}
    paths = source.part_paths(folder)
    for number, table in source:
        for name, task in tasks.items():
            labels = np.array(even_labels(source.clean(name, number, table)["label"][:]))
            known = labelled_rows(labels)
            decisions[name].append(torch.from_numpy(read_part(task, paths[number])[known]))
            references[name].append(torch.from_numpy(labels[known]))
    joined = (
        {name: join_rows(parts, KINDS[tasks[name].kind].missing).numpy() for name, parts in side.items()}
        for side in (decisions, references)
    )
    return score_rows(tasks, *joined)


def read_part(task: Task, path: Path) -> np.ndarray:
    """A task's decisions in a part, of the form of labels."""
    kind, reader = KINDS[task.kind], LabelReader(task)
    column = f"{task.name}_{kind.decision}"
    values = parquet.read_table(path, columns=[column])[column].to_pylist()
    decisions = [kind.read_written(task, value, reader.read_one) for value in values]
    return np.array(even_labels(decisions), kind.dtype)


def score_rows(
    tasks: Mapping[str, Task], decisions: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The scores of {task: decisions} and {task: labels} of labelled rows (see `predict_file`), with intervals unless a
    task has more than MOST_RESAMPLED rows."""
    flat: dict[str, float] = {f"eval_{name}_rows": len(rows) for name, rows in labels.items()}
    keys = score_keys(tasks)
    if max(flat.values()) > MOST_RESAMPLED:
        logger.warning(f"more than {MOST_RESAMPLED:,} labelled rows: the scores have no intervals")
        values = {name: {task.metric: score(task, decisions[name], labels[name])} for name, task in tasks.items()}
        flat |= {keys[name]: values[name][task.metric] for name, task in tasks.items()}
        return flat | {keys["overall"]: overall_score(tasks, values)}
    scores = Scores(tasks, decisions, labels)
    for name, key in keys.items():
        value, low, high = scores[name]
        flat |= {key: value, f"{key}_low": low, f"{key}_high": high}
    return flat


def describe_file_scores(scores: Mapping[str, float], tasks: Mapping[str, Task]) -> str:
    """What `predict_file` returns, a line for each of the model's tasks {name: task} that has labels."""
    lines = []
    for name, key in score_keys(tasks).items():
        if (rows := scores.get(f"eval_{name}_rows")) is not None:
            low, high = scores.get(f"{key}_low", np.nan), scores.get(f"{key}_high", np.nan)
            bounds = "" if np.isnan(low) else f"  ({low:.4f} to {high:.4f})"
            lines.append(f"{name}  {tasks[name].metric} {scores[key]:.4f}{bounds}  {rows:,} rows")
    return "\n".join(lines)
