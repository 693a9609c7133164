"""Combine the predictions of several models: the most frequent class, the mean score.

    bert-multitask ensemble RUN RUN RUN --output_dir ENSEMBLE
    bert-multitask ensemble RUN FOLDER ... --output_dir ENSEMBLE --vote soft --select greedy

A member is a run (its prediction tables, or made now where it has none), a folder of prediction tables, or one table.
Leaves in ENSEMBLE {task}-{split}.csv and .parquet, which an ensemble can take again, and ensemble.json. Of dev it
prints every member's scores and the ensemble's. The rules are in docs/predict.md.
"""

import argparse
from collections import Counter
from pathlib import Path

from datasets import Dataset
from numpy import ndarray

from ..data.records import write_json
from ..evaluation.tables import Predictions, write_predictions
from ..inference.ensemble import VOTES, check_members, combine, halve, select_greedily
from ..inference.split_tables import SplitTables, describe_scores, score_tables
from ..model.errors import InputError
from .command_line import CommandParser, add_row_flags, local_path


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of a command line."""
    parser = CommandParser("ensemble", __doc__)
    parser.add_argument("members", metavar="RUN_OR_TABLE", nargs="+", help="run, folder of tables, or table")
    parser.add_argument("--output_dir", type=local_path, required=True, help="folder of the ensemble's tables")
    parser.add_argument("--split", choices=["train", "dev", "test", "both"], default="both", help="which tables")
    parser.add_argument("--vote", choices=VOTES, default=VOTES[0], help="classes: most frequent, or most probable")
    parser.add_argument("--select", choices=["greedy"], help="take the members that do best on half of dev")
    add_row_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Combine, as a command line says."""
    options = parse(argv)
    members, labels = collect(options)
    picks = select(options, members["dev"], labels) if options.select else {}
    wanted = [split for split in members if options.split in (split, "both")]
    for split in wanted:
        for task, table in vote(members[split], options.vote, picks).items():
            write_predictions(members[split][0][task].task, table, options.output_dir / f"{task}-{split}")
    record = {"members": options.members, "vote": options.vote}
    if options.select:
        record["picks"] = {task: [options.members[pick] for pick in taken] for task, taken in picks.items()}
    if labels:
        record["scores"] = report(options, members["dev"], labels, picks)
    elif "dev" in wanted:
        print("no scores: there are no labels; --data_dir names a folder that has them")
    write_json(options.output_dir / "ensemble.json", record)
    print(f"{' and '.join(wanted)} predictions: {options.output_dir}", flush=True)


def collect(options: argparse.Namespace) -> tuple[dict[str, list], dict[str, ndarray]]:
    """{split: its members' tables} of the splits that the members have, and {task: labels} of dev.

    Raises:
        InputError: a split that is needed has no table, or the tables would be overwritten.
    """
    members, labels = {}, {}
    wanted = ("dev", "test") if options.split == "both" else (options.split,)
    for split in ("train", "dev", "test"):
        if split in wanted or (split == "dev" and options.select):
            found = SplitTables(options.members, split, tasks=options.tasks, data_dir=options.data_dir)
            check_members(found)
            if found.tasks:
                members[split] = found.tables
            if split == "dev":
                labels = found.labels
    needed = {options.split} - {"both"} | ({"dev"} if options.select else set())
    if not members or needed - members.keys():
        splits = " and ".join(sorted(needed)) or "dev or test"
        raise InputError(f"{options.members[0]}: no table {{task}}-{splits}.parquet or .csv, and no run to predict it")
    sources = {Path(table.source).parent.resolve() for found in members.values() for m in found for table in m.values()}
    if options.output_dir.resolve() in sources:
        raise InputError(f"--output_dir {options.output_dir} holds a member's tables; choose another folder")
    return members, labels


def vote(members: list[dict[str, Predictions]], rule: str, picks: dict[str, list[int]]) -> dict[str, Dataset]:
    """{task: combined table} of the members picked for each task, or of all."""
    return {
        task: combine(first.task, [members[pick][task].table for pick in picks.get(task, range(len(members)))], rule)
        for task, first in members[0].items()
    }


def select(options: argparse.Namespace, members: list, labels: dict[str, ndarray]) -> dict[str, list[int]]:
    """Print and return {task: numbers of the members that together score best on one half of dev}."""
    picks = {}
    for task, first in members[0].items():
        if task not in labels:
            raise InputError(f"--select greedy needs dev labels of {task!r}; name the rows with --data_dir")
        rows = halve(first.task, labels[task])[0]
        tables = [member[task].table.select(rows) for member in members]
        picks[task] = select_greedily(first.task, tables, labels[task][rows], options.vote)
        counts = Counter(options.members[pick] for pick in picks[task])
        print(f"{task}: " + ", ".join(f"{count} x {name}" for name, count in counts.items()))
    return picks


def report(options: argparse.Namespace, members: list, labels: dict[str, ndarray], picks: dict) -> dict:
    """Print and return the dev scores of the members and of the ensembles: on all rows or, if members were selected, on
    each half of the rows, one of which they were selected on."""
    tasks = {task: first.task for task, first in members[0].items()}
    predictions = {
        name: {task: found.table for task, found in member.items()}
        for name, member in zip(options.members, members, strict=True)
    }
    predictions[f"all {len(members)}, {options.vote}"] = vote(members, options.vote, {})
    parts = {"dev": {task: range(len(values)) for task, values in labels.items()}}
    if picks:
        predictions[f"selected, {options.vote}"] = vote(members, options.vote, picks)
        halves = {task: halve(tasks[task], values) for task, values in labels.items()}
        titles = ("dev, the half selected on", "dev, the other half")
        parts = {title: {task: halves[task][number] for task in labels} for number, title in enumerate(titles)}
    scores = {}
    for title, rows in parts.items():
        kept = {task: values[rows[task]] for task, values in labels.items()}
        scores[title] = {
            name: score_tables(tasks, {task: tables[task].select(rows[task]) for task in labels}, kept)
            for name, tables in predictions.items()
        }
        print(describe_scores(scores[title], tasks, title), end="\n\n")
    return scores
