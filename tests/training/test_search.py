"""The hyperparameter search: its trials against plain runs, a killed search against one that was not, and its files."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import ROOT, finish, launch, run_here, write_course
from matplotlib.figure import Figure
from optuna.trial import TrialState
from transformers import TrainerControl, TrainerState

from bert_multitask.data.rows import load_rows
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS
from bert_multitask.reporting.plots import search_overview
from bert_multitask.training import run as training
from bert_multitask.training import search as tuning
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.search import ReportToTrial, find_importances
from bert_multitask.training.search_space import (
    configure,
    describe_first,
    include_given,
    present_settings,
    read_space,
    to_flags,
)
from bert_multitask.training.yaml_file import CONFIGS

TUNE = "tune"
DEFAULT = CONFIGS / "tune.yaml"
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "weight_decay": {"low": 0, "high": 0.5},
    "head_dropout.sst": {"low": 0, "high": 0.5},
    "smart_weight.sts": [0.5, 1],
    "bregman_weight": [0.25, 0.5],
}
COMMON = ["--max_steps", 8, "--eval_steps", 4, "--save_steps", 4, "--logging_steps", 2, "--seed", 3]
SCORES = ("eval_sst_accuracy", "eval_quora_accuracy", "eval_sts_pearson", "eval_overall")


def flags_of(config, folder, *flags, space=SPACE) -> list:
    """The command line of a search."""
    return [config, "--output_dir", folder, "--search", json.dumps(space), *COMMON, *flags]


def search(monkeypatch, config, folder, *flags, space=SPACE, draw=False) -> list[dict[str, str]]:
    """Run the recipe; the rows of its table. The picture takes as long as two trials."""
    if not draw:
        monkeypatch.setattr("bert_multitask.reporting.plots.search_overview", lambda **_: Figure())
    assert run_here(monkeypatch, *flags_of(config, folder, *flags, space=space), recipe=TUNE) == 0
    return read_table(folder)


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def history(folder: Path) -> list[dict]:
    """What a run logged, but for what a clock measured."""
    entries = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: entry[key] for key in entry if not re.search("_runtime|_per_second", key)} for entry in entries]


def compare_with_plain_run(monkeypatch, config, folder, row, *flags) -> None:
    """Train with the values of a trial's row as flags: it logs the same, and ends with the same scores."""
    flags = [*COMMON, *flags, "--learning_rate", row["learning_rate"], "--weight_decay", row["weight_decay"]]
    flags += ["--head_dropout", json.dumps({"sst": float(row["head_dropout.sst"]), "sts": 0.1})]
    flags += ["--smart_weight", json.dumps({"sts": float(row["smart_weight.sts"])})]
    flags += ["--bregman_weight", row["bregman_weight"]]
    plain = folder.parent / f"plain-{row['trial']}"
    assert run_here(monkeypatch, config, "--output_dir", plain, *flags) == 0
    metrics = json.loads((plain / "metrics.json").read_text())
    assert {key: float(row[key]) for key in SCORES} == {key: metrics[key] for key in SCORES}
    assert float(row["score"]) == metrics["eval_overall"]
    logged = history(plain)
    assert {"loss", "smart_sts", "bregman_sst", "eval_overall"} <= set().union(*logged)
    assert history(folder / "trials" / row["trial"])[: len(logged)] == logged


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_bert) -> tuple[Path, Path]:
    """A configuration, and the folder of a search of three trials with it."""
    config, data = tmp_path_factory.mktemp("search") / "tiny.yaml", tmp_path_factory.mktemp("rows") / "data"
    write_course(data)
    settings = {
        "model_name_or_path": tiny_bert,
        "data_dir": str(data),
        "task_epochs": {"sst": 2, "quora": 1, "sts": 2},
        "head_dropout": {"sst": 0.25, "sts": 0.1},
        "learning_rate": 2e-4,
        "warmup_steps": 0.5,
        "per_device_train_batch_size": 4,
        "max_length": 32,
        "report_to": "none",
        "disable_tqdm": True,
    }
    config.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as monkeypatch:
        search(monkeypatch, config, config.parent / "search", "--n_trials", 3, draw=True)
    return config, config.parent / "search"


def test_a_trial_is_a_plain_run(monkeypatch, searched):
    """Whatever ran before it."""
    config, folder = searched
    table = read_table(folder)
    assert [(row["trial"], row["state"], row["step"]) for row in table] == [(str(n), "complete", "8") for n in range(3)]
    assert all(len({row[name] for row in table}) == 3 for name in ("learning_rate", "weight_decay", "head_dropout.sst"))
    for row in (table[0], table[2]):
        compare_with_plain_run(monkeypatch, config, folder, row)
    assert not [*(folder / "trials").rglob("*.safetensors")], "no weights stay"


@pytest.mark.slow
def test_a_trial_of_a_bert_per_task_is_a_plain_run(monkeypatch, searched, tmp_path):
    """Whose best weights are kept by task; by the paper's Adam, whose settings Trainer takes when it is built."""
    reads = []
    monkeypatch.setattr(training, "load_rows", lambda task, *rest: reads.append(task.name) or load_rows(task, *rest))
    flags = ["--encoder_sharing", "per_task", "--paper_optimizer"]
    table = search(monkeypatch, searched[0], tmp_path / "search", "--n_trials", 2, *flags)
    assert reads == ["sst", "quora", "sts"], "rows are read once"
    compare_with_plain_run(monkeypatch, searched[0], tmp_path / "search", table[1], *flags)
    assert not [*(tmp_path / "search").rglob("*.safetensors")]


@pytest.mark.slow
def test_trials_side_by_side_are_plain_runs(monkeypatch, searched, tmp_path, capsys):
    """The first is the flags, as of a search of one trial after the other; there are as many as asked for, also after
    a stop, and none twice."""
    config, folder = searched[0], tmp_path / "search"
    table = search(monkeypatch, config, folder, "--n_trials", 3, "--jobs", 2)
    assert [(row["trial"], row["state"]) for row in table] == [(str(n), "complete") for n in range(3)]
    assert table[0] | {"seconds": 0} == read_table(searched[1])[0] | {"seconds": 0}
    assert len({row["learning_rate"] for row in table}) == 3
    for row in table:
        compare_with_plain_run(monkeypatch, config, folder, row)
    assert not [*(folder / "trials").rglob("*.safetensors")]
    printed = capsys.readouterr().out
    assert all(printed.count(f"trial {number} complete") for number in range(3))
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    study.ask()  # as of a search that was killed
    assert len(search(monkeypatch, config, folder, "--n_trials", 4, "--jobs", 2)) == 4


def test_the_first_trial_is_the_flags_and_the_best_ends_as_yaml(monkeypatch, searched):
    """Which train_multitask.py trains as it is."""
    config, folder = searched
    table = read_table(folder)
    assert (float(table[0]["learning_rate"]), float(table[0]["weight_decay"])) == (2e-4, 0)
    assert float(table[0]["head_dropout.sst"]) == 0.25
    best = max(table, key=lambda row: float(row["score"]))
    settings, given = (yaml.safe_load(path.read_text()) for path in (folder / "best.yaml", config))
    assert settings.pop("head_dropout") == {"sst": float(best["head_dropout.sst"]), "quora": 0.3, "sts": 0.1}
    assert settings.pop("smart_weight") == {"sst": 0, "quora": 0, "sts": float(best["smart_weight.sts"])}
    searched_too = {name: float(best[name]) for name in ("learning_rate", "weight_decay", "bregman_weight")}
    typed = {name.removeprefix("--"): value for name, value in zip(COMMON[::2], COMMON[1::2], strict=True)}
    del given["head_dropout"]
    assert settings.pop("tasks") == ["sst", "quora", "sts"]
    assert settings == given | typed | searched_too | {"output_dir": str(folder / "best")}
    assert run_here(monkeypatch, folder / "best.yaml") == 0
    assert json.loads((folder / "best" / "metrics.json").read_text())["eval_overall"] == float(best["score"])


@pytest.mark.slow
def test_a_killed_search_goes_on_as_it_would_have(monkeypatch, searched, tmp_path):
    """Killed by SIGKILL in its second trial: that one is done again, the one before is kept."""
    config, whole = searched
    command = [sys.executable, "-m", "bert_multitask", TUNE, *flags_of(config, tmp_path / "search", "--n_trials", 3)]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (tmp_path / "search" / "trials" / "1" / "history.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None, "no second trial to kill"
        time.sleep(0.02)
    process.kill()
    process.wait()
    storage = {"study_name": "search", "storage": f"sqlite:///{tmp_path / 'search' / 'study.db'}"}
    states = [trial.state for trial in optuna.load_study(**storage).get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]
    before = read_table(tmp_path / "search")

    table = search(monkeypatch, config, tmp_path / "search", "--n_trials", 3)
    assert table[:1] == before and len(table) == 3, "what has finished is kept, and counts"
    assert not [*(tmp_path / "search" / "trials").rglob("*.safetensors")]
    for one, other in zip(read_table(whole), table, strict=True):
        same = one.keys() - {"trial", "seconds"}
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    states = [trial.state for trial in optuna.load_study(**storage).get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert search(monkeypatch, config, tmp_path / "search", "--n_trials", 2) == table, "there is nothing to do"


def test_a_search_that_was_stopped_in_its_first_trial(monkeypatch, searched, tmp_path, capsys):
    """Begins with the flags again. What is searched may stand in the configuration, and so may a task."""
    settings = yaml.safe_load(searched[0].read_text()) | {"n_trials": 1, "search": {"learning_rate": [1e-4, "2e-4"]}}
    fourth = vars(TASKS["sst"]) | {"name": "fourth", "hub": None}
    settings |= {
        "tasks": ["sts", {key: value for key, value in fourth.items() if value}],
        "head_dropout": {"fourth": 0.1},
    }
    config, folder = tmp_path / "search.yaml", tmp_path / "search"
    config.write_text(yaml.safe_dump(settings))
    flags = [config, "--output_dir", folder, *COMMON, "--tasks", "fourth", "--task_epochs", "{}"]
    with monkeypatch.context() as patch:
        patch.setattr(tuning.MultitaskTrainer, "train", stop)
        assert run_here(monkeypatch, *flags, recipe=TUNE) == 130
    error = capsys.readouterr().err
    assert "stopped by SIGINT; the same command goes on with the search" in error and "Traceback" not in error
    assert run_here(monkeypatch, *flags, recipe=TUNE) == 0
    (row,) = read_table(folder)
    assert (row["trial"], float(row["learning_rate"])) == ("1", 2e-4)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert not {"n_trials", "search"} & best.keys()
    assert [task["name"] for task in best["tasks"]] == ["fourth"] and row["eval_fourth_accuracy"]


def stop(*_, **__):
    """As Ctrl-C does."""
    raise KeyboardInterrupt


class PruneLaterTrials(optuna.pruners.BasePruner):
    """Ends every trial but the first at its first evaluation."""

    def prune(self, study, trial) -> bool:
        return trial.number > 0


def test_pruned_trials(monkeypatch, searched, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda **given: asked.append(given) or PruneLaterTrials())
    table = search(monkeypatch, searched[0], tmp_path / "search", "--n_trials", 2)
    assert [given for given in asked if given] == [{"n_warmup_steps": 8 // 3}]
    assert [(row["state"], row["step"]) for row in table] == [("complete", "8"), ("pruned", "4")]
    for row in table:
        entries = history(tmp_path / "search" / "trials" / row["trial"])
        assert max(entry["step"] for entry in entries) == int(row["step"]), "training ended there"
        (score,) = {entry["eval_overall"] for entry in entries if entry["step"] == 4 and "eval_overall" in entry}
        assert row["state"] == "complete" or (float(row["score"]), row["eval_overall"]) == (score, "")
    assert "number 0" in (tmp_path / "search" / "best.yaml").read_text().splitlines()[0], "a pruned trial is no best"
    assert not [*(tmp_path / "search").rglob("checkpoint-*")]
    printed = capsys.readouterr().out
    assert printed.count("trial 1 pruned") == 1
    assert "8 steps of up to 4 rows" in printed and f"trial 1 pruned: eval_overall {score:.4f}; best of 2:" in printed


def test_the_median_pruner_ends_what_lags_behind():
    """Fed with what evaluations would report: below the median of whole trials at a step, after a third of the plan."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_warmup_steps=10))
    curves = [[0.1 * number, 0.2 * number, 0.3 * number] for number in range(1, 6)]
    ends = []
    for curve in [*curves, [0.0, 0.59, 0.9], [0.0, 0.61, 0.89], [0.0, 0.61, 0.91]]:
        trial = study.ask()
        report = ReportToTrial(trial, "eval_overall")
        for step, score in zip((5, 15, 25), curve, strict=True):
            control = TrainerControl()
            report.on_evaluate(None, TrainerState(global_step=step, max_steps=30), control, {"eval_overall": score})
            if control.should_training_stop:
                break
        ends.append((step, report.pruned))
        study.tell(trial, state=TrialState.PRUNED) if report.pruned else study.tell(trial, curve[-1])
    assert ends == [(25, False)] * 5 + [(15, True), (25, True), (25, False)]


def test_the_score_is_what_picks_the_best_checkpoint(monkeypatch, searched, tmp_path):
    folder = tmp_path / "search"
    (row,) = search(monkeypatch, searched[0], folder, "--n_trials", 1, "--metric_for_best_model", "eval_sts_loss")
    losses = [entry["eval_sts_loss"] for entry in history(folder / "trials" / "0") if "eval_sts_loss" in entry]
    assert float(row["score"]) == min(losses) and len(losses) == 3
    assert f"number 0: eval_sts_loss {min(losses):.4f}" in (folder / "best.yaml").read_text()
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    assert study.direction == optuna.study.StudyDirection.MINIMIZE


def test_a_trial_that_diverges_counts_as_the_worst(monkeypatch, searched, tmp_path):
    flags = ["--n_trials", 1, "--eval_strategy", "no", "--max_grad_norm", 0]
    (row,) = search(monkeypatch, searched[0], tmp_path / "search", *flags, space={"learning_rate": [1e30]}, draw=True)
    assert row["state"] == "complete" and float(row["score"]) == -math.inf
    assert row["eval_overall"] == "" and (tmp_path / "search" / "search.png").exists()


def test_a_folder_holds_one_search(monkeypatch, searched, tmp_path, capsys):
    config, folder = searched[0], tmp_path / "search"
    shutil.copytree(searched[1], folder)
    before = read_table(folder)
    for other, message in [
        (["--weight_decay", 0.01], "cannot be resumed with other settings: weight_decay was 0.0 and is 0.01"),
        (["--eval_steps", 2], "cannot be resumed with other settings: eval_steps was 4 and is 2"),
        (["--search", '{"learning_rate": [1e-4, 1e-3]}'], "other settings: search was {"),
        (["--output_dir", config.parent], "exists and holds no search; choose another folder"),
        (["--resume_from_checkpoint"], "a search goes on by the command that began it"),
        (["--n_trials", 0], "--n_trials is 0; expected at least 1"),
    ]:
        assert run_here(monkeypatch, *flags_of(config, folder, "--n_trials", 4), *other, recipe=TUNE) == 2, other
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert read_table(folder) == before
    (folder / "best").mkdir(exist_ok=True)  # another test may have trained the best settings there
    (folder / "thesis.txt").write_text("keep me")
    (anew,) = search(monkeypatch, config, folder, "--n_trials", 1, "--overwrite", "--weight_decay", 0.2)
    assert (folder / "best").exists() and (folder / "thesis.txt").exists(), "they are not the search's"
    assert float(anew["weight_decay"]) == 0.2 and [path.name for path in (folder / "trials").iterdir()] == ["0"]
    (folder / "study.db").write_text("cut off")
    assert run_here(monkeypatch, *flags_of(config, folder), recipe=TUNE) == 2
    assert "study.db: is not a study" in capsys.readouterr().err


def test_without_optuna(monkeypatch, config, capsys):
    monkeypatch.setattr(tuning, "is_optuna_available", lambda: False)
    assert run_here(monkeypatch, config, recipe=TUNE) == 2
    assert "a search needs optuna: pip install '.[tune]'" in capsys.readouterr().err
    assert not (config.parent / "run").exists()


def arguments(**flags) -> tuple[RunArguments, MultitaskTrainingArguments]:
    return RunArguments(**flags), MultitaskTrainingArguments(output_dir="unused", report_to="none")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": [1e-5]}, "learning_rat cannot be searched; choose from learning_rate"),
        ({"seed": [1, 2]}, "seed cannot be searched"),
        ({"learning_rate.sst": [1e-5]}, "learning_rate.sst cannot be searched"),
        ({"head_dropout.nli": [0.1]}, "head_dropout.nli, but the tasks of this run are sst, quora, sts"),
        (
            {"head_dropout": [0.1], "head_dropout.sst": [0.1]},
            "head_dropout is of all tasks, and head_dropout.sst of one",
        ),
        ({"head_dropout.sst": {"low": 0, "high": 1}}, "task 'sst': dropout is 1.0; expected a probability in [0, 1)"),
        ({"smart_weight": [-1, 1]}, "smart_weight is -1.0; expected a factor of at least 0"),
        ({"weight_decay": {"low": -0.1, "high": 0.1}}, "--weight_decay is -0.1; expected 0 or more"),
        ({"encoder_dropout": [0.1, 1.5]}, "--encoder_dropout is 1.5"),
        ({"lr_scheduler_type": ["linear", "fast"]}, "lr_scheduler_type: fast is not a valid SchedulerType"),
        ({"smart_projection": ["cube"]}, "--smart_projection is 'cube'"),
        ({"lr_scheduler_type": {"low": 0, "high": 1}}, "expected a list of choices"),
        ({"learning_rate": {"low": 1e-3, "high": 1e-5}}, "with low < high"),
        ({"learning_rate": {"low": 0, "high": 1e-5, "log": True}}, "log: true} with low above 0, or a list of numbers"),
        ({"learning_rate": {"low": 0, "high": 1e-5, "log": "yes"}}, "with low < high"),
        ({"learning_rate": {"low": 0, "high": 1, "step": 0.1}}, "expected {low: …, high: …} with low < high"),
        ({"learning_rate": {"low": "small", "high": "large"}}, "expected {low: …, high: …} with low < high"),
        ({"learning_rate": []}, "expected {low: …, high: …} with low < high"),
        ({"learning_rate": 1e-5}, "or a list of numbers"),
        ({}, "names nothing to search"),
        ("nowhere.yaml", "--search nowhere.yaml: no such configuration file"),
        ('{"learning_rate": [1', "which is not JSON"),
    ],
    ids=str,
)
def test_mistakes_in_a_space(space, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_space(space, *arguments())


def test_a_file_that_is_no_space(tmp_path):
    for text, message in (("- learning_rate", "expected lines `flag:"), ("a: [", "not a YAML file")):
        (tmp_path / "space.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read_space(str(tmp_path / "space.yaml"), *arguments())


def test_the_default_space_is_the_papers_with_a_perturbation_that_counts():
    """Section 4.5: the weight of SMART, the dropout of each task, the learning rate, the weight decay. And the size of
    SMART's perturbation, since the paper's changes next to nothing."""
    space = read_space(None, *arguments())
    assert space == read_space(str(DEFAULT), *arguments())
    assert {name.partition(".")[0] for name in space} == {
        "smart_weight",
        "head_dropout",
        "learning_rate",
        "weight_decay",
        "smart_radius",
        "smart_step_size",
    }
    assert {name for name in space if "dropout" in name} == {f"head_dropout.{task}" for task in ("sst", "quora", "sts")}
    weights = {name: values for name, values in space.items() if name.startswith("smart_weight")}
    assert weights == {"smart_weight.sst": [0, 1, 5], "smart_weight.quora": [0], "smart_weight.sts": [0, 1, 5]}
    assert space["learning_rate"] == {"low": 5e-6, "high": 2e-4, "log": True}, "YAML reads 5e-6 as a word"
    sizes = {"smart_radius", "smart_step_size"}
    assert present_settings(space, *arguments()).keys() == space.keys() - sizes, "the other flags' defaults lie in it"
    assert not [
        name for name in read_space(str(DEFAULT), *arguments(tasks=["sst"])) if "quora" in name or "sts" in name
    ]


OWN = [
    {"name": "a", "kind": "binary", "label_names": ["no", "yes"], "dropout": 0.6, "smart_weight": 2},
    {"name": "b", "kind": "regression"},
]


def test_the_default_space_is_of_any_tasks_and_has_what_the_user_set():
    run, args = arguments(tasks=list(map(json.dumps, OWN)), smart_weight={"a": 2})
    args.learning_rate = 1e-3
    shipped, given = read_space(None, run, args), {"learning_rate", "smart_weight"}
    assert {name for name in shipped if "." in name} == {
        f"{flag}.{task}" for flag in ("head_dropout", "smart_weight") for task in "ab"
    }
    space = include_given(shipped, run, args, given)
    assert space["learning_rate"] == {"low": 5e-6, "high": 1e-3, "log": True}
    assert (space["head_dropout.a"]["high"], space["smart_weight.a"]) == (0.6, [0, 1, 5, 2])
    assert {name for name in space if space[name] != shipped[name]} == {
        "learning_rate",
        "head_dropout.a",
        "smart_weight.a",
    }
    first = present_settings(space, run, args)
    expected = {"learning_rate": 1e-3, "weight_decay": 0, "head_dropout.a": 0.6, "head_dropout.b": 0.3}
    assert first == expected | {"smart_weight.a": 2, "smart_weight.b": 0}, "all but the defaults of SMART's sizes"
    wider = describe_first(space, shipped, first, given)
    assert len(wider) == 3 and wider[0].startswith("learning_rate: searched from 5e-06 to 0.001,")
    (outside,) = describe_first(shipped, shipped, present_settings(shipped, run, args), given)
    assert "not in the search space: your learning_rate, head_dropout.a, smart_weight.a;" in outside


def test_a_star_is_of_the_tasks_without_their_own_entry():
    space = read_space({"head_dropout.*": [0.1], "head_dropout.sts": [0.2]}, *arguments())
    assert space == {"head_dropout.sst": [0.1], "head_dropout.quora": [0.1], "head_dropout.sts": [0.2]}
    with pytest.raises(InputError, match=r"learning_rate\.sst cannot be searched"):
        read_space({"learning_rate.*": [0.1]}, *arguments())


@pytest.mark.parametrize(
    ("space", "own", "is_searched"),
    [({}, 0, False), ({"smart_weight.sst": [0]}, 0, False), ({"smart_weight.sst": [0, 1]}, 0, True), ({}, 1, True)],
)
def test_smarts_sizes_are_searched_where_it_can_be_on(space, own, is_searched):
    space |= {"smart_radius": [0.1], "learning_rate": [1e-5]}
    assert ("smart_radius" in read_space(space, *arguments(smart_weight=own))) == is_searched


def test_the_pages_space_is_one():
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "tune.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(read_space(yaml.safe_load(block), *arguments())) == 6


def test_settings_become_flags():
    run, args = arguments(head_dropout={"sst": 0.2}, smart_weight=2)
    settings = {"head_dropout.sts": 0.4, "smart_weight": 0.5, "learning_rate": 3e-5}
    settings |= {"lr_scheduler_type": "constant", "warmup_steps": 0.1}
    assert to_flags(run, settings) == {
        "head_dropout": {"sst": 0.2, "quora": 0.3, "sts": 0.4},
        "smart_weight": 0.5,
        "learning_rate": 3e-5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0.1,
    }
    trial_run, trial_args = configure(run, args, settings)
    assert [(task.dropout, task.smart_weight) for task in trial_run.load_tasks()] == [
        (0.2, 0.5),
        (0.3, 0.5),
        (0.4, 0.5),
    ]
    assert (trial_args.learning_rate, trial_args.warmup_steps) == (3e-5, 0.1)
    assert trial_args.lr_scheduler_type == "constant_with_warmup", "as where the flag is typed"
    assert (args.learning_rate, run.smart_weight) == (1e-5, 2), "the search's own stay as they are"


def test_the_picture():
    space = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "smart_weight.sst": [0.0, 5.0]}
    values = [
        ("complete", 0.5, 1e-5, 0.0),
        ("complete", 0.7, 1e-4, 5.0),
        ("pruned", 0.4, 1e-3, 0.0),
        ("complete", -math.inf, 1e-3, 5.0),
    ]
    keys = ("state", "score", *space)
    trials = [{"trial": number} | dict(zip(keys, row, strict=True)) for number, row in enumerate(values)]
    figure = search_overview(trials, space, {"learning_rate": 0.8, "smart_weight.sst": 0.2}, "eval_overall")
    history, bars, *slices = figure.axes
    assert [(axis.get_xlabel(), axis.get_xscale()) for axis in slices] == [
        ("learning_rate", "log"),
        ("smart_weight.sst", "linear"),
    ]
    assert (history.get_xlabel(), history.get_ylabel(), slices[0].get_ylabel()) == (
        "trial",
        "eval_overall",
        "eval_overall",
    )
    places = [(0, 1), (1e-5, 1e-4), (0, 1)]  # of whole trials; choices stand beside each other
    for axis, (first, second) in zip((history, *slices), places, strict=True):
        complete, pruned = (collection.get_offsets().tolist() for collection in axis.collections)
        assert complete == [[first, 0.5], [second, 0.7]] and [point[1] for point in pruned] == [0.4]
        assert [line.get_xydata().tolist() for line in axis.lines][0] == [[second, 0.7]], "the best is ringed"
    assert [label.get_text() for label in slices[1].get_xticklabels()] == ["0", "5"]
    assert [bar.get_width() for bar in bars.patches] == [20, 80] and "%" in bars.get_xlabel()


def test_too_few_trials_do_not_say_what_mattered():
    """Of a made-up search, in which the learning rate is all that matters."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    settings, importances = ("learning_rate", "weight_decay"), []
    for number in range(1, 31):
        trial = study.ask()
        study.tell(trial, [trial.suggest_float(name, 0, 1) for name in settings][0])
        if number in (2, 3, 30):
            importances.append(find_importances(study, settings))
    assert importances[0] == {} and sum(importances[1].values()) == pytest.approx(1)
    assert importances[2]["learning_rate"] > 0.9
    figure = search_overview([], {name: [0.0, 1.0] for name in settings}, {}, "eval_overall")
    assert [text.get_text() for text in figure.axes[1].texts] == ["too few whole trials to say"]


TWO_PROCESSES = """
import sys
import optuna
tests = sys.argv.pop(1)
sys.path[:0] = [tests, f"{tests}/training"]
from test_search import PruneLaterTrials

from bert_multitask.commands.tune import main
optuna.pruners.MedianPruner = lambda **_: PruneLaterTrials()
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_search_together(monkeypatch, searched, tmp_path):
    """They try what one process tries, end a pruned trial together, and go on."""
    space = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}
    same = ["--encoder_dropout", 0, "--head_dropout", 0, "--n_trials", 3]
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda **_: PruneLaterTrials())
    one = search(monkeypatch, searched[0], tmp_path / "one", *same, space=space)
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    flags = flags_of(searched[0], tmp_path / "two", *same, "--per_device_train_batch_size", 2, "--use_cpu", space=space)
    launcher = {"script": tmp_path / "script.py", "launcher": "recipes/accelerate/cpu.yaml"}
    process = launch(ROOT / "tests", *flags, **launcher)
    printed = finish(process)
    assert process.returncode == 0, printed
    two = read_table(tmp_path / "two")
    for key in ("state", "step", "learning_rate"):
        assert [row[key] for row in two] == [row[key] for row in one], key
    scores = [[float(row["score"]) for row in table] for table in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
