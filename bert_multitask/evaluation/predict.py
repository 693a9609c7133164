"""The logits of a model on rows, in batches of similar length; predictions of plain strings."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedTokenizerBase

from ..data.collate import Collator, join_rows
from ..data.tokens import encode
from ..model.kinds import KINDS
from ..model.losses import UNLABELLED
from ..model.modeling import MultitaskBertModel
from .tables import plain_texts, prediction_table


@torch.inference_mode()
def predict_logits(model: MultitaskBertModel, task: str, tokens: Dataset, batch_size: int) -> np.ndarray:
    """Run a model on rows in batches of similar length.

    Args:
        model: on the device to use; it is put in evaluation mode.
        task: name of one of its tasks.
        tokens: rows of `tokenise`, N.
        batch_size: rows at a time.

    Returns:
        Logits in the rows' own order, fp32, (N, C), (N,), or (N, L, …) with zeros beyond a row's tokens.
    """
    separate = model.is_separate(model.tasks[task])
    lengths = [sum(map(len, row)) if separate else len(row) for row in tokens["input_ids"][:]]
    order = np.argsort(lengths, kind="stable")[::-1]  # the longest first: what does not fit into memory fails at once
    batches = BatchSampler(order.tolist(), batch_size, drop_last=False)
    loader = DataLoader(tokens, batch_sampler=batches, collate_fn=Collator(model.config.pad_token_id or 0))
    model.eval()
    logits = []
    for inputs in loader:
        del inputs["labels"]
        inputs = {key: value.to(model.device) for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        logits.append(model(task, **inputs).logits.float().cpu())
    if not logits:
        outputs = KINDS[model.tasks[task].kind].outputs(model.tasks[task])
        return np.zeros((0, outputs) if outputs > 1 else 0, np.float32)
    return join_rows(logits, 0).numpy()[np.argsort(order)]


def predict(
    model: MultitaskBertModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rows: Iterable[str] | Iterable[tuple[str, str]] | Iterable[Mapping[str, str]],
    batch_size: int = 64,
    max_length: int = 512,
) -> Dataset:
    """Predict plain strings.

    Args:
        model: on the device to use; it is put in evaluation mode.
        tokenizer: the model's.
        task: name of one of its tasks.
        rows: texts, or (text, text) pairs for a pair task; or dictionaries of `text`, and `text_pair` for a pair task.
            Where each word has a label a text may be a list of words.
        batch_size: rows at a time.
        max_length: tokens a row may have; longer rows are cut, also to what the model can take.

    Returns:
        `prediction_table` of the rows, with their numbers, from 0, as ids.

    Raises:
        InputError: the model has no such task, or a row is none of the above; the message names its number.
    """
    model.check_task(task)
    spec = model.tasks[task]
    max_length = min(max_length, model.config.max_position_embeddings)
    texts = plain_texts(spec, rows)
    count = len(texts[0])
    columns = {"input_ids": [], "token_type_ids": [], "word_starts": []}
    if count:
        encoded = encode(tokenizer, texts, max_length, model.is_separate(spec), KINDS[spec.kind].words)
        columns = {name: encoded[name] for name in columns if name in encoded}
    tokens = Dataset.from_dict({"task": [task] * count, "labels": [UNLABELLED] * count} | columns)
    logits = predict_logits(model, task, tokens, batch_size)
    return prediction_table(spec, list(map(str, range(count))), logits, tokens)
