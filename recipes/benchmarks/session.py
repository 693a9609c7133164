"""Measurements in a limited time, each reported as soon as it is made: one that fails does not stop the rest."""

import dataclasses
import json
import multiprocessing
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path


@dataclasses.dataclass
class Session:
    """Where results go, `results.jsonl` in a folder, and how long there is: from start to end, by
    `time.perf_counter()`."""

    options: Namespace
    folder: Path
    start: float
    end: float

    @classmethod
    def begin(cls, options: Namespace, folder: Path) -> "Session":
        """A session of `options.budget` seconds from now."""
        folder.mkdir(parents=True, exist_ok=True)
        now = time.perf_counter()
        return cls(options, folder, now, now + options.budget)

    def remaining(self) -> float:
        """Seconds left."""
        return self.end - time.perf_counter()

    def report(self, stage: str, **fields) -> None:
        """Print a JSON object as one line, and add it to `results.jsonl`: seconds since the start, stage, fields."""
        seconds = round(time.perf_counter() - self.start, 1)
        line = json.dumps({"t": seconds, "stage": stage} | fields, default=str, ensure_ascii=False)
        print(line, flush=True)
        with open(self.folder / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def measure(self, stage: str, function: Callable[[], Mapping], needs: float = 10, **what) -> None:
        """Report what a function returns, the error it raises, or that the seconds that it needs at least are no longer
        left; `what` says what is measured."""
        if self.remaining() < needs:
            self.report(stage, **what, skipped=f"{self.remaining():.0f} s left, {needs:.0f} needed")
            return
        try:
            result = function()
        except Exception as error:  # whatever is wrong with one setting must not hide the others
            self.report(stage, **what, error=f"{type(error).__name__}: {error}"[:500])
            return
        self.report(stage, **what, **result)

    def run(self, stage: str, function: Callable[["Session"], None], needs: float = 10) -> None:
        """Run a stage, which reports what it measures, and report its seconds and the error that ends it, if any."""
        if self.remaining() < needs:
            self.report(stage, skipped=f"{self.remaining():.0f} s left, {needs:.0f} needed")
            return
        start = time.perf_counter()
        try:
            function(self)
        except Exception:
            self.report(stage, error=traceback.format_exc()[-1500:])
        self.report(stage, done=True, seconds=round(time.perf_counter() - start, 1))

    def run_apart(self, stage: str, function: Callable[["Session"], None], most: float) -> None:
        """Run a stage in a new process, and end that after so many seconds: for what cannot be stopped from inside, or
        may leave the accelerator unusable."""
        limit = min(most, self.remaining() - 5)
        session = dataclasses.replace(self, end=time.perf_counter() + limit)
        process = multiprocessing.get_context("spawn").Process(target=function, args=(session,))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            self.report(stage, stopped_after=round(limit, 1))
        elif process.exitcode:
            self.report(stage, error=f"its process ended with {process.exitcode}")
