"""Training of a tiny model on a few rows: what moves, what is logged, what is scored, and what must not matter."""

import dataclasses
import gc
import json
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import NO_DROPOUT, weights
from sklearn.metrics import accuracy_score
from transformers import EarlyStoppingCallback

from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.callbacks import EpochEnds, HistoryFile
from bert_multitask.training.schedule import SCHEDULES, sequential
from bert_multitask.training.trainer import MultitaskTrainer

ROWS = {"sst": 11, "quora": 14, "sts": 9}


STEPS = 2 * 3 + 4 + 2 * 3  # batches of 4 of ROWS, by epochs


def test_every_parameter_but_the_poolers_moves(make_trainer):
    trainer = make_trainer()
    before = weights(trainer)
    output = trainer.train()
    assert output.global_step == STEPS == len(trainer.plan)
    for name, weight in weights(trainer).items():
        assert torch.equal(weight, before[name]) == name.startswith("bert.pooler"), name


def test_accumulation_changes_nothing(make_trainer):
    """One batch of 8 and shares of it, 4 x 2 and 1 x 8, ragged ones and empty ones, give the same weights."""
    runs = {}
    for rows, accumulation in [(8, 1), (2, 4), (1, 8)]:
        trainer = make_trainer(
            NO_DROPOUT,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            optim="sgd",  # Adam would amplify rounding where a gradient is 0
            learning_rate=0.1,
        )
        trainer.train()
        runs[rows] = weights(trainer), [log["loss"] for log in trainer.state.log_history if "loss" in log]
    for rows in (2, 1):
        np.testing.assert_allclose(runs[rows][1], runs[8][1], rtol=1e-5)
        for name, weight in runs[8][0].items():
            torch.testing.assert_close(runs[rows][0][name], weight, atol=1e-6, rtol=1e-5, msg=name)


def test_the_loss_is_the_mean_over_the_batch(make_trainer):
    """The first step's logged loss against the loss of the plan's first batch, computed apart."""
    trainer = make_trainer(NO_DROPOUT, logging_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = trainer.model.train()(**batch).loss.item()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.state.log_history[0][f"loss_{batch['task']}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_task_losses_are_means_over_their_steps(make_trainer, accumulation):
    trainer = make_trainer(NO_DROPOUT, logging_steps=1, gradient_accumulation_steps=accumulation)
    trainer.train()
    single = [log for log in trainer.state.log_history if "loss" in log]
    plan = trainer.plan
    trainer = make_trainer(NO_DROPOUT, logging_steps=len(plan), gradient_accumulation_steps=accumulation)
    trainer.train()
    (together,) = [log for log in trainer.state.log_history if "loss" in log]
    for task in ROWS:
        steps = [log["loss"] for log, name in zip(single, plan, strict=True) if name == task]
        assert together[f"loss_{task}"] == pytest.approx(np.mean(steps), rel=1e-4)


def test_training_scores_are_those_of_the_rows_trained_on(make_trainer):
    """Without dropout and with a learning rate of 0, what training logs is the metric of the training rows."""
    trainer = make_trainer(
        NO_DROPOUT,
        logging_steps=STEPS,
        learning_rate=0.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    scores = trainer.evaluate(trainer.train_dataset.tasks)
    for name, task in trainer.model.tasks.items():
        assert log[f"{task.metric}_{name}"] == pytest.approx(scores[f"eval_{name}_{task.metric}"], abs=1e-5)


def test_without_a_log_no_prediction_is_kept_for_it(make_trainer):
    kept = {}
    for strategy in ("no", "steps"):
        trainer = make_trainer(logging_strategy=strategy, logging_steps=10 * STEPS)
        trainer.train()
        kept[strategy] = sum(map(len, trainer.seen.values()))
    assert kept == {"no": 0, "steps": STEPS}


def test_evaluate_gives_every_metric_and_the_overall_score(make_trainer):
    trainer = make_trainer()
    metrics = trainer.evaluate()
    assert {"eval_sst_accuracy", "eval_quora_accuracy", "eval_sts_pearson", "eval_sst_loss"} <= set(metrics)
    correlation = (metrics["eval_sts_pearson"] + 1) / 2
    expected = (metrics["eval_sst_accuracy"] + metrics["eval_quora_accuracy"] + correlation) / 3
    assert metrics["eval_overall"] == pytest.approx(expected)
    output = trainer.predict(trainer.eval_dataset["sst"])
    assert metrics["eval_sst_accuracy"] == accuracy_score(output.label_ids, output.predictions.argmax(-1))
    assert trainer.evaluate({"sst": trainer.eval_dataset["sst"]}, metric_key_prefix="x")["x_overall"] == pytest.approx(
        metrics["eval_sst_accuracy"]
    )


def test_the_best_checkpoint_is_picked_by_the_overall_score(make_trainer):
    trainer = make_trainer(
        eval_strategy="steps", save_strategy="steps", eval_steps=4, save_steps=4, load_best_model_at_end=True
    )
    trainer.train()
    overall = {log["step"]: log["eval_overall"] for log in trainer.state.log_history if "eval_overall" in log}
    assert list(overall) == [4, 8, 12, 16]
    assert trainer.state.best_metric == max(overall.values()) == pytest.approx(trainer.evaluate()["eval_overall"])


def test_early_stopping_works_on_the_overall_score(make_trainer):
    trainer = make_trainer(
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        learning_rate=0.0,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    assert trainer.train().global_step == 6, "two evaluations without gain after the first"


WEIGHTS = {"different": 0.5, "paraphrase": 4.0}


@pytest.mark.parametrize("smart", [0.0, 1.0], ids=["plain", "smart"])
def test_accumulation_changes_nothing_with_class_weights(make_trainer, monkeypatch, smart):
    """The loss of a step is torch's weighted mean over all of its rows, and SMART's penalty stays a mean over them."""
    monkeypatch.setattr(torch, "randn_like", lambda embeddings: torch.sin(50 * embeddings.detach()))
    fields = {"class_weights": WEIGHTS, "label_smoothing": 0.1, "smart_weight": smart}
    runs = {}
    for rows, accumulation in [(8, 1), (2, 4)]:  # the last batch has 6 rows, in shares of 2, 2, 1 and 1
        settings = {"smart_radius": 0.02, "smart_step_size": 0.02, "smart_noise_std": 0.02} if smart else {}
        trainer = make_trainer(
            NO_DROPOUT,
            task_settings={"quora": fields},
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            optim="sgd",
            learning_rate=0.1,
            schedule="sequential",
            **settings,
        )
        trainer.train()
        runs[rows] = weights(trainer), [log for log in trainer.state.log_history if "loss_quora" in log]
    assert len(runs[8][1]) == 2
    for cut, whole in zip(runs[2][1], runs[8][1], strict=True):
        for key in ("loss", "loss_quora", *["smart_quora"] * bool(smart)):
            assert cut[key] == pytest.approx(whole[key], rel=1e-4), key
    for name, weight in runs[8][0].items():
        torch.testing.assert_close(runs[2][0][name], weight, atol=1e-6, rtol=1e-4, msg=name)


def test_class_weights_leave_smart_as_it_is(make_trainer, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda embeddings: torch.sin(50 * embeddings.detach()))
    penalties = []
    for class_weights in (None, dict.fromkeys(TASKS["sst"].label_names, 0.1)):
        fields = {"smart_weight": 1.0, "class_weights": class_weights}
        settings = {"schedule": "sequential", "max_steps": 1, "logging_steps": 1, "gradient_accumulation_steps": 2}
        trainer = make_trainer(NO_DROPOUT, task_settings={"sst": fields}, **settings)
        trainer.train()
        penalties.append(trainer.state.log_history[0]["smart_sst"])
    assert penalties[1] == pytest.approx(penalties[0], rel=1e-5)


def test_the_loss_of_a_step_is_torchs_weighted_mean(make_trainer):
    names = TASKS["sst"].label_names
    fields = {"class_weights": dict(zip(names, (1.0, 2.0, 0.5, 3.0, 1.5), strict=True)), "label_smoothing": 0.2}
    trainer = make_trainer(
        NO_DROPOUT, task_settings={"sst": fields}, logging_steps=1, max_steps=1, schedule="sequential"
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = torch.nn.CrossEntropyLoss(torch.tensor(list(fields["class_weights"].values())), label_smoothing=0.2)
    with torch.no_grad():
        loss = expected(trainer.model.eval()(**batch).logits, batch["labels"]).item()
    dev = trainer.predict(trainer.eval_dataset["sst"])
    scores = trainer.score({"sst": dev})
    trainer.train()
    assert trainer.state.log_history[0]["loss_sst"] == pytest.approx(loss, rel=1e-5)
    dev_loss = expected(torch.tensor(dev.predictions), torch.tensor(dev.label_ids)).item()
    assert scores["eval_sst_loss"] == pytest.approx(dev_loss, rel=1e-5), "an evaluation's loss is the model's own"


def test_balanced_class_weights_are_of_the_rows_trained_on(make_trainer):
    trainer = make_trainer(task_settings={"sst": {"class_weights": "balanced"}})
    labels = trainer.train_dataset.tasks["sst"]["labels"][:]
    expected = {name: 11 / (5 * labels.count(number)) for number, name in enumerate(TASKS["sst"].label_names)}
    assert trainer.model.tasks["sst"].class_weights == pytest.approx(expected)
    assert trainer.model.config.tasks[0]["class_weights"] == pytest.approx(expected)


@pytest.mark.parametrize("greater", [None, True, False])
def test_the_best_checkpoint_has_the_lowest_error(make_trainer, greater):
    """Whatever Transformers makes of a name that does not end in loss."""
    trainer = make_trainer(
        task_settings={"sts": {"metric": "rmse"}},
        metric_for_best_model="sts_rmse",
        greater_is_better=greater,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=4,
        save_steps=4,
        load_best_model_at_end=True,
    )
    trainer.train()
    errors = [log["eval_sts_rmse"] for log in trainer.state.log_history if "eval_sts_rmse" in log]
    assert len(set(errors)) > 1
    assert trainer.state.best_metric == min(errors) == pytest.approx(trainer.evaluate()["eval_sts_rmse"])


def test_max_steps_keeps_the_start_of_the_plan(make_trainer, caplog, propagated_logs):
    whole = make_trainer().plan
    trainer = make_trainer(max_steps=5)
    assert trainer.plan == whole[:5]
    assert trainer.train().global_step == 5 and "max_steps" not in caplog.text
    assert make_trainer(max_steps=1000).train().global_step == len(whole), "a plan is not repeated"
    assert f"max_steps is 1,000, but the plan has {STEPS} steps; raise the tasks' epochs" in caplog.text


def test_a_plan_that_is_given_is_trained_as_it_is(make_trainer):
    """Whatever schedule and budget say; `max_steps` cuts it as it cuts a schedule's."""
    plan = ["sts", "sst", "sst", "quora", "sts"]
    trainer = make_trainer(given={"plan": plan}, schedule="sequential", budget=0.5, logging_steps=1)
    assert trainer.plan == plan and trainer.batches == {"sst": 2, "quora": 1, "sts": 2}
    trainer.train()
    losses = [key for log in trainer.state.log_history for key in log if key.startswith("loss_")]
    assert losses == [f"loss_{task}" for task in plan]
    assert make_trainer(given={"plan": tuple(plan)}, max_steps=3).plan == plan[:3]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "plan is empty; expected a list of the task of each step"),
        ("sst", "plan is a str; expected a list"),
        (iter(["sst"]), "plan is a list_iterator; expected a list"),
        (["sst", "nli"], "plan: step 2 has 'nli', but the model's tasks are sst, quora, sts"),
        (["sst", 1], "plan: step 2 has 1, "),
    ],
    ids=["empty", "one word", "no list", "unknown task", "number"],
)
def test_mistakes_in_a_plan(make_trainer, monkeypatch, plan, message):
    with pytest.raises(InputError, match=message):
        make_trainer(given={"plan": plan})
    monkeypatch.setitem(SCHEDULES, "mine", lambda batches, seed: plan)
    with pytest.raises(InputError, match=f"the plan of --schedule mine{message.removeprefix('plan')}"):
        make_trainer(schedule="mine")


def test_a_task_without_a_batch_is_pointed_out(make_trainer, caplog, propagated_logs):
    make_trainer(schedule="sequential", max_steps=7)
    assert "sts gets no batch in this plan" in caplog.text and "quora gets" not in caplog.text


def test_budget(make_trainer):
    assert len(make_trainer(budget=0.5).plan) == 3 + 2 + 3
    assert "of 2" in make_trainer(budget=0.5).describe_plan()


def test_seed_and_data_seed_change_the_plan(make_trainer):
    plan = make_trainer().plan
    assert make_trainer(seed=1).plan != plan
    assert make_trainer(seed=1, data_seed=make_trainer().args.seed).plan == plan


def test_sequential_evaluates_at_epoch_ends(make_trainer):
    trainer = make_trainer(
        schedule="sequential",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1000,
        save_steps=1000,
        load_best_model_at_end=True,
    )
    assert trainer.plan == ["sst"] * 6 + ["quora"] * 4 + ["sts"] * 6
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_overall" in log] == [3, 6, 10, 13, 16]


def test_a_schedule_says_whether_it_evaluates_at_epoch_ends(make_trainer, monkeypatch):
    for ends in (True, False):
        mine = partial(sequential)  # a function of its own, without the attribute of `sequential`
        mine.epoch_ends = ends
        monkeypatch.setitem(SCHEDULES, "mine", mine)
        callbacks = make_trainer(schedule="mine").callback_handler.callbacks
        assert any(isinstance(callback, EpochEnds) for callback in callbacks) == ends


def test_persistent_workers_evaluate_each_task_on_its_own_rows(make_trainer, monkeypatch):
    """Trainer keeps such loaders, and would keep one for all tasks if it were given no names."""
    expected = make_trainer().evaluate()
    trainer = make_trainer(dataloader_num_workers=1, dataloader_persistent_workers=True)
    for metrics in (trainer.evaluate(), trainer.evaluate()):
        for task in ROWS:
            assert metrics[f"eval_{task}_loss"] == pytest.approx(expected[f"eval_{task}_loss"], rel=1e-5)
    # PyTorch ends each loader's workers when it is collected, and waits so long for them, 5 s, perhaps in a later test.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    del trainer
    gc.collect()


def test_arguments_can_be_used_again(make_trainer):
    trainer = make_trainer()
    args = MultitaskTrainingArguments(output_dir=trainer.args.output_dir, report_to="none")
    rows = trainer.train_dataset.tasks
    MultitaskTrainer(trainer.model, args, rows, trainer.eval_dataset)
    assert args.max_steps == -1


def test_the_time_estimate_counts_steps_only(make_trainer, monkeypatch, capsys):
    clock = [0.0]  # a step takes a second, an evaluation a hundred
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    trainer = make_trainer(eval_strategy="steps", eval_steps=2, metric_for_best_model=None)
    step = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda *args: clock.append(clock.pop() + 1) or step(*args))
    monkeypatch.setattr(trainer, "evaluate", lambda **kwargs: clock.append(clock.pop() + 100) or {})
    trainer.train()
    (message,) = [line for line in capsys.readouterr().out.splitlines() if "s a step" in line]
    assert message.startswith("(1 s a step") and "for the steps left" in message


@pytest.mark.parametrize("field", ["metric", "metric_for_best_model"])
def test_metrics_that_do_not_exist_are_refused(make_trainer, monkeypatch, field):
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    if field == "metric":
        monkeypatch.setitem(TASKS, "sst", dataclasses.replace(TASKS["sst"], metric="bleu"))
    else:
        settings[field] = "bleu"
    with pytest.raises(InputError, match="'bleu'; choose one of"):
        make_trainer(**settings)


def test_history_file(make_trainer, tmp_path):
    path = tmp_path / "history.jsonl"
    trainer = make_trainer(logging_steps=4, callbacks=[HistoryFile(path)])
    trainer.train()
    assert [json.loads(line) for line in path.read_text().splitlines()] == trainer.state.log_history


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_gives_the_same_weights_bit_for_bit(make_trainer, accumulation):
    """With dropout on, from a checkpoint in the middle of the plan."""
    settings = {
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": None,
        "gradient_accumulation_steps": accumulation,
    }
    straight = make_trainer(**settings)
    straight.train()
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-5")
    for name, weight in weights(straight).items():
        assert torch.equal(weights(resumed)[name], weight), name


def test_bf16_learns_the_same_first_loss(make_trainer):
    losses = []
    for bf16 in (False, True):
        trainer = make_trainer(NO_DROPOUT, bf16=bf16, max_steps=1, logging_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2) and losses[1] != losses[0]


def test_only_changed_tasks_are_evaluated_again(make_trainer, monkeypatch):
    """With an encoder for each task, and with the scores that evaluating all of them gives."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "schedule": "sequential", "max_steps": 5}
    trainer = make_trainer({"encoder_sharing": "per_task"}, **settings)
    loop, evaluated = trainer.evaluation_loop, []
    monkeypatch.setattr(trainer, "evaluation_loop", lambda *args: evaluated.append(args[1]) or loop(*args))
    trainer.train()
    assert trainer.plan == ["sst"] * 5
    assert evaluated == [f"Evaluation of {name}" for name in ("sst", "quora", "sts", *["sst"] * 4)]
    last = [entry for entry in trainer.state.log_history if "eval_overall" in entry][-1]
    again = trainer.evaluate()
    assert len(evaluated) == 10, "after training nothing is taken from before"
    assert all(again[key] == last[key] for key in again if key not in ("eval_runtime", "epoch"))


def test_the_weight_of_a_loss_scales_the_tasks_gradient(make_trainer):
    """Its regularisers, too; a step of another task stays as it is."""
    gradients = {}
    for weight in (1.0, 0.25):
        both = {"sts": {"loss_weight": weight, "smart_weight": 1.0}}
        trainer = make_trainer(NO_DROPOUT, task_settings=both, smart_radius=0.1, smart_step_size=0.1)
        trainer.model.train()
        for name in ("sts", "quora"):
            torch.manual_seed(1)
            batch = next(batch for batch in trainer.get_train_dataloader() if batch["task"] == name)
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, batch).backward()
            gradients[name, weight] = trainer.model.bert.embeddings.word_embeddings.weight.grad.clone()
    torch.testing.assert_close(gradients["sts", 0.25], 0.25 * gradients["sts", 1.0], atol=1e-8, rtol=1e-4)
    assert torch.equal(gradients["quora", 0.25], gradients["quora", 1.0])
    with pytest.raises(InputError, match="loss_weight is 0; expected a factor above 0"):
        make_trainer(task_settings={"sts": {"loss_weight": 0}})
