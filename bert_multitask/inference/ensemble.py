"""Several models' prediction tables → one table (paper, section 4.6): combining, selecting.

M members, N rows, C classes.
"""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from ..evaluation.metrics import score_decisions, signed
from ..evaluation.tables import TEXTS, check_alike, decision_column, read_columns
from ..model.errors import InputError
from ..model.kinds import KINDS
from ..model.losses import labelled_rows
from ..model.tasks import Task
from .split_tables import SplitTables

VOTES = ("mode", "soft")


def check_members(members: SplitTables) -> None:
    """Refuse members that cannot be combined.

    Raises:
        InputError: they have different tasks, or tables that are not alike (see `check_alike`).
    """
    tasks = {task: name for name, tables in zip(members.names, members.tables, strict=True) for task in tables}
    for name, tables in zip(members.names, members.tables, strict=True):
        if missing := sorted(tasks.keys() - tables.keys()):
            raise InputError(f"{name} has no {members.split} table of {missing[0]!r}, as {tasks[missing[0]]} has")
    for task in tasks:
        check_alike([tables[task] for tables in members.tables])


def combine(task: Task, tables: Sequence[Dataset], vote: str = "mode") -> Dataset:
    """One prediction table of several.

    Scores are averaged. Of classes, `mode` takes the most frequent and `soft` the one with the highest mean
    probability; of several labels a row, each is voted on (see `Kind.combine`).

    Args:
        task: whose tables.
        tables: as `prediction_table` gives them, of the same rows (see `check_alike`), M of them.
        vote: one of VOTES.

    Returns:
        A table of the same form; its probabilities are the members' mean, and missing where a member's are.

    Raises:
        InputError: a soft vote of a table without probabilities.
    """
    kind = KINDS[task.kind]
    combined = kind.combine(task, [read_columns(task, table) for table in tables], vote)
    told = next(({TEXTS: table[TEXTS][:]} for table in tables if TEXTS in table.column_names), {})
    return Dataset.from_dict({"id": tables[0]["id"][:]} | kind.lists(task, combined) | told)


def halve(task: Task, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labelled rows' numbers in two halves, drawn at random and always the same: to select on, and to score.

    Raises:
        InputError: there are fewer than four.
    """
    labelled = np.flatnonzero(labelled_rows(labels))
    if len(labelled) < 4:
        raise InputError(f"{len(labelled)} labelled rows of {task.name!r} are too few to select on one half of them")
    return tuple(map(np.sort, train_test_split(labelled, test_size=0.5, random_state=0)))


def select_greedily(task: Task, tables: Sequence[Dataset], labels: np.ndarray, vote: str = "mode") -> list[int]:
    """Members that together score best: forward selection with replacement (Caruana et al., 2004, "Ensemble Selection
    from Libraries of Models", sections 2 and 2.1).

    Begins with the best member and adds, M - 1 times, the one that helps most, or harms least; then keeps the beginning
    of that list which scored best. Of equals the first wins, and the shortest list.

    Args:
        task: whose tables.
        tables: of the members, M.
        labels: (N,), `no_label` where a row has none.
        vote: one of VOTES.

    Returns:
        The members' numbers, from 0; one may come several times, and then counts as often.
    """
    members = [read_columns(task, table) for table in tables]
    picks: list[int] = []
    path = []
    for _ in members:
        scores = []
        for member in members:
            combined = KINDS[task.kind].combine(task, [*(members[pick] for pick in picks), member], vote)
            found = score_decisions(task, combined[decision_column(task)], labels)[task.metric]
            scores.append(signed(task, found))
        picks.append(int(np.argmax(scores)))
        path.append(max(scores))
    return picks[: int(np.argmax(path)) + 1]
