"""The sides that benchmark.py gpu compares: the stock model, and ours."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional

from bert_multitask import MultitaskBertModel
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.tasks import TASKS

from .device import DEVICE, GPU, precision
from .peers import Stock
from .rig import NAMES, Rig

STOCK, OURS, PADDED = "stock sdpa", "ours", "ours padded"
SIDES = (STOCK, OURS)
SHAPES = {"minilm": (6, 384, 12), "bert-base": (12, 768, 12), "tiny": (2, 48, 4)}  # layers, width, heads


@contextlib.contextmanager
def chosen(side: str) -> Iterator[None]:
    """Leave our attention as it is (OURS), or let it take padded tokens on a GPU, too (PADDED). On a CPU ours gets a
    stand-in for the GPU's kernels, so that the way to them is tried."""
    changes = {}
    if side == PADDED:
        changes = {"takes_packed": lambda *_: False}
    elif side == OURS and not GPU:
        changes = {"takes_packed": lambda *_: True, "packed_attention": attend_row_by_row}
    with patch.multiple("bert_multitask.model.encoder", **changes) if changes else contextlib.nullcontext():
        yield


def attend_row_by_row(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask, dropout: float, scaling: float, **rows
) -> tuple[Tensor, None]:
    """A stand-in for `packed_attention` without a GPU; arguments and results are the same."""
    bounds = [itertools.pairwise(rows[f"cu_seq_lens_{side}"].tolist()) for side in "qk"]
    attended = [
        functional.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], dropout_p=dropout, scale=scaling
        )
        for (a, b), (c, d) in zip(*bounds, strict=True)
    ]
    return torch.cat(attended, 2).transpose(1, 2), None


def build(shape: str) -> tuple[MultitaskBertModel, Stock]:
    """Our model of one of SHAPES and its stock twin, with the same random weights, on the device."""
    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = MultitaskBertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=30_522,
        tasks=[vars(TASKS[name]) for name in NAMES],
        pooling="pooler",
    )
    model = MultitaskBertModel(config)
    stock = Stock(model)
    stock.model.to(DEVICE)
    return model.to(DEVICE), stock


class DeviceRig(Rig):
    """The rig with its Trainers on the device."""

    batch_size, workers = 32, 0

    def settings(self) -> dict:
        """The rig's, with rows of a step, workers of the loader, and products of fp32 with TF32, on both sides."""
        return super().settings() | {
            "use_cpu": not GPU,
            "tf32": True if GPU else None,
            "per_device_train_batch_size": self.batch_size,
            "dataloader_num_workers": self.workers,
        }

    def device_batches(self, batch_size: int) -> list[dict]:
        """The batches of a round with so many rows each, on the device."""
        self.batch_size = batch_size
        return [send_to_device(batch, DEVICE) for batch in self.batches()]


class Step:
    """Forward, backward, clipping and AdamW of a side, in a `precision`, without a loader or Trainer."""

    def __init__(self, model: nn.Module, dtype: str, loss: Callable[[dict], Tensor]):
        self.model, self.dtype, self.loss = model.train(), dtype, loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def __call__(self, batch: dict) -> Tensor:
        """Take the step; returns its loss."""
        with precision(self.dtype):
            loss = self.loss(batch)
        with precision("tf32" if self.dtype == "tf32" else "fp32"):  # autocast remembers its own, TF32 does not
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss
