"""The model card: its metadata are true, and the lines that it shows give the pipeline's answers."""

import dataclasses
import io
import re

import matplotlib.image
import pytest
import torch
from conftest import run_here
from huggingface_hub import ModelCard, hf_api

from bert_multitask.data.rows import is_from_hub
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.model.card import PAIR, TEXT, model_card
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS, load_task
from bert_multitask.training.hub import base_license

OWN = [
    "sst",
    "quora",
    "sts",
    {"name": "topics", "kind": "multilabel", "label_names": ["cooking", "sport", "music"]},
    {"name": "price", "kind": "regression"},
    {"name": "spam", "kind": "binary", "label_names": ["ham", "spam"]},
    {"name": "tags", "kind": "token_classification", "label_names": ["O", "B-PER"]},
]


def blocks(card: str) -> list[str]:
    """The Python of a card."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("encoding", ["joint", "separate"])
@pytest.mark.parametrize("prompt", ["", 'in a "word": '])
def test_the_lines_of_a_card_give_the_pipelines_answers(tmp_path, tiny_bert, tokenizer, encoding, prompt):
    torch.manual_seed(3)
    sharing = "per_task" if encoding == "separate" else "shared"
    tasks = [load_task(task) for task in OWN]
    tasks = [task if task.by_words else dataclasses.replace(task, prompt=prompt) for task in tasks]
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=tasks, pair_encoding=encoding, encoder_sharing=sharing)
    with torch.no_grad():
        for head in model.heads.values():
            for weight in head.parameters():
                torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    plain, packaged = blocks(model_card(model.tasks, model.config, str(tmp_path)))
    pipe = MultitaskPipeline(tmp_path)
    answers = {name: pipe(name, PAIR if task.text_pair else TEXT) for name, task in pipe.tasks.items()}

    printed: list[tuple] = []
    exec(plain, {"print": lambda *values: printed.append(values)})
    found = dict(zip(re.findall(r'model\("(\w+)"', plain), printed, strict=True))
    assert found.keys() == answers.keys(), "one of each kind, of single texts and of pairs"
    label, probabilities = found["sst"]
    assert label == answers["sst"]["label"]
    assert probabilities == pytest.approx(answers["sst"]["probabilities"], abs=1e-5)
    for name in ("quora", "spam"):
        label, probabilities = found[name]
        (second,) = probabilities
        assert label == answers[name]["label"] and second == pipe.tasks[name].label_names[1]
        assert probabilities[second] == pytest.approx(answers[name]["probabilities"][second], abs=1e-5)
    for name in ("sts", "price"):
        assert found[name][0] == pytest.approx(answers[name]["score"], abs=1e-5)
    assert found["topics"][0] == answers["topics"]["labels"]
    assert found["tags"][0][1] == answers["tags"]["label"][0], "a tag a token, [CLS] first"

    printed.clear()
    exec(packaged, {"print": lambda *values: printed.append(values)})
    called = re.findall(r'pipe\("(\w+)"', packaged)
    assert {*called} == answers.keys()
    for name, ((answer,),) in zip(called, printed, strict=True):
        assert answer.keys() == answers[name].keys()
        assert answer.get("label") == answers[name].get("label")


def test_the_metadata_of_a_card():
    tasks = {task.name: task for task in map(load_task, OWN)}
    data = ModelCard(
        model_card(tasks, MultitaskBertConfig(), "me/run", datasets=["a/b", "c", "a/b"], license="mit", language="en")
    ).data
    assert (data.license, data.language, data.datasets) == ("mit", "en", ["a/b", "c"])
    assert data.pipeline_tag == "text-classification"
    examples = {example["example_title"]: example for example in data.widget}
    assert examples.keys() == tasks.keys() and examples["sst"]["text"] == TEXT
    assert examples["sts"]["source_sentence"] == PAIR[0] and examples["quora"]["text_pair"] == PAIR[1]
    data = ModelCard(model_card({"sts": tasks["sts"]}, MultitaskBertConfig())).data
    assert data.pipeline_tag == "sentence-similarity"
    assert data.license is data.language is data.datasets is None, "fields that nobody gave are left out"


def test_data_sets_are_named_where_the_rows_came_from_the_hub():
    sst, own = TASKS["sst"], load_task(OWN[3])
    assert is_from_hub(sst, "hub") and not is_from_hub(sst, "package:bert_multitask/sample")
    assert is_from_hub(own, None)  # which then is refused: it has no hub, either


def test_the_licence_of_the_base_model(tmp_path, make_trainer):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\nA BERT\n")
    assert base_license(str(tmp_path)) == "apache-2.0"
    assert base_license(str(tmp_path / "none")) is base_license(None) is base_license("package:a/b") is None
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert base_license(str(tmp_path)) is None
    trainer = make_trainer(max_steps=1)
    trainer.create_model_card(language=["en", "de"], license="mit", dataset="me/rows")
    data = ModelCard.load(f"{trainer.args.output_dir}/README.md").data
    assert (data.language, data.license, data.datasets) == (["en", "de"], "mit", ["me/rows"])


def test_a_push_with_what_is_told_and_a_picture(monkeypatch, tmp_path, hub, capsys):
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    tasks = {name: TASKS[name] for name in ("sst", "sts")}
    scores = {"sst": (0.51, 0.48, 0.54), "sts": (0.87, None, None), "overall": (0.72, None, None)}
    (tmp_path / "README.md").write_text(model_card(tasks, MultitaskBertConfig(), "me/run", scores=scores))
    (tmp_path / "metrics.json").write_text("{}")
    told = ["--license", "mit", "--language", "en", "de", "--scores_picture"]
    assert run_here(monkeypatch, tmp_path, "--hub_model_id", "me/run", *told, recipe="push") == 0
    files = hub.files("me/run")
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.language) == ("mit", ["en", "de"])
    assert "dev rows\n\n![The scores with their 95 % intervals](scores.png)\n\n| task |" in card.text
    height, width, _ = matplotlib.image.imread(io.BytesIO(files["scores.png"])).shape
    assert width == 1600 and 200 < height < 1600
    assert not (tmp_path / "scores.png").exists(), "the folder is as it was"
    (tmp_path / "README.md").write_text(model_card(tasks, MultitaskBertConfig(), "me/run"))
    assert run_here(monkeypatch, tmp_path, "--hub_model_id", "me/run", *told, recipe="push") == 2
    assert "has no scores for --scores_picture" in capsys.readouterr().err
