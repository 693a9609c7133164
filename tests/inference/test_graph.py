"""Tasks as graphs: what ONNX Runtime and `torch.export` answer against the model, in batches of several shapes."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here
from transformers import AutoTokenizer

from bert_multitask.inference.graph import Graph, export_graph, trace
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.model.errors import InputError
from bert_multitask.model.heads import LinearHead
from bert_multitask.model.modeling import MultitaskBertModel

TASKS = [
    "sst",
    "quora",
    "sts",
    {"name": "genre", "kind": "multilabel", "text": "text", "label_names": ["drama", "war"], "truncation": "tail"},
    {"name": "names", "kind": "token_classification", "text": "words", "label_names": ["O", "B-PER"]},
]
TEXTS = ["Is it far?", "How far is it, then, if one walks all the way to the old harbour and back?", "No."]
LONG = "It is far, " * 9  # more tokens than LONGEST
LONGEST = 24
BATCHES = [[0], [3], [0, 1], [2, 0, 1, 3, 2]]  # a row, a row that is cut, and shorter rows beside longer ones
# All of them are slow; test_readme.py has a quick one, of sst.
LAYOUTS = [
    ("quora", "separate", "mean"),
    ("sst", "joint", "cls"),
    ("sst", "joint", "pooler"),
    ("sts", "joint", "cls"),
    ("sts", "separate", "cls"),
    ("genre", "joint", "mean"),
]


def make_model(folder: str, **layout) -> MultitaskBertModel:
    torch.manual_seed(0)
    model = MultitaskBertModel.from_pretrained(folder, tasks=TASKS, **layout).eval()
    for weight in model.parameters():  # else all rows are nearly alike
        weight.data.mul_(3 if weight.dim() > 1 else 1)
    return model


def make_rows(model: MultitaskBertModel, task: str) -> list:
    """Texts or pairs, the last of which is longer than LONGEST."""
    texts = [*TEXTS, "It is far." if model.is_separate(model.tasks[task]) else LONG]
    return list(zip(texts, texts[::-1], strict=True)) if model.tasks[task].text_pair else texts


def tokens(folder: Path, rows: list) -> dict:
    """A batch by the tokenizer beside a graph, as the page says."""
    columns = [list(column) for column in zip(*rows, strict=True)] if isinstance(rows[0], tuple) else [rows]
    return dict(AutoTokenizer.from_pretrained(folder)(*columns, padding=True, truncation=True, return_tensors="np"))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "pair_encoding", "pooling"), LAYOUTS)
def test_onnx_answers_as_the_pipeline_does(tiny_bert, tokenizer, tmp_path, task, pair_encoding, pooling):
    """From texts to answers: minBERT without padding and its tokens, against the graph and the tokenizer beside it.

    With 8-bit weights a row's answer is near the model's, and the same alone as beside other rows."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_model(tiny_bert, pair_encoding=pair_encoding, pooling=pooling)
    longest = 64 if pair_encoding == "separate" else LONGEST  # where only training cuts each text
    path, smaller = export_graph(model, task, tokenizer, tmp_path, int8=True, max_length=longest)
    session, coarse = onnxruntime.InferenceSession(path), onnxruntime.InferenceSession(smaller)
    assert [entry.shape for entry in session.get_inputs()] == [["batch", "length"]] * 3
    name = [output.name for output in session.get_outputs()][1]
    rows = make_rows(model, task)
    expected = np.array(MultitaskPipeline(model, tokenizer, max_length=longest).table(task, rows)[name])
    alone = np.concatenate([coarse.run([name], tokens(tmp_path, [row]))[0] for row in rows])
    np.testing.assert_allclose(alone, expected, atol=0.05, rtol=0)
    for batch in BATCHES:
        logits, answers = session.run(None, tokens(tmp_path, [rows[number] for number in batch]))
        np.testing.assert_allclose(answers, expected[batch], atol=1e-5, rtol=0)
        np.testing.assert_allclose(STOCK.get(task, softmax)(logits), expected[batch], atol=1e-5, rtol=0)
        (answers,) = coarse.run([name], tokens(tmp_path, [rows[number] for number in batch]))
        np.testing.assert_allclose(answers, alone[batch], atol=1e-5, rtol=0)
    assert np.ptp(expected, axis=0).max() > 1e-3  # far above 1e-5, or any row would do for any other
    assert str(ROOT).encode() not in path.read_bytes()


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


# What Transformers' pipeline makes of the logits of a task with such a config.json.
STOCK = {"genre": lambda logits: 1 / (1 + np.exp(-logits)), "sts": lambda logits: 5 * logits[:, 0]}


@pytest.mark.slow
def test_onnx_tags_words(tiny_bert, tokenizer, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, texts = make_model(tiny_bert), ["far it is", "anna", "no anna no far"]
    (path,) = export_graph(model, "names", tokenizer, tmp_path)
    rows = MultitaskPipeline(model, tokenizer).table("names", texts)["probabilities"]
    (found,) = onnxruntime.InferenceSession(path).run(["probabilities"], tokens(tmp_path, texts))
    for row, words in zip(found, rows, strict=True):  # each of these words is one token, after [CLS]
        np.testing.assert_allclose(row[1 : 1 + len(words)], words, atol=1e-5, rtol=0)


def test_torch_export_answers_as_the_pipeline_does(tiny_bert, tokenizer, tmp_path):
    model = make_model(tiny_bert, pooling="pooler")
    (path,) = export_graph(model, "sts", tokenizer, tmp_path, "pt2", max_length=LONGEST)
    run, rows = torch.export.load(path).module(), make_rows(model, "sts")
    expected = MultitaskPipeline(model, tokenizer, max_length=LONGEST).table("sts", rows)["score"]
    for batch in BATCHES:
        inputs = tokens(tmp_path, [rows[number] for number in batch])
        found = run(**{name: torch.from_numpy(values) for name, values in inputs.items()})
        assert found["score"].tolist() == pytest.approx([expected[number] for number in batch], abs=1e-5)
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if str(ROOT).encode() in archive.read(name)]
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["id2label"] == {"0": "sts"} and fields["problem_type"] == "regression"


class Branching(LinearHead):
    """A head whose next step hangs on a value."""

    def forward(self, embedding):
        return super().forward(embedding if embedding.sum() > 0 else -embedding)


def test_what_cannot_be_traced_or_differs_is_refused(tiny_bert, tokenizer, monkeypatch):
    made = Graph(make_model(tiny_bert), "sst", tokenizer)
    with pytest.raises(InputError, match=r"task 'sst' \(bert\): the graph's logits are 1.0e\+00 from the model's"):
        made.check(lambda inputs: {name: values + 1 for name, values in made(**inputs).items()})
    made.classifier.heads["sst"].__class__ = Branching
    with pytest.raises(InputError, match=r"task 'sst' \(bert\): torch.export cannot trace it: .+"):
        trace(made)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int8"], "--int8 is of --format onnx, not transformers"),
        (["--int8", "--format", "pt2"], "--int8 is of --format onnx, not pt2"),
        (["--encoder", "--format", "onnx"], "--encoder is of --format transformers, not onnx"),
        (["--format", "onnx"], r"ONNX needs onnx: pip install '.[onnx]'"),
    ],
)
def test_flags_that_cannot_be_met_are_refused(monkeypatch, tmp_path, capsys, flags, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    argv = ["RUN", "--task", "sst", "--output_dir", tmp_path / "out", *flags]
    assert run_here(monkeypatch, *argv, recipe="export") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
