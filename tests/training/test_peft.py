"""Adapters by peft: what trains, what is saved, and how a run goes on."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import NO_DROPOUT, weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.trainer import MultitaskTrainer

TASKS = ["sst", "quora", "sts"]
HEADS = [f"heads.{task}" for task in TASKS]


@pytest.fixture
def make_adapted(make_trainer, tiny_bert):
    """A trainer of a model with an adapter; LoraConfig's arguments, the layout, and flags."""

    def make(config=None, model_settings=None, adapt=get_peft_model, **settings) -> MultitaskTrainer:
        smart = settings.pop("smart", {})
        plain = make_trainer(model_settings=model_settings, task_settings=dict.fromkeys(TASKS, smart))
        config = {"target_modules": ["query", "value"], "modules_to_save": HEADS, "lora_dropout": 0.0} | (config or {})
        torch.manual_seed(0)
        model = adapt(plain.model, LoraConfig(**config))
        off = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
        off |= {"load_best_model_at_end": False, "disable_tqdm": True, "output_dir": plain.args.output_dir}
        args = MultitaskTrainingArguments(**off | {"per_device_train_batch_size": 4, "learning_rate": 1e-3} | settings)
        data = {"train_dataset": plain.train_dataset.tasks, "eval_dataset": plain.eval_dataset}
        return MultitaskTrainer(model, args, processing_class=plain.processing_class, **data)

    return make


SAVE = {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 4}


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_an_adapted_model_trains_saves_and_goes_on(make_adapted, tiny_bert, tmp_path, sharing):
    layout = {"encoder_sharing": sharing}
    trainer = make_adapted(model_settings=layout, **SAVE)
    before = weights(trainer)
    trainer.train()
    for name, weight in weights(trainer).items():
        trains = "lora_" in name or "modules_to_save" in name
        assert trains or torch.equal(weight, before[name]), name
        if "modules_to_save" in name:
            assert torch.equal(weight, before[name]) == (name.split(".")[3] not in trainer.plan), name
    scores = trainer.evaluate()
    assert {f"eval_{task}_loss" for task in TASKS} < scores.keys()

    # The folder is an adapter; the merged model is a run like any other.
    base = MultitaskBertModel.from_pretrained(tiny_bert, tasks=list(trainer.model.tasks.values()), **layout)
    trainer.save_model()
    again = PeftModel.from_pretrained(base, trainer.args.output_dir).eval()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = MultitaskBertModel.from_pretrained(tmp_path / "merged").eval()
    batch = {"input_ids": torch.tensor([[101, 7, 8, 102]])}
    with torch.inference_mode():
        for task in TASKS:
            expected = merged.eval()(task, **batch).logits
            torch.testing.assert_close(again(task=task, **batch).logits, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(loaded(task, **batch).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_a_resumed_adapter_is_the_same(make_adapted, tmp_path, sharing):
    settings = {"model_settings": {"encoder_sharing": sharing} | NO_DROPOUT, "load_best_model_at_end": True, **SAVE}
    whole = make_adapted(**settings)
    whole.train()
    folder = Path(whole.args.output_dir)
    expected = load_file(folder / "checkpoint-4" / "adapter_model.safetensors")
    final = weights(whole)
    shutil.rmtree(folder / "checkpoint-4")
    resumed = make_adapted(**settings)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    got = load_file(folder / "checkpoint-4" / "adapter_model.safetensors")
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    assert all(torch.equal(weight, final[name]) for name, weight in weights(resumed).items())


def test_smart_works_on_an_adapted_model(make_adapted):
    trainer = make_adapted(max_steps=3, logging_steps=1, smart={"smart_weight": 1.0, "bregman_weight": 1.0})
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for number, (task, entry) in enumerate(zip(trainer.plan, logged, strict=True)):
        assert entry[f"smart_{task}"] > 0
        assert entry[f"bregman_{task}"] >= 0 and (number == 0 or entry[f"bregman_{task}"] > 0)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"modules_to_save": None}, ["sst", "quora", "sts"]),
        ({"modules_to_save": None, "task_type": "SEQ_CLS"}, ["quora", "sts"]),
        ({"modules_to_save": ["heads.quora"]}, ["sst", "sts"]),
        ({}, []),
    ],
    ids=["none", "the layers called classifier", "one", "all"],
)
def test_heads_that_stay_as_they_are_are_named(make_adapted, caplog, propagated_logs, config, named):
    make_adapted(config)
    for task in TASKS:
        assert (f"the head of task '{task}' is not trained" in caplog.text) == (task in named)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": {"task_type": "SEQ_CLS"}}, "wraps .*heads.sst.* twice.*; leave task_type out"),
        ({"adapt": lambda model, config: (model.add_adapter(config), model)[1]}, "use peft.get_peft_model"),
        ({"adapt": lambda model, config: model.requires_grad_(False)}, "task '.*' has nothing to train"),
        ({"adapt": lambda model, config: model.bfloat16()}, "weights are torch.bfloat16 .*model.float()"),
        ({"adapt": lambda model, config: (model.heads.half(), model)[1]}, "torch.float16 .heads.sst.*--bf16 or --fp16"),
        (
            {"push_to_hub": True, "hub_model_id": "me/x"},
            "a peft adapter, which others could not load.*merge_and_unload",
        ),
    ],
    ids=["classifiers twice", "add_adapter", "nothing to train", "bf16", "a half-precision head", "push"],
)
def test_models_that_cannot_be_trained_or_kept_are_refused(make_adapted, settings, message):
    with pytest.raises(InputError, match=message):
        make_adapted(**settings)
