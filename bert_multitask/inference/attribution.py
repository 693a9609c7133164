"""Which words moved an answer: gradient × input on the word embeddings."""

import re
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Encoding
from torch import Tensor

from ..data.collate import Collator
from ..data.tokens import kept_tokens
from ..evaluation.predict import INPUTS
from ..model.kinds import KINDS
from ..model.losses import UNLABELLED
from .pipeline import ONE_CALL, MultitaskPipeline, plain_texts

Pieces = list[tuple[str, float | None]]  # the parts of a text, in order and without gaps, with their contributions


def gradient_times_input(function: Callable[[Tensor], Tensor], embeddings: Tensor) -> Tensor:
    """What each embedding adds to a number, to first order: ∂ number / ∂ embedding · embedding, (B, …).

    Args:
        function: embeddings -> numbers (B,), each of its own row alone.
        embeddings: float (B, …, H).
    """
    embeddings = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(embeddings).sum(), embeddings)
    return (gradient * embeddings.detach()).sum(-1)


def explain(pipe: MultitaskPipeline, task: str, row: Any) -> list[Pieces] | None:
    """What each word of a row adds to the answer's log odds or score (`Kind.evidence`).

    Args:
        pipe: which answers.
        task: name of one of its tasks.
        row: a text, a pair or a dictionary, as in a call of the pipeline.

    Returns:
        For each text its words in order, each with the white space after it and the sum over its tokens. A part that
        was cut off has None. None where the task's kind has no such number.

    Raises:
        InputError: as in a call of the pipeline.
    """
    spec = pipe.find(task)
    texts = [column[0] for column in plain_texts(spec, [row])]
    with ONE_CALL:
        model, tokenizer = pipe.load()
        separate, kind = model.is_separate(spec), KINDS[spec.kind]
        tokens = pipe.encode(tokenizer, [[text] for text in texts], spec)
        prompts = [spec.prompt, spec.prompt if separate else ""][: len(texts)]
        full = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        whole = [text.split() if spec.by_words else text for text in full]
        rows = [whole] if separate else [[text] for text in whole]
        encoded = tokenizer(*rows, is_split_into_words=spec.by_words, verbose=False).encodings
    inputs = {name: tokens[name][0] for name in ("input_ids", "token_type_ids")}
    batch = Collator(tokenizer.pad_token_id or 0)([inputs | {"task": task, "labels": UNLABELLED}])
    ids, mask, segments = (batch[name].to(model.device) for name in INPUTS)
    model.eval()

    def evidence(words: Tensor) -> Tensor | None:
        """The evidence for the answer from the words' embeddings."""
        outputs = model(task, inputs_embeds=words, attention_mask=mask, token_type_ids=segments)
        return kind.evidence(spec, outputs.logits)

    words = model.encoder(task).get_input_embeddings()(ids)
    with torch.no_grad():
        if evidence(words) is None:
            return None
    moved = gradient_times_input(evidence, words)
    moved = moved.view(-1, moved.shape[-1]).tolist()  # (sequences, tokens)
    pieces = []
    for number, text in enumerate(full):
        sequence, part = (number, 0) if separate else (0, number)
        places = kept_tokens(encoded[sequence].sequence_ids, pipe.max_length, spec.truncation)
        found = cut_words(text, encoded[sequence], places, moved[sequence], part, spec.by_words)
        pieces.append(without_start(found, len(prompts[number])))
    return pieces


def without_start(pieces: Pieces, length: int) -> Pieces:
    """The pieces of a text without those of its first `length` letters, its prompt."""
    kept = []
    for piece, value in pieces:
        if length < len(piece):
            kept.append((piece[length:], value))
        length = max(0, length - len(piece))
    return kept


def cut_words(
    text: str, encoding: Encoding, places: list[int] | None, moved: list[float], part: int, by_words: bool
) -> Pieces:
    """A text as the tokenizer's words with their contributions.

    Args:
        text: the text.
        encoding: all tokens of its sequence.
        places: which of them were kept; None, all.
        moved: what each kept token adds.
        part: the number of the text in the sequence.
        by_words: whether the sequence was given word by word: then offsets count from the beginning of each word.
    """
    words = [found.start() for found in re.finditer(r"\S+", text)] if by_words else []
    kept = range(len(encoding.ids)) if places is None else places
    left_out = {place for place, found in enumerate(encoding.sequence_ids) if found == part} - {*kept}
    marks: list[list] = []  # where each piece begins, and its contribution
    end, last = 0, -1
    for place, value in zip(kept, moved, strict=False):
        word, (start, stop) = encoding.word_ids[place], encoding.offsets[place]
        if encoding.sequence_ids[place] != part or word is None:
            continue
        if by_words:
            start, stop = words[word] + start, words[word] + stop
        is_gap = not left_out.isdisjoint(range(last + 1, place))
        if is_gap:
            marks.append([end, None])
        if is_gap or not marks or word != encoding.word_ids[last]:
            marks.append([start if marks else 0, 0.0])
        marks[-1][1] += value
        end, last = stop, place
    if text[end:].split() or (text and not marks):
        marks.append([end, None])
    cuts = [start for start, _ in marks[1:]] + [len(text)]
    return join_white_space([(text[a:b], value) for (a, value), b in zip(marks, cuts, strict=False)])


def join_white_space(pieces: Pieces) -> Pieces:
    """Move the white space before a piece, as byte-level tokenizers have it, behind the piece before it. A token of
    white space alone is added to the word before it."""
    joined: Pieces = []
    for piece, value in pieces:
        word = piece.lstrip()
        if value is None and not piece:
            continue
        if value is None or not joined or (joined[-1][1] is None and not word):
            joined.append((piece, value))
        elif not word or not joined[-1][0].strip():
            joined[-1] = (joined[-1][0] + piece, joined[-1][1] + value)
        else:
            joined[-1] = (joined[-1][0] + piece[: len(piece) - len(word)], joined[-1][1])
            joined.append((word, value))
    return [(piece, value) for piece, value in joined if piece]  # a text without characters has no word
