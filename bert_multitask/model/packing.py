"""Removing the padding of a batch: where its real tokens are, and which rows attention processes together.

Shapes: B rows, L padded length, T real tokens of the batch, A heads.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from .errors import InputError

BUCKET_STEP = 8  # tokens; on a CPU, rows share a bucket if their lengths, rounded up to a multiple of it, are the same


class Bucket(NamedTuple):
    """Rows of similar length that attention processes together: b rows with t tokens, the longest of length l. They are
    neighbours among the packed rows."""

    tokens: int  # t
    attention_mask: Tensor  # (b, l)
    places: Tensor | None  # (t,), the place of each token in b * l; None if there is no padding

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
    """Where the real tokens of a padded batch are. They are packed row after row, the longest row first.

    The first token of a row is always packed, because the [CLS] embedding is read there. If the mask hides it (padding
    on the left), no other token attends to it.

    The number of tokens is a shape, so making a packing from a mask on an accelerator waits for the device. Training
    batches therefore have a packing made on the CPU (`data.collate.Collator`). It can be pinned and moved as tensors.

    Args:
        attention_mask: 1 or True for real tokens, shape (B, L).
        twice: whether to make `twice`, too, for R-Drop.
        token_step: if given, T becomes a multiple of it: a further row, the last, gets 1 to `token_step` filler tokens.
            They are copies of the batch's first token, and nothing reads them.

    Attributes:
        shape: (B, L).
        index: the place of each packed token in B * L, integer (T,).
        inverse: the place of each of the batch's rows among the packed rows, integer (B,).
        begins: where each packed row begins, and the end of the last one, int32 (B + 1,), as attention kernels need it;
            with filler (B + 2,).
        first: where each packed row begins, integer (B,); with filler (B + 1,).
        mask: the attention mask of the packed rows, (B, L).
        longest: tokens of the longest row; with filler an upper bound that depends only on L.
        is_exact: whether the mask hides no packed token.
        twice: the packing of these rows followed by themselves, (2B, L), or None.

    Raises:
        InputError: the model is being traced by `torch.export` or `torch.jit.trace`. The graph would be valid only for
            the number of tokens of the example.
    """

    def __init__(self, attention_mask: Tensor, twice: bool = False, token_step: int | None = None):
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise InputError(
                "this encoder removes padding, so a traced graph would be valid only for rows as long as its "
                "example's; trace a stock model: export_encoder(model, task), or export_classifier(model, task) if the "
                "task has pooling 'cls' or 'pooler' and its pairs are encoded jointly"
            )
        self.shape = attention_mask.shape
        columns = torch.arange(self.shape[1], device=attention_mask.device)
        real = attention_mask.bool() | (columns == 0)
        lengths, order = (real * (columns + 1)).amax(1).sort(descending=True, stable=True)
        self.inverse = order.argsort()
        real, self.mask = real[order], attention_mask[order]
        rows, places = real.nonzero(as_tuple=True)
        self.index = order[rows] * self.shape[1] + places
        counts = real.sum(1)
        self.begins = functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        self.has_filler = token_step is not None
        if token_step:
            self.index = functional.pad(self.index, (0, token_step - len(self.index) % token_step))
            self.begins = functional.pad(self.begins, (0, 1), value=len(self.index))
        self.first = self.begins[:-1].long()
        # In packed order: a row's length up to its last real token, the number of its real tokens, and whether its
        # first token is one of them. In one transfer, since each makes the CPU wait for an accelerator.
        self.lengths, self.counts, unhidden = torch.stack((lengths, counts, self.mask[:, 0].bool().long())).tolist()
        self.longest = max(self.shape[1], token_step) if token_step else max(self.counts)
        self.is_exact = all(unhidden)
        self.twice = Packing(torch.cat([attention_mask] * 2), token_step=token_step) if twice else None

    def fits(self, attention_mask: Tensor) -> bool:
        """Whether this is the packing of a mask (B, L); waits for the device."""
        return self.shape == attention_mask.shape and torch.equal(self.unsort(self.mask).bool(), attention_mask.bool())

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with each tensor changed by a function."""
        copied = copy.copy(self)
        vars(copied).pop("buckets", None)  # computed from the tensors, differently on a CPU
        for name, value in vars(copied).items():
            if isinstance(value, Tensor):
                setattr(copied, name, function(value))
            elif isinstance(value, Packing):
                setattr(copied, name, value.map(function))
        return copied

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """A copy on another device; arguments are those of `Tensor.to`."""
        return self.map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """A copy in pinned memory, which moves to a GPU without waiting; PyTorch's data loaders call this."""
        return self.map(Tensor.pin_memory)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The packed rows in buckets. On a CPU rows of similar length share one, because attention on padding costs
        much there. Elsewhere all rows share one, because launching more kernels costs more."""
        if self.has_filler:
            return [self.whole_bucket()]
        step = BUCKET_STEP if self.mask.device.type == "cpu" else self.shape[1]
        rows, places = self.inverse[self.index // self.shape[1]], self.index % self.shape[1]
        buckets, row, token = [], 0, 0
        for _, group in itertools.groupby(self.lengths, key=lambda length: -(-length // step)):
            size, length = len(list(group)), self.lengths[row]
            tokens = sum(self.counts[row : row + size])
            inside = slice(token, token + tokens)
            within = None if tokens == size * length else (rows[inside] - row) * length + places[inside]
            buckets.append(Bucket(tokens, self.mask[row : row + size, :length], within))
            row, token = row + size, token + tokens
        return buckets

    def whole_bucket(self) -> Bucket:
        """All rows and the filler as one bucket, (B + 1, longest). Its shapes depend only on those of the packing."""
        numbers = torch.arange(len(self.index), device=self.index.device)
        rows = torch.bucketize(numbers, self.begins[1:], right=True)
        mask = torch.arange(self.longest, device=self.index.device) < self.begins.diff()[:, None]
        return Bucket(len(self.index), mask, rows * self.longest + numbers - self.begins[rows])

    def flash_arguments(self, first_token_only: bool) -> dict[str, Tensor | int]:
        """Where the rows of packed queries and keys begin, and how long the longest is, as arguments of Transformers'
        flash attention (`FlashAttentionKwargs`). With `first_token_only` each row has one query."""
        keys = self.begins
        queries = torch.arange(len(keys), dtype=torch.int32, device=keys.device) if first_token_only else keys
        longest = 1 if first_token_only else self.longest
        return {"cu_seq_lens_q": queries, "cu_seq_lens_k": keys, "max_length_q": longest, "max_length_k": self.longest}

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (T, ...), the real tokens."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def pad(self, packed: Tensor) -> Tensor:
        """(T, ...) -> (B, L, ...), zero where there is no real token."""
        index, size = self.index, self.shape.numel()
        if self.has_filler:  # goes to an additional last place, which is cut off below
            index = index.where(torch.arange(len(index), device=index.device) < self.begins[-2], size)
        flat = packed.new_zeros(size + self.has_filler, *packed.shape[1:]).index_copy(0, index, packed)
        return flat[:size].unflatten(0, self.shape)

    def unsort(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) from packed order to the batch's order."""
        return rows.index_select(0, self.inverse)

    def pad_weights(self, weights: Sequence[Tensor]) -> Tensor:
        """The buckets' attention weights (b, A, l, l) -> (B, A, L, L), zero between padding."""
        padded = [functional.pad(part, (0, self.shape[1] - part.shape[-1]) * 2) for part in weights]
        return self.unsort(torch.cat(padded))
