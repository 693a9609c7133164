"""Prediction tables of a split: those that runs have written, or predict now; their scores."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset

from ..data.collate import join_rows
from ..data.labels import even_labels
from ..data.rows import load_rows, usable_rows
from ..data.tokens import load_tokenizer, tokenise
from ..evaluation.metrics import overall_score, score_decisions
from ..evaluation.predict import predict_logits
from ..evaluation.tables import Predictions, find_tables, prediction_table, read_decisions
from ..model.errors import InputError
from ..model.losses import labelled_rows
from ..model.tasks import Task
from ..training.arguments import MultitaskTrainingArguments
from .trained_run import SOURCE, TrainedRun, read_spec


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
        labels = {name: np.array(even_labels(part["label"][:])) for name, part in rows.items() if part is not None}
        return {name: values for name, values in labels.items() if labelled_rows(values).any()}


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
            logits = join_rows([torch.from_numpy(part) for part in gather_object([logits])], 0).numpy()
            tables[name] = prediction_table(run.tasks[name], rows["id"][:], logits, rows)
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
        name: score_decisions(task, read_decisions(task, tables[name]), labels[name]) for name, task in scored.items()
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
