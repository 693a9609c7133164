"""Predictions, in the rows' own order: as a table, and in the course's file form."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .collate import Collator
from .configuration import InputError
from .data import encode
from .heads import MultitaskBertModel
from .losses import UNLABELLED
from .metrics import decide
from .tasks import Task


def prediction_table(task: Task, ids: Sequence[str], logits: np.ndarray) -> Dataset:
    """One row a prediction, in the order of the ids.

    Args:
        task: whose predictions.
        ids: of the rows, N.
        logits: as the model gives them, (N, C) or (N,).

    Returns:
        `id`, and `score` (similarity) or `label` (a class) with `probabilities` (one for each class, summing to 1).
    """
    logits = torch.from_numpy(np.asarray(logits, dtype=np.float32))
    decisions = decide(task, logits.numpy())
    if task.kind == "similarity":
        return Dataset.from_dict({"id": list(ids), "score": decisions})
    if task.kind == "binary":
        logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)  # softmax of (0, x) is (1 - p, p)
    return Dataset.from_dict({"id": list(ids), "label": decisions, "probabilities": logits.softmax(-1).tolist()})


def write_predictions(task: Task, table: Dataset, path: Path) -> None:
    """Write `path`.parquet, and `path`.csv in the course's form: `id \\t Predicted_X`, then `id , value` lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = table["score" if task.kind == "similarity" else "label"]
    with open(f"{path}.csv", "w", encoding="utf-8") as file:
        file.write(f"id \t {task.prediction_column} \n")
        file.writelines(f"{row_id} , {value} \n" for row_id, value in zip(table["id"], values, strict=True))
    table.to_pandas().to_parquet(f"{path}.parquet", index=False)  # without the progress bar of Dataset.to_parquet


@torch.inference_mode()
def predict(
    model: MultitaskBertModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rows: Sequence[str] | Sequence[tuple[str, str]],
    batch_size: int = 64,
    max_length: int = 512,
) -> Dataset:
    """Predict plain strings.

    Args:
        model: on the device to use; it is put in evaluation mode.
        tokenizer: the model's.
        task: name of one of its tasks.
        rows: texts, or (text, text) pairs for a pair task.
        batch_size: rows at a time.
        max_length: tokens a row may have; longer rows are cut, also to what the model can take.

    Returns:
        `prediction_table` of the rows, with their numbers, from 0, as ids.

    Raises:
        InputError: the model has no such task, or the rows are texts where it takes pairs, or the other way round.
    """
    if task not in model.tasks:
        raise InputError(f"this model has no task {task!r}; it has {', '.join(model.tasks)}")
    spec = model.tasks[task]
    pairs = spec.text_pair is not None
    max_length = min(max_length, model.config.max_position_embeddings)
    if isinstance(rows, str):
        raise InputError(f"rows is the string {rows!r}; expected a list of rows")
    for number, row in enumerate(rows):
        if isinstance(row, str) == pairs or not (isinstance(row, str) or len(row) == 2):
            expected = "a pair of texts" if pairs else "a text"
            raise InputError(f"rows[{number}] is {row!r}; task {task!r} takes {expected}")
    model.eval()
    collate = Collator(model.config.pad_token_id or 0)
    logits = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        texts = list(map(list, zip(*batch, strict=True))) if pairs else [list(batch)]
        encoded = encode(tokenizer, texts, max_length, model.is_separate(spec))
        inputs = collate(
            [
                {"task": task, "labels": UNLABELLED, "input_ids": ids, "token_type_ids": segments}
                for ids, segments in zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
            ]
        )
        inputs = {key: value.to(model.device) for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        del inputs["labels"]
        logits.append(model(task, **inputs).logits.float().cpu())
    empty = np.zeros((0, len(spec.label_names)) if spec.kind == "classification" else 0)
    return prediction_table(spec, list(map(str, range(len(rows)))), torch.cat(logits).numpy() if logits else empty)
