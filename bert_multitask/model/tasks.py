"""What a task is, and the presets, the paper's and GLUE's: the one place that knows a task by name."""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from inspect import signature

from torch import nn

from .errors import InputError
from .fields import fits, read_fields, settle_fields
from .kinds import ALIASES, KINDS, join_words
from .losses import LOSSES

QUOTING = ("standard", "none")
TRUNCATION = ("head", "tail", "head_tail")
# The fields that say where rows come from, which a model does not need.
ROW_SOURCE = ("id", "files", "dev_share", "quoting", "hub", "extra_train", "distill_from", "course_rows")
SPLITS = ("train", "dev", "test")
# The columns of a task that names none and has no hub, which would name them.
COLUMNS = {"text": "sentence", "text_pair": None, "label": "label"}
# What the tasks of a group have in common: its rows, their tokens, and how often a step takes them.
GROUP_FIELDS = (
    *("text", "text_pair", "id", "files", "dev_share", "quoting", "hub", "extra_train", "epochs", "max_train_samples"),
    *("truncation", "prompt", "pair_encoding", "word_by_word"),
)
# A task of such a name would share a key with the overall score or with Trainer's own values, or an attribute with the
# torch module that holds the heads by name.
RESERVED = {"overall", "loss", "runtime", *dir(nn.ModuleDict())}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII)
PADDED = re.compile(r"[+-]?0\d")
FACTOR = ("a factor of at least 0", lambda value: value >= 0)
COUNT = ("a whole number of at least 1", lambda value: value >= 1)
# Fields of a task -> what is expected, and the test. None is no value, and passes.
RANGES = {
    "label_smoothing": ("a share in [0, 1)", lambda value: 0 <= value < 1),
    "epochs": COUNT,
    "max_train_samples": COUNT,
    "dropout": ("a probability in [0, 1)", lambda value: 0 <= value < 1),
    "loss_weight": ("a factor above 0", lambda value: value > 0),
    "smart_weight": FACTOR,
    "bregman_weight": FACTOR,
    "rdrop_weight": FACTOR,
    "distill_weight": ("a share in (0, 1]", lambda value: 0 < value <= 1),
    "distill_temperature": ("a number above 0", lambda value: value > 0),
    "dev_share": ("a share above 0 and up to 0.5", lambda value: 0 < value <= 0.5),
    "quoting": (f"one of {', '.join(QUOTING)}", lambda value: value in QUOTING),
    "truncation": (f"one of {', '.join(TRUNCATION)}", lambda value: value in TRUNCATION),
    "course_rows": (f"{', '.join(SPLITS)}", lambda value: value.keys() == {*SPLITS}),
}


@dataclass(frozen=True)
class HubSource:
    """Where a task's rows lie in a Hub dataset.

    Args:
        path: dataset id on the Hub.
        name: configuration of a dataset that has several.
        revision: branch, tag or commit of the dataset; None is its main branch.
        text: column of texts, or several (see `Task`).
        text_pair: the same of second texts; None if a row has one text.
        label: column of labels.
        splits: {our split: its split, or a slice of one such as "train[:80%]"}.
        label_names: the dataset's own names of the labels, in the order of the task's label_names; by default the same
            names.
    """

    path: str
    name: str | None = None
    text: str | Sequence[str] = "text"
    text_pair: str | Sequence[str] | None = None
    label: str = "label"
    splits: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"}
    )
    revision: str | None = None
    label_names: Sequence[str] | None = None

    def __post_init__(self):
        read_label_names(self, "hub")
        settle_fields(self, "hub")
        check_text_columns(self, "hub")

    def as_task(self, task: "Task") -> "Task":
        """The task with this dataset's columns as its own; its ids are found in the dataset."""
        return replace(task, text=self.text, text_pair=self.text_pair, label=self.label, id=None)


@dataclass(frozen=True)
class ExtraRows:
    """More training rows of a task, from a file or a Hub dataset.

    Args:
        file: a file, as in the task's `files`.
        hub: a dataset whose train split is taken.
        text: the file's column of texts; by default the task's own.
        text_pair: the same of second texts.
        label: the same of labels.
        quoting: how the file quotes; by default as the task's own.
        max_samples: take at most so many rows, drawn at random, the same in every run; None, all.
        drop_shared: leave out rows with the texts of a dev or test row; case, punctuation and the order of a pair do
            not count. If False, a warning counts them.
    """

    file: str | None = None
    hub: HubSource | None = None
    text: str | Sequence[str] | None = None
    text_pair: str | Sequence[str] | None = None
    label: str | None = None
    quoting: str | None = None
    max_samples: int | None = None
    drop_shared: bool = False

    def __post_init__(self):
        settle_fields(self, "extra_train")
        check_text_columns(self, "extra_train")
        if (self.file is None) == (self.hub is None):
            raise InputError("extra_train: a source has a file or a hub, and not both")
        if own := [key for key in ("text", "text_pair", "label", "quoting") if self.hub and getattr(self, key)]:
            raise InputError(f"extra_train: {own[0]} is of a file; the columns of a Hub dataset are fields of hub")
        if self.max_samples is not None and self.max_samples < 1:
            raise InputError(f"extra_train: max_samples is {self.max_samples}; expected a whole number of at least 1")
        if self.hub and "train" not in self.hub.splits:
            raise InputError(f"extra_train: hub: splits has {', '.join(self.hub.splits)}; expected train")

    def as_task(self, task: "Task") -> "Task":
        """The task with these rows as its own."""
        columns = {key: getattr(self, key) or getattr(task, key) for key in ("text", "text_pair", "label", "quoting")}
        files = self.file and dict.fromkeys(("train", "dev"), self.file)
        hub = self.hub and replace(self.hub, splits=dict.fromkeys(("train", "dev"), self.hub.splits["train"]))
        none = dict.fromkeys(("id", "dev_share", "extra_train"))
        return replace(task, **columns, **none, files=files, hub=hub, max_train_samples=self.max_samples)


@dataclass(frozen=True)
class Task:
    """One task: its rows, its head, its loss and how it is scored. Everything is plain data, so YAML can hold it; lists
    are kept as tuples.

    Args:
        name: name of the task in flags, logs and files; a Python identifier that is not RESERVED.
        kind: "classification" (one of several labels), "binary" (yes or no), "regression" (a score; "similarity" is
            another name for it), "multilabel" (any number of labels), "token_classification" (a tag for each word), or
            another key of `kinds.KINDS`.
        text: column of texts, in files and in memory; None, its hub's, or "sentence" without a hub. A list of columns
            is joined into one text, one line `column: value` for each that is not empty.
        text_pair: the same of second texts; None, its hub's. Without either a row has one text.
        label: the column of labels; None, its hub's, or "label" without a hub.
        label_names: what the labels 0, 1, … mean; for all kinds but regression. No two may be the same label: case and
            white space around them do not count, and "1.0" is "1". If None, they are read from the training rows before
            the model is built (see `data.rows.with_label_names`).
        ordered: whether label_names go from the lowest to the highest, as grades do; reports then say how far off
            predictions are. For classification with three or more labels.
        score_range: lowest and highest score, for regression; None, a score is any finite number.
        pair_encoding: "joint" or "separate", for a pair of texts; None, as the model's (see `MultitaskBertConfig`).
        pooling: "cls", "pooler" or "mean"; None, as the model's (see `MultitaskBertConfig`).
        head: key of `heads.HEADS`; by default the first of the kind's heads that fits.
        loss: key of `losses.LOSSES`; by default the kind's.
        divergence: key of `losses.DIVERGENCES`, with which SMART and R-Drop compare two predictions; by default the
            kind's.
        metric: key of `metrics.METRICS`; by default the kind's.
        class_weights: {label name: weight above 0} of every class, for classification and binary. A row's loss is
            multiplied by its label's weight, and the sum is divided by the sum of the weights, as in
            `torch.nn.CrossEntropyLoss(weight=…)`. "balanced": `MultitaskTrainer` computes rows / (classes * rows of the
            class) from the rows it trains on. None, all classes have weight 1.
        label_smoothing: share of a label that the loss spreads evenly over all classes, in [0, 1), as in
            `torch.nn.CrossEntropyLoss(label_smoothing=…)`; for classification and binary.
        group: name of the task's group: tasks of the same rows that a step trains together, with one pass of the
            encoder (see `open_group`). None, it is trained alone.
        epochs: how often training sees each row (paper, section 4.2.2).
        max_train_samples: train on at most so many rows, drawn at random; None, on all.
        dropout: dropout probability of the sentence embedding before the head, in [0, 1) (section 4.1).
        loss_weight: factor of the task's loss and its regularisers in training; above 0.
        truncation: which part of a text that is too long is kept: "head", its beginning; "tail", its end; "head_tail",
            both (see `tokens.kept_tokens`).
        prompt: what is put before each text when it is tokenised, such as "query: "; before the first text of a pair
            that is encoded jointly. For encoders that were trained with prompts (docs/encoders.md).
        word_by_word: whether texts are split at white space and tokenised word by word; a text may then be a list of
            words. Always on for token_classification; set it for other tasks of the same group.
        smart_weight: factor of SMART's adversarial penalty (section 4.4, λ_s); 0 is off.
        bregman_weight: factor of SMART's Bregman proximal term (Jiang et al., 2020, μ); 0 is off.
        rdrop_weight: factor of the divergence of two passes with different dropout (R-Drop, Liang et al., 2021); 0 is
            off. It is half of the paper's α, except for kinds whose divergence is not a symmetric KL.
        distill_from: folder with a teacher's prediction table of the training rows, `{name}-train.parquet`, to learn
            from besides the labels; None, only the labels are used.
        distill_weight: share of the teacher's predictions in the loss, in (0, 1]; the labels have the rest.
        distill_temperature: the teacher's and the model's logits are divided by it before they become probabilities;
            above 0.
        id: column of ids, in files and in memory; None, `id`, if there is one.
        files: {"train": file, "dev": …, "test": …}, in a data folder or with absolute paths: a table with a header
            (tabs or commas), .jsonl, .parquet or .conll. The columns of .conll are called "0", "1", …; "-1" is the
            last.
        dev_share: share of the training rows that become the dev split, above 0 and up to 0.5, if files or hub have no
            dev split. The seed does not change which rows these are (see `data.dev_share`).
        quoting: how tables quote: "standard", a field that begins with a double quote is quoted whole, with inner
            quotes doubled; "none", quotes are plain characters, as in GLUE's own files.
        hub: where the same rows are on the Hub.
        extra_train: more training rows, from other sources.
        course_rows: {split: number of rows} of the course's own files (section 5.1), printed if a run's row counts
            differ.
        prediction_column: header of the predictions in the course's file form; without it they are written as a plain
            table with the labels' names.
    """

    name: str
    kind: str
    text: str | Sequence[str] | None = None
    text_pair: str | Sequence[str] | None = None
    label: str | None = None
    label_names: Sequence[str] | None = None
    ordered: bool = False
    score_range: Sequence[float] | None = None
    pair_encoding: str | None = None
    pooling: str | None = None
    head: str | None = None
    loss: str | None = None
    divergence: str | None = None
    metric: str | None = None
    class_weights: dict | str | None = None
    label_smoothing: float = 0.0
    group: str | None = None
    epochs: int = 10
    max_train_samples: int | None = None
    dropout: float = 0.3
    loss_weight: float = 1.0
    truncation: str = "head"
    prompt: str = ""
    word_by_word: bool = False
    smart_weight: float = 0.0
    bregman_weight: float = 0.0
    rdrop_weight: float = 0.0
    distill_from: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    id: str | None = None
    files: dict[str, str] | None = None
    dev_share: float | None = None
    quoting: str = "standard"
    hub: HubSource | None = None
    extra_train: Sequence[ExtraRows] | None = None
    course_rows: dict[str, int] | None = None
    prediction_column: str | None = None

    def __post_init__(self):
        where = f"task {self.name!r}"
        read_label_names(self, where)
        settle_fields(self, where)
        for field, usual in COLUMNS.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, getattr(self.hub, field, usual))
        for name in filter(None, (self.name, self.group)):
            check_name(name)
        object.__setattr__(self, "kind", ALIASES.get(self.kind, self.kind))
        if self.kind not in KINDS:
            raise InputError(f"{where}: kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.group and KINDS[self.kind].words:
            object.__setattr__(self, "word_by_word", True)
        self.check_labels(where)
        for name, (expected, is_fine) in RANGES.items():
            if (value := getattr(self, name)) is not None and not is_fine(value):
                raise InputError(f"{where}: {name} is {value!r}; expected {expected}")
        self.check_columns(where)
        for source, splits in {"files": self.files, "hub: splits": self.hub and self.hub.splits}.items():
            if splits is not None:
                check_splits(splits, f"{where}: {source}", self.dev_share)
        if self.pair_encoding is not None and self.text_pair is None:
            raise InputError(f"{where}: pair_encoding is {self.pair_encoding!r}, but a row has one text; leave it out")
        for key in ("loss", "divergence", "metric"):
            object.__setattr__(self, key, getattr(self, key) or next(iter(KINDS[self.kind].keys[key])))
        object.__setattr__(self, "class_weights", check_class_weights(self))

    def check_labels(self, where: str) -> None:
        """Raises InputError if the labels do not fit the kind of task or those of the Hub dataset."""
        if self.score_range is not None:
            object.__setattr__(self, "score_range", tuple(map(float, self.score_range)))
        KINDS[self.kind].check_task(self, where)
        theirs, ours = ((self.hub and self.hub.label_names) or ()), self.label_names or ()
        if theirs and len(theirs) != len(ours):
            raise InputError(
                f"{where}: hub has {len(theirs)} label_names and the task {len(ours)}; expected the same labels in the "
                "same order"
            )

    def check_columns(self, where: str) -> None:
        """Raises InputError if the columns of texts do not fit the task."""
        check_text_columns(self, where)
        if self.by_words and not isinstance(self.text, str):
            raise InputError(f"{where}: text is {list(self.text)}; a task that reads words reads those of one column")
        if self.word_by_word and self.text_pair is not None:
            raise InputError(f"{where}: word_by_word is for one text a row, not for a text_pair")
        if self.prompt and (self.by_words or self.truncation == "tail"):
            other = "truncation 'tail', which cuts it off" if self.truncation == "tail" else "a task that reads words"
            raise InputError(f"{where}: prompt is {self.prompt!r}, which does not go with {other}")
        self.check_pairs(where)

    def check_pairs(self, where: str) -> None:
        """Refuse a source of pairs for a task of single texts, and the reverse."""
        extra = [("extra_train: hub", one.hub) if one.hub else ("extra_train", one) for one in self.extra_train or ()]
        for place, source in [("hub", self.hub), *extra]:
            theirs = getattr(source, "text_pair", None)
            if theirs is not None and self.text_pair is None:
                shown = theirs if isinstance(theirs, str) else list(theirs)
                raise InputError(
                    f"{where}: {place} has text_pair {shown!r} but the task has none; add text_pair: {shown} to the "
                    f"task, or leave it out of {place}"
                )
            if isinstance(source, HubSource) and theirs is None and self.text_pair is not None:
                raise InputError(
                    f"{where}: the task has a text_pair but {place} has none; add text_pair, the dataset's column of "
                    f"second texts, to {place}"
                )

    @property
    def loss_options(self) -> dict:
        """What the task's loss takes besides logits and labels: those of `class_weights` (in the order of the classes),
        `label_smoothing` and `score_range` that the task has.

        Raises:
            InputError: the weights are "balanced", and no labels have been counted yet.
        """
        if self.class_weights == "balanced":
            raise InputError(
                f"task {self.name!r}: class_weights is 'balanced', and no training labels have been counted; "
                "MultitaskTrainer counts them; elsewhere use Task.balance, or give a weight for each label name"
            )
        options = {
            "class_weights": self.class_weights and tuple(self.class_weights.values()),
            "label_smoothing": self.label_smoothing,
            "score_range": "score_range" in signature(LOSSES[self.loss]).parameters and self.score_range,
        }
        return {name: value for name, value in options.items() if value}

    def balance(self, labels: Iterable[int]) -> "Task":
        """This task with numbers for "balanced" class weights (scikit-learn's formula) by the classes of its training
        rows, where -100 is not counted; as it is if it has others.

        Raises:
            InputError: a class has no row.
        """
        if self.class_weights != "balanced":
            return self
        counts = Counter(labels)
        rows = {name: counts[number] for number, name in enumerate(self.label_names)}
        if missing := [name for name, count in rows.items() if not count]:
            raise InputError(
                f"task {self.name!r}: class_weights is 'balanced', but no training row has the label {missing[0]!r}; "
                "give a weight for each label name"
            )
        total = sum(rows.values())
        return replace(self, class_weights={name: total / (len(rows) * count) for name, count in rows.items()})

    @property
    def unit(self) -> str:
        """What a step of the plan trains: the task's group, or the task itself."""
        return self.group or self.name

    @property
    def by_words(self) -> bool:
        """Whether its texts are tokenised word by word."""
        return self.word_by_word or KINDS[self.kind].words

    def read_text(self, value: object) -> object:
        """A text as its source gives it -> as text, where it may be a list of words."""
        return join_words(value) if self.by_words else value

    @property
    def is_open(self) -> bool:
        """Whether it still needs label names, which the training rows will say."""
        return self.label_names is None and KINDS[self.kind].classes is not None

    def check_named(self) -> None:
        """Check that the task has its label names.

        Raises:
            InputError: they are not known yet; the message says what to do.
        """
        if self.is_open:
            raise InputError(
                f"task {self.name!r}: a task of kind {self.kind!r} needs label_names here; give them, or read them "
                "from the training rows with bert_multitask.with_label_names"
            )

    def to_config(self) -> dict:
        """The fields a model needs, as plain data for `config.json`: all but where the rows come from.

        Raises:
            InputError: the label names are not known yet.
        """
        self.check_named()
        fields = {key: value for key, value in vars(self).items() if key not in ROW_SOURCE}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def check_class_weights(task: Task) -> dict | str | None:
    """A task's class weights in the order of its label names.

    Raises:
        InputError: a class is unknown or has no weight, or a weight is not a number above 0.
    """
    weights, where = task.class_weights, f"task {task.name!r}: class_weights"
    if weights in (None, "balanced") or task.is_open:
        return weights
    names = ", ".join(task.label_names)
    if not isinstance(weights, dict):
        raise InputError(f"{where} is {weights!r}; expected 'balanced', or a weight for each of {names}")
    weights = {str(name): weight for name, weight in weights.items()}
    if unknown := [name for name in weights if name not in task.label_names]:
        raise InputError(f"{where} has {unknown[0]!r}; the label_names are {names}")
    if missing := [name for name in task.label_names if name not in weights]:
        raise InputError(f"{where} has no weight for {missing[0]!r}; expected one for each of {names}")
    for name, weight in weights.items():
        if not fits(weight, float) or weight <= 0:
            raise InputError(f"{where}: {name!r} has {weight!r}; expected a number above 0")
    return {name: float(weights[name]) for name in task.label_names}


def load_task(spec: "str | dict | Task", *, named: bool = True, known: "Mapping[str, Task] | None" = None) -> Task:
    """Make a task from a name or from a dictionary of `Task` fields (from YAML or a checkpoint); a task is returned as
    it is.

    A dictionary with the key "preset" starts from the task of that name and overrides the fields given: `{"preset":
    "sts", "pooling": "mean"}`.

    Args:
        spec: name, fields or task.
        named: whether a task without label names is an error, if its kind needs some.
        known: {name: task} besides the presets, such as those of a trained run. They come before presets of these
            names.

    Raises:
        InputError: the name is not known, a field is unknown, missing or out of range, or label names are missing.
    """
    known = TASKS | dict(known or {})
    if isinstance(spec, str):
        if spec not in known:
            raise InputError(f"unknown task {spec!r}; choose from {', '.join(known)}, or give a Task or its fields")
        spec = known[spec]
    if isinstance(spec, dict):
        if "preset" in spec:
            preset = vars(load_task(str(spec["preset"]), named=False, known=known))
            spec = preset | {key: value for key, value in spec.items() if key != "preset"}
        if "labels" in spec:
            raise InputError(
                f"group {spec.get('name')!r} is several tasks; expected one: give each label a Task of its own with "
                f"group={spec.get('name')!r}"
            )
        if "name" not in spec:
            raise InputError(f"a task in tasks has no name: {spec}; tasks is a list, each with its fields")
        where = f"task {spec['name']!r}"
        if "kind" not in spec:
            raise InputError(f"{where}: kind is missing; choose one of {', '.join(KINDS)}")
        spec = read_fields(Task, spec, where)
    if not isinstance(spec, Task):
        raise InputError(f"a task is {spec!r}; expected a name or the fields of a Task")
    if named:
        spec.check_named()
    return spec


def load_tasks(
    specs: "Iterable[str | dict | Task]", *, named: bool = True, known: "Mapping[str, Task] | None" = None
) -> dict[str, Task]:
    """Make the tasks of one run or model: {name: task}, in the order given (see `load_task`). The name of a group of
    `known` tasks stands for all of them.

    Raises:
        InputError: as `load_task`; or two tasks would have the same name, files (some file systems ignore case) or
            scores, or do not fit into one group.
    """
    check_list(specs)
    groups = units((known or {}).values())
    specs = [one for spec in specs for one in (groups.get(spec, [spec]) if isinstance(spec, str) else open_group(spec))]
    tasks: dict[str, Task] = {}
    owners: dict[str, str] = {}  # {what each task has of its own: the task}
    for task in (load_task(spec, named=named, known=known) for spec in specs):
        if task.name in tasks:
            raise InputError(f"tasks names {task.name!r} twice; give each task a name of its own")
        scores = (f"a score eval_{task.name}_{name}" for name in (task.metric, "loss"))
        for thing in (f"files {same_file_name(task.name)}-…", *scores):
            if (other := owners.setdefault(thing, task.name)) != task.name:
                raise InputError(f"tasks {other!r} and {task.name!r} would both have {thing}; rename one")
        tasks[task.name] = task
    check_groups(tasks)
    return tasks


def check_list(specs: object) -> None:
    """Raises InputError if tasks are not a list, but for example a single task."""
    if not isinstance(specs, Iterable) or isinstance(specs, (str, Mapping)):
        found = f"a {type(specs).__name__}" if isinstance(specs, (Task, Mapping)) else repr(specs)
        raise InputError(f"tasks is {found}; expected a list of tasks, for one task a list of one")


def open_group(spec: "str | dict | Task") -> "list[str | dict | Task]":
    """The tasks of a group, which is written as a task with `labels`, the fields of a task for each label of a row:

        {"name": "reviews", "text": "body", "files": …, "labels": [
            {"name": "stars", "kind": "classification", "label": "stars"},
            {"name": "people", "kind": "token_classification", "label": "tags"}]}

    A task has the fields of the group, unless it gives them itself.

    Raises:
        InputError: the group has no name, its labels are not a list of fields, or it has a field that belongs to a
            label.
    """
    if not isinstance(spec, dict) or "labels" not in spec:
        return [spec]
    name, labels = spec.get("name"), spec["labels"]
    if not isinstance(name, str):
        raise InputError(f"a group in tasks has the name {name!r}; expected a text: {spec}")
    where = f"group {name!r}"
    if not isinstance(labels, (list, tuple)) or not labels or not all(isinstance(label, dict) for label in labels):
        raise InputError(f"{where}: labels is {labels!r}; expected a list with the fields of a task for each label")
    if own := [key for key in ("kind", "label", "label_names", "preset", "group") if key in spec]:
        raise InputError(f"{where}: {own[0]} belongs to one of its labels, or to a task without labels")
    shared = {key: value for key, value in spec.items() if key not in ("name", "labels")}
    kinds = [KINDS.get(ALIASES.get(label.get("kind"), label.get("kind"))) for label in labels]
    if any(kind is not None and kind.words for kind in kinds):
        shared["word_by_word"] = True
    tasks = [shared | label | {"group": name} for label in labels]
    for task in tasks:
        if isinstance(task.get("hub"), dict):  # whose column of labels is the task's
            task["hub"] = task["hub"] | {"label": task.get("label", "label")}
    return tasks


def units(tasks: Iterable[Task]) -> dict[str, list[str]]:
    """{what a step of the plan trains: the names of its tasks}: a group, or a task by itself (see `Task.unit`)."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(task.unit, []).append(task.name)
    return found


def find_task(tasks: Mapping[str, Task], name: str, instead: str = "") -> Task:
    """The task of that name, one of a model's.

    Args:
        instead: what else to do with the name of a group, for the message.

    Raises:
        InputError: there is no such task.
    """
    if name in tasks:
        return tasks[name]
    if name in (groups := units(tasks.values())):
        raise InputError(f"{name!r} is a group of {', '.join(groups[name])}; name one of its tasks{instead}")
    raise InputError(f"this model has no task {name!r}; it has {', '.join(tasks)}")


def check_groups(tasks: Mapping[str, Task]) -> None:
    """Check that each group has a name of its own, and tasks of the same rows.

    Raises:
        InputError: names the group or the tasks, and the field in which they differ.
    """
    for group, (first, *others) in units(task for task in tasks.values() if task.group).items():
        if other := next((name for name in tasks if same_file_name(name) == same_file_name(group)), None):
            raise InputError(f"group {group!r} and task {other!r} share a name; rename one")
        if (extra := tasks[first].extra_train) and any(source.label or source.hub for source in extra):
            raise InputError(f"group {group!r}: extra_train is files here, whose columns of labels are its tasks' own")
        for other, field in ((other, field) for other in others for field in GROUP_FIELDS):
            values = [shared_value(tasks[name], field) for name in (first, other)]
            if values[0] != values[1]:
                raise InputError(
                    f"tasks {first!r} and {other!r} of group {group!r} differ in {field}, "
                    f"{values[0]!r} and {values[1]!r}; expected the same, since one pass of the encoder is for both"
                )


def shared_value(task: Task, field: str) -> object:
    """The value of one of GROUP_FIELDS; of a Hub dataset without its labels, which differ between tasks."""
    value = getattr(task, field)
    return replace(value, label="label", label_names=None) if isinstance(value, HubSource) else value


def same_file_name(name: str) -> str:
    """What a file system may make of a name: some ignore case, some compose letters and accents."""
    return unicodedata.normalize("NFKC", name).casefold()


def check_name(name: str) -> None:
    """Check that a task's or group's name can name parameters, files and log entries.

    Raises:
        InputError: it is not a Python identifier, or is reserved.
    """
    if not name.isidentifier():
        raise InputError(f"task {name!r}: name must be a Python identifier, because it names files and parameters")
    if name in RESERVED or name.startswith("eval_"):
        raise InputError(f"task {name!r}: this name is reserved for scores, log entries or PyTorch; choose another")


def check_splits(splits: dict[str, str], where: str, dev_share: float | None = None) -> None:
    """Raises InputError unless the splits are train, dev and perhaps test; with `dev_share`, which makes the dev split,
    train and perhaps test."""
    needed = {"train", "dev"} if dev_share is None else {"train"}
    if not needed <= splits.keys() <= needed | {"test"}:
        expected = "train, dev and perhaps test; without dev rows give the task dev_share: 0.1"
        if dev_share is not None:
            expected = "train and perhaps test, since dev_share takes the dev rows from train"
        raise InputError(f"{where} has {', '.join(splits) or 'none'}; expected {expected}")


def text_parts(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """The columns that a text is made of: one, several, or none."""
    return (columns,) if isinstance(columns, str) else tuple(columns or ())


def check_text_columns(spec: Task | HubSource | ExtraRows, where: str) -> None:
    """Raises InputError if a list of columns of texts is empty, or names a column twice."""
    for field in ("text", "text_pair"):
        columns = getattr(spec, field)
        if isinstance(columns, tuple) and len(set(columns)) < max(1, len(columns)):
            raise InputError(f"{where}: {field} is {list(columns)}; expected a column, or a list of different ones")


def label_key(label: str | int | float) -> str | Decimal:
    """What labels are compared by: their number, or their text without case and surrounding white space. What begins
    with a zero too many, as 007, is a text."""
    text = str(label).strip().casefold()
    return Decimal(text) if NUMBER.fullmatch(text) and not PADDED.match(text) else text


def read_label_names(spec: Task | HubSource, where: str) -> None:
    """Make label names texts without white space around them; YAML reads some as numbers. A name needs characters, all
    on one line, and no two may be the same label."""
    if not isinstance(spec.label_names, (list, tuple)):
        return
    where = f"{where}: label_names"
    known: dict[str | Decimal, str] = {}
    for name in spec.label_names:
        if isinstance(name, bool):
            raise InputError(f"{where} has true or false; write texts, as 'no', 'yes' (YAML reads a bare yes as true)")
        if not isinstance(name, (str, int, float)):
            raise InputError(f"{where} has {name!r}; expected texts")
        text = str(name).strip()
        if not text or any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
            raise InputError(f"{where} has {name!r}; expected texts of one line, without control characters")
        if (other := known.get(label_key(text))) is not None:
            raise InputError(f"{where} has {other!r} and {text!r}, which are the same label; expected distinct names")
        known[label_key(text)] = text
    object.__setattr__(spec, "label_names", tuple(known.values()))


def course_files(stem: str) -> dict:
    """The names of one task's files in the CS224N default final project."""
    return {"train": f"{stem}-train.csv", "dev": f"{stem}-dev.csv", "test": f"{stem}-test-student.csv"}


def glue(
    name: str,
    kind: str,
    text: str,
    text_pair: str | None = None,
    label_names: Sequence[str] | None = None,
    metric: str = "accuracy",
    suffix: str = "",
) -> Task:
    """A task of GLUE (Wang et al., 2019, table 1), by the columns and labels of the Hub's dataset, with the epochs and
    the dropout that BERT's authors use. Of GLUE's two metrics of a task it has one.

    Args:
        label_names: as the dataset has them; of a binary task "yes" is the last.
        metric: key of `metrics.METRICS`.
        suffix: of the names of its dev and test splits. The labels of the test splits are hidden (-1).
    """
    splits = {"train": "train", "dev": f"validation{suffix}", "test": f"test{suffix}"}
    return Task(
        name=name,
        kind=kind,
        text=text,
        text_pair=text_pair,
        label_names=label_names,
        score_range=None if label_names else (0.0, 5.0),
        metric=metric,
        epochs=3,
        dropout=0.1,
        hub=HubSource("nyu-mll/glue", name, text=text, text_pair=text_pair, splits=splits),
    )


MNLI = ("entailment", "neutral", "contradiction")
GLUE = {
    task.name: task
    for task in (
        glue("cola", "binary", "sentence", None, ("unacceptable", "acceptable"), "matthews"),
        glue("sst2", "binary", "sentence", None, ("negative", "positive")),
        glue("mrpc", "binary", "sentence1", "sentence2", ("not_equivalent", "equivalent"), "f1"),
        glue("qqp", "binary", "question1", "question2", ("not_duplicate", "duplicate"), "f1"),
        glue("stsb", "regression", "sentence1", "sentence2", None, "pearson"),
        glue("mnli", "classification", "premise", "hypothesis", MNLI, suffix="_matched"),
        glue("qnli", "classification", "question", "sentence", ("entailment", "not_entailment")),
        glue("rte", "classification", "sentence1", "sentence2", ("entailment", "not_entailment")),
        glue("wnli", "binary", "sentence1", "sentence2", ("not_entailment", "entailment")),
    )
}
TASKS = {
    task.name: task
    for task in (
        Task(
            name="sst",
            kind="classification",
            text="sentence",
            label="sentiment",
            label_names=("negative", "somewhat negative", "neutral", "somewhat positive", "positive"),
            ordered=True,
            files=course_files("ids-sst"),
            hub=HubSource("SetFit/sst5"),
            course_rows={"train": 8544, "dev": 1101, "test": 2210},
            prediction_column="Predicted_Sentiment",
        ),
        Task(
            name="quora",
            kind="binary",
            text="sentence1",
            text_pair="sentence2",
            label="is_duplicate",
            label_names=("different", "paraphrase"),
            epochs=3,
            files=course_files("quora"),
            hub=replace(GLUE["qqp"].hub, label_names=GLUE["qqp"].label_names),
            course_rows={"train": 283_010, "dev": 40_429, "test": 80_859},
            prediction_column="Predicted_Is_Paraphrase",
        ),
        Task(
            name="sts",
            kind="regression",
            text="sentence1",
            text_pair="sentence2",
            label="similarity",
            score_range=(0.0, 5.0),
            files=course_files("sts"),
            hub=GLUE["stsb"].hub,
            course_rows={"train": 6040, "dev": 863, "test": 1725},
            prediction_column="Predicted_Similiary",  # the course's spelling, which its graders read
        ),
        Task(
            name="cfimdb",
            kind="classification",
            text="sentence",
            label="sentiment",
            label_names=("negative", "positive"),
            files=course_files("ids-cfimdb"),
            hub=HubSource("tasksource/counterfactually-augmented-imdb", text="Text", label="Sentiment"),
            course_rows={"train": 1707, "dev": 245, "test": 488},
            prediction_column="Predicted_Sentiment",
        ),
    )
} | {f"glue/{name}": task for name, task in GLUE.items()}
"""The presets, by name: sst, quora, sts (the paper's three), cfimdb, and GLUE's, as glue/mrpc, whose task is mrpc."""
