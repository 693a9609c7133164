"""The files of a task: tables, JSON lines and Parquet, local or remote, read row by row."""

import csv
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlparse

import pyarrow
from datasets import Features
from datasets.utils.file_utils import cached_path
from pyarrow import ArrowException, parquet
from transformers.utils import logging

from .configuration import InputError
from .labels import LabelReader, name_labels
from .tasks import Task

logger = logging.get_logger(__name__)


def is_url(path: str) -> bool:
    """Whether a path is an address on the web."""
    return path.startswith(("http://", "https://"))


def read_file(path: str, task: Task, labelled: bool) -> Iterator[dict]:
    """Yield the rows of a file, local or remote, under our column names.

    The name's ending says the form: one of READERS. A row without an `id` is called by its number, from 0. `labelled`
    says that the label's column must be there; every other column must anyway.
    """
    suffix = PurePosixPath(urlparse(path).path.lower()).suffix
    if suffix not in READERS:
        raise InputError(f"{path}: task {task.name!r} reads files that end in {', '.join(READERS)}")
    try:
        local = cached_path(path)
    except Exception as error:  # no network, a refused connection, a server's error: the client has a dozen types
        if "://" not in path:
            raise InputError(f"{path}: no such file; task {task.name!r} reads it (see --data_dir)") from error
        raise InputError(
            f"{path}: cannot be fetched ({error}); name a local folder with --data_dir, or try `make quickstart`, "
            "which needs no download"
        ) from error
    needed = [column for column in (task.text, task.text_pair, task.label if labelled else None) if column]
    for number, row in enumerate(READERS[suffix](local, path, task)):
        for column in needed:
            if column not in row:
                raise InputError(
                    f"{path}: no column {column!r} in row {number + 1}; its columns are {', '.join(filter(None, row))}"
                )
        yield {
            "id": str(number if row.get("id") is None else row["id"]),
            "text": as_text(row[task.text], path, number + 1),
            "text_pair": as_text(row[task.text_pair], path, number + 1) if task.text_pair else None,
            "label": row.get(task.label),
        }


def as_text(value, path: str, number: int) -> str:
    """A text as its source gives it; one that is missing (None or NaN) is empty, and a number is written out.

    Raises:
        InputError: it is a list, a structure or bytes; the message names the file and the row.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, list, tuple, dict)):
        raise InputError(f"{path}: row {number} holds {str(value)[:40]} ({type(value).__name__}); expected a text")
    return "" if value is None or value != value else str(value)


def read_table(local: str, path: str, task: Task) -> Iterator[dict]:
    """Yield the rows of a table with a header, set apart by tabs if the header has one and by commas otherwise; all
    values are strings."""
    with open(local, encoding="utf-8-sig", newline="") as file:
        line = 0
        try:
            delimiter = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter)
            columns = reader.fieldnames
            if not columns:
                raise InputError(f"{path}: is empty; expected a line of column names and then rows")
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}: row {number} has not the header's {len(columns)} fields: a missing or a stray quote?"
                    )
                if any("\n" in value for value in row.values()):
                    logger.warning(f"{path}: row {number} spans several lines; is that a stray quote?")
                line = reader.line_num
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: line {line + 1} or soon after cannot be read: {error}") from error


def read_json_lines(local: str, path: str, task: Task) -> Iterator[dict]:
    """Yield the objects of a file of one JSON object a line; empty lines are skipped."""
    with open(local, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # UnicodeDecodeError is one
                raise InputError(f"{path}: line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is not a JSON object: {line.decode().strip()[:60]}")
            yield row


def read_parquet(local: str, path: str, task: Task) -> Iterator[dict]:
    """Yield the rows of a Parquet file, with the names of a `ClassLabel` for its numbers."""
    try:
        with parquet.ParquetFile(local) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            features = column_features(file.schema_arrow, task.label, path)
            yield from name_labels(rows, features, task.label, LabelReader(task), path)
    except ArrowException as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error


def column_features(schema: pyarrow.Schema, column: str, path: str) -> Features:
    """What `datasets` wrote into a Parquet file about a column; nothing of other programs' files.

    Raises:
        InputError: it cannot be read; the message names the file.
    """
    if b"huggingface" not in (schema.metadata or {}):
        return Features()
    try:
        # Not Features.from_arrow_schema, which forgets the names where the column is of another integer type.
        fields = json.loads(schema.metadata[b"huggingface"])["info"]["features"] or {}
        return Features.from_dict({name: fields[name] for name in fields if name == column})
    except Exception as error:  # JSON that somebody changed fails in many ways
        raise InputError(f"{path}: its metadata of the column {column!r} cannot be read ({error})") from error


READERS = {
    ".csv": read_table,
    ".tsv": read_table,
    ".txt": read_table,
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}
