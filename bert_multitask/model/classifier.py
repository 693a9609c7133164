"""One task of a multitask model as a plain sequence classifier, for `pipeline("text-classification")` and the like."""

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration import MultitaskBertConfig, MultitaskConfig
from .errors import InputError
from .kinds import KINDS
from .modeling import MultitaskModel, PerTaskBertModel


class OneTask:
    """A model of one task with the inputs and outputs of `BertForSequenceClassification`.

    It takes a pair as the tokenizer joins it, even if the task encodes its texts separately. `config.id2label` has the
    task's labels; for a score it has the task's name.

    Args:
        config: with one task.
        encoder: used instead of a new encoder.

    Raises:
        InputError: the configuration has several tasks.
    """

    def __init__(self, config: MultitaskBertConfig | MultitaskConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config, encoder)
        if len(self.tasks) != 1:
            raise InputError(f"a {type(self).__name__} has one task, not {', '.join(self.tasks)}")
        (self.task,) = self.tasks.values()
        config.id2label = dict(enumerate(self.task.label_names or [self.task.name]))
        config.label2id = {label: number for number, label in config.id2label.items()}
        config.problem_type = KINDS[self.task.kind].problem_type

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Score a batch.

        Args:
            input_ids: integer (B, L), padded on the right; a pair is [CLS] a [SEP] b [SEP].
            attention_mask: 1 for real tokens, (B, L); all real by default.
            token_type_ids: 1 from a pair's second text on, (B, L). By default all 0; a task that encodes its texts
                separately finds the second text by the separators then.

        Returns:
            `logits` (B, C): their softmax gives the labels' probabilities, or their sigmoid if a row may have several
            labels. For a score (B, 1): the score scaled from its range to [0, 1], or without a range the score itself.
        """
        logits = self.task_logits(input_ids, attention_mask, token_type_ids)
        return SequenceClassifierOutput(logits=KINDS[self.task.kind].stock_logits(self.task, logits))

    def task_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The logits of the task's head; arguments are those of `forward`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.is_separate(self.task):
            input_ids, attention_mask = split_pairs(input_ids, attention_mask, token_type_ids)
            token_type_ids = None
        return super().forward(self.task.name, input_ids, attention_mask, token_type_ids, return_dict=True).logits


def split_pairs(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Split jointly encoded pairs, [CLS] a [SEP] b [SEP], into their texts, [CLS] a [SEP] and [CLS] b [SEP].

    Args:
        input_ids: integer (B, L).
        attention_mask: of the same shape.
        token_type_ids: of the same shape. Without them the first text ends at the first separator, which is the token
            that a row ends with. If two separators follow each other, as in RoBERTa's pairs, the second text begins
            after both.

    Returns:
        `input_ids` and `attention_mask`, (B, 2, L).
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    lengths = attention_mask.sum(1, keepdim=True)
    if token_type_ids is None:
        is_end = (input_ids == input_ids.gather(1, lengths - 1)) & attention_mask.bool()
        first = is_end.int().argmax(1, keepdim=True) + 1  # tokens of [CLS] a [SEP]
        begin = first + (is_end.gather(1, first.clamp(max=input_ids.shape[1] - 1)) & (first < lengths - 1))
    else:
        begin = first = (attention_mask * (1 - token_type_ids)).sum(1, keepdim=True)
    shifted = (places + begin - 1).clamp(max=input_ids.shape[1] - 1).where(places > 0, 0)  # [CLS], then b [SEP]
    masks = torch.stack([places < first, places < lengths - begin + 1], dim=1)
    return torch.stack([input_ids, input_ids.gather(1, shifted)], dim=1), masks.long()


class TaskClassifier(OneTask, PerTaskBertModel):
    """A sequence classifier of one task, with a BERT (see `OneTask`)."""


class EncoderClassifier(OneTask, MultitaskModel):
    """A sequence classifier of one task, with another encoder (see `OneTask`)."""


for model_class in (TaskClassifier, EncoderClassifier):
    model_class.register_for_auto_class("AutoModelForSequenceClassification")
    if __package__ == "bert_multitask.model":  # as in `modeling`
        AutoModelForSequenceClassification.register(model_class.config_class, model_class)
