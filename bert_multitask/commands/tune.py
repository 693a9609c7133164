"""Search hyperparameters with optuna: the flags of `bert-multitask train`, and what to search of them.

    bert-multitask tune [CONFIG.yaml] [--flag value ...] --n_trials 20 --output_dir OUT
    bert-multitask train OUT/best.yaml

Leaves in OUT the study (study.db), trials.csv, search.png and the best trial's configuration (docs/tune.md). The same
command goes on with a search that was stopped.
"""

import os
from contextlib import nullcontext
from pathlib import Path

from ..reporting.plots import search_overview, to_png
from ..training.arguments import MultitaskTrainingArguments, RunArguments
from ..training.folder_lock import FolderLock
from ..training.search import TRIAL, Search
from ..training.search_space import TuneArguments
from ..training.stopping import JOB
from .command_line import RecipeParser

STOPPED = "the same command goes on with the search"


def main(argv: list[str]) -> None:
    """Search, as a command line says."""
    kinds = RunArguments, MultitaskTrainingArguments, TuneArguments
    parser = RecipeParser(kinds, "rr_tpe.yaml", __doc__, "tune")
    run, args, options, _ = parser.parse(argv)
    job = os.environ.get(JOB, "")
    if job.startswith(TRIAL):  # one of those that --jobs has begun, in a process of its own
        Search(run, args, options, parser.given(argv), joins=True).run_one(int(job.removeprefix(TRIAL)))
        return
    with FolderLock(Path(args.output_dir)) if args.process_index == 0 else nullcontext():
        search = Search(run, args, options, parser.given(argv))
        if options.jobs == 1:
            search.run_trials()
        else:
            search.run_side_by_side(argv)
        if search.first:
            Path(args.output_dir, "search.png").write_bytes(to_png(search_overview(**search.overview())))
