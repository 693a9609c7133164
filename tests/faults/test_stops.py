"""Signals that stop a run, also through `accelerate launch`; and two runs in one folder."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import RECIPE, ROOT

from .runs import RESUME, complaint, differences, last_line, saved_step

DEADLINE = 10  # seconds in which all processes must have ended
LONG = ["--task_epochs", '{"sst": 20, "quora": 10, "sts": 20}', "--eval_steps", 50, "--save_steps", 50]
STOPS = 6  # of each signal to the recipe alone
PLAIN = "--num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1 --num_processes 1"
# Name -> what `accelerate launch` is given, and the rows of a process, so that a step has the same rows.
LAUNCHERS = {
    "1 process, as the Makefile": (PLAIN.split(), 4),
    "1 process of torchrun's agent": (["--config_file", ROOT / "accelerate_config.yaml"], 4),
    "2 processes": (["--config_file", ROOT / "recipes/accelerate/cpu.yaml"], 2),
}


@pytest.fixture(scope="module")
def long_run(stage, work) -> Path:
    """The uninterrupted run that the stopped ones are held against."""
    folder = work / "whole" / "long"
    if not (folder / "metrics.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        assert stage.run("shared-joint", folder, *LONG).code == 0
    return folder


def wait_until(condition, seconds: float = 120) -> bool:
    """Wait for a condition to hold, and say whether it did."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_recipe(number, stage, work, long_run, journal, seed, result):
    """At random moments after its first steps: it saves, says how to go on, and ends soon; then the same bytes."""
    while (trial := len(journal.entries)) < STOPS:
        rng = random.Random(f"{seed} {number} {trial}")
        folder = work / "stops" / f"{number.name}-{trial}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        run = stage.start("shared-joint", folder, *LONG)
        assert wait_until((folder / "history.jsonl").exists), run.printed()
        time.sleep(rng.uniform(0.1, 3))
        before, start = saved_step(folder), time.monotonic()
        os.kill(run.pid, number)
        ended = run.finish(60)
        seconds, step, wrong = time.monotonic() - start, saved_step(folder), []
        if ended.code == 0:
            continue  # it was quicker than the signal
        if seconds > DEADLINE:
            wrong.append(f"it took {seconds:.0f} s to end")
        if step <= before:
            wrong.append(f"no checkpoint was saved after step {before}")
        if RESUME not in ended.printed or "Traceback" in ended.printed:
            wrong.append(f"exit {ended.code}, and it does not say how to go on: {last_line(ended)}")
        again = stage.run("shared-joint", folder, *LONG, RESUME)
        wrong += [f"exit {again.code}: {last_line(again)}"] if again.code else differences(folder, long_run)
        journal.add(seconds=round(seconds, 1), step=step, wrong=wrong)
        print(number.name, journal.entries[-1], flush=True)
    wrong = [entry for entry in journal.entries if entry["wrong"]]
    slowest = max(entry["seconds"] for entry in journal.entries)
    result(f"{number.name} to the recipe", f"{STOPS} times, all ended in {slowest} s", f"{len(wrong)} times wrong")
    assert not wrong, "\n".join(map(str, wrong))


def stop(launcher: subprocess.Popen, everyone: list[psutil.Process], number: int, group: bool) -> float:
    """Send a launcher, or its group as a terminal does, a signal; the seconds until all have ended, up to DEADLINE."""
    start = time.monotonic()
    (os.killpg if group else os.kill)(launcher.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.wait(DEADLINE)  # not by psutil, which would take its exit code
    psutil.wait_procs(everyone, timeout=max(0, start + DEADLINE - time.monotonic()))
    return time.monotonic() - start


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGINT to the terminal's group"])
def test_a_stopped_launcher(how, name, stage, work, long_run, result):
    """`accelerate launch` gets the signal: ten seconds later no process is alive, and the run can go on."""
    folder = work / "launched" / re.sub(r"\W+", "-", f"{how} {name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    options, rows = LAUNCHERS[name]
    flags = [*stage.flags("shared-joint"), *LONG, "--use_cpu", "--per_device_train_batch_size", rows]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, RECIPE, *flags, "--output_dir", folder]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        launcher = subprocess.Popen(
            list(map(str, command)),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # What a shell starts in the background ignores SIGINT, and so would the launcher.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    begun = wait_until(lambda: saved_step(folder) or launcher.poll() is not None)
    everyone = psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []
    before = saved_step(folder)
    seconds = stop(launcher, everyone, getattr(signal, how.partition(" ")[0]), "group" in how)
    alive = [process for process in everyone if process.is_running()] + [launcher] * (launcher.poll() is None)
    for process in alive:
        process.kill()
    printed = log.read_text()
    wrong = [f"alive after {DEADLINE} s: {len(alive)} of {1 + len(everyone)} processes"] * bool(alive)
    wrong += [f"exit {launcher.wait()}"] * (not begun or launcher.wait() == 0)
    wrong += [f"no checkpoint was saved after step {before}"] * (saved_step(folder) <= before)
    wrong += ["it does not say how to go on"] * (RESUME not in printed)
    again = stage.run("shared-joint", folder, *LONG, RESUME)
    if again.code:
        wrong.append(f"resumed, exit {again.code}: {last_line(again)}")
    elif rows == 4:  # the gradients of two processes are added up in another order
        wrong += differences(folder, long_run)
    result(
        f"{how} to `accelerate launch`, {name}", f"1 time, all ended in {seconds:.1f} s", "; ".join(wrong) or "nothing"
    )
    assert not wrong, "\n".join([*wrong, printed[-3000:]])


@pytest.mark.parametrize("flag", [RESUME, "--overwrite", None])
def test_a_second_run_in_the_folder(flag, stage, work, long_run, result):
    """It is refused in one line that names the process of the first, which goes on unharmed."""
    folder = work / "two" / f"run{flag}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    first = stage.start("shared-joint", folder, *LONG)
    assert wait_until(lambda: saved_step(folder) or not first.process.is_alive())
    second = stage.run("shared-joint", folder, *LONG, *[flag] * bool(flag), log="-second")
    wrong = complaint(second, str(first.pid) if flag else "output_dir")
    ended = first.finish()
    wrong += [f"the first: exit {ended.code}, {last_line(ended)}"] if ended.code else differences(folder, long_run)
    result(f"a second run in a folder, {flag or 'no flag'}", "1 time", "; ".join(wrong) or "nothing")
    assert not wrong


def test_two_runs_that_start_together(stage, work, journal, result):
    """One of them trains, the other is refused."""
    whole, _ = stage.whole("shared-joint")
    while (trial := len(journal.entries)) < STOPS:
        folder = work / "together" / str(trial)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        runs = [stage.start("shared-joint", folder, RESUME, log=f"-{name}") for name in ("one", "two")]
        trained, refused = sorted((run.finish() for run in runs), key=lambda ended: ended.code)
        wrong = complaint(refused) + ([last_line(trained)] if trained.code else differences(folder, whole))
        journal.add(wrong=wrong)
        print("together", wrong or "one was refused, the other the same", flush=True)
    wrong = [entry for entry in journal.entries if entry["wrong"]]
    result("two runs started together", f"{STOPS} times", f"{len(wrong)} times wrong")
    assert not wrong, "\n".join(map(str, wrong))
