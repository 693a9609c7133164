"""The average of weights by hand, its refusals, and the checkpoint that it leaves."""

import json
import shutil

import pytest
import torch
from conftest import run_here
from safetensors.torch import load_file

from bert_multitask.data.rows import SAMPLE
from bert_multitask.inference.soup import average_weights, check_same_start
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.run import train

SOUP, PREDICT = "soup", "predict"


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, tiny_bert):
    """Runs of one large step, by keyword; head_dropout, tasks and pair_encoding are the run's, the others Trainer's."""

    def make(name: str, head_dropout=0.0, tasks=("sts",), pair_encoding="joint", **settings) -> str:
        run = RunArguments(tiny_bert, list(tasks), SAMPLE, 32, head_dropout=head_dropout, pair_encoding=pair_encoding)
        folder = tmp_path_factory.mktemp("runs") / name
        quick = {"max_steps": 1, "report_to": "none", "eval_strategy": "no", "do_predict": False, "learning_rate": 1e-2}
        train(run, MultitaskTrainingArguments(output_dir=str(folder), **(quick | settings)))
        return str(folder)

    return make


@pytest.fixture(scope="module")
def runs(make_run) -> list[str]:
    return [make_run("a", data_seed=1), make_run("b", data_seed=2), make_run("c", data_seed=3, head_dropout=0.5)]


def read(folder: str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/model.safetensors")


def test_runs_of_one_seed_begin_alike(make_run):
    """Which --data_seed leaves alone: after a step of length 0 they are still the same."""
    first, second = (read(make_run("still", learning_rate=0.0, data_seed=seed)) for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_average(monkeypatch, tmp_path, runs, capsys):
    soup = tmp_path / "soup"
    assert run_here(monkeypatch, *runs, "--output_dir", soup, recipe=SOUP) == 0
    got, members = read(str(soup)), [read(run) for run in runs]
    assert got.keys() == members[0].keys() and all(weight.dtype == torch.float32 for weight in got.values())
    differ = 0
    for name, weight in got.items():
        torch.testing.assert_close(weight, torch.stack([member[name] for member in members]).mean(0))
        differ += not torch.equal(weight, members[0][name])
    assert differ > 10, "the runs went different ways"
    assert list(MultitaskBertModel.from_pretrained(soup).tasks) == ["sts"]
    command = f"  bert-multitask predict {soup} --split dev --output_dir {soup / 'predictions'}"
    assert capsys.readouterr().out.splitlines()[-1] == command
    assert run_here(monkeypatch, *command.split()[2:], recipe=PREDICT) == 0, "it knows its rows"
    assert "eval_sts_pearson" in json.loads((soup / "predictions" / "scores.json").read_text())


def test_the_average_of_one_run_is_this_run(runs):
    average = average_weights([TrainedRun.open(runs[0])] * 3).state_dict()
    assert all(torch.equal(average[name], weight) for name, weight in read(runs[0]).items())


def test_tasks_may_differ_in_what_their_heads_do_not_mean(runs, make_run):
    sts = {"preset": "sts", "max_train_samples": 5, "truncation": "tail", "group": "pairs", "epochs": 2}
    check_same_start([TrainedRun.open(runs[0]), TrainedRun.open(make_run("harmless", tasks=(sts,)))])
    other = TrainedRun.open(make_run("pooled", tasks=({"preset": "sts", "pooling": "mean"},)))
    with pytest.raises(InputError, match="sts's pooling is 'mean', and 'cls' in"):
        check_same_start([TrainedRun.open(runs[0]), other])


def test_what_cannot_be_averaged(monkeypatch, tmp_path, runs, make_run, tiny_bert, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(runs[0], bare, ignore=shutil.ignore_patterns("run.json"))
    for other, message in [
        (
            make_run("seed", seed=7),
            "seed is 7, and 42 in .*; only runs .* train with one --seed, and another --data_seed",
        ),
        (make_run("separate", pair_encoding="separate"), "pair_encoding is 'separate', and 'joint' in"),
        (make_run("tasks", tasks=("sts", "sst")), "sst's head is 'linear', and None in"),
        (tiny_bert, "is an encoder without heads"),
        (str(bare), "no run.json, so nothing says which weights"),
    ]:
        with pytest.raises(InputError, match=message):
            check_same_start([TrainedRun.open(runs[0]), TrainedRun.open(other)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert run_here(monkeypatch, *runs, "--output_dir", tmp_path / "full", recipe=SOUP) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err


def test_a_soup_is_not_gone_on_with(monkeypatch, tmp_path, runs, tiny_bert):
    """Its run.json says that no settings would give its weights."""
    assert run_here(monkeypatch, *runs, "--output_dir", tmp_path / "soup", recipe=SOUP) == 0
    run = RunArguments(tiny_bert, ["sts"], SAMPLE, 32, head_dropout=0.0)
    args = MultitaskTrainingArguments(
        output_dir=str(tmp_path / "soup"), max_steps=1, resume_from_checkpoint="last", report_to="none"
    )
    before = read(str(tmp_path / "soup"))
    with pytest.raises(InputError, match="cannot be resumed with other settings"):
        train(run, args)
    assert all(torch.equal(before[name], weight) for name, weight in read(str(tmp_path / "soup")).items())
