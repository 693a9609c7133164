"""SIGTERM and Ctrl-C end a run with a checkpoint and the command that goes on, wherever they find it."""

import os
import shlex
import signal
import sys
import threading
import time

import psutil
import pytest
from conftest import finish, launch, losses, run_here
from safetensors.torch import load_file

from bert_multitask.training import run as training
from bert_multitask.training import stopping
from bert_multitask.training.stopping import STOP, Stopped, StopRequest
from bert_multitask.training.trainer import MultitaskTrainer

STEPS = ["--max_steps", 8, "--eval_steps", 4, "--save_steps", 4, "--logging_steps", 1, "--no_do_predict"]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def send_at_call(patch, owner, name: str, call: int, signum: int) -> None:
    """Make this process get a signal during a call of a function or method."""
    count, original = [], getattr(owner, name)

    def sending(*args, **kwargs):
        count.append(1)
        if len(count) == call:
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    patch.setattr(owner, name, sending)


@pytest.mark.parametrize(
    ("flags", "signum", "step"),
    [
        pytest.param([], signal.SIGTERM, 3, marks=pytest.mark.slow),
        (["--encoder_sharing", "per_task", "--schedule", "sequential"], signal.SIGINT, 3),
        (["--smart_weight", 1, "--bregman_weight", 0.5], signal.SIGTERM, 5),
        ([], signal.SIGINT, 8),  # the last step
    ],
    ids=["shared", "per task", "SMART", "last step"],
)
def test_a_stopped_run_goes_on_to_the_same_weights(monkeypatch, config, capsys, flags, signum, step):
    whole, stopped = config.parent / "whole", config.parent / "run"
    assert run_here(monkeypatch, config, *STEPS, *flags, "--output_dir", whole) == 0
    with monkeypatch.context() as patch:
        send_at_call(patch, MultitaskTrainer, "training_step", step, signum)
        capsys.readouterr()
        assert run_here(patch, config, *STEPS, *flags) == CODES[signum]
        message = capsys.readouterr().err.splitlines()[-1]
        command = shlex.join([sys.executable, *sys.argv, "--resume_from_checkpoint"])
    assert message == f"stopped by {signum.name}; go on with: {command}"
    assert (stopped / f"checkpoint-{step}" / "trainer_state.json").exists()
    assert not {"metrics.json", "model.safetensors", "predictions", "running.json"} & set(os.listdir(stopped))
    assert run_here(monkeypatch, *shlex.split(command)[2:]) == 0, "the command that was printed"
    expected, got = load_file(whole / "model.safetensors"), load_file(stopped / "model.safetensors")
    assert all(expected[name].equal(got[name]) for name in expected)
    assert losses(stopped) == losses(whole)
    assert (stopped / "metrics.json").read_text() == (whole / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("owner", "name", "begun"),
    [
        pytest.param(training, "load_rows", False, marks=pytest.mark.slow),
        (training, "tokenise_rows", False),
        (MultitaskTrainer, "predict", True),
        pytest.param(training, "write_predictions", True, marks=pytest.mark.slow),
    ],
    ids=["reading", "tokenising", "predicting", "writing predictions"],
)
def test_a_stop_outside_of_steps(monkeypatch, config, capsys, owner, name, begun):
    with monkeypatch.context() as patch:
        send_at_call(patch, owner, name, 1, signal.SIGTERM)
        assert run_here(patch, config, "--max_steps", 2) == 143
    assert ("go on with: " in capsys.readouterr().err) == begun
    assert (config.parent / "run").exists() == begun, "nothing is left of a run that did not begin"
    assert not (config.parent / "run" / "metrics.json").exists()
    resume = ["--resume_from_checkpoint"] * begun
    assert run_here(monkeypatch, config, "--max_steps", 2, *resume) == 0


def test_a_stop_that_cannot_save_leaves_at_once(monkeypatch, config):
    send_at_call(monkeypatch, MultitaskTrainer, "training_step", 2, signal.SIGTERM)
    assert run_here(monkeypatch, config, *STEPS, "--save_strategy", "no", "--eval_strategy", "no") == 143
    assert not list((config.parent / "run").glob("checkpoint-*"))


def test_no_checkpoint_where_only_an_evaluation_is_due(monkeypatch, config):
    """It could become the best one, which a run that is not stopped would not have."""
    send_at_call(monkeypatch, MultitaskTrainer, "training_step", 2, signal.SIGTERM)
    flags = ["--eval_steps", 2, "--save_steps", 4, "--max_steps", 8, "--no_do_predict"]
    assert run_here(monkeypatch, config, *flags) == 143
    assert [path.name for path in (config.parent / "run").glob("checkpoint-*")] == ["checkpoint-3"]


def test_handlers_are_given_back():
    before = [signal.getsignal(signum) for signum in stopping.SIGNALS]
    with StopRequest() as request:
        assert [signal.getsignal(signum) for signum in stopping.SIGNALS] != before
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        assert request.signum == signal.SIGTERM
    assert request.signum is None, "what is trained next in this process was not asked to stop"
    assert [signal.getsignal(signum) for signum in stopping.SIGNALS] == before
    assert "stop request" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("second", [None, signal.SIGINT], ids=["too slow", "a second Ctrl-C"])
def test_a_run_that_does_not_end_is_ended(monkeypatch, second):
    """A step that takes too long is ended by force; so is any after a second Ctrl-C."""
    for name, seconds in {"GRACE": 60 if second else 0.2, "REPEAT": 0.1}.items():
        monkeypatch.setattr(stopping, name, seconds)
    ended = []
    with StopRequest() as request:
        monkeypatch.setattr(request, "end_by_force", ended.append)
        request.deferred = True  # as in a step
        os.kill(os.getpid(), second or signal.SIGTERM)
        time.sleep(0.3)
        if second:
            assert not ended
            os.kill(os.getpid(), second)
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ended[0] == (second or signal.SIGTERM)


def test_a_forked_process_is_not_the_run():
    """A data loader's workers are ended by SIGTERM, which is no stop of the run."""
    with StopRequest() as request:
        reset = os.fork()
        if not reset:
            request.leave_child()  # as the hook does for STOP
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)
        os.kill(reset, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(reset, 0)[1]) == -signal.SIGTERM
        time.sleep(0.2)
        assert request.signum is None
    assert not STOP.active


def test_a_launcher_that_ended_during_the_imports(monkeypatch):
    """Its process finds another parent than it was started by."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(stopping, "find_launcher", lambda: None)
    with stopping.STOP:
        time.sleep(3 * stopping.POLL)  # the parent is the same: nothing happens
    monkeypatch.setattr(stopping, "PARENT", os.getppid() + 1)
    with stopping.STOP, pytest.raises(stopping.Stopped):
        time.sleep(20 * stopping.POLL)


LONG = ["--task_epochs", '{"sst": 300, "quora": 200, "sts": 300}', "--logging_steps", 1, "--use_cpu"]


@pytest.mark.parametrize(
    ("processes", "signum"),
    [
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_the_launcher_alone_gets_the_signal(config, processes, signum):
    """All processes end within 10 seconds, with a checkpoint and the launcher's command; a kill leaves no orphan."""
    folder = config.parent / "run"
    run = launch(config, *LONG, processes=processes)
    deadline = time.monotonic() + 240
    while not (folder / "history.jsonl").exists() or not losses(folder):
        assert time.monotonic() < deadline and run.poll() is None, "training does not begin"
        time.sleep(0.05)
    group = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signum)
    _, alive = psutil.wait_procs(group, timeout=10)
    assert not alive
    printed = finish(run, timeout=10)
    assert run.returncode != 0
    number = max(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    assert (folder / f"checkpoint-{number}" / "trainer_state.json").exists() and not (folder / "metrics.json").exists()
    (command,) = [line for line in printed.splitlines() if "go on with: " in line]
    assert "accelerate.commands.launch" in command and command.endswith(" --resume_from_checkpoint")
