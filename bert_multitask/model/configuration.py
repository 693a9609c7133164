"""Configuration of a multitask BERT: BERT's own settings, and the tasks as plain data.

It is one of the model files, which import nothing else of the package, so that a checkpoint can carry them
(docs/architecture.md).
"""

import os
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Self

from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import BertConfig

from .errors import InputError

ENCODER_SHARING = ("shared", "per_task")
PAIR_ENCODING = ("joint", "separate")
POOLING = ("cls", "pooler", "mean")


class MultitaskBertConfig(BertConfig):
    """A `BertConfig` that also says which heads sit on which encoder.

    With a shared encoder `model_type` stays "bert", and the encoder keeps Hugging Face's parameter names, so that a
    saved multitask model is also a checkpoint that a stock `transformers.BertModel` reads.

    Attributes:
        tasks: the fields of each `Task`, as plain data, one dictionary a task. None, the default, is an encoder
            without heads.
        pair_encoding: "joint", a pair's texts as one sequence (TPE, section 4.3), or "separate", each on its own
            (section 4.1); of the tasks that do not say it themselves.
        pooling: what embeds a sequence: "cls", the last hidden state of [CLS] (section 4.1); "pooler", BERT's
            pre-trained tanh(linear([CLS])); "mean", over the tokens that are not padding (section 7); of the tasks that
            do not say it themselves.
    """

    tasks: list | None = None  # a list, because JSON configurations sort the keys of dictionaries
    pair_encoding: str = "joint"
    pooling: str = "cls"
    encoder_sharing = "shared"  # no field: the model type says it

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Read a configuration from a folder, a Hub id or a `package:` name (see `resolve_folder`).

        Raises:
            InputError: as `stored_fields`.
        """
        model_type = cls.stored_fields(pretrained_model_name_or_path, **kwargs)["model_type"]
        config_class = PerTaskBertConfig if model_type == PerTaskBertConfig.model_type else MultitaskBertConfig
        folder_or_id = resolve_checkpoint(pretrained_model_name_or_path)
        return super(MultitaskBertConfig, config_class).from_pretrained(folder_or_id, **kwargs)

    @classmethod
    def stored_fields(cls, name: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        """The fields of a checkpoint's config.json, as they are stored.

        Args:
            name: folder, Hub id or `package:NAME/PATH`.
            **kwargs: where and how to look, as `from_pretrained` takes them (`revision`, `token`, …); others are
                ignored.

        Raises:
            InputError: there is no such folder or no configuration, it cannot be read, or it is another architecture's.
                Transformers itself only warns of that, and would then fill the model with random weights.
        """
        try:
            fields = cls.get_config_dict(resolve_checkpoint(name), **kwargs)[0]
        except (OSError, ValueError, TypeError, RecursionError) as error:  # the Hub is out of reach, no Hub id, no JSON
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name}: its config.json cannot be loaded ({hub_reason(error)})") from error
        if not fields:
            raise InputError(f"{name} has no config.json; expected a BERT checkpoint's folder")
        if fields.get("model_type") not in (MultitaskBertConfig.model_type, PerTaskBertConfig.model_type):
            raise InputError(
                f"{name} is a checkpoint of type {fields.get('model_type')!r}, not "
                f"{MultitaskBertConfig.model_type!r}: choose a BERT checkpoint (its config.json says "
                '"model_type": "bert"), for example google-bert/bert-base-uncased'
            )
        return fields


def hub_reason(error: Exception) -> str:
    """The reason of an error that Transformers raised on its way to a file of the Hub."""
    if isinstance(error.__cause__, LocalEntryNotFoundError):
        return "it is not in the Hub's cache, and the Hub is out of reach or HF_HUB_OFFLINE is set"
    return str(error)


class PerTaskBertConfig(MultitaskBertConfig):
    """The configuration of a model with one encoder for each task (the paper's 3-BERT, section 4.2.1). It has a model
    type of its own, because a stock `BertModel` would find none of its weights in such a checkpoint, and begin at
    random."""

    model_type = "multitask_bert"
    encoder_sharing = "per_task"


# A saved configuration names and carries its code, for `trust_remote_code=True`.
MultitaskBertConfig.register_for_auto_class()
PerTaskBertConfig.register_for_auto_class()


def resolve_folder(name: str | os.PathLike) -> str:
    """Turn `package:NAME/PATH` into the folder PATH inside the installed top-level Python package NAME.

    Any other name (a folder or a Hub id) is returned as it is, with `~` expanded. The package is located without
    importing anything.

    Raises:
        InputError: NAME is not the name of a top-level package, it is not installed, or it has no such folder; or PATH
            leaves the package.
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


def resolve_checkpoint(name: str | os.PathLike) -> str:
    """`resolve_folder` of a checkpoint, which must exist where the name can only be a folder's.

    Raises:
        InputError: there is no such folder; or as `resolve_folder`.
    """
    folder_or_id = resolve_folder(name)
    if folder_or_id.startswith(("/", ".")) and not os.path.exists(folder_or_id):  # no Hub id begins so
        raise InputError(f"{name}: no such folder")
    return folder_or_id
