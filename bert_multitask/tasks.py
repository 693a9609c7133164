"""What a task is, and the paper's four: the one place that knows a task by name."""

import dataclasses
from dataclasses import dataclass

from .configuration import InputError

# kind -> (loss, divergence, metric) a task of that kind has unless it names others.
KINDS = {
    "classification": ("cross_entropy", "symmetric_kl", "accuracy"),
    "binary": ("binary_cross_entropy", "binary_symmetric_kl", "accuracy"),
    "similarity": ("mean_squared_error", "squared_error", "pearson"),
}
QUOTING = ("standard", "none")
# The fields that say where rows come from, which a model does not need.
ROW_SOURCE = ("files", "quoting", "hub", "course_rows")


@dataclass(frozen=True)
class HubSource:
    """Where a task's rows lie in a Hub dataset.

    Args:
        path: dataset id on the Hub.
        name: its configuration, where it has several.
        revision: branch, tag or commit of the dataset; None is its main branch.
        text: its column of texts.
        text_pair: its column of second texts; None where a row has one.
        label: its column of labels.
        splits: {our split: its split, or a slice of one such as "train[:80%]"}.
    """

    path: str
    name: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    splits: dict = dataclasses.field(default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"})
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """One task: its rows, its head, its loss and how it is scored. Everything is plain data, so YAML can hold it.

    Args:
        name: what it is called in flags, logs and files; a Python identifier.
        kind: "classification" (one of several labels), "binary" (yes or no) or "similarity" (a score).
        text: the column of texts in its files.
        text_pair: the column of second texts; None, one text a row.
        label: the column of labels.
        label_names: what the labels 0, 1, … mean; for classification and binary.
        score_range: lowest and highest score; for similarity.
        loss: key of `losses.LOSSES`; by default the kind's.
        divergence: key of `losses.DIVERGENCES`, by which SMART compares two predictions; by default the kind's.
        metric: key of `metrics.METRICS`; by default the kind's.
        epochs: how often training sees each row (paper, section 4.2.2).
        max_train_samples: train on at most so many rows, drawn at random; None, on all.
        dropout: probability of dropping a component of the sentence embedding before the head (section 4.1).
        smart_weight: factor of SMART's adversarial penalty (section 4.4, λ_s); 0 is off.
        bregman_weight: factor of SMART's other half, the Bregman proximal term (Jiang et al., 2020, μ); 0 is off.
        files: {"train": file, "dev": …, "test": …}, in a data folder or with absolute paths; a table with a header
            (tabs or commas), .jsonl or .parquet.
        quoting: how tables quote: "standard", a field that begins with a double quote is quoted whole, with inner
            quotes doubled; "none", quotes are plain characters, as in GLUE's own files.
        hub: the same rows on the Hub.
        course_rows: {split: rows} of the course's own files (the paper's section 5.1), said where a run has others.
        prediction_column: header of the predictions in the course's file form; by default they are written as a plain
            table with the labels' names.
    """

    name: str
    kind: str
    text: str = "sentence"
    text_pair: str | None = None
    label: str = "label"
    label_names: tuple[str, ...] | None = None
    score_range: tuple[float, float] | None = None
    loss: str | None = None
    divergence: str | None = None
    metric: str | None = None
    epochs: int = 10
    max_train_samples: int | None = None
    dropout: float = 0.3
    smart_weight: float = 0.0
    bregman_weight: float = 0.0
    files: dict | None = None
    quoting: str = "standard"
    hub: HubSource | None = None
    course_rows: dict | None = None
    prediction_column: str | None = None

    def __post_init__(self):
        where = f"task {self.name!r}"
        if not str(self.name).isidentifier():
            raise InputError(f"{where}: name must be a Python identifier, because it names files and parameters")
        if self.kind not in KINDS:
            raise InputError(f"{where}: kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.kind == "similarity":
            low, high = self.score_range or (0.0, 0.0)
            if not low < high:
                raise InputError(f"{where}: a similarity task needs score_range: [lowest, highest]")
        elif any(isinstance(name, bool) for name in self.label_names or ()):
            raise InputError(
                f"{where}: label_names has true or false; YAML reads a bare yes or no so: write 'yes', 'no'"
            )
        elif len(self.label_names or ()) < 2 or (self.kind == "binary" and len(self.label_names) != 2):
            count = "two" if self.kind == "binary" else "two or more"
            raise InputError(f"{where}: a {self.kind} task needs {count} label_names")
        if not 0 <= self.dropout < 1:
            raise InputError(f"{where}: dropout is {self.dropout}; expected a probability in [0, 1)")
        for key in ("smart_weight", "bregman_weight"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise InputError(f"{where}: {key} is {getattr(self, key)}; expected a factor of at least 0")
        for key in ("epochs", "max_train_samples"):
            value = getattr(self, key)
            if not (isinstance(value, int) and value >= 1 or key == "max_train_samples" and value is None):
                raise InputError(f"{where}: {key} is {value!r}; expected a whole number of at least 1")
        if self.files is not None and not {"train", "dev"} <= set(self.files) <= {"train", "dev", "test"}:
            raise InputError(f"{where}: files has {', '.join(self.files)}; expected train, dev and perhaps test")
        if self.quoting not in QUOTING:
            raise InputError(f"{where}: quoting is {self.quoting!r}; choose one of {', '.join(QUOTING)}")
        # Defaults of the kind, and the types that YAML and JSON cannot write; frozen needs the long way.
        for key, default in zip(("loss", "divergence", "metric"), KINDS[self.kind], strict=True):
            object.__setattr__(self, key, getattr(self, key) or default)
        if self.label_names is not None:
            object.__setattr__(self, "label_names", tuple(str(name) for name in self.label_names))
        if self.score_range is not None:
            object.__setattr__(self, "score_range", tuple(float(score) for score in self.score_range))
        if isinstance(self.hub, dict):
            object.__setattr__(self, "hub", HubSource(**self.hub))

    def to_config(self) -> dict:
        """The fields a model needs, as plain data for `config.json`: all but where the rows come from."""
        fields = {key: value for key, value in vars(self).items() if key not in ROW_SOURCE}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def load_task(spec: "str | dict | Task") -> Task:
    """Make a task of a preset's name, of a dictionary of `Task` fields (from YAML or a checkpoint), or of itself.

    Raises:
        InputError: the name is no preset, or a field is unknown, missing or out of range.
    """
    if isinstance(spec, Task):
        return spec
    if isinstance(spec, str):
        if spec not in TASKS:
            raise InputError(f"unknown task {spec!r}; choose from {', '.join(TASKS)}, or define it in the YAML")
        return TASKS[spec]
    if missing := sorted({"name", "kind"} - set(spec)):
        raise InputError(f"a task in tasks has no field {missing[0]!r}: {spec}; tasks is a list, each with its fields")
    known = {field.name for field in dataclasses.fields(Task)}
    if unknown := sorted(set(spec) - known):
        raise InputError(f"task {spec['name']!r}: unknown field {unknown[0]!r}; a task has {', '.join(sorted(known))}")
    try:
        return Task(**spec)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError) as error:  # a field of another type than Task's docstring says
        raise InputError(f"task {spec['name']!r}: {error}; see the fields' types in bert_multitask.Task") from error


def course_files(stem: str) -> dict:
    """The names of one task's files in the CS224N default final project."""
    return {"train": f"{stem}-train.csv", "dev": f"{stem}-dev.csv", "test": f"{stem}-test-student.csv"}


TASKS = {
    task.name: task
    for task in (
        Task(
            name="sst",
            kind="classification",
            label="sentiment",
            label_names=("negative", "somewhat negative", "neutral", "somewhat positive", "positive"),
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
            # The labels of GLUE's test splits are hidden (-1).
            hub=HubSource("nyu-mll/glue", "qqp", text="question1", text_pair="question2"),
            course_rows={"train": 283_010, "dev": 40_429, "test": 80_859},
            prediction_column="Predicted_Is_Paraphrase",
        ),
        Task(
            name="sts",
            kind="similarity",
            text="sentence1",
            text_pair="sentence2",
            label="similarity",
            score_range=(0.0, 5.0),
            files=course_files("sts"),
            hub=HubSource("nyu-mll/glue", "stsb", text="sentence1", text_pair="sentence2"),
            course_rows={"train": 6040, "dev": 863, "test": 1725},
            prediction_column="Predicted_Similiary",  # the course's spelling, which its graders read
        ),
        Task(
            name="cfimdb",
            kind="classification",
            label="sentiment",
            label_names=("negative", "positive"),
            files=course_files("ids-cfimdb"),
            hub=HubSource("tasksource/counterfactually-augmented-imdb", text="Text", label="Sentiment"),
            course_rows={"train": 1707, "dev": 245, "test": 488},
            prediction_column="Predicted_Sentiment",
        ),
    )
}
"""The presets, by name: sst, quora, sts (the paper's three) and cfimdb."""
