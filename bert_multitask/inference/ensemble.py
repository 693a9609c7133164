"""Ensembles (paper, section 4.6): combine the prediction tables of several models, and select the models.

M members, N rows, C classes.
"""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from ..evaluation.metrics import score_decisions, signed
from ..evaluation.tables import TEXTS, check_alike, read_columns
from ..model.errors import InputError
from ..model.kinds import KINDS
from ..model.losses import labelled_rows
from ..model.tasks import Task
from .split_tables import SplitTables

VOTES = ("mode", "soft")


def check_members(found: SplitTables) -> None:
    """Check that members can be combined: of all, the same tasks, and of each task tables that are alike.

    Raises:
        InputError: a member lacks a task of another, or tables differ (see `check_alike`).
    """
    tasks = {task: member.name for member in found.members for task in member.tables}
    for member in found.members:
        if missing := sorted(tasks.keys() - member.tables.keys()):
            raise InputError(f"{member.name} has no {found.split} table of {missing[0]!r}, as {tasks[missing[0]]} has")
    for task in tasks:
        check_alike([member.tables[task] for member in found.members])


def combine(task: Task, tables: Sequence[Dataset], vote: str = "mode") -> Dataset:
    """Combine M prediction tables into one.

    Scores are averaged. Of classes, `mode` takes the most frequent and `soft` the one with the highest mean
    probability; of several labels a row, each is voted on (see `Kind.combine`).

    Args:
        task: whose tables.
        tables: as `prediction_table` gives them, of the same rows (see `check_alike`).
        vote: one of VOTES.

    Returns:
        A table of the same form, with the members' mean probabilities if all have some.

    Raises:
        InputError: a soft vote of a table without probabilities.
    """
    kind = KINDS[task.kind]
    combined = kind.combine(task, [read_columns(task, table) for table in tables], vote)
    told = next(({TEXTS: table[TEXTS][:]} for table in tables if TEXTS in table.column_names), {})
    return Dataset.from_dict({"id": tables[0]["id"][:]} | kind.lists(task, combined) | told)


def halve(task: Task, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the labelled rows in two halves: one to select on, one to score. They are drawn with a fixed seed.

    Raises:
        InputError: there are fewer than four labelled rows.
    """
    labelled = np.flatnonzero(labelled_rows(labels))
    if len(labelled) < 4:
        raise InputError(f"{len(labelled)} labelled rows of {task.name!r} are too few to select on one half of them")
    return tuple(map(np.sort, train_test_split(labelled, test_size=0.5, random_state=0)))


def select_greedily(task: Task, tables: Sequence[Dataset], labels: np.ndarray, vote: str = "mode") -> list[int]:
    """Select members by forward selection with replacement (Caruana et al., 2004, "Ensemble Selection from Libraries of
    Models", sections 2 and 2.1).

    The list begins with the best member. M - 1 times the member is added with which the list scores best. The result is
    the beginning of the list that scored best. Ties go to the first member and to the shortest list.

    Args:
        task: the task of all tables.
        tables: the members' prediction tables, M of them, of the same N rows (see `check_alike`).
        labels: (N,), or (N, …) if a row has several; `no_label` if a row has none.
        vote: one of VOTES.

    Returns:
        The members' numbers, from 0; a member has as many votes as times it is in the list.
    """
    kind, members = KINDS[task.kind], [read_columns(task, table) for table in tables]

    def rate(picks: list[int]) -> float:
        """The score of some members together; the highest is the best."""
        combined = kind.combine(task, [members[pick] for pick in picks], vote)
        return signed(task, score_decisions(task, combined[kind.decision], labels)[task.metric])

    picks: list[int] = []
    path = []
    for _ in members:
        scores = [rate([*picks, number]) for number in range(len(members))]
        picks.append(int(np.argmax(scores)))
        path.append(max(scores))
    return picks[: int(np.argmax(path)) + 1]
