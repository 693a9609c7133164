"""Pushing a run over HTTP with the real client, and loading it in a fresh process with an empty cache."""

import getpass
import html
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoTokenizer

from bert_multitask.model.card import TAGS, model_card
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS, Task
from bert_multitask.training.hub import public_files, push_folder

LOAD = """
import json, sys
sys.modules["bert_multitask"] = None
import torch
from transformers import AutoModel, AutoTokenizer
out = {}
for revision in ("main", "second"):
    model = AutoModel.from_pretrained("me/run", trust_remote_code=True, revision=revision).eval()
    tokenizer = AutoTokenizer.from_pretrained("me/run", revision=revision)
    with torch.inference_mode():
        out[revision] = model("sst", **tokenizer("a good film", return_tensors="pt")).logits[0].tolist()
out["encoder"] = type(AutoModel.from_pretrained("me/run")).__name__
out["alone"] = type(AutoModel.from_pretrained("me/alone", trust_remote_code=True)).__name__
print("\\n" + json.dumps(out))
"""


def in_fresh_process(hub, cache: Path, *arguments, token: str | None = None) -> dict:
    """Run Python with this hub and an empty cache; the JSON of its last line."""
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=hub.env(cache, token) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture
def config(tmp_path, tiny_bert, course_folder) -> Path:
    path = tmp_path / "tiny.yaml"
    settings = {"model_name_or_path": tiny_bert, "data_dir": str(course_folder), "report_to": "none"}
    settings |= {"per_device_train_batch_size": 4, "max_length": 32, "disable_tqdm": True, "seed": 7}
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_on_the_hub(hub, config, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    hub.break_on("POST", "/api/models/me/broken/commit")
    script = ROOT / "tests" / "push_everything.py"
    results = in_fresh_process(hub, tmp_path / "cache", script, config, run, other, token=hub.token)
    check_refusals(results)
    for way in ("trained", "branch", "private"):
        assert results[way]["code"] == 0 and "pushed: " in results[way]["printed"], results[way]

    files = hub.files("me/run")
    check_files(hub, run)
    check_nothing_leaks(files, tmp_path, hub.token)
    assert [request for request in hub.requests if "me/secret" in request.path and not request.token] == []

    third = hub.files("me/trainer", "third")
    assert set(third) == set(files) - {"metrics.json"} and third["model.safetensors"] == files["model.safetensors"]
    text = third["README.md"].decode()
    assert f"| overall | mean of accuracy, (pearson + 1) / 2 | {results['trainer']:.4f} |" in text
    assert 'MultitaskBertModel.from_pretrained("me/trainer", revision="third")' in text
    check_nothing_leaks(third, tmp_path, hub.token)

    # A connection that broke in mid-push: one message, and the run is whole.
    assert results["broken"]["code"] == 2 and "Traceback" not in results["broken"]["printed"]
    assert f"the run in {other} is whole" in results["broken"]["printed"]
    assert f"bert-multitask push {other} --hub_model_id me/broken" in results["broken"]["printed"]
    assert json.loads((other / "metrics.json").read_text()) == json.loads((run / "metrics.json").read_text())
    assert "model.safetensors" not in hub.files("me/broken"), "no half commit"

    check_loading(in_fresh_process(hub, tmp_path / "empty", "-c", LOAD), run)
    card = ModelCard(hub.files("me/alone")["README.md"].decode())
    assert 'AutoModel.from_pretrained("me/alone", trust_remote_code=True)' in card.text and "| sst |" in card.text
    assert card.data.base_model is None, "me/run, from which it was loaded, is the model itself"
    assert hub.files("me/alone")["model.safetensors"] == files["model.safetensors"]


def check_refusals(results: dict) -> None:
    """A wrong token and an unfinished run end in one line."""
    assert results["refused"]["code"] == 2 and not results["begun"], "before anything is computed"
    (line,) = (line for line in results["refused"]["printed"].splitlines() if line.startswith("error: "))
    assert "401" in line and "Invalid credentials" in line and line.endswith("--hub_token)?"), line
    assert results["unfinished"]["code"] == 2 and "holds no finished run" in results["unfinished"]["printed"]


def check_files(hub, run: Path) -> None:
    """What was pushed, and that the card alone differs, by its name, on a branch and in another repository."""
    files = hub.files("me/run")
    code = "adapters card configuration encoder errors fields heads kinds losses modeling packing stock tasks".split()
    others = "README.md config.json model.safetensors metrics.json tokenizer.json tokenizer_config.json".split()
    assert set(files) - {".gitattributes"} == {*others, *(f"{name}.py" for name in code)}
    second, secret = hub.files("me/run", "second"), hub.files("me/secret")
    assert {name for name in files if not files[name] == second[name] == secret[name]} == {"README.md"}
    card = files["README.md"]
    assert second["README.md"] == card.replace(b'("me/run"', b'("me/run", revision="second"')
    renamed = card.replace(b'("me/run"', b'("me/secret"').replace(b"- name: run", b"- name: secret")
    assert secret["README.md"] == renamed
    for name in ("README.md", "config.json", "model.safetensors", "metrics.json"):
        assert files[name] == (run / name).read_bytes(), name


def check_loading(loaded: dict, run: Path) -> None:
    """What LOAD printed is what the run computes here."""
    model, tokenizer = MultitaskBertModel.from_pretrained(run).eval(), AutoTokenizer.from_pretrained(run)
    expected = model("sst", **tokenizer("a good film", return_tensors="pt")).logits[0].tolist()
    for revision in ("main", "second"):  # to rounding: this process may have other threads
        assert loaded.pop(revision) == pytest.approx(expected, abs=1e-6)
    assert loaded == {"encoder": "BertModel", "alone": "MultitaskBertModel"}


def check_nothing_leaks(files: dict[str, bytes], tmp_path: Path, token: str) -> None:
    """No path, user, host or token of this machine in what was pushed."""
    local = [str(tmp_path), tmp_path.parent.name, os.path.expanduser("~"), str(Path.cwd()), token, platform.node()]
    local += [f"{getpass.getuser()}@", f"/{getpass.getuser()}/"]
    for name, content in files.items():
        for secret in local:
            # A short host name is also a word of the vocabulary.
            assert len(secret) < 5 or secret.encode() not in content, (name, secret)


def test_the_card_of_a_run(hub, config, tmp_path):
    """Its metadata are what the Hub reads: scores with seed and interval, and the base model where it has a name."""
    tasks = {name: TASKS[name] for name in ("sst", "sts")}
    scores = {"sst": (0.51234, 0.48, 0.54), "sts": (0.87, None, None), "overall": (0.72, 0.72, 0.72)}
    data = {"sst": {"train": {"rows": 8544, "sha256": "0123456789abcdef"}}}
    text = model_card(
        tasks, MultitaskBertConfig(), "me/run", "google-bert/bert-base-uncased", scores, {"seed": 3}, "the plan", data
    )
    card = ModelCard(text)
    assert card.data.base_model == "google-bert/bert-base-uncased" and card.data.model_name == "run"
    sst, sts = card.data.eval_results
    assert (sst.dataset_name, sst.metric_type, sst.metric_value) == ("sst", "accuracy", 0.5123)
    assert "| overall | mean | 0.7200 |  |" in text, "bounds that are the same are none"
    assert sst.metric_args == {"confidence_interval_95": [0.48, 0.54], "seed": 3} and sts.metric_args == {"seed": 3}
    for part in ("0.4800 – 0.5400", "seed 3", "the plan", "| sst | train | 8,544 |", "Limits and bias", "PAWS-Wiki"):
        assert part in text, part
    own = {"nli": Task(name="nli", kind="classification", text_pair="b", label_names=("yes", "no"))}
    for folder in (tmp_path, tmp_path / "gone", "../runs/gone"):  # a path says nothing to others, and too much
        text = model_card(own, MultitaskBertConfig(), base_model=str(folder))
        assert ModelCard(text).data.base_model is None and str(folder) not in text and "Quora" not in text
    assert "model-index" not in text and "Limits and bias" in text


HOSTILE = [  # label names of one line; others are refused when the task is made
    "<script>alert(1)</script>",
    "![x](https://example.com/x.png)",
    "a | b",
    "`code` *bold* [link](x) ~~gone~~ \\|",
    "# heading",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_label_names_are_shown_as_they_are_in_a_card(text):
    task = Task(name="own", kind="binary", label_names=(text, "other"), metric="accuracy")
    card = model_card({"own": task}, MultitaskBertConfig(), "me/run", scores={"own": (0.5, None, None)})
    assert len(ModelCard(card).data.eval_results) == 1 and ModelCard(card).data.tags == ["bert", *TAGS]
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(ModelCard(card).text)
    cells = re.findall(r"<td>(.*?)</td>", page)
    shown = [html.unescape(cell) for cell in cells[:4]]
    assert shown == ["own", "binary", "one text", f"{' '.join(text.split())}, other"]


@pytest.mark.parametrize("name", ["[x](https://example.com)", "package:a/b", "runs/of/mine", "../run", "a b"])
def test_only_hub_ids_are_named_as_the_base_model(name):
    card = model_card({"sst": TASKS["sst"]}, MultitaskBertConfig(), base_model=name)
    assert ModelCard(card).data.base_model is None and name not in card


@pytest.mark.parametrize("link", ["tokenizer_old.json", "model.safetensors", "README.md", "notes.py"])
def test_a_link_that_leaves_the_folder_is_not_pushed(tmp_path, link):
    folder, secret = tmp_path / "run", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("{}")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to("config.json")
    assert [file.name for file in public_files(folder)] == ["config.json", "tokenizer.json"]
    (folder / link).symlink_to(secret)
    with pytest.raises(InputError, match=f"{link} is a link to {secret}; replace it"):
        push_folder(folder, "me/run")


def test_all_files_of_a_run_can_be_read_by_the_same_people(make_trainer, tmp_path):
    umask = os.umask(0o027)
    try:
        trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
        trainer.train()
        trainer.save_model()
        trainer.model.save_pretrained(tmp_path / "model")
    finally:
        os.umask(umask)
    folder = Path(trainer.args.output_dir)
    files = [*folder.glob("*"), *folder.glob("checkpoint-1/*"), *(tmp_path / "model").glob("*")]
    assert {file.name for file in files} > {"model.safetensors", "tokenizer.json", "optimizer.pt"}
    assert {oct(file.stat().st_mode & 0o777) for file in files if file.is_file()} == {"0o640"}


def test_a_trainers_card_has_its_last_scores(make_trainer):
    trainer = make_trainer(max_steps=2)
    metrics = trainer.evaluate()
    trainer.create_model_card()
    card = ModelCard.load(Path(trainer.args.output_dir, "README.md"))
    values = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert values["sst"] == pytest.approx(metrics["eval_sst_accuracy"], abs=1e-4) and set(values) == set(trainer.rows)
    trainer.evaluate({"sst": trainer.eval_dataset["sst"].select([0])})
    trainer.create_model_card()
    again = ModelCard.load(Path(trainer.args.output_dir, "README.md"))
    assert again.text == card.text, "the last evaluation of all tasks counts"


def test_a_hub_that_is_out_of_reach(make_trainer, monkeypatch):
    """Is not blamed on the token."""

    def fail(*args, **kwargs):
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr("bert_multitask.training.hub.create_repo", fail)
    message = r"^--hub_model_id run: the Hub is out of reach \(.* not known\); check the network"
    with pytest.raises(InputError, match=message):
        make_trainer().push_to_hub()


def test_pushes_in_mid_training_are_refused(make_trainer):
    with pytest.raises(InputError, match="--hub_strategy is 'every_save'; only 'end' works here"):
        make_trainer(hub_strategy="every_save")
