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
from ..model.errors import InputError, explained
from ..model.kinds import KINDS, as_number, is_number
from ..model.losses import UNLABELLED
from ..model.tasks import TASKS, Task, load_task
from .metrics import check_finite

logger = logging.get_logger(__name__)
TEXTS = "texts_sha256"  # the column with each row's `text_digests`, which a table may have


def prediction_table(task: Task, ids: Sequence[str], logits: np.ndarray, tokens: Dataset | None = None) -> Dataset:
    """Logits -> a table with one row a prediction.

    Args:
        task: whose predictions.
        ids: of the rows, N.
        logits: as the model gives them, (N, C), (N,) or (N, …), in the order of the ids.
        tokens: the tokenised rows, which some kinds of tasks need (see `Kind.table`).

    Returns:
        `id` and the columns of the task's kind (`Kind.columns`): `score`, or `label` (a class) with `probabilities`
        (one for each class, summing to 1), ….

    Raises:
        NonFiniteError: a logit is NaN or infinite.
    """
    logits = np.asarray(logits, dtype=np.float32)
    check_finite(task, logits)
    return Dataset.from_dict({"id": list(ids)} | KINDS[task.kind].table(task, logits, tokens))


def with_texts(task: Task, table: Dataset, rows: Dataset) -> Dataset:
    """Add digests of the texts to a prediction table, so that equal ids of different texts are noticed. The clean rows
    may be in any order."""
    digests = dict(zip(rows["id"][:], text_digests(task, rows), strict=True))
    return table.add_column(TEXTS, [digests[row_id] for row_id in table["id"][:]])


def other_texts(ours: Dataset, theirs: Dataset) -> list[str]:
    """The ids in our table whose rows have different texts in theirs; none if a table has no digests."""
    if TEXTS not in ours.column_names or TEXTS not in theirs.column_names:
        return []
    known = dict(zip(theirs["id"], theirs[TEXTS], strict=True))
    return [row_id for row_id, texts in zip(ours["id"], ours[TEXTS], strict=True) if known.get(row_id, texts) != texts]


def read_columns(task: Task, table: Dataset) -> dict[str, np.ndarray]:
    """A prediction table's columns besides `id` as arrays (see `Kind.arrays`); `probabilities` may be missing."""
    kind = KINDS[task.kind]
    return kind.arrays(task, {name: table[name][:] for name in kind.columns(task) if name in table.column_names})


def read_decisions(task: Task, table: Dataset) -> np.ndarray:
    """The column of a prediction table that is scored, of the form of labels, (N,) or (N, …)."""
    decision = KINDS[task.kind].decision
    return read_columns(task, table.select_columns(decision))[decision]


def write_predictions(task: Task, table: Dataset, path: Path) -> None:
    """Write a prediction table as `path`.parquet and `path`.csv; the path's name is `{task}-{split}`.

    The Parquet file holds the table, with the task and the split in its metadata. The CSV file of a task with a
    `prediction_column` has the course's form: `id \t Predicted_X`, then `id , value` lines, classes as numbers. Any
    other task's CSV file holds `id` and what the kind shows (`Kind.plain`); an id that a spreadsheet would run as a
    formula gets an apostrophe before it.

    Raises:
        InputError: an id has a line break, which the course's form cannot hold (then nothing is written), or a file
            cannot be written.
    """
    if task.prediction_column:
        if broken := [row_id for row_id in table["id"][:] if "\n" in row_id]:
            raise InputError(f"{path}.csv: the id {broken[0]!r} has a line break, which the course's form cannot hold")
        values = table[KINDS[task.kind].decision]
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
    """`records.writing`, which also makes the folder. Raises InputError if the file cannot be written."""
    with explained(f"{path}: cannot be written", OSError):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with writing(Path(path)) as draft:
            yield draft


def plain_table(task: Task, table: Dataset, path: str) -> pd.DataFrame:
    """A prediction table as its CSV file `path` shows it: labels by name, and ids that are safe in a spreadsheet."""
    columns = {name: values for name, values in table.to_pandas().items() if name != TEXTS}
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
    """A task's prediction table, and its source for messages: a file, or the run that made it."""

    task: Task
    table: Dataset
    source: str


def find_tables(path: Path, split: str) -> dict[str, Predictions]:
    """Read the prediction tables of a split: {task: table}. Of two files of a task the Parquet file is read.

    Args:
        path: a file, a folder of such files, or a run folder, whose files are in `predictions`.
        split: train, dev or test.
    """
    folder = path / "predictions" if Path(path, "predictions").is_dir() else path
    paths = [path] if path.is_file() else [*folder.glob("*.csv"), *folder.glob("*.parquet")]
    files = {file.stem.rpartition("-")[0]: file for file in paths if file.stem.endswith(f"-{split}")}
    in_order = sorted(files, key=lambda task: ([*TASKS, task].index(task), task))
    return {task: read_predictions(files[task]) for task in in_order}


def read_predictions(path: Path) -> Predictions:
    """Read a file of `write_predictions`, or any file in the course's form, `{task}-{split}.csv`.

    Raises:
        InputError: the file cannot be read, or is the CSV file of a user's own task, which does not say what the labels
            are.
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
    """The task in a prediction file's metadata, which is JSON of its fields."""
    damage = (InputError, ValueError, TypeError, RecursionError)
    with explained(f"{path}: the task in its metadata cannot be read", *damage):
        return load_task(dict(json.loads(fields)))


def read_course_file(path: Path, task: Task) -> Dataset:
    """Read a prediction table, without probabilities, from a file in the course's form. Only a line feed ends a row:
    ids may hold other characters that Python takes for the end of a line."""
    with reading(str(path), "a file in the course's form"):
        header, *lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    if header.split() != ["id", task.prediction_column]:
        raise InputError(f"{path}: begins with {header!r}; expected 'id \\t {task.prediction_column} '")
    kind, reader = KINDS[task.kind], LabelReader(task, numbered=True)
    columns: dict[str, list] = {"id": [], kind.decision: []}
    for number, line in enumerate(lines, start=1):
        row_id, comma, value = line.rpartition(",")
        if not comma:
            raise InputError(f"{path}: row {number} is {line!r}; expected 'id , value'")
        columns["id"].append(row_id.removesuffix(" "))
        value = value.strip()
        found = kind.read_written(task, value, reader.read_one)
        # A value that cannot be read stays as it is written, for the message about it.
        columns[kind.decision].append(value if found in (None, UNLABELLED) else found)
    return check_table(task, columns, str(path))


def check_table(task: Task, columns: Mapping[str, list], path: str) -> Dataset:
    """A file's columns as a prediction table, without columns that a table does not have. A score may lie outside the
    range of the labels, as rounding can make it.

    Raises:
        InputError: a column is missing, an id is missing or occurs twice, or a value cannot be a prediction of the
            task; the message names the row.
    """
    kind = KINDS[task.kind]
    if missing := {"id", kind.decision} - set(columns):
        raise InputError(f"{path}: no column {min(missing)!r}; its columns are {', '.join(columns)}")
    seen: dict[str, int] = {}
    for number, row_id in enumerate(columns["id"], start=1):
        if row_id is None:
            raise InputError(f"{path}: row {number} has no id")
        claim_id(seen, as_text(row_id, path, number), number, path)
    rules = {column: rule for column, rule in kind.columns(task).items() if column in columns}
    for column, (holds, expected) in rules.items():
        for number, value in enumerate(columns[column], start=1):
            if not holds(value):
                raise InputError(f"{path}: row {number} has the {column} {value!r}; expected {expected}")
    table = {"id": list(seen)} | {column: columns[column] for column in rules}
    return Dataset.from_dict(table | ({TEXTS: list(map(str, columns[TEXTS]))} if TEXTS in columns else {}))


def check_alike(members: Sequence[Predictions]) -> None:
    """Check that prediction tables are of the same rows, in the same order, of the same task.

    Raises:
        InputError: tasks differ in name, kind, label names or range of scores, or tables in ids, their order, number of
            rows, texts or numbers of labels in a row. The message names the file, the row and both values.
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
