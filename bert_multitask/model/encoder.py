"""minBERT: a BERT encoder (Devlin et al., 2019; the paper's section 4.1) with Hugging Face's parameter names.

More than half of a padded batch of these tasks is padding, so the model removes it once, on entry. `Packing` lists the
real tokens, and every linear layer, LayerNorm and dropout runs only on those. Attention needs to know the rows: it gets
padded tensors, one for each bucket of rows of similar length, or packed tokens if it has kernels for them
(`takes_packed`).

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

from .configuration import MultitaskBertConfig, PerTaskBertConfig, resolve_checkpoint
from .errors import InputError, one_line
from .packing import Bucket, Packing


def drop(values: Tensor, probability: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`, but several times faster on a CPU. There PyTorch draws a random number for each
    value, which took a fifth of a training step; here 64 random bits are used for four values.

    Args:
        values: of any shape.
        probability: of dropping a value; on a CPU rounded to a multiple of 2**-16.
        training: False returns the values unchanged.
    """
    dropped = round(probability * 2**16)
    if not training or values.device.type != "cpu" or not 0 < dropped < 2**16:
        return nn.functional.dropout(values, probability, training)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: values.numel()].view(values.shape)
    keep = torch.ge(bits, dropped - 2**15, out=values.new_empty(values.shape))
    return values * keep.mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` that computes with `drop`."""

    def forward(self, values: Tensor) -> Tensor:
        """Drop some of the values, of any shape."""
        return drop(values, self.p, self.training)


class Embeddings(nn.Module):
    """Word + position + segment embeddings, normalised."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        # The name in TensorFlow's BERT, and so in checkpoints.
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Word embeddings (T, H), and position_ids and token_type_ids, integer (T,) -> (T, H)."""
        summed = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(summed))


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention among the real tokens of each row (Vaswani et al., 2017, eq. 1)."""

    is_causal = False  # without this attribute, Transformers' attention functions would mask later tokens

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
        """Attend within each row.

        Args:
            hidden: (T, H).
            packing: of the batch.
            masks: what `MinBertModel.masks` returns.
            first_token_only: whether only the first token of each row attends.
            output_attentions: whether to return the weights, which take most of the memory of a long batch.

        Returns:
            Attended values (T, H), or (B, H) of first tokens; each bucket's weights (b, A, l, l), if asked for.
        """
        rate = self.config.attention_probs_dropout_prob if self.training else 0.0
        implementation = self.config._attn_implementation  # there is no public name; Transformers reads it so, too
        if implementation == "sdpa" and masks is None:
            attend = packed_attention
        elif implementation == "sdpa" and rate and hidden.device.type == "cpu":
            attend = eager_attention  # on a CPU, PyTorch has no fused kernel with dropout, and its fallback is slower
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attend = partial(attend, self, dropout=rate, scaling=self.head_size**-0.5)

        queries = self.query(hidden[packing.first] if first_token_only else hidden)
        keys, values = self.key(hidden), self.value(hidden)
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


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Attention in plain tensor operations; the only implementation that can return its weights.

    Args:
        module: the calling layer, whose `training` flag switches dropout.
        query: (B, A, L, D); there may be fewer queries than keys.
        key: (B, A, L, D).
        value: (B, A, L, D).
        attention_mask: broadcastable to (B, A, L, L); booleans, True where attention is allowed, or numbers that are
            added to the scores.
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
        scores = scores + attention_mask  # not in place: in half precision, float32's lowest number would become -inf
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
    """Attention within the rows of packed tokens, by the CUDA kernels behind PyTorch's SDPA. They are called directly
    because SDPA takes only padded tensors and `torch.nn.attention.varlen.varlen_attn` has no dropout.

    Args:
        module: the calling layer.
        query: (1, A, T, D); there may be fewer queries than keys.
        key: (1, A, T, D).
        value: (1, A, T, D).
        attention_mask: None; `cu_seq_lens_…` tell the rows apart.
        dropout: probability of dropping an attention weight.
        scaling: factor of the scores.
        cu_seq_lens_q: where each row's queries begin, and the end of the last row, int32 (B + 1,).
        cu_seq_lens_k: the same for keys and values.
        max_length_q: the most queries of a row.
        max_length_k: the most keys of a row.

    Returns:
        Attended values (1, T, A, D), and None, since there are no weights.
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
    """Whether attention takes packed tokens: Transformers' flash attention does, and so does `packed_attention`, which
    "sdpa" uses on an NVIDIA GPU that has the kernels.

    Args:
        config: of the encoder.
        device: of the tokens.
        dtype: of queries, keys and values.
        dropout: probability of dropping an attention weight in this pass.
    """
    if is_flash_attention_requested(config):
        return True
    if config._attn_implementation != "sdpa" or device.type != "cuda" or torch.version.hip:
        return False
    if torch.compiler.is_compiling():  # torch.compile cannot trace the fp32 kernel's backward pass (PyTorch 2.13)
        return False
    head_size = config.hidden_size // config.num_attention_heads
    has_kernel = head_size % 8 == 0 and head_size <= 256 and dtype != torch.float64
    if dtype == torch.float32 and dropout:
        return False  # PyTorch's kernel drops other weights in the backward pass than in the forward pass (2.11, H100)
    return has_kernel and torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere, the first with flash kernels


class AddNorm(nn.Module):
    """LayerNorm(residual + dropout(linear(x))), the end of a layer's attention and of its feed-forward network."""

    def __init__(self, config, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Hidden (T, in_features) and residual (T, H) -> (T, H)."""
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
        """Arguments and shapes are those of `SelfAttention.forward`."""
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


MAX_LAYERS = 1000  # of all encoders; a damaged config.json may ask for a million, which take a minute to build
MAX_SIZE = 2**31 - 1  # so that the number of values of a weight fits into 64 bits
SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "type_vocab_size"
).split()
# Fields of BERT's configurations that change what the encoder computes -> the only value that is supported here.
# PerTaskBertConfig sets add_cross_attention only so that stock models refuse it.
FIXED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute", "pruned_heads": {}}


def check_encoder(config: MultitaskBertConfig) -> None:
    """Refuse a configuration that cannot be built or has settings that would be ignored.

    Raises:
        InputError: names the field.
    """
    if not isinstance(config, BertConfig):
        found = getattr(config, "text_config", config).model_type
        raise InputError(f"is a checkpoint of type {found!r}, but minBERT runs only BERTs; use MultitaskBertModel")
    for field, value in FIXED.items():
        found = getattr(config, field, None)
        ours = field == "add_cross_attention" and config.model_type == PerTaskBertConfig.model_type
        if (found or value) != value and not ours:
            raise InputError(f"config.json has {field} = {found!r}; this encoder supports only {value!r}")
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
    """Base class of this package's models: configuration class, loading and saving, attention implementations."""

    config_class = MultitaskBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Embeddings", "Layer"]
    # Checkpoints written before 2023 have this constant; here it is computed.
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

        Keyword arguments are those of `PreTrainedModel.from_pretrained`. Weights are loaded as fp32 by default, even if
        the checkpoint stores half precision, because training in half precision rounds away most updates. Pass
        `dtype=torch.bfloat16` for inference in half precision, or `dtype="auto"` for the stored precision. Weights of
        the checkpoint that the model does not have (a language-model head, say) are in Transformers' load report.

        Weights are read only from safetensors files: a pickle can run code of whoever wrote it.

        Raises:
            InputError: the checkpoint is missing, broken or of another architecture; a weight is not finite, or has
                another shape than its config.json says; or an encoder weight is missing, which would then be random.
                The pooler may be missing, as in masked-language-model checkpoints; it is reported.
        """
        name = pretrained_model_name_or_path
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:  # torch_dtype is the older name
            kwargs["dtype"] = torch.float32
        try:
            model, info = cls.read_checkpoint(
                resolve_checkpoint(name), *args, output_loading_info=True, use_safetensors=True, **kwargs
            )
        except InputError as error:
            if str(name) in str(error):
                raise
            raise InputError(f"{name}: {error}") from error
        except Exception as error:  # broken checkpoints raise many kinds of errors
            reason = loading_problem(name, error)
            raise InputError(f"{name}: cannot be loaded as an encoder's checkpoint ({reason})") from error
        for key, weight in model.state_dict().items():
            if not all_finite(weight):
                raise InputError(f"{name}: {key} has values that are not finite (NaN or infinity); the file is damaged")
        return (model, info) if output_loading_info else model

    @classmethod
    def read_checkpoint(cls, folder_or_id: str, *args: Any, **kwargs: Any) -> tuple[Self, dict]:
        """The model and Transformers' loading report; overridden by a class that also reads other checkpoints."""
        return super().from_pretrained(folder_or_id, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Overridden to give the weights the same permissions as the other files."""
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
        """Overridden to refuse checkpoints whose weights do not fit the model before memory is allocated for missing
        weights, since a damaged config.json can ask for any amount. There is no public method between the two."""
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
                "task takes no others), or the weights are those of another model"
            )
        return loaded


def is_encoder_weight(key: str) -> bool:
    """Whether a weight of our models belongs to an encoder, by its name. Poolers do not count: many checkpoints lack
    them, and by default no head reads them."""
    owners = ("bert.", "text_encoder.", "encoders.", "encoder.", "embeddings.")
    return key.startswith(owners) and ".pooler." not in f".{key}"


def share_weights(folder: str | os.PathLike) -> None:
    """Give the weights in a folder the permissions of its configuration; safetensors lets only the owner read them.

    Args:
        folder: where a model, or an adapter of peft's, was saved.
    """
    for config in Path(folder).glob("*config.json"):
        for file in Path(folder).glob("*.safetensors"):
            shutil.copymode(config, file)
        return


def loading_problem(name: str | os.PathLike, error: Exception) -> str:
    """Why a checkpoint cannot be loaded, given the error that Transformers raised, and what to do."""
    if isinstance(error, OSError) and "file named" in str(error) and "safetensors" in str(error):
        return (
            "it has no model.safetensors, and a pickle such as pytorch_model.bin is not read, because it can run code; "
            "if you trust its author, convert it: from transformers import AutoTokenizer, BertModel; "
            f'BertModel.from_pretrained("{name}", use_safetensors=False).save_pretrained("FOLDER"); '
            f'AutoTokenizer.from_pretrained("{name}").save_pretrained("FOLDER")'
        )
    return one_line(error)


def check_stored_types(files: Iterable[str]) -> None:
    """Refuse weights that are not floating-point numbers of at least 16 bits. Transformers would take a quantised
    weight's integers as the weight.

    Args:
        files: safetensors files; only their headers are read.

    Raises:
        InputError: names the file and the tensor.
    """
    for file in files:
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118, not a dictionary
                stored = tensors.get_slice(key).get_dtype()
                is_weight = key.endswith((".weight", ".bias", ".gamma", ".beta"))  # not a constant like position_ids
                if is_weight and stored not in ("F64", "F32", "F16", "BF16"):
                    raise InputError(f"{file}: {key} is stored as {stored}; expected F32, F16, BF16 or F64 weights")


def all_finite(weight: Tensor) -> bool:
    """Whether a weight has neither NaN nor infinity; True if it is not in memory.

    The sum is tried first: it is 4 times faster than `isfinite`, because it writes nothing. It can be infinite even if
    all values are finite, so then the values are checked.
    """
    if weight.is_meta or not weight.is_floating_point() or weight.sum().isfinite():
        return True
    return bool(weight.isfinite().all())


class MinBertModel(MinBertPreTrainedModel):
    """The BERT encoder, with the inputs, outputs and parameter names of `transformers.BertModel`."""

    def __init__(self, config: MultitaskBertConfig):
        check_encoder(config)
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.pooler = Pooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings, (vocabulary size, H)."""
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
            token_type_ids: segment indices, integer, broadcastable to (B, L); all 0 by default. Ignored if the model
                has one segment (`type_vocab_size: 1`).
            position_ids: position indices, integer, broadcastable to (B, L); 0 … L - 1 by default.
            inputs_embeds: word embeddings instead of `input_ids`, float (B, L, H).
            output_attentions: also return every layer's attention weights; needs `attn_implementation="eager"`.
            output_hidden_states: also return the embeddings and every layer's output.
            first_token_only: run the last layer only for the first token of each row, for heads that read only [CLS];
                `last_hidden_state` is then (B, 1, H). No effect with either of the two above.
            packing: that of the attention mask, if it has been made already.
            perturbation: added to the embedding layer's output, after LayerNorm and dropout, float (B, L, H); for
                SMART.

        Returns:
            `last_hidden_state` (B, L, H), zero at padding; `pooler_output` (B, H); on request `hidden_states`, layers
            + 1 times (B, L, H), and `attentions`, layers times (B, A, L, L).

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds` is given, the batch has no token, the mask or
                the packing has another shape, or the attention implementation cannot return weights.
            InputError: on a CPU, a token, position or segment index is outside its table. On a GPU that ends the
                process.
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
            raise ValueError(f"packing was made of a mask of shape {tuple(packing.shape)}, not {tuple(shape)}")

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
        """Whether to return attention weights and hidden states: the argument, or if None the configuration's value."""
        attentions = self.config.output_attentions if attentions is None else attentions
        if attentions and self.config._attn_implementation != "eager":
            raise ValueError('output_attentions needs a model loaded with attn_implementation="eager"')
        return attentions, self.config.output_hidden_states if hidden_states is None else hidden_states

    def embed(
        self, packing: Packing, tokens: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        """The embeddings of the real tokens, (T, H). Arguments are those of `forward`; `tokens` are `input_ids` or
        `inputs_embeds`."""
        shape, device = packing.shape, tokens.device
        if position_ids is None:
            position_ids = torch.arange(shape[1], device=device)
        if token_type_ids is None or self.config.type_vocab_size == 1:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=device)
        words, positions, types = map(packing.pack, (tokens, position_ids.expand(shape), token_type_ids.expand(shape)))
        try:
            if tokens.dim() == 2:
                words = self.embeddings.word_embeddings(words)
            return self.embeddings(words, positions, types)
        except IndexError as error:
            raise InputError(self.describe_index_error(words, positions, types)) from error

    def describe_index_error(self, words: Tensor, positions: Tensor, types: Tensor) -> str:
        """Which index is outside its table. Args: integers (T,); `words` may be word embeddings (T, H), not checked."""
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
        """Each bucket's mask in the form that the attention implementation needs; None if it takes packed tokens. Each
        row has this many queries, by default all its tokens."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        if packing.is_exact and takes_packed(self.config, hidden.device, dtype, dropout):
            return None
        if self.config._attn_implementation == "sdpa":  # `create_bidirectional_mask` would wait for the device here
            return [
                None
                if packing.is_exact and bucket.places is None
                else bucket.attention_mask.bool().view(len(bucket.attention_mask), 1, 1, -1)
                for bucket in packing.buckets
            ]
        return [
            create_bidirectional_mask(
                config=self.config,
                # Only the shapes, dtype and device of these two are read.
                inputs_embeds=hidden.new_empty(len(mask), queries or mask.shape[1], 0),
                encoder_hidden_states=hidden.new_empty(*mask.shape, 0),
                attention_mask=mask,
            )
            for mask in (bucket.attention_mask for bucket in packing.buckets)
        ]


# A saved model's folder has its code, for `AutoModel.from_pretrained(folder, trust_remote_code=True)`.
MinBertPreTrainedModel.register_for_auto_class("AutoModel")
