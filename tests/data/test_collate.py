"""Batches of one task, padded."""

import pytest
import torch
from datasets import Dataset

from bert_multitask.data.collate import Collator, TaskRows
from bert_multitask.model.losses import is_labelled
from bert_multitask.training.schedule import FILLER


def row(task: str, length: int, label) -> dict:
    return {"task": task, "input_ids": list(range(5, 5 + length)), "token_type_ids": [1] * length, "labels": label}


def test_padding():
    batch = Collator(pad_token_id=9)([row("a", 3, 1), row("a", 2, 0)])
    assert batch["task"] == "a"
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 6, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].dtype == torch.long
    assert Collator(0)([row("a", 3, 1.5)])["labels"].dtype == torch.float32


def test_separate_pairs_have_an_axis_of_two():
    first, second = row("a", 3, 1), row("a", 1, 0)
    pair = {name: [first[name], second[name]] for name in ("input_ids", "token_type_ids")}
    batch = Collator(pad_token_id=9)([first | pair, first | pair | {"labels": 0}])
    assert batch["input_ids"].tolist() == 2 * [[[5, 6, 7], [5, 9, 9]]]
    assert batch["attention_mask"].tolist() == 2 * [[[1, 1, 1], [1, 0, 0]]]
    assert batch["token_type_ids"].shape == (2, 2, 3) and batch["labels"].tolist() == [1, 0]


def test_tasks_are_never_mixed():
    with pytest.raises(ValueError, match="a, b"):
        Collator(0)([row("a", 3, 1), row("b", 2, 0)])


@pytest.mark.parametrize("label", [3, 2.5])
def test_rows_of_a_batch_and_the_filler(label):
    rows = TaskRows({"a": Dataset.from_list([row("a", n, label) for n in range(1, 5)]), "b": Dataset.from_list([])})
    assert len(rows) == 4
    assert [len(item["input_ids"]) for item in rows.__getitems__([("a", 2), ("a", 0)])] == [3, 1]
    (filler,) = rows.__getitems__([("a", FILLER)])
    assert len(filler["input_ids"]) == 1 and type(filler["labels"]) is type(label)
    assert not is_labelled(Collator(0)([filler])["labels"]).any()
