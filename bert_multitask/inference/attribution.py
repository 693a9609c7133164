"""Which words moved an answer: gradient × input on the word embeddings, the gradient that SMART climbs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from ..model.kinds import KINDS
from .pipeline import ONE_CALL, MultitaskPipeline, plain_texts

Pieces = list[tuple[str, float | None]]  # parts of a text, which joined are the text, with their contributions


def gradient_times_input(function: Callable[[Tensor], Tensor], embeddings: Tensor) -> Tensor:
    """What each embedding adds to a number, as far as the number changes in proportion.

    Args:
        function: embeddings -> numbers (B,), each of its own row alone.
        embeddings: float (B, …, H).

    Returns:
        (B, …): ∂ number / ∂ embedding · embedding.
    """
    embeddings = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(embeddings).sum(), embeddings)
    return (gradient * embeddings.detach()).sum(-1)


def explain(pipe: MultitaskPipeline, task: str, row: Any) -> list[Pieces] | None:
    """Which words moved the answer to a row: what each adds to the answer's log odds or score (`Kind.evidence`).

    Args:
        pipe: which answers.
        task: name of one of its tasks.
        row: a text, a pair or a dictionary, as of a call of the pipeline.

    Returns:
        Of each text its words in order, each with the white space after it, and with the sum over its tokens; what was
        cut off comes last, with None. None where the task's kind has no such number.

    Raises:
        InputError: as of a call of the pipeline.
    """
    spec = pipe.find(task)
    texts = [column[0] for column in plain_texts(spec, [row])]
    options = {"truncation": "longest_first", "padding": True, "return_tensors": "pt"}
    with ONE_CALL:
        model, tokenizer = pipe.load()
        separate, kind = model.is_separate(spec), KINDS[spec.kind]
        rows = [texts] if separate else [[text] for text in texts]
        encoded = tokenizer(*rows, max_length=pipe.max_length, **options).to(model.device)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids, mask, segments = (encoded[name].unsqueeze(0) if separate else encoded[name] for name in names)
    model.eval()
    with torch.no_grad():
        if kind.evidence(spec, model(task, ids, mask, segments).logits) is None:
            return None
    moved = gradient_times_input(
        lambda words: kind.evidence(
            spec, model(task, inputs_embeds=words, attention_mask=mask, token_type_ids=segments).logits
        ),
        model.encoder(task).get_input_embeddings()(ids),
    )
    moved = moved.view(-1, moved.shape[-1]).tolist()  # (sequences, tokens)
    return [
        cut_words(text, encoded, moved, number if separate else 0, 0 if separate else number)
        for number, text in enumerate(texts)
    ]


def cut_words(text: str, encoded: BatchEncoding, moved: list[list[float]], sequence: int, part: int) -> Pieces:
    """A text as its words with their contributions.

    Args:
        text: the text.
        encoded: the row's tokens.
        moved: what each token adds, of each sequence.
        sequence: which one has the text.
        part: which of the sequence's texts it is.
    """
    encoding = encoded.encodings[sequence]
    sums: dict[int, float] = {}
    starts: dict[int, int] = {}
    end = 0
    tokens = zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, moved[sequence], strict=True)
    for found, word, (start, stop), value in tokens:
        if found == part and word is not None:
            starts.setdefault(word, start)
            sums[word] = sums.get(word, 0.0) + value
            end = stop
    end = len(text) if not text[end:].split() else end
    cuts = [0, *list(starts.values())[1:], end] if starts else [0]
    pieces: Pieces = [(text[a:b], value) for a, b, value in zip(cuts, cuts[1:], sums.values(), strict=False)]
    return pieces + ([(text[cuts[-1] :], None)] if text[cuts[-1] :] else [])
