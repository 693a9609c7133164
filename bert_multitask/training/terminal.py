"""What a run prints: one table row for each log entry, progress bars in a terminal, the end, and warnings as lines."""

import logging as standard_logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm
from transformers import ProgressCallback
from transformers.utils import logging

from ..evaluation.intervals import Estimate, bounds
from ..model.tasks import Task
from .checkpoints import list_checkpoints

WIDTH = 100  # columns of what is no terminal, such as a pipe
CELL = 9  # columns of a number in the table
LIBRARIES = ("transformers", "accelerate", "datasets", "huggingface_hub", "py.warnings")  # whose messages are shown


def say(text: str = "", file: TextIO | None = None) -> None:
    """Print a text above the progress bars, where there are any; by default to standard output."""
    file = file or sys.stdout
    tqdm.write(text, file=file)
    file.flush()  # a pipe would get it late


class WarningLines(standard_logging.Handler):
    """Prints each message of the libraries' logs once, as a line above the progress bars; of the first process only,
    where it is no error."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def emit(self, record: standard_logging.LogRecord) -> None:
        """Print a record."""
        message = record.getMessage().strip().removeprefix("Warning: ")
        if record.name == "py.warnings":
            message = message.splitlines()[0]  # the second is the line of code
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        if message not in self.seen and (is_first or record.levelno >= standard_logging.ERROR):
            self.seen.add(message)
            say(f"{record.levelname.lower()}: {message}", sys.stderr)


@contextmanager
def warnings_as_lines():
    """Have the libraries' messages and Python's warnings printed by `WarningLines` in the meantime."""
    handler = WarningLines()
    logging.captureWarnings(True)
    loggers = [standard_logging.getLogger(name) for name in LIBRARIES]
    before = [list(logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
        logging.captureWarnings(False)


class TrainingTable(ProgressCallback):
    """Prints a row for each log entry of training: the step, then each task's loss, or its dev score; and shows a
    progress bar of training, and one of each evaluation, where standard error is a terminal.

    The history file has all that is logged; this is what a person follows. `plan` is the task of each step.
    """

    def __init__(self, tasks: Mapping[str, Task], plan: Sequence[str]):
        super().__init__()
        self.tasks, self.plan = tasks, plan

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = state.global_step
        if not state.is_world_process_zero:
            return
        self.training_bar = self.make_bar(args, state.max_steps, "training", initial=state.global_step)
        width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
        self.cell = max(CELL, *(min(12, len(name)) for name in self.tasks))
        self.steps = max(len("step"), 2 * len(str(state.max_steps)) + 1)
        room = (width - self.steps - len("  score") - len("  best")) // (self.cell + 1) - 1
        self.shown = list(self.tasks)[: max(1, room)]
        say()
        say(self.row("step", "", [*self.shown, "overall"]))
        say(self.row("", "score", [self.tasks[name].metric for name in self.shown]))
        if len(self.shown) < len(self.tasks):
            say(f"({', '.join(list(self.tasks)[len(self.shown) :])}: in the history file; more columns do not fit)")
        if state.global_step:
            say(f"going on after step {state.global_step}")

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            self.training_bar.set_description(self.label(self.plan[state.global_step - 1]), refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        if "loss" in logs:
            what, keys, overall = "loss", {name: f"loss_{name}" for name in self.tasks}, "loss"
        elif "eval_overall" in logs:
            what, keys = "score", {name: f"eval_{name}_{task.metric}" for name, task in self.tasks.items()}
            overall = "eval_overall"
        else:
            return
        values = [logs.get(key) for key in (*(keys[name] for name in self.shown), overall)]
        best = "  best" if what == "score" and is_best(args, state, logs) else ""
        say(self.row(f"{state.global_step}/{state.max_steps}", what, map(as_cell, values)) + best)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None and state.global_step < state.max_steps:
            say(f"stopped after step {state.global_step}")
        self.close()

    def expect(self, args, batches: int, what: str) -> None:
        """Begin a bar of so many batches, of all the data sets that are predicted next."""
        self.end_prediction()
        if args.process_index == 0:
            self.prediction_bar = self.make_bar(args, batches, what)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Overridden because Trainer's begins a bar for each data set."""
        if self.prediction_bar is None and state.is_world_process_zero:
            self.prediction_bar = self.make_bar(args, len(eval_dataloader), "predicting")
        if self.prediction_bar is not None:
            self.prediction_bar.update(1)
            if self.prediction_bar.n >= self.prediction_bar.total:
                self.end_prediction()

    def on_predict(self, args, state, control, **kwargs):
        """Overridden because other data sets may follow: the bar ends when it is full."""

    def on_evaluate(self, args, state, control, **kwargs):
        self.end_prediction()

    def end_prediction(self) -> None:
        """End the bar of an evaluation, where there is one."""
        if self.prediction_bar is not None:
            self.prediction_bar.close()
        self.prediction_bar = None

    def close(self) -> None:
        """End all bars, also those of a training that failed."""
        self.end_prediction()
        if self.training_bar is not None:
            self.training_bar.close()
        self.training_bar = None

    def make_bar(self, args, total: int, what: str, **settings) -> tqdm:
        """A bar that goes when it is closed; none where standard error is no terminal, or by --disable_tqdm."""
        return tqdm(
            total=total,
            desc=self.label(what),
            unit="step" if what == "training" else "batch",
            dynamic_ncols=True,
            leave=False,
            disable=args.disable_tqdm or None,
            **settings,
        )

    def label(self, what: str) -> str:
        """What stands before a bar, of one width, so that the bar does not jump."""
        return f"{what:{max(map(len, ('predicting', *self.tasks)))}}"

    def row(self, step: str, what: str, cells: Sequence[str]) -> str:
        """A line of the table."""
        return f"{step:>{self.steps}}  {what:5}" + "".join(f" {cell[: self.cell]:>{self.cell}}" for cell in cells)


def as_cell(value: float | None) -> str:
    """A number as it stands in the table; nothing where there is none."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def is_best(args, state, logs: Mapping[str, float]) -> bool:
    """Whether an evaluation is the best so far, by `metric_for_best_model`; Trainer will note it next."""
    value = logs.get(f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}")
    if value is None or state.best_metric is None:
        return value is not None
    return value > state.best_metric if args.greater_is_better else value < state.best_metric


def describe_scores(
    tasks: Mapping[str, Task],
    metrics: Mapping[str, float],
    rows: Mapping[str, int],
    scores: Mapping[str, Estimate] | None,
) -> str:
    """The dev scores as a table, with labelled rows, and intervals where they are known.

    Args:
        rows: {task: its labelled dev rows}.
        scores: {task or "overall": its score and interval}; None where there are no predictions.
    """
    width = max(12, *map(len, tasks))
    lines = [f"{'dev score':{width + 11}} {'rows':>8} {'score':>8}" + "   95 % interval" * (scores is not None)]
    for name in (*tasks, "overall"):
        metric, count = (tasks[name].metric, f"{rows[name]:,}") if name in tasks else ("", "")
        score = metrics[f"eval_{name}_{metric}".removesuffix("_")]
        interval = f"   {bounds(scores[name], '.4f')}" if scores else ""
        lines.append(f"{name:{width}} {metric:10} {count:>8} {score:8.4f}{interval}")
    return "\n".join(lines)


def describe_end(folder: Path, kept: str, has_predictions: bool) -> str:
    """What a finished run left, and which commands use it; `kept` says which step's weights it has."""
    name = shlex.quote(str(folder))
    lines = [f"kept: {kept}"]
    if has_predictions:
        lines.append(f"predictions of dev and test rows: {folder / 'predictions'}")
    lines.append(f"run folder: {folder} ({size_in_mb(folder):,.0f} MB)")
    if checkpoints := list_checkpoints(folder).values():
        size = sum(map(size_in_mb, checkpoints))
        lines.append(f"  of it {size:,.0f} MB in checkpoint-*, weights of earlier saves: delete them when you are done")
    lines += [
        "",
        "next:",
        f"  bert-multitask predict {name} new.csv --output_dir PREDICTIONS",
        f"  bert-multitask report {name}",
        f"  bert-multitask demo {name}",
    ]
    return "\n".join(lines)


def size_in_mb(folder: Path) -> float:
    """What all files in a folder weigh, in 10**6 bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
