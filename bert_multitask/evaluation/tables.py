"""Predictions, in the rows' own order: as a table, and in files that are written, found, read and compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from pyarrow import parquet
from transformers.utils import logging

from ..data.labels import LabelReader
from ..data.readers import as_text, check_columns, claim_id, reading
from ..data.records import writing
from ..data.rows import text_digests
from ..model.errors import InputError, one_line
from ..model.kinds import KINDS, as_number, is_number
from ..model.losses import UNLABELLED
from ..model.tasks import TASKS, Task, load_task
from .metrics import check_finite

logger = logging.get_logger(__name__)
TEXTS = "texts_sha256"  # the column with each row's `text_digests`, which a table may have


def prediction_table(task: Task, ids: Sequence[str], logits: np.ndarray, tokens: Dataset | None = None) -> Dataset:
    """One row a prediction, in the order of the ids.

    Args:
        task: whose predictions.
        ids: of the rows, N.
        logits: as the model gives them, (N, C), (N,) or (N, …).
        tokens: the tokenised rows, which some kinds of tasks need (see `Kind.table`).

    Returns:
        `id`, and `score` or `label` (a class) with `probabilities` (one for each class, summing to 1), or what else the
        kind of task has (`Kind.columns`).

    Raises:
        NonFiniteError: a logit is NaN or infinite.
    """
    logits = np.asarray(logits, dtype=np.float32)
    check_finite(task, logits)
    return Dataset.from_dict({"id": list(ids)} | KINDS[task.kind].table(task, logits, tokens))


def with_texts(task: Task, table: Dataset, rows: Dataset) -> Dataset:
    """A prediction table that says which texts its rows have, so that ids of other texts are noticed.

    Args:
        task: whose.
        table: without that column.
        rows: the clean rows, in any order.
    """
    digests = dict(zip(rows["id"][:], text_digests(task, rows), strict=True))
    return table.add_column(TEXTS, [digests[row_id] for row_id in table["id"][:]])


def other_texts(ours: Dataset, theirs: Dataset) -> list[str]:
    """The ids of rows of a table that have other texts than the rows with these ids of another, as far as both say."""
    if TEXTS not in ours.column_names or TEXTS not in theirs.column_names:
        return []
    known = dict(zip(theirs["id"], theirs[TEXTS], strict=True))
    return [row_id for row_id, texts in zip(ours["id"], ours[TEXTS], strict=True) if known.get(row_id, texts) != texts]


def decision_column(task: Task) -> str:
    """The column of a prediction table that is scored."""
    return KINDS[task.kind].decision


def read_columns(task: Task, table: Dataset) -> dict[str, np.ndarray]:
    """A prediction table's columns besides `id` as arrays: `score` (N,), or `label` (N,) and, where there are any,
    `probabilities` (N, C), or what else the kind of task has."""
    kind = KINDS[task.kind]
    return kind.arrays(task, {name: table[name][:] for name in kind.columns(task) if name in table.column_names})


def read_decisions(task: Task, table: Dataset) -> np.ndarray:
    """What a prediction table decides, of the form of labels, (N,) or (N, …)."""
    name = decision_column(task)
    return KINDS[task.kind].arrays(task, {name: table[name][:]})[name]


def write_predictions(task: Task, table: Dataset, path: Path) -> None:
    """Write a prediction table as `path`.parquet and `path`.csv; the path's name is `{task}-{split}`.

    The Parquet file holds the table as it is, and the task and the split in its metadata. The CSV file of a task with a
    `prediction_column` has the course's form: `id \\t Predicted_X`, then `id , value` lines, classes as numbers. Any
    other task's is a plain table of `id` and what its kind shows (`Kind.plain`): `score`, or the `label`'s name and its
    `probability` where there is one; there an id that a spreadsheet would run as a formula is written with an
    apostrophe before it.

    Raises:
        InputError: an id has a line break, which the course's form cannot hold (nothing is written), or a file cannot
            be written.
    """
    if task.prediction_column and (broken := [row_id for row_id in table["id"][:] if "\n" in row_id]):
        raise InputError(f"{path}.csv: the id {broken[0]!r} has a line break, which the course's form cannot hold")
    if task.prediction_column:
        values = table[decision_column(task)]
        with writing_predictions(f"{path}.csv") as draft, open(draft, "w", encoding="utf-8", newline="\n") as file:
            file.write(f"id \t {task.prediction_column} \n")
            file.writelines(f"{row_id} , {value} \n" for row_id, value in zip(table["id"], values, strict=True))
    else:
        frame = plain_table(task, table, f"{path}.csv")
        with writing_predictions(f"{path}.csv") as draft:
            frame.to_csv(draft, index=False)
    metadata = {"task": json.dumps(task.to_config()), "split": path.name.rpartition("-")[2]}
    columns = table.with_format("arrow")[:].replace_schema_metadata(metadata)
    with writing_predictions(f"{path}.parquet") as draft:
        parquet.write_table(columns, draft, write_page_checksum=True)


@contextmanager
def writing_predictions(path: str) -> Iterator[Path]:
    """`records.writing`, in a folder that is made where there is none.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with writing(Path(path)) as draft:
            yield draft
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error


def plain_table(task: Task, table: Dataset, path: str) -> pd.DataFrame:
    """A prediction table with the labels' names and their probabilities, and with ids that are safe in a spreadsheet.

    Args:
        task: whose.
        table: its predictions.
        path: of the file to write, for the message.
    """
    columns = dict(table.to_pandas().items())
    frame = pd.DataFrame({"id": columns.pop("id")} | KINDS[task.kind].plain(task, columns))
    if formulas := sum(map(is_formula, frame["id"])):
        frame["id"] = ["'" * is_formula(row_id) + row_id for row_id in frame["id"]]
        logger.warning(
            f"{path}: {formulas} ids begin as a spreadsheet's formulas do; they are written with an apostrophe before "
            "them, and as they are in the Parquet file"
        )
    return frame


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would take a text as a formula: by its first character, unless it is a number."""
    return text.startswith(("=", "+", "-", "@", "\t", "\r")) and not is_number(as_number(text))


class Predictions(NamedTuple):
    """A task's prediction table, and what to call it in a message: its file, or the run that made it."""

    task: Task
    table: Dataset
    source: str


def find_tables(name: str, split: str) -> dict[str, Predictions]:
    """{task: table} of a prediction file, of those in a folder, or of those in a run's `predictions`; Parquet first."""
    path = Path(name).expanduser()
    folder = path / "predictions" if Path(path, "predictions").is_dir() else path
    paths = [path] if path.is_file() else [*folder.glob("*.csv"), *folder.glob("*.parquet")]
    files = {file.stem.rpartition("-")[0]: file for file in paths if file.stem.endswith(f"-{split}")}
    in_order = sorted(files, key=lambda task: ([*TASKS, task].index(task), task))
    return {task: read_predictions(files[task]) for task in in_order}


def read_predictions(path: Path) -> Predictions:
    """Read a file of `write_predictions`, or anybody's in the course's form, called `{task}-{split}.csv`.

    Raises:
        InputError: it cannot be read, or it is of a task of the user's own and not the Parquet file, which says what
            the labels are.
    """
    name = path.stem.rpartition("-")[0]
    if path.suffix == ".csv":
        if name not in TASKS:
            raise InputError(f"{path}: {name!r} is no task of the course; give {path.with_suffix('.parquet').name}")
        return Predictions(TASKS[name], read_course_file(path, TASKS[name]), str(path))
    with reading(str(path), "Parquet"), parquet.ParquetFile(path, page_checksum_verification=True) as file:
        check_columns(file.schema_arrow.names, str(path))
        metadata = file.schema_arrow.metadata or {}
        if b"task" not in metadata and name not in TASKS:
            raise InputError(f"{path}: does not say what its task is; expected a file of `bert-multitask predict`")
        task = stored_task(metadata[b"task"], path) if b"task" in metadata else TASKS[name]
        split = metadata.get(b"split", path.stem.rpartition("-")[2].encode()).decode()
        columns = file.read().to_pydict()
    if path.stem != f"{task.name}-{split}":
        raise InputError(
            f"{path}: its metadata says task {task.name!r} and split {split!r}; expected {task.name}-{split}.parquet"
        )
    return Predictions(task, check_table(task, columns, str(path)), str(path))


def stored_task(fields: bytes, path: Path) -> Task:
    """The task in a prediction file's metadata, as JSON of its fields."""
    try:
        return load_task(dict(json.loads(fields)))
    except (ValueError, TypeError, RecursionError) as error:  # also of load_task: an InputError is a ValueError
        raise InputError(f"{path}: the task in its metadata cannot be read ({one_line(error)})") from error


def read_course_file(path: Path, task: Task) -> Dataset:
    """A prediction table without probabilities, from a file in the course's form. Rows end with line feeds and with
    nothing else, since ids may hold whatever else Python takes for the end of a line."""
    with reading(str(path), "a file in the course's form"):
        header, *lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    if header.split() != ["id", task.prediction_column]:
        raise InputError(f"{path}: begins with {header!r}; expected 'id \\t {task.prediction_column} '")
    columns: dict[str, list] = {"id": [], decision_column(task): []}
    reader = LabelReader(task, numbered=True)
    for number, line in enumerate(lines, start=1):
        row_id, comma, value = line.rpartition(",")
        if not comma:
            raise InputError(f"{path}: row {number} is {line!r}; expected 'id , value'")
        columns["id"].append(row_id.removesuffix(" "))
        value = value.strip()
        found = KINDS[task.kind].read_written(task, value, reader.read_one)
        # What is none is left as it is written, for the message about it.
        columns[decision_column(task)].append(value if found in (None, UNLABELLED) else found)
    return check_table(task, columns, str(path))


def check_table(task: Task, columns: Mapping[str, list], path: str) -> Dataset:
    """The prediction table of a file's columns; other columns than a table's are left out.

    Raises:
        InputError: a column is missing, an id is missing or occurs twice, or a prediction is none of the task's. A
            score may lie outside the range of the labels, if only by rounding.
    """
    rules, decision = KINDS[task.kind].columns(task), decision_column(task)
    if missing := {"id", decision} - set(columns):
        raise InputError(f"{path}: no column {min(missing)!r}; its columns are {', '.join(columns)}")
    seen: dict[str, int] = {}
    for number, row_id in enumerate(columns["id"], start=1):
        if row_id is None:
            raise InputError(f"{path}: row {number} has no id")
        claim_id(seen, as_text(row_id, path, number), number, path)
    table = {"id": list(seen)}
    for column, (holds, expected) in rules.items():
        if column not in columns:
            continue
        for number, value in enumerate(columns[column], start=1):
            if not holds(value):
                raise InputError(f"{path}: row {number} has the {column} {value!r}; expected {expected}")
        table[column] = columns[column]
    if TEXTS in columns:
        table[TEXTS] = list(map(str, columns[TEXTS]))
    return Dataset.from_dict(table)


def check_alike(members: Sequence[Predictions]) -> None:
    """Refuse tables that are not of the same rows of the same task.

    Raises:
        InputError: tasks differ in kind, classes or range of scores, or the tables in length, ids, their order or
            the rows' texts; the message names the table and the first difference.
    """
    first = members[0]
    for other in members[1:]:
        for field in ("name", "kind", "label_names", "score_range"):
            expected, found = getattr(first.task, field), getattr(other.task, field)
            if expected != found:
                raise InputError(f"{other.source}: the task's {field} is {found!r}, and {expected!r} in {first.source}")
        ours, theirs = first.table["id"][:], other.table["id"][:]
        for number, (one, two) in enumerate(zip(ours, theirs, strict=False), start=1):
            if one != two:
                raise InputError(f"{other.source}: row {number} has id {two!r}, and {one!r} in {first.source}")
        if len(ours) != len(theirs):
            raise InputError(f"{other.source} has {len(theirs):,} rows, and {first.source} has {len(ours):,}")
        if different := other_texts(first.table, other.table):
            raise InputError(f"{other.source}: the row with id {different[0]!r} has other texts than in {first.source}")
        for number, (one, two) in enumerate(zip(*map(count_labels, (first, other)), strict=True), start=1):
            if one != two:
                raise InputError(f"{other.source}: row {number} has {two} labels, and {one} in {first.source}")


def count_labels(predictions: Predictions) -> list[int]:
    """How many labels each row has, where each word has one; an empty list elsewhere."""
    return list(map(len, predictions.table["label"][:])) if KINDS[predictions.task.kind].words else []
