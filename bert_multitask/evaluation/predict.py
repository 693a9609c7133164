"""The logits of a model on rows, in batches of similar length: the loop below every prediction outside of training."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset

from ..data.collate import Collator, join_rows
from ..model.kinds import KINDS
from ..model.losses import UNLABELLED
from ..model.modeling import MultitaskBertModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@torch.inference_mode()
def predict_tasks(
    model: MultitaskBertModel,
    tasks: Sequence[str],
    tokens: Dataset | Mapping[str, list],
    batch_size: int,
    progress: Callable[[int], object] | None = None,
    bf16: bool = False,
) -> dict[str, np.ndarray]:
    """The logits of a model on rows. Rows of similar length make a batch; a shared encoder runs once for all tasks.

    Args:
        model: on the device to use; it is put in evaluation mode.
        tasks: names of the tasks that the rows are tokenised for.
        tokens: rows of `tokenise`, or the columns that `encode` gives, N.
        batch_size: rows at a time.
        progress: is called with the number of rows of each batch that is done.
        bf16: whether the encoder computes in bfloat16, by autocast; heads always compute in fp32.

    Returns:
        Logits of each task in the rows' own order, fp32, (N, C), (N,), or (N, L, …) with zeros beyond a row's tokens.
    """
    separate = model.is_separate(model.tasks[tasks[0]])
    lengths = [sum(map(len, row)) if separate else len(row) for row in tokens["input_ids"][:]]
    order = np.argsort(lengths, kind="stable")[::-1]  # the longest first: what does not fit into memory fails at once
    collate = Collator(model.config.pad_token_id or 0)
    model.eval()
    logits: dict[str, list[torch.Tensor]] = {task: [] for task in tasks}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):  # around all batches: it keeps cast weights
        for start in range(0, len(order), batch_size):
            rows = read_rows(tokens, order[start : start + batch_size].tolist())
            inputs = collate([{"task": tasks[0], "labels": UNLABELLED} | row for row in rows])
            found = model.forward_all(tasks, *(inputs[name].to(model.device) for name in INPUTS))
            for task, values in found.items():
                logits[task].append(values.float().cpu())
            if progress:
                progress(len(rows))
    back = np.argsort(order)
    return {
        task: join_rows(parts, 0).numpy()[back] if parts else no_logits(model, task) for task, parts in logits.items()
    }


def group_alike(names: Iterable[str], alike: Callable[[str, str], bool]) -> list[list[str]]:
    """The names, those that are alike together: what has the same rows needs one pass of a shared encoder."""
    groups: list[list[str]] = []
    for name in names:
        if group := next((group for group in groups if alike(group[0], name)), None):
            group.append(name)
        else:
            groups.append([name])
    return groups


def read_rows(tokens: Dataset | Mapping[str, list], numbers: list[int]) -> list[dict]:
    """The tokens of the rows of these numbers."""
    if isinstance(tokens, Dataset):
        tokens, numbers = tokens[numbers], range(len(numbers))
    return [{name: tokens[name][number] for name in ("input_ids", "token_type_ids")} for number in numbers]


def no_logits(model: MultitaskBertModel, task: str) -> np.ndarray:
    """Logits of no rows."""
    outputs = KINDS[model.tasks[task].kind].outputs(model.tasks[task])
    return np.zeros((0, outputs) if outputs > 1 else 0, np.float32)
