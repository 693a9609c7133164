"""The pictures of reports and searches, as matplotlib figures for pages from 400 px.

A page shows them at most 700 px wide: then one inch is 110 px, and the smallest letters (9 pt) are 14 px high. On a
phone 400 px wide they are 7 px high. The colours are those of Okabe and Ito, and blues for matrices: people who see no
red or green can tell them apart, also when the HTML inverts them on a dark page.
"""

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.metrics import find_metric, span_counts
from ..model.losses import LOSSES
from ..model.tasks import Task
from .analysis import LabelledPredictions, class_scores, confusion, digits, error_by_length
from .probabilities import Calibration

WIDTH = 6.4  # inches
WIDE = 8  # of three panels beside each other
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
TRAIN, DEV, IDENTITY = "#0072B2", "#D55E00", "#D55E00"
# An entry of the log is of the few rows since the one before, so training curves are thin.
TRAIN_LINE = {"label": "train, with dropout", "color": TRAIN, "linewidth": 0.8, "alpha": 0.7}
DEV_LINE = {"label": "dev", "color": DEV, "linewidth": 1.5, "marker": "o", "markersize": 3}
STYLE = {
    "font.size": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 250,  # sharp on screens of two dots a pixel
    "figure.constrained_layout.use": True,
}
SHOWN_STEPS = 300  # steps of the plan that are drawn one by one
MANY_LABELS = 40  # labels that are drawn at most
LETTERS = 50  # that fit beside each other below a matrix
MANY_CLASSES = 12  # beyond these a cell or bar has no room for a number


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG of 200 dots an inch."""
    file = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(file, format="png")
    return file.getvalue()


def loss_label(task: Task) -> str:
    """The name of an axis of a task's loss, with its unit where that is known."""
    unit = getattr(LOSSES[task.loss], "unit", None)
    return f"loss ({unit})" if unit else "loss"


@rc_context(STYLE)
def training_curves(history: Sequence[Mapping], tasks: Mapping[str, Task]) -> Figure:
    """Loss and metric of training and dev rows over the steps, from the entries of `history.jsonl`: a row of panels for
    each task, and one for all (paper, Figure 2)."""
    figure = Figure(figsize=(WIDTH, 1.75 * (len(tasks) + 1) + 0.3))
    axes = figure.subplots(len(tasks) + 1, 2, sharex=True)
    for (left, right), (name, task) in zip(axes, tasks.items(), strict=False):
        draw_curve(left, history, f"loss_{name}", **TRAIN_LINE)
        draw_curve(left, history, f"eval_{name}_loss", **DEV_LINE)
        draw_curve(right, history, f"{task.metric}_{name}", **TRAIN_LINE)
        draw_curve(right, history, f"eval_{name}_{task.metric}", **DEV_LINE)
        left.set(title=fold(f"{name}: loss"), ylabel=loss_label(task))
        metric = find_metric(task)
        right.set(title=fold(f"{name}: {task.metric}") + best_dev(right, metric.greater_is_better), ylabel=metric.unit)
    left, right = axes[-1]
    draw_curve(left, history, "loss", **TRAIN_LINE)
    more = any(key.startswith(("smart_", "bregman_", "rdrop_", "distill_")) for entry in history for key in entry)
    left.set(title=f"all tasks: loss{', with regularisers' * more}", ylabel="loss (mixed units)", xlabel="step")
    if any("eval_overall" in entry for entry in history):
        draw_curve(right, history, "eval_overall", **DEV_LINE)
        right.set(title=f"overall score{best_dev(right)}", ylabel="score (0 to 1)", xlabel="step")
    else:  # a run without evaluations
        right.remove()
        axes[-2, 1].tick_params(labelbottom=True)
        axes[-2, 1].set(xlabel="step")
    count_steps(left)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(handles=lines.values(), loc="outside upper center", ncols=3)
    return figure


@rc_context(STYLE)
def score_intervals(scores: Mapping[str, tuple[str, float, float | None, float | None]]) -> Figure:
    """Scores with their 95 % intervals, for a model card: a panel for each metric.

    Args:
        scores: {task: (metric, score, lower and upper bound or None)}.
    """
    metrics = list(dict.fromkeys(metric for metric, *_ in scores.values()))
    counts = [sum(metric == found for found, *_ in scores.values()) for metric in metrics]
    figure = Figure(figsize=(WIDTH, 0.4 * len(scores) + 0.75 * len(metrics)))
    axes = figure.subplots(len(metrics), 1, squeeze=False, gridspec_kw={"height_ratios": counts})[:, 0]
    for axis, metric in zip(axes, metrics, strict=True):
        names = [name for name, (found, *_) in scores.items() if found == metric]
        for place, name in enumerate(names):
            _, value, low, high = scores[name]
            if low is not None and high is not None:
                axis.plot([low, high], [place, place], color=TRAIN, linewidth=2)
            axis.plot(value, place, "o", color=DEV)
            axis.annotate(f"{value:.3f}", (value, place), xytext=(0, 5), textcoords="offset points", ha="center")
        axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.8))
        axis.set_xlabel(f"{metric}, dev rows")
        axis.margins(x=0.08)
    return figure


def draw_curve(axis: Axes, history: Sequence[Mapping], key: str, **style) -> None:
    """One key of the history over its steps; nothing where no entry has the key."""
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    if points:
        axis.plot(*zip(*points, strict=True), **style)


def best_dev(axis: Axes, highest: bool = True) -> str:
    """Ring the highest point of the dev curve, or the lowest; returns words for the title, or ""."""
    for line in axis.lines:
        if line.get_label() == DEV_LINE["label"]:
            step, value = (max if highest else min)(line.get_xydata(), key=lambda point: point[1])
            axis.plot(step, value, "o", color=DEV, markersize=8, fillstyle="none", label="best on dev")
            return f"\nbest on dev {value:.3f} at step {step:,.0f}"
    return ""


def fold(title: str, width: float = WIDTH / 2) -> str:
    """A title in lines that fit above axes so many inches wide."""
    return textwrap.fill(title, int(10 * width))


@rc_context(STYLE)
def compared_curves(histories: Mapping[str, Sequence[Mapping]], tasks: Mapping[str, Task]) -> Figure:
    """Dev loss and metric of two runs over the steps: a row of panels for each task, and the overall score last.

    Args:
        histories: {name of the run: the entries of its `history.jsonl`}.
        tasks: {name: task} of the tasks that both have.
    """
    figure = Figure(figsize=(WIDTH, 1.7 * (len(tasks) + 1) + 0.3))
    axes = figure.subplots(len(tasks) + 1, 2, sharex=True)

    def draw(axis: Axes, key: str) -> None:
        """Both runs' curves of a key."""
        for (run, history), color, marker in zip(histories.items(), (TRAIN, DEV), "os", strict=True):
            draw_curve(axis, history, key, label=run, color=color, marker=marker, markersize=4)

    for (left, right), (name, task) in zip(axes, tasks.items(), strict=False):
        draw(left, f"eval_{name}_loss")
        draw(right, f"eval_{name}_{task.metric}")
        left.set(title=fold(f"{name}: dev loss"), ylabel=loss_label(task))
        right.set(title=fold(f"{name}: dev {task.metric}"), ylabel=find_metric(task).unit)
    draw(axes[-1][1], "eval_overall")
    axes[-1][0].axis("off")
    axes[-2][0].tick_params(labelbottom=True)
    axes[-1][1].set(title="overall dev score", ylabel="score (0 to 1)", xlabel="step")
    count_steps(axes[-1][1])
    figure.legend(handles=axes[-1][1].lines, loc="outside upper center", ncols=4)
    return figure


@rc_context(STYLE)
def reliability(parts: Mapping[str, tuple[Calibration, Calibration | None]]) -> Figure:
    """Accuracy over confidence, in bins, before and after a temperature: a panel for each task."""
    figure, axes = panels(len(parts))
    for axis, (name, both) in zip(axes, parts.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", label="calibrated")
        styles = (TRAIN, "o", "as it is"), (DEV, "s", "with temperature")
        for found, (colour, marker, label) in zip(both, styles, strict=True):
            if found is not None:
                confidence, accuracy, counts = found.bins
                axis.plot(confidence, accuracy, color=colour, linewidth=0.8, label=label)
                axis.scatter(confidence, accuracy, 15 + 150 * counts / counts.sum(), color=colour, marker=marker)
        axis.set(title=fold(name), xlabel="confidence", ylabel="share right", xlim=(0, 1.04), ylim=(0, 1.04))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@rc_context(STYLE)
def confusion_matrix(predictions: LabelledPredictions) -> Figure:
    """The percentage and number of each true class's rows by predicted class. A column is a true class and sums to 100
    (paper, Figure 3)."""
    names, percent = predictions.task.label_names, confusion(predictions)
    counts = [int((predictions.labels == index).sum()) for index in range(len(names))]
    below = [textwrap.fill(name, max(8, LETTERS // len(names)), break_long_words=False) for name in names]
    crowded = sum(max(map(len, name.split("\n"))) for name in below) > LETTERS
    figure = Figure(figsize=(WIDTH, min(2.6 + 0.75 * len(names), WIDTH) + 0.08 * crowded * max(map(len, names))))
    axis = figure.subplots()
    image = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axis.set(title=fold(f"{predictions.task.name}: {len(predictions):,} rows", WIDTH), xlabel="true label (rows)")
    axis.set_ylabel("predicted label")
    gap, below = (" ", names) if crowded else ("\n", below)
    ticks = [f"{name}{gap}({count:,})" for name, count in zip(below, counts, strict=True)]
    axis.set_xticks(range(len(names)), ticks, rotation=90 if crowded else 0)
    axis.set_yticks(range(len(names)), names)
    axis.spines[:].set_visible(False)
    if len(names) <= MANY_CLASSES:
        for (row, column), value in np.ndenumerate(percent):
            rows = round(value / 100 * counts[column])
            shown = f"{value:.{1 if counts[column] >= 1000 else 0}f} %\n{rows:,}"
            axis.text(column, row, shown, ha="center", va="center", color="white" if value > 60 else "black")
    figure.colorbar(image, label="share of the true label's rows (%)")
    return figure


@rc_context(STYLE)
def scatter(predictions: LabelledPredictions) -> Figure:
    """Predicted over true scores, with the line on which they are equal (paper, Figure 4)."""
    low, high = score_span(predictions)
    figure = Figure(figsize=(WIDTH, 6))
    axis = figure.subplots()
    # The more points, the fainter each is.
    faint = float(np.clip(300 / len(predictions), 0.05, 0.6))
    axis.scatter(predictions.labels, predictions.predicted, s=14, alpha=faint, color=TRAIN, linewidths=0, label="a row")
    axis.plot([low, high], [low, high], color=IDENTITY, label="predicted = true")
    axis.set(title=fold(f"{predictions.task.name}: {len(predictions):,} rows", WIDTH), aspect="equal")
    axis.set(xlabel=f"true score ({low:g} to {high:g})", ylabel=f"predicted score ({low:g} to {high:g})")
    for handle in axis.legend(loc="upper left").legend_handles:
        handle.set_alpha(1)
    return figure


@rc_context(STYLE)
def label_bars(predictions: LabelledPredictions) -> Figure:
    """Precision, recall and F1 of each label; of many labels, those with the most rows."""
    labels = class_scores(predictions)
    shown = [label for label in labels if label in sorted(labels, key=lambda label: -label.true)[:MANY_LABELS]]
    figure = Figure(figsize=(WIDTH, 1.4 + 0.4 * len(shown)))
    axis = figure.subplots()
    places = np.arange(len(shown))
    for number, name in enumerate(["precision", "recall", "F1"]):
        values = [getattr(label, name.lower()) for label in shown]
        axis.barh(places + 0.27 * (number - 1), values, 0.25, color=(TRAIN, "#56B4E9", DEV)[number], label=name)
    axis.set_yticks(places, [f"{label.name} ({label.true:,})" for label in shown])
    axis.invert_yaxis()
    of = f", the {len(shown)} most frequent of {len(labels)} labels" * (len(shown) < len(labels))
    axis.set(title=fold(f"{predictions.task.name}: {len(predictions):,} rows{of}", WIDTH), xlim=(0, 1))
    axis.set(xlabel="precision, recall and F1", ylabel="label (true rows)")
    figure.legend(loc="outside upper right", ncols=3)
    return figure


@rc_context(STYLE)
def tag_scores(predictions: LabelledPredictions) -> Figure:
    """The F1 of each type of entity, or of each tag where words are scored."""
    counts = span_counts(predictions.task, predictions.predicted, predictions.labels)
    scores = [2 * right / (predicted + true) for right, predicted, true in counts.values()]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.3 * len(counts)))
    axis = figure.subplots()
    bars = axis.barh(range(len(counts)), scores, color=TRAIN)
    axis.bar_label(bars, fmt=f"%.{digits(len(predictions))}f", fontsize=9, padding=3)
    axis.set_yticks(range(len(counts)), [f"{name} ({true:,})" for name, (_, _, true) in counts.items()])
    axis.set(title=fold(f"{predictions.task.name}: {len(predictions):,} rows", WIDTH), xlim=(0, 1.1), xlabel="F1")
    axis.invert_yaxis()
    return figure


@rc_context(STYLE)
def length_errors(predictions: Sequence[LabelledPredictions]) -> Figure:
    """Mean error of rows by length, with 95 % intervals: a panel for each task."""
    figure, axes = panels(len(predictions))
    for axis, part in zip(axes, predictions, strict=True):
        shares = part.kind.shares
        bins = error_by_length(part)
        factor = 100 if shares else 1
        means = factor * np.array([bin.error for bin in bins])
        places = range(len(bins))
        below_above = np.abs(means[:, 1:] - means[:, :1]).T
        axis.errorbar(places, means[:, 0], below_above, fmt="o", color=TRAIN, capsize=3)
        axis.set_xticks(places, [f"{bin.low}–{bin.high}" if bin.low < bin.high else f"{bin.low}" for bin in bins])
        axis.set(title=fold(part.task.name), xlabel=f"length (words), about {len(part) // len(bins):,} rows a bin")
        axis.set(ylabel="wrong rows (%)" if shares else "mean |predicted − true|")
        axis.margins(x=0.1)
        axis.set_ylim(0, 1.1 * np.nanmax([*means.flat, 1e-9]))  # bounds are nan in a bin of one score
    return figure


@rc_context(STYLE)
def distance_shares(predictions: Sequence[LabelledPredictions]) -> Figure:
    """How far off predictions are, in classes or in the score's units: a panel for each task."""
    figure, axes = panels(len(predictions))
    for axis, part in zip(axes, predictions, strict=True):
        weights = np.full(len(part), 100 / len(part))
        DISTANCES[part.kind.distance_picture(part.task)].draw(axis, part, weights)
        axis.set(title=fold(part.task.name), ylabel="rows (%)")
    return figure


class Distances(NamedTuple):
    """How to show how far off predictions of a kind are.

    Attributes:
        draw: (axes, predictions, weight of each row (N,)) -> None.
        groups: predictions -> {name: which rows (N,)} by their true labels; the distances up to which a prediction is
            near, and not far; and the names of these three steps.
    """

    draw: Callable[[Axes, LabelledPredictions, np.ndarray], None]
    groups: Callable[[LabelledPredictions], tuple[dict[str, np.ndarray], tuple[float, float], list[str]]]


def draw_classes(axis: Axes, part: LabelledPredictions, weights: np.ndarray) -> None:
    """A bar for each number of classes."""
    classes = range(len(part.task.label_names))
    bars = axis.bar(classes, np.bincount(part.distances, weights, minlength=len(classes)), color=TRAIN)
    if len(classes) <= MANY_CLASSES:
        axis.bar_label(bars, fmt="%.1f", fontsize=9)
        axis.margins(y=0.12)  # room for the labels
    axis.set_xlabel("|predicted − true| (classes; 0 is right)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def group_classes(part: LabelledPredictions) -> tuple[dict[str, np.ndarray], tuple[float, float], list[str]]:
    """Right, off by one class, and further off, by true label."""
    groups = {name: part.labels == label for label, name in enumerate(part.task.label_names)}
    return groups, (0, 1), ["right", "off by one", "further off"]


def draw_scores(axis: Axes, part: LabelledPredictions, weights: np.ndarray) -> None:
    """A histogram over the range of the scores."""
    low, high = score_span(part)
    axis.hist(part.distances, np.linspace(0, high - low, 21), weights=weights, color=TRAIN)
    axis.set_xlabel("|predicted − true| (score)")


def group_scores(part: LabelledPredictions) -> tuple[dict[str, np.ndarray], tuple[float, float], list[str]]:
    """Off by up to a tenth of the range, up to a fifth, and more, by fifths of the range."""
    edges = np.linspace(*score_span(part), 6)
    number = np.digitize(part.labels, edges[1:-1])
    groups = {f"{edges[k]:g} to {edges[k + 1]:g}": number == k for k in range(5)}
    near, far = (edges[1] - edges[0]) / 2, edges[1] - edges[0]
    return groups, (near, far), [f"off by up to {near:g}", f"{near:g} to {far:g}", f"more than {far:g}"]


def score_span(part: LabelledPredictions) -> tuple[float, float]:
    """The lowest and highest score of a task; without a range, those among labels and predictions."""
    if part.task.score_range:
        return part.task.score_range
    values = np.concatenate([part.labels, part.predicted])
    return float(values.min()), float(values.max())


PICTURES: dict[str, tuple[str, str | None, str, Callable[[LabelledPredictions], Figure]]] = {
    "confusion": (
        "Confusion",
        "Each true label is a column, which sums to 100 %.",
        "Confusion matrix of {}: percent of each true label's rows by predicted label",
        confusion_matrix,
    ),
    "scatter": (
        "Predicted and true scores",
        None,
        "Predicted over true scores of {}, with the line on which they are equal",
        scatter,
    ),
    "labels": (
        "Labels",
        "Precision is the share of a label's predictions that are right, recall the share of its true rows that are "
        "found; F1 is their harmonic mean.",
        "Precision, recall and F1 of each label of {}",
        label_bars,
    ),
    "tags": (
        "F1 by tag",
        "Of types of entities where the metric is entity_f1, and else of tags; in brackets how many are true.",
        "F1 of each type or tag of {}",
        tag_scores,
    ),
}
"""{key that a kind of task names: (heading, note below it, what the picture shows, its function)}."""
DISTANCES = {"classes": Distances(draw_classes, group_classes), "scores": Distances(draw_scores, group_scores)}
"""{key that a kind of task names: how far off its predictions are}."""


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, two in a row."""
    rows = -(-count // 2)
    figure = Figure(figsize=(WIDTH, 2.8 * rows))
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


@rc_context(STYLE)
def gradient_cosines(history: Sequence[Mapping], tasks: Sequence[str]) -> Figure:
    """The cosines between the gradients of tasks or groups over the steps, from the entries of `history.jsonl`; dashed,
    between two batches of one task."""
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.subplots()
    for number, (first, second) in enumerate(combinations_with_replacement(tasks, 2)):
        style = {"linestyle": "--" if first == second else "-", "color": COLOURS[number % len(COLOURS)]}
        draw_curve(axes, history, f"cosine_{first}_{second}", label=f"{first}, {second}", **style)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="step", ylabel="cosine (-1 to 1)", title="gradients on the shared encoder")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@rc_context(STYLE)
def task_order(plan: Sequence[str], tasks: Sequence[str]) -> Figure:
    """The task of each of the first steps of a plan, and the tasks' shares of steps over the whole plan."""
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(tasks)}
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(tasks) + 2.4))
    top, bottom = figure.subplots(2, 1, height_ratios=[0.3 + 0.3 * len(tasks), 2.4])
    shown = plan[:SHOWN_STEPS]
    for row, name in enumerate(tasks):
        steps = [(step + 0.5, 1) for step, task in enumerate(shown) if task == name]  # (left edge, width)
        top.broken_barh(steps, (row - 0.4, 0.8), color=colours[name], linewidth=0, antialiased=False)
    top.set_yticks(range(len(tasks)), tasks)
    top.set(xlim=(0.5, len(shown) + 0.5), xlabel="step", ylim=(len(tasks) - 0.5, -0.5))
    top.set_title("every step" if len(shown) == len(plan) else f"the first {SHOWN_STEPS} of {len(plan):,} steps")
    bars = min(50, -(-len(plan) // 10))
    edges = np.linspace(0, len(plan), bars + 1).round().astype(int)
    counts = [Counter(plan[start:end]) for start, end in zip(edges, edges[1:], strict=False)]
    widths, floor = np.diff(edges), np.zeros(len(counts))
    for name in tasks:
        share = 100 * np.array([count[name] for count in counts]) / widths
        bottom.bar(edges[:-1] + 0.5, share, widths, floor, align="edge", color=colours[name], label=name)
        floor += share
    bottom.set(xlim=(0.5, len(plan) + 0.5), ylim=(0, 100), xlabel="step", ylabel="share of steps (%)")
    bottom.set_title(f"the whole plan, about {round(len(plan) / bars):,} steps a bar")
    figure.legend(handles=bottom.containers, loc="outside lower center", ncols=3)
    for axis in (top, bottom):
        count_steps(axis)
    return figure


@rc_context(STYLE)
def search_overview(
    trials: Sequence[Mapping],
    space: Mapping[str, dict | list],
    importances: Mapping[str, float],
    metric: str,
    highest: bool = True,
) -> Figure:
    """A hyperparameter search: the score of each trial, the importance of each setting, and scores over its values.

    Args:
        trials: in order, each with `trial` (its number), `state` (complete or pruned), `score`, and its settings.
        space: {setting: its range or choices}.
        importances: {setting: its share of the variance that they explain}; empty where trials are too few to say.
        metric: what the score is.
        highest: whether the best score is the highest, or the lowest.
    """
    trials = [trial for trial in trials if np.isfinite(trial["score"])]  # diverged ones have no place
    lines = -(-len(space) // 3)
    figure = Figure(figsize=(WIDE, 3 + 2.2 * lines))
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2.2 * lines])
    history, bars = top.subplots(1, 2)
    draw_trials(history, trials, [trial["trial"] for trial in trials], highest)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = (np.maximum if highest else np.minimum).accumulate([trial["score"] for trial in complete])
    numbers = [trial["trial"] for trial in complete]
    history.step(numbers, best, where="post", color=TRAIN, linewidth=0.8, label="best so far")
    history.set(title="the trials, one after the other", xlabel="trial", ylabel=metric)
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = sorted(importances, key=importances.get)
    drawn = bars.barh(names, [100 * importances[name] for name in names], color=TRAIN)
    bars.bar_label(drawn, fmt="%.0f", padding=2, fontsize=9)
    bars.set(title=f"what mattered, by {len(complete)} whole trials", xlabel="share of the explained variance (%)")
    if not importances:
        bars.set(xticks=[], yticks=[])
        bars.text(0.5, 0.5, "too few whole trials to say", ha="center", va="center", transform=bars.transAxes)
    axes = list(bottom.subplots(lines, 3, sharey=True, squeeze=False).flat)
    for axis, (name, values) in zip(axes, space.items(), strict=False):
        axis.set(xlabel=name, ylabel=metric if axis.get_subplotspec().is_first_col() else "")
        if isinstance(values, list):
            draw_trials(axis, trials, [values.index(trial[name]) for trial in trials], highest)
            ticks = [f"{value:g}" if isinstance(value, float) else value for value in values]
            axis.set_xticks(range(len(values)), ticks)
            axis.set_xlim(-0.5, len(values) - 0.5)
        else:
            draw_trials(axis, trials, [trial[name] for trial in trials], highest)
            axis.set_xscale("log" if values["log"] else "linear")
    for axis in axes[len(space) :]:
        axis.remove()
    figure.legend(*history.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def draw_trials(axis: Axes, trials: Sequence[Mapping], places: Sequence[float], highest: bool) -> None:
    """Each trial's score at its place, with a ring around the best complete one."""
    points = {"complete": [], "pruned": []}
    for place, trial in zip(places, trials, strict=True):
        points[trial["state"]].append((place, trial["score"]))
    for (state, found), marker, color in zip(points.items(), "ox", (TRAIN, DEV), strict=True):
        if found:
            axis.scatter(*zip(*found, strict=True), s=22, label=f"{state} trial", marker=marker, color=color)
    if points["complete"]:
        place, score = (max if highest else min)(points["complete"], key=lambda point: point[1])
        axis.plot(place, score, "o", color=DEV, markersize=10, fillstyle="none", label="best trial")


def count_steps(axis: Axes) -> None:
    """Whole numbers below an axis of steps, with a comma between thousands."""
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")
