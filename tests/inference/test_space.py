"""A Space: what is written is what is pushed, it is all that the page needs, and nothing of the machine."""

import runpy
import sys
from pathlib import Path

import pytest
from conftest import run_here
from huggingface_hub import ModelCard, hf_api
from packaging.requirements import Requirement

from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.space import GRADIO
from bert_multitask.model.modeling import MultitaskBertModel


@pytest.fixture
def run(tmp_path, tiny_bert, tokenizer) -> Path:
    """A finished run, and beside its public files what knows the machine."""
    folder = tmp_path / "films"
    MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "sts"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "metrics.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    (folder / "history.jsonl").write_text("private")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_space_is_written_pushed_and_runs(monkeypatch, tmp_path, hub, run, capsys):
    folder = tmp_path / "space"
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert run_here(monkeypatch, run, "--space", "me/demo", "--output_dir", folder, recipe="push") == 0
    assert not hub.requests, "only written"
    written = contents(folder)
    assert run_here(monkeypatch, run, "--space", "me/demo", recipe="push") == 0
    assert hub.files("me/demo", repo_type="space") == written and "pushed: " in capsys.readouterr().out
    assert not [name for name, content in written.items() if str(tmp_path).encode() in content or b"private" == content]
    model = {name for name in written if name.startswith("run/")}
    assert model == {
        f"run/{name}"
        for name in "README.md config.json metrics.json model.safetensors tokenizer.json tokenizer_config.json".split()
    }
    assert "bert_multitask/model/kinds.py" in written and not [name for name in written if "__pycache__" in name]
    card = ModelCard(written["README.md"].decode())
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("gradio", "app.py", "demo")
    names = {Requirement(line).name for line in written["requirements.txt"].decode().splitlines()}
    assert {"torch", "transformers", "datasets"} <= names and not names & {"pytest", "optuna"}

    gr = pytest.importorskip("gradio", reason="the demo needs the extra `demo`")
    assert card.data.sdk_version == GRADIO
    served = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **options: served.append(page))
    monkeypatch.chdir(folder)
    runpy.run_path("app.py", run_name="__main__")
    (tab,) = [block.fn for block in served[0].fns.values() if block.api_name == "task_sst"]
    expected = MultitaskPipeline(run)("sst", "A fine film.")
    assert tab("A fine film.")[-1]["label"] == expected["label"]
    assert tab("A fine film.")[-1]["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)


def test_a_space_of_a_model_on_the_hub(monkeypatch, tmp_path, run):
    """It names the model, and holds no weights."""
    folder, load = tmp_path / "space", sys.modules["bert_multitask.inference.space"].TrainedRun.open
    monkeypatch.setattr("bert_multitask.inference.space.TrainedRun.open", lambda name: load(str(run)))
    assert run_here(monkeypatch, "me/films", "--output_dir", folder, recipe="push") == 0
    written = contents(folder)
    assert not [name for name in written if name.endswith(".safetensors")]
    assert b"build_page({'films': 'me/films'})" in written["app.py"]
    assert ModelCard(written["README.md"].decode()).data.models == ["me/films"]


def test_mistakes_are_named(monkeypatch, tmp_path, hub, run, capsys):
    def error(*argv) -> str:
        assert run_here(monkeypatch, *argv, recipe="push") == 2
        return capsys.readouterr().err

    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "give --hub_model_id, --space or --output_dir" in error(run)
    assert "--space me/demo: the Hub gives no repository" in error(run, "--space", "me/demo")
    assert "is not empty; choose another folder" in error(run, "--output_dir", run)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.break_on("POST", "/api/spaces/me/demo/commit")
    assert "--space me/demo: nothing was uploaded" in error(run, "--space", "me/demo")
    (run / "metrics.json").unlink()
    assert "holds no finished run" in error(run, "--space", "me/demo")
    (run / "metrics.json").symlink_to(tmp_path / "space_secret")
    (tmp_path / "space_secret").write_text("{}")
    assert "is a link to" in error(run, "--output_dir", tmp_path / "out")
