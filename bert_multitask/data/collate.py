"""Rows of one task, or of a group of tasks → one padded batch of tensors."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model.losses import no_label
from ..model.packing import Packing
from .labels import even_labels

LENGTH_STEP, TOKEN_STEP = 32, 128  # of a batch whose shapes are rounded
FILLER = -1  # row index of a share that has no row: the batch is smaller than the number of shares


class TaskRows(torch.utils.data.Dataset):
    """The training rows of all tasks and groups, addressed by (task, row) as `PlanSampler` yields them.

    Args:
        tasks: {task or group: tokenised rows} (see `token_rows.join_groups`).
    """

    def __init__(self, tasks: Mapping[str, Dataset]):
        self.tasks = tasks

    def __len__(self) -> int:
        return sum(map(len, self.tasks.values()))

    def __getitems__(self, keys: Sequence[tuple[str, int]]) -> list[dict]:
        """The rows of one batch, read at once. A FILLER is the task's first row without its label: it adds nothing to
        the loss."""
        task = keys[0][0]
        columns = self.tasks[task][[max(row, 0) for _, row in keys]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        missing = {"labels": without_label(rows[0]["labels"])}
        return [row | missing if key[1] == FILLER else row for key, row in zip(keys, rows, strict=True)]


class Collator:
    """Pads the rows of one task to the longest of them.

    Args:
        pad_token_id: vocabulary index of padding.
        packs: whether to add the `Packing` of a batch, for encoders that take one (`MultitaskBertModel.takes_packing`).
            Here it is made on the CPU, once for all passes of a step, and perhaps by a worker.
        twice: tasks and groups whose rows are predicted twice in training (R-Drop).
        rounds: whether to round the length of a batch, and the tokens of its packing, up to multiples of LENGTH_STEP
            and TOKEN_STEP, so that few shapes recur; not for tasks with a label for each token.
    """

    def __init__(self, pad_token_id: int, packs: bool = False, twice: Collection[str] = (), rounds: bool = False):
        self.pad_token_id, self.packs, self.twice, self.rounds = pad_token_id, packs, twice, rounds

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor | Packing | str]:
        """Args: rows of `tokenise`, B of them, all of one task. Where they have an `attention_mask`, as rows that are
        padded already, its zeros are left out.

        Returns:
            `task`, its name; `input_ids`, `attention_mask` and `token_type_ids`, integer (B, L), or (B, 2, L) where a
            row is two sequences; `labels` (B,), integer classes or fp32 scores, or (B, …) where a label is a list,
            filled up with the mark of a missing one; `soft_labels` (B, …) where rows have them; of a group, both are
            {task: such a tensor}; `packing` if asked for, of (2B, L) where a row is two sequences. For example rows of
            3 and 2 tokens give attention_mask [[1, 1, 1], [1, 1, 0]].

        Raises:
            ValueError: the rows are of several tasks.
        """
        tasks = {row["task"] for row in rows}
        if len(tasks) != 1:
            raise ValueError(f"a batch has rows of one task, not of {', '.join(sorted(tasks))}")
        separate = isinstance(rows[0]["input_ids"][0], Sequence)

        def sequences(column: str) -> list[Sequence]:
            """A column's sequences of real tokens, two of a row that is two."""
            values = [row[column] for row in rows]
            if "attention_mask" in rows[0]:
                values = [real_tokens(row[column], row["attention_mask"]) for row in rows]
            return list(chain.from_iterable(values)) if separate else values

        def pad(column: str, value: int) -> Tensor:
            """A column as a tensor, its sequences filled up with the value."""
            tokens = torch.from_numpy(np.fromiter(chain.from_iterable(sequences(column)), np.int64))
            padded = torch.full(real.shape, value)
            padded[real] = tokens  # refuses another number of tokens
            return padded.unflatten(0, (-1, 2)) if separate else padded

        lengths = torch.tensor([len(sequence) for sequence in sequences("input_ids")])
        step, longest = LENGTH_STEP if self.rounds else 1, int(lengths.max())
        real, task = torch.arange(-(-longest // step) * step) < lengths[:, None], tasks.pop()
        batch = {
            "task": task,
            "input_ids": pad("input_ids", self.pad_token_id),
            "attention_mask": (real.unflatten(0, (-1, 2)) if separate else real).long(),
            "token_type_ids": pad("token_type_ids", 0),
            "labels": stack_labels([row["labels"] for row in rows]),
        }
        if soft := [row["soft_labels"] for row in rows if row.get("soft_labels") is not None]:
            batch["soft_labels"] = stack_labels(soft)
        if self.packs:
            step = TOKEN_STEP if self.rounds else None
            batch["packing"] = Packing(batch["attention_mask"].flatten(0, -2), task in self.twice, step)
        return batch


def stack_labels(labels: Sequence) -> Tensor | dict[str, Tensor]:
    """The labels of rows as a tensor, or of a group as {task: tensor} (see `Collator`)."""
    if isinstance(labels[0], Mapping):
        return {name: stack_labels([label[name] for label in labels]) for name in labels[0]}
    return torch.tensor(even_labels(labels))


def real_tokens(values: Sequence, mask: Sequence) -> list:
    """The values, of a row or of both texts of a pair, where the mask is not 0."""
    if isinstance(mask[0], Sequence):
        return [real_tokens(*pair) for pair in zip(values, mask, strict=True)]
    return [value for value, real in zip(values, mask, strict=True) if real]


def without_label(label: float | list | dict) -> float | list | dict:
    """A label of the same form that is missing."""
    if isinstance(label, Mapping):
        return {name: without_label(part) for name, part in label.items()}
    return [without_label(part) for part in label] if isinstance(label, list) else no_label(isinstance(label, float))


def join_rows(parts: Sequence[Tensor], fill: float) -> Tensor:
    """The rows of several batches, (B, …) each, as one tensor; rows with fewer places along their first axis are filled
    up, as tokens of batches of different length."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    return pad_sequence([row for part in parts for row in part], True, fill)
