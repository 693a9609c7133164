"""The paper's tables and figures with our numbers, as one document: the results of reproduce_paper.py."""

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from bert_multitask.commands.ensemble import vote
from bert_multitask.data.records import read_history
from bert_multitask.evaluation.intervals import LEVEL, Scores, bounds
from bert_multitask.evaluation.tables import write_predictions
from bert_multitask.inference.ensemble import check_members
from bert_multitask.inference.split_tables import SplitTables, score_tables
from bert_multitask.reporting.document import Document, Picture, Table
from bert_multitask.reporting.error_sections import picture
from bert_multitask.reporting.plots import PICTURES, training_curves
from bert_multitask.reporting.report import scores
from bert_multitask.reporting.subject import Source, open_sources

from .tables import BASELINE, COLUMNS, ELEMENTS, FIGURES, TABLES, Job, PaperTable, Row, System, needed, row_seeds

ABSENT = "—"  # no run yet
Jobs = Mapping[tuple[System, int], Job]


def write_paper(options: argparse.Namespace, flags: Sequence[str], jobs: Jobs) -> None:
    """Write paper.html, and paper.md with its PNGs, of the runs that are finished; `flags` went to every run."""
    document = Document("BERT on Multitask Training: the paper's numbers, and ours")
    some = next(iter(jobs.values()))
    done, seeds = sum(job.finished for job in jobs.values()), ", ".join(map(str, options.seeds))
    missing = "" if done == len(jobs) else f"; {ABSENT} stands for the others"
    document.add(
        "What this is",
        f"Trained from {some.run.model_name_or_path}, on the rows of {some.run.data_dir}, with {options.budget:.4g} of "
        f"the paper's batches of each task, seed {seeds}. {done} of {len(jobs)} runs are finished{missing}. Scores are "
        "of dev rows, and each run's checkpoint is the best on the same rows. The paper's numbers are of bert-base and "
        "all 283,010 Quora pairs.",
        f"Flags of every run: {shlex.join(flags) or 'none'}.",
    )
    tables = Results(options, jobs)
    for element in options.only:
        tables.add(document, element)
    document.add("Runs", runs_table(options, jobs))
    document.write(options.output_dir, "paper")


def run_scores(job: Job) -> dict[str, float]:
    """{column: dev score} of a finished run; nothing of another."""
    if not job.finished:
        return {}
    metrics = json.loads((job.folder / "metrics.json").read_text(encoding="utf-8"))
    found = {task.name: metrics[f"eval_{task.name}_{task.metric}"] for task in job.run.load_tasks()}
    return found | {"overall": metrics["eval_overall"]}


def cell(values: Sequence[float | None]) -> str:
    """One score, or the mean ± sd of several seeds'; ABSENT where one is not there yet."""
    if not values or None in values:
        return ABSENT
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def runs_table(options: argparse.Namespace, jobs: Jobs) -> Table:
    """Every run: its folder, what differs from its configuration, which tables it is for, its scores."""
    lines = []
    for key, job in jobs.items():
        uses = [element for element in ELEMENTS if key in needed(element, options.seeds)]
        found = run_scores(job)
        numbers = [f"{found[column]:.4f}" if column in found else ABSENT for column in COLUMNS]
        lines.append(
            [job.folder.name, f"{job.system.config}.yaml", shlex.join(job.system.flags), ", ".join(uses), *numbers]
        )
    return Table(["run", "configuration", "flags", "for", *COLUMNS.values()], lines)


def beside_the_paper(table: PaperTable, score: Callable[[Row, str], str]) -> Table:
    """One of the paper's tables: each of our scores, `score(row, column)`, with the paper's number to its right."""
    columns = [column for column in COLUMNS if column in table.rows[0].paper]
    lines = []
    for row in table.rows:
        line = [row.label]
        for column in columns:
            line += [score(row, column), f"{row.paper[column]:.3f}"]
        lines.append(line)
    return Table([table.heading, *(name for column in columns for name in (COLUMNS[column], "paper"))], lines)


class Results:
    """The ensemble, and each table and figure as a section of a document."""

    def __init__(self, options: argparse.Namespace, jobs: Jobs):
        self.options, self.jobs = options, jobs
        self.members = {
            row.label: jobs.get((row.systems["overall"], *row_seeds(row, options.seeds)))
            for row in TABLES["table5"].rows
            if row.member is not None
        }
        self.ensemble: dict[str, dict[str, float]] = {}  # split -> column -> score
        self.sources: list[Source] = []  # dev predictions of the ensemble and of each member
        if all(job and job.finished for job in self.members.values()):
            self.vote()

    def vote(self) -> None:
        """Write the ensemble's predictions of dev and test: the mode of classes, the mean of scores (section 4.6)."""
        folders = [str(job.folder) for job in self.members.values()]
        ensemble, data_dir = self.options.output_dir / "ensemble", self.options.data_dir
        for split in ("dev", "test"):
            members = SplitTables(folders, split, data_dir=data_dir)
            check_members(members)
            tasks, tables = members.tasks, vote(members, "mode")
            for name, table in tables.items():
                write_predictions(tasks[name], table, ensemble / f"{name}-{split}")
            if tasks and members.labels.keys() == tasks.keys():
                found = score_tables(tasks, tables, members.labels)
                self.ensemble[split] = {name: found[f"eval_{name}_{task.metric}"] for name, task in tasks.items()}
                self.ensemble[split]["overall"] = found["eval_overall"]
        self.sources = open_sources([str(ensemble), *folders], "dev", data_dir=data_dir)

    def add(self, document: Document, element: str) -> None:
        """Add a table or a figure."""
        number, budget = element[-1], f"(budget {self.options.budget:.4g})"
        if element in TABLES:
            table = TABLES[element]
            notes = self.intervals() if element == "table5" else []
            document.add(f"Table {number}: {table.caption} {budget}", beside_the_paper(table, self.score), *notes)
        else:
            shown = self.figure(element) or [f"{ABSENT} its runs are not finished."]
            document.add(f"Figure {number}: {FIGURES[element]} {budget}", *shown)

    def score(self, row: Row, column: str) -> str:
        """One cell of a table."""
        if row.systems:
            jobs = [self.jobs[row.systems[column], seed] for seed in row_seeds(row, self.options.seeds)]
            return cell([run_scores(job).get(column) for job in jobs])
        split = "test" if row.label == "Test" else "dev"
        if split == "test" and self.sources and split not in self.ensemble:
            return "no labels here"
        return cell([self.ensemble.get(split, {}).get(column)])

    def intervals(self) -> list[str | Table]:
        """How the members were chosen; and, after the vote, whether the ensemble is better than they, on the same
        rows."""
        chosen = (
            "The members are the runs of the first seeds: none was selected by its score, as the paper's best six were."
        )
        if not self.sources:
            return [chosen]
        ensemble, *members = (scores(source.predictions) for source in self.sources)
        found = dict(zip(self.members, members, strict=True))
        lines = [
            [label, f"{member['overall'].value:.4f}", bounds(member["overall"], ".4f"), *compare(ensemble, member)]
            for label, member in found.items()
        ]
        lines.append(["Ensemble", f"{ensemble['overall'].value:.4f}", bounds(ensemble["overall"], ".4f"), "", ""])
        interval = f"{LEVEL:.0%} interval"
        return [
            chosen,
            Table(["Model", "Overall", interval, "Ensemble − model", interval], lines),
            verdict(ensemble, found),
            "Intervals are bootstraps over the dev rows, of differences on the same resampled rows; they know nothing "
            "of other seeds.",
        ]

    def figure(self, element: str) -> list[Picture]:
        """The pictures of a figure; none where its runs are not finished."""
        if element == "figure2":
            job = self.jobs[BASELINE, self.options.seeds[0]]
            if not job.finished:
                return []
            tasks = {task.name: task for task in job.run.load_tasks()}
            drawn = training_curves(read_history(job.folder / "history.jsonl"), tasks)
            alt = "Loss and metric of training and dev rows of each task over the baseline's steps"
            return [picture("figure2", drawn, alt)]
        if not self.sources:
            return []
        kind, names = ("scatter", ["sts"]) if element == "figure4" else ("confusion", ["sst", "quora"])
        *_, alt, draw = PICTURES[kind]
        parts = self.sources[0].predictions
        return [picture(f"{element}-{name}", draw(parts[name]), alt.format(name)) for name in names]


def compare(ensemble: Scores, member: Scores) -> list[str]:
    """The ensemble's gain in the overall score over a member, and its interval."""
    gain = ensemble.difference(member, "overall")
    return [f"{gain.value:+.4f}", bounds(gain, "+.4f")]


def verdict(ensemble: Scores, members: Mapping[str, Scores]) -> str:
    """One sentence: the ensemble beside its best member."""
    best = max(members, key=lambda label: members[label]["overall"].value)
    gain = ensemble.difference(members[best], "overall")
    words = "at least as good as" if gain.value >= 0 else "worse than"
    sure = "more" if gain.low > 0 or gain.high < 0 else "no more"
    return (
        f"The ensemble is {words} its best member, {best}: {gain.value:+.4f} overall, {bounds(gain, '+.4f')}; that is "
        f"{sure} than the choice of dev rows explains."
    )
