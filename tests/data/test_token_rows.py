"""Rows that a trainer is given, raw or tokenised: what it takes, and what it refuses when it is built."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import weights
from datasets import ClassLabel, Dataset, DatasetDict, Value
from transformers import set_seed

from bert_multitask.data.collate import Collator
from bert_multitask.data.rows import clean_rows, load_rows, sample_rows, with_label_names
from bert_multitask.data.token_rows import check_labelled, find_tokenizer, rows_by_task
from bert_multitask.data.tokens import tokenise_splits
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import load_task
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.trainer import MultitaskTrainer

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
    "frame": pd.DataFrame,
    "bool mask": lambda columns: Dataset.from_dict(columns | {"attention_mask": [[True] * 3] * 3}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(model, form):
    part = take(model, {"a": FORMS[form](rows())})["a"]
    assert part["task"][:] == ["a"] * 3 and part["labels"][:] == [0, 1, 2]
    assert Collator(0)([part[0], part[1]])["input_ids"].tolist() == [[101, 7, 102]] * 2


WRONG_SOFT = [
    ([[0.2, 0.8]] * 3, "of row 0 are .0.2, 0.8.; expected 3 probabilities that sum to 1"),
    ([[0.2, 0.3, 0.5], [0.2, 0.3, 0.4], [1.0, 0.0, 0.0]], "of row 1"),
    ([[0.2, 0.3, 0.5]] * 2 + [[-0.2, 0.7, 0.5]], "of row 2"),
    ([[0.2, 0.3, 0.5]] * 2 + [[float("nan"), 0.5, 0.5]], "of row 2 are .nan"),
    ([[0.2, 0.3, 0.5], None, [0.2, 0.3, 0.5]], "of row 1 are None"),
    ([1.0, 1.0, 1.0], "of row 0 are 1.0"),
]


@pytest.mark.parametrize(("soft", "message"), WRONG_SOFT)
def test_soft_labels_that_no_teacher_gives_are_refused(model, soft, message):
    with pytest.raises(InputError, match=r"train_dataset\['a'\]: the soft_labels .*" + message):
        take(model, {"a": Dataset.from_dict(rows(soft_labels=soft))})


def test_soft_labels_of_scores_and_of_tags(model, tiny_bert):
    scores = rows([0.0, 5.0, 3.0], soft_labels=[-0.1, 5.1, 3.0])
    assert take(model, {"b": Dataset.from_dict(scores)})["b"]["soft_labels"][:] == [-0.1, 5.1, 3.0]
    with pytest.raises(InputError, match=r"\['b'\]: the soft_labels of row 1 are nan; expected a number"):
        take(model, {"b": Dataset.from_dict(scores | {"soft_labels": [0.0, float("nan"), 1.0]})})
    tags = {"name": "c", "kind": "token_classification", "label_names": ["O", "B-X"]}
    tagger = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[tags])
    given = rows([[-100, 0, -100]] * 3, soft_labels=[1.0] * 3)
    with pytest.raises(
        InputError, match=r"\['c'\]: a task of kind 'token_classification' cannot learn from soft_labels"
    ):
        take(tagger, {"c": Dataset.from_dict(given)})


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
    "splits": (
        DatasetDict({"test": CLASSES}),
        "train_dataset has to say which rows are of which task: give {'a': rows, 'b': rows}",
    ),
    "splits, none of them for test": (
        DatasetDict({"train": CLASSES}),
        "train_dataset has the splits train; expected one for test",
    ),
    "splits of a task": (
        {"a": DatasetDict({"train": CLASSES})},
        r"train_dataset\['a'\] has the splits train; expected one for test",
    ),
    "a stream": ({"a": CLASSES.to_iterable_dataset()}, "is a IterableDataset; .* number of rows"),
    "a torch stream": ({"a": datasets.IterableDataset.from_generator(lambda: iter(()))}, "is a IterableDataset"),
    "a name": ({"a": "train.csv"}, "is a str; expected"),
    "texts": ({"a": ["good", "bad"]}, r"\['a'\] is no list of rows"),
    "a dictionary of splits": (
        {"train": CLASSES, "dev": CLASSES},
        "'train', but .*; splits are .* a datasets.DatasetDict",
    ),
    "a dictionary of a task's splits": (
        {"a": {"train": CLASSES}},
        r"\['a'\]: is a dict of train; .*datasets.DatasetDict",
    ),
    "a dictionary of columns": ({"a": rows()}, r"\['a'\]: is a dict of input_ids, token_type_ids, labels; expected"),
    "nothing": ({"a": []}, r"train_dataset\['a'\] has no rows"),
    "an empty dataset": ({"a": CLASSES.select([])}, r"train_dataset\['a'\] has no rows"),
    "not tokenised": (
        {"a": Dataset.from_dict({"text": ["x"], "label": [0]})},
        "no column input_ids, so that its rows are texts to tokenise; .* as processing_class",
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


FILES = [
    TASKS[0] | {"files": {"train": "a.jsonl", "dev": "a.jsonl"}, "max_train_samples": 5, "epochs": 2},
    TASKS[1] | {"files": {"train": "b.jsonl", "dev": "b.jsonl"}, "epochs": 1},
]
TEXTS = [*(f"{word} film" for word in "a good bad fine poor dull".split()), "no label", " "]
RAW = {
    "a": [{"text": text, "label": ["low", "mid", "high"][n % 3]} for n, text in enumerate(TEXTS)],
    "b": [{"s": text, "t": TEXTS[n - 1], "l": n / 2} for n, text in enumerate(TEXTS[:6])],
}
RAW["a"][6]["label"] = None


def other_order() -> Dataset:
    """The rows of task a with a ClassLabel whose order is not the task's, and -1 where there is no label."""
    names = ["high", "low", "mid"]
    labels = [-1 if row["label"] is None else names.index(row["label"]) for row in RAW["a"]]
    columns = {"text": TEXTS, "label": labels}
    return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=names))


def splits(rows: Dataset) -> DatasetDict:
    """The rows under the names that splits have on the Hub, among others that are not to be taken."""
    first = rows.select([0])
    return DatasetDict(train_small=first, train=rows, validation=rows, validation_mismatched=first, test=rows)


def test_the_splits_of_the_only_task(tiny_bert, tokenizer):
    only = MultitaskBertModel.from_pretrained(tiny_bert, tasks=TASKS[:1])
    whole = DatasetDict(train=Dataset.from_list(RAW["a"]), validation=Dataset.from_list(RAW["a"][:3]))
    for split, name in {"train": "train", "dev": "validation"}.items():
        (task, found), *others = rows_by_task(whole, only, "rows", split, tokenizer).items()
        (expected,) = rows_by_task({"a": whole[name]}, only, "rows", split, tokenizer).values()
        assert (task, others) == ("a", []) and found[:] == expected[:]
    assert find_tokenizer(only, whole) is not None


def from_files(folder, tokenizer, tasks) -> dict[str, dict[str, Dataset]]:
    """{split: {task: tokens}} as a recipe makes them of files."""
    for name, part in RAW.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokens = {name: tokenise_splits(task, load_rows(task, str(folder)), tokenizer, 16) for name, task in tasks.items()}
    train = {name: sample_rows(tasks[name], splits["train"], seed=3) for name, splits in tokens.items()}
    return {"train": train, "dev": {name: splits["dev"] for name, splits in tokens.items()}}


def test_raw_rows_train_as_files_do(tiny_bert, tokenizer, tmp_path, monkeypatch):
    """In whatever form, to the same weights and scores bit for bit; gaps and `max_train_samples` are those of files."""
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    tasks = {spec["name"]: load_task(spec) for spec in FILES}
    datasets = {name: Dataset.from_list(part) for name, part in RAW.items()}
    numbered = [row | {"label": n % 3 if n % 2 and n < 6 else row["label"]} for n, row in enumerate(RAW["a"])]
    forms = {
        "files": from_files(tmp_path, tokenizer, tasks),
        "datasets": {"train": datasets, "dev": datasets},
        "ClassLabel": {"train": datasets | {"a": other_order()}, "dev": datasets | {"a": other_order()}},
        "lists": {"train": RAW | {"a": numbered}, "dev": RAW},
        "splits": dict.fromkeys(("train", "dev"), {name: splits(part) for name, part in datasets.items()}),
        "clean": dict.fromkeys(("train", "dev"), {name: clean_rows(tasks[name], part) for name, part in RAW.items()}),
    }
    trained = {}
    for form, rows in forms.items():
        set_seed(0)
        model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=FILES)
        args = MultitaskTrainingArguments(
            str(tmp_path / form), seed=3, per_device_train_batch_size=2, report_to="none", save_strategy="no",
            load_best_model_at_end=False, logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = MultitaskTrainer(model, args, rows["train"], rows["dev"], tokenizer)
        assert trainer.rows == {"a": 5, "b": 5} and len(trainer.eval_dataset["a"]) == 8
        trainer.train()
        scores = trainer.evaluate(rows["dev"])
        del scores["eval_runtime"]
        outputs = [trainer.predict({name: part}).predictions for name, part in rows["dev"].items()]
        trained[form] = weights(trainer), scores, outputs
    for form, (found, scores, outputs) in trained.items():
        expected = trained["files"]
        assert all(torch.equal(weight, expected[0][name]) for name, weight in found.items()), form
        assert scores == expected[1], form
        assert all(np.array_equal(*pair) for pair in zip(outputs, expected[2], strict=True)), form


def test_raw_rows_are_cut_to_the_tokenizers_length(model, tokenizer, monkeypatch):
    """And never longer than the model can take."""
    long = {"a": [{"text": "a " * 600, "label": "low"}]}
    for length, expected in ((16, 16), (10**30, 512)):
        monkeypatch.setattr(tokenizer, "model_max_length", length)
        part = rows_by_task(long, model, "train_dataset", "train", tokenizer)["a"]
        assert [len(ids) for ids in part["input_ids"]] == [expected]


def test_raw_rows_to_predict_need_no_labels(model, tokenizer):
    part = rows_by_task({"a": [{"text": "x"}, {"text": ""}]}, model, "test_dataset", "test", tokenizer)["a"]
    assert part["labels"][:] == [-100, -100] and part["id"][:] == ["0", "1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"text": "x", "label": "lowest"}], r"\['a'\], row 1: label is 'lowest'; expected"),
        ([{"text": "x", "label": "low"}, {"label": "low"}], r"\['a'\], row 2: no column 'text'"),
        (Dataset.from_dict({"sentence": ["x"], "label": [0]}), r"\['a'\]: no column 'text'; its columns are sentence"),
        (Dataset.from_dict({"text": ["x"]}), r"\['a'\]: no column 'label'"),
        (Dataset.from_dict({"text": ["x"], "label": [None]}), r"\['a'\]: no row has a label in column 'label'"),
        ([{"text": " ", "label": "low"}], r"\['a'\]: no row has both a text and a label"),
        (
            Dataset.from_dict({"text": ["x"], "label": [0]}).cast_column("label", ClassLabel(names=["bad", "good"])),
            "has the classes bad, good; expected",
        ),
    ],
    ids=["label", "text in row 2", "text column", "label column", "no label", "no text", "class names"],
)
def test_wrong_raw_rows_are_refused(model, tokenizer, given, message):
    with pytest.raises(InputError, match=message):
        rows_by_task({"a": given}, model, "train_dataset", "train", tokenizer)


def test_the_tokenizer_beside_the_checkpoint(model, tiny_bert, tokenizer):
    """Raw rows ask for it; rows that are tokenised, and a model without a checkpoint, do not."""
    dataset = Dataset.from_list(RAW["a"])
    for raw in ({"a": RAW["a"]}, {"a": dataset}, {"a": DatasetDict({"train": dataset})}, RAW["a"]):
        found = find_tokenizer(model, raw, None)
        assert found("A plot.")["input_ids"] == tokenizer("A plot.")["input_ids"]
    assert find_tokenizer(model, {"a": CLASSES}, None) is None
    config = MultitaskBertConfig(**{key: value for key, value in model.config.to_dict().items() if key[0] != "_"})
    assert find_tokenizer(MultitaskBertModel(config), {"a": RAW["a"]}, {"a": []}) is None


FRAMES = {
    "names": ["low", None, "high"],
    "numbers": [0.0, float("nan"), 2.0],
    "categories": pd.Categorical(["low", None, "high"]),
    "strings": pd.array(["low", pd.NA, "high"], dtype="string"),
}


@pytest.mark.parametrize("form", FRAMES)
def test_a_frame_is_read_as_its_rows_are(model, form):
    """By its position, whatever its index is; missing values are those of pandas."""
    texts = ["A plot.", "A film.", "An end."]
    frame = pd.DataFrame({"text": texts, "label": FRAMES[form]}, index=[7, 7, 9])
    records = [{"text": text, "label": label} for text, label in zip(texts, ["low", None, "high"], strict=True)]
    task, unnamed = load_task(TASKS[0]), load_task(TASKS[0] | {"label_names": None}, named=False)
    assert clean_rows(task, frame).to_list() == clean_rows(task, records).to_list()
    found, expected = (
        rows_by_task({"a": rows}, model, "x", tokenizer=find_tokenizer(model, {"a": rows})) for rows in (frame, records)
    )
    assert found["a"].to_list() == expected["a"].to_list()
    if form != "numbers":
        assert with_label_names(unnamed, rows=frame) == with_label_names(unnamed, rows=records)
    with pytest.raises(InputError, match="rows: is a dict of train; expected .* datasets.DatasetDict"):
        with_label_names(unnamed, rows={"train": frame})


def test_a_tokenizer_that_is_none(model):
    with pytest.raises(InputError, match="processing_class is a str; expected the model's own fast tokenizer"):
        rows_by_task({"a": RAW["a"]}, model, "train_dataset", "train", "bert-base-uncased")


def test_clean_rows_are_read_once(model):
    """The classes of clean rows are numbers, which would be other classes where names are numbers, too."""
    task = load_task(TASKS[0] | {"label_names": ["1", "2", "3"]})
    clean = clean_rows(task, [{"text": "x", "label": label} for label in (2, 3)])
    assert clean["label"][:] == [1, 2] and clean_rows(task, clean.select([1, 0]))["label"][:] == [2, 1]
    with pytest.raises(InputError, match="expected clean rows"):
        clean_rows(task, clean.rename_column("text", "review"))


@pytest.mark.parametrize("given", [None, "rows.csv", 3, DatasetDict()], ids=str)
def test_what_is_no_rows(given):
    with pytest.raises(
        InputError, match="^rows: is a .*; expected a datasets.Dataset, a pandas.DataFrame or a list of"
    ):
        clean_rows(load_task(TASKS[0]), given)
