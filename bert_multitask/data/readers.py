"""The files of a task: tables, JSON lines and Parquet, local or remote, read row by row."""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import urlparse

import pyarrow
from datasets import Features
from datasets.utils.file_utils import cached_path
from pyarrow import ArrowException, parquet
from transformers.utils import logging

from ..model.errors import InputError, explained, one_line
from ..model.tasks import Task, text_parts
from .labels import LabelReader, feature_names, name_labels

logger = logging.get_logger(__name__)

QUOTES = (
    "a field that begins with a quote must end with one and double those inside; if quotes are plain characters in "
    "this file, set `quoting: none` in the task"
)
# What reading a damaged file raises. Corrupt Parquet raises most of these; a UnicodeError is a ValueError.
DAMAGE = (OSError, EOFError, MemoryError, OverflowError, ValueError, ArrowException, lzma.LZMAError, zlib.error)
LONGEST_FIELD = 2**31 - 1  # characters; what every platform's C long holds


def is_url(path: str) -> bool:
    """Whether a path is an address (https://, hf://, …) and not a local file."""
    return "://" in path


@contextmanager
def reading(path: str, form: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an `InputError` that names the file.

    Raises:
        InputError: the file cannot be opened or read to its end, or its content is damaged.
    """
    try:
        yield
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{path}: cannot be read as {form}: its values are nested too deeply") from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        raise InputError(
            f"{path}: cannot be read as {form} ({one_line(error)}); is it damaged, or of another form than its name "
            "says?"
        ) from error


@contextmanager
def opened(path: str, task: Task) -> Iterator[tuple[Callable, BinaryIO]]:
    """The reader of a file, one of READERS, and its decompressed bytes; errors as those of `reading`."""
    read, form, decompress = file_form(path, task)
    local = fetch(path, task)
    with reading(path, form), decompress(local, "rb") as file:
        yield read, file


def read_file(path: str, task: Task, labelled: bool) -> Iterator[dict]:
    """Yield the rows of a file, local or remote, under our column names.

    The name's ending says the form, one of READERS, perhaps followed by one of COMPRESSIONS. A row without an `id` is
    called by its number, from 0. `labelled` says that the label's column must be there; every other column must anyway.

    Raises:
        InputError: the file cannot be read or is damaged, or a column is missing.
    """
    return rename_rows(read_as_written(path, task), task, path, labelled, task.id or "id")


def read_as_written(path: str, task: Task) -> Iterator[dict]:
    """Yield the rows of a file with all its columns, under their own names.

    Raises:
        InputError: the file cannot be read or is damaged.
    """
    with opened(path, task) as (read, file):
        yield from read(file, path, task)


def read_tables(path: str, task: Task, size: int, schema: pyarrow.Schema | None = None) -> Iterator[pyarrow.Table]:
    """Yield the rows of a file as Arrow tables, with all its columns, as they are. Few rows are held at a time.

    Args:
        size: rows of a table; the last one may have fewer.
        schema: that all tables get; by default each has what its own values are, which may differ in JSON lines.

    Raises:
        InputError: the file cannot be read or is damaged, or a column has values of several types.
    """
    if file_form(path, task)[0] is read_parquet:
        with opened(path, task) as (_, file):
            yield from parquet_tables(file, path, size)
        return
    rows = read_as_written(path, task)
    while part := list(itertools.islice(rows, size)):
        columns = {}
        for name in schema.names if schema else dict.fromkeys(name for row in part for name in row):
            with explained(f"{path}: the column {name!r} has values of several types", ArrowException, OverflowError):
                columns[name] = pyarrow.array((row.get(name) for row in part), schema and schema.field(name).type)
        yield pyarrow.table(columns)


def parquet_tables(file: BinaryIO, path: str, size: int) -> Iterator[pyarrow.Table]:
    """Yield tables of `size` rows, whatever the file's own groups of rows are: they are read through a buffer."""
    with parquet.ParquetFile(file, buffer_size=2**16, page_checksum_verification=True) as source:
        check_columns(source.schema_arrow.names, path)
        rest = source.schema_arrow.empty_table()
        for batch in source.iter_batches(size, use_threads=False):
            rest = pyarrow.concat_tables([rest, pyarrow.Table.from_batches([batch])])
            if len(rest) >= size:
                yield rest.slice(0, size)
                rest = rest.slice(size)
        if len(rest):
            yield rest


def needed_columns(task: Task, labelled: bool) -> list[str]:
    """The columns that every row must have; that of labels is among them where rows must be `labelled`, and that of ids
    where the task names it."""
    names = (task.label if labelled else None, task.id)
    return [*text_parts(task.text), *text_parts(task.text_pair), *filter(None, names)]


def check_has_columns(columns: Iterable[str], needed: Iterable[str], where: str) -> None:
    """Raises InputError if a row or a dataset lacks a column that is needed; `where` names it."""
    for column in needed:
        if column not in columns:
            names = ", ".join(map(str, filter(None, columns)))
            raise InputError(f"{where}: no column {column!r}; its columns are {names}")


def rename_rows(rows: Iterable[Mapping], task: Task, where: str, labelled: bool, ids: str | None) -> Iterator[dict]:
    """Yield rows under our column names (see `rename_columns`). Each must have the columns that are needed."""
    needed = needed_columns(task, labelled)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"{where}, row {number}: is {row!r}; expected a dictionary")
        check_has_columns(row, needed, f"{where}, row {number}")
        yield rename_columns(row, task, where, number, ids)


def rename_columns(row: Mapping, task: Task, path: str, number: int, ids: str | None) -> dict:
    """A row under our column names, its label as the source gives it.

    Args:
        number: of the row, from 1.
        ids: the column of ids. None: there is none, and the row's id is its number, from 0.
    """
    row_id = as_text(row.get(ids), path, number) or str(number - 1)
    if "\n" in row_id:  # prediction files have a row on a line
        raise InputError(f"{path}: row {number} has the id {row_id!r}; an id must be on one line")
    pair = as_text(read_text(row, task.text_pair, path, number), path, number) if task.text_pair else None
    return {
        "id": row_id,
        "text": as_text(task.read_text(read_text(row, task.text, path, number)), path, number),
        "text_pair": pair,
        "label": label.tolist() if hasattr(label := row.get(task.label), "tolist") else label,  # of NumPy or torch
    }


def read_text(row: Mapping, columns: str | Sequence[str], path: str, number: int) -> object:
    """The value of a column of texts; of several columns, one text with a line `column: value` for each that is not
    empty.

    Raises:
        InputError: one of several columns does not hold a text (see `as_text`); the message names the file and the row.
    """
    if isinstance(columns, str):
        return row[columns]
    values = {column: as_text(row[column], path, number) for column in columns}
    return "\n".join(f"{column}: {value}" for column, value in values.items() if value.strip())


def file_form(path: str, task: Task) -> tuple[Callable, str, Callable]:
    """The reader of a file, what its form is called, and how its bytes are opened, by the ending of its name."""
    name = PurePosixPath((urlparse(path).path if is_url(path) else path).lower())
    decompress = COMPRESSIONS.get(name.suffix)
    suffix = PurePosixPath(name.stem).suffix if decompress else name.suffix
    if suffix not in READERS:
        raise InputError(
            f"{path}: task {task.name!r} reads files that end in {', '.join(READERS)}, or in one of these and "
            f"{', '.join(COMPRESSIONS)}"
        )
    return *READERS[suffix], decompress or open


def fetch(path: str, task: Task) -> str:
    """The local path of a file, after a download where it is remote."""
    try:
        return cached_path(path)
    except Exception as error:  # no network, a refused connection, a server's error: the client has a dozen types
        if not is_url(path):
            raise InputError(f"{path}: no such file; task {task.name!r} reads it (see --data_dir)") from error
        raise InputError(
            f"{path}: cannot be fetched ({one_line(error)}); name a local folder with --data_dir, or try "
            "`make quickstart`, which needs no download"
        ) from error


def as_text(value, path: str, number: int) -> str:
    """A text as its source gives it; one that is missing (None or NaN) is empty, and a number is written out.

    Raises:
        InputError: the value is a list, a structure or bytes; the message names the file and the row.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, list, tuple, dict)):
        raise InputError(f"{path}: row {number} holds {str(value)[:40]} ({type(value).__name__}); expected a text")
    return "" if value is None or value != value else str(value)


def claim_id(seen: dict[str, int], row_id: str, number: int, path: str) -> None:
    """Note the number of the row that has an id.

    Raises:
        InputError: another row has the same id; the message names both.
    """
    if seen.setdefault(row_id, number) != number:
        raise InputError(
            f"{path}: rows {seen[row_id]} and {number} both have the id {row_id!r}; predictions are matched by id, so "
            "each row needs its own (rows without one are called by their numbers, from 0)"
        )


def check_columns(columns: Iterable[str], path: str) -> None:
    """Raises InputError if a header names a column twice; blank names, as of an index, may repeat."""
    named = [column for column in columns if column]
    if repeated := [column for column in dict.fromkeys(named) if named.count(column) > 1]:
        raise InputError(f"{path}: has several columns called {repeated[0]!r}; rename or drop all but one")


def refuse_utf16(file: BinaryIO, path: str) -> None:
    """Raises InputError if the first two bytes of a text show that it is UTF-16: a byte order mark, or an ASCII
    character and a zero."""
    start = file.peek(2)[:2]
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in start:
        raise InputError(
            f'{path}: is UTF-16 ("Unicode text" in Excel) and not UTF-8; save it as CSV UTF-8, or convert it: '
            "iconv -f UTF-16 -t UTF-8 OLD > NEW"
        )


def read_table(file: BinaryIO, path: str, task: Task) -> Iterator[dict]:
    """Yield the rows of a table with a header, set apart by tabs if the header has one and by commas otherwise; all
    values are strings. Quotes are those of RFC 4180, or plain characters where the task's `quoting` is none."""
    refuse_utf16(file, path)
    csv.field_size_limit(LONGEST_FIELD)  # the module's own limit is 131,072 characters
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    columns: list[str] = []
    spanning, blank, end = [], [], 0  # rows of several lines; blank lines between rows; the last line of the last row
    try:
        header = lines.readline()
        table = csv.reader(
            itertools.chain([header], lines),
            delimiter=delimiter(header, path),
            quoting=csv.QUOTE_NONE if task.quoting == "none" else csv.QUOTE_MINIMAL,
            strict=True,
        )
        for number, line, fields in numbered_rows(table, path):
            if number == 0:
                check_columns(fields, path)
                columns = fields
            elif len(fields) != len(columns):
                raise InputError(
                    f"{path}: row {number} (line {line}) has {len(fields)} fields but the header has {len(columns)}; "
                    f"check for a missing or stray quote: {QUOTES}"
                )
            else:
                blank += range(end + 1, line)
                spanning += [number] * (table.line_num > line)
                yield dict(zip(columns, fields, strict=True))
            end = table.line_num
    except UnicodeDecodeError as error:
        file.seek(0)
        line = next(
            number for number, line in enumerate(file, start=1) if line.decode(errors="ignore").encode() != line
        )
        raise InputError(f"{path}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    warn_of_lines(path, spanning, blank if len(columns) == 1 else [])


def warn_of_lines(path: str, spanning: Sequence[int], blank: Sequence[int]) -> None:
    """Warn of a table's rows of several lines, by their numbers, and of blank lines that may be meant as rows."""
    if blank:
        logger.warning(
            f"{path}: blank lines are skipped, {len(blank):,} in all, the first is line {blank[0]}; a row with an "
            'empty field is written ""'
        )
    if spanning:
        logger.warning(
            f"{path}: {len(spanning):,} rows span several lines, the first is row {spanning[0]}; that is right for "
            "quoted texts with line breaks, otherwise check for a stray quote"
        )


def delimiter(header: str, path: str) -> str:
    """What separates the columns of a table: a tab if the line of its header has one, otherwise a comma.

    Raises:
        InputError: the line is empty, or only semicolons separate its columns.
    """
    if not header.strip():
        raise InputError(f"{path}: is empty, or begins with an empty line; expected column names and then rows")
    if "\t" in header:
        return "\t"
    if ";" in header and "," not in header:
        raise InputError(f"{path}: its columns are separated by semicolons; save it with commas or tabs")
    return ","


def numbered_rows(table: Iterator[list[str]], path: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (number, its first line, fields) of the rows of a strict `csv.reader`; the header is number 0. Blank lines
    are skipped, and in a table of several columns those of white space.

    Raises:
        InputError: a row's quotes are wrong; the message names the row and the line where it begins.
    """
    number, line, width = 0, 1, 0  # fields of the header
    while True:
        try:
            fields = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"row {number}" if number else "the header"
            raise InputError(f"{path}: {where} (line {line}) has a stray quote ({error}); {QUOTES}") from error
        width = width or len(fields)
        if fields and (len(fields) > 1 or width == 1 or fields[0].strip()):
            yield number, line, fields
            number += 1
        line = table.line_num + 1


def read_json_lines(file: BinaryIO, path: str, task: Task) -> Iterator[dict]:
    """Yield the objects of a file of one JSON object a line; empty lines are skipped."""
    refuse_utf16(file, path)
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
            raise InputError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is not a JSON object: {line.decode().strip()[:60]}")
        yield row


def unique_keys(pairs: list[tuple]) -> dict:
    """A JSON object as a dictionary, unless it has a key twice."""
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("an object has the same key twice")
    return row


def read_conll(file: BinaryIO, path: str, task: Task) -> Iterator[dict]:
    """Yield the sentences of a file of one word a line and a blank line after each sentence, each as its columns, which
    are lists: "0" is the first, "1" the second, …, and "-1" the last of several. Tabs set columns apart where a line
    has any, and white space otherwise. Lines that begin with -DOCSTART- are skipped."""
    refuse_utf16(file, path)
    words: list[list[str]] = []
    width = 0  # columns of the first word
    for number, line in enumerate(itertools.chain(file, [b""]), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: line {number} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
        if text.strip() and not text.startswith("-DOCSTART-"):
            words.append(text.split("\t" if "\t" in text else None))
            width = width or len(words[0])
            if len(words[-1]) != width:
                raise InputError(f"{path}: line {number} has {len(words[-1])} columns; those before it have {width}")
        elif words:
            columns = [list(column) for column in zip(*words, strict=True)]
            last = {"-1": columns[-1]} if width > 1 else {}
            yield dict(zip(map(str, range(width)), columns, strict=True)) | last
            words = []


def read_parquet(file: BinaryIO, path: str, task: Task) -> Iterator[dict]:
    """Yield the rows of a Parquet file, with the names of a `ClassLabel` for its numbers."""
    with parquet.ParquetFile(file, page_checksum_verification=True) as table:
        check_columns(table.schema_arrow.names, path)
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        features = column_features(table.schema_arrow, task.label, path)
        yield from name_labels(rows, features, task.label, LabelReader(task), path)


def class_names(path: str, task: Task) -> list[str] | None:
    """The names of a Parquet file's column of labels, where that is a `ClassLabel`, in its order."""
    if file_form(path, task)[0] is not read_parquet:
        return None
    with opened(path, task) as (_, file), parquet.ParquetFile(file) as table:
        return feature_names(column_features(table.schema_arrow, task.label, path).get(task.label))


def column_features(schema: pyarrow.Schema, column: str, path: str) -> Features:
    """What `datasets` wrote into a Parquet file about a column; nothing of other programs' files.

    Raises:
        InputError: it cannot be read; the message names the file.
    """
    if b"huggingface" not in (schema.metadata or {}):
        return Features()
    with explained(f"{path}: its metadata of the column {column!r} cannot be read"):
        # Not Features.from_arrow_schema, which forgets the names where the column is of another integer type.
        fields = json.loads(schema.metadata[b"huggingface"])["info"]["features"] or {}
        return Features.from_dict({name: fields[name] for name in fields if name == column})


READERS = {
    ".csv": (read_table, "a table"),
    ".tsv": (read_table, "a table"),
    ".txt": (read_table, "a table"),
    ".jsonl": (read_json_lines, "JSON lines"),
    ".parquet": (read_parquet, "Parquet"),
    ".conll": (read_conll, "CoNLL columns"),
}
COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
