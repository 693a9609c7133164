"""Damaged inputs for every reader: a right reading, or one line that says what is wrong with which file."""

import os
import random
import resource
import shutil
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from bert_multitask.model.errors import InputError

from .forks import SERVER
from .readers import READERS

HANG = 5  # seconds for one input
CHUNK = 500  # inputs for each entry of the journal
LINE = 2000  # characters of a message; those that have more are counted
VALID = 0.2  # share of inputs that stay as they are


def judge(reader, rng: random.Random) -> tuple[str, str]:
    """Make one input, damage it or not, and read it.

    Returns:
        What came of it, "read", "refused", "refused at length" or "wrong"; and what is wrong, "" where nothing is.
    """
    expected = reader.make(rng)
    if damaged := rng.random() > VALID:
        reader.damage(rng)
    try:
        reading = reader.read()
    except InputError as error:
        line = " ".join(str(error).split())
        if not damaged:
            return "wrong", f"a valid input was refused: {line[:300]}"
        if not reader.names(line):
            return "wrong", f"a message that names no place: {line[:300]}"
        return "refused at length" if len(line) > LINE else "refused", ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "bert_multitask" in frame.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        return "wrong", f"{type(error).__name__} in {place}: {str(error)[:200]!r}"
    difference = reader.compare(reading, reader.second_opinion() if damaged else expected)
    return ("wrong", difference) if difference else ("read", "")


def show(reader, rng: random.Random) -> None:
    """Print one input before and after its damage, and what comes of it."""
    expected = reader.make(rng)
    print("\nwritten: ", reader.path.read_bytes()[:2000], "\nmeans:   ", expected)
    if rng.random() > VALID:
        reader.damage(rng)
        print("damaged: ", reader.path.read_bytes()[:2000], "\nmeans:   ", reader.second_opinion())
    print("read:    ", reader.read())


def work_through(name: str, folder: Path, seed: int, numbers: range, parent) -> None:
    """Judge inputs in a process of its own, and tell the parent of each."""
    os.setsid()
    os.dup2(os.open(folder.with_name(f"{folder.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
    os.dup2(1, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = 12 * 2**30  # addresses, most of which the libraries only reserve
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    os.chdir(folder)
    reader, environ = READERS[name](folder), dict(os.environ)
    for number in numbers:
        parent.send((number, *judge(reader, random.Random(f"{seed} {name} {number}"))))
        if os.environ != environ:
            os.environ.clear()
            os.environ.update(environ)
    parent.send(None)


class Worker:
    """A process that judges inputs of a reader one after the other."""

    def __init__(self, name: str, folder: Path, seed: int, numbers: range):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.verdicts, theirs = SERVER.Pipe(duplex=False)
        self.process = SERVER.Process(target=work_through, args=(name, folder, seed, numbers, theirs))
        self.process.start()
        theirs.close()

    def next(self, limit: float):
        """The next verdict; ("hang",) or ("died", code) in its place; None after the last."""
        if not self.verdicts.poll(limit):
            return ("hang",)
        try:
            return self.verdicts.recv()
        except EOFError:
            self.process.join()
            return ("died", self.process.exitcode)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def try_inputs(name: str, folder: Path, seed: int, numbers: range) -> tuple[Counter, dict[str, list[int]]]:
    """How many inputs of a range were read and refused, and {what was wrong: which inputs}."""
    tally, wrong, number = Counter(), {}, numbers.start
    worker = Worker(name, folder, seed, numbers)
    limit = 60  # to prepare
    while number in numbers:
        verdict = worker.next(limit)
        if verdict[0] in ("hang", "died"):
            worker.stop()
            tally[verdict[0]] += 1
            what = f"no answer for {limit} s" if verdict[0] == "hang" else f"the process died, exit {verdict[1]}"
            wrong.setdefault(what, []).append(number)
            worker, limit = Worker(name, folder, seed, range(number + 1, numbers.stop)), 60
        else:
            _, outcome, what = verdict
            tally[outcome] += 1
            limit = HANG
            if what:
                wrong.setdefault(what, []).append(number)
        number += 1
    worker.stop()
    return tally, wrong


@pytest.mark.parametrize("name", READERS)
def test_readers(name, work, journal, option, seed, result):
    if (number := option("number")) >= 0:
        folder = work / "readers" / f"{name}-{number}"
        folder.mkdir(parents=True)
        return show(READERS[name](folder), random.Random(f"{seed} {name} {number}"))
    total = round(option("inputs") * READERS[name].share)
    start = time.monotonic()
    while (done := sum(entry["inputs"] for entry in journal.entries)) < total:
        numbers = range(done, min(done + CHUNK, total))
        tally, wrong = try_inputs(name, work / "readers" / name, seed, numbers)
        journal.add(inputs=len(numbers), **tally, wrongs=wrong)
    seconds = time.monotonic() - start
    tally = Counter()
    for entry in journal.entries:
        tally.update({key: value for key, value in entry.items() if key != "wrongs"})
    refused = f"{tally['refused'] + tally['refused at length']:,} refused, {tally['refused at length']} at length"
    lost = ", ".join(f"{tally[key]} {key}" for key in ("wrong", "hang", "died"))
    result(
        f"damaged inputs, {READERS[name].file} ({name})",
        f"{tally['inputs']:,} inputs: {tally['read']:,} read, {refused}; {seconds:.0f} s",
        lost,
    )
    wrong = [(what, which) for entry in journal.entries for what, which in entry["wrongs"].items()]
    lines = [f"{len(which)} times, inputs {which[:5]}: {what}" for what, which in wrong]
    assert not wrong, f"seed {seed}\n" + "\n".join(lines[:100])
