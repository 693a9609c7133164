"""Dev rows out of the training rows, where a task has no others (`Task.dev_share`); which rows have the same texts."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Hashable

import numpy as np
from datasets import Dataset

from ..model.errors import InputError
from ..model.kinds import KINDS
from ..model.tasks import Task


def draw_dev_rows(task: Task, rows: Dataset) -> np.ndarray:
    """Which of the training rows are the dev split: truth values (N,).

    They are a stratified sample of the different texts: these are sorted by label, and within a label by a hash of the
    text, and every (1 / share)-th is taken. Scores are sorted, too, so that the sample has low and high ones alike. The
    rows of a group of tasks are no strata, so that its tasks have the same dev rows. Rows with the same text, or pair
    of texts (see `text_keys`), are on the same side. No random generator is used: every process, run and reader finds
    the same rows, in whatever order the file has them. A class with one text only stays in training.

    Args:
        task: a task with a `dev_share`.
        rows: all of its training rows, clean.

    Raises:
        InputError: the training or the dev split would have no row.
    """
    kind = KINDS[task.kind]
    texts = list(zip(*(rows[name][:] for name in rows.column_names if name not in ("id", "label")), strict=True))
    groups: dict[tuple, Hashable] = {}  # the stratum of each different text, that of its first row
    for text, label in zip(texts, rows["label"][:], strict=True):
        groups.setdefault(text, stratum(label, kind.words) if task.group is None else None)
    keys = text_keys(rows)
    counts = Counter({key: groups[text] for key, text in zip(keys, texts, strict=True)}.values())
    single = kind.dtype == "int64" and not kind.nested and task.group is None
    drawn = [text for text, label in groups.items() if not single or counts[label] > 1]
    drawn.sort(key=lambda text: (groups[text], hashlib.sha256(repr(text).encode("utf-8", "surrogatepass")).digest()))
    steps = np.floor(np.arange(len(drawn) + 1) * task.dev_share + 0.5)
    taken = {text for text, takes in zip(drawn, np.diff(steps) > 0, strict=True) if takes}
    dev = {key for key, text in zip(keys, texts, strict=True) if text in taken}
    chosen = np.array([key in dev for key in keys], bool)
    if not chosen.any() or chosen.all():
        raise InputError(
            f"{rows.info.description}: dev_share {task.dev_share:g} of {len(groups):,} different texts leaves no "
            f"row on a side; task {task.name!r} needs more rows, or dev rows of its own"
        )
    return chosen


def stratum(label: int | float | list, words: bool) -> Hashable:
    """What rows have in common that are drawn alike: the label, or of a list of tags which tags there are. A missing
    score is the last."""
    if isinstance(label, list):
        return tuple(sorted(set(label))) if words else tuple(label)
    return math.inf if label != label else label


def text_keys(rows: Dataset) -> list[tuple[str, ...]]:
    """What the texts of clean rows are compared by: their words without case, white space and punctuation; of a text
    without words all of it."""
    texts = [rows[name][:] for name in ("text", "text_pair") if name in rows.column_names]
    plain = [[" ".join(re.findall(r"\w+", text.casefold())) or text.strip() for text in column] for column in texts]
    return list(zip(*plain, strict=True))
