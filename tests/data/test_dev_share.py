"""Dev rows out of the training rows: how many, how they are drawn, and that all who read them get the same."""

import csv
import random
from collections import Counter

import numpy as np
import pytest

from bert_multitask.data.rows import fingerprint, load_rows, usable_rows
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import Task, load_task

NAMES = ("rare", "some", "most")


def write(path, rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "sentence", "label"], *rows])
    return str(path)


def make_task(path, kind="classification", share=0.1, **fields) -> Task:
    names = {} if kind == "regression" else {"label_names": NAMES}
    return load_task({"name": "t", "kind": kind, "files": {"train": str(path)}, "dev_share": share} | names | fields)


@pytest.fixture
def rows() -> list[list]:
    labels = ["rare"] * 20 + ["some"] * 100 + ["most"] * 380
    return [[f"r{number}", f"text {number}", label] for number, label in enumerate(labels)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
def test_the_share_and_each_class(tmp_path, rows, share):
    found = load_rows(make_task(write(tmp_path / "all.csv", rows), share=share))
    assert set(found) == {"train", "dev"}
    assert sorted(found["train"]["id"][:] + found["dev"]["id"][:]) == sorted(row[0] for row in rows)
    assert len(found["dev"]) == pytest.approx(share * len(rows), abs=1)
    counts = Counter(found["dev"]["label"][:])
    for number, size in enumerate((20, 100, 380)):
        assert counts[number] == pytest.approx(share * size, abs=1)


def test_the_order_of_the_file_the_splits_asked_for_and_the_seed_change_nothing(tmp_path, rows):
    task = make_task(write(tmp_path / "all.csv", rows))
    dev = load_rows(task)["dev"]
    assert fingerprint(load_rows(task, splits=["dev"], labelled=())["dev"]) == fingerprint(dev)
    assert list(load_rows(task, splits=["dev"])) == ["dev"] and list(load_rows(task, splits=["train"])) == ["train"]
    assert set(load_rows(task, splits=["train"])["train"]["id"][:]).isdisjoint(dev["id"][:])
    random.seed(1)
    np.random.seed(1)
    random.shuffle(rows)
    shuffled = load_rows(make_task(write(tmp_path / "shuffled.csv", rows)))["dev"]
    assert sorted(shuffled["id"][:]) == sorted(dev["id"][:])


def test_rows_of_one_text_are_on_one_side(tmp_path, rows):
    twins = [[f"twin {row[0]}", row[1], row[2]] for row in rows]
    found = load_rows(make_task(write(tmp_path / "all.csv", rows + twins)))
    assert set(found["train"]["text"][:]).isdisjoint(found["dev"]["text"][:])
    assert len(found["dev"]) == 2 * len(set(found["dev"]["text"][:]))


def test_case_white_space_and_punctuation_make_no_other_text(tmp_path, rows, caplog, propagated_logs):
    before = load_rows(make_task(write(tmp_path / "all.csv", rows)))["dev"]["id"][:]
    twins = [[f"twin {row[0]}", f" {row[1].upper()}!", "rare"] for row in rows if row[0] in before]
    single = [["one", "Only", "lonely"], ["two", "only.", "lonely"]]
    fields = {"label_names": [*NAMES, "lonely"]}
    found = load_rows(make_task(write(tmp_path / "all.csv", rows + single), share=0.5, **fields))
    assert {"one", "two"} <= set(found["train"]["id"][:])
    found = load_rows(make_task(write(tmp_path / "all.csv", rows + twins)))
    sides = [{text.strip(" !").casefold() for text in found[split]["text"][:]} for split in ("train", "dev")]
    assert not sides[0] & sides[1] and not caplog.messages


def test_a_class_with_one_text_is_trained_on(tmp_path):
    rows = [[n, f"text {n}", "most" if n else "rare"] for n in range(20)]
    for share in (0.1, 0.5):
        found = load_rows(make_task(write(tmp_path / "all.csv", rows), share=share))
        assert set(found["train"]["label"][:]) == {0, 2} and set(found["dev"]["label"][:]) == {2}


def test_scores_are_drawn_over_their_range(tmp_path):
    scores = np.sort(np.random.default_rng(0).normal(size=500))
    rows = [[n, f"text {n}", score] for n, score in enumerate(scores)]
    found = load_rows(make_task(write(tmp_path / "all.csv", rows), "regression", 0.2))
    places = np.searchsorted(scores.astype(np.float32), np.sort(found["dev"]["label"][:]))
    assert len(places) == 100 and np.abs(places - np.arange(2, 500, 5)).max() <= 3


@pytest.mark.parametrize("kind", ["multilabel", "token_classification"])
def test_lists_of_labels(tmp_path, kind):
    words = kind == "token_classification"
    labels = [" ".join([name] * 2) if words else f"{name}|most" for name in ("rare", "some")] * 50
    rows = [[n, f"text {n}", label] for n, label in enumerate(labels)]
    fields = {"metric": "accuracy"} if words else {}
    found = load_rows(make_task(write(tmp_path / "all.csv", rows), kind, 0.1, **fields))
    assert len(found["dev"]) == 10 and set(Counter(map(tuple, found["dev"]["label"][:])).values()) == {5}


def test_too_few_rows_and_gaps_are_named(tmp_path, rows, caplog, propagated_logs):
    with pytest.raises(InputError, match=r"all.csv: dev_share 0.1 of 3 different texts leaves no row on a side"):
        load_rows(make_task(write(tmp_path / "all.csv", rows[100:103])))
    rows[7][1] = ""
    task = make_task(write(tmp_path / "all.csv", rows))
    for split, part in load_rows(task).items():
        usable_rows(task, part, split)
    assert "all.csv: an empty text in row with id 'r7'" in caplog.text
