"""`bert-multitask predict`: every row once, in file order, however it is run; and what it takes from a run's record."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import finish, launch, run_here, run_killed

from bert_multitask.data.rows import HANDOUT, SAMPLE, load_rows
from bert_multitask.evaluation.tables import read_predictions
from bert_multitask.inference import split_tables as inference
from bert_multitask.inference import trained_run
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.split_tables import SplitTables
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS, load_tasks
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.run import train

PREDICT, ENSEMBLE, REPORT = "predict", "ensemble", "report"
NAMES = ["neutral", "no, never", "yes"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A task's files with labels, without a column of labels (test), and with gaps (gaps)."""
    folder = tmp_path_factory.mktemp("nli")
    frame = pd.DataFrame({"premise": [f"A dog {'ran ' * (i % 7)}{i}." for i in range(11)], "gold": NAMES[0]})
    frame["hypothesis"] = frame["premise"].str.upper()
    frame["gold"] = [NAMES[i % 3] for i in range(11)]
    frame.to_csv(folder / "train.csv", index=False)
    frame[:7].to_csv(folder / "dev.csv", index=False)
    frame[["hypothesis", "premise"]].to_csv(folder / "test.csv", index=False)
    frame["gold"] = ["", *frame["gold"][1:]]
    frame["hypothesis"] = [*frame["hypothesis"][:10], ""]
    frame.to_csv(folder / "gaps.csv", index=False)
    return {split: str(folder / f"{split}.csv") for split in ("train", "dev", "test", "gaps")}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert, files):
    """A run of one step, of two presets and a task of the user's own."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    nli = {"name": "nli", "kind": "classification", "text": "premise", "text_pair": "hypothesis", "label": "gold"}
    nli |= {"label_names": NAMES, "epochs": 1, "files": {split: files[split] for split in ("train", "dev", "test")}}
    arguments = RunArguments(model_name_or_path=tiny_bert, tasks=["sst", "sts", nli], data_dir=SAMPLE, max_length=16)
    train(arguments, MultitaskTrainingArguments(output_dir=str(folder), max_steps=1, report_to="none"))
    return folder


def same(table, other) -> None:
    """The same rows in the same order, and predictions that differ by rounding alone."""
    assert table.column_names == other.column_names and table["id"][:] == other["id"][:]
    for column in {"score", "probabilities"} & set(table.column_names):
        np.testing.assert_allclose(table[column][:], other[column][:], atol=1e-5)


def tables(folder, split: str) -> dict:
    return {task: read_predictions(folder / f"{task}-{split}.parquet").table for task in ("sst", "sts", "nli")}


@pytest.mark.parametrize("split", ["dev", "test"])
def test_as_the_run_itself_predicted(monkeypatch, tmp_path, run, files, split, capsys):
    """In batches of another size and order; with the dev scores that Trainer gave."""
    flags = ["--split", split, "--output_dir", tmp_path, "--per_device_eval_batch_size", 7]
    assert run_here(monkeypatch, run, *flags, recipe=PREDICT) == 0
    printed = capsys.readouterr().out
    for task, table in tables(tmp_path, split).items():
        same(table, tables(run / "predictions", split)[task])
    for task in ("sst", "sts"):
        header, *lines = (tmp_path / f"{task}-{split}.csv").read_text().splitlines()
        assert header == f"id \t {TASKS[task].prediction_column} "
        assert [line.split(" , ")[0] for line in lines] == load_rows(TASKS[task], SAMPLE)[split]["id"][:]
    frame = pd.read_csv(tmp_path / f"nli-{split}.csv")
    assert frame["id"].tolist() == list(range(7 if split == "dev" else 11)) and set(frame["label"]) <= set(NAMES)
    if split == "test":
        assert "overall" not in printed and not (tmp_path / "scores.json").exists()
    else:
        scores, metrics = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", run / "metrics.json"))
        assert set(scores) == {key for key in metrics if not key.endswith("_loss")}
        assert scores == pytest.approx({key: metrics[key] for key in scores}, abs=1e-4)
        assert f"{scores['eval_overall']:.4f}" in printed


def test_every_split_with_labels_is_scored(monkeypatch, tmp_path, run, files, capsys):
    """By `predict` and `ensemble`; test rows as training rows, against the labels in the file."""
    nli = json.dumps({"name": "nli", "files": dict.fromkeys(("train", "dev", "test"), files["train"])})
    gold = pd.read_csv(files["train"])["gold"]
    found = {}
    for split in ("test", "train"):
        flags = ["--split", split, "--tasks", nli, "sst", "--output_dir", tmp_path]
        assert run_here(monkeypatch, run, *flags, recipe=PREDICT) == 0
        found[split] = json.loads((tmp_path / f"scores-{split}.json").read_text())
        right = (pd.read_csv(tmp_path / f"nli-{split}.csv")["label"] == gold).mean()
        assert found[split]["eval_nli_accuracy"] == pytest.approx(right)
        printed = capsys.readouterr().out
        assert f"{split} score" in printed and f"{right:.4f}" in printed
    assert "eval_sst_accuracy" in found["train"] and "eval_sst_accuracy" not in found["test"], "which has no labels"
    assert not (tmp_path / "scores.json").exists(), "the scores of dev"
    flags = ["--tasks", nli, "--output_dir", tmp_path / "both", "--data_dir", tmp_path]
    assert run_here(monkeypatch, tmp_path / "nli-test.parquet", *flags, recipe=ENSEMBLE) == 0
    scores = json.loads((tmp_path / "both" / "ensemble.json").read_text())["scores"]["test"]
    assert scores["all 1, mode"]["eval_nli_accuracy"] == found["test"]["eval_nli_accuracy"]


def test_bf16_changes_rounding_alone(monkeypatch, tmp_path, run):
    """By a few of bfloat16's steps, 2**-8 of a value; of a file and of a split alike."""
    flags = ["--split", "dev", "--output_dir", tmp_path, "--bf16"]
    assert run_here(monkeypatch, run, *flags, recipe=PREDICT) == 0
    found, exact = tables(tmp_path, "dev"), tables(run / "predictions", "dev")
    pipe = MultitaskPipeline(str(run), bf16=True)
    assert pipe.load()[0].dtype == torch.float32
    for task, column in {"sst": "probabilities", "sts": "score"}.items():
        rows = load_rows(TASKS[task], SAMPLE)["dev"]
        texts = list(zip(rows["text"], rows["text_pair"], strict=True)) if task == "sts" else rows["text"][:]
        np.testing.assert_allclose(pipe.table(task, texts)[column][:], found[task][column][:], atol=1e-3)
        differences = np.abs(np.array(found[task][column][:]) - np.array(exact[task][column][:]))
        assert 1e-6 < differences.max() < 0.02


def test_rows_without_labels_or_texts_are_predicted(monkeypatch, tmp_path, run, files, capsys):
    for name, rows in (("gaps", 11), ("test", 11)):  # the latter has no column of labels
        task = json.dumps({"name": "nli", "files": {"train": "none.csv", "dev": files[name]}})
        flags = ["--split", "dev", "--tasks", task, "--output_dir", tmp_path / name]
        assert run_here(monkeypatch, run, *flags, recipe=PREDICT) == 0
        assert pd.read_csv(tmp_path / name / "nli-dev.csv")["id"].tolist() == list(range(rows))
        assert (tmp_path / name / "scores.json").exists() == (name == "gaps")


def test_a_checkpoint_without_a_record(monkeypatch, tmp_path, run, files, capsys):
    """As it comes from the Hub: config.json has the tasks, and not where their rows are."""
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("run.json", "checkpoint-*", "predictions"))
    flags = ["--split", "dev", "--output_dir", tmp_path / "new"]
    nli = json.dumps({"name": "nli", "files": {split: files[split] for split in ("train", "dev")}})
    for more, message in [
        ([], "does not say where its rows are; name a folder, a URL or hub with --data_dir"),
        (["--data_dir", SAMPLE], 'where the rows of its task \'nli\' are: --tasks \'{"name": "nli", "files":'),
        (["--tasks", "quora", "--data_dir", SAMPLE], "--tasks names 'quora'; the tasks of"),
        (["--tasks", '{"name": "nli", "kind": "binary"}'], "--tasks: 'kind' of 'nli' is the run's own"),
        (["--tasks", "sst", "--data_dir", tmp_path / "nowhere"], "nowhere: no such folder"),
        (["--per_device_eval_batch_size", 0], "--per_device_eval_batch_size is 0; expected at least 1"),
    ]:
        assert run_here(monkeypatch, bare, *flags, *more, recipe=PREDICT) == 2, message
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, (message, error)
    assert not (tmp_path / "new").exists(), "nothing was written"
    given = ["--tasks", "sst", "sts", nli, "--data_dir", SAMPLE]
    assert run_here(monkeypatch, bare, *flags, *given, recipe=PREDICT) == 0
    assert tables(tmp_path / "new", "dev").keys() == {"sst", "sts", "nli"}


def test_what_is_no_run(monkeypatch, tmp_path, tiny_bert, run, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged, ignore=shutil.ignore_patterns("checkpoint-*", "predictions"))
    (damaged / "run.json").write_text('{"run": {"old_flag": 1}}')
    misnamed = tmp_path / "misnamed"
    shutil.copytree(damaged, misnamed)
    record = json.loads((run / "run.json").read_text())
    record["tasks"][0]["text"] = "sentense"
    (misnamed / "run.json").write_text(json.dumps(record))
    for name, message in [
        (misnamed, "'sentense'"),
        (misnamed, f"({misnamed / 'run.json'} names the rows and their columns)"),
        (tiny_bert, "is an encoder without heads; expected a trained run"),
        (tmp_path / "none", "none: no such folder"),
        (damaged, "run.json: is not the record of a run"),
    ]:
        flags = ["--split", "dev", "--output_dir", tmp_path / "new"]
        assert run_here(monkeypatch, name, *flags, recipe=PREDICT) == 2
        assert message in capsys.readouterr().err


DAMAGE = [
    *({"tasks": tasks} for tasks in ([{"kind": "binary"}], [3], ["no preset"], {"a": 1}, 3)),
    {"hidden_size": "x"},
]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_configuration_is_refused(tmp_path, run, damage):
    config = json.loads(Path(run, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | damage))
    with pytest.raises(InputError, match="its config.json is damaged"):
        TrainedRun.open(str(tmp_path))


def test_recipes_take_a_hub_id(tmp_path, run, hub, files):
    """In a fresh process. A pushed run has no run.json and no predictions: its rows are named, and predicted whole."""
    pushed = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    hub.add("me/run", {name: (run / name).read_bytes() for name in pushed})
    new, both, report = (tmp_path / name for name in ("new", "both", "report"))
    nli = json.dumps({"name": "nli", "files": {split: files[split] for split in ("train", "dev")}})
    flags = ["--split", "dev", "--data_dir", SAMPLE, "--tasks", "sts", nli, "--output_dir"]
    commands = [
        [PREDICT, "me/run", *flags, new],
        [ENSEMBLE, "me/run", new, *flags, both],
        [REPORT, "me/run", *flags, report],
    ]
    code = "import json, sys; from bert_multitask.__main__ import main\n"
    code += "for argv in json.loads(sys.argv[1]): sys.argv[1:] = argv; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps([list(map(str, command)) for command in commands])],
        env=hub.env(tmp_path / "cache") | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    rows = load_rows(TASKS["sts"], SAMPLE)["dev"]
    pairs = list(zip(rows["text"], rows["text_pair"], strict=True))
    expected = MultitaskPipeline(str(run)).table("sts", pairs)  # cut to the run's length, which the tokenizer says
    for folder in (new, both):
        assert sorted(path.name for path in folder.glob("*.parquet")) == ["nli-dev.parquet", "sts-dev.parquet"]
        table = read_predictions(folder / "sts-dev.parquet").table
        assert table["id"][:] == rows["id"][:]
        np.testing.assert_allclose(table["score"][:], expected["score"][:], atol=1e-5)
    scores = json.loads((both / "ensemble.json").read_text())["scores"]["dev"]
    assert scores["me/run"] == pytest.approx(json.loads((new / "scores.json").read_text()))
    page = (report / "report.md").read_text(encoding="utf-8")
    assert f"| sts | {scores['me/run']['eval_sts_pearson']:.3f} |" in page and "| 150 | pearson |" in page
    assert "| 7 | accuracy |" in page


@pytest.mark.slow
def test_two_processes_predict_as_one(tmp_path, run, files):
    """One process is the run's own; of rows in odd numbers, and of a single row, of which one process has none."""
    frame = pd.read_csv(files["dev"])
    frame[:1].to_csv(tmp_path / "one.csv", index=False)
    nli = json.dumps({"name": "nli", "files": {"train": "none.csv", "dev": str(tmp_path / "one.csv")}})
    flags = ["--split", "dev", "--output_dir", str(tmp_path), "--tasks", "sst", "sts", nli]
    process = launch(run, *flags, processes=2, script=PREDICT)
    printed = finish(process)
    assert process.returncode == 0, printed
    alone = tables(run / "predictions", "dev")
    alone["nli"] = alone["nli"].select([0])
    for task, table in tables(tmp_path, "dev").items():
        same(table, alone[task])
    assert printed.count("predictions:") == 1, "one process speaks"


def test_several_runs_read_and_tokenise_once(monkeypatch, tmp_path, run):
    """Where their encodings agree; a third run, with shorter rows, has tokens of its own, of the same reading."""
    third = tmp_path / "third"
    shutil.copytree(run, third, ignore=shutil.ignore_patterns("checkpoint-*"))
    record = json.loads((run / "run.json").read_text())
    record["max_length"] = 8
    (third / "run.json").write_text(json.dumps(record))
    calls = []
    for module, name in ((trained_run, "read_run"), (trained_run, "load_rows"), (inference, "tokenise")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, n=name, **k: calls.append(n) or f(*a, **k))
    runs = [TrainedRun.open(str(folder)) for folder in (run, run, third)]
    first, second, short = (
        {task: predictions.table for task, predictions in member.tables.items()}
        for member in SplitTables(runs, "dev").members
    )
    assert calls.count("read_run") == 3, "once for each"
    assert calls.count("load_rows") == 3 and calls.count("tokenise") == 6
    for task in first:
        assert first[task][:] == second[task][:]
    assert any(first[task][:] != short[task][:] for task in first)


def test_each_run_has_its_own_tokens(monkeypatch, tmp_path, run):
    """Of the same rows, where one run's task was tokenised word by word, as beside tags in a group."""
    other, forms, tokenise = tmp_path / "other", [], inference.tokenise
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((other / "config.json").read_text())
    next(task for task in config["tasks"] if task["name"] == "sst")["word_by_word"] = True
    (other / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(inference, "tokenise", lambda task, *a: forms.append(task.word_by_word) or tokenise(task, *a))
    SplitTables([TrainedRun.open(str(folder)) for folder in (run, other)], "dev", tasks=["sst"])
    assert forms == [False, True]


def test_tasks_without_test_rows(monkeypatch, tmp_path, run, files, capsys):
    """Nothing to predict is a mistake; an ensemble of dev predictions needs no others."""
    task = json.dumps({"name": "nli", "files": {"train": files["train"], "dev": files["dev"]}})
    flags = ["--tasks", task, "--output_dir", tmp_path / "new"]
    assert run_here(monkeypatch, run, "--split", "test", *flags, recipe=PREDICT) == 2
    assert "run: none of its tasks has test rows" in capsys.readouterr().err and not (tmp_path / "new").exists()
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("checkpoint-*", "predictions"))
    assert run_here(monkeypatch, bare, bare, *flags, recipe=ENSEMBLE) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "ensemble.json",
        "nli-dev.csv",
        "nli-dev.parquet",
    ]


def test_an_ensemble_of_runs_predicts_what_they_have_not(monkeypatch, tmp_path, run):
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("checkpoint-*", "predictions"))
    assert run_here(monkeypatch, run, other, "--output_dir", tmp_path / "new", recipe=ENSEMBLE) == 0
    for split in ("dev", "test"):
        for task, table in tables(tmp_path / "new", split).items():
            same(table, tables(run / "predictions", split)[task])
    scores = json.loads((tmp_path / "new" / "ensemble.json").read_text())["scores"]["dev"]
    assert scores["all 2, mode"] == pytest.approx(scores[str(run)], abs=1e-4)
    assert (tmp_path / "new" / "nli-dev.csv").read_text().startswith("id,label,probability\n")


def test_an_ensemble_of_a_users_own_task_finds_its_rows(monkeypatch, tmp_path, run, capsys):
    """Whichever member knows where they are, for the scores and for a checkpoint that says nothing."""
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("run.json", "checkpoint-*", "predictions"))
    folder = tmp_path / "tables"
    shutil.copytree(run / "predictions", folder)
    assert run_here(monkeypatch, folder, bare, run, "--output_dir", tmp_path / "new", recipe=ENSEMBLE) == 0
    scores = json.loads((tmp_path / "new" / "ensemble.json").read_text())["scores"]["dev"]
    metrics = json.loads((run / "metrics.json").read_text())
    for name in (folder, bare, run):
        assert scores[str(name)]["eval_nli_accuracy"] == metrics["eval_nli_accuracy"]
    assert run_here(monkeypatch, folder, folder, "--output_dir", tmp_path / "none", recipe=ENSEMBLE) == 0
    assert "no scores" in capsys.readouterr().out


def test_a_record_says_where_the_rows_are(run, files):
    """All that a reader of the run needs, without the flags that it was trained with."""
    record = json.loads((run / "run.json").read_text())
    assert record["data_dir"] == SAMPLE and record["max_length"] == 16
    tasks = load_tasks(record["tasks"])
    assert tasks["sst"] == TASKS["sst"] and list(tasks) == ["sst", "sts", "nli"]
    assert tasks["nli"].files == {split: files[split] for split in ("train", "dev", "test")}
    assert tasks["nli"].text_pair == "hypothesis" and tasks["nli"].epochs == 1


def test_a_home_folder_in_names_and_flags(monkeypatch, tmp_path, run):
    """Where the shell leaves `~`: in YAML, in `--flag=~`, in Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    flags = ["--split", "dev", "--tasks", "sts", "--data_dir", SAMPLE]
    assert run_here(monkeypatch, "~/run", *flags, "--output_dir=~/new", recipe=PREDICT) == 0
    assert run_here(monkeypatch, "~/run", "~/new", *flags[:4], "--output_dir=~/both", recipe=ENSEMBLE) == 0
    same(read_predictions(tmp_path / "both/sts-dev.parquet").table, tables(run / "predictions", "dev")["sts"])


def test_a_run_on_files_of_ones_own(monkeypatch, tmp_path, tiny_bert, files, capsys):
    """Its record does not name the course's data. Stopped, its folder has checkpoints and no model; it goes on, and is
    read, also as older versions recorded it, with the default of --data_dir."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "dev"):
        shutil.copy(files[split], f"{split}.csv")
    fields = {"name": "nli", "kind": "classification", "text": "premise", "label": "gold", "label_names": NAMES}
    fields |= {"epochs": 30, "files": {"train": "train.csv", "dev": "dev.csv"}}
    Path("nli.yaml").write_text(json.dumps({"model_name_or_path": tiny_bert, "tasks": [fields], "output_dir": "run"}))
    steps = ["--max_steps", 11, "--eval_strategy", "no", "--save_steps", 5, "--report_to", "none"]
    run_killed(monkeypatch, 11, "nli.yaml", *steps)
    shutil.copytree("run/checkpoint-10", "trained/checkpoint-10")  # as Trainer leaves it, without a recipe
    for name, by in {"run": "--resume_from_checkpoint", "trained": r"trainer.save_model\(\)"}.items():
        message = f"{name} has no config.json; finish its training with {by}, .*: {name}/checkpoint-10$"
        for look in (MultitaskPipeline, lambda name: SplitTables([name], "dev")):
            with pytest.raises(InputError, match=message):
                look(name)
    assert MultitaskPipeline("run/checkpoint-10")("nli", "A dog.")["label"] in NAMES
    assert run_here(monkeypatch, "nli.yaml", *steps, "--resume_from_checkpoint", recipe="train") == 0
    record = json.loads(Path("run/run.json").read_text())
    assert record["data_dir"] is None and record["run"]["data_dir"] is None
    assert run_here(monkeypatch, "run", "--output_dir", "report", recipe=REPORT) == 0
    assert "CS224N" not in Path("report/report.md").read_text()
    old = record | {"data_dir": HANDOUT, "run": record["run"] | {"data_dir": HANDOUT}}
    for number, each in enumerate((record, old)):
        Path("run/run.json").write_text(json.dumps(each))
        assert run_here(monkeypatch, "run", "--split", "dev", "--output_dir", f"new{number}", recipe=PREDICT) == 0
        found = [Path(folder, "nli-dev.parquet") for folder in (f"new{number}", "run/predictions")]
        same(*(read_predictions(path).table for path in found))
