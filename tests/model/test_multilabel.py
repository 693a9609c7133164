"""Several labels a row, from YAML to predictions, ensemble, report, card and export."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, run_here
from datasets import Dataset
from pyarrow import parquet
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from transformers import AutoTokenizer, pipeline

from bert_multitask.data.rows import check_clean, clean_rows
from bert_multitask.data.token_rows import check_labels
from bert_multitask.evaluation.tables import prediction_table, read_decisions, read_predictions, write_predictions
from bert_multitask.inference.ensemble import combine
from bert_multitask.inference.export import export_classifier
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.model.card import model_card
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import UNLABELLED
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import Task, load_task
from bert_multitask.reporting.analysis import LabelledPredictions, class_scores
from bert_multitask.reporting.plots import MANY_LABELS, label_bars
from bert_multitask.reporting.report import write_report

NAMES = ["drama", "war", "love"]
TEXTS = ["good movie", "bad movie", "a nice film indeed", "awful film", "great", "dull and grey", "fine plot", "worst"]
FIELDS = {"name": "genre", "kind": "multilabel", "text": "text", "label_names": NAMES}


def task_of(**fields) -> Task:
    return load_task(FIELDS | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_names": []}, "needs one or more label_names; it has 0"),
        ({"label_names": None}, "a task of kind 'multilabel' needs label_names"),
        ({"label_names": ["a", "b|c"]}, r"label_names has 'b\|c'"),
        ({"class_weights": "balanced"}, "class_weights is 'balanced'; .* gives all labels the same weight"),
        ({"class_weights": {"drama": 1, "war": 2, "love": 1}}, "class_weights is .*; a task of kind 'multilabel'"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1; .* gives all labels the same weight"),
        ({"score_range": [0, 1]}, "has label_names, not scores"),
        ({"prediction_column": "Predicted"}, "prediction_column is 'Predicted'; .*one value a row"),
        ({"head": "sigmoid"}, "head is 'sigmoid'; choose one of linear, two_layer"),
    ],
)
def test_what_such_a_task_cannot_have_is_refused(tiny_bert, fields, message):
    with pytest.raises(InputError, match=f"task 'genre': .*{message}"):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[FIELDS | fields])


@pytest.mark.parametrize("label", [[0, 1], [0, 1, 1, 0], [0, 1, 2]])
def test_rows_of_other_labels_are_refused(label):
    rows = Dataset.from_dict({"id": ["a", "b"], "text": ["x", "y"], "label": [[0, 1, UNLABELLED], label]})
    with pytest.raises(
        InputError, match=r"task 'genre' have the label .*, and not 0 or 1 for each of drama, war, love"
    ):
        check_clean(task_of(), rows)
    labels = rows.with_format("arrow")[:]["label"]
    with pytest.raises(InputError, match="the label of row 1 is .*; expected 0 or 1 for each of drama"):
        check_labels(labels, rows.features["label"], task_of(), "train")


def table_of(logits: list, task: Task | None = None) -> Dataset:
    return prediction_table(task or task_of(), [f"r{number}" for number in range(len(logits))], np.array(logits))


def test_tables_are_written_and_read(tmp_path):
    table = table_of([[1, -1, 2], [-1, -2, -3], [-1, 0.5, -1]])
    assert table["labels"][:] == [["drama", "love"], [], ["war"]]
    np.testing.assert_allclose(table["probabilities"][0], 1 / (1 + np.exp([-1, 1, -2])), rtol=1e-6)
    write_predictions(task_of(), table, tmp_path / "genre-dev")
    found = read_predictions(tmp_path / "genre-dev.parquet")
    assert found.task == task_of() and found.table.to_dict() == table.to_dict()
    assert read_decisions(found.task, found.table).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    with open(tmp_path / "genre-dev.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["labels"] for row in rows] == ["drama|love", "|", "war"]
    assert float(rows[2]["probability_war"]) == pytest.approx(1 / (1 + np.exp(-0.5)))
    again = clean_rows(task_of(label="labels", text="id"), rows)
    assert again["label"][:] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]], "the CSV's field is one that is read"


def test_a_table_without_any_label_is_read(tmp_path):
    write_predictions(task_of(), table_of([[-1, -1, -1]]), tmp_path / "genre-dev")
    assert read_predictions(tmp_path / "genre-dev.parquet").table["labels"][:] == [[]]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("labels", ["art"], "has the labels ..art..; expected a list of drama, war, love"),
        ("labels", ["war", "war"], "has the labels"),
        ("labels", None, "has the labels None"),
        ("probabilities", [0.5, 0.5], "has the probabilities .*; expected 3 probabilities"),
        ("probabilities", [0.5, 0.5, 1.5], "has the probabilities"),
        ("probabilities", [0.5, 0.5, None], "has the probabilities"),
    ],
)
def test_a_table_of_other_predictions_is_refused(tmp_path, column, value, message):
    columns = table_of([[1, -1, 2], [-1, -2, -3]]).to_dict()
    columns[column][1] = value
    write_predictions(task_of(), table_of([[0, 0, 0]]), tmp_path / "genre-dev")  # for its metadata
    table = Dataset.from_dict(columns)
    table.to_parquet(tmp_path / "plain.parquet")
    metadata = parquet.read_schema(tmp_path / "genre-dev.parquet").metadata
    written = parquet.read_table(tmp_path / "plain.parquet").replace_schema_metadata(metadata)
    parquet.write_table(written, tmp_path / "genre-dev.parquet", write_page_checksum=True)
    with pytest.raises(InputError, match=f"genre-dev.parquet: row 2 {message}"):
        read_predictions(tmp_path / "genre-dev.parquet")


def test_a_vote_is_taken_on_each_label():
    """Of three members the majority; of two that disagree the mean probability, and without one the label is out."""
    members = [table_of(logits) for logits in ([[1, 1, -5]], [[1, -9, 0.1]], [[-9, -1, 0.1]])]
    assert combine(task_of(), members)["labels"][:] == [["drama", "love"]]
    soft = combine(task_of(), members, "soft")
    mean = np.mean([member["probabilities"][0] for member in members], axis=0)
    np.testing.assert_allclose(soft["probabilities"][0], mean, rtol=1e-6)
    assert soft["labels"][:] == [[name for name, chance in zip(NAMES, mean, strict=True) if chance > 0.5]]
    tie = [table_of([[2, 0.1, -1]]), table_of([[-1, -2, -1]])]
    assert combine(task_of(), tie)["labels"][:] == [["drama"]]
    plain = [table.remove_columns("probabilities") for table in tie]
    assert combine(task_of(), plain)["labels"][:] == [[]]
    with pytest.raises(InputError, match="a soft vote on 'genre' needs probabilities"):
        combine(task_of(), plain, "soft")


def labelled(labels: np.ndarray, predicted: np.ndarray, probabilities=None, names=NAMES) -> LabelledPredictions:
    count = len(labels)
    return LabelledPredictions(
        task=task_of(label_names=list(names)),
        ids=[f"r{number}" for number in range(count)],
        texts=[("a text",)] * count,
        labels=labels,
        predicted=predicted,
        probabilities=probabilities,
    )


def test_errors_and_losses():
    rng = np.random.default_rng(0)
    labels, predicted, chances = rng.integers(0, 2, (20, 3)), rng.integers(0, 2, (20, 3)), rng.uniform(0, 1, (20, 3))
    part = labelled(labels, predicted, chances)
    assert 1 - part.errors.mean() == pytest.approx(accuracy_score(labels, predicted))
    assert part.distances.tolist() == [sum(row != other) for row, other in zip(labels, predicted, strict=True)]
    true = [
        np.prod([c if y else 1 - c for c, y in zip(*row, strict=True)]) for row in zip(chances, labels, strict=True)
    ]
    np.testing.assert_allclose(np.exp(-part.losses), true, rtol=1e-9)


def test_two_runs_are_compared_by_rows_with_all_labels_right(tmp_path):
    task = task_of(metric="accuracy", files=dict.fromkeys(("train", "dev"), str(tmp_path / "rows.csv")))
    (tmp_path / "rows.csv").write_text("id,text,label\nr0,a,war\nr1,b,|\nr2,c,drama|love\nr3,d,\n")
    for name, logits in {
        "a": [[-1, 1, -1], [-1, -1, -1], [1, -1, 1], [1, 1, 1]],
        "b": [[-1, 1, 1], [1, -1, -1], [1, -1, 1], [1, 1, 1]],
    }.items():
        ids = [f"r{number}" for number in range(4)]
        write_predictions(task, prediction_table(task, ids, np.array(logits)), tmp_path / name / "genre-dev")
    source = json.dumps({"name": "genre", "files": task.files})
    write_report(tmp_path / "a", tmp_path / "out", str(tmp_path / "b"), str(tmp_path), [source])
    page = (tmp_path / "out" / "report.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| genre ") and "+0.67 |" in line]
    assert line.startswith("| genre | 1.00 | 0.33 | +0.67 |") and line.endswith("| 2 | 0 | 0.5 |")


def test_the_scores_of_each_label_are_sklearns():
    labels, predicted = np.random.default_rng(0).integers(0, 2, (2, 30, 3))
    labels[:, 1] = 0
    expected = precision_recall_fscore_support(labels, predicted, average=None, zero_division=0)
    found = [(line.precision, line.recall, line.f1, line.true) for line in class_scores(labelled(labels, predicted))]
    np.testing.assert_allclose(np.transpose(found), expected)


@pytest.mark.parametrize("count", [1, 3, MANY_LABELS + 5])
def test_the_picture_of_labels(count):
    names = [f"n{number}" for number in range(count)]
    labels = np.arange(2 * count).reshape(2, count) % 2
    part = labelled(labels, np.ones_like(labels), names=names)
    axis = label_bars(part).axes[0]
    shown = [tick.get_text() for tick in axis.get_yticklabels()]
    rows = labels.sum(0)
    kept = [number for number in range(count) if number in sorted(range(count), key=lambda n: -rows[n])[:MANY_LABELS]]
    assert shown == [f"n{number} ({rows[number]})" for number in kept]
    recall = [line.recall for line in class_scores(part)]
    assert [bar.get_width() for bar in axis.containers[1]] == [recall[number] for number in kept]


def test_the_documented_example_is_such_a_task():
    blocks = (ROOT / "docs" / "tasks.md").read_text().split("```")
    (found,) = [yaml.safe_load(block.removeprefix("yaml")) for block in blocks if "kind: multilabel" in block]
    *_, task = map(load_task, found["tasks"])
    labels = [["anger", "joy"], []]
    assert clean_rows(task, [{"text": "a", "labels": label} for label in labels])["label"][:] == [[1, 1, 0], [0, 0, 0]]


def write_run(tmp_path, tiny_bert, course_folder) -> Path:
    """The configuration of a run of several labels with SMART beside sst."""
    labels = [["drama"], "war|love", [], ["love", "drama"], "war", ["drama", "war", "love"], "love", None]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    files = dict.fromkeys(("train", "dev"), str(tmp_path / "rows.jsonl"))
    settings = {
        "model_name_or_path": tiny_bert,
        "data_dir": str(course_folder),
        "output_dir": str(tmp_path / "run"),
        "tasks": ["sst", FIELDS | {"files": files, "epochs": 6, "smart_weight": 1.0}],
        "task_epochs": {"sst": 1},
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "run.yaml"


def test_a_run_beside_sst(monkeypatch, tmp_path, tiny_bert, course_folder):
    """Trained with SMART, scored, predicted, reported, described, exported."""
    assert run_here(monkeypatch, write_run(tmp_path, tiny_bert, course_folder)) == 0
    run = tmp_path / "run"
    true = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    entries = [entry for entry in history if "loss_genre" in entry]
    assert entries and all({"micro_f1_genre", "smart_genre"} <= entry.keys() for entry in entries)

    found = read_predictions(run / "predictions" / "genre-dev.parquet")
    predicted = read_decisions(found.task, found.table)
    scores = json.loads((run / "metrics.json").read_text())
    expected = f1_score(true, predicted[:7], average="micro", zero_division=0)
    assert scores["eval_genre_micro_f1"] == pytest.approx(expected)
    model, tokenizer = MultitaskBertModel.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    table = MultitaskPipeline(model, tokenizer).table("genre", TEXTS)
    assert table["labels"][:] == found.table["labels"][:]
    chances = np.array(table["probabilities"][:])
    np.testing.assert_allclose(chances, found.table["probabilities"][:], atol=1e-5)
    loss = -np.mean(true * np.log(chances[:7]) + (1 - true) * np.log(1 - chances[:7]))
    assert scores["eval_genre_loss"] == pytest.approx(loss, rel=1e-4)

    write_report(run, run / "report")
    page = (run / "report" / "report.md").read_text()
    assert "Rows worth reading" in page and (run / "report" / "labels-genre.png").exists()
    card = model_card(model.tasks, model.config)
    assert "any of drama, war, love" in card

    exported = export_classifier(model, "genre")
    assert exported.config.problem_type == "multi_label_classification"
    exported.save_pretrained(tmp_path / "exported")
    tokenizer.save_pretrained(tmp_path / "exported")
    answers = pipeline("text-classification", str(tmp_path / "exported"), top_k=None)(TEXTS)
    found = [{entry["label"]: entry["score"] for entry in answer} for answer in answers]
    np.testing.assert_allclose([[row[name] for name in NAMES] for row in found], chances, atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_single_label(tiny_bert, pooling):
    """Its logits have no axis, its labels and probabilities have; also exported with its code (mean pooling)."""
    torch.manual_seed(0)
    task = task_of(label_names=["toxic"])
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task], pooling=pooling).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    labels = torch.tensor([[1], [0]] * 4)
    outputs = model("genre", **inputs, labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, labels[:, 0].float())
    torch.testing.assert_close(outputs.loss, expected)
    table = MultitaskPipeline(model, tokenizer).table("genre", TEXTS)
    chances = outputs.logits.detach().sigmoid()[:, None]
    np.testing.assert_allclose(table["probabilities"][:], chances, atol=1e-5)
    assert table["labels"][:] == [["toxic"] * (chance > 0.5) for chance in chances.flatten().tolist()]
    assert len(MultitaskPipeline(model, tokenizer).table("genre", [])) == 0
    exported = export_classifier(model, "genre")
    with torch.no_grad():
        torch.testing.assert_close(exported(**inputs).logits.sigmoid(), chances, atol=1e-4, rtol=1e-4)
    together = combine(task, [table, table], "soft")
    assert together["labels"][:] == table["labels"][:]
