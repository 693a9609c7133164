"""CUDA graphs of steps: shapes that recur change no number, and a replay is the step. A CPU has no such graphs; here a
closure that runs again on the same tensors stands for one. The tests on a GPU are at the end."""

import dataclasses
import random

import pytest
import torch
from conftest import NO_DROPOUT, SIZE
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from bert_multitask.data.collate import Collator
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.graphs import StepGraphs, check_graphs
from bert_multitask.training.trainer import MultitaskTrainer

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
NAMES = ("sst", "quora", "sts")
EVERY_TERM = {"smart_weight": 1.0, "bregman_weight": 0.5, "rdrop_weight": 0.5}


def make_rows(name: str, count: int = 42) -> Dataset:
    """Tokenised rows of random words, of 3 to 40 tokens; some without a label."""
    draw, rows = random.Random(name), []
    for number in range(count):
        label = {"sst": draw.randrange(5), "quora": draw.randrange(2), "sts": 5 * draw.random()}[name]
        if number % 9 == 4:
            label = float("nan") if name == "sts" else -100
        ids = [draw.randrange(1, 99) for _ in range(draw.randrange(3, 41))]
        rows.append({"task": name, "input_ids": ids, "token_type_ids": [0] * len(ids), "labels": label})
    return Dataset.from_list(rows)


def make_model(given=None, task_settings=None) -> MultitaskBertModel:
    """A tiny model of three tasks with random weights."""
    set_seed(0)
    own = {"epochs": 2, "dropout": 0.0} | (task_settings or {})
    tasks = [dataclasses.replace(TASKS[name], **own) for name in NAMES]
    settings = SIZE | {"vocab_size": 99, "tasks": [task.to_config() for task in tasks]} | (given or {})
    return MultitaskBertModel(MultitaskBertConfig(**settings))


class CountGraphs(TrainerCallback):
    """Notes how many graphs and shapes there are when training ends, before they are dropped."""

    def on_train_end(self, args, state, control, **kwargs):
        self.graphs, self.shapes = len(self.trainer.graphs.graphs), len(self.trainer.graphs.seen)


def train(folder, graphs: bool, model_settings=None, task_settings=None, resume: str | None = None, **settings):
    """A trainer of that model after its training, by graphs or not."""
    defaults = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none", "eval_strategy": "no"}
    defaults |= {"save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True, "logging_steps": 1}
    args = MultitaskTrainingArguments(output_dir=str(folder), cuda_graphs=graphs, **(defaults | settings))
    rows = {name: make_rows(name) for name in NAMES}
    trainer = MultitaskTrainer(make_model(model_settings, task_settings), args, rows)
    if graphs:
        trainer.counts = CountGraphs()
        trainer.counts.trainer = trainer
        trainer.callback_handler.callbacks.insert(0, trainer.counts)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, key: str = "loss") -> list[float]:
    return [log[key] for log in trainer.state.log_history if key in log]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_rounded_shapes_change_no_number(request, pooling, twice, attention):
    """Predictions, loss and gradients, also from word embeddings; of the tokens 128, 256 … are computed."""
    if attention == "packed":
        request.getfixturevalue("packed_attention")
    model = make_model(NO_DROPOUT | {"pooling": pooling}).double().train()
    rows = [make_rows("sst")[number] for number in (3, 0, 7, 5, 9)]
    found = []
    for rounds in (False, True):
        batch = Collator(0, packs=True, twice=["sst"] * twice, rounds=rounds)(rows)
        embeddings = model.bert.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        packing, labels = batch.pop("packing"), batch["labels"]
        if twice:
            batch = {key: value if key == "task" else torch.cat([value] * 2) for key, value in batch.items()}
            packing, embeddings, labels = packing.twice, embeddings.repeat(2, 1, 1), batch["labels"]
        output = model(**batch, packing=packing)
        gradients = torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)
        del batch["input_ids"]
        others = model(**batch, inputs_embeds=embeddings, packing=packing)
        (slope,) = torch.autograd.grad(others.loss, embeddings)
        found.append([output.logits, output.loss, others.logits, slope, *gradients])
        found[-1] = [value for value in found[-1] if value is not None]
        if rounds:
            assert batch["attention_mask"].shape[1] % 32 == 0 and len(packing.index) % 128 == 0
            assert len(packing.begins) == len(labels) + 2 and packing.begins[-1] == len(packing.index)
    assert len(found[0]) == len(found[1])
    for plain, rounded in zip(*found, strict=True):
        width = min(plain.shape[1], rounded.shape[1]) if plain.dim() == 3 else None
        plain, rounded = (value[:, :width] if width else value for value in (plain, rounded))
        torch.testing.assert_close(rounded, plain, atol=1e-10, rtol=1e-8)


def test_a_full_batch_has_a_row_of_filler_too(packed_attention):
    """So that there is no empty row, which kernels might answer with NaN."""
    rows = [{"task": "sst", "input_ids": [5] * 32, "token_type_ids": [0] * 32, "labels": 1}] * 4
    packing = Collator(0, packs=True, rounds=True)(rows)["packing"]
    assert packing.begins.tolist() == [0, 32, 64, 96, 128, 256] and packing.longest == 128


def rerun(graphs: StepGraphs, run):
    """As `StepGraphs.record`: nothing that `run` computes counts while it is recorded; a replay runs it again."""
    before = {one: sums.clone() for one, sums in graphs.gradients.items()}
    with torch.random.fork_rng(devices=[]):
        outputs = [value.clone() for value in run()]
    for one, sums in graphs.gradients.items():
        sums.copy_(before[one])

    def replay() -> None:
        with torch.enable_grad():
            for static, value in zip(outputs, run(), strict=True):
                static.copy_(value)

    return outputs, replay


@pytest.fixture
def on_cpu(monkeypatch):
    """Graphs as on a GPU, of which a CPU has none."""
    monkeypatch.setattr("bert_multitask.training.trainer.check_graphs", lambda *_: None)
    monkeypatch.setattr(StepGraphs, "record", rerun)


CASES = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "every-term": {"task_settings": EVERY_TERM, "smart_place": "embeddings", "smart_reduction": "sum"},
    "encoders": {"model_settings": {"encoder_sharing": "per_task"}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_replay_is_the_step(request, on_cpu, tmp_path, monkeypatch, case):
    """Weights and logs of a training are those without, bit for bit: with dropout, AdamW's moments and weight decay of
    idle heads, batches of several shapes, the last of an epoch, and steps of a replay and an eager micro-batch."""
    if case != "plain":
        request.getfixturevalue("packed_attention")
    settings = CASES[case] | {"use_cpu": True, "weight_decay": 0.1, "ema_decay": 0.9}
    graphs = train(tmp_path / "graphs", True, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(StepGraphs, "step", lambda *_: None)  # the same shapes, each step eager
        eager = train(tmp_path / "eager", True, **settings)
    assert graphs.counts.graphs >= 3 and graphs.counts.shapes < len(graphs.plan) * 2 / 3
    for (name, one), other in zip(graphs.model.named_parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    kept = [
        [{k: v for k, v in log.items() if "runtime" not in k and "per_second" not in k} for log in of]
        for of in (graphs.state.log_history, eager.state.log_history)
    ]
    assert kept[0] == kept[1]


def test_a_resumed_run_goes_on_the_same(on_cpu, tmp_path):
    """It records at other steps, and draws the same numbers."""
    settings = {"use_cpu": True, "save_strategy": "steps", "save_steps": 12, "save_total_limit": None}
    straight = train(tmp_path, True, **settings)
    resumed = train(tmp_path, True, resume=str(tmp_path / "checkpoint-12"), **settings)
    assert len(straight.plan) > 30 and resumed.counts.graphs
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_graphs_and_their_memory_are_dropped_when_training_ends(on_cpu, tmp_path):
    trainer = train(tmp_path, True, use_cpu=True)
    assert trainer.counts.graphs
    assert not trainer.graphs.graphs and not trainer.graphs.gradients and trainer.graphs.pool is None


def test_shapes_beyond_the_limit_run_eagerly(on_cpu, tmp_path, monkeypatch):
    """The weights are the same, and the limit holds."""
    many = train(tmp_path / "many", True, use_cpu=True)
    monkeypatch.setattr("bert_multitask.training.graphs.MAX_GRAPHS", 2)
    few = train(tmp_path / "few", True, use_cpu=True)
    assert many.counts.graphs > 2 == few.counts.graphs
    for one, other in zip(many.model.parameters(), few.model.parameters(), strict=True):
        assert torch.equal(one, other)


def thaw(model, args):
    model.bert.embeddings.requires_grad_(True)


def freeze(model, args):
    model.bert.embeddings.requires_grad_(False)


def drop_less(model, args):
    model.bert.embeddings.dropout.p = 0.0


def drop_less_attention(model, args):
    model.config.attention_probs_dropout_prob = 0.0


def weigh_less(model, args):
    for task in list(model.tasks.values()):
        model.change_task(dataclasses.replace(task, loss_weight=0.25, smart_weight=0.5))


def perturb_more(model, args):
    args.smart_radius = args.smart_step_size = 0.5


@pytest.mark.parametrize("change", [thaw, freeze, drop_less, drop_less_attention, weigh_less, perturb_more])
def test_what_a_callback_changes_is_seen(on_cpu, tmp_path, change):
    """Gradual unfreezing, say: a graph of before would go on without it, and is dropped."""
    settings = {"report_to": "none", "use_cpu": True, "cuda_graphs": True, "eval_strategy": "no"}
    args = MultitaskTrainingArguments(output_dir=str(tmp_path), **settings)
    trainer = MultitaskTrainer(make_model(), args, {name: make_rows(name) for name in NAMES})
    model, args, graphs = trainer.model, trainer.args, trainer.graphs
    if change is thaw:
        freeze(model, args)
    graphs.on_train_begin(args, trainer.state, trainer.control, model=model)
    (batch,), items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, args.device)

    def step() -> bool:
        """Whether a graph did it."""
        return graphs.step(model.train(), batch, items, trainer.step_rows) is not None

    assert [step() for _ in range(3)] == [False, True, True]
    change(model, args)
    assert [step() for _ in range(3)] == [False, True, True]


def test_it_is_refused_without_a_gpu(tmp_path):
    with pytest.raises(InputError, match="--cuda_graphs does not work on a cpu"):
        train(tmp_path, True, use_cpu=True)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"smart_share_dropout": True}, {}, "--smart_share_dropout"),
        ({"gradient_checkpointing": True}, {}, "gradient checkpointing"),
        ({"torch_compile": True}, {}, "--torch_compile"),
        ({}, {"data_collator": Collator(0)}, "data_collator"),
        ({}, {"compute_loss_func": lambda *_, **__: 0}, "compute_loss_func"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(tmp_path, monkeypatch, settings, given, message):
    plain, args = (
        MultitaskTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, cuda_graphs=True, **each)
        for each in ({}, settings)
    )
    monkeypatch.setattr(MultitaskTrainingArguments, "device", torch.device("cuda"))
    check_graphs(make_model(), plain, {"data_collator": None})
    with pytest.raises(InputError, match=f"--cuda_graphs does not work with .*{message}"):
        check_graphs(make_model(), args, given)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "--fp16"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "--deepspeed"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--torch_compile or a dynamo_backend"),
    ],
)
def test_what_accelerates_configuration_says_is_refused_too(tmp_path, monkeypatch, variable, value, message):
    """`accelerate launch` hands it on in variables; a replay would leave the scale of fp16's loss out."""
    settings = {"report_to": "none", "use_cpu": True, "cuda_graphs": True, "eval_strategy": "no"}
    if message == "--fp16":
        monkeypatch.setenv(variable, value)
    args = MultitaskTrainingArguments(output_dir=str(tmp_path), **settings)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(MultitaskTrainingArguments, "device", torch.device("cuda"))
    with pytest.raises(InputError, match=f"--cuda_graphs does not work with {message}"):
        check_graphs(make_model(), args, {})


@gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_gpu_losses_and_weights_are_those_without(tmp_path, case, bf16):
    """Without dropout, by SGD: Adam makes steps of rounding errors. SMART's noise is drawn for rounded shapes, so
    without SMART; every step of the plan, many of them replays."""
    settings = CASES[case] | {"optim": "sgd", "learning_rate": 0.05, "bf16": bf16}
    if case == "every-term":
        settings["task_settings"] = EVERY_TERM | {"smart_weight": 0.0}
    settings["model_settings"] = NO_DROPOUT | settings.get("model_settings", {})
    graphs, eager = (train(tmp_path / str(number), bool(number), **settings) for number in (1, 0))
    assert graphs.counts.graphs >= 3
    tolerance = {"atol": 3e-2, "rtol": 3e-2} if bf16 else {"atol": 1e-5, "rtol": 1e-5}
    first, later = slice(12), {"atol": 3e-2, "rtol": 3e-2} if bf16 else {"atol": 1e-3, "rtol": 1e-3}  # rounding grows
    losses, expected = torch.tensor(logged(graphs)), torch.tensor(logged(eager))
    torch.testing.assert_close(losses[first], expected[first], **tolerance)
    torch.testing.assert_close(losses, expected, **later)
    for (name, one), other in zip(graphs.model.named_parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, **later, msg=lambda text, name=name: f"{name}: {text}")


@gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("task_settings", [{}, EVERY_TERM], ids=["plain", "every-term"])
def test_on_a_gpu_a_replay_draws_the_numbers_of_the_eager_step(tmp_path, monkeypatch, task_settings, bf16):
    """With dropout and SMART's noise, on the same rounded shapes."""
    settings = {"optim": "sgd", "learning_rate": 0.05, "task_settings": task_settings}
    settings["bf16"] = bf16
    graphs = train(tmp_path / "graphs", True, **settings)
    monkeypatch.setattr(StepGraphs, "step", lambda *_: None)
    eager = train(tmp_path / "eager", True, **settings)
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if bf16 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(torch.tensor(logged(graphs)), torch.tensor(logged(eager)), **tolerance)


@gpu
def test_on_a_gpu_a_resumed_run_goes_on_the_same(tmp_path):
    settings = {"optim": "sgd", "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 12}
    settings["save_total_limit"] = None
    straight = train(tmp_path, True, **settings)
    resumed = train(tmp_path, True, resume=str(tmp_path / "checkpoint-12"), **settings)
    assert resumed.counts.graphs
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_gpu_an_eager_step_waits_for_nothing(tmp_path, bf16):
    """By PyTorch's own check: in bf16 on packed tokens, and in fp32 on padded ones."""
    settings = {"report_to": "none", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    args = MultitaskTrainingArguments(output_dir=str(tmp_path), bf16=bf16, **settings)
    trainer = MultitaskTrainer(make_model(task_settings=EVERY_TERM), args, {name: make_rows(name) for name in NAMES})
    trainer.create_optimizer_and_scheduler(3)
    model = trainer.accelerator.prepare_model(trainer.model)
    trainer.teacher.average.to(args.device)
    batches = iter(trainer.get_train_dataloader())
    for number in range(6):
        try:
            torch.cuda.set_sync_debug_mode("error" if number >= 3 else "default")  # after a warm-up
            (batch,), items = trainer.get_batch_samples(batches, 1, args.device)
            trainer.training_step(model, batch, items)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
