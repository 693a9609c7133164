"""What a table is for: a guess of the tasks whose texts and labels its columns hold."""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Number
from pathlib import Path

import datasets

from ..model.errors import InputError, explained
from ..model.tasks import RESERVED, Task, label_key
from .labels import MISSING, read_written_list
from .readers import READERS, is_url, read_as_written
from .rows import find_splits, with_label_names

# Names that columns of labels often have, as `Column.plain_name` spells them.
LABELS = re.compile(
    r"(.*_)?(label|labels|target|class|category|categories|sentiment|intent|topic|genre|genres|emotion|emotions|stars|"
    r"rating|score|similarity|tag|tags|gold|y|is_\w+)|-1"
)
PLAIN = ("label", "labels", "target", "class", "gold", "y", "-1")  # those that say nothing of what they mean
IDS = re.compile(r"(unnamed:_0|index|idx|guid|uuid|(.*_)?id)?")
PAIRS = [
    *(("premise", "hypothesis"), ("question", "answer"), ("question", "sentence"), ("text", "text_pair")),
    *(("query", "document"), ("query", "passage"), ("claim", "evidence"), ("first", "second")),
]
STEMS = ("question", "sentence", "text", "sent", "query", "premise", "q", "s")  # of pairs: question1, question2
MOST_CLASSES, MOST_GRADES = 200, 10
# What a task says otherwise, where its label names do not fit the kind that was guessed.
OTHERWISE = {"binary": {"kind": "classification"}, "token_classification": {"metric": "accuracy"}}
LONG = 4  # words that a text has on average, and the name of a class has not


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its values in all rows, and whether it is called as labels are, or was chosen."""

    name: str
    values: Sequence
    is_label: bool

    @cached_property
    def known(self) -> list:
        """The values that are not missing."""
        present = [value for value in self.values if value is not None and value == value]
        return [value for value in present if isinstance(value, (list, tuple)) or label_key(value) not in MISSING]

    @cached_property
    def is_lists(self) -> bool:
        """Whether the values are lists."""
        return bool(self.known) and all(isinstance(value, (list, tuple)) for value in self.known)

    @cached_property
    def is_written_lists(self) -> bool:
        """Whether the values are texts in the form of lists, which no task reads (see `infer_label_names`)."""
        return bool(self.known) and read_written_list(self.known[0]) is not None

    @cached_property
    def items(self) -> list[Sequence]:
        """The items of lists, the words of texts."""
        return [value if isinstance(value, (list, tuple)) else str(value).split() for value in self.known]

    @cached_property
    def words(self) -> set:
        """The different `items`."""
        return {item for items in self.items for item in items}

    @cached_property
    def distinct(self) -> set:
        """The different values, of lists those in them."""
        return set(map(label_key, self.words if self.is_lists else self.known))

    @cached_property
    def numbers(self) -> list[float]:
        """The values, where all are numbers; else none."""
        are = all(isinstance(value, Number) or isinstance(label_key(value), Decimal) for value in self.known)
        return list(map(float, self.known)) if are and not self.is_lists else []

    @cached_property
    def is_text(self) -> bool:
        """Whether the values are texts, and no names of classes."""
        if (
            self.is_lists
            or self.is_written_lists
            or self.numbers
            or not all(isinstance(value, str) for value in self.known)
        ):
            return False
        words = sum(map(len, self.items)) / max(1, len(self.known))
        return words >= LONG or len(self.distinct) > max(MOST_GRADES, len(self.known) / 2)

    @property
    def is_id(self) -> bool:
        """Whether it names the rows."""
        named = IDS.fullmatch(plain_name(self.name)) is not None and not (self.is_lists or self.is_label)
        return named and len(set(map(str, self.known))) == len(self.values)


def plain_name(column: str) -> str:
    """The name of a column in lower case, its words joined by underscores: `Main Topic` is `main_topic`."""
    return "_".join(column.casefold().split())


def guess_tasks(
    columns: Mapping[str, Sequence], name: str, chosen: Collection[str] = ()
) -> tuple[list[dict], dict[str, str]]:
    """Guess the tasks of a table, one for each column of labels, all of the same texts.

    Args:
        columns: {name: the values of all rows}.
        name: of the table, by which a task is called whose column of labels says nothing.
        chosen: the columns of labels; without any, they are guessed.

    Returns:
        The fields of each task, without those that say where its rows are and what its labels are called; and why,
        {name of the task: what its labels look like}.

    Raises:
        InputError: no column seems to hold texts, or none labels, or a chosen one does not.
    """
    found = [
        Column(column, values, column in chosen if chosen else bool(LABELS.fullmatch(plain_name(column))))
        for column, values in columns.items()
    ]
    ids = [column.name for column in found if column.is_id]
    found = [column for column in found if column.name not in ids and column.known]
    texts, labels = guess_tags(found, chosen)
    if not labels:
        kinds = {column.name: guess_kind(column) for column in found}
        able = [column for column in found if kinds[column.name] and (column.is_label or not column.is_text)]
        able = [column for column in able if column.name not in (find_pair(found) or ())]
        labels = [(column.name, *kinds[column.name]) for column in choose_labels(able)]
        taken = {label[0] for label in labels}
        taken |= {column.name for column in found if chosen and LABELS.fullmatch(plain_name(column.name))}
        texts = guess_texts([column for column in found if column.name not in taken])
    if lost := [column for column in chosen if column not in [label[0] for label in labels]]:
        raise InputError(
            f"{name}: column {lost[0]!r} holds no labels; expected 2 to {MOST_CLASSES} different values, numbers, "
            "lists of labels, or a tag for each word"
        )
    if not texts or not labels:
        what = "texts" if labels else "labels"
        raise InputError(
            f"{name}: no column looks like {what} (of {', '.join(columns)}); write the tasks yourself, as "
            "docs/tasks.md shows"
        )
    common = texts | ({"id": ids[0]} if any(ids[:1]) and "id" not in columns else {})
    names: dict[str, str] = {}  # {task: its column of labels}
    for label, _, _ in labels:
        task = task_name(label, name, alone=len(labels) == 1)
        names[task if task not in names else f"{task}_{len(names) + 1}"] = label
    tasks = [
        {"name": task, "kind": kind["kind"], **common, "label": label} | kind
        for task, (label, kind, _) in zip(names, labels, strict=True)
    ]
    return tasks, {task: why for task, (_, _, why) in zip(names, labels, strict=True)}


def guess_tags(columns: Sequence[Column], chosen: Collection[str]) -> tuple[dict, list[tuple[str, dict, str]]]:
    """The column of words, that of tags, which are as many in each row, and the labels of whole rows beside them;
    nothing where there are no tags. Tags that are not lists but texts have to be called as labels are."""
    for words in sorted(columns, key=lambda column: -len(column.words)):
        sizes = list(map(len, words.items))
        others = [column for column in columns if column is not words and column.is_lists >= words.is_lists]
        alike = [
            column
            for column in others
            if (column.is_lists or column.is_label) and len(column.words) <= MOST_CLASSES
            if list(map(len, column.items)) == sizes
        ]
        if alike and sum(sizes) > (0 if words.is_lists else 2 * len(sizes)):
            tags = [one for one in alike if one.name in chosen] if chosen else choose_labels(alike)[-1:]
            labels = [(one.name, {"kind": "token_classification"}, "a tag for each word") for one in tags]
            beside = [one for one in columns if one.is_label and one not in (words, *alike)]
            whole = [(one.name, *kind) for one in beside if (kind := guess_kind(one))]
            return {"text": words.name} | ({"word_by_word": True} if whole else {}), labels + whole
    return {}, []


def guess_kind(column: Column) -> tuple[dict, str] | None:
    """What a task says of the labels that a column may hold, and why; None where it holds none."""
    parts = {part.strip() for value in column.known if isinstance(value, str) for part in value.split("|")} - {""}
    count = len(column.distinct)
    if column.is_written_lists:
        return {"kind": "multilabel"}, "lists that are written as texts"
    if column.is_lists or (any("|" in str(value) for value in column.known) and len(parts) <= MOST_CLASSES):
        shown = column.distinct if column.is_lists else parts
        return ({"kind": "multilabel"}, f"any of {len(shown)} labels") if len(shown) <= MOST_CLASSES else None
    if count < 2:
        return None
    if column.numbers and count > 2 and not are_grades(column.numbers):
        low, high = min(column.numbers), max(column.numbers)
        return {"kind": "regression", "score_range": [low, high]}, f"numbers from {low:g} to {high:g}"
    if count > min(MOST_CLASSES, max(MOST_GRADES, len(column.known) / 2)):
        return None
    kind = "binary" if count == 2 else "classification"
    return {"kind": kind}, f"{count} different values"


def are_grades(numbers: Collection[float]) -> bool:
    """Whether numbers are classes: a few whole ones from 0 or 1 up, without a gap."""
    found = sorted(set(numbers))
    return len(found) <= MOST_GRADES and found[0] in (0, 1) and found == list(range(int(found[0]), int(found[-1]) + 1))


def choose_labels(columns: Sequence[Column]) -> list[Column]:
    """Those that are called as labels are, or were chosen; else the last."""
    return [column for column in columns if column.is_label] or list(columns[-1:])


def guess_texts(columns: Sequence[Column]) -> dict[str, object]:
    """`text` and `text_pair` of the columns that hold no labels: a pair where two are called so, else all texts, in
    their order; without any the column with the most different values."""
    if pair := find_pair(columns):
        return {"text": pair[0], "text_pair": pair[1]}
    words = [column for column in columns if not column.is_lists and not column.numbers]
    texts = [column for column in words if column.is_text] or sorted(words, key=lambda c: len(c.distinct))[-1:]
    names = [column.name for column in texts]
    return {"text": names[0] if len(names) == 1 else names} if names else {}


def find_pair(columns: Sequence[Column]) -> tuple[str, str] | None:
    """The names of two columns of texts that are called as a pair; None without such columns. Of `question1` and
    `question2` and the like, values may repeat, as those of a list of frequent questions do; of two other names with 1
    and 2 or a and b one has to hold texts, and of PAIRS both."""
    words = [column for column in columns if not (column.is_lists or column.numbers or column.is_label)]
    for first, second in itertools.permutations(words, 2):
        names = first.name, second.name
        stem, other = re.sub("_?[1aA]$", "", first.name), re.sub("_?[2bB]$", "", second.name)
        texts = first.is_text + second.is_text
        if stem == other != first.name and texts >= (0 if stem.casefold() in STEMS else 1):
            return names
        if names in PAIRS and texts == 2 or names == ("premise", "hypothesis"):
            return names
    return None


def task_name(label: str, table: str, alone: bool) -> str:
    """What a task is called: as its column of labels, or as the table where that says nothing."""
    name = table if alone and label.strip().casefold() in PLAIN else label
    name = re.sub(r"\W+", "_", name).strip("_").casefold()
    return name if name.isidentifier() and name not in RESERVED and not name.startswith("eval_") else f"task_{name}"


def read_table_file(path: str) -> tuple[dict[str, list], dict]:
    """The columns of a file, {name: values}, and what a task has to say of how the file is read.

    Raises:
        InputError: the file does not exist, cannot be read or has no rows.
    """
    if not is_url(path) and Path(path).is_dir():
        tables = sorted(str(file) for file in Path(path).iterdir() if any(map(file.suffixes.__contains__, READERS)))
        instead = f"in it, such as {tables[0]}" if tables else f"that ends in {', '.join(READERS)}"
        raise InputError(f"{path}: is a folder; give a file {instead}")
    if not is_url(path) and not Path(path).is_file():
        raise InputError(
            f"{path}: no such file; expected one that ends in {', '.join(READERS)}, or the id of a dataset"
        )
    error = None
    for fields in ({}, {"quoting": "none"}):
        try:
            rows = list(read_as_written(path, Task("table", "classification", **fields)))
            if not rows:
                raise InputError(f"{path}: has no rows; a header alone is not enough")
            names = dict.fromkeys(name for row in rows for name in row)
            return {name: [row.get(name) for row in rows] for name in names}, fields
        except InputError as refused:
            error = error or refused
    raise error


def read_table_hub(path: str, name: str | None = None) -> tuple[dict[str, list], dict]:
    """The columns of the training rows of a dataset on the Hub, and the `hub` of a task of it, without columns.

    Raises:
        InputError: the dataset cannot be loaded, or has no training rows.
    """
    with explained(f"{path}: no such file, and it cannot be loaded from the Hub"):
        dataset = datasets.load_dataset(path, name)
    if "train" not in dataset:
        raise InputError(f"{path}: has the splits {', '.join(dataset)}; expected train, and perhaps others")
    hub = {"path": path} | ({"name": name} if name else {}) | {"splits": find_splits(dataset)}
    rows = dataset["train"].with_format(None)
    return {column: rows[column][:] for column in rows.column_names}, {"hub": hub}


def settle_task(fields: dict) -> dict:
    """The fields of a guessed task with the label names of its training rows. Where which of two labels is "yes" cannot
    be seen, they are classes; tags that mark no entities are scored one by one.

    Raises:
        InputError: the training rows cannot be read.
    """
    try:
        task = with_label_names(fields)
    except InputError:
        if fields["kind"] not in OTHERWISE:
            raise
        fields = fields | OTHERWISE[fields["kind"]]
        task = with_label_names(fields)
    return fields | ({"label_names": list(task.label_names)} if task.label_names else {})
