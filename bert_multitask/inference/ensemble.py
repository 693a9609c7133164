"""Several models' prediction tables → one table (paper, section 4.6): collecting, combining, selecting.

M members, N rows, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from ..evaluation.metrics import score_decisions, signed
from ..evaluation.tables import Predictions, check_alike, decision_column
from ..model.errors import InputError
from ..model.losses import is_labelled
from ..model.tasks import Task
from ..training.arguments import MultitaskTrainingArguments
from .split_tables import SplitReader, read_tables
from .trained_run import first_run, known_tasks, locate_tasks

VOTES = ("mode", "soft")


def collect_members(
    names: Sequence[str],
    reader: SplitReader,
    args: MultitaskTrainingArguments,
    data_dir: str | None = None,
    specs: Sequence[str] | None = None,
) -> list[dict[str, Predictions]]:
    """The members' tables of a split (see `read_tables`), which must be alike.

    Returns:
        One dictionary a member, {task: its table}, with the same tasks; none at all where no member has a table of the
        split.

    Raises:
        InputError: members have different tasks, or tables that are not alike (see `check_alike`).
    """
    members = read_tables(names, reader, args, data_dir, specs)
    if not any(members):
        return []
    tasks = {task: name for name, member in zip(names, members, strict=True) for task in member}
    for name, member in zip(names, members, strict=True):
        if missing := sorted(tasks.keys() - member.keys()):
            raise InputError(f"{name} has no {reader.split} table of {missing[0]!r}, as {tasks[missing[0]]} has")
    for task in members[0]:
        check_alike([member[task] for member in members])
    return members


def find_labels(
    names: Sequence[str],
    tables: Mapping[str, Predictions],
    reader: SplitReader,
    data_dir: str | None = None,
    specs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """{task: labels (N,)} of the tables' rows, from a data folder or from the data of the first run among the members.

    Args:
        names: of the members.
        tables: of one of them.
        reader: of the split.
        data_dir: where the rows are (see `load_rows`).
        specs: which tasks (see `locate_tasks`); by default those whose rows can be found.

    Returns:
        The labels of the tasks that have any; none where nothing says where the rows are.

    Raises:
        InputError: the rows are not there, or not those of the tables.
    """
    run = first_run(names)
    data_dir = data_dir or (run.data_dir if run else None)
    if data_dir is None:
        return {}
    specs = specs or [name for name in known_tasks(run) if name in tables]
    tasks = locate_tasks(names[0], {name: table.task for name, table in tables.items()}, run, data_dir, specs)
    labels = reader.labels(tasks, data_dir)
    for name in labels:
        rows = reader.rows(tasks[name], data_dir)
        check_alike([tables[name], Predictions(tasks[name], rows, f"{data_dir} ({name})")])
    return labels


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
