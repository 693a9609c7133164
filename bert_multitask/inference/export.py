"""Export an encoder, or a task's classifier, as a model that Transformers loads without this package."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..model import classifier  # noqa: F401 - it makes AutoModelForSequenceClassification know its classes
from ..model.kinds import KINDS
from ..model.modeling import MultitaskBertModel

# tanh(x / 1024) is x / 1024 with a relative error of 3e-7 x². A power of two rounds nothing, and fits half precision.
TANH_SCALE = 2.0**-10
SEQUENCES = AutoModelForSequenceClassification


def export_encoder(model: MultitaskBertModel, task: str) -> PreTrainedModel:
    """The encoder that a task uses as a stock model, such as a `BertModel`.

    Args:
        model: a model that has the task.
        task: name of the task.

    Raises:
        InputError: the model has no such task.
    """
    model.check_task(task)
    model = model.merge_adapters()
    encoder = AutoModel.from_config(model.config.stock())
    encoder.load_state_dict(model.encoder(task).state_dict())
    return encoder.eval()


def export_classifier(
    model: MultitaskBertModel, task: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """One task as a stock `…ForSequenceClassification` model of its encoder, or `…ForTokenClassification` if its head
    reads every token. If the head does not fit a stock class, a model that carries its own code (`model.classifier`).

    Stock sequence classifiers read the first token through a layer of their own and an activation. A head on BERT's
    pooler is copied. For a head on [CLS], `stock_layers` makes a layer that undoes the activation: the logits are the
    same to about 1e-5. A binary task's logit x becomes the logits (0, x), whose softmax is the same. A score with a
    range becomes one logit whose sigmoid is its place in the range, from 0 to 1, as the pipeline and
    sentence-transformers' `CrossEncoder` take it; a score without a range stays as it is.

    Args:
        model: a model that has the task.
        task: name of the task.
        tokenizer: the model's; without it, token types are assumed to tell the texts of a pair apart.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        InputError: the model has no such task.
    """
    model.check_task(task)
    model = model.merge_adapters()
    spec, head = model.tasks[task], model.heads[task]
    gives_types = tokenizer is None or "token_type_ids" in tokenizer.model_input_names
    # Stock models that know one token type fail on such pairs.
    one_segment = spec.text_pair and gives_types and getattr(model.config.stock(), "type_vocab_size", 0) == 1
    reads_tokens = getattr(head, "reads_tokens", False)
    mean = model.pooling(task) == "mean" and not reads_tokens
    stock = None
    if not (model.is_separate(spec) or mean or one_segment) and hasattr(head, "linear"):
        stock = fill_stock(model, task, AutoModelForTokenClassification if reads_tokens else SEQUENCES)
    return stock or export_with_code(model, task)


def fill_stock(model: MultitaskBertModel, task: str, auto_class: type) -> PreTrainedModel | None:
    """A stock classifier of `auto_class` with the weights of a task's encoder and head; None if the architecture has
    none, or its layers cannot hold the head."""
    spec, head = model.tasks[task], model.heads[task]
    squashed = getattr(head, "squashed", False)
    config = stock_classifier_config(model, task)
    if not squashed:  # else the pipeline would leave out the sigmoid
        config.problem_type = KINDS[spec.kind].problem_type
    try:
        stock = auto_class.from_config(config).eval()
    except ValueError:  # the architecture has none
        return None
    pooled = auto_class is SEQUENCES
    stock.base_model.load_state_dict(model.encoder(task).state_dict(), strict=False)  # it may have no pooler
    weight, bias = KINDS[spec.kind].stock_layer(spec, *head.linear(), squashed)
    own = [layer for key, layer in stock.named_modules() if not key.startswith(f"{stock.base_model_prefix}.")]
    *dense, last = [layer for layer in own if isinstance(layer, nn.Linear)] or [None]
    pooler = pooler_layer(model.encoder(task))
    before = dense[0] if dense else pooler_layer(stock.base_model) if pooled else None
    for layer, out in stock_layers(weight, before, pooler if model.pooling(task) == "pooler" else None):
        if last is None or last.weight.shape != out.shape:
            continue
        with torch.no_grad():
            if layer is not None:
                before.weight.copy_(layer[0])
                if before.bias is not None:
                    before.bias.copy_(layer[1])
            last.weight.copy_(out)
            last.bias.copy_(bias)
        if agree(stock, model, task, weight, bias):
            return stock
    return None


def stock_classifier_config(model: MultitaskBertModel, task: str):
    """The settings of a stock classifier of a task: the encoder's, the labels' names, and the head's dropout."""
    spec, config = model.tasks[task], model.config.stock()
    labels = spec.label_names or (spec.name,)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    for field in vars(config):
        if "classif" in field and "dropout" in field:  # each architecture has a name of its own for it
            setattr(config, field, spec.dropout)
    return config


def pooler_layer(encoder: PreTrainedModel) -> nn.Linear | None:
    """The linear layer of an encoder's pooler, if it has one."""
    pooler = getattr(encoder, "pooler", None)
    layers = [layer for layer in pooler.modules() if isinstance(layer, nn.Linear)] if pooler is not None else []
    return layers[0] if len(layers) == 1 else None


def stock_layers(
    weight: Tensor, before: nn.Linear | None, pooler: nn.Linear | None
) -> Iterator[tuple[tuple[Tensor, Tensor] | None, Tensor]]:
    """Ways to write a head's layer as two layers with an activation between them: the first layer's weight and bias,
    and the last one's weight.

    Args:
        weight: of the head's layer, (C, H).
        before: the stock classifier's first layer, (W, H); None if it has a single layer.
        pooler: the layer of the encoder's pooler if the head reads that; None if it reads [CLS].
    """
    if before is None:
        yield None, weight
        return
    if pooler is not None:
        yield (pooler.weight.detach().clone(), pooler.bias.detach().clone()), weight
        return
    classes, width = len(weight), len(before.weight)
    zeros = before.weight.new_zeros(width)
    if width == weight.shape[1]:  # in the range where tanh is the identity
        yield (torch.eye(width) * TANH_SCALE, zeros), weight / TANH_SCALE
    if 2 * classes <= width:  # f(x) - f(-x) is x for ReLU, GELU and SiLU
        halves = torch.zeros_like(before.weight)
        halves[: 2 * classes] = torch.cat([weight, -weight])
        signs = torch.zeros(classes, width)
        signs[:, : 2 * classes] = torch.cat([torch.eye(classes), -torch.eye(classes)], 1)
        yield (halves, zeros), signs


@torch.no_grad()
def agree(stock: PreTrainedModel, model: MultitaskBertModel, task: str, weight: Tensor, bias: Tensor) -> bool:
    """Whether a stock classifier gives the same logits as the head's layer, on a few tokens."""
    ids = torch.arange(model.config.vocab_size - 4, model.config.vocab_size).unsqueeze(0)
    encoder = model.encoder(task)
    training = encoder.training
    encoder.eval()
    encoded = model.encode(task, ids, return_dict=True)
    encoder.train(training)
    reads_tokens = getattr(model.heads[task], "reads_tokens", False)
    embedding = encoded.last_hidden_state if reads_tokens else model.pool(task, encoded, None)
    expected = nn.functional.linear(embedding, weight, bias)
    return torch.allclose(stock(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def export_with_code(model: MultitaskBertModel, task: str) -> PreTrainedModel:
    """One task with its encoder, as a model whose code is saved with it."""
    alone = SEQUENCES.from_config(model.config.of_task(model.tasks[task].to_config()))
    alone.encoder(task).load_state_dict(model.encoder(task).state_dict())
    alone.heads[task].load_state_dict(model.heads[task].state_dict())
    return alone.eval()
