"""Search hyperparameters with optuna: the flags of train_multitask.py, and what to search of them.

    python recipes/tune.py [CONFIG.yaml] [--flag value ...] --n_trials 20 --output_dir OUT
    python recipes/train_multitask.py OUT/best.yaml

Leaves in OUT the study (study.db), trials.csv, search.png and the best trial's configuration (docs/tune.md). The same
command goes on with a search that was stopped.
"""

from contextlib import nullcontext
from pathlib import Path

from bert_multitask.commands.command_line import RecipeParser
from bert_multitask.reporting.plots import search_overview, to_png
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.folder_lock import FolderLock
from bert_multitask.training.run import run_recipe
from bert_multitask.training.search import Search
from bert_multitask.training.search_space import TuneArguments

CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> None:
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments, TuneArguments), CONFIGS / "rr_tpe.yaml", __doc__)
    run, args, options, _ = parser.parse(argv)
    options.search = options.search or str(CONFIGS / "tune.yaml")
    with FolderLock(Path(args.output_dir)) if args.process_index == 0 else nullcontext():
        search = Search(run, args, options, parser.given(argv))
        search.run_trials()
        if search.first:
            Path(args.output_dir, "search.png").write_bytes(to_png(search_overview(**search.overview())))


if __name__ == "__main__":
    run_recipe(main, stopped="the same command goes on with the search")
