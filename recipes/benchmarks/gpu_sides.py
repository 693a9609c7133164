"""The sides that benchmark.py gpu compares: the stock model, and ours with attention of several kinds."""

import contextlib
import itertools
from collections.abc import Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from bert_multitask import MultitaskBertModel
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.encoder import SelfAttention
from bert_multitask.model.tasks import TASKS

from .device import DEVICE, GPU, precision
from .peers import Stock
from .rig import NAMES, Rig

STOCK, PADDED, PACKED, PROJECTED = "stock sdpa", "ours padded", "ours packed", "ours packed, one QKV product"
SIDES = (STOCK, PADDED, PACKED, PROJECTED)
SHAPES = {"minilm": (6, 384, 12), "bert-base": (12, 768, 12), "tiny": (2, 48, 4)}  # layers, width, heads


@contextlib.contextmanager
def chosen(side: str) -> Iterator[None]:
    """Let our attention take padded or packed tokens, as the side says."""
    is_packed = side in (PACKED, PROJECTED)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch("bert_multitask.model.encoder.takes_packed", lambda *_: is_packed))
        if is_packed and not GPU:
            stack.enter_context(patch("bert_multitask.model.encoder.packed_attention", attend_row_by_row))
        if side == PROJECTED:
            stack.enter_context(patch.object(SelfAttention, "project", project_at_once))
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


def project_at_once(layer: SelfAttention, hidden: Tensor, queried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`SelfAttention.project` by one product with the weights of all three, or of keys and values."""
    layers = [layer.key, layer.value] + ([layer.query] if queried is None else [])
    weight, bias = torch.cat([part.weight for part in layers]), torch.cat([part.bias for part in layers])
    keys, values, *queries = functional.linear(hidden, weight, bias).chunk(len(layers), -1)
    return queries[0] if queries else layer.query(hidden[queried]), keys, values


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
    tf32 = None  # PyTorch's setting as it is: `precision` changes it, and two ways to change it do not mix

    def settings(self) -> dict:
        """The rig's, with rows of a step, workers of the loader and whether products of fp32 use TF32."""
        return super().settings() | {
            "use_cpu": not GPU,
            "tf32": self.tf32,
            "per_device_train_batch_size": self.batch_size,
            "dataloader_num_workers": self.workers,
        }

    def device_batches(self, batch_size: int) -> list[dict]:
        """The batches of a round with so many rows each, on the device."""
        self.batch_size = batch_size
        return [
            {key: value.to(DEVICE) if hasattr(value, "to") else value for key, value in batch.items()}
            for batch in self.batches()
        ]


class Step:
    """Forward, backward, clipping and AdamW of one side, without a loader or Trainer.

    Args:
        model: to train, of either side.
        dtype: as for `precision`.
        stock: the other side's losses, where the model is its.
        capturable: whether a CUDA graph can hold the optimizer's step.
    """

    def __init__(self, model: nn.Module, dtype: str, stock: Stock | None = None, capturable: bool = False):
        self.model, self.dtype, self.stock = model.train(), dtype, stock
        parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True, capturable=capturable)

    def loss(self, batch: dict) -> Tensor:
        """The loss of a batch."""
        with precision(self.dtype):
            if self.stock is None:
                return self.model(**batch).loss
            task, labels, inputs = self.stock.split(batch)
            return self.stock.loss(task, self.model(**inputs).logits, labels)

    def __call__(self, batch: dict) -> Tensor:
        """Take the step; returns its loss."""
        loss = self.loss(batch)
        with precision("tf32" if self.dtype == "tf32" else "fp32"):  # autocast remembers its own, TF32 does not
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss
