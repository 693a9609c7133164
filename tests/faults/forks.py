"""Recipes run in processes that are forked from a server with everything imported, so that a run starts at once; and
are killed at a given moment."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from conftest import RECIPE, ROOT

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["faults.preload"])
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def isolate(cache: Path) -> None:
    """Set what the server and its processes inherit: one thread, caches of their own, the modules' paths."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets"), "TQDM_DISABLE": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"  # what killed runs left


class Moment(NamedTuple):
    """When to kill a run: `seconds` after its start or, where `change` is not None, after its `change`-th change of the
    run folder, counted from 1, as Python sees them: a file opened for writing, a rename, a removal, a new folder."""

    seconds: float
    change: int | None = None


class Ended(NamedTuple):
    """How a run ended: exit code, or minus a signal's number; seconds; what it printed; changes of its folder."""

    code: int
    seconds: float
    printed: str
    changes: int

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Changes:
    """An audit hook that counts the changes of a folder, and tells the parent of the one it waits for."""

    def __init__(self, folder: str, awaited: Moment | None, parent: Connection):
        self.folder, self.awaited, self.parent = folder, awaited, parent
        self.count = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        # shutil.rmtree names what it removes relative to the folder that it goes through.
        if not isinstance(path, (str, os.PathLike)) or os.path.isabs(path) and not str(path).startswith(self.folder):
            return
        self.count += 1
        if self.awaited and self.count == self.awaited.change:
            if not self.awaited.seconds:
                os.kill(os.getpid(), signal.SIGKILL)
            self.parent.send(self.count)


def drop_privileges() -> None:
    """Make root obey the permissions of files, as everyone else must; a process of another user stays as it is."""
    import ctypes

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(ctypes.byref(header), data) == 0:
        data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        data[1] &= ~0b110
        libc.capset(ctypes.byref(header), data)


def run_recipe(
    argv: list[str], log: Path, folder: str, moment: Moment | None, parent: Connection, settings: dict
) -> None:
    """Be `python recipes/train_multitask.py ARGV`, in a session of its own, with its output in a file."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, limit in settings.get("limits", {}).items():
        import resource

        resource.setrlimit(getattr(resource, name), (limit, limit))
    if settings.get("obeys_permissions"):
        drop_privileges()
    if cache := settings.get("cache"):
        import datasets

        datasets.config.HF_DATASETS_CACHE = cache
    changes = Changes(folder, moment, parent)
    sys.addaudithook(changes)
    sys.argv = [str(RECIPE), *argv]
    try:
        runpy.run_path(str(RECIPE), run_name="__main__")
    finally:
        parent.send(("changes", changes.count))
        sys.stdout.flush()


class Forked:
    """A recipe that runs in a process of its own.

    Args:
        argv: the recipe's arguments.
        folder: its run folder, whose changes are counted.
        log: file of what it prints.
        moment: when to kill it (see `finish`).
        **settings: `limits`, {name of a resource limit: value}; `obeys_permissions`; `cache`, a folder for tokens.
    """

    def __init__(self, argv, folder: Path, log: Path, moment: Moment | None = None, **settings):
        self.log, self.moment = log, moment
        self.changes, theirs = SERVER.Pipe(duplex=False)
        arguments = (list(map(str, argv)), log, str(folder), moment, theirs, settings)
        self.process = SERVER.Process(target=run_recipe, args=arguments)
        self.start = time.monotonic()
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send a signal to the run and whatever it has started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it ended, or has no session of its own yet
            if self.process.is_alive():
                os.kill(self.pid, number)

    def finish(self, limit: float = 300) -> Ended:
        """Wait for the run to end, and kill it at its moment if that comes first.

        Raises:
            TimeoutError: it takes longer than `limit` seconds; it is killed then.
        """
        if self.moment and self.moment.change is None:
            self.process.join(self.moment.seconds)
            self.signal(signal.SIGKILL)
        elif self.moment and self.moment.seconds:
            ready = wait([self.changes, self.process.sentinel], limit)
            if self.changes in ready and self.changes.poll() and isinstance(self.receive(), int):
                self.process.join(self.moment.seconds)
                self.signal(signal.SIGKILL)
        self.process.join(limit)
        seconds = time.monotonic() - self.start
        if self.process.is_alive():
            self.signal(signal.SIGKILL)
            raise TimeoutError(f"still running after {limit} s; it printed {self.printed()[-2000:]}")
        message, changes = None, 0
        while self.changes.poll() and (message := self.receive()) is not None:
            changes = message[1] if isinstance(message, tuple) else changes
        return Ended(self.process.exitcode, seconds, self.printed(), changes)

    def receive(self):
        """What the process sent; None where it has ended."""
        try:
            return self.changes.recv()
        except (EOFError, ConnectionError):
            return None

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""
