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
from bert_multitask.evaluation.tables import find_tables
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
    assert [load_task(task).name for task in run.record["tasks"]] == TASKS and run.record["data_dir"] == SAMPLE


@pytest.mark.parametrize("split", ["dev", "test"])
def test_it_predicts_the_same(split):
    found = SplitTables([TrainedRun.open(str(OLD))], split)
    before = find_tables(str(OLD), split)
    assert list(found.tasks) == TASKS and before.keys() == set(TASKS)
    for name, (_, table, _) in before.items():
        now = found.tables[0][name].table
        assert now.column_names == table.column_names and now["id"][:] == table["id"][:] and len(table) == 150
        for column in table.column_names[1:]:
            np.testing.assert_allclose(now[column][:], table[column][:], rtol=0, atol=1e-6)
    if split == "dev":
        tables = {name: predictions.table for name, predictions in found.tables[0].items()}
        scores = score_tables(found.tasks, tables, found.labels)
        assert scores == pytest.approx(json.loads((OLD / "scores.json").read_text()), abs=1e-6)


def scores_of(page: str) -> list[list[str]]:
    """Task, rows, score and interval of each line; how a metric is called may change."""
    lines = page.partition("| task | metric | rows")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cells[0], *cells[2:]] for cells in (line.strip("| ").split(" | ") for line in lines)]


@pytest.mark.parametrize("anew", [False, True], ids=["its predictions", "predicted now"])
def test_it_reports_the_same(tmp_path, anew):
    run = tmp_path / "run"
    shutil.copytree(OLD, run, ignore=shutil.ignore_patterns("predictions") if anew else None)
    write_report(run, tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert scores_of(page) == scores_of((OLD / "scores.md").read_text(encoding="utf-8")) and len(scores_of(page)) == 5
    assert "## Order of the tasks" in page and "## Settings" in page
