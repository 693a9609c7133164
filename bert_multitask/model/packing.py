"""Dropping the padding of a batch: where its real tokens lie, and which rows attention takes together.

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

    Made of a mask on an accelerator, it waits for it, because the number of tokens is a shape. So batches of training
    bring a packing made on the CPU (`data.collate.Collator`); as a batch's tensors it can be pinned and moved.

    Args:
        attention_mask: 1 or True for real tokens, shape (B, L).
        twice: whether to make the packing of these rows followed by themselves, too, as R-Drop runs them.
        token_step: if given, one row more, the last, has 1 to so many filler tokens that T is a multiple of it. They
            are copies of the batch's first token that nobody reads.

    Attributes:
        shape: (B, L).
        index: where in B * L each packed token lies, integer (T,).
        inverse: the place of each of the batch's rows among the packed ones, integer (B,).
        begins: where each packed row begins, and the end of the last, int32 (B + 1,), as attention kernels take them;
            one more with a row of filler.
        first: where each packed row begins, integer (B,), or one more.
        mask: the attention mask of the packed rows, (B, L).
        longest: tokens of the longest row; with filler a bound that depends on L alone.
        is_exact: whether no token is packed that the mask hides.
        twice: the packing of (2B, L), or None.

    Raises:
        InputError: the model is being traced by `torch.export` or `torch.jit.trace`; the graph would hold the number of
            tokens of the example.
    """

    def __init__(self, attention_mask: Tensor, twice: bool = False, token_step: int | None = None):
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise InputError(
                "this encoder drops padding, so a traced graph would hold for batches of its example's lengths alone; "
                "trace a stock model: export_encoder(model, task), or export_classifier(model, task) of a task on "
                "'cls' or 'pooler' whose pairs are encoded jointly"
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
        # At once, since each transfer has the CPU wait for an accelerator. `lengths` are up to the last token, and
        # `counts` of the tokens, in packed order.
        self.lengths, self.counts, unhidden = torch.stack((lengths, counts, self.mask[:, 0].bool().long())).tolist()
        self.longest = max(self.shape[1], token_step) if token_step else max(self.counts)
        self.is_exact = all(unhidden)
        self.twice = Packing(torch.cat([attention_mask] * 2), token_step=token_step) if twice else None

    def fits(self, attention_mask: Tensor) -> bool:
        """Whether it is the packing of this mask, (B, L); waits for an accelerator."""
        return self.shape == attention_mask.shape and torch.equal(self.unsort(self.mask).bool(), attention_mask.bool())

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with each tensor changed by a function."""
        copied = copy.copy(self)
        vars(copied).pop("buckets", None)  # they depend on the device
        for name, value in vars(copied).items():
            if isinstance(value, Tensor):
                setattr(copied, name, function(value))
            elif isinstance(value, Packing):
                setattr(copied, name, value.map(function))
        return copied

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """A copy on another device; the arguments are those of `Tensor.to`."""
        return self.map(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """A copy that moves to a GPU without waiting; PyTorch's loaders call it."""
        return self.map(Tensor.pin_memory)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The sorted rows, cut by length on a CPU, where attention between padding costs much; elsewhere in one bucket,
        because launching kernels costs more there."""
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
        """All rows and that of filler as one bucket, (B + 1, longest), whose shapes are those of the packing."""
        numbers = torch.arange(len(self.index), device=self.index.device)
        rows = torch.bucketize(numbers, self.begins[1:], right=True)
        mask = torch.arange(self.longest, device=self.index.device) < self.begins.diff()[:, None]
        return Bucket(len(self.index), mask, rows * self.longest + numbers - self.begins[rows])

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
        index, size = self.index, self.shape.numel()
        if self.has_filler:  # goes to one more place, which is cut off
            index = index.where(torch.arange(len(index), device=index.device) < self.begins[-2], size)
        flat = packed.new_zeros(size + self.has_filler, *packed.shape[1:]).index_copy(0, index, packed)
        return flat[:size].unflatten(0, self.shape)

    def unsort(self, rows: Tensor) -> Tensor:
        """(B, ...), one entry a row in packed order -> the same in the batch's order."""
        return rows.index_select(0, self.inverse)

    def pad_weights(self, weights: Sequence[Tensor]) -> Tensor:
        """The buckets' attention weights (b, A, l, l) -> (B, A, L, L), zero between padding."""
        padded = [functional.pad(part, (0, self.shape[1] - part.shape[-1]) * 2) for part in weights]
        return self.unsort(torch.cat(padded))
