"""Rows of text from files, the Hub or memory, with clean columns.

Clean columns are `id` (string), `text`, `text_pair` (pair tasks) and `label` (integer classes or float scores;
`no_label` where the source has none). Rows keep the source's order and number, so that a prediction is a line for each
of them; what is left out of training or scoring, and why, is said by `usable_rows`.
"""

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Value
from datasets.table import InMemoryTable
from transformers.utils import logging

from ..model.configuration import resolve_folder
from ..model.errors import InputError, explained
from ..model.kinds import KINDS
from ..model.losses import UNLABELLED, labelled_rows
from ..model.tasks import SPLITS, TASKS, Task, label_key, load_task, text_parts
from .dev_share import draw_dev_rows, text_keys
from .labels import LabelReader, even_labels, feature_names, infer_label_names, name_labels, wrong_labels
from .readers import (
    check_has_columns,
    claim_id,
    class_names,
    column_features,
    is_url,
    needed_columns,
    read_file,
    rename_columns,
    rename_rows,
)

logger = logging.get_logger(__name__)

SHOWN_GAPS = 5  # rows with gaps that are named one by one
SHOWN_NAMES = 12  # of labels that were found
SAMPLE = "package:bert_multitask/sample"
CLEAN = "bert_multitask"  # what clean rows have as the name of their builder, so that they are not read again
HANDOUT = "https://raw.githubusercontent.com/amahankali10/CS224N-Spring2024-DFP-Student-Handout/main/data"
# What a dataset's names of our splits begin with: validation, validation_matched, dev …; of several the first is taken.
SPLIT_NAMES = {"train": "train$", "dev": "val|dev", "test": "test"}
COURSE_FILES = {name for task in TASKS.values() if task.files for name in task.files.values()}


def load_rows(
    task: Task, data_dir: str = HANDOUT, splits: Collection[str] = SPLITS, labelled: Collection[str] = ("train", "dev")
) -> DatasetDict:
    """Read a task's rows as clean columns, in the source's order.

    Args:
        task: whose rows.
        data_dir: where the task's files are: a folder, an http(s) URL or `package:NAME/PATH` (the shipped sample is
            `SAMPLE`); "hub" reads the task's Hub datasets instead. By default the presets' files are the course's, and
            other relative paths begin in the current folder. A task that has only files, or only Hub datasets, reads
            those; files may have absolute paths.
        splits: the splits to read.
        labelled: the splits that must have a column of labels.

    Returns:
        {split: rows} of those splits that exist.

    Raises:
        InputError: a file, column or dataset is missing, or a label is not one of the task's; the message names the
            place.
    """
    task.check_named()
    if task.extra_train and "train" in splits:
        return add_extra_rows(task, data_dir, splits, labelled)
    wanted = set(splits)
    if task.dev_share and "dev" in splits:
        wanted, labelled = wanted | {"train"}, {*labelled, "train"}
    from_hub = is_from_hub(task, data_dir)
    found = read_hub(task, wanted, labelled) if from_hub else read_files(task, data_dir, wanted, labelled)
    rows = drop_empty(task, found)
    if task.dev_share and "train" in rows:
        chosen = draw_dev_rows(task, rows["train"])
        rows["dev"], rows["train"] = (take(rows["train"], np.flatnonzero(side)) for side in (chosen, ~chosen))
    elif {"train", "dev"} <= rows.keys():
        warn_of_shared(task, rows["train"], rows["dev"])
    return DatasetDict({split: part for split, part in rows.items() if split in splits})


def read_files(task: Task, data_dir: str, splits: Collection[str], labelled: Collection[str]) -> dict[str, Dataset]:
    """Read a task's files: {split: clean rows}."""
    rows = {}
    for split in [split for split in task.files if split in splits]:
        name = task.files[split]
        path = find_file(name, data_dir)
        if split == "test" and not is_url(path) and not os.path.exists(path):
            logger.warning(f"{path}: no such file; task {task.name!r} has no test rows to predict")
        else:
            raw = read_file(path, task, labelled=split in labelled)
            rows[split] = clean(task, raw, name, LabelReader(task))
    return rows


def find_file(name: str, data_dir: str) -> str:
    """The path of a task's file, which may be relative to the folder; without a folder, to the current one.

    Raises:
        InputError: the folder does not exist.
    """
    path = os.path.expanduser(name)
    if is_url(path) or os.path.isabs(path):
        return path
    without = data_dir == "hub" or (data_dir == HANDOUT and name not in COURSE_FILES)
    folder = "." if without else resolve_folder(data_dir).rstrip("/")
    if not is_url(folder) and not os.path.isdir(folder):
        raise InputError(f"--data_dir {data_dir}: no such folder; expected one that holds {name}")
    return f"{folder}/{name}"


def with_label_names(
    task: str | dict | Task,
    data_dir: str = HANDOUT,
    rows: Dataset | DatasetDict | pd.DataFrame | Iterable[Mapping] | None = None,
) -> Task:
    """The task with label names from its training rows. A task that has label names, or needs none, is returned as it
    is.

    The names of a `ClassLabel` column keep their order; otherwise they are the different labels, sorted. In a binary
    task the last name is "yes".

    Args:
        task: a task, its fields, or a preset's name.
        data_dir: where its training rows are (see `load_rows`).
        rows: training rows in memory, to be read instead; they have the task's own columns. Of a `DatasetDict` its
            training split.

    Raises:
        InputError: the rows cannot be read, or their labels cannot be used as names; the message says what to do.
    """
    task = load_task(task, named=False)
    if not task.is_open:
        return task
    source, where, names = task, "rows", None
    rows = rows if rows is None else rows_given(split_rows(rows, "train", where), where)
    if rows is None and is_from_hub(task, data_dir):
        rows, where = load_hub(task, ["train"])["train"], hub_place(task, "train")
        source = task.hub.as_task(task)
    if rows is None:
        where, path = task.files["train"], find_file(task.files["train"], data_dir)
        names, labels = class_names(path, task), (row["label"] for row in read_file(path, task, labelled=True))
    elif isinstance(rows, Dataset):
        check_has_columns(rows.column_names, needed_columns(source, True), where)
        names, labels = feature_names(rows.features[source.label]), rows.with_format(None)[source.label]
    else:
        labels = (row["label"] for row in rename_rows(rows, task, where, True, task.id or "id"))
    return replace(task, label_names=tuple(names or infer_label_names(task, labels, where)))


def find_splits(names: Iterable[str]) -> dict[str, str]:
    """{our split: its name} of those splits that are among a dataset's names (see `SPLIT_NAMES`)."""
    found = {ours: [name for name in names if re.match(theirs, name)] for ours, theirs in SPLIT_NAMES.items()}
    return {ours: names[0] for ours, names in found.items() if names}


def split_rows(rows: object, split: str, where: str) -> object:
    """Of a `DatasetDict` the rows of one of our splits; other rows as they are.

    Raises:
        InputError: the `DatasetDict` has no such split.
    """
    if not isinstance(rows, DatasetDict):
        return rows
    splits = find_splits(rows)
    if split not in splits:
        raise InputError(f"{where} has the splits {', '.join(rows) or 'none'}; expected one for {split}")
    return rows[splits[split]]


def describe_label_names(task: Task) -> str:
    """A line with the label names that a task found in its training rows, of many the first."""
    names = task.label_names
    more = f", … ({len(names)} in all)" * (len(names) > SHOWN_NAMES)
    return f"{task.name:12} label_names from its training rows: {', '.join(names[:SHOWN_NAMES])}{more}"


def add_extra_rows(task: Task, data_dir: str, splits: Collection[str], labelled: Collection[str]) -> DatasetDict:
    """`load_rows` of a task with `extra_train`: its own training rows, and after them those of the other sources, whose
    ids begin with the source's name. All splits are read, since a row may be left out that dev or test rows have."""
    own = load_rows(replace(task, extra_train=None), data_dir, SPLITS, labelled)
    scored = {frozenset(key) for split in own.keys() - {"train"} for key in text_keys(own[split])}
    tables, names = [own["train"].with_format("arrow")[:]], Counter()
    for source in task.extra_train:
        name = source.file or source.hub.path
        prefix = os.path.basename(name)
        names[prefix] += 1
        prefix += f"-{names[prefix]}" if names[prefix] > 1 else ""  # else two rows would have one id
        theirs = source.as_task(task)
        rows = usable_rows(task, load_rows(theirs, data_dir, ["train"], labelled)["train"], "train")
        shared = np.array([frozenset(key) in scored for key in text_keys(rows)], bool)  # in either order
        if shared.any():
            fate = "they are left out" if source.drop_shared else "drop_shared: true leaves them out"
            logger.warning(f"{name}: {shared.sum():,} of {len(rows):,} rows have the texts of dev or test rows; {fate}")
        rows = take(rows, np.flatnonzero(~shared)) if source.drop_shared else rows
        table = sample_rows(theirs, rows, seed=0).with_format("arrow")[:]
        ids = pc.binary_join_element_wise(prefix, pc.cast(table["id"], pa.string()), ":")
        tables.append(table.set_column(table.column_names.index("id"), "id", ids).cast(tables[0].schema))
    train = Dataset(InMemoryTable(pa.concat_tables(tables).combine_chunks()), info=own["train"].info)
    return DatasetDict({split: train if split == "train" else own[split] for split in splits if split in own})


def warn_of_shared(task: Task, train: Dataset, dev: Dataset) -> None:
    """Warn if rows that are scored have the texts of rows that are trained on."""
    trained, scored = (take(rows, used_rows(rows, split)) for split, rows in (("train", train), ("dev", dev)))
    known = set(text_keys(trained))
    if shared := sum(key in known for key in text_keys(scored)):
        logger.warning(
            f"{task.name}: {shared:,} of {len(scored):,} dev rows have the texts of training rows; their scores are "
            "too good"
        )


def warn_of_other_draws(tasks: Sequence[Task], rows: Mapping[str, DatasetDict], data_dir: str) -> None:
    """Warn if tasks that share weights draw different dev rows from the same training rows: then one is scored on texts
    that another has trained on. The tasks of a group have the same dev rows."""
    drawn = {task.unit: task for task in tasks if task.dev_share}
    for pair in itertools.combinations(drawn.values(), 2):
        places = {hub_place(task, "train") if is_from_hub(task, data_dir) else task.files["train"] for task in pair}
        if len(places) > 1:
            continue
        trained = [set(text_keys(rows[task.name]["train"])) for task in pair]
        dev = [text_keys(rows[task.name]["dev"]) for task in pair]
        if shared := sum(key in known for known, keys in zip(trained, dev[::-1], strict=True) for key in keys):
            names = " and ".join(task.unit for task in pair)
            logger.warning(
                f"{names} draw different dev rows from {places.pop()}: {shared:,} dev rows of one are training rows of "
                "the other; make the two a group, whose tasks have the same dev rows"
            )


def is_from_hub(task: Task, data_dir: str | None) -> bool:
    """Whether a task's rows are read from the Hub, and not from files."""
    return not task.files or (data_dir == "hub" and task.hub is not None)


def reads_course_files(task: Task) -> bool:
    """Whether one of a task's files has the name of a course's file, which by default is read from `HANDOUT`."""
    return not COURSE_FILES.isdisjoint([*(task.files or {}).values(), *(one.file for one in task.extra_train or ())])


def drop_empty(task: Task, rows: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits without a test split that has no rows: like one that is not there, it is not predicted.

    Raises:
        InputError: a train or dev split has no rows.
    """
    for split, part in rows.items():
        where = f"{part.info.description}: has no rows; task {task.name!r}"
        if not len(part) and split != "test":
            raise InputError(f"{where} needs some to {'train on' if split == 'train' else 'score'}")
        if not len(part):
            logger.warning(f"{where} has no test rows to predict")
    return {split: part for split, part in rows.items() if len(part)}


def read_hub(task: Task, splits: Collection[str], labelled: Collection[str]) -> dict[str, Dataset]:
    """Download a task's datasets from the Hub: {split: clean rows}."""
    rows, remote = {}, load_hub(task, splits)
    own = task.hub.as_task(task)
    reader = LabelReader(own, task.hub.label_names, dataset=True)
    for split, part in remote.items():
        where = hub_place(task, split)
        raw = read_dataset(part, reader, where, split in labelled, hub_ids(part, where))
        rows[split] = clean(own, raw, where, reader)
    return rows


def load_hub(task: Task, splits: Collection[str]) -> dict[str, Dataset]:
    """A task's datasets on the Hub as they are: {split: rows}. Without a test split there is a warning.

    Raises:
        InputError: the task has no dataset on the Hub, or it cannot be loaded.
    """
    source = task.hub
    if source is None:
        raise InputError(
            f"task {task.name!r} has neither files nor hub; add one of them to the task, to say where its rows are"
        )
    wanted = {split: name for split, name in source.splits.items() if split in splits}
    hint = "check path, name and revision in the task's hub, and the names in hub: splits:, "
    hint += "or name a local folder with --data_dir"
    with explained(f"{source.path}: cannot be loaded from the Hub", hint=hint):
        try:
            # All at once, so that the dataset is looked up once; a name may be a slice, as "train[:80%]".
            return datasets.load_dataset(source.path, source.name, revision=source.revision, split=wanted)
        except ValueError as error:
            unknown = re.search('Unknown split "(.+?)"', str(error))
            if not unknown or [split for split, name in wanted.items() if unknown[1] in name] != ["test"]:
                raise
    logger.warning(
        f"{hub_place(task, 'test')}: no such split; task {task.name!r} has no test rows to predict; "
        "hub: splits: names the dataset's splits"
    )
    return load_hub(task, wanted.keys() - {"test"}) if len(wanted) > 1 else {}


def hub_place(task: Task, split: str) -> str:
    """What a split of a task's Hub dataset is called in messages."""
    return "/".join(filter(None, (task.hub.path, task.hub.name, task.hub.splits[split])))


def hub_ids(remote: Dataset, where: str) -> str | None:
    """The column of a Hub split's ids: `idx`; None where there is none, or its values occur twice."""
    if "idx" not in remote.column_names:
        return None
    values = list(map(str, remote["idx"][:]))
    if len(set(values)) == len(values):
        return "idx"
    logger.warning(f"{where}: its column idx has values that occur twice; rows are numbered instead")
    return None


def read_dataset(remote: Dataset, reader: LabelReader, where: str, labelled: bool, ids: str | None) -> Iterator[dict]:
    """A dataset's rows under our column names; a row without an id is called by its number, from 0."""
    task = reader.task
    check_has_columns(remote.column_names, needed_columns(task, labelled), where)
    rows = name_labels(remote, remote.features, task.label, reader, where)
    return rename_rows(rows, task, where, labelled, ids)


def rows_given(rows: object, where: str) -> Dataset | Iterable:
    """Rows in memory as they are given, but those of a `pandas.DataFrame` as a `Dataset`.

    Raises:
        InputError: they are no rows, such as a dictionary of splits or columns, or Arrow cannot hold the frame.
    """
    if isinstance(rows, pd.DataFrame):
        with explained(f"{where}: the frame cannot be read"):
            return Dataset.from_pandas(rows, preserve_index=False)
    if isinstance(rows, (Mapping, str)) or not isinstance(rows, Iterable):
        keys = f" of {', '.join(map(str, rows))}" if isinstance(rows, Mapping) else ""
        raise InputError(
            f"{where}: is a {type(rows).__name__}{keys}; expected a datasets.Dataset, a pandas.DataFrame or a list of "
            "dictionaries (splits: a datasets.DatasetDict)"
        )
    return rows


def clean_rows(
    task: Task, rows: Dataset | pd.DataFrame | Iterable[Mapping], source: str = "rows", labelled: bool = True
) -> Dataset:
    """Rows in memory, with the task's own columns, as clean rows; their texts and labels are read as those of files.
    Rows that are clean already stay as they are.

    Args:
        task: whose rows; its `text`, `text_pair` and `label` are the names of their columns.
        rows: a dataset, a frame, or dictionaries.
        source: what to call them in messages.
        labelled: whether they must have labels.

    Returns:
        Clean rows in the same order. Those without an `id` are numbered from 0.

    Raises:
        InputError: `rows` is none of these, a column is missing, or a text or label cannot be read; the
            message names the row.
    """
    rows = rows_given(rows, source)
    reader = LabelReader(task, dataset=True)
    if isinstance(rows, Dataset) and rows.info.builder_name == CLEAN:
        check_clean(task, rows)
        return rows.with_format(None)
    if isinstance(rows, Dataset):
        raw = read_dataset(rows.with_format(None), reader, source, labelled, ids=task.id or "id")
    else:
        raw = rename_rows(rows, task, source, labelled, task.id or "id")
    return clean(task, raw, source, reader)


def clean_part(task: Task, table: pa.Table, path: str, first: int) -> Dataset:
    """Some rows of a file as clean rows, which are called by their numbers in the file, from 0.

    Args:
        table: the rows, as `read_tables` gives them.
        first: number of the first row, from 1.

    Raises:
        InputError: a text or label cannot be read; the message names the row.
    """
    columns = *text_parts(task.text), *text_parts(task.text_pair), task.label
    names = [name for name in dict.fromkeys(columns) if name in table.column_names]
    reader = LabelReader(task)
    features = column_features(table.schema, task.label, path)
    rows = name_labels(table.select(names).to_pylist(), features, task.label, reader, path)
    raw = (rename_columns(row, task, path, number, None) for number, row in enumerate(rows, first))
    return clean(task, raw, path, reader, first)


def clean(task: Task, raw: Iterator[dict], source: str, reader: LabelReader, first: int = 1) -> Dataset:
    """Collect raw rows into a dataset of clean columns, checking every label, text and id.

    Args:
        raw: dictionaries of `id`, `text`, `text_pair` and `label`, the label as the source writes it.
        first: number of the first row, for messages.

    Raises:
        InputError: a label is not one of the task's, a text is not valid Unicode, or two rows have one id; the message
            names the row. Also if -1, which means no label, seems to be a class.
    """
    task.check_named()
    features = dict.fromkeys(["id", *text_columns(task)], Value("string"))
    kind = KINDS[task.kind]
    features["label"] = datasets.List(Value(kind.dtype)) if kind.nested else Value(kind.dtype)
    columns: dict[str, list] = {name: [] for name in features}
    seen: dict[str, int] = {}
    hidden, vectors = False, set()
    for number, row in enumerate(raw, first):
        claim_id(seen, row["id"], number, source)
        if (label := reader.read(row["label"])) is None:
            wrong = reader.wrong_part(row["label"])
            verb = "is" if wrong is row["label"] else "has"
            raise InputError(f"{source}, row {number}: {task.label} {verb} {wrong!r}; expected {reader.expected}")
        label = kind.align(label, row["text"], f"{source}, row {number}")
        hidden = hidden or (label == UNLABELLED and label_key(row["label"]) == -1)
        if kind.nested and kind.missing not in label:
            vectors.add(kind.vector(row["label"]))
        for name, values in columns.items():
            values.append(label if name == "label" else row[name])
    if hidden and len(found := set(columns["label"]) - {UNLABELLED}) == 1:
        raise InputError(
            f"{source}: {task.label} is -1 (no label) or class {found.pop()} in every row; if -1 is a class, let the "
            "label_names be the numbers, and if it is none, leave it empty"
        )
    check_vectors(task, vectors, source)
    features = Features(features)
    # Not Dataset.from_dict, which looks at each value in Python again: a second of the full Quora file's.
    try:
        table = InMemoryTable.from_pydict(columns, schema=features.arrow_schema)
    except UnicodeEncodeError as error:
        texts = [value for name, values in columns.items() if name != "label" for value in enumerate(values, first)]
        number, text = next((number, text) for number, text in texts if not is_unicode(text))
        raise InputError(
            f"{source}, row {number}: {text!r} has half of a two-part character; correct the text"
        ) from error
    # The description carries the source's name to the messages about its rows.
    return Dataset(table, info=datasets.DatasetInfo(description=source, features=features, builder_name=CLEAN))


def check_vectors(task: Task, found: set[tuple[int, ...] | None], source: str) -> None:
    """Check that lists of label numbers are not meant as vectors of 0 and 1.

    Args:
        found: `Kind.vector` of all rows that have a label.

    Raises:
        InputError: each row has both of the task's two labels, and some in reverse. Numbers of labels are usually
            written in their order, so that (0, 1) alone says nothing.
    """
    if len(task.label_names or ()) == 2 and (1, 0) in found and found <= {(0, 1), (1, 0)}:
        raise InputError(
            f"{source}: {task.label} is [0, 1] or [1, 0] in every row, which looks like 0/1 vectors; give the names or "
            f"numbers of the labels that apply, such as [{task.label_names[1]!r}] instead of [0, 1]"
        )


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, which half of a surrogate pair cannot."""
    return text.encode(errors="ignore").decode() == text


def text_columns(task: Task) -> list[str]:
    """The columns of clean rows that hold texts."""
    return ["text", "text_pair"] if task.text_pair else ["text"]


def check_clean(task: Task, rows: Dataset) -> None:
    """Check that rows are clean. Those that neither `load_rows` nor `clean_rows` made have not been checked yet.

    Raises:
        InputError: a column is missing, has another type or gaps, or has a label that is not a class of the task.
    """
    advice = "expected clean rows: make them with load_rows or clean_rows"
    if not isinstance(rows, Dataset):
        raise InputError(f"the rows of task {task.name!r} are a {type(rows).__name__}; {advice}")
    kind = KINDS[task.kind]
    types = dict.fromkeys(["id", *text_columns(task)], ("string", "large_string")) | {
        "label": kind.dtype.rstrip("0123456789")
    }
    table = rows.with_format("arrow")[:]
    for name, expected in types.items():
        feature = rows.features.get(name)
        if name == "label" and kind.nested:
            feature = getattr(feature, "feature", None)
        if not isinstance(feature, Value) or not feature.dtype.startswith(expected):
            raise InputError(f"the rows of task {task.name!r} have {feature} as column {name!r}; {advice}")
        if table[name].null_count:
            raise InputError(f"the rows of task {task.name!r} have gaps in column {name!r}; {advice}")
    if len(wrong := wrong_labels(task, table["label"])):
        raise InputError(
            f"the rows of task {task.name!r} have the label {table['label'][int(wrong[0])]}, and not "
            f"{kind.describe_labels(task)}; {advice}"
        )


def usable_rows(task: Task, rows: Dataset, split: str) -> Dataset:
    """The rows a split is used with; a warning names those with gaps.

    Training leaves out rows with an empty text, and rows without a label. A task of a group keeps rows without a label,
    which may have another label of the group (see `token_rows.join_groups`). The other splits keep every row: one
    without a label is predicted and not scored, an empty text is predicted as it is. A test split may have no labels
    at all.

    Raises:
        InputError: no row is left to train on, a dev split has no label to score, or the rows are not clean.
    """
    check_clean(task, rows)
    source = rows.info.description
    empty, unlabelled = find_gaps(rows)
    if split != "test" and unlabelled.all():
        raise InputError(f"{source}: no row has a label in column {task.label!r}; task {task.name!r} needs some")
    kept = ~empty if task.group else ~empty & ~unlabelled
    fates = ("left out of training",) * 2 if split == "train" else ("predicted", "predicted, not scored")
    needs_label = not (unlabelled.all() or (split == "train" and task.group))
    gaps = "an empty text", f"no label for {task.name}"
    for gap, places, fate in zip(gaps, (empty, unlabelled & needs_label), fates, strict=True):
        if places.any():
            logger.warning(f"{source}: {gap} in {name_rows(task, rows, places)}; {fate}")
    if split != "train" or kept.all():
        return rows
    if not kept.any():
        raise InputError(f"{source}: no row has both a text and a label; task {task.name!r} has nothing to train on")
    return take(rows, np.flatnonzero(kept))


def find_gaps(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Which clean rows have an empty text, and which have no label: truth values (N,)."""
    # [:] reads a column at once; going through it would read row by row, ten times as long.
    texts = zip(*(rows[column][:] for column in ("text", "text_pair") if column in rows.column_names), strict=True)
    empty = np.array([not all(map(str.strip, row)) for row in texts], bool)
    return empty, ~labelled_rows(np.array(even_labels(rows["label"][:])))


def used_rows(rows: Dataset, split: str) -> np.ndarray:
    """The numbers of the clean rows that are trained on, scored (dev) or predicted (test)."""
    empty, unlabelled = find_gaps(rows)
    gaps = {"train": empty | unlabelled, "dev": unlabelled}
    return np.flatnonzero(~gaps.get(split, np.zeros(len(rows), bool)))


def count_used(rows: Mapping[str, Dataset]) -> dict[str, int]:
    """{split: how many of its rows are used} (see `used_rows`)."""
    return {split: len(used_rows(part, split)) for split, part in rows.items()}


def name_rows(task: Task, rows: Dataset, chosen: np.ndarray) -> str:
    """Rows in words, the first few one by one: by their numbers, from 1, or by their ids where these are a part of a
    file, which has other numbers."""
    numbers = np.flatnonzero(chosen)
    names = [repr(rows["id"][int(row)]) if task.dev_share else str(row + 1) for row in numbers[:SHOWN_GAPS]]
    s = "s" * (len(numbers) > 1)
    what = f"row{s} with id{s}" if task.dev_share else f"row{s}"
    return f"{what} {', '.join(names)}" + f", … ({len(numbers):,} in all)" * (len(numbers) > SHOWN_GAPS)


def take(rows: Dataset, indices: Sequence[int] | np.ndarray) -> Dataset:
    """`rows.select(indices)` as a table of its own: through `select`'s list of indices each later reading goes row by
    row, which took two seconds for the full Quora file."""
    return Dataset(InMemoryTable(rows.with_format("arrow")[:].take(indices)), info=rows.info)


def sample_rows(task: Task, rows: Dataset, seed: int) -> Dataset:
    """The task's `max_train_samples` rows, drawn without replacement and in their old order; all where it has none or
    there are no more."""
    if task.max_train_samples is None or len(rows) <= task.max_train_samples:
        return rows
    drawn = np.random.default_rng(seed).permutation(len(rows))[: task.max_train_samples]
    return take(rows, np.sort(drawn))


def describe_rows(tasks: Sequence[Task], rows: Mapping[str, DatasetDict]) -> str:
    """The rows of every split that are used (see `used_rows`) as a table; beside them how many were read, where these
    are more, and the course's own, where those differ."""
    width = max([12, *(len(task.name) for task in tasks)])
    lines = [f"{'rows':{width}}" + "".join(f"{split:>9}" for split in SPLITS)]
    for task in tasks:
        counts = {split: len(part) for split, part in rows[task.name].items()}
        used = count_used(rows[task.name])
        line = f"{task.name:{width}}" + "".join(f"{used.get(split, 0):9,}" for split in SPLITS)
        if used != counts:
            read = " / ".join(f"{counts.get(split, 0):,}" for split in SPLITS)
            line += f"  of {read} that were read; the others have no label or no text"
        if task.course_rows and counts != task.course_rows:
            line += "  course: " + " / ".join(f"{task.course_rows[split]:,}" for split in SPLITS)
        lines.append(line)
    return "\n".join(lines)


def fingerprint(rows: Dataset) -> str:
    """SHA-256 of the rows' clean columns: the same data gives the same 16 characters, wherever it was read from."""
    digest = hashlib.sha256()
    for column in rows.column_names:
        digest.update(json.dumps([column, rows[column][:]]).encode())
    return digest.hexdigest()[:16]


def text_digests(task: Task, rows: Dataset) -> list[str]:
    """16 characters of the SHA-256 of each row's texts, as the task reads them."""
    texts = zip(*(rows[column][:] for column in text_columns(task)), strict=True)
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16] for row in texts]
