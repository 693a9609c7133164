"""The sections of a report on where predictions go wrong: classes, pictures, calibration, thresholds, rows to read."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from ..evaluation.metrics import score
from ..model.losses import is_labelled
from .analysis import LabelledPredictions, class_scores, digits, worst
from .document import Document, Picture, Table
from .plots import DISTANCES, PICTURES, distance_shares, length_errors, reliability, to_png
from .probabilities import BINS, COOLEST, HOTTEST, calibration, heated, threshold_score, thresholds
from .rows_to_read import COMPARED_LETTERS, NEAR, NearDuplicates, doubtful_labels, near_duplicates

Parts = Mapping[str, LabelledPredictions]
WORST = 20  # rows of each task that are shown
DOUBTFUL = 10  # more, whose labels may be wrong
DUPLICATES = 20
SHOWN_TEXT = 300  # characters of a text
SHOWN_CLASSES = 40  # of a task, those with the most rows
CONFIDENT, DOUBTED = "confident error", "label may be wrong"


def percent(share: float, rows: int) -> str:
    """A share as a percentage, with the decimals that fit so many rows."""
    return f"{100 * share:.{digits(rows) - 2}f} %"


def picture(name: str, figure: Figure, alt: str) -> Picture:
    """A figure as a block of the document."""
    return Picture(name, to_png(figure), alt)


def add_errors(document: Document, predictions: Parts, fitted: Parts, train: Mapping[str, Dataset]) -> None:
    """All sections on errors.

    Args:
        document: to which they are added.
        predictions: {task: predictions beside labels} of the split that is reported.
        fitted: the same of the tasks whose temperatures and thresholds are fitted on another split, dev.
        train: {task: clean training rows} of the tasks of which they are at hand.
    """
    add_classes(document, predictions)
    add_pictures(document, predictions)
    add_distances(document, predictions)
    add_calibration(document, predictions, fitted)
    add_thresholds(document, predictions, fitted)
    add_worst(document, predictions)
    add_duplicates(document, predictions, train)


def add_classes(document: Document, predictions: Parts) -> None:
    """Precision, recall and F1 of each class; nothing where no task has classes."""
    document.add(
        "Classes",
        *filter(None, map(class_table, predictions.values())),
        "Precision: of the rows predicted to be of the class, how many are. Recall: of the rows that are, how many are "
        "predicted. F1: their harmonic mean."
        if any(map(class_scores, predictions.values()))
        else None,
    )


def class_table(part: LabelledPredictions) -> Table | None:
    """The scores of each class of a task, those of the most rows if there are many, and their means."""
    if not (found := class_scores(part)):
        return None
    shown = sorted(found, key=lambda line: -line.true)[:SHOWN_CLASSES] if len(found) > SHOWN_CLASSES else found
    form = f".{digits(max(line.true for line in found))}f"
    lines = [
        [line.name, f"{line.true:,}", f"{line.predicted:,}", *(f"{value:{form}}" for value in line[3:])]
        for line in shown
    ]
    means = np.mean([line[3:] for line in found], axis=0)
    lines.append([f"mean of {len(found)}", "", "", *(f"{value:{form}}" for value in means)])
    return Table([f"{part.task.name}: class", "true", "predicted", "precision", "recall", "F1"], lines)


def add_pictures(document: Document, predictions: Parts) -> None:
    """Confusion (Figure 3), scatter (Figure 4) and error by length."""
    for key, (title, note, alt, draw) in PICTURES.items():
        parts = [part for part in predictions.values() if part.kind.picture == key]
        pictures = [picture(f"{key}-{part.task.name}", draw(part), alt.format(part.task.name)) for part in parts]
        distances = [part for part in parts if not part.kind.shares]
        if pictures:
            document.add(title, note, error_table(distances) if distances else None, *pictures)
    document.add(
        "Error by length",
        "Bins hold about as many rows each; a row's length is that of all its texts. Bars are 95 % intervals: Wilson's "
        "of a share of wrong rows, 1.96 standard errors of a mean.",
        picture(
            "error-by-length",
            length_errors(list(predictions.values())),
            f"Mean error by length of {', '.join(predictions)}",
        ),
    )


def error_table(parts: list[LabelledPredictions]) -> Table:
    """Mean absolute and root mean squared errors of scores, and of their mean for every row."""
    lines = []
    for part in parts:
        mean = part.kind.baseline(part.labels)
        values = [
            measure(part.labels, guess)
            for measure in (mean_absolute_error, root_mean_squared_error)
            for guess in ((part.predicted, mean) if mean is not None else (part.predicted,))
        ]
        shown = [f"{value:.{digits(len(part))}f}" for value in values]
        lines.append([part.task.name, f"{len(part):,}", *(shown if len(shown) == 4 else [shown[0], "", shown[1], ""])])
    columns = ["task", "rows", "mean absolute error (MAE)", "MAE of the mean score"]
    return Table([*columns, "root mean squared error (RMSE)", "RMSE of the mean score"], lines)


def add_distances(document: Document, predictions: Parts) -> None:
    """How far off predictions are, of scores and of classes that have an order; nothing where there are none."""
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
        [name, f"{rows.sum():,}", *(percent(step[rows].mean(), rows.sum()) for step in steps)]
        for name, rows in groups.items()
        if rows.any()
    ]
    return Table([f"{part.task.name}: true label", "rows", *names], lines)


def add_calibration(document: Document, predictions: Parts, fitted: Parts) -> None:
    """Whether probabilities are what they say, before and after a temperature; nothing where there are none."""
    parts = {name: part for name, part in predictions.items() if part.distributions is not None}
    if not parts:
        return
    before = {name: calibration(*part.distributions) for name, part in parts.items()}
    after = {name: heated(part, usable(fitted.get(name))) for name, part in parts.items()}
    lines = []
    for name, part in parts.items():
        first, (temperature, second) = before[name], after[name]
        count = len(part.distributions[1])
        form = f".{digits(count)}f"
        line = [name, f"{count:,}", f"{first.accuracy:{form}}", f"{first.confidence:{form}}", f"{temperature:.2f}"]
        line += [f"{first.error:{form}}", f"{second.error:{form}}" if second else ""]
        lines.append([*line, f"{first.loss:.3f}", f"{second.loss:.3f}" if second else ""])
    columns = ["task", "decisions", "accuracy", "mean confidence", "temperature", "ECE", "ECE with it"]
    where = fit_words("temperature", fitted, parts)
    document.add(
        "Calibration",
        "Confidence is the probability of the most probable class. A model is calibrated if of the decisions with "
        f"confidence p a share p is right. The expected calibration error (ECE) is the mean gap over {BINS} bins of "
        "confidence, 0 at best. A temperature above 1 says that the model is too sure: divide its logits by it.",
        picture(
            "calibration",
            reliability({name: (before[name], after[name][1]) for name in parts}),
            f"Accuracy over confidence of {', '.join(parts)}, before and after a temperature",
        ),
        Table([*columns, "−ln\u00a0p", "−ln\u00a0p with it"], lines),
        f"The temperature has the lowest mean −ln p of the true class (nats), from {COOLEST:g} to {HOTTEST:g}. {where}",
    )


def usable(part: LabelledPredictions | None) -> LabelledPredictions | None:
    """Predictions to fit on; None without probabilities."""
    return part if part is not None and part.distributions is not None else None


def fit_words(what: str, fitted: Parts, parts: Parts) -> str:
    """On which rows a temperature or threshold was fitted, and on which it is judged."""
    if all(usable(fitted.get(name)) for name in parts):
        return f"The {what} was fitted on the dev rows, and is judged on these."
    return (
        f"The {what} was fitted on these rows themselves. So that it is not judged on them, the figures with it are of "
        "halves of the rows, each with what was fitted on the other half."
    )


def add_thresholds(document: Document, predictions: Parts, fitted: Parts) -> None:
    """Thresholds of yes that score better than 1/2, for tasks that have any."""
    parts = {
        name: part
        for name, part in predictions.items()
        if part.distributions is not None and part.kind.yes(part.probabilities) is not None
    }
    lines, tables = [], []
    for name, part in parts.items():
        other = usable(fitted.get(name))
        chosen, then = thresholds(other or part), threshold_score(part, other)
        names = part.task.label_names[-len(chosen) :]
        form = f".{digits(len(part))}f"
        with_it = "" if then is None else f"{then:{form}}"
        value = f"{chosen[0]:.3f}" if len(chosen) == 1 else "see below"
        lines.append([name, part.task.metric, names[0] if len(chosen) == 1 else "each label", value])
        lines[-1] += [f"{score(part.task, part.predicted, part.labels):{form}}", with_it]
        if len(chosen) > 1:
            rows = [[label, f"{threshold:.3f}"] for label, threshold in zip(names, chosen, strict=True)]
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
    """The rows of each task that are furthest from right, and those whose labels may be wrong, to choose from."""
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
        why = DOUBTED if doubtful[row] else CONFIDENT
        lines.append([part.task.name, *values, " / ".join(map(cut, part.texts[row])), why, last, part.ids[row]])
    return lines


def add_duplicates(document: Document, predictions: Parts, train: Mapping[str, Dataset]) -> None:
    """Rows that are nearly rows of the training split; nothing where no training rows are at hand."""
    lines, counts = [], []
    for name, part in predictions.items():
        if name in train:
            found = near_duplicates(part, train[name])
            same = (found.similarity > 1 - 1e-6).sum()
            numbers = found.compared_train, found.compared, len(found.rows), same
            counts.append([name, *(f"{number:,}" for number in numbers)])
            lines += duplicate_lines(part, train[name], found)
    columns = ["task", "labels", "similarity", "text", "training text", "label", "training label", "id", "training id"]
    if counts:
        document.add(
            "Near-duplicates in the training rows",
            "What a model has seen in training it may know by heart, and the score is then higher than on new texts. "
            "Two labels for the same words say that one of them is wrong. A near-duplicate has a similarity of "
            f"{NEAR:g} or more: cosine of tf-idf of four letters, of the first {COMPARED_LETTERS} characters; of a "
            "pair, the lower of its two. Of many rows a sample is compared.",
            Table(
                ["task", "training rows compared", "rows compared", "near-duplicates", "with the same words"], counts
            ),
            Table(columns, lines, choices=("task", "labels")) if lines else None,
        )


def duplicate_lines(part: LabelledPredictions, train: Dataset, found: NearDuplicates) -> list[list[str]]:
    """The lines of a task's near-duplicates: those with other labels first."""
    texts = [name for name in ("text", "text_pair") if name in train.column_names]
    lines = []
    for row, number, similarity in zip(found.rows, found.train, found.similarity, strict=True):
        other = train[int(number)]
        both = [" / ".join(part.texts[row]), " / ".join(other[name] for name in texts)]
        known = is_labelled(np.array(other["label"])).any()
        values = (part.labels[row], np.array(other["label"])) if known else (part.labels[row],)
        labels = [part.kind.show_beside(part.task, *value) for value in zip(values, both, strict=False)]
        relation = ("same" if labels[0] == labels[1] else "different") if known else ""
        labels = [*labels, ""][:2]
        lines.append([part.task.name, relation, f"{similarity:.3f}", *map(cut, both), *map(cut, labels)])
        lines[-1] += [part.ids[row], other["id"]]
    return sorted(lines, key=lambda line: line[1] != "different")[:DUPLICATES]


def cut(text: str) -> str:
    """A text, or as much of it as is shown."""
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"
