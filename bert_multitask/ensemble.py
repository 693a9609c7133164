"""Several models' prediction tables → one table (paper, section 4.6): finding them, comparing, combining, selecting.

M members, N rows, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from .arguments import MultitaskTrainingArguments
from .configuration import InputError
from .inference import SplitReader, TrainedRun, predict_runs
from .losses import UNLABELLED
from .metrics import score_decisions
from .prediction import Predictions, decision_column, read_predictions
from .run_folder import read_run
from .tasks import TASKS, Task

VOTES = ("mode", "soft")


def collect_members(
    names: Sequence[str], reader: SplitReader, args: MultitaskTrainingArguments, data_dir: str | None = None
) -> list[dict[str, Predictions]]:
    """Each member's tables of a split, {task: its table}; a trained run that has none predicts them now.

    Args:
        names: run folders, Hub ids, folders of prediction files, or such files.
        reader: of the split.
        args: how to predict (see `predict_runs`).
        data_dir: the rows of members that predict; by default the run's own.

    Returns:
        One dictionary a member, with the same tasks; none at all where no member has a table of the split.

    Raises:
        InputError: members have different tasks, or tables that are not alike (see `check_alike`).
    """
    members = [find_tables(name, reader.split) for name in names]
    numbers = [
        number
        for number, name in enumerate(names)
        if not members[number] and (not Path(name).exists() or Path(name, "config.json").exists())
    ]
    runs = [TrainedRun(names[number], data_dir=data_dir) for number in numbers]
    for number, run, tables in zip(numbers, runs, predict_runs(runs, reader, args), strict=True):
        members[number] = {task: Predictions(run.tasks[task], table, run.name) for task, table in tables.items()}
    if not any(members):
        return []
    tasks = {task: name for name, member in zip(names, members, strict=True) for task in member}
    for name, member in zip(names, members, strict=True):
        if missing := sorted(tasks.keys() - member.keys()):
            raise InputError(f"{name} has no {reader.split} table of {missing[0]!r}, as {tasks[missing[0]]} has")
    for task in members[0]:
        check_alike([member[task] for member in members])
    return members


def find_tables(name: str, split: str) -> dict[str, Predictions]:
    """{task: table} of a prediction file, of those in a folder, or of those in a run's `predictions`; Parquet first."""
    path = Path(name)
    folder = path / "predictions" if Path(path, "predictions").is_dir() else path
    paths = [path] if path.is_file() else [*folder.glob("*.csv"), *folder.glob("*.parquet")]
    files = {file.stem.rpartition("-")[0]: file for file in paths if file.stem.endswith(f"-{split}")}
    in_order = sorted(files, key=lambda task: ([*TASKS, task].index(task), task))
    return {task: read_predictions(files[task]) for task in in_order}


def find_labels(
    names: Sequence[str], tables: Mapping[str, Predictions], reader: SplitReader, data_dir: str | None = None
) -> dict[str, np.ndarray]:
    """{task: labels (N,)} of the tables' rows, from a data folder or from the data of the first run among the members.

    Args:
        names: of the members.
        tables: of one of them.
        reader: of the split.
        data_dir: where the rows are (see `load_rows`).

    Returns:
        The labels of the tasks that have any; none where nothing says where the rows are.

    Raises:
        InputError: the rows are not there, or not those of the tables.
    """
    tasks = TASKS
    if run := next(filter(read_run, names), None):
        run = TrainedRun(run, data_dir=data_dir)
        tasks, data_dir = run.tasks, run.data_dir
    elif data_dir is None:
        return {}
    tasks = {name: tasks[name] for name in tables if name in tasks}
    labels = reader.labels(tasks, data_dir)
    for name in labels:
        check_alike(
            [tables[name], Predictions(tasks[name], reader.rows(tasks[name], data_dir), f"{data_dir} ({name})")]
        )
    return labels


def check_alike(members: Sequence[Predictions]) -> None:
    """Refuse tables that are not of the same rows of the same task.

    Raises:
        InputError: tasks differ in kind, classes or range of scores, or the tables in length, ids or their order; the
            message names the table and the first difference.
    """
    first = members[0]
    for other in members[1:]:
        for field in ("name", "kind", "label_names", "score_range"):
            expected, found = getattr(first.task, field), getattr(other.task, field)
            if expected != found:
                raise InputError(f"{other.source}: the task's {field} is {found!r}, and {expected!r} in {first.source}")
        ours, theirs = first.table["id"][:], other.table["id"][:]
        for number, (one, two) in enumerate(zip(ours, theirs, strict=False), start=1):
            if one != two:
                raise InputError(f"{other.source}: row {number} has id {two!r}, and {one!r} in {first.source}")
        if len(ours) != len(theirs):
            raise InputError(f"{other.source} has {len(theirs)} rows, and {first.source} has {len(ours)}")


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
    labelled = np.flatnonzero(labels != UNLABELLED)
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
        labels: (N,), UNLABELLED where a row has none.
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
            scores.append(score_decisions(task, combined[decision_column(task)], labels)[task.metric])
        picks.append(int(np.argmax(scores)))
        path.append(max(scores))
    return picks[: int(np.argmax(path)) + 1]
