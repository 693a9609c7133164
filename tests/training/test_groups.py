"""Groups: several labels of one text, each with a head, and one pass of the encoder for all."""

import copy
import json
from pathlib import Path
from unittest import mock

import launched
import numpy as np
import pytest
import torch
import yaml
from conftest import NO_DROPOUT, ROOT, finish, launch, losses, run_here, run_killed, weights
from datasets import Dataset
from launched import smooth_noise
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModel, set_seed

from bert_multitask import (
    MultitaskPipeline,
    MultitaskTrainer,
    MultitaskTrainingArguments,
    export_classifier,
    with_label_names,
)
from bert_multitask.data.collate import Collator
from bert_multitask.data.rows import HANDOUT, load_rows, warn_of_other_draws
from bert_multitask.data.token_rows import join_groups, rows_by_task
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import load_task, load_tasks
from bert_multitask.training.conflicts import GradientCosines

SECTION = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split("## Several labels of one text")[1]
GROUP = yaml.safe_load(SECTION.split("```yaml")[1].split("```")[0])["tasks"][1]
TASKS = ["stars", "topic", "people"]
WORDS = "Anna Bob soup bread kind slow cheap fine place waiter".split()
LEVERS = {
    "stars": {"rdrop_weight": 0.5},
    "topic": {"smart_weight": 1.0, "class_weights": {"food": 1, "price": 2, "service": 4}, "label_smoothing": 0.1},
    "people": {"smart_weight": 0.5, "bregman_weight": 0.5},
}


def make_rows(count: int, missing: bool = True) -> list[dict]:
    """Rows of the documented form; of each label every few rows lack it, and the second row lacks all."""
    generator, rows = np.random.default_rng(3), []
    for number in range(count):
        words = generator.choice(WORDS, size=3 + number % 4).tolist()
        row = {
            "body": " ".join(words),
            "stars": 1.0 + number % 5,
            "topic": ["food", "price", "service"][number % 3],
            "tags": ["B-PER" if word in WORDS[:2] else "O" for word in words],
        }
        for place, name in enumerate(("stars", "topic", "tags")):
            if missing and number % (place + 3) == 1:
                row[name] = None
        rows.append(row)
    return rows


def test_the_group_of_the_page_in_python(tiny_bert, tokenizer):
    example, names = SECTION.split("```python")[1].split("```")[0], {}
    exec(example.replace("google-bert/bert-base-uncased", tiny_bert), names)
    model, rows = names["model"], {"reviews": names["rows"]}
    assert model.units == {"reviews": ["stars", "topic"]} and model.tasks["topic"].label_names == ("food", "service")
    assert rows_by_task(rows, model, "rows", "train", tokenizer).keys() == {"stars", "topic"}
    pipe = MultitaskPipeline(model, tokenizer)
    message = r"'reviews' is a group of stars, topic; name one of its tasks, or answer all .* all\(text\)"
    for ask in (pipe, pipe.table):
        with pytest.raises(InputError, match=message):
            ask("reviews", "x")
    with pytest.raises(InputError, match="'reviews' is a group of stars, topic; name one of its tasks$"):
        export_classifier(model, "reviews", tokenizer)
    with pytest.raises(InputError, match="group 'reviews' is several tasks; .* Task of its own with group='reviews'"):
        with_label_names(GROUP, rows=names["rows"])


def group(levers=(), **fields) -> dict:
    """The documented group, its tasks without dropout and with the fields of {task: fields}."""
    labels = [label | {"dropout": 0.0} | dict(levers).get(label["name"], {}) for label in GROUP["labels"]]
    return GROUP | {"epochs": 2, "labels": labels} | fields


@pytest.fixture
def make(tiny_bert, tokenizer, tmp_path):
    """A trainer of a group of 13 rows."""

    def make(levers=(), rows=None, **settings) -> MultitaskTrainer:
        set_seed(0)
        model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[group(levers)], **NO_DROPOUT)
        rows = make_rows(13) if rows is None else rows
        defaults = {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 8, "optim": "sgd"}
        defaults |= {"learning_rate": 1e-2, "report_to": "none", "eval_strategy": "no", "save_strategy": "no"}
        defaults |= {"load_best_model_at_end": False, "disable_tqdm": True, "logging_steps": 1}
        args = MultitaskTrainingArguments(**defaults | settings)
        data = {"train_dataset": {"reviews": rows}, "eval_dataset": {"reviews": make_rows(9)}}
        return MultitaskTrainer(model, args, processing_class=tokenizer, **data)

    return make


def reference_loss(model, batch, items=None) -> torch.Tensor:
    """The sum of the weighted losses by torch, of each task's own forward pass."""
    inputs = {key: value for key, value in batch.items() if key not in ("task", "labels")}
    found = []
    for name in TASKS:
        logits, labels = model(name, **inputs).logits, batch["labels"][name]
        if name == "stars":
            known = ~labels.isnan()
            loss = functional.mse_loss(logits[known], labels[known], reduction="sum") / known.sum()
        else:
            loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        found.append(model.tasks[name].loss_weight * loss)
    return sum(found)


def test_an_entry_is_its_tasks():
    tasks = load_tasks([group()])
    assert list(tasks) == TASKS and {task.unit for task in tasks.values()} == {"reviews"}
    assert all(task.text == "body" and task.word_by_word and task.epochs == 2 for task in tasks.values())
    assert tasks["people"].loss_weight == 2 and tasks["stars"].score_range == (1, 5)
    again = load_tasks(json.loads(json.dumps([task.to_config() for task in tasks.values()])))
    assert [task.to_config() for task in again.values()] == [task.to_config() for task in tasks.values()]
    from_hub = load_tasks([group(hub={"path": "someone/reviews", "text": "body"})])
    assert [task.hub.label for task in from_hub.values()] == ["stars", "topic", "tags"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GROUP | {"labels": []}, "group 'reviews': labels is \\[\\]"),
        (GROUP | {"labels": ["sst"]}, "group 'reviews': labels is"),
        (GROUP | {"kind": "binary"}, "group 'reviews': kind belongs to one of its labels"),
        (GROUP | {"name": "stars"}, "group 'stars' and task 'stars' share a name"),
        (GROUP | {"name": 3}, "the name 3"),
        (
            group({"topic": {"text": "title"}}),
            "'stars' and 'topic' of group 'reviews' differ in text, 'body' and 'title'",
        ),
        (group({"topic": {"epochs": 5}}), "differ in epochs, 2 and 5"),
        (group({"topic": {"name": "stars"}}), "'stars' twice"),
        (group({"topic": {"truncation": "tail"}}), "differ in truncation"),
        (group(text_pair="title"), "text_pair"),
        (group(text=["a", "b"]), "text is \\['a', 'b'\\]"),
        (group(extra_train=[{"file": "a.csv", "label": "x"}]), "group 'reviews': extra_train"),
    ],
)
def test_mistakes_are_named(entry, message):
    with pytest.raises(InputError, match=message):
        load_tasks([entry])


def test_one_encoder_for_each_task_is_refused(tiny_bert):
    with pytest.raises(InputError, match="tasks stars, topic, people are the group 'reviews', which one encoder reads"):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[group()], encoder_sharing="per_task")
    with pytest.raises(InputError, match="encoder_sharing 'adapters' each task has its own"):
        settings = {"encoder_sharing": "adapters", "peft_config": {"r": 2}}
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[group()], **settings)
    alone = group(labels=group()["labels"][:1])
    assert list(MultitaskBertModel.from_pretrained(tiny_bert, tasks=[alone], encoder_sharing="per_task").encoders)


def test_one_pass_gives_what_the_tasks_give(make):
    """Logits and losses of each task alone, the gradient of the sum, and one call of the encoder."""
    trainer = make()
    model, batch = trainer.model.eval(), next(iter(trainer.get_train_dataloader()))
    inputs = {key: value for key, value in batch.items() if key not in ("task", "labels")}
    with mock.patch.object(model.bert, "forward", wraps=model.bert.forward) as encoder:
        output = model(**batch)
    assert encoder.call_count == 1 and list(output.logits) == TASKS
    for name in TASKS:
        torch.testing.assert_close(output.logits[name], model(name, **inputs).logits, atol=1e-6, rtol=0)
    alone = [model(name, **inputs, labels=batch["labels"][name]).loss for name in TASKS]
    assert output.loss.item() == pytest.approx(sum(alone).item(), rel=1e-6)
    assert list(model(["topic", "stars"], **inputs).logits) == ["topic", "stars"]
    with pytest.raises(InputError, match="no task 'reviewz'; it has stars"):
        model("reviewz", **inputs)


def test_the_gradient_of_a_group_is_weighted_as_it_trains(make):
    """What `--gradient_cosine_steps` measures: with the tasks' loss_weight."""
    trainer, batches = make(), []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
    (found,) = GradientCosines(trainer, 1).gradients(1).values()
    model = copy.deepcopy(trainer.model).eval()
    for batch, gradient in zip(batches, found, strict=True):
        model.zero_grad()
        reference_loss(model, batch).backward()
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in model.bert.parameters()]
        torch.testing.assert_close(gradient, torch.cat([part.flatten() for part in parts]), atol=1e-6, rtol=1e-4)


def test_a_step_is_torchs_gradient(make):
    """One step of SGD, by the reference's gradient of the same batch, with gaps among the labels."""
    trainer = make(max_steps=1, max_grad_norm=0)
    model, batch = copy.deepcopy(trainer.model).eval(), next(iter(trainer.get_train_dataloader()))
    assert len(trainer.train_dataset.tasks["reviews"]) == 12, "a row without any label is left out"
    reference_loss(model, batch).backward()
    expected = {
        name: weight - 1e-2 * weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    trainer.train()
    got = weights(trainer)
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, atol=1e-6, rtol=0, msg=name)
    entry = trainer.state.log_history[0]
    parts = [model.tasks[name].loss_weight * entry[f"loss_{name}"] for name in TASKS]
    assert entry["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert {"pearson_stars", "accuracy_topic", "entity_f1_people"} & entry.keys()


SUMMED = {"smart_place": "embeddings", "smart_reduction": "sum"}


@pytest.mark.parametrize(
    ("levers", "smart"), [({}, {}), (LEVERS, {}), (LEVERS, SUMMED)], ids=["plain", "levers", "SMART as its library"]
)
def test_accumulation_changes_nothing(make, levers, smart):
    """Batches of 8, and of 2 four times, with SMART, its Bregman term, R-Drop, class weights and gaps."""
    runs = {}
    for rows, accumulation in ((8, 1), (2, 4)):
        size = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        ball = {"smart_radius": 0.02, "smart_step_size": 0.02, "smart_noise_std": 0.02}
        trainer = make(levers, **size, **ball, **smart)
        with mock.patch.object(torch, "randn_like", smooth_noise):
            trainer.train()
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        runs[rows] = weights(trainer), [entry["loss"] for entry in history], history
    np.testing.assert_allclose(runs[2][1], runs[8][1], rtol=1e-4)
    for name, weight in runs[8][0].items():
        torch.testing.assert_close(runs[2][0][name], weight, atol=1e-5, rtol=0, msg=name)
    if levers:
        logged = set().union(*runs[8][2])
        assert {"smart_topic", "smart_people", "bregman_people", "rdrop_stars"} <= logged
        assert not {"smart_stars", "rdrop_topic", "bregman_topic"} & logged
        assert min(entry["smart_topic"] for entry in runs[8][2]) > 0


def test_a_plain_task_and_a_group_of_one_train_alike(tiny_bert, tokenizer, tmp_path):
    rows = {}
    for name in ("plain", "grouped"):
        set_seed(0)
        fields = {"name": "topic", "kind": "classification", "label_names": ["food", "price", "service"]}
        entry = fields | {"text": "body", "label": "topic", "epochs": 1, "smart_weight": 1.0}
        if name == "grouped":
            entry = {
                "name": "one",
                "text": "body",
                "epochs": 1,
                "labels": [fields | {"label": "topic", "smart_weight": 1.0}],
            }
        model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[entry])
        args = MultitaskTrainingArguments(
            output_dir=str(tmp_path),
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
        )
        given = {"topic" if name == "plain" else "one": make_rows(9, missing=False)}
        trainer = MultitaskTrainer(model, args, given, given, processing_class=tokenizer)
        trainer.train()
        rows[name] = weights(trainer), {key: value for key, value in trainer.evaluate().items() if "runtime" not in key}
    assert rows["plain"][1] == rows["grouped"][1]
    assert all(torch.equal(weight, rows["plain"][0][name]) for name, weight in rows["grouped"][0].items())


def test_evaluation_is_each_tasks_own(make):
    """The scores of each task by itself, from one pass of the encoder a batch; users' metrics too."""
    trainer = make()
    trainer.metric_functions = {"topic": lambda prediction: {"rows": float(len(prediction.label_ids))}}
    tokens = rows_by_task({"reviews": make_rows(9)}, trainer.model, "rows", "dev", trainer.processing_class)
    alone = [trainer.evaluate({name: tokens[name]}) for name in TASKS]
    with mock.patch.object(trainer.model.bert, "forward", wraps=trainer.model.bert.forward) as encoder:
        together = trainer.evaluate()
    assert encoder.call_count == 1, "of the only batch"
    keys = ["eval_stars_pearson", "eval_stars_loss", "eval_topic_accuracy", "eval_topic_rows", "eval_people_entity_f1"]
    for key in keys:
        assert together[key] == pytest.approx(next(scores[key] for scores in alone if key in scores), abs=1e-6)
    assert together["eval_topic_rows"] == sum(row["topic"] is not None for row in make_rows(9))
    again = trainer.evaluate(dict(trainer.eval_dataset))
    assert {key: again[key] for key in keys} == {key: together[key] for key in keys}
    output = trainer.predict({"reviews": make_rows(9)})
    assert {name: len(values) for name, values in output.predictions.items()} == dict.fromkeys(TASKS, 9)
    assert {key: output.metrics[key.replace("eval", "test")] for key in keys} == {key: again[key] for key in keys}


def test_rows_of_a_group_are_the_same_texts(make, tokenizer):
    trainer = make()
    tokens = rows_by_task({"reviews": make_rows(9)}, trainer.model, "rows", "dev", tokenizer)
    tokens["topic"] = tokens["topic"].select(range(8, -1, -1))
    with pytest.raises(InputError, match="the rows of 'stars' and 'topic', tasks of group 'reviews', are not the same"):
        trainer.evaluate(tokens)
    with pytest.raises(InputError, match="is tokenised; give {task: rows} of stars, topic, people"):
        trainer.evaluate({"reviews": tokens["stars"]})


def test_dev_share_takes_the_same_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, make_rows(40))))
    tasks = load_tasks([group(files={"train": str(tmp_path / "rows.jsonl")}, dev_share=0.2)])
    dev = [load_rows(task)["dev"]["id"][:] for task in tasks.values()]
    assert dev[0] == dev[1] == dev[2] and 4 <= len(dev[0]) <= 12


def test_tasks_that_draw_other_dev_rows_are_named(tmp_path, propagated_logs, caplog):
    """Of one file, where they are no group."""
    rows = make_rows(40, missing=False)
    for name in ("rows", "other"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def read(*specs):
        tasks = list(load_tasks(specs).values())
        return tasks, {task.name: load_rows(task) for task in tasks}

    source = {"files": {"train": str(tmp_path / "rows.jsonl")}, "dev_share": 0.2}
    whole = group(**source)
    stars, topic = ({**label, "text": whole["text"], **source} for label in whole["labels"][:2])
    elsewhere = topic | {"files": {"train": str(tmp_path / "other.jsonl")}}
    for specs in ([whole], [stars], [stars, elsewhere]):
        warn_of_other_draws(*read(*specs), HANDOUT)
        assert not caplog.messages
    tasks, parts = read(stars, topic)
    warn_of_other_draws(tasks, parts, HANDOUT)
    texts = {name: {split: set(part["text"][:]) for split, part in splits.items()} for name, splits in parts.items()}
    both = [texts[one]["dev"] & texts[other]["train"] for one, other in (("stars", "topic"), ("topic", "stars"))]
    (message,) = caplog.messages
    assert message.startswith("stars and topic draw different dev rows from ") and "rows.jsonl" in message
    assert f": {sum(map(len, both))} dev rows of one are training rows of the other; make the two a gr" in message


def test_joined_rows_are_taken_again(make, tokenizer):
    """With what a teacher predicted, as a trainer's own rows are given to another."""
    trainer = make(rows=make_rows(13, missing=False))
    parts = rows_by_task({"reviews": make_rows(13, missing=False)}, trainer.model, "rows", "train", tokenizer)
    soft = np.random.default_rng(0).dirichlet(np.ones(3), len(parts["topic"])).tolist()
    parts["topic"] = parts["topic"].add_column("soft_labels", soft)
    joined = join_groups(parts, trainer.model, "rows", "train")
    again = rows_by_task(joined, trainer.model, "rows", "train")
    assert again["topic"]["soft_labels"][:] == soft and "soft_labels" not in again["stars"].column_names
    assert all(again[name]["labels"][:] == parts[name]["labels"][:] for name in TASKS)


def test_lists_of_words(make, tokenizer):
    """As intents and slots come: a list of words a row, which all of the group's tasks read."""
    rows = [row | {"body": row["body"].split()} for row in make_rows(13)]
    one, other = (make(rows=given).train_dataset.tasks["reviews"][:] for given in (rows, make_rows(13)))
    assert str(one) == str(other)  # NaN is not itself


def write_run(folder, tiny_bert, course_folder):
    """The documented configuration, of files in a folder."""
    settings = yaml.safe_load(SECTION.split("```yaml")[1].split("```")[0])
    for split, count in (("train", 12), ("dev", 9)):
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, make_rows(count))) + "\n")
        settings["tasks"][1]["files"][split] = str(path)
    settings |= {"model_name_or_path": tiny_bert, "data_dir": str(course_folder), "output_dir": str(folder / "run")}
    settings |= {"task_epochs": {"sst": 1, "reviews": 2}, "per_device_train_batch_size": 4, "max_length": 32}
    settings |= {"smart_weight": {"reviews": 1.0}, "report_to": "none", "disable_tqdm": True, "eval_steps": 3}
    settings |= {"save_steps": 3, "logging_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


def test_the_documented_run(monkeypatch, capsys, tmp_path, tiny_bert, course_folder):
    """Trained, killed and resumed bit for bit, scored, predicted by one pass, reported, and loaded by its own code."""
    config = write_run(tmp_path, tiny_bert, course_folder)
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert run_here(monkeypatch, config, "--output_dir", whole) == 0
    assert "reviews" in capsys.readouterr().out
    run_killed(monkeypatch, 5, config)
    assert run_here(monkeypatch, config, "--resume_from_checkpoint") == 0
    expected, got = load_file(whole / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected) and losses(run) == losses(whole)
    scores = json.loads((run / "metrics.json").read_text())
    assert {"eval_stars_pearson", "eval_topic_accuracy", "eval_people_entity_f1", "eval_sst_accuracy"} <= scores.keys()
    record = json.loads((run / "run.json").read_text())
    assert record["batches"] == {"reviews": 6, "sst": 3}

    pipe, rows = MultitaskPipeline(run), make_rows(9)
    model = pipe.load()[0]
    with mock.patch.object(model.bert, "forward", wraps=model.bert.forward) as encoder:
        answers = pipe.all([row["body"] for row in rows])
    assert encoder.call_count == 2, "of the group, and of sst, which is not tokenised word by word"
    for name in TASKS:
        table = pipe.table(name, [row["body"] for row in rows])
        assert all(answer[name].keys() for answer in answers)
        written = Dataset.from_parquet(str(run / "predictions" / f"{name}-dev.parquet"))
        column = "score" if name == "stars" else "label"
        assert table[column][:] == pytest.approx(written[column][:], abs=1e-5) if name == "stars" else True
        assert name == "stars" or table[column][:] == written[column][:]
    assert run_here(monkeypatch, run, "--split", "dev", "--output_dir", tmp_path / "out", recipe="predict") == 0
    assert run_here(monkeypatch, run, recipe="report") == 0
    assert "6 of reviews" in (run / "report" / "report.md").read_text()
    remote = AutoModel.from_pretrained(run, trust_remote_code=True)
    batch = Collator(0)([{"task": "reviews", "labels": -100, "input_ids": [1, 2, 3], "token_type_ids": [0, 0, 0]}])
    logits = [each("reviews", batch["input_ids"]).logits for each in (remote.eval(), model.eval())]
    assert all(torch.equal(logits[0][name], logits[1][name]) for name in TASKS)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, tiny_bert, course_folder):
    """The documented run with SMART, and its batches of 10 in ten shares, some without a row."""
    config = write_run(tmp_path, tiny_bert, course_folder)
    flags = [config, "--use_cpu", "--encoder_dropout", 0, "--head_dropout", 0, "--optim", "sgd", "--no_do_predict"]
    flags += ["--learning_rate", 0.02, "--smart_radius", 0.02, "--smart_step_size", 0.02, "--smart_noise_std", 0.02]
    flags += ["--no_load_best_model_at_end"]
    whole = [*flags, "--per_device_train_batch_size", 10]
    shares = [*flags, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 5]
    runs = tmp_path / "runs.json"
    runs.write_text(json.dumps({str(tmp_path / "two"): list(map(str, shares))}))
    two = launch(runs, script=Path(launched.__file__), launcher="recipes/accelerate/cpu.yaml")
    launched.train({str(tmp_path / "one"): list(map(str, whole))})
    printed = finish(two)
    assert two.returncode == 0, printed
    for (step, loss), other in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert other == (step, pytest.approx(loss, rel=1e-4))
    expected, got = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, atol=1e-5, rtol=0, msg=name)
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_flags_of_a_group(monkeypatch, capsys, tmp_path, tiny_bert, course_folder):
    config = write_run(tmp_path, tiny_bert, course_folder)
    assert run_here(monkeypatch, config, "--task_epochs", '{"stars": 5}') == 2
    assert "tasks 'stars' and 'topic' of group 'reviews' differ in epochs, 5 and 3" in capsys.readouterr().err


def test_a_member_can_be_made_by_hand():
    fields = {"kind": "classification", "label_names": ["a", "b"], "group": "g", "text": "body"}
    first, second = load_tasks([fields | {"name": "one"}, load_task(fields | {"name": "two"})]).values()
    assert first.unit == second.unit == "g" and not first.word_by_word
    tags = fields | {"name": "three", "kind": "token_classification", "metric": "accuracy"}
    with pytest.raises(InputError, match="differ in word_by_word"):
        load_tasks([fields | {"name": "one"}, tags])
