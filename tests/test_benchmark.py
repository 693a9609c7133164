"""The benchmark runs, and its two sides compute the same. What it measures is no test's business."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("what", ["train", "smart", "predict"])
def test_benchmark(tiny_bert, what):
    pytest.importorskip({"predict": "sentence_transformers", "smart": "smart_pytorch"}.get(what, "torch"))
    flags = ["--rounds", "1", "--steps", "3", "--rows", "5", "--model_name_or_path", tiny_bert, "--json"]
    command = [sys.executable, str(ROOT / "recipes" / "benchmark.py"), what, *flags]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert all(value > 0 for key, value in result.items() if "faster" in key or "rows" in key)
    for key, value in result.items():
        if key.startswith("largest difference"):
            assert value < 1e-4, key
    if what == "train":
        assert result["peak memory of a step, MB, ours"] < result["peak memory of a step, MB, theirs"]
        assert 0 < result["share of our step outside forward, backward and optimizer"] < 1
    if what == "smart":
        assert 1 < result["seconds of a SMART step by a plain one"]


def test_wrong_input_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "benchmark.py"), "tokenize", "--data_dir", str(tmp_path / "none")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: ") and "no such folder" in run.stderr
