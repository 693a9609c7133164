"""Full disks, limits on a file's size, read-only folders, unreadable files: one line, and nothing written is harmed."""

import contextlib
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .runs import RESUME, complaint, differences, last_line, saved_step

ROOM = 2**30  # bytes, enough for anything here


@contextlib.contextmanager
def small_disk(folder: Path):
    """A file system in memory at a folder; gives a function that sets its size in bytes. Needs to be root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("only root can mount a file system; the limit on a file's size is tried all the same")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def logged_step(folder: Path) -> int:
    """The last step that the history has."""
    text = (folder / "history.jsonl").read_text() if (folder / "history.jsonl").exists() else ""
    return max(map(int, re.findall(r'"step": (\d+)', text)), default=0)


def go_on(stage, layout: str, folder: Path) -> list[str]:
    """Resume a run that has room again: what is lost."""
    lost = []
    if (logged := logged_step(folder)) - (saved := saved_step(folder)) > 5:  # steps between two checkpoints
        lost.append(f"the last whole checkpoint is of step {saved}, and the history has {logged}")
    ended = stage.run(layout, folder, RESUME)
    return lost + (
        [f"resumed, exit {ended.code}: {last_line(ended)}"]
        if ended.code
        else differences(folder, stage.whole(layout)[0])
    )


def report(journal, result, what: str) -> None:
    """A row of the summary; fails where something was lost."""
    wrong = [entry for entry in journal.entries if entry["wrong"]]
    result(what, f"{len(journal.entries)} times", f"{len(wrong)} times wrong")
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("layout", ["shared-joint", "per_task-joint"])
def test_a_full_disk(layout, stage, work, journal, option, seed, result):
    whole, _ = stage.whole(layout)
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    with small_disk(work / "disk") as set_size:
        while len(journal.entries) < -(-option("disks") // 2):
            rng = random.Random(f"{seed} {layout} disk {len(journal.entries)}")
            folder = work / "disk" / "run"
            wrong, room = None, rng.uniform(0.02, 1.2) * size
            while wrong is None:
                shutil.rmtree(folder, ignore_errors=True)
                set_size(int(room))
                ended = stage.start(
                    layout,
                    folder,
                ).finish()
                if ended.code:
                    wrong = complaint(ended, "space|full|free")
                room *= 0.8  # it had room enough
            at = {"logged": logged_step(folder), "saved": saved_step(folder)}
            set_size(ROOM)
            wrong += go_on(stage, layout, folder)
            journal.add(room=round(room / 0.8), **at, wrong=wrong)
            print(layout, journal.entries[-1], flush=True)
    report(journal, result, f"a full disk, {layout}")


@pytest.mark.parametrize("layout", ["shared-joint", "per_task-joint"])
def test_a_limit_on_the_size_of_a_file(layout, stage, work, journal, option, seed, result):
    """Needs no root: writing fails in the middle of a file."""
    whole, _ = stage.whole(layout)
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    while len(journal.entries) < -(-option("disks") // 2):
        rng = random.Random(f"{seed} {layout} limit {len(journal.entries)}")
        folder = work / "limit" / f"{layout}-{len(journal.entries)}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        limit = int(rng.choice([20_000, 1_000_000, largest]) * rng.uniform(0.3, 0.99))
        ended = stage.run(layout, folder, limits={"RLIMIT_FSIZE": limit})
        wrong = complaint(ended, "space|full|free|large") + go_on(stage, layout, folder)
        journal.add(limit=limit, wrong=wrong)
        print(layout, journal.entries[-1], flush=True)
    report(journal, result, f"a limit on the size of a file, {layout}")


def read_only(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o555)
    return path


def unreadable(path: Path) -> Path:
    path.chmod(0)
    return path


def without_cache(stage, folder: Path, cache: Path, **settings) -> list[str]:
    """What is wrong with a run whose tokens cannot be cached: it must say so and train all the same."""
    ended = stage.run("shared-joint", folder, cache=str(cache), **settings)
    if ended.code:
        return [f"exit {ended.code}: {last_line(ended)}"]
    said = any(str(cache) in line for line in ended.printed.splitlines())
    return ["it does not name the cache"] * (not said) + differences(folder, stage.whole("shared-joint")[0])


@pytest.mark.parametrize("name", ["on a full disk", "in a read-only folder", "below a file"])
def test_a_token_cache_that_cannot_be_written(name, stage, tmp_path, result):
    with contextlib.ExitStack() as disk:
        if name == "on a full disk":
            disk.enter_context(small_disk(tmp_path / "disk"))(8192)
            wrong = without_cache(stage, tmp_path / "run", tmp_path / "disk" / "tokens")
        elif name == "in a read-only folder":
            wrong = without_cache(stage, tmp_path / "run", read_only(tmp_path / "ro"), obeys_permissions=True)
        else:
            wrong = without_cache(stage, tmp_path / "run", Path(shutil.copy(__file__, tmp_path / "f"), "tokens"))
    result(f"a token cache {name}", "1 time", "; ".join(wrong) or "nothing")
    assert not wrong


# Name -> what it makes of a folder: (further flags, what the message must name).
FORBIDDEN = {
    "output_dir below a read-only folder": lambda base: (["--output_dir", read_only(base / "ro") / "run"], "ro/run"),
    "output_dir read-only": lambda base: (["--output_dir", read_only(base / "ro")], "ro"),
    "output_dir is a file": lambda base: (["--output_dir", shutil.copy(__file__, base / "f")], "f"),
    "output_dir below a file": lambda base: (["--output_dir", f"{shutil.copy(__file__, base / 'f')}/run"], "f/run"),
    "table unreadable": lambda base: (["--data_dir", unreadable(base / "data/sts-dev.csv").parent], "sts-dev.csv"),
    "data_dir unreadable": lambda base: (["--data_dir", unreadable(base / "data")], "data"),
    "weights unreadable": lambda base: (
        ["--model_name_or_path", unreadable(base / "bert/model.safetensors").parent],
        "bert",
    ),
    "tokenizer unreadable": lambda base: (
        ["--model_name_or_path", unreadable(base / "bert/tokenizer.json").parent],
        "bert",
    ),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_may_not_be_read_or_written(name, stage, tmp_path, result):
    """It is found before anything is trained."""
    for folder in (stage.data, stage.bert):
        shutil.copytree(folder, tmp_path / folder.name)
    flags, named = FORBIDDEN[name](tmp_path)
    ended = stage.run("shared-joint", tmp_path / "run", *flags, obeys_permissions=True)
    wrong = complaint(ended, re.escape(named)) + ["it trained first"] * ("'loss'" in ended.printed)
    result(name, "1 time", "; ".join(wrong) or "nothing")
    for path in (tmp_path / "data", tmp_path / "ro"):
        if path.exists():
            path.chmod(0o755)
    assert not wrong


def test_a_run_folder_that_became_read_only(stage, work, result):
    folder = work / "became-read-only" / "run"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir()
    whole, reference = stage.whole("shared-joint")
    process = stage.start("shared-joint", folder)
    while process.process.is_alive() and not saved_step(folder):
        process.process.join(0.01)
    folder.chmod(0o555)
    process.signal(9)
    process.finish()
    ended = stage.run("shared-joint", folder, RESUME, obeys_permissions=True)
    wrong = complaint(ended, re.escape(str(folder)))
    folder.chmod(0o755)
    wrong += go_on(stage, "shared-joint", folder)
    result("an unfinished run's folder became read-only", "1 time", "; ".join(wrong) or "nothing")
    assert not wrong
