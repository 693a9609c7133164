"""The report of a run, an ensemble or a prediction table: scores with intervals, curves, errors, settings.

Markdown with PNGs beside it, and one HTML file that holds everything (docs/report.md).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from os import PathLike
from pathlib import Path

from ..evaluation.intervals import LEVEL, RESAMPLES, Scores, bounds, mcnemar
from ..evaluation.metrics import describe_metric, describe_overall, find_metric, score_keys
from ..model.card import describe_count
from ..model.errors import InputError
from ..model.tasks import units
from ..training.run_folder import installed_version
from .analysis import LabelledPredictions, baseline_score, digits, rounded
from .document import Document, Picture, Table
from .error_sections import add_errors, picture
from .plots import compared_curves, gradient_cosines, task_order, training_curves
from .subject import Source, open_dev, open_sources, recorded_units


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
        path: a run folder, a Hub id, a folder of prediction files (an ensemble's, for example), or one such file. For a
            run without predictions of the split, they are made now.
        output_dir: the folder to write.
        other: another run, folder or file, to compare with on the same rows.
        data_dir: the rows' folder, as for training; by default the data folders recorded in the runs.
        tasks: names of the tasks to report, or JSON of a task with its name and its files; by default all.
        split: "dev" or "test".

    Raises:
        InputError: there is nothing to report, the labels are not at hand, or the tables are of other rows.
    """
    names = [str(name) for name in (path, other) if name is not None]
    source, *compared = open_sources(names, split, tasks, data_dir)
    fitted = open_dev(names[0], tasks, data_dir) if split != "dev" else {}
    version = installed_version("bert_multitask") or "of a checkout"
    note = f"Made on {date.today().isoformat()} by bert_multitask {version}."
    document = Document(f"Report of {', compared with '.join(titles(names))}", note)
    add_scores(document, source, split)
    for second in compared:
        add_comparison(document, source, second)
    add_members(document, source)
    add_training(document, source)
    add_task_order(document, source)
    add_errors(document, source.predictions, fitted, source.train)
    add_settings(document, source)
    document.write(Path(output_dir), "report")


def titles(names: Sequence[str]) -> list[str]:
    """The names of sources for the title: without the path, unless only that tells them apart."""
    short = [Path(name).resolve().name if Path(name).exists() else name for name in names]
    return short if len(set(short)) == len(names) else list(names)


def scores(predictions: Mapping[str, LabelledPredictions]) -> Scores:
    """The scores of some tasks and their resamples."""
    return Scores(
        {name: part.task for name, part in predictions.items()},
        {name: part.predicted for name, part in predictions.items()},
        {name: part.labels for name, part in predictions.items()},
    )


def add_scores(document: Document, source: Source, split: str) -> None:
    """Each task's score and the overall score, with intervals."""
    predictions = source.predictions
    found = scores(predictions)
    words = {name: describe_metric(part.task) for name, part in predictions.items()}
    words["overall"] = describe_overall({name: part.task for name, part in predictions.items()})
    rows = {name: len(part) for name, part in predictions.items()}
    rows["overall"] = sum(rows.values())
    lines = []
    for name, count in rows.items():
        guess = baseline_score(predictions[name]) if name in predictions else None
        line = [name, rounded(found[name].value, count), bounds(found[name], f".{digits(count)}f")]
        lines.append([*line, rounded(guess, count), f"{count:,}", words[name]])
    document.add(
        f"Scores on {split}",
        Table(["task", "score", f"{LEVEL:.0%} interval", "baseline", "rows", "metric"], lines),
        *source.unscored,
        "The baseline is the score of one answer for every row: the most frequent label of these rows, or the mean "
        "score. A constant has no correlation, which counts as 0.",
        f"Intervals are percentile bootstraps: {RESAMPLES:,} resamples of a task's labelled rows, each row's "
        "prediction and label drawn together, the tasks' rows independently. Where all rows are right, or all wrong, "
        "it is Wilson's interval of a share, and the overall score has none. They say how far the score would move "
        "with other rows of the same kind, not with another seed of the training.",
    )


def add_comparison(document: Document, source: Source, compared: Source) -> None:
    """Differences of two runs on the same rows, with paired bootstrap intervals and McNemar's exact test."""
    second = compared.predictions
    common = {name: part for name, part in source.predictions.items() if name in second}
    if not common:
        raise InputError(f"{compared.name}: has no task in common with {source.name}")
    ours, theirs = scores(common), scores({name: second[name] for name in common})
    lines = []
    for name in [*common, "overall"]:
        metric = find_metric(common[name].task) if name in common else None
        head = f"{name} (lower is better)" if metric and not metric.greater_is_better else name
        rows = len(common[name]) if metric else sum(map(len, common.values()))
        difference, values = ours.difference(theirs, name), (ours[name].value, theirs[name].value)
        line = [head, *(rounded(value, rows) for value in values), rounded(difference.value, rows, "+")]
        tested = ["", "", ""]
        if metric and metric.share:
            test = mcnemar(common[name].errors == 0, second[name].errors == 0)
            tested = [f"{test.first:,}", f"{test.second:,}", f"{test.p:.2g}"]
        lines.append([*line, bounds(difference, f"+.{digits(rows)}f"), *tested])
    columns = ["task", "A", "B", "A − B", f"{LEVEL:.0%} interval", "right in A alone", "right in B alone", "McNemar p"]
    document.add(
        "Comparison",
        f"A is {source.name}, B is {compared.name}.",
        Table(columns, lines),
        *(f"B: {sentence}" for sentence in compared.unscored),
        "Both are scored on the same resamples of the rows (paired bootstrap): where the interval leaves out 0, the "
        "difference is more than the choice of rows explains. McNemar's exact test asks how probable so uneven a "
        "split of the rows that one alone has right is if both are equally good. Neither sees other seeds.",
        curves_of_both(source, compared),
    )


def curves_of_both(source: Source, compared: Source) -> Picture | None:
    """The dev curves of two runs; None if one of them has none."""
    histories = {"A": source.history, "B": compared.history}
    tasks = {name: task for name, task in source.tasks.items() if name in compared.tasks}
    if not all(any("eval_overall" in entry for entry in history) for history in histories.values()):
        return None
    alt = f"Dev loss and metric of {', '.join(tasks)} over the steps, of both runs"
    return picture("compared-curves", compared_curves(histories, tasks), alt)


def add_members(document: Document, source: Source) -> None:
    """The members of an ensemble, its vote, and the scores of each, from `ensemble.json`."""
    if (ensemble := source.records.ensemble) is None:
        return
    selected = [
        f"Selected for {task}: {', '.join(f'{count} × {name}' for name, count in Counter(names).items())}."
        for task, names in ensemble.get("picks", {}).items()
    ]
    tables = []
    for title, scores in ensemble.get("scores", {}).items():
        names = list(dict.fromkeys([*ensemble["members"], *scores]))
        shown = {head: key for head, key in score_keys(source.tasks).items() if key in scores[names[0]]}
        lines = [[name, *(f"{scores[name][key]:.4f}" for key in shown.values())] for name in names]
        tables.append(Table([title, *shown], lines))
    document.add("Members", f"Vote: {ensemble['vote']}, of {', '.join(ensemble['members'])}.", *selected, *tables)


def add_training(document: Document, source: Source) -> None:
    """The curves of training (the paper's Figure 2); nothing where there is no history."""
    history, tasks = source.history, source.tasks
    if not any("loss" in entry for entry in history):
        return
    alt = f"Curves of {', '.join(tasks)}: loss and metric over {history[-1]['step']:,} steps"
    evaluations = [(entry["eval_overall"], entry["step"]) for entry in history if "eval_overall" in entry]
    first = max(evaluations, key=lambda found: found[0], default=None)  # as Trainer keeps it
    best = "The overall dev score was highest, {:.3f}, at step {:,}. ".format(*first) if evaluations else ""
    document.add(
        "Training",
        picture("training-curves", training_curves(history, tasks), alt),
        f"{best}A training curve shows the loss or score of the task's rows since the last log entry, as predicted in "
        "training, with dropout. While a model learns fast, its weights at the end of those rows would score higher.",
    )
    if any(key.startswith("cosine_") for entry in history for key in entry):
        drawn = gradient_cosines(history, list(units(tasks.values())))
        document.add(
            "Gradients of the tasks",
            picture("gradient-cosines", drawn, "Cosines between the tasks' gradients"),
            "Below 0 a step of one task undoes part of the other's. A dashed line is of two batches of one task: where "
            "it is near 0 itself, the gradients of so few rows are mostly noise.",
        )


def add_task_order(document: Document, source: Source) -> None:
    """The order of the tasks; nothing where there is no plan."""
    if (plan := source.plan()) is None:
        return
    decides = source.records.run["decides"]
    names = recorded_units(decides)
    counts = ", ".join(f"{plan.count(name):,} of {name}" for name in names)
    words = f"{len(plan):,} steps of up to {decides['rows of a step']} rows: {counts}"
    document.add(
        "Order of the tasks",
        f"Schedule {decides['schedule']}, {words}.",
        picture("task-order", task_order(plan, names), f"Task of each step; {words}"),
    )


def add_settings(document: Document, source: Source) -> None:
    """The settings that decided the run's weights, from `run.json`; nothing where there is no run."""
    if (record := source.records.run) is None:
        return
    decides = record["decides"]
    tasks = decides.get("tasks", ())  # a model soup has none of its own
    told = {"tasks", *(f"{what} {name}" for what in ("task", "rows of") for name in tasks)}
    plain = {key: value for key, value in decides.items() if key not in told}
    plain |= {"data_dir": record["run"]["data_dir"], "processes": record["processes"], "commit": record["commit"]}
    plain |= record["versions"]
    fields = ["kind", "loss", "metric", "epochs", "dropout", "smart_weight", "bregman_weight"]
    fields += ["rdrop_weight", "loss_weight", "class_weights", "label_smoothing"]
    splits = ["train", "dev", "test"]
    lines = []
    for name in tasks:
        read = {split: decides[f"rows of {name}"].get(split, {}).get("rows", 0) for split in splits}
        used = record.get("used_rows", {}).get(name, {})
        lines.append([name, *(setting_text(decides[f"task {name}"].get(key)) for key in fields)])
        lines[-1] += [describe_count(read[split], used.get(split)) for split in splits]
    shown = [[key, text] for key, value in plain.items() if (text := setting_text(value))]
    document.add(
        "Settings",
        Table(["task", *fields, *(f"{split} rows" for split in splits)], lines) if lines else None,
        Table(["setting", "value"], shown),
    )


def setting_text(value) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting_text(item)}" for key, item in value.items())
    return "" if value is None else str(value)
