"""LoRA adapters, one for all tasks or one for each, in minBERT and in a RoBERTa: what they compute, what trains, what
is saved, and what is refused."""

import json
import threading
from pathlib import Path

import pytest
import torch
from conftest import SIZE, losses, run_here, run_killed, write_config, write_course
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file
from transformers import AutoModel, BertModel, RobertaConfig, RobertaModel

from bert_multitask.inference.export import export_classifier, export_encoder
from bert_multitask.inference.soup import average_weights
from bert_multitask.inference.trained_run import Records, TrainedRun
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.training.arguments import RunArguments
from bert_multitask.training.checks import check_weights

TASKS = ["sst", "quora", "sts"]
KINDS, LAYOUTS = ["bert", "roberta"], ["shared", "adapters"]
IDS = torch.tensor([[101, 7, 8, 9, 102]])
LORA = {"r": 3, "lora_alpha": 6}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_bert, tokenizer) -> dict[str, str]:
    """A tiny random BERT and a tiny random RoBERTa, with the same tokenizer."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    sizes = SIZE | {"max_position_embeddings": 70, "pad_token_id": 0}
    RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"bert": tiny_bert, "roberta": str(folder)}


def make_model(name: str, layout: str, lora=LORA, **settings) -> MultitaskBertModel:
    """With adapters that are not 0, as new ones are."""
    torch.manual_seed(1)
    model = MultitaskBertModel.from_pretrained(
        name, tasks=TASKS, encoder_sharing=layout, peft_config=lora, **settings
    ).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if ".lora_B." in key:
                weight.normal_(std=0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_adapters_change_nothing_and_are_trained_by_their_tasks_alone(checkpoints, kind, layout):
    torch.manual_seed(1)
    model = MultitaskBertModel.from_pretrained(
        checkpoints[kind], tasks=TASKS, encoder_sharing=layout, peft_config=LoraConfig(**LORA)
    ).eval()
    plain = MultitaskBertModel.from_pretrained(checkpoints[kind], tasks=TASKS).eval()
    plain.heads.load_state_dict(model.heads.state_dict())
    for task in TASKS:
        torch.testing.assert_close(model(task, IDS).logits, plain(task, IDS).logits, atol=1e-6, rtol=0)
    layers, adapters = 2 * 6, 3 if layout == "adapters" else 1  # q, k, v, their output, and two of the feed-forward
    trained = [key for key, weight in model.named_parameters() if weight.requires_grad and ".lora_" in key]
    assert len(trained) == layers * adapters * 2 and not any("pooler" in key for key in trained)
    assert all(weight.requires_grad == (key in trained or "heads." in key) for key, weight in model.named_parameters())
    make_nonzero = make_model(checkpoints[kind], layout)
    optimizer = torch.optim.SGD(make_nonzero.parameters(), lr=0.1)
    before = {key: weight.clone() for key, weight in make_nonzero.state_dict().items()}
    make_nonzero("quora", IDS, labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    moved = {key for key, weight in make_nonzero.state_dict().items() if not weight.equal(before[key])}
    own = {key for key in before if key.startswith("heads.quora.")}
    own |= {key for key in before if ".lora_" in key and (layout == "shared" or ".quora." in key)}
    assert moved == own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_saved_model_comes_back_and_merges(checkpoints, kind, layout, tmp_path):
    model = make_model(checkpoints[kind], layout, LORA | {"target_modules": ["query", "dense"]})
    model.save_pretrained(tmp_path / "run")
    for load in (MultitaskBertModel.from_pretrained, AutoModel.from_pretrained):
        again = load(tmp_path / "run").eval()
        assert type(again) is type(model) and again.config.lora == model.config.lora
        states = again.state_dict(), model.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(weight.equal(states[1][key]) for key, weight in states[0].items())
        trained = [{key for key, weight in each.named_parameters() if weight.requires_grad} for each in (again, model)]
        assert trained[0] == trained[1]
    if kind == "bert":
        with pytest.raises(ValueError, match="cross attention"):
            BertModel.from_pretrained(tmp_path / "run")

    merged = again.merge_adapters()
    assert merged.config.encoder_sharing == ("per_task" if layout == "adapters" else "shared")
    assert not any("lora" in key or "base_layer" in key for key in merged.state_dict())
    layer = "encoder.layer.1.attention.self.query"
    for task in TASKS:
        name, base = (task if layout == "adapters" else "default"), f"{model.base_model_prefix}.{layer}"
        names = ("base_layer", f"lora_A.{name}", f"lora_B.{name}")
        own, down, up = (model.state_dict()[f"{base}.{part}.weight"] for part in names)
        found = merged.encoder(task).state_dict()[f"{layer}.weight"]
        torch.testing.assert_close(found, own + 2 * up @ down)
        torch.testing.assert_close(merged(task, IDS).logits, model(task, IDS).logits, atol=1e-5, rtol=0)
        exported = export_encoder(again, task)(IDS).last_hidden_state
        torch.testing.assert_close(exported, model.encode(task, IDS).last_hidden_state, atol=1e-5, rtol=0)
    logits = export_classifier(again, "sst")(IDS).logits
    torch.testing.assert_close(logits, model("sst", IDS).logits, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert type(MultitaskBertConfig.from_pretrained(tmp_path / "merged")) is type(merged.config)
    apart = MultitaskBertModel.from_pretrained(tmp_path / "run", encoder_sharing="per_task").eval()
    torch.testing.assert_close(apart("sts", IDS).logits, model("sts", IDS).logits, atol=1e-5, rtol=0)


def test_threads_do_not_mix_adapters_up(checkpoints):
    model = make_model(checkpoints["bert"], "adapters")
    ids = IDS.repeat(40, 1)
    with torch.no_grad():
        expected = {task: model(task, ids).logits for task in TASKS}
    wrong = []

    def work(task):
        with torch.no_grad():
            wrong.extend(task for _ in range(40) if not model(task, ids).logits.allclose(expected[task], atol=1e-5))

    threads = [threading.Thread(target=work, args=[task]) for task in TASKS]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not wrong


FLAGS = ["--no_do_predict", "--max_steps", 6, "--save_steps", 2, "--eval_steps", 2, "--logging_steps", 1]
FLAGS += ["--learning_rate", 0.01, "--lora_rank", 3]
RUNS = {
    "bert, one for each": ("bert", ["--encoder_sharing", "adapters"]),
    "bert, one for all, all that averages": (
        "bert",
        ["--smart_weight", 1, "--bregman_weight", 1, "--ema_decay", 0.9, "--ema_start", 0.2],
    ),
    "roberta, one for each, SMART, checkpointing": (
        "roberta",
        ["--encoder_sharing", "adapters", "--smart_weight", 1, "--bregman_weight", 1, "--gradient_checkpointing"],
    ),
    "roberta, adapters and encoder": (
        "roberta",
        ["--encoder_sharing", "adapters", "--lora_train_encoder", "--lora_target_modules", "query", "value"],
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "each" in name else pytest.mark.slow) for name in RUNS]
)
def test_a_run_resumes_bit_for_bit_and_leaves_the_encoder_alone(checkpoints, name, tmp_path, monkeypatch):
    kind, flags = RUNS[name]
    config = write_config(tmp_path, checkpoints[kind], write_course(tmp_path / "data", (5, 6, 5)))
    flags = [*FLAGS, *flags]
    assert run_here(monkeypatch, config, *flags, "--output_dir", tmp_path / "whole") == 0
    run_killed(monkeypatch, 4, config, *flags)
    assert run_here(monkeypatch, config, *flags, "--resume_from_checkpoint") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    expected, got = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "run"))
    assert expected.keys() == got.keys() and all(expected[key].equal(got[key]) for key in expected)
    begun = AutoModel.from_pretrained(checkpoints[kind]).state_dict()
    prefix = "bert." if kind == "bert" else "text_encoder."
    found = {key.removeprefix(prefix).replace(".base_layer.", "."): weight for key, weight in got.items()}
    moved = [key for key, weight in begun.items() if not found[key].equal(weight)]
    assert bool(moved) == ("--lora_train_encoder" in flags)
    assert any(key.endswith(".weight") and ".lora_B." in key and weight.any() for key, weight in got.items())
    run = TrainedRun.open(str(tmp_path / "run"))
    assert (run.config.lora["r"], run.config.lora["lora_alpha"]) == (3, 6)
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'model.merge_adapters().encoder("sst")' in card
    assert ("and one adapter" if "for all" in name else "with an adapter and a head for each task") in card


def test_each_task_ends_with_its_best_adapter(make_trainer, monkeypatch):
    """And the soup of such a run with itself is the merged run."""
    scores = iter([0.1, 0.9, 0.5])
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 6}
    layout = {"encoder_sharing": "adapters", "peft_config": LORA}
    trainer = make_trainer(model_settings=layout, **settings, load_best_model_at_end=True)
    kept, join = [], trainer.join_metrics

    def scored(*args, **kwargs):
        kept.append({key: weight.clone() for key, weight in trainer.model.state_dict().items()})
        value = next(scores)
        return {key: value if "_loss" not in key else number for key, number in join(*args, **kwargs).items()}

    monkeypatch.setattr(trainer, "join_metrics", scored)
    trainer.train()
    assert trainer.describe_kept().count("of step 4") == 3
    assert not all(weight.equal(kept[2][key]) for key, weight in kept[1].items())
    for key, weight in trainer.model.state_dict().items():
        assert weight.equal(kept[1][key]), key


def test_the_soup_is_the_mean_of_merged_weights(checkpoints, tmp_path):
    runs = []
    for number in range(2):
        model = make_model(checkpoints["bert"], "shared")
        with torch.no_grad():
            for key, weight in model.named_parameters():
                weight.add_(number * 0.1 * (".lora_" in key))
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        record = {"run": {"model_name_or_path": "x"}, "training": {"seed": 1}}
        runs.append(TrainedRun(str(folder), model.config, model.tasks, Records(folder, record, None, {}), 32))
    soup = average_weights(runs)
    assert soup.config.lora is None
    first, second = (run.load_model().merge_adapters().state_dict() for run in runs)
    for key, weight in soup.state_dict().items():
        torch.testing.assert_close(weight, (first[key] + second[key]) / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_sharing": "adapters"}, "needs a peft_config"),
        ({"encoder_sharing": "per_task", "peft_config": LORA}, "encoder_sharing='adapters'"),
        ({"peft_config": LORA | {"target_modules": ["query", "nothing"]}}, "no layer 'nothing'; it has .*query"),
        ({"peft_config": LORA | {"target_modules": "no.*"}}, "adapters: .*not found"),
        ({"peft_config": LORA | {"modules_to_save": ["heads"]}}, "sets modules_to_save; leave it out"),
        ({"peft_config": LORA | {"bias": "all"}}, "sets bias"),
        ({"peft_config": LORA | {"init_lora_weights": "pissa"}}, "init_lora_weights 'pissa'"),
        ({"peft_config": {"rank": 3}}, "peft_config: .*rank"),
        ({"peft_config": {"r": 0}}, "adapters: .*r"),
        ({"peft_config": IA3Config()}, "is a IA3Config; expected a peft.LoraConfig"),
    ],
)
def test_adapters_that_cannot_be_are_refused(checkpoints, settings, message):
    with pytest.raises(InputError, match=message):
        MultitaskBertModel.from_pretrained(checkpoints["bert"], tasks=TASKS, **settings)


def test_trained_adapters_are_not_overlaid_or_shared(checkpoints, tmp_path):
    make_model(checkpoints["bert"], "adapters").save_pretrained(tmp_path)
    for settings, message in (
        ({"peft_config": LORA}, "has adapters already"),
        ({"encoder_sharing": "shared"}, "has an adapter for each task"),
        ({"tasks": [*TASKS, "cfimdb"]}, "lacks .* encoder weights"),
    ):
        with pytest.raises(InputError, match=message):
            MultitaskBertModel.from_pretrained(tmp_path, **settings)
    state = load_file(tmp_path / "model.safetensors")
    fields = json.loads(Path(tmp_path, "config.json").read_text())
    assert fields["model_type"] == "multitask_bert" and any(".base_layer." in key for key in state)


def test_without_peft_one_line_says_what_to_install(checkpoints, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install '.\[lora\]'"):
        MultitaskBertModel.from_pretrained(checkpoints["bert"], tasks=TASKS, peft_config=LORA)
    MultitaskBertModel.from_pretrained(checkpoints["bert"], tasks=TASKS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"encoder_sharing": "adapters"}, "--encoder_sharing adapters needs .*--lora_rank"),
        ({"lora_alpha": 8}, "--lora_alpha needs"),
        ({"lora_rank": 0}, "--lora_rank is 0"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "--lora_alpha is 0"),
        ({"lora_rank": 4, "encoder_sharing": "per_task"}, "--encoder_sharing per_task; use adapters"),
        ({"lora_rank": 4, "freeze_encoder": True}, "leave out --freeze_encoder"),
        ({"lora_rank": 4, "freeze_layers": 0}, "leave out --freeze_layers"),
        ({"lora_rank": 4, "lora_train_encoder": True}, "--lora_train_encoder needs"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        RunArguments(**flags)


def test_gradients_on_an_encoder_that_no_task_trains_have_no_cosine(make_trainer):
    layout = {"encoder_sharing": "adapters", "peft_config": LORA}
    with pytest.raises(InputError, match="--gradient_cosine_steps"):
        make_trainer(model_settings=layout, gradient_cosine_steps=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_task_whose_adapter_does_not_train_has_nothing_to_train(checkpoints, layout):
    model = make_model(checkpoints["bert"], layout)
    for key, weight in model.named_parameters():
        weight.requires_grad_(f"{'quora' if layout == 'adapters' else 'default'}." in key and "heads.sst" not in key)
    if layout == "shared":
        check_weights(model, TASKS)
    else:
        with pytest.raises(InputError, match="task 'sst' has nothing to train"):
            check_weights(model, TASKS)
