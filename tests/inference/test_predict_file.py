"""Files of rows: what comes out, scores, parts, going on, mistakes, processes, and the same through Ray."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import ROOT, finish, launch, run_here
from pyarrow import parquet as pq
from sklearn.metrics import accuracy_score, f1_score

from bert_multitask.inference import predict_file as job
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.predict_file import predict_file
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel

NAMES = ("cooking", "sport", "music")
TASKS = [
    {"name": "topic", "kind": "classification", "text": "title", "label_names": list(NAMES), "label": "topic"},
    {"name": "mark", "kind": "regression", "text": "title", "label": "mark"},
    {"name": "same", "kind": "binary", "text": "title", "text_pair": "other", "label_names": ["no", "yes"]},
    {
        "name": "genres",
        "kind": "multilabel",
        "text": "plot",
        "label": "genres",
        "label_names": ["drama", "war", "love"],
    },
    {
        "name": "tags",
        "kind": "token_classification",
        "text": "0",
        "label": "-1",
        "label_names": ["O", "N"],
        "metric": "accuracy",
    },
]
WORDS = "good bad fine dull great film story scene plot cast".split()
ROWS = [
    {
        "article": f"a{number}",
        "title": " ".join(WORDS[(number * step) % 10] for step in range(1, 3 + number % 7)),
        "more": f'"{number}", and so on',
        "topic": NAMES[number % 3] if number % 5 else "",
    }
    for number in range(23)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert, tokenizer):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run")
    MultitaskBertModel.from_pretrained(tiny_bert, tasks=TASKS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(run):
    return MultitaskPipeline(run, batch_size=4)


def write_rows(path, rows=ROWS):
    """The rows as a file of the form that its name says."""
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("size", [23, 4])
def test_rows_keep_their_columns_and_get_predictions(tmp_path, pipe, ending, size):
    path = write_rows(tmp_path / f"new.{ending}")
    scores = predict_file(pipe, path, tmp_path / "out", rows_per_part=size)
    files = sorted(file.name for file in (tmp_path / "out").iterdir() if not file.name.startswith("."))
    parts = [file for file in files if file.endswith(".parquet")]
    if size == 23:
        assert files == ["metrics.json", "predict.json", "predictions.csv", "predictions.parquet"]
    else:
        assert files == ["metrics.json", *(f"part-{number:05d}.parquet" for number in range(6)), "predict.json"]
    table = pa.concat_tables(pq.read_table(tmp_path / "out" / part) for part in parts)
    frame = table.to_pandas()
    assert frame[[*ROWS[0]]].to_dict("records") == ROWS
    expected = pipe("topic", [row["title"] for row in ROWS])
    assert frame["topic_label"].tolist() == [row["label"] for row in expected]
    probabilities = [[*row["probabilities"].values()] for row in expected]
    np.testing.assert_allclose(np.stack(frame["topic_probabilities"]), probabilities, atol=1e-6)
    marks = [row["score"] for row in pipe("mark", ROWS)]
    np.testing.assert_allclose(frame["mark_score"], marks, atol=1e-6)
    labelled = [number for number, row in enumerate(ROWS) if row["topic"]]
    accuracy = accuracy_score([ROWS[n]["topic"] for n in labelled], [expected[n]["label"] for n in labelled])
    assert scores == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["eval_topic_accuracy"] == pytest.approx(accuracy) and scores["eval_topic_rows"] == len(labelled)
    assert 0 <= scores["eval_topic_accuracy_low"] < accuracy < scores["eval_topic_accuracy_high"] <= 1
    assert not any("mark" in key for key in scores)
    if size == 23:
        with open(tmp_path / "out" / "predictions.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        assert [*lines[0]] == [*ROWS[0], "topic_label", "topic_probability", "mark_score"]
        assert [{name: line[name] for name in ROWS[0]} for line in lines] == ROWS
        np.testing.assert_allclose([float(line["mark_score"]) for line in lines], marks, atol=1e-6)


def test_pairs_and_other_forms_of_columns(tmp_path, pipe):
    """A pair task by its own columns, `text` where a task is named, numbers and nulls as they are."""
    rows = [{"id": n, "title": f"a film {n}", "other": None if n else "a plot", "x": [n]} for n in range(5)]
    path = write_rows(tmp_path / "rows.parquet", rows)
    assert predict_file(pipe, path, tmp_path / "out", rows_per_part=2) == {}
    frame = pd.concat(pd.read_parquet(part) for part in sorted((tmp_path / "out").glob("part-*")))
    assert frame["id"].tolist() == [0, 1, 2, 3, 4] and frame["x"].map(list).tolist() == [[n] for n in range(5)]
    pairs = [(row["title"], row["other"] or "") for row in rows]
    assert frame["same_label"].tolist() == [row["label"] for row in pipe("same", pairs)]
    assert {"topic_label", "mark_score"} <= {*frame} and not (tmp_path / "out" / "metrics.json").exists()
    late = [{"text": "a"}, {"text": "b", "n": None}, {"text": "c", "n": 1}, {"text": "d", "n": 1.5}]
    predict_file(pipe, write_rows(tmp_path / "late.jsonl", late), tmp_path / "late", ["topic"], rows_per_part=1)
    schemas = {str(pq.read_schema(part)) for part in (tmp_path / "late").glob("part-*")}
    assert len(schemas) == 1 and "n: double" in schemas.pop()


def test_several_labels_a_row(tmp_path, pipe):
    rows = [
        {"plot": row["title"], "genres": ["", "|", "war", "war|love", "drama"][n % 5]} for n, row in enumerate(ROWS)
    ]
    scores = predict_file(pipe, write_rows(tmp_path / "new.csv", rows), tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "predictions.csv")
    answers = pipe("genres", [row["plot"] for row in rows])
    assert [set(text.split("|")) - {""} for text in frame["genres_labels"]] == [set(row["labels"]) for row in answers]
    for name in ("drama", "war", "love"):
        expected = [row["probabilities"][name] for row in answers]
        np.testing.assert_allclose(frame[f"genres_probability_{name}"], expected, atol=1e-6)
    known = [n for n, row in enumerate(rows) if row["genres"]]
    true = [[name in rows[n]["genres"].split("|") for name in ("drama", "war", "love")] for n in known]
    found = [[name in answers[n]["labels"] for name in ("drama", "war", "love")] for n in known]
    assert scores["eval_genres_micro_f1"] == pytest.approx(f1_score(true, found, average="micro"))


def test_tags_of_words(tmp_path, pipe):
    sentences = [
        [(word, "N" if number % 2 else "O") for word in row["title"].split()] for number, row in enumerate(ROWS)
    ]
    lines = ["".join(f"{word} {tag}\n" for word, tag in words) for words in sentences]
    (tmp_path / "new.conll").write_text("\n".join(lines))
    scores = predict_file(pipe, str(tmp_path / "new.conll"), tmp_path / "out", rows_per_part=9)
    frame = pd.concat(pd.read_parquet(part) for part in sorted((tmp_path / "out").glob("part-*")))
    answers = pipe("tags", [row["title"] for row in ROWS])
    assert frame["tags_label"].str.split().tolist() == [row["label"] for row in answers]
    assert frame["0"].map(list).tolist() == [row["title"].split() for row in ROWS]
    true = [tag for words in sentences for _, tag in words]
    expected = accuracy_score(true, [tag for row in answers for tag in row["label"]])
    assert scores["eval_tags_accuracy"] == pytest.approx(expected) and scores["eval_tags_rows"] == len(ROWS)


def bytes_of(folder):
    """Its files, but for the lock."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def test_what_was_stopped_goes_on(monkeypatch, tmp_path, pipe):
    """Stopped while the fourth part is written: three are kept as they are, and the end is the same, byte for byte."""
    path, out = write_rows(tmp_path / "new.csv"), tmp_path / "out"
    predict_file(pipe, path, tmp_path / "whole", rows_per_part=5)
    write, written = pq.write_table, []

    def stop_at_the_fourth(table, where, **options):
        written.append(where)
        write(table, where, **options)
        if len(written) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pq, "write_table", stop_at_the_fourth)
        predict_file(pipe, path, out, rows_per_part=5)
    assert sorted(file.name for file in out.glob("part-*")) == [f"part-0000{number}.parquet" for number in range(3)]
    times = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*")}
    (out / "part-00001.parquet").write_bytes((out / "part-00001.parquet").read_bytes()[:-9])  # a disk's damage
    (out / "part-00003.tmp").write_bytes(b"what a kill leaves")
    predict_file(pipe, path, out, rows_per_part=5)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert (out / "part-00000.parquet").stat().st_mtime_ns == times["part-00000.parquet"]


def test_parts_of_something_else_are_not_kept(tmp_path, run, pipe, tiny_bert, tokenizer):
    path, out = write_rows(tmp_path / "new.csv"), tmp_path / "out"
    predict_file(pipe, path, out, rows_per_part=9)
    other = write_rows(tmp_path / "other.csv", [row | {"more": "x"} for row in ROWS])
    torch.manual_seed(2)
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=TASKS)
    for changed, arguments in {
        "rows": (pipe, other, out),
        "weights": (MultitaskPipeline(model, tokenizer), path, out),
        "max_length": (MultitaskPipeline(run, max_length=9), path, out),
        "bf16": (MultitaskPipeline(run, bf16=True), path, out),
        "tasks": (pipe, path, out, ["topic"]),
    }.items():
        with pytest.raises(InputError, match=f"has predictions with other {changed} .predict.json"):
            predict_file(*arguments, rows_per_part=9)
    with pytest.raises(InputError, match="other rows_per_part"):
        predict_file(pipe, path, out, rows_per_part=8)
    (out / "predict.json").unlink()
    with pytest.raises(InputError, match="part-00000.parquet is there, but no predict.json"):
        predict_file(pipe, path, out, rows_per_part=9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "title,topic\na,cooking\nb,sports\n", "row 2: topic is 'sports'; expected"),
        (
            "a.csv",
            "a\nb\n",
            "the columns a, and no task takes them: topic: title; mark: title; same: title and other; genres: plot",
        ),
        ("a.csv", "title\n", "has no rows"),
        ("a.csv", 'title,x\na,b\nb,"c\n', "row 2 .line 3. has a stray quote"),
        ("a.csv", "title,topic_label\na,b\n", "a column 'topic_label' already"),
        ("a.jsonl", '{"title": "a"}\n{"title": ["b"]}\n', "several types|row 2 holds"),
        (
            "a.jsonl",
            '{"title": "a", "x": 1}\n{"title": "b", "x": "y"}\n',
            "'x' has values of several types|Unable to merge",
        ),
        ("a.xlsx", "", "reads files that end in"),
    ],
)
def test_mistakes_end_it_before_anything_is_predicted(tmp_path, pipe, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        predict_file(pipe, str(tmp_path / name), tmp_path / "out", rows_per_part=1)
    assert not (tmp_path / "out").exists()


def test_labels_of_another_task(tmp_path, pipe):
    """A column may have the name of one task's labels and hold another's."""
    (tmp_path / "a.csv").write_text("title,topic,mark\na,good,1\n")
    with pytest.raises(InputError, match="row 1: topic is 'good'.*; if these are no rows of 'topic', give --tasks"):
        predict_file(pipe, str(tmp_path / "a.csv"), tmp_path / "out")
    predict_file(pipe, str(tmp_path / "a.csv"), tmp_path / "out", ["mark"])


def test_mistakes_have_a_line_of_their_own(tmp_path, pipe, capsys, caplog, propagated_logs):
    """No progress bar stands before them; what is done already is said."""
    with pytest.raises(InputError, match=r"none\.csv: no such file; expected one of rows"):
        predict_file(pipe, str(tmp_path / "none.csv"), tmp_path / "out")
    (tmp_path / "a.csv").write_text("title,topic\na,sports\n")
    with pytest.raises(InputError, match="row 1: topic is 'sports'"):
        predict_file(pipe, str(tmp_path / "a.csv"), tmp_path / "out")
    assert "checking" not in capsys.readouterr().err
    path = write_rows(tmp_path / "new.csv")
    predict_file(pipe, path, tmp_path / "out")
    assert "already" not in caplog.text
    predict_file(pipe, path, tmp_path / "out")
    assert "has all predictions of this file and model already" in caplog.text


def test_a_log_has_a_state_of_the_progress_now_and_then(tmp_path, pipe, monkeypatch, capsys):
    """And none of a job that is done before."""
    path = write_rows(tmp_path / "new.csv")
    predict_file(pipe, path, tmp_path / "short")
    assert "rows/s" not in capsys.readouterr().err
    monkeypatch.setattr(job, "LOG_INTERVAL", 0)
    predict_file(pipe, path, tmp_path / "long")
    assert f"{len(ROWS)}/{len(ROWS)}" in capsys.readouterr().err


def test_many_labels_are_scored_without_intervals(monkeypatch, tmp_path, pipe, caplog, propagated_logs):
    monkeypatch.setattr(job, "MOST_RESAMPLED", 10)
    path = write_rows(tmp_path / "new.csv", [row | {"mark": 1.5} for row in ROWS])
    scores = predict_file(pipe, path, tmp_path / "out", rows_per_part=9)
    assert {key for key in scores if "topic" in key} == {"eval_topic_rows", "eval_topic_accuracy"}
    assert "eval_overall" in scores and "no intervals" in caplog.text


def test_the_command(monkeypatch, tmp_path, run, capsys):
    path, out = write_rows(tmp_path / "new.csv"), tmp_path / "out"
    flags = ["--task", "topic", "--task", "mark", "--output_dir", out, "--per_device_eval_batch_size", 4]
    assert run_here(monkeypatch, run, path, *flags, recipe="predict") == 0
    printed = capsys.readouterr().out
    scores = json.loads((out / "metrics.json").read_text())
    bounds = "({eval_topic_accuracy_low:.4f} to {eval_topic_accuracy_high:.4f})".format(**scores)
    assert f"topic  accuracy {scores['eval_topic_accuracy']:.4f}  {bounds}  18 rows" in printed
    assert pd.read_csv(out / "predictions.csv")["article"].tolist() == [row["article"] for row in ROWS]
    for wrong, message in {
        ("--output_dir", out): "give either a file of new rows, or --split",
        (path, "--split", "dev", "--output_dir", out): "give either a file of new rows, or --split",
        (path, "--data_dir", ".", "--output_dir", out): "--data_dir says where a split is",
        (path, "--task", "nli", "--output_dir", out): "no task 'nli'; it has topic, mark, same, genres, tags",
    }.items():
        assert run_here(monkeypatch, run, *wrong, recipe="predict") == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_the_parts(tmp_path, run):
    code = tmp_path / "job.py"
    code.write_text(
        "import sys\nfrom pathlib import Path\nfrom bert_multitask.inference.pipeline import MultitaskPipeline\n"
        "from bert_multitask.inference.predict_file import predict_file\n"
        "predict_file(MultitaskPipeline(sys.argv[1], batch_size=4), sys.argv[2], Path(sys.argv[3]), rows_per_part=5)\n"
    )
    path = write_rows(tmp_path / "new.csv")
    predict_file(MultitaskPipeline(run, batch_size=4), path, tmp_path / "one", rows_per_part=5)
    process = launch(run, path, tmp_path / "two", processes=2, script=code)
    printed = finish(process)
    assert process.returncode == 0, printed
    for part in sorted((tmp_path / "one").glob("part-*")):
        ours, theirs = pd.read_parquet(part), pd.read_parquet(tmp_path / "two" / part.name)
        for column in ours:
            if column.endswith("_probabilities"):
                np.testing.assert_allclose(np.stack(ours[column]), np.stack(theirs[column]), atol=1e-6)
            elif ours[column].dtype.kind == "f":
                np.testing.assert_allclose(ours[column], theirs[column], atol=1e-6)
            else:
                assert ours[column].tolist() == theirs[column].tolist()
    ours, theirs = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert ours == pytest.approx(theirs)


@pytest.mark.slow
def test_ray_gives_the_same(tmp_path, run, pipe):
    """The recipe of docs/large_jobs.md, with two local workers."""
    ray = pytest.importorskip("ray")
    recipe = re.search(r"```python\n(import ray.*?)```", (ROOT / "docs" / "large_jobs.md").read_text(), re.DOTALL)[1]
    (tmp_path / "in").mkdir()
    for number in range(3):
        pq.write_table(pa.Table.from_pylist(ROWS[number * 8 : number * 8 + 8]), tmp_path / "in" / f"{number}.parquet")
    places = {"runs/mine": str(run), "s3://bucket/in": str(tmp_path / "in"), "s3://bucket/out": str(tmp_path / "out")}
    for name, place in places.items():
        assert name in recipe
        recipe = recipe.replace(name, place)
    ray.init(
        num_cpus=2, include_dashboard=False, logging_level="error", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
    )
    try:
        exec(recipe, {})
    finally:
        ray.shutdown()
    found = pd.concat(pd.read_parquet(part) for part in (tmp_path / "out").glob("*.parquet"))
    found = found.sort_values("article").reset_index(drop=True)
    expected = pipe.all(pd.DataFrame(ROWS)).sort_values("article").reset_index(drop=True)
    assert [*found] == [*expected]
    for column in ("article", "more", "topic_label"):
        assert found[column].tolist() == expected[column].tolist()
    np.testing.assert_allclose(
        np.stack(found["topic_probabilities"]), np.stack(expected["topic_probabilities"]), atol=1e-6
    )
    np.testing.assert_allclose(found["mark_score"], expected["mark_score"], atol=1e-6)
