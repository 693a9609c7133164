"""Tags of words: from files, lists and Hub datasets to tokens, training, scores, predictions, reports and exports."""

import csv
import json
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from conftest import NO_DROPOUT, run_here
from datasets import ClassLabel, Dataset, Features, List, Value
from pyarrow import parquet
from seqeval.metrics import classification_report, f1_score
from sklearn.metrics import accuracy_score
from torch.nn import functional
from transformers import AutoTokenizer, BertForTokenClassification, pipeline

from bert_multitask.data.rows import clean_rows, load_rows
from bert_multitask.data.token_rows import rows_by_task
from bert_multitask.data.tokens import tokenise
from bert_multitask.evaluation.intervals import resample
from bert_multitask.evaluation.metrics import METRICS, score, span_counts
from bert_multitask.evaluation.tables import (
    Predictions,
    check_alike,
    prediction_table,
    read_decisions,
    read_predictions,
    write_predictions,
)
from bert_multitask.inference.ensemble import combine, select_greedily
from bert_multitask.inference.export import export_classifier
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.split_tables import SplitTables, score_tables
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import DIVERGENCES, LOSSES, UNLABELLED
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import load_task
from bert_multitask.reporting.report import write_report
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.trainer import MultitaskTrainer

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NER = {"name": "ner", "kind": "token_classification", "text": "words", "label": "tags", "label_names": TAGS}
PEOPLE, PLACES, OTHERS = ["anna", "peter"], ["paris", "london", "rome"], "the a film was seen in by and".split()


def sentences(count: int, seed: int) -> list[dict]:
    """Rows of words that are always a person, a place or nothing; persons may have two words."""
    drawn, rows = random.Random(seed), []
    for _ in range(count):
        words, tags = [], []
        for _ in range(drawn.randint(3, 7)):
            name = drawn.choice(["PER", "LOC", "O", "O"])
            known = {"PER": PEOPLE, "LOC": PLACES, "O": OTHERS}[name]
            size = 2 if name == "PER" and drawn.random() < 0.5 else 1
            words += [drawn.choice(known), drawn.choice(["smith", "miller"])][:size]
            tags += ["O"] if name == "O" else [f"B-{name}", f"I-{name}"][:size]
        rows.append({"words": words, "tags": tags})
    return rows


def write_conll(path, rows):
    path.write_text(
        "-DOCSTART- -X- O\n\n"
        + "\n".join("".join(f"{w} X {t}\n" for w, t in zip(row["words"], row["tags"], strict=True)) for row in rows)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert):
    """A run folder of ner beside sst, both round-robin, with SMART, of rows in CoNLL columns."""
    folder = tmp_path_factory.mktemp("tags")
    write_conll(folder / "train.conll", sentences(200, 0))
    write_conll(folder / "dev.conll", sentences(40, 1))
    sst = [{"sentence": word, "sentiment": n % 5} for n, word in enumerate(OTHERS)]
    (folder / "sst.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sst))
    ner = NER | {"text": "0", "label": "-1", "smart_weight": 0.1, "epochs": 4, "dropout": 0.1}
    other = {"name": "film", "kind": "classification", "label": "sentiment", "label_names": list("abcde"), "epochs": 2}
    settings = {
        "model_name_or_path": tiny_bert,
        "data_dir": str(folder),
        "output_dir": str(folder / "run"),
        "tasks": [
            other | {"files": dict.fromkeys(("train", "dev"), "sst.jsonl")},
            ner | {"files": {"train": "train.conll", "dev": "dev.conll"}},
        ],
        "schedule": "round_robin",
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "logging_steps": 20,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, folder / "run.yaml") == 0
    return folder / "run"


def test_a_run_learns_tags(run):
    scores = json.loads((run / "metrics.json").read_text())
    assert scores["eval_ner_entity_f1"] > 0.9
    table = read_predictions(run / "predictions" / "ner-dev.parquet")
    true = [row["tags"] for row in sentences(40, 1)]
    predicted = [[TAGS[tag] for tag in tags] for tags in table.table["label"][:]]
    assert scores["eval_ner_entity_f1"] == pytest.approx(f1_score(true, predicted))
    with open(run / "predictions" / "ner-dev.csv", newline="") as file:
        assert [row["label"].split(" ") for row in csv.DictReader(file)] == predicted
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert any({"entity_f1_ner", "smart_ner", "loss_ner"} <= entry.keys() for entry in history)
    assert "token-classification" in (run / "README.md").read_text()


def test_a_report_shows_tagged_words_and_a_picture(run, tmp_path):
    rows = sentences(40, 1)
    found = read_predictions(run / "predictions" / "ner-dev.parquet")
    columns = found.table.to_dict()
    columns["label"][3] = [1] * len(rows[3]["words"])
    table = Predictions(found.task, Dataset.from_dict(columns), "changed")
    (tmp_path / "predictions").mkdir()
    write_predictions(found.task, table.table, tmp_path / "predictions" / "ner-dev")
    place = json.dumps({"name": "ner", "text": "0", "label": "-1", "files": {"train": "x", "dev": "dev.conll"}})
    write_report(tmp_path, tmp_path / "report", data_dir=str(run.parent), tasks=[place])
    page = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
    assert (tmp_path / "report" / "tags-ner.png").exists()
    assert "micro F1 of entities" in page
    assert "true" in page and " ".join(f"{word}/B-PER" for word in rows[3]["words"]) in page
    true = [f"{word}/{tag}" for word, tag in zip(rows[3]["words"], rows[3]["tags"], strict=True) if tag != "O"]
    assert " ".join(true) in page
    write_report(run, tmp_path / "own", other=tmp_path, tasks=[place])
    assert "Comparison" in (tmp_path / "own" / "report.md").read_text()


def test_a_run_predicts_and_votes_as_it_did(run):
    """By the door that the predict and ensemble commands go through."""
    found = SplitTables([TrainedRun.open(str(run)), str(run)], "dev", tasks=["ner"])
    (again, written) = (member.tables["ner"].table for member in found.members)
    assert again["label"][:] == written["label"][:]
    both = combine(found.tasks["ner"], [again, written], "soft")
    assert both["label"][:] == written["label"][:]
    scores = score_tables(found.tasks, {"ner": both}, found.labels)
    assert scores["eval_ner_entity_f1"] == json.loads((run / "metrics.json").read_text())["eval_ner_entity_f1"]
    assert select_greedily(found.tasks["ner"], [again, written], found.labels["ner"]) == [0]


def test_an_export_is_a_stock_token_classifier(run, tmp_path):
    model, tokenizer = MultitaskBertModel.from_pretrained(run).eval(), AutoTokenizer.from_pretrained(run)
    exported = export_classifier(model, "ner")
    assert type(exported) is BertForTokenClassification
    inputs = tokenizer(["anna smith was in rome", "paris"], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours, theirs = model("ner", **inputs).logits, exported(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-6, rtol=1e-5)
    assert not ours[~real].any()
    exported.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = pipeline("token-classification", str(tmp_path), aggregation_strategy="simple")("anna smith was in rome")
    assert [(part["entity_group"], part["word"]) for part in found] == [("PER", "anna smith"), ("LOC", "rome")]


def test_plain_texts_and_lists_of_words_are_predicted(run):
    pipe = MultitaskPipeline(run)
    words, tags = ["anna", "smith", "was", "in", "rome"], ["B-PER", "I-PER", "O", "O", "B-LOC"]
    answers = pipe("ner", ["anna  smith was in rome", words, {"text": words, "other": 1}, ""])
    assert [answer["label"] for answer in answers] == [tags, tags, tags, []]
    assert all(max(word, key=word.get) == tag for word, tag in zip(answers[0]["probabilities"], tags, strict=True))
    assert pipe.all("anna smith was in rome")["ner"] == pipe("ner", "anna smith was in rome")
    frame = pipe("ner", pd.DataFrame({"0": [words, "rome \u200b"]}))
    assert frame["ner_label"].tolist() == [" ".join(tags), "B-LOC _"]
    with pytest.raises(InputError, match=r"rows\[1\] is .*; task 'ner' takes a text"):
        pipe("ner", ["a", [["a"]]])
    assert len(pipe.table("ner", [])) == 0


# Rows.

ROW = {"words": ["EU", "rejects", "New York"], "tags": ["B-LOC", "O", "I-PER"]}
CLEAN = {"text": "EU rejects New_York", "label": [3, 0, 2]}


def both(name):
    return dict.fromkeys(("train", "dev"), name)


def from_conll(folder):
    (folder / "a.conll").write_text("-DOCSTART-\t-X-\n\n\nEU\tB-LOC\nrejects\tO\nNew York\tI-PER\n\n\n-DOCSTART- -X-\n")
    return load_rows(load_task(NER | {"text": "0", "label": "1", "files": both("a.conll")}), str(folder))["train"]


def from_csv(folder):
    (folder / "a.csv").write_text("words,tags\nEU rejects New_York,B-LOC O i-per\n")
    return load_rows(load_task(NER | {"files": both("a.csv")}), str(folder))["train"]


def from_json(folder):
    (folder / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    return load_rows(load_task(NER | {"files": both("a.jsonl")}), str(folder))["train"]


def class_labels(folder):
    features = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=TAGS[::-1]))})
    return Dataset.from_list([ROW], features=features)


def from_parquet(folder):
    class_labels(folder).to_parquet(folder / "a.parquet")
    return load_rows(load_task(NER | {"files": both("a.parquet")}), str(folder))["train"]


def from_memory(folder):
    return clean_rows(load_task(NER), class_labels(folder))


def from_hub(folder):
    class_labels(folder).to_parquet(folder / "train.parquet")
    source = {"path": str(folder), "text": "words", "label": "tags", "splits": both("train")}
    return load_rows(load_task(NER | {"hub": source}), "hub")["train"]


@pytest.mark.parametrize("source", [from_conll, from_csv, from_json, from_parquet, from_memory, from_hub])
def test_every_source_gives_the_same_rows(tmp_path, source):
    rows = source(tmp_path)
    assert rows.remove_columns("id").to_list() == [CLEAN]


def test_missing_tags_and_words_without_characters():
    rows = [
        {"words": ["a", "", None, "\u00a0"], "tags": ["O", None, "NA", -1]},
        {"words": np.array(["a", "b"]), "tags": None},
        {"words": "a b", "tags": "NA"},
        {"words": [], "tags": []},
    ]
    found = clean_rows(load_task(NER), rows)
    gap = UNLABELLED
    assert found["text"][:] == ["a _ _ _", "a b", "a b", ""]
    assert found["label"][:] == [[0, gap, gap, gap], [gap, gap], [gap, gap], []]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "row 2: has 2 words and 1 tags"),
        ({"words": "a b", "tags": "O O O"}, "row 2: has 2 words and 3 tags"),
        (
            {"words": ["a", "b"], "tags": ["O", "B-ORG"]},
            "row 2: tags has 'B-ORG'; expected a list of tags, each .*B-PER",
        ),
        ({"words": "a b", "tags": "O B-ORG"}, "row 2: tags has 'B-ORG'; expected a list"),
        ({"words": ["a"], "tags": 1}, "row 2: tags is 1; expected a list of tags"),
        ({"words": [["a"]], "tags": ["O"]}, "row 2 holds .*expected a text"),
    ],
)
def test_rows_that_do_not_fit_are_refused(row, message):
    with pytest.raises(InputError, match=message):
        clean_rows(load_task(NER), [{"words": "a", "tags": "O"}, row])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU B-LOC\nrejects\n", "a.conll: line 2 has 1 columns; those before it have 2"),
        ("EU\nrejects\n", "a.conll, row 1: no column '1'; its columns are 0"),
        ("EU O\n\na\xff O\n", "a.conll: line 3 is not UTF-8"),
        ("EU B-ORG\n", "a.conll, row 1: 1 has 'B-ORG'"),
    ],
)
def test_damaged_columns_are_refused(tmp_path, content, message):
    (tmp_path / "a.conll").write_bytes(content.encode("latin-1"))
    task = load_task(NER | {"text": "0", "label": "1", "files": both("a.conll")})
    with pytest.raises(InputError, match=message):
        load_rows(task, str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_pair": "other"}, "text_pair is 'other'; .*one text"),
        ({"prediction_column": "Predicted"}, "prediction_column is 'Predicted'"),
        ({"label_names": ["O", "B-New York"]}, "'B-New York'"),
        ({"label_names": ["NOUN", "VERB"]}, "'NOUN'; .*metric: accuracy"),
        ({"label_names": ["O"]}, "two or more label_names"),
        ({"score_range": [0, 1]}, "score_range"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(InputError, match=f"task 'ner': .*{message}"):
        load_task(NER | fields)


# Tokens, losses, divergences.


def test_the_first_token_of_a_word_has_its_tag(tokenizer, caplog, propagated_logs):
    rows = [
        {"words": "unbelievably good", "tags": "B-PER O"},
        {"words": ["\u200b", "in", "rome", "and", "in", "paris"], "tags": "O O B-LOC O O I-LOC"},
    ]
    task = load_task(NER)
    tokens = tokenise(task, clean_rows(task, rows), tokenizer, 6)
    for row, labels in zip(tokens, ([1, 0], [0, 3, 0, 0]), strict=True):
        words = [tokenizer.decode(row["input_ids"][start]) for start in row["word_starts"] if start >= 0]
        assert [row["labels"][start] for start in row["word_starts"] if start >= 0] == labels[: len(words)]
        assert sum(label != UNLABELLED for label in row["labels"]) == len(words)
        assert len(row["labels"]) == len(row["input_ids"])
    assert tokens["word_starts"][1] == [-1, 1, 2, 3, 4, -1] and words == ["in", "rome", "and", "in"]
    lost = sum(row.count(-1) for row in tokens["word_starts"][:])
    assert any(f"ner: {lost} words of" in message and "of 2 rows" in message for message in caplog.messages)


def test_a_word_that_is_cut_off_has_no_prediction_and_no_score(tokenizer, tmp_path):
    task = load_task(NER)
    rows = clean_rows(task, [{"words": "anna was in rome", "tags": "B-PER O O B-LOC"}])
    tokens = tokenise(task, rows, tokenizer, 4)
    logits = np.eye(5, dtype=np.float32)[[[0, 1, 0, 0]]] * 9
    table = prediction_table(task, ["0"], logits, tokens)
    assert table["label"][:] == [[1, 0, UNLABELLED, UNLABELLED]]
    write_predictions(task, table, tmp_path / "ner-dev")
    assert (tmp_path / "ner-dev.csv").read_text() == "id,label\n0,B-PER O _ _\n"
    again = read_predictions(tmp_path / "ner-dev.parquet").table
    assert again.to_dict() == table.to_dict()
    assert score(task, read_decisions(task, again), np.array(rows["label"][:])) == 1
    assert score(task, logits.argmax(-1), np.array(tokens["labels"][:])) == 1


def test_tables_of_other_forms_are_refused(tmp_path):
    task = load_task(NER)
    good = {"id": ["0"], "label": [[0, 1]]}
    write_predictions(task, Dataset.from_dict(good), tmp_path / "ner-dev")
    for label, message in [([[0, 5]], "expected a list of classes from 0 to 4"), ([0], "row 1 has the label 0")]:
        write_predictions_as(task, good | {"label": label}, tmp_path / "ner-dev.parquet")
        with pytest.raises(InputError, match=message):
            read_predictions(tmp_path / "ner-dev.parquet")
    first = Predictions(task, Dataset.from_dict(good), "first")
    with pytest.raises(InputError, match="second: row 1 has 3 labels, and 2 in first"):
        check_alike([first, Predictions(task, Dataset.from_dict(good | {"label": [[0, 0, 0]]}), "second")])
    with pytest.raises(InputError, match="row 1 has not as many probabilities as words"):
        combine(task, [Dataset.from_dict(good | {"probabilities": [[[1.0, 0, 0, 0, 0]]]})] * 2)


def write_predictions_as(task, columns, path):
    table = pa.table(columns).replace_schema_metadata({"task": json.dumps(task.to_config()), "split": "dev"})
    parquet.write_table(table, path)


def test_the_loss_is_torchs_over_tagged_words():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (3, 7))
    labels[torch.rand(3, 7) < 0.4] = UNLABELLED
    weights = [1.0, 2.0, 0.5, 3.0, 1.0]
    for options, ours in [({}, {}), ({"weight": torch.tensor(weights).double()}, {"class_weights": weights})]:
        expected = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=UNLABELLED, **options)
        found = LOSSES["cross_entropy"](logits=logits, labels=labels, **ours)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))
    parts = [
        LOSSES["cross_entropy"](logits=logits[n], labels=labels[n], num_items=(labels >= 0).sum()) for n in range(3)
    ]
    torch.testing.assert_close(sum(parts), LOSSES["cross_entropy"](logits=logits, labels=labels))


def test_padding_adds_nothing_to_the_divergence():
    generator = torch.Generator().manual_seed(0)
    clean, perturbed = torch.randn(2, 2, 6, 5, dtype=torch.float64, generator=generator)
    lengths = [6, 3]
    expected = []
    for row, length in enumerate(lengths):
        p, q = perturbed[row, :length].softmax(-1), clean[row, :length].softmax(-1)
        expected.append(((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean())
        perturbed[row, length:] = clean[row, length:] = 0
    for width in (6, 9):
        wide = [functional.pad(logits, (0, 0, 0, width - 6)) for logits in (perturbed, clean)]
        torch.testing.assert_close(DIVERGENCES["token_symmetric_kl"](*wide), torch.stack(expected))


def test_logits_of_padding_are_zero(tiny_bert, tokenizer):
    """Also for embeddings from outside, as SMART gives them; so a row's divergence does not depend on its batch."""
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[NER]).eval()
    batch = tokenizer(["anna was in rome and in paris", "rome"], padding=True, return_tensors="pt")
    embeddings = model.encoder("ner").embeddings.word_embeddings(batch.pop("input_ids"))
    with torch.no_grad():
        logits = model("ner", inputs_embeds=embeddings, **batch).logits
        alone = model("ner", inputs_embeds=embeddings[1:, :3]).logits
    assert not logits[1, 3:].any() and logits[0].ne(0).any(-1).all()
    torch.testing.assert_close(logits[1:, :3], alone, atol=1e-5, rtol=1e-5)


def test_rows_of_other_lengths_are_refused(tiny_bert, tokenizer):
    task = load_task(NER)
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task])
    tokens = tokenise(task, clean_rows(task, sentences(2, 0)), tokenizer, 32).to_list()
    assert rows_by_task(tokens, model, "rows")["ner"]["labels"][:] == [row["labels"] for row in tokens]
    raw = rows_by_task(Dataset.from_list(sentences(2, 0)), model, "rows", "train", tokenizer)
    assert raw["ner"]["labels"][:] == [row["labels"] for row in tokens]
    tokens[1]["labels"] = tokens[1]["labels"][:-1]
    with pytest.raises(InputError, match=r"rows\['ner'\]: the label of row 1 has not as many classes"):
        rows_by_task(tokens, model, "rows")
    rows = Dataset.from_dict({"id": ["x"], "text": ["a b"], "label": [[0]]})
    with pytest.raises(InputError, match="row with id 'x': has 2 words and 1 tags"):
        tokenise(task, rows, tokenizer, 32)


@pytest.mark.parametrize("schedule", ["round_robin", "sequential"])
def test_a_step_may_be_cut_in_pieces(schedule, tiny_bert, tokenizer, tmp_path):
    """Shares have different numbers of words; the weights after four steps of two tasks are the same."""
    task = load_task(NER | {"dropout": 0.0, "epochs": 1})
    other = load_task(
        NER | {"name": "pos", "label_names": ["N", "V"], "metric": "accuracy", "dropout": 0.0, "epochs": 1}
    )
    rows = {
        "ner": tokenise(task, clean_rows(task, sentences(16, 2)), tokenizer, 32),
        "pos": tokenise(
            other,
            clean_rows(other, [{"words": ["a", "b"] * n, "tags": "N V " * n} for n in range(1, 17)]),
            tokenizer,
            32,
        ),
    }
    found = []
    for size, accumulation in [(8, 1), (2, 4)]:
        torch.manual_seed(0)
        model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task, other], **NO_DROPOUT)
        args = MultitaskTrainingArguments(
            output_dir=str(tmp_path),
            schedule=schedule,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            use_cpu=True,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = MultitaskTrainer(model, args, rows)
        trainer.train()
        assert trainer.state.global_step == 4
        found.append(dict(model.named_parameters()))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-6, rtol=1e-5, msg=name)


# Scores and votes.


def random_tags(names: list[str], seed: int) -> tuple[np.ndarray, np.ndarray, list, list]:
    """Predictions and labels (N, W) with gaps, and the same as names."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 60)
    inside = np.arange(9) < lengths[:, None]
    both = np.where(inside, rng.integers(0, len(names), (2, 60, 9)), UNLABELLED)
    both[1] = np.where((rng.random((60, 9)) < 0.6) & inside, both[0], both[1])
    lists = [[[names[tag] for tag in row if tag >= 0] for row in part] for part in both]
    return *both, *lists


IOBES = ["O", *(f"{prefix}-{name}" for prefix in "BIES" for name in ("PER", "LOC"))]


@pytest.mark.parametrize("names", [TAGS, IOBES])
def test_entity_f1_is_seqevals(names):
    task = load_task(NER | {"label_names": names})
    predicted, true, predicted_names, true_names = random_tags(names, 0)
    expected = f1_score(true_names, predicted_names)
    assert 0.1 < expected < 0.9
    assert score(task, predicted, true) == pytest.approx(expected)
    metric = METRICS["entity_f1"]()
    assert metric.compute(predictions=predicted_names, references=true_names) == {"entity_f1": pytest.approx(expected)}
    report = classification_report(true_names, predicted_names, output_dict=True)
    for name, (right, guessed, real) in span_counts(task, predicted, true).items():
        assert 2 * right / (guessed + real) == pytest.approx(report[name]["f1-score"])
    resampled = resample(task, predicted, true, 0, 0)
    assert abs(resampled.mean() - expected) < 0.02 and resampled.std() > 0.01


def test_accuracy_is_of_words():
    task = load_task(NER | {"label_names": ["N", "V", "."], "metric": "accuracy"})
    predicted, true, predicted_names, true_names = random_tags(["N", "V", "."], 1)
    expected = accuracy_score(sum(true_names, []), sum(predicted_names, []))
    assert score(task, predicted, true) == pytest.approx(expected)
    found = METRICS["word_accuracy"]().compute(predictions=predicted_names, references=true_names)
    assert found == {"word_accuracy": pytest.approx(expected)}

    class Mine(METRICS["word_accuracy"]):
        """A metric that is not in the table."""

    assert Mine().compute(predictions=predicted_names, references=true_names) == {"Mine": pytest.approx(expected)}


def test_entity_f1_needs_its_package(monkeypatch, tiny_bert, tokenizer, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    task = load_task(NER)
    rows = tokenise(task, clean_rows(task, sentences(4, 0)), tokenizer, 32)
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task])
    args = MultitaskTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(InputError, match=r"entity_f1 needs seqeval: pip install '.\[ner\]'"):
        MultitaskTrainer(model, args, {"ner": rows}, {"ner": rows})


def test_members_vote_word_by_word():
    task = load_task(NER | {"label_names": ["O", "B-X", "I-X"]})

    def member(*rows):
        """Tables of one distribution a word; None for a word that was cut off."""
        chances = [[word or [0.0] * 3 for word in row] for row in rows]
        labels = [[UNLABELLED if word is None else int(np.argmax(word)) for word in row] for row in rows]
        return Dataset.from_dict({"id": ["a", "b"], "label": labels, "probabilities": chances})

    sure, weak, other = [0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.0, 0.1, 0.9]
    members = [member([sure, weak], [weak, sure, None]), member([weak, weak], [other, None, None])]
    members.append(member([weak, sure], [None, None, None]))
    mode, soft = combine(task, members, "mode"), combine(task, members, "soft")
    # The second row's first word: one vote each for 1 and 2, of mean probability .35 and .45.
    assert mode["label"][:] == [[1, 1], [2, 0, UNLABELLED]]
    assert soft["label"][:] == [[0, 0], [2, 0, UNLABELLED]]
    expected = [
        [np.mean([sure, weak, weak], 0), np.mean([weak, weak, sure], 0)],
        [np.mean([weak, other], 0), sure, [0] * 3],
    ]
    for found, row in zip(soft["probabilities"][:], expected, strict=True):
        np.testing.assert_allclose(found, row, atol=1e-6)
    bare = [table.remove_columns("probabilities") for table in members]
    assert combine(task, bare, "mode")["label"][0] == [1, 1]
    with pytest.raises(InputError, match="soft vote"):
        combine(task, bare, "soft")
