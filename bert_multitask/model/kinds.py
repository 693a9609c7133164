"""What a kind of task means: the one place that knows a kind by name.

A kind is one object in KINDS. It says which heads, losses, divergences and metrics fit, what a label is, and how logits
become predictions, tables, votes and pictures. A new kind is one subclass of `Kind`, or of one of those here, and one
entry: `KINDS["ranking"] = Ranking()`. Metrics and pictures are named by their keys in `metrics.METRICS` and
`plots.PICTURES`: this file lies beside a checkpoint's weights, where neither package need be installed.

Shapes: B or N rows, C classes, L tokens, W words. A method that overrides another has a docstring only where it adds
to that one's.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .losses import LOSSES, no_label, soft_divergence

if TYPE_CHECKING:
    from .tasks import Task

LARGEST_SCORE = float(np.finfo(np.float32).max)  # labels are fp32
BITS = {0: 0, 1: 1, "0": 0, "1": 1}  # also of 1.0 and True, which equal 1
SEPARATOR = "|"  # between the names of several labels in one field of a table


class Kind:
    """A kind of task. What is written here holds where a label is one or more classes, which have names.

    Attributes:
        keys: {"head", "loss", "divergence", "metric": the keys of their tables that fit a task, the default first}.
            Of heads the default is the first that reads as many sequences as the task has. A metric has the name that
            a task gives it, and its key in METRICS.
        classes: how many label names a task has, the fewest and the most (None: any number). None, it has none, and may
            have a score range.
        weighted: whether a task may have class weights and label smoothing.
        dtype: of labels, "int64" or "float32"; the mark of a missing one follows from it (see `losses.no_label`).
        nested: whether the label of a row is a list. Integers may be lists of different lengths, which are filled up
            with the mark of a missing label; lists of float are of one length.
        words: whether a text is words, set apart by white space, and the label of a row has a class for each of them.
        decision: the column of a prediction table that is scored.
        shares: whether `errors` are 1 or 0 a row, and not distances.
        picture: key of the report's picture of the errors in `plots.PICTURES`; None, there is none.
        decoded: Python that decodes the `logits` of one row, with the task's label `names`, for the model card.
        view: key of how the demo shows an answer in `demo_page.VIEWS`; None, as JSON.
        orderable: whether a task may say that its classes are `ordered`.
        soft: the column of a teacher's prediction table that a model can learn from; None, there is none.
        pipeline: of Transformers, that takes an exported model.
        problem_type: `config.problem_type` of stock classes of Transformers; None, they need none.
    """

    keys: Mapping[str, Sequence[str] | Mapping[str, str]]
    classes: tuple[int, int | None] | None = (2, None)
    weighted = True
    dtype = "int64"
    nested = False
    words = False
    decision = "label"
    shares = True
    picture: str | None = None
    decoded = "logits.tolist()"
    view: str | None = None
    orderable = False
    soft: str | None = None
    pipeline = "text-classification"
    problem_type: str | None = None

    @property
    def missing(self) -> int | float:
        """The mark of a missing label, or of one that is missing in a list."""
        return no_label(self.dtype == "float32")

    # What a task says.

    @property
    def refused(self) -> dict[str, str]:
        """{field that no task of this kind has: why not}."""
        unweighted = "has no classes" if self.classes is None else "gives all labels the same weight"
        # Field -> whether a task may have it, and why not.
        allowed = {
            "label_names": (self.classes is not None, "has no label_names; it may have score_range: [lowest, highest]"),
            "score_range": (self.classes is None, "has label_names, not scores"),
            "class_weights": (self.weighted, unweighted),
            "label_smoothing": (self.weighted, unweighted),
            "distill_from": (self.soft is not None, "cannot learn from a teacher"),
            "prediction_column": (not self.nested, "has lists, and the course's form holds one value a row"),
            "text_pair": (not self.words, "tags the words of one text"),
        }
        return {field: why for field, (fits, why) in allowed.items() if not fits}

    def check_task(self, task: "Task", where: str) -> None:
        """Check that the fields of a task fit its kind.

        Raises:
            InputError: one does not; the message names it.
        """
        names, a_task = task.label_names or (), f"a task of kind {task.kind!r}"
        for field, why in self.refused.items():
            if (value := getattr(task, field)) not in (None, 0):
                shown = list(value) if isinstance(value, tuple) else value
                raise InputError(f"{where}: {field} is {shown!r}; {a_task} {why}; leave {field} out")
        if task.ordered and not (self.orderable and len(names) > 2):
            raise InputError(
                f"{where}: ordered is of a task with one of three or more label_names a row, from the lowest to the "
                f"highest; it is {a_task} with {len(names)}, so leave it out"
            )
        span = task.score_range
        if span is not None and (len(span) != 2 or not span[0] < span[1]):
            raise InputError(f"{where}: score_range is {list(task.score_range)}; expected [lowest, highest]")
        if self.classes is None or task.is_open:
            return
        fewest, most = self.classes
        if len(names) < fewest or len(names) > (most or len(names)):
            count = {1: "one", 2: "two"}.get(fewest, str(fewest)) + " or more" * (most != fewest)
            raise InputError(f"{where}: {a_task} needs {count} label_names; it has {len(names)}")

    # Texts and labels.

    def align(self, label: Any, text: str, where: str) -> Any:
        """The label of a row, completed by what its text says; `where` names the row in messages.

        Raises:
            InputError: the label does not fit the text.
        """
        return label

    def read(self, task: "Task", raw: object, read_one: Callable) -> Any:
        """A label as its source gives it -> as the task has it; None if it cannot be read.

        Args:
            raw: a text, a number, None, or what else the source has.
            read_one: reads a single name, number or score: gives a class, a score, the mark of a missing one, or None
                if it is none of these (see `labels.LabelReader`).
        """
        return read_one(raw)

    def parts(self, raw: object) -> Sequence:
        """The single names or numbers in a label as its source gives it."""
        return [raw]

    def vector(self, raw: object) -> tuple[int, ...] | None:
        """A label as its source gives it, if it may be meant as a 0 or 1 for each of two label names and not as the
        numbers of those that apply; None of any other."""
        return None

    def order_names(self, names: Sequence[str], where: str) -> Sequence[str]:
        """The names that labels have, sorted, in the order of classes; `where` says whose they are.

        Raises:
            InputError: the order cannot be seen from the names.
        """
        return names

    def number(self, task: "Task", value: float) -> float | None:
        """The label that a number stands for if it names no class, such as a score; None if it is no label."""
        return None

    def describe_labels(self, task: "Task", names: Sequence[str] | None = None, numbers: bool = True) -> str:
        """What a label may be, for messages.

        Args:
            names: of the classes in this source. By default it is a label of clean or tokenised rows, with the task's
                names.
            numbers: whether the numbers of the classes are labels, too.
        """
        if names is None:
            return f"a class from 0 to {len(task.label_names) - 1} ({', '.join(task.label_names)})"
        codes = f" (or its number, from 0 to {len(names) - 1})" if numbers else ""
        return f"one of {', '.join(names)}{codes}"

    def are_labels(self, task: "Task", values: np.ndarray) -> np.ndarray:
        """Which numbers, float64 (…), may stand in a label of the task, or mark a missing one: truth values (…)."""
        return np.isin(values, [*range(len(task.label_names)), self.missing])

    def width(self, task: "Task") -> int | None:
        """Length of the list that a label is; None if labels are no lists, or lists of different lengths."""
        return None

    # Logits.

    def outputs(self, task: "Task") -> int:
        """How many numbers the head gives for a row, or for a token; where it is 1, logits have no axis for it."""
        return len(task.label_names)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Logits, float (B, …) -> predictions, of the form of labels."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor | None:
        """Logits -> the probability of each class, with one more axis where logits have none for it; None where a
        prediction has no probability."""
        return None

    def distil(self, task: "Task", logits: Tensor, soft: Tensor) -> Tensor:
        """How far logits (B, …) are from a teacher's predictions, the values of the column `soft`: a scalar, the mean
        over the rows, at least fp32."""
        raise NotImplementedError

    def evidence(self, task: "Task", logits: Tensor) -> Tensor | None:
        """How sure the answer is, as one number a row: logits, float (B, …) -> (B,). How it changes by a word says
        what the word did for the answer. None, there is no such number."""
        return None

    def stock_logits(self, task: "Task", logits: Tensor) -> Tensor:
        """Logits as a stock classifier gives them, float (B, C), or (B, 1)."""
        return logits

    def stock_layer(self, task: "Task", weight: Tensor, bias: Tensor, squashed: bool) -> tuple[Tensor, Tensor]:
        """A linear head, weight (outputs, H) and bias (outputs,), as a stock classifier's layer. `squashed`: the head
        goes on with a sigmoid, which then is left to whoever uses the classifier."""
        return weight, bias

    def export_note(self, task: "Task") -> str | None:
        """What to know about the output of an exported classifier."""
        return None

    def describe_output(self, task: "Task") -> str:
        """What a prediction is, for the model card."""
        return ", ".join(task.label_names)

    def task_type(self, task: "Task") -> str:
        """What the Hub calls such a task, for the model card."""
        return self.pipeline

    # Prediction tables.

    def columns(self, task: "Task") -> dict[str, tuple[Callable[[object], bool], str]]:
        """{column: (whether a value is right, what is expected)} of a prediction table besides `id`. `decision` is the
        first; the others may be missing."""
        raise NotImplementedError

    def table(self, task: "Task", logits: np.ndarray, tokens: Any = None) -> dict[str, Any]:
        """Predictions as the values of `columns`, N of each.

        Args:
            logits: fp32 (N, …), all finite; of tokens, filled up beyond the end of a row.
            tokens: the tokenised rows, where they are at hand, for kinds whose table does not have a row's logits as
                they are.
        """
        columns = {self.decision: self.decide(logits)}
        probabilities = self.probabilities(torch.from_numpy(logits))
        return columns if probabilities is None else columns | {"probabilities": probabilities.tolist()}

    def plain(self, task: "Task", columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """The columns of a prediction table as a CSV file shows them."""
        return dict(columns)

    def answers(self, task: "Task", columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """The columns of a prediction table as Python shows them: labels by name, `probabilities` as {name: one}."""
        shown = dict(columns)
        if "probabilities" in shown:
            shown["probabilities"] = [dict(zip(task.label_names, row, strict=True)) for row in shown["probabilities"]]
        return shown

    def read_written(self, task: "Task", text: str, read_one: Callable) -> Any:
        """A prediction as a file shows it, by `plain` or in the course's form; None where it is none (see `read`)."""
        return self.read(task, text, read_one)

    def arrays(self, task: "Task", columns: Mapping[str, list]) -> dict[str, np.ndarray]:
        """Columns of a prediction table as arrays; `decision` is of the form of labels, (N,) or (N, …)."""
        return {name: np.array(values) for name, values in columns.items()}

    def lists(self, task: "Task", arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """`arrays` as columns of a prediction table."""
        return {name: values.tolist() if values.ndim > 1 else values for name, values in arrays.items()}

    def combine(self, task: "Task", members: Sequence[Mapping[str, np.ndarray]], vote: str) -> dict[str, np.ndarray]:
        """The prediction of several models, M of them (paper, section 4.6).

        Args:
            members: their predictions of the same rows, as `arrays` gives them.
            vote: "mode" or "soft".

        Raises:
            InputError: a soft vote, and a member has no probabilities.
        """
        raise NotImplementedError

    # Errors, for reports. Labels and predictions are arrays, (N,) or (N, …).

    def scored(self, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which labels are known and predicted: truth values of the same shape."""
        return (labels != self.missing) & (predicted != self.missing)

    def errors(self, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,): 1 where a prediction is wrong and 0 where it is right; or how far off it is (see `shares`)."""
        distances = self.distances(predicted, labels)
        return (distances > 0).astype(float) if self.shares else distances

    def distances(self, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,): how far off predictions are, or how many of a row's list are wrong."""
        if self.nested:
            return ((predicted != labels) & self.scored(predicted, labels)).sum(-1)
        return np.abs(predicted - labels)

    def losses(self, predicted: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        """(N,): -ln of the probability of the true label, in nats; without probabilities, `distances`."""
        return self.distances(predicted, labels)

    def distance_picture(self, task: "Task") -> str | None:
        """Key in `plots.DISTANCES` of the picture of `distances`; None where no prediction can be nearly right."""
        return "classes" if task.ordered else None

    def baseline(self, labels: np.ndarray) -> np.ndarray | None:
        """What one would predict for every row without a look at its text, of the form of the labels; None, nothing."""
        return None

    def flags(self, task: "Task", predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Which classes are predicted, and which are true: truth values (M, C) and (M, C) of the M decisions that can
        be scored; None where there are no classes."""
        return None

    def distributions(self, labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The M decisions between classes of which one is true: their probabilities, which sum to 1, (M, classes), and
        the number of the true one (M,); None where a prediction has no probability."""
        return None

    def yes(self, probabilities: np.ndarray) -> np.ndarray | None:
        """The probabilities that are compared with a threshold (N, K); a prediction is 1 where they are above, and is
        of the form of labels when it is reshaped. None where there is no threshold. They are of the last K names."""
        return None

    def show(self, task: "Task", value: Any) -> str:
        """A label or prediction as text."""
        return task.label_names[int(value)]

    def show_beside(self, task: "Task", value: Any, text: str) -> str:
        """A label or prediction as text, for a table that shows the row's text beside it."""
        return self.show(task, value)


class Classification(Kind):
    """One of several labels. Logits are unnormalised class scores (B, C), labels classes (B,)."""

    keys = {
        "head": ("linear", "two_layer"),
        "loss": ("cross_entropy",),
        "divergence": ("symmetric_kl",),
        "metric": {"accuracy": "accuracy", "f1": "macro_f1", "macro_f1": "macro_f1", "matthews": "matthews"},
    }
    picture = "confusion"
    decoded = "names[logits.argmax()], dict(zip(names, logits.softmax(-1).tolist()))"
    view = "bars"
    orderable = True
    soft = "probabilities"
    problem_type: str | None = "single_label_classification"

    def distil(self, task: "Task", logits: Tensor, soft: Tensor) -> Tensor:
        """`soft_divergence` of the classes."""
        return soft_divergence(self.stock_logits(task, logits), soft, task.distill_temperature).mean()

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def evidence(self, task: "Task", logits: Tensor) -> Tensor | None:
        """The log odds of the most likely class."""
        logits = self.stock_logits(task, logits)
        chosen = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
        return logits[chosen] - logits.masked_fill(chosen, -math.inf).logsumexp(-1)

    def columns(self, task: "Task") -> dict[str, tuple[Callable[[object], bool], str]]:
        """`label`, the class, and `probabilities` of all of them."""
        count = len(task.label_names)
        return {
            "label": (lambda value: type(value) is int and 0 <= value < count, f"a class from 0 to {count - 1}"),
            "probabilities": (lambda value: is_distribution(value, count), f"{count} probabilities that sum to 1"),
        }

    def plain(self, task: "Task", columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """The label's name, and its probability where there is one."""
        labels = columns["label"]
        shown: dict[str, Sequence] = {"label": [task.label_names[label] for label in labels]}
        if "probabilities" in columns:
            shown["probability"] = [p[label] for p, label in zip(columns["probabilities"], labels, strict=True)]
        return shown

    def answers(self, task: "Task", columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        return super().answers(task, columns) | {"label": self.plain(task, columns)["label"]}

    def arrays(self, task: "Task", columns: Mapping[str, list]) -> dict[str, np.ndarray]:
        """`label` (N,) and `probabilities` (N, C)."""
        arrays = super().arrays(task, columns)
        if "probabilities" in arrays:
            arrays["probabilities"] = arrays["probabilities"].reshape(-1, len(task.label_names))
        return arrays

    def combine(self, task: "Task", members: Sequence[Mapping[str, np.ndarray]], vote: str) -> dict[str, np.ndarray]:
        """`mode` takes the most frequent class; a tie goes to the one with the highest mean probability, and to the
        lowest class where that is no help or a member has no probabilities. `soft` takes the class with the highest
        mean probability."""
        combined = mean_probabilities(task, members, vote)
        if vote == "soft":
            preference = combined["probabilities"]
        else:
            labels = np.array([member["label"] for member in members])
            counts = (labels[..., None] == np.arange(len(task.label_names))).sum(0)  # (N, C)
            preference = np.where(counts == counts.max(-1, keepdims=True), combined.get("probabilities", 0), -1)
        return {"label": preference.argmax(-1)} | combined  # the first, the lowest, of equals

    def losses(self, predicted: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        if probabilities is None:
            return self.distances(predicted, labels)
        classes = np.where(labels == self.missing, 0, labels)
        return nats(np.take_along_axis(probabilities, classes[..., None], axis=-1)[..., 0])

    def baseline(self, labels: np.ndarray) -> np.ndarray:
        """The most frequent class."""
        known = labels != self.missing
        return np.where(known, np.bincount(labels[known]).argmax(), self.missing)

    def flags(self, task: "Task", predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One of each a decision."""
        scored = self.scored(predicted, labels)
        classes = np.arange(len(task.label_names))
        return predicted[scored][:, None] == classes, labels[scored][:, None] == classes

    def distributions(self, labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of labels that are known and predicted."""
        scored = (labels != self.missing) & (probabilities.sum(-1) > 0)
        return probabilities[scored], labels[scored]


class Binary(Classification):
    """Yes or no. Logits are those of "yes", (B,); labels 0 or 1, (B,)."""

    keys = {
        "head": ("two_layer", "linear", "scaled_cosine"),
        "loss": ("binary_cross_entropy",),
        "divergence": ("binary_symmetric_kl",),
        "metric": {"accuracy": "accuracy", "f1": "f1", "macro_f1": "macro_f1", "matthews": "matthews"},
    }
    classes = (2, 2)
    no = ("0", "no", "n", "false", "f", "negative", "neg", "off")
    decoded = "names[int(logits > 0)], {names[1]: logits.sigmoid().item()}"

    def order_names(self, names: Sequence[str], where: str) -> Sequence[str]:
        """Puts "yes" last: of two numbers the larger one, else the name beside one of `no`."""
        plain = [name for name in names if name.casefold() in self.no]
        if len(names) == 2 and not plain and None in map(as_number, names):
            raise InputError(
                f"{where}: the labels are {names[0]!r} and {names[1]!r}, and which one is yes cannot be seen; give the "
                "task label_names: [no, yes], yes last"
            )
        return plain + [name for name in names if name not in plain]

    def outputs(self, task: "Task") -> int:
        """One: the logit of "yes"."""
        return 1

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return (logits > 0).astype(np.int64)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of "no" and of "yes", (B, 2)."""
        return no_and_yes(logits).softmax(-1)

    def stock_logits(self, task: "Task", logits: Tensor) -> Tensor:
        return no_and_yes(logits)

    def stock_layer(self, task: "Task", weight: Tensor, bias: Tensor, squashed: bool) -> tuple[Tensor, Tensor]:
        """The logits of `no_and_yes`."""
        return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])

    def yes(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities[:, 1:]


class Regression(Kind):
    """A score: within a range, or any finite number. Logits and labels are scores (B,)."""

    keys = {
        "head": ("sigmoid", "cosine", "scaled_cosine", "linear", "two_layer"),
        "loss": ("mean_squared_error", "score_cross_entropy"),
        "divergence": ("squared_error",),
        "metric": {name: name for name in ("pearson", "spearman", "rmse", "mae")},
    }
    classes = None
    weighted = False
    dtype = "float32"
    decision = "score"
    shares = False
    picture = "scatter"
    decoded = "logits.item()"
    view = "score"
    soft = "score"
    problem_type = "regression"

    def distil(self, task: "Task", logits: Tensor, soft: Tensor) -> Tensor:
        """The task's loss, of the teacher's scores as labels."""
        labels = soft if task.score_range is None else soft.clamp(*task.score_range)
        return LOSSES[task.loss](logits=logits, labels=labels, **task.loss_options)

    def number(self, task: "Task", value: float) -> float | None:
        """A score within the range; without one, a number that fp32 can hold."""
        low, high = task.score_range or (-LARGEST_SCORE, LARGEST_SCORE)
        return value if low <= value <= high else None

    def describe_labels(self, task: "Task", names: Sequence[str] | None = None, numbers: bool = True) -> str:
        return "a score from {:g} to {:g}".format(*task.score_range) if task.score_range else "a number"

    def are_labels(self, task: "Task", values: np.ndarray) -> np.ndarray:
        """In fp32, as they are trained on: of a range that ends in 4.9 the fp32 score 4.9 is a part."""
        low, high = np.float32(task.score_range or (-LARGEST_SCORE, LARGEST_SCORE))
        with np.errstate(over="ignore"):
            scores = values.astype(np.float32)
        return ((low <= scores) & (scores <= high)) | np.isnan(values)

    def outputs(self, task: "Task") -> int:
        return 1

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def evidence(self, task: "Task", logits: Tensor) -> Tensor:
        return logits

    def stock_logits(self, task: "Task", logits: Tensor) -> Tensor:
        """(B, 1): the score's place in its range, from 0 to 1; without a range the score."""
        low, high = task.score_range or (0, 1)
        return ((logits - low) / (high - low)).unsqueeze(-1)

    def stock_layer(self, task: "Task", weight: Tensor, bias: Tensor, squashed: bool) -> tuple[Tensor, Tensor]:
        """The score's place in its range, or the logit of it."""
        low, high = (0, 1) if squashed else task.score_range or (0, 1)
        return weight / (high - low), (bias - low) / (high - low)

    def export_note(self, task: "Task") -> str | None:
        if task.score_range is None:
            return None
        return "its score is the place between {:g} and {:g}, from 0 to 1".format(*task.score_range)

    def describe_output(self, task: "Task") -> str:
        return self.describe_labels(task)

    def task_type(self, task: "Task") -> str:
        """Of a pair, the Hub's closest word."""
        return "sentence-similarity" if task.text_pair else self.pipeline

    def columns(self, task: "Task") -> dict[str, tuple[Callable[[object], bool], str]]:
        """`score`, which may lie outside the range of the labels, if only by rounding."""
        return {"score": (is_number, "a number")}

    def read_written(self, task: "Task", text: str, read_one: Callable) -> float | None:
        """A number, also outside the range."""
        return as_number(text)

    def combine(self, task: "Task", members: Sequence[Mapping[str, np.ndarray]], vote: str) -> dict[str, np.ndarray]:
        """The mean, whatever the vote."""
        return {"score": mean([member["score"] for member in members])}

    def distance_picture(self, task: "Task") -> str:
        return "scores"

    def baseline(self, labels: np.ndarray) -> np.ndarray:
        """The mean score."""
        return np.full_like(labels, labels.mean(dtype=np.float64))

    def show(self, task: "Task", value: float) -> str:
        return f"{value:.2f}"


class Multilabel(Kind):
    """Any number of labels, also none. Logits are those of each label (B, C), or (B,) where there is one; labels are 0
    or 1 for each (B, C)."""

    keys = {
        "head": ("linear", "two_layer"),
        "loss": ("binary_cross_entropy",),
        "divergence": ("binary_symmetric_kl",),
        "metric": {"micro_f1": "micro_f1", "macro_f1": "label_macro_f1", "accuracy": "exact_match"},
    }
    classes = (1, None)
    weighted = False
    nested = True
    decision = "labels"
    decoded = "[name for name, logit in zip(names, logits.view(-1)) if logit > 0]"
    view = "labels"
    picture = "labels"
    soft = "probabilities"
    problem_type = "multi_label_classification"

    def distil(self, task: "Task", logits: Tensor, soft: Tensor) -> Tensor:
        """The mean over the labels of `soft_divergence` of yes and no."""
        logits, soft = no_and_yes(logits.view(soft.shape)), torch.stack([1 - soft, soft], dim=-1)
        return soft_divergence(logits, soft, task.distill_temperature).mean()

    def check_task(self, task: "Task", where: str) -> None:
        super().check_task(task, where)
        if divided := [name for name in task.label_names or () if SEPARATOR in name]:
            raise InputError(
                f"{where}: label_names has {divided[0]!r}; {SEPARATOR} separates the names in a field, so no name "
                "can have it"
            )

    def parts(self, raw: object) -> Sequence:
        """Those of a list, or of a field."""
        if isinstance(raw, str):
            return [] if raw.strip() == SEPARATOR else raw.split(SEPARATOR)
        return raw if is_list(raw) else [raw]

    def vector(self, raw: object) -> tuple[int, ...] | None:
        """(0, 1) and (1, 0): all others have an item twice, which `read` refuses, or no 1."""
        found = tuple(BITS.get(part) for part in self.parts(raw))
        return found if set(found) == {0, 1} else None

    def read(self, task: "Task", raw: object, read_one: Callable) -> list[int] | None:
        """A list of names or numbers, each once; or one field, names with `SEPARATOR` between them, and `SEPARATOR`
        alone where no label applies. A field without any is no label."""
        found = [read_one(part) for part in self.parts(raw)]
        if found == [self.missing] and not is_list(raw):
            return found * len(task.label_names)
        if {None, self.missing} & set(found) or len(set(found)) < len(found):
            return None
        return [int(label in found) for label in range(len(task.label_names))]

    def describe_labels(self, task: "Task", names: Sequence[str] | None = None, numbers: bool = True) -> str:
        if names is None:
            return f"0 or 1 for each of {', '.join(task.label_names)}"
        codes = f" (or their numbers, from 0 to {len(names) - 1})" if numbers else ""
        return f"a list of {', '.join(names)}{codes}, each once; in a table a{SEPARATOR}b, and {SEPARATOR} for none"

    def are_labels(self, task: "Task", values: np.ndarray) -> np.ndarray:
        return np.isin(values, [0, 1, self.missing])

    def width(self, task: "Task") -> int:
        return len(task.label_names)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return (with_classes(logits) > 0).astype(np.int64)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The sigmoids, each label's on its own."""
        return with_classes(logits).sigmoid()

    def evidence(self, task: "Task", logits: Tensor) -> Tensor:
        """The log odds of the most likely label."""
        return with_classes(logits).amax(-1)

    def stock_logits(self, task: "Task", logits: Tensor) -> Tensor:
        return with_classes(logits)

    def export_note(self, task: "Task") -> str:
        return "each label has a probability of its own: give the pipeline top_k=None to see them all"

    def describe_output(self, task: "Task") -> str:
        return f"any of {', '.join(task.label_names)}"

    def columns(self, task: "Task") -> dict[str, tuple[Callable[[object], bool], str]]:
        """`labels`, a list of names, and `probabilities` of all of them."""
        names = task.label_names
        return {
            "labels": (
                lambda value: isinstance(value, list) and len({*value} & {*names}) == len(value),
                f"a list of {', '.join(names)}, each once",
            ),
            "probabilities": (
                lambda value: are_probabilities(value) and len(value) == len(names),
                f"{len(names)} probabilities",
            ),
        }

    def table(self, task: "Task", logits: np.ndarray, tokens: Any = None) -> dict[str, Any]:
        columns = super().table(task, logits)
        return columns | {"labels": self.names(task, columns["labels"])}

    def plain(self, task: "Task", columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """The labels in one field, as `read` takes them, and where there are any each label's probability."""
        shown: dict[str, Sequence] = {"labels": [SEPARATOR.join(names) or SEPARATOR for names in columns["labels"]]}
        if "probabilities" in columns:
            for number, name in enumerate(task.label_names):
                shown[f"probability_{name}"] = [row[number] for row in columns["probabilities"]]
        return shown

    def arrays(self, task: "Task", columns: Mapping[str, list]) -> dict[str, np.ndarray]:
        """`labels`, 0 or 1 for each, and `probabilities`, both (N, C)."""
        flags = np.array([[name in row for name in task.label_names] for row in columns["labels"]], np.int64)
        arrays = super().arrays(task, {**columns, "labels": flags})
        return {name: values.reshape(-1, len(task.label_names)) for name, values in arrays.items()}

    def lists(self, task: "Task", arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return super().lists(task, arrays) | {"labels": self.names(task, arrays["labels"])}

    def combine(self, task: "Task", members: Sequence[Mapping[str, np.ndarray]], vote: str) -> dict[str, np.ndarray]:
        """`mode` takes each label that more than half of the members predict; where just half do, the mean probability
        decides as in `soft`, and without probabilities the label is left out. `soft` takes each label whose mean
        probability is above 1/2."""
        combined = mean_probabilities(task, members, vote)
        likely = combined.get("probabilities", np.zeros(())) > 0.5
        votes = np.sum([member["labels"] for member in members], axis=0)  # (N, C)
        chosen = likely if vote == "soft" else np.where(2 * votes == len(members), likely, 2 * votes > len(members))
        return {"labels": chosen.astype(np.int64)} | combined

    def losses(self, predicted: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        """The sum over the labels."""
        if probabilities is None:
            return self.distances(predicted, labels)
        return nats(np.select([labels == 1, labels == 0], [probabilities, 1 - probabilities], 1.0)).sum(-1)

    def baseline(self, labels: np.ndarray) -> np.ndarray:
        """Each label that more than half of the rows have."""
        often = 2 * (labels == 1).sum(0) > (labels != self.missing).sum(0)
        return np.broadcast_to(often.astype(labels.dtype), labels.shape)

    def flags(self, task: "Task", predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row any number. A label that is missing counts as neither predicted nor true."""
        return (predicted == 1) & (labels != self.missing), labels == 1

    def distributions(self, labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each label of each row, between no and yes."""
        known = labels != self.missing
        return np.stack([1 - probabilities[known], probabilities[known]], axis=-1), labels[known]

    def yes(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities

    def show(self, task: "Task", value: np.ndarray) -> str:
        return ", ".join(*self.names(task, [value])) or "none"

    def names(self, task: "Task", rows: Iterable[Sequence[int]]) -> list[list[str]]:
        """Rows of 0 or 1 for each label -> the names of those that are 1."""
        return [[name for name, chosen in zip(task.label_names, row, strict=True) if chosen == 1] for row in rows]


class TokenClassification(Classification):
    """A tag for each word of a text, as of named entities. Words are set apart by white space.

    A word's tag is predicted at its first token. Labels are classes, one a word, and in tokenised rows one a token,
    where only first tokens have one; logits are (B, L, C). A word without a token was cut off, or is of characters that
    the tokenizer leaves out: it has no prediction, its mark is that of a missing label, and it is not scored. In arrays
    rows are filled up with that mark, (N, W), and `words` (N,) counts a row's words. Files show a missing tag as "_".
    """

    keys = {
        "head": ("token_linear",),
        "loss": ("cross_entropy",),
        "divergence": ("token_symmetric_kl",),
        "metric": {"entity_f1": "entity_f1", "accuracy": "word_accuracy"},
    }
    nested = True
    words = True
    picture = "tags"
    decoded = "[names[tag] for tag in logits.argmax(-1)]"
    view = "tags"
    orderable = False
    soft = None
    pipeline = "token-classification"
    problem_type = None

    def check_task(self, task: "Task", where: str) -> None:
        """Raises InputError also if label names have white space, or if entities are to be scored by tags that mark
        none."""
        super().check_task(task, where)
        names = task.label_names or ()
        if spaced := [name for name in names if len(name.split()) != 1]:
            raise InputError(f"{where}: label_names has {spaced[0]!r}; files set tags apart by white space")
        others = [name for name in names if name != "O" and name[:2] not in ("B-", "I-", "E-", "S-")]
        if others and task.metric in (None, "entity_f1"):
            raise InputError(
                f"{where}: metric entity_f1 is of the tags O, B-…, I-…, E-… and S-…, and label_names has "
                f"{others[0]!r}; for parts of speech and the like say metric: accuracy"
            )

    def parts(self, raw: object) -> Sequence:
        """The tags of a list, or of a text."""
        raw = raw.split() if isinstance(raw, str) else raw
        return raw if is_list(raw) else [raw]

    def read(self, task: "Task", raw: object, read_one: Callable) -> list | None:
        """A list of tags, or a text of tags that white space sets apart; an empty list for a row without tags."""
        if not is_list(raw):
            if raw is None or raw != raw or (isinstance(raw, str) and read_one(raw) == self.missing):
                return []
            if not isinstance(raw, str):
                return None
        found = [read_one(tag) for tag in self.parts(raw)]
        return None if None in found else found

    def align(self, label: list, text: str, where: str) -> list:
        """As many tags as words, missing ones for a row without tags."""
        words = len(text.split())
        if label and len(label) != words:
            raise InputError(f"{where}: has {words} words and {len(label)} tags; expected a tag for each word")
        return label or [self.missing] * words

    def describe_labels(self, task: "Task", names: Sequence[str] | None = None, numbers: bool = True) -> str:
        return f"a list of tags, each {super().describe_labels(task, names, numbers)}"

    def evidence(self, task: "Task", logits: Tensor) -> None:
        """There is an answer a word, and no one number of the row."""

    def export_note(self, task: "Task") -> str:
        return 'a word has the tag of its first token: aggregation_strategy="first"'

    def describe_output(self, task: "Task") -> str:
        return f"for each word one of {', '.join(task.label_names)}"

    def columns(self, task: "Task") -> dict[str, tuple[Callable[[object], bool], str]]:
        """`label`, a class for each word, and `probabilities` of all of them, zeros for a word without a prediction."""
        count = len(task.label_names)
        tags, none = {*range(count), self.missing}, [0] * count
        return {
            "label": (
                lambda value: isinstance(value, list) and all(type(tag) is int and tag in tags for tag in value),
                f"a list of classes from 0 to {count - 1}, or {self.missing} for a word without one",
            ),
            "probabilities": (
                lambda value: isinstance(value, list) and all(is_distribution(p, count) or p == none for p in value),
                f"for each word {count} probabilities that sum to 1",
            ),
        }

    def table(self, task: "Task", logits: np.ndarray, tokens: Any = None) -> dict[str, Any]:
        """From logits (N, L, C) and the `word_starts` of the tokenised rows."""
        columns: dict[str, list] = {"label": [], "probabilities": []}
        for row, starts in zip(logits, tokens["word_starts"][:], strict=True):
            starts = np.array(starts, np.int64)
            chances = self.probabilities(torch.from_numpy(row[starts])).numpy()
            columns["label"].append(np.where(starts < 0, self.missing, row[starts].argmax(-1)).tolist())
            columns["probabilities"].append(np.where(starts[:, None] < 0, 0, chances).tolist())
        return columns

    def read_written(self, task: "Task", text: str, read_one: Callable) -> list | None:
        found = [self.missing if tag == "_" else read_one(tag) for tag in text.split()]
        return None if None in found else found

    def answers(self, task: "Task", columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """For each word its tag's name, None where it has no prediction, and {name: probability}."""
        names = dict(enumerate(task.label_names))
        shown: dict[str, Sequence] = {"label": [[names.get(tag) for tag in tags] for tags in columns["label"]]}
        if "probabilities" in columns:
            shown["probabilities"] = [
                [dict(zip(task.label_names, word, strict=True)) for word in row] for row in columns["probabilities"]
            ]
        return shown

    def plain(self, task: "Task", columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        return {"label": [self.name_tags(task, tags) for tags in columns["label"]]}

    def arrays(self, task: "Task", columns: Mapping[str, list]) -> dict[str, np.ndarray]:
        """`label` (N, W), `probabilities` (N, W, C) and `words` (N,).

        Raises:
            InputError: a row does not have as many probabilities as tags.
        """
        words = np.array([len(tags) for tags in columns["label"]], np.int64)
        for name, rows in columns.items():
            if wrong := [number for number, row in enumerate(rows) if len(row) != words[number]]:
                raise InputError(f"task {task.name!r}: row {wrong[0] + 1} has not as many {name} as words")
        inside = np.arange(words.max(initial=0)) < words[:, None]
        arrays = {"label": np.full(inside.shape, self.missing), "words": words}
        if "probabilities" in columns:
            arrays["probabilities"] = np.zeros((*inside.shape, len(task.label_names)))
        for name in columns:
            values = [value for row in columns[name] for value in row]
            arrays[name][inside] = np.array(values).reshape(-1, *arrays[name].shape[2:])
        return arrays

    def lists(self, task: "Task", arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Without what fills rows up."""
        return {
            name: [row[:count].tolist() for row, count in zip(values, arrays["words"], strict=True)]
            for name, values in arrays.items()
            if name != "words"
        }

    def combine(self, task: "Task", members: Sequence[Mapping[str, np.ndarray]], vote: str) -> dict[str, np.ndarray]:
        """As of single labels, word by word, by the members that have a prediction of the word."""
        combined = super().combine(task, members, vote)
        share = np.mean([member["label"] != self.missing for member in members], axis=0)  # of the members, (N, W)
        combined["label"] = np.where(share > 0, combined["label"], self.missing)
        if "probabilities" in combined:
            combined["probabilities"] /= np.where(share > 0, share, 1)[..., None]
        return combined | {"words": members[0]["words"]}

    def losses(self, predicted: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        """The mean over the row's words."""
        found = super().losses(predicted, labels, probabilities)
        scored = self.scored(predicted, labels)
        return found if found.ndim == 1 else (found * scored).sum(-1) / np.maximum(scored.sum(-1), 1)

    def name_tags(self, task: "Task", tags: Sequence[int]) -> str:
        """Classes by their names, set apart by spaces; "_" where there is none."""
        return " ".join("_" if tag == self.missing else task.label_names[tag] for tag in tags)

    def show(self, task: "Task", value: np.ndarray) -> str:
        """The tags, without what fills the row up."""
        return self.name_tags(task, np.trim_zeros(value - self.missing, "b") + self.missing)

    def show_beside(self, task: "Task", value: np.ndarray, text: str) -> str:
        """The words that have another tag than O, each with its tag."""
        tagged = zip(text.split(), self.show(task, value).split(), strict=False)
        return " ".join(f"{word}/{tag}" for word, tag in tagged if tag != "O")


def join_words(value: object) -> object:
    """A list of words as one text. White space within a word, and a word without characters, become "_", so that their
    number stays."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, (list, tuple)) or any(isinstance(word, (list, tuple, dict, bytes)) for word in value):
        return value
    return " ".join("_".join(str("" if word is None else word).split()) or "_" for word in value)


def is_list(value: object) -> bool:
    """Whether a label as its source gives it is a list."""
    return isinstance(value, (list, tuple, np.ndarray))


KINDS: dict[str, Kind] = {
    "classification": Classification(),
    "binary": Binary(),
    "regression": Regression(),
    "multilabel": Multilabel(),
    "token_classification": TokenClassification(),
}
"""The kinds of tasks, by name."""
ALIASES = {"similarity": "regression"}
"""Other names of kinds: that of the paper's STS, which older configurations have."""


def choices(task: "Task", field: str, table: Mapping[str, object]) -> list[str]:
    """The keys of a table that fit a task: those that its kind names, the default first, and entries added from outside
    the package whose attribute `kinds` has the kind, or that have no such attribute.

    Args:
        field: "head", "loss", "divergence" or "metric".
        table: HEADS, LOSSES, DIVERGENCES or METRICS.
    """
    named = named_keys(KINDS[task.kind], field)
    taken = {key for kind in KINDS.values() for pair in named_keys(kind, field).items() for key in pair}
    found = [name for name, key in named.items() if key in table]
    for key, entry in table.items():
        kinds = getattr(entry, "kinds", ())
        if key not in named and (task.kind in kinds or not (kinds or key in taken)):
            found.append(key)
    return found


def named_keys(kind: Kind, field: str) -> Mapping[str, str]:
    """{name that a task gives: key in the table}: `f1` is macro-F1 in classification and F1 in binary tasks."""
    keys = kind.keys[field]
    return keys if isinstance(keys, Mapping) else dict(zip(keys, keys, strict=True))


def find_entry(task: "Task", field: str, table: Mapping[str, Any]) -> Any:
    """The entry of a table that a field of a task names.

    Raises:
        InputError: there is none, or it does not fit the task (see `choices`).
    """
    key, fitting = getattr(task, field), choices(task, field, table)
    if key not in fitting:
        raise InputError(
            f"task {task.name!r}: {field} is {key!r}; choose one of {', '.join(fitting)} for kind {task.kind!r}"
        )
    return table[named_keys(KINDS[task.kind], field).get(key, key)]


def mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the members, fp32. Sorted, so that the order of the members cannot change a last digit."""
    return np.sort(np.array(values, np.float64), axis=0).mean(0).astype(np.float32)


def mean_probabilities(task: "Task", members: Sequence[Mapping[str, np.ndarray]], vote: str) -> dict[str, np.ndarray]:
    """The mean of the members' `probabilities`; nothing if a member has none.

    Raises:
        InputError: a soft vote, and a member has none.
    """
    if all("probabilities" in member for member in members):
        return {"probabilities": mean([member["probabilities"] for member in members])}
    if vote == "soft":
        raise InputError(f"a soft vote on {task.name!r} needs probabilities: give Parquet files, or vote by mode")
    return {}


def nats(probabilities: np.ndarray) -> np.ndarray:
    """-ln of probabilities, of the same shape; 0 counts as the smallest fp32 number."""
    return -np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def no_and_yes(logits: Tensor) -> Tensor:
    """Logits x of "yes" (…) -> (0, x), float (…, 2), whose softmax is (1 - p, p)."""
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def with_classes(logits: "np.ndarray | Tensor") -> "np.ndarray | Tensor":
    """Logits (B, C), or (B,) of a single class -> (B, C)."""
    return logits[:, None] if logits.ndim == 1 else logits


def as_number(written: str) -> float | None:
    """The number that is written; None where it is none."""
    try:
        return float(written)
    except ValueError:
        return None


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def are_probabilities(values: object) -> bool:
    """Whether a value is a list of numbers from 0 to 1, but for rounding, perhaps to fp16."""
    return isinstance(values, list) and all(is_number(value) and 0 <= value < 1.01 for value in values)


def is_distribution(values: object, classes: int) -> bool:
    """Whether a value is a probability for each class; they sum to 1 but for rounding, perhaps to fp16."""
    return are_probabilities(values) and len(values) == classes and abs(sum(values) - 1) < 0.01
