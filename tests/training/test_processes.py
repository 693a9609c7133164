"""Several processes train as one does: the same tasks and rows in each step, losses, weights and predictions; and a run
goes on after one of them was killed."""

import copy
import itertools
import json
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import launched
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, SIZE, finish, launch, losses, write_course
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bert_multitask.model import encoder as modeling
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.training.checks import check_sharding
from bert_multitask.training.schedule import FILLER

CPU = "recipes/accelerate/cpu.yaml"
ROWS = {"sst": 53, "quora": 62, "sts": 25}
EPOCHS = {"sst": 2, "quora": 1, "sts": 2}
BATCH = 24  # so that the last batches of an epoch have 5, 14 and 1 row, for up to 12 shares
STEPS = 2 * 3 + 3 + 2 * 2
# Without what is random. By SGD weights differ as the gradients do; Adam takes steps of its own size.
SAME = ["--encoder_dropout", 0, "--head_dropout", 0, "--optim", "sgd", "--learning_rate", 0.02, "--use_cpu"]
SAME += ["--logging_steps", 1, "--eval_steps", 5, "--save_steps", 5, "--save_total_limit", 9]
# A perturbation that matters, of about the size of the embeddings, and noise of that size to begin with: from noise of
# 1e-5 its direction would be left to fp32's rounding.
SMART = ["--smart_weight", '{"sst": 1, "sts": 1}', "--bregman_weight", 0.5]
SMART += ["--smart_radius", 0.02, "--smart_step_size", 0.02, "--smart_noise_std", 0.02]
WEIGHTED = ["--class_weights", '{"sst": "balanced", "quora": {"different": 1, "paraphrase": 3}}']
SETTINGS = {
    f"{sharing}-{'smart' if smart else 'plain'}-{dtype}": [
        *("--encoder_sharing", sharing),
        *(["--no_load_best_model_at_end"] if sharing == "shared" else []),
        *(SMART + WEIGHTED if smart else []),
        *(["--bf16"] if dtype == "bf16" else []),
    ]
    for sharing, smart, dtype in itertools.product(["shared", "per_task"], [False, True], ["fp32", "bf16"])
}

# The default optimizer, and SMART's default perturbation.
SETTINGS["shared-adamw-fp32"] = ["--no_load_best_model_at_end", *SMART[:4], "--optim", "adamw_torch_fused"]
SETTINGS["shared-adamw-fp32"] += ["--learning_rate", 1e-4]

SETTINGS["adapters-smart-fp32"] = ["--encoder_sharing", "adapters", "--lora_rank", 3, *SMART]
SETTINGS["adapters-smart-fp32"] += ["--smart_place", "embeddings", "--smart_reduction", "sum"]

# What docs/levers.md has, in one run.
SETTINGS["shared-levers-fp32"] = [
    *("--no_load_best_model_at_end", "--rdrop_weight", '{"sst": 1}', "--ema_decay", 0.9, "--ema_start", 0.2),
    *("--layer_decay", 0.5, "--head_learning_rate", 0.05, "--loss_weight", '{"sst": 0.5}'),
]


@pytest.fixture
def rows_config(tmp_path, config) -> Path:
    """A configuration of a tiny run on ROWS."""
    folder = write_course(tmp_path / "rows", tuple(ROWS.values()))
    settings = yaml.safe_load(config.read_text()) | {"data_dir": str(folder), "task_epochs": EPOCHS}
    config.write_text(yaml.safe_dump(settings))
    return config


def flags_of(config: Path, name: str, processes: int = 1, accumulation: int = 1) -> list[str]:
    """The command line of one of SETTINGS, with BATCH cut in so many shares."""
    rows = BATCH // processes // accumulation
    share = ["--per_device_train_batch_size", rows, "--gradient_accumulation_steps", accumulation]
    return [str(flag) for flag in (config, *SAME, *SETTINGS[name], *share)]


def start(runs: dict[Path, list[str]], processes: int | None, launcher: str = CPU, options=()) -> subprocess.Popen:
    """Launch `launched.py` on {output folder: flags}."""
    file = next(iter(runs)).with_suffix(".runs.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({str(folder): flags for folder, flags in runs.items()}))
    return launch(file, processes=processes, script=Path(launched.__file__), launcher=launcher, options=options)


def rows_of_steps(run: Path, processes: int, accumulation: int) -> list[tuple[str, list[int]]]:
    """The task and the rows, sorted, of each optimizer step that the processes of a run took together."""
    ranks = [json.loads((run / f"rows-{rank}.json").read_text()) for rank in range(processes)]
    assert {len(batches) for batches in ranks} == {STEPS * accumulation}
    steps = []
    for step in range(STEPS):
        pairs = [pair for rank in ranks for batch in rank[step * accumulation :][:accumulation] for pair in batch]
        (task,) = {task for task, _ in pairs}  # one for all processes
        steps.append((task, sorted(row for _, row in pairs if row != FILLER)))
    return steps


def compare(run: Path, one: Path, processes: int, accumulation: int) -> tuple[float, float]:
    """Hold a run against the same of one process that took its batches whole; the largest relative difference of
    losses, and the largest difference of weights."""
    assert json.loads((run / "run.json").read_text())["processes"] == processes
    steps = rows_of_steps(run, processes, accumulation)
    assert steps == rows_of_steps(one, 1, 1)
    seen = Counter((task, row) for task, rows in steps for row in rows)
    assert seen == {(task, row): EPOCHS[task] for task, count in ROWS.items() for row in range(count)}
    (expected_steps, expected), (got_steps, got) = (zip(*losses(folder), strict=True) for folder in (one, run))
    assert got_steps == expected_steps == tuple(range(1, STEPS + 1))
    files = [*one.glob("checkpoint-*/*.safetensors"), one / "model.safetensors"]
    assert len(files) == 4, "after steps 5, 10 and 13, and in the end"
    differences = [
        (load_file(run / file.relative_to(one))[name] - weight).abs().max().item()
        for file in files
        for name, weight in load_file(file).items()
    ]
    return np.abs(np.array(got) / expected - 1).max(), max(differences)


def predictions(file: Path) -> tuple[list[str], np.ndarray]:
    """Ids, and scores or probabilities, of a prediction file."""
    table = pd.read_parquet(file)
    return list(table["id"]), np.vstack(table["score" if "score" in table else "probabilities"])


def compare_predictions(run: Path, one: Path) -> None:
    """Row for row and in the same order; and the metrics."""
    files = list((one / "predictions").glob("*.parquet"))
    assert len(files) == 6, "dev and test of three tasks"
    for file in files:
        (ids, values), (expected_ids, expected) = predictions(run / "predictions" / file.name), predictions(file)
        assert ids == expected_ids and len(set(ids)) == len(ids) == len(values)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run, one)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)  # a correlation of nearly equal scores magnifies


def check_output(printed: str, runs: int) -> None:
    """One process speaks for all, and has little to warn of."""
    assert (
        printed.count("3 new heads: ") == runs
        and "LOAD REPORT" not in printed
        and "find_unused_parameters" not in printed
    ), printed
    warnings = [line for line in printed.splitlines() if re.search(r"warn|\[(transformers|rank)", line, re.IGNORECASE)]
    warnings = [line for line in warnings if "have the texts of training rows" not in line]  # as they do here
    assert len(warnings) <= 3 * runs + 1, warnings  # one more where checkpoints follow each other within a second


def test_two_processes_train_as_one(rows_config, tmp_path):
    """Both ways to share the encoder, SMART with class weights, levers, and gradient accumulation, in one launch."""
    chosen = {"shared-plain-fp32": 1, "shared-smart-fp32": 4, "per_task-smart-fp32": 2, "shared-levers-fp32": 2}
    runs = {tmp_path / "two" / name: flags_of(rows_config, name, 2, steps) for name, steps in chosen.items()}
    two = start(runs, processes=None)  # as the configuration says
    launched.train({str(tmp_path / "one" / name): flags_of(rows_config, name) for name in chosen})
    printed = finish(two)
    assert two.returncode == 0, printed
    check_output(printed, runs=4)
    for name, accumulation in chosen.items():
        loss, weights = compare(tmp_path / "two" / name, tmp_path / "one" / name, 2, accumulation)
        assert loss < 1e-5 and weights < 1e-5, (name, loss, weights)
        compare_predictions(tmp_path / "two" / name, tmp_path / "one" / name)


@pytest.mark.slow
def test_two_processes_train_another_encoder_as_one(rows_config, tiny_bert, tmp_path):
    """One that Transformers runs, with SMART and class weights."""
    tokenizer, folder = AutoTokenizer.from_pretrained(tiny_bert), tmp_path / "electra"
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("electra", **SIZE | {"vocab_size": len(tokenizer)})).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)

    def flags(processes: int) -> list[str]:
        return [*flags_of(rows_config, "shared-smart-fp32", processes), "--model_name_or_path", str(folder)]

    two = start({tmp_path / "two" / "run": flags(2)}, processes=2)
    launched.train({str(tmp_path / "one" / "run"): flags(1)})
    printed = finish(two)
    assert two.returncode == 0, printed
    loss, weights = compare(tmp_path / "two" / "run", tmp_path / "one" / "run", 2, 1)
    assert loss < 1e-5 and weights < 1e-5, (loss, weights)
    compare_predictions(tmp_path / "two" / "run", tmp_path / "one" / "run")


CONFIGURATIONS = {
    "accelerate_config": {"distributed_type": "MULTI_GPU", "num_processes": 1, "use_cpu": False},
    "cpu": {"distributed_type": "MULTI_GPU", "num_processes": 2, "use_cpu": True, "mixed_precision": "no"},
    "multi_gpu": {"distributed_type": "MULTI_GPU", "num_processes": 8, "num_machines": 1, "mixed_precision": "bf16"},
    "multi_machine": {"distributed_type": "MULTI_GPU", "num_processes": 16, "num_machines": 2},
    "fsdp2": {"distributed_type": "FSDP", "num_processes": 8},
    "deepspeed_zero2": {"distributed_type": "DEEPSPEED", "num_processes": 8},
}


def configurations() -> dict[str, Path]:
    files = [ROOT / "accelerate_config.yaml", *(ROOT / "recipes" / "accelerate").glob("*.yaml")]
    return {file.stem: file for file in files}


def test_accelerate_reads_the_configurations():
    assert set(configurations()) == set(CONFIGURATIONS)
    read = {name: load_config_from_file(str(file)) for name, file in configurations().items()}
    for name, expected in CONFIGURATIONS.items():
        assert {key: getattr(read[name], key) for key in expected} == expected, name
    sharding = read["fsdp2"].fsdp_config
    assert sharding["fsdp_version"] == 2 and sharding["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert read["deepspeed_zero2"].deepspeed_config["zero_stage"] == 2


@pytest.fixture
def group_of_one():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_fsdp2_on_the_layers_it_is_told_to_wrap(tiny_bert, group_of_one, sharing):
    """PyTorch's `fully_shard`, which Accelerate calls on GPUs: the same gradients, and none of idle parameters."""
    name = load_config_from_file(str(configurations()["fsdp2"])).fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    torch.manual_seed(0)
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "sts"], encoder_sharing=sharing).eval()
    sharded = copy.deepcopy(model)
    for module in sharded.modules():
        if isinstance(module, getattr(modeling, name)):
            fully_shard(module, mesh=group_of_one, reshard_after_forward=True)
    fully_shard(sharded, mesh=group_of_one, reshard_after_forward=True)
    ids = torch.tensor([[101, 7592, 2088, 102], [101, 2204, 102, 0]])
    for each in (model, sharded):
        each("sst", ids, (ids > 0).long(), labels=torch.tensor([1, 4])).loss.backward()
    expected = {key: weight.grad for key, weight in model.named_parameters()}
    assert any(gradient is None for gradient in expected.values())
    for key, weight in sharded.named_parameters():
        assert (weight.grad is None) == (expected[key] is None), key
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad.full_tensor(), expected[key], msg=key)


@pytest.mark.parametrize(
    ("library", "model", "tasks", "settings", "message"),
    [
        ("FSDP", {}, {"sst": {"smart_weight": 1.0}}, {}, "--smart_weight does not work with FSDP"),
        ("FSDP", {}, {"sts": {"bregman_weight": 1.0}}, {}, "--bregman_weight does not work with FSDP"),
        ("FSDP", {"encoder_sharing": "per_task"}, {}, {"load_best_model_at_end": True}, "per_task with --load_best"),
        ("FSDP", {"encoder_sharing": "per_task"}, {}, {}, "a CPU, on which Accelerate does not split the model"),
        ("DEEPSPEED", {"encoder_sharing": "per_task"}, {}, {}, "per_task does not work with DeepSpeed"),
    ],
)
def test_what_sharded_weights_do_not_allow(make_trainer, monkeypatch, library, model, tasks, settings, message):
    """As `accelerate launch` asks for them, by the environment."""
    trainer = make_trainer(model, task_settings=tasks, eval_strategy="steps", save_strategy="steps", **settings)
    check_sharding(trainer.model, trainer.args)
    monkeypatch.setenv(f"ACCELERATE_USE_{library}", "true")
    with pytest.raises(InputError, match=message):
        check_sharding(trainer.model, trainer.args)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "machines"), [("multi_gpu", 1), ("multi_machine", 2)])
def test_configurations_of_gpus_on_a_cpu(rows_config, tmp_path, name, machines):
    """Two processes in all, of one launcher, or of two that take each other for another machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    runs, options = {tmp_path / "two-plain": flags_of(rows_config, "shared-plain-fp32", 2)}, ["--mixed_precision", "no"]
    if machines > 1:
        options += ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--machine_rank"]
    launchers = [
        start(runs, 2, f"recipes/accelerate/{name}.yaml", [*options, *[str(rank)] * (machines > 1)])
        for rank in range(machines)
    ]
    launched.train({str(tmp_path / "one"): flags_of(rows_config, "shared-plain-fp32")})
    for launcher in launchers:
        printed = finish(launcher)
        assert launcher.returncode == 0, printed
    loss, weights = compare(tmp_path / "two-plain", tmp_path / "one", 2, 1)
    assert loss < 1e-5 and weights < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_grid(rows_config, tmp_path, processes):
    """Every setting, with and without accumulation; prints docs/scaling.md's figures."""
    runs = {
        tmp_path / "runs" / f"{name}-{steps}": flags_of(rows_config, name, processes, steps)
        for name in SETTINGS
        for steps in (1, 4)
    }
    run = start(runs, processes)
    launched.train({str(tmp_path / "one" / name): flags_of(rows_config, name) for name in SETTINGS})
    printed = finish(run, timeout=540)
    assert run.returncode == 0, printed
    check_output(printed, runs=len(runs))
    for folder in runs:
        name, _, accumulation = folder.name.rpartition("-")
        one = tmp_path / "one" / name
        loss, weights = compare(folder, one, processes, int(accumulation))
        first = abs(losses(folder)[0][1] / losses(one)[0][1] - 1)
        print(f"{processes} {folder.name:26} first loss {first:.0e}  losses {loss:.0e}  weights {weights:.0e}")
        assert first < 1e-2
        if name.endswith("fp32"):
            assert loss < 1e-5 and weights < 1e-5
            compare_predictions(folder, one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared-plain-fp32", "per_task-smart-fp32"])
def test_a_killed_process_ends_the_run_which_resumes(rows_config, tmp_path, name):
    """One of two is killed; the run goes on with one, two and three processes, and ends with the same weights."""
    long = ["--task_epochs", '{"sst": 12, "quora": 6, "sts": 12}', "--save_steps", "20", "--eval_steps", "20"]
    whole, killed, kept = (tmp_path / "runs" / folder for folder in ("whole", "killed", "kept"))
    launched.train({str(whole): flags_of(rows_config, name) + long})
    run = start({killed: flags_of(rows_config, name, 2) + long}, 2, "accelerate_config.yaml")
    deadline = time.monotonic() + 240
    while not (killed / "checkpoint-20" / "trainer_state.json").exists():
        assert time.monotonic() < deadline and run.poll() is None, "no checkpoint to kill after"
        time.sleep(0.05)
    group = psutil.Process(run.pid).children(recursive=True)
    (second,) = (process for process in group if process.environ().get("RANK") == "1")
    second.kill()
    since = time.monotonic()
    printed = finish(run, timeout=60)
    print(f"{name}: ended {time.monotonic() - since:.1f} s after one was killed")
    assert run.returncode != 0 and not any(process.is_running() for process in group), printed
    assert not (killed / "metrics.json").exists()
    assert json.loads((killed / "run.json").read_text())["processes"] == 2
    killed.rename(kept)
    for processes in (1, 2, 3):
        shutil.copytree(kept, killed)
        flags = flags_of(rows_config, name, processes) + long
        again = start({killed: [*flags, "--resume_from_checkpoint"]}, processes)
        printed = finish(again)
        assert again.returncode == 0, printed
        assert json.loads((killed / "run.json").read_text())["processes"] == processes
        expected, got = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
        difference = max((got[key] - weight).abs().max().item() for key, weight in expected.items())
        print(f"{name} resumed with {processes}: weights {difference:.0e}")
        assert difference < 1e-5
        assert [step for step, _ in losses(killed)] == [step for step, _ in losses(whole)]
        compare_predictions(killed, whole)
        shutil.rmtree(killed)
