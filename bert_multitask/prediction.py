"""Predictions, in the rows' own order: as a table, in files that are written, found, read and compared, and of plain
strings."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from pyarrow import ArrowException, parquet
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedTokenizerBase

from .collate import Collator
from .configuration import InputError
from .data import encode
from .heads import MultitaskBertModel
from .labels import LabelReader
from .losses import UNLABELLED
from .metrics import decide
from .tasks import TASKS, Task, load_task


def prediction_table(task: Task, ids: Sequence[str], logits: np.ndarray) -> Dataset:
    """One row a prediction, in the order of the ids.

    Args:
        task: whose predictions.
        ids: of the rows, N.
        logits: as the model gives them, (N, C) or (N,).

    Returns:
        `id`, and `score` (similarity) or `label` (a class) with `probabilities` (one for each class, summing to 1).
    """
    logits = torch.from_numpy(np.asarray(logits, dtype=np.float32))
    decisions = decide(task, logits.numpy())
    if task.kind == "similarity":
        return Dataset.from_dict({"id": list(ids), "score": decisions})
    if task.kind == "binary":
        logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)  # softmax of (0, x) is (1 - p, p)
    return Dataset.from_dict({"id": list(ids), "label": decisions, "probabilities": logits.softmax(-1).tolist()})


def decision_column(task: Task) -> str:
    """The column of a prediction table that is scored."""
    return "score" if task.kind == "similarity" else "label"


def write_predictions(task: Task, table: Dataset, path: Path) -> None:
    """Write a prediction table as `path`.parquet and `path`.csv.

    The Parquet file holds the table as it is, and the task in its metadata. The CSV file of a task with a
    `prediction_column` has the course's form: `id \\t Predicted_X`, then `id , value` lines, classes as numbers. Any
    other task's is a plain table of `id`, and `score`, or the `label`'s name and its `probability` where there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = table[decision_column(task)]
    if task.prediction_column:
        with open(f"{path}.csv", "w", encoding="utf-8") as file:
            file.write(f"id \t {task.prediction_column} \n")
            file.writelines(f"{row_id} , {value} \n" for row_id, value in zip(table["id"], values, strict=True))
    else:
        frame = table.to_pandas()
        if "probabilities" in frame:
            frame["probability"] = [
                p[label] for p, label in zip(frame.pop("probabilities"), frame["label"], strict=True)
            ]
        if "label" in frame:
            frame["label"] = [task.label_names[label] for label in frame["label"]]
        frame.to_csv(f"{path}.csv", index=False)
    columns = table.with_format("arrow")[:]
    parquet.write_table(columns.replace_schema_metadata({"task": json.dumps(task.to_config())}), f"{path}.parquet")


class Predictions(NamedTuple):
    """A task's prediction table, and what to call it in a message: its file, or the run that made it."""

    task: Task
    table: Dataset
    source: str


def find_tables(name: str, split: str) -> dict[str, Predictions]:
    """{task: table} of a prediction file, of those in a folder, or of those in a run's `predictions`; Parquet first."""
    path = Path(name)
    folder = path / "predictions" if Path(path, "predictions").is_dir() else path
    paths = [path] if path.is_file() else [*folder.glob("*.csv"), *folder.glob("*.parquet")]
    files = {file.stem.rpartition("-")[0]: file for file in paths if file.stem.endswith(f"-{split}")}
    in_order = sorted(files, key=lambda task: ([*TASKS, task].index(task), task))
    return {task: read_predictions(files[task]) for task in in_order}


def read_predictions(path: Path) -> Predictions:
    """Read a file of `write_predictions`, or anybody's in the course's form, called `{task}-{split}.csv`.

    Raises:
        InputError: it cannot be read, or it is of a task of the user's own and not the Parquet file, which says what
            the labels are.
    """
    name = path.stem.rpartition("-")[0]
    if path.suffix == ".csv":
        if name not in TASKS:
            raise InputError(f"{path}: {name!r} is no task of the course; give {path.with_suffix('.parquet').name}")
        return Predictions(TASKS[name], read_course_file(path, TASKS[name]), str(path))
    try:
        metadata = parquet.read_schema(path).metadata or {}
        columns = parquet.read_table(path).to_pydict()
    except (OSError, ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error
    if b"task" not in metadata and name not in TASKS:
        raise InputError(f"{path}: does not say what its task is; expected a file that predict.py wrote")
    task = load_task(json.loads(metadata[b"task"])) if b"task" in metadata else TASKS[name]
    if missing := {"id", decision_column(task)} - set(columns):
        raise InputError(f"{path}: no column {min(missing)!r}; its columns are {', '.join(columns)}")
    if task.kind != "similarity" and (beyond := set(columns["label"]) - set(range(len(task.label_names)))):
        last = len(task.label_names) - 1
        raise InputError(f"{path}: has label {beyond.pop()!r}; the classes of task {task.name!r} are 0 to {last}")
    return Predictions(task, Dataset.from_dict(columns), str(path))


def read_course_file(path: Path, task: Task) -> Dataset:
    """A prediction table without probabilities, from a file in the course's form."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if header.split() != ["id", task.prediction_column]:
        raise InputError(f"{path}: begins with {header!r}; expected 'id \\t {task.prediction_column} '")
    ids, values, scores = [], [], task.kind == "similarity"
    reader = LabelReader(task, numbered=True)
    for number, line in enumerate(lines, start=1):
        row_id, comma, value = line.rpartition(",")
        if not comma:
            raise InputError(f"{path}: row {number} is {line!r}; expected 'id , value'")
        ids.append(row_id.strip())
        where = f"{path}, row {number}"
        label = parse_score(value, where) if scores else reader.read(value)
        if label in (None, UNLABELLED):
            raise InputError(f"{where}: {task.label} is {value.strip()!r}; expected {reader.expected}")
        values.append(label)
    return Dataset.from_dict({"id": ids, decision_column(task): np.array(values, np.float32 if scores else np.int64)})


def parse_score(written: str, where: str) -> float:
    """A predicted score, which may lie outside the range of the labels, if only by rounding."""
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{where}: the score is {written.strip()!r}; expected a number")
    return score


def check_alike(members: Sequence[Predictions]) -> None:
    """Refuse tables that are not of the same rows of the same task.

    Raises:
        InputError: tasks differ in kind, classes or range of scores, or the tables in length, ids or their order; the
            message names the table and the first difference.
    """
    first = members[0]
    for other in members[1:]:
        for field in ("name", "kind", "label_names", "score_range"):
            expected, found = getattr(first.task, field), getattr(other.task, field)
            if expected != found:
                raise InputError(f"{other.source}: the task's {field} is {found!r}, and {expected!r} in {first.source}")
        ours, theirs = first.table["id"][:], other.table["id"][:]
        for number, (one, two) in enumerate(zip(ours, theirs, strict=False), start=1):
            if one != two:
                raise InputError(f"{other.source}: row {number} has id {two!r}, and {one!r} in {first.source}")
        if len(ours) != len(theirs):
            raise InputError(f"{other.source} has {len(theirs)} rows, and {first.source} has {len(ours)}")


@torch.inference_mode()
def predict_logits(model: MultitaskBertModel, task: str, tokens: Dataset, batch_size: int) -> np.ndarray:
    """Run a model on rows in batches of similar length.

    Args:
        model: on the device to use; it is put in evaluation mode.
        task: name of one of its tasks.
        tokens: rows of `tokenise`, N.
        batch_size: rows at a time.

    Returns:
        Logits in the rows' own order, fp32, (N, C) or (N,).
    """
    spec = model.tasks[task]
    logits = np.zeros(
        (len(tokens), len(spec.label_names)) if spec.kind == "classification" else len(tokens), np.float32
    )
    separate = model.is_separate(spec)
    lengths = [sum(map(len, row)) if separate else len(row) for row in tokens["input_ids"][:]]
    order = np.argsort(lengths, kind="stable")[::-1]  # the longest first: what does not fit into memory fails at once
    batches = BatchSampler(order.tolist(), batch_size, drop_last=False)
    loader = DataLoader(tokens, batch_sampler=batches, collate_fn=Collator(model.config.pad_token_id or 0))
    model.eval()
    for rows, inputs in zip(batches, loader, strict=True):
        del inputs["labels"]
        inputs = {key: value.to(model.device) for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        logits[rows] = model(task, **inputs).logits.float().cpu().numpy()
    return logits


def predict(
    model: MultitaskBertModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rows: Sequence[str] | Sequence[tuple[str, str]],
    batch_size: int = 64,
    max_length: int = 512,
) -> Dataset:
    """Predict plain strings.

    Args:
        model: on the device to use; it is put in evaluation mode.
        tokenizer: the model's.
        task: name of one of its tasks.
        rows: texts, or (text, text) pairs for a pair task.
        batch_size: rows at a time.
        max_length: tokens a row may have; longer rows are cut, also to what the model can take.

    Returns:
        `prediction_table` of the rows, with their numbers, from 0, as ids.

    Raises:
        InputError: the model has no such task, or the rows are texts where it takes pairs, or the other way round.
    """
    if task not in model.tasks:
        raise InputError(f"this model has no task {task!r}; it has {', '.join(model.tasks)}")
    spec = model.tasks[task]
    pairs = spec.text_pair is not None
    max_length = min(max_length, model.config.max_position_embeddings)
    if isinstance(rows, str):
        raise InputError(f"rows is the string {rows!r}; expected a list of rows")
    for number, row in enumerate(rows):
        if isinstance(row, str) == pairs or not (isinstance(row, str) or len(row) == 2):
            expected = "a pair of texts" if pairs else "a text"
            raise InputError(f"rows[{number}] is {row!r}; task {task!r} takes {expected}")
    columns = {"input_ids": [], "token_type_ids": []}
    if len(rows):
        texts = list(map(list, zip(*rows, strict=True))) if pairs else [list(rows)]
        encoded = encode(tokenizer, texts, max_length, model.is_separate(spec))
        columns = {name: encoded[name] for name in columns}
    tokens = Dataset.from_dict({"task": [task] * len(rows), "labels": [UNLABELLED] * len(rows)} | columns)
    return prediction_table(spec, list(map(str, range(len(rows)))), predict_logits(model, task, tokens, batch_size))
