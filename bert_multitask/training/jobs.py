"""Several runs at a time on one machine, each in a process of its own; a run with each of several seeds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from transformers.hf_argparser import HfArg

from ..data.records import write_text
from ..model.errors import InputError
from .arguments import MultitaskTrainingArguments
from .run_folder import compare_settings, read_run
from .stopping import JOB, STOP, Stopped
from .terminal import say
from .yaml_file import load_yaml

POLL = 0.1  # seconds between looks at the processes
ONE_RUN = ("resume_from_checkpoint", "overwrite", "push_to_hub")  # flags that are of one run


class Job(NamedTuple):
    """What a process does: its name, for messages and in its variable JOB; its command line, after the interpreter; and
    the file to which its output is added."""

    name: str
    argv: list[str]
    log: Path


def training_job(folder: Path, argv: Iterable[object]) -> Job:
    """Train what is left of a run; its output goes to a file beside the folder.

    Args:
        folder: of the run.
        argv: arguments of `bert-multitask train`, without --resume_from_checkpoint.
    """
    resume = ["--resume_from_checkpoint"] if (folder / "run.json").exists() else []
    command = ["-m", "bert_multitask", "train", *map(str, argv), *resume]
    return Job(folder.name, command, folder.parent / f"{folder.name}.log")


def run_jobs(jobs: Iterable[Job], at_once: int, finished: Callable[[Job], object]) -> None:
    """Run jobs, several at a time, each with an equal share of the CPU threads of this process unless OMP_NUM_THREADS
    says how many. They end with this process, however that ends; a run then saves a checkpoint.

    Args:
        jobs: the next is taken when there is room for it.
        at_once: how many run at a time, as --jobs says.
        finished: is called with each job that has ended.

    Raises:
        InputError: a job failed, and the others were stopped; or none may run.
        Stopped: this process was asked to stop.
    """
    if at_once < 1:
        raise InputError(f"--jobs is {at_once}; expected at least 1")
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // at_once)))
    environ = os.environ | {"OMP_NUM_THREADS": threads}
    jobs, running = iter(jobs), {}
    STOP.deferred = True  # so that the processes have time to save
    try:
        while True:
            while len(running) < at_once and (job := next(jobs, None)):
                with job.log.open("ab") as log:
                    running[job.name] = job, start(job.argv, log, environ | {JOB: job.name})
            if not running:
                return
            for job, process in list(running.values()):
                if process.poll() is not None:
                    del running[job.name]
                    check_ended(job, process.returncode)
                    finished(job)
            if STOP.signum is not None:
                raise Stopped(STOP.signum)
            time.sleep(POLL)
    finally:  # nothing is running but after an error or a stop
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
        STOP.deferred = False


def start(argv: list[str], log, environ: Mapping[str, str]) -> subprocess.Popen:
    """Start a Python process that writes to a log."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, *argv], **streams, env=environ)


def check_ended(job: Job, code: int) -> None:
    """Raises InputError, with the last line of the job's log, if it ended with another code than 0."""
    if code:
        lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n") if job.log.exists() else []
        last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        raise InputError(f"{job.name} ended with exit code {code}: {last}; its output is in {job.log}")


@dataclass
class SeedArguments:
    """Several runs that differ in their seed."""

    _argument_group_name = "several runs"

    seeds: list[int] | None = HfArg(
        default=None, help="train a run with each --seed, in the folders seed-N of --output_dir"
    )
    data_seeds: list[int] | None = HfArg(
        default=None, help="the same with each --data_seed, in data_seed-N: such runs can be a soup"
    )
    jobs: int = HfArg(default=1, help="how many of these runs at a time, with equal shares of the CPU's threads")

    def __post_init__(self):
        if self.seeds and self.data_seeds:
            raise InputError("--seeds and --data_seeds exclude each other")
        if self.jobs != 1 and not self.flag:
            raise InputError("--jobs does nothing without --seeds or --data_seeds, such as --seeds 0 1 2")

    @property
    def flag(self) -> str | None:
        """The flag in which the runs differ; None of a single run."""
        return "seed" if self.seeds else "data_seed" if self.data_seeds else None

    @property
    def values(self) -> list[int]:
        """The flag's value in each run."""
        return list(dict.fromkeys(self.seeds or self.data_seeds or ()))


def train_seeds(
    args: MultitaskTrainingArguments, options: SeedArguments, given: Mapping[str, object]
) -> dict[str, Path]:
    """Train a run for each seed. Runs that are finished are taken as they are; others go on.

    Args:
        args: of the runs.
        options: the seeds, and how many runs at a time.
        given: {flag: value} of what the user set, of which `args` are made.

    Returns:
        {name: folder} of the runs, in the order of the seeds.

    Raises:
        InputError: a flag is of one run, a run was begun with other flags, or a run failed.
    """
    if args.world_size > 1:
        raise InputError(f"--{options.flag}s starts a process for each run; call it without `accelerate launch`")
    if there := [name for name in ONE_RUN if getattr(args, name, None) or given.get(name)]:
        raise InputError(
            f"--{there[0]} is of one run; with --{options.flag}s the same command goes on where it stopped"
        )
    own = vars(options).keys() | {"output_dir", options.flag}
    shared = {name: value for name, value in given.items() if name not in own and value is not None}
    folders, jobs = {}, []
    for value in options.values:
        folder = Path(args.output_dir, f"{options.flag}-{value}")
        config = folder.with_name(f"{folder.name}.yaml")
        if (folder / "run.json").exists() and not config.exists():
            raise InputError(
                f"{folder} holds a run that --{options.flag}s did not begin, perhaps with other flags; use another "
                "--output_dir, or remove it"
            )
        write_config(config, shared | {"output_dir": str(folder), options.flag: value})
        folders[folder.name] = folder
        if not (folder / "metrics.json").exists():
            jobs.append(training_job(folder, [config]))
    run_jobs(jobs, options.jobs, lambda job: say(f"{job.name} is finished: {folders[job.name]}"))
    return folders


def check_same_rows(folders: Iterable[Path]) -> None:
    """Check that runs were trained and scored on the same rows.

    Raises:
        InputError: the data changed between two of them; the message names both and the task.
    """
    first, *others = ((folder, read_run(folder)["decides"]) for folder in folders)
    for folder, decides in others:
        for name in sorted(decides.keys() | first[1].keys()):
            if name.startswith("rows of ") and decides.get(name) != first[1].get(name):
                raise InputError(
                    f"{name.replace(' of ', ' of task ')} in {folder} are others than in {first[0]}, so their scores "
                    "have no mean; remove the folder with the older rows, and call the command again"
                )


def write_config(path: Path, flags: Mapping[str, object]) -> None:
    """Write a run's flags as YAML.

    Raises:
        InputError: the file is there and has other flags.
    """
    text = yaml.safe_dump(dict(flags), sort_keys=False, allow_unicode=True)
    if path.exists() and (before := load_yaml(path)):
        compare_settings(before, yaml.safe_load(text), path.with_suffix(""))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
