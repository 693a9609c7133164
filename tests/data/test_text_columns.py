"""Texts of several columns, wherever rows come from."""

import json

import pandas as pd
import pytest
from datasets import Dataset

from bert_multitask.data.rows import clean_rows, load_rows
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.predict_file import predict_file
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import load_task

ROWS = [
    {"subject": "Prize", "body": "Win now", "to": "you", "label": "yes"},
    {"subject": "", "body": "At 5\nthen", "to": "me", "label": "no"},
    {"subject": None, "body": " ", "to": "us", "label": "no"},
    {"subject": 7, "body": "x", "to": "", "label": "yes"},
]
TEXTS = ["subject: Prize\nbody: Win now", "body: At 5\nthen", "", "subject: 7\nbody: x"]
PAIRS = ["to: you", "to: me", "to: us", ""]
FIELDS = {"name": "spam", "kind": "binary", "text": ["subject", "body"], "label_names": ["no", "yes"]}


@pytest.fixture
def task():
    return load_task(FIELDS | {"text_pair": ["to"]})


def test_from_memory(task):
    texts = [str(row["subject"] or "") for row in ROWS]
    table = Dataset.from_list([row | {"subject": text} for row, text in zip(ROWS, texts, strict=True)])
    for rows in (clean_rows(task, ROWS), clean_rows(task, table)):
        assert rows["text"][:] == TEXTS and rows["text_pair"][:] == PAIRS and rows["label"][:] == [1, 0, 0, 1]
    turned = clean_rows(load_task(FIELDS | {"text": ["body", "subject"]}), ROWS[:1])
    assert turned["text"][:] == ["body: Win now\nsubject: Prize"], "in the order that the task gives"
    with pytest.raises(InputError, match="row 1: no column 'body'"):
        clean_rows(task, [{"subject": "a", "to": "b", "label": "no"}])
    with pytest.raises(InputError, match="row 1 holds .*expected a text"):
        clean_rows(task, [ROWS[0] | {"body": ["a"]}])


def test_from_files_and_the_hub(tmp_path, monkeypatch):
    path = tmp_path / "mail.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    places = {"files": {"train": str(path), "dev": str(path)}}
    rows = load_rows(load_task(FIELDS | {"text_pair": ["to"]} | places))["dev"]
    assert rows["text"][:] == TEXTS and rows["text_pair"][:] == PAIRS
    table = Dataset.from_list([row | {"subject": str(row["subject"] or "")} for row in ROWS])
    monkeypatch.setattr("datasets.load_dataset", lambda path, name, revision, split: dict.fromkeys(split, table))
    hub = {"path": "some/mail", "text": ["subject", "body"], "text_pair": "to"}
    rows = load_rows(load_task(FIELDS | {"text_pair": "to", "hub": hub}))["train"]
    assert rows["text"][:] == TEXTS and rows["text_pair"][:] == [row["to"] for row in ROWS]


def test_a_checkpoint_keeps_the_columns(task):
    assert load_task(json.loads(json.dumps(task.to_config()))) == task
    assert task.text == ("subject", "body")


def test_predictions(tiny_bert, tokenizer, task, tmp_path):
    """Dictionaries, a frame and a file with the columns have the answers of the joined texts."""
    pipe = MultitaskPipeline(MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task]), tokenizer)
    expected = chances(pipe("spam", list(zip(TEXTS, PAIRS, strict=True))))
    assert len({round(chance, 4) for chance in expected}) > 1, "texts with different answers"
    joined = [{"text": text, "text_pair": pair} for text, pair in zip(TEXTS, PAIRS, strict=True)]
    for rows in (ROWS, joined):
        assert chances(pipe("spam", rows)) == pytest.approx(expected, abs=1e-5)
    assert chances([pipe("spam", ROWS[1])]) == pytest.approx(expected[1:2], abs=1e-5)
    frame = pipe.all(pd.DataFrame(ROWS))
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row | {"subject": str(row["subject"] or "")}) + "\n" for row in ROWS))
    predict_file(pipe, str(path), tmp_path / "out")
    for found in (frame, pd.read_parquet(tmp_path / "out" / "predictions.parquet")):
        assert [row[1] for row in found["spam_probabilities"]] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="takes subject and body and to"):
        pipe.add_columns(["spam"], pd.DataFrame([{"subject": "a"}]))


def chances(answers: list[dict]) -> list[float]:
    return [answer["probabilities"]["yes"] for answer in answers]
