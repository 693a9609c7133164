"""Tasks as plain data: presets, custom tasks, and what is refused."""

import dataclasses
import json

import pytest
import yaml

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


def test_a_task_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Task(name="x", kind="binary", label_names=("n", "y")).epochs = 3
