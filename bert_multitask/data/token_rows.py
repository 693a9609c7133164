"""Rows as a trainer takes them, {task: rows}: tokenised, and checked before anything is computed.

Rows with a column `input_ids` are tokenised already (`tokenise`). All others are raw, with the columns that the task
names, and are read as `clean_rows` reads them: labels by name or number or as a `ClassLabel`. Rows without a label or
text are treated as those of files (`usable_rows`). Raw rows are cut to the tokenizer's `model_max_length`, as
`truncation=True` cuts them, and to what the model can take. Each task of a group has rows of its own until they are
joined (`join_groups`), the same but for their labels.
"""

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, Value
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..model.errors import InputError, explained
from ..model.kinds import KINDS
from ..model.losses import labelled_rows
from ..model.modeling import MultitaskBertModel
from ..model.tasks import Task
from .labels import even_labels, wrong_labels
from .rows import clean_rows, find_splits, rows_given, sample_rows, split_rows, take, usable_rows
from .tokens import check_tokenizer, load_tokenizer, tokenise

COLUMNS = ("input_ids", "token_type_ids", "labels")
STREAMS = (datasets.IterableDataset, torch.utils.data.IterableDataset)


def rows_by_task(
    given: object,
    model: MultitaskBertModel,
    argument: str,
    split: str = "test",
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
) -> dict[str, Dataset]:
    """The rows that a trainer is given, by task, in the order of the model's tasks.

    Args:
        given: {task: rows, raw or tokenised, as a `Dataset`, a `pandas.DataFrame` or a sequence of dictionaries}, or
            the rows of one task, which their column `task` names where the model has several. The raw rows of a group
            may be given once, {group: rows}. Of a `DatasetDict` of one task, whose keys are splits, the split is taken.
        model: whose tasks they are of.
        argument: what the rows were given as, for messages.
        split: "train", "dev" or "test": how raw rows are used.
        tokenizer: of raw rows.
        seed: of the sample of raw training rows, where the task has `max_train_samples`.

    Returns:
        Tokenised rows with a column `task`, whose labels, tokens and lengths the model takes.

    Raises:
        InputError: the rows are of a task that the model does not have, cannot be used for it, or name no task; the
            message names the task, and the column or row.
    """
    if isinstance(given, DatasetDict) and given.keys().isdisjoint({*model.tasks, *model.units}):
        given = split_rows(given, split, argument)
    if not isinstance(given, Mapping):
        given = {task_of(given, model, argument): given}
    given = {name: split_rows(part, split, f"{argument}[{name!r}]") for name, part in given.items()}
    given = open_groups(given, model, argument)
    if unknown := [name for name in given if name not in model.tasks]:
        hint = "; splits are given as a datasets.DatasetDict" if find_splits(map(str, unknown)) else ""
        names = ", ".join(model.tasks)
        raise InputError(f"{argument} has rows of {unknown[0]!r}, but the model's tasks are {names}{hint}")
    rows = {}
    for name, task in model.tasks.items():
        if name in given:
            where = f"{argument}[{name!r}]"
            part = as_rows(given[name], where)
            if not is_tokenised(part):
                part = tokenise_raw(part, task, model, where, split, tokenizer)
                part = sample_rows(task, part, seed) if split == "train" else part
            rows[name] = check_rows(part, task, model, where)
    return rows


def open_groups(given: Mapping, model: MultitaskBertModel, argument: str) -> dict:
    """{task: rows}, where {group: rows} may be given: raw rows, the same for each task of the group, or rows of
    `join_groups`."""
    rows = {}
    for key, part in given.items():
        names = [key] if key in model.tasks else model.units.get(key, [key])
        if names == [key]:
            rows[key] = part
        elif is_tokenised(part := as_rows(part, f"{argument}[{key!r}]")):
            rows |= split_group(part, names, f"{argument}[{key!r}]")
        else:
            rows |= dict.fromkeys(names, part)
    return rows


def split_group(rows: Dataset, names: Sequence[str], where: str) -> dict[str, Dataset]:
    """The rows of a group, as `join_groups` gives them, as {task: its rows}."""
    labels = rows.features.get("labels")
    if not isinstance(labels, Mapping) or labels.keys() != {*names}:
        raise InputError(f"{where} is tokenised; give {{task: rows}} of {', '.join(names)}, or raw rows")
    own = [column for column in ("labels", "soft_labels") if column in rows.column_names]
    table = rows.select_columns(own).with_format("arrow")[:]
    parts = dict.fromkeys(names, rows.remove_columns([*own, *(["task"] if "task" in rows.column_names else [])]))
    for column in own:
        for name, feature in rows.features[column].items():
            values = pc.struct_field(table[column], name).combine_chunks()
            parts[name] = parts[name].add_column(column, values, feature=feature)
    return parts


def join_groups(
    rows: Mapping[str, Dataset], model: MultitaskBertModel, argument: str, split: str = "dev"
) -> dict[str, Dataset]:
    """The rows of tasks as they are batched: those of a group as one, whose labels are {task: label}.

    Args:
        rows: {task: tokenised rows}; those of a task without the others of its group stay as they are.
        model: the model that has the tasks.
        argument: what the rows were given as, for messages.
        split: of "train" a row that none of the group's tasks has a label for is left out.

    Returns:
        {task or group: rows}, in the order of the model's tasks.

    Raises:
        InputError: the tasks of a group do not have the same texts.
    """
    joined = {}
    for unit, names in model.units.items():
        parts = {name: rows[name] for name in names if name in rows}
        whole = unit not in model.tasks and len(parts) == len(names)
        joined |= {unit: join_group(unit, parts, argument, split)} if whole else parts
    return joined


def join_group(group: str, parts: Mapping[str, Dataset], argument: str, split: str) -> Dataset:
    """The rows of one group, {task: its rows}, as one (see `join_groups`)."""
    (first, rows), *others = parts.items()
    tables = {name: part.with_format("arrow")[:] for name, part in parts.items()}
    for name, _ in others:
        if any(not tables[name][column].equals(tables[first][column]) for column in COLUMNS[:2]):
            raise InputError(
                f"{argument}: the rows of {first!r} and {name!r}, tasks of group {group!r}, are not the same texts in "
                "the same order"
            )
    rows = rows.remove_columns([name for name in ("task", "labels", "soft_labels") if name in rows.column_names])
    rows = rows.add_column("task", [group] * len(rows))
    for column in ("labels", "soft_labels"):
        owners = [name for name, part in parts.items() if column in part.column_names]
        if owners:
            values = pa.StructArray.from_arrays([tables[name][column].combine_chunks() for name in owners], owners)
            rows = rows.add_column(column, values, feature={name: parts[name].features[column] for name in owners})
    if split != "train":
        return rows
    labels = [np.asarray(even_labels(part["labels"][:])) for part in parts.values()]
    known = np.any([labelled_rows(each) for each in labels], axis=0)
    return rows if known.all() else take(rows, np.flatnonzero(known))


def task_of(rows: object, model: MultitaskBertModel, argument: str) -> str:
    """The one task that rows are of."""
    rows, names = as_rows(rows, argument), list(model.tasks)
    if len(names) > 1 and isinstance(rows, Dataset) and "task" in rows.column_names:
        names = rows.unique("task")
    if len(names) != 1:
        given = ", ".join(f"{name!r}: rows" for name in names or ["task"])
        raise InputError(f"{argument} has to say which rows are of which task: give {{{given}}}")
    return names[0]


def as_rows(rows: object, where: str) -> Dataset | list[Mapping]:
    """Rows as a `Dataset` that gives plain Python values; raw rows that are no `Dataset` as a list, since a column of
    theirs may have values of several types."""
    if isinstance(rows, Dataset):
        return rows.with_format(None)
    if isinstance(rows, (Mapping, str, pd.DataFrame)):
        return rows_given(rows, where)
    if isinstance(rows, STREAMS) or not hasattr(rows, "__getitem__"):
        hint = "; a plan needs to know the number of rows: Dataset.from_generator" if isinstance(rows, STREAMS) else ""
        raise InputError(f"{where} is a {type(rows).__name__}; expected a datasets.Dataset or a list of rows{hint}")
    what = f"{where} is no list of rows, each a dictionary of the same columns"
    with explained(what, TypeError, ValueError, KeyError, pa.ArrowException):
        rows = [dict(rows[number]) for number in range(len(rows))]
        return Dataset.from_list(rows) if not rows or "input_ids" in rows[0] else rows


def is_tokenised(rows: Dataset | list[Mapping]) -> bool:
    """Whether rows have a column `input_ids`, or are none."""
    return not len(rows) or (isinstance(rows, Dataset) and "input_ids" in rows.column_names)


def find_tokenizer(model: MultitaskBertModel, *given: object) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside the checkpoint of a model, where it is needed: where some of the rows that a
    trainer is given are raw. None where none are, or the model was not loaded from a checkpoint.

    Raises:
        InputError: the checkpoint has no tokenizer that fits the model (see `load_tokenizer`).
    """
    parts = [part for rows in given for part in (rows.values() if isinstance(rows, Mapping) else [rows])]
    parts = [each for part in parts for each in (part.values() if isinstance(part, DatasetDict) else [part])]
    parts = [part.head(1).to_dict("records") if isinstance(part, pd.DataFrame) else part for part in parts]
    firsts = [part[0] for part in parts if isinstance(part, (Dataset, list)) and len(part)]
    raw = any(isinstance(row, Mapping) and "input_ids" not in row for row in firsts)
    return load_tokenizer(model.name_or_path, model.config.vocab_size) if raw and model.name_or_path else None


def tokenise_raw(
    rows: Dataset | list[Mapping],
    task: Task,
    model: MultitaskBertModel,
    where: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Dataset:
    """Raw rows of one task, tokenised (see above)."""
    if tokenizer is None:
        raise InputError(
            f"{where} has no column input_ids, so that its rows are texts to tokenise; give the trainer the model's "
            "tokenizer as processing_class"
        )
    check_tokenizer("processing_class", tokenizer, model.config.vocab_size)
    clean = clean_rows(task, rows, where, labelled=split != "test")
    max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return tokenise(task, usable_rows(task, clean, split), tokenizer, max_length, model.config.pair_encoding)


def check_rows(rows: Dataset, task: Task, model: MultitaskBertModel, where: str) -> Dataset:
    """Tokenised rows of one task, checked, with a column `task`.

    Raises:
        InputError: there are no rows, a column is missing, or a row is of another task or does not fit the task or the
            model; the message names the column and the row.
    """
    if not len(rows):
        raise InputError(f"{where} has no rows")
    if missing := [column for column in COLUMNS if column not in rows.column_names]:
        raise InputError(
            f"{where} has no column {' and no '.join(missing)}; its columns are {', '.join(rows.column_names)}; "
            "rows with input_ids need all of them; give raw rows, and the trainer tokenises them"
        )
    if "task" not in rows.column_names:
        rows = rows.add_column("task", [task.name] * len(rows))
    columns = [name for name in (*COLUMNS, "task", "attention_mask") if name in rows.column_names]
    table = rows.select_columns(columns).with_format("arrow")[:]
    if pc.unique(table["task"]).to_pylist() != [task.name]:
        names = enumerate(table["task"].to_pylist())
        number, other = next((number, name) for number, name in names if name != task.name)
        raise InputError(f"{where}: row {number} is of task {other!r} in its column task")
    check_tokens(table, model.config, model.is_separate(task), where)
    check_labels(table["labels"], rows.features["labels"], task, where)
    if "soft_labels" in rows.column_names:
        check_soft_labels(rows["soft_labels"][:], task, where)
    kind = KINDS[task.kind]
    if kind.words:
        lengths = [pc.list_value_length(table[name]).to_numpy() for name in ("labels", "input_ids")]
        if len(wrong := np.flatnonzero(lengths[0] != lengths[1])):
            raise InputError(f"{where}: the label of row {wrong[0]} has not as many classes as the row has tokens")
    found = table["labels"].type.value_type if kind.nested else table["labels"].type
    if pa.types.is_floating(found) if kind.dtype == "float32" else pa.types.is_integer(found):
        return rows
    return rows.cast_column("labels", datasets.List(Value(kind.dtype)) if kind.nested else Value(kind.dtype))


def check_labels(labels: pa.ChunkedArray, feature: object, task: Task, where: str) -> None:
    """Raises InputError if the task does not have a row's label. A row may have none (see `no_label`)."""
    names = getattr(feature, "names", None)
    if names and [name.lower() for name in names] != [name.lower() for name in task.label_names or ()]:
        raise InputError(f"{where}: labels are {', '.join(names)}, in this order; the task's are {task.label_names}")
    kind, number = KINDS[task.kind], getattr(labels.type, "value_type", labels.type)
    expected = f"{kind.describe_labels(task)}, or {kind.missing} for a row without a label"
    is_number = pa.types.is_integer(number) or pa.types.is_floating(number) or pa.types.is_boolean(number)
    if hasattr(labels.type, "value_type") != kind.nested or not is_number:
        raise InputError(f"{where}: labels are of type {labels.type}; expected {expected}")
    wrong, gaps = wrong_labels(task, labels), np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))
    if len(wrong) or len(gaps):
        row = int(min([*wrong[:1], *gaps[:1]]))
        raise InputError(f"{where}: the label of row {row} is {labels[row]}; expected {expected}")


def check_soft_labels(values: Sequence, task: Task, where: str) -> None:
    """Raises InputError if no teacher of the task could give such soft labels."""
    kind = KINDS[task.kind]
    if kind.soft is None:
        raise InputError(f"{where}: a task of kind {task.kind!r} cannot learn from soft_labels; leave the column out")
    holds, expected = kind.columns(task)[kind.soft]
    if (wrong := next((row for row, value in enumerate(values) if not holds(value)), None)) is not None:
        raise InputError(f"{where}: the soft_labels of row {wrong} are {values[wrong]}; expected {expected}")


def count_labelled(rows: Dataset) -> int:
    """How many of a task's rows have a label."""
    return int(labelled_rows(np.asarray(even_labels(rows["labels"][:]))).sum())


def check_labelled(rows: Mapping[str, Dataset], argument: str) -> None:
    """Raises InputError if no row of a task has a label: there would be nothing to learn, or to score."""
    for name, part in rows.items():
        if not count_labelled(part):
            raise InputError(f"{argument}[{name!r}]: no row has a label")


def check_tokens(table: pa.Table, config: PretrainedConfig, separate: bool, where: str) -> None:
    """Raises InputError if the model cannot look up a token, or if rows have another shape than the task's."""
    tokens, lengths = {}, {}
    for name in set(table.column_names) - {"labels", "task"}:
        column = sequences(table[name].combine_chunks(), separate)
        if column is None:
            raise InputError(
                f"{where}: {name} is {table[name].type}; expected {'two lists' if separate else 'a list'} of token "
                "numbers a row, as bert_multitask.data.tokens.tokenise gives it"
            )
        tokens[name] = pc.list_flatten(column).to_numpy(zero_copy_only=False)
        lengths[name] = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    for name, length in lengths.items():
        if not np.array_equal(length, lengths["input_ids"]):
            raise InputError(f"{where}: {name} and input_ids differ in length")
    length = lengths["input_ids"]
    if not (1 <= length.min() and length.max() <= config.max_position_embeddings):
        row = int(np.argmin(length) if length.min() < 1 else np.argmax(length)) // (1 + separate)
        raise InputError(
            f"{where}: row {row} has {length.min() and length.max()} tokens; the model takes 1 to "
            f"{config.max_position_embeddings}"
        )
    if "attention_mask" in tokens:
        kept = np.add.reduceat(tokens["attention_mask"] != 0, np.cumsum(length) - length)
        if not kept.min():
            raise InputError(
                f"{where}: row {int(np.argmin(kept)) // (1 + separate)} has an attention_mask of zeros only"
            )
    segments = max(config.type_vocab_size, 2)  # the model ignores them where it knows one segment
    for name, size in {"input_ids": config.vocab_size, "token_type_ids": segments}.items():
        low, high = tokens[name].min(), tokens[name].max()
        if not (0 <= low and high < size):
            raise InputError(
                f"{where}: {name} are from {low} to {high}, and the model takes 0 to {size - 1}; are they of another "
                "model's tokenizer?"
            )


def sequences(column: pa.Array, separate: bool) -> pa.Array | None:
    """A column of tokens as one list a sequence; None where a row is no list of numbers, or no two where texts are
    encoded separately."""
    if separate:
        if not hasattr(column.type, "value_type") or not pc.all(pc.equal(pc.list_value_length(column), 2)).as_py():
            return None
        column = pc.list_flatten(column)
    value = getattr(column.type, "value_type", None)
    return column if value and (pa.types.is_integer(value) or pa.types.is_boolean(value)) else None
