"""Labels that were made wrong are found, and rows that were copied from the training rows."""

import numpy as np
import pytest
from datasets import Dataset

from bert_multitask.model.tasks import TASKS
from bert_multitask.reporting import rows_to_read
from bert_multitask.reporting.analysis import LabelledPredictions
from bert_multitask.reporting.rows_to_read import doubtful_labels, near_duplicates

WORDS = "river garden window silver morning travel engine doctor planet bridge copper island market summer".split()


def make(name: str, texts, labels, chances=None) -> LabelledPredictions:
    labels, ids = np.array(labels), [f"r{number}" for number in range(len(labels))]
    predicted = labels if chances is None else chances.argmax(1)
    return LabelledPredictions(TASKS[name], ids, texts, labels, predicted, chances)


def test_labels_that_were_made_wrong():
    """By the definition of confident learning, row by row; of 300 rows the 15 wrong ones are found, and few others."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 300)
    chances = 0.04 + 0.8 * np.eye(5)[true] * rng.uniform(0.7, 1, (300, 1))
    chances /= chances.sum(1, keepdims=True)
    labels = true.copy()
    labels[:15] = (true[:15] + 1) % 5
    part = make("sst", [("x",)] * 300, labels, chances)
    expected = []
    for row in range(300):
        j = chances[row].argmax()
        expected.append(j != labels[row] and chances[row, j] >= chances[labels == j, j].mean())
    found = doubtful_labels(part)
    np.testing.assert_array_equal(found, expected)
    assert not found[15:].any() and found[:15].sum() >= 5
    scores = LabelledPredictions(TASKS["sts"], part.ids, part.texts, labels + 0.0, true + 0.0, None)
    assert not doubtful_labels(scores).any(), "scores have no probabilities"


def sentence(rng) -> str:
    return " ".join(rng.choice(WORDS, 8)) + f" {rng.integers(1e6)}"


@pytest.mark.parametrize("name", ["sst", "quora"])
def test_near_duplicates(name):
    """A copy, a copy in capitals with a full stop, of a pair the two texts exchanged; not half a pair."""
    rng = np.random.default_rng(0)
    pair = name == "quora"
    train = [tuple(sentence(rng) for _ in range(1 + pair)) for _ in range(50)]
    ours = [tuple(sentence(rng) for _ in range(1 + pair)) for _ in range(30)]
    ours[3], ours[7] = train[20], tuple(f"{text.upper()}." for text in train[41])
    if pair:
        ours[5], ours[9] = train[11][::-1], (train[12][0], ours[9][1])
    columns = dict(zip(("text", "text_pair"), zip(*train, strict=True), strict=False))
    rows = Dataset.from_dict({"id": [str(n) for n in range(50)], **columns, "label": [0] * 50})
    found = near_duplicates(make(name, ours, [0] * 30), rows)
    assert dict(zip(found.rows.tolist(), found.train.tolist(), strict=True)) == {3: 20, 7: 41} | (
        {5: 11} if pair else {}
    )
    assert found.similarity[0] == pytest.approx(1) and (np.diff(found.similarity) <= 0).all()
    assert (found.compared, found.compared_train) == (30, 50)


def test_a_sample_is_compared(monkeypatch):
    monkeypatch.setattr(rows_to_read, "COMPARED", 10)
    monkeypatch.setattr(rows_to_read, "COMPARED_TRAIN", 20)
    rng = np.random.default_rng(0)
    texts = [(sentence(rng),) for _ in range(40)]
    rows = Dataset.from_dict({"id": [str(n) for n in range(40)], "text": [t for (t,) in texts], "label": [0] * 40})
    found = near_duplicates(make("sst", texts, [0] * 40), rows)
    assert (found.compared, found.compared_train) == (10, 20)
    np.testing.assert_array_equal(found.rows, found.train)


def test_texts_without_letters():
    rows = Dataset.from_dict({"id": ["a"], "text": [" "], "label": [0]})
    assert len(near_duplicates(make("sst", [("x",)], [0]), rows).rows) == 0
