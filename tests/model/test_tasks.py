"""Tasks as plain data: presets, custom tasks, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from sklearn.utils.class_weight import compute_class_weight

from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS, Task, load_task, load_tasks

NLI = """
name: nli
kind: classification
text: premise
text_pair: hypothesis
label: gold
label_names: [entailment, neutral, contradiction]
epochs: 2
files: {train: nli-train.tsv, dev: nli-dev.tsv}
hub: {path: nyu-mll/glue, name: mnli, text: premise, text_pair: hypothesis}
"""


def test_a_preset_with_other_fields():
    changed = load_task({"preset": "sts", "pooling": "mean", "epochs": 2})
    assert changed == dataclasses.replace(TASKS["sts"], pooling="mean", epochs=2)
    with pytest.raises(InputError, match="unknown task 'stsb'"):
        load_task({"preset": "stsb"})
    with pytest.raises(InputError, match="unknown field 'poling'"):
        load_task({"preset": "sts", "poling": "mean"})


def test_names_are_of_known_tasks_before_presets():
    """Those of a trained run: a task, a group, or a task of the group; also as what other fields are changed of."""
    own = {"kind": "binary", "label_names": ["no", "yes"]}
    group = {"name": "tickets", "text": "body", "labels": [own | {"name": "urgent"}, own | {"name": "late"}]}
    known = load_tasks([own | {"name": "sst", "epochs": 2}, group])
    tasks = load_tasks(["tickets", "sst", "sts", {"preset": "urgent", "name": "again"}], known=known)
    assert [*tasks] == ["urgent", "late", "sst", "sts", "again"]
    assert (tasks["sst"], tasks["sts"]) == (known["sst"], TASKS["sts"])
    assert tasks["again"] == dataclasses.replace(known["urgent"], name="again")
    assert [*load_tasks(["late"], known=known)] == ["late"]
    with pytest.raises(InputError, match="unknown task 'tickets'; choose from sst, quora"):
        load_tasks(["tickets"])
    with pytest.raises(InputError, match="unknown task 'lat'; choose from .*, late, or give"):
        load_tasks(["lat"], known=known)


def test_presets_hold_the_papers_values():
    assert [len(TASKS[name].label_names or ()) for name in ("sst", "quora", "sts", "cfimdb")] == [5, 2, 0, 2]
    assert TASKS["sts"].score_range == (0, 5)
    assert [TASKS[name].epochs for name in ("sst", "quora", "sts")] == [10, 3, 10]
    assert {TASKS[name].dropout for name in ("sst", "quora", "sts", "cfimdb")} == {0.3}
    assert TASKS["quora"].course_rows == {"train": 283_010, "dev": 40_429, "test": 80_859}


def test_glues_presets_have_its_metrics():
    metrics = {name.removeprefix("glue/"): task.metric for name, task in TASKS.items() if name.startswith("glue/")}
    f1 = dict.fromkeys(("mrpc", "qqp"), "f1")
    accuracy = dict.fromkeys(("sst2", "mnli", "qnli", "rte", "wnli"), "accuracy")
    assert metrics == f1 | accuracy | {"cola": "matthews", "stsb": "pearson"}
    assert TASKS["glue/stsb"].score_range == (0, 5)
    assert load_tasks(["glue/mrpc", "glue/rte", "sst"]).keys() == {"mrpc", "rte", "sst"}


def test_a_task_is_ten_lines_of_yaml():
    task = load_task(yaml.safe_load(NLI))
    assert task.label_names == ("entailment", "neutral", "contradiction")
    assert (task.loss, task.metric) == ("cross_entropy", "accuracy")
    assert task.hub.name == "mnli" and task.hub.label == "label"


def test_columns_that_are_not_given_are_the_hubs():
    hub = {"path": "a/b", "text": ["title", "body"], "text_pair": "reply", "label": "tag"}
    columns = ("text", "text_pair", "label")

    def found(**fields) -> list:
        task = load_task(CLASSES | fields)
        restored = load_task(json.loads(json.dumps(task.to_config())))
        assert (again := [getattr(task, column) for column in columns]) == [getattr(restored, c) for c in columns]
        return again

    assert found() == ["sentence", None, "label"]
    assert found(hub={"path": "a/b"}) == ["text", None, "label"]
    assert found(hub=hub) == [("title", "body"), "reply", "tag"]
    assert found(hub=hub, text="sentence", label="label") == ["sentence", "reply", "label"]


@pytest.mark.parametrize("task", [*TASKS.values(), load_task(yaml.safe_load(NLI))], ids=lambda task: task.name)
def test_round_trip_through_a_checkpoints_json(task):
    restored = load_task(json.loads(json.dumps(task.to_config())))
    assert restored == dataclasses.replace(task, files=None, hub=None, course_rows=None)


def test_load_task_passes_tasks_and_names():
    assert load_task("sst") is TASKS["sst"]
    assert load_task(TASKS["sts"]) is TASKS["sts"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sentiment", "unknown task 'sentiment'; choose from sst, quora, sts, cfimdb"),
        ({"name": "x", "kind": "classification", "colour": 1}, "unknown field 'colour'; its fields are .*, "),
        ({"name": "x", "kind": "classification", "epoch": 1}, r"unknown field 'epoch'; did you mean epochs\?$"),
        ({"name": "x"}, "^task 'x': kind is missing; choose one of classification, binary, .*token_classification$"),
        ({"kind": "binary"}, "^a task in tasks has no name"),
        ({"sst": {"kind": "binary"}}, "has no name: {'sst': .*tasks is a list, each with its fields"),
        ({"name": "x", "kind": "ranking"}, "kind is 'ranking'; choose one of classification, binary, regression"),
        ({"name": "a b", "kind": "binary", "label_names": ["n", "y"]}, "identifier"),
        (
            {"name": "x", "kind": "binary", "label_names": [False, True]},
            "has true or false; write texts, as 'no', 'yes'",
        ),
        ({"name": "x", "kind": "classification"}, "a task of kind 'classification' needs label_names"),
        ({"name": "x", "kind": "binary", "label_names": ["a", "b", "c"]}, "two label_names"),
        ({"name": "x", "kind": "similarity", "score_range": [5, 0]}, "score_range"),
        ({"name": "x", "kind": "binary", "label_names": ["n", "y"], "dropout": 1.5}, "dropout is 1.5"),
        ({"name": "x", "kind": "binary", "label_names": ["n", "y"], "epochs": 0}, "epochs is 0"),
        ({"name": "x", "kind": "classification", "label_names": 3}, "task 'x': label_names is 3; expected"),
        ({"name": "x", "kind": "similarity", "score_range": 5}, "task 'x': score_range is 5; expected"),
        ({"name": "x", "kind": "binary", "label_names": ["n", "y"], "hub": {"url": "a"}}, "task 'x': .*'url'"),
        (
            {"name": "x", "kind": "binary", "label_names": ["n", "y"], "files": {"train": "a", "valid": "b"}},
            "files has",
        ),
        ({"name": "x", "kind": "binary", "label_names": ["n", "y"], "files": "a.tsv"}, "files is 'a.tsv'; expected"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(InputError, match=message):
        load_task(spec)


TWO = {"name": "x", "kind": "binary", "label_names": ["n", "y"]}
SCORE = {"name": "x", "kind": "similarity", "score_range": [0, 5]}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TWO | {"class_weights": {"n": 1, "yes": 2}}, "class_weights has 'yes'; the label_names are n, y"),
        (TWO | {"class_weights": {"y": 2}}, "class_weights has no weight for 'n'"),
        (TWO | {"class_weights": {"n": 1, "y": 0}}, "class_weights: 'y' has 0; expected a number above 0"),
        (TWO | {"class_weights": {"n": -1, "y": 1}}, "'n' has -1"),
        (TWO | {"class_weights": {"n": float("nan"), "y": 1}}, "'n' has nan"),
        (TWO | {"class_weights": {"n": float("inf"), "y": 1}}, "'n' has inf"),
        (TWO | {"class_weights": {"n": True, "y": 1}}, "'n' has True"),
        (TWO | {"class_weights": {"n": "1", "y": 1}}, "'n' has '1'"),
        (TWO | {"class_weights": [1, 2]}, "class_weights.*"),
        (TWO | {"class_weights": {}}, "class_weights has no weight for 'n'"),
        (TWO | {"class_weights": "balance"}, "class_weights is 'balance'; expected 'balanced'"),
        (SCORE | {"class_weights": "balanced"}, "class_weights is 'balanced'; .*'regression' has no classes"),
        (SCORE | {"class_weights": {"a": 1}}, "'regression' has no classes; leave class_weights out"),
        (SCORE | {"label_smoothing": 0.1}, "label_smoothing is 0.1; .*'regression' has no classes"),
        (TWO | {"label_smoothing": 1}, "label_smoothing is 1; expected a share"),
        (TWO | {"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        (TWO | {"label_smoothing": float("nan")}, "label_smoothing is nan"),
        (TWO | {"label_smoothing": True}, "label_smoothing.*True"),
    ],
)
def test_class_weights_and_label_smoothing_are_checked(spec, message):
    with pytest.raises(InputError, match=f"task 'x': .*{message}"):
        load_task(spec)


def test_class_weights_are_in_the_order_of_the_classes():
    """Also after a round trip through JSON that sorts keys, and where YAML reads names as numbers."""
    task = load_task({"name": "x", "kind": "binary", "label_names": [2, 1], "class_weights": {1: 3, 2: 1}})
    assert task.class_weights == {"2": 1.0, "1": 3.0}
    restored = load_task(json.loads(json.dumps(task.to_config(), sort_keys=True)))
    assert restored == task and restored.loss_options == {"class_weights": (1.0, 3.0)}
    smooth = dataclasses.replace(task, class_weights=None, label_smoothing=0.1)
    assert smooth.loss_options == {"label_smoothing": 0.1} and TASKS["sts"].loss_options == {}


def test_balanced_class_weights_are_scikit_learns():
    labels = [0, 0, 0, 2, 1, 1, 0, -100, 2]
    task = load_task({"name": "x", "kind": "classification", "label_names": list("abc"), "class_weights": "balanced"})
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[label for label in labels if label >= 0])
    assert task.balance(labels).loss_options["class_weights"] == pytest.approx(tuple(expected))
    assert TASKS["sst"].balance(labels) is TASKS["sst"]
    with pytest.raises(InputError, match="no training row has the label 'c'"):
        task.balance([0, 1, 1])
    with pytest.raises(InputError, match="no training labels have been counted"):
        _ = task.loss_options


def test_a_task_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Task(name="x", kind="binary", label_names=("n", "y")).epochs = 3


CLASSES = {"name": "x", "kind": "classification", "label_names": ["a", "b"]}
TAGS = {"name": "x", "kind": "token_classification", "label_names": ["O", "B-A"]}
SCORES = {"name": "x", "kind": "similarity", "score_range": [0, 5]}
HUB = {"path": "facebook/xnli"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (CLASSES | {"files": ["train.csv", "dev.csv"]}, "files"),
        (CLASSES | {"files": {"train": "a", "dev": "b", "test": None}}, "files"),
        (CLASSES | {"files": {"train": 1, "dev": "b"}}, "files"),
        (CLASSES | {"files": {}}, "files"),
        (CLASSES | {"text": 3}, "text"),
        (CLASSES | {"text_pair": 0}, "text_pair"),
        (CLASSES | {"text": []}, "text"),
        (CLASSES | {"text_pair": ["a", "a"]}, "text_pair"),
        (CLASSES | {"text": ["a", 1]}, "text"),
        (CLASSES | {"hub": HUB | {"text": []}}, "hub: text"),
        (TAGS | {"text": ["a", "b"]}, "text"),
        (CLASSES | {"files": {"train": "a"}}, "files has train; .*dev_share"),
        (CLASSES | {"files": {"train": "a", "dev": "b"}, "dev_share": 0.1}, "files has train, dev; .*dev_share"),
        (CLASSES | {"hub": HUB, "dev_share": 0.1}, "hub: splits has train, dev, test; .*dev_share"),
        (CLASSES | {"files": {"train": "a"}, "dev_share": 0}, "dev_share is 0"),
        (CLASSES | {"files": {"train": "a"}, "dev_share": 0.6}, "dev_share is 0.6"),
        (CLASSES | {"hub": "facebook/xnli"}, "hub"),
        (CLASSES | {"hub": {"name": "de"}}, "hub: path is missing"),
        (CLASSES | {"hub": HUB, "text_pair": "b"}, "has a text_pair but hub has none; add text_pair"),
        (CLASSES | {"hub": HUB, "text_pair": "b", "pair_encoding": "joint"}, "hub has none; add text_pair"),
        (CLASSES | {"extra_train": [{"hub": HUB | {"text_pair": "b"}}]}, "extra_train: hub has text_pair 'b'"),
        (CLASSES | {"extra_train": [{"hub": HUB}], "text_pair": "b"}, "but extra_train: hub has none"),
        (CLASSES | {"extra_train": [{"file": "a.csv", "text_pair": "b"}]}, "extra_train has text_pair 'b' but"),
        (CLASSES | {"extra_train": [{"hub": HUB, "label": "b"}]}, "label is of a file; .*hub"),
        (CLASSES | {"hub": HUB | {"url": "a"}}, "hub: .*url"),
        (CLASSES | {"hub": HUB | {"text": 1}}, "hub: text"),
        (CLASSES | {"hub": HUB | {"splits": ["train", "dev"]}}, "hub: splits"),
        (CLASSES | {"hub": HUB | {"splits": {"train": "train", "validation": "validation"}}}, "hub: splits"),
        (CLASSES | {"hub": HUB | {"splits": {"train": "train", "dev": None}}}, "hub: splits"),
        (CLASSES | {"hub": HUB | {"label_names": "a, b"}}, "hub: label_names"),
        (CLASSES | {"label_names": "neg, pos"}, "label_names"),
        (CLASSES | {"label_names": {"neg": 0, "pos": 1}}, "label_names"),
        (CLASSES | {"label_names": ["a", "A", "b"]}, "label_names"),
        (CLASSES | {"label_names": ["a", " a"]}, "label_names"),
        (CLASSES | {"label_names": ["a", "a"]}, "label_names"),
        (CLASSES | {"label_names": ["1", 1.0]}, "label_names"),
        (CLASSES | {"label_names": ["a", " "]}, "label_names"),
        (CLASSES | {"label_names": ["a", None]}, "label_names"),
        (CLASSES | {"label_names": ["a", ["b"]]}, "label_names"),
        (CLASSES | {"label_names": ["a", "b\nc"]}, "label_names"),
        (CLASSES | {"label_names": ["a", "b\x1b[2J"]}, "label_names"),
        (CLASSES | {"label_names": ["a", "b\u2028c"]}, "label_names"),
        (CLASSES | {"label_names": ["a", "\ud83d"]}, "label_names"),
        (CLASSES | {"score_range": [0, 5]}, "score_range is .0.*5.*has label_names.*leave score_range out"),
        (SCORES | {"label_names": ["a", "b"]}, "label_names is ..a., .b..;.*may have score_range: .lowest, highest."),
        (SCORES | {"score_range": ["0", "5"]}, "score_range"),
        (SCORES | {"score_range": [0, float("nan")]}, "score_range"),
        (SCORES | {"score_range": [0, float("inf")]}, "score_range"),
        (SCORES | {"score_range": [0, 10**400]}, "score_range"),
        (SCORES | {"score_range": []}, r"score_range is \[\]; expected"),
        (SCORES | {"score_range": [0, 1, 2]}, r"score_range is \[0.0, 1.0, 2.0\]; expected"),
        (SCORES | {"extra_train": ["more.csv"]}, r"extra_train is \['more.csv'\]; expected \[{file: value, …}, …\]"),
        (SCORES | {"score_range": []}, "score_range"),
        (SCORES | {"score_range": [False, True]}, "score_range"),
        (SCORES | {"dropout": "0.1"}, "dropout"),
        (SCORES | {"dropout": None}, "dropout"),
        (SCORES | {"dropout": float("nan")}, "dropout"),
        (SCORES | {"epochs": True}, "epochs"),
        (SCORES | {"epochs": 2.0}, "epochs"),
        (SCORES | {"max_train_samples": "all"}, "max_train_samples"),
        (SCORES | {"smart_weight": True}, "smart_weight"),
        (SCORES | {"bregman_weight": float("inf")}, "bregman_weight"),
        (SCORES | {"course_rows": {"train": 5}}, "course_rows"),
        (SCORES | {"prediction_column": 1}, "prediction_column"),
        (SCORES | {"metric": ["pearson"]}, "metric"),
        (SCORES | {5: 6}, "'5'"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_a_field_of_another_type_is_named(fields, field):
    with pytest.raises(InputError, match=f"^task 'x': .*{field}") as error:
        load_task(fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", [3, None, ["sst"], {"kind": "binary"}], ids=["number", "nothing", "list", "no name"])
def test_what_is_no_task_is_refused(spec):
    with pytest.raises(InputError, match="task"):
        load_task(spec)
    with pytest.raises(InputError, match="name is 3; expected a text .*in quotes"):
        load_task(CLASSES | {"name": 3})


def test_a_prompt_keeps_its_white_space_and_words_have_none():
    task = load_task({"preset": "sst", "prompt": "mood: "})
    assert task.prompt == "mood: " and load_task(task.to_config()).prompt == "mood: "
    for other in ({"truncation": "tail"}, {"word_by_word": True}):
        with pytest.raises(InputError, match=r"task 'sst': prompt is 'mood: '"):
            load_task({"preset": "sst", "prompt": "mood: "} | other)


def test_whole_numbers_are_numbers_and_names_lose_white_space():
    task = load_task(SCORES | {"dropout": 0, "score_range": [-100, 100]})
    assert task.score_range == (-100.0, 100.0) and isinstance(task.score_range[0], float) and task.dropout == 0
    assert load_task(CLASSES | {"label_names": [" a ", 1, 0.5]}).label_names == ("a", "1", "0.5")


@pytest.mark.parametrize("name", ["overall", "loss", "runtime", "eval_a", "keys", "type", "training", "_modules"])
def test_reserved_names_are_refused(name):
    with pytest.raises(InputError, match=f"task '{name}': this name is reserved"):
        load_task(CLASSES | {"name": name})


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"name": "a"}, {"name": "a"}, "names 'a' twice"),
        ({"name": "Nli"}, {"name": "nli"}, "'Nli' and 'nli' would both have files"),
        ({"name": "caf\u00e9"}, {"name": "cafe\u0301"}, "would both have files"),
        ({"name": "a", "metric": "b_c"}, {"name": "a_b", "metric": "c"}, "both have a score eval_a_b_c"),
        ({"name": "a", "metric": "b_loss"}, {"name": "a_b"}, "both have a score eval_a_b_loss"),
    ],
    ids=["one name", "case", "composed letters", "metrics", "a metric and a loss"],
)
def test_tasks_that_would_share_files_or_scores_are_refused(first, second, message):
    with pytest.raises(InputError, match=message):
        load_tasks([CLASSES | first, CLASSES | second])
    assert list(load_tasks(["sst", CLASSES])) == ["sst", "x"]
