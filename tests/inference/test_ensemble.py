"""Voting and averaging against scipy and numpy, the refusals, greedy selection, and the recipe."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import run_here, write_table
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mode, pearsonr
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import VotingClassifier
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelEncoder

from bert_multitask.evaluation.tables import (
    Predictions,
    check_alike,
    prediction_table,
    read_predictions,
    with_texts,
    write_predictions,
)
from bert_multitask.inference.ensemble import combine, halve, select_greedily
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import UNLABELLED
from bert_multitask.model.tasks import TASKS, Task

ENSEMBLE = "ensemble"
SST, QUORA, STS = (TASKS[name] for name in ("sst", "quora", "sts"))
# Few values, so that ties are common.
LOGITS = st.sampled_from([-2.0, -0.5, 0.0, 0.1, 0.7, 3.0])


def ids(rows: int) -> list[str]:
    return [f"row{number}" for number in range(rows)]


def labels_only(*rows: list[int]) -> list[Dataset]:
    return [Dataset.from_dict({"id": ids(len(row)), "label": row}) for row in rows]


@st.composite
def tables(draw, task: Task) -> list[Dataset]:
    """One to five members' tables of one to four rows."""
    members, rows = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    shape = (rows, 5) if task is SST else (rows,)
    size = int(np.prod(shape))
    return [
        prediction_table(task, ids(rows), np.reshape(draw(st.lists(LOGITS, min_size=size, max_size=size)), shape))
        for _ in range(members)
    ]


@pytest.mark.parametrize("vote", ["mode", "soft"])
@pytest.mark.parametrize("task", [SST, QUORA, STS], ids=lambda task: task.name)
def test_members_order_and_copies_do_not_matter(task, vote):
    @settings(max_examples=30, deadline=None)
    @given(tables(task), st.randoms())
    def check(members, random):
        expected = combine(task, members, vote)[:]
        shuffled = random.sample(members, len(members))
        assert combine(task, shuffled, vote)[:] == expected, "to the last digit"
        one = members[0]
        alike = combine(task, [one] * len(members), vote)[:]
        if vote == "soft" and task is QUORA:  # at a logit of about 0 the probabilities are equal in fp32
            del alike["label"]
        assert {key: one[key][:] for key in alike} == alike

    check()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_mode_is_scipys_where_there_are_no_probabilities(members):
    combined = combine(SST, labels_only(*members))
    assert combined["label"][:] == mode(np.array(members), axis=0).mode.tolist()
    assert combined.column_names == ["id", "label"]


@settings(max_examples=30, deadline=None)
@given(tables(STS))
def test_scores_are_averaged(members):
    expected = np.mean([member["score"][:] for member in members], axis=0)
    np.testing.assert_allclose(combine(STS, members)["score"][:], expected, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(tables(SST))
def test_a_soft_vote_is_for_the_highest_mean_probability(members):
    expected = np.mean([member["probabilities"][:] for member in members], axis=0)
    combined = combine(SST, members, "soft")
    np.testing.assert_allclose(combined["probabilities"][:], expected, atol=1e-6)
    chosen = np.take_along_axis(expected, np.array(combined["label"][:])[:, None], 1)[:, 0]
    np.testing.assert_allclose(chosen, expected.max(1), atol=1e-6)


class Fixed(ClassifierMixin, BaseEstimator):
    """A classifier that predicts a member's table, whatever it is given."""

    def __init__(self, table: Dataset):
        self.table = table

    def predict(self, rows) -> np.ndarray:
        return np.array(self.table["label"][:])

    def predict_proba(self, rows) -> np.ndarray:
        return np.array(self.table["probabilities"][:])


@pytest.mark.parametrize(("ours", "theirs"), [("mode", "hard"), ("soft", "soft")])
def test_votes_are_those_of_scikit_learn(ours, theirs):
    """Whose ties of a hard vote go to the lowest class, as ours do where there are no probabilities."""
    logits = np.random.default_rng(0).normal(size=(4, 200, 5))
    members = [prediction_table(SST, ids(200), member) for member in logits]
    voting = VotingClassifier([], voting=theirs)
    voting.estimators_ = list(map(Fixed, members))
    voting.le_ = LabelEncoder().fit(range(5))
    tables = members if ours == "soft" else [member.remove_columns("probabilities") for member in members]
    assert combine(SST, tables, ours)["label"][:] == voting.predict(np.zeros((200, 1))).tolist()


def test_a_tie_goes_to_the_highest_mean_probability():
    def table(label: int, probabilities: list[float]) -> Dataset:
        return Dataset.from_dict({"id": ["a"], "label": [label], "probabilities": [probabilities]})

    # Classes 1 and 3 have two votes each; class 0 is the most probable of all, and has none.
    members = [
        table(1, [0.3, 0.4, 0, 0.3, 0]),
        table(3, [0.45, 0, 0, 0.55, 0]),
        table(1, [0.49, 0.51, 0, 0, 0]),
        table(3, [0.4, 0, 0, 0.6, 0]),
    ]
    assert combine(SST, members)["label"][:] == [3]
    assert combine(SST, members, "soft")["label"][:] == [0]
    assert combine(SST, [member.remove_columns("probabilities") for member in members])["label"][:] == [1]
    mixed = combine(SST, [members[0].remove_columns("probabilities"), *members[1:]])
    assert mixed["label"][:] == [1] and "probabilities" not in mixed.column_names
    with pytest.raises(InputError, match="a soft vote on 'sst' needs probabilities"):
        combine(SST, [members[0].remove_columns("probabilities"), *members[1:]], "soft")


def told(table: Dataset, texts: list[str]) -> Dataset:
    """A table that says which texts its rows have."""
    return with_texts(SST, table, Dataset.from_dict({"id": table["id"][:], "text": texts}))


def test_tables_that_are_not_alike_are_refused():
    table = labels_only([0, 1, 2])[0]
    first = Predictions(SST, told(table, ["x", "y", "z"]), "A")
    check_alike([first, Predictions(SST, table, "B")])
    swapped = Dataset.from_dict({"id": ["row0", "row2", "row1"], "label": [0, 1, 2]})
    three = Task(name="sst", kind="classification", label_names=("a", "b", "c"))
    for other, message in [
        (Predictions(SST, swapped, "B"), "B: row 2 has id 'row2', and 'row1' in A"),
        (Predictions(SST, table.select([0, 1]), "B"), "B has 2 rows, and A has 3"),
        (Predictions(three, table, "B"), "B: the task's label_names is"),
        (Predictions(STS, table, "B"), "B: the task's name is 'sts', and 'sst' in A"),
        (Predictions(SST, told(table, ["x", "y", "w"]), "B"), "B: the row with id 'row2' has other texts than in A"),
    ]:
        with pytest.raises(InputError, match=message):
            check_alike([first, first, other])


def test_an_ensembles_table_is_a_members_table(tmp_path):
    logits = np.random.default_rng(0).normal(size=(3, 20, 5))
    members = [prediction_table(SST, ids(20), member) for member in logits]
    combined = combine(SST, members)
    write_predictions(SST, combined, tmp_path / "sst-dev")
    again = read_predictions(tmp_path / "sst-dev.parquet")
    assert again.task == dataclasses.replace(SST, files=None, hub=None, course_rows=None)
    assert combine(SST, [again.table])[:] == combined[:]
    by_hand = read_predictions(tmp_path / "sst-dev.csv")
    assert by_hand.table[:] == combined.remove_columns("probabilities")[:]


def test_halves():
    labels = np.where(np.arange(21) % 4 == 0, UNLABELLED, 1)
    first, second = halve(SST, labels)
    assert sorted([*first, *second]) == np.flatnonzero(labels != UNLABELLED).tolist()
    assert abs(len(first) - len(second)) <= 1
    assert all(np.array_equal(one, two) for one, two in zip((first, second), halve(SST, labels), strict=True))
    with pytest.raises(InputError, match="3 labelled rows of 'sst' are too few"):
        halve(SST, np.array([1, 2, 3]))


def test_greedy_selection_by_hand():
    labels = np.array([0, 1, 2, 3, 4, 0])
    good, bad = [0, 1, 2, 3, 0, 1], [4, 4, 4, 4, 0, 4]
    # Alone 4 of 6 are right; a second opinion adds nothing that the lowest class does not take back.
    assert select_greedily(SST, labels_only(bad, good), labels) == [1]
    # Errors that cancel: each has one score wrong, in the other direction.
    scores = np.array([0.0, 1, 2, 3, 4, 5])
    error = np.array([1.0, 0, 0, 0, 0, 0])
    members = [Dataset.from_dict({"id": ids(6), "score": values}) for values in (scores + error, scores - error)]
    assert sorted(select_greedily(STS, members, scores)) == [0, 1]


@settings(max_examples=15, deadline=None)
@given(tables(SST), st.data())
def test_greedy_selection_is_never_worse_than_the_best_member_where_it_selects(members, data):
    labels = np.array([data.draw(st.integers(0, 4)) for _ in members[0]])
    picks = select_greedily(SST, members, labels)
    alone = [accuracy_score(labels, member["label"][:]) for member in members]
    together = accuracy_score(labels, combine(SST, [members[pick] for pick in picks])["label"][:])
    assert together >= max(alone) and picks[0] == int(np.argmax(alone)) and len(picks) <= len(members)


@pytest.fixture
def folders(tmp_path, course_folder):
    """Three folders of tables of the course folder's dev and test rows, of sst and sts."""
    generator = np.random.default_rng(1)
    for number in range(3):
        for split, sizes in {"dev": {"sst": 6, "sts": 5}, "test": {"sst": 3, "sts": 5}}.items():
            name = "test-student" if split == "test" else split
            for task, rows in sizes.items():
                names = [f"{task[0] if task == 'sst' else 't'}{name}{row}" for row in range(rows)]
                logits = generator.uniform(0, 5, size=(rows, 5) if task == "sst" else rows)
                table = prediction_table(TASKS[task], names, logits)
                write_predictions(TASKS[task], table, tmp_path / f"m{number}" / f"{task}-{split}")
    return [tmp_path / f"m{number}" for number in range(3)]


def test_the_recipe_on_folders_of_tables(monkeypatch, tmp_path, course_folder, folders, capsys):
    flags = ["--output_dir", tmp_path / "all", "--data_dir", course_folder]
    assert run_here(monkeypatch, *folders, *flags, recipe=ENSEMBLE) == 0
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "all" / "ensemble.json").read_text())["scores"]["dev"]
    sst = [read_predictions(folder / "sst-dev.parquet").table["label"][:] for folder in folders]
    sts = [read_predictions(folder / "sts-dev.parquet").table["score"][:] for folder in folders]
    gold = {"sst": [i % 5 for i in range(6)], "sts": [i % 6 * 0.9 for i in range(5)]}
    for folder, labels, values in zip(folders, sst, sts, strict=True):
        assert scores[str(folder)]["eval_sst_accuracy"] == accuracy_score(gold["sst"], labels)
        assert scores[str(folder)]["eval_sts_pearson"] == pytest.approx(pearsonr(gold["sts"], values).statistic)
    pearson = pearsonr(gold["sts"], np.mean(sts, axis=0)).statistic
    assert scores["all 3, mode"]["eval_sts_pearson"] == pytest.approx(pearson)
    assert f"{pearson:10.4f}" in printed.splitlines()[4] and "all 3, mode" in printed.splitlines()[4]
    test = [read_predictions(folder / "sts-test.parquet").table["score"][:] for folder in folders]
    got = read_predictions(tmp_path / "all" / "sts-test.csv").table
    np.testing.assert_allclose(got["score"][:], np.mean(test, axis=0), rtol=1e-6)
    assert got["id"][:] == [f"ttest-student{row}" for row in range(5)]

    # Files instead of folders, and the ensemble as a member.
    files = [folder / "sts-dev.csv" for folder in folders]
    assert run_here(monkeypatch, *files, "--output_dir", tmp_path / "files", recipe=ENSEMBLE) == 0
    printed = capsys.readouterr().out
    assert "no scores" in printed and "dev predictions" in printed
    assert (tmp_path / "files" / "sts-dev.csv").read_text() == (tmp_path / "all" / "sts-dev.csv").read_text()
    assert run_here(monkeypatch, tmp_path / "all", "--output_dir", tmp_path / "again", recipe=ENSEMBLE) == 0
    for name in ("sst-dev", "sst-test", "sts-dev", "sts-test"):
        assert (tmp_path / "again" / f"{name}.csv").read_text() == (tmp_path / "all" / f"{name}.csv").read_text()


def test_the_recipe_selects_on_one_half_and_scores_both(monkeypatch, tmp_path, course_folder, folders, capsys):
    flags = ["--output_dir", tmp_path / "new", "--data_dir", course_folder, "--select", "greedy", "--split", "test"]
    assert run_here(monkeypatch, *folders, *flags, recipe=ENSEMBLE) == 0
    record = json.loads((tmp_path / "new" / "ensemble.json").read_text())
    assert list(record["scores"]) == ["dev, the half selected on", "dev, the other half"]
    assert sorted(path.name for path in (tmp_path / "new").glob("*.csv")) == ["sst-test.csv", "sts-test.csv"]
    dev = [read_predictions(folder / "sst-dev.parquet").table for folder in folders]
    labels = np.array([i % 5 for i in range(6)])
    rows = halve(SST, labels)
    picks = select_greedily(SST, [table.select(rows[0]) for table in dev], labels[rows[0]])
    assert record["picks"]["sst"] == [str(folders[pick]) for pick in picks]
    combined = np.array(combine(SST, [dev[pick] for pick in picks])["label"][:])
    for title, half in zip(record["scores"], rows, strict=True):
        got = record["scores"][title]["selected, mode"]["eval_sst_accuracy"]
        assert got == accuracy_score(labels[half], combined[half])
    test = [read_predictions(folders[pick] / "sst-test.parquet").table for pick in picks]
    assert read_predictions(tmp_path / "new" / "sst-test.parquet").table[:] == combine(SST, test)[:]


def test_the_recipe_names_mistakes(monkeypatch, tmp_path, course_folder, folders, capsys):
    one, two, three = folders
    lines = (two / "sst-dev.csv").read_text().splitlines()
    short = tmp_path / "short" / "sst-dev.csv"
    short.parent.mkdir()
    short.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")
    (tmp_path / "broken").mkdir()
    for name, text in [("sst-dev", "id,label\na,3\n"), ("sst-test", lines[0] + "\na , 7 \n"), ("sts-dev", lines[0])]:
        (tmp_path / "broken" / f"{name}.csv").write_text(text)
    (tmp_path / "broken" / "nli-dev.csv").write_text("id,label\na,neutral\n")
    other, empty = tmp_path / "other", tmp_path / "empty"
    other.mkdir(), empty.mkdir()
    write_table(other / "ids-sst-dev.csv", ["", "id", "sentence", "sentiment"], [[0, "x", "fine", 3]])
    for arguments, message in [
        ([one / "sst-dev.csv", short], "sst-dev.csv: row 1 has id 'sdev1', and 'sdev0' in"),
        ([one / "sst-dev.csv", two], f"{one / 'sst-dev.csv'} has no dev table of 'sts', as {two} has"),
        ([one, empty], f"{empty} has no dev table of 'sst'"),
        ([empty], "no table {task}-dev or test.parquet or .csv"),
        ([one, "--split", "test", "--select", "greedy"], "needs dev labels of 'sst'; name the rows with --data_dir"),
        ([one / "sst-dev.csv", "--data_dir", other], "other (sst): row 1 has id 'x', and 'sdev0' in"),
        ([tmp_path / "broken" / "sst-dev.csv"], "begins with 'id,label'; expected"),
        ([tmp_path / "broken" / "sst-test.csv"], "sst-test.csv: row 1 has the label '7'; expected a class from 0 to 4"),
        ([tmp_path / "broken" / "nli-dev.csv"], "'nli' is no task of the course; give nli-dev.parquet"),
        ([tmp_path / "none"], "none: no such folder"),
    ]:
        assert run_here(monkeypatch, *arguments, "--output_dir", tmp_path / "new", recipe=ENSEMBLE) == 2, message
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, (message, error)
    assert run_here(monkeypatch, one, two, "--output_dir", two, recipe=ENSEMBLE) == 2
    assert "holds a member's tables; choose another folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
