"""The JSON that a run writes and reads back: strict, whole, and readable after a crash."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from transformers.utils import logging

from .configuration import InputError

logger = logging.get_logger(__name__)


def finite(value):
    """The value with None wherever a float is NaN or infinite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(content: Mapping, **options) -> str:
    """Valid JSON: a NaN or an infinite number is null; what JSON does not know is written as its string."""
    return json.dumps(finite(content), allow_nan=False, default=str, **options)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: a full disk or a kill leaves the file that was there."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def write_json(path: Path, content: Mapping) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, to_json(content, indent=2, sort_keys=True) + "\n")


def read_history(path: Path) -> list[dict]:
    """The entries of a `history.jsonl`; none where there is no file.

    A run that was killed while it wrote leaves a last line that is cut off: it is left out, with a warning.

    Raises:
        InputError: another line is not a JSON object with a step, or the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("it is no object with a step")
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise InputError(f"{path}: line {number} is no entry of a run's log: {error}") from error
            logger.warning(f"{path}: the last line, {number}, is cut off and left out")
        else:
            entries.append(entry)
    return entries
