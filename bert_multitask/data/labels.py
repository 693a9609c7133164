"""How labels are read: one rule, whatever file or dataset they come from."""

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from numbers import Number

from datasets import ClassLabel, Features

from ..model.errors import InputError
from ..model.losses import no_label
from ..model.tasks import Task, label_key

# What programs write where there is no label, without regard to case.
MISSING = {"", "na", "n/a", "<na>", "nan", "null", "none"}


class LabelReader:
    """Reads the labels of one task from one source, by the first of these rules that applies.

    1. None and NaN are no label.
    2. A label that equals one of the names is that class. Case and white space around it do not count, numbers are
       compared as numbers (1.0 is "1"), and true is "true" or "1".
    3. A text of `MISSING` is no label.
    4. -1 is no label. For scores this holds only in datasets, as those of GLUE, whose range of scores excludes -1.
    5. A number is the class of that number, from 0, if no name is a number.

    Args:
        task: whose labels.
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
        self.range = task.score_range
        self.classes = {label_key(name): number for number, name in enumerate(names)}
        are_numbers = any(isinstance(key, Decimal) for key in self.classes)
        if numbered:
            self.classes = {key: number for key, number in self.classes.items() if not isinstance(key, Decimal)}
        if numbered or not are_numbers:
            self.classes |= {number: number for number in range(len(names))}
        if self.range:
            self.hides = dataset and not self.range[0] <= -1 <= self.range[1]
            self.expected = f"a score from {self.range[0]:g} to {self.range[1]:g}"
        else:
            self.hides = -1 not in self.classes
            numbers = f"a class from 0 to {len(names) - 1} ({', '.join(names)})"
            self.expected = f"one of {', '.join(names)}" if are_numbers and not numbered else numbers
        self.read_once = lru_cache(maxsize=4096, typed=True)(self.read_value)

    def read(self, raw: object) -> int | float | None:
        """A label as its source gives it -> a class, a score, or `no_label`; None where it is none of these."""
        if raw is None:
            return no_label(self.range is not None)
        return self.read_once(raw) if isinstance(raw, (str, Number)) else None

    def read_value(self, raw: str | Number) -> int | float | None:
        """`read` of a text or number."""
        key = label_key(raw)
        if isinstance(raw, bool) and key not in self.classes:
            key = Decimal(int(raw))
        if key in self.classes and raw == raw:
            return self.classes[key]
        if key in MISSING or (key == -1 and self.hides):
            return no_label(self.range is not None)
        if self.range and isinstance(key, Decimal) and self.range[0] <= (score := float(key)) <= self.range[1]:
            return score
        return None

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Refuse the names of a `ClassLabel` column that are not the task's, in whatever order.

        Raises:
            InputError: shows both.
        """
        found = [self.read(name) for name in names]
        if None in found or (not self.range and sorted(found) != sorted(set(self.classes.values()))):
            raise InputError(f"{where} has the classes {', '.join(names)}; expected {self.expected}, in any order")


def name_labels(
    rows: Iterable[dict], features: Features, column: str, reader: LabelReader, where: str
) -> Iterator[dict]:
    """Yield rows with the names that the numbers of a `ClassLabel` column mean, and None for its -1. Rows of a source
    without such a column stay as they are.

    Args:
        rows: of the source.
        features: of the source.
        column: of the labels.
        reader: of the labels.
        where: file or dataset, for messages.

    Raises:
        InputError: the column's names are not the task's, or a number has no name.
    """
    feature = features.get(column)
    if not isinstance(feature, ClassLabel):
        yield from rows
        return
    names = feature.names
    reader.check_names(names, f"{where}: column {column!r}")
    for number, row in enumerate(rows, start=1):
        code = row[column]
        if code is None or code != code or code == -1:
            yield row | {column: None}
        elif code in range(len(names)):
            yield row | {column: names[int(code)]}
        else:
            raise InputError(
                f"{where}, row {number}: {column} is {code!r}; expected a class from 0 to {len(names) - 1}"
            )
