"""The files of a task: tables, JSON lines and Parquet, local or remote, read row by row."""

import csv
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlparse

from datasets.utils.file_utils import cached_path
from pyarrow import ArrowException, parquet
from transformers.utils import logging

from .configuration import InputError
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
    for number, row in enumerate(READERS[suffix](local, path)):
        for column in needed:
            if column not in row:
                raise InputError(
                    f"{path}: no column {column!r} in row {number + 1}; its columns are {', '.join(filter(None, row))}"
                )
        label = row.get(task.label)
        yield {
            "id": str(number if row.get("id") is None else row["id"]),
            "text": as_text(row[task.text]),
            "text_pair": as_text(row[task.text_pair]) if task.text_pair else None,
            # As a table would write it, so that 1 means the same in every form.
            "label": as_text(int(label) if isinstance(label, bool) else label),
        }


def as_text(value) -> str:
    """A text as its source gives it; one that is missing (None) is empty."""
    return "" if value is None else str(value)


def read_table(local: str, path: str) -> Iterator[dict]:
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


def read_json_lines(local: str, path: str) -> Iterator[dict]:
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


def read_parquet(local: str, path: str) -> Iterator[dict]:
    """Yield the rows of a Parquet file."""
    try:
        with parquet.ParquetFile(local) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error


READERS = {
    ".csv": read_table,
    ".tsv": read_table,
    ".txt": read_table,
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}
