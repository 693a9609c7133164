"""minBERT: a BERT encoder (Devlin et al., 2019; the paper's section 4.1) with Hugging Face's parameter names.

A padded batch of these tasks is more than half padding, so the model removes it once, on entry: `Packing` lists the
real tokens, every linear layer, LayerNorm and dropout runs on those alone, and only attention, which needs to see the
rows, is given padded tensors, one for each bucket of rows of similar length, or packed ones where it has kernels for
them (`takes_packed`).

Shapes: B rows, L padded length, T real tokens of the batch, H hidden size, A heads, D = H / A head size.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested

from .configuration import MultitaskBertConfig, PerTaskBertConfig, hub_reason, resolve_checkpoint
from .errors import InputError
from .packing import Bucket, Packing


def drop(values: Tensor, probability: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`, several times faster on a CPU: PyTorch draws a random number for each value there,
    which took a fifth of a training step; here 64 random bits serve four.

    Args:
        values: of any shape.
        probability: of dropping a value; on a CPU rounded to a multiple of 2**-16.
        training: whether to drop at all.
    """
    dropped = round(probability * 2**16)
    if not training or values.device.type != "cpu" or not 0 < dropped < 2**16:
        return nn.functional.dropout(values, probability, training)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: values.numel()].view(values.shape)
    keep = torch.ge(bits, dropped - 2**15, out=values.new_empty(values.shape))
    return values * keep.mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `drop`."""

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, some of them dropped."""
        return drop(values, self.p, self.training)


class Embeddings(nn.Module):
    """Word + position + segment embeddings, normalised."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        # Named as TensorFlow's BERT named it, because checkpoints do.
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Args: words, word embeddings (T, H); position_ids and token_type_ids, integer (T,). Returns (T, H)."""
        summed = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(summed))


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention among the real tokens of each row (Vaswani et al., 2017, eq. 1)."""

    is_causal = False  # the attention interfaces take a module without this attribute for a causal one

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, packing: Packing, masks: Sequence | None, first_token_only: bool, output_attentions: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Args: hidden (T, H); masks, one a bucket, as the attention implementation wants them, or None where it takes
        the packed tokens as they are.

        Returns:
            The attended values (T, H), or (B, H) where the first token of each row alone attends; and each bucket's
            attention weights (b, A, l, l), if asked for: kept, they are most of a long batch's memory.
        """
        rate = self.config.attention_probs_dropout_prob if self.training else 0.0
        implementation = self.config._attn_implementation  # as in Transformers' models: it has no public name
        if implementation == "sdpa" and masks is None:
            attend = packed_attention
        elif implementation == "sdpa" and rate and hidden.device.type == "cpu":
            attend = eager_attention  # with dropout PyTorch has no kernel of its own here, and its way is slower
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attend = partial(attend, self, dropout=rate, scaling=self.head_size**-0.5)

        queries, keys, values = self.project(hidden, packing.first if first_token_only else None)
        if masks is None:
            inputs = (packed.unflatten(-1, (-1, self.head_size)) for packed in (queries, keys, values))
            heads = (packed.transpose(0, 1).unsqueeze(0) for packed in inputs)  # (1, A, T, D)
            output, _ = attend(*heads, None, **packing.flash_arguments(first_token_only))
            return output.squeeze(0).flatten(1), []

        sizes = [bucket.tokens for bucket in packing.buckets]
        if first_token_only:
            rows = [len(bucket.attention_mask) for bucket in packing.buckets]
            queries = queries.unsqueeze(1).split(rows)  # (b, 1, H)
        else:
            queries = map(Bucket.pad, packing.buckets, queries.split(sizes))
        keys = map(Bucket.pad, packing.buckets, keys.split(sizes))
        values = map(Bucket.pad, packing.buckets, values.split(sizes))
        attended, weights = [], []
        for bucket, mask, *inputs in zip(packing.buckets, masks, queries, keys, values, strict=True):
            heads = (padded.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for padded in inputs)  # (b, A, l, D)
            output, kept = attend(*heads, mask)
            output = output.flatten(2)
            attended.append(output.squeeze(1) if first_token_only else bucket.pack(output))
            if output_attentions:
                weights.append(kept)
        return torch.cat(attended), weights

    def project(self, hidden: Tensor, queried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the hidden states (T, H), each (T, H); queries of the tokens at the indices
        `queried` alone, if given, (B, H)."""
        queries = self.query(hidden if queried is None else hidden[queried])
        return queries, self.key(hidden), self.value(hidden)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Attention in plain tensor operations; the one implementation that can return its weights.

    Args:
        module: the calling layer, whose `training` flag switches dropout.
        query: (B, A, L, D); there may be fewer queries than keys.
        key: (B, A, L, D).
        value: (B, A, L, D).
        attention_mask: broadcastable to (B, A, L, L); True where attention is allowed, or added to the scores.
        dropout: probability of dropping an attention weight.
        scaling: factor of the scores.

    Returns:
        Attended values (B, L, A, D) and weights (B, A, L, L).
    """
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            lowest = torch.finfo(scores.dtype).min
            attention_mask = scores.new_zeros(attention_mask.shape).masked_fill_(~attention_mask, lowest)
        scores = scores + attention_mask  # not in place: half precision would make -inf of a mask of float32's lowest
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    weights = drop(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    dropout: float,
    scaling: float,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
) -> tuple[Tensor, None]:
    """Attention within the rows of packed tokens by the CUDA kernels behind PyTorch's SDPA, called directly because
    SDPA takes padded tensors, and `torch.nn.attention.varlen.varlen_attn` has no dropout.

    Args:
        module: the calling layer.
        query: (1, A, T, D); there may be fewer queries than keys.
        key: (1, A, T, D).
        value: (1, A, T, D).
        attention_mask: None; the rows are told apart by where they begin.
        dropout: probability of dropping an attention weight.
        scaling: factor of the scores.
        cu_seq_lens_q: where each row's queries begin, and the end of the last, int32 (B + 1,).
        cu_seq_lens_k: the same of keys and values.
        max_length_q: the most queries of a row.
        max_length_k: the most keys of a row.

    Returns:
        Attended values (1, T, A, D), and None where other implementations return weights.
    """
    inputs = [packed.transpose(1, 2) for packed in (query, key, value)]  # (1, T, A, D)
    rows = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    if query.dtype in (torch.float16, torch.bfloat16):
        flat = (packed.squeeze(0) for packed in inputs)
        no_mask, no_debugging = False, False
        output = torch.ops.aten._flash_attention_forward(*flat, *rows, dropout, no_mask, no_debugging, scale=scaling)[0]
        return output.unsqueeze(0), None
    no_bias, no_mask, keep_for_backward = None, 0, torch.is_grad_enabled()
    output = torch.ops.aten._efficient_attention_forward(
        *inputs, no_bias, *rows, dropout, no_mask, keep_for_backward, scale=scaling
    )[0]
    return output, None


def takes_packed(config: MultitaskBertConfig, device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Whether attention takes packed tokens: Transformers' flash interfaces do; so does `packed_attention`, to which
    "sdpa" leads on an NVIDIA GPU whose kernels fit.

    Args:
        config: of the encoder.
        device: of the tokens.
        dtype: in which attention computes.
        dropout: probability of dropping an attention weight in this pass.
    """
    if is_flash_attention_requested(config):
        return True
    if config._attn_implementation != "sdpa" or device.type != "cuda" or torch.version.hip:
        return False
    if torch.compiler.is_compiling():  # which cannot trace the fp32 kernel's backward pass (PyTorch 2.13)
        return False
    head_size = config.hidden_size // config.num_attention_heads
    has_kernel = head_size % 8 == 0 and head_size <= 256 and dtype != torch.float64
    if dtype == torch.float32 and dropout:
        return False  # PyTorch's kernel drops other weights in its backward pass than in its forward pass (2.11, H100)
    return has_kernel and torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere, from which on flash exists


class AddNorm(nn.Module):
    """LayerNorm(residual + dropout(linear(x))), the end of both halves of a layer."""

    def __init__(self, config, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Args: hidden (T, in_features); residual (T, H). Returns (T, H)."""
        return self.LayerNorm(residual + self.dropout(self.dense(hidden)))


class Layer(GradientCheckpointingLayer):
    """Attention and a two-layer feed-forward network, each followed by add-norm."""

    def __init__(self, config):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": AddNorm(config, config.hidden_size)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.activation = ACT2FN[config.hidden_act]
        self.output = AddNorm(config, config.intermediate_size)

    def forward(
        self, hidden: Tensor, packing: Packing, masks: Sequence | None, first_token_only: bool, output_attentions: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Args: as for `SelfAttention`. Returns: hidden (T, H), or (B, H) of the rows' first tokens; their weights."""
        attended, weights = self.attention["self"](hidden, packing, masks, first_token_only, output_attentions)
        residual = hidden[packing.first] if first_token_only else hidden
        hidden = self.attention["output"](attended, residual)
        return self.output(self.activation(self.intermediate["dense"](hidden)), hidden), weights


class Pooler(nn.Module):
    """BERT's pre-trained [CLS] transformation, tanh(linear(x))."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, cls_embedding: Tensor) -> Tensor:
        """(B, H) -> (B, H)."""
        return torch.tanh(self.dense(cls_embedding))


MAX_LAYERS = 1000  # of all encoders; a million take a minute to set up, before they can be compared with the weights
MAX_SIZE = 2**31 - 1  # so that a weight's number of values fits in 64 bits
SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "type_vocab_size"
).split()
# Fields of BERT's configurations that change what the encoder computes, with the one value that it computes here.
# PerTaskBertConfig sets add_cross_attention only so that stock models refuse it.
FIXED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute", "pruned_heads": {}}


def check_encoder(config: MultitaskBertConfig) -> None:
    """Refuse settings that would be ignored or cannot be built.

    Raises:
        InputError: names the field.
    """
    if not isinstance(config, BertConfig):
        found = getattr(config, "text_config", config).model_type
        raise InputError(f"is a checkpoint of type {found!r}, and minBERT runs BERTs alone; use MultitaskBertModel")
    for field, value in FIXED.items():
        found = getattr(config, field, None)
        ours = field == "add_cross_attention" and config.model_type == PerTaskBertConfig.model_type
        if (found or value) != value and not ours:
            raise InputError(f"config.json has {field} = {found!r}; this encoder computes {value!r} only")
    for field in SIZES:
        if not 1 <= getattr(config, field) <= MAX_SIZE:
            raise InputError(f"config.json has {field} = {getattr(config, field)}; expected 1 to {MAX_SIZE}")
    encoders = len(config.tasks or ()) if config.encoder_sharing == "per_task" else 1
    if config.num_hidden_layers * encoders > MAX_LAYERS:
        raise InputError(
            f"config.json has num_hidden_layers = {config.num_hidden_layers} in {encoders} encoders; expected at most "
            f"{MAX_LAYERS} layers in all"
        )
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
        )
    if config.hidden_act not in ACT2FN:
        raise InputError(f"config.json has hidden_act = {config.hidden_act!r}; choose one of {', '.join(ACT2FN)}")
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= getattr(config, field) < 1:
            raise InputError(f"{field} is {getattr(config, field)}; expected a probability in [0, 1)")


class MinBertPreTrainedModel(PreTrainedModel):
    """What every model of this package shares: its configuration class, its loading, its attention implementations."""

    config_class = MultitaskBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Embeddings", "Layer"]
    # Checkpoints written before 2023 hold this constant; it is computed here.
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.position_ids$"]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load any `model_type: bert` checkpoint: a folder, a Hub id, or `package:NAME/PATH` (`resolve_checkpoint`).

        Keyword arguments are those of `PreTrainedModel.from_pretrained`. The weights are fp32 whatever the checkpoint
        stores, because training in half precision rounds most updates away; pass `dtype=torch.bfloat16` for inference
        in half precision, or `dtype="auto"` for the stored precision. Weights of the checkpoint that this model has
        no place for (a language-model head, say) are listed in Transformers' load report.

        Weights are read from safetensors files alone: a pickle can run code of whoever wrote it.

        Raises:
            InputError: the checkpoint is missing, broken or of another architecture, or one of its weights is not a
                finite number or of another shape than its config.json says; or it lacks an encoder weight, which would
                then be random. The pooler may be missing, as it is from masked-language-model checkpoints: it is
                reported.
        """
        name = pretrained_model_name_or_path
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:  # the second is Transformers' old name
            kwargs["dtype"] = torch.float32
        try:
            model, info = cls.read_checkpoint(
                resolve_checkpoint(name), *args, output_loading_info=True, use_safetensors=True, **kwargs
            )
        except InputError as error:
            if str(pretrained_model_name_or_path) in str(error):
                raise
            raise InputError(f"{pretrained_model_name_or_path}: {error}") from error
        except Exception as error:  # a broken checkpoint fails in a dozen ways
            reason = loading_problem(name, error)
            raise InputError(f"{name}: cannot be loaded as an encoder's checkpoint ({reason})") from error
        for key, weight in model.state_dict().items():
            if not all_finite(weight):
                raise InputError(f"{name}: {key} has values that are not finite (NaN or infinity); the file is damaged")
        return (model, info) if output_loading_info else model

    @classmethod
    def read_checkpoint(cls, folder_or_id: str, *args: Any, **kwargs: Any) -> tuple[Self, dict]:
        """The model and Transformers' report, by its `from_pretrained`; a class that reads others overrides this."""
        return super().from_pretrained(folder_or_id, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; the weights get the same permissions as the other files."""
        super().save_pretrained(save_directory, *args, **kwargs)
        share_weights(save_directory)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: dict | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        **kwargs: Any,
    ) -> tuple:
        """Overridden to compare the stored weights with the model's before memory is taken for those that are missing:
        a config.json can ask for any amount. The public `from_pretrained` has both before and after it."""
        check_stored_types(checkpoint_files or ())
        loaded = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)
        name, info = load_config.pretrained_model_name_or_path, loaded[0]
        if info.mismatched_keys and not load_config.ignore_mismatched_sizes:
            key, stored, expected = sorted(info.mismatched_keys)[0]
            raise InputError(
                f"{name}: {key} has shape {tuple(stored)}, but its config.json or the tasks asked for describe "
                f"{tuple(expected)}"
            )
        missing = sorted(key for key in info.missing_keys if is_encoder_weight(key))
        if missing:
            raise InputError(
                f"{name} lacks {len(missing)} encoder weights, {missing[0]} first: "
                "its config.json or the tasks asked for do not describe its weights (a run with an encoder for each "
                f"task takes no others), or the weights are not those of such a model"
            )
        return loaded


def is_encoder_weight(key: str) -> bool:
    """Whether a weight is an encoder's, by the names that our models give encoders and their parts, and no part of its
    pooler, which many checkpoints lack and no head reads."""
    owners = ("bert.", "text_encoder.", "encoders.", "encoder.", "embeddings.")
    return key.startswith(owners) and ".pooler." not in f".{key}"


def share_weights(folder: str | os.PathLike) -> None:
    """Give the weights in a folder the permissions of its configuration: safetensors lets their owner alone read them.

    Args:
        folder: which a model, or an adapter of peft, was saved in.
    """
    for config in Path(folder).glob("*config.json"):
        for file in Path(folder).glob("*.safetensors"):
            shutil.copymode(config, file)
        return


def loading_problem(name: str | os.PathLike, error: Exception) -> str:
    """Why a checkpoint cannot be loaded, of the error that Transformers raised, and what to do."""
    if isinstance(error, OSError) and "file named" in str(error) and "safetensors" in str(error):
        return (
            "it has no model.safetensors, and a pickle such as pytorch_model.bin is not read, because it can run code; "
            "if you trust its author, convert it: from transformers import AutoTokenizer, BertModel; "
            f'BertModel.from_pretrained("{name}", use_safetensors=False).save_pretrained("FOLDER"); '
            f'AutoTokenizer.from_pretrained("{name}").save_pretrained("FOLDER")'
        )
    return hub_reason(error)


def check_stored_types(files: Iterable[str]) -> None:
    """Refuse weights that are no floating-point numbers of at least 16 bits, as quantised ones are: Transformers would
    take the integers as weights.

    Args:
        files: safetensors files; only their headers are read.

    Raises:
        InputError: names the file and the tensor.
    """
    for file in files:
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118, it is no dictionary
                stored = tensors.get_slice(key).get_dtype()
                is_weight = key.endswith((".weight", ".bias", ".gamma", ".beta"))  # no constant, such as position_ids
                if is_weight and stored not in ("F64", "F32", "F16", "BF16"):
                    raise InputError(f"{file}: {key} is stored as {stored}; expected F32, F16, BF16 or F64 weights")


def all_finite(weight: Tensor) -> bool:
    """Whether a weight has neither NaN nor infinity; True of one that is not in memory.

    The sum decides first, because it reads each value once and writes nothing: 4 times faster than `isfinite`. The sum
    of finite values can be infinite, so only a bad one is looked at again.
    """
    if weight.is_meta or not weight.is_floating_point() or weight.sum().isfinite():
        return True
    return bool(weight.isfinite().all())


class MinBertModel(MinBertPreTrainedModel):
    """The BERT encoder. The same inputs, outputs and parameter names as `transformers.BertModel`."""

    def __init__(self, config: MultitaskBertConfig):
        check_encoder(config)
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.pooler = Pooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings, (vocabulary, H)."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings; `resize_token_embeddings` calls this."""
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        first_token_only: bool = False,
        packing: Packing | None = None,
        perturbation: Tensor | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encode a batch of token sequences.

        Args:
            input_ids: vocabulary indices, integer (B, L).
            attention_mask: 1 for real tokens and 0 for padding, (B, L); all real by default.
            token_type_ids: segment indices, integer, broadcastable to (B, L); all 0 by default, and where the model has
                one segment (`type_vocab_size: 1`).
            position_ids: position indices, integer, broadcastable to (B, L); 0 … L - 1 by default.
            inputs_embeds: word embeddings in place of `input_ids`, float (B, L, H).
            output_attentions: also return every layer's attention weights; needs `attn_implementation="eager"`.
            output_hidden_states: also return the embeddings and every layer's output.
            first_token_only: run the last layer for the first token of each row alone, which is all that a head on
                [CLS] reads; `last_hidden_state` is then (B, 1, H). No effect with either of the two above.
            packing: of the attention mask, where it has been made already.
            perturbation: added to the embeddings' output, after LayerNorm and dropout, float (B, L, H); for SMART.

        Returns:
            `last_hidden_state` (B, L, H), zero at padding; `pooler_output` (B, H); on request `hidden_states`, layers
            + 1 times (B, L, H), and `attentions`, layers times (B, A, L, L).

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, no token at all, a mask that is not (B, L)
                or the packing of another,
                or attention weights asked of an implementation that keeps none.
            InputError: on a CPU, a token, position or segment index is outside its table (elsewhere it ends the
                process).
        """
        output_attentions, output_hidden_states = self.wanted_outputs(output_attentions, output_hidden_states)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        tokens = input_ids if input_ids is not None else inputs_embeds
        shape = tokens.shape[:2]
        if not shape.numel():
            raise ValueError(f"the batch has shape {tuple(shape)}; expected at least one row of one token")
        if attention_mask is None:
            attention_mask = torch.ones(shape, dtype=torch.long, device=tokens.device)
        if attention_mask.shape != shape:
            raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, not {tuple(shape)}")
        packing = packing or Packing(attention_mask)
        if packing.shape != shape:
            raise ValueError(f"packing is of a mask of shape {tuple(packing.shape)}, not {tuple(shape)}")

        hidden = self.embed(packing, tokens, token_type_ids, position_ids)
        if perturbation is not None:
            hidden = hidden + packing.pack(perturbation)
        first_token_only = first_token_only and not (output_hidden_states or output_attentions)
        masks = self.masks(packing, hidden)
        states, attentions = [hidden] if output_hidden_states else [], []
        for layer in self.encoder["layer"]:
            alone = first_token_only and layer is self.encoder["layer"][-1]
            layer_masks = self.masks(packing, hidden, 1) if alone else masks
            hidden, weights = layer(hidden, packing, layer_masks, alone, output_attentions)
            if output_hidden_states:
                states.append(hidden)
            if output_attentions:
                attentions.append(weights)
        last_hidden_state = packing.unsort(hidden).unsqueeze(1) if first_token_only else packing.pad(hidden)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last_hidden_state,
            pooler_output=self.pooler(last_hidden_state[:, 0]),
            hidden_states=tuple(map(packing.pad, states)) if output_hidden_states else None,
            attentions=tuple(map(packing.pad_weights, attentions)) if output_attentions else None,
        )

    def wanted_outputs(self, attentions: bool | None, hidden_states: bool | None) -> tuple[bool, bool]:
        """Whether to return attention weights and hidden states: as asked, or else as the configuration says."""
        attentions = self.config.output_attentions if attentions is None else attentions
        if attentions and self.config._attn_implementation != "eager":
            raise ValueError('output_attentions needs a model loaded with attn_implementation="eager"')
        return attentions, self.config.output_hidden_states if hidden_states is None else hidden_states

    def embed(
        self, packing: Packing, tokens: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        """The embeddings of the real tokens, (T, H); the arguments are those of `forward`, `tokens` either kind."""
        shape, device = packing.shape, tokens.device
        if position_ids is None:
            position_ids = torch.arange(shape[1], device=device)
        if token_type_ids is None or self.config.type_vocab_size == 1:  # which tells a pair's texts by [SEP] alone
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=device)
        words, positions, types = map(packing.pack, (tokens, position_ids.expand(shape), token_type_ids.expand(shape)))
        try:
            if tokens.dim() == 2:
                words = self.embeddings.word_embeddings(words)
            return self.embeddings(words, positions, types)
        except IndexError as error:
            raise InputError(self.describe_index_error(words, positions, types)) from error

    def describe_index_error(self, words: Tensor, positions: Tensor, types: Tensor) -> str:
        """Which index is outside its table, of integers (T,) or of word embeddings (T, H)."""
        tables = {"max_position_embeddings": positions, "type_vocab_size": types}
        if words.dim() == 1:
            tables["vocab_size"] = words
        for field, indices in tables.items():
            size = getattr(self.config, field)
            for index in (int(indices.min()), int(indices.max())):
                if not 0 <= index < size:
                    hint = "shorten the texts" if indices is positions else "is the tokenizer the model's own?"
                    return f"index {index} is outside 0 … {size - 1}, the model's {field}; {hint}"
        return "an index is outside the model's embeddings"

    def masks(self, packing: Packing, hidden: Tensor, queries: int | None = None) -> list | None:
        """Each bucket's mask, as the attention implementation wants it, for so many queries a row, by default all; None
        where it wants none, since it takes packed tokens."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        if packing.is_exact and takes_packed(self.config, hidden.device, dtype, dropout):
            return None
        if self.config._attn_implementation == "sdpa":  # of which the function below would look whether it hides any
            return [
                None
                if packing.is_exact and bucket.places is None
                else bucket.attention_mask.bool().view(len(bucket.attention_mask), 1, 1, -1)
                for bucket in packing.buckets
            ]
        masks = []
        for bucket in packing.buckets:
            rows, length = bucket.attention_mask.shape
            masks.append(
                create_bidirectional_mask(
                    config=self.config,
                    # Both are read for their shapes, dtype and device only.
                    inputs_embeds=hidden.new_empty(rows, queries or length, 0),
                    encoder_hidden_states=hidden.new_empty(rows, length, 0),
                    attention_mask=bucket.attention_mask,
                )
            )
        return masks


# A saved model names and carries its code, for `AutoModel.from_pretrained(folder, trust_remote_code=True)`.
MinBertPreTrainedModel.register_for_auto_class("AutoModel")
