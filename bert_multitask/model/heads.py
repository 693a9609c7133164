"""The heads: embeddings of one or two sequences → the logits of a task (paper, sections 4.1 and 4.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import InputError
from .kinds import KINDS, choices
from .tasks import Task


class HeadLinear(nn.Linear):
    """A linear layer that begins as PyTorch's do, as in the paper, and not as BERT's: with a standard deviation of .02
    two layers in a row are so small that a pair task learns next to nothing in its first hundred steps."""


def without_axis(logits: Tensor) -> Tensor:
    """Logits (B, C), or (B,) where there is one for each row."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits


def in_range(place: Tensor, score_range: tuple[float, float]) -> Tensor:
    """A place from 0 to 1 -> the score there."""
    low, high = score_range
    return low + (high - low) * place


class LinearHead(nn.Module):
    """Dropout and one linear layer: H x C for the classes of one text (paper, section 4.1, SA); 2H x 1 for "yes" to two
    texts (section 4.1, PD); and, in the same way, 2H x C for the classes of two texts."""

    def __init__(self, hidden_size: int, task: Task, texts: int):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.classifier = HeadLinear(texts * hidden_size, KINDS[task.kind].outputs(task))

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) or (B, 2, H) -> logits (B, C), or (B,) where there is one for each row."""
        return without_axis(self.classifier(self.dropout(embedding).flatten(1)))

    def linear(self) -> tuple[Tensor, Tensor]:
        """Its layer's weight (C, texts * H) and bias (C,)."""
        return self.classifier.weight.detach(), self.classifier.bias.detach()


class TwoLayerHead(nn.Module):
    """Dropout and two linear layers, H x 32 and 32 x C, with nothing between them (section 4.3, PD: C is 1)."""

    texts = (1,)

    def __init__(self, hidden_size: int, task: Task, texts: int = 1):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.hidden = HeadLinear(hidden_size, 32)
        self.output = HeadLinear(32, KINDS[task.kind].outputs(task))
        self.score_range = task.score_range

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) -> logits (B, C), or (B,) where there is one for each row."""
        return without_axis(self.output(self.hidden(self.dropout(embedding))))

    def linear(self) -> tuple[Tensor, Tensor]:
        """The weight (C, H) and bias (C,) of both layers as one, up to an activation after them."""
        weight = self.output.weight @ self.hidden.weight
        return weight.detach(), (self.output.weight @ self.hidden.bias + self.output.bias).detach()


class SigmoidHead(TwoLayerHead):
    """The same two layers, then a sigmoid scaled to the score range (section 4.3, STS)."""

    ranged = bounded = squashed = True

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) -> scores within the score range (B,)."""
        return in_range(super().forward(embedding).sigmoid(), self.score_range)


class CosineHead(nn.Module):
    """Dropout and one H x H layer for both texts; their cosine, scaled from [-1, 1] to the score range (section 4.1,
    STS)."""

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
    """Dropout, then the cosine of the two texts' embeddings, with no layer of its own: logit = scale * cosine + shift.
    Scale and shift are learned. With a score range, the score is lowest + (highest - lowest) * sigmoid(logit).

    It suits encoders that were trained to give similar texts a high cosine, such as those of sentence embeddings."""

    texts = (2,)
    bounded = True

    def __init__(self, hidden_size: int, task: Task, texts: int = 2):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.scale, self.shift = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.score_range = task.score_range
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin where a cosine of .57 is the middle of the range, as sentence encoders have it."""
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
        """Embeddings (B, L, H) -> logits (B, L, C). Those of padding, whose embeddings are 0, are 0, which no token's
        are: by this `losses.token_symmetric_kl` knows it."""
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
"""The heads, by name. A head is made of the width of an embedding, its task, and the number of sequences of a row. Its
class may say more:

`texts`: how many sequences a row may have; by default 1 or 2.
`ranged`: whether it needs the task's `score_range`.
`bounded`: whether its scores lie within the `score_range`, where the task has one.
`reads_tokens`: whether it takes the embedding of every token, (B, L, H), and not of each sequence.
`kinds`: the kinds of tasks that it is for, where no kind names it (see `kinds.choices`).
`reset_parameters()`: how parameters begin that belong to no layer of the head's, but to the head itself.
`linear()`: the weight and bias of a head that is one linear layer, or one up to a sigmoid, which `squashed` says; what
has none is exported with its code.
"""


def find_head(task: Task, texts: int) -> str:
    """The key of a task's head: the one that it names, or the first of its kind's that fits rows of so many sequences.

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
            f"task {task.name!r}: head is {task.head!r}; choose one of {', '.join(fitting)} for a {task.kind} task "
            f"{'with' if task.score_range else 'without'} a score_range, of {texts} "
            f"{'sequence' if texts == 1 else 'sequences'} a row"
        )
    return task.head or fitting[0]
