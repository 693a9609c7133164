"""The report of a run, an ensemble or a prediction table: scores with intervals, curves, errors, settings.

Markdown with PNGs beside it, and one HTML file that holds everything (docs/report.md).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.intervals import LEVEL, RESAMPLES, Estimate, Scores, mcnemar
from ..evaluation.metrics import describe_metric, describe_overall, find_metric
from ..model.errors import InputError
from .analysis import LabelledPredictions, worst
from .document import Document, Picture, Table
from .plots import DISTANCES, PICTURES, distance_shares, length_errors, task_order, to_png, training_curves
from .subject import Source, open_sources

WORST = 10  # rows of each task that are shown
SHOWN_TEXT = 300  # characters of a text


def write_report(
    path: str | PathLike,
    output_dir: str | PathLike,
    other: str | PathLike | None = None,
    data_dir: str | None = None,
    tasks: Sequence[str] | None = None,
    split: str = "dev",
) -> None:
    """Write report.html, and report.md with its PNGs, into a folder.

    Args:
        path: a run folder, a Hub id, a folder of prediction files (an ensemble's, for example), or one such file; what
            has no predictions of the split and can be loaded as a model predicts them now.
        output_dir: the folder to write.
        other: the same of another run, to compare with on the same rows.
        data_dir: where the rows are, as for training; by default where the runs among the two have theirs.
        tasks: names of the tasks to report, or JSON of a task with its name and its files; by default all.
        split: "dev" or "test".

    Raises:
        InputError: there is nothing to report, the labels are not at hand, or the tables are of other rows.
    """
    names = [str(name) for name in (path, other) if name is not None]
    source, *compared = open_sources(names, split, tasks, data_dir)
    document = Document(f"Report of {path}" + (f", compared with {other}" if other else ""))
    add_scores(document, source, split)
    for second in compared:
        add_comparison(document, source, second)
    add_members(document, source)
    add_training(document, source)
    add_task_order(document, source)
    add_errors(document, source.predictions)
    add_worst(document, source.predictions)
    add_settings(document, source)
    document.write(Path(output_dir), "report")


def scores(predictions: Mapping[str, LabelledPredictions]) -> Scores:
    """The scores of some tasks and their resamples."""
    return Scores(
        {name: part.task for name, part in predictions.items()},
        {name: part.predicted for name, part in predictions.items()},
        {name: part.labels for name, part in predictions.items()},
    )


def bounds(interval: Estimate, form: str = ".4f") -> str:
    """An interval as `low to high`."""
    return f"{interval.low:{form}} to {interval.high:{form}}"


def add_scores(document: Document, source: Source, split: str) -> None:
    """Each task's score and the overall score, with intervals."""
    predictions = source.predictions
    found = scores(predictions)
    lines = [
        [name, describe_metric(part.task), f"{len(part):,}", f"{found[name].value:.4f}", bounds(found[name])]
        for name, part in predictions.items()
    ]
    overall = found["overall"]
    total = f"{sum(map(len, predictions.values())):,}"
    words = describe_overall({name: part.task for name, part in predictions.items()})
    lines.append(["overall", words, total, f"{overall.value:.4f}", bounds(overall)])
    document.add(
        f"Scores on {split}",
        Table(["task", "metric", "rows", "score", f"{LEVEL:.0%} interval"], lines),
        *source.unscored,
        f"Intervals are percentile bootstraps: {RESAMPLES:,} resamples of a task's labelled rows, each row's "
        "prediction and label drawn together, the tasks' rows independently. They say how far the score would move "
        "with other rows of the same kind, not with another seed of the training.",
    )


def add_comparison(document: Document, source: Source, compared: Source) -> None:
    """Differences of two runs on the same rows, with the paired bootstrap's intervals and McNemar's exact test."""
    second = compared.predictions
    common = {name: part for name, part in source.predictions.items() if name in second}
    if not common:
        raise InputError(f"{compared.name}: has no task in common with {source.name}")
    ours, theirs = scores(common), scores({name: second[name] for name in common})
    lines = []
    for name in [*common, "overall"]:
        difference = ours.difference(theirs, name)
        head = name
        if name in common and not find_metric(common[name].task).greater_is_better:
            head = f"{name} (lower is better)"
        line = [head, f"{ours[name].value:.4f}", f"{theirs[name].value:.4f}", f"{difference.value:+.4f}"]
        line += [bounds(difference, "+.4f"), "", "", ""]
        if name in common and common[name].task.metric == "accuracy":
            test = mcnemar(common[name].errors == 0, second[name].errors == 0)
            line[5:] = f"{test.first:,}", f"{test.second:,}", f"{test.p:.2g}"
        lines.append(line)
    columns = ["task", "A", "B", "A − B", f"{LEVEL:.0%} interval", "right in A alone", "right in B alone", "McNemar p"]
    document.add(
        "Comparison",
        f"A is {source.name}, B is {compared.name}.",
        Table(columns, lines),
        *(f"B: {sentence}" for sentence in compared.unscored),
        "Both are scored on the same resamples of the rows (paired bootstrap): where the interval leaves out 0, the "
        "difference is more than the choice of rows explains. McNemar's exact test asks how probable so uneven a "
        "split of the rows that one alone has right is if both are equally good. Neither sees other seeds.",
    )


def add_members(document: Document, source: Source) -> None:
    """Who votes in an ensemble, how, and the dev scores of each, as `ensemble.json` has them."""
    if (ensemble := source.ensemble) is None:
        return
    votes = {task: Counter(names) for task, names in ensemble.get("picks", {}).items()}
    selected = [
        f"Selected for {task}: {', '.join(f'{count} × {name}' for name, count in counts.items())}."
        for task, counts in votes.items()
    ]
    keys = {name: f"eval_{name}_{task.metric}" for name, task in source.tasks.items()} | {"overall": "eval_overall"}
    tables = []
    for title, scores in ensemble.get("scores", {}).items():
        names = [*ensemble["members"], *(name for name in scores if name not in ensemble["members"])]
        shown = {head: key for head, key in keys.items() if key in scores[names[0]]}
        lines = [[name, *(f"{scores[name][key]:.4f}" for key in shown.values())] for name in names]
        tables.append(Table([title, *shown], lines))
    document.add("Members", f"Vote: {ensemble['vote']}, of {', '.join(ensemble['members'])}.", *selected, *tables)


def picture(name: str, figure: Figure, alt: str) -> Picture:
    """A figure as a block of the document."""
    return Picture(name, to_png(figure), alt)


def add_training(document: Document, source: Source) -> None:
    """The curves of training (the paper's Figure 2); nothing where there is no history."""
    history, tasks = source.history, source.tasks
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


def add_task_order(document: Document, source: Source) -> None:
    """The order of the tasks; nothing where there is no plan."""
    if (plan := source.plan()) is None:
        return
    decides = source.record["decides"]
    counts = ", ".join(f"{plan.count(name):,} of {name}" for name in decides["tasks"])
    words = f"{len(plan):,} steps of up to {decides['rows of a step']} rows: {counts}"
    document.add(
        "Order of the tasks",
        f"Schedule {decides['schedule']}, {words}.",
        picture("task-order", task_order(plan, decides["tasks"]), f"Task of each step; {words}"),
    )


def add_errors(document: Document, predictions: Mapping[str, LabelledPredictions]) -> None:
    """Confusion (Figure 3), scatter (Figure 4), error by length, and how far off predictions are."""
    everything = list(predictions.values())
    for key, (title, note, alt, draw) in PICTURES.items():
        names = [name for name, part in predictions.items() if part.kind.picture == key]
        pictures = [picture(f"{key}-{name}", draw(predictions[name]), alt.format(name)) for name in names]
        if pictures:
            document.add(title, note, *pictures)
    document.add(
        "Error by length",
        "Bins hold about as many rows each; a row's length is that of all its texts. Bars are 95 % intervals: Wilson's "
        "of a share of wrong rows, 1.96 standard errors of a mean.",
        picture("error-by-length", length_errors(everything), f"Mean error by length of {', '.join(predictions)}"),
    )
    if neighbours := [part for part in everything if part.kind.distance_picture(part.task)]:
        alt = f"Distribution of |predicted - true| of {', '.join(part.task.name for part in neighbours)}"
        document.add(
            "How far off",
            picture("distances", distance_shares(neighbours), alt),
            *map(neighbour_table, neighbours),
            "Of classes that have no order, how far off says nothing.",
        )


def neighbour_table(part: LabelledPredictions) -> Table:
    """How many of a task's rows are near, off, and further off, by groups of true labels (see `plots.Distances`)."""
    groups, (near, far), names = DISTANCES[part.kind.distance_picture(part.task)].groups(part)
    groups["all"] = np.full(len(part), True)
    distances = part.distances
    steps = [distances <= near, (distances > near) & (distances <= far), distances > far]
    lines = [
        [name, f"{rows.sum():,}", *(f"{100 * step[rows].mean():.1f} %" for step in steps)]
        for name, rows in groups.items()
        if rows.any()
    ]
    return Table([f"{part.task.name}: true label", "rows", *names], lines)


def add_worst(document: Document, predictions: Mapping[str, LabelledPredictions]) -> None:
    """The rows of each task that are furthest from right."""
    for name, part in predictions.items():
        shown = worst(part, WORST)
        probable = part.probabilities is not None
        columns = ["id", "text", *["second text"] * (part.task.text_pair is not None), "true", "predicted"]
        columns.append("probability of the true label" if probable else "|predicted − true|")
        lines = []
        for row in range(len(shown)):
            text = " ".join(shown.texts[row])
            values = [
                cut(part.kind.show_beside(part.task, value[row], text)) for value in (shown.labels, shown.predicted)
            ]
            last = f"{np.exp(-shown.losses[row]):.4f}" if probable else f"{shown.losses[row]:.2f}"
            lines.append([shown.ids[row], *map(cut, shown.texts[row]), *values, last])
        document.add(f"Worst rows of {name}", Table(columns, lines) if lines else "Every row is right.")


def cut(text: str) -> str:
    """A text, or as much of it as is shown."""
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"


def add_settings(document: Document, source: Source) -> None:
    """What decided the run's weights, as `run.json` has it; nothing where there is no run."""
    if (record := source.record) is None:
        return
    decides = record["decides"]
    tasks = decides.get("tasks", ())  # a model soup has none of its own
    told = {"tasks", *(f"{what} {name}" for what in ("task", "rows of") for name in tasks)}
    plain = {key: value for key, value in decides.items() if key not in told}
    plain |= {"data_dir": record["run"]["data_dir"], "processes": record["processes"], "commit": record["commit"]}
    plain |= record["versions"]
    fields = ["kind", "loss", "metric", "epochs", "dropout", "smart_weight", "bregman_weight"]
    fields += ["class_weights", "label_smoothing"]
    splits = ["train", "dev", "test"]
    lines = [
        [name, *(setting_text(decides[f"task {name}"].get(key)) for key in fields)]
        + [f"{decides[f'rows of {name}'].get(split, {}).get('rows', 0):,}" for split in splits]
        for name in tasks
    ]
    document.add(
        "Settings",
        Table(["task", *fields, *(f"{split} rows" for split in splits)], lines) if lines else None,
        Table(["setting", "value"], [[key, setting_text(value)] for key, value in plain.items()]),
    )


def setting_text(value) -> str:
    """A setting as it is shown."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting_text(item)}" for key, item in value.items())
    return "" if value is None else str(value)
