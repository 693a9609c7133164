"""What `transformers.Trainer` and `TrainingArguments` take: each is supported, or refused when the trainer is built.

docs/trainer.md lists all of it. The first tests go through the installed version: an upgrade adds nothing unseen.
"""

import ast
import dataclasses
import inspect
import itertools
import re

import numpy as np
import pytest
import torch
from conftest import NO_DROPOUT, ROOT, run_here, weights
from datasets import Dataset
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from bert_multitask.data.collate import Collator
from bert_multitask.evaluation.metrics import join_scores
from bert_multitask.model.errors import InputError
from bert_multitask.training import checks, flags, graphs
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.flags import FIXED
from bert_multitask.training.trainer import MultitaskTrainer

PAGE = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")
EVALUATING = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 4, "save_steps": 4}
# Each test, and the arguments and fields whose effect or refusal it shows.
PROMISES = {
    "test_trainer_promises.py::test_a_model_and_arguments_of_another_kind": "model args",
    "test_trainer_promises.py::test_data_collator": "data_collator",
    "test_token_rows.py::test_raw_rows_train_as_files_do": "train_dataset",
    "test_trainer_promises.py::test_evaluation_rows_are_of_every_task_and_labelled": "eval_dataset",
    "test_train_multitask.py::test_two_steps_leave_a_run_folder": "processing_class output_dir",
    "test_trainer_promises.py::test_what_a_trainer_refuses": "model_init preprocess_logits_for_metrics",
    "test_trainer_promises.py::test_compute_loss_func": "compute_loss_func",
    "test_trainer_promises.py::test_compute_metrics_gets_the_labelled_rows_of_a_task": "compute_metrics",
    "test_trainer_promises.py::test_callbacks": "callbacks",
    "test_trainer_promises.py::test_optimizers": "optimizers optimizer_cls_and_kwargs",
    "test_trainer.py::test_accumulation_changes_nothing": "per_device_train_batch_size gradient_accumulation_steps",
    "test_trainer.py::test_max_steps_keeps_the_start_of_the_plan": "max_steps",
    "test_finite.py::test_a_learning_rate_of_1e30": "learning_rate",
    "test_trainer_promises.py::test_schedules_of_the_learning_rate": "lr_scheduler_type lr_scheduler_kwargs",
    "test_arguments.py::test_warmup_is_not_ignored_by_a_constant_rate": "warmup_steps",
    "test_trainer_promises.py::test_optimizers_that_cannot_be_made": "optim",
    "test_trainer_promises.py::test_the_optimizers_settings": "optim_args adam_beta1 adam_beta2 adam_epsilon",
    "test_callbacks.py::test_one_task_leaves_the_others_alone": "weight_decay",
    "test_trainer_promises.py::test_flags_that_would_be_ignored": "optim_target_modules accelerator_config debug",
    "test_finite.py::test_a_bad_step_stops_training": "max_grad_norm",
    "test_trainer.py::test_bf16_learns_the_same_first_loss": "bf16",
    "test_trainer_promises.py::test_what_this_machine_cannot_do": "fp16 tf32 torch_compile fsdp deepspeed",
    "test_trainer_promises.py::test_flags_that_change_no_weight": (
        "activation_checkpointing torch_empty_cache_steps eval_accumulation_steps save_strategy "
        "full_determinism skip_memory_metrics"
    ),
    "test_encoder.py::test_gradient_checkpointing_changes_no_gradient": "gradient_checkpointing",
    "test_trainer.py::test_without_a_log_no_prediction_is_kept_for_it": "logging_strategy",
    "test_trainer.py::test_task_losses_are_means_over_their_steps": "logging_steps",
    "test_trainer_promises.py::test_what_is_logged": "logging_first_step include_num_input_tokens_seen",
    "test_trainer_promises.py::test_every_place_to_report_to": "report_to",
    "test_trainer.py::test_sequential_evaluates_at_epoch_ends": "eval_strategy",
    "test_trainer.py::test_the_best_checkpoint_is_picked_by_the_overall_score": "eval_steps",
    "test_trainer_promises.py::test_when_evaluation_begins": "eval_delay eval_on_start",
    "test_trainer_promises.py::test_compute_metrics_is_told_what_it_asks_for": "include_for_metrics",
    "test_trainer.py::test_resume_gives_the_same_weights_bit_for_bit": "save_steps",
    "test_run_folder.py::test_a_finished_run_has_its_weights_once": "save_total_limit",
    "test_hub.py::test_a_run_on_the_hub": "push_to_hub hub_token hub_private_repo hub_model_id hub_revision",
    "test_callbacks.py::test_the_final_model_is_the_best_of_each_task": "load_best_model_at_end",
    "test_trainer_promises.py::test_compute_metrics_picks_the_best": "metric_for_best_model greater_is_better",
    "test_trainer_promises.py::test_early_stopping_counts_on_after_a_resume": "restore_callback_states_from_checkpoint",
    "test_trainer.py::test_seed_and_data_seed_change_the_plan": "seed data_seed",
    "test_trainer.py::test_persistent_workers_evaluate_each_task_on_its_own_rows": (
        "dataloader_num_workers dataloader_persistent_workers"
    ),
    "test_trainer_promises.py::test_loaders_are_made_as_asked_for": (
        "dataloader_prefetch_factor dataloader_multiprocessing_context"
    ),
    "test_train_multitask.py::test_metrics_are_those_of_the_written_predictions": "do_predict",
    "test_trainer_promises.py::test_ways_to_say_resume": "resume_from_checkpoint",
}
# Trainer's own, which only other programs or several machines show.
NO_TEST = {
    *("average_tokens_across_devices", "do_eval", "do_train", "fsdp_config", "gradient_checkpointing_kwargs"),
    *("local_rank", "log_level_replica", "project", "run_name", "save_only_model", "trackio_bucket_id"),
    *("trackio_space_id", "trackio_static_space_id", "use_cpu"),
}


def section(heading: str) -> str:
    """The part of the page under a heading, up to the next of its level."""
    return PAGE.split(f"\n{heading}\n")[1].split(f"\n{heading.split()[0]} ")[0]


def table(text: str) -> dict[str, list[str]]:
    """{name: the other cells} of the tables of a text."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {name.strip("`"): cells for name, *cells in rows}


def test_the_page_has_every_field_and_argument():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    text = section("## Fields of TrainingArguments")
    alike = re.findall(r"`(\w+)`", text.split("\n### ")[0])
    described = [*alike, *table(text)]
    assert len(described) == len(set(described)) and fields <= set(described)
    newer = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # 5.15 has neither
    assert set(described) - fields <= newer
    trainers, own = (inspect.signature(kind.__init__).parameters.keys() for kind in (Trainer, MultitaskTrainer))
    assert table(section("## Arguments of Trainer")).keys() == trainers - {"self"}
    assert trainers <= own and own - trainers == {"plan"} and "takes `plan`" in PAGE


def test_the_page_names_what_is_refused():
    fixed = {name: f"`{value!r}` | {why}" for name, (value, why) in FIXED.items()}
    assert {name: " | ".join(cells) for name, cells in table(section("### With one value")).items()} == fixed
    arguments = table(section("## Arguments of Trainer"))
    assert {name for name, (text,) in arguments.items() if text.startswith("refused")} == set(checks.REFUSED)


def test_promises_are_tests():
    promised = " ".join(PROMISES.values()).split()
    own = table(section("### With a difference")).keys() | table(section("## Arguments of Trainer")).keys()
    assert len(promised) == len(set(promised)) and own - set(promised) == NO_TEST
    for name in PROMISES:
        file, test = name.split("::")
        (path,) = (ROOT / "tests").rglob(file)
        assert test in {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def arguments(tmp_path, **settings) -> MultitaskTrainingArguments:
    return MultitaskTrainingArguments(**({"output_dir": str(tmp_path / "run"), "report_to": "none"} | settings))


@pytest.mark.parametrize("name", FIXED)
def test_fields_with_one_value(tmp_path, name):
    allowed, why = FIXED[name]
    other = {bool: not allowed, int: 2, str: "checkpoint", type(None): "x"}[type(allowed)]
    with pytest.raises(
        InputError, match=rf"--{name} is {re.escape(repr(other))}; only .* works here: {re.escape(why)}"
    ):
        arguments(tmp_path, **{name: other})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", INTEGRATION_TO_CALLBACK)
def test_every_place_to_report_to(tmp_path, monkeypatch, name):
    function = flags.REPORTERS.get(name, (name, name))[0]
    monkeypatch.setattr(flags.integration_utils, f"is_{function}_available", lambda: False)
    with pytest.raises(InputError, match=f"--report_to {name} needs (a package: pip install|a Kubeflow TrainJob)"):
        arguments(tmp_path, report_to=["none", name][1:])
    monkeypatch.setattr(flags.integration_utils, f"is_{function}_available", lambda: True)
    assert arguments(tmp_path, report_to=name).report_to == [name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim", "adamw_bnb_8bit"], "bitsandbytes"),
        (["--report_to", "neptune"], "pip install neptune"),
        (["--deepspeed", "x.json"], "pip install deepspeed"),
        (["--use_liger_kernel"], "Liger has no kernels for BERT"),
        (["--neftune_noise_alpha", "5"], "--neftune_noise_alpha is 5.0"),
        (["--auto_find_batch_size"], "--auto_find_batch_size is True"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_recipe_leaves_no_unfinished_run(monkeypatch, config, capsys, flags, message):
    monkeypatch.setattr("bert_multitask.training.flags.is_deepspeed_available", lambda: False)
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_neptune_available", lambda: False)
    assert run_here(monkeypatch, config, *flags) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0]
    assert not (config.parent / "run").exists()


def test_an_unknown_place_to_report_to(tmp_path):
    with pytest.raises(InputError, match="--report_to is 'wand'; choose one of none, all, .*wandb"):
        arguments(tmp_path, report_to="wand")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": True, "use_cpu": True}, "--fp16 needs a GPU"),
        ({"deepspeed": "x.json"}, "--deepspeed needs the package deepspeed: pip install deepspeed"),
        ({"tf32": True, "use_cpu": True}, "--tf32 requires"),
        ({"fsdp": "full_shard", "use_cpu": True}, "--fsdp works with several processes only"),
        ({"torch_compile": True}, r"--torch_compile needs a C\+\+ compiler"),
        ({"torch_compile": True, "torch_compile_backend": "zzz"}, "--torch_compile_backend is 'zzz'; choose one of "),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_this_machine_cannot_do(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(flags, "is_deepspeed_available", lambda: False)
    monkeypatch.setattr(flags.shutil, "which", lambda name: None)
    if "tf32" in settings and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim_target_modules": ["query"]}, "--optim_target_modules does nothing with --optim adamw_torch"),
        ({"accelerator_config": {"split_batches": True}}, "--accelerator_config has split_batches: True"),
        ({"accelerator_config": {"even_batches": False}}, "--accelerator_config has even_batches: False"),
        ({"accelerator_config": {"dispatch_batches": True}}, "--accelerator_config has dispatch_batches: True"),
        ({"debug": "tpu_metrics_debug"}, "--debug takes underflow_overflow only"),
        ({"early_stopping_threshold": 0.1}, "does nothing without --early_stopping_patience"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "--early_stopping_patience needs --eval_strategy"),
        ({"early_stopping_patience": 0}, "--early_stopping_patience is 0; expected at least 1"),
        ({"learning_rate": float("inf")}, "--learning_rate is inf; expected 0 or more"),
        ({"learning_rate": float("nan")}, "--learning_rate is nan"),
        ({"max_grad_norm": -1}, "--max_grad_norm is -1; expected 0"),
        ({"save_total_limit": 0}, "--save_total_limit is 0"),
    ],
    ids=str,
)
def test_flags_that_would_be_ignored(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        arguments(tmp_path, **settings)


def test_ways_to_say_resume(tmp_path):
    for said, meant in {
        "True": "last",
        "true": "last",
        "last": "last",
        "False": None,
        "RUN/checkpoint-1": None,
    }.items():
        found = arguments(tmp_path, resume_from_checkpoint=said).resume_from_checkpoint
        assert found == (said if "/" in said else meant), said
    assert arguments(tmp_path, resume_from_checkpoint=True).resume_from_checkpoint == "last"


@pytest.mark.parametrize("optim", [name.value for name in OptimizerNames])
def test_optimizers_that_cannot_be_made(tmp_path, optim):
    """Every name is either made, or is refused with the package that it needs."""
    args, model = arguments(tmp_path, optim=optim), nn.Linear(2, 2)
    try:
        checks.check_optim(args, model)
    except InputError as error:
        assert re.match(rf"--optim {optim} cannot be made: .*(install|torch_xla|torch_npu)", str(error))
    with pytest.raises(InputError, match="--optim_args nonsense=1"):
        checks.check_optim(arguments(tmp_path, optim=optim, optim_args="nonsense=1"), model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr with its kwargs: .*min_lr"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 2}}, "unexpected keyword argument 'power'"),
        ({"optim": "galore_adamw", "optim_target_modules": ["query"]}, "--optim galore_adamw cannot be made: .*galore"),
        ({"optim": "adamw_bnb_8bit"}, "--optim adamw_bnb_8bit cannot be made: .*bitsandbytes"),
        ({"include_for_metrics": ["loss"]}, "--include_for_metrics does nothing without compute_metrics"),
        ({"given": {"model_init": lambda: None}}, "takes no model_init: "),
        ({"given": {"preprocess_logits_for_metrics": lambda *_: 0}}, "takes no preprocess_logits_for_metrics: "),
        ({"given": {"compute_metrics": {"stt": len}}}, "compute_metrics names 'stt'"),
        ({"given": {"compute_metrics": 3}}, "compute_metrics is a int; expected a function"),
        ({"given": {"compute_loss_func": {"sst": "focal"}}}, "compute_loss_func is a str"),
        ({"given": {"compute_loss_func": lambda outputs, labels: 0}}, "is called as f.*: .*'num_items_in_batch'"),
        ({"dataloader_num_workers": -1}, "--dataloader_… flags: .*num_workers"),
        ({"dataloader_num_workers": 1, "dataloader_prefetch_factor": -1}, "--dataloader_… flags: .*prefetch_factor"),
        ({"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "no"}, "--dataloader_… flags: .*context"),
        ({"given": {"data_collator": lambda rows: [0]}}, "data_collator gives list for rows of task 'sst'"),
        ({"given": {"data_collator": lambda rows: rows["x"]}}, "data_collator fails on rows of task 'sst': TypeError"),
        ({"given": {"train_dataset": None}}, "train_dataset has no rows of task 'sst'"),
        ({"given": {"eval_dataset": None}, **EVALUATING}, "eval_dataset has no rows of task 'sst'"),
        ({"given": {"eval_dataset": {}}, **EVALUATING}, "eval_dataset has no rows of task 'sst'"),
        ({"given": {"eval_dataset": None}, "eval_on_start": True}, "eval_dataset has no rows of task 'sst'"),
        ({"given": {"eval_dataset": {"sst_dev": []}}}, "eval_dataset has rows of 'sst_dev'"),
        ({"paper_optimizer": True, "given": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1.0})}}, "exclude"),
        ({"given": {"optimizers": (torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0), None)}}, "not this model's"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value.get("given", value)),
)  # fmt: skip
def test_what_a_trainer_refuses(make_trainer, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        make_trainer(**settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fields", [{"class_weights": "balanced"}, {"label_smoothing": 0.1}], ids=lambda value: min(value)
)
def test_a_loss_of_the_users_ignores_no_field_of_the_task(make_trainer, fields):
    function = {"quora": lambda outputs, labels, num_items_in_batch: outputs.logits.sum()}
    with pytest.raises(InputError, match=f"task 'quora': {min(fields)} belongs to the task's own loss"):
        make_trainer(task_settings={"quora": fields}, given={"compute_loss_func": function})
    make_trainer(task_settings={"sst": {"label_smoothing": 0.1}}, given={"compute_loss_func": function})


def test_evaluation_rows_are_of_every_task_and_labelled(make_trainer):
    rows = make_trainer().eval_dataset
    with pytest.raises(InputError, match="eval_dataset has no rows of task 'sts'"):
        make_trainer(given={"eval_dataset": {name: rows[name] for name in ("sst", "quora")}}, **EVALUATING)
    hidden = rows["sst"].remove_columns("labels").add_column("labels", [-100] * len(rows["sst"]))
    with pytest.raises(InputError, match=r"eval_dataset\['sst'\]: no row has a label"):
        make_trainer(given={"eval_dataset": rows | {"sst": hidden}}, **EVALUATING)


def test_a_model_and_arguments_of_another_kind(make_trainer, tmp_path):
    trainer = make_trainer()
    rows = trainer.train_dataset.tasks
    for model, args, message in (
        (None, trainer.args, "model is a NoneType; expected a MultitaskBertModel"),
        (trainer.model.bert, trainer.args, "model is a MinBertModel"),
        (trainer.model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True), "args is a TrainingArguments"),
    ):
        with pytest.raises(InputError, match=message):
            MultitaskTrainer(model, args, rows)


def test_evaluate_and_predict_take_rows_that_say_their_task(make_trainer):
    trainer = make_trainer()
    rows = trainer.eval_dataset["sst"]
    scores = trainer.evaluate(rows)
    assert scores["eval_sst_accuracy"] == scores["eval_overall"] == trainer.evaluate()["eval_sst_accuracy"]
    plain = trainer.predict(rows.to_list())
    assert np.array_equal(plain.predictions, trainer.predict(rows).predictions)
    for wrong, message in (
        ({"unknown": rows}, "eval_dataset has rows of 'unknown'"),
        (rows.remove_columns("task"), "which rows are of which task"),
        ({}, "there is nothing to evaluate on"),
    ):
        with pytest.raises(InputError, match=message):
            trainer.evaluate(wrong)
    with pytest.raises(InputError, match="there is nothing to evaluate on"):
        make_trainer(given={"eval_dataset": None}).evaluate()
    with pytest.raises(InputError, match="predict takes the rows of one"):
        trainer.predict(trainer.eval_dataset)


def test_a_batch_to_look_at(make_trainer):
    trainer = make_trainer()
    for given in ("sts", trainer.eval_dataset["sts"]):
        batch = next(iter(trainer.get_eval_dataloader(given)))
        assert (
            batch["task"] == "sts"
            and batch["labels"].tolist() == trainer.eval_dataset["sts"]["labels"][:][: len(batch["labels"])]
        )
    for given in (None, "cfimdb", dict(trainer.eval_dataset)):
        with pytest.raises(InputError, match="batches of one task: name one of sst, quora, sts"):
            trainer.get_eval_dataloader(given)
    trainer.eval_dataset = {"sst": trainer.eval_dataset["sst"]}
    assert next(iter(trainer.get_eval_dataloader()))["task"] == "sst"


class Count:
    """A `compute_metrics` that keeps what it was given."""

    def __init__(self, *keys):
        self.given, self.keys = [], keys

    def __call__(self, prediction):
        self.given.append(prediction)
        return {key: np.float32(len(self.given)) for key in self.keys}


def test_compute_metrics_gets_the_labelled_rows_of_a_task(make_trainer):
    count = Count("calls")
    trainer = make_trainer(given={"compute_metrics": {"sst": count}})
    rows = trainer.eval_dataset["sst"]
    labels = rows["labels"][:]
    some = rows.remove_columns("labels").add_column("labels", [-100, *labels[1:]])
    metrics = trainer.evaluate(trainer.eval_dataset | {"sst": some})
    (given,) = count.given
    assert metrics["eval_sst_calls"] == 1.0 and "eval_quora_calls" not in metrics
    assert given.label_ids.tolist() == labels[1:] and given.predictions.shape == (len(labels) - 1, 5)
    assert trainer.state.log_history[-1]["eval_sst_calls"] == 1.0
    hidden = some.remove_columns("labels").add_column("labels", [-100] * len(labels))
    assert "test_calls" not in trainer.predict(hidden).metrics, "without labels there is nothing to count"
    assert trainer.predict(rows).metrics["test_calls"] == 2.0


@pytest.mark.parametrize("own_loss", [False, True])
def test_predict_scores_the_labelled_rows_as_evaluate_does(make_trainer, own_loss):
    """Not as Trainer, whose loss is a mean over all rows: a batch without a label would count as 0."""

    def doubled(outputs, labels, num_items_in_batch):
        return 2 * cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    given = {"compute_loss_func": {"sst": doubled}} if own_loss else {}
    trainer = make_trainer(given=given, per_device_eval_batch_size=4)
    rows = trainer.eval_dataset["sst"]
    labels = rows["labels"][:]
    hidden = [*labels[:-5], *[-100] * 5]  # the last batches lack a label, or have few
    some = rows.remove_columns("labels").add_column("labels", hidden)
    output, scores = trainer.predict(some), trainer.evaluate({"sst": some})
    loss = cross_entropy(torch.tensor(output.predictions), torch.tensor(hidden)).item() * (1 + own_loss)
    assert output.metrics["test_loss"] == pytest.approx(loss, rel=1e-5) == scores["eval_sst_loss"]
    right = output.predictions.argmax(-1)[:-5] == labels[:-5]
    assert output.metrics["test_accuracy"] == scores["eval_sst_accuracy"] == right.mean()
    none = rows.remove_columns("labels").add_column("labels", [-100] * len(labels))
    assert trainer.predict(none).metrics.keys().isdisjoint(["test_loss", "test_accuracy"])


def test_compute_metrics_for_all_tasks(make_trainer):
    metrics = make_trainer(given={"compute_metrics": Count("calls")}).evaluate()
    assert [metrics[f"eval_{name}_calls"] for name in ("sst", "quora", "sts")] == [1, 2, 3]


@pytest.mark.parametrize("lower", [False, True])
def test_compute_metrics_picks_the_best(make_trainer, lower):
    trainer = make_trainer(
        given={"compute_metrics": {"sts": Count("calls")}},
        load_best_model_at_end=True,
        metric_for_best_model="sts_calls",
        greater_is_better=not lower,
        **EVALUATING,
    )
    trainer.train()
    assert trainer.state.best_global_step == (4 if lower else 16)


def test_compute_metrics_is_told_what_it_asks_for(make_trainer):
    count = Count("calls")
    make_trainer(given={"compute_metrics": {"sst": count}}, include_for_metrics=["inputs", "loss"]).evaluate()
    (given,) = count.given
    assert len(given.inputs) == len(given.label_ids) and given.losses is not None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _: {"accuracy": 1.0}, "gives 'accuracy', which task 'sst' has already"),
        (lambda _: {"loss": 1.0}, "gives 'loss', which task 'sst' has already"),
        (lambda _: {"f": float("nan")}, "gives 'f': nan for task 'sst'; expected names and finite numbers"),
        (lambda _: {"f": "high"}, "gives 'f': 'high'"),
        (lambda _: {"f": np.ones(2)}, "gives 'f': "),
        (lambda _: {1: 2.0}, "gives 1: 2.0"),
        (lambda _: 0.5, "gives a float for task 'sst'"),
    ],
)
def test_what_compute_metrics_may_not_give(make_trainer, function, message):
    with pytest.raises(InputError, match=message):
        make_trainer(given={"compute_metrics": {"sst": function}}).evaluate()


def test_numbers_of_other_types(make_trainer):
    given = {"sst": lambda _: {"tensor": torch.tensor(2.0), "numpy": np.float32(3)}}
    scores = make_trainer(given={"compute_metrics": given}).evaluate()
    assert scores["eval_sst_tensor"] == 2.0 and scores["eval_sst_numpy"] == 3.0


def test_two_scores_of_one_key():
    """As of the tasks `a` and `a_b`, where compute_metrics gives `b_accuracy` of `a`."""
    assert join_scores({"eval_a_f": 1.0}, {"eval_a_b_f": 0.5}) == {"eval_a_f": 1.0, "eval_a_b_f": 0.5}
    with pytest.raises(InputError, match="two scores would be called 'eval_a_b_accuracy'"):
        join_scores({"eval_a_b_accuracy": 77.0}, {"eval_a_b_accuracy": 0.5})


def test_a_best_metric_that_compute_metrics_does_not_give(make_trainer):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "sst_other"}
    trainer = make_trainer(given={"compute_metrics": {"sst": Count("calls")}}, **EVALUATING, **best)
    with pytest.raises(InputError, match="is 'eval_sst_other', but the evaluation gives eval_sst_calls"):
        trainer.train()
    with pytest.raises(InputError, match="--metric_for_best_model is 'quora_other'; choose one of"):
        make_trainer(**EVALUATING, **(best | {"metric_for_best_model": "quora_other"}))


def weighted(outputs, labels, num_items_in_batch):
    """The usual way to class weights."""
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    return cross_entropy(outputs.logits, labels, weight, reduction="sum") / num_items_in_batch


def same(outputs, labels, num_items_in_batch):
    return cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("value", [None, 0.5, torch.zeros(4)], ids=["none", "float", "a loss a row"])
def test_a_loss_that_is_not_one_number(make_trainer, value):
    trainer = make_trainer(given={"compute_loss_func": {"sst": lambda *_, **__: value}})
    with pytest.raises(InputError, match="compute_loss_func gives .* for task 'sst'; expected one number"):
        trainer.train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_compute_loss_func(make_trainer, accumulation):
    """The task's own loss written out changes nothing; weights change the weights. Other tasks keep theirs."""
    runs = {}
    for name, function in {"own": None, "same": {"sst": same}, "weighted": {"sst": weighted}}.items():
        trainer = make_trainer(
            NO_DROPOUT,
            given={"compute_loss_func": function},
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=4 // accumulation,
            max_steps=6,
        )
        trainer.train()
        runs[name] = weights(trainer), trainer.evaluate()
    for name, weight in runs["own"][0].items():
        torch.testing.assert_close(runs["same"][0][name], weight, atol=1e-5, rtol=1e-4, msg=name)
    assert runs["same"][1]["eval_sst_loss"] == pytest.approx(runs["own"][1]["eval_sst_loss"], rel=1e-4)
    head = "heads.sst.classifier.weight"
    assert not torch.allclose(runs["weighted"][0][head], runs["own"][0][head])
    assert runs["weighted"][1]["eval_sst_loss"] > runs["own"][1]["eval_sst_loss"]


def test_data_collator(make_trainer):
    """Instead of ours: here, one that hides the last token."""
    pad, seen = Collator(0), []

    def collate(rows):
        batch = pad(rows)
        seen.append(batch["task"])
        return batch | {"input_ids": batch["input_ids"].clamp(max=200)}

    trainer, plain = make_trainer(given={"data_collator": collate}), make_trainer()
    trainer.train()
    assert len(seen) > len(trainer.plan)
    assert trainer.evaluate()["eval_sst_loss"] != plain.evaluate()["eval_sst_loss"]


@pytest.mark.parametrize("pair_encoding", ["joint", "separate"])
def test_a_packing_of_another_mask_is_refused(make_trainer, pair_encoding):
    """Attention goes by the packing, so a mask that a user's collator changed later would do nothing."""
    pad = Collator(0, packs=True)

    def hide(rows):
        """Hides each row's last token, as a regulariser might."""
        batch = pad(rows)
        mask = batch["attention_mask"]
        return batch | {"attention_mask": mask * functional.pad(mask, (0, 1))[..., 1:]}

    model = {"pair_encoding": pair_encoding}
    with pytest.raises(InputError, match="a packing that does not fit its attention_mask, for rows of task 'sst'"):
        make_trainer(model, given={"data_collator": hide})
    trainer = make_trainer(model, given={"data_collator": lambda rows: pad(rows)})  # which fits
    trainer.train()
    trainer.data_collator = hide
    with pytest.raises(InputError, match="a packing that does not fit its attention_mask"):
        trainer.evaluate()


def test_optimizers(make_trainer):
    """A rate of 0 from the user's optimizer or schedule moves nothing; the class is used with its settings."""
    trainer = make_trainer()
    still = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    parts = {"train_dataset": trainer.train_dataset.tasks, "optimizers": (still, None)}
    before = weights(trainer)
    given = MultitaskTrainer(trainer.model, trainer.args, **parts)
    given.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(given).items())
    by_class = make_trainer(given={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.0, "momentum": 0.5})})
    by_class.train()
    assert by_class.optimizer.optimizer.param_groups[0]["momentum"] == 0.5
    moving = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(moving, lambda step: 0.0)
    scheduled = MultitaskTrainer(trainer.model, trainer.args, **parts | {"optimizers": (moving, schedule)})
    scheduled.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(scheduled).items())


def test_the_optimizers_settings(make_trainer):
    trainer = make_trainer(max_steps=1, adam_beta1=0.5, adam_beta2=0.6, adam_epsilon=1e-3, weight_decay=0.1)
    trainer.train()
    decayed, *_ = trainer.optimizer.optimizer.param_groups
    assert (decayed["betas"], decayed["eps"], decayed["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.1)
    trainer = make_trainer(max_steps=1, optim="sgd", optim_args="momentum=0.7")
    trainer.train()
    assert trainer.optimizer.optimizer.param_groups[0]["momentum"] == 0.7


def test_schedules_of_the_learning_rate(make_trainer):
    settings = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 5e-4}}
    trainer = make_trainer(logging_steps=1, **settings)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == sorted(rates, reverse=True) and 5e-4 <= rates[-1] < 6e-4


CHECKPOINTING = [flag for flag in graphs.CHECKPOINTING if hasattr(TrainingArguments, flag)][-1]
MEMORY = {CHECKPOINTING: True, "torch_empty_cache_steps": 2, "eval_accumulation_steps": 1}


@pytest.mark.parametrize(
    "settings",
    [
        MEMORY | {"skip_memory_metrics": False, "debug": "underflow_overflow"},
        {"full_determinism": True, "save_strategy": "best", "save_only_model": True},
    ],
    ids=["memory", "determinism"],
)
def test_flags_that_change_no_weight(make_trainer, settings):
    found = []
    try:
        for flag in ({}, settings):
            trainer = make_trainer(NO_DROPOUT, eval_strategy="steps", eval_steps=2, max_steps=4, **flag)
            trainer.train()
            found.append((weights(trainer), trainer.evaluate()["eval_overall"]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0][1] == found[1][1]
    for name, weight in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], weight, msg=name)


def test_what_is_logged(make_trainer):
    trainer = make_trainer(logging_first_step=True, logging_steps=8, include_num_input_tokens_seen="all")
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 8, 16]
    counts = [entry["num_input_tokens_seen"] for entry in entries]
    assert counts == sorted(counts) and counts[0] > 0


@pytest.mark.parametrize("schedule", ["round_robin", "sequential"])
def test_when_evaluation_begins(make_trainer, schedule):
    trainer = make_trainer(schedule=schedule, eval_on_start=True, eval_delay=7, **(EVALUATING | {"eval_steps": 8}))
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_overall" in entry]
    assert steps == ([0, 8, 10, 13, 16] if schedule == "sequential" else [0, 8, 16])


def test_loaders_are_made_as_asked_for(make_trainer):
    trainer = make_trainer(
        dataloader_num_workers=1, dataloader_prefetch_factor=3, dataloader_multiprocessing_context="spawn"
    )
    loader = trainer.get_train_dataloader()
    assert loader.prefetch_factor == 3 and loader.multiprocessing_context.get_start_method() == "spawn"


def test_callbacks(make_trainer):
    class Steps(TrainerCallback):
        def __init__(self):
            self.steps = 0

        def on_step_end(self, *args, **kwargs):
            self.steps += 1

    steps = Steps()
    make_trainer(callbacks=[steps]).train()
    assert steps.steps == 16


STOPPING = {"eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.0}


def test_early_stopping_by_flags(make_trainer):
    """Nothing improves at a rate of 0: after the first evaluation, two without gain end the training."""
    assert make_trainer(early_stopping_patience=2, **(EVALUATING | STOPPING)).train().global_step == 6
    calls = {"given": {"compute_metrics": {"sst": Count("calls")}}, "metric_for_best_model": "sst_calls"}
    settings = EVALUATING | STOPPING | calls | {"early_stopping_patience": 2}
    assert make_trainer(**settings, max_steps=8).train().global_step == 8, "each evaluation is better by 1"
    calls["given"] = {"compute_metrics": {"sst": Count("calls")}}
    assert make_trainer(**(settings | calls), early_stopping_threshold=1.5).train().global_step == 6


def test_early_stopping_counts_on_after_a_resume(make_trainer):
    settings = EVALUATING | STOPPING | {"early_stopping_patience": 3, "save_total_limit": None}
    assert make_trainer(**settings).train().global_step == 8
    resumed = make_trainer(**settings)
    assert resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-6").global_step == 8
    (stopping,) = [one for one in resumed.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    assert stopping.early_stopping_patience_counter == 3


def test_one_task_needs_no_names(make_trainer):
    """A model of one task takes the rows as they are."""
    trainer = make_trainer()
    one = trainer.model.from_pretrained(trainer.model.name_or_path, tasks=[trainer.model.tasks["sst"]])
    columns = ("input_ids", "token_type_ids", "labels")
    rows = Dataset.from_dict({key: trainer.train_dataset.tasks["sst"][key][:] for key in columns})
    single = MultitaskTrainer(one, trainer.args, rows, rows)
    assert single.plan == list(itertools.repeat("sst", len(single.plan))) and "eval_sst_accuracy" in single.evaluate()
