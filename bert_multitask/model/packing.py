"""Dropping the padding of a batch: where its real tokens lie, and which rows attention takes together.

Shapes: B rows, L padded length, T real tokens of the batch, A heads.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .errors import InputError

BUCKET_STEP = 8  # tokens; on a CPU, rows whose lengths are the same when rounded up to this share a bucket


class Bucket(NamedTuple):
    """Rows of similar length, b of them, neighbours among the packed tokens, t of them; l is the longest's length."""

    tokens: int  # t
    attention_mask: Tensor  # (b, l)
    places: Tensor | None  # (t,), where in b * l each token lies; None where there is nothing between them

    def pad(self, packed: Tensor) -> Tensor:
        """(t, ...) -> (b, l, ...), zero where there is no token."""
        shape = self.attention_mask.shape
        if self.places is not None:
            packed = packed.new_zeros(shape.numel(), *packed.shape[1:]).index_copy(0, self.places, packed)
        return packed.unflatten(0, shape)

    def pack(self, padded: Tensor) -> Tensor:
        """(b, l, ...) -> (t, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


class Packing:
    """Where the real tokens lie in a padded batch. They are packed row after row, the longest row first.

    The first token of a row counts as real even when the mask hides it (padding on the left): the [CLS] embedding is
    read there. No other token attends to it then.

    Args:
        attention_mask: 1 or True for real tokens, shape (B, L).

    Raises:
        InputError: the model is being traced by `torch.export` or `torch.jit.trace`; the graph would hold the number of
            tokens of the example.
    """

    def __init__(self, attention_mask: Tensor):
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise InputError(
                "this encoder drops padding, so a traced graph would hold for batches of its example's lengths alone; "
                "trace a stock model: export_encoder(model, task), or export_classifier(model, task) of a task on "
                "'cls' or 'pooler' whose pairs are encoded jointly"
            )
        self.shape = attention_mask.shape
        columns = torch.arange(self.shape[1], device=attention_mask.device)
        real = attention_mask.bool() | (columns == 0)
        lengths, self.order = (real * (columns + 1)).amax(1).sort(descending=True, stable=True)
        real = real[self.order]
        rows, places = real.nonzero(as_tuple=True)
        self.index = self.order[rows] * self.shape[1] + places
        counts, mask = real.sum(1), attention_mask[self.order]
        # Of each row, in packed order, and the end of the last; int32, as attention kernels take them.
        self.begins = functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        self.first = self.begins[:-1].long()
        # At once, since each transfer has the CPU wait for an accelerator.
        lengths, counts, unhidden = torch.stack((lengths, counts, mask[:, 0].bool().long())).tolist()
        self.longest = max(counts)  # tokens
        self.is_exact = all(unhidden)  # no token is packed that the mask hides
        self.buckets = list(self.bucket(mask, rows, places, lengths, counts))

    def bucket(self, mask: Tensor, rows: Tensor, places: Tensor, lengths: list, counts: list) -> Iterator[Bucket]:
        """Cut the sorted rows into buckets: by length on a CPU, where attention between padding costs much; elsewhere
        into one, because launching kernels costs more there."""
        step = BUCKET_STEP if mask.device.type == "cpu" else self.shape[1]
        row = token = 0
        for _, group in itertools.groupby(lengths, key=lambda length: -(-length // step)):
            size, length = len(list(group)), lengths[row]
            tokens = sum(counts[row : row + size])
            inside = slice(token, token + tokens)
            within = None if tokens == size * length else (rows[inside] - row) * length + places[inside]
            yield Bucket(tokens, mask[row : row + size, :length], within)
            row, token = row + size, token + tokens

    def flash_arguments(self, first_token_only: bool) -> dict[str, Tensor | int]:
        """Where the rows of packed queries and keys begin, and the longest, as Transformers' flash attention takes them
        (`FlashAttentionKwargs`); a row has one query where its first token alone attends."""
        keys = self.begins
        queries = torch.arange(len(keys), dtype=torch.int32, device=keys.device) if first_token_only else keys
        longest = 1 if first_token_only else self.longest
        return {"cu_seq_lens_q": queries, "cu_seq_lens_k": keys, "max_length_q": longest, "max_length_k": self.longest}

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (T, ...), the real tokens."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def pad(self, packed: Tensor) -> Tensor:
        """(T, ...) -> (B, L, ...), zero where there is no real token."""
        flat = packed.new_zeros(self.shape.numel(), *packed.shape[1:]).index_copy(0, self.index, packed)
        return flat.unflatten(0, self.shape)

    def unsort(self, rows: Tensor) -> Tensor:
        """(B, ...), one entry a row in packed order -> the same in the batch's order."""
        return rows.index_select(0, self.order.argsort())

    def pad_weights(self, weights: Sequence[Tensor]) -> Tensor:
        """The buckets' attention weights (b, A, l, l) -> (B, A, L, L), zero between padding."""
        padded = [functional.pad(part, (0, self.shape[1] - part.shape[-1]) * 2) for part in weights]
        return self.unsort(torch.cat(padded))
