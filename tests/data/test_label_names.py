"""Label names that the training rows say, from files, the Hub and memory."""

import json

import pytest
from conftest import run_here, write_config
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bert_multitask.data.rows import load_rows, with_label_names
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import Task, load_task

OPEN = {"name": "t", "kind": "classification", "text": "text"}


def names_of(labels, kind="classification", **fields) -> tuple[str, ...]:
    rows = [{"text": f"a b {number}", "label": label} for number, label in enumerate(labels)]
    return with_label_names(OPEN | {"kind": kind} | fields, rows=rows).label_names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "c", "a"], ("a", "b", "c")),
        (["b ", "a", "B", " A", "", None, "NA"], ("a", "b")),
        (["10", "9", "1.0", 1], ("1", "9", "10")),
        ([2, 0, 1.0], ("0", "1", "2")),
        ([True, False], ("false", "true")),
        (["x", "7", "10"], ("7", "10", "x")),
    ],
)
def test_the_different_labels_sorted(labels, names):
    assert names_of(labels) == names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["yes", "no"], ("no", "yes")),
        ([1, 0], ("0", "1")),
        ([True, False], ("false", "true")),
        (["unclear", "Negative"], ("Negative", "unclear")),
        ([2, 1], ("1", "2")),
    ],
)
def test_yes_is_the_last(labels, names):
    assert names_of(labels, "binary") == names


def test_lists_and_tags():
    assert names_of([["b", "a"], [], ["c"], None], "multilabel") == ("a", "b", "c")
    assert names_of(["b|a", "|", "c", ""], "multilabel") == ("a", "b", "c")
    assert names_of(["O B-X O", "O O O"], "token_classification") == ("B-X", "O")
    assert names_of([["O", "B-X", None], ["O", "O", "O"]], "token_classification") == ("B-X", "O")


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        (["spam", "ham"], {"kind": "binary"}, "labels are 'ham' and 'spam', and which one is yes cannot be seen"),
        (["a", "a", None], {}, "a task of kind 'classification' needs two or more label_names; it has 1"),
        (["a", "b", "c"], {"kind": "binary"}, "needs two label_names; it has 3"),
        ([1, -1, 1], {}, "row 2: label has '-1', which may be no class; give task 't' label_names"),
        ([0.5, 1.5], {}, "row 1: label has '0.5', which may be no class"),
        ([f"text {n}" for n in range(30)], {}, "label has 30 different values in 30 labels; give task 't' label_names"),
        ([{"a": 1}], {}, "row 1: label has .* which may be no class"),
        (["NN", "VB"], {"kind": "token_classification"}, "say metric: accuracy"),
        (["a", "b"], {"label": "gold"}, "row 1: no column 'gold'"),
    ],
)
def test_what_says_no_names_is_refused(labels, fields, message):
    with pytest.raises(InputError, match=message) as error:
        names_of(labels, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_label_has_its_own_order(tmp_path, monkeypatch, nested):
    feature = ClassLabel(names=["z", "a", "never"])
    features = Features({"text": Value("string"), "label": List(feature) if nested else feature})
    labels = [[0, 1], [1]] if nested else [0, 1]
    rows = Dataset.from_dict({"text": ["a", "b"], "label": labels}, features)
    rows.to_parquet(tmp_path / "train.parquet")
    fields = OPEN | {"kind": "multilabel" if nested else "classification"}
    file = fields | {"files": {"train": str(tmp_path / "train.parquet"), "dev": str(tmp_path / "train.parquet")}}
    hub = fields | {"hub": {"path": "some/rows"}}
    monkeypatch.setattr("datasets.load_dataset", lambda path, name, revision, split: dict.fromkeys(split, rows))
    splits = DatasetDict(validation=rows.select([]), train=rows)
    memory = [with_label_names(fields, rows=given) for given in (rows, splits)]
    found = [*memory, with_label_names(file), with_label_names(hub)]
    assert [task.label_names for task in found] == [("z", "a", "never")] * 4
    assert load_rows(found[2])["dev"]["label"][:] == ([[1, 1, 0], [0, 1, 0]] if nested else [0, 1])


def test_a_parquet_file_of_texts(tmp_path):
    path = tmp_path / "train.parquet"
    Dataset.from_dict({"text": ["x", "y", "z"], "label": ["b", None, "a"]}).to_parquet(path)
    assert with_label_names(OPEN | {"files": {"train": str(path), "dev": str(path)}}).label_names == ("a", "b")


def test_names_that_are_given_stay_and_nothing_is_read():
    task = load_task("sst")
    assert with_label_names(task, "no/such/folder") is task
    assert with_label_names("sts", "no/such/folder") is load_task("sts")


def test_an_open_task_is_refused_where_names_are_needed(tiny_bert):
    with pytest.raises(
        InputError, match="task 't': a task of kind 'classification' needs label_names here; .*with_label_names"
    ):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[OPEN])
    with pytest.raises(InputError, match="needs label_names here"):
        load_rows(Task(**OPEN))


def write_files(folder, dev: str) -> list[dict]:
    (folder / "train.csv").write_text("text,label\n" + "".join(f"text {n},{'ba'[n % 2]}\n" for n in range(8)))
    (folder / "dev.csv").write_text("text,label\n" + "".join(f"other {n},{label}\n" for n, label in enumerate(dev)))
    return OPEN | {"epochs": 1, "files": {"train": str(folder / "train.csv"), "dev": str(folder / "dev.csv")}}


def test_a_run_says_and_keeps_them(tmp_path, tiny_bert, course_folder, monkeypatch, capsys):
    task = write_files(tmp_path, "aabb")
    config = write_config(tmp_path, tiny_bert, course_folder)
    flags = ["--tasks", json.dumps(task), "--task_epochs", "{}", "--max_steps", 1]
    assert run_here(monkeypatch, config, *flags) == 0
    assert "t            label_names from its training rows: a, b\n" in capsys.readouterr().out
    run = tmp_path / "run"
    (recorded,) = json.loads((run / "run.json").read_text())["tasks"]
    assert recorded["label_names"] == ["a", "b"]
    assert json.loads((run / "config.json").read_text())["tasks"][0]["label_names"] == ["a", "b"]
    # What the training file says later changes nothing.
    (tmp_path / "train.csv").write_text("text,label\nx,c\ny,d\n")
    assert run_here(monkeypatch, run, "--split", "dev", "--output_dir", tmp_path / "out", recipe="predict") == 0
    predicted = {line.split(",")[1] for line in (tmp_path / "out" / "t-dev.csv").read_text().splitlines()[1:]}
    assert predicted <= {"a", "b"}


def test_a_label_of_dev_that_train_has_not_is_refused(tmp_path, tiny_bert, course_folder, monkeypatch, capsys):
    task = write_files(tmp_path, "abc")
    config = write_config(tmp_path, tiny_bert, course_folder)
    assert run_here(monkeypatch, config, "--tasks", json.dumps(task), "--task_epochs", "{}") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "dev.csv, row 3: label is 'c'; expected" in error[0] and "a, b" in error[0]


def test_a_file_without_rows_is_named(tmp_path):
    (tmp_path / "header.csv").write_text("text,label\n")
    spec = OPEN | {"files": {"train": str(tmp_path / "header.csv")}, "dev_share": 0.1}
    with pytest.raises(InputError, match="header.csv: has no rows; task 't'"):
        with_label_names(spec)
    with pytest.raises(InputError, match="header.csv: has no rows; task 't'"):
        load_rows(load_task(spec | {"label_names": ["a", "b"]}))
