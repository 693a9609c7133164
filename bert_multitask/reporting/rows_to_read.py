"""Rows worth reading: those whose label may be wrong, and near-duplicates of training rows."""

from itertools import permutations
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import linear_kernel
from sklearn.utils import gen_batches

from ..data.rows import take
from .analysis import LabelledPredictions, row_texts

# Rows, training rows and letters that are compared at most.
COMPARED, COMPARED_TRAIN, COMPARED_LETTERS = 2_000, 20_000, 500
BATCH = 200  # rows that are compared at a time
NEAR = 0.8  # similarity, from 0 to 1, from which a row is a near-duplicate


def doubtful_labels(part: LabelledPredictions) -> np.ndarray:
    """(N,): whether a label may be wrong, by confident learning (Northcutt et al., 2021): another class is predicted,
    with at least the mean probability that this class has in the rows labelled with it.

    All False for tasks with several labels a row, and for predictions without probabilities.
    """
    if part.labels.ndim > 1 or part.distributions is None:
        return np.zeros(len(part), bool)
    usual = np.full(part.probabilities.shape[1], np.inf)
    for label in np.unique(part.labels):
        usual[label] = part.probabilities[part.labels == label, label].mean()
    chance = np.take_along_axis(part.probabilities, part.predicted[:, None], axis=1)[:, 0]
    return (part.predicted != part.labels) & (chance >= usual[part.predicted])


class NearDuplicates(NamedTuple):
    """Rows with a nearly equal row in the training split, the most similar first.

    Attributes:
        rows: their numbers (D,).
        train: the numbers of the training rows (D,).
        similarity: of the two rows (D,), 1 for the same words (see `similarities`).
        compared: how many rows were compared.
        compared_train: with how many training rows.
    """

    rows: np.ndarray
    train: np.ndarray
    similarity: np.ndarray
    compared: int
    compared_train: int


def near_duplicates(part: LabelledPredictions, train: Dataset) -> NearDuplicates:
    """Find rows whose texts begin like those of a clean training row. Of many rows a sample, drawn with a fixed seed,
    is compared."""
    rng = np.random.default_rng(0)
    rows, known = (
        np.sort(rng.choice(count, min(count, most), replace=False))
        for count, most in ((len(part), COMPARED), (len(train), COMPARED_TRAIN))
    )
    ours = [part.texts[row] for row in rows]
    theirs = row_texts(take(train, known))
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), dtype=np.float32, preprocessor=beginning)
    try:
        vectors.fit([text for texts in theirs for text in texts])
    except ValueError:  # no text has a letter
        return NearDuplicates(*(np.zeros(0, int),) * 3, len(rows), len(known))
    ours, theirs = ([vectors.transform(texts) for texts in zip(*both, strict=True)] for both in (ours, theirs))
    best = []
    for batch in gen_batches(len(rows), BATCH):
        found = similarities([texts[batch] for texts in ours], theirs)
        best.append((found.argmax(1), found.max(1)))
    nearest, similarity = map(np.concatenate, zip(*best, strict=True))
    order = np.argsort(-similarity, kind="stable")
    order = order[similarity[order] >= NEAR]
    return NearDuplicates(rows[order], known[nearest[order]], similarity[order], len(rows), len(known))


def beginning(text: str) -> str:
    """The part of a text that is compared."""
    return text[:COMPARED_LETTERS].casefold()


def similarities(ours: list, theirs: list) -> np.ndarray:
    """(N, T): cosines of N rows with T others. Of pairs it is the lower cosine of their texts, in the better order.

    Args:
        ours: unit vectors of the rows' texts, one sparse matrix (N, V) for each text of a row.
        theirs: the same of the others, (T, V).
    """
    orders = permutations(theirs)
    return np.maximum.reduce([np.minimum.reduce(list(map(linear_kernel, ours, texts))) for texts in orders])
