"""Predict every row of a split with a trained run.

    bert-multitask predict RUN --split test --output_dir PREDICTIONS
    accelerate launch --num_processes 4 -m bert_multitask predict RUN --split test --output_dir PREDICTIONS

RUN is a run folder, a Hub id or package:NAME/PATH. Leaves in PREDICTIONS a line a row, in file order, of each task:
{task}-{split}.csv and .parquet (docs/predict.md). Of dev it also prints the scores, and leaves them in scores.json.
"""

import argparse

from accelerate import PartialState

from ..data.records import write_json
from ..evaluation.tables import write_predictions
from ..inference.split_tables import SplitTables, describe_scores, score_tables
from ..inference.trained_run import TrainedRun
from ..model.errors import InputError
from .command_line import CommandParser, add_row_flags, local_path


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of a command line."""
    parser = CommandParser("predict", __doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, Hub id or package:NAME/PATH")
    parser.add_argument("--split", choices=["dev", "test"], required=True, help="which rows")
    parser.add_argument("--output_dir", type=local_path, required=True, help="folder of the prediction files")
    add_row_flags(parser)
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64, help="rows at a time on one process")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Predict, as a command line says."""
    options = parse(argv)
    if (rows := options.per_device_eval_batch_size) < 1:
        raise InputError(f"--per_device_eval_batch_size is {rows}; expected at least 1")
    run = TrainedRun.open(options.run)
    found = SplitTables([run], options.split, tasks=options.tasks, data_dir=options.data_dir, batch_size=rows)
    if not found.tasks:
        raise InputError(f"{options.run}: none of its tasks has {options.split} rows")
    if not PartialState().is_main_process:
        return
    tables = {name: predictions.table for name, predictions in found.tables[0].items()}
    for name, table in tables.items():
        write_predictions(found.tasks[name], table, options.output_dir / f"{name}-{options.split}")
    if options.split == "dev" and found.labels:
        scores = score_tables(found.tasks, tables, found.labels)
        write_json(options.output_dir / "scores.json", scores)
        print(describe_scores({options.run: scores}, found.tasks), end="\n\n")
    rows = ", ".join(f"{len(table):,} of {name}" for name, table in tables.items())
    print(f"{options.split} rows: {rows}\npredictions: {options.output_dir}", flush=True)
