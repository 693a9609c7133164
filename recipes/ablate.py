"""Train variants of one configuration over seeds, and say what each change gives.

    python recipes/ablate.py recipes/studies/levers.yaml --data_dir DATA --output_dir OUT
    python recipes/ablate.py recipes/studies/levers.yaml --data_dir DATA --output_dir OUT --only best --jobs 2

A study is a YAML file: `base`, flags of every run; `reference`, the variant that the others are compared with; `seeds`;
and `variants`, {name: the flags that it changes}. There `tasks: {sts: {head: linear}}` changes fields of the base's
tasks. Stopped anywhere, the same command goes on. It leaves OUT/NAME-seedN, the runs, and OUT/study.json and
OUT/study.md, written anew after each run: dev scores as mean ± sd over seeds, on all rows and on each half of them
(choose on one, report the other), and the differences from the reference with 95 % intervals of the paired bootstrap.
"""

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import yaml

from bert_multitask.commands.command_line import CommandParser, local_path
from bert_multitask.data.records import to_json, write_text
from bert_multitask.data.rows import HANDOUT
from bert_multitask.evaluation.intervals import Scores, estimate
from bert_multitask.evaluation.tables import read_decisions
from bert_multitask.inference.split_tables import SplitTables
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import labelled_rows
from bert_multitask.training.jobs import Job, run_jobs, training_job, write_config
from bert_multitask.training.run import run_recipe
from bert_multitask.training.yaml_file import load_yaml

PARTS = ("all", "half A", "half B")  # of the dev rows
FIELDS = {"base", "reference", "seeds", "variants"}


class Run(NamedTuple):
    """A variant with a seed, and the folder of its run."""

    variant: str
    seed: int
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether it is complete."""
        return (self.folder / "metrics.json").exists()

    @property
    def config(self) -> Path:
        """The file with its flags, beside the folder."""
        return self.folder.parent / f"{self.folder.name}.yaml"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict]:
    """The flags, and the study.

    Raises:
        InputError: the study has other fields than a study's, or --only names a variant that it does not have.
    """
    parser = CommandParser(None, __doc__)
    parser.add_argument("study", help="YAML file of the study")
    parser.add_argument("--data_dir", default=HANDOUT, help="rows: folder or URL in the course's layout, or hub")
    parser.add_argument("--output_dir", type=local_path, required=True, help="folder of the runs and the results")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the study's")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="variants to train now; by default all")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, each with its share of the CPU's cores (unless OMP_NUM_THREADS says it)",
    )
    options = parser.parse_args(argv)
    study = load_yaml(Path(options.study))
    if not isinstance(study, dict) or study.keys() != FIELDS or study["reference"] not in study["variants"]:
        raise InputError(
            f"{options.study}: expected the fields {', '.join(sorted(FIELDS))}, with the reference among the variants"
        )
    if unknown := [name for name in options.only or () if name not in study["variants"]]:
        raise InputError(f"--only names {unknown[0]!r}; the variants are {', '.join(study['variants'])}")
    return options, study


def change(base: Mapping, variant: Mapping | None) -> dict:
    """The flags of a variant: the base's, with its own instead; of `tasks` the fields that it gives."""
    flags = dict(base) | dict(variant or {})
    if isinstance(flags.get("tasks"), dict):
        tasks = [{"preset": task} if isinstance(task, str) else task for task in base.get("tasks", ())]
        fields = {task.get("name", task.get("preset")): task for task in tasks}
        if unknown := flags["tasks"].keys() - fields.keys():
            raise InputError(f"a variant changes the task {min(unknown)!r}; the base has {', '.join(fields)}")
        flags["tasks"] = [task | flags["tasks"].get(name, {}) for name, task in fields.items()]
    return flags


def make_job(run: Run, flags: Mapping, data_dir: str) -> Job:
    """The job of a run, whose flags it writes beside the folder."""
    write_text(run.config, yaml.safe_dump(dict(flags), sort_keys=False))
    argv = [run.config, "--output_dir", run.folder, "--data_dir", data_dir, "--seed", run.seed]
    return training_job(run.folder, argv)


class Results:
    """The dev scores of the finished runs, as a whole and on each half of the rows.

    Args:
        runs: those that are finished.
        data_dir: where the rows are.
    """

    def __init__(self, runs: Sequence[Run], data_dir: str):
        found = SplitTables([str(run.folder) for run in runs], "dev", data_dir=data_dir)
        self.parts: dict[tuple[str, int], dict[str, tuple[dict, dict]]] = {}  # {task: predictions}, {task: labels}
        self.scores: dict[tuple[str, int], dict[str, Scores]] = {}
        self.tasks = {name: found.tasks[name] for name in found.labels}
        for run, member in zip(runs, found.members, strict=True):
            parts = {part: ({}, {}) for part in PARTS}
            for number, (name, labels) in enumerate(found.labels.items()):
                if name not in member.tables:  # a variant may have fewer tasks
                    continue
                predicted = read_decisions(found.tasks[name], member.tables[name].table)
                order = np.random.default_rng(number).permutation(np.flatnonzero(labelled_rows(labels)))
                halves = np.array_split(order, 2)
                for part, rows in zip(PARTS, (np.sort(order), *halves), strict=True):
                    parts[part][0][name], parts[part][1][name] = predicted[rows], labels[rows]
            self.parts[run[:2]] = parts
            self.scores[run[:2]] = {part: self.score(*pair) for part, pair in parts.items()}
        self.columns = [*found.labels, "overall"]

    def score(self, predicted: Mapping, labels: Mapping, names: Collection[str] | None = None) -> Scores:
        """The scores of {task: predictions} by {task: labels}, of all tasks or of those that are named."""
        tasks = {name: task for name, task in self.tasks.items() if name in (predicted if names is None else names)}
        return Scores(tasks, predicted, {name: labels[name] for name in tasks})

    def pair(self, variant: str, reference: str, seed: int, part: str) -> tuple[Scores, Scores]:
        """The scores of a variant and of the reference, resampled alike: of the tasks that both have."""
        own, other = (self.scores[name, seed][part] for name in (variant, reference))
        if own.tasks.keys() == other.tasks.keys():
            return own, other
        common = own.tasks.keys() & other.tasks.keys()
        return tuple(self.score(*self.parts[name, seed][part], common) for name in (variant, reference))

    def describe(self, variant: str, reference: str, part: str) -> dict:
        """Of each column the mean, the sd, and the difference from the reference over the seeds that both have, with
        the bounds of its interval; of "overall" only where both have the same tasks, else it is another mean."""
        seeds = [seed for name, seed in self.scores if name == variant]
        both = [seed for seed in seeds if (reference, seed) in self.scores and variant != reference]
        found = {}
        tasks = self.scores[variant, seeds[0]][part].tasks.keys()
        alike = not both or tasks == self.scores[reference, both[0]][part].tasks.keys()
        for column in [name for name in self.columns if name in tasks or (name == "overall" and alike)]:
            values = [self.scores[variant, seed][part].values[column] for seed in seeds]
            found[column] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "values": values}
            pairs = [self.pair(variant, reference, seed, part) for seed in both]
            if pairs and all(column in own.values for own, _ in pairs):
                value = mean(own.values[column] - other.values[column] for own, other in pairs)
                drawn = np.mean([own.resamples[column] - other.resamples[column] for own, other in pairs], axis=0)
                found[column]["difference"] = estimate(value, drawn)._asdict()
        return {"seeds": seeds, **found}


def write_results(options: argparse.Namespace, study: Mapping, runs: Sequence[Run]) -> str:
    """Write study.json and study.md of the runs that are finished; returns the table."""
    done = [run for run in runs if run.finished]
    if not done:
        return "no run is finished yet"
    results, reference = Results(done, options.data_dir), study["reference"]
    names = list(dict.fromkeys(run.variant for run in done))
    found = {name: {part: results.describe(name, reference, part) for part in PARTS} for name in names}
    minutes = {name: [run_minutes(run) for run in done if run.variant == name] for name in names}
    record = {
        "study": dict(study),
        "command": f"python recipes/ablate.py {options.study} --data_dir DATA --output_dir OUT",
        "minutes": minutes,
    }
    write_text(options.output_dir / "study.json", to_json(record | {"results": found}))
    tables = [table(found, results.columns, part, reference) for part in PARTS]
    text = "\n\n".join(tables)
    write_text(options.output_dir / "study.md", text + "\n")
    return text


def run_minutes(run: Run) -> float:
    """How long a run trained, by its log; other work on the machine counts."""
    history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    return sum(entry.get("train_runtime", 0.0) for entry in history) / 60


def cell(score: Mapping) -> str:
    """A mean score, with its sd where there are several seeds."""
    return f"{score['mean']:.4f}" + (f" ± {score['sd']:.4f}" if score["sd"] is not None else "")


def table(found: Mapping, columns: Sequence[str], part: str, reference: str) -> str:
    """One part's scores as a Markdown table; – where a variant has no such task, or overall other tasks than the
    reference."""
    lines = [f"| dev rows: {part} | seeds | {' | '.join(columns)} | overall less {reference} |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for name, parts in found.items():
        row = parts[part]
        cells = [cell(row[column]) if column in row else "–" for column in columns]
        change = row.get("overall", {}).get("difference")
        shown = f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]" if change else ""
        lines.append(f"| {name} | {len(row['seeds'])} | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Train what is not finished, and write the results after each run."""
    options, study = parse(argv)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    seeds = options.seeds or study["seeds"]
    flags = {name: change(study["base"], variant) for name, variant in study["variants"].items()}
    runs = [Run(name, seed, options.output_dir / f"{name}-seed{seed}") for seed in seeds for name in flags]
    for run in [run for run in runs if run.folder.exists()]:
        write_config(run.config, flags[run.variant])  # which refuses those of a study that has changed since
    chosen = [run for run in runs if not run.finished and run.variant in (options.only or flags)]
    jobs = (make_job(run, flags[run.variant], options.data_dir) for run in chosen)

    def finish(job: Job) -> None:
        write_results(options, study, runs)
        print(f"{job.name} is finished; {options.output_dir / 'study.md'} has the scores", flush=True)

    run_jobs(jobs, options.jobs, finish)
    print(write_results(options, study, runs))


if __name__ == "__main__":
    run_recipe(main, stopped="the same command goes on")
