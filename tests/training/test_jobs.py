"""Runs in processes of their own: how many at a time, what ends them, and a run for each seed against plain runs."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import mean, stdev

import psutil
import pytest
import torch
from conftest import run_here

from bert_multitask.model.errors import InputError
from bert_multitask.training import jobs
from bert_multitask.training.jobs import Job, run_jobs, write_config

FEW = ["--max_steps", 4, "--eval_steps", 2, "--save_steps", 2]
# Notes that it has begun, and waits until as many have as it is told.
MEET = """
import os, sys, time
name, many, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
open(f"{folder}/{name}.begun", "w").close()
while sum(file.endswith(".begun") for file in os.listdir(folder)) < many:
    time.sleep(0.01)
print(name, "with", os.environ["OMP_NUM_THREADS"])
"""


def job(folder: Path, name: str, code: str, *argv) -> Job:
    return Job(name, ["-c", code, *map(str, argv)], folder / f"{name}.log")


def test_so_many_at_a_time_share_the_threads(monkeypatch, tmp_path):
    """Of four, the first two end when both have begun, and the last two likewise."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    begun, alive, start = [], [], jobs.start

    def count(*args):
        alive.append(sum(process.poll() is None for process in begun))
        begun.append(start(*args))
        return begun[-1]

    monkeypatch.setattr(jobs, "start", count)
    four, ended = (
        [job(tmp_path, name, MEET, name, many, tmp_path) for name, many in zip("abcd", (2, 2, 4, 4), strict=True)],
        [],
    )
    run_jobs(iter(four), 2, lambda job: ended.append(job.name))
    assert sorted(ended) == list("abcd") and max(alive) == 1
    assert [job.log.read_text() for job in four] == [f"{name} with 3\n" for name in "abcd"]


def test_a_job_that_fails_ends_the_others(tmp_path):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(print('told to stop'))); print('begun'); "
    waits = job(tmp_path, "waits", code + "sys.stdout.flush(); time.sleep(60)")
    fails = "import os, sys, time\nwhile not os.path.getsize(sys.argv[1]): time.sleep(0.01)\nsys.exit('no such file')"
    with pytest.raises(InputError, match="fails ended with exit code 1: no such file; its output is in .*fails.log"):
        run_jobs([waits, job(tmp_path, "fails", fails, waits.log)], 2, lambda job: None)
    assert waits.log.read_text() == "begun\ntold to stop\n"
    with pytest.raises(InputError, match="--jobs is 0; expected at least 1"):
        run_jobs([waits], 0, lambda job: None)


def scores(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_for_each_seed(monkeypatch, config, trained_here, capsys):
    """Each is the run that its seed gives alone; those that are finished stay, and their mean is shown."""
    out, plain = config.parent / "out", config.parent / "plain"
    seeds = ["train", config, *FEW, "--output_dir", out, "--seeds"]
    assert run_here(monkeypatch, *seeds[1:], 3, recipe="train") == 0
    assert run_here(monkeypatch, *seeds[1:], 3, 5, "--jobs", 2, recipe="train") == 0
    assert trained_here == ["seed-3", "seed-5"], "each once"
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run_here(monkeypatch, config, *FEW, "--output_dir", plain, "--seed", 5) == 0
    assert scores(plain) == scores(out / "seed-5") != scores(out / "seed-3")
    overall = [scores(out / name)["eval_overall"] for name in ("seed-3", "seed-5")]
    shown = {line[0]: line[-1] for line in lines if line}
    assert [shown["mean"], shown["sd"]] == [f"{mean(overall):.4f}", f"{stdev(overall):.4f}"]
    run = json.loads((out / "seed-5" / "run.json").read_text())
    assert (run["training"]["seed"], run["training"]["max_steps"]) == (5, 4)


def test_runs_of_other_flags_or_rows_have_no_mean(monkeypatch, config, trained_here, capsys):
    """A finished run in a seed's folder that another command trained, and data that changed between two runs."""
    out = config.parent / "out"
    seeds = [config, "--max_steps", 1, "--eval_strategy", "no", "--no_do_predict", "--output_dir", out, "--seeds"]
    assert run_here(monkeypatch, *seeds, 3, recipe="train") == 0
    run, record = json.loads((out / "seed-3" / "run.json").read_text()), out / "seed-3" / "run.json"
    run["decides"]["rows of sts"]["dev"]["sha256"] = "another"
    record.write_text(json.dumps(run))
    assert run_here(monkeypatch, *seeds, 3, 4, recipe="train") == 2
    assert "rows of task sts in" in capsys.readouterr().err and trained_here == ["seed-3", "seed-4"]
    (out / "seed-3.yaml").unlink()
    assert run_here(monkeypatch, *seeds, 3, 4, recipe="train") == 2
    assert "seed-3 holds a run that --seeds did not begin" in capsys.readouterr().err


def test_a_soup_of_several_data_seeds(monkeypatch, config, trained_here):
    out = config.parent / "out"
    flags = [config, "--max_steps", 1, "--eval_strategy", "no", "--no_do_predict", "--output_dir", out]
    assert run_here(monkeypatch, *flags, "--data_seeds", 0, 1, recipe="train") == 0
    runs = [out / "data_seed-0", out / "data_seed-1"]
    assert run_here(monkeypatch, *runs, "--output_dir", out / "soup", recipe="soup") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", 0, 1, "--resume_from_checkpoint"], "--resume_from_checkpoint is of one run"),
        (["--seeds", 0, 1, "--overwrite"], "--overwrite is of one run"),
        (["--seeds", 0, "--data_seeds", 1], "--seeds and --data_seeds exclude each other"),
        (["--jobs", 2], "--jobs does nothing without --seeds"),
        (
            ["--seeds", 0, "--learning_rate", "1e-3"],
            "seed-0 cannot be resumed with other settings: learning_rate was None and is",
        ),
    ],
    ids=["resume", "overwrite", "both", "jobs", "other flags"],
)
def test_what_is_refused(monkeypatch, config, capsys, flags, message):
    monkeypatch.setattr("bert_multitask.commands.train.train", None)
    monkeypatch.setattr("bert_multitask.training.jobs.run_jobs", lambda *_: None)
    out = ["--output_dir", config.parent / "out"]
    with pytest.raises(FileNotFoundError):  # of scores: nothing is trained
        run_here(monkeypatch, config, *out, "--seeds", 0, recipe="train")
    assert run_here(monkeypatch, config, *out, *flags, recipe="train") == 2
    assert message in capsys.readouterr().err


def test_the_same_flags_are_the_same_whatever_they_hold(tmp_path):
    """Also what JSON cannot write: keys that are numbers, dates, infinity."""
    flags = {"tasks": [{"name": "a", "class_weights": {0: 1, 1: 3}}], "run_name": date(2024, 1, 2), "x": float("inf")}
    write_config(tmp_path / "a.yaml", flags)
    write_config(tmp_path / "a.yaml", flags)
    changed = flags | {"tasks": [{"name": "a", "class_weights": {0: 1, 1: 4}}]}
    with pytest.raises(InputError, match=r"a cannot be resumed .* was \[.*'1': 3.* and is \[.*'1': 4"):
        write_config(tmp_path / "a.yaml", changed)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_the_runs_end_with_the_command_and_go_on(config, signum):
    out = config.parent / "out"
    flags = ["--max_steps", 4000, "--task_epochs", '{"sst": 2000, "quora": 1, "sts": 1}', "--save_steps", 1000]
    flags += ["--eval_steps", 1000, "--logging_steps", 1, "--output_dir", out, "--seeds", 0, 1, "--jobs", 2]
    command = [sys.executable, "-m", "bert_multitask", "train", str(config), *map(str, flags)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folders = [out / "seed-0", out / "seed-1"]
    wait_for(lambda: all((folder / "history.jsonl").exists() for folder in folders), 120)
    runs = psutil.Process(process.pid).children()
    assert len(runs) == 2
    os.kill(process.pid, signum)
    error = process.communicate(timeout=30)[1]
    wait_for(lambda: not any(map(psutil.pid_exists, (run.pid for run in runs))), 30)
    if signum == signal.SIGTERM:
        assert process.returncode == 143 and "stopped by SIGTERM; the same command goes on" in error
    assert all(list(folder.glob("checkpoint-*")) for folder in folders), "each saved where it was"


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
