"""The multitask model: one BERT encoder and a head per task.

The layout here is the paper's round-robin system: the encoder is shared by all tasks, and the two texts of a pair are
encoded jointly (TPE, section 4.3). One encoder per task (3-BERT) and separate encoding are the layouts that join it:
they replace `MultitaskBertModel.bert` and the choice of class in `HEADS`.
"""

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration import InputError, MultitaskBertConfig
from .losses import LOSSES
from .modeling import MinBertModel, MinBertPreTrainedModel
from .tasks import Task, load_task


class HeadLinear(nn.Linear):
    """A linear layer that begins as PyTorch's do, as in the paper, and not as BERT's: with a standard deviation of .02
    two layers in a row are so small that a pair task learns next to nothing in its first hundred steps."""


class ClassificationHead(nn.Module):
    """Dropout and one linear layer: H x C (paper, section 4.1, SA)."""

    def __init__(self, hidden_size: int, task: Task):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.classifier = HeadLinear(hidden_size, len(task.label_names))

    def forward(self, embedding: Tensor) -> Tensor:
        """Sentence embeddings (B, H) -> unnormalised class scores (B, C)."""
        return self.classifier(self.dropout(embedding))


class BinaryHead(nn.Module):
    """Dropout and two linear layers, H x 32 and 32 x 1, with nothing between them (section 4.3, PD)."""

    def __init__(self, hidden_size: int, task: Task):
        super().__init__()
        self.dropout = nn.Dropout(task.dropout)
        self.hidden = HeadLinear(hidden_size, 32)
        self.output = HeadLinear(32, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Sentence embeddings (B, H) -> logits of "yes" (B,)."""
        return self.output(self.hidden(self.dropout(embedding))).squeeze(-1)


class SimilarityHead(BinaryHead):
    """The same two layers, then a sigmoid scaled to the score range (section 4.3, STS)."""

    def __init__(self, hidden_size: int, task: Task):
        super().__init__(hidden_size, task)
        self.low, self.high = task.score_range

    def forward(self, embedding: Tensor) -> Tensor:
        """Sentence embeddings (B, H) -> scores within the score range (B,)."""
        return self.low + (self.high - self.low) * super().forward(embedding).sigmoid()


HEADS = {"classification": ClassificationHead, "binary": BinaryHead, "similarity": SimilarityHead}


class MultitaskBertModel(MinBertPreTrainedModel):
    """A shared BERT encoder with one head per task of `config.tasks`.

    `MultitaskBertModel.from_pretrained(BERT, tasks=["sst", "quora", "sts"])` puts new heads on a BERT checkpoint;
    `from_pretrained(RUN)` gives back a trained model with its heads.
    """

    accepts_loss_kwargs = True  # `forward` divides by `num_items_in_batch`, so Trainer must count the step's rows

    def __init__(self, config: MultitaskBertConfig):
        super().__init__(config)
        if not config.tasks:
            raise InputError("a MultitaskBertModel needs tasks, for example tasks=['sst', 'quora', 'sts']")
        self.tasks = {task.name: task for task in map(load_task, config.tasks)}
        for name, task in self.tasks.items():
            if task.loss not in LOSSES:
                raise InputError(f"task {name!r}: loss is {task.loss!r}; choose one of {', '.join(LOSSES)}")
            if hasattr(nn.ModuleDict(), name):
                raise InputError(f"task {name!r}: PyTorch keeps this name for itself; choose another")
        self.bert = MinBertModel(config)
        self.heads = nn.ModuleDict(
            {name: HEADS[task.kind](config.hidden_size, task) for name, task in self.tasks.items()}
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """New heads begin as `HeadLinear` says, everything else as in BERT."""
        if isinstance(module, HeadLinear):
            module.reset_parameters()  # leaves loaded weights alone: Transformers guards torch's initialisers
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, tasks=None, output_loading_info: bool = False, **kwargs
    ):
        """Load a BERT checkpoint or a trained run (see `MinBertPreTrainedModel.from_pretrained`).

        Args:
            pretrained_model_name_or_path: folder, Hub id or `package:NAME/PATH`.
            tasks: presets' names, dictionaries of `Task` fields, or `Task`s. Needed on a checkpoint without heads,
                whose new heads are random until trained; a trained run brings its own. A task that the run already
                has keeps its weights.
            output_loading_info: also return Transformers' report of missing and unexpected weights.

        Raises:
            InputError: as `MinBertPreTrainedModel.from_pretrained`, or a trained run lacks weights of its heads.
        """
        if tasks is not None:
            kwargs["tasks"] = [load_task(task).to_config() for task in tasks]
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        missing = sorted(key for key in info["missing_keys"] if key.startswith("heads."))
        if missing and tasks is None:
            raise InputError(f"{pretrained_model_name_or_path} names tasks but lacks their weights, {missing[0]} first")
        return (model, info) if output_loading_info else model

    @can_return_tuple
    def forward(
        self,
        task: str,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Run one task on a batch of its rows; a pair's two texts are one sequence with segment ids.

        Args:
            task: name of the task.
            input_ids, attention_mask, token_type_ids, inputs_embeds: as for `MinBertModel`, (B, L[, H]).
            labels: (B,); classes (integer), 0 or 1 (integer), or scores (float); -100 for rows without a label.
            num_items_in_batch: divisor of the summed loss where this batch is one share of a larger one; by default
                the number of labelled rows.
            output_attentions, output_hidden_states: as for `MinBertModel`.

        Returns:
            `logits`: (B, C) unnormalised class scores, (B,) logits of "yes", or (B,) scores; `loss`, a scalar, if
            `labels` are given.

        Raises:
            InputError: the model has no such task.
        """
        if task not in self.tasks:
            raise InputError(f"this model has no task {task!r}; it has {', '.join(self.tasks)}")
        encoded = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.heads[task](encoded.last_hidden_state[:, 0])
        loss = None
        if labels is not None:
            loss = LOSSES[self.tasks[task].loss](logits=logits, labels=labels, num_items=num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
