"""The JSON that a run writes and reads back: strict, whole, and readable after a crash."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.utils import logging

from ..model.errors import InputError, explained
from .readers import unique_keys

logger = logging.get_logger(__name__)


def with_nulls(value):
    """The value with None wherever a float is NaN or infinite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: with_nulls(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(content: Mapping, **options) -> str:
    """Valid JSON: a NaN or an infinite number is null; what JSON does not know is written as its string."""
    return json.dumps(with_nulls(content), allow_nan=False, default=str, **options)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give the path of a draft, which replaces the file when the block is done: a full disk or a kill leaves the file
    that was there."""
    draft = path.with_suffix(".tmp")
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with writing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, to_json(content, indent=2, sort_keys=True) + "\n")


def read_history(path: Path) -> list[dict]:
    """The entries of a `history.jsonl`; none where there is no file.

    A run that was killed while it wrote leaves a last line that is cut off: it is left out, with a warning.

    Raises:
        InputError: any other line is not a JSON object with a step, or the file cannot be read.
    """
    with explained(f"{path}: cannot be read", OSError):
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n") if path.is_file() and path.stat().st_size else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line.decode("utf-8"), object_pairs_hook=unique_keys)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("it is no object with a step")
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise InputError(f"{path}: line {number} is no entry of a run's log: {error}") from error
            logger.warning(f"{path}: the last line, {number}, is cut off and left out")
        else:
            entries.append(entry)
    return entries
