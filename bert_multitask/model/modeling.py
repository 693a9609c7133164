"""The multitask model: one encoder for all tasks, or one for each, and a head for each task. BERTs run as minBERT,
other encoders by Transformers' code.

The texts of a pair are encoded jointly, as one sequence (TPE, paper section 4.3), or separately, as two (section 4.1).
A separately encoded pair has one more axis, of length 2, as in Hugging Face's multiple-choice models: tokens (B, 2, L),
embeddings (B, 2, H).
"""

import copy
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import torch
from huggingface_hub import create_repo, file_exists, upload_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, SequenceClassifierOutput
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.generic import can_return_tuple

from .adapters import IN_USE, SHARED, add_adapters, lora_fields, merged_weights, train_adapters, use_adapter
from .card import model_card
from .configuration import (
    ENCODER_SHARING,
    OWN_TYPES,
    PAIR_ENCODING,
    POOLING,
    MultitaskBertConfig,
    MultitaskConfig,
    PerTaskBertConfig,
)
from .encoder import MinBertModel, MinBertPreTrainedModel, check_stored_types, is_encoder_weight
from .errors import InputError, explained
from .heads import HEADS, HeadLinear, find_head
from .kinds import find_entry
from .losses import DIVERGENCES, LOSSES
from .packing import Packing
from .stock import check_embeddings, has_pooler, new_encoder, run_encoder
from .tasks import Task, check_list, find_task, load_task, load_tasks, units

logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that say where a checkpoint's files are.
PLACES = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies", "subfolder")


def head_meaning(task: Task, layout: Mapping[str, Any]) -> dict[str, object]:
    """{setting: value} of what decides the meaning of a head's weights: its outputs, and the embeddings that it reads.

    Args:
        task: the head's task.
        layout: fields of the model's configuration, of which `pooling` and `pair_encoding` are read.
    """
    meaning = {name: getattr(task, name) for name in ("kind", "label_names", "score_range")}
    pair_encoding = task.pair_encoding or layout.get("pair_encoding", "joint")
    separate = task.text_pair is not None and pair_encoding == "separate"
    meaning |= {"texts a row": 2 if task.text_pair else 1, "pooling": task.pooling or layout.get("pooling", "cls")}
    meaning |= {"pair_encoding": pair_encoding} if task.text_pair else {}
    return meaning | {"head": find_head(task, 1 + separate)}


def check_heads(name: str | os.PathLike, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to load a trained head for a task that has the same name but another meaning.

    Settings that do not change the meaning of the weights may differ: epochs, dropout, files, weights of regularisers.

    Args:
        name: the checkpoint's name.
        stored: the fields of its configuration.
        wanted: the fields of the configuration of the model to load.

    Raises:
        InputError: names the task and the field, with both values.
    """
    with explained(f"{name}: its config.json is damaged", InputError):
        trained = load_tasks(stored.get("tasks") or ())
    for task in map(load_task, wanted.get("tasks") or ()):
        if task.name not in trained:
            continue
        before = head_meaning(trained[task.name], stored)
        for field, value in head_meaning(task, wanted).items():
            if value != before.get(field):
                raise InputError(
                    f"{name} has a head for task {task.name!r} that was trained with {field} {before.get(field)!r}, "
                    f"not {value!r}; give the task another name to get a new head, or use the run's {field}"
                )


@contextmanager
def no_load_report() -> Iterator[None]:
    """Keep Transformers from logging its table of missing and unexpected weights: `describe_loading` replaces it."""
    log = logging.get_logger("transformers.modeling_utils")

    def keep(record) -> bool:
        """Whether a log record is not that table."""
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def describe_loading(tasks: Iterable[str], info: Mapping[str, Iterable[str]]) -> str:
    """Which weights a checkpoint lacked, and which it had that the model does not, in one line; empty if all fit.

    Args:
        tasks: the model's tasks.
        info: Transformers' missing and unexpected keys.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    new = [task for task in tasks if any(key.startswith(f"heads.{task}.") for key in missing)]
    others = [key for key in missing if not key.startswith("heads.")]
    parts = [f"{len(new)} new head{'s' * (len(new) > 1)}: {', '.join(new)}"] if new else []
    for what, keys in (("missing and start at random", others), ("not used", unexpected)):
        if keys:
            parts.append(f"{len(keys)} weights are {what}: {keys[0]}" + ", …" * (len(keys) > 1))
    return "; ".join(parts)


def check_whole(name: str | os.PathLike, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse a trained run whose configuration does not describe its weights.

    Args:
        name: the run's name.
        missing: weights that the configuration describes but the file lacks.
        unexpected: weights of the file that the configuration does not describe. Only heads and encoders count.

    Raises:
        InputError: names the first weight.
    """
    if gone := sorted(missing):
        raise InputError(f"{name} names tasks but lacks their weights, {gone[0]} first")
    if extra := sorted(key for key in unexpected if key.startswith(("heads.", "encoders."))):
        raise InputError(f"{name}: its config.json has no task for {len(extra)} of its weights, {extra[0]} first")


def check_loss_options(task: Task, head: str) -> None:
    """Refuse class weights and label smoothing if the task's loss does not take them, and a loss of scores in a range
    if the task has no range, or its head gives scores outside of it, where that loss has no gradient.

    Args:
        task: the task.
        head: key of its head.

    Raises:
        InputError: names the field.
    """
    taken = inspect.signature(LOSSES[task.loss]).parameters
    if "score_range" in taken and task.score_range is None:
        raise InputError(f"task {task.name!r}: loss {task.loss!r} needs a score_range: [lowest, highest]")
    if "score_range" in taken and not getattr(HEADS[head], "bounded", False):
        bounded = ", ".join(key for key, one in HEADS.items() if getattr(one, "bounded", False))
        raise InputError(
            f"task {task.name!r}: loss {task.loss!r} needs scores within the score_range, but head {head!r} does not "
            f"bound them; choose a head of {bounded}, or another loss"
        )
    for field in ("class_weights", "label_smoothing"):
        if getattr(task, field) and field not in taken:
            raise InputError(f"task {task.name!r}: loss {task.loss!r} takes no {field}; leave it out")


def check_layout(config: MultitaskBertConfig, tasks: Mapping[str, Task]) -> None:
    """Refuse an unknown pair encoding or pooling, of the model or of a task, and groups without a shared encoder.

    Raises:
        InputError: names the field and its choices.
    """
    for field, choices in (("pair_encoding", PAIR_ENCODING), ("pooling", POOLING)):
        for where, owner in [("", config), *((f"task {name!r}: ", task) for name, task in tasks.items())]:
            value = getattr(owner, field)
            if value not in choices and not (value is None and where):
                raise InputError(f"{where}{field} is {value!r}; choose one of {', '.join(choices)}")
    if config.encoder_sharing != "shared":
        for group, names in units(tasks.values()).items():
            if len(names) > 1:
                raise InputError(
                    f"tasks {', '.join(names)} are the group {group!r}, which one encoder reads in one pass, but with "
                    f"encoder_sharing {config.encoder_sharing!r} each task has its own: remove the group"
                )


def by_name(values: Any, task: str) -> dict[str, Any]:
    """A batch's labels, logits or divisors as {task: value}. For several tasks they have this form already; for one
    task they are the value itself, or None, which becomes {}."""
    return dict(values) if isinstance(values, Mapping) else {} if values is None else {task: values}


class MultitaskBertModel(MinBertPreTrainedModel):
    """One encoder for all tasks, or one for each, with a head for each task of `config.tasks`.

    `MultitaskBertModel.from_pretrained(ENCODER, tasks=["sst", "quora", "sts"])` puts new heads on the checkpoint of a
    BERT or of another bidirectional encoder (`MultitaskModel`). `from_pretrained(RUN)` loads a trained model with its
    heads.

    Args:
        config: configuration of a BERT or of another encoder, with tasks.
        encoder: used instead of a new encoder; with an encoder for each task, each gets a copy.
    """

    accepts_loss_kwargs = True  # `forward` divides by `num_items_in_batch`, so Trainer must count the step's rows
    takes_packing = True  # whether `forward` uses a `Packing` of the batch's mask

    def __new__(cls, config: MultitaskBertConfig | MultitaskConfig | None = None, *args, **kwargs):
        """Choose the class by the configuration. `copy` and `pickle` call this without one."""
        classes = {subclass.config_class: subclass for subclass in (PerTaskBertModel, MultitaskModel)}
        return super().__new__(classes.get(type(config), cls) if cls is MultitaskBertModel else cls)

    def __init__(self, config: MultitaskBertConfig | MultitaskConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        if not config.tasks:
            raise InputError("a MultitaskBertModel needs tasks, for example tasks=['sst', 'quora', 'sts']")
        config.refuse_stock_models()
        self.tasks = load_tasks(config.tasks)
        self.units = units(self.tasks.values())
        check_layout(config, self.tasks)
        for task in self.tasks.values():
            find_entry(task, "loss", LOSSES)
            check_loss_options(task, find_head(task, 1 + self.is_separate(task)))
            find_entry(task, "divergence", DIVERGENCES)
        if config.encoder_sharing != "per_task":
            setattr(self, self.base_model_prefix, self.new_encoder() if encoder is None else encoder)
        else:
            make = self.new_encoder if encoder is None else partial(copy.deepcopy, encoder)
            self.encoders = nn.ModuleDict({name: make() for name in self.tasks})
        self.heads = nn.ModuleDict()
        for name, task in self.tasks.items():
            texts = 1 + self.is_separate(task)
            self.heads[name] = HEADS[find_head(task, texts)](config.hidden_size, task, texts)
            if self.pooling(name) == "pooler" and not has_pooler(self.encoder(name)):
                raise InputError(
                    f"task {name!r}: pooling is 'pooler', and this encoder has none; choose 'cls' or 'mean'"
                )
        self.post_init()
        if config.lora is not None:
            add_adapters(self.base_model, config.lora, dict.fromkeys(map(self.adapter_name, self.tasks)))

    def new_encoder(self) -> PreTrainedModel:
        """An encoder with random weights."""
        return MinBertModel(self.config)

    def adapter_name(self, task: str) -> str:
        """The name of the adapter that a task uses, if the model has adapters."""
        return task if self.config.encoder_sharing == "adapters" else SHARED

    def is_separate(self, task: Task) -> bool:
        """Whether a row of the task is two sequences, each encoded on its own."""
        return task.text_pair is not None and (task.pair_encoding or self.config.pair_encoding) == "separate"

    def pooling(self, task: str) -> str:
        """The task's pooling: how a sequence's embedding is made (see `MultitaskBertConfig`)."""
        return self.tasks[task].pooling or self.config.pooling

    def check_task(self, task: str) -> None:
        """Raises InputError if the model does not have the task."""
        find_task(self.tasks, task)

    def members(self, name: str) -> list[str]:
        """The tasks of a group, or the task of that name."""
        if name not in self.units:
            self.check_task(name)
        return self.units.get(name, [name])

    def change_task(self, task: Task) -> None:
        """Replace the settings of a task, also in the saved configuration. Its head is not built again."""
        self.check_task(task.name)
        self.tasks[task.name] = task
        self.config.tasks = [task.to_config() for task in self.tasks.values()]

    def encoder(self, task: str) -> PreTrainedModel:
        """The encoder that a task uses. It computes with the task's adapter, if any, until the next call."""
        if self.config.encoder_sharing == "per_task":
            return self.encoders[task]
        if self.config.encoder_sharing == "adapters":
            use_adapter(self.base_model, task)
        return self.base_model

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Overridden to resize the word embeddings of every encoder; returns those of the first task's encoder.

        The arguments are those of `PreTrainedModel.resize_token_embeddings`. Encoders that had the same embeddings
        before also get the same embeddings of new tokens.
        """
        if self.config.encoder_sharing != "per_task":
            return super().resize_token_embeddings(*args, **kwargs)
        state = torch.get_rng_state()
        for encoder in self.encoders.values():
            torch.set_rng_state(state)
            encoder.resize_token_embeddings(*args, **kwargs)
            self.config.vocab_size = encoder.config.vocab_size
        return self.encoder(next(iter(self.tasks))).get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Overridden to initialise heads as `HeadLinear` describes; other new weights are initialised as in BERT."""
        if isinstance(module, HeadLinear) or (type(module) in HEADS.values() and hasattr(module, "reset_parameters")):
            module.reset_parameters()  # keeps loaded weights: Transformers makes torch's initialisers skip those
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        tasks: Sequence[str | dict | Task] | None = None,
        encoder_sharing: str | None = None,
        peft_config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load an encoder's checkpoint or a trained run (see `MinBertPreTrainedModel.from_pretrained`).

        Args:
            pretrained_model_name_or_path: folder, Hub id or `package:NAME/PATH`.
            tasks: names of the checkpoint's tasks or of presets, dictionaries of `Task` fields, or `Task`s. Needed for
                a checkpoint without heads; new heads are random until trained. Without `tasks` a trained run has all of
                its own. A task with the name of one of them keeps that task's weights, so it must have the same meaning
                (`check_heads`). A run with an encoder for each task takes no other tasks.
            encoder_sharing: "shared", "adapters" or "per_task"; by default as in the checkpoint. With "per_task" a
                checkpoint's one encoder is copied for each task; with "adapters" each task has an adapter in it.
            peft_config: a `peft.LoraConfig`, or its fields, for new adapters: one for each task with "adapters",
                otherwise one for all. Only adapters and heads are trained.
            output_loading_info: also return the names of missing and unexpected weights, instead of a warning that
                names the new heads.
            **kwargs: fields of the configuration, such as `pair_encoding` and `pooling`, and arguments of
                `PreTrainedModel.from_pretrained`.

        Raises:
            InputError: as `MinBertPreTrainedModel.from_pretrained`; or a trained run lacks weights of its heads, a
                task or the layout gives a trained head another meaning, the layout cannot be changed as asked, or the
                checkpoint lacks the pooler that `pooling` needs.
        """
        name = pretrained_model_name_or_path
        if encoder_sharing not in (None, *ENCODER_SHARING):
            raise InputError(f"encoder_sharing is {encoder_sharing!r}; choose one of {', '.join(ENCODER_SHARING)}")
        if tasks is not None:
            check_list(tasks)
            kwargs["tasks"] = tasks  # `read_checkpoint` knows those that the checkpoint has
        with no_load_report():
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        missing = sorted(info["missing_keys"])
        if tasks is None:
            check_whole(name, missing, info["unexpected_keys"])
        pooled = any(model.pooling(task) == "pooler" for task in model.tasks)
        if pooled and (gone := [key for key in missing if ".pooler." in key]):
            raise InputError(f"{name} lacks {gone[0]}, which pooling='pooler' needs; choose 'cls' or 'mean'")
        if model.config.lora is not None:
            train_adapters(model.base_model)  # a loaded model has requires_grad on all weights
        with explained(str(name), InputError):
            model = model.change_layout(encoder_sharing or model.config.encoder_sharing, peft_config)
        if not output_loading_info and (loaded := describe_loading(model.tasks, info)):
            logger.warning(f"{name}: {loaded}")
        return (model, info) if output_loading_info else model

    @classmethod
    def read_checkpoint(cls, folder_or_id: str, *args: Any, **kwargs: Any) -> tuple[Self, dict]:
        """Overridden to read checkpoints of other encoders than BERT, too, and to check the meaning of heads."""
        stored, _ = MultitaskBertConfig.stored_fields(folder_or_id, **kwargs)
        if "tasks" in kwargs:
            with explained(f"{folder_or_id}: its config.json is damaged", InputError):
                trained = load_tasks(stored.get("tasks") or ())
            kwargs["tasks"] = [task.to_config() for task in load_tasks(kwargs["tasks"], known=trained).values()]
        given = kwargs["config"].to_dict() if hasattr(kwargs.get("config"), "to_dict") else {}
        check_heads(folder_or_id, stored, stored | given | kwargs)
        if stored["model_type"] in OWN_TYPES:
            return super().read_checkpoint(folder_or_id, *args, **kwargs)
        return MultitaskModel.begin(folder_or_id, **kwargs)

    def push_to_hub(
        self, repo_id: str, *, token: bool | str | None = None, private: bool | None = None, **kwargs: Any
    ) -> str:
        """Overridden to add a card that names the tasks, if the repository has no card.

        It does not push the tokenizer, which has its own `push_to_hub`. `MultitaskTrainer.push_to_hub` pushes both, and
        the scores.
        """
        repo_id = create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id
        if not file_exists(repo_id, "README.md", token=token):
            # Not `ModelCard.push_to_hub`: older versions of it also ask huggingface.co, whatever HF_ENDPOINT is.
            card = model_card(self.tasks, self.config, repo_id).encode()
            upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id, token=token)
        return super().push_to_hub(repo_id, token=token, private=private, **kwargs)

    def change_layout(self, encoder_sharing: str, peft_config: Any) -> "MultitaskBertModel":
        """The model in another layout, or with new adapters; the model itself if nothing changes. Arguments are those
        of `from_pretrained`.

        Raises:
            InputError: this layout cannot become the other, or peft refuses the adapters.
        """
        before, lora = self.config.encoder_sharing, self.config.lora
        if peft_config is not None:
            if encoder_sharing == "per_task":
                raise InputError("an adapter for each task is encoder_sharing='adapters', not 'per_task'")
            if before == "per_task" or lora is not None:
                found = "an encoder for each task" if before == "per_task" else "adapters already"
                raise InputError(f"it has {found}, but new adapters need one plain encoder; use another checkpoint")
            config = self.config.in_layout(encoder_sharing, lora_fields(peft_config))
            model = MultitaskBertModel(config, self.base_model)
            model.heads = self.heads
            return model.train(self.training)
        if encoder_sharing == before:
            return self
        if encoder_sharing == "adapters":
            raise InputError("encoder_sharing='adapters' needs a peft_config (--lora_rank)")
        if encoder_sharing == "shared":
            one = "adapter" if lora else "encoder"
            raise InputError(f"it has an {one} for each task; these cannot become one shared encoder")
        model = self.merge_adapters()
        return model if model.config.encoder_sharing == encoder_sharing else model.split()

    def merge_adapters(self) -> "MultitaskBertModel":
        """A model without adapters that computes the same: with a shared encoder if there was one adapter, with an
        encoder for each task if there was one adapter for each. A model without adapters is returned as it is."""
        if self.config.lora is None:
            return self
        sharing = "per_task" if self.config.encoder_sharing == "adapters" else "shared"
        model = MultitaskBertModel(self.config.in_layout(sharing))
        for task in self.tasks if sharing == "per_task" else [*self.tasks][:1]:
            model.encoder(task).load_state_dict(merged_weights(self.base_model, self.adapter_name(task)))
        model.heads.load_state_dict(self.heads.state_dict())
        return model.to(self.device, self.dtype).train(self.training)

    def split(self) -> "MultitaskBertModel":
        """A copy of a model with a shared encoder in which each task has its own copy of the encoder."""
        config, weights = self.config.in_layout("per_task"), {}
        for key, value in self.state_dict().items():
            owner, _, rest = key.partition(".")
            keys = [f"encoders.{task}.{rest}" for task in self.tasks] if owner == "bert" else [key]
            weights |= {key: value.clone() for key in keys}
        with torch.device("meta"):  # spends no time and memory on weights that are replaced below
            model = type(self)(config)
        model.load_state_dict(weights, assign=True)
        return model.train(self.training)

    @can_return_tuple
    def forward(
        self,
        task: str | Sequence[str] | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | Mapping[str, Tensor] | None = None,
        num_items_in_batch: Tensor | int | Mapping[str, Tensor | int] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        packing: Packing | None = None,
        perturbation: Tensor | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | SequenceClassifierOutput:
        """Run one task on a batch of its rows, or several tasks with one pass of their encoder.

        Args:
            task: name of a task or of a group, or names of several tasks that share an encoder. Without it, the outputs
                of a shared encoder are returned; libraries that do not know tasks call it so.
            input_ids: vocabulary indices, integer (B, L); for a separately encoded pair (B, 2, L).
            attention_mask: 1 for real tokens and 0 for padding, of the same shape; all real by default.
            token_type_ids: segment indices, of the same shape; all 0 by default.
            inputs_embeds: word embeddings instead of `input_ids`, float, with one more axis, H.
            labels: classes, integer (B,), or scores, float (B,); other kinds of tasks may have more axes. A row without
                a label has the class -100 or the score NaN. For several tasks, {task: labels}.
            num_items_in_batch: divisor of the summed loss if this batch is a share of a larger one; by default
                `losses.count_items` of the labels. For several tasks, {task: divisor}.
            output_attentions: as for `MinBertModel`, and with its shapes; a separately encoded pair counts as two rows.
            output_hidden_states: as for `MinBertModel`.
            packing: that of the attention mask, if it has been made already (`Collator`); for a separately encoded pair
                that of (2B, L). Only minBERT uses it.
            perturbation: added to the embedding layer's output, after LayerNorm and dropout, float, in the shape of
                `inputs_embeds`. Only minBERT takes it.

        Returns:
            `logits`: (B, C) unnormalised class scores, (B,) logits of "yes", (B,) scores, or in the shape of another
            kind of head; for several tasks {task: logits}. `loss`, a scalar, if `labels` are given; for several tasks
            the sum of their losses, without `loss_weight`, which only the trainer applies.

        Raises:
            InputError: the model has no such task, or rows have one sequence although the task takes two, or two
                although it takes one.
        """
        if task is None and self.config.encoder_sharing == "shared":
            options = {"inputs_embeds": inputs_embeds, "packing": packing, "perturbation": perturbation}
            return self.encode(next(iter(self.tasks)), input_ids, attention_mask, token_type_ids, **options)
        names = self.members(task) if task is None or isinstance(task, str) else list(task)
        if len(names) > 1 and self.config.encoder_sharing != "shared":
            raise InputError(f"tasks {', '.join(names)} do not share an encoder; run them one after the other")
        given = input_ids, attention_mask, token_type_ids, inputs_embeds, perturbation
        for name in names:
            self.check_task(name)
            input_ids, attention_mask, token_type_ids, inputs_embeds, perturbation = self.flat_inputs(name, given)
        encoded = self.encode(
            names[0],
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,  # an old config.json may have return_dict: false
            first_token_only=self.reads_first_tokens(names),
            packing=packing,
            perturbation=perturbation,
        )
        logits = {name: self.read_encoded(name, encoded, attention_mask) for name in names}
        loss = None
        if labels is not None:
            labels, items = by_name(labels, task), by_name(num_items_in_batch, task)
            loss = sum(self.task_loss(name, logits[name], labels[name], items.get(name)) for name in labels)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits[task] if names == [task] else logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def flat_inputs(self, task: str, inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The inputs of a task's rows as sequences, (B, L); for a separately encoded pair (2B, L).

        Raises:
            InputError: rows have one sequence although the task takes two, or two although it takes one.
        """
        if not self.is_separate(self.tasks[task]):
            if inputs[0] is not None and inputs[0].dim() != 2:
                raise InputError(f"task {task!r} takes one sequence a row, (B, L), not {tuple(inputs[0].shape)}")
            return list(inputs)
        for given, dimensions in zip(inputs, (3, 3, 3, 4, 4), strict=True):
            if given is not None and (given.dim() != dimensions or given.shape[1] != 2):
                raise InputError(
                    f"task {task!r} encodes a pair's texts separately: expected inputs of shape (B, 2, L), each row "
                    f"the first text's tokens and the second's, not {tuple(given.shape)}"
                )
        return [None if given is None else given.flatten(0, 1) for given in inputs]

    def task_loss(self, task: str, logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
        """The loss of a task's logits; arguments are those of the functions in `losses.LOSSES`."""
        spec = self.tasks[task]
        return LOSSES[spec.loss](logits=logits, labels=labels, num_items=num_items, **spec.loss_options)

    def forward_all(
        self, tasks: Sequence[str], input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> dict[str, Tensor]:
        """Run several tasks on the same rows; a shared encoder runs only once.

        Args:
            tasks: names of the tasks. All take rows of one sequence, or all take rows of two.
            input_ids: as for `forward`.
            attention_mask: of the same shape.
            token_type_ids: of the same shape.

        Returns:
            {task: its logits}.
        """
        inputs = input_ids, attention_mask, token_type_ids
        if self.config.encoder_sharing == "shared":
            return self(list(tasks), *inputs).logits
        return {task: self(task, *inputs).logits for task in tasks}

    def reads_first_tokens(self, tasks: Sequence[str]) -> bool:
        """Whether the heads of these tasks read only the first token of each sequence."""
        return not any(
            self.pooling(task) == "mean" or getattr(self.heads[task], "reads_tokens", False) for task in tasks
        )

    def read_encoded(
        self, task: str, encoded: BaseModelOutputWithPoolingAndCrossAttentions, attention_mask: Tensor | None
    ) -> Tensor:
        """A task's logits from the encoder's outputs and the mask (B, L)."""
        head = self.heads[task]
        reads_tokens = getattr(head, "reads_tokens", False)
        embedding = encoded.last_hidden_state if reads_tokens else self.pool(task, encoded, attention_mask)
        if self.is_separate(self.tasks[task]):
            embedding = embedding.unflatten(0, (-1, 2))
        # In full precision: near a score of 5, bfloat16 has steps of 1/32, more than SMART's perturbations move it.
        with torch.autocast(embedding.device.type, enabled=False):
            return head(embedding.to(next(head.parameters()).dtype))

    def encode(self, task: str, *inputs: Tensor | None, **options: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Run a task's encoder; arguments are those of `MinBertModel.forward`."""
        with IN_USE if self.config.encoder_sharing == "adapters" else nullcontext():
            return self.run_encoder(self.encoder(task), *inputs, **options)

    @staticmethod
    def run_encoder(
        encoder: PreTrainedModel, *inputs: Tensor | None, **options: Any
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Call an encoder."""
        return encoder(*inputs, **options)

    def pool(
        self, task: str, encoded: BaseModelOutputWithPoolingAndCrossAttentions, attention_mask: Tensor | None
    ) -> Tensor:
        """The embedding of each sequence (B, H), from the encoder's outputs and the mask (B, L)."""
        hidden, pooling = encoded.last_hidden_state, self.pooling(task)
        if pooling == "pooler":
            return encoded.pooler_output
        if pooling == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(1)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


class PerTaskBertModel(MultitaskBertModel):
    """A `MultitaskBertModel` with an encoder for each task, or with adapters. It exists because the Auto classes need a
    model class for each configuration class."""

    config_class = PerTaskBertConfig


class MultitaskModel(MultitaskBertModel):
    """A `MultitaskBertModel` with another encoder than BERT, which runs by Transformers' code."""

    config_class = MultitaskConfig
    base_model_prefix = "text_encoder"
    run_encoder = staticmethod(run_encoder)
    takes_packing = False
    _no_split_modules = None  # Transformers collects those of the encoder

    def __init__(self, config: MultitaskConfig, encoder: PreTrainedModel | None = None):
        if encoder is not None:
            config.text_config = encoder.config
        super().__init__(config, encoder)
        self.supports_gradient_checkpointing = self.encoder(next(iter(self.tasks))).supports_gradient_checkpointing

    @classmethod
    def begin(
        cls, folder_or_id: str, *, output_loading_info: bool, dtype: torch.dtype | str | None = None, **kwargs: Any
    ) -> tuple[Self, dict]:
        """A model with a stock checkpoint's encoder and new heads, and Transformers' loading report.

        Raises:
            InputError: the checkpoint is not a bidirectional text encoder, lacks weights, or stores them as integers.
        """
        kwargs.pop("config", None)
        places = {name: kwargs[name] for name in PLACES if name in kwargs}  # `around` does not return them
        config, kwargs = MultitaskConfig.around(folder_or_id, return_unused_kwargs=True, **kwargs)
        weights = cached_file(folder_or_id, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **places)
        check_stored_types([weights] if weights else [])
        encoder, info = AutoModel.from_pretrained(
            folder_or_id,
            config=config.text_config,
            output_loading_info=output_loading_info,
            dtype=dtype,
            **places | kwargs,
        )
        info["missing_keys"] = {f"{cls.base_model_prefix}.{key}" for key in info["missing_keys"]}
        if missing := sorted(filter(is_encoder_weight, info["missing_keys"])):
            raise InputError(f"{folder_or_id} lacks {len(missing)} encoder weights, {missing[0]} first")
        check_embeddings(encoder)
        return cls(config, encoder).to(encoder.dtype).eval(), info

    def new_encoder(self) -> PreTrainedModel:
        return new_encoder(self.config.text_config)

    def split(self) -> "MultitaskModel":
        model = type(self)(self.config.in_layout("per_task"), self.base_model).to(self.dtype)
        model.heads.load_state_dict(self.heads.state_dict())
        return model.train(self.training)


# When the package is imported, the Auto classes learn our model types; not when this file is a checkpoint's remote
# code, which is trusted only for its checkpoint.
if __package__ == "bert_multitask.model":
    for model_class in (PerTaskBertModel, MultitaskModel):
        AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
        AutoModel.register(model_class.config_class, model_class)
