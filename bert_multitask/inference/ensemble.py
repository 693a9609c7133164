"""Several models' prediction tables → one table (paper, section 4.6): combining, selecting.

M members, N rows, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from ..evaluation.metrics import score_decisions, signed
from ..evaluation.tables import check_alike, decision_column
from ..model.errors import InputError
from ..model.losses import is_labelled
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

    Scores are averaged. Of classes, `mode` takes the most frequent; a tie goes to the one with the highest mean
    probability, and to the lowest class where that is no help or a member has no probabilities. `soft` takes the class
    with the highest mean probability.

    Args:
        task: whose tables.
        tables: as `prediction_table` gives them, of the same rows (see `check_alike`), M of them.
        vote: one of VOTES.

    Returns:
        A table of the same form; its probabilities are the members' mean, and missing where a member's are.

    Raises:
        InputError: a soft vote of a table without probabilities.
    """
    combined = combine_columns(task, [read_columns(task, table) for table in tables], vote)
    if "probabilities" in combined:
        combined["probabilities"] = combined["probabilities"].tolist()
    return Dataset.from_dict({"id": tables[0]["id"][:]} | combined)


def read_columns(task: Task, table: Dataset) -> dict[str, np.ndarray]:
    """A prediction table as `score` (N,), or `label` (N,) and, where there are any, `probabilities` (N, C)."""
    columns = {decision_column(task): np.array(table[decision_column(task)][:])}
    if "probabilities" in table.column_names:
        columns["probabilities"] = np.reshape(table["probabilities"][:], (len(table), len(task.label_names)))
    return columns


def combine_columns(task: Task, members: Sequence[Mapping[str, np.ndarray]], vote: str) -> dict[str, np.ndarray]:
    """`combine`, of `read_columns`."""
    if task.kind == "similarity":
        return {"score": mean([member["score"] for member in members])}
    combined = {}
    if all("probabilities" in member for member in members):
        combined["probabilities"] = mean([member["probabilities"] for member in members])
    elif vote == "soft":
        raise InputError(f"a soft vote on {task.name!r} needs probabilities: give Parquet files, or vote by mode")
    if vote == "soft":
        preference = combined["probabilities"]
    else:
        labels = np.array([member["label"] for member in members])
        counts = (labels[..., None] == np.arange(len(task.label_names))).sum(0)  # (N, C)
        preference = np.where(counts == counts.max(-1, keepdims=True), combined.get("probabilities", 0), -1)
    return {"label": preference.argmax(-1)} | combined  # the first, the lowest, of equals


def mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the members, fp32. Sorted, so that the order of the members cannot change a last digit."""
    return np.sort(np.array(values, np.float64), axis=0).mean(0).astype(np.float32)


def halve(task: Task, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labelled rows' numbers in two halves, drawn at random and always the same: to select on, and to score.

    Raises:
        InputError: there are fewer than four.
    """
    labelled = np.flatnonzero(is_labelled(labels))
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
            combined = combine_columns(task, [*(members[pick] for pick in picks), member], vote)
            found = score_decisions(task, combined[decision_column(task)], labels)[task.metric]
            scores.append(signed(task, found))
        picks.append(int(np.argmax(scores)))
        path.append(max(scores))
    return picks[: int(np.argmax(path)) + 1]
