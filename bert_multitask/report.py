"""The report of a run, an ensemble or a prediction table: scores with intervals, curves, errors, settings.

Markdown with PNGs beside it, and one HTML file that holds everything (docs/report.md).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from matplotlib.figure import Figure

from .analysis import Predictions, has_neighbours, read_predictions, worst
from .arguments import RunArguments
from .configuration import InputError
from .data import load_rows, usable_rows
from .document import Document, Picture, Table
from .losses import UNLABELLED
from .plots import (
    confusion_matrix,
    distance_shares,
    length_errors,
    scatter,
    task_order,
    to_png,
    training_curves,
)
from .schedule import SCHEDULES, count_batches
from .statistics import LEVEL, RESAMPLES, Estimate, Scores, mcnemar
from .tasks import TASKS, Task

WORST = 10  # rows of each task that are shown
SHOWN_TEXT = 300  # characters of a text


@dataclass
class Source:
    """What is reported: a run folder, a folder of prediction tables, or one table.

    Args:
        path: of it.
        split: whose predictions, "dev" or "test".
    """

    path: Path
    split: str

    def __post_init__(self):
        if not self.path.exists():
            raise InputError(f"{self.path}: no such file or folder; expected a run, or a folder of prediction tables")
        if self.path.is_file() and not self.path.name.endswith(f"-{self.split}.parquet"):
            raise InputError(f"{self.path}: expected a run, a folder, or a table TASK-{self.split}.parquet")

    @property
    def record(self) -> dict | None:
        """What `run.json` says; None where there is no run."""
        file = self.path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @property
    def history(self) -> list[dict]:
        """The entries of `history.jsonl`; none where there is no run."""
        file = self.path / "history.jsonl"
        return list(map(json.loads, file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []

    @property
    def tables(self) -> dict[str, Path]:
        """{task: its prediction table}."""
        ending = f"-{self.split}.parquet"
        folder = self.path / "predictions" if (self.path / "predictions").is_dir() else self.path
        files = [self.path] if self.path.is_file() else sorted(folder.glob(f"*{ending}"))
        if not files:
            raise InputError(f"{folder} holds no TASK{ending}; finish the run, or write some with recipes/predict.py")
        return {file.name.removesuffix(ending): file for file in files}

    def predictions(self, tasks: Mapping[str, Task], rows: Mapping[str, DatasetDict]) -> dict[str, Predictions]:
        """{task: its predictions} of the tasks that have a table and labels."""
        tables = self.tables
        return {
            name: read_predictions(tables[name], task, rows[name][self.split])
            for name, task in tasks.items()
            if name in tables and why_unscored(rows[name], self.split) is None
        }


def write_report(
    path: Path,
    output_dir: Path,
    other: Path | None = None,
    data_dir: str | None = None,
    tasks: Sequence | None = None,
    split: str = "dev",
) -> None:
    """Write report.html, and report.md with its PNGs, into a folder.

    Args:
        path: a run folder, a folder of tables TASK-SPLIT.parquet (an ensemble's, or of `recipes/predict.py`), or one.
        output_dir: the folder to write.
        other: the same of another run, to compare with on the same rows.
        data_dir: where the labels are, as for training; by default where the run's were.
        tasks: the tasks, as for training; by default those of the run, or the presets that the tables are named after.
        split: "dev" or "test".

    Raises:
        InputError: there is nothing to report, the labels are not at hand, or the tables are of other rows.
    """
    source = Source(Path(path), split)
    compared = Source(Path(other), split) if other else None
    run = run_arguments(source, compared, data_dir, tasks)
    specs = {task.name: task for task in run.load_tasks()}
    rows = {name: load_rows(task, run.data_dir) for name, task in specs.items()}
    predictions = source.predictions(specs, rows)
    if not predictions:
        raise InputError(f"{path}: nothing to score; " + "; ".join(gaps(source, specs, rows)))
    document = Document(f"Report of {path}" + (f", compared with {other}" if other else ""))
    add_scores(document, source, predictions, gaps(source, specs, rows))
    if compared:
        theirs = compared.predictions(specs, rows)
        add_comparison(document, source, compared, predictions, theirs, gaps(compared, specs, rows))
    add_training(document, source, specs)
    add_task_order(document, source, specs, rows)
    add_errors(document, predictions)
    add_worst(document, predictions)
    add_settings(document, source, specs)
    document.write(Path(output_dir), "report")


def run_arguments(
    source: Source, compared: Source | None, data_dir: str | None, tasks: Sequence | None
) -> RunArguments:
    """Where the rows are and what the tasks are: as given, or else as the run has them, or the one compared with."""
    record = source.record or (compared and compared.record)
    if not (record or data_dir):
        raise InputError(f"{source.path} has no run.json that says where the labels are; name their folder: --data_dir")
    if not (record or tasks):
        tasks = [name for name in TASKS if name in source.tables]
        if unknown := sorted(source.tables.keys() - TASKS.keys()):
            raise InputError(f"{source.path}: task {unknown[0]!r} is no preset; describe the tasks with --tasks")
    run = RunArguments(**record["run"]) if record else RunArguments()
    run.data_dir, run.tasks = data_dir or run.data_dir, tasks or run.tasks
    return run


def why_unscored(splits: DatasetDict, split: str) -> str | None:
    """Why a task's predictions of a split cannot be scored; None if they can."""
    if split not in splits:
        return f"it has no {split} rows"
    return None if any(label != UNLABELLED for label in splits[split]["label"][:]) else f"no {split} row has a label"


def gaps(source: Source, tasks: Mapping[str, Task], rows: Mapping[str, DatasetDict]) -> list[str]:
    """A sentence for each task that is not scored."""
    reasons = {
        name: why_unscored(rows[name], source.split) or (None if name in source.tables else "it has no predictions")
        for name in tasks
    }
    return [f"Task {name} is not scored: {reason}." for name, reason in reasons.items() if reason]


def scores(predictions: Mapping[str, Predictions]) -> Scores:
    """The scores of some tasks and their resamples."""
    return Scores(
        {name: part.task for name, part in predictions.items()},
        {name: part.predicted for name, part in predictions.items()},
        {name: part.labels for name, part in predictions.items()},
    )


def bounds(interval: Estimate, form: str = ".4f") -> str:
    """An interval as `low to high`."""
    return f"{interval.low:{form}} to {interval.high:{form}}"


def add_scores(document: Document, source: Source, predictions: Mapping[str, Predictions], unscored: list[str]) -> None:
    """Each task's score and the overall score, with intervals."""
    found = scores(predictions)
    lines = [
        [name, part.task.metric, f"{len(part):,}", f"{found[name].value:.4f}", bounds(found[name])]
        for name, part in predictions.items()
    ]
    overall = found["overall"]
    total = f"{sum(map(len, predictions.values())):,}"
    lines.append(["overall", "mean; of Pearson's r, (r + 1) / 2", total, f"{overall.value:.4f}", bounds(overall)])
    document.add(
        f"Scores on {source.split}",
        Table(["task", "metric", "rows", "score", f"{LEVEL:.0%} interval"], lines),
        *unscored,
        f"Intervals are percentile bootstraps: {RESAMPLES:,} resamples of a task's labelled rows, each row's "
        "prediction and label drawn together, the tasks' rows independently. They say how far the score would move "
        "with other rows of the same kind, not with another seed of the training.",
    )


def add_comparison(
    document: Document, source: Source, compared: Source, first: Mapping, second: Mapping, unscored: list[str]
) -> None:
    """Differences of two runs on the same rows, with the paired bootstrap's intervals and McNemar's exact test."""
    common = {name: part for name, part in first.items() if name in second}
    if not common:
        raise InputError(f"{compared.path}: has no task in common with {source.path}")
    ours, theirs = scores(common), scores({name: second[name] for name in common})
    lines = []
    for name in [*common, "overall"]:
        difference = ours.difference(theirs, name)
        line = [name, f"{ours[name].value:.4f}", f"{theirs[name].value:.4f}", f"{difference.value:+.4f}"]
        line += [bounds(difference, "+.4f"), "", "", ""]
        if name in common and common[name].task.metric == "accuracy":
            test = mcnemar(common[name].predicted, second[name].predicted, common[name].labels)
            line[5:] = f"{test.first:,}", f"{test.second:,}", f"{test.p:.2g}"
        lines.append(line)
    columns = ["task", "A", "B", "A − B", f"{LEVEL:.0%} interval", "right in A alone", "right in B alone", "McNemar p"]
    document.add(
        "Comparison",
        f"A is {source.path}, B is {compared.path}.",
        Table(columns, lines),
        *(f"B: {gap}" for gap in unscored),
        "Both are scored on the same resamples of the rows (paired bootstrap): where the interval leaves out 0, the "
        "difference is more than the choice of rows explains. McNemar's exact test asks how probable so uneven a "
        "split of the rows that one alone has right is if both are equally good. Neither sees other seeds.",
    )


def picture(name: str, figure: Figure, alt: str) -> Picture:
    """A figure as a block of the document."""
    return Picture(name, to_png(figure), alt)


def add_training(document: Document, source: Source, tasks: Mapping[str, Task]) -> None:
    """The curves of training (the paper's Figure 2); nothing where there is no history."""
    history = source.history
    if not any("loss" in entry for entry in history):
        return
    alt = f"Curves of {', '.join(tasks)}: loss and metric over {history[-1]['step']:,} steps"
    evaluations = [(entry["eval_overall"], entry["step"]) for entry in history if "eval_overall" in entry]
    best = "The overall dev score was highest, {:.4f}, at step {:,}. ".format(*max(evaluations)) if evaluations else ""
    document.add(
        "Training",
        picture("training-curves", training_curves(history, tasks), alt),
        f"{best}A point of a training curve is of the task's rows since the last log entry, as predicted in training, "
        "with dropout: while a model learns fast that is worse than the weights at the end of them would do.",
    )


def add_task_order(document: Document, source: Source, tasks: Mapping[str, Task], rows: Mapping) -> None:
    """The order of the tasks; nothing where there is no run."""
    record = source.record
    if record is None:
        return
    plan = recompute_plan(record["decides"], tasks, rows)
    if plan is None:
        document.add("Order of the tasks", "Unknown: the training rows are not those that run.json counts.")
        return
    counts = ", ".join(f"{plan.count(name):,} of {name}" for name in tasks)
    words = f"{len(plan):,} steps of up to {record['decides']['rows of a step']} rows: {counts}"
    document.add(
        "Order of the tasks",
        f"Schedule {record['decides']['schedule']}, {words}.",
        picture("task-order", task_order(plan, list(tasks)), f"Task of each step; {words}"),
    )


def recompute_plan(decides: Mapping, tasks: Mapping[str, Task], rows: Mapping[str, DatasetDict]) -> list[str] | None:
    """The task of each step of a run, of what `run.json` says decides it; None if the training rows are not as many as
    the run's."""
    for name in tasks:
        if len(rows[name].get("train", ())) != decides.get(f"rows of {name}", {}).get("train", {}).get("rows"):
            return None
    sizes = {name: len(usable_rows(task, rows[name]["train"], "train")) for name, task in tasks.items()}
    epochs = {name: task.epochs for name, task in tasks.items()}
    seed = decides["seed"] if decides["data_seed"] is None else decides["data_seed"]
    batches = count_batches(sizes, epochs, decides["rows of a step"], decides["budget"])
    plan = SCHEDULES[decides["schedule"]](batches, seed)
    return plan[: decides["max_steps"]] if decides["max_steps"] > 0 else plan


def add_errors(document: Document, predictions: Mapping[str, Predictions]) -> None:
    """Confusion (Figure 3), scatter (Figure 4), error by length, and how far off predictions are."""
    everything = list(predictions.values())
    if classes := [part for part in everything if part.task.kind != "similarity"]:
        alt = "Confusion matrix of {}: percent of each true label's rows by predicted label"
        document.add(
            "Confusion",
            "Each true label is a column, which sums to 100 %.",
            *(
                picture(f"confusion-{part.task.name}", confusion_matrix(part), alt.format(part.task.name))
                for part in classes
            ),
        )
    if similarities := [part for part in everything if part.task.kind == "similarity"]:
        alt = "Predicted over true scores of {}, with the line on which they are equal"
        document.add(
            "Predicted and true scores",
            *(picture(f"scatter-{part.task.name}", scatter(part), alt.format(part.task.name)) for part in similarities),
        )
    document.add(
        "Error by length",
        "Bins hold about as many rows each; a row's length is that of all its texts. Bars are 95 % intervals: Wilson's "
        "of a share of wrong rows, 1.96 standard errors of a mean.",
        picture("error-by-length", length_errors(everything), f"Mean error by length of {', '.join(predictions)}"),
    )
    if neighbours := [part for part in everything if has_neighbours(part.task)]:
        alt = f"Distribution of |predicted - true| of {', '.join(part.task.name for part in neighbours)}"
        document.add(
            "How far off",
            picture("distances", distance_shares(neighbours), alt),
            *map(neighbour_table, neighbours),
            "Of classes that have no order, how far off says nothing.",
        )


def neighbour_table(part: Predictions) -> Table:
    """Of a task's rows, by true label: how many are right, off by one, and further off. A score is a number of tenths
    of its range off."""
    task, distances = part.task, part.distances
    if task.kind == "similarity":
        low, high = task.score_range
        steps = (high - low) / 10, (high - low) / 5
        groups = {"all": np.full(len(part), True)}
        names = [f"within {steps[0]:g}", f"within {steps[1]:g}", "further off"]
        kinds = [distances <= steps[0], (distances > steps[0]) & (distances <= steps[1]), distances > steps[1]]
    else:
        groups = {name: part.labels == label for label, name in enumerate(task.label_names)}
        groups["all"] = np.full(len(part), True)
        names = ["right", "off by one", "further off"]
        kinds = [distances == 0, distances == 1, distances > 1]
    lines = [
        [name, f"{rows.sum():,}", *(f"{100 * kind[rows].mean():.1f} %" for kind in kinds)]
        for name, rows in groups.items()
        if rows.any()
    ]
    return Table([f"{task.name}: true label", "rows", *names], lines)


def add_worst(document: Document, predictions: Mapping[str, Predictions]) -> None:
    """The rows of each task that are furthest from right."""
    for name, part in predictions.items():
        shown = worst(part, WORST)
        with_loss = part.probabilities is not None
        columns = ["id", "text", *["second text"] * (part.task.text_pair is not None), "true", "predicted"]
        columns += ["probability of the true label", "loss (nats)"] if with_loss else ["|predicted − true|"]
        lines = []
        for row in range(len(shown)):
            values = [label_name(part.task, value[row]) for value in (shown.labels, shown.predicted)]
            if with_loss:
                values.append(f"{shown.probabilities[row, shown.labels[row]]:.4f}")
            lines.append([shown.ids[row], *map(cut, shown.texts[row]), *values, f"{shown.losses[row]:.2f}"])
        document.add(f"Worst rows of {name}", Table(columns, lines) if lines else "Every row is right.")


def label_name(task: Task, value: float) -> str:
    """A class by its name, a score with two digits."""
    return f"{value:.2f}" if task.kind == "similarity" else task.label_names[int(value)]


def cut(text: str) -> str:
    """A text, or as much of it as is shown."""
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"


def add_settings(document: Document, source: Source, tasks: Mapping[str, Task]) -> None:
    """What decided the run's weights, as `run.json` has it; nothing where there is no run."""
    if (record := source.record) is None:
        return
    decides = record["decides"]
    plain = {
        key: value for key, value in decides.items() if not key.startswith(("task ", "rows of ")) and key != "tasks"
    }
    plain |= {"rows of a step": decides["rows of a step"], "data_dir": record["run"]["data_dir"]}
    plain |= {"processes": record["processes"], "commit": record["commit"]} | record["versions"]
    fields = ["kind", "loss", "metric", "epochs", "dropout", "smart_weight", "bregman_weight"]
    splits = ["train", "dev", "test"]
    lines = [
        [name, *(str(getattr(task, key)) for key in fields)]
        + [f"{decides[f'rows of {name}'].get(split, {}).get('rows', 0):,}" for split in splits]
        for name, task in tasks.items()
    ]
    document.add(
        "Settings",
        Table(["task", *fields, *(f"{split} rows" for split in splits)], lines),
        Table(["setting", "value"], [[key, "" if value is None else str(value)] for key, value in plain.items()]),
    )
