"""Train one encoder on several tasks, or one for each: a YAML file, and the flags after it.

    bert-multitask train CONFIG.yaml --data_dir DATA --output_dir RUN
    bert-multitask train CONFIG.yaml --data_dir DATA --output_dir RUNS --seeds 0 1 2 --jobs 3
    accelerate launch --num_processes 4 -m bert_multitask train CONFIG.yaml …

CONFIG.yaml may be one that the package ships: quickstart, rr_tpe, paper/baseline …
RUN gets the model, its predictions and scores (docs/architecture.md); RUNS a run for each seed, in seed-0, seed-1 …
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev

from ..inference.split_tables import describe_scores
from ..model.tasks import Task
from ..training.arguments import MultitaskTrainingArguments, RunArguments, to_field
from ..training.folder_lock import FolderLock
from ..training.jobs import SeedArguments, check_same_rows, train_seeds
from ..training.run import train
from ..training.stopping import STOP
from ..training.terminal import say
from .command_line import RecipeParser


def main(argv: list[str]) -> None:
    """Train, as a command line says."""
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments, SeedArguments), "rr_tpe.yaml", __doc__, "train")
    run, args, seeds, _ = parser.parse(argv)
    if not seeds.flag:
        train(run, args)
        return
    tasks = {task.name: task for task in run.load_tasks()}
    given = parser.given(argv) | {"tasks": to_field(run.tasks)}  # whole, where a flag named one that the YAML defines
    with FolderLock(Path(args.output_dir)), STOP.advising("the same command goes on"):
        folders = train_seeds(args, seeds, given)
    say(f"\n{describe_seeds(tasks, folders)}\n\nruns: {args.output_dir}/{seeds.flag}-*")


def describe_seeds(tasks: Mapping[str, Task], folders: Mapping[str, Path]) -> str:
    """The dev scores of {name: run folder} as a table, with mean and standard deviation.

    Raises:
        InputError: the runs have different rows.
    """
    scores = {name: json.loads((folder / "metrics.json").read_text("utf-8")) for name, folder in folders.items()}
    check_same_rows(folders.values())
    columns = {key: [found[key] for found in scores.values()] for key in next(iter(scores.values()))}
    scores["mean"] = {key: mean(values) for key, values in columns.items()}
    if len(folders) > 1:
        scores["sd"] = {key: stdev(values) for key, values in columns.items()}
    return describe_scores(scores, tasks)
