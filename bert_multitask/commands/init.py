"""Write a configuration that trains on one or more tables, by guessing which columns are texts and labels.

    bert-multitask init reviews.csv                      # writes reviews.yaml
    bert-multitask init reviews.csv pairs.jsonl          # the tasks of both, in reviews.yaml
    bert-multitask init SetFit/sst5 --output sst5.yaml   # a dataset on the Hub
    bert-multitask init reviews.csv --label genre stars  # the columns of labels, where the guess is wrong

A table is CSV, TSV, JSON lines, Parquet or CoNLL, or the training rows of a dataset. Each column with a usual name for
labels (label, topic, sentiment, stars, …, or one that ends in such a word, as Main Topic) becomes a task. If there is
none, the last column that can hold labels does. Its values say the kind of task: a few different values, two values,
numbers, lists of labels (a|b), a tag for each word. The tasks of one table are a group: they have the same dev rows,
and the encoder reads each text once. Read the file before you train with it: a guess may be wrong. docs/tasks.md has
all that a task may say.
"""

import itertools
import math
import shlex
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import yaml

from ..data.guess import guess_tasks, read_table_file, read_table_hub, settle_task, task_name
from ..data.readers import READERS, is_url
from ..data.records import write_text
from ..data.rows import describe_rows, load_rows
from ..model.errors import InputError, explained, one_line
from ..model.tasks import GROUP_FIELDS, load_tasks, text_parts
from .command_line import CommandParser, local_path

# The fields of a task that are written, in this order, and the comments beside them.
COMMENTS = {
    "name": "names flags, files and scores",
    "kind": "",  # why it is guessed
    "text": "a column, or several: [title, review]",
    "text_pair": "the second text",
    "word_by_word": "texts are lists of words, or are cut at white space",
    "label": "the column of labels",
    "label_names": "the classes in their order; of a binary task yes is the last",
    "score_range": "the lowest and the highest score there may be",
    "metric": "",
    "id": "names the rows in predictions",
    "epochs": "how often training sees each row",
    "dropout": "before the head",
    "files": "add dev and test, if there are such files",
    "quoting": "quotes are plain characters",
    "dev_share": "this share of the rows is scored, not trained on",
    "hub": "on the Hub; the names of our splits first",
}
SHARED = {*GROUP_FIELDS, "dropout"}  # the fields of a group; the others are written for each of its labels
MORE = "if one holds labels, add it to `labels:` of a group, or as a task of its own"
COLUMNS = ("text", "text_pair", "label", "id")
DEV_SHARE = 0.1
WIDTH = 52  # of a line before its comment; that of a longer one stands above it
EPOCHS, DROPOUT = 3, 0.1  # as BERT's authors fine-tune, like the settings below
HEADING = """\
# Written by `bert-multitask init {tables}`: a guess, to be read and corrected. Then:
#   {train}
# and for a first try, a hundredth of it: {train} --budget 0.01
model_name_or_path: google-bert/bert-base-uncased    # the BERT to start from; another language needs another one
output_dir: {output}
learning_rate: 2e-5
lr_scheduler_type: linear
warmup_steps: 0.1                                    # of all steps
per_device_train_batch_size: 32
max_length: 256                                      # tokens; longer texts are cut, shorter ones cost less
seed: 0
tasks:
"""


def main(argv: list[str]) -> None:
    """Write a configuration, as a command line says."""
    parser = CommandParser("init", __doc__)
    parser.add_argument("tables", metavar="TABLE", nargs="+", help="files, addresses, or ids of datasets on the Hub")
    parser.add_argument("--config_name", help="configuration of the dataset on the Hub, where it has several")
    parser.add_argument("--label", metavar="COLUMN", nargs="+", default=[], help="columns of labels; else a guess")
    parser.add_argument("--output", type=local_path, help="file to write; by default ./TABLE.yaml, of the first table")
    parser.add_argument("--overwrite", action="store_true", help="replace the file to write, where there is one")
    options = parser.parse_args(argv)
    tables = [table if is_url(table) else str(local_path(table)) for table in options.tables]
    names = [options.config_name or Path(table).name.split(".")[0] for table in tables]
    output = options.output or Path(f"{names[0]}.yaml")
    if output.exists() and not options.overwrite:
        raise InputError(f"{output} exists; name another file with --output, or replace it with --overwrite")
    written, why, unused = [], {}, []
    for table, name in zip(tables, names, strict=True):
        taken = {fields.get(key) for fields in written for key in ("name", "group")}
        guessed, reasons, unread = guess_table(table, name, options.config_name, taken, options.label)
        written, why, unused = written + guessed, why | reasons, unused + unread
    if unknown := set(options.label) - {fields["label"] for fields in written}:
        raise InputError(f"--label {min(unknown)}: no such column; others are {', '.join(unused) or 'none'}")
    tasks = load_tasks(written)
    rows = {name: load_rows(task) for name, task in tasks.items()}  # every row of them can be read
    command = shlex.join(["bert-multitask", "train", str(output)])
    given = one_line(" ".join(options.tables))
    heading = HEADING.format(tables=given, train=command, output=as_yaml(f"runs/{output.stem}"))
    ending = f"# Columns that no task reads: {', '.join(unused)}\n" if unused else ""
    with explained(f"--output {output} cannot be written", OSError):
        write_text(output, heading + write_tasks(written, why) + ending)
    print(describe_rows(list(tasks.values()), rows), end="\n\n")
    width = max([12, *map(len, why)])
    for fields in written:
        print(f"{fields['name']:{width}} {describe_guess(fields, why[fields['name']])}")
    print(f"not read: {', '.join(unused)}; {MORE}" if unused else "")
    print(f"wrote {output}; read it, and then: {command}", flush=True)


def guess_table(
    table: str, name: str, config_name: str | None, taken: Collection[str], chosen: Sequence[str]
) -> tuple[list[dict], dict[str, str], list[str]]:
    """Guess the tasks of one of the tables.

    Args:
        table: a file, an address or a Hub id.
        taken: names that other tables' tasks and groups have; a task with such a name gets the table's name added.
        chosen: columns of labels, of which the table may have some; if it has none, they are guessed.

    Returns:
        The fields of each task (several are one group), {name of the task: the reason for its kind}, and the columns
        that no task reads.

    Raises:
        InputError: the table cannot be read, or there seem to be no texts or no labels.
    """
    columns, source = read_source(table, config_name)
    guessed, why = guess_tasks(columns, name, [column for column in chosen if column in columns])
    names = {old: task_name(f"{old}_{name}", name, alone=False) if old in taken else old for old in why}
    written = [settle_task(complete(fields | {"name": names[fields["name"]]}, source)) for fields in guessed]
    if len(written) > 1:
        group = task_name(name, name, alone=False)
        while group in {*taken, *names.values()}:
            group += "_labels"
        written = [fields | {"group": group} for fields in written]
    used = {"id"} | {part for fields in written for key in COLUMNS for part in text_parts(fields.get(key))}
    # In CoNLL files the last column has two names.
    known = [columns[column] for column in used if column in columns]
    unused = [one_line(column) for column in columns if column not in {"", *used} and columns[column] not in known]
    return written, {names[old]: reason for old, reason in why.items()}, unused


def read_source(table: str, config_name: str | None) -> tuple[dict[str, list], dict]:
    """The columns of a table, {name: values}, and the fields of a task that say where its rows are.

    Args:
        table: a file, an address or a Hub id.
        config_name: configuration of a dataset on the Hub that has several.

    Raises:
        InputError: the table cannot be read, or `config_name` is given for a file.
    """
    if not (is_url(table) or Path(table).exists() or any(ending in Path(table).suffixes for ending in READERS)):
        columns, source = read_table_hub(table, config_name)
        return columns, source | ({} if "dev" in source["hub"]["splits"] else {"dev_share": DEV_SHARE})
    if config_name:
        raise InputError(f"--config_name is of a dataset on the Hub, and {table} is a file; leave it out")
    columns, source = read_table_file(table)
    path = table if is_url(table) else str(Path(table).absolute())
    return columns, {"files": {"train": path}, **source, "dev_share": DEV_SHARE}


def complete(fields: dict, source: dict) -> dict:
    """The fields of a guessed task, with the source of its rows and its training."""
    columns = {key: fields[key] for key in ("text", "text_pair", "label") if key in fields}
    hub = {"hub": source["hub"] | columns} if "hub" in source else {}
    return fields | {"epochs": EPOCHS, "dropout": DROPOUT} | source | hub


def write_tasks(written: Sequence[dict], why: Mapping[str, str]) -> str:
    """The lines of the tasks in a configuration; those of a group stand below its own fields, as its labels."""
    text = ""
    for group, members in itertools.groupby(written, lambda fields: fields.get("group")):
        labels, margin = list(members), 2
        if group is not None:
            shared = {key: value for key, value in labels[0].items() if key in SHARED}
            if "hub" in shared:  # each task adds its column of labels
                shared["hub"] = {key: value for key, value in shared["hub"].items() if key != "label"}
            text += write_fields({"name": group} | shared, {"name": "names the group in flags and in the plan"})
            text += f"{'    labels:':{WIDTH}} # each is a task; the encoder reads a text once for all\n"
            labels, margin = [{key: one[key] for key in one if key not in SHARED} for one in labels], 6
        text += "".join(write_fields(fields, {"kind": why[fields["name"]]}, margin) for fields in labels)
    return text


def write_fields(fields: Mapping, own: Mapping[str, str], margin: int = 2) -> str:
    """The lines of a task or of a group in a configuration, behind so many spaces, with comments, of which it has some
    of its own."""
    lines, comments = [], COMMENTS | dict(own)
    for key in [key for key in COMMENTS if key in fields]:
        line = f"{'  ' if lines else '- '}{key}: {as_yaml(fields[key])}"
        if comment := comments[key]:
            line = f"  # {comment}\n{line}" if len(line) + margin > WIDTH else f"{line:{WIDTH - margin}} # {comment}"
        lines.append(f"{line}\n")
    return textwrap.indent("".join(lines), " " * margin)


def as_yaml(value: object) -> str:
    """A value on one line of a YAML file."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def describe_guess(fields: dict, why: str) -> str:
    """A guessed task in a line, without its name: `binary: text -> label (two values)`."""
    texts = " and ".join(" + ".join(text_parts(fields[key])) for key in ("text", "text_pair") if key in fields)
    return f"{fields['kind']}: {texts} -> {fields['label']} ({why})"
