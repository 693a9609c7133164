"""The paper's tables: its numbers, and the training runs that give ours.

A 3-BERT's tasks have no weights in common, so its run is at once a training on each task alone (Table 3).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments

# column -> heading; a column is a task or the overall score.
COLUMNS = {"overall": "Overall", "sst": "SA accuracy", "quora": "PD accuracy", "sts": "STS correlation"}
QUORA_TWENTIETH = 14_151  # rows: a 20th of the full Quora file's 283,010 (section 5.4.3)
MEMBERS = 3  # of the ensemble, of each architecture


class System(NamedTuple):
    """What is trained, but for the seed: the name of its folders, a configuration in paper/, and flags beside it."""

    name: str
    config: str
    flags: tuple[str, ...] = ()


class Job(NamedTuple):
    """A system with its seed, as a run: its arguments, and where it is."""

    system: System
    seed: int
    run: RunArguments
    args: MultitaskTrainingArguments

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.args.output_dir)

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return (self.folder / "metrics.json").exists()


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        label: its heading.
        paper: {column: the paper's number}.
        systems: {column: whose score ours is}; none where no system alone gives it.
        member: which of the seeds, as a member of the ensemble; None for all, averaged.
    """

    label: str
    paper: Mapping[str, float]
    systems: Mapping[str, System] = field(default_factory=dict)
    member: int | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table: its caption, the heading of its first column, its rows."""

    caption: str
    heading: str
    rows: tuple[Row, ...]


def row(
    label: str, numbers: str, system: System, columns: str = "overall sst quora sts", member: int | None = None
) -> Row:
    """A row of one system; `numbers` are the paper's, in the order of the columns."""
    names = columns.split()
    paper = dict(zip(names, map(float, numbers.split()), strict=True))
    return Row(label, paper, dict.fromkeys(names, system), member)


def alone(task: str, smart: bool) -> System:
    """One task alone on one BERT, ten epochs, with or without SMART (Table 2)."""
    flags = ["--encoder_sharing", "shared", "--tasks", task, "--task_epochs", json.dumps({task: 10})]
    flags += ["--smart_weight", json.dumps({task: float(smart)})]
    if task == "quora":
        flags += ["--max_train_samples", json.dumps({task: QUORA_TWENTIETH})]
    return System(f"{task}{'_smart' * smart}", "3bert_tpe_smart", tuple(flags))


def with_dropout(dropout: float) -> System:
    """3-BERT + TPE + SMART with one dropout for all heads (Table 3); .3 is Table 4's."""
    flags = ("--head_dropout", str(dropout)) if dropout != 0.3 else ()
    return System(f"3bert_tpe_smart{f'_dropout{dropout}' if flags else ''}", "3bert_tpe_smart", flags)


BASELINE, BASELINE_TPE = System("baseline", "baseline"), System("baseline_tpe", "baseline_tpe")
THREE_DF = System("3bert_tpe_smart_df", "3bert_tpe_smart_df")
RR_DF = System("rr_tpe_smart_df", "rr_tpe_smart_df")
TABLES = {
    "table1": PaperTable(
        "Performance of different encoding methods on PD and STS dev data",
        "Encoding Methods",
        (
            row("Independent Text Encoding", ".721 .487", BASELINE, "quora sts"),
            row("Text Pair Encoding", ".889 .813", BASELINE_TPE, "quora sts"),
        ),
    ),
    "table2": PaperTable(
        "Performance of adding SMART regularization for each task",
        "SMART",
        tuple(
            Row(label, paper, {task: alone(task, smart) for task in paper})
            for label, smart, paper in (
                ("×", False, {"sst": 0.501, "quora": 0.836, "sts": 0.857}),
                ("✓", True, {"sst": 0.516, "quora": 0.813, "sts": 0.863}),
            )
        ),
    ),
    "table3": PaperTable(
        "Performance of different dropout rates",
        "Dropout Rate",
        (
            row("0.0", ".524 .908 .879", with_dropout(0.0), "sst quora sts"),
            row("0.1", ".531 .908 .880", with_dropout(0.1), "sst quora sts"),
            row("0.2", ".537 .902 .878", with_dropout(0.2), "sst quora sts"),
            row("0.3", ".527 .903 .877", with_dropout(0.3), "sst quora sts"),
        ),
    ),
    "table4": PaperTable(
        "The model comparison with different training methods and configurations",
        "Model",
        (
            row("Baseline", ".627 .416 .721 .487", BASELINE),
            row("Baseline + TPE", ".717 .356 .889 .813", BASELINE_TPE),
            row("3-BERT", ".686 .528 .813 .432", System("3bert", "3bert")),
            row("3-BERT + TPE", ".783 .514 .903 .862", System("3bert_tpe", "3bert_tpe")),
            row("3-BERT + TPE + SMART", ".788 .527 .903 .871", with_dropout(0.3)),
            row("3-BERT + TPE + SMART + DF", ".790 .527 .907 .871", THREE_DF),
            row("RR + TPE", ".784 .513 .905 .868", System("rr_tpe", "rr_tpe")),
            row("RR + TPE + SMART", ".787 .523 .901 .873", System("rr_tpe_smart", "rr_tpe_smart")),
            row("RR + TPE + SMART + DF", ".788 .513 .905 .893", RR_DF),
        ),
    ),
    "table5": PaperTable(
        "Ensembling model from 3 3-BERT models and 3 1-BERT models",
        "Model",
        (
            row("3-BERT + TPE + SMART + DF (0)", ".792 .537 .903 .873", THREE_DF, member=0),
            row("3-BERT + TPE + SMART + DF (1)", ".790 .527 .907 .871", THREE_DF, member=1),
            row("3-BERT + TPE + SMART + DF (2)", ".789 .533 .901 .868", THREE_DF, member=2),
            row("RR + TPE + SMART + DF (0)", ".788 .513 .905 .893", RR_DF, member=0),
            row("RR + TPE + SMART + DF (1)", ".787 .514 .903 .885", RR_DF, member=1),
            row("RR + TPE + SMART + DF (2)", ".789 .519 .904 .885", RR_DF, member=2),
            Row("Ensemble", {"overall": 0.797, "sst": 0.531, "quora": 0.915, "sts": 0.889}),
        ),
    ),
    "table6": PaperTable(
        "The best results on the dev and test leaderboard",
        "Leaderboard",
        (
            Row("Dev", {"overall": 0.797, "sst": 0.531, "quora": 0.915, "sts": 0.889}),
            Row("Test", {"overall": 0.796, "sst": 0.529, "quora": 0.914, "sts": 0.887}),
        ),
    ),
}
# What of the tables a figure is drawn of, beside the ensemble.
FIGURES = {
    "figure2": "The training loss, train accuracy and dev accuracy trends for the baseline model",
    "figure3": "The confusion matrix for SA and PD, of the ensemble",
    "figure4": "The scatter plot for true scores and predicted scores in STS, of the ensemble",
}
ELEMENTS = ["figure2", *TABLES, "figure3", "figure4"]  # in the paper's order


def member_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds of the ensemble's members of one architecture: those given, and the next ones where they are few."""
    return [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + MEMBERS)][:MEMBERS]


def row_seeds(row: Row, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds whose mean a row shows: a member's own, or all."""
    return seeds if row.member is None else [member_seeds(seeds)[row.member]]


def needed(element: str, seeds: Sequence[int]) -> Iterator[tuple[System, int]]:
    """Yield the systems, with their seeds, that a table or figure is made of."""
    if element == "figure2":
        yield BASELINE, seeds[0]
        return
    of_ensemble = element in ("table6", "figure3", "figure4")
    for row in TABLES["table5" if of_ensemble else element].rows:
        for system in dict.fromkeys(row.systems.values()):
            for seed in row_seeds(row, seeds):
                yield system, seed
