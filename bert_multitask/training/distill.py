"""Soft labels: what a teacher, one model or an ensemble, predicted for the training rows (Hinton et al., 2015)."""

from pathlib import Path

import datasets
from datasets import Dataset, Value
from transformers.utils import logging

from ..evaluation.tables import TEXTS, find_tables, other_texts, read_columns, with_texts
from ..model.errors import InputError
from ..model.kinds import KINDS
from ..model.tasks import Task

logger = logging.get_logger(__name__)


def add_soft_labels(task: Task, rows: Dataset) -> Dataset:
    """Rows with a column `soft_labels`, fp32: each row's probabilities, or score, in the teacher's table.

    Args:
        task: whose `distill_from` names the folder with the teacher's `{task}-train.parquet`.
        rows: clean training rows, which are found in the table by their ids.

    Raises:
        InputError: there is no such table, it is of another task, it lacks a row, or a row has other texts there.
    """
    teacher = find_tables(Path(task.distill_from).expanduser(), "train").get(task.name)
    where = f"task {task.name!r}: distill_from {task.distill_from}"
    if teacher is None:
        raise InputError(
            f"{where}: there is no {task.name}-train.parquet; `bert-multitask predict RUN --split train --output_dir "
            "FOLDER` makes one, and `bert-multitask ensemble --split train` one of several"
        )
    for field in ("kind", "label_names", "score_range"):
        if getattr(teacher.task, field) != getattr(task, field):
            raise InputError(f"{where}: its {field} is {getattr(teacher.task, field)!r}, not {getattr(task, field)!r}")
    column = KINDS[task.kind].soft
    if column not in teacher.table.column_names:
        raise InputError(f"{teacher.source}: has no {column} to learn from; give the Parquet file of a model")
    places = {row_id: place for place, row_id in enumerate(teacher.table["id"][:])}
    if missing := [row_id for row_id in rows["id"][:] if row_id not in places]:
        raise InputError(
            f"{teacher.source}: has no row {missing[0]!r}, which is one of {len(missing):,} training rows that are "
            "missing; predict the same rows, those of extra_train too"
        )
    if different := other_texts(with_texts(task, rows, rows), teacher.table):
        raise InputError(
            f"{teacher.source}: {len(different):,} training rows have other texts there, {different[0]!r} first; "
            "predict the rows of this training data"
        )
    if TEXTS not in teacher.table.column_names:
        logger.warning(f"{teacher.source}: does not say of which texts it is; its rows are matched by their ids alone")
    values = read_columns(task, teacher.table)[column][[places[row_id] for row_id in rows["id"][:]]]
    feature = Value("float32") if values.ndim == 1 else datasets.List(Value("float32"))
    return rows.add_column("soft_labels", values.tolist(), feature=feature)
