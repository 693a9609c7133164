"""The sections of a report on where predictions go wrong: classes, pictures, calibration, thresholds, rows to read."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from ..data.rows import text_columns
from ..evaluation.metrics import score
from ..model.losses import is_labelled
from .analysis import LabelledPredictions, class_scores, digits, rounded, worst
from .document import Document, Picture, Table
from .plots import DISTANCES, PICTURES, distance_shares, length_errors, reliability, to_png
from .probabilities import BINS, COOLEST, HOTTEST, calibration, heated, threshold_score, thresholds
from .rows_to_read import COMPARED_LETTERS, NEAR, NearDuplicates, doubtful_labels, near_duplicates

Parts = Mapping[str, LabelledPredictions]
WORST = 20  # rows shown of each task
DOUBTFUL = 10  # further ones whose labels may be wrong
DUPLICATES = 20
SHOWN_TEXT = 300  # characters of a text
SHOWN_CLASSES = 40  # of a task, those with the most rows
LARGE, DOUBTED = "large error", "label may be wrong"


def picture(name: str, figure: Figure, alt: str) -> Picture:
    """A figure as a block of the document."""
    return Picture(name, to_png(figure), alt)


def add_errors(document: Document, predictions: Parts, fitted: Parts, train: Mapping[str, Dataset]) -> None:
    """Add all sections on errors.

    Args:
        document: the report.
        predictions: {task: predictions beside labels} of the split that is reported.
        fitted: the same of dev, for a report of test: temperatures and thresholds are fitted on them.
        train: {task: clean training rows} of the tasks of which they are at hand.
    """
    fitted = {name: part for name, part in fitted.items() if part.distributions is not None}
    add_classes(document, predictions)
    add_pictures(document, predictions)
    add_distances(document, predictions)
    add_calibration(document, predictions, fitted)
    add_thresholds(document, predictions, fitted)
    add_worst(document, predictions)
    add_duplicates(document, predictions, train)


def add_classes(document: Document, predictions: Parts) -> None:
    """Precision, recall and F1 of each class; nothing where no task has classes."""
    if tables := [table for part in predictions.values() if (table := class_table(part))]:
        document.add(
            "Classes",
            *tables,
            "Precision: of the rows predicted to be of the class, how many are. Recall: of the rows that are, how many "
            "are predicted. F1: their harmonic mean.",
        )


def class_table(part: LabelledPredictions) -> Table | None:
    """The scores of each class of a task, only those with the most rows if there are many, and their means."""
    if not (found := class_scores(part)):
        return None
    shown = sorted(found, key=lambda line: -line.true)[:SHOWN_CLASSES] if len(found) > SHOWN_CLASSES else found
    most = max(line.true for line in found)
    heads = [[line.name, f"{line.true:,}", f"{line.predicted:,}"] for line in shown]
    heads.append([f"mean of {len(found)}", "", ""])
    scores = [*(line[3:] for line in shown), np.mean([line[3:] for line in found], axis=0)]
    lines = [[*head, *(rounded(value, most) for value in row)] for head, row in zip(heads, scores, strict=True)]
    return Table([f"{part.task.name}: class", "true", "predicted", "precision", "recall", "F1"], lines)


def add_pictures(document: Document, predictions: Parts) -> None:
    """Confusion (Figure 3), scatter (Figure 4) and error by length."""
    for key, (title, note, alt, draw) in PICTURES.items():
        parts = [part for part in predictions.values() if part.kind.picture == key]
        pictures = [picture(f"{key}-{part.task.name}", draw(part), alt.format(part.task.name)) for part in parts]
        distances = [part for part in parts if not part.kind.shares]
        if pictures:
            document.add(title, note, error_table(distances) if distances else None, *pictures)
    alt = f"Mean error by length of {', '.join(predictions)}"
    document.add(
        "Error by length",
        "Bins hold about as many rows each; a row's length is that of all its texts. Bars are 95 % intervals: Wilson's "
        "of a share of wrong rows, 1.96 standard errors of a mean.",
        picture("error-by-length", length_errors(list(predictions.values())), alt),
    )


def error_table(parts: list[LabelledPredictions]) -> Table:
    """Mean absolute and root mean squared errors of predicted scores, and of the mean score for every row."""
    lines = []
    for part in parts:
        values = [
            None if guess is None else measure(part.labels, guess)
            for measure in (mean_absolute_error, root_mean_squared_error)
            for guess in (part.predicted, part.kind.baseline(part.labels))
        ]
        lines.append([part.task.name, f"{len(part):,}", *(rounded(value, len(part)) for value in values)])
    columns = ["task", "rows", "mean absolute error (MAE)", "MAE of the mean score"]
    return Table([*columns, "root mean squared error (RMSE)", "RMSE of the mean score"], lines)


def add_distances(document: Document, predictions: Parts) -> None:
    """How far off predictions of scores and ordered classes are; nothing where there are none."""
    if neighbours := [part for part in predictions.values() if part.kind.distance_picture(part.task)]:
        alt = f"Distribution of |predicted - true| of {', '.join(part.task.name for part in neighbours)}"
        shares = picture("distances", distance_shares(neighbours), alt)
        document.add("How far off", shares, *map(neighbour_table, neighbours))


def neighbour_table(part: LabelledPredictions) -> Table:
    """How many of a task's rows are near, off, and further off, by groups of true labels (see `plots.Distances`)."""
    groups, (near, far), names = DISTANCES[part.kind.distance_picture(part.task)].groups(part)
    groups["all"] = np.full(len(part), True)
    distances = part.distances
    steps = [distances <= near, (distances > near) & (distances <= far), distances > far]
    lines = [
        [name, f"{rows.sum():,}", *(f"{100 * step[rows].mean():.{digits(rows.sum()) - 2}f} %" for step in steps)]
        for name, rows in groups.items()
        if rows.any()
    ]
    return Table([f"{part.task.name}: true label", "rows", *names], lines)


def add_calibration(document: Document, predictions: Parts, fitted: Parts) -> None:
    """Calibration before and after a temperature; nothing where there are no probabilities."""
    parts = {name: part for name, part in predictions.items() if part.distributions is not None}
    if not parts:
        return
    lines, drawn = [], {}
    for name, part in parts.items():
        first, (temperature, second) = calibration(*part.distributions), heated(part, fitted.get(name))
        drawn[name] = first, second
        count = len(part.distributions[1])
        line = [name, f"{count:,}", rounded(first.accuracy, count), rounded(first.confidence, count)]
        line += [f"{temperature:.2f}", rounded(first.error, count), rounded(second and second.error, count)]
        lines.append([*line, f"{first.loss:.3f}", f"{second.loss:.3f}" if second else ""])
    columns = ["task", "decisions", "accuracy", "mean confidence", "temperature", "ECE", "ECE with it"]
    where = fit_words("temperature", fitted, parts)
    alt = f"Accuracy over confidence of {', '.join(parts)}, before and after a temperature"
    document.add(
        "Calibration",
        "Confidence is the probability of the most probable class. A model is calibrated if of the decisions with "
        f"confidence p a share p is right. The expected calibration error (ECE) is the mean gap over {BINS} bins of "
        "confidence, 0 at best. A temperature above 1 says that the model is too sure: divide its logits by it.",
        picture("calibration", reliability(drawn), alt),
        Table([*columns, "−ln\u00a0p", "−ln\u00a0p with it"], lines),
        f"The temperature has the lowest mean −ln p of the true class (nats), from {COOLEST:g} to {HOTTEST:g}. {where}",
    )


def fit_words(what: str, fitted: Parts, parts: Parts) -> str:
    """On which rows a temperature or threshold was fitted, and on which it is judged."""
    if parts.keys() <= fitted.keys():
        return f"The {what} was fitted on the dev rows, and is judged on these."
    return (
        f"The {what} was fitted on these rows themselves. So that it is not judged on them, the figures with it are of "
        "halves of the rows, each with what was fitted on the other half."
    )


def add_thresholds(document: Document, predictions: Parts, fitted: Parts) -> None:
    """The thresholds that score best, for tasks whose probabilities are compared with 1/2; nothing where none are."""
    parts = {
        name: part
        for name, part in predictions.items()
        if part.distributions is not None and part.kind.yes(part.probabilities) is not None
    }
    lines, tables = [], []
    for name, part in parts.items():
        other = fitted.get(name)
        chosen = thresholds(other or part)
        labels = part.task.label_names[-len(chosen) :]
        rows = [[label, f"{value:.3f}"] for label, value in zip(labels, chosen, strict=True)]
        values = score(part.task, part.predicted, part.labels), threshold_score(part, other)
        one = rows[0] if len(rows) == 1 else ["each label", "see below"]
        lines.append([name, part.task.metric, *one, *(rounded(value, len(part)) for value in values)])
        if len(rows) > 1:
            tables.append(Table([f"{name}: label", "threshold"], rows))
    if parts:
        document.add(
            "Thresholds",
            "A label is predicted where its probability is above a threshold, usually 1/2. Another one may score "
            f"better, above all with rare labels. {fit_words('threshold', fitted, parts)}",
            Table(["task", "metric", "label", "best threshold", "score as predicted", "score with threshold"], lines),
            *tables,
        )


def add_worst(document: Document, predictions: Parts) -> None:
    """The rows of each task that are furthest from right, and those whose labels may be wrong."""
    lines = [line for part in predictions.values() for line in worst_lines(part)]
    columns = ["task", "true", "predicted", "text", "why", "p(true), or |error|", "id"]
    document.add(
        "Rows worth reading",
        f"Up to {WORST} wrong rows of a task, those first whose true label has the lowest probability, of scores those "
        f"that are furthest off. “{DOUBTED}” is a guess (confident learning): the model predicts another label with at "
        "least the probability that it usually gives to rows of that label. Read them: it may as well be the model "
        "that is wrong.",
        Table(columns, lines, choices=("task", "why")) if lines else "Every row is right.",
    )


def worst_lines(part: LabelledPredictions) -> list[list[str]]:
    """The lines of a task's worst rows."""
    doubtful = doubtful_labels(part)
    order = worst(part)
    more = [row for row in order[WORST:] if doubtful[row]][:DOUBTFUL]
    losses, probable = part.losses, part.probabilities is not None
    lines = []
    for row in [*order[:WORST], *more]:
        last = f"{np.exp(-losses[row]):.4f}" if probable else f"{losses[row]:.2f}"
        text = " / ".join(part.texts[row])
        values = [cut(part.kind.show_beside(part.task, value[row], text)) for value in (part.labels, part.predicted)]
        why = DOUBTED if doubtful[row] else LARGE
        lines.append([part.task.name, *values, " / ".join(map(cut, part.texts[row])), why, last, part.ids[row]])
    return lines


def add_duplicates(document: Document, predictions: Parts, train: Mapping[str, Dataset]) -> None:
    """Rows that are nearly rows of the training split; nothing where no training rows are at hand."""
    lines, counts = [], []
    for name in [name for name in predictions if name in train]:
        found = near_duplicates(predictions[name], train[name])
        numbers = found.compared_train, found.compared, len(found.rows), (found.similarity > 1 - 1e-6).sum()
        counts.append([name, *(f"{number:,}" for number in numbers)])
        lines += duplicate_lines(predictions[name], train[name], found)
    if not counts:
        return
    heads = ["task", "training rows compared", "rows compared", "near-duplicates", "with the same words"]
    columns = ["task", "labels", "similarity", "text", "training text", "label", "training label", "id", "training id"]
    document.add(
        "Near-duplicates in the training rows",
        "What a model has seen in training it may know by heart, and the score is then higher than on new texts. "
        "Two labels for the same words say that one of them is wrong. A near-duplicate has a similarity of "
        f"{NEAR:g} or more: cosine of tf-idf of four letters, of the first {COMPARED_LETTERS} characters; of a "
        "pair, the lower of its two. Of many rows a sample is compared.",
        Table(heads, counts),
        Table(columns, lines, choices=("task", "labels")) if lines else None,
    )


def duplicate_lines(part: LabelledPredictions, train: Dataset, found: NearDuplicates) -> list[list[str]]:
    """The lines of a task's near-duplicates, those with different labels first."""
    lines = []
    for row, number, similarity in zip(found.rows, found.train, found.similarity, strict=True):
        other = train[int(number)]
        text, other_text = " / ".join(part.texts[row]), " / ".join(other[name] for name in text_columns(part.task))
        label, other_label = part.kind.show_beside(part.task, part.labels[row], text), ""
        if known := is_labelled(np.array(other["label"])).any():
            other_label = part.kind.show_beside(part.task, np.array(other["label"]), other_text)
        relation = ("same" if label == other_label else "different") if known else ""
        shown = map(cut, (text, other_text, label, other_label))
        lines.append([part.task.name, relation, f"{similarity:.3f}", *shown, part.ids[row], other["id"]])
    return sorted(lines, key=lambda line: line[1] != "different")[:DUPLICATES]


def cut(text: str) -> str:
    """A text of at most SHOWN_TEXT characters."""
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"
