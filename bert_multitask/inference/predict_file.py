"""A file of rows → the same rows with predictions, in parts that are each written whole; its scores if it has labels.

A part is read, predicted and written at once, so memory does not grow with the file. What was stopped goes on: parts
that are there are kept. Several processes share the parts.
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from pyarrow import ArrowException, parquet
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.collate import join_rows
from ..data.labels import LabelReader, even_labels
from ..data.readers import fetch, is_url, read_tables
from ..data.records import to_json, write_json
from ..data.rows import clean_part, text_columns
from ..evaluation.intervals import Scores
from ..evaluation.metrics import overall_score, score
from ..evaluation.tables import writing_predictions
from ..model.errors import InputError
from ..model.kinds import KINDS
from ..model.losses import labelled_rows
from ..model.modeling import MultitaskBertModel
from ..model.tasks import Task, load_tasks
from ..training.arguments import check_launch
from ..training.folder_lock import FolderLock
from .pipeline import MultitaskPipeline, find_columns

logger = logging.get_logger(__name__)

PART = 32_768  # rows of a part
MOST_RESAMPLED = 100_000  # labelled rows of a task; of more, an interval takes minutes, and is narrow
SETTINGS = "predict.json"


class Part(NamedTuple):
    """Some rows of a file: their number among the parts, the number of the first row (from 1), and the rows."""

    number: int
    first: int
    rows: pa.Table


@dataclasses.dataclass(frozen=True)
class RowFile:
    """A file of rows, checked from its first row to its last.

    Attributes:
        path: local, or an address.
        tasks: {name: task} to predict, with the file's columns of texts.
        labelled: the names of those that have labels in it.
        count: its rows.
        size: rows of a part.
        schema: of its columns.
        form: the task that says how tables quote.
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
            pipe: whose tasks they are.
            path: of the file.
            names: of the tasks to predict; None, all whose columns it has.
            size: rows of a part.

        Raises:
            InputError: the file cannot be read or has no rows, a task's columns are missing, a text or a label cannot
                be read, or it has a column of a name that predictions have.
        """
        known = pipe.tasks | (load_tasks(pipe.run.record["tasks"]) if pipe.run and pipe.run.record else {})
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
                    rows = clean_part(task, table, path, count + 1)
                    if not count:
                        pipe.shown_columns({name: task_texts(task, rows.select([0]))}, table.column_names)
                    if labelled_rows(np.array(even_labels(rows["label"][:]))).any():
                        labelled.add(name)
                count += len(table)
                bar.update(len(table))
        if not count:
            raise InputError(f"{path}: has no rows")
        return cls(path, tasks, [name for name in tasks if name in labelled], count, size, schema, form)

    def __iter__(self) -> Iterator[Part]:
        """Its parts."""
        for number, table in enumerate(read_tables(self.path, self.form, self.size, self.schema)):
            yield Part(number, number * self.size + 1, table)

    def part_rows(self, number: int) -> int:
        """How many rows a part has."""
        return min(self.size, self.count - number * self.size)

    def part_paths(self, folder: Path) -> list[Path]:
        """The files of its parts: one, or a numbered one for each."""
        if self.count <= self.size:
            return [folder / "predictions.parquet"]
        return [folder / f"part-{number:05d}.parquet" for number in range(-(-self.count // self.size))]


def join_schemas(first: pa.Schema | None, second: pa.Schema, path: str) -> pa.Schema:
    """A schema that the rows of both fit: whole numbers become fractions, and a column without values takes any type.

    Raises:
        InputError: a column is of two types.
    """
    try:
        return second if first is None else pa.unify_schemas([first, second], promote_options="permissive")
    except ArrowException as error:
        raise InputError(f"{path}: a column has values of several types ({error})") from error


def task_texts(task: Task, rows) -> list[list[str]]:
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
        output_dir: folder for the rows with all their columns and the predictions as further ones (see
            `MultitaskPipeline.shown_columns`), in the file's order. A file of at most `rows_per_part` rows leaves
            `predictions.csv` and `predictions.parquet`, a longer one `part-00000.parquet`, ….
        tasks: names of the tasks; by default all whose columns the file has.
        rows_per_part: rows that are read, predicted and written at a time.

    Returns:
        The scores of the tasks whose labels the file has, as in `metrics.json`: `eval_{task}_{metric}`, its bounds
        with `_low` and `_high`, `eval_{task}_rows`, and `eval_overall`. Empty on all processes but the first.

    Raises:
        InputError: as `RowFile.open`; or the folder cannot be written, is being written, or has the predictions of
            another file, model or setting.
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
        scores = score_parts(source, output_dir) if source.labelled else {}
        if scores:
            write_json(output_dir / "metrics.json", scores)
    return scores


def begin(source: RowFile, pipe: MultitaskPipeline, folder: Path) -> None:
    """Note in a folder what its parts are of, or compare it with what is noted there.

    Raises:
        InputError: the folder has parts of something else.
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
    try:
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{record}: cannot be read ({error}); delete the folder, or name another one") from error
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
    """Write this process's share of the parts that are not there yet; the first process shows its progress."""
    paths = source.part_paths(folder)
    missing = [number for number, path in enumerate(paths) if not is_whole(path, source.part_rows(number))]
    processes.wait_for_everyone()  # before the first new part is there, so that all have the same list
    mine = set(missing[processes.process_index :: processes.num_processes])
    if not missing and processes.is_main_process:
        logger.warning(f"{folder} has all predictions of this file and model already; they are kept")
    shares = f" (1 of {processes.num_processes} shares)" * (processes.num_processes > 1)
    if not mine:
        return
    with show_progress(f"predicting{shares}", sum(map(source.part_rows, mine))) as bar:
        for number, first, table in source:
            if number not in mine:
                continue
            rows = {name: clean_part(task, table, source.path, first) for name, task in source.tasks.items()}
            texts = {name: task_texts(source.tasks[name], part) for name, part in rows.items()}
            for name, values in pipe.shown_columns(texts, table.column_names, bar.update).items():
                table = table.append_column(name, pa.array(values))
            with writing_predictions(str(paths[number])) as draft:
                parquet.write_table(table.replace_schema_metadata(None), draft, write_page_checksum=True)


def show_progress(what: str, rows: int | None = None) -> Any:
    """A bar with the rows that are done, rows/s and, of a known number of rows, the time left; on the first process."""
    return tqdm(  # not of Transformers, whose bars a pipe does not show: a log of a large job should
        desc=what,
        total=rows,
        unit=" rows",
        delay=0.1,  # so that an error in the first rows has a line of its own
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
        writer.writerows(zip(*(map(as_field, column.to_pylist()) for column in table.columns), strict=True))


def as_field(value: object) -> object:
    """A value as CSV can hold it: lists and structures as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value


def score_parts(source: RowFile, folder: Path) -> dict[str, float]:
    """The scores of the parts' predictions (see `predict_file`)."""
    found: dict[str, list[tuple]] = {name: [] for name in source.labelled}
    paths = source.part_paths(folder)
    for number, first, table in source:
        for name in source.labelled:
            task = source.tasks[name]
            labels = np.array(even_labels(clean_part(task, table, source.path, first)["label"][:]))
            known = labelled_rows(labels)
            found[name].append((read_part(task, paths[number])[known], labels[known]))
    tasks = {name: source.tasks[name] for name in source.labelled}
    pairs = {
        name: [join_arrays(tasks[name], side) for side in zip(*parts, strict=True)] for name, parts in found.items()
    }
    return score_pairs(tasks, pairs)


def read_part(task: Task, path: Path) -> np.ndarray:
    """What a part says of a task, of the form of labels."""
    kind, reader = KINDS[task.kind], LabelReader(task)
    column = f"{task.name}_{kind.decision}"
    values = parquet.read_table(path, columns=[column])[column].to_pylist()
    decisions = [kind.read_written(task, value, reader.read_one) for value in values]
    return np.array(even_labels(decisions), kind.dtype)


def join_arrays(task: Task, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The labels or decisions of several parts."""
    return join_rows([torch.from_numpy(part) for part in parts], KINDS[task.kind].missing).numpy()


def score_pairs(tasks: Mapping[str, Task], pairs: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """The flat scores of {task: (decisions, labels) of its labelled rows}, with intervals where there are few."""
    flat: dict[str, float] = {f"eval_{name}_rows": len(labels) for name, (_, labels) in pairs.items()}
    keys = {name: f"eval_{name}_{task.metric}" for name, task in tasks.items()} | {"overall": "eval_overall"}
    if max(flat.values()) > MOST_RESAMPLED:
        logger.warning(f"more than {MOST_RESAMPLED:,} labelled rows: the scores have no intervals")
        values = {name: {task.metric: score(task, *pairs[name])} for name, task in tasks.items()}
        flat |= {keys[name]: value for name, scores in values.items() for value in scores.values()}
        return flat | {"eval_overall": overall_score(tasks, values)}
    scores = Scores(tasks, *({name: pair[side] for name, pair in pairs.items()} for side in (0, 1)))
    for name, key in keys.items():
        value, low, high = scores[name]
        flat |= {key: value, f"{key}_low": low, f"{key}_high": high}
    return flat


def describe_file_scores(scores: Mapping[str, float], tasks: Mapping[str, Task]) -> str:
    """What `predict_file` returns, a line a task.

    Args:
        scores: of the tasks with labels.
        tasks: {name: task} of the model.
    """
    lines = []
    for name, task in tasks.items():
        if (rows := scores.get(f"eval_{name}_rows")) is not None:
            key = f"eval_{name}_{task.metric}"
            low, high = scores.get(f"{key}_low"), scores.get(f"{key}_high")
            bounds = "" if low is None or low != low else f"  ({low:.4f} to {high:.4f})"
            lines.append(f"{name}  {task.metric} {scores[key]:.4f}{bounds}  {rows:,} rows")
    return "\n".join(lines)
