"""The training command as users run it: two steps of it, its mistakes, a kill in the middle, the quickstart."""

import importlib.metadata
import json
import re
import shutil
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from conftest import ROOT, finish, launch, losses, run_here, write_table
from safetensors.torch import load_file

from bert_multitask.data.rows import load_rows
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS
from bert_multitask.training.run_folder import RunFolder
from bert_multitask.training.yaml_file import CONFIGS

SINGLE = ROOT / "recipes" / "train_single.py"
PAPER = sorted((CONFIGS / "paper").glob("*.yaml"))
TASK_NAMES = ("sst", "quora", "sts")


def test_a_plain_checkout_has_no_version(monkeypatch, config):
    """On the path but not installed, so without metadata."""

    def version(name: str) -> str:
        if name == "bert_multitask":
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    monkeypatch.setattr("bert_multitask.training.run_folder.version", version)
    assert run_here(monkeypatch, config, "--max_steps", 1) == 0
    versions = json.loads((config.parent / "run" / "run.json").read_text())["versions"]
    assert versions["bert_multitask"] is None and versions["torch"]


def test_two_steps_leave_a_run_folder(monkeypatch, config, course_folder, capsys):
    folder = config.parent / "run"
    assert run_here(monkeypatch, config, "--max_steps", 2) == 0
    printed = capsys.readouterr().out
    assert "2 steps of up to 4 rows" in printed and "overall" in printed and f"run folder: {folder}" in printed

    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"eval_sst_accuracy", "eval_quora_accuracy", "eval_sts_pearson", "eval_overall"} <= set(metrics)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert {entry["step"] for entry in history} == {1, 2}
    record = json.loads((folder / "run.json").read_text())
    assert record["decides"]["max_steps"] == 2 and record["training"]["seed"] == 42
    assert record["decides"]["rows of quora"]["train"]["rows"] == 14 and record["versions"]["torch"]

    for task in TASK_NAMES:
        rows = load_rows(TASKS[task], str(course_folder))
        for split in ("dev", "test"):
            header, *lines = (folder / "predictions" / f"{task}-{split}.csv").read_text().splitlines()
            assert header == f"id \t {TASKS[task].prediction_column} "
            assert [line.split(" , ")[0] for line in lines] == rows[split]["id"][:]
            assert (folder / "predictions" / f"{task}-{split}.parquet").exists()
    model = MultitaskBertModel.from_pretrained(folder)
    assert list(model.tasks) == list(TASK_NAMES) and model.tasks["sst"].epochs == 2
    assert (folder / "tokenizer.json").exists()


def test_metrics_are_those_of_the_written_predictions(monkeypatch, config, course_folder):
    run_here(monkeypatch, config, "--max_steps", 2)
    folder = config.parent / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    labels = load_rows(TASKS["sst"], str(course_folder))["dev"]["label"]
    lines = (folder / "predictions" / "sst-dev.csv").read_text().splitlines()[1:]
    hits = [int(line.split(" , ")[1]) == label for line, label in zip(lines, labels, strict=True)]
    assert metrics["eval_sst_accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_a_finished_run_is_not_overwritten(monkeypatch, config, capsys):
    assert run_here(monkeypatch, config, "--max_steps", 1, "--no_do_predict") == 0
    folder = config.parent / "run"
    before = (folder / "model.safetensors").read_bytes()
    assert run_here(monkeypatch, config, "--max_steps", 1) == 2
    assert "finished run; choose another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert run_here(monkeypatch, config, "--max_steps", 1, "--resume_from_checkpoint") == 2
    assert (folder / "model.safetensors").read_bytes() == before
    assert not (folder / "predictions").exists(), "--no_do_predict"
    assert run_here(monkeypatch, config, "--max_steps", 2, "--overwrite") == 0
    assert json.loads((folder / "run.json").read_text())["decides"]["max_steps"] == 2


def test_flags_reach_the_model(monkeypatch, config):
    flags = (
        "--encoder_dropout",
        0.25,
        "--head_dropout",
        '{"sst": 0.2}',
        "--tasks",
        "sst",
        "sts",
        "--task_epochs",
        "{}",
    )
    assert run_here(monkeypatch, config, "--max_steps", 1, *flags) == 0
    model = MultitaskBertModel.from_pretrained(config.parent / "run")
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.25
    assert {name: task.dropout for name, task in model.tasks.items()} == {"sst": 0.2, "sts": 0.3}


def test_a_sample_of_the_training_rows(monkeypatch, config, capsys):
    folder = config.parent / "run"
    assert run_here(monkeypatch, config, "--max_train_samples", '{"quora": 5, "sts": 99}', "--no_do_predict") == 0
    printed = capsys.readouterr().out
    # 14 rows of quora by themselves, 9 of sts; batches of 4.
    assert re.search(r"quora +5 +1 +2 ", printed) and re.search(r"sts +9 +2 +6 ", printed)
    record = json.loads((folder / "run.json").read_text())["decides"]
    assert record["task quora"]["max_train_samples"] == 5 and record["rows of quora"]["train"]["rows"] == 14
    assert run_here(monkeypatch, config, "--max_train_samples", 3, "--overwrite", "--no_do_predict") == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"{task} +3 +[12] +[12] ", printed) for task in TASK_NAMES), "one number, for every task"
    for wrong in ('{"sst": 0}', "2.5", '{"nli": 3}'):
        assert run_here(monkeypatch, config, "--max_train_samples", wrong, "--overwrite") == 2
        assert "max_train_samples" in capsys.readouterr().err


def test_mistakes_end_with_code_2_and_one_line(monkeypatch, config, course_folder, capsys):
    other = config.parent / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("keep me")
    (course_folder / "ids-cfimdb-train.csv").write_text("\tid\tsentence\tsentiment\n0\ta\tb\t2\n")
    for flags, message in [
        (["--no_such_flag", "1"], "unknown flag --no_such_flag"),
        (["--tasks", "sentiment"], "unknown task 'sentiment'"),
        (["--data_dir", "nowhere"], "nowhere: no such folder"),
        (["--tasks", "cfimdb", "--task_epochs", "{}"], "ids-cfimdb-train.csv, row 1: sentiment is '2'"),
        (["--model_name_or_path", str(other)], "has no config.json"),
        (["--output_dir", str(other)], "exists and holds no run"),
        (["--output_dir", str(other), "--overwrite"], "exists and holds no run"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere: no checkpoint"),
        (["--resume_from_checkpoint", "--overwrite"], "exclude each other"),
    ]:
        assert run_here(monkeypatch, config, *flags) == 2, flags
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, (flags, error)
    assert not (config.parent / "run").exists(), "nothing was written"
    assert (other / "thesis.txt").read_text() == "keep me"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_systems(monkeypatch, tmp_path, tiny_bert, course_folder, path):
    """Each trains, with the paper's values (DESIGN: sections 4 and 5.3) and the layout that its name says."""
    folder, name = tmp_path / "run", path.stem
    flags = ["--model_name_or_path", tiny_bert, "--data_dir", course_folder, "--output_dir", folder]
    quick = ["--budget", 0.1, "--report_to", "none", "--disable_tqdm", "true"]
    assert run_here(monkeypatch, path, *flags, *quick) == 0
    model = MultitaskBertModel.from_pretrained(folder)
    assert model.config.encoder_sharing == ("per_task" if "3bert" in name else "shared")
    assert model.config.pair_encoding == ("joint" if "tpe" in name else "separate")
    tasks, smart = model.tasks.values(), float("smart" in name)
    in_order = ["sst", "quora", "sts"] if "rr" in name else ["sst", "sts", "quora"]
    assert list(model.tasks) == in_order
    assert {task.name: task.smart_weight for task in tasks} == {"sst": smart, "sts": smart, "quora": 0.0}
    tuned = {"sst": 0.2, "quora": 0.1, "sts": 0.1}
    assert {task.name: task.dropout for task in tasks} == (tuned if "df" in name else dict.fromkeys(tuned, 0.3))
    epochs = {"sst": 10, "quora": 3 if "rr" in name else 10, "sts": 10}
    assert {task.name: task.epochs for task in tasks} == epochs
    decides = json.loads((folder / "run.json").read_text())["decides"]
    assert decides["schedule"] == ("round_robin" if "rr" in name else "sequential")
    assert (decides["learning_rate"], decides["lr_scheduler_type"], decides["rows of a step"]) == (1e-5, "constant", 32)
    assert decides["weight_decay"] == decides["max_grad_norm"] == 0
    assert (decides["adam_beta1"], decides["adam_beta2"]) == (0.9, 0.999)
    if smart:
        assert (decides["smart_steps"], decides["smart_radius"], decides["smart_projection"]) == (1, 1e-5, "unit")


def test_the_paper_has_nine_systems():
    names = (
        "baseline baseline_tpe 3bert 3bert_tpe 3bert_tpe_smart 3bert_tpe_smart_df rr_tpe rr_tpe_smart rr_tpe_smart_df"
    )
    assert {path.stem for path in PAPER} == set(names.split())


def test_one_task_alone(monkeypatch, config, tiny_bert):
    folder = config.parent / "run"
    start = load_file(Path(tiny_bert) / "model.safetensors")
    flags = ["--tasks", "sst", "--max_steps", 3]
    for option, learning_rate in (("pretrain", 1e-3), ("finetune", 1e-5)):
        assert run_here(monkeypatch, config, *flags, "--option", option, "--overwrite", recipe=SINGLE) == 0
        decides = json.loads((folder / "run.json").read_text())["decides"]
        assert decides["learning_rate"] == learning_rate and decides["freeze_encoder"] == (option == "pretrain")
        trained = load_file(folder / "model.safetensors")
        same = [torch.equal(trained[f"bert.{name}"], weight) for name, weight in start.items() if "pooler" not in name]
        assert all(same) if option == "pretrain" else not any(same), option
        assert list(MultitaskBertModel.from_pretrained(folder).tasks) == ["sst"]
    assert run_here(monkeypatch, config, *flags, "--learning_rate", 0.5, "--overwrite", recipe=SINGLE) == 0
    assert json.loads((folder / "run.json").read_text())["decides"]["learning_rate"] == 0.5


def test_one_task_alone_is_one(monkeypatch, config, capsys):
    assert run_here(monkeypatch, config, "--tasks", "sst", "sts", recipe=SINGLE) == 2
    assert "--tasks names 2 tasks; this recipe trains one" in capsys.readouterr().err


def test_long_reviews_are_cut_and_counted(monkeypatch, config, course_folder, caplog, propagated_logs):
    header, long = ["", "id", "sentence", "sentiment"], "a long and winding review " * 200
    for split, labelled in (("train", True), ("dev", True), ("test-student", False)):
        rows = [[i, f"c{i}", long if i else "short", *[i % 2] * labelled] for i in range(4)]
        write_table(course_folder / f"ids-cfimdb-{split}.csv", header[: 3 + labelled], rows)
    flags = ["--tasks", "cfimdb", "--task_epochs", "{}", "--max_steps", 1, "--max_length", 512]
    assert run_here(monkeypatch, config, *flags, recipe=SINGLE) == 0
    assert caplog.text.count("cfimdb: 3 of 4 rows were cut to 512 tokens") == 3


def test_a_fifth_task_needs_no_python(monkeypatch, config, capsys):
    """Of the user's own, in a CSV file of its own, in the YAML alone, beside two of the presets. Its test file has
    a header and no rows, which is as good as none."""
    labels = ["entailment", "neutral", "contradiction"]
    for split, count in (("train", 12), ("dev", 6), ("test", 0)):
        rows = [f'"A dog, asleep {i}.",It rests.,{labels[i % 3]}' for i in range(count)]
        (config.parent / f"nli-{split}.csv").write_text("\n".join(["premise,hypothesis,gold", *rows]) + "\n")
    nli = {
        "name": "nli",
        "kind": "classification",
        "text": "premise",
        "text_pair": "hypothesis",
        "label": "gold",
        "label_names": labels,
        "epochs": 2,
        "files": {split: str(config.parent / f"nli-{split}.csv") for split in ("train", "dev", "test")},
    }
    settings = yaml.safe_load(config.read_text()) | {"tasks": ["sst", "sts", nli], "smart_weight": {"nli": 1.0}}
    config.write_text(yaml.safe_dump(settings))
    for layout in ("joint", "separate"):
        assert run_here(monkeypatch, config, "--pair_encoding", layout, "--overwrite") == 0
        assert "nli          accuracy" in capsys.readouterr().out
        folder = config.parent / "run"
        assert {"eval_nli_accuracy", "eval_sst_accuracy"} <= set(json.loads((folder / "metrics.json").read_text()))
        assert MultitaskBertModel.from_pretrained(folder).tasks["nli"].label_names == tuple(labels)
        assert len((folder / "predictions" / "nli-dev.csv").read_text().splitlines()) == 7
        assert not list(folder.glob("predictions/nli-test.*"))
    assert run_here(monkeypatch, config, "--tasks", "nli", "--overwrite", recipe=SINGLE) == 0
    assert list(MultitaskBertModel.from_pretrained(folder).tasks) == ["nli"], "named on the command line"


def test_a_run_resumes_only_with_its_own_settings(monkeypatch, config, capsys):
    folder = config.parent / "run"
    flags = ["--max_steps", 4, "--save_steps", 2, "--eval_steps", 2, "--no_do_predict"]
    with monkeypatch.context() as patch:  # as if it had been stopped before the end
        patch.setattr(RunFolder, "finish", lambda self, metrics: None)
        assert run_here(monkeypatch, config, *flags) == 0
    for other, name in [
        (["--learning_rate", 1e-3], "learning_rate was 1e-05 and is 0.001"),
        (["--seed", 5], "seed was 42 and is 5"),
        (["--encoder_dropout", 0.5], "encoder_dropout was None and is 0.5"),
        (["--head_dropout", 0.5], "task quora was"),
        (["--per_device_train_batch_size", 3], "rows of a step was 4 and is 3"),
    ]:
        assert run_here(monkeypatch, config, *flags, "--resume_from_checkpoint", *other) == 2
        assert f"cannot be resumed with other settings: {name}" in capsys.readouterr().err
    elsewhere = ["--output_dir", config.parent / "new", "--resume_from_checkpoint", folder / "checkpoint-2"]
    assert (
        run_here(monkeypatch, config, *flags, *elsewhere) == 2
        and "not a checkpoint of the run in" in capsys.readouterr().err
    )
    record = (folder / "run.json").read_text()
    (folder / "run.json").write_text(record[: len(record) // 2])
    assert run_here(monkeypatch, config, *flags, "--resume_from_checkpoint") == 2
    assert "run.json: is not the record of a run" in capsys.readouterr().err
    (folder / "run.json").write_text(record)
    assert run_here(monkeypatch, config, *flags, "--resume_from_checkpoint", "--logging_steps", 1) == 0


@pytest.mark.slow  # `make faults` kills runs by the dozen
def test_a_killed_run_resumes_to_the_same_weights(monkeypatch, config, capsys):
    """Through `accelerate launch`: killed in mid-epoch by SIGKILL, resumed, and compared bit for bit."""
    epochs = ("--task_epochs", '{"sst": 8, "quora": 6, "sts": 8}', "--save_steps", "10", "--eval_steps", "10")
    whole, killed = config.parent / "whole", config.parent / "killed"
    uninterrupted = launch(config, *epochs, "--output_dir", str(whole))
    run = launch(config, *epochs, "--output_dir", str(killed))
    deadline = time.monotonic() + 240
    while not (killed / "checkpoint-10" / "trainer_state.json").exists():
        assert time.monotonic() < deadline and run.poll() is None, "no checkpoint to kill after"
        time.sleep(0.05)
    for process in [*psutil.Process(run.pid).children(recursive=True), run]:
        process.kill()  # SIGKILL, the training process first
    run.wait()
    assert not (killed / "metrics.json").exists()

    assert run_here(monkeypatch, config, *epochs, "--output_dir", killed) == 2
    assert "go on with --resume_from_checkpoint" in capsys.readouterr().err
    # As a kill in the middle of saving leaves it: a later checkpoint without what is written last.
    shutil.copytree(killed / "checkpoint-10", killed / "checkpoint-11")
    (killed / "checkpoint-11" / "trainer_state.json").unlink()
    (killed / "checkpoint-11" / "model.safetensors").write_bytes(b"cut off")

    resumed = launch(config, *epochs, "--output_dir", str(killed), "--resume_from_checkpoint")
    for each in (uninterrupted, resumed):
        printed = finish(each)
        assert each.returncode == 0, printed
    assert json.loads((whole / "run.json").read_text())["processes"] == 1
    expected, got = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(expected[name].equal(got[name]) for name in expected)
    assert losses(killed) == losses(whole), "the history goes on where the checkpoint was"
    assert (killed / "metrics.json").read_text() == (whole / "metrics.json").read_text()


@pytest.mark.slow
def test_the_quickstart_learns(monkeypatch, tmp_path):
    """A part of it, to be quick: each task ends well above what guessing the commonest label gives."""
    folder = tmp_path / "run"
    config = CONFIGS / "quickstart.yaml"
    flags = ["--output_dir", folder, "--budget", 0.25, "--no_load_best_model_at_end"]
    flags += ["--eval_strategy", "no", "--save_strategy", "no"]
    assert run_here(monkeypatch, config, *flags) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    for task, metric in (("sst", "accuracy"), ("quora", "accuracy"), ("sts", "pearson")):
        labels = load_rows(TASKS[task], "package:bert_multitask/sample")["dev"]["label"]
        guess = 0 if metric == "pearson" else max(map(labels.count, set(labels))) / len(labels)
        assert metrics[f"eval_{task}_{metric}"] > guess + 0.1, (task, metrics, guess)
