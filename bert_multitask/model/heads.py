"""The heads: embeddings of one or two sequences → the logits of a task (paper, sections 4.1 and 4.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import InputError
from .kinds import KINDS, choices
from .tasks import Task


class HeadLinear(nn.Linear):
    """A linear layer with PyTorch's initialisation, as in the paper, not BERT's. BERT's standard deviation of .02 makes
    two layers in a row so small that a pair task learns almost nothing in its first hundred steps."""


def without_axis(logits: Tensor) -> Tensor:
    """Logits (B, C) unchanged, or (B, 1) as (B,)."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits


def in_range(place: Tensor, score_range: tuple[float, float]) -> Tensor:
    """Scale numbers from [0, 1] to the score range."""
    low, high = score_range
    return low + (high - low) * place


class LinearHead(nn.Module):
    """Dropout and one linear layer: H × C for the classes of one text (paper, section 4.1, SA), 2H × 1 for a yes-or-no
    question about two texts (section 4.1, PD), and in the same way 2H × C for the classes of two texts."""

    def __init__(self, hidden_size: int, task: Task, texts: int):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.classifier = HeadLinear(texts * hidden_size, KINDS[task.kind].outputs(task))

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) or (B, 2, H) -> logits (B, C), or (B,) if C is 1."""
        return without_axis(self.classifier(self.dropout(embedding).flatten(1)))

    def linear(self) -> tuple[Tensor, Tensor]:
        """The layer's weight (C, texts * H) and bias (C,)."""
        return self.classifier.weight.detach(), self.classifier.bias.detach()


class TwoLayerHead(nn.Module):
    """Dropout and two linear layers, H × 32 and 32 × C, with nothing between them (section 4.3, PD, where C is 1)."""

    texts = (1,)

    def __init__(self, hidden_size: int, task: Task, texts: int = 1):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.hidden = HeadLinear(hidden_size, 32)
        self.output = HeadLinear(32, KINDS[task.kind].outputs(task))
        self.score_range = task.score_range

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) -> logits (B, C), or (B,) if C is 1."""
        return without_axis(self.output(self.hidden(self.dropout(embedding))))

    def linear(self) -> tuple[Tensor, Tensor]:
        """The weight (C, H) and bias (C,) of the one layer that equals both."""
        weight = self.output.weight @ self.hidden.weight
        return weight.detach(), (self.output.weight @ self.hidden.bias + self.output.bias).detach()


class SigmoidHead(TwoLayerHead):
    """The layers of `TwoLayerHead`, then a sigmoid scaled to the score range (section 4.3, STS)."""

    ranged = bounded = squashed = True

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) -> scores within the score range (B,)."""
        return in_range(super().forward(embedding).sigmoid(), self.score_range)


class CosineHead(nn.Module):
    """Dropout and one H × H layer, the same for both texts, then the cosine of the two results, scaled from [-1, 1] to
    the score range (section 4.1, STS)."""

    texts = (2,)
    ranged = bounded = True

    def __init__(self, hidden_size: int, task: Task, texts: int = 2):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.projection = HeadLinear(hidden_size, hidden_size)
        self.score_range = task.score_range

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, 2, H) -> scores within the score range (B,)."""
        first, second = self.projection(self.dropout(embedding)).unbind(1)
        return in_range((functional.cosine_similarity(first, second) + 1) / 2, self.score_range)


class ScaledCosineHead(nn.Module):
    """Dropout, then logit = scale * cosine + shift, with the cosine of the two texts' embeddings. Scale and shift are
    learned; there is no linear layer. With a score range, the score is lowest + (highest - lowest) * sigmoid(logit).

    It suits encoders that were trained to give similar texts a high cosine, such as sentence encoders."""

    texts = (2,)
    bounded = True

    def __init__(self, hidden_size: int, task: Task, texts: int = 2):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.scale, self.shift = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.score_range = task.score_range
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start so that a cosine of .57 gives the middle of the range, as suits sentence encoders."""
        nn.init.constant_(self.scale, 6.0)
        nn.init.constant_(self.shift, -3.4)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, 2, H) -> logits (B,), or with a score range scores within it."""
        first, second = self.dropout(embedding).unbind(1)
        logits = self.scale * functional.cosine_similarity(first, second) + self.shift
        return logits if self.score_range is None else in_range(logits.sigmoid(), self.score_range)


class TokenHead(LinearHead):
    """Dropout and one linear layer on every token, H x C, as in stock token classifiers."""

    texts = (1,)
    reads_tokens = True

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, L, H) -> logits (B, L, C). The embeddings of padding are 0, and its logits are set to 0. A
        token's logits are not all 0, so `losses.token_symmetric_kl` recognises padding by this."""
        real = embedding.ne(0).any(-1, keepdim=True)
        return self.classifier(self.dropout(embedding)).where(real, 0)


HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
    "two_layer": TwoLayerHead,
    "sigmoid": SigmoidHead,
    "cosine": CosineHead,
    "scaled_cosine": ScaledCosineHead,
    "token_linear": TokenHead,
}
"""The heads, by name. A head is called with the embeddings' width, its task, and the number of sequences in a row, and
its class may have these attributes and methods:

`texts`: how many sequences a row may have; by default 1 or 2.
`ranged`: whether it needs the task's `score_range`.
`bounded`: whether its scores stay within the task's `score_range`, if there is one.
`reads_tokens`: whether it takes the embedding of every token, (B, L, H), instead of one for each sequence.
`kinds`: the kinds of tasks that it is for, if no kind names it (see `kinds.choices`).
`reset_parameters()`: initialises parameters that belong to the head itself, not to one of its layers.
`linear()`: weight and bias, if the head equals one linear layer; with `squashed`, one linear layer and a sigmoid. A
head without it is exported together with its code.
"""


def find_head(task: Task, texts: int) -> str:
    """The key of a task's head: the one that the task names, or else the first of its kind that fits rows of 1 or 2
    sequences (`texts`).

    Raises:
        InputError: there is no such head, or it does not fit the task.
    """
    fitting = [
        key
        for key in choices(task, "head", HEADS)
        if texts in getattr(HEADS[key], "texts", (1, 2)) and (task.score_range or not getattr(HEADS[key], "ranged", 0))
    ]
    if task.head not in (None, *fitting) or not fitting:
        raise InputError(
            f"task {task.name!r}: head is {task.head!r}; choose one of {', '.join(fitting)} for kind {task.kind!r} "
            f"{'with' if task.score_range else 'without'} a score_range, of {texts} "
            f"{'sequence' if texts == 1 else 'sequences'} a row"
        )
    return task.head or fitting[0]
