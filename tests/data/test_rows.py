"""Rows from folders, URLs, the Hub and the sample; what is reported, what is refused; tokens and their cache."""

import csv
import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, run_here, write_table
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from load_from_hub import DATASETS, GLUE, OLD
from safetensors.torch import load_file

from bert_multitask.data.rows import SAMPLE, describe_rows, fingerprint, load_rows, sample_rows, usable_rows
from bert_multitask.data.tokens import load_tokenizer, tokenise
from bert_multitask.model.configuration import resolve_folder
from bert_multitask.model.errors import InputError
from bert_multitask.model.losses import UNLABELLED, is_labelled
from bert_multitask.model.tasks import SPLITS, TASKS, HubSource, load_task

ROW_COUNTS = {
    "sst": [8544, 1101, 2210],
    "cfimdb": [1707, 245, 488],
    "quora": [14000, 2000, 4214],
    "sts": [6040, 863, 1725],
}


@pytest.mark.parametrize("name", ROW_COUNTS)
def test_real_row_counts(real_data, name):
    rows = load_rows(TASKS[name], real_data)
    assert [len(rows[split]) for split in SPLITS] == ROW_COUNTS[name]
    assert not is_labelled(np.array(rows["test"]["label"][:])).any()


def test_real_texts_are_as_python_reads_the_file(real_data):
    with open(f"{real_data}/quora-train.csv", encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file, delimiter="\t"))
    rows = load_rows(TASKS["quora"], real_data)["train"]
    assert rows["text"][:] == [row["sentence1"] for row in expected]
    assert any('"' in text for text in rows["text_pair"])


def test_real_gaps_are_reported(real_data, caplog, propagated_logs):
    for split in ("train", "dev"):
        rows = load_rows(TASKS["quora"], real_data)[split]
        usable = usable_rows(TASKS["quora"], rows, split)
        assert len(usable) == len(rows) - (split == "train")
    assert "quora-train.csv: no label for quora in row 2576; left out of training" in caplog.text
    assert "quora-dev.csv: no label for quora in row" in caplog.text and "predicted, not scored" in caplog.text


@pytest.mark.parametrize("name", ["sst", "quora", "sts", "cfimdb"])
def test_the_sample(name):
    rows = load_rows(TASKS[name], SAMPLE)
    assert [len(rows[split]) for split in SPLITS] == [600, 150, 150]
    texts = [tuple(row[key] for key in row if key.startswith("text")) for split in SPLITS for row in rows[split]]
    assert len(set(texts)) == len(texts), "a row occurs twice, perhaps in train and dev"
    if name != "sts":
        labels = rows["train"]["label"]
        assert min(labels.count(label) for label in range(len(TASKS[name].label_names))) > 30


def test_the_sample_is_what_its_script_writes(monkeypatch, tmp_path):
    assert run_here(monkeypatch, tmp_path, recipe=ROOT / "recipes" / "make_sample.py") == 0
    shipped = ROOT / "bert_multitask" / "sample"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in shipped.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (shipped / path.name).read_bytes(), path.name


@pytest.fixture
def server(course_folder):
    """The folder under an http URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(course_folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_gives_the_folders_rows(course_folder, server):
    for name in ("sst", "quora", "sts"):
        local, remote = load_rows(TASKS[name], str(course_folder)), load_rows(TASKS[name], server + "/")
        assert {split: fingerprint(rows) for split, rows in local.items()} == {
            split: fingerprint(rows) for split, rows in remote.items()
        }
    with pytest.raises(InputError, match="ids-cfimdb-train.csv"):
        load_rows(TASKS["cfimdb"], server)
    with pytest.raises(InputError, match="make quickstart"):
        load_rows(TASKS["sst"], "http://127.0.0.1:9/data")


def test_texts_reach_the_tokenizer_as_they_are(tmp_path):
    """Quotes are the file form's, doubled inside quoted fields; nothing else is touched, not even "NA"."""
    texts = [' "Hi" ', "NA", "None", "5.0", "ÄÖ ’", "tab\there"]
    with open(tmp_path / "ids-sst-train.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["", "id", "sentence", "sentiment"])
        writer.writerows([number, number, text, 1] for number, text in enumerate(texts))
    write_table(tmp_path / "ids-sst-dev.csv", ["", "id", "sentence", "sentiment"], [[0, "a", "b", 0]])
    assert load_rows(TASKS["sst"], str(tmp_path))["train"]["text"][:] == texts


def test_a_missing_test_file_is_said(course_folder, caplog, propagated_logs):
    (course_folder / "sts-test-student.csv").unlink()
    assert sorted(load_rows(TASKS["sts"], str(course_folder))) == ["dev", "train"]
    assert "sts-test-student.csv: no such file; task 'sts' has no test rows" in caplog.text


def test_a_hub_dataset_without_a_test_split_is_said(tmp_path, caplog, propagated_logs):
    """Like a missing test file; datasets' own message is of a folder here. Without dev rows it is refused."""
    task = load_task({"name": "t", "kind": "binary", "label_names": ["n", "y"], "hub": {"path": str(tmp_path)}})
    for split in ("train", "validation"):
        Dataset.from_dict({"text": ["x"], "label": ["y"]}).to_csv(tmp_path / f"{split}.csv")
    assert sorted(load_rows(task)) == ["dev", "train"] and load_rows(task, splits=["test"]) == {}
    assert caplog.text.count("/test: no such split; task 't' has no test rows to predict; hub: splits: names") == 2
    (tmp_path / "validation.csv").unlink()
    with pytest.raises(InputError, match='Unknown split "validation".*names in hub: splits:'):
        load_rows(task)


def test_many_gaps_are_counted(course_folder, caplog, propagated_logs):
    header = ["", "id", "sentence", "sentiment"]
    write_table(course_folder / "ids-sst-dev.csv", header, [[i, i, "x", "" if i else 1] for i in range(20)])
    usable_rows(TASKS["sst"], load_rows(TASKS["sst"], str(course_folder))["dev"], "dev")
    assert caplog.messages == [
        "ids-sst-dev.csv: no label for sst in rows 2, 3, 4, 5, 6, … (19 in all); predicted, not scored"
    ]


def test_gaps_are_left_out_of_training_and_predicted(course_folder, caplog, propagated_logs):
    header = ["", "id", "sentence1", "sentence2", "is_duplicate"]
    rows = [[0, "a", "x", "y", 1.0], [1, "b", "x", "", 0.0], [2, "c", "x", "y", ""], [3, "d", " ", "", ""]]
    for split in ("train", "dev"):
        write_table(course_folder / f"quora-{split}.csv", header, rows)
    loaded = load_rows(TASKS["quora"], str(course_folder))
    assert usable_rows(TASKS["quora"], loaded["train"], "train")["id"][:] == ["a"]
    assert usable_rows(TASKS["quora"], loaded["dev"], "dev")["id"][:] == ["a", "b", "c", "d"]
    usable_rows(TASKS["quora"], loaded["test"], "test")
    assert caplog.messages == [
        "quora: 1 of 2 dev rows have the texts of training rows; their scores are too good",
        "quora-train.csv: an empty text in rows 2, 4; left out of training",
        "quora-train.csv: no label for quora in rows 3, 4; left out of training",
        "quora-dev.csv: an empty text in rows 2, 4; predicted",
        "quora-dev.csv: no label for quora in rows 3, 4; predicted, not scored",
    ]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.text(max_size=20), st.sampled_from(["", "0", "1.0", "4"])), min_size=1, max_size=8))
def test_any_text_survives_and_no_row_is_lost(tmp_path, rows):
    rows = [("".join(c for c in text if c.isprintable()), label) for text, label in rows]
    for split in ("train", "dev"):
        with open(tmp_path / f"ids-sst-{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(["", "id", "sentence", "sentiment"])
            writer.writerows([i, i, text, label] for i, (text, label) in enumerate(rows))
    loaded = load_rows(TASKS["sst"], str(tmp_path))["train"]
    assert loaded["text"][:] == [text for text, _ in rows]
    assert loaded["label"][:] == [int(float(label)) if label else UNLABELLED for _, label in rows]


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("sst", "ids-sst-train.csv", None, "ids-sst-train.csv: no such file; task 'sst'"),
        ("sst", "ids-sst-dev.csv", "\tid\ttext\tsentiment\n0\ta\tb\t1\n", "row 1: no column 'sentence'; its columns"),
        ("sst", "ids-sst-train.csv", "\tid\tsentence\n0\ta\tb\n", "no column 'sentiment'"),
        ("sst", "ids-sst-train.csv", "\tid\tsentence\tsentiment\n0\ta\tb\t1\n1\tc\td\t5\n", "row 2: sentiment is '5'; "
         "expected one of negative, somewhat negative, .*from 0 to 4"),
        ("sst", "ids-sst-train.csv", "\tid\tsentence\tsentiment\n0\ta\tb\t1.5\n", "row 1: sentiment is '1.5'"),
        ("sst", "ids-sst-train.csv", "\tid\tsentence\tsentiment\n0\ta\tb\tinf\n", "row 1: sentiment is 'inf'"),
        ("sts", "sts-dev.csv", "\tid\tsentence1\tsentence2\tsimilarity\n0\ta\tb\tc\t5.1\n", "a score from 0 to 5"),
        ("sst", "ids-sst-train.csv", "\tid\tsentence\tsentiment\n0\ta\tb\n", "row 1 .line 2. has 3 fields but"),
        ("sst", "ids-sst-train.csv", "", "is empty"),
    ],
)  # fmt: skip
def test_bad_files_are_named(course_folder, name, file, content, message):
    if content is None:
        (course_folder / file).unlink()
    else:
        (course_folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_rows(TASKS[name], str(course_folder))
    assert file in str(error.value)


def test_other_mistakes_are_named(course_folder):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_rows(TASKS["sst"], "nowhere")
    (course_folder / "ids-sst-train.csv").write_bytes(b"\tid\tsentence\tsentiment\n0\ta\t\xff\xfe\t1\n")
    with pytest.raises(InputError, match="ids-sst-train.csv: line 2 is not UTF-8"):
        load_rows(TASKS["sst"], str(course_folder))
    nothing = "\tid\tsentence\tsentiment\n0\ta\tb\t\n"
    (course_folder / "ids-sst-train.csv").write_text(nothing)
    with pytest.raises(InputError, match="no row has a label"):
        usable_rows(TASKS["sst"], load_rows(TASKS["sst"], str(course_folder))["train"], "train")
    task = load_task({"name": "mine", "kind": "binary", "label_names": ["n", "y"]})
    with pytest.raises(InputError, match="has neither files nor hub"):
        load_rows(task, str(course_folder))
    with pytest.raises(InputError, match="has neither files nor hub"):
        load_rows(task, "hub")


def test_tokens(course_folder, tokenizer):
    task = TASKS["quora"]
    rows = load_rows(task, str(course_folder))["train"]
    tokens = tokenise(task, rows, tokenizer, 512)
    assert tokens["id"][:] == rows["id"][:] and set(tokens["task"]) == {"quora"}
    expected = tokenizer(rows["text"][1], rows["text_pair"][1])
    assert tokens[1]["input_ids"] == expected["input_ids"]
    assert tokens[1]["token_type_ids"] == expected["token_type_ids"] and 1 in expected["token_type_ids"]


def test_tokens_are_cached_and_memory_mapped(course_folder, tokenizer, monkeypatch):
    task = TASKS["sst"]
    rows = load_rows(task, str(course_folder))["train"]
    first = tokenise(task, rows, tokenizer, 512)
    assert first.cache_files

    def refuse(*args, **kwargs):
        raise RuntimeError("not from the cache")

    monkeypatch.setattr(type(tokenizer), "__call__", refuse)
    again = tokenise(task, load_rows(task, str(course_folder))["train"], tokenizer, 512)
    assert again[:] == first[:]
    with pytest.raises(RuntimeError, match="not from the cache"):  # where another length is not
        tokenise(task, rows, tokenizer, 8)


def test_a_saved_tokenizer_does_not_depend_on_the_cache(course_folder, tokenizer):
    rows = load_rows(TASKS["sst"], str(course_folder))["dev"]
    for _ in ("cold", "warm"):
        tokenise(TASKS["sst"], rows, tokenizer, 31)
        assert tokenizer.backend_tokenizer.truncation is None


def test_a_checkpoint_without_tokenizer_files_is_refused(tiny_bert, tmp_path):
    """Transformers would make up a tokenizer of five words, and the run would train on unknown tokens."""
    assert len(load_tokenizer(tiny_bert, 30522)) == 30522
    folder = shutil.copytree(tiny_bert, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match=r"has no tokenizer files \(tokenizer.json"):
        load_tokenizer(str(folder), 30522)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(folder), 30522)


def broken_tokenizer(tiny_bert: str, folder: Path, change) -> str:
    """A copy of the checkpoint whose tokenizer.json was changed, and is taken as it is: BertTokenizer takes parts."""
    shutil.copytree(tiny_bert, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    fields = json.loads((folder / "tokenizer.json").read_text())
    change(fields)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda fields: fields.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            id="panics as it is loaded",
        ),
        pytest.param(
            lambda fields: fields.update(pre_tokenizer={"type": "FixedLength", "length": 0}), id="panics in use"
        ),
        pytest.param(lambda fields: fields["model"]["vocab"].update(the=99_999), id="an id beyond the model's"),
        pytest.param(lambda fields: fields["model"].pop("vocab"), id="no vocabulary"),
    ],
)
def test_a_damaged_tokenizer_is_refused(tiny_bert, tmp_path, change):
    """A panic of the tokenizer's Rust code is a BaseException."""
    with pytest.raises(InputError, match="damaged: its tokenizer"):
        load_tokenizer(broken_tokenizer(tiny_bert, tmp_path / "damaged", change), 30522)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_loading_a_tokenizer_can_be_interrupted(tiny_bert, monkeypatch, signal):
    monkeypatch.setattr(
        "bert_multitask.data.tokens.AutoTokenizer.from_pretrained", lambda name: (_ for _ in ()).throw(signal)
    )
    with pytest.raises(signal):
        load_tokenizer(tiny_bert, 30522)


def cache_file(tokens: Dataset) -> Path:
    return Path(tokens.cache_files[0]["filename"])


def between_batches(content: bytes, rows: Dataset) -> bytes:
    """The tokens' stream of its first batch alone, as Arrow reads it: a valid file with too few rows."""
    sink = io.BytesIO()
    with pa.ipc.open_stream(content) as stream, pa.ipc.new_stream(sink, stream.schema) as short:
        short.write_batch(stream.read_next_batch().slice(0, len(rows) // 2))
    return sink.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content, rows: b"", id="empty"),
        pytest.param(lambda content, rows: content[: len(content) // 2], id="cut in the middle"),
        pytest.param(between_batches, id="cut between batches"),
        pytest.param(lambda content, rows: bytes(len(content)), id="zeros"),
        pytest.param(lambda content, rows: content[:800] + b"\xff" * 400 + content[1200:], id="overwritten"),
    ],
)
def test_a_damaged_token_cache_is_made_again(
    course_folder, tokenizer, tmp_path, monkeypatch, caplog, propagated_logs, damage
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_rows(TASKS["sst"], str(course_folder))["train"]
    expected = tokenise(TASKS["sst"], rows, tokenizer, 512)
    file, whole = cache_file(expected), expected[:]
    content = file.read_bytes()
    del expected  # which is mapped from the file
    file.write_bytes(damage(content, rows))
    again = tokenise(TASKS["sst"], rows, tokenizer, 512)
    assert again[:] == whole and cache_file(again) == file and file.read_bytes() == content
    assert f"{file}: is damaged" in caplog.text
    assert [path.name for path in file.parent.iterdir()] == [file.name], "no drafts are left"


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full_and_closed():
    """As Arrow's writer does that is closed after a failed write."""
    try:
        disk_full()
    except OSError:
        raise ValueError("I/O operation on closed file")  # noqa: B904


@pytest.mark.parametrize(
    "fault", ["a file in the way", "no permission", "full as it is written", "full and closed", "full at the end"]
)
def test_a_cache_that_cannot_be_written_is_done_without(
    course_folder, tokenizer, tmp_path, monkeypatch, caplog, propagated_logs, fault
):
    rows = load_rows(TASKS["sst"], str(course_folder))["train"]
    expected = tokenise(TASKS["sst"], rows, tokenizer, 512)[:]
    folder = tmp_path / fault  # a name of its own, since each message is logged once
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    if fault == "a file in the way":
        folder.write_text("")
    elif fault == "no permission":
        monkeypatch.setattr("tempfile.mkdtemp", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "denied")))
    elif fault in ("full as it is written", "full and closed"):
        write = ArrowWriter.write_batch
        fail = disk_full if fault == "full as it is written" else disk_full_and_closed
        full = partial(lambda writer, *a, **k: fail() if writer._path else write(writer, *a, **k))
        monkeypatch.setattr(ArrowWriter, "write_batch", lambda *a, **k: full(*a, **k))
    else:
        monkeypatch.setattr("os.replace", disk_full)
    tokens = tokenise(TASKS["sst"], rows, tokenizer, 512)
    assert tokens[:] == expected and not tokens.cache_files
    assert "bert_multitask: tokens cannot be cached" in caplog.text and "HF_DATASETS_CACHE" in caplog.text
    assert folder.is_file() or not list(folder.rglob("*.arrow")), "nothing is left that could be taken for the tokens"


def test_a_test_file_without_rows_is_like_none(course_folder, caplog, propagated_logs):
    write_table(course_folder / "ids-sst-test-student.csv", ["", "id", "sentence"], [])
    assert sorted(load_rows(TASKS["sst"], str(course_folder))) == ["dev", "train"]
    assert "ids-sst-test-student.csv: has no rows; task 'sst' has no test rows to predict" in caplog.text


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_file_without_rows_to_train_on_or_to_score_is_refused(course_folder, split):
    write_table(course_folder / f"ids-sst-{split}.csv", ["", "id", "sentence", "sentiment"], [])
    with pytest.raises(InputError, match=f"ids-sst-{split}.csv: has no rows; task 'sst'"):
        load_rows(TASKS["sst"], str(course_folder))


def test_a_byte_order_mark_is_no_part_of_a_column(course_folder):
    path = course_folder / "ids-sst-dev.csv"
    path.write_text("id\tsentence\tsentiment\na\tfine\t2\n", encoding="utf-8-sig")
    assert load_rows(TASKS["sst"], str(course_folder))["dev"]["id"][:] == ["a"]


def test_long_rows_are_cut_and_counted(course_folder, tokenizer, caplog, propagated_logs):
    task = TASKS["sts"]
    rows = load_rows(task, str(course_folder))["train"]
    whole, cut = (tokenise(task, rows, tokenizer, length) for length in (512, 9))
    lengths = list(map(len, whole["input_ids"]))
    assert not any(whole["truncated"])
    assert cut["truncated"][:] == [length > 9 for length in lengths]
    assert list(map(len, cut["input_ids"])) == [min(length, 9) for length in lengths]
    assert f"sts: {sum(cut['truncated'])} of 9 rows were cut to 9 tokens" in caplog.text


def test_both_sizes_are_said_where_they_differ_from_the_papers(course_folder):
    rows = {"sst": load_rows(TASKS["sst"], str(course_folder))}
    assert "sst                11        6        3  course: 8,544 / 1,101 / 2,210" in describe_rows(
        [TASKS["sst"]], rows
    )
    task = dataclasses.replace(TASKS["sst"], course_rows={"train": 11, "dev": 6, "test": 3})
    assert "course" not in describe_rows([task], rows)


def test_fingerprints_follow_the_content(course_folder):
    before = fingerprint(load_rows(TASKS["sst"], str(course_folder))["dev"])
    assert before == fingerprint(load_rows(TASKS["sst"], str(course_folder))["dev"])
    path = course_folder / "ids-sst-dev.csv"
    path.write_text(path.read_text().replace("good", "bad", 1))
    assert before != fingerprint(load_rows(TASKS["sst"], str(course_folder))["dev"])


def test_the_hub(hub, tmp_path, tiny_bert):
    """Datasets and a checkpoint, in a fresh process that is pointed at a hub on loopback, as `HF_ENDPOINT` does."""
    hub.add("someone/bert", {path.name: path.read_bytes() for path in Path(tiny_bert).iterdir()})
    for repo_id, files in DATASETS.items():
        hub.add(repo_id, files, repo_type="dataset")
    hub.repositories["dataset", "SetFit/sst5"].commit("old", OLD)
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "load_from_hub.py"],
        env=hub.env(tmp_path, hub.token),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout.splitlines()[-1])
    assert got["sst"] == {
        "train": [["0", "good", 4], ["1", "dull", 1]],
        "dev": [["0", "fine", 2]],
        "test": [["0", "x", 0]],
    }
    assert got["quora"]["dev"] == [["7", "a ?", "b ?", 1]]
    assert got["quora"]["test"] == [["3", "c ?", "d ?", UNLABELLED]]
    assert got["sts"]["train"] == [["5", "a", "b", 2.5]]
    for name, (texts, classes, _) in GLUE.items():
        found = got[f"glue/{name}"]
        labelled = [[str(n), *(f"{text} {n}" for text in texts), n] for n in range(len(classes))]
        assert found["train"] == found["dev"] == labelled, "the classes in the order of GLUE's numbers"
        assert [row[-1] for row in found["test"]] == [UNLABELLED]
    assert got["glue/qqp"] == got["quora"] and got["glue/stsb"] == got["sts"]
    assert got["cfimdb"]["train"] == [["0", "long", 1], ["1", "short", 0]], "labels by name"
    weights = load_file(f"{tiny_bert}/model.safetensors")["encoder.layer.0.output.dense.weight"]
    assert got["weights"] == pytest.approx(weights.double().sum().item()) and len(got["predicted"]) == 1
    assert got["slices"] == {"train": [["0", "good", 4]], "dev": [["0", "dull", 1], ["1", "fine", 2]]}
    assert got["an idx twice"]["train"] == [["0", "a ?", "b ?", 1], ["1", "a ?", "b ?", 1]]
    assert got["revision"]["train"] == [["0", "older", 3]]
    assert "cannot be loaded" in got["no revision"] and "revision" in got["no revision"]
    assert "Unknown split" in got["wrong split"] and "no column" in got["wrong column"]
    assert "cannot be loaded from the Hub" in got["absent"]
    assert got["run"] == {"sst": ["0"]}, "predictions of a Hub id on Hub rows"


def test_hub_source_of_a_preset_names_our_splits():
    assert all(set(task.hub.splits) == set(SPLITS) for task in TASKS.values())
    assert HubSource("a/b").splits["dev"] == "validation"
    assert resolve_folder(SAMPLE).endswith("sample")


NLI_ROWS = [
    {"premise": "A man, asleep.", "hypothesis": 'He "rests".', "gold": "entailment"},
    {"premise": "Ein Hund läuft.", "hypothesis": "Eine Katze läuft.", "gold": "neutral"},
    {"premise": "NA", "hypothesis": "It rains.\tA lot.", "gold": "contradiction"},
]
NLI = {
    "name": "nli",
    "kind": "classification",
    "text": "premise",
    "text_pair": "hypothesis",
    "label": "gold",
    "label_names": ["entailment", "neutral", "contradiction"],
}


def write_rows(path, rows: list[dict]) -> None:
    """A file of the form that its name says."""
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_file_form_gives_the_same_rows(tmp_path, form):
    for split in ("train", "dev"):
        write_rows(tmp_path / f"nli-{split}.{form}", NLI_ROWS)
    task = load_task(NLI | {"files": {split: f"nli-{split}.{form}" for split in ("train", "dev")}})
    rows = load_rows(task, str(tmp_path))["train"]
    assert rows["text"][:] == [row["premise"] for row in NLI_ROWS]
    assert rows["text_pair"][:] == [row["hypothesis"] for row in NLI_ROWS]
    assert rows["label"][:] == [0, 1, 2] and rows["id"][:] == ["0", "1", "2"], "rows without ids are numbered"
    absolute = load_task(NLI | {"files": {split: str(tmp_path / f"nli-{split}.{form}") for split in ("train", "dev")}})
    assert fingerprint(load_rows(absolute, SAMPLE)["train"]) == fingerprint(rows), "absolute paths, another data folder"
    assert fingerprint(load_rows(absolute, "hub")["train"]) == fingerprint(rows), "a task that is not on the Hub"
    assert fingerprint(load_rows(absolute)["train"]) == fingerprint(rows), "the default data folder is an address"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.jsonl", b'{"premise": "a"}\n', "train.jsonl, row 1: no column 'hypothesis'; its columns are premise"),
        ("train.jsonl", b'{"premise": "a"\n', "train.jsonl: line 1 is not JSON"),
        ("train.jsonl", b"\n[1]\n", "train.jsonl: line 2 is not a JSON object"),
        ("train.json", b"[]", "train.json: task 'nli' reads files that end in .csv, .tsv, .txt, .jsonl, .parquet"),
        ("train.jsonl", b'{"premise": "\xff"}\n', "line 1 is not JSON"),
        ("train.parquet", b"PAR", "train.parquet: cannot be read as Parquet"),
        ("train.csv", b"premise,hypothesis,gold\na,b,maybe\n", "row 1: gold is 'maybe'; expected one of "),
        ("train.csv", b"premise,hypothesis,gold\na,b\n", "row 1 .line 2. has 2 fields but the header has 3"),
    ],
)
def test_bad_files_of_other_forms_are_named(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    task = load_task(NLI | {"files": {"train": file, "dev": file}})
    with pytest.raises(InputError, match=message):
        load_rows(task, str(tmp_path))


def test_missing_values_are_empty_texts_and_no_labels(tmp_path):
    write_rows(tmp_path / "nli.jsonl", [*NLI_ROWS, {"premise": None, "hypothesis": 7, "gold": None}])
    task = load_task(NLI | {"files": {"train": "nli.jsonl", "dev": "nli.jsonl"}})
    rows = load_rows(task, str(tmp_path))["train"]
    assert rows[3] == {"id": "3", "text": "", "text_pair": "7", "label": UNLABELLED}


@pytest.mark.parametrize("max_length", [512, 6])
def test_separately_encoded_pairs(tmp_path, tokenizer, max_length):
    write_rows(tmp_path / "nli.jsonl", NLI_ROWS)
    task = load_task(NLI | {"files": {"train": "nli.jsonl", "dev": "nli.jsonl"}})
    rows = load_rows(task, str(tmp_path))["train"]
    tokens = tokenise(task, rows, tokenizer, max_length, "separate")
    for row, source in zip(tokens, NLI_ROWS, strict=True):
        for ids, segments, column in zip(
            row["input_ids"], row["token_type_ids"], ("premise", "hypothesis"), strict=True
        ):
            assert ids == tokenizer(source[column], truncation=True, max_length=max_length)["input_ids"]
            assert segments == [0] * len(ids)
    assert tokens["truncated"][:] == ([False] * 3 if max_length == 512 else [True, True, True])
    joint = tokenise(task, rows, tokenizer, max_length)
    assert isinstance(joint[0]["input_ids"][0], int), "each encoding has its cache"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_numbers_as_label_names_mean_the_same_in_every_form(tmp_path, form):
    stars = {
        "name": "stars",
        "kind": "classification",
        "text": "text",
        "label": "stars",
        "label_names": ["1", "2", "3"],
    }
    write_rows(
        tmp_path / f"a.{form}", [{"id": None, "text": "fine", "stars": 1}, {"id": None, "text": "ok", "stars": 3}]
    )
    task = load_task(stars | {"files": {"train": f"a.{form}", "dev": f"a.{form}"}})
    rows = load_rows(task, str(tmp_path))["train"]
    assert rows["label"][:] == [0, 2]
    assert rows["id"][:] == ["0", "1"], "a missing id is the row's number"


def test_a_file_under_an_address_beside_a_local_folder(course_folder, server):
    task = TASKS["sst"]
    there = dataclasses.replace(task, files={split: f"{server}/{name}" for split, name in task.files.items()})
    assert fingerprint(load_rows(there, str(course_folder))["dev"]) == fingerprint(
        load_rows(task, str(course_folder))["dev"]
    )


@given(count=st.integers(1, 30), limit=st.none() | st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_a_sample_of_rows(count, limit, seed):
    rows = Dataset.from_dict({"id": [str(number) for number in range(count)]})
    task = dataclasses.replace(TASKS["sst"], max_train_samples=limit)
    drawn = list(map(int, sample_rows(task, rows, seed)["id"]))
    assert len(drawn) == len(set(drawn)) == min(count, limit or count) and drawn == sorted(drawn)
    assert drawn == list(map(int, sample_rows(task, rows, seed)["id"])), "the seed alone decides"
