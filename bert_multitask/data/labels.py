"""How labels are read: one rule, whatever file or dataset they come from."""

import ast
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from numbers import Number
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features
from transformers.utils import logging

from ..model.errors import InputError
from ..model.kinds import KINDS
from ..model.losses import no_label
from ..model.tasks import NUMBER, Task, label_key

logger = logging.get_logger(__name__)

# What programs write where there is no label, without regard to case.
MISSING = {"", "na", "n/a", "<na>", "nan", "null", "none"}


class LabelReader:
    """Reads the labels of one task from one source, by the first of these rules that applies.

    1. None and NaN are no label.
    2. A label that equals one of the names is that class. Case and white space around it do not count, numbers are
       compared as numbers (1.0 is "1"), but not those such as 007, and true is "true" or "1".
    3. A text of `MISSING` is no label.
    4. -1 is no label. For scores this holds only in datasets, as those of GLUE, whose range of scores excludes -1.
    5. A number is the class of that number, from 0, if no name is a number.

    These are the rules of one class or score; the kind of task says how a label is made of them (`Kind.read`).

    Args:
        names: of the classes in this source; by default the task's `label_names`.
        numbered: numbers are class numbers, whatever the names are, as in files of predictions.
        dataset: the source is a `datasets.Dataset`, from the Hub or in memory.

    Attributes:
        expected: what a label may be, for messages.
    """

    def __init__(
        self, task: Task, names: Sequence[str] | None = None, *, numbered: bool = False, dataset: bool = False
    ):
        names = names or task.label_names or ()
        self.task, self.kind = task, KINDS[task.kind]
        self.classes = {label_key(name): number for number, name in enumerate(names)}
        are_numbers = any(isinstance(key, Decimal) for key in self.classes)
        if numbered:
            self.classes = {key: number for key, number in self.classes.items() if not isinstance(key, Decimal)}
        if numbered or not are_numbers:
            self.classes |= {number: number for number in range(len(names))}
        self.hides = -1 not in self.classes if names else dataset and self.kind.number(task, -1) is None
        self.expected = "a label"  # of a task that does not know its own yet
        if not task.is_open:
            self.expected = self.kind.describe_labels(task, names, numbered or not are_numbers)
        self.read_once = lru_cache(maxsize=4096, typed=True)(self.read_value)

    def read(self, raw: object) -> Any:
        """A label as its source gives it -> a class, a score, the mark of a missing one, or a list of these where the
        kind of task has lists; None where it is none of these."""
        return self.kind.read(self.task, raw, self.read_one)

    def read_one(self, raw: object) -> int | float | None:
        """`read` of one class or score."""
        if raw is None:
            return self.kind.missing
        return self.read_once(raw) if isinstance(raw, (str, Number)) else None

    def read_value(self, raw: str | Number) -> int | float | None:
        """`read_one` of a text or number."""
        key = label_key(raw)
        if isinstance(raw, bool) and key not in self.classes:
            raw, key = int(raw), Decimal(int(raw))
        if key in self.classes and raw == raw:
            return self.classes[key]
        if key in MISSING or (key == -1 and self.hides):
            return self.kind.missing
        text = str(raw).strip().casefold()
        return self.kind.number(self.task, float(text)) if NUMBER.fullmatch(text) else None

    def wrong_part(self, raw: object) -> object:
        """What to show of a label that cannot be read: the first such name in it, else the whole."""
        return next((part for part in self.kind.parts(raw) if self.read_one(part) is None), raw)

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Check that the names of a `ClassLabel` column are the task's, in any order.

        Raises:
            InputError: they are not; the message shows both.
        """
        if self.task.is_open:  # they will be the task's
            return
        found = [self.read_one(name) for name in names]
        if None in found or (self.classes and sorted(found) != sorted(set(self.classes.values()))):
            raise InputError(f"{where} has the classes {', '.join(names)}; expected {self.expected}, in any order")


def name_labels(
    rows: Iterable[dict], features: Features, column: str, reader: LabelReader, where: str
) -> Iterator[dict]:
    """Yield rows with names instead of the class numbers of a `ClassLabel` column, or of a column of lists of them, and
    with None instead of -1. Rows of a source without such a column stay as they are.

    Raises:
        InputError: the column's names are not the task's, or a number has no name.
    """
    names = feature_names(features.get(column))
    if names is None:
        yield from rows
        return
    reader.check_names(names, f"{where}: column {column!r}")
    for number, row in enumerate(rows, start=1):
        codes = row[column] if isinstance(row[column], list) else [row[column]]
        codes = [None if code is None or code != code or code == -1 else code for code in codes]
        if wrong := [code for code in codes if code is not None and code not in range(len(names))]:
            raise InputError(
                f"{where}, row {number}: {column} is {wrong[0]!r}; expected a class from 0 to {len(names) - 1}"
            )
        found = [None if code is None else names[int(code)] for code in codes]
        yield row | {column: found if isinstance(row[column], list) else found[0]}


def feature_names(feature: object) -> list[str] | None:
    """The names of a `ClassLabel`, or of a list of them; None of another feature."""
    feature = getattr(feature, "feature", feature)
    return feature.names if isinstance(feature, ClassLabel) else None


def infer_label_names(task: Task, labels: Iterable, where: str) -> tuple[str, ...]:
    """The label names of a task that has none: the different labels of its training rows, sorted, numbers by size. A
    warning names what was read as no label, and spellings that were taken for one label.

    Args:
        task: without label names. Its kind splits a label of several names, such as "war|love", into these.
        labels: as their source gives them.
        where: the source, for messages.

    Raises:
        InputError: there are no rows, the labels are not names, there are too many, or it cannot be seen which of two
            is "yes". The message says what to do.
    """
    kind, found, count, number = KINDS[task.kind], {}, 0, 0
    spellings, gaps = defaultdict(set), defaultdict(set)  # {label: texts}, {text that is no label: its rows}
    advice = f"give task {task.name!r} label_names, or another kind or label"
    for number, raw in enumerate(labels, start=1):
        if (written := read_written_list(raw)) is not None:
            form = (" " if kind.words else "|").join(written) or "|"
            raise InputError(
                f"{where}, row {number}: {task.label} is {raw!r}, a list that is written as one text; write {form}, or "
                "use lists of a JSON-lines or Parquet file"
            )
        for part in kind.parts(raw):
            if part is None or part != part:
                continue
            if (key := label_key(part)) in MISSING:
                gaps[str(part).strip()].add(number)
                continue
            whole = not isinstance(key, Decimal) or (key == key.to_integral_value() and key >= 0)
            if not isinstance(part, (str, Number)) or not whole:
                shown = str(part)[:40]
                raise InputError(f"{where}, row {number}: {task.label} has {shown!r}, which may be no class; {advice}")
            plain = str(int(key)) if isinstance(key, Decimal) else str(part).strip()
            found.setdefault(key, plain.lower() if isinstance(part, bool) else plain)
            spellings[key].add(str(part).strip().casefold())
            count += 1
    if not number:
        raise InputError(f"{where}: has no rows; task {task.name!r} needs some to train on")
    if len(found) > max(20, count / 2):
        raise InputError(f"{where}: {task.label} has {len(found):,} different values in {count:,} labels; {advice}")
    names = [found[key] for key in sorted(found, key=lambda key: (isinstance(key, str), key))]
    names = tuple(kind.order_names(names, f"{where}: {task.label}"))
    warn_of_combinations(task, where, names)
    warn_of_readings(task, where, gaps, spellings)
    return names


def read_written_list(raw: object) -> list[str] | None:
    """The items of a list of texts that is itself a text, as pandas writes one: "['x', 'y']"; None of anything else."""
    if not isinstance(raw, str) or not (text := raw.strip()).startswith("[") or not text.endswith("]"):
        return None
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return items if all(isinstance(item, str) for item in items) else None


def warn_of_combinations(task: Task, where: str, names: Sequence[str]) -> None:
    """Warn of a name such as "x, y" where x and y are names, too.

    Raises:
        InputError: a row of the task may have several labels, so that it is surely one of them.
    """
    for name in names:
        items = [item.strip() for item in name.split(",")]
        if len(items) > 1 and set(items) <= set(names):
            message = (
                f"{where}: {task.label} has the label {name!r} besides {' and '.join(map(repr, items))}; several "
                f"labels of a row are written {'|'.join(items)}, in a task of kind multilabel"
            )
            if KINDS[task.kind].nested:
                raise InputError(f"{message}; if it is one label, give the task label_names")
            logger.warning(message)
            return


def warn_of_readings(
    task: Task, where: str, gaps: Mapping[str, set[int]], spellings: Mapping[Hashable, set[str]]
) -> None:
    """Warn of texts that were read as no label, {text: its rows}, and of labels with several {label: spellings}."""
    if written := sorted(gaps.keys() - {""}):
        rows = set().union(*(gaps[text] for text in written))
        logger.warning(
            f"{where}: {len(rows):,} rows have no label: {task.label} is {', '.join(written)}; if one of these is a "
            "label, write it into label_names"
        )
    if twins := [" and ".join(sorted(texts)) for texts in spellings.values() if len(texts) > 1]:
        logger.warning(f"{where}: in {task.label}, {'; '.join(twins)} are one label")


def even_labels(labels: Sequence) -> Sequence:
    """Labels that an array or a tensor can be made of: lists filled up to the longest of them with the mark of a
    missing label, numbers as they are."""
    if not len(labels) or not isinstance(labels[0], list):
        return labels
    width = max(map(len, labels))
    missing = no_label(any(isinstance(value, float) for label in labels for value in label))
    return [label + [missing] * (width - len(label)) for label in labels]


def wrong_labels(task: Task, labels: pa.ChunkedArray) -> np.ndarray:
    """The rows whose label is not of the task, or is a list of another length than the task's (see `Kind.width`)."""
    kind, (values, owners) = KINDS[task.kind], label_numbers(labels)
    wrong, width = owners[~kind.are_labels(task, values)], kind.width(task)
    if width is not None:
        wrong = np.append(wrong, np.flatnonzero(pc.list_value_length(labels).fill_null(width).to_numpy() != width))
    return np.unique(wrong)


def label_numbers(labels: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a column of labels, float64 (M,), those of lists one after the other, and the row of each."""
    values, owners = labels.combine_chunks(), np.arange(len(labels))
    if hasattr(labels.type, "value_type"):
        values, owners = pc.list_flatten(values), pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False), owners
