"""Tasks as plain data: presets, custom tasks, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from sklearn.utils.class_weight import compute_class_weight

from bert_multitask.configuration import InputError
from bert_multitask.tasks import TASKS, Task, load_task

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


def test_presets_hold_the_papers_values():
    assert [len(TASKS[name].label_names or ()) for name in ("sst", "quora", "sts", "cfimdb")] == [5, 2, 0, 2]
    assert TASKS["sts"].score_range == (0, 5)
    assert [TASKS[name].epochs for name in ("sst", "quora", "sts")] == [10, 3, 10]
    assert {task.dropout for task in TASKS.values()} == {0.3}
    assert TASKS["quora"].course_rows == {"train": 283_010, "dev": 40_429, "test": 80_859}


def test_a_task_is_ten_lines_of_yaml():
    task = load_task(yaml.safe_load(NLI))
    assert task.label_names == ("entailment", "neutral", "contradiction")
    assert (task.loss, task.metric) == ("cross_entropy", "accuracy")
    assert task.hub.name == "mnli" and task.hub.label == "label"


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
        ({"name": "x", "kind": "classification", "colour": 1}, "unknown field 'colour'"),
        ({"name": "x"}, "no field 'kind'"),
        ({"name": "x", "kind": "regression"}, "kind is 'regression'; choose one of"),
        ({"name": "a b", "kind": "binary", "label_names": ["n", "y"]}, "identifier"),
        ({"name": "x", "kind": "binary", "label_names": [False, True]}, "YAML reads a bare yes or no so"),
        ({"name": "x", "kind": "classification"}, "two or more label_names"),
        ({"name": "x", "kind": "binary", "label_names": ["a", "b", "c"]}, "two label_names"),
        ({"name": "x", "kind": "similarity"}, "score_range"),
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
        (SCORE | {"class_weights": "balanced"}, "class_weights is 'balanced'; a similarity task has no classes"),
        (SCORE | {"class_weights": {"a": 1}}, "a similarity task has no classes"),
        (SCORE | {"label_smoothing": 0.1}, "label_smoothing is 0.1; a similarity task has no classes"),
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
