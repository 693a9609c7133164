"""A run folder that an earlier version left, with what it predicted and reported: all is the same today.

`tests/runs/74d3b5b` was trained and predicted by commit 74d3b5b, on the shipped sample, with four tasks: the three
kinds, and one of the user's own. `scores.json` and `scores.md` are what its predict.py and report.py wrote of it.
"""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from bert_multitask.data.rows import SAMPLE
from bert_multitask.evaluation.tables import TEXTS, find_tables
from bert_multitask.inference.split_tables import SplitTables, score_tables
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.tasks import load_task
from bert_multitask.reporting.report import write_report

OLD = ROOT / "tests" / "runs" / "74d3b5b"
TASKS = ["sst", "quora", "sts", "stars"]


def test_it_loads():
    run = TrainedRun.open(str(OLD))
    assert list(run.tasks) == TASKS == list(run.load_model().tasks) and run.max_length == 32
    assert "tasks" not in json.loads((OLD / "run.json").read_text()), "the older form"
    record = run.records.run
    assert [load_task(task).name for task in record["tasks"]] == TASKS and record["data_dir"] == SAMPLE


@pytest.mark.parametrize("split", ["dev", "test"])
def test_it_predicts_the_same(split):
    found = SplitTables([TrainedRun.open(str(OLD))], split)
    before = find_tables(OLD, split)
    assert list(found.tasks) == TASKS and before.keys() == set(TASKS)
    for name, (_, table, _) in before.items():
        now = found.members[0].tables[name].table
        assert now.column_names == [*table.column_names, TEXTS], "which older tables do not have"
        assert now["id"][:] == table["id"][:] and len(table) == 150
        for column in table.column_names[1:]:
            np.testing.assert_allclose(now[column][:], table[column][:], rtol=0, atol=1e-6)
    if split == "dev":
        tables = {name: predictions.table for name, predictions in found.members[0].tables.items()}
        scores = score_tables(found.tasks, tables, found.labels)
        assert scores == pytest.approx(json.loads((OLD / "scores.json").read_text()), abs=1e-6)


def test_its_tables_are_read_also_in_a_package(monkeypatch, tmp_path):
    """As those of any folder are."""
    shutil.copytree(OLD, tmp_path / "package_of_runs" / "old")
    (tmp_path / "package_of_runs" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (member,) = SplitTables(["package:package_of_runs/old"], "dev").members
    assert member.run is None and member.tables.keys() == set(TASKS) == member.records.places.keys()


def scores_of(page: str) -> dict[str, list[float]]:
    """{task: rows, score and bounds of its interval}; what the columns are, and how many decimals, may change."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    heads, _, *lines = lines[: next((n for n, line in enumerate(lines) if line[0] == "overall"), 0) + 1]
    rows = [dict(zip(heads, line, strict=True)) for line in lines]
    wanted = {row["task"]: f"{row['rows']} {row['score']} {row['95% interval']}" for row in rows}
    return {task: [float(word) for word in values.split() if word != "to"] for task, values in wanted.items()}


@pytest.mark.parametrize("anew", [False, True], ids=["its predictions", "predicted now"])
def test_it_reports_the_same(tmp_path, anew):
    run = tmp_path / "run"
    shutil.copytree(OLD, run, ignore=shutil.ignore_patterns("predictions") if anew else None)
    write_report(run, tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    expected = scores_of((OLD / "scores.md").read_text(encoding="utf-8"))
    assert scores_of(page).keys() == expected.keys() and len(expected) == 5
    for task, values in expected.items():
        assert scores_of(page)[task] == pytest.approx(values, abs=0.00051), task
    assert "## Order of the tasks" in page and "## Settings" in page
