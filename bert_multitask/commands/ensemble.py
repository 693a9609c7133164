"""Combine the predictions of several models: the most frequent class, the mean score.

    bert-multitask ensemble RUN RUN RUN --output_dir ENSEMBLE
    bert-multitask ensemble RUN FOLDER ... --output_dir ENSEMBLE --vote soft --select greedy

A member is a run (its prediction tables, or made now where it has none), a folder of prediction tables, or one table.
Leaves in ENSEMBLE {task}-{split}.csv and .parquet, which an ensemble can take again, and ensemble.json. Of rows with
labels it prints every member's scores and the ensemble's. The rules are in docs/predict.md.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from ..data.records import write_json
from ..evaluation.tables import write_predictions
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
    members = collect(options)
    labelled = [split for split, found in members.items() if found.labels]
    picks = select(options, members["dev"]) if options.select else {}
    wanted = [split for split in members if options.split in (split, "both")]
    for split in wanted:
        for task, table in vote(members[split], options.vote, picks).items():
            write_predictions(members[split].tasks[task], table, options.output_dir / f"{task}-{split}")
    record = {"members": options.members, "vote": options.vote}
    if options.select:
        record["picks"] = {task: [options.members[pick] for pick in taken] for task, taken in picks.items()}
    for split in labelled:
        record.setdefault("scores", {}).update(report(options, members[split], picks))
    if "dev" in wanted and "dev" not in labelled:
        print("no scores: there are no labels; --data_dir names a folder that has them")
    write_json(options.output_dir / "ensemble.json", record)
    print(f"{' and '.join(wanted)} predictions: {options.output_dir}", flush=True)


def collect(options: argparse.Namespace) -> dict[str, SplitTables]:
    """{split: the members' tables} of the splits to combine and to select on.

    Raises:
        InputError: a split that is needed has no table, or --output_dir holds a member's tables.
    """
    needed = {options.split} - {"both"} | ({"dev"} if options.select else set())
    members = {}
    for split in ("train", "dev", "test"):
        if split in needed or (options.split == "both" and split != "train"):
            found = SplitTables(options.members, split, tasks=options.tasks, data_dir=options.data_dir)
            check_members(found)
            if found.tasks:
                members[split] = found
    if not members or needed - members.keys():
        splits = " and ".join(sorted(needed)) or "dev or test"
        raise InputError(f"{options.members[0]}: no table {{task}}-{splits}.parquet or .csv, and no run to predict it")
    tables = [table for found in members.values() for member in found.members for table in member.tables.values()]
    if options.output_dir.resolve() in {Path(table.source).parent.resolve() for table in tables}:
        raise InputError(f"--output_dir {options.output_dir} holds a member's tables; choose another folder")
    return members


def vote(found: SplitTables, rule: str, picks: Mapping[str, list[int]] | None = None) -> dict[str, Dataset]:
    """{task: combined table} of the members picked for each task, or of all."""
    picks, everyone = picks or {}, range(len(found.members))
    return {
        name: combine(task, [found.members[pick].tables[name].table for pick in picks.get(name, everyone)], rule)
        for name, task in found.tasks.items()
    }


def select(options: argparse.Namespace, found: SplitTables) -> dict[str, list[int]]:
    """Print and return {task: numbers of the members that together score best on one half of dev}."""
    picks = {}
    for name, task in found.tasks.items():
        if name not in found.labels:
            raise InputError(f"--select greedy needs dev labels of {name!r}; name the rows with --data_dir")
        rows = halve(task, found.labels[name])[0]
        tables = [member.tables[name].table.select(rows) for member in found.members]
        picks[name] = select_greedily(task, tables, found.labels[name][rows], options.vote)
        counts = Counter(options.members[pick] for pick in picks[name])
        print(f"{name}: " + ", ".join(f"{count} x {member}" for member, count in counts.items()))
    return picks


def report(options: argparse.Namespace, found: SplitTables, picks: dict[str, list[int]]) -> dict:
    """Print and return the scores of the members and of the ensembles on a split: on all rows or, of dev where members
    were selected, on each half of the rows, one of which they were selected on."""
    predictions = {
        member.name: {task: predicted.table for task, predicted in member.tables.items()} for member in found.members
    }
    predictions[f"all {len(found.members)}, {options.vote}"] = vote(found, options.vote)
    parts = {found.split: {name: range(len(labels)) for name, labels in found.labels.items()}}
    if picks:
        predictions[f"selected, {options.vote}"] = vote(found, options.vote, picks)
    if picks and found.split == "dev":
        halves = {name: halve(found.tasks[name], labels) for name, labels in found.labels.items()}
        titles = ("dev, the half selected on", "dev, the other half")
        parts = {title: {name: both[n] for name, both in halves.items()} for n, title in enumerate(titles)}
    scores = {}
    for title, rows in parts.items():
        labels = {name: labels[rows[name]] for name, labels in found.labels.items()}
        scores[title] = {
            member: score_tables(found.tasks, {name: tables[name].select(rows[name]) for name in labels}, labels)
            for member, tables in predictions.items()
        }
        print(describe_scores(scores[title], found.tasks, title), end="\n\n")
    return scores
