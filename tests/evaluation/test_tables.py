"""Prediction tables and files, and prediction of plain strings."""

import csv
import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from bert_multitask.evaluation.tables import TEXTS, prediction_table, read_predictions, write_predictions
from bert_multitask.model.errors import InputError
from bert_multitask.model.kinds import KINDS
from bert_multitask.model.tasks import TASKS, Task

LOGITS = {
    "sst": np.array([[0, 1, 2, 3, 4.0], [9, 0, 0, 0, 0]]),
    "quora": np.array([2.0, -1.0]),
    "sts": np.array([1.25, 4.5]),
}


def test_tables():
    table = prediction_table(TASKS["sst"], ["x", "y"], LOGITS["sst"])
    assert table["id"][:] == ["x", "y"] and table["label"][:] == [4, 0]
    exponentials = np.exp(LOGITS["sst"])
    np.testing.assert_allclose(table["probabilities"], exponentials / exponentials.sum(-1, keepdims=True), rtol=1e-5)

    table = prediction_table(TASKS["quora"], ["x", "y"], LOGITS["quora"])
    yes = 1 / (1 + np.exp(-LOGITS["quora"]))
    assert table["label"][:] == [1, 0]
    np.testing.assert_allclose(table["probabilities"], np.stack([1 - yes, yes], -1), rtol=1e-5)

    assert prediction_table(TASKS["sts"], ["x", "y"], LOGITS["sts"])["score"][:] == [1.25, 4.5]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("sst", "id \t Predicted_Sentiment \nx , 4 \ny , 0 \n"),
        ("quora", "id \t Predicted_Is_Paraphrase \nx , 1 \ny , 0 \n"),
        ("sts", "id \t Predicted_Similiary \nx , 1.25 \ny , 4.5 \n"),
    ],
)
def test_files_have_the_courses_form(tmp_path, task, text):
    table = prediction_table(TASKS[task], ["x", "y"], LOGITS[task])
    write_predictions(TASKS[task], table, tmp_path / "new" / f"{task}-dev")
    assert (tmp_path / "new" / f"{task}-dev.csv").read_text() == text
    parquet = load_dataset("parquet", data_files=str(tmp_path / "new" / f"{task}-dev.parquet"), split="train")
    assert parquet[:] == table[:]


def test_files_of_a_users_own_task_have_names(tmp_path):
    """Read back by pandas; the Parquet file knows the task."""
    names = ("entailment", 'so, "so"', "contradiction")
    task = Task(name="nli", kind="classification", text_pair="hypothesis", label_names=names, epochs=2)
    table = prediction_table(task, ["a,b", "y"], np.array([[0, 3, 1.0], [2, 0, 1]]))
    write_predictions(task, table, tmp_path / "nli-dev")
    frame = pd.read_csv(tmp_path / "nli-dev.csv")
    assert frame.columns.tolist() == ["id", "label", "probability"]
    assert frame["id"].tolist() == ["a,b", "y"] and frame["label"].tolist() == [names[1], names[0]]
    np.testing.assert_allclose(frame["probability"], np.max(table["probabilities"][:], axis=1))
    read = read_predictions(tmp_path / "nli-dev.parquet")
    assert read.task == task and read.table[:] == table[:]

    score = Task(name="years", kind="regression", score_range=(0, 99))
    table = prediction_table(score, ["x"], np.array([41.5]))
    for written in (table, table.add_column(TEXTS, ["0123456789abcdef"])):
        write_predictions(score, written, tmp_path / "years-dev")
        assert (tmp_path / "years-dev.csv").read_text() == "id,score\nx,41.5\n"


def test_predicted_scores_may_lie_outside_the_labels_range(tmp_path):
    """As a cosine of 1 does by rounding."""
    table = prediction_table(TASKS["sts"], ["x", "y"], np.array([5.000001, -0.2]))
    write_predictions(TASKS["sts"], table, tmp_path / "sts-dev")
    assert read_predictions(tmp_path / "sts-dev.csv").table[:] == table[:]
    for value in ("nan", "much", "inf"):
        (tmp_path / "sts-dev.csv").write_text(f"id \t Predicted_Similiary \nx , {value} \n")
        with pytest.raises(InputError, match=f"sts-dev.csv: row 1 has the score '?{value}'?; expected a number"):
            read_predictions(tmp_path / "sts-dev.csv")


def test_files_without_a_task_or_a_table_are_refused(tmp_path):
    pd.DataFrame({"id": ["x"], "label": [1]}).to_parquet(tmp_path / "nli-dev.parquet")
    (tmp_path / "sst-dev.parquet").write_bytes(b"not Parquet")
    for name, message in [("nli", "does not say what its task is"), ("sst", "cannot be read as Parquet")]:
        with pytest.raises(InputError, match=f"{name}-dev.parquet: {message}"):
            read_predictions(tmp_path / f"{name}-dev.parquet")


ODD_IDS = ["a , b", " x ", "\x85", "a\u2028", "\x0b", "\x1c", "\r", "", "=1+1"]
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=8) | st.sampled_from(ODD_IDS)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(IDS, unique=True))
@example(ids=ODD_IDS)
@pytest.mark.parametrize("name", ["sst", "quora", "sts"])
def test_whatever_ids_rows_have_are_read_as_they_were_written(tmp_path, name, ids):
    task = TASKS[name]
    logits = np.random.default_rng(0).normal(size=(len(ids), 5) if name == "sst" else len(ids))
    table = prediction_table(task, ids, logits)
    write_predictions(task, table, tmp_path / f"{name}-dev")
    decision = KINDS[task.kind].decision
    for form in ("csv", "parquet"):
        read = read_predictions(tmp_path / f"{name}-dev.{form}").table
        assert read["id"][:] == ids and read[decision][:] == table[decision][:]


def test_a_course_file_from_windows_or_excel(tmp_path):
    (tmp_path / "sst-dev.csv").write_bytes("\ufeffid \t Predicted_Sentiment \r\nx , 4 \r\ny,0\r\n".encode())
    table = read_predictions(tmp_path / "sst-dev.csv").table
    assert table[:] == {"id": ["x", "y"], "label": [4, 0]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param("x , 4 \nx , 3 \n", "rows 1 and 2 both have the id 'x'", id="an id twice"),
        pytest.param("x , 4 \ny\n", "row 2 is 'y'; expected", id="no comma"),
        pytest.param("x , 4 \n\ny , 3 \n", "row 2 is ''", id="a blank line"),
        pytest.param("x , 4 \ny , 7 \n", "row 2 has the label '7'; expected a class from 0 to 4", id="no class"),
        pytest.param("x , 4 \ny , nan \n", "row 2 has the label 'nan'", id="NaN"),
        pytest.param("x , \n", "row 1 has the label ''", id="nothing"),
    ],
)
def test_damaged_course_files_are_refused(tmp_path, lines, message):
    (tmp_path / "sst-dev.csv").write_text("id \t Predicted_Sentiment \n" + lines)
    with pytest.raises(InputError, match=f"sst-dev.csv: {message}"):
        read_predictions(tmp_path / "sst-dev.csv")


def test_an_id_of_two_lines_is_refused_before_anything_is_written(tmp_path):
    table = prediction_table(TASKS["sts"], ["a", "b\nc"], np.zeros(2))
    with pytest.raises(InputError, match=r"sts-dev.csv: the id 'b\\nc' has a line break"):
        write_predictions(TASKS["sts"], table, tmp_path / "sts-dev")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("task", ["sst", "own"])
def test_a_full_disk_harms_no_file_that_was_there(tmp_path, monkeypatch, task, form):
    task = TASKS["sst"] if task == "sst" else Task(name="own", kind="binary", label_names=("n", "y"))
    old, new = (
        prediction_table(task, ["x", "y"], sign * (LOGITS["sst"] if task.name == "sst" else LOGITS["quora"]))
        for sign in (1, -1)
    )
    write_predictions(task, old, tmp_path / f"{task.name}-dev")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def replace(draft, path, whole=os.replace):
        if path.name.endswith(form):
            Path(draft).write_bytes(Path(draft).read_bytes()[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(draft, path)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(InputError, match=f"{task.name}-dev.{form}: cannot be written: No space left"):
        write_predictions(task, new, tmp_path / f"{task.name}-dev")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys() and after[f"{task.name}-dev.{form}"] == before[f"{task.name}-dev.{form}"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/new/sts-dev.csv: cannot be written: Not a directory"):
        write_predictions(
            TASKS["sts"], prediction_table(TASKS["sts"], ["x"], np.zeros(1)), tmp_path / "file/new/sts-dev"
        )


FORMULAS = ["=1+1", "+x", "-x", "@sum(a1)", "\tx", "=", "'", "-1", "+2.5", "x=1", "-"]


def test_ids_that_a_spreadsheet_would_run_are_written_as_text(tmp_path, caplog, propagated_logs):
    """In a plain table alone: the course's form is its graders'. The Parquet file has them as they are."""
    task = Task(name="years", kind="regression", score_range=(0, 99))
    write_predictions(task, prediction_table(task, FORMULAS, np.zeros(len(FORMULAS))), tmp_path / "years-dev")
    with open(tmp_path / "years-dev.csv", newline="") as file:
        written = [row["id"] for row in csv.DictReader(file)]
    assert written == ["'=1+1", "'+x", "'-x", "'@sum(a1)", "'\tx", "'=", "'", "-1", "+2.5", "x=1", "'-"]
    assert "years-dev.csv: 7 ids begin as a spreadsheet's formulas do" in caplog.text
    assert read_predictions(tmp_path / "years-dev.parquet").table["id"][:] == FORMULAS
    write_predictions(TASKS["sts"], prediction_table(TASKS["sts"], ["=1"], np.zeros(1)), tmp_path / "sts-dev")
    assert "\n=1 , " in (tmp_path / "sts-dev.csv").read_text()


SST = {"id": ["x", "y"], "label": [0, 4], "probabilities": [[1, 0, 0, 0, 0], [0, 0, 0.25, 0, 0.75]]}
STS = {"id": ["x", "y"], "score": [0.5, 4.5]}


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        pytest.param("sst", STS, "no column 'label'; its columns are id, score", id="no label"),
        pytest.param("sts", SST, "no column 'score'", id="a label for a score"),
        pytest.param("sst", SST | {"label": [0, None]}, "row 2 has the label None; expected", id="an empty label"),
        pytest.param("sts", STS | {"score": [1.0, float("nan")]}, "row 2 has the score nan", id="NaN"),
        pytest.param("sts", STS | {"score": [float("inf"), 1.0]}, "row 1 has the score inf", id="infinite"),
        pytest.param("sts", STS | {"score": [1.0, None]}, "row 2 has the score None", id="no score"),
        pytest.param("sts", STS | {"score": ["1", "2"]}, "row 1 has the score '1'", id="scores as texts"),
        pytest.param("sts", STS | {"score": [True, False]}, "row 1 has the score True", id="scores as booleans"),
        pytest.param("sts", STS | {"id": ["x", None]}, "row 2 has no id", id="no id"),
        pytest.param("sts", STS | {"id": ["x", "x"]}, "rows 1 and 2 both have the id 'x'", id="an id twice"),
        pytest.param("sts", STS | {"id": [["x"], ["y"]]}, "row 1 holds", id="a list for an id"),
        pytest.param("sst", SST | {"label": [0, 5]}, "row 2 has the label 5; .* 0 to 4", id="a class too high"),
        pytest.param("sst", SST | {"label": [-1, 4]}, "row 1 has the label -1", id="a negative class"),
        pytest.param("sst", SST | {"label": [0.0, 4.0]}, "row 1 has the label 0.0", id="classes as fractions"),
        pytest.param("sst", SST | {"label": ["0", "4"]}, "row 1 has the label '0'", id="classes as texts"),
        pytest.param("sst", SST | {"label": [False, True]}, "row 1 has the label False", id="classes as booleans"),
        pytest.param("sst", SST | {"probabilities": [[1.0], [1.0]]}, "row 1 .*5 probabilities", id="too few"),
        pytest.param("sst", SST | {"probabilities": [[0.2] * 5, [0.5] * 5]}, "row 2 .* sum to 1", id="sum of 2.5"),
        pytest.param("sst", SST | {"probabilities": [[-1, 2, 0, 0, 0], [0.2] * 5]}, "row 1 .*-1", id="negative"),
        pytest.param("sst", SST | {"probabilities": [[0.2] * 5, [float("nan")] * 5]}, "row 2 .*nan", id="NaN inside"),
        pytest.param("sst", SST | {"probabilities": [[0.2] * 5, None]}, "row 2 .*None", id="no probabilities"),
        pytest.param("sst", SST | {"probabilities": [0.5, 0.5]}, "row 1 .*0.5", id="a number for probabilities"),
    ],
)
def test_tables_that_anybody_may_have_written_are_checked(tmp_path, name, columns, message):
    path = tmp_path / f"{name}-dev.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=f"{name}-dev.parquet: {message}") as error:
        read_predictions(path)
    assert "\n" not in str(error.value)
    pq.write_table(pa.table(SST if name == "sst" else STS), path)
    assert read_predictions(path).table["id"][:] == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        pytest.param("quora-dev", None, "says task 'sst' and split 'dev'; expected sst-dev", id="another task"),
        pytest.param("sst-test", None, "says task 'sst' and split 'dev'; expected sst-dev", id="another split"),
        pytest.param("mine-dev", None, "says task 'sst'", id="a task of one's own"),
        pytest.param("sst-dev", {"task": "{"}, "sst-dev.parquet: the task in its metadata", id="torn metadata"),
        pytest.param("sst-dev", {"task": "[1]"}, "the task in its metadata", id="a list"),
        pytest.param("sst-dev", {"task": '{"name": "sst"}'}, "kind is missing", id="no kind"),
        pytest.param("sst-dev", {"task": "[" * 100_000}, "the task in its metadata", id="nested deeply"),
    ],
)
def test_files_of_another_task_or_split_are_refused(tmp_path, name, metadata, message):
    write_predictions(TASKS["sst"], prediction_table(TASKS["sst"], ["x", "y"], LOGITS["sst"]), tmp_path / "sst-dev")
    table = pq.read_table(tmp_path / "sst-dev.parquet")
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize("damage", ["cut", "a page", "a folder", "a column twice"])
def test_damaged_prediction_files_are_refused(tmp_path, damage):
    write_predictions(TASKS["sst"], prediction_table(TASKS["sst"], ["good", "y"], LOGITS["sst"]), tmp_path / "sst-dev")
    path = tmp_path / "sst-dev.parquet"
    content = path.read_bytes()
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "a column twice":
        table = pq.read_table(path)
        pq.write_table(table.append_column("label", table["label"]), path)
    else:
        path.write_bytes(content[:-9] if damage == "cut" else content.replace(b"good", b"evil"))
    with pytest.raises(InputError, match="sst-dev.parquet: (cannot be read|has several columns called 'label')"):
        read_predictions(path)
