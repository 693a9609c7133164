"""Encoders other than BERT, which run by Transformers' code: which of them can have our heads, and how they are called.

No architecture is named here. The differences between them are read from the class, its configuration and its modules.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from .errors import InputError
from .packing import Packing

NEEDED = ("input_ids", "attention_mask", "inputs_embeds")  # arguments that an encoder must take
UNLIMITED = 2**31 - 1  # the length of rows for an encoder without a limit


def check_type(name: str, model_type: str | None) -> None:
    """Refuse a type of model that is not part of Transformers. Code from a checkpoint is never run.

    Raises:
        InputError: names the type.
    """
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            f"{name} is a checkpoint of type {model_type!r}, which this version of Transformers does not have; choose "
            "another encoder, for example google-bert/bert-base-uncased"
        )


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that `AutoModel` uses for a configuration; None if it has none."""
    found = MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, (list, tuple)) else found


def check_architecture(config: PreTrainedConfig) -> None:
    """Refuse a configuration that is not one of a bidirectional text encoder.

    Raises:
        InputError: says what it is instead.
    """
    model_class = stock_class(config)
    taken = inspect.signature(model_class.forward).parameters if model_class else ()
    missing = [name for name in NEEDED if name not in taken]
    reason = None
    if config.is_encoder_decoder:
        reason = "an encoder-decoder, but the heads need an encoder"
    elif "input_ids" not in taken:
        reason = "not a model of texts: it takes no input_ids"
    elif getattr(config, "is_decoder", False) or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        is_decoder = getattr(config, "is_decoder", False) or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        reason = "a decoder, whose tokens see only those before them" if is_decoder else "not a masked language model"
    elif missing:
        reason = f"an encoder that takes no {missing[0]}"
    if reason:
        raise InputError(
            f"is a checkpoint of type {config.model_type!r}, {reason}; choose a bidirectional encoder, for example "
            "google-bert/bert-base-uncased or FacebookAI/roberta-base"
        )


def new_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with random weights.

    Raises:
        InputError: as `check_architecture`.
    """
    check_architecture(config)
    return AutoModel.from_config(config, trust_remote_code=False)


@torch.no_grad()
def check_embeddings(encoder: PreTrainedModel) -> None:
    """Refuse an encoder that does not compute the same from its word embeddings as from tokens. SMART and attribution
    give it word embeddings.

    Args:
        encoder: in evaluation mode.

    Raises:
        InputError: the hidden states differ, or a call fails.
    """
    ids = torch.arange(encoder.config.vocab_size - 3, encoder.config.vocab_size).unsqueeze(0)
    try:
        found = run_encoder(encoder, inputs_embeds=encoder.get_input_embeddings()(ids)).last_hidden_state
        is_same = torch.allclose(found, run_encoder(encoder, ids).last_hidden_state, rtol=1e-3, atol=1e-3)
    except Exception:  # encoders raise many kinds of errors
        is_same = False
    if not is_same:
        raise InputError(
            f"its encoder, of type {encoder.config.model_type!r}, does not compute the same from inputs_embeds as from "
            "input_ids, which this package needs; choose another, for example FacebookAI/roberta-base"
        )


def find_max_length(config: PreTrainedConfig) -> int:
    """The most tokens of a row that an encoder takes: its number of positions. RoBERTa and similar encoders reserve
    some of them for padding, which their position embeddings show by a `padding_idx`."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None:
        return UNLIMITED
    with torch.device("meta"):
        encoder = new_encoder(config)
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return longest - module.padding_idx - 1
    return longest


def has_pooler(encoder: PreTrainedModel) -> bool:
    """Whether an encoder has a pooler, a pre-trained layer on its first token."""
    return getattr(encoder, "pooler", None) is not None


def run_encoder(
    encoder: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    *,
    inputs_embeds: Tensor | None = None,
    first_token_only: bool = False,
    packing: Packing | None = None,
    perturbation: Tensor | None = None,
    **options: Any,
) -> BaseModelOutputWithPoolingAndCrossAttentions:
    """Run a stock encoder with the arguments of `MinBertModel.forward`. As there, hidden states are 0 at padding.

    Token types are passed on only if the encoder has more than one. `first_token_only` and `packing` have no effect.

    Raises:
        InputError: a perturbation is given.
    """
    if perturbation is not None:
        raise InputError("only minBERT takes a perturbation of its embedding layer's output; perturb inputs_embeds")
    tokens = input_ids if input_ids is not None else inputs_embeds
    if attention_mask is None:
        attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
    if (
        getattr(encoder.config, "type_vocab_size", 0) > 1
        and "token_type_ids" in inspect.signature(encoder.forward).parameters
    ):
        inputs["token_type_ids"] = token_type_ids
    given = {name: value for name, value in (inputs | options).items() if value is not None}
    outputs = encoder(**given)
    hidden = outputs.last_hidden_state
    return BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=hidden.where(attention_mask.bool().unsqueeze(-1), 0),
        pooler_output=outputs.get("pooler_output"),
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
    )
