"""A lock on a folder while a process writes it, which says who that is."""

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import filelock
import psutil
from transformers.utils import logging

from ..data.records import write_json
from ..model.errors import InputError, explained

logger = logging.get_logger(__name__)

LOCK, RUNNING = ".run.lock", "running.json"
OWN = {LOCK, RUNNING, "running.tmp"}  # the names that a lock leaves, or may leave
PATIENCE = 2.0  # seconds that a killed process may take to end
# Errors of a file system without locks.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


class FolderLock:
    """Holds a folder, which is made where there is none; `running.json` in it says who holds it.

    The operating system ends the lock with the process, however that ends, so a lock left behind by a dead process
    holds nothing. `running.json` is for the message, and for what the operating system cannot see: a process of another
    machine, or a file system without locks.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lock = filelock.FileLock(path / LOCK)
        self.is_new = False

    def __enter__(self) -> Self:
        """Hold the folder.

        Raises:
            InputError: it cannot be written, or another process holds it; the message names the process.
        """
        try:
            with writable(self.path):
                self.is_new = not self.path.exists()
                self.path.mkdir(parents=True, exist_ok=True)
                self.acquire()
                self.refuse_another()
                write_json(self.path / RUNNING, this_process())
        except BaseException:
            self.lock.release(force=True)
            raise
        return self

    def __exit__(self, *_) -> None:
        """Let go of the folder; one that was made for nothing is removed."""
        with contextlib.suppress(OSError):
            (self.path / RUNNING).unlink(missing_ok=True)
            if self.is_new and not contents(self.path):
                shutil.rmtree(self.path)
        self.lock.release(force=True)

    def acquire(self) -> None:
        """Take the operating system's lock, where the file system has one."""
        try:
            self.lock.acquire(timeout=PATIENCE)
        except filelock.Timeout:
            raise InputError(
                f"--output_dir {self.path} is being written by {describe(read_writer(self.path))}; wait for it, stop "
                "it, or choose another folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            logger.warning(f"{self.path}: this file system has no locks; start no second run in this folder")

    def refuse_another(self) -> None:
        """Raises InputError if another process may hold the folder, though its lock cannot be seen."""
        writer = read_writer(self.path)
        if is_alive(writer):
            raise InputError(
                f"--output_dir {self.path} is being written by {describe(writer)}; if that is not running any more, "
                f"delete {self.path / RUNNING}"
            )


def contents(path: Path) -> set[str]:
    """The names of what is in a folder besides the lock; none where there is no folder."""
    return ({file.name for file in path.iterdir()} if path.is_dir() else set()) - OWN


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders, and of links the links alone."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def writable(path: Path) -> contextlib.AbstractContextManager:
    """A block that writes an output folder; it raises InputError where that cannot be written."""
    return explained(f"--output_dir {path} cannot be written", OSError, hint="choose another folder")


def this_process() -> dict[str, object]:
    """Which process this is: its number, its host, when it started, in seconds since 1970, and its command line."""
    started = psutil.Process().create_time()
    return {"process": os.getpid(), "host": socket.gethostname(), "started": started, "command": sys.argv}


def read_writer(path: Path) -> dict | None:
    """Who writes a folder, or was killed while it did; None where nothing says it."""
    try:
        writer = json.loads((path / RUNNING).read_bytes())
        kinds = {"process": int, "host": str, "started": (int, float)}
        return writer if all(isinstance(writer[name], kind) for name, kind in kinds.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(writer: Mapping | None) -> str:
    """A process in words."""
    if writer is None:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(writer["started"]))
    return f"process {writer['process']} on {writer['host']} (since {since})"


def is_alive(writer: Mapping | None) -> bool:
    """Whether another process may still be writing. One of another host may; one of this host is dead where no process
    has its number, or where the process that has it now started at another time."""
    if writer is None or writer["host"] != socket.gethostname():
        return writer is not None
    try:
        process = psutil.Process(writer["process"])
        is_same = abs(process.create_time() - writer["started"]) < 1
        return is_same and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):
        return False
