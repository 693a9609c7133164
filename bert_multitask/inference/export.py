"""Parts of a multitask model as models that need no code of ours: an encoder, or a task's classifier."""

import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel

from ..model.classifier import TaskClassifier
from ..model.configuration import PerTaskBertConfig
from ..model.kinds import KINDS
from ..model.modeling import MultitaskBertModel

# tanh(x / 1024) is x / 1024 to 3e-7 |x|^2 of it; a power of two rounds nothing, and half precision can hold it.
TANH_SCALE = 2.0**-10


def export_encoder(model: MultitaskBertModel, task: str) -> BertModel:
    """The encoder that a task uses, as a stock `BertModel`.

    Raises:
        InputError: the model has no such task.
    """
    model.check_task(task)
    encoder = BertModel(stock_config(model))
    encoder.load_state_dict(model.encoder(task).state_dict())
    return encoder.eval()


def export_classifier(
    model: MultitaskBertModel, task: str
) -> BertForSequenceClassification | BertForTokenClassification | TaskClassifier:
    """One task, as a stock `BertForSequenceClassification` where its head allows it, or a `BertForTokenClassification`
    where that reads every token; else as a `TaskClassifier`.

    The stock sequence classifier reads the pooler's output. A head on that is taken over as it is. For a head on [CLS]
    the pooler is made the identity, in the range where tanh is one: the logits are the same to about 1e-5. A binary
    task's logit x becomes the logits (0, x), whose softmax is the same. A score with a range becomes the one logit
    whose sigmoid, which the pipeline and sentence-transformers' `CrossEncoder` take, is its place in the range, from 0
    to 1; one without a range stays as it is.

    Args:
        model: with the task.
        task: its name.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        InputError: the model has no such task.
    """
    model.check_task(task)
    spec, head = model.tasks[task], model.heads[task]
    kind = KINDS[spec.kind]
    one_segment = spec.text_pair is not None and model.config.type_vocab_size == 1  # stock models fail on such pairs
    reads_tokens = getattr(head, "reads_tokens", False)
    mean = model.pooling(task) == "mean" and not reads_tokens
    if model.is_separate(spec) or mean or one_segment or not hasattr(head, "linear"):
        return export_with_code(model, task)
    labels = spec.label_names or (spec.name,)
    config = stock_config(model)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.classifier_dropout = spec.dropout
    squashed = getattr(head, "squashed", False)
    if not squashed:  # else the pipeline would leave out the sigmoid
        config.problem_type = kind.problem_type(spec)
    stock = (BertForTokenClassification if reads_tokens else BertForSequenceClassification)(config)
    stock.bert.load_state_dict(model.encoder(task).state_dict(), strict=not reads_tokens)  # it has no pooler
    weight, bias = kind.stock_layer(spec, *head.linear(), squashed)
    with torch.no_grad():
        if model.pooling(task) == "cls" and not reads_tokens:
            torch.nn.init.eye_(stock.bert.pooler.dense.weight).mul_(TANH_SCALE)
            stock.bert.pooler.dense.bias.zero_()
            weight = weight / TANH_SCALE
        stock.classifier.weight.copy_(weight)
        stock.classifier.bias.copy_(bias)
    return stock.eval()


def export_with_code(model: MultitaskBertModel, task: str) -> TaskClassifier:
    """One task with its encoder, as a model that brings its own code along."""
    fields = {key: value for key, value in stock_config(model).to_dict().items() if key != "model_type"}
    layout = {"pair_encoding": model.config.pair_encoding, "pooling": model.config.pooling}
    config = PerTaskBertConfig(**fields | layout, tasks=[model.tasks[task].to_config()])
    alone = TaskClassifier(config)
    alone.encoder(task).load_state_dict(model.encoder(task).state_dict())
    alone.heads[task].load_state_dict(model.heads[task].state_dict())
    return alone.eval()


def stock_config(model: MultitaskBertModel) -> BertConfig:
    """BERT's own settings of a model, without ours."""
    ours = {"tasks", "pair_encoding", "pooling", "auto_map", "architectures", "model_type", "id2label", "label2id"}
    ours |= {"classifier_dropout", "add_cross_attention"}  # there to be refused
    return BertConfig(**{key: value for key, value in model.config.to_dict().items() if key not in ours})
