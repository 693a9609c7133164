"""More training rows from other sources: which they are, in which order, and what they share with dev and test rows."""

import json
from dataclasses import replace

import pytest
from conftest import run_here, run_killed, write_table
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

from bert_multitask.data.rows import load_rows
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS, load_task

PHRASES = [["a fine plot", 3], ["dull", 0], ["", 1], ["the cast", "positive"], ["no label", ""]]


@pytest.fixture
def phrases(tmp_path):
    path = tmp_path / "phrases.tsv"
    write_table(path, ["sentence", "stars"], PHRASES)
    return str(path)


def texts(rows) -> list[tuple]:
    return list(zip(rows["id"], rows["text"], rows["label"], strict=True))


def test_they_follow_the_tasks_own(course_folder, phrases, caplog, propagated_logs):
    """With the columns of their own file; rows with gaps are named by its numbers, and left out."""
    own = load_rows(TASKS["sst"], str(course_folder))
    task = replace(TASKS["sst"], extra_train=({"file": phrases, "label": "stars"},))
    rows = load_rows(task, str(course_folder))
    assert texts(rows["train"])[: len(own["train"])] == texts(own["train"])
    assert texts(rows["train"])[len(own["train"]) :] == [
        ("phrases.tsv:0", "a fine plot", 3),
        ("phrases.tsv:1", "dull", 0),
        ("phrases.tsv:3", "the cast", 4),
    ]
    assert all(texts(rows[split]) == texts(own[split]) for split in ("dev", "test"))
    assert (
        "phrases.tsv: an empty text in row 3;" in caplog.text
        and "phrases.tsv: no label for sst in row 5;" in caplog.text
    )
    assert list(load_rows(task, str(course_folder), splits=["dev"])) == ["dev"]
    assert texts(load_rows(task, str(course_folder), splits=["train"], labelled=())["train"]) == texts(rows["train"])


def test_a_sample_is_the_same_every_time(course_folder, tmp_path):
    path = tmp_path / "more.tsv"
    write_table(path, ["sentence", "sentiment"], [[f"text {number}", number % 5] for number in range(50)])
    task = replace(TASKS["sst"], extra_train=({"file": str(path), "max_samples": 7},))
    first, again = (texts(load_rows(task, str(course_folder))["train"]) for _ in range(2))
    assert first == again and len(first) == 11 + 7
    numbers = [int(text.split()[1]) for _, text, _ in first[11:]]
    assert numbers == sorted(set(numbers)) != list(range(7)), "drawn, in the file's order"


def test_sources_of_one_name_have_different_ids(course_folder, tmp_path):
    """By which a teacher's predictions find their rows."""
    files = [tmp_path / folder / "more.tsv" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        write_table(file, ["sentence", "sentiment"], [[f"from {file.parent.name}", 1]])
    task = replace(TASKS["sst"], extra_train=tuple({"file": str(file)} for file in files))
    found = texts(load_rows(task, str(course_folder))["train"])[11:]
    assert found == [("more.tsv:0", "from a", 1), ("more.tsv-2:0", "from b", 1)]


def test_a_part_of_a_hub_dataset(course_folder, monkeypatch):
    """Its train split is all that is needed of it."""
    asked = []

    def load(path, name, revision, split):
        asked.append(split)
        return DatasetDict({"train": Dataset.from_dict({"text": ["more"], "label": [1]})})

    monkeypatch.setattr("datasets.load_dataset", load)
    hub = {"path": "someone/more", "splits": {"train": "train[:10%]"}}
    rows = load_rows(replace(TASKS["sst"], extra_train=({"hub": hub},)), str(course_folder))["train"]
    assert texts(rows)[11:] == [("more:0", "more", 1)] and asked == [{"train": "train[:10%]"}]


@pytest.mark.parametrize("drop", [False, True])
def test_rows_shared_with_dev_or_test(course_folder, tmp_path, caplog, propagated_logs, drop):
    """But for case, punctuation and which text of the pair comes first."""
    own = load_rows(TASKS["quora"], str(course_folder))
    dev, test = own["dev"][0], own["test"][2]
    path = tmp_path / "pairs.tsv"
    shared = [[dev["text_pair"].upper() + "!", dev["text"], 1], [test["text"], f"({test['text_pair']})", 0]]
    write_table(path, ["one", "two", "same"], [*shared, ["quite", "another", 1]])
    source = {"file": str(path), "text": "one", "text_pair": "two", "label": "same", "drop_shared": drop}
    rows = load_rows(replace(TASKS["quora"], extra_train=(source,)), str(course_folder))["train"]
    assert len(rows) == 14 + (1 if drop else 3) and rows["text"][-1] == "quite"
    fate = "they are left out" if drop else "drop_shared: true leaves them out"
    assert f"2 of 3 rows have the texts of dev or test rows; {fate}" in caplog.text


def test_dev_rows_with_the_texts_of_training_rows_are_counted(tmp_path, caplog, propagated_logs):
    """Those that are scored and trained on: without a label or a text a row is neither."""
    train = [["A fine  plot.", 1], ["dull", 0], ["no label here", ""], ["", 1], ["\N{GRINNING FACE}", 1]]
    dev = [["a FINE plot", 1], ["dull!", ""], ["no label here", 1], ["", 0], ["\N{CRYING FACE}", 0], ["Dull", 0]]
    for split, rows in (("train", train), ("dev", dev)):
        write_table(tmp_path / f"{split}.csv", ["sentence", "label"], rows)
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "dev")}
    task = load_task({"name": "t", "kind": "classification", "label_names": ["no", "yes"], "files": files})
    load_rows(task, splits=["dev"]), load_rows(task, splits=["train"])
    assert not caplog.messages
    load_rows(task)
    assert caplog.messages == ["t: 2 of 5 dev rows have the texts of training rows; their scores are too good"]


def test_a_run_trains_on_them_and_is_resumed_with_them_alone(monkeypatch, config, phrases, capsys):
    spec = {"preset": "sst", "extra_train": [{"file": phrases, "label": "stars"}]}
    flags = ["--max_steps", 4, "--save_steps", 2, "--task_epochs", '{"sst": 2}', "--eval_strategy", "no"]
    runs = {}
    for name, task in (("with", spec), ("without", {"preset": "sst"})):
        out = config.parent / name
        assert run_here(monkeypatch, config, *flags, "--tasks", json.dumps(task), "--output_dir", out) == 0
        runs[name] = load_file(out / "model.safetensors")
        record = json.loads((out / "run.json").read_text())
        assert record["decides"]["rows of sst"]["train"]["rows"] == (14 if name == "with" else 11)
    assert any(not weight.equal(runs["without"][key]) for key, weight in runs["with"].items())
    assert load_task(json.loads((config.parent / "with" / "run.json").read_text())["tasks"][0]).extra_train[0].file
    assert "extra_train" not in (config.parent / "with" / "config.json").read_text(), "a model does not need it"

    out = config.parent / "killed"
    flags += ["--output_dir", out]
    run_killed(monkeypatch, 4, config, *flags, "--tasks", json.dumps(spec))
    flags += ["--resume_from_checkpoint", "--tasks"]
    assert run_here(monkeypatch, config, *flags, json.dumps({"preset": "sst"})) == 2
    assert "cannot be resumed with other settings: rows of sst" in capsys.readouterr().err
    assert run_here(monkeypatch, config, *flags, json.dumps(spec)) == 0
    assert all(weight.equal(runs["with"][key]) for key, weight in load_file(out / "model.safetensors").items())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "has a file or a hub, and not both"),
        ({"file": "x", "max_samples": 0}, "max_samples is 0"),
        ({"file": "x", "share": 0.5}, "unknown field 'share'"),
        ({"file": "x", "hub": {"path": "y"}}, "has a file or a hub"),
        ({"hub": {"nowhere": 1}}, "unknown field 'nowhere'"),
        ({"file": 3}, "file is 3"),
        ({"hub": {"path": "x", "splits": {"test": "test"}}}, "hub: splits has test; expected train"),
    ],
)
def test_mistakes_are_named(source, message):
    with pytest.raises(InputError, match=f"task 'sst': .*{message}"):
        replace(TASKS["sst"], extra_train=(source,))


def test_a_file_that_is_not_there(course_folder):
    task = replace(TASKS["sst"], extra_train=({"file": "nowhere.tsv"},))
    with pytest.raises(InputError, match="nowhere.tsv"):
        load_rows(task, str(course_folder))
