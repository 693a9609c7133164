"""Rows that a trainer is given: what it takes, and what it refuses when it is built."""

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value

from bert_multitask.data.collate import Collator
from bert_multitask.data.token_rows import check_labelled, rows_by_task
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel

TASKS = [
    {"name": "a", "kind": "classification", "text": "text", "label": "label", "label_names": ["low", "mid", "high"]},
    {"name": "b", "kind": "similarity", "text": "s", "text_pair": "t", "label": "l", "score_range": [0, 5]},
]


@pytest.fixture(scope="module")
def model(tiny_bert):
    return MultitaskBertModel.from_pretrained(tiny_bert, tasks=TASKS)


def rows(labels=(0, 1, 2), **columns) -> dict[str, list]:
    """Tokenised rows of task a."""
    count = len(labels)
    tokens = {"input_ids": [[101, 7, 102]] * count, "token_type_ids": [[0, 0, 0]] * count}
    return tokens | {"labels": list(labels)} | columns


def take(model, given, argument="train_dataset"):
    return rows_by_task(given, model, argument)


FORMS = {
    "dataset": Dataset.from_dict,
    "list": lambda columns: Dataset.from_dict(columns).to_list(),
    "torch format": lambda columns: Dataset.from_dict(columns).with_format("torch"),
    "torch dataset": lambda columns: torch.utils.data.Subset(Dataset.from_dict(columns), range(3)),
    "selected": lambda columns: Dataset.from_dict(columns).select([2, 1, 0]).select([2, 1, 0]),
    "with its task": lambda columns: Dataset.from_dict(columns | {"task": ["a"] * 3}),
    "bool mask": lambda columns: Dataset.from_dict(columns | {"attention_mask": [[True] * 3] * 3}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(model, form):
    part = take(model, {"a": FORMS[form](rows())})["a"]
    assert part["task"][:] == ["a"] * 3 and part["labels"][:] == [0, 1, 2]
    assert Collator(0)([part[0], part[1]])["input_ids"].tolist() == [[101, 7, 102]] * 2


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0], np.array([0, 1, 2], np.int8), [0, 1, -100]], ids=str)
def test_labels_become_classes(model, labels):
    part = take(model, {"a": Dataset.from_dict(rows() | {"labels": labels})})["a"]
    assert Collator(0)([part[0], part[1]])["labels"].dtype == torch.long


def test_integer_scores_become_floats(model):
    part = take(model, {"b": Dataset.from_dict(rows([0, 5, 3]))})["b"]
    assert Collator(0)([part[0], part[1]])["labels"].dtype == torch.float32


def test_the_ends_of_a_range_in_fp32(tiny_bert):
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[TASKS[1] | {"score_range": [0.1, 4.9]}])
    labels = np.array([0.1, 4.9, np.nan], np.float32)
    assert len(take(model, {"b": Dataset.from_dict(rows() | {"labels": labels})})["b"]) == 3


def test_padding_that_is_there_already_is_no_text(model):
    """A tokenizer's `padding="max_length"` leaves zeros in the mask; they are not read as tokens, on either side."""
    for ids, mask in ([[101, 7, 102, 0, 0], [1, 1, 1, 0, 0]], [[0, 0, 101, 7, 102], [0, 0, 1, 1, 1]]):
        columns = {"input_ids": [ids], "token_type_ids": [[0] * 5], "attention_mask": [mask], "labels": [1]}
        batch = Collator(0)([take(model, {"a": Dataset.from_dict(columns)})["a"][0]])
        assert batch["input_ids"].tolist() == [[101, 7, 102]] and batch["attention_mask"].tolist() == [[1, 1, 1]]


def test_a_table_that_names_its_task(model):
    assert list(take(model, Dataset.from_dict(rows(task=["a"] * 3)))) == ["a"]
    for unclear in (rows(), rows(task=["a", "b", "a"])):
        with pytest.raises(InputError, match="train_dataset has to say which rows are of which task"):
            take(model, Dataset.from_dict(unclear))


CLASSES = Dataset.from_dict(rows())
WRONG = {
    "unknown task": ({"a_dev": CLASSES}, "'a_dev', but the model's tasks are a, b"),
    "splits": (DatasetDict({"train": CLASSES}), "rows of 'train', but the model's tasks"),
    "splits of a task": ({"a": DatasetDict({"train": CLASSES})}, "is a DatasetDict; expected a datasets.Dataset"),
    "a stream": ({"a": CLASSES.to_iterable_dataset()}, "is a IterableDataset; .* number of rows"),
    "a torch stream": ({"a": datasets.IterableDataset.from_generator(lambda: iter(()))}, "is a IterableDataset"),
    "a name": ({"a": "train.csv"}, "is a str; expected"),
    "texts": ({"a": ["good", "bad"]}, r"\['a'\] is no list of rows"),
    "nothing": ({"a": []}, r"train_dataset\['a'\] has no rows"),
    "an empty dataset": ({"a": CLASSES.select([])}, r"train_dataset\['a'\] has no rows"),
    "not tokenised": (
        {"a": Dataset.from_dict({"text": ["x"], "label": [0]})},
        "column input_ids and no token_type_ids",
    ),
    "label for labels": ({"a": CLASSES.rename_column("labels", "label")}, "has no column labels; its columns are"),
    "no segments": ({"a": CLASSES.remove_columns("token_type_ids")}, "has no column token_type_ids"),
    "another task's": ({"a": Dataset.from_dict(rows(task=["a", "b", "a"]))}, "row 1 is of task 'b'"),
    "class 3": ({"a": Dataset.from_dict(rows([0, 3, 1]))}, "label of row 1 is 3; expected a class from 0 to 2"),
    "class -1": ({"a": Dataset.from_dict(rows([0, 1, -1]))}, "label of row 2 is -1"),
    "class .5": ({"a": Dataset.from_dict(rows([0.5, 1, 2]))}, "label of row 0 is 0.5"),
    "None": ({"a": Dataset.from_dict(rows([0, None, 1]))}, "label of row 1 is None"),
    "words": ({"a": Dataset.from_dict(rows(["low", "mid", "high"]))}, "labels are of type string"),
    "lists": ({"a": Dataset.from_dict(rows([[0], [1], [2]]))}, "labels are of type list"),
    "other names": (
        {"a": CLASSES.cast_column("labels", ClassLabel(names=["high", "mid", "low"]))},
        "labels are high, mid, low, in this order",
    ),
    "score 6": ({"b": Dataset.from_dict(rows([0.0, 6.0, 1.0]))}, "row 1 is 6.0; expected a score from 0 to 5"),
    "-100 is no score here": ({"b": Dataset.from_dict(rows([0.0, -100.0]))}, "row 1 is -100.0; .* or nan for a row"),
    "no score": ({"b": Dataset.from_dict(rows([0.0, None]))}, "row 1 is None"),
    "infinite score": ({"b": Dataset.from_dict(rows([0.0, float("inf"), 1.0]))}, "label of row 1 is inf"),
    "no tokens": (
        {"a": Dataset.from_dict(rows(input_ids=[[101], [], [102]], token_type_ids=[[0], [], [0]]))},
        "row 1 has 0 tokens",
    ),
    "too many tokens": (
        {"a": Dataset.from_dict(rows(input_ids=[[7] * 513] * 3, token_type_ids=[[0] * 513] * 3))},
        "row 0 has 513 tokens; the model takes 1 to 512",
    ),
    "foreign tokens": ({"a": Dataset.from_dict(rows(input_ids=[[50_000] * 3] * 3))}, "from 50000 to 50000"),
    "segment 2": ({"a": Dataset.from_dict(rows(token_type_ids=[[2] * 3] * 3))}, "token_type_ids are from 2 to 2"),
    "all masked": (
        {"a": Dataset.from_dict(rows(attention_mask=[[1, 1, 0], [0, 0, 0], [1, 0, 0]]))},
        "row 1 has an",
    ),
    "ragged": ({"a": Dataset.from_dict(rows(token_type_ids=[[0] * 4] * 3))}, "differ in length"),
    "two sequences": (
        {"a": Dataset.from_dict(rows(input_ids=[[[7], [7]]] * 3, token_type_ids=[[[0], [0]]] * 3))},
        "expected a list of token numbers",
    ),
    "texts as tokens": ({"a": Dataset.from_dict(rows(input_ids=["good"] * 3))}, "input_ids is string"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_refused(model, case):
    given, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        take(model, given)


def test_separate_pairs_are_two_sequences(tiny_bert):
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=TASKS, pair_encoding="separate")
    pair = {"input_ids": [[[7], [7, 8]]], "token_type_ids": [[[0], [0, 0]]], "labels": [1.0]}
    assert len(take(model, {"b": Dataset.from_dict(pair)})["b"]) == 1
    with pytest.raises(InputError, match="expected two lists of token numbers"):
        take(model, {"b": Dataset.from_dict(rows())})


def test_rows_without_any_label(model):
    unlabelled = take(model, {"a": Dataset.from_dict(rows([-100] * 3)).cast_column("labels", Value("int64"))})
    with pytest.raises(InputError, match=r"eval_dataset\['a'\]: no row has a label"):
        check_labelled(unlabelled, "eval_dataset")


def test_pairs_on_a_model_of_one_segment(model, monkeypatch):
    """Such a model tells a pair's texts by [SEP] alone, and takes the tokenizer's segments."""
    monkeypatch.setattr(model.config, "type_vocab_size", 1)
    assert take(model, {"a": Dataset.from_dict(rows(token_type_ids=[[0, 1, 1]] * 3))})
    with pytest.raises(InputError, match="token_type_ids are from 2 to 2"):
        take(model, {"a": Dataset.from_dict(rows(token_type_ids=[[2] * 3] * 3))})
