"""The run folder: who writes it, what is refused before it is touched, and what goes on after damage or a full disk."""

import dataclasses
import errno
import io
import json
import os
import pickle
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed.checkpoint as sharded
import yaml
from conftest import losses, run_here, write_config, write_course
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from bert_multitask.commands.command_line import RecipeParser
from bert_multitask.data.records import read_history, write_json
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS, Task
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.callbacks import HistoryFile
from bert_multitask.training.checkpoints import check_checkpoint, find_checkpoint, list_checkpoints
from bert_multitask.training.folder_lock import RUNNING, FolderLock, this_process
from bert_multitask.training.run import explained_failures
from bert_multitask.training.run_folder import (
    HARMLESS,
    HARMLESS_RUN,
    HARMLESS_TASK,
    RunFolder,
    compare_settings,
    deciding_fields,
    deciding_settings,
    read_run,
    recorded_settings,
)
from bert_multitask.training.trainer import MultitaskTrainer

STEPS = ["--max_steps", 4, "--save_steps", 2, "--eval_steps", 2, "--no_do_predict"]
RESUME = "--resume_from_checkpoint"


def files_of(folder: Path) -> dict[str, bytes]:
    """{name: contents} of all files below a folder, without the lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".run.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, tiny_bert) -> Path:
    """A run that was stopped after its checkpoints 2 and 4, for all tests."""
    folder = tmp_path_factory.mktemp("stopped")
    config = write_config(folder, tiny_bert, write_course(folder / "data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda self, metrics: None)
        assert run_here(patch, config, *STEPS) == 0
    return folder / "run"


@pytest.fixture
def unfinished(stopped, config) -> Path:
    """The run in the folder of the test."""
    return shutil.copytree(stopped, config.parent / "run")


# Who writes it.


@pytest.mark.parametrize("flags", [[], ["--overwrite"], [RESUME]], ids=["anew", "overwrite", "resume"])
def test_a_second_run_names_the_process_that_writes(monkeypatch, config, capsys, tmp_path, flags):
    monkeypatch.setattr("bert_multitask.training.folder_lock.PATIENCE", 0)
    folder = config.parent / "run"
    with FolderLock(folder):
        write_json(folder / "run.json", {})
        assert run_here(monkeypatch, config, *flags) == 2
        printed = capsys.readouterr().err.splitlines()
        assert f"is being written by process {os.getpid()} on {socket.gethostname()}" in printed[-1]
        assert json.loads((folder / RUNNING).read_text())["process"] == os.getpid(), "not replaced"


def test_a_second_search_is_refused(monkeypatch, config, capsys):
    monkeypatch.setattr("bert_multitask.training.folder_lock.PATIENCE", 0)
    with FolderLock(config.parent / "run"):
        assert run_here(monkeypatch, config, recipe="tune") == 2
    assert f"is being written by process {os.getpid()}" in capsys.readouterr().err


ANOTHER = {"process": os.getppid(), "host": socket.gethostname(), "started": psutil.Process(os.getppid()).create_time()}


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (ANOTHER, f"process {os.getppid()} on .* if that is not running any more, delete .*running.json"),
        (ANOTHER | {"host": "node7"}, "on node7 .* delete .*running.json"),
        (ANOTHER | {"started": ANOTHER["started"] - 60}, None),
        (ANOTHER | {"process": 2**22 + 1}, None),
        ({"process": "x"}, None),
        ("cut off", None),
    ],
    ids=["alive, no locks", "another host", "number reused", "dead", "no process", "damaged"],
)
def test_a_stale_lock_is_recognised(tmp_path, writer, message):
    """As a process leaves it that was killed, or where the file system has no locks or is another machine's, too."""
    (tmp_path / RUNNING).write_text(json.dumps(writer)[: None if isinstance(writer, dict) else 3])
    if message:
        with pytest.raises(InputError, match=message), FolderLock(tmp_path):
            pass
    else:
        with FolderLock(tmp_path):
            assert json.loads((tmp_path / RUNNING).read_text()) == json.loads(json.dumps(this_process()))
        assert not (tmp_path / RUNNING).exists()


def test_the_lock_ends_with_its_process(monkeypatch, tmp_path):
    code = f"import sys, filelock; lock = filelock.FileLock({str(tmp_path / '.run.lock')!r}); lock.acquire(); print(1)"
    holder = subprocess.Popen([sys.executable, "-uc", f"{code}; sys.stdin.read()"], stdin=-1, stdout=-1)
    assert holder.stdout.readline()
    monkeypatch.setattr("bert_multitask.training.folder_lock.PATIENCE", 0)
    with pytest.raises(InputError, match="is being written by another process"), FolderLock(tmp_path):
        pass
    holder.kill()
    monkeypatch.undo()
    with FolderLock(tmp_path):
        pass
    holder.communicate()


# What is refused before anything is touched.


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a.txt", "File exists"),
        ("a.txt/run", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("/proc/run", "cannot be written"),
        ("/sys/run/below", "cannot be written"),
    ],
    ids=["a file", "below a file", "long name", "no such file system", "not permitted"],
)
def test_a_folder_that_cannot_be_written_is_found_before_rows_are_read(monkeypatch, config, capsys, name, why):
    (config.parent / "a.txt").write_text("keep me")
    monkeypatch.setattr("bert_multitask.training.run.load_rows", lambda *_: pytest.fail("rows were read"))
    assert run_here(monkeypatch, config, "--output_dir", config.parent / name) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("error: --output_dir") and why in printed
    assert (config.parent / "a.txt").read_text() == "keep me"


@pytest.mark.parametrize("number", ["EROFS", "EACCES", "ENOSPC", "EDQUOT"])
def test_a_read_only_or_full_disk_is_found_first(monkeypatch, config, capsys, number):
    def fail(*_, **__):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr("bert_multitask.training.folder_lock.write_json", fail)
    monkeypatch.setattr("bert_multitask.training.run.load_rows", lambda *_: pytest.fail("rows were read"))
    assert run_here(monkeypatch, config) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        *(["--learning_rate", -1], ["--data_dir", "nowhere"], ["--tasks", "sentiment"], ["--max_length", 3], [RESUME]),
        # Transformers' own, which would fail in training.
        *(["--label_names", "a", "b"], ["--eval_accumulation_steps", 0], ["--torch_compile_mode", "fastest"]),
        *(["--optim", "adamw_8bit"], ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"lr_start": 1}']),
        *(["--metric_for_best_model", "nli_accuracy"], ["--report_to", "nobody"], ["--include_for_metrics", "loss"]),
        *(["--encoder_dropout", 2], ["--class_weights", '{"sst": {"negative": 1}}'], ["--hub_strategy", "checkpoint"]),
    ],
    ids=lambda flags: flags[0],
)
def test_a_mistake_beside_overwrite_touches_nothing(monkeypatch, unfinished, config, flags):
    (unfinished / "metrics.json").write_text("{}")  # as of a finished run
    before = files_of(unfinished)
    assert run_here(monkeypatch, config, *STEPS, "--overwrite", *flags) == 2
    assert files_of(unfinished) == before


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(monkeypatch, unfinished, config):
    (unfinished / "thesis.txt").write_text("keep me")
    (unfinished / "notes.py").write_text("keep me")
    (unfinished / "checkpoint-old").mkdir()
    (unfinished / "predictions").mkdir()
    assert run_here(monkeypatch, config, "--max_steps", 1, "--overwrite", "--no_do_predict") == 0
    assert (unfinished / "thesis.txt").exists() and (unfinished / "notes.py").exists()
    assert {path.name for path in unfinished.glob("checkpoint*")} == {"checkpoint-old"}
    assert not (unfinished / "predictions").exists() and losses(unfinished)[-1][0] == 1


def test_a_run_that_diverged_may_be_replaced(monkeypatch, config, capsys):
    flags = ["--max_steps", 3, "--logging_steps", 1, "--eval_steps", 1, "--save_steps", 1, "--no_do_predict"]
    assert run_here(monkeypatch, config, *flags, "--learning_rate", 1e30) == 2
    assert "not finite numbers after step" in capsys.readouterr().err
    assert run_here(monkeypatch, config, *flags, "--overwrite") == 0


@pytest.mark.parametrize("left", [[], ["running.json"], ["run.tmp", "running.tmp"]], ids=["lock", "record", "drafts"])
def test_a_run_cut_off_before_it_began_is_no_obstacle(tmp_path, left):
    for name in [".run.lock", *left]:
        (tmp_path / name).write_text("{")
    with RunFolder(MultitaskTrainingArguments(str(tmp_path), report_to="none"), overwrite=False):
        pass
    assert tmp_path.exists(), "it was there before"


@pytest.mark.parametrize("flags", [["--overwrite"], [RESUME]], ids=["overwrite", "resume"])
def test_an_overwrite_cut_off_in_the_middle_is_no_obstacle(monkeypatch, unfinished, config, flags):
    rmtree = shutil.rmtree

    def cut_off(path, *args, **kwargs):
        rmtree(path, *args, **kwargs)
        if Path(path).name == "checkpoint-2":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bert_multitask.training.folder_lock.shutil.rmtree", cut_off)
        assert run_here(patch, config, *STEPS, "--overwrite") == 130
    assert not (unfinished / "metrics.json").exists() and not (unfinished / "checkpoint-2").exists()
    assert run_here(monkeypatch, config, *STEPS, *flags) == 0


# Which settings decide.


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--optim_args", "eps=1e-3"], "optim_args"),
        (["--adam_beta2", 0.9], "adam_beta2"),
        (["--max_grad_norm", 2], "max_grad_norm"),
        (["--accelerator_config", '{"non_blocking": true}'], "accelerator_config"),
        (["--bf16", "true"], "bf16"),
        (["--torch_compile", "true"], "torch_compile"),
        (["--eval_steps", 4, "--save_steps", 4], "eval_steps"),
        (["--metric_for_best_model", "eval_sst_loss", "--greater_is_better", "false"], "greater_is_better"),
        (["--gradient_accumulation_steps", 2], "rows of a step"),
        (["--pooling", "mean"], "pooling"),
        (["--smart_place", "embeddings"], "smart_place"),
        (["--smart_reduction", "sum"], "smart_reduction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_that_decides_is_compared(unfinished, config, flags, name):
    record = json.loads((unfinished / "run.json").read_text())
    now = settings_of(config, [*STEPS, *flags], record)
    with pytest.raises(InputError, match=f"cannot be resumed with other settings: {name} was"):
        compare_settings(recorded_settings(record, now), now, unfinished)


def settings_of(config: Path, flags: list, record: dict) -> dict:
    """The settings of a command line, of the rows of a record."""
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), config, "")
    run, args, _ = parser.parse([str(config), *map(str, flags)])
    tasks = run.load_tasks()
    data = {task.name: record["decides"][f"rows of {task.name}"] for task in tasks}
    return deciding_settings(run, args, tasks, data)


@pytest.mark.parametrize("version", ["this", "older"])
def test_harmless_settings_may_differ_also_from_an_older_version(unfinished, config, version):
    record = json.loads((unfinished / "run.json").read_text())
    if version == "older":  # compared fewer settings, and knew none of a task's latest field
        kept = {"seed", "schedule", "tasks", "rows of a step", "learning_rate"}
        decides = {name: record["decides"][name] for name in record["decides"] if name in kept or " " in name}
        for name in ("task sst", "task quora", "task sts"):
            del decides[name]["divergence"]
        del decides["mixed precision"]
        record["decides"] = decides
        del record["training"]["optim_args"]
    dealt = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--dataloader_num_workers", 1]
    now = settings_of(config, [*STEPS, *dealt, "--logging_steps", 3, "--save_total_limit", 5], record)
    compare_settings(recorded_settings(record, now), now, unfinished)
    for flag in ("optim_args", "lr_scheduler_kwargs"):
        now = settings_of(config, [*STEPS, f"--{flag}", '{"eps": 1}'], record)
        with pytest.raises(InputError, match=f"{flag} was None"):
            compare_settings(recorded_settings(record, now), now, unfinished)


def test_the_list_of_harmless_fields_is_complete():
    """Every field decides but these, so that one that a newer version of Transformers adds decides by itself. A name
    joins this list and `HARMLESS` after somebody has thought about it."""
    training = {field.name for field in dataclasses.fields(MultitaskTrainingArguments)}
    run = {field.name for field in dataclasses.fields(RunArguments)}
    # Of Task, where the rows come from; they are compared.
    beside = {"id", "files", "dev_share", "quoting", "hub", "extra_train", "distill_from", "course_rows"}
    fields = {field.name for field in dataclasses.fields(Task)}
    assert fields - set(TASKS["sst"].to_config()) == beside
    assert fields - set(deciding_fields(TASKS["sst"])) == beside | HARMLESS_TASK
    assert HARMLESS_TASK == {"ordered", "text", "text_pair", "label"}
    assert HARMLESS_RUN <= run and run - HARMLESS_RUN == {
        *("model_name_or_path", "max_length", "encoder_dropout", "encoder_sharing", "pair_encoding", "pooling"),
        *("freeze_encoder", "freeze_layers"),
        *("lora_rank", "lora_alpha", "lora_target_modules", "lora_train_encoder"),
    }
    assert HARMLESS - {"option"} <= training
    args = MultitaskTrainingArguments(output_dir="run", report_to="none")
    settings = deciding_settings(RunArguments(), args, [TASKS["sst"]], {"sst": {}})
    assert training - HARMLESS <= settings.keys() and run - HARMLESS_RUN <= settings.keys()
    assert {"tasks", "task sst", "rows of sst", "rows of a step", "mixed precision"} <= settings.keys()


@pytest.mark.parametrize("limit", [2, 3])
def test_a_finished_run_has_its_weights_once(monkeypatch, config, capsys, limit):
    """By default; checkpoints that were asked for stay. The end says what the others weigh."""
    assert run_here(monkeypatch, config, *STEPS, "--save_total_limit", limit) == 0
    folder, out = config.parent / "run", capsys.readouterr().out
    left = [path.name for path in folder.glob("checkpoint-*")]
    kept = re.search(r"kept: step (\d) of 4, the best", out)[1]
    assert sorted(left) == [f"checkpoint-{step}" for step in "24" if step != kept or limit == 3]
    assert ("MB in checkpoint-*, weights of" in out) == bool(left)
    final = load_file(folder / "model.safetensors")
    for name in left:
        found = load_file(folder / name / "model.safetensors")
        assert all(found[key].equal(final[key]) for key in final) == name.endswith(kept)


# Damage.


def test_only_numbered_folders_are_checkpoints(tmp_path, propagated_logs, caplog):
    for name in ("checkpoint-20", "checkpoint-3", "checkpoint-old", "checkpoint-1.bak", "checkpoint-", "checkpoint--4"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("")
    assert list(list_checkpoints(tmp_path)) == [3, 20]
    assert find_checkpoint(tmp_path, "last") is None and "no checkpoint yet" in caplog.text


@pytest.mark.parametrize(
    "file", ["trainer_state.json", "optimizer.pt", "model.safetensors", "rng_state.pth", "scheduler.pt"]
)
def test_a_torn_newest_checkpoint_falls_back(unfinished, propagated_logs, caplog, file):
    newest = unfinished / "checkpoint-4" / file
    (unfinished / "checkpoint-old").mkdir()
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert find_checkpoint(unfinished, "last") == unfinished / "checkpoint-2"
    assert (
        f"checkpoint-4: {file} is damaged" in caplog.text
        and f"goes on from {unfinished / 'checkpoint-2'}" in caplog.text
    )
    with pytest.raises(InputError, match=f"{file} is damaged"):
        find_checkpoint(unfinished, str(unfinished / "checkpoint-4"))
    shutil.rmtree(unfinished / "checkpoint-2")
    with pytest.raises(InputError, match=f"{file} is damaged"):
        find_checkpoint(unfinished, "last")


@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", "rng_state.pth", "scheduler.pt"])
def test_a_newest_checkpoint_that_lacks_a_file_falls_back(unfinished, propagated_logs, caplog, file):
    """Trainer would begin anew what the file held."""
    (unfinished / "checkpoint-4" / file).unlink()
    assert find_checkpoint(unfinished, "last") == unfinished / "checkpoint-2"
    assert "checkpoint-4" in caplog.text and "is not there" in caplog.text


@pytest.mark.parametrize("missing", ["momentum_teacher.safetensors", "tokenizer.json"])
def test_checkpoints_of_a_run_hold_the_same_files(unfinished, propagated_logs, caplog, missing):
    """Such as what a regulariser keeps; but not their code, which another version may write anew."""
    older, newer = unfinished / "checkpoint-2", unfinished / "checkpoint-4"
    shutil.copy(older / "model.safetensors", older / "momentum_teacher.safetensors")
    (older / "new.py").write_text("")
    if missing == "tokenizer.json":
        shutil.copy(older / "momentum_teacher.safetensors", newer)
        (newer / missing).unlink()
    assert find_checkpoint(unfinished, "last") == unfinished / "checkpoint-2"
    assert f"checkpoint-4: {missing} is not there" in caplog.text
    with pytest.raises(InputError, match=f"{missing} is not there"):
        find_checkpoint(unfinished, str(unfinished / "checkpoint-4"))


@pytest.mark.parametrize("name", ["last", "checkpoint-4"])
def test_training_does_not_go_on_towards_damaged_best_weights(unfinished, name):
    """Trainer would fail at the end, or with a warning keep the last weights."""
    state = unfinished / "checkpoint-4/trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_global_step": 2}))
    name = name if name == "last" else str(unfinished / name)
    assert find_checkpoint(unfinished, name, best=True) == unfinished / "checkpoint-4"
    (unfinished / "checkpoint-2/model.safetensors").write_bytes(b"")
    assert find_checkpoint(unfinished, name) == unfinished / "checkpoint-4"
    with pytest.raises(InputError, match="checkpoint-2: model.safetensors is damaged"):
        find_checkpoint(unfinished, name, best=True)
    shutil.rmtree(unfinished / "checkpoint-2")
    with pytest.raises(InputError, match="checkpoint-2: the weights .* not there"):
        find_checkpoint(unfinished, name, best=True)


def test_a_torn_newest_checkpoint_leads_to_the_same_weights(monkeypatch, unfinished, config):
    whole = load_file(unfinished / "model.safetensors")
    (unfinished / "checkpoint-4" / "optimizer.pt").write_bytes(b"PK")
    assert run_here(monkeypatch, config, *STEPS, RESUME) == 0
    got = load_file(unfinished / "model.safetensors")
    assert all(whole[name].equal(got[name]) for name in whole)


def write_empty_checkpoint(folder: Path) -> None:
    """All files that a checkpoint must have, with nothing in them."""
    for file in ("model.safetensors.index.json", "optimizer.json", "trainer_state.json"):
        (folder / file).write_text("{}")
    for file in ("scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / file)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self):
        return (open, (str(self.made), "w"))


@pytest.mark.parametrize(
    "name", ["global_step1/state.pt", ".metadata", "optimizer_0/.metadata", "a/b/c.bin", "deep/rng_state_0.pth"]
)
def test_pickles_below_a_checkpoint_are_checked(tmp_path, name):
    write_empty_checkpoint(tmp_path)
    made = tmp_path / "made"
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.name == ".metadata":
        file.write_bytes(pickle.dumps(Hostile(made)))
    else:
        torch.save({"state": Hostile(made)}, file)
    with pytest.raises(InputError, match="not to be trusted"):
        check_checkpoint(tmp_path)
    assert not made.exists()


@pytest.mark.filterwarnings("ignore")
def test_weights_in_pieces_pass(tmp_path):
    """The files of FSDP's sharded weights, as PyTorch writes them, and other than tensors among them."""
    write_empty_checkpoint(tmp_path)
    weights = {"a": torch.ones(3, dtype=torch.bfloat16), "b": {"c": 3, "d": torch.zeros(2, 2)}}
    sharded.save(weights, checkpoint_id=tmp_path / "pytorch_model_fsdp_0", no_dist=True)
    assert (tmp_path / "pytorch_model_fsdp_0" / ".metadata").exists()
    check_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"data_dir": [1]},
        {"data_dir": True},
        {"tasks": 3},
        {"tasks": [0.5]},
        {"tasks": ["sentiment"]},
        {"head_dropout": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("version", ["this", "older"])
def test_a_record_with_damaged_values(unfinished, damage, version):
    """An older version's has the flags alone, from which its tasks are worked out."""
    record = json.loads((unfinished / "run.json").read_text())
    if version == "older":
        del record["tasks"], record["data_dir"], record["max_length"]
        record["run"] |= damage
    elif "head_dropout" in damage:
        record["tasks"][0]["dropout"] = damage["head_dropout"]
    else:
        record |= damage
    (unfinished / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="run.json: is not the record of a run"):
        read_run(unfinished)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": 3}', "\x00", '{"run": {}}', "[" * 100_000])
def test_a_damaged_record_is_one_line(monkeypatch, unfinished, config, capsys, text):
    (unfinished / "run.json").write_text(text)
    assert run_here(monkeypatch, config, *STEPS, RESUME) == 2
    assert "run.json: is not the record of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "entries", "message"),
    [
        ('{"step": 1}\n{"step": 2}\n', 2, None),
        ('{"step": 1}\n{"b": 2', 1, "the last line, 2, is cut off"),
        ('{"step": 1}\n3\n', 1, "the last line, 2, is cut off"),
        ('{"step": 1}\n{"b": \n{"step": 3}\n', None, "line 2 is no entry"),
        ('7\n{"step": 3}\n', None, "line 1 is no entry"),
        ('{"loss": NaN}\n{"step": 3}\n', None, "line 1 is no entry"),
        ('{"step": "a"}\n{"step": 3}\n', None, "line 1 is no entry"),
        ("", 0, None),
    ],
    ids=[
        *(
            "whole",
            "torn",
            "last no object",
            "torn in the middle",
            "first no object",
            "no step",
            "a step that is no number",
        ),
        "empty",
    ],
)
def test_a_torn_history(tmp_path, propagated_logs, caplog, text, entries, message):
    (tmp_path / "history.jsonl").write_text(text)
    if entries is None:
        with pytest.raises(InputError, match=message):
            read_history(tmp_path / "history.jsonl")
    else:
        assert len(read_history(tmp_path / "history.jsonl")) == entries
        assert (message or "") in caplog.text and bool(message) == bool(caplog.text)
    assert read_history(tmp_path / "none") == []


def test_a_history_that_is_no_text(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(b'{"step": 1}\n{"st\xffep": 2}\n{"step": 3}\n')
    with pytest.raises(InputError, match="history.jsonl: line 2"):
        read_history(tmp_path / "history.jsonl")


def test_no_json_holds_a_nan(tmp_path):
    values = {"step": 1, "a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (-float("inf"), "NaN")}}
    expected = {"step": 1, "a": None, "b": [None, 1.5], "c": {"d": [None, "NaN"]}}
    write_json(tmp_path / "metrics.json", values)
    assert json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail) == expected
    state = type("State", (), {"log_history": [values], "is_world_process_zero": True})
    history = HistoryFile(tmp_path / "history.jsonl")
    history.on_train_begin(None, state, None)
    history.on_log(None, state, None)
    assert read_history(history.path) == [expected] * 2


# Full disks and memory.


class SmallDisk(TrainerCallback):
    """From a step on, no file can be longer than so many bytes."""

    def __init__(self, size: int):
        self.size = size

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    "share",
    [pytest.param(0.1, marks=pytest.mark.slow), pytest.param(0.9, marks=pytest.mark.slow), 1.3],
    ids=["weights", "end of weights", "optimizer"],
)
def test_a_full_disk_in_mid_save(monkeypatch, config, capsys, share):
    """One line; what was written before is whole; with room again the run ends with the same weights."""
    folder, whole = config.parent / "run", config.parent / "whole"
    assert run_here(monkeypatch, config, *STEPS, "--output_dir", whole) == 0
    size = int((whole / "model.safetensors").stat().st_size * share)
    add = MultitaskTrainer.add_callbacks
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(MultitaskTrainer, "add_callbacks", lambda self: (add(self), self.add_callback(SmallDisk(size))))
        try:
            assert run_here(patch, config, *STEPS) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    printed = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be read or written" in printed and "go on with --resume_from_checkpoint" in printed
    assert not (folder / "metrics.json").exists()
    check_checkpoint(folder / "checkpoint-2")
    assert run_here(monkeypatch, config, *STEPS, RESUME) == 0
    expected, got = load_file(whole / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(expected[name].equal(got[name]) for name in expected)
    assert losses(folder) == losses(whole)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_is_one_line(tmp_path, error):
    args = MultitaskTrainingArguments(str(tmp_path), report_to="none", gradient_accumulation_steps=2)
    message = "out of memory with --per_device_train_batch_size 32 and --gradient_accumulation_steps 2"
    with pytest.raises(InputError, match=message), explained_failures(args):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "a/file"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        PermissionError(errno.EACCES, "Permission denied", "cache"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["full", "quota", "permission", "torch", "safetensors"],
)
def test_a_disk_that_fails_is_one_line(tmp_path, error):
    args = MultitaskTrainingArguments(str(tmp_path), report_to="none")
    with pytest.raises(InputError, match="cannot be read or written: .* MiB are free"), explained_failures(args):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("x"), FileNotFoundError(errno.ENOENT, "gone")])
def test_another_failure_keeps_its_traceback(tmp_path, error):
    with pytest.raises(type(error)) as found:
        with explained_failures(MultitaskTrainingArguments(str(tmp_path), report_to="none")):
            raise error
    assert found.value is error


# Consoles.


def test_a_console_without_the_characters_of_a_task(monkeypatch, config):
    """As cp1252 on Windows: what cannot be shown is written as its number, and the run goes on."""
    rows = "text,label\n" + "\n".join(f"film {number},{number % 2}" for number in range(6)) + "\n"
    files = {split: str(config.parent / f"{split}.csv") for split in ("train", "dev")}
    for file in files.values():
        Path(file).write_text(rows)
    names = {"kind": "binary", "text": "text", "label": "label", "label_names": ["悪", "良"]}
    settings = yaml.safe_load(config.read_text())
    settings["tasks"] = [{"name": "感情", "epochs": 1, "files": files} | names]
    config.write_text(yaml.safe_dump(settings | {"task_epochs": None}))
    console = {name: io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for name in ("stdout", "stderr")}
    for name, stream in console.items():
        monkeypatch.setattr(sys, name, stream)
    assert run_here(monkeypatch, config, "--max_steps", 1) == 0
    assert rb"\u611f\u60c5" in console["stdout"].buffer.getvalue()
    assert (config.parent / "run" / "metrics.json").exists()
