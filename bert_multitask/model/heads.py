"""The heads: embeddings of one or two sequences → the logits of a task (paper, sections 4.1 and 4.3)."""

from torch import Tensor, nn
from torch.nn import functional

from .tasks import Task


class HeadLinear(nn.Linear):
    """A linear layer that begins as PyTorch's do, as in the paper, and not as BERT's: with a standard deviation of .02
    two layers in a row are so small that a pair task learns next to nothing in its first hundred steps."""


class LinearHead(nn.Module):
    """Dropout and one linear layer: H x C for the classes of one text (paper, section 4.1, SA); 2H x 1 for "yes" to two
    texts (section 4.1, PD); and, in the same way, 2H x C for the classes of two texts."""

    def __init__(self, hidden_size: int, task: Task, texts: int):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        classes = 1 if task.kind == "binary" else len(task.label_names)
        self.classifier = HeadLinear(texts * hidden_size, classes)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) or (B, 2, H) -> class scores (B, C), or logits of "yes" (B,) where there is one."""
        logits = self.classifier(self.dropout(embedding).flatten(1))
        return logits.squeeze(-1) if self.classifier.out_features == 1 else logits


class BinaryHead(nn.Module):
    """Dropout and two linear layers, H x 32 and 32 x 1, with nothing between them (section 4.3, PD)."""

    def __init__(self, hidden_size: int, task: Task, texts: int = 1):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.hidden = HeadLinear(hidden_size, 32)
        self.output = HeadLinear(32, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) -> logits of "yes" (B,)."""
        return self.output(self.hidden(self.dropout(embedding))).squeeze(-1)


class SimilarityHead(BinaryHead):
    """The same two layers, then a sigmoid scaled to the score range (section 4.3, STS)."""

    def __init__(self, hidden_size: int, task: Task, texts: int = 1):
        super().__init__(hidden_size, task)
        self.low, self.high = task.score_range

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, H) -> scores within the score range (B,)."""
        return self.low + (self.high - self.low) * super().forward(embedding).sigmoid()


class CosineHead(nn.Module):
    """Dropout and one H x H layer for both texts; their cosine, scaled from [-1, 1] to the score range (section 4.1,
    STS)."""

    def __init__(self, hidden_size: int, task: Task, texts: int = 2):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.projection = HeadLinear(hidden_size, hidden_size)
        self.low, self.high = task.score_range

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings (B, 2, H) -> scores within the score range (B,)."""
        first, second = self.projection(self.dropout(embedding)).unbind(1)
        return self.low + (self.high - self.low) * (functional.cosine_similarity(first, second) + 1) / 2


# kind of task -> its head on one sequence, and on two.
HEADS = {
    "classification": (LinearHead, LinearHead),
    "binary": (BinaryHead, LinearHead),
    "similarity": (SimilarityHead, CosineHead),
}
