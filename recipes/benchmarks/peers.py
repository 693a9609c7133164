"""What people use today, set up to compute what ours computes: the other side of benchmark.py."""

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, Trainer

from bert_multitask import MultitaskBertModel
from bert_multitask.model.heads import LinearHead
from bert_multitask.model.losses import LOSSES

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # of a batch, those that a stock model takes


class Stock:
    """The same function as a `MultitaskBertModel` with a pooler, as a stock `BertForSequenceClassification`: one logit
    for each class of each task, with each head's linear layers multiplied out."""

    def __init__(self, model: MultitaskBertModel):
        self.tasks, self.columns, rows, biases = model.tasks, {}, [], []
        with torch.no_grad():
            for name, head in model.heads.items():
                linear = head.classifier if isinstance(head, LinearHead) else head.hidden
                weight, bias = linear.weight, linear.bias
                if not isinstance(head, LinearHead):
                    weight, bias = head.output.weight @ weight, head.output.weight @ bias + head.output.bias
                start = sum(map(len, rows))
                self.columns[name] = slice(start, start + len(weight)) if len(weight) > 1 else start
                rows.append(weight)
                biases.append(bias)
            fields = {key: value for key, value in model.config.to_dict().items() if key in BertConfig().to_dict()}
            fields |= {"num_labels": sum(map(len, rows)), "classifier_dropout": model.tasks["sst"].dropout}
            fields = {key: value for key, value in fields.items() if key not in ("id2label", "label2id")}
            self.model = BertForSequenceClassification(BertConfig(**fields, attn_implementation="sdpa"))
            self.model.bert.load_state_dict(model.bert.state_dict())
            self.model.classifier.weight.copy_(torch.cat(rows))
            self.model.classifier.bias.copy_(torch.cat(biases))

    def predict(self, task: str, logits: torch.Tensor) -> torch.Tensor:
        """All logits (B, 7) -> those of the task, as the multitask model gives them."""
        logits = logits[:, self.columns[task]]
        if not self.tasks[task].score_range:
            return logits
        low, high = self.tasks[task].score_range
        return low + (high - low) * logits.sigmoid()

    def loss(self, task: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The multitask model's loss, of the stock model's logits."""
        return LOSSES[self.tasks[task].loss](logits=self.predict(task, logits), labels=labels)

    def batch_loss(self, batch: dict) -> torch.Tensor:
        """The multitask model's loss of a batch."""
        logits = self.model(**{name: batch[name] for name in INPUTS}).logits
        return self.loss(batch["task"], logits, batch["labels"])


class StockTrainer(Trainer):
    """What a user of `transformers` writes by hand: their Trainer and model, one batch of one task a step."""

    stock: Stock
    loader: DataLoader

    def get_train_dataloader(self) -> DataLoader:
        """The very batches of the other side."""
        return self.loader

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the batch's task."""
        return self.stock.batch_loss(inputs)
