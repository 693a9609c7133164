"""The table of kinds: other names, scores without a range, heads by name, and a kind that this package does not have: a
label for each token, registered from outside."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from conftest import run_here
from datasets import Dataset
from sklearn.metrics import accuracy_score
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, pipeline

from bert_multitask.data.collate import Collator, TaskRows, join_rows
from bert_multitask.data.rows import clean_rows
from bert_multitask.evaluation.metrics import METRICS, TaskMetric, describe_overall, unit_score
from bert_multitask.evaluation.predict import predict_tasks
from bert_multitask.inference.export import export_classifier
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.model.errors import InputError
from bert_multitask.model.heads import HEADS, HeadLinear, SigmoidHead
from bert_multitask.model.kinds import KINDS, Kind
from bert_multitask.model.losses import DIVERGENCES, LOSSES, UNLABELLED
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS, Task, load_task
from bert_multitask.reporting.report import write_report
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.run_folder import deciding_fields, recorded_settings
from bert_multitask.training.trainer import MultitaskTrainer

TEXTS = ["good movie", "bad movie", "a nice film indeed", "awful film", "great", "dull and grey", "fine plot", "worst"]
NAMES = ["drama", "war", "love"]


class Tokens(Kind):
    """A class for each token: labels (B, L), logits (B, L, C)."""

    keys = {
        "head": ("token",),
        "loss": ("token_cross_entropy",),
        "divergence": ("token_kl",),
        "metric": {"accuracy": "token_accuracy"},
    }
    nested = True

    def decide(self, logits):
        return logits.argmax(-1)


class TokenHead(nn.Module):
    """A linear layer on every token."""

    reads_tokens = True

    def __init__(self, hidden_size, task, texts=1):
        super().__init__()
        self.layer = HeadLinear(hidden_size, KINDS[task.kind].outputs(task))

    def forward(self, embedding):
        return self.layer(embedding)


class TokenAccuracy(TaskMetric):
    """Share of labelled tokens right."""

    @staticmethod
    def columns(predictions, references):
        known = references != UNLABELLED
        return ((predictions == references) & known).sum(1), known.sum(1)

    @staticmethod
    def score(right, known, axis=-1):
        return right.sum(axis) / known.sum(axis)


def token_cross_entropy(*, logits, labels, num_items=None):
    """Of every labelled token."""
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="sum")
    return total / ((labels != UNLABELLED).sum() if num_items is None else num_items)


def token_kl(perturbed, clean):
    """A row's mean over its tokens."""
    return (perturbed.softmax(-1) - clean.softmax(-1)).square().sum(-1).mean(-1)


@pytest.fixture
def tokens(monkeypatch):
    monkeypatch.setitem(KINDS, "tokens", Tokens())
    monkeypatch.setitem(METRICS, "token_accuracy", TokenAccuracy)
    monkeypatch.setitem(HEADS, "token", TokenHead)
    monkeypatch.setitem(LOSSES, "token_cross_entropy", token_cross_entropy)
    monkeypatch.setitem(DIVERGENCES, "token_kl", token_kl)


def train(monkeypatch, folder, tiny_bert, task: dict, rows: list[dict]):
    """A run of the recipe on rows of one task, to train on and to score; its folder."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    spec = {"text": "text", "epochs": 3, "files": dict.fromkeys(("train", "dev"), "rows.jsonl")} | task
    settings = {
        "model_name_or_path": tiny_bert,
        "data_dir": str(folder),
        "output_dir": str(folder / "run"),
        "tasks": [spec],
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    assert run_here(monkeypatch, folder / "run.yaml") == 0
    return folder / "run"


def test_similarity_is_regression():
    fields = {"name": "a", "kind": "similarity", "score_range": [0, 5]}
    task = load_task(fields)
    assert task.kind == "regression" == load_task(task.to_config()).kind
    assert Task("a", "similarity", score_range=(0, 5)) == task == load_task(fields | {"kind": "regression"})
    assert TASKS["sts"].kind == "regression"


def test_whether_labels_have_an_order_decides_nothing():
    """It is for reports: a run from before the field goes on."""
    now = {"task sst": deciding_fields(TASKS["sst"])}
    assert TASKS["sst"].ordered and "ordered" in TASKS["sst"].to_config() and "ordered" not in now["task sst"]
    record = {"decides": {"task sst": {**now["task sst"], "ordered": True}}, "training": {}, "run": {}}
    assert recorded_settings(record, now)["task sst"] == json.loads(json.dumps(now["task sst"]))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "binary", "label_names": ["no", "yes"]},
        {"kind": "classification", "label_names": ["no", "yes"]},
        {"kind": "regression"},
        {"kind": "multilabel", "label_names": ["a", "b", "c"]},
        {"kind": "token_classification", "label_names": ["O", "B-X", "I-X"]},
    ],
    ids=lambda fields: f"{fields['kind']}-{len(fields.get('label_names', ()))}",
)
def test_only_three_classes_have_an_order(fields):
    with pytest.raises(InputError, match="task 't': ordered is of a task with one of three or more label_names a row"):
        load_task({"name": "t", "ordered": True, **fields})
    assert load_task({"name": "t", **fields}).ordered is False


MISSING = UNLABELLED


@pytest.mark.parametrize(
    ("kind", "names", "labels", "chances", "decisions", "true"),
    [
        ("classification", ["a", "b", "c"], [2, 0], [[0.1, 0.2, 0.7], [0.3, 0.4, 0.3]], None, [2, 0]),
        ("binary", ["no", "yes"], [1, 0], [[0.1, 0.9], [0.8, 0.2]], None, [1, 0]),
        (
            "multilabel",
            ["a", "b"],
            [[1, 0], [MISSING, 1]],
            [[0.9, 0.3], [0.2, 0.6]],
            [[0.1, 0.9], [0.7, 0.3], [0.4, 0.6]],
            [1, 0, 1],
        ),
        (
            "token_classification",
            ["O", "B-X"],
            [[1, 0], [0, MISSING]],
            [[[0.1, 0.9], [0.7, 0.3]], [[0.6, 0.4], [0, 0]]],
            [[0.1, 0.9], [0.7, 0.3], [0.6, 0.4]],
            [1, 0, 0],
        ),
    ],
)
def test_decisions_and_their_probabilities(kind, names, labels, chances, decisions, true):
    """What a report calibrates: one distribution a decision that has a label; and as many flags as it scores."""
    task, labels, chances = load_task({"name": "t", "kind": kind, "label_names": names}), np.array(labels), chances
    found = KINDS[kind].distributions(labels, np.array(chances))
    np.testing.assert_allclose(found[0], chances if decisions is None else decisions)
    assert found[1].tolist() == true
    predicted, flags = KINDS[kind].flags(task, labels, labels)
    np.testing.assert_array_equal(predicted, flags)
    assert flags.sum() == (sum(true) if kind == "multilabel" else len(true)) and flags.shape[1] == len(names)
    guess = KINDS[kind].baseline(labels)
    assert guess.shape == labels.shape and set(guess.ravel().tolist()) <= {*range(len(names)), MISSING}
    yes = KINDS[kind].yes(np.array(chances))
    assert (yes is None) == (kind in ("classification", "token_classification"))


def test_a_run_of_the_old_name_goes_on():
    """`run.json` of an older run: its kind has another name, and it has no field `head`."""
    now = {"task sts": deciding_fields(TASKS["sts"])}
    old = {key: value for key, value in now["task sts"].items() if key != "head"} | {"kind": "similarity"}
    record = {"decides": {"task sts": old}, "training": {}, "run": {}}
    assert recorded_settings(record, now)["task sts"] == json.loads(json.dumps(now["task sts"]))


NUMBER = {"name": "n", "kind": "regression", "text": "text", "metric": "rmse"}


@pytest.mark.parametrize(("raw", "label"), [("-1", -1.0), (1e30, 1e30), ("7e2", 700.0), (True, 1.0)])
def test_any_finite_number_is_a_score_without_a_range(raw, label):
    rows = clean_rows(load_task(NUMBER), [{"text": "a", "label": raw}])
    assert rows["label"][0] == np.float32(label)


@pytest.mark.parametrize("raw", ["five", "inf", 1e39, math.inf, "1e9999"])
def test_what_fp32_cannot_hold_is_no_score(raw):
    with pytest.raises(InputError, match=r"row 1: label is .*; expected a number"):
        clean_rows(load_task(NUMBER), [{"text": "a", "label": raw}])


def test_a_score_without_a_range(monkeypatch, tmp_path, tiny_bert):
    """Trained, scored, predicted, reported and exported, with a linear head."""
    rows = [{"text": text, "label": 100.0 * number - 250} for number, text in enumerate(TEXTS)]
    run = train(monkeypatch, tmp_path, tiny_bert, NUMBER, rows)
    model = MultitaskBertModel.from_pretrained(run)
    assert [name for name, _ in model.heads["n"].named_parameters()] == ["classifier.weight", "classifier.bias"]
    table = MultitaskPipeline(model, AutoTokenizer.from_pretrained(run)).table("n", TEXTS)
    scores = json.loads((run / "metrics.json").read_text())
    error = np.sqrt(np.mean((np.array(table["score"][:]) - [row["label"] for row in rows]) ** 2))
    assert scores["eval_n_rmse"] == pytest.approx(error, rel=1e-4)
    assert scores["eval_overall"] == pytest.approx(1 / (1 + error), rel=1e-4)
    write_report(run, run / "report")
    page = (run / "report" / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "mean of 1 / (1 + rmse)" in page and (run / "report" / "scatter-n.png").exists()
    exported = tmp_path / "exported"
    export_classifier(model, "n").save_pretrained(exported)
    AutoTokenizer.from_pretrained(run).save_pretrained(exported)
    found = [entry["score"] for entry in pipeline("text-classification", str(exported))(TEXTS)]
    np.testing.assert_allclose(found, table["score"][:], rtol=1e-3, atol=1e-3)


def test_errors_without_a_range_have_a_place_in_the_overall_score():
    task = load_task(NUMBER)
    assert unit_score(task, 0.0) == 1 and unit_score(task, 3.0) == 0.25
    assert describe_overall({"n": task}) == "mean of 1 / (1 + rmse)"


RANGED = {"name": "r", "kind": "regression", "score_range": [0, 5]}


@pytest.mark.parametrize(
    ("task", "settings", "head"),
    [
        (RANGED, {}, SigmoidHead),
        (RANGED | {"head": "linear"}, {}, HEADS["linear"]),
        (RANGED | {"text_pair": "b"}, {"pair_encoding": "separate"}, HEADS["cosine"]),
        ({"name": "r", "kind": "regression", "head": "two_layer"}, {}, HEADS["two_layer"]),
        ({"name": "r", "kind": "classification", "label_names": NAMES, "head": "two_layer"}, {}, HEADS["two_layer"]),
        ({"name": "r", "kind": "binary", "label_names": ["n", "y"], "head": "linear"}, {}, HEADS["linear"]),
    ],
)
def test_a_task_may_name_its_head(tiny_bert, task, settings, head):
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task], **settings).eval()
    assert type(model.heads["r"]) is head
    again = load_task(model.config.tasks[0])
    assert again.head == task.get("head")
    ids = torch.tensor([[101, 2204, 102]])
    logits = model("r", ids[None].expand(1, 2, 3) if settings else ids).logits
    assert logits.shape == ((1, 3) if task["kind"] == "classification" else (1,))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (RANGED | {"head": "cosine"}, "head is 'cosine'; choose one of sigmoid, linear, two_layer"),
        ({"name": "r", "kind": "regression", "head": "sigmoid"}, "head is 'sigmoid'; choose one of linear, two_layer"),
        (RANGED | {"head": "deep"}, "head is 'deep'"),
        ({"name": "r", "kind": "binary", "label_names": ["n", "y"], "head": "sigmoid"}, "choose one of two_layer, lin"),
        (
            {"name": "r", "kind": "binary", "label_names": ["n", "y"], "loss": "cross_entropy"},
            "loss is 'cross_entropy'",
        ),
        (RANGED | {"divergence": "symmetric_kl"}, "divergence is 'symmetric_kl'; choose one of squared_error"),
    ],
)
def test_a_head_or_loss_that_does_not_fit_is_refused(tiny_bert, task, message):
    with pytest.raises(InputError, match=f"task 'r': .*{message}"):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task])


def test_a_trained_head_is_not_taken_for_another(tiny_bert, tmp_path):
    MultitaskBertModel.from_pretrained(tiny_bert, tasks=[RANGED]).save_pretrained(tmp_path)
    MultitaskBertModel.from_pretrained(tmp_path, tasks=[RANGED | {"head": "sigmoid"}])  # the default by its name
    with pytest.raises(InputError, match="trained with head 'sigmoid', not 'linear'"):
        MultitaskBertModel.from_pretrained(tmp_path, tasks=[RANGED | {"head": "linear"}])


def token_rows(count: int, seed: int) -> Dataset:
    """Rows of 3 to 12 tokens, two of whose labels are missing."""
    rng = np.random.default_rng(seed)
    ids = [[101, *rng.integers(1000, 1100, size), 102] for size in rng.integers(1, 11, count)]
    labels = [[UNLABELLED, *(np.array(row[1:-1]) % 3), UNLABELLED] for row in ids]
    columns = {"input_ids": ids, "token_type_ids": [[0] * len(row) for row in ids], "labels": labels}
    return Dataset.from_dict(columns | {"task": ["t"] * count})


@pytest.fixture
def token_trainer(tokens, tiny_bert, tmp_path):
    def make(**settings) -> MultitaskTrainer:
        torch.manual_seed(0)
        fields = {"name": "t", "kind": "tokens", "label_names": NAMES, "epochs": 2, "dropout": 0.0, "smart_weight": 1.0}
        quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[fields], **quiet)
        defaults = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
        defaults |= {"per_device_eval_batch_size": 4, "optim": "sgd", "learning_rate": 0.1}
        args = MultitaskTrainingArguments(
            **defaults | {"logging_steps": 2, "save_strategy": "no", "load_best_model_at_end": False} | settings
        )
        return MultitaskTrainer(model, args, token_rows(16, 0), token_rows(10, 1))

    return make


def test_labels_and_logits_of_every_token(token_trainer):
    """Batches of different widths pass evaluation, prediction and the log of the training metric."""
    trainer = token_trainer(per_device_train_batch_size=4)
    trainer.train()
    assert [entry["accuracy_t"] for entry in trainer.state.log_history if "accuracy_t" in entry]
    scores, rows = trainer.evaluate(), token_rows(10, 1)
    output = trainer.predict(rows)
    logits = predict_tasks(trainer.model, ["t"], rows, 4)["t"]
    longest = max(map(len, rows["input_ids"][:]))
    assert logits.shape == output.predictions.shape == (10, longest, 3)
    true, predicted, losses = [], [], []
    for number, row in enumerate(rows):
        with torch.no_grad():
            alone = trainer.model("t", torch.tensor([row["input_ids"]])).logits[0]
        for found in (logits[number], output.predictions[number]):
            np.testing.assert_allclose(found[: len(alone)], alone, atol=1e-5)
        labels = torch.tensor(row["labels"])
        losses += functional.cross_entropy(alone, labels, reduction="none")[1:-1].tolist()
        true += labels[1:-1].tolist()
        predicted += alone.argmax(-1)[1:-1].tolist()
    assert scores["eval_t_accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert scores["eval_t_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_step_is_divided_by_its_labelled_tokens(token_trainer):
    """However it is cut: shares have different numbers of tokens."""
    found = {}
    for rows, accumulation in [(8, 1), (2, 4)]:
        trainer = token_trainer(per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation)
        trainer.model.change_task(load_task(trainer.model.tasks["t"].to_config() | {"smart_weight": 0.0}))
        trainer.train()
        found[rows] = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    for name, weight in found[8].items():
        torch.testing.assert_close(found[2][name], weight, atol=1e-6, rtol=1e-5, msg=name)


def test_batches_of_lists_of_labels():
    rows = TaskRows({"t": token_rows(4, 0)})
    batch = Collator(0)(rows.__getitems__([("t", 0), ("t", 1), ("t", -1)]))
    assert batch["labels"].shape == batch["input_ids"].shape and batch["labels"].dtype == torch.int64
    assert (batch["labels"][2] == UNLABELLED).all() and (batch["labels"][:2] != UNLABELLED).any(1).all()
    padded = batch["attention_mask"] == 0
    assert (batch["labels"][padded] == UNLABELLED).all()
    vectors = [{"task": "v", "input_ids": [1], "token_type_ids": [0], "labels": [0.5, 1.5]}] * 2
    assert torch.equal(Collator(0)(vectors)["labels"], torch.tensor([[0.5, 1.5], [0.5, 1.5]]))


def test_rows_of_batches_of_different_width_are_joined():
    joined = join_rows([torch.ones(2, 3, 4), torch.ones(1, 5, 4)], 0)
    assert joined.shape == (3, 5, 4) and joined.sum() == (2 * 3 + 5) * 4 and not joined[0, 3:].any()
