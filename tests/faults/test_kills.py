"""Runs that are killed at random moments, and go on: the same bytes as without."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from .forks import Moment
from .runs import LAYOUTS, RESUME, complaint, differences, last_line, read_bytes


def draw_moment(rng: random.Random, seconds: float, changes: int) -> Moment:
    """By the clock, anywhere in a run; or at, or up to 20 ms after, one of its changes of the run folder, often one of
    the first."""
    if rng.random() < 0.4:
        return Moment(rng.uniform(0, seconds))
    return Moment(rng.choice([0, rng.uniform(0, 0.02)]), rng.randint(1, rng.choice([6, 80, changes, changes, changes])))


def describe_place(folder: Path) -> str:
    """How far a killed run had got, by what is in its folder."""
    if not (folder / "run.json").exists():
        return "before run.json"
    if (folder / "metrics.json").exists():
        return "after metrics.json"
    if (folder / "model.safetensors").exists():
        return "finishing"
    saved = [path for path in folder.iterdir() if "checkpoint" in path.name]
    if any(not (path / "trainer_state.json").exists() for path in saved):
        return "saving"
    return "between checkpoints" if saved else "before a checkpoint"


def try_one(stage, layout: str, folder: Path, rng: random.Random) -> dict:
    """Kill a run once or several times, let it go on, and compare: where it was killed, and what is wrong.

    Some runs replace another layout's, with --overwrite; a user repeats that flag until the new run has its run.json.
    """
    whole, reference = stage.whole(layout)
    settings = {"cache": str(folder.with_name("cache"))} if rng.random() < 0.3 else {}  # to be killed in tokenising
    old = stage.whole(next(other for other in LAYOUTS if other != layout))[0] if rng.random() < 0.2 else None
    kills, places = rng.choice([1, 1, 1, 2, 3]), []
    while True:
        if old and not places:
            shutil.copytree(old, folder)
        begun = read_bytes(folder / "run.json") not in (None, read_bytes(old / "run.json") if old else None)
        more = [RESUME] if begun or places and not old else ["--overwrite"] * bool(old)
        moment = draw_moment(rng, reference.seconds, reference.changes) if len(places) < kills else None
        ended = stage.run(layout, folder, *more, moment=moment, **settings)
        if ended.was_killed:
            places.append(describe_place(folder) + ", with --overwrite" * (more == ["--overwrite"]))
        finished = (folder / "metrics.json").exists() and not (
            old and read_bytes(folder / "run.json") == read_bytes(old / "run.json")
        )
        if places and finished:
            return {"places": places, "wrong": differences(folder, whole)}
        if not ended.was_killed:
            if ended.code:
                return {"places": places, "wrong": [f"exit {ended.code}: {last_line(ended)}"]}
            shutil.rmtree(folder)  # it was quicker than its moment


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kills(layout, stage, work, journal, option, seed, result):
    wanted = -(-option("kills") // len(LAYOUTS))
    while (done := sum(len(entry["places"]) for entry in journal.entries)) < wanted:
        trial = len(journal.entries)
        folder = work / "kills" / f"{layout}-{trial}" / "run"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        outcome = try_one(stage, layout, folder, random.Random(f"{seed} {layout} {trial}"))
        journal.add(trial=trial, **outcome)
        print(layout, trial, outcome["places"], outcome["wrong"] or "the same", flush=True)
        if not outcome["wrong"]:
            shutil.rmtree(folder.parent)
    places = Counter(place for entry in journal.entries for place in entry["places"])
    wrong = [entry for entry in journal.entries if entry["wrong"]]
    where = ", ".join(f"{count} {place}" for place, count in places.most_common())
    result(f"SIGKILL, {layout}", f"{done} kills in {len(journal.entries)} runs: {where}", f"{len(wrong)} runs differ")
    assert not wrong, "\n".join(f"trial {entry['trial']}: {entry}" for entry in wrong)


def tear(file: Path, rng: random.Random) -> str:
    """Cut a file off, empty it or remove it, as a writer that stops in between leaves it."""
    how = rng.choice(["cut off", "emptied", "removed"])
    if how == "removed":
        file.unlink()
    else:
        os.truncate(file, rng.randrange(file.stat().st_size) if how == "cut off" else 0)
    return f"{file.parent.name}/{file.name} {how}"


@pytest.mark.parametrize("layout", ["shared-joint", "per_task-joint-smart-bregman"])
def test_torn_checkpoints(layout, stage, work, journal, option, seed, result):
    """Files of the newest checkpoint, or of all, are torn: a run goes on from one that is whole; where none is, it goes
    on from the start, or ends with one line."""
    whole, reference = stage.whole(layout)
    stopped, again = (work / "torn" / f"{layout}-{name}" / "run" for name in ("stopped", "again"))
    if not stopped.exists():
        stopped.parent.mkdir(parents=True)
        assert stage.run(layout, stopped, moment=Moment(0, round(reference.changes * 0.7))).was_killed
    for trial in range(len(journal.entries), -(-option("torn") // 2)):
        rng = random.Random(f"{seed} {layout} torn {trial}")
        shutil.rmtree(again.parent, ignore_errors=True)
        shutil.copytree(stopped.parent, again.parent)
        saved = [path.parent for path in again.glob("checkpoint-*/trainer_state.json")]
        saved.sort(key=lambda folder: int(folder.name.rpartition("-")[2]))
        assert len(saved) > 1
        chosen = saved[-1:] if rng.random() < 0.8 else saved
        torn = [
            tear(rng.choice(sorted(path for path in folder.iterdir() if path.stat().st_size)), rng) for folder in chosen
        ]
        ended = stage.run(layout, again, RESUME)
        wrong = complaint(ended) if ended.code and len(torn) == len(saved) else [last_line(ended)] * (ended.code != 0)
        wrong += differences(again, whole) if not ended.code else []
        journal.add(trial=trial, torn=torn, wrong=wrong)
        print(layout, torn, wrong or "the same", flush=True)
    wrong = [entry for entry in journal.entries if entry["wrong"]]
    result(f"torn checkpoints, {layout}", f"{len(journal.entries)} runs resumed", f"{len(wrong)} runs differ")
    assert not wrong, "\n".join(map(str, wrong))
