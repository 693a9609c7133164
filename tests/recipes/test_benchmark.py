"""The benchmark runs, its two sides compute the same, and its cost model counts what PyTorch counts. What it measures
is no test's business."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from conftest import MINILM, ROOT, run_here
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from bert_multitask.data.rows import SAMPLE, load_rows
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS

RECIPE = ROOT / "recipes" / "benchmark.py"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    from benchmarks import scaling

    return scaling


def run_benchmark(*arguments) -> dict:
    """The result of a command of benchmark.py."""
    run = subprocess.run([sys.executable, RECIPE, *map(str, arguments), "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_exports_are_measured(monkeypatch, tmp_path, tiny_bert):
    pytest.importorskip("onnxruntime")
    few = ["--model_name_or_path", tiny_bert, "--max_steps", 1, "--report_to", "none", "--disable_tqdm", "true"]
    assert run_here(monkeypatch, "quickstart", *few, "--output_dir", tmp_path / "run", recipe="train") == 0
    dev = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for task, metric in (("sst", "accuracy"), ("sts", "pearson")):
        result = run_benchmark("export", "--run", tmp_path / "run", "--task", task, "--rounds", 1)
        torch_side, onnx, int8 = result[task]
        for side in (torch_side, onnx):
            assert side[f"dev {metric}"] == pytest.approx(dev[f"eval_{task}_{metric}"], abs=1e-4)
            assert side["largest difference"] < 1e-4 and side["rows/s"] > 0 and side["ms, a row alone"] > 0
        assert int8["MB"] < 0.4 * onnx["MB"] and 1e-5 < int8["largest difference"] < 0.1


SLOW = [
    pytest.param(what, marks=pytest.mark.slow)
    for what in ("train", "smart", "group", "predict", "ensemble", "ablate", "tokenize")
]


@pytest.mark.parametrize("what", ["import", *SLOW])
def test_benchmark(tiny_bert, what):
    pytest.importorskip({"predict": "sentence_transformers", "smart": "smart_pytorch"}.get(what, "torch"))
    flags = ([] if what == "tokenize" else ["--rounds", 1]) + (
        [] if what == "import" else ["--model_name_or_path", tiny_bert]
    )
    flags += ["--steps", 3] if what in ("train", "smart", "group", "ablate") else []
    flags += {"predict": ["--rows", 5], "tokenize": ["--pairs", 300]}.get(what, [])
    result = run_benchmark(what, *flags)
    assert all(value > 0 for key, value in result.items() if not key.startswith(("largest difference", "rise")))
    for key, value in result.items():
        if key.startswith("largest difference"):
            assert value < (1e-6 if what == "ensemble" else 1e-4), key
    if what == "train":
        assert result["peak memory of a step, MB, ours"] < result["peak memory of a step, MB, theirs"]
        assert 0 < result["share of our step outside forward, backward and optimizer"] < 1
    if what == "smart":
        assert "seconds of a SMART step by a plain one" in result
    if what == "predict":
        assert result["rows"] == 15
    if what == "tokenize":
        assert result["pairs"] == 300


def test_the_layouts_differ_as_they_should(scaling, tiny_bert):
    """A head has the same parameters in each; adapters are one or three times those of one."""
    from benchmarks.layouts import layouts

    options = Namespace(model_name_or_path=tiny_bert, data_dir=SAMPLE, bf16=False, steps=1, rounds=1)
    one, lora, adapters, three = layouts(options)["layouts"]
    encoder = MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst"]).base_model.num_parameters() / 1e6
    heads, adapter = one["million"] - encoder, lora["million"] - one["million"]
    assert three["million"] == pytest.approx(heads + 3 * encoder)
    assert adapters["million"] == pytest.approx(one["million"] + 3 * adapter)
    assert [row["trained"] for row in (one, lora, adapters, three)] == pytest.approx(
        [one["million"], heads + adapter, heads + 3 * adapter, three["million"]]
    )
    assert all(row["MB"] == pytest.approx(4 * row["million"], rel=0.1) for row in (one, lora, adapters, three))
    assert one["step"] == 1 and min(row["step"] for row in (lora, adapters, three)) > 0


def test_both_sides_compute_as_asked_in_each_round(scaling, tiny_bert):
    """Also in bf16 after fp32: Accelerate leaves its marks on a model, and would keep the first precision."""
    from benchmarks.rig import Rig

    rig = Rig(Namespace(model_name_or_path=tiny_bert, data_dir=SAMPLE, bf16=False, steps=1))
    for model, train in ((rig.model, rig.train), (rig.stock.model, rig.train_stock)):
        seen = []
        dense = model.bert.encoder.layer[0].intermediate.dense
        dense.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.dtype))
        for number, bf16 in enumerate((False, True, True, False)):
            rig.options.bf16 = bf16
            seen.clear()
            train(number)
            assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}, number


STAGES = "facts steps smart loop graphs predict parity runs seeds more_steps ceilings".split()
PRECISIONS = {"fp32", "tf32", "bf16"}


def run_stages(tiny_bert, folder) -> list[dict]:
    """What the stages of `benchmark.py gpu` report, but for the marks of their ends."""
    run_benchmark("gpu", "--tiny", "--model_name_or_path", tiny_bert, "--steps", 6, "--output_dir", folder)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line.get("done")] == STAGES
    return [line for line in lines if not line.get("done")]


@pytest.mark.slow
def test_gpu_stages_on_a_cpu(tiny_bert, tmp_path):
    """In the order that they have by default; the two sides compute the same."""
    lines = run_stages(tiny_bert, tmp_path)
    assert not [line for line in lines if {"error", "skipped", "stopped_after"} & line.keys()]
    stages = {stage: [line for line in lines if line["stage"] == stage] for stage in dict.fromkeys(STAGES)}
    sides = {stage: {line["side"] for line in stages[stage] if "side" in line} for stage in STAGES}
    both = {"stock sdpa", "ours"}
    assert sides["steps"] == sides["more_steps"] == sides["loop"] == sides["predict"] == both
    assert sides["smart"] == {"ours, plain", "ours, SMART"} and sides["graphs"] == {"ours"}
    plain, smart = (line["aten calls a step"] for line in stages["smart"])
    assert smart > 2 * plain
    assert {line["dtype"]: line["largest difference"] < 0.1 for line in stages["predict"]}.keys() == PRECISIONS
    outputs = [line for line in stages["parity"] if line["what"].startswith("‖out")]
    assert {line["dtype"] for line in outputs} == PRECISIONS
    assert all(outputs[0][side] < 1e-6 for side in (*both, "ours padded", "ours eager"))
    gradients = [line["value"] for line in stages["parity"] if "gradient" in line["what"]]
    assert len(gradients) == 3 and max(gradients) < 1e-5
    smart = [line for line in stages["parity"] if line["what"] == "SMART"]
    assert len(smart) == 6 and all(line["shared masks differ by"] == 0 < line["penalty"] for line in smart)
    trained = [run["scores"] for line in lines if "run" in line for run in line["seeds"].values()]
    assert len(trained) == 1 + 2 and all("eval_overall" in scores for scores in trained)


@pytest.fixture
def session(scaling, tmp_path):
    from benchmarks.session import Session

    return Session.begin(Namespace(budget=100), tmp_path / "new")


def reported(session) -> list[dict]:
    return [json.loads(line) for line in (session.folder / "results.jsonl").read_text().splitlines()]


def test_what_fails_does_not_stop_the_rest(session):
    def fail(*_):
        raise RuntimeError("no such kernel")

    session.measure("one", fail, rows=32)
    session.measure("one", lambda: {"ms": 1.5}, rows=256)
    session.run("two", fail)
    session.run("three", lambda session: session.report("three", found=True))
    one, other, two, _, three, _ = reported(session)
    assert (one["rows"], one["error"]) == (32, "RuntimeError: no such kernel")
    assert (other["rows"], other["ms"]) == (256, 1.5)
    assert "no such kernel" in two["error"] and three["found"]


def test_what_no_longer_fits_is_left_out(session):
    session.end = session.start + 5
    session.measure("one", lambda: {"ms": 1.5}, rows=32)
    session.run("two", lambda session: session.report("two"))
    assert all("10 needed" in line["skipped"] for line in reported(session))


def hang(session):
    time.sleep(1000)


def die(session):
    os.abort()


@pytest.mark.parametrize(
    ("stage", "most", "field"), [(hang, 1, "stopped_after"), pytest.param(die, 90, "error", marks=pytest.mark.slow)]
)
def test_a_stage_apart_is_stopped(session, stage, most, field):
    session.run_apart("apart", stage, most)
    (line,) = reported(session)
    assert line["stage"] == "apart" and field in line


@pytest.mark.slow
def test_what_a_machine_without_network_needs(tiny_bert, tmp_path):
    """Weights as fp16, of which a run makes fp32 again, and data."""
    result = run_benchmark("pack", "--model_name_or_path", tiny_bert, "--output_dir", tmp_path)
    assert result["model, MB"] > 0 and result["data, MB"] > 0 and result["wheels, MB"] == 0
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    model = MultitaskBertModel.from_pretrained(str(tmp_path / "model"), tasks=["sst"])
    assert model.dtype == torch.float32
    assert all(load_rows(TASKS[name], str(tmp_path / "data"))["train"] for name in ("sst", "quora", "sts"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([{"kind": "evaluate"}], "kind is 'evaluate'; choose one of predict, train, smart"),
        ([{"length": "long"}], "length is 'long'; expected at least 2 tokens, or mix"),
        ([{"width": 100}], "width 100 must be a multiple of heads 12"),
        ([{"batch": 3}], "expected a YAML list of rows, length"),
        ([{"held_out": True}], "holds out every setting"),
    ],
)
def test_wrong_settings(scaling, tmp_path, settings, words):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(scaling.InputError, match=words):
        scaling.read_settings(str(path))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["tokenize", "--data_dir", "no/folder"], "error: --data_dir no/folder: no such folder"),
        (["scale", "--settings", "none.yaml"], "error: --settings none.yaml: expected a YAML list"),
        (["pack"], "error: --output_dir is required"),
        (["train", "--rounds", "0"], "error: argument --rounds: invalid positive value: '0'"),
        (
            ["smart"],
            "error: import of smart_pytorch halted; None in sys.modules; the peers come with: pip install '.[bench",
        ),
    ],
)
def test_wrong_input_is_one_line(tiny_bert, monkeypatch, capsys, flags, words):
    flags = flags + ([] if "--rounds" in flags else ["--model_name_or_path", tiny_bert])
    monkeypatch.setitem(sys.modules, "smart_pytorch", None)  # not installed
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["predict", "train"])
def test_counted_products_are_those_that_pytorch_counts(scaling, kind):
    """Of rows of several lengths: the products with weights, and those of attention."""
    setting = scaling.Setting(rows=9, layers=3, width=64, heads=4, length=20, kind=kind)
    (lengths,) = scaling.draw_batches(setting, 1, None)
    model = MultitaskBertModel(setting.config).train(kind == "train")
    batch = scaling.make_batch(lengths, task=1)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(kind == "train"):
        model.set_attn_implementation("eager")  # products that PyTorch can see
        loss = model(**batch).loss
        if kind == "train":
            loss.backward()
    flops = {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}
    attention = flops.pop("aten.bmm")
    work = dict(zip(scaling.FEATURES, scaling.count_work(lengths, setting.config, kind), strict=True))
    # Two products with the attention weights of each head; its pooler and heads are not counted.
    assert attention == pytest.approx(2 * 2 * 16 * work["attention"] * 1e6, rel=1e-9)
    assert sum(flops.values()) == pytest.approx(2 * work["products"] * 1e9, rel=0.02)
    trained = sum(weight.numel() for name, weight in model.bert.named_parameters() if "pooler" not in name)
    assert work["update"] == pytest.approx(trained / 1e6 * (kind == "train"), rel=1e-9)


def test_work_of_processes_and_smart(scaling):
    config, lengths = scaling.Setting().config, [30, 10, 20, 50]
    one, two, smart = (
        dict(zip(scaling.FEATURES, scaling.count_work(lengths, config, *how), strict=True))
        for how in (("train", 1, 3), ("train", 2, 3), ("smart", 1, 3))
    )
    share = dict(zip(scaling.FEATURES, scaling.count_work([20, 50], config), strict=True))
    assert all(two[key] == share[key] for key in share if key != "exchange"), "the larger share"
    assert one["exchange"] == 0
    assert two["exchange"] == pytest.approx(3 * 4 * two["update"]), "all encoders' gradients, in fp32"
    assert smart["products"] == pytest.approx(one["products"] * 8 / 3) and smart["update"] == one["update"]


def make_up(scaling, monkeypatch, tmp_path, settings: list[dict]):
    """Let settings take the seconds that known constants make of their work, and those held out three quarters of it;
    returns the constants and the options to scale with."""
    constants = np.linspace(0.001, 0.02, len(scaling.FEATURES))

    def measure(setting, batches):
        seconds = scaling.mean_work(setting, batches) @ constants * (0.75 if setting.held_out else 1)
        return {"seconds": np.full(3, seconds), "memory": 1.0, "sent": 0.0}

    monkeypatch.setattr(scaling, "measure", measure)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    options = {"settings": str(path), "model_name_or_path": MINILM, "data_dir": SAMPLE, "rounds": 1, "steps": 3}
    return constants, Namespace(**options, rows_per_second=None)


def test_the_fit_finds_the_constants_and_leaves_out_what_is_held_out(scaling, monkeypatch, tmp_path):
    settings = yaml.safe_load((ROOT / "recipes" / "benchmarks" / "scale.yaml").read_text())
    constants, options = make_up(scaling, monkeypatch, tmp_path, settings)
    result = scaling.scale(options)
    assert [entry["seconds"] for entry in result["constants"]] == pytest.approx(constants, rel=1e-5)
    ratios = {held_out: [] for held_out in (False, True)}
    for entry in result["settings"]:
        ratios[entry["held out"]].append(entry["predicted / measured"])
    assert len(ratios[True]) > 10 and ratios[True] == pytest.approx([4 / 3] * len(ratios[True]))
    assert ratios[False] == pytest.approx([1] * len(ratios[False]))
    assert result["largest error of a setting held out"] == pytest.approx(1 / 3)
    assert result["largest error of a setting in the fit"] < 1e-6
    json.dumps(result)


def test_the_papers_runs_on_a_machine_of_a_given_rate(scaling, monkeypatch, tmp_path):
    options = make_up(scaling, monkeypatch, tmp_path, [{}])[1]
    slow, fast = (
        {run["run"]: run for run in scaling.scale(Namespace(**vars(options) | {"rows_per_second": rate}))[key]}
        for rate, key in ((10, "runs of bert-base"), (20, "runs of bert-base"))
    )
    assert len(slow) == 9
    # The rows of section 5.1 in batches of 32: 267 of SST, 8,845 of Quora, 189 of STS an epoch.
    assert slow["baseline"]["steps"] == 10 * (267 + 8845 + 189)
    assert slow["rr_tpe"]["steps"] == 10 * 267 + 3 * 8845 + 10 * 189
    for name, run in slow.items():
        assert run["in all, h"] == pytest.approx(2 * fast[name]["in all, h"])
    smart = slow["rr_tpe_smart"]["training, h"] / slow["rr_tpe"]["training, h"]
    assert 1 < smart < 8 / 3, "SMART on two tasks of three"
    assert slow["3bert_tpe"]["evaluation, h"] < slow["baseline_tpe"]["evaluation, h"], "one task at a time"


@pytest.mark.parametrize("schedule", ["round_robin", "sequential"])
@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_evaluations_are_counted_as_training_makes_them(scaling, make_trainer, schedule, sharing, monkeypatch):
    from benchmarks.cost import count_evaluations

    settings = {"schedule": schedule, "eval_strategy": "steps", "eval_steps": 0.3, "max_steps": -1}
    trainer, seen = make_trainer({"encoder_sharing": sharing}, **settings), Counter()
    loop = trainer.evaluation_loop

    def counted(loader, description, *args, **kwargs):
        seen[description.rpartition(" ")[2]] += 1
        return loop(loader, description, *args, **kwargs)

    monkeypatch.setattr(trainer, "evaluation_loop", counted)
    trainer.train()
    assert seen == count_evaluations(trainer.plan, trainer.rows, trainer.args, sharing == "per_task")


@pytest.mark.slow
def test_scale_measures(tmp_path, tiny_bert, scaling):
    """Every kind of setting, as new processes: of two, each sends every gradient in fp32, also of what is idle."""
    tiny = {"layers": 2, "width": 32, "heads": 4, "rows": 4}
    changes = [{}, {"kind": "smart"}, {"kind": "predict"}, {"length": "mix", "held_out": True}]
    changes.append({"processes": 2, "encoder_sharing": "per_task"})
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump([tiny | change for change in changes]))
    flags = ["--settings", path, "--model_name_or_path", tiny_bert, "--rounds", 1, "--steps", 2]
    result = run_benchmark("scale", *flags)
    plain, smart, predict, _, two = result["settings"]
    assert all(setting["rows/s"] > 0 for setting in (plain, smart, predict, two))
    assert 0 < predict["memory, MB"] < plain["memory, MB"] < two["memory, MB"]
    model = MultitaskBertModel(dataclasses.replace(scaling.Setting(**tiny), encoder_sharing="per_task").config)
    assert two["sent, MB"] == pytest.approx(4 * sum(weight.numel() for weight in model.parameters()) / 1e6)
    assert plain["sent, MB"] == 0
