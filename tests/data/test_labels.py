"""Labels mean the same whatever they come from: files, the Hub, memory; and no value can mean "no label" by chance."""

import csv
import dataclasses
import itertools
import json

import datasets
import numpy as np
import pytest
import torch
from conftest import NO_DROPOUT, weights
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_multitask.data.collate import Collator
from bert_multitask.data.labels import LabelReader, name_labels
from bert_multitask.data.rows import SAMPLE, clean_rows, load_rows, usable_rows, with_label_names
from bert_multitask.data.tokens import tokenise
from bert_multitask.evaluation.tables import Predictions, prediction_table, read_course_file, write_predictions
from bert_multitask.inference.split_tables import score_tables
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import UNLABELLED, is_labelled
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS, Task, label_key, load_task
from bert_multitask.reporting.analysis import label_predictions
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.schedule import PlanSampler
from bert_multitask.training.trainer import MultitaskTrainer


def make_task(names=None, **fields) -> Task:
    """A task of one text a row, whose columns are `text` and `label`."""
    kind = {"kind": "classification", "label_names": names} if names else {"kind": "similarity"}
    return load_task({"name": "a", "text": "text", "label": "label"} | kind | fields)


def as_rows(labels) -> list[dict]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


def as_dataset(labels, names=None) -> Dataset:
    """The rows as a dataset, whose labels are numbers of a ClassLabel of these names where there are any."""
    if names is None:
        return Dataset.from_list(as_rows(labels))
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_list(as_rows(labels), features=features)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_labels_of_numpy_and_torch(make):
    """Of no axis, as `dataset[0]` of other libraries gives them, or of one where a label is a list."""
    names = make_task(["neg", "pos"])
    assert clean_rows(names, as_rows([make(1), make(0), make(-1)]))["label"][:] == [1, 0, -100]
    assert clean_rows(make_task(), as_rows([make(1.5), make(float("nan"))]))["label"][0] == 1.5
    several = genres(label_names=["drama", "war", "love"])
    assert clean_rows(several, as_rows([make([0, 2])]))["label"][:] == [[1, 0, 1]]
    unnamed = dataclasses.replace(names, label_names=None)
    found = with_label_names(unnamed, rows=as_rows([make(1), make(0)]))
    assert found.label_names == ("0", "1")


def test_a_number_with_leading_zeros_is_a_name_and_a_score():
    names = make_task(["7", "007"])
    assert clean_rows(names, as_rows(["007", "7", "7.0", 7]))["label"][:] == [1, 0, 0, 0]
    with pytest.raises(InputError, match="label is '07'"):
        clean_rows(names, as_rows(["07"]))
    assert clean_rows(make_task(), as_rows(["02.5", "0.5", "0"]))["label"][:] == [2.5, 0.5, 0]


def from_csv(task, labels, folder, monkeypatch) -> list:
    with open(folder / "a.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(as_rows(labels))
    return from_file(task, folder / "a.csv")


def from_tsv(task, labels, folder, monkeypatch) -> list:
    (folder / "a.tsv").write_text("text\tlabel\n" + "".join(f"x\t{'' if it is None else it}\n" for it in labels))
    return from_file(task, folder / "a.tsv")


def from_json_lines(task, labels, folder, monkeypatch) -> list:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in as_rows(labels)))
    return from_file(task, folder / "a.jsonl")


def from_parquet(task, labels, folder, monkeypatch, names=None) -> list:
    as_dataset(labels, names).to_parquet(folder / "a.parquet")
    return from_file(task, folder / "a.parquet")


def from_file(task, path) -> list:
    task = load_task(vars(task) | {"files": {"train": str(path), "dev": str(path)}})
    return load_rows(task, SAMPLE)["train"]["label"][:]


def from_hub(task, labels, folder, monkeypatch, names=None, **source) -> list:
    rows = as_dataset(labels, names)
    remote = DatasetDict(train=rows, validation=rows, test=rows)

    def load_dataset(*args, split=None, **kwargs):
        return remote if split is None else {ours: remote[theirs] for ours, theirs in split.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(vars(task) | {"hub": {"path": "someone/rows"} | source})
    return load_rows(task, "hub")["train"]["label"][:]


def from_dataset(task, labels, folder, monkeypatch, names=None) -> list:
    return clean_rows(task, as_dataset(labels, names))["label"][:]


def from_dictionaries(task, labels, folder, monkeypatch) -> list:
    return clean_rows(task, as_rows(labels))["label"][:]


SOURCES = {
    "csv": from_csv,
    "tsv": from_tsv,
    "json lines": from_json_lines,
    "parquet": from_parquet,
    "hub": from_hub,
    "dataset": from_dataset,
    "dictionaries": from_dictionaries,
}
NONE = UNLABELLED


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [
        pytest.param([-1, 0, 1], [-1, 0, 1], [0, 1, 2], id="minus one is a name"),
        pytest.param(["0", "1", "-1"], [-1, 0, 1], [2, 0, 1], id="minus one is the last name"),
        pytest.param([1, 2, 3, 4, 5], [1, 2, 5], [0, 1, 4], id="stars"),
        pytest.param(["1", "0"], [1, 0, None], [0, 1, NONE], id="inverted"),
        pytest.param(["1", "0"], [1.0, 0.0], [0, 1], id="inverted, as floats"),
        pytest.param(["1", "0"], [True, False], [0, 1], id="inverted, as truth values"),
        pytest.param(["True", "false"], [True, False], [0, 1], id="truth values by name"),
        pytest.param(["0.5", "1.0"], [0.5, 1.0], [0, 1], id="fractions"),
        pytest.param(["10", "20"], [20, 10, -1], [1, 0, NONE], id="minus one is no name"),
        pytest.param(["bad", "so-so", "good"], [0, 2, -1], [0, 2, NONE], id="class numbers"),
        pytest.param(["bad", "so-so", "good"], [0.0, 2.0, None], [0, 2, NONE], id="class numbers as floats"),
        pytest.param(["bad", "good"], [True, False], [1, 0], id="class numbers as truth values"),
        pytest.param(["bad", "good"], ["Good ", "BAD", "1"], [1, 0, 1], id="words"),
        pytest.param(["bad", "good"], ["good", "NA", "NaN", "null", "None", ""], [1] + 5 * [NONE], id="missing"),
        pytest.param(["none", "some", "NA"], ["None", "na", "nan"], [0, 2, NONE], id="missing words as names"),
        pytest.param(["no", "1"], ["no", "1", " 1.0"], [0, 1, 1], id="a number among words"),
    ],
)
def test_a_label_that_equals_a_name_is_that_name(tmp_path, monkeypatch, source, names, labels, classes):
    if source in ("csv", "tsv") and isinstance(labels[0], bool) and "True" not in names:
        labels = list(map(int, labels))  # a text "True" is a name or nothing
    assert SOURCES[source](make_task(names), labels, tmp_path, monkeypatch) == classes


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("names", "label"),
    [
        pytest.param([1, 2, 3], 0, id="a class number beside names that are numbers"),
        pytest.param(["no", "1"], 0, id="a class number beside a name that is one"),
        pytest.param(["bad", "good"], 2, id="beyond the classes"),
        pytest.param(["bad", "good"], -2, id="below the classes"),
        pytest.param(["bad", "good"], 0.5, id="between the classes"),
        pytest.param(["bad", "good"], "inf", id="infinity"),
        pytest.param(["bad", "good"], "0_1", id="digits with an underscore"),
        pytest.param(["bad", "good"], "١", id="a digit of another script"),
        pytest.param(["bad", "good"], "goods", id="a word"),
    ],
)
def test_any_other_label_is_refused_with_its_row(tmp_path, monkeypatch, source, names, label):
    with pytest.raises(InputError, match=f"row 1: label is .*{label}.*; expected "):
        SOURCES[source](make_task(names), [label], tmp_path, monkeypatch)


CLASS_LABELS = {"parquet": from_parquet, "hub": from_hub, "dataset": from_dataset}


@pytest.mark.parametrize("source", CLASS_LABELS)
@pytest.mark.parametrize(
    ("ours", "theirs", "classes"),
    [
        pytest.param(["pos", "neg"], ["neg", "pos"], [1, 0], id="another order"),
        pytest.param(["Positive", " negative"], ["negative", "positive"], [1, 0], id="another case"),
        pytest.param(["1", "0"], ["0", "1"], [1, 0], id="numbers"),
        pytest.param(["-1", "0", "1"], ["1", "-1", "0"], [2, 0, 1], id="numbers below zero"),
        pytest.param(["neg", "pos"], ["1", "0"], [1, 0], id="class numbers as their names"),
    ],
)
def test_a_class_label_is_read_by_name(tmp_path, monkeypatch, source, ours, theirs, classes):
    codes = [*range(len(theirs)), -1, None]
    got = CLASS_LABELS[source](make_task(ours), codes, tmp_path, monkeypatch, theirs)
    assert got == [*classes, NONE, NONE]


@pytest.mark.parametrize("source", CLASS_LABELS)
@pytest.mark.parametrize(
    "theirs", [["no", "yes"], ["neg", "pos", "mixed"], ["0", "1", "2"], ["pos", "1"]], ids=lambda names: "-".join(names)
)
def test_a_class_label_of_other_names_is_refused(tmp_path, monkeypatch, source, theirs):
    with pytest.raises(InputError, match=f"'label' has the classes {', '.join(theirs)}; expected .*neg, pos"):
        CLASS_LABELS[source](make_task(["neg", "pos"]), [0, 1], tmp_path, monkeypatch, theirs)


def test_lists_of_a_class_label_are_read_by_name():
    features = Features({"label": List(ClassLabel(names=["pos", "neg"]))})
    reader = LabelReader(make_task(["neg", "pos"]), dataset=True)
    rows = [{"label": [1, 0, -1]}, {"label": []}, {"label": None}, {"label": [0, 2]}]
    named = name_labels(rows, features, "label", reader, "rows")
    assert [next(named)["label"] for _ in range(3)] == [["neg", "pos", None], [], None]
    with pytest.raises(InputError, match="rows, row 4: label is 2; expected a class from 0 to 1"):
        next(named)


def test_the_names_of_a_hub_dataset_may_be_said(tmp_path, monkeypatch):
    """As the preset quora does of GLUE's QQP."""
    task, names = make_task(["different", "paraphrase"]), ["not_duplicate", "duplicate"]
    assert from_hub(task, [1, 0, -1], tmp_path, monkeypatch, names[::-1], label_names=names) == [0, 1, NONE]
    with pytest.raises(InputError, match="hub has 3 label_names and the task 2"):
        from_hub(task, [1], tmp_path, monkeypatch, names, label_names=[*names, "other"])
    quora = TASKS["quora"]
    LabelReader(quora, quora.hub.label_names, dataset=True).check_names(names, "glue/qqp")


characters = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
numbers = st.integers(-3, 6).map(str) | st.floats(-9, 9, width=16).map(str)
words = st.text(characters, min_size=1, max_size=6).map(str.strip).filter(bool)
odd = st.sampled_from(["True", "false", "NA", "nan", "None", "null", "1.0", "-1", "01", '"', "a,b", "'1'", "=1"])


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(names=st.lists(words | numbers | odd, min_size=2, max_size=5, unique_by=label_key), data=st.data())
def test_names_give_the_same_classes_in_every_form(tmp_path, monkeypatch, names, data):
    classes = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=8))
    theirs = data.draw(st.permutations(names))
    task, labels = make_task(names), [names[number] for number in classes]
    for name, read in SOURCES.items():
        if name != "tsv":  # which from_tsv writes without quotes
            assert read(task, labels, tmp_path, monkeypatch) == classes, name
    codes = [theirs.index(label) for label in labels]
    for name, read in CLASS_LABELS.items():
        assert read(task, codes, tmp_path, monkeypatch, theirs) == classes, f"{name}, by number"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("names", "labels"),
    [(["bad", "good"], [-1, 1]), (["bad", "good"], [1, -1.0, None]), (["0", "1"], [-1, 1]), (["1", "2"], [1, -1, 1])],
    ids=["words", "words and a gap", "other numbers", "from one"],
)
def test_minus_one_beside_a_single_class_is_refused(tmp_path, monkeypatch, source, names, labels):
    """The other common way to write two classes would lose one of them."""
    with pytest.raises(InputError, match="label is -1 .no label. or class . in every row; .*label_names"):
        SOURCES[source](make_task(names), labels, tmp_path, monkeypatch)


GENRES = ["drama", "war", "love"]
NO_GENRES = [UNLABELLED] * 3
LISTS = {name: source for name, source in SOURCES.items() if source not in (from_csv, from_tsv)}


def genres(**fields) -> Task:
    """A task of several labels a row."""
    return make_task(GENRES, kind="multilabel", **fields)


@pytest.mark.parametrize("source", LISTS)
def test_a_label_is_a_list_of_names_or_numbers(tmp_path, monkeypatch, source):
    read = LISTS[source]
    labels = [["drama"], [" LOVE", "war"], [], None]
    assert read(genres(), labels, tmp_path, monkeypatch) == [[1, 0, 0], [0, 1, 1], [0, 0, 0], NO_GENRES]
    (tmp_path / "b").mkdir()
    labels = [[2, 0], [1], [], None]
    assert read(genres(), labels, tmp_path / "b", monkeypatch) == [[1, 0, 1], [0, 1, 0], [0, 0, 0], NO_GENRES]


@pytest.mark.parametrize(
    "vectors",
    [
        [[0, 1], [1, 0]],
        [[1, 0], None, [1, 0]],
        [[0.0, 1.0], [1.0, 0.0]],
        [[False, True], [True, False]],
        ["1|0", "0|1"],
    ],
)
@pytest.mark.parametrize("names", [["war", "love"], ["0", "1"]])
def test_vectors_of_0_and_1_are_not_read_as_numbers(vectors, names):
    """They would be read as both labels, in every row. Of three labels a vector has an item twice."""
    task = make_task(names, kind="multilabel")
    with pytest.raises(InputError, match=rf"rows: label is .* in every row, .* 0/1 vectors; .*\['{names[1]}'\]"):
        clean_rows(task, as_rows(vectors))
    with pytest.raises(InputError, match="expected a list of drama, war, love"):
        clean_rows(genres(), as_rows([[1, 0, 0]]))


@pytest.mark.parametrize("other", [[0], [], [1]])
def test_numbers_in_any_order_are_read_where_they_cannot_be_vectors(other):
    task = make_task(["war", "love"], kind="multilabel")
    assert clean_rows(task, as_rows([[1, 0], other]))["label"][0] == [1, 1]
    assert clean_rows(task, as_rows([[0, 1], [0, 1]]))["label"][:] == [[1, 1]] * 2  # in their order, as numbers are
    assert clean_rows(task, as_rows([["love", "war"]]))["label"][:] == [[1, 1]]
    assert clean_rows(genres(), as_rows([[1, 0]]))["label"][:] == [[1, 1, 0]]


@pytest.mark.parametrize("source", SOURCES)
def test_a_label_is_one_field(tmp_path, monkeypatch, source):
    """`|` alone is a row to which no label applies; an empty field is no label."""
    labels = ["drama", "war|Love", "love | drama|war", "|", " | ", "", "NA", None, "2|0", "-1"]
    expected = [
        [1, 0, 0],
        [0, 1, 1],
        [1, 1, 1],
        [0, 0, 0],
        [0, 0, 0],
        NO_GENRES,
        NO_GENRES,
        NO_GENRES,
        [1, 0, 1],
        NO_GENRES,
    ]
    assert SOURCES[source](genres(), labels, tmp_path, monkeypatch) == expected


@pytest.mark.parametrize(
    "label",
    ["drama|art", "art", "drama|", "||", "drama||war", "war|war", "war|1", "drama|NA", "3", "0|3", "-1|0", "1.5"],
)
def test_a_field_that_is_no_label_is_refused(tmp_path, monkeypatch, label):
    for source in (from_csv, from_tsv):
        with pytest.raises(
            InputError, match=r"a\..sv, row 2: label (is|has) .*; expected a list of drama, war, love .*a\|b"
        ):
            source(genres(), ["war", label], tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "label", [["art"], ["war", "art"], ["war", None], [None], ["drama|war"], [0, 0], [3], [-1], [["war"]], {"war": 1}]
)
def test_a_list_that_is_no_label_is_refused(label):
    with pytest.raises(InputError, match="rows, row 2: label (is|has) .*; expected a list of drama, war, love"):
        clean_rows(genres(), as_rows([["war"], label]))


def class_labels(names: list[str], labels: list) -> Dataset:
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=names))})
    return Dataset.from_list(as_rows(labels), features=features)


@pytest.mark.parametrize("source", ["memory", "parquet", "hub"])
def test_lists_of_class_labels_are_read_by_name(tmp_path, monkeypatch, source):
    rows, task = class_labels(["love", "drama", "war"], [[0, 2], [1], [], None]), genres()
    if source == "memory":
        found = clean_rows(task, rows)
    elif source == "parquet":
        rows.to_parquet(tmp_path / "a.parquet")
        task = genres(files=dict.fromkeys(("train", "dev"), str(tmp_path / "a.parquet")))
        found = load_rows(task)["train"]
    else:
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, split, **_: dict.fromkeys(split, rows))
        task = genres(hub={"path": "someone/rows", "splits": {"train": "train", "dev": "validation"}})
        found = load_rows(task, "hub")["train"]
    assert found["label"][:] == [[0, 1, 1], [1, 0, 0], [0, 0, 0], NO_GENRES]


def test_class_labels_of_other_names_are_refused():
    with pytest.raises(InputError, match="column 'label' has the classes love, drama; expected"):
        clean_rows(genres(), class_labels(["love", "drama"], [[0]]))
    rows = class_labels(["love", "drama", "war"], [[0], [1]]).cast_column("label", List(Value("int64")))
    rows = rows.map(lambda row: {"label": [7]})
    rows.info.features["label"] = List(ClassLabel(names=["love", "drama", "war"]))
    with pytest.raises(InputError, match="row 1: label is 7; expected a class from 0 to 2"):
        clean_rows(genres(), rows)


def test_every_set_of_labels_is_read_back():
    sets = [list(names) for size in range(4) for names in itertools.combinations(GENRES, size)]
    fields = ["|".join(names) or "|" for names in sets]
    rows = [clean_rows(genres(), as_rows(labels))["label"][:] for labels in (sets, fields)]
    assert rows[0] == rows[1] == [[int(name in names) for name in GENRES] for names in sets]


def test_numbers_in_the_courses_form_are_class_numbers(tmp_path):
    """Also where the names are other numbers, as `write_predictions` leaves them."""
    for names in (["1", "0"], [-1, 0, 1], ["1", "2", "3"], ["bad", "good"]):
        task = make_task(names, prediction_column="Predicted_Label")
        logits = np.eye(len(names), dtype=np.float32)[::-1].copy()
        table = prediction_table(task, list("abc")[: len(names)], logits)
        write_predictions(task, table, tmp_path / "a-dev")
        read = read_course_file(tmp_path / "a-dev.csv", task)
        assert read["label"][:] == table["label"][:] == [*range(len(names))][::-1]
    (tmp_path / "a-dev.csv").write_text("id \t Predicted_Label \na , 1.0 \n")
    assert read_course_file(tmp_path / "a-dev.csv", task)["label"][:] == [1]
    for label in ("2", "-1", "", "nan"):
        (tmp_path / "a-dev.csv").write_text(f"id \t Predicted_Label \na , {label} \n")
        with pytest.raises(InputError, match=f"row 1 has the label '{label}'; expected a class from 0 to 1"):
            read_course_file(tmp_path / "a-dev.csv", task)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("low", [-100, -1, 0])
def test_scores(tmp_path, monkeypatch, source, low):
    """Any number of the range is a score; NaN alone is none. In datasets -1 is none either where it is out of range."""
    task = make_task(score_range=[low, 100])
    got = SOURCES[source](task, [low, 100.0, None, "nan"][: 3 + (source in ("csv", "tsv"))], tmp_path, monkeypatch)
    assert got[:2] == [low, 100] and np.isnan(got[2:]).all()
    if low == 0 and source in ("hub", "dataset", "dictionaries"):
        assert np.isnan(SOURCES[source](task, [-1.0], tmp_path, monkeypatch)).all()
    elif low == 0:
        with pytest.raises(InputError, match="expected a score from 0 to 100"):
            SOURCES[source](task, [-1.0], tmp_path, monkeypatch)
    with pytest.raises(InputError, match="row 1: label is .*inf"):
        SOURCES[source](task, [float("inf") if source == "parquet" else "inf"], tmp_path, monkeypatch)


def test_the_columns_of_datasets_are_checked(tokenizer):
    task = make_task(["n", "y"])
    for rows, message in (
        ([{"label": "n"}], "rows, row 1: no column 'text'; its columns are label"),
        ([{"text": "a", "label": "n"}, "b"], "rows, row 2: is 'b'; expected a dictionary"),
        ([{"text": "so happy \ud83d", "label": "n"}], "row 1: .*has half of a two-part character"),
        ([{"text": "a", "label": "n", "id": "\ud83d"}], "row 1: .*has half of a two-part character"),
        ([{"text": "a", "label": "n"}, {"text": ["a"], "label": "n"}], "row 2 holds .*list.*; expected a text"),
        ([{"text": "a", "label": ["n"]}], r"row 1: label is \['n'\]; expected one of n, y "),
        (Dataset.from_dict({"texts": ["a"]}), "rows: no column 'text'; its columns are texts"),
    ):
        with pytest.raises(InputError, match=message):
            clean_rows(task, rows)
    rows = clean_rows(
        task, [{"text": text, "id": 7 + i} for i, text in enumerate(["a", None, 5, np.nan])], labelled=False
    )
    assert rows["text"][:] == ["a", "", "5", ""] and rows["id"][:] == ["7", "8", "9", "10"]
    assert rows["label"][:] == 4 * [NONE]
    assert len(tokenise(task, usable_rows(task, clean_rows(task, []), "test"), tokenizer, 16)) == 0, "no rows at all"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["0"], "text": ["a"]}, "have None as column 'label'"),
        ({"id": ["0"], "text": ["a"], "label": ["n"]}, "string.* as column 'label'"),
        ({"id": ["0", "1"], "text": ["a", None], "label": [0, 1]}, "gaps in column 'text'"),
        ({"id": ["0"], "text": [5], "label": [0]}, "int64.* as column 'text'"),
        ({"id": ["0"], "text": ["a"], "label": [2]}, "the label 2, and not a class from 0 to 1"),
        ({"id": ["0"], "text": ["a"], "label": [-1]}, "the label -1, and not a class from 0 to 1"),
    ],
    ids=["no labels", "names", "gaps", "numbers", "beyond the classes", "hidden as on the Hub"],
)
def test_rows_that_are_not_clean_are_refused(tokenizer, columns, message):
    for prepare in (
        lambda task, rows: tokenise(task, rows, tokenizer, 16),
        lambda task, rows: usable_rows(task, rows, "train"),
    ):
        with pytest.raises(InputError, match=f"task 'a' .*{message}.*clean_rows"):
            prepare(make_task(["n", "y"]), Dataset.from_dict(columns))
    with pytest.raises(InputError, match="are a list; expected clean rows"):
        usable_rows(make_task(["n", "y"]), [{"text": "a"}], "train")


def test_a_score_of_minus_a_hundred_end_to_end(tiny_bert, tokenizer, tmp_path):
    """It is trained on, scored and analysed like any other; a missing score is not."""
    task = make_task(score_range=[-100, 100], epochs=1, dropout=0.0)
    labels = [-100, 100, None, -1, 0, -100, 50.5]
    rows = clean_rows(task, [{"text": "a " * (1 + number), "label": label} for number, label in enumerate(labels)])
    assert len(usable_rows(task, rows, "train")) == 6 and len(usable_rows(task, rows, "dev")) == 7
    tokens = tokenise(task, rows, tokenizer, 16)
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task], **NO_DROPOUT)
    args = MultitaskTrainingArguments(
        tmp_path / "run", per_device_train_batch_size=8, learning_rate=0.0, logging_steps=1, report_to="none",
        eval_strategy="no", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = MultitaskTrainer(model, args, {"a": tokens}, {"a": tokens}, tokenizer)
    trainer.train()
    scores, output = trainer.evaluate(), trainer.predict(tokens)
    kept = [0, 1, 3, 4, 5, 6]
    expected = np.square(output.predictions[kept] - np.array([labels[row] for row in kept])).mean()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["eval_a_loss"] == pytest.approx(expected, rel=1e-5)
    table = prediction_table(task, rows["id"], output.predictions)
    beside = label_predictions(Predictions(task, table, "run"), rows)
    assert beside.labels.tolist() == [labels[row] for row in kept]
    scored = score_tables({"a": task}, {"a": table}, {"a": np.array(rows["label"][:])})
    assert scored["eval_a_pearson"] == pytest.approx(scores["eval_a_pearson"])


def unlabel(trainer: MultitaskTrainer) -> None:
    """Take the label of every third row of the trainer's rows."""
    for name, rows in trainer.train_dataset.tasks.items():
        missing = float("nan") if name == "sts" else UNLABELLED
        labels = [missing if number % 3 == 0 else label for number, label in enumerate(rows["labels"][:])]
        feature = rows.features["labels"]
        trainer.train_dataset.tasks[name] = rows.remove_columns("labels").add_column("labels", labels, feature=feature)


def test_rows_without_a_label_count_nowhere_however_a_batch_is_cut(make_trainer):
    runs = {}
    for rows, accumulation in [(8, 1), (2, 4), (1, 8)]:
        trainer = make_trainer(
            NO_DROPOUT, per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation,
            logging_steps=1, optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        unlabel(trainer)
        trainer.train()
        runs[rows] = weights(trainer), [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert np.isfinite(runs[8][1]).all()
    for rows in (2, 1):
        np.testing.assert_allclose(runs[rows][1], runs[8][1], rtol=1e-5)
        for name, weight in runs[8][0].items():
            np.testing.assert_allclose(runs[rows][0][name], weight, atol=1e-6, rtol=1e-5, err_msg=name)


def test_processes_count_the_labelled_rows_of_a_step_together(make_trainer):
    """Also where a process has no row of a step, and its filler is one of a task of scores."""
    trainer = make_trainer(per_device_train_batch_size=4)
    unlabel(trainer)
    samplers = [
        PlanSampler(trainer.plan, trainer.rows, trainer.batch_size, trainer.data_seed, rank=rank, processes=3)
        for rank in range(3)
    ]
    whole = PlanSampler(trainer.plan, trainer.rows, trainer.batch_size, trainer.data_seed)
    for keys, *shares in zip(whole, *samplers, strict=True):
        batches = [Collator(0)(trainer.train_dataset.__getitems__(share)) for share in shares]
        assert len({batch["labels"].dtype for batch in batches}) == 1, "processes gather them"
        counts = [
            next(iter(trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))[1].values()))
            for batch in batches
        ]
        labels = np.array([row["labels"] for row in trainer.train_dataset.__getitems__(keys)])
        assert sum(map(int, counts)) == is_labelled(labels).sum()
