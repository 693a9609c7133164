"""What a run prints, in a pipe and in a terminal."""

import fcntl
import logging
import os
import re
import struct
import sys
import termios
import warnings
from pathlib import Path

import pytest
from conftest import run_here
from transformers import AutoTokenizer
from transformers.utils.logging import get_logger

from bert_multitask.evaluation.intervals import Estimate
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import Task
from bert_multitask.training.schedule import log_interval
from bert_multitask.training.terminal import TrainingTable, describe_scores, warnings_as_lines

ROW = re.compile(r" *(\d+)/(\d+)  (loss|score)(.*)")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, tiny_bert) -> tuple[str, str, Path]:
    """What `train quickstart` prints to a pipe, of a tiny model: standard output and error; and its folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    out, error = folder / "out.txt", folder / "error.txt"
    flags = ["--model_name_or_path", tiny_bert, "--max_length", 16, "--report_to", "none"]
    with pytest.MonkeyPatch.context() as patch, out.open("w") as stdout, error.open("w") as stderr:
        patch.chdir(folder)
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        assert run_here(patch, "quickstart", *flags, recipe="train") == 0
    return out.read_text(), error.read_text(), folder / "runs" / "quickstart"


def test_the_quickstart_in_a_pipe(quickstart):
    out, error, _ = quickstart
    lines = out.splitlines()
    assert all(line.startswith("warning: ") for line in error.splitlines())
    assert len(lines) <= 60 and max(map(len, lines)) <= 100
    assert "\r" not in out + error and "\x1b" not in out + error and "LOAD REPORT" not in out + error
    assert out.startswith("3 new heads: sst, quora, sts\n\nrows ") and "247 steps of up to 32 rows" in out
    assert out.count(" s a step: about ") == 1
    rows = [row for row in map(ROW.fullmatch, lines) if row]
    assert 18 <= len([row for row in rows if row[3] == "loss"]) <= 22
    assert [int(row[1]) for row in rows] == sorted(int(row[1]) for row in rows) and {row[2] for row in rows} == {"247"}
    assert [int(row[1]) for row in rows if row[3] == "score"] == [50, 100, 150, 200, 247]
    heading = next(line for line in lines if line.split() == ["step", "sst", "quora", "sts", "overall"])
    ends = [heading.index(name) + len(name) for name in ("sst", "quora", "sts", "overall")]
    for row in rows:  # numbers end where the names do
        numbers = [match.end() for match in re.finditer(r"-?\d+\.\d+", row[0])]
        assert set(numbers) <= set(ends) and numbers[-1] == ends[-1]


def test_the_end_of_the_quickstart(quickstart):
    out, _, run = quickstart
    end = out[out.index("dev score") :].splitlines()
    for line, name in zip(end[1:4], ("sst", "quora", "sts"), strict=True):
        assert re.fullmatch(rf"{name} +\w+ +150 +-?0\.\d{{4}}   -?0\.\d{{4}} to -?0\.\d{{4}}", line), line
    assert re.fullmatch(r"overall +0\.\d{4}   0\.\d{4} to 0\.\d{4}", end[4])
    step = re.search(r"kept: step (\d+) of 247, the best by eval_overall \((0\.\d{4})\)", out)
    best = [row[1] for row in map(ROW.fullmatch, out.splitlines()) if row and row[4].endswith("  best")]
    assert step[1] == best[-1] and step[2] == end[4].split()[1]
    size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / 1e6
    assert f"run folder: runs/quickstart ({size:,.0f} MB)" in end
    assert "predictions of dev and test rows: runs/quickstart/predictions" in end
    assert [line.split()[:3] for line in end[-3:]] == [
        ["bert-multitask", command, "runs/quickstart"] for command in ("predict", "report", "demo")
    ]


def test_a_finished_runs_checkpoints_can_be_loaded_and_have_no_states(quickstart):
    checkpoints = list(quickstart[2].glob("checkpoint-*"))
    assert [folder.name for folder in checkpoints] == ["checkpoint-247"], "the best one's weights are the run folder's"
    for folder in checkpoints:
        assert MultitaskBertModel.from_pretrained(folder) and AutoTokenizer.from_pretrained(folder)
        left = {file.name for file in folder.iterdir()}
        assert "trainer_state.json" in left and not left & {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


def test_new_heads_and_other_weights_are_one_line(tiny_bert, caplog, propagated_logs):
    MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "sts"])
    (record,) = caplog.records
    assert record.message == f"{tiny_bert}: 2 new heads: sst, sts"


def test_the_interval_of_the_log():
    assert [log_interval(steps) for steps in (1, 19, 39, 84, 247, 1000, 3000, 5000, 30_000)] == [
        *(1, 1, 2, 4, 12, 50, 50, 50, 300)
    ]


def test_the_interval_that_is_set_counts(make_trainer):
    assert make_trainer().args.logging_steps == 1 and make_trainer(logging_steps=3).args.logging_steps == 3


def test_a_table_of_many_tasks_fits(make_trainer, capsys):
    trainer = make_trainer()
    tasks = {f"task{number}": trainer.model.tasks["sst"] for number in range(20)}
    table = TrainingTable(tasks, trainer.plan)
    table.on_train_begin(trainer.args, trainer.state, trainer.control)
    table.on_log(
        trainer.args, trainer.state, trainer.control, {"loss": 12345.6} | {f"loss_task{n}": 1.0 for n in range(20)}
    )
    table.close()
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed[1:3] + printed[-1:])) <= 100
    assert "task19" in printed[3] and printed[-1].endswith("1.23e+04")


def test_training_in_a_terminal(monkeypatch, make_trainer):
    """A bar of training and one of an evaluation, which are gone at the end; no line is broken by them."""
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    text = []
    with open(writer, "w", closefd=False) as tty:
        monkeypatch.setattr(sys, "stdout", tty)
        monkeypatch.setattr(sys, "stderr", tty)
        monkeypatch.setenv("COLUMNS", "80")
        trainer = make_trainer(disable_tqdm=False, max_steps=4, eval_strategy="steps", eval_steps=2, logging_steps=2)
        bars, make_bar = [], TrainingTable.make_bar

        def note(self, args, total, what, **settings):
            bars.append((what, total))
            return make_bar(self, args, total, what, **settings)

        monkeypatch.setattr(TrainingTable, "make_bar", note)
        with warnings_as_lines():
            trainer.train()
            get_logger("transformers.trainer").warning("twice")
            get_logger("transformers.trainer").warning("twice")
        tty.flush()
    os.close(writer)
    while True:
        try:
            text.append(os.read(reader, 65536))
        except OSError:  # all is read
            break
    os.close(reader)
    printed = b"".join(text).decode()
    assert bars == [("training", 4), ("evaluating", 3), ("evaluating", 3)]
    shown = [line.split("\r")[-1].replace("\x1b[A", "") for line in re.split(r"\r?\n", printed)]
    assert [ROW.match(line)[1] for line in shown if ROW.match(line)] == ["2", "2", "4", "4"]
    assert shown.count("warning: twice") == 1 and " s a step: about" not in printed
    assert "4/4" in printed and "evaluating" in printed and printed.rstrip("\r\n ").endswith("warning: twice")


def test_warnings_are_lines_and_what_was_there_comes_back(capsys):
    before = logging.getLogger("transformers").handlers[:]
    with warnings_as_lines():
        warnings.warn("of Python", UserWarning, stacklevel=1)
        get_logger("bert_multitask.x").warning("of a run")
        get_logger("transformers.x").warning("Warning: of a library")
        get_logger("transformers.x").info("nothing")
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].endswith("UserWarning: of Python")
    assert printed[1:] == ["warning: of a run", "warning: of a library"]
    assert logging.getLogger("transformers").handlers == before


def test_a_score_without_an_interval_says_so():
    """As the report does: of one row, or of resamples that are all alike."""
    tasks = {"a": Task("a", "regression"), "b": Task("b", "regression")}
    scores = {"a": Estimate(0.0, 0.0, 0.0), "b": Estimate(0.5, *[float("nan")] * 2), "overall": Estimate(0.5, 0.4, 0.6)}
    metrics = {"eval_a_pearson": 0.0, "eval_b_pearson": 0.5, "eval_overall": 0.5}
    _, *lines = describe_scores(tasks, metrics, {"a": 3, "b": 1}, scores).splitlines()
    endings = ["none: all resamples of a task are alike", "none: too few rows", "0.4000 to 0.6000"]
    assert [line.split("   ")[-1] for line in lines] == endings


def test_other_processes_print_errors_alone(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with warnings_as_lines():
        get_logger("bert_multitask.x").warning("a warning")
        get_logger("bert_multitask.x").error("an error")
    assert capsys.readouterr().err == "error: an error\n"
