"""LoRA adapters in an encoder, through the package peft: one for all tasks, or one for each (Hu et al., 2022)."""

import copy
import dataclasses
import threading
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import InputError, explained, install

SHARED = "default"  # name of an adapter that all tasks use; an adapter of one task has the task's name
# The fields of peft.LoraConfig that may be set: the encoder's own weights stay fixed, and adapters can be merged.
FIELDS = ("r", "lora_alpha", "target_modules", "exclude_modules", "lora_dropout", "use_rslora", "use_dora")
FIELDS += ("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern")

# The default: all linear layers but the pooler's, which no head reads by default.
EVERYWHERE = {"target_modules": "all-linear", "exclude_modules": r".*\bpooler\b.*"}
IN_USE = threading.RLock()  # only one thread at a time may run a model with several adapters


def import_peft():
    """The package peft.

    Raises:
        InputError: it is not installed.
    """
    try:  # Transformers makes a checkpoint's code need every package that it imports, except within `try`
        import peft
    except ImportError as error:
        raise InputError(f"adapters need peft: {install('lora')}") from error
    return peft


def lora_fields(given: Any) -> dict[str, Any]:
    """Settings of adapters as plain data: those that differ from peft's defaults; EVERYWHERE if they name no layers.

    Args:
        given: a `peft.LoraConfig`, or a dictionary of its fields.

    Raises:
        InputError: it is something else, sets a field that is not in FIELDS, or has a value that peft refuses.
    """
    config_class = import_peft().LoraConfig
    with explained("peft_config", TypeError, ValueError):
        config = config_class(**given) if isinstance(given, Mapping) else given
    if not isinstance(config, config_class):
        raise InputError(f"peft_config is a {type(config).__name__}; expected a peft.LoraConfig")
    default, values = dataclasses.asdict(config_class()), dataclasses.asdict(config)
    fields = {name: value for name, value in values.items() if value != default[name]}
    if others := sorted(fields.keys() - set(FIELDS)):
        raise InputError(
            f"peft_config sets {others[0]}; leave it out: heads are always trained, the encoder's own weights never, "
            f"and the fields that may be set are {', '.join(FIELDS)}"
        )
    if fields.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise InputError(
            f"peft_config has init_lora_weights {fields['init_lora_weights']!r}, which changes the encoder's own "
            "weights; expected True or 'gaussian'"
        )
    fields = {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
    return fields if "target_modules" in fields else EVERYWHERE | fields


def add_adapters(encoder: PreTrainedModel, fields: Mapping[str, Any], names: Iterable[str]) -> None:
    """Add adapters with these names, and fields from `lora_fields`, to an encoder in place. Then only they are trained.

    Raises:
        InputError: a named layer does not exist, or peft refuses it.
    """
    peft = import_peft()
    layers = [name for name, part in encoder.named_modules() if isinstance(part, (nn.Linear, nn.Embedding))]
    targets = fields.get("target_modules")
    for target in targets if isinstance(targets, list) else ():
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            known = dict.fromkeys(layer.rpartition(".")[2] for layer in layers)
            raise InputError(f"adapters: this encoder has no layer {target!r}; it has {', '.join(known)}")
    for name in names:
        # peft warns about a second adapter.
        with explained("adapters", TypeError, ValueError), warnings.catch_warnings(action="ignore"):
            config = peft.LoraConfig(**copy.deepcopy(dict(fields)))  # a copy, since peft changes it
            peft.inject_adapter_in_model(config, encoder, name)
    train_adapters(encoder)


def train_adapters(encoder: nn.Module) -> None:
    """Set `requires_grad` for an encoder's adapters only."""
    for name, weight in encoder.named_parameters():
        weight.requires_grad_(".lora_" in name)


def use_adapter(encoder: nn.Module, name: str) -> None:
    """Make an encoder compute with one of its adapters from now on."""
    for part in encoder.modules():
        if hasattr(part, "lora_A"):
            part._active_adapter = [name]  # peft's `set_adapter` would also freeze the others


def merged_weights(encoder: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """{name: weight} of an encoder without adapters that computes the same as this one with one of its adapters: each
    layer has W + α/r · B A."""
    encoder = copy.deepcopy(encoder)  # peft adds in place
    for part in encoder.modules():
        if hasattr(part, "lora_A"):
            part.merge(adapter_names=[name])
    state = encoder.state_dict().items()
    return {key.replace(".base_layer.", "."): weight for key, weight in state if ".lora_" not in key}
