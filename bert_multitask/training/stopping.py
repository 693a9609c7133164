"""Stopping a run: what SIGTERM, Ctrl-C and the end of the launcher do, and the command that goes on afterwards."""

import math
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from torch.distributed import DistError, distributed_c10d, is_initialized
from transformers import TrainerCallback

from .. import PARENT

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds from the signal until the process is ended by force, so that after 10 none is alive: while training is in its
# steps, which end with a checkpoint, and otherwise.
GRACE, BRIEF_GRACE = 7.0, 3.0
REPEAT = 1.0  # seconds within which a second SIGINT is the same Ctrl-C: the terminal sends one, the launcher another
JOB = "BERT_MULTITASK_JOB"  # the variable of a process that `jobs.run_jobs` started
LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", JOB}  # variables that launchers set
POLL = 0.5  # seconds between looks at the launcher


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, as by Ctrl-C, which libraries let through; the exit code is 128 more than `signum`."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class StopRequest:
    """Whether this process was asked to stop; as a context manager, listens to the signals in the meantime.

    The first signal raises `Stopped` in the main thread or, while training is in its steps, is left to `StopAtStepEnd`.
    A thread ends the process some seconds later where it is still alive, and at once after a second Ctrl-C. It hears a
    signal even while the main thread waits for another process. Where a launcher started this process, the launcher's
    end counts as SIGTERM: `accelerate launch` that is ended leaves its process alone.

    Attributes:
        signum: the signal; None until then.
        deferred: whether training is in its steps.
        advice: what goes on with the work, for the message; None where there is nothing to say.
    """

    def __init__(self):
        self.signum: int | None = None
        self.deferred = False
        self.advice: str | None = None
        self.active = False

    def __enter__(self):
        self.active = threading.current_thread() is threading.main_thread()  # no other may set handlers
        if self.active:
            self.signum, self.deferred, self.advice = None, False, None
            self.heard, told = socket.socketpair()
            told.setblocking(False)
            self.told, self.launcher = told, find_launcher()
            if self.launcher is None and not LAUNCHED.isdisjoint(os.environ):
                self.launcher = PARENT  # it ended while this process was importing, or is a script between the two
            self.handlers = {signum: signal.signal(signum, self.handle) for signum in SIGNALS}
            self.wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
            self.thread = threading.Thread(target=self.watch, name="stop request", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_):
        if self.active:
            self.active, self.signum = False, None  # what is trained next in this process was not asked to stop
            self.restore()
            self.told.close()  # which ends the thread
            self.thread.join()
            self.heard.close()

    def restore(self) -> None:
        """Give the signals back to those who had them."""
        signal.set_wakeup_fd(self.wakeup)
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def leave_child(self) -> None:
        """In a process forked from this one, as a data loader's: signals to it are not for us."""
        if self.active:
            self.active = False
            self.restore()

    def handle(self, signum: int, frame) -> None:
        """The handler, in the main thread."""
        if self.signum is None:
            self.signum = signum
            if not self.deferred:
                raise Stopped(signum)

    def watch(self) -> None:
        """The thread: end the process by force, and look after the launcher."""
        asked, deadline = 0.0, math.inf
        while True:
            left = max(0.0, min(POLL, deadline - time.monotonic()))
            heard = self.heard.recv(64) if select.select([self.heard], [], [], left)[0] else None
            if heard == b"":
                return
            now = time.monotonic()
            signums = [signum for signum in heard or () if signum in SIGNALS]
            if now >= deadline or (asked and signal.SIGINT in signums and now >= asked + REPEAT):
                self.end_by_force(self.signum or signal.SIGTERM)
            if signums and not asked:
                asked, deadline = now, now + (GRACE if self.deferred else BRIEF_GRACE)
            elif not asked and self.launcher and os.getppid() != self.launcher:
                os.kill(os.getpid(), signal.SIGTERM)

    def end_by_force(self, signum: int) -> None:
        """End this process now; what it was writing is cut off, which the next run recognises."""
        self.say(signum)
        os._exit(128 + signum)

    @contextmanager
    def advising(self, advice: str | None):
        """Have the message say what goes on with the work of the block, unless an outer block says it. It still does
        after an exception, when the message is printed."""
        before = self.advice
        self.advice = before or advice
        yield
        self.advice = before

    def say(self, signum: int) -> None:
        """Print what stopped the run and what goes on with it, once on each machine."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            message = f"stopped by {signal.Signals(signum).name}" + (f"; {self.advice}" if self.advice else "")
            print(message, file=sys.stderr, flush=True)


STOP = StopRequest()  # one, as signals are the process's
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=STOP.leave_child)


def find_module() -> str | None:
    """The module that this process runs, of `python -m MODULE`; None of a script."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else None


def find_launcher() -> int | None:
    """The id of the process that started this one where it is a launcher: its command line ends with ours."""
    command, parent = [find_module() or sys.argv[0], *sys.argv[1:]], psutil.Process().parent()
    try:
        return parent.pid if parent and parent.cmdline()[-len(command) :] == command else None
    except psutil.Error:
        return None


def own_command() -> list[str]:
    """The command line that started this process, with its launcher where it has one, as it can be typed again."""
    if launcher := find_launcher():
        return psutil.Process(launcher).cmdline()
    script, *argv = sys.argv
    if module := find_module():
        return [sys.executable, "-m", module, *argv]
    command = Path(script).name
    if shutil.which(command) == script:  # as `bert-multitask`, which the shell finds
        return [command, *argv]
    return [sys.executable, script, *argv]


def resume_command(overwrite: bool) -> str:
    """The command line that goes on with this run from its last checkpoint.

    Args:
        overwrite: whether this run was begun with --overwrite, which excludes going on.
    """
    words = without_flag(own_command(), "--resume_from_checkpoint")
    kept = without_flag(words, "--overwrite") if overwrite else words
    from_file = overwrite and kept == words  # then a flag has to take it back
    return shlex.join([*kept, *["--overwrite", "false"] * from_file, "--resume_from_checkpoint"])


def without_flag(words: list[str], flag: str) -> list[str]:
    """The words of a command line without a flag, and without its value if it has one."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if word.split("=")[0] != flag and (before != flag or word.startswith("-"))]


class StopAtStepEnd(TrainerCallback):
    """Ends training with a checkpoint at the end of a step, by `Stopped`, once the process was asked to stop.

    All processes stop at the same step. The first that was asked announces the step after its own in the store by which
    the processes met. None can finish that step without it, so all find the announcement at its end. Reading the store
    is no collective operation.
    """

    KEY = "bert_multitask/last_step"

    def __init__(self, request: StopRequest):
        self.request = request
        self.saving = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.request.deferred = True

    def on_step_end(self, args, state, control, **kwargs):
        if not self.is_over(state.global_step):
            return
        if args.save_strategy == "no" or args.save_only_model:
            self.stop()
        if control.should_evaluate and not control.should_save:
            return  # a checkpoint here could become the best, and without the stop there would be none: a step more
        control.should_save = control.should_log = control.should_training_stop = self.saving = True

    def on_save(self, args, state, control, **kwargs):
        if self.saving:
            self.stop()

    def on_train_end(self, args, state, control, **kwargs):
        self.request.deferred = False
        if self.request.signum is not None:
            self.stop()

    def is_over(self, step: int) -> bool:
        """Whether this step is the last of the stopped run, on all processes alike."""
        asked = self.request.signum is not None
        if not is_initialized() or distributed_c10d.get_world_size() == 1:
            return asked
        store = distributed_c10d._get_default_store()  # torch has no public name for the store of a running group
        try:
            if store.check([self.KEY]):
                return step >= int(store.get(self.KEY))
            if asked:
                store.set(self.KEY, str(step + 1))
            return False
        except DistError:  # the launcher, which may hold the store, is gone; no more can be agreed on, nor saved
            self.stop()

    def stop(self) -> None:
        """End training."""
        self.request.deferred = False
        raise Stopped(self.request.signum or signal.SIGTERM)  # where another process alone was asked
