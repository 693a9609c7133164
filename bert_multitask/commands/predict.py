"""Predict every row of a file, or of a split of a run's own data.

    bert-multitask predict RUN new.csv --task topic --output_dir PREDICTIONS
    bert-multitask predict RUN --split test --output_dir PREDICTIONS
    accelerate launch --num_processes 4 -m bert_multitask predict RUN new.parquet --output_dir PREDICTIONS

RUN is a run folder, a Hub id or package:NAME/PATH. Of a file, PREDICTIONS gets its rows with all their columns, and
{task}_label, {task}_probability, … added, for the tasks that --task names or whose columns it has; where it has labels,
the scores with intervals in metrics.json too. Of a split it gets {task}-{split}.csv and .parquet, a line a row, and
where rows have labels the scores: of dev in scores.json, of another split in scores-{split}.json. See docs/predict.md,
and docs/large_jobs.md for many rows.
"""

import argparse

from accelerate import PartialState

from ..data.records import write_json
from ..evaluation.tables import write_predictions
from ..inference.pipeline import MultitaskPipeline
from ..inference.predict_file import describe_file_scores, predict_file
from ..inference.split_tables import SplitTables, describe_scores, score_tables
from ..inference.trained_run import TrainedRun
from ..model.errors import InputError
from .command_line import CommandParser, add_row_flags, local_path


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of a command line. Raises InputError if they do not go together or a value is out of range."""
    parser = CommandParser("predict", __doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, Hub id or package:NAME/PATH")
    parser.add_argument("file", metavar="FILE", nargs="?", help="new rows: CSV, JSON lines or Parquet, or an address")
    parser.add_argument("--split", choices=["train", "dev", "test"], help="rows of the run's own data, instead of FILE")
    parser.add_argument("--output_dir", type=local_path, required=True, help="folder of the prediction files")
    add_row_flags(parser)
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64, help="rows at a time on one process")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where it is safe: faster, rounded")
    options = parser.parse_args(argv)
    if (options.file is None) == (options.split is None):
        raise InputError("give either a file of new rows, or --split train, dev or test for the run's own")
    if options.file is not None and options.data_dir is not None:
        raise InputError(f"--data_dir says where a split is; the rows of {options.file} are in it: leave it out")
    if (rows := options.per_device_eval_batch_size) < 1:
        raise InputError(f"--per_device_eval_batch_size is {rows}; expected at least 1")
    return options


def main(argv: list[str]) -> None:
    """Predict, as a command line says."""
    options = parse(argv)
    (predict_split if options.file is None else predict_new)(options)


def predict_new(options: argparse.Namespace) -> None:
    """Predict a file of rows."""
    pipe = MultitaskPipeline(options.run, batch_size=options.per_device_eval_batch_size, bf16=options.bf16)
    file = options.file if "://" in options.file else str(local_path(options.file))
    scores = predict_file(pipe, file, options.output_dir, options.tasks)
    if PartialState().is_main_process:
        if scores:
            print(describe_file_scores(scores, pipe.tasks), end="\n\n")
        print(f"predictions: {options.output_dir}", flush=True)


def predict_split(options: argparse.Namespace) -> None:
    """Predict a split of the run's own data."""
    run = TrainedRun.open(options.run)
    how = {"batch_size": options.per_device_eval_batch_size, "bf16": options.bf16}
    found = SplitTables([run], options.split, tasks=options.tasks, data_dir=options.data_dir, **how)
    if not found.tasks:
        raise InputError(f"{options.run}: none of its tasks has {options.split} rows")
    if not PartialState().is_main_process:
        return
    tables = {name: predictions.table for name, predictions in found.members[0].tables.items()}
    for name, table in tables.items():
        write_predictions(found.tasks[name], table, options.output_dir / f"{name}-{options.split}")
    if found.labels:
        scores = score_tables(found.tasks, tables, found.labels)
        file = "scores.json" if options.split == "dev" else f"scores-{options.split}.json"
        write_json(options.output_dir / file, scores)
        print(describe_scores({options.run: scores}, found.tasks, f"{options.split} score"), end="\n\n")
    rows = ", ".join(f"{len(table):,} of {name}" for name, table in tables.items())
    print(f"{options.split} rows: {rows}\npredictions: {options.output_dir}", flush=True)
