"""Where real tokens lie, for masks of every shape."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bert_multitask.model import packing
from bert_multitask.model.packing import Packing

masks = st.integers(1, 40).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=1, max_size=9)
)


def test_packing_by_hand():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    packed = Packing(mask).pack(torch.arange(24.0).view(3, 4, 2))
    # The last row reaches furthest; row 1 keeps its hidden first token.
    assert packed[:, 0].tolist() == [16, 22, 8, 10, 12, 0, 2]


@given(masks)
def test_every_real_token_is_packed_once(rows):
    mask = torch.tensor(rows)
    batch = Packing(mask)
    padded = torch.arange(1.0, 1 + mask.numel()).view(mask.shape)
    kept = mask.bool()
    kept[:, 0] = True
    packed = batch.pack(padded)
    assert sorted(packed.tolist()) == sorted(padded[kept].tolist())
    assert torch.equal(batch.pad(packed), padded * kept)
    assert torch.equal(batch.unsort(packed[batch.first]), padded[:, 0])


@given(masks)
def test_buckets_are_the_packed_rows(rows):
    mask = torch.tensor(rows)
    batch = Packing(mask)
    packed = batch.pack(torch.arange(1.0, 1 + mask.numel()).view(mask.shape))
    assert sum(bucket.tokens for bucket in batch.buckets) == len(packed)
    seen = []
    for bucket, tokens in zip(batch.buckets, packed.split([b.tokens for b in batch.buckets]), strict=True):
        padded = bucket.pad(tokens)
        assert padded.shape == bucket.attention_mask.shape
        assert torch.equal(bucket.pack(padded), tokens)
        hidden_first = (bucket.attention_mask == 0) & (torch.arange(padded.shape[1]) == 0)
        assert torch.equal(padded != 0, bucket.attention_mask.bool() | hidden_first)
        last = ((padded != 0) * torch.arange(1, 1 + padded.shape[1])).amax(1)
        assert last.max() == padded.shape[1] and len({-(-n // packing.BUCKET_STEP) for n in last.tolist()}) == 1
        seen += padded[:, 0].tolist()
    first = torch.arange(1.0, 1 + mask.numel()).view(mask.shape)[:, 0]
    assert torch.equal(batch.unsort(torch.tensor(seen)), first)


@given(masks, st.booleans())
def test_a_moved_packing_is_the_same(rows, with_buckets):
    """As a batch's tensors it can be moved, here to another type of numbers; also the one of each row twice."""
    mask = torch.tensor(rows)
    batch = Packing(mask, twice=True)
    _ = with_buckets and batch.buckets
    moved = batch.to(torch.int32)
    assert moved.index.dtype == moved.twice.index.dtype == torch.int32 and batch.index.dtype == torch.int64
    again = Packing(torch.cat([mask, mask]))
    for name in ("index", "inverse", "begins", "first", "mask"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
        assert torch.equal(getattr(moved.twice, name), getattr(again, name))
    assert [bucket.tokens for bucket in moved.twice.buckets] == [bucket.tokens for bucket in again.buckets]
