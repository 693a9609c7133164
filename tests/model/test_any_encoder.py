"""Encoders that are no BERT: against the stock models, in every layout of the paper, and what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import SIZE, losses, run_here, write_config, write_course
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    PythonBackend,
)

from bert_multitask.data.tokens import check_tokenizer, encode, kept_tokens, load_tokenizer
from bert_multitask.inference.attribution import explain
from bert_multitask.inference.export import export_classifier, export_encoder
from bert_multitask.inference.graph import export_graph
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.soup import average_weights
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.classifier import EncoderClassifier, split_pairs
from bert_multitask.model.configuration import MultitaskBertConfig, MultitaskConfig
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import DIVERGENCES
from bert_multitask.model.modeling import MultitaskBertModel, MultitaskModel
from bert_multitask.model.tasks import TASKS as PRESETS
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.checks import check_smart
from bert_multitask.training.smart import smart_penalty
from bert_multitask.training.trainer import MultitaskTrainer

TASKS = ["sst", "quora", "sts"]
WORDS = "good bad fine dull great film story scene plot cast is it far how then".split()
PAIR = ("good film", "dull plot is far")
LONGEST = 40
# Of each: its own names of the sizes, where they are others, and how its tokenizer joins texts.
ENCODERS = {
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "camembert": {"pad_token_id": 1, "type_vocab_size": 1},
    "mpnet": {"pad_token_id": 1},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
}
# Whose stock sequence classifier can hold a head on [CLS]; the other's has a LayerNorm in between.
STOCK = set(ENCODERS) - {"modernbert"}


def make_tokenizer(doubled: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, which joins texts as BERT's do, or as RoBERTa's with two separators and no types."""
    special = ["<pad>", "<mask>", "<s>", "</s>", "<unk>"]
    special = special if not doubled else ["<mask>", "<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "<s> $A </s> </s> $B </s>" if doubled else "<s> $A </s> $B:1 </s>:1"
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = ["input_ids", "attention_mask"] if doubled else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"pad_token": "<pad>", "mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"},
        model_input_names=names,
        padding_side="left",  # which nothing here may follow
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A folder of a tiny random encoder of each architecture with a tokenizer."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_checkpoint(root / kind, kind) for kind in ENCODERS}


def write_checkpoint(folder: Path, kind: str) -> Path:
    own = ENCODERS[kind]
    tokenizer = make_tokenizer(doubled=own.get("pad_token_id") == 1)
    sizes = SIZE if "dim" not in own else {}
    limits = {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST}
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **sizes | limits | own))
    with torch.no_grad():  # new weights are so small that every row is nearly the same
        for weight in encoder.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model(folder: Path, **settings) -> MultitaskBertModel:
    torch.manual_seed(1)
    return MultitaskBertModel.from_pretrained(folder, tasks=TASKS, **settings).eval()


def padded(folder: Path) -> dict[str, torch.Tensor]:
    """Two pairs of different length, padded on the right."""
    tokenizer = load_tokenizer(str(folder), 20)
    return dict(
        tokenizer([PAIR[0], PAIR[1]], ["bad", "great story"], padding=True, padding_side="right", return_tensors="pt")
    )


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_hidden_states_and_logits_are_those_of_the_stock_model(checkpoints, kind):
    folder, inputs = checkpoints[kind], padded(checkpoints[kind])
    stock, model = AutoModel.from_pretrained(folder).eval(), make_model(folder)
    assert type(model) is MultitaskModel and model.base_model.__class__ is type(stock)
    hidden = stock(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    given = [inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids")]
    found = model.encode("sst", *given).last_hidden_state
    torch.testing.assert_close(found[real], hidden[real], atol=1e-5, rtol=0)
    assert found[~real].eq(0).all() and (~real).any()
    for task in TASKS:
        expected = model.heads[task](hidden[:, 0])
        torch.testing.assert_close(model(task, *given).logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.forward_all(TASKS, *given)[task], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_word_embeddings_stand_for_tokens(checkpoints, kind):
    """At the most tokens too that the encoder takes; one more than those is refused."""
    model, inputs = make_model(checkpoints[kind]), padded(checkpoints[kind])
    longest = model.config.max_position_embeddings
    assert longest == LONGEST - (2 if ENCODERS[kind].get("pad_token_id") == 1 else 0)
    torch.manual_seed(2)
    full = {"input_ids": torch.randint(5, 20, (1, longest)), "attention_mask": torch.ones(1, longest, dtype=torch.long)}
    for batch in (inputs, full):
        ids = batch["input_ids"]
        others = {name: value for name, value in batch.items() if name != "input_ids"}
        words = model.encoder("sst").get_input_embeddings()(ids)
        found = model("sst", inputs_embeds=words, **others).logits
        torch.testing.assert_close(found, model("sst", ids, **others).logits, atol=1e-6, rtol=0)
    if kind in ("roberta", "distilbert"):  # tables of positions with and without an offset
        with pytest.raises((IndexError, RuntimeError)):
            model("sst", torch.full((1, longest + 1), 6))


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_a_run_comes_back_bit_for_bit(checkpoints, kind, tmp_path):
    for sharing in ("shared", "per_task"):
        model = make_model(checkpoints[kind], encoder_sharing=sharing)
        model.save_pretrained(tmp_path / sharing)
        stored = json.loads((tmp_path / sharing / "config.json").read_text())
        assert stored["model_type"] == "multitask" and stored["text_config"]["model_type"] == kind
        for load in (MultitaskBertModel.from_pretrained, AutoModel.from_pretrained):
            again = load(tmp_path / sharing).eval()
            assert type(again) is MultitaskModel and again.state_dict().keys() == model.state_dict().keys()
            for key, weight in model.state_dict().items():
                assert torch.equal(weight, again.state_dict()[key]), key
            assert again.config.text_config.to_dict() == model.config.text_config.to_dict()
    copies = [encoder.state_dict() for encoder in model.encoders.values()]
    begun = AutoModel.from_pretrained(checkpoints[kind]).state_dict()
    assert all(torch.equal(copy[key], begun[key]) for copy in copies for key in begun)


REMOTE = """
import json, sys
sys.modules["bert_multitask"] = None
import torch
from transformers import AutoModel, AutoTokenizer
found = {}
for folder in sys.argv[1:]:
    options = {"trust_remote_code": True}
    inputs = AutoTokenizer.from_pretrained(folder, **options)("good film", "dull plot", return_tensors="pt")
    model = AutoModel.from_pretrained(folder, **options).eval()
    with torch.inference_mode():
        found[folder] = {task: model(task, **inputs).logits[0].tolist() for task in model.tasks}
print(json.dumps(found))
"""


def test_remote_code_gives_every_head_bit_for_bit(checkpoints, tmp_path):
    folders = []
    for kind, sharing in (("roberta", "shared"), ("modernbert", "per_task")):
        folders.append(tmp_path / kind)
        make_model(checkpoints[kind], encoder_sharing=sharing).save_pretrained(folders[-1])
        load_tokenizer(str(checkpoints[kind]), 20).save_pretrained(folders[-1])
    command = [sys.executable, "-c", REMOTE, *map(str, folders)]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for folder in folders:
        model, tokenizer = MultitaskBertModel.from_pretrained(folder).eval(), load_tokenizer(str(folder), 20)
        inputs = tokenizer("good film", "dull plot", return_tensors="pt")
        with torch.inference_mode():
            expected = {task: model(task, **inputs).logits[0].tolist() for task in TASKS}
        assert found[str(folder)] == expected


@pytest.mark.slow  # for its import
@torch.inference_mode()
def test_sentence_transformers_takes_a_run_as_its_encoder(checkpoints, tmp_path):
    from sentence_transformers import SentenceTransformer

    model, tokenizer = make_model(checkpoints["roberta"]), load_tokenizer(str(checkpoints["roberta"]), 20)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu").encode("good film")
    hidden = model.base_model(**tokenizer("good film", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(torch.tensor(found), hidden[0].mean(0))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_a_step_of_each_task_moves_every_weight_but_the_poolers(checkpoints, kind, sharing):
    model = make_model(checkpoints[kind], encoder_sharing=sharing).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    torch.manual_seed(3)
    inputs = {"input_ids": torch.arange(20).repeat(4, 1), "token_type_ids": torch.arange(20).repeat(4, 1) // 10}
    for task in TASKS:
        labels = torch.tensor([0.5, 1, 4, 2]) if task == "sts" else torch.tensor([0, 1, 1, 0])
        model(task, labels=labels, **inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    still = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert {name for name in still if ".pooler." not in name} == set()


def test_only_word_embeddings_can_be_perturbed(checkpoints, tmp_path):
    model = make_model(checkpoints["roberta"])
    with pytest.raises(InputError, match="only minBERT takes a perturbation"):
        model("sst", torch.arange(4)[None], perturbation=torch.zeros(1, 4, 32))
    for name, weight in (("sst", 1.0), ("sst", 0.0)):
        model.change_task(dataclasses.replace(model.tasks[name], smart_weight=weight))
        args = MultitaskTrainingArguments(output_dir=str(tmp_path), smart_place="embeddings", report_to="none")
        refused = pytest.raises(InputError, match="--smart_place embeddings needs a BERT, not a 'roberta'")
        with refused if weight else nullcontext():
            check_smart(model, args)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("projection", ["ball", "unit"])
def test_smart_perturbs_real_tokens_within_its_ball(checkpoints, kind, projection):
    model, inputs = make_model(checkpoints[kind]), padded(checkpoints[kind])
    ids = inputs.pop("input_ids")
    words = model.encoder("sst").get_input_embeddings()(ids)
    moved = []

    def predict(embeddings):
        moved.append((embeddings - words).detach())
        return model("sst", inputs_embeds=embeddings, **inputs).logits

    clean = model("sst", ids, **inputs).logits
    options = {"radius": 1e-2 if projection == "ball" else 1e-5, "step_size": 1e-2, "projection": projection}
    mask = inputs["attention_mask"]
    penalty = smart_penalty(predict, words, mask, clean, DIVERGENCES["symmetric_kl"], **options)
    penalty.backward()
    assert 0 < penalty.item() < float("inf")
    assert moved[-1].abs().max() <= (1e-2 if projection == "ball" else 1) + 1e-6
    assert moved[-1][mask == 0].eq(0).all() and moved[-1][mask == 1].ne(0).any()


# The systems of the paper (design: Baseline, Baseline + TPE, 3-BERT, round-robin with SMART) on one encoder each.
SYSTEMS = {
    "baseline": ("mpnet", "shared", "separate", "sequential", []),
    "tpe": ("electra", "shared", "joint", "sequential", ["--freeze_encoder"]),
    "three encoders": ("distilbert", "per_task", "separate", "sequential", []),
    "three encoders, SMART": ("modernbert", "per_task", "joint", "sequential", ["--smart_weight", "1"]),
    "round-robin, SMART": (
        "roberta",
        "shared",
        "joint",
        "round_robin",
        ["--smart_weight", "1", "--bregman_weight", "1"],
    ),
    "round-robin, checkpointing": ("electra", "shared", "joint", "round_robin", ["--gradient_checkpointing"]),
}


QUICK = "round-robin, SMART"


class Killed(BaseException):
    """What no handler expects."""


FLAGS = [
    "--no_do_predict",
    "--max_steps",
    5,
    "--save_steps",
    2,
    "--eval_steps",
    2,
    "--logging_steps",
    1,
    "--encoder_dropout",
    0.2,
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in SYSTEMS]
)
def test_each_system_trains_and_resumes_bit_for_bit(checkpoints, name, tmp_path, monkeypatch):
    kind, sharing, encoding, schedule, flags = SYSTEMS[name]
    config = write_config(tmp_path, str(checkpoints[kind]), write_course(tmp_path / "data", (5, 6, 5)))
    flags = [*FLAGS, *flags, "--encoder_sharing", sharing, "--pair_encoding", encoding, "--schedule", schedule]
    assert run_here(monkeypatch, config, *flags, "--output_dir", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        steps, original = [], MultitaskTrainer.training_step

        def failing(self, *args, **kwargs):
            steps.append(1)
            if len(steps) == 4:
                raise Killed
            return original(self, *args, **kwargs)

        patch.setattr(MultitaskTrainer, "training_step", failing)
        with pytest.raises(Killed):
            run_here(monkeypatch, config, *flags)
    assert run_here(monkeypatch, config, *flags, "--resume_from_checkpoint") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    expected, got = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "run"))
    assert expected.keys() == got.keys() and all(expected[key].equal(got[key]) for key in expected)
    trained = TrainedRun.open(str(tmp_path / "run"))
    assert {getattr(trained.config.text_config, field) for field in trained.config.dropout_fields} == {0.2}
    begun = AutoModel.from_pretrained(checkpoints[kind]).state_dict()
    copies = [(key, weight) for key, weight in got.items() if not key.startswith("heads.")]
    moved = [key for key, weight in copies if not any(weight.equal(old) for old in begun.values())]
    assert len(copies) == len(begun) * (1 if sharing == "shared" else 3)
    assert bool(moved) == ("--freeze_encoder" not in flags)
    assert (tmp_path / "run" / "README.md").read_text().count(
        f"`{type(trained.load_model().encoder('sst')).__name__}` for"
    ) == 1


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_exports(checkpoints, kind):
    """A stock classifier wherever the architecture's own head can give the same logits; else one with our code."""
    folder = checkpoints[kind]
    model, tokenizer = make_model(folder), load_tokenizer(str(folder), 20)
    inputs = dict(tokenizer(*PAIR, return_tensors="pt"))
    encoder = export_encoder(model, "quora")
    assert type(encoder) is type(AutoModel.from_pretrained(folder))
    hidden = encoder(**inputs).last_hidden_state
    torch.testing.assert_close(hidden[:, 0], model.encode("quora", **inputs).last_hidden_state[:, 0])
    for task in TASKS:
        exported = export_classifier(model, task, tokenizer)
        assert (type(exported) is not EncoderClassifier) == (kind in STOCK), type(exported)
        logits, own = exported(**inputs).logits[0], model.heads[task](hidden[:, 0])[0]
        if task == "sts":  # of a stock model, before the sigmoid
            logits = own.new_tensor([5]) * (logits.sigmoid() if kind in STOCK else logits)
        elif task == "quora":
            logits = logits[1:] - logits[:1]
        torch.testing.assert_close(logits, own.view(-1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_exports_of_layouts_that_no_stock_model_has(checkpoints, tmp_path):
    """The texts of a pair, joined as the tokenizer joins them, are taken apart again, with types and without."""
    for kind in ("mpnet", "electra"):
        model = make_model(checkpoints[kind], pair_encoding="separate", pooling="mean")
        tokenizer = load_tokenizer(str(checkpoints[kind]), 20)
        exported = export_classifier(model, "sts", tokenizer)
        exported.save_pretrained(tmp_path / kind)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / kind)
        assert type(exported) is type(again) is EncoderClassifier
        score = MultitaskPipeline(model, tokenizer)("sts", PAIR)["score"]
        given = tokenizer(*PAIR, return_tensors="pt")
        assert 5 * again(**given).logits.item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("doubled", [True, False])
def test_a_joined_pair_is_taken_apart_at_its_separators(doubled):
    tokenizer = make_tokenizer(doubled)
    firsts, seconds = ["good", "bad film", "good", ""], ["dull plot is", "far", "", "great"]
    given = tokenizer(firsts, seconds, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = split_pairs(given["input_ids"], given["attention_mask"])
    for number, texts in enumerate((firsts, seconds)):
        for row, text in enumerate(texts):
            assert ids[row, number][mask[row, number].bool()].tolist() == tokenizer(text)["input_ids"]


REFUSED = {
    "gpt2": "decoder",
    "llama": "decoder",
    "t5": "encoder-decoder",
    "bart": "encoder-decoder",
    "vit": "takes no input_ids",
    "clip": "not a masked language model",
    "fnet": "takes no attention_mask",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_bidirectional_encoder_of_texts_is_refused(kind, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    for load in (lambda: MultitaskBertConfig.from_pretrained(tmp_path), lambda: make_model(tmp_path)):
        with pytest.raises(InputError, match=f"'{kind}'.*{REFUSED[kind]}") as error:
            load()
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_other_refusals(checkpoints, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(InputError, match="'nobody'.*does not have"):
        make_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "multitask", "tasks": ["sst"]}))
    with pytest.raises(InputError, match="text_config"):
        MultitaskBertConfig.from_pretrained(tmp_path)
    decoder = AutoConfig.for_model("roberta", is_decoder=True, **SIZE)
    decoder.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="decoder"):
        make_model(tmp_path)
    with pytest.raises(InputError, match="decoder"):
        MultitaskModel(MultitaskConfig(text_config=decoder, tasks=["sst"]))
    with pytest.raises(InputError, match="'sst'.*pooler"):
        make_model(checkpoints["electra"], pooling="pooler")
    esm = AutoConfig.for_model("esm", vocab_size=20, pad_token_id=1, mask_token_id=0, **SIZE)
    AutoModel.from_config(esm).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'esm'.*inputs_embeds"):
        make_model(tmp_path)
    model = make_model(checkpoints["roberta"], encoder_sharing="per_task")
    with pytest.raises(InputError, match="no task None"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_the_weights_are_of_the_revision_asked_for_and_fp32(checkpoints, tmp_path, monkeypatch):
    asked, load = [], AutoModel.from_pretrained
    load(checkpoints["electra"], dtype=torch.float16).save_pretrained(tmp_path)

    def watched(*args, **kwargs):
        asked.append((kwargs.get("revision"), kwargs.get("use_safetensors")))
        return load(*args, **kwargs)

    monkeypatch.setattr("bert_multitask.model.modeling.AutoModel.from_pretrained", watched)
    model = make_model(tmp_path, revision="small")
    assert asked == [("small", True)] and {weight.dtype for weight in model.parameters()} == {torch.float32}
    half = make_model(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_weights_that_are_no_floats_are_refused(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["electra"], tmp_path / "electra")
    weights = load_file(folder / "model.safetensors")
    weights = {key: value.clone() for key, value in weights.items()}  # not mapped from the file that is written below
    key = next(key for key in weights if key.endswith("query.weight"))
    save_file(weights | {key: weights[key].to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"{key} is stored as I8"):
        make_model(folder)
    save_file(weights | {key: weights[key] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"{key}.*not finite"):
        make_model(folder)


def test_an_encoder_with_missing_weights_is_refused(checkpoints, tmp_path):
    encoder = AutoModel.from_pretrained(checkpoints["distilbert"])
    weights = {key: value for key, value in encoder.state_dict().items() if "layer.1" not in key}
    encoder.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(InputError, match="lacks 16 encoder weights.*layer.1"):
        make_model(tmp_path)


def test_a_slow_tokenizer_is_refused_with_the_reason(tmp_path):
    class Slow(PythonBackend):
        vocab_size = 20

        def get_vocab(self):
            return {}

    with pytest.raises(InputError, match="Slow, is a slow one"):
        check_tokenizer("X", Slow(), 20)


def test_a_pooler_is_read_where_there_is_one(checkpoints):
    model, inputs = make_model(checkpoints["roberta"], pooling="pooler"), padded(checkpoints["roberta"])
    with torch.no_grad():
        pooled = AutoModel.from_pretrained(checkpoints["roberta"]).eval()(**inputs).pooler_output
        torch.testing.assert_close(model("sst", **inputs).logits, model.heads["sst"](pooled))
        exported = export_classifier(model, "sst")
        torch.testing.assert_close(exported(**inputs).logits, model.heads["sst"](pooled), atol=1e-5, rtol=0)
    assert type(exported).__name__ == "RobertaForSequenceClassification"


def test_new_tokens(checkpoints):
    for sharing in ("shared", "per_task"):
        model = make_model(checkpoints["roberta"], encoder_sharing=sharing)
        model.resize_token_embeddings(25)
        tables = {len(model.encoder(task).get_input_embeddings().weight) for task in TASKS}
        assert tables == {25} and model.config.vocab_size == 25
        assert export_encoder(model, "sst").get_input_embeddings().weight.shape[0] == 25


LONG = "good bad fine dull great film story scene plot cast"  # 10 tokens


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        ("head", "good bad fine dull great film story scene"),
        ("tail", "fine dull great film story scene plot cast"),
        ("head_tail", "good bad dull great film story scene plot cast"),
    ],
)
def test_what_is_kept_of_a_text_that_is_too_long(truncation, kept):
    tokenizer = make_tokenizer(doubled=True)
    expected = tokenizer(kept)["input_ids"]
    found = encode(tokenizer, [[LONG, "bad"]], len(expected), False, truncation=truncation)
    assert found["input_ids"] == [expected, tokenizer("bad")["input_ids"]] and found["truncated"] == [True, False]
    words = encode(tokenizer, [[LONG]], len(expected), False, words=True, truncation=truncation)
    starts = [words["input_ids"][0][start] if start >= 0 else None for start in words["word_starts"][0]]
    vocabulary = tokenizer.get_vocab()
    assert starts == [vocabulary[word] if word in kept.split() else None for word in LONG.split()]


@pytest.mark.parametrize("separate", [False, True])
def test_a_prompt_stands_before_each_sequence(separate):
    tokenizer = make_tokenizer(doubled=True)
    texts = [["bad film", LONG], ["dull", "good"]]
    written = [["story scene " + text for text in texts[0]], texts[1]]
    if separate:
        written[1] = ["story scene " + text for text in texts[1]]
    found = encode(tokenizer, texts, 9, separate, prompt="story scene ")
    assert found == encode(tokenizer, written, 9, separate) and found["truncated"] == [False, True]


@pytest.mark.parametrize("lengths", [(9, 2), (2, 9), (9, 8), (8, 9), (0, 9), (5, 5)])
@pytest.mark.parametrize("length", [6, 7, 10, 11])
def test_pairs_lose_tokens_where_the_tokenizer_takes_them(lengths, length):
    """The ends are cut as `tokenizers` cuts them; with the tail, each text keeps as many tokens."""
    tokenizer = make_tokenizer(doubled=False)
    texts = [" ".join(WORDS[:size]) for size in lengths]
    cut = tokenizer(*texts, truncation="longest_first", max_length=length)
    tokenizer.backend_tokenizer.no_truncation()
    whole = tokenizer(*texts)
    places = kept_tokens(whole.encodings[0].sequence_ids, length, "head") or range(len(whole["input_ids"]))
    assert [whole["input_ids"][place] for place in places] == cut["input_ids"]
    tail = kept_tokens(whole.encodings[0].sequence_ids, length, "tail") or places
    owners = [[whole.encodings[0].sequence_ids[place] for place in kept] for kept in (places, tail)]
    assert owners[0] == owners[1] and whole["input_ids"][tail[-2]] == whole["input_ids"][-2]


def test_what_is_left_out_moved_nothing(checkpoints):
    """The words of an explained text, where the middle or the beginning is left out."""
    tokenizer = load_tokenizer(str(checkpoints["electra"]), 20)
    for truncation in ("tail", "head_tail"):
        task = dataclasses.replace(PRESETS["sst"], truncation=truncation)
        model = MultitaskBertModel.from_pretrained(checkpoints["electra"], tasks=[task])
        (pieces,) = explain(MultitaskPipeline(model, tokenizer, max_length=8), "sst", LONG)
        assert "".join(text for text, _ in pieces) == LONG
        left_out = [text.strip() for text, value in pieces if value is None]
        assert left_out == [" ".join(LONG.split()[:4]) if truncation == "tail" else " ".join(LONG.split()[1:5])]


@pytest.mark.slow
def test_a_soup_and_a_pipeline_of_a_run(checkpoints, tmp_path, monkeypatch):
    config = write_config(tmp_path, str(checkpoints["mpnet"]), write_course(tmp_path / "data", (5, 6, 5)))
    for number in (1, 2):
        flags = ["--max_steps", 2, "--data_seed", number, "--output_dir", tmp_path / f"run{number}"]
        assert run_here(monkeypatch, config, *flags, "--encoder_dropout", number / 10) == 0
    runs = [TrainedRun.open(str(tmp_path / f"run{number}")) for number in (1, 2)]
    states = [run.load_model().state_dict() for run in runs]
    for key, weight in average_weights(runs).state_dict().items():
        torch.testing.assert_close(weight, (states[0][key] + states[1][key]) / 2)
    answers = MultitaskPipeline(str(tmp_path / "run1"))("quora", [PAIR, PAIR[::-1]])
    assert {answer["label"] for answer in answers} <= {*PRESETS["quora"].label_names}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{}, {"pair_encoding": "separate", "pooling": "mean"}], ids=["joint", "separate"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_onnx_answers_as_the_pipeline_does(checkpoints, tmp_path, kind, layout):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, tokenizer = make_model(checkpoints[kind], **layout), load_tokenizer(str(checkpoints[kind]), 20)
    (path,) = export_graph(model, "quora", tokenizer, tmp_path)
    rows = [PAIR, ("bad", "great story"), ("story", "film plot is it far how then")]
    expected = MultitaskPipeline(model, tokenizer).table("quora", rows)["probabilities"]
    session, beside = onnxruntime.InferenceSession(path), AutoTokenizer.from_pretrained(tmp_path)
    for batch in ([0], [1, 2], [2, 0, 1]):
        texts = zip(*(rows[number] for number in batch), strict=True)
        inputs = beside(*map(list, texts), padding=True, truncation=True, return_tensors="np")
        (found,) = session.run(["probabilities"], dict(inputs))
        assert found == pytest.approx(torch.tensor(expected)[batch].numpy(), abs=1e-5)
