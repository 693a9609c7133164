"""`bert-multitask init`: what it guesses of tables, and that the configuration that it writes trains."""

import csv
import json
import random

import pytest
import yaml
from conftest import run_here
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bert_multitask.data.rows import load_rows
from bert_multitask.model.tasks import load_tasks

WORDS = "good bad fine dull great film story scene plot cast".split()
COUNT = 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Files are written where the user is."""
    monkeypatch.chdir(tmp_path)
    random.seed(0)


def text(words: int = 6) -> str:
    return " ".join(random.choices(WORDS, k=words))


def table(path, **columns) -> str:
    """A CSV file of columns, each a function of the row's number."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *([make(n) for make in columns.values()] for n in range(COUNT))])
    return path.name


def guessed(monkeypatch, *argv) -> list[dict]:
    """The tasks in the configuration that is written."""
    assert run_here(monkeypatch, *argv, "--output", "out.yaml", "--overwrite", recipe="init") == 0
    with open("out.yaml", encoding="utf-8") as file:
        assert all(len(line) <= 120 or "#" not in line for line in file)
    return yaml.safe_load(open("out.yaml", encoding="utf-8"))["tasks"]


def texts(n: int) -> str:
    return f"{text()} {n}"


TABLES = {
    "classes": (
        {"review": texts, "sentiment": lambda n: ["neutral", "negative", "positive"][n % 3]},
        {"kind": "classification", "text": "review", "label_names": ["negative", "neutral", "positive"]},
    ),
    "yes and no": (
        {"message": texts, "spam": lambda n: ["yes", "no"][n % 2]},
        {"name": "spam", "kind": "binary", "text": "message", "label_names": ["no", "yes"]},
    ),
    "two classes": (
        {"text": texts, "label": lambda n: ["spam", "ham"][n % 2]},
        {"name": "table", "kind": "classification", "label_names": ["ham", "spam"]},
    ),
    "a usual name at the end": (
        {"Text": texts, "Main Topic": lambda n: "abc"[n % 3], "Urgency": lambda n: n % 3},
        {"kind": "classification", "name": "main_topic", "text": "Text", "label": "Main Topic"},
    ),
    "grades": (
        {"text": texts, "stars": lambda n: n % 5 + 1},
        {"name": "stars", "kind": "classification", "label_names": ["1", "2", "3", "4", "5"]},
    ),
    "scores": (
        {"sentence1": texts, "sentence2": texts, "score": lambda n: n / 10},
        {"kind": "regression", "text": "sentence1", "text_pair": "sentence2", "score_range": [0, 3.9]},
    ),
    "many numbers": ({"text": texts, "year": lambda n: 1990 + n}, {"kind": "regression", "score_range": [1990, 2029]}),
    "lists": (
        {"text": texts, "topics": lambda n: "|".join(["a", "b", "c"][: n % 3 + 1])},
        {"kind": "multilabel", "label": "topics", "label_names": ["a", "b", "c"]},
    ),
    "tags": (
        {"text": lambda n: text(3), "ner_tags": lambda n: ["O B-X I-X", "O O O"][n % 2]},
        {"kind": "token_classification", "label_names": ["B-X", "I-X", "O"]},
    ),
    "parts of speech": (
        {"text": lambda n: text(3), "tags": lambda n: ["DT NN VB", "NN NN VB"][n % 2]},
        {"kind": "token_classification", "metric": "accuracy"},
    ),
    "several texts and an id": (
        {
            **{"message_id": lambda n: f"m{n}", "subject": texts, "body": texts},
            **{"label": lambda n: n % 2, "sender": lambda n: ["A", "B", "C"][n % 3]},
        },
        {"id": "message_id", "text": ["subject", "body"], "kind": "binary", "label_names": ["0", "1"]},
    ),
    "lists that are written as texts": (
        {"text": texts, "label": lambda n: n % 2, "sender": lambda n: str([f"a{n}"])},
        {"text": "text", "label": "label"},
    ),
    "frequent questions": (
        {"question1": texts, "question2": lambda n: f"About {n % 4}", "duplicate": lambda n: n % 2},
        {"text": "question1", "text_pair": "question2", "label": "duplicate", "kind": "binary"},
    ),
    "few texts on both sides, after the label": (
        {"same": lambda n: n % 2, "text_a": lambda n: f"to {n % 3}", "text_b": lambda n: f"on {n % 4}"},
        {"text": "text_a", "text_pair": "text_b", "label": "same"},
    ),
    "few hypotheses": (
        {"premise": texts, "gold": lambda n: "abc"[n % 3], "hypothesis": lambda n: f"It {n % 5}"},
        {"text": "premise", "text_pair": "hypothesis", "label": "gold"},
    ),
    "a short text beside a long one": (
        {"offer A": texts, "offer B": lambda n: f"x {n % 4}", "better": lambda n: n % 2},
        {"text": "offer A", "text_pair": "offer B", "label": "better"},
    ),
    "two columns of classes": (
        {"review": texts, "genre1": lambda n: "abc"[n % 3], "genre2": lambda n: "xy"[n % 2]},
        {"text": "review", "text_pair": None, "label": "genre2"},
    ),
    "an answer that is a class": (
        {"question": texts, "answer": lambda n: ["yes", "no"][n % 2]},
        {"text": "question", "text_pair": None, "label": "answer"},
    ),
    "premise and hypothesis": (
        {"": lambda n: n, "gold": lambda n: "abc"[n % 3], "premise": texts, "hypothesis": texts},
        {"text": "premise", "text_pair": "hypothesis", "label": "gold"},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_guesses(tmp_path, monkeypatch, capsys, name):
    columns, expected = TABLES[name]
    (task,) = guessed(monkeypatch, table(tmp_path / "table.csv", **columns))
    assert {key: task.get(key) for key in expected} == expected
    assert task["files"] == {"train": str(tmp_path / "table.csv")} and task["dev_share"] == 0.1
    assert set(task) <= {"name", "kind", "label", "text", "files", "dev_share", "epochs", "dropout", *expected} | {
        "label_names"
    }
    printed = capsys.readouterr().out
    assert f"{task['kind']}: " in printed and "bert-multitask train out.yaml" in printed
    unread = {"sender", "Urgency", "genre1"} & columns.keys()
    assert bool(unread) == ("not read" in printed) and all(
        f"not read: {one}; if one holds" in printed for one in unread
    )


def test_each_column_of_labels_is_a_task(tmp_path, monkeypatch):
    columns = {"text": texts, "topic": lambda n: "abc"[n % 3], "rating": lambda n: n % 7 / 2, "author": lambda n: "XY"}
    (group,) = guessed(monkeypatch, table(tmp_path / "topic.csv", **columns))
    assert (group["name"], group["text"], group["dev_share"]) == ("topic_labels", "text", 0.1), "no task's name"
    found = [(task["name"], task["kind"]) for task in group["labels"]]
    assert found == [("topic", "classification"), ("rating", "regression")]
    rows = [load_rows(task) for task in load_tasks([group]).values()]
    assert all(rows[0][split]["text"][:] == rows[1][split]["text"][:] for split in ("train", "dev"))


@pytest.mark.parametrize("words", [str.split, str], ids=["lists", "texts"])
def test_tags_and_a_label_of_the_whole_text_are_a_group(tmp_path, monkeypatch, capsys, words):
    rows = [{"tokens": text(6), "ner_tags": ["O B-X I-X O O O", "O O O O O O"][n % 2]} for n in range(COUNT)]
    rows = [{name: words(value) for name, value in row.items()} for row in rows]
    rows = [row | {"label": "abc"[n % 3], "source": "xy"[n % 2]} for n, row in enumerate(rows)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (group,) = guessed(monkeypatch, "table.jsonl")
    found = [(task["name"], task["kind"], task["label"]) for task in group["labels"]]
    assert found == [("ner_tags", "token_classification", "ner_tags"), ("label", "classification", "label")]
    assert group["text"] == "tokens" and "not read: source;" in capsys.readouterr().out
    parts = [load_rows(task) for task in load_tasks([group]).values()]
    assert parts[0]["dev"]["text"][:] == parts[1]["dev"]["text"][:]
    (task,) = guessed(monkeypatch, "table.jsonl", "--label", "label")
    assert (task["text"], task["label"], task["kind"]) == ("tokens", "label", "classification")
    assert len(load_rows(next(iter(load_tasks([task]).values())))["dev"]) == len(parts[0]["dev"])


def test_the_columns_of_labels_can_be_chosen(tmp_path, monkeypatch, capsys):
    """Of the table that has them; the others are guessed. Without the flag `genre` is one."""
    columns = {
        "body": texts,
        "genre": lambda n: "abc"[n % 3],
        "venue": lambda n: "XY"[n % 2],
        "number": lambda n: n % 4,
    }
    files = [table(tmp_path / "a.csv", **columns), table(tmp_path / "b.csv", text=texts, topic=lambda n: "abc"[n % 3])]
    group, other = guessed(monkeypatch, *files, "--label", "venue", "number")
    assert [(task["label"], task["kind"]) for task in group["labels"]] == [
        ("venue", "classification"),
        ("number", "classification"),
    ]
    assert (group["text"], other["label"]) == ("body", "topic") and "not read: genre;" in capsys.readouterr().out
    assert guessed(monkeypatch, files[0])[0]["label"] == "genre"


def test_columns_with_names_that_differ_in_case_alone(tmp_path, monkeypatch):
    columns = {"text": texts, "topic": lambda n: "abc"[n % 3], "Topic": lambda n: "de"[n % 2]}
    (group,) = guessed(monkeypatch, table(tmp_path / "table.csv", **columns))
    assert [(task["name"], task["label"]) for task in group["labels"]] == [("topic", "topic"), ("topic_2", "Topic")]


def test_several_tables_are_one_configuration(tmp_path, monkeypatch, capsys):
    """Each task reads its own table; of two with one name the second has its table's name added."""
    named = {"text": texts, "topic": lambda n: "abc"[n % 3], "author": lambda n: "XY"}
    pairs = {"first": texts, "second": texts, "score": lambda n: n / 10}
    files = [table(tmp_path / "a.csv", **named), table(tmp_path / "b.csv", **pairs), table(tmp_path / "c.csv", **named)]
    tasks = guessed(monkeypatch, *files)
    assert [(task["name"], task["files"]["train"]) for task in tasks] == [
        (name, str(tmp_path / file)) for name, file in zip(["topic", "score", "topic_c"], files, strict=True)
    ]
    assert (tasks[1]["text"], tasks[1]["text_pair"]) == ("first", "second")
    assert "not read: author, author" in capsys.readouterr().out
    assert run_here(monkeypatch, files[0], recipe="train") == 2 and "`bert-multitask init`" in capsys.readouterr().err
    assert run_here(monkeypatch, *files, recipe="init") == 0 and (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("form", ["jsonl", "texts.jsonl", "parquet", "conll"])
def test_other_forms(tmp_path, monkeypatch, capsys, form):
    path = tmp_path / f"table.{form}"
    rows = [{"tokens": text().split(), "tags": [n % 2] * 6} for n in range(COUNT)]
    names = ["O", "B-X"]
    if form == "parquet":
        features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
        Dataset.from_list(rows, features).to_parquet(path)
    elif "jsonl" in form:
        words = [" ".join(row["tokens"]) if "texts" in form else row["tokens"] for row in rows]
        rows = [{"tokens": one, "tags": [names[n] for n in row["tags"]]} for one, row in zip(words, rows, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [[f"{word} X {names[n]}\n" for word, n in zip(*row.values(), strict=True)] for row in rows]
        path.write_text("\n".join(map("".join, lines)))
    (task,) = guessed(monkeypatch, path.name)
    conll = form == "conll"
    assert ("not read: 1" in capsys.readouterr().out) == conll  # the column between words and tags
    assert (task["text"], task["label"]) == (("0", "-1") if conll else ("tokens", "tags"))
    assert task["kind"] == "token_classification"
    assert task["label_names"] == (names if form == "parquet" else sorted(names))


@pytest.mark.parametrize("dev", ["validation_matched", None])
def test_a_dataset_of_the_hub(monkeypatch, dev):
    features = {"text": Value("string"), "label": ClassLabel(names=["z", "a", "m"]), "idx": Value("int32")}
    features = Features(features | {"stars": Value("int32")})
    rows = [{"text": texts(n), "label": n % 3, "idx": n, "stars": n % 4} for n in range(COUNT)]
    parts = DatasetDict({split: Dataset.from_list(rows, features) for split in ("train", dev, "test") if split})

    def load_dataset(path, name=None, revision=None, split=None):
        assert (path, name) == ("some/rows", "de")
        return parts if split is None else {ours: parts[theirs] for ours, theirs in split.items()}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (group,) = guessed(monkeypatch, "some/rows", "--config_name", "de")
    splits = {"train": "train", "test": "test"} | ({"dev": dev} if dev else {})
    assert group["hub"] == {"path": "some/rows", "name": "de", "splits": splits, "text": "text"}
    assert group["labels"][0]["label_names"] == ["z", "a", "m"] and group.get("dev_share") == (None if dev else 0.1)
    assert [task.hub.label for task in load_tasks([group]).values()] == ["label", "stars"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.csv"], "nowhere.csv: no such file"),
        (["numbers.csv"], "numbers: no column looks like texts"),
        (["header.csv"], "header.csv: has no rows"),
        (["semicolons.csv"], "semicolons.csv: its columns are separated by semicolons"),
        (["lists.csv"], "lists.csv, row 1: topics is \"['a', 'b0']\", a list that is written as one text; write a|b0"),
        (["table.csv", "--config_name", "de"], "table.csv is a file; leave it out"),
        (["table.csv", "--label", "lable"], "--label lable: no such column"),
        (["table.csv", "--label", "text"], "table: column 'text' holds no labels"),
        (["folder"], "folder: is a folder; give a file in it, such as folder/part.csv"),
        (["empty"], "empty: is a folder; give a file that ends in .csv"),
        (["table.csv", "--output", "no/such/folder.yaml"], "folder.yaml cannot be written: No such file"),
        (["table.csv"], "table.yaml exists; name another file with --output, or replace it with --overwrite"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, argv, message):
    table(tmp_path / "table.csv", text=texts, label=lambda n: n % 2)
    table(tmp_path / "numbers.csv", a=lambda n: n % 2, b=lambda n: n % 3)
    table(tmp_path / "lists.csv", text=texts, topics=lambda n: str(["a", f"b{n}"]))
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "semicolons.csv").write_text('mail;"topic"\n"Hello, you";a\n')
    (tmp_path / "table.yaml").write_text("mine: 1\n")
    for name in ("folder", "empty"):
        (tmp_path / name).mkdir()
    table(tmp_path / "folder" / "part.csv", text=texts)
    before = sorted(tmp_path.iterdir())
    if {"--config_name", "--label"} & set(argv):
        argv += ["--output", "new.yaml"]
    assert run_here(monkeypatch, *argv, recipe="init") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "table.yaml").read_text() == "mine: 1\n"


def test_what_is_written_trains(tmp_path, monkeypatch, tiny_bert, capsys):
    """One table, three tasks, from the table to scores, predictions and a resumed run."""
    columns = {"title": texts, "body": texts, "topic": lambda n: "abc"[n % 3], "is_new": lambda n: n % 2}
    columns |= {"score": lambda n: n % 9 / 2}
    name = table(tmp_path / "news.csv", **columns)
    assert run_here(monkeypatch, name, recipe="init") == 0
    flags = ["--model_name_or_path", tiny_bert, "--report_to", "none", "--per_device_train_batch_size", 8]
    flags += ["--max_steps", 4]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bert_multitask.training.run.write_results", stop)
        assert run_here(patch, "news.yaml", *flags, recipe="train") == 130
    assert run_here(monkeypatch, "news.yaml", *flags, "--resume_from_checkpoint", recipe="train") == 0
    run = tmp_path / "runs" / "news"
    scores = json.loads((run / "metrics.json").read_text())
    assert {"eval_topic_accuracy", "eval_is_new_accuracy", "eval_score_pearson"} <= scores.keys()
    record = json.loads((run / "run.json").read_text())
    assert record["batches"].keys() == {"news"}, "one step for all labels"
    counts = {split: found["rows"] for split, found in record["decides"]["rows of topic"].items()}
    assert counts["train"] + counts["dev"] == COUNT and counts["dev"] == pytest.approx(0.1 * COUNT, abs=1)
    # A reader draws the same dev rows as training did.
    assert run_here(monkeypatch, run, "--split", "dev", "--output_dir", "again", recipe="predict") == 0
    for task in ("topic", "is_new", "score"):
        found = [
            [line.split(",")[0] for line in (folder / f"{task}-dev.csv").read_text().splitlines()]
            for folder in (run / "predictions", tmp_path / "again")
        ]
        assert found[0] == found[1] and len(found[0]) == 1 + record["decides"][f"rows of {task}"]["dev"]["rows"]
    for name, members in (("is_new", ["is_new"]), ("news", ["topic", "is_new", "score"])):
        alone = ["--tasks", name, "--output_dir", name, "--max_steps", 1]
        assert run_here(monkeypatch, "news.yaml", *flags, *alone, recipe="train") == 0
        tasks = json.loads((tmp_path / name / "run.json").read_text())["decides"]["tasks"]
        assert tasks == members, "--tasks names a task of a group, or a group"
