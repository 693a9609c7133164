"""Trained runs and files → prediction tables and their scores; where the rows of a run or a table are."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.utils import logging

from .arguments import MultitaskTrainingArguments, RunArguments, parse_json
from .configuration import InputError, MultitaskBertConfig
from .data import load_rows, load_tokenizer, tokenise, usable_rows
from .heads import MultitaskBertModel
from .losses import is_labelled
from .metrics import overall_score, score_decisions
from .prediction import Predictions, decision_column, find_tables, predict_logits, prediction_table
from .run_folder import read_run
from .tasks import TASKS, Task, load_task

logger = logging.get_logger(__name__)

# What says where a task's rows are and how they are read, which a checkpoint's config.json does not.
SOURCE = ("text", "text_pair", "label", "files", "quoting", "hub")


class TrainedRun:
    """A trained checkpoint, its tasks, and where their rows are.

    Args:
        name: run folder, Hub id or `package:NAME/PATH`.
        tasks: which to predict (see `locate_tasks`); by default all of the run's.
        data_dir: where the rows are (see `load_rows`); by default the run's own.

    Raises:
        InputError: there is no such checkpoint, it has no such task, or nothing says where the rows are.
    """

    def __init__(self, name: str, tasks: Sequence[str] | None = None, data_dir: str | None = None):
        self.name = name
        try:
            self.config = MultitaskBertConfig.from_pretrained(name)
        except InputError:
            raise
        except Exception as error:  # no such folder, no such Hub id, no network
            raise InputError(f"{name}: no run folder, and it cannot be loaded from the Hub ({error})") from error
        if not self.config.tasks:
            raise InputError(f"{name} is a BERT without heads; expected a run of train_multitask.py")
        run, _ = read_run(name) or (None, None)
        self.data_dir = data_dir or (run.data_dir if run else None)
        self.max_length = min(run.max_length if run else 512, self.config.max_position_embeddings)
        trained = {fields["name"]: load_task(fields) for fields in self.config.tasks}
        self.tasks = locate_tasks(name, trained, run, self.data_dir, tasks)

    def load_model(self) -> MultitaskBertModel:
        """The model, on the CPU."""
        try:
            return MultitaskBertModel.from_pretrained(self.name)
        except InputError:
            raise
        except Exception as error:  # a broken checkpoint fails in a dozen ways
            raise InputError(f"{self.name}: cannot be loaded ({error})") from error


def read_spec(spec: str) -> dict:
    """The fields of a task that `--tasks` names, or gives as JSON."""
    return parse_json("--tasks", spec) if spec.startswith("{") else {"name": spec}


def first_run(names: Sequence[str]) -> RunArguments | None:
    """The arguments of the first run among run folders, folders of tables and tables; None where there is none."""
    return next((found[0] for name in names if (found := read_run(name))), None)


def known_tasks(run: RunArguments | None) -> dict[str, Task]:
    """{name: task} of the tasks that a run reads, in its order, and of the presets: the rows of these can be found."""
    own = {task.name: task for task in (run.load_tasks() if run else ())}
    return own | {name: task for name, task in TASKS.items() if name not in own}


def locate_tasks(
    name: str,
    tasks: Mapping[str, Task],
    run: RunArguments | None,
    data_dir: str | None,
    specs: Sequence[str] | None = None,
) -> dict[str, Task]:
    """Tasks as they were trained, with the sources of their rows, which checkpoints and tables do not say.

    Args:
        name: of the checkpoint or tables, for messages.
        tasks: {name: task} of theirs.
        run: the run that they are of, where it is known, which knows their sources; those of presets are known anyway.
        data_dir: where the rows are (see `load_rows`).
        specs: names of the tasks to take, or JSON of a task with its name and its files; by default all.

    Raises:
        InputError: there is no such task, or nothing says where its rows are.
    """
    known = known_tasks(run)
    located = {}
    for spec in tasks if specs is None else specs:
        given = read_spec(spec)
        task = given.get("name")
        if task not in tasks:
            raise InputError(f"--tasks names {task!r}; the tasks of {name} are {', '.join(tasks)}")
        if other := sorted(set(given) - {"name", *SOURCE}):
            raise InputError(f"--tasks: {other[0]!r} of {task!r} is the run's own; give {', '.join(SOURCE)} at most")
        source = {key: getattr(known[task], key) for key in SOURCE} if task in known else {}
        located[task] = load_task(tasks[task].to_config() | source | given)
        example = json.dumps({"name": task, "files": {"train": "FILE", "dev": "FILE", "test": "FILE"}})
        if not located[task].files and not located[task].hub:
            raise InputError(f"{name} does not say where the rows of its task {task!r} are: --tasks '{example}'")
        if located[task].files and data_dir is None:
            raise InputError(f"{name} does not say where its rows are; name a folder, a URL or hub with --data_dir")
    return located


class SplitReader:
    """The rows of one split, read once and tokenised once for all the runs that want them alike.

    Args:
        split: train, dev or test.
    """

    def __init__(self, split: str):
        self.split = split
        self.known: dict[str, Dataset | None] = {}

    def rows(self, task: Task, data_dir: str | None) -> Dataset | None:
        """A task's clean rows, with or without labels; None where it has no such split."""
        key = repr(("rows", data_dir, task.name, task.label_names, *(getattr(task, field) for field in SOURCE)))
        if key not in self.known:
            rows = load_rows(task, data_dir or "", splits=[self.split], labelled=()).get(self.split)
            # Treated as a test split: rows with gaps are kept, with a warning.
            self.known[key] = None if rows is None else usable_rows(task, rows, "test")
        return self.known[key]

    def tokens(self, run: TrainedRun) -> dict[str, Dataset]:
        """{task: its tokens} of the run's tasks that have the split."""
        tokenizer = load_tokenizer(run.name, run.config.vocab_size)
        found = {}
        for name, task in run.tasks.items():
            if (rows := self.rows(task, run.data_dir)) is None:
                continue
            settings = (rows._fingerprint, tokenizer.backend_tokenizer.to_str(), run.max_length)
            key = repr((name, *settings, run.config.pair_encoding))
            if key not in self.known:
                self.known[key] = tokenise(task, rows, tokenizer, run.max_length, run.config.pair_encoding)
            found[name] = self.known[key]
        return found

    def labels(self, tasks: Mapping[str, Task], data_dir: str | None) -> dict[str, np.ndarray]:
        """{task: labels (N,), `no_label` where a row has none} of the tasks that have any."""
        rows = {name: self.rows(task, data_dir) for name, task in tasks.items()}
        labels = {name: np.array(part["label"][:]) for name, part in rows.items() if part is not None}
        return {name: values for name, values in labels.items() if is_labelled(values).any()}


def predict_runs(
    runs: Sequence[TrainedRun], reader: SplitReader, args: MultitaskTrainingArguments
) -> Iterator[dict[str, Dataset]]:
    """Yield each run's prediction tables, {task: one row for each of the split's, in file order}.

    A task that has no such split has no table.

    All input is read and tokenised before the first run is loaded, once where the runs' tokenizers and encodings agree.
    Under several processes each predicts a share of the rows and all get the whole table.

    Args:
        runs: which.
        reader: of the split.
        args: the device, the processes, and `per_device_eval_batch_size`.
    """
    with args.main_process_first(desc="tokenising"):
        inputs = [reader.tokens(run) for run in runs]
    for run, tokens in zip(runs, inputs, strict=True):
        tables = {}
        model = run.load_model().to(args.device) if tokens else None
        for name, rows in tokens.items():
            share = np.array_split(np.arange(len(rows)), args.world_size)[args.process_index]
            logits = predict_logits(model, name, rows.select(share), args.per_device_eval_batch_size)
            tables[name] = prediction_table(run.tasks[name], rows["id"][:], np.concatenate(gather_object([logits])))
        yield tables


def read_tables(
    names: Sequence[str],
    reader: SplitReader,
    args: MultitaskTrainingArguments,
    data_dir: str | None = None,
    specs: Sequence[str] | None = None,
) -> list[dict[str, Predictions]]:
    """Each one's tables of a split, {task: its table}; a trained run that has none predicts them now.

    Args:
        names: run folders, Hub ids, folders of prediction files, or such files.
        reader: of the split.
        args: how to predict (see `predict_runs`).
        data_dir: the rows of runs that predict; by default the run's own.
        specs: which tasks (see `locate_tasks`); by default all.

    Raises:
        InputError: there are tables, but not of all the tasks of `specs`; or a run cannot predict.
    """
    found = [find_tables(name, reader.split) for name in names]
    wanted = [read_spec(spec).get("name") for spec in specs or ()]
    for name, tables in zip(names, found, strict=True):
        if tables and (missing := [task for task in wanted if task not in tables]):
            raise InputError(f"--tasks names {missing[0]!r}; the tables of {name} are of {', '.join(tables)}")
    numbers = [
        number
        for number, name in enumerate(names)
        if not found[number] and (not (path := Path(name).expanduser()).exists() or (path / "config.json").exists())
    ]
    runs = [TrainedRun(names[number], specs, data_dir) for number in numbers]
    for number, run, tables in zip(numbers, runs, predict_runs(runs, reader, args), strict=True):
        found[number] = {task: Predictions(run.tasks[task], table, run.name) for task, table in tables.items()}
    return [{task: table for task, table in tables.items() if task in (wanted or tables)} for tables in found]


def score_tables(
    tasks: Mapping[str, Task], tables: Mapping[str, Dataset], labels: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The flat scores, `eval_{task}_{metric}` and `eval_overall`, of the tasks that have labels.

    Args:
        tasks: {name: task}.
        tables: {name: prediction table}.
        labels: {name: labels (N,)} of the scored tasks, of the table's rows.
    """
    scored = {name: tasks[name] for name in tables if name in labels}
    scores = {
        name: score_decisions(task, np.array(tables[name][decision_column(task)][:]), labels[name])
        for name, task in scored.items()
    }
    flat = {f"eval_{name}_{key}": value for name in scores for key, value in scores[name].items()}
    return flat | {"eval_overall": overall_score(scored, scores)}


def describe_scores(
    scores: Mapping[str, Mapping[str, float]], tasks: Mapping[str, Task], title: str = "dev score"
) -> str:
    """The scores of several predictions as a table.

    Args:
        scores: {what predicted: its `score_tables`}, all of the same tasks.
        tasks: {name: task}.
        title: of the first column.
    """
    keys = {name: f"eval_{name}_{task.metric}" for name, task in tasks.items()} | {"overall": "eval_overall"}
    shown = {name: key for name, key in keys.items() if key in next(iter(scores.values()))}
    lines = [[title, *shown]]
    lines += [[name, *(f"{values[key]:.4f}" for key in shown.values())] for name, values in scores.items()]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    widths = [max(width + 2, 10) for width in widths]
    rows = [(line[0], zip(line[1:], widths, strict=True)) for line in lines]
    return "\n".join(f"{head:{first}}" + "".join(f"{cell:>{width}}" for cell, width in cells) for head, cells in rows)
