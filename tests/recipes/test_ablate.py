"""Studies: what a variant changes, what goes on after a stop, and the scores of halves and seeds."""

import json
import runpy
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_here, write_course

from bert_multitask.evaluation.intervals import Scores
from bert_multitask.evaluation.tables import read_decisions
from bert_multitask.inference.split_tables import SplitTables
from bert_multitask.model.errors import InputError

ABLATE = ROOT / "recipes/ablate.py"


def test_the_shipped_best_settings_are_the_study_s():
    study = yaml.safe_load((ROOT / "recipes/studies/levers.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "bert_multitask/configs/best.yaml").read_text())
    found = runpy.run_path(str(ABLATE))["change"](study["base"], study["variants"][study["reference"]])
    kept = {*study["base"], *study["variants"]["best"]} - {"tf32", "eval_strategy", "load_best_model_at_end"}
    kept -= {"save_total_limit", "report_to"}
    assert {name: shipped[name] for name in kept} == {name: found[name] for name in kept}


def test_the_settings_for_bert_are_the_best_ones_without_the_cosine():
    best, bert = (
        yaml.safe_load((ROOT / f"bert_multitask/configs/{name}.yaml").read_text()) for name in ("best", "best_bert")
    )
    own = {"model_name_or_path", "learning_rate", "output_dir", "tasks"}
    assert {name: bert[name] for name in bert.keys() - own} == {name: best[name] for name in best.keys() - own}
    assert bert["tasks"][:2] == best["tasks"][:2]
    left = best["tasks"][2].items() - bert["tasks"][2].items()
    assert dict(left) == {"pair_encoding": "separate", "pooling": "mean", "head": "scaled_cosine"}


def test_a_variant_may_change_a_preset():
    change = runpy.run_path(str(ABLATE))["change"]
    assert change({"tasks": ["sst", "sts"]}, {"tasks": {"sts": {"head": "linear"}}})["tasks"] == [
        {"preset": "sst"},
        {"preset": "sts", "head": "linear"},
    ]
    with pytest.raises(InputError, match="a variant changes the task 'sts'"):
        change({}, {"tasks": {"sts": {"head": "linear"}}})


@pytest.fixture
def study(tmp_path, tiny_bert) -> list:
    """A study of two variants and two seeds, and the flags that run it."""
    content = {
        "base": {
            "model_name_or_path": tiny_bert,
            "tasks": [{"preset": "sst", "epochs": 1}, {"preset": "sts", "epochs": 1}],
            **{"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "max_length": 32},
        },
        "reference": "plain",
        "seeds": [0, 1],
        "variants": {
            "plain": {},
            "mean": {"learning_rate": 1e-4, "tasks": {"sts": {"pooling": "mean"}}},
            "alone": {"tasks": [{"preset": "sts", "epochs": 1}]},
        },
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return [path, "--data_dir", write_course(tmp_path / "data"), "--output_dir", tmp_path / "out"]


def test_a_study(monkeypatch, study, trained_here, tmp_path, capsys):
    out, others = tmp_path / "out", ["mean-seed0", "alone-seed0", "mean-seed1", "alone-seed1"]
    assert run_here(monkeypatch, *study, "--only", "plain", recipe=ABLATE) == 0
    assert run_here(monkeypatch, *study, recipe=ABLATE) == 0
    assert trained_here == ["plain-seed0", "plain-seed1", *others], "each once"
    alone_is_compared_where_it_can_be(out)
    tasks = {name: json.loads((out / f"{name}-seed1/config.json").read_text())["tasks"] for name in ("plain", "mean")}
    assert [task["pooling"] for task in tasks["plain"]] == [None, None]
    assert [task["pooling"] for task in tasks["mean"]] == [None, "mean"]
    runs = {
        (name, seed): json.loads((out / f"{name}-seed{seed}" / "run.json").read_text())["training"]
        for name in ("plain", "mean")
        for seed in (0, 1)
    }
    assert {key: (run["learning_rate"], run["seed"]) for key, run in runs.items()} == {
        ("plain", 0): (1e-5, 0),
        ("plain", 1): (1e-5, 1),
        ("mean", 0): (1e-4, 0),
        ("mean", 1): (1e-4, 1),
    }
    results = json.loads((out / "study.json").read_text())["results"]
    for column, key in {"sst": "eval_sst_accuracy", "sts": "eval_sts_pearson", "overall": "eval_overall"}.items():
        scores = {
            name: [json.loads((out / f"{name}-seed{seed}/metrics.json").read_text())[key] for seed in (0, 1)]
            for name in ("plain", "mean")
        }
        for name, values in scores.items():
            found = results[name]["all"][column]
            assert (found["mean"], found["sd"]) == pytest.approx((mean(values), stdev(values)), abs=1e-6)
        change = results["mean"]["all"][column]["difference"]
        assert change["value"] == pytest.approx(mean(scores["mean"]) - mean(scores["plain"]), abs=1e-6)
        assert change["low"] <= change["value"] <= change["high"]
        assert "difference" not in results["plain"]["all"][column]
    halves = [results["plain"][part]["sst"]["mean"] for part in ("half A", "half B")]
    assert mean(halves) == pytest.approx(results["plain"]["all"]["sst"]["mean"]), "of 6 rows 3 and 3"
    assert "| mean | 2 |" in (out / "study.md").read_text() and "| mean | 2 |" in capsys.readouterr().out


def alone_is_compared_where_it_can_be(out: Path):
    """A variant with fewer tasks: the paired bootstrap of the task that both have, and no overall score."""
    found = json.loads((out / "study.json").read_text())["results"]["alone"]
    assert found["all"].keys() == {"seeds", "sts"}
    tables = SplitTables([str(out / f"{name}-seed{seed}") for name in ("alone", "plain") for seed in (0, 1)], "dev")
    labels, scores = {"sts": tables.labels["sts"]}, []
    for member in tables.members:
        scores.append(Scores({"sts": tables.tasks["sts"]}, {"sts": read_decisions(*member.tables["sts"][:2])}, labels))
    drawn = [own.resamples["sts"] - other.resamples["sts"] for own, other in zip(scores[:2], scores[2:], strict=True)]
    change = found["all"]["sts"]["difference"]
    assert (change["low"], change["high"]) == pytest.approx(np.quantile(np.mean(drawn, axis=0), [0.025, 0.975]))
    rows = [line for line in (out / "study.md").read_text().splitlines() if line.startswith("| alone |")]
    assert len(rows) == 3 and all(row.startswith("| alone | 2 | – | ") and row.endswith(" | – |  |") for row in rows)


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({"reference": "none"}, [], "study.yaml: expected the fields"),
        ({"runs": 3}, [], "study.yaml: expected the fields"),
        ({"variants": {"plain": {"tasks": {"quora": {}}}}}, [], "changes the task 'quora'; the base has sst, sts"),
        ({}, ["--only", "best"], "--only names 'best'; the variants are"),
    ],
    ids=["reference", "field", "task", "only"],
)
def test_what_is_no_study(monkeypatch, study, trained_here, capsys, change, flags, message):
    study[0].write_text(yaml.safe_dump(yaml.safe_load(study[0].read_text()) | change))
    assert run_here(monkeypatch, *study, *flags, recipe=ABLATE) == 2
    assert message in capsys.readouterr().err and not trained_here


def test_a_study_that_has_changed_is_refused(monkeypatch, study, trained_here, tmp_path, capsys):
    """Its finished runs would stand for variants that they are not."""
    assert run_here(monkeypatch, *study, "--only", "plain", "--seeds", 0, recipe=ABLATE) == 0
    content = yaml.safe_load(study[0].read_text())
    content["variants"]["mean"]["learning_rate"] = 1e-3  # which has no run yet
    study[0].write_text(yaml.safe_dump(content))
    assert run_here(monkeypatch, *study, "--only", "plain", "--seeds", 0, recipe=ABLATE) == 0
    content["base"]["max_steps"] = 1
    study[0].write_text(yaml.safe_dump(content))
    assert run_here(monkeypatch, *study, "--only", "plain", recipe=ABLATE) == 2
    message = "plain-seed0 cannot be resumed with other settings: max_steps was 2 and is 1; use the flags"
    assert message in capsys.readouterr().err
    assert trained_here == ["plain-seed0"]
