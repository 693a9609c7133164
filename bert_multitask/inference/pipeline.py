"""`MultitaskPipeline`: a trained model's answers to texts, pairs, dictionaries or a frame."""

import os
import reprlib
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.readers import as_text, check_columns, read_text
from ..data.rows import is_unicode, text_columns
from ..data.tokens import check_tokenizer, encode
from ..evaluation.metrics import check_finite
from ..evaluation.predict import group_alike, predict_tasks
from ..model.errors import InputError, explained, one_line
from ..model.kinds import KINDS
from ..model.modeling import MultitaskBertModel
from ..model.tasks import Task, find_task, text_parts
from .trained_run import TrainedRun

logger = logging.get_logger(__name__)

CHUNK = 1_000  # rows that are tokenised at a time
Texts = list[list[str]]  # the rows' texts; of pairs the first texts and the second texts
Columns = dict[str, Sequence]  # of a prediction table, without ids
ONE_CALL = threading.Lock()  # a call changes the tokenizer's settings, and uses all cores
# {key of a pipeline: model and tokenizer}: the last that this process loaded. All copies of a pipeline share them.
LOADED: dict[str, tuple[MultitaskBertModel, PreTrainedTokenizerBase]] = {}


class MultitaskPipeline:
    """Answers the tasks of a trained model, as a Transformers pipeline does: `pipe("sst", ["A superb plot."])`.

    It can be pickled, for workers of Ray or Spark: a copy loads the run's model when it is first used, once in each
    process. Threads may share a pipeline; their calls are answered one after the other.

    Args:
        model: run folder, Hub id or `package:NAME/PATH`; or a model, which is put into evaluation mode.
        tokenizer: the model's; given only if `model` is a model.
        device: device to compute on, -1 for the CPU. By default Accelerate chooses it; a given model stays where it is.
        batch_size: rows of a batch.
        max_length: tokens that a row may have; longer rows are cut as in training. By default the run's own, for a
            given model 512; never more than the model can take.
        bf16: whether to compute in bfloat16, as --bf16 does in training.

    Attributes:
        tasks: {name: task} of the model.

    Raises:
        InputError: there is no such run or device, a model comes without its tokenizer or a run with one, or a number
            is below 1. Whether this machine has the device is seen when the pipeline is first used: a pickled one may
            be used on another machine.
    """

    def __init__(
        self,
        model: str | os.PathLike | MultitaskBertModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        device: int | str | torch.device | None = None,
        batch_size: int = 64,
        max_length: int | None = None,
        bf16: bool = False,
    ):
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        self.key, self.device, self.batch_size, self.bf16 = uuid.uuid4().hex, read_device(device), batch_size, bf16
        self.run = self.parts = None
        if isinstance(model, MultitaskBertModel):
            if tokenizer is None:
                raise InputError("a model comes with its tokenizer: MultitaskPipeline(model, tokenizer)")
            check_tokenizer("tokenizer", tokenizer, model.config.vocab_size)
            self.parts = self.move(model), tokenizer
            self.tasks, config, own = model.tasks, model.config, 512
        elif not isinstance(model, (str, os.PathLike)):
            found = type(model).__name__
            raise InputError(f"model is a {found}; expected a MultitaskBertModel (not compiled), or the name of a run")
        else:
            if tokenizer is not None:
                raise InputError(f"{model} has a tokenizer of its own; give one only with a model")
            self.run = TrainedRun.open(os.fspath(model))
            self.tasks, config, own = self.run.tasks, self.run.config, self.run.max_length
        self.max_length = min(max_length or own, config.max_position_embeddings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.run.name if self.run else 'a model'}: {', '.join(self.tasks)})"

    def __getstate__(self) -> dict[str, Any]:
        """Without a run's weights: a copy loads them by the run's name."""
        return vars(self) | ({"parts": None} if self.run else {})

    def load(self) -> tuple[MultitaskBertModel, PreTrainedTokenizerBase]:
        """The model and the tokenizer; those of a run are read on the first call."""
        if self.parts is None:
            if self.key not in LOADED:
                model = self.move(self.run.load_model())
                LOADED.clear()
                LOADED[self.key] = model, self.run.load_tokenizer()
            self.parts = LOADED[self.key]
        return self.parts

    def move(self, model: MultitaskBertModel) -> MultitaskBertModel:
        """The model on the device to compute on.

        Raises:
            InputError: this machine has no such device.
        """
        if self.device is None:
            return model.to(PartialState().device) if self.run else model
        with explained(f"device is {self.device}, which this machine cannot use", Exception):
            return model.to(self.device)

    # What is one row, and what are several, for type checkers. Two texts are one row of a pair task, else two rows.
    @overload
    def __call__(self, task: str, rows: str | Mapping[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, task: str, rows: tuple[str, str]) -> Any: ...
    @overload
    def __call__(self, task: str, rows: Sequence[Any]) -> list[dict[str, Any]]: ...
    @overload
    def __call__(self, task: str, rows: pd.DataFrame) -> pd.DataFrame: ...
    @overload
    def __call__(self, task: str, rows: Iterable[Any]) -> list[dict[str, Any]]: ...
    def __call__(self, task: str, rows: Any) -> Any:
        """Answer one task.

        Args:
            task: name of one of the model's tasks.
            rows: texts, or (text, text) pairs for a pair task; dictionaries with the task's own columns, or with `text`
                (and `text_pair`), and any others; or a `pandas.DataFrame` with such columns. A single text,
                (text, text) or dictionary is one row. If each word has a label, a text may be a list of words. A
                missing text (None, NaN or `pandas.NA`) is an empty one, as in files.

        Returns:
            A dictionary for each row: `label` (a name) with `probabilities` {name: probability}, or `score`, or what
            the kind of task has (`Kind.answers`); a single one for a single row. For a frame, a copy with the columns
            `{task}_label`, `{task}_probability`, … added.

        Raises:
            InputError: the model has no such task, a row is none of the above (the message names its number, from 0),
                or a column of the frame is missing or has the name of an added one.
        """
        spec = self.find(task)
        if isinstance(rows, pd.DataFrame):
            return self.add_columns([task], rows)
        single, rows = as_list(rows, pairs=spec.text_pair is not None)
        answers = [row[task] for row in self.answer([task], rows)]
        return answers[0] if single else answers

    @overload
    def all(self, rows: str | Mapping[str, Any]) -> dict[str, dict[str, Any]]: ...
    @overload
    def all(self, rows: Sequence[Any]) -> list[dict[str, dict[str, Any]]]: ...
    @overload
    def all(self, rows: pd.DataFrame) -> pd.DataFrame: ...
    @overload
    def all(self, rows: Iterable[Any]) -> list[dict[str, dict[str, Any]]]: ...
    def all(self, rows: Any) -> Any:
        """Answer every task that takes single texts; tasks that share an encoder are answered in one pass.

        Args:
            rows: rows as in a call. Of a frame every task is answered whose columns it has, pair tasks too.

        Returns:
            {task: its answer} for each row, or a single one for a single row; for a frame, a copy with the columns of
            all these tasks added.

        Raises:
            InputError: as in a call, or no task takes such rows.
        """
        if isinstance(rows, pd.DataFrame):
            return self.add_columns(self.answerable(rows.columns, "the frame"), rows)
        names = [name for name, task in self.tasks.items() if not task.text_pair]
        if not names:
            raise InputError(f"the model's tasks, {', '.join(self.tasks)}, take pairs; name one of them")
        single, rows = as_list(rows)
        answers = self.answer(names, rows)
        return answers[0] if single else answers

    def table(self, task: str, rows: Any) -> Dataset:
        """Answer one task as a prediction table (see `prediction_table`). The ids are the rows' numbers, from 0.

        Args:
            task: name of one of the model's tasks.
            rows: as in a call, but not a frame.

        Raises:
            InputError: as in a call.
        """
        spec = self.find(task)
        texts = plain_texts(spec, as_list(rows, pairs=spec.text_pair is not None)[1])
        columns = self.predict({task: texts})[task]
        return Dataset.from_dict({"id": list(map(str, range(len(texts[0]))))} | columns)

    def find(self, task: str) -> Task:
        """The task of that name.

        Raises:
            InputError: the model has no such task.
        """
        if not isinstance(task, str):
            raise InputError(
                f"task is a {type(task).__name__}; expected the name of one task, before the rows: pipe(task, rows); "
                f"the model has {', '.join(self.tasks)}"
            )
        return find_task(self.tasks, task, instead=", or answer all tasks of a text with all(text)")

    def answerable(self, columns: Iterable[str], where: str) -> list[str]:
        """The tasks whose own columns are among those of a frame or file; messages call it `where`.

        Raises:
            InputError: there is no such task.
        """
        columns = list(columns)
        if names := [name for name, task in self.tasks.items() if {*own_columns(task)} <= {*columns}]:
            return names
        wanted = "; ".join(f"{name}: {' and '.join(own_columns(task))}" for name, task in self.tasks.items())
        raise InputError(f"{where} has the columns {', '.join(map(str, columns))}, and no task takes them: {wanted}")

    def answer(self, names: Sequence[str], rows: Sequence) -> list[dict[str, dict]]:
        """{task: answer} of each row."""
        found = self.predict({name: plain_texts(self.tasks[name], rows) for name in names})
        shown = {name: KINDS[self.tasks[name].kind].answers(self.tasks[name], found[name]) for name in names}
        return [
            {name: {column: as_plain(values[number]) for column, values in shown[name].items()} for name in names}
            for number in range(len(rows))
        ]

    def add_columns(self, names: Sequence[str], frame: pd.DataFrame) -> pd.DataFrame:
        """A frame with the predictions of some tasks as further columns."""
        check_columns(map(str, frame.columns), "rows")
        texts = {}
        for name in names:
            columns = find_columns(self.tasks[name], frame.columns, "the frame")
            part = frame[list({part: None for column in columns for part in text_parts(column)})].astype(object)
            # None for every mark of a missing value that pandas has
            rows = part.where(part.notna(), None).to_dict("records")
            texts[name] = [read_column(self.tasks[name], rows, column) for column in columns]
        return frame.assign(**self.shown_columns(texts, frame.columns))

    def shown_columns(
        self, texts: Mapping[str, Texts], taken: Iterable[str], progress: Callable[[float], object] | None = None
    ) -> Columns:
        """Predictions as columns {task}_{column} to add to rows: those of a CSV file, and the others of the tasks'
        prediction tables.

        Args:
            texts: {task: the texts of the rows}.
            taken: names of the columns that the rows have.
            progress: see `predict`.

        Raises:
            InputError: the rows already have a column with one of these names.
        """
        columns = {}
        for name, found in self.predict(texts, progress).items():
            shown = found | KINDS[self.tasks[name].kind].plain(self.tasks[name], found)
            columns |= {f"{name}_{column}": list(map(as_plain, values)) for column, values in shown.items()}
        if there := [column for column in columns if column in set(taken)]:
            raise InputError(f"the rows have a column {there[0]!r} already, as predictions would; rename or drop it")
        return columns

    def predict(
        self, texts: Mapping[str, Texts], progress: Callable[[float], object] | None = None
    ) -> dict[str, Columns]:
        """The columns of prediction tables. Tasks with the same tokens are answered together.

        Args:
            texts: {task: the texts of its rows}.
            progress: is called with the number of rows done since the last call; a row counts in shares, one for each
                pass that it needs.

        Raises:
            NonFiniteError: a logit is NaN or infinite.
        """

        def form(name: str) -> tuple:
            """What decides a task's tokens."""
            task = self.tasks[name]
            return task.by_words, task.truncation, task.prompt, task.pair_encoding, texts[name]

        groups = group_alike(texts, lambda one, other: form(one) == form(other))
        with ONE_CALL:
            model, tokenizer = self.load()
            step = None if progress is None else lambda rows: progress(rows / len(groups))
            found = {}
            for names in groups:
                tokens = self.encode(tokenizer, texts[names[0]], self.tasks[names[0]])
                for name, logits in predict_tasks(model, names, tokens, self.batch_size, step, self.bf16).items():
                    check_finite(self.tasks[name], logits)
                    found[name] = KINDS[self.tasks[name].kind].table(self.tasks[name], logits, tokens)
        return {name: found[name] for name in texts}

    def encode(self, tokenizer: PreTrainedTokenizerBase, texts: Texts, task: Task) -> dict[str, list]:
        """The tokens of rows (see `tokens.encode`), CHUNK rows at a time, because what the tokenizer returns is many
        times as large."""
        separate, words = self.load()[0].is_separate(task), task.by_words
        tokens: dict[str, list] = {"input_ids": [], "token_type_ids": [], "truncated": [], "word_starts": []}
        for start in range(0, len(texts[0]), CHUNK):
            chunk = [column[start : start + CHUNK] for column in texts]
            part = encode(tokenizer, chunk, self.max_length, separate, words, task.truncation, task.prompt)
            for column, values in part.items():
                tokens.setdefault(column, []).extend(values)
        tokenizer.backend_tokenizer.no_truncation()
        if any(tokens["truncated"]):
            logger.warning_once(f"rows of more than {self.max_length} tokens are cut, as in training")
        return tokens


def read_device(device: int | str | torch.device | None) -> torch.device | None:
    """A device as it is given to a pipeline; -1 is the CPU, as in Transformers.

    Raises:
        InputError: PyTorch knows no such device.
    """
    if device is None:
        return None
    with explained(f"device is {device!r}", hint="expected for example 'cpu', 'cuda' or a GPU's number from 0"):
        return torch.device("cpu" if device == -1 else device)


def as_list(rows: Any, pairs: bool = False) -> tuple[bool, list]:
    """Whether the rows of a call are a single row, and the rows as a list.

    Args:
        rows: as in a call.
        pairs: whether a tuple of two texts is one row.

    Raises:
        InputError: it is neither a row nor a sequence of rows.
    """
    is_pair = pairs and isinstance(rows, tuple) and len(rows) == 2
    is_pair = is_pair and all(isinstance(as_given(text), str) for text in rows)
    # A dictionary of columns is no row.
    is_row = isinstance(rows, Mapping) and all(
        isinstance(value, (str, bytes)) or not isinstance(value, Iterable) for value in rows.values()
    )
    if isinstance(rows, str) or is_pair or is_row:
        return True, [rows]
    if isinstance(rows, (bytes, Mapping, Set, pd.DataFrame)) or not isinstance(rows, Iterable):
        raise InputError(f"rows is {one_line(reprlib.repr(rows))} ({type(rows).__name__}); expected a list of rows")
    return False, list(rows)


def own_columns(task: Task) -> list[str]:
    """The columns of a task's texts."""
    return [*text_parts(task.text), *text_parts(task.text_pair)]


def find_columns(task: Task, columns: Iterable[str], where: str | None) -> list[str | tuple[str, ...]]:
    """The columns of a task's texts, one or several for each text: its own, else `text` (and `text_pair`).

    Args:
        columns: those that there are.
        where: what has them, for the message; None, the result is [] instead of an error.

    Raises:
        InputError: neither the task's own columns nor these are there.
    """
    own, columns = own_columns(task), list(columns)
    if {*own} <= {*columns}:
        return [task.text, task.text_pair] if task.text_pair else [task.text]
    if {*text_columns(task)} <= {*columns}:
        return text_columns(task)
    if where is None:
        return []
    raise InputError(
        f"{where} has the columns {', '.join(map(str, columns))}; task {task.name!r} takes {' and '.join(own)}"
    )


def plain_texts(task: Task, rows: Sequence) -> Texts:
    """The texts of plain rows, and for a pair task their second texts, a list each.

    Raises:
        InputError: the task does not take such a row; the message names its number, from 0.
    """
    texts: Texts = [[] for _ in text_columns(task)]
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            found = [read_text(row, columns, "rows", number + 1) for columns in find_columns(task, row, None)]
        else:
            found = row if task.text_pair and isinstance(row, (tuple, list)) else [row]
        found = [task.read_text(as_given(text)) for text in found]
        if len(found) != len(texts) or not all(isinstance(text, str) and is_unicode(text) for text in found):
            expected = "a pair of texts" if task.text_pair else "a text"
            raise InputError(
                f"rows[{number}] is {one_line(reprlib.repr(row))}; task {task.name!r} takes {expected}, or a "
                f"dictionary with {' and '.join(own_columns(task))}"
            )
        for column, text in zip(texts, found, strict=True):
            column.append(text)
    return texts


def as_given(text: Any) -> Any:
    """A text of a plain row; one that is missing is empty."""
    return "" if pd.isna(text) is True else text


def read_column(task: Task, rows: Sequence[Mapping], column: str | tuple[str, ...]) -> list[str]:
    """The texts of a frame's column, or of several joined, read as those of files are (see `as_text`).

    Raises:
        InputError: a value is not a text; the message names its row.
    """
    texts = []
    for number, row in enumerate(rows, start=1):
        texts.append(as_text(task.read_text(read_text(row, column, "rows", number)), "rows", number))
        if not is_unicode(texts[-1]):
            raise InputError(f"rows, row {number}: the text has half of a two-part character; correct it")
    return texts


def as_plain(value: Any) -> Any:
    """A number of NumPy's as Python's own."""
    return value.item() if isinstance(value, np.generic) else value
