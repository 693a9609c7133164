"""Configuration of a multitask model: its encoder's own settings, and the tasks as plain data.

It is one of the model files, which import nothing else of the package, so that a checkpoint can carry them
(docs/architecture.md).
"""

import copy
import os
import socket
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from transformers import AutoConfig, BertConfig, PreTrainedConfig

from .errors import InputError, explained
from .stock import check_architecture, check_type, find_max_length

ENCODER_SHARING = ("shared", "adapters", "per_task")
PAIR_ENCODING = ("joint", "separate")
POOLING = ("cls", "pooler", "mean")


class MultitaskBertConfig(BertConfig):
    """A `BertConfig` that also says which heads sit on which encoder.

    With a shared encoder `model_type` stays "bert", and the encoder keeps Hugging Face's parameter names, so that a
    saved multitask model is also a checkpoint that a stock `transformers.BertModel` reads.

    Attributes:
        tasks: the fields of each `Task`, as plain data, one dictionary a task. None, the default: an encoder without
            heads.
        pair_encoding: "joint", a pair's texts as one sequence (TPE, section 4.3), or "separate", each on its own
            (section 4.1); a task may have its own value.
        pooling: how a sequence becomes one vector: "cls", the last hidden state of [CLS] (section 4.1); "pooler",
            BERT's pre-trained tanh(linear([CLS])); "mean", over the tokens that are not padding (section 7). A task may
            have its own value.
    """

    tasks: list | None = None  # a list, because JSON configurations sort the keys of dictionaries
    pair_encoding: str = "joint"
    pooling: str = "cls"
    encoder_sharing = "shared"  # this and `lora` are no fields: the model type says them
    lora = None
    dropout_fields = ("hidden_dropout_prob", "attention_probs_dropout_prob")  # the encoder's probabilities of dropout

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> "MultitaskBertConfig | MultitaskConfig":
        """Read a configuration from a folder, a Hub id or a `package:` name (see `resolve_folder`). That of an encoder
        other than BERT becomes a `MultitaskConfig`.

        Raises:
            InputError: there is no such configuration, or it cannot be read (see `stored_fields`).
        """
        fields, unused = cls.stored_fields(pretrained_model_name_or_path, **kwargs)
        if fields["model_type"] not in OWN_TYPES:
            return MultitaskConfig.around(resolve_checkpoint(pretrained_model_name_or_path), **kwargs)
        return OWN_TYPES[fields["model_type"]].from_dict(fields, **unused)

    @classmethod
    def stored_fields(cls, name: str | os.PathLike, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a checkpoint's config.json, as they are stored, and the arguments that do not say where it is.

        Args:
            name: folder, Hub id or `package:NAME/PATH`.
            **kwargs: where and how to look, as `from_pretrained` takes them (`revision`, `token`, …), and others.

        Raises:
            InputError: there is no such folder or no configuration, it cannot be read, or Transformers has no code of
                its type.
        """
        where = "" if os.path.isdir(name) else "no such folder here, and "
        damage = (OSError, ValueError, TypeError, RecursionError)  # the Hub is out of reach, no Hub id, no JSON
        with explained(f"{name}: {where}its config.json cannot be loaded", *damage):
            folder_or_id = resolve_checkpoint(name)
            if not os.path.isdir(folder_or_id) and is_offline():
                kwargs["local_files_only"] = True  # else the Hub's client waits and tries again, for 23 seconds
            fields, unused = cls.get_config_dict(folder_or_id, **kwargs)
        if not fields:
            raise InputError(f"{name} has no config.json; {expected_folder(folder_or_id)}")
        if fields.get("model_type") == MultitaskConfig.model_type and not isinstance(fields.get("text_config"), dict):
            raise InputError(
                f"{name}: its config.json is damaged: it has no text_config, which says what its encoder is"
            )
        if fields.get("model_type") not in OWN_TYPES:
            check_type(str(name), fields.get("model_type"))
        return fields, unused

    def refuse_stock_models(self) -> None:
        """Take values that make stock classes raise instead of starting from random weights: the dropout and the number
        of labels for classifiers, which would find no head here; cross-attention for BertModel, where it would find no
        encoder."""
        self.classifier_dropout = -1
        self.num_labels = 0
        self.add_cross_attention = self.model_type == PerTaskBertConfig.model_type

    def in_layout(self, encoder_sharing: str, lora: dict | None = None) -> "MultitaskBertConfig":
        """The same in another layout, whose fields are those of `PerTaskBertConfig`."""
        layout = {"encoder_sharing": encoder_sharing, "lora": lora}
        fields = {key: value for key, value in self.to_dict().items() if key not in {"model_type", *layout}}
        is_stock = encoder_sharing == "shared" and lora is None
        config = MultitaskBertConfig(**fields) if is_stock else PerTaskBertConfig(**fields, **layout)
        config._attn_implementation = self._attn_implementation
        return config

    def stock(self) -> BertConfig:
        """BERT's own settings, without ours."""
        ours = {"tasks", "pair_encoding", "pooling", "auto_map", "architectures", "model_type", "id2label", "label2id"}
        ours |= {"encoder_sharing", "lora", "classifier_dropout", "add_cross_attention"}  # the last two are refused
        return BertConfig(**{key: value for key, value in self.to_dict().items() if key not in ours})

    def of_task(self, task: dict) -> "PerTaskBertConfig":
        """The configuration of one task with its encoder."""
        fields = {key: value for key, value in self.stock().to_dict().items() if key != "model_type"}
        layout = {"pair_encoding": self.pair_encoding, "pooling": self.pooling}
        return PerTaskBertConfig(**fields | layout, tasks=[task])


def is_offline() -> bool:
    """Whether the Hub is not to be asked, or its name has no address, as without a network. Behind a proxy, which looks
    the name up, nobody knows."""
    if constants.is_offline_mode() or getproxies():
        return constants.is_offline_mode()
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except socket.gaierror:
        return True
    return False


class PerTaskBertConfig(MultitaskBertConfig):
    """The configuration of a model with one encoder for each task (the paper's 3-BERT, section 4.2.1), or with
    adapters. It has a model type of its own, because a stock `BertModel` would find none of its weights in such a
    checkpoint, or not all, and begin at random. The class has the name that checkpoints give in `auto_map`; it is older
    than adapters.

    Attributes:
        encoder_sharing: "per_task"; "adapters", one encoder with an adapter for each task; or "shared", with one
            adapter for all.
        lora: the adapters' settings (`adapters.lora_fields`); None, there are none.
    """

    model_type = "multitask_bert"

    encoder_sharing: str = "per_task"
    lora: dict | None = None


class MultitaskConfig(PreTrainedConfig):
    """The configuration of a model with any other encoder than BERT, shared or one for each task.

    Attributes:
        text_config: the encoder's own configuration, whole. The other fields are those of `PerTaskBertConfig`.
    """

    model_type = "multitask"
    sub_configs = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    tasks: list | None = None
    pair_encoding: str = "joint"
    pooling: str = "cls"
    encoder_sharing: str = "shared"
    lora: dict | None = None

    def __post_init__(self, **kwargs: Any):
        if isinstance(self.text_config, dict):
            check_type("text_config of config.json", self.text_config.get("model_type"))
            self.text_config = AutoConfig.for_model(**self.text_config)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MultitaskConfig | tuple":
        """Overridden to set fields of the encoder's configuration, where such are given."""
        found = super().from_dict(config_dict, **kwargs)
        config, given = found if isinstance(found, tuple) else (found, kwargs)
        for name in [name for name in given if hasattr(config.text_config, name) and not hasattr(config, name)]:
            setattr(config.text_config, name, given.pop(name))
        return found

    @classmethod
    def around(cls, folder_or_id: str, **kwargs: Any) -> "MultitaskConfig":
        """The configuration of a new model with a stock checkpoint's encoder. The arguments are those of
        `from_pretrained`, ours and the encoder's.

        Raises:
            InputError: the checkpoint is not a bidirectional encoder of texts.
        """
        asked = kwargs.pop("return_unused_kwargs", False)
        ours = {name: kwargs.pop(name) for name in ("tasks", "pair_encoding", "pooling") if name in kwargs}
        encoder, unused = AutoConfig.from_pretrained(
            folder_or_id, return_unused_kwargs=True, trust_remote_code=False, **kwargs
        )
        with explained(folder_or_id, InputError):
            check_architecture(encoder)
        config = cls(text_config=encoder, name_or_path=folder_or_id, **ours)
        return (config, unused) if asked else config

    def refuse_stock_models(self) -> None:
        """Nothing to do: no stock class knows the type."""

    def in_layout(self, encoder_sharing: str, lora: dict | None = None) -> "MultitaskConfig":
        """The same in another layout."""
        return type(self)(**self.to_dict() | {"encoder_sharing": encoder_sharing, "lora": lora})

    def stock(self) -> PreTrainedConfig:
        """A copy of the encoder's own configuration."""
        return copy.deepcopy(self.text_config)

    def of_task(self, task: dict) -> "MultitaskConfig":
        """The configuration of one task with its encoder."""
        layout = {"pair_encoding": self.pair_encoding, "pooling": self.pooling, "encoder_sharing": "per_task"}
        return type(self)(text_config=self.stock(), tasks=[task], **layout)

    @property
    def dropout_fields(self) -> tuple[str, ...]:
        """The encoder's fields that are probabilities of dropout."""
        fields = self.text_config.to_dict().items()
        return tuple(name for name, value in fields if "dropout" in name and isinstance(value, float | int))

    # What is asked of any encoder's configuration.
    hidden_size = property(lambda self: self.text_config.hidden_size)
    num_hidden_layers = property(lambda self: self.text_config.num_hidden_layers)
    type_vocab_size = property(lambda self: getattr(self.text_config, "type_vocab_size", 1))  # 1: it takes no types
    pad_token_id = property(lambda self: self.text_config.pad_token_id)
    # The most tokens of a row, without positions that the encoder keeps for padding.
    max_position_embeddings = property(lambda self: find_max_length(self.text_config))
    # `resize_token_embeddings` sets it.
    vocab_size = property(
        lambda self: self.text_config.vocab_size, lambda self, value: setattr(self.text_config, "vocab_size", value)
    )


# The types of checkpoints with heads, and BERT's own. Every other type is an encoder that Transformers runs.
OWN_TYPES = {config.model_type: config for config in (MultitaskBertConfig, PerTaskBertConfig, MultitaskConfig)}

# A saved configuration names and carries its code, for `trust_remote_code=True`.
for config_class in OWN_TYPES.values():
    config_class.register_for_auto_class()


def resolve_folder(name: str | os.PathLike) -> str:
    """Turn `package:NAME/PATH` into the folder PATH inside the installed top-level Python package NAME.

    Any other name (a folder or a Hub id) is returned as it is, with `~` expanded. The package is located without
    importing anything.

    Raises:
        InputError: NAME is not the name of a top-level package, the package is not installed or has no folder PATH, or
            PATH leaves it.
    """
    name = os.path.expanduser(os.fspath(name))
    if not name.startswith("package:"):
        return name
    package, _, path = name.removeprefix("package:").partition("/")
    if not package.isidentifier():  # with a dot, Python would import the parent package to look inside it
        raise InputError(f"{name}: {package!r} is no name of a top-level package; expected package:NAME/PATH")
    # Not `importlib.util.find_spec`: for a module that is loaded already it returns what that module says of itself.
    spec = PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name}: no Python package {package!r} is installed; install it with pip, or name a folder")
    root = Path(list(spec.submodule_search_locations)[0])
    folder = root / path
    if not folder.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{name}: {path!r} is outside the package {package!r}; name a folder inside it")
    if not folder.is_dir():
        raise InputError(f"{name}: the package {package!r} has no folder {path!r}")
    return str(folder)


def expected_folder(folder: str) -> str:
    """What to do about a folder without a model, for messages: training leaves checkpoints in it before the model."""
    saved = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir()]
    if not saved:
        return "expected the folder of an encoder or a model"
    newest = max(saved, key=lambda path: (len(path.name), path.name))
    finish = "--resume_from_checkpoint" if Path(folder, "run.json").exists() else "trainer.save_model()"
    return f"finish its training with {finish}, or give a checkpoint: {newest}"


def resolve_checkpoint(name: str | os.PathLike) -> str:
    """`resolve_folder` of a checkpoint, which must exist where the name can only be a folder's.

    Raises:
        InputError: there is no such folder; or as `resolve_folder`.
    """
    folder_or_id = resolve_folder(name)
    if folder_or_id.startswith(("/", ".")) and not os.path.exists(folder_or_id):  # no Hub id begins so
        raise InputError(f"{name}: no such folder")
    return folder_or_id
