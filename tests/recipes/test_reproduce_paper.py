"""The paper's tables and figures with one command: its numbers, its runs, what a stop costs, what is refused."""

import json
import re
from pathlib import Path
from statistics import mode, stdev

import pytest
from conftest import ROOT, run_here, write_course
from safetensors.torch import load_file

from bert_multitask.training.trainer import MultitaskTrainer
from bert_multitask.training.yaml_file import CONFIGS

RECIPES = ROOT / "recipes"
REPRODUCE = RECIPES / "reproduce_paper.py"
ENSEMBLE = "ensemble"


@pytest.fixture
def paper(monkeypatch):
    """The module of the paper's tables; and the recipe finds its neighbours, as when Python runs it."""
    monkeypatch.syspath_prepend(RECIPES)
    from paper import tables

    return tables


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_bert) -> list:
    """Of a quick run on a few rows."""
    data = write_course(tmp_path_factory.mktemp("paper") / "data")
    quick = ["--budget", 0.2, "--save_steps", 3, "--eval_steps", 3, "--report_to", "none", "--disable_tqdm", "true"]
    return ["--data_dir", data, "--model_name_or_path", tiny_bert, *quick]


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading."""
    section = page.split(f"## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def scores(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_the_papers_numbers_add_up(paper):
    """Its overall scores are the means of its columns, to the last digit that it gives."""
    rows = [row for table in paper.TABLES.values() for row in table.rows if "overall" in row.paper]
    assert len(rows) == 18
    for row in rows:
        sst, quora, sts = (row.paper[task] for task in ("sst", "quora", "sts"))
        assert (sst + quora + (sts + 1) / 2) / 3 == pytest.approx(row.paper["overall"], abs=0.00101), row.label


def test_the_papers_numbers_are_in_the_paper(paper, real_data):
    text = Path(real_data, "..", "paper.txt")
    if not text.is_file():
        pytest.skip("the paper's text is not beside the data")
    lines = text.read_text(encoding="utf-8").splitlines()
    for table in paper.TABLES.values():
        for row in table.rows:
            line = "\t".join([row.label, *(f"{number:.3f}" for number in row.paper.values())])
            assert line in lines, line


def test_each_run_is_needed_once(paper):
    needed = [key for element in paper.ELEMENTS for key in paper.needed(element, [0])]
    names = {f"{system.name} {seed}" for system, seed in needed}
    assert len(set(needed)) == len(names) == 22
    assert {system.config for system, _ in needed} == {path.stem for path in (CONFIGS / "paper").glob("*.yaml")}
    assert list(paper.needed("table1", [3, 4])) == [
        (system, seed) for system in (paper.BASELINE, paper.BASELINE_TPE) for seed in (3, 4)
    ]
    assert set(paper.needed("table6", [0])) == set(paper.needed("figure4", [0])) == set(paper.needed("table5", [0]))
    assert paper.member_seeds([0]) == [0, 1, 2] and paper.member_seeds([5, 1]) == [5, 1, 6]
    assert paper.member_seeds([4, 3, 2, 1]) == [4, 3, 2]


def test_tables_and_figures(monkeypatch, paper, flags, tmp_path, capsys):
    out = tmp_path / "out"
    only = ["--only", "figure2", "table5", "table6", "figure3", "figure4"]
    assert run_here(monkeypatch, *flags, "--output_dir", out, *only, recipe=REPRODUCE) == 0
    page = (out / "paper.md").read_text()
    headings = re.findall(r"^## (\w+ \d)", page, re.MULTILINE)
    assert headings == ["Figure 2", "Table 5", "Table 6", "Figure 3", "Figure 4"]
    assert page.count("(budget 0.2)") == 5 and "with 0.2 of the paper's batches" in page
    for name in ("figure2", "figure3-sst", "figure3-quora", "figure4-sts"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"({name}.png)" in page
    assert (out / "paper.html").read_text().count("data:image/png;base64") == 4

    members = [out / "runs" / f"{name}_tpe_smart_df-seed{seed}" for name in ("3bert", "rr") for seed in (0, 1, 2)]
    table = cells(page, "Table 5")
    for run, line in zip(members, table, strict=False):
        expected = [scores(run)[f"eval_{key}"] for key in ("overall", "sst_accuracy", "quora_accuracy", "sts_pearson")]
        assert line[1::2] == [f"{value:.3f}" for value in expected]
        assert not list(run.glob("checkpoint-*")), "a finished run's checkpoints are removed"
    # The same as the recipe of ensembles makes of these runs.
    assert run_here(monkeypatch, *members, "--output_dir", tmp_path / "other", recipe=ENSEMBLE) == 0
    (found,) = json.loads((tmp_path / "other" / "ensemble.json").read_text())["scores"].values()
    assert table[6][1] == cells(page, "Table 6")[0][1] == f"{found['all 6, mode']['eval_overall']:.3f}"
    for name in ("sst-dev", "quora-test", "sts-test"):
        assert (out / "ensemble" / f"{name}.csv").read_text() == (tmp_path / "other" / f"{name}.csv").read_text()
    votes = zip(*((run / "predictions/sst-dev.csv").read_text().splitlines()[1:] for run in members), strict=True)
    winners = [mode(vote) for vote in votes if vote.count(mode(vote)) > 3]
    assert set(winners) <= set((out / "ensemble/sst-dev.csv").read_text().splitlines())
    assert set(cells(page, "Table 6")[1][1::2]) == {"no labels here"}
    assert re.search(r"The ensemble is (worse than|at least as good as) its best member", page)

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    capsys.readouterr()
    assert run_here(monkeypatch, *flags, "--output_dir", out, *only, recipe=REPRODUCE) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}, "nothing is trained again"
    assert "=== run" not in capsys.readouterr().out
    for other, message in [
        (["--learning_rate", 0.5], "learning_rate was 1e-05 and is 0.5"),
        (["--budget", 0.3], "budget was 0.2 and is 0.3"),
    ]:
        assert run_here(monkeypatch, *flags, "--output_dir", out, *only, *other, recipe=REPRODUCE) == 2
        assert message in capsys.readouterr().err


def test_several_runs_at_a_time(monkeypatch, paper, flags, tmp_path, trained_here, capsys):
    """The runs are those of one after the other, and so is the page."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    only = ["--only", "table1", "--jobs", 2]
    assert run_here(monkeypatch, *flags, "--output_dir", out, *only, recipe=REPRODUCE) == 0
    assert trained_here == ["baseline-seed0", "baseline_tpe-seed0"]
    assert run_here(monkeypatch, CONFIGS / "paper/baseline_tpe.yaml", *flags, "--output_dir", whole) == 0
    second = out / "runs/baseline_tpe-seed0"
    assert scores(second) == scores(whole) and not list(out.glob("runs/*/checkpoint-*"))
    table = cells((out / "paper.md").read_text(), "Table 1")
    assert table[1][1] == f"{scores(second)['eval_quora_accuracy']:.3f}"
    assert run_here(monkeypatch, *flags, "--output_dir", out, *only, recipe=REPRODUCE) == 0
    assert len(trained_here) == 2, "nothing is trained again"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_here(monkeypatch, *flags, "--output_dir", out, *only, recipe=REPRODUCE) == 2
    assert "--jobs starts a process for each run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stop_costs_the_steps_since_the_last_checkpoint(monkeypatch, paper, flags, tmp_path, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    config = CONFIGS / "paper/baseline_tpe.yaml"
    assert run_here(monkeypatch, config, *flags, "--output_dir", whole) == 0

    log = MultitaskTrainer.log

    def stop_in_the_second_run(self, logs, start_time=None):
        if "baseline_tpe" in self.args.output_dir and self.state.global_step == 5:
            raise KeyboardInterrupt
        log(self, logs, start_time)

    command = [*flags, "--output_dir", out, "--only", "table1"]
    with monkeypatch.context() as stopped:
        stopped.setattr(MultitaskTrainer, "log", stop_in_the_second_run)
        assert run_here(monkeypatch, *command, recipe=REPRODUCE) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err
    first, second = out / "runs/baseline-seed0", out / "runs/baseline_tpe-seed0"
    table = cells((out / "paper.md").read_text(), "Table 1")
    assert table[0][1] == f"{scores(first)['eval_quora_accuracy']:.3f}" and table[1][1] == "—"
    assert (second / "checkpoint-4").exists() and not (second / "metrics.json").exists()
    trained = (first / "model.safetensors").stat().st_mtime_ns

    steps = []
    step = MultitaskTrainer.training_step
    monkeypatch.setattr(MultitaskTrainer, "training_step", lambda *args: steps.append(1) or step(*args))
    assert run_here(monkeypatch, *command, recipe=REPRODUCE) == 0
    assert len(steps) == 2, "steps 5 and 6"
    assert (first / "model.safetensors").stat().st_mtime_ns == trained
    # And it is the run that train_multitask.py makes of the same configuration.
    expected, got = load_file(whole / "model.safetensors"), load_file(second / "model.safetensors")
    assert all(expected[name].equal(got[name]) for name in expected)


def test_several_seeds_are_averaged(paper):
    from paper.results import ABSENT, cell

    assert cell([0.25]) == "0.250" and cell([0.25, 0.5]) == f"0.375 ± {stdev([0.25, 0.5]):.3f}"
    assert cell([]) == cell([None]) == cell([0.25, None]) == ABSENT


def test_one_task_alone_in_table_2(paper, flags, tmp_path):
    """The settings that no configuration file holds: SMART or none, ten epochs, a 20th of Quora's rows."""
    import reproduce_paper

    options, rest = reproduce_paper.parse([*map(str, flags), "--output_dir", str(tmp_path), "--only", "table2"])
    jobs = [reproduce_paper.parse_job(*key, argv) for key, argv in reproduce_paper.plan_runs(options, rest).items()]
    expected = [(task, smart) for smart in (0.0, 1.0) for task in ("sst", "quora", "sts")]
    for job, (name, smart) in zip(jobs, expected, strict=True):
        (task,) = job.run.load_tasks()
        assert (task.name, task.smart_weight, task.epochs, task.dropout) == (name, smart, 10, 0.3)
        assert task.max_train_samples == (14_151 if name == "quora" else None)
        assert (job.run.encoder_sharing, job.run.pair_encoding) == ("shared", "joint")
        assert job.args.smart_projection == "unit" and job.folder.name == f"{name}{'_smart' * bool(smart)}-seed0"


def test_the_help(monkeypatch, paper, capsys):
    assert run_here(monkeypatch, "--help", recipe=REPRODUCE) == 0
    assert "--seeds" in capsys.readouterr().out


def test_a_dry_run_measures_and_leaves_nothing(monkeypatch, paper, flags, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_here(monkeypatch, *flags, "--output_dir", out, "--only", "table1", "--dry_run", recipe=REPRODUCE) == 0
    printed = capsys.readouterr().out
    assert not out.exists()
    assert re.search(r"baseline_tpe-seed0 +to do +6 +\d", printed) and "hours for what is not finished" in printed


def test_the_estimate(monkeypatch, paper, flags, tmp_path):
    """Steps, evaluations and predictions of a run of known costs, counted by hand."""
    import reproduce_paper

    options, rest = reproduce_paper.parse([*map(str, flags), "--output_dir", str(tmp_path), "--only", "table4"])
    runs = reproduce_paper.plan_runs(options, rest)
    jobs = {key[0].name: reproduce_paper.parse_job(*key, argv) for key, argv in runs.items()}
    rows = {task: {"train": 320, "dev": 32, "test": 64} for task in ("sst", "quora", "sts")}

    def seconds(job):
        return {key: 8.0 if key[-1] else 3.0 for key in reproduce_paper.cost_keys(job).values()}

    # A budget of .2 is 20 batches of a task with ten epochs and 6 of one with three; a batch is predicted in a second.
    # There is an evaluation every 3 steps, 20 of 60, and in sequential plans at the 4 epoch ends that fall between.
    assert reproduce_paper.estimate(jobs["baseline"], seconds(jobs["baseline"]), rows) == (60, 180 + 25 * 3 + 6)
    smart = jobs["rr_tpe_smart"]
    assert reproduce_paper.estimate(smart, seconds(smart), rows) == (46, 40 * 8 + 6 * 3 + 17 * 3 + 6)
    three = jobs["3bert"]  # evaluates all tasks the first time, and then the one that trains
    assert reproduce_paper.estimate(three, seconds(three), rows) == (60, 180 + 3 + 23 + 3 + 6)


def test_what_is_refused(monkeypatch, paper, flags, tmp_path, capsys):
    for more, message in [
        (["--schedule", "sequential"], "--schedule is decided by the paper's tables"),
        (["--seed=3"], "--seed=3 is decided by the paper's tables"),
        (["--learning_rat", 1], "unknown flag --learning_rat, did you mean --learning_rate?"),
        (["--budget", 0], "--budget is 0.0; expected a share in (0, 1]"),
        (["--data_dir", "nowhere"], "nowhere: no such folder"),
    ]:
        command = [*flags, "--output_dir", tmp_path / "out", *more]
        assert run_here(monkeypatch, *command, recipe=REPRODUCE) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run_here(monkeypatch, *flags, "--output_dir", tmp_path / "out", recipe=REPRODUCE) == 2
    assert "3 processes cannot share a step's 32 rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
