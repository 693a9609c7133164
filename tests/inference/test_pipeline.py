"""The pipeline: what rows it takes, what it answers, and that it answers as the model does."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_multitask.inference.attribution import explain
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.model.encoder import MinBertModel
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS

TOPIC = {"name": "topic", "kind": "classification", "text": "title", "label_names": ["cooking", "sport", "music"]}


@pytest.fixture(scope="module")
def model(tiny_bert):
    torch.manual_seed(0)
    return MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "quora", "sts", TOPIC])


@pytest.fixture(scope="module")
def pipe(model, tokenizer):
    return MultitaskPipeline(model, tokenizer)


def test_plain_strings(model, tokenizer):
    texts = ["a gripping film", "dull", "fine, in its way, and long enough to need padding beside the others"]
    table = MultitaskPipeline(model, tokenizer, batch_size=2).table("sst", texts)
    model.eval()
    for number, text in enumerate(texts):
        with torch.inference_mode():
            alone = model("sst", **tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert table["label"][number] == alone.argmax().item()
        np.testing.assert_allclose(table["probabilities"][number], alone, atol=1e-5)


@pytest.mark.parametrize("encoding", ["joint", "separate"])
def test_a_prompt_is_as_if_it_were_written(tiny_bert, tokenizer, encoding):
    """Answers and explanations; two tasks differ in nothing but their prompts."""
    torch.manual_seed(0)
    tasks = [{"preset": "sst", "name": name, "prompt": f"{name}: "} for name in ("mood", "other")]
    tasks.append({"preset": "quora", "name": "same", "prompt": "same? "})
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=tasks, pair_encoding=encoding)
    plain = [task | {"prompt": ""} for task in tasks]
    plain = MultitaskBertModel.from_pretrained(tiny_bert, tasks=plain, pair_encoding=encoding)
    plain.load_state_dict(model.state_dict())
    pipe, plain = MultitaskPipeline(model, tokenizer), MultitaskPipeline(plain, tokenizer)
    texts, pairs = ["dull", "a gripping film"], [("Is it far?", "How far?"), ("a", "b")]
    second = "same? " if encoding == "separate" else ""
    rows = {"mood": texts, "other": texts, "same": pairs}
    written = {name: [f"{name}: {text}" for text in texts] for name in ("mood", "other")}
    written["same"] = [("same? " + one, second + two) for one, two in pairs]
    for name in rows:
        found = pipe.table(name, rows[name])["probabilities"]
        np.testing.assert_allclose(found, plain.table(name, written[name])["probabilities"], atol=1e-6)
        found, whole = explain(pipe, name, rows[name][0]), explain(plain, name, written[name][0])
        assert ["".join(text for text, _ in pieces) for pieces in found] == [*np.atleast_1d(rows[name][0])]
        for own, longer in zip(found, whole, strict=True):
            values, expected = ([value for _, value in part[-len(own) :]] for part in (own, longer))
            np.testing.assert_allclose(values, expected, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=9), st.integers(1, 5))
def test_the_order_of_rows_is_kept(model, tokenizer, pipe, lengths, batch_size):
    """Rows are sorted by length for the batches, and are their own numbers here: each alone gives the same."""
    texts = [f"{number} " + "word " * length for number, length in enumerate(lengths)]
    together = MultitaskPipeline(model, tokenizer, batch_size=batch_size).table("sst", texts)
    assert together["id"][:] == [str(number) for number in range(len(texts))]
    for number, text in enumerate(texts):
        alone = pipe.table("sst", [text])["probabilities"][0]
        np.testing.assert_allclose(together["probabilities"][number], alone, atol=1e-5)


def test_plain_pairs(model, tokenizer, pipe):
    pairs = [("Is it far?", "How far is it?"), ("Is it far?", "Who are you?")]
    assert all(0 <= score <= 5 for score in pipe.table("sts", pairs)["score"])
    with torch.inference_mode():
        logit = model("quora", **tokenizer(*pairs[1], return_tensors="pt")).logits
    np.testing.assert_allclose(pipe.table("quora", pairs)["probabilities"][1][1], logit.sigmoid()[0], 1e-5)


def test_no_rows(pipe):
    assert [len(pipe.table(task, [])) for task in ("sst", "quora", "sts")] == [0, 0, 0]


def test_long_rows_are_cut_to_what_the_model_takes(tiny_bert, tokenizer):
    model = MultitaskBertModel.from_pretrained(
        tiny_bert, tasks=["sst"], max_position_embeddings=16, ignore_mismatched_sizes=True
    )
    assert len(MultitaskPipeline(model, tokenizer).table("sst", ["long " * 50])) == 1


def test_dictionaries_are_rows(pipe):
    pairs = [("A dog sleeps", "A cat"), ("A man", "A man eats")]
    records = [{"text_pair": second, "text": first, "more": [1]} for first, second in pairs]
    assert pipe.table("sts", records)[:] == pipe.table("sts", pairs)[:]
    assert pipe.table("sts", Dataset.from_list(records))[:] == pipe.table("sts", pairs)[:]
    texts = [first for first, _ in pairs]
    expected = pipe.table("sst", texts)[:]
    more = [{"sentence": text, "text": "not this", "label": 1, "at": None} for text in texts]
    for rows in ([{"text": text} for text in texts], more, np.array(texts), pd.Series(texts), iter(texts)):
        assert pipe.table("sst", rows)[:] == expected


@pytest.mark.parametrize(
    ("task", "row"),
    [
        pytest.param("sts", {"text": "a"}, id="no second text"),
        pytest.param("sts", {"first": "a", "second": "b"}, id="other keys"),
        pytest.param("sts", "ab", id="a text of two letters"),
        pytest.param("sts", ["a", "b", "c"], id="three texts"),
        pytest.param("sts", {"a", "b"}, id="a set"),
        pytest.param("sts", np.array(["a", "b"]), id="an array"),
        pytest.param("sts", (b"a", b"b"), id="bytes in a pair"),
        pytest.param("sts", ("a", 1.5), id="a number in a pair"),
        pytest.param("sts", None, id="None for a pair"),
        pytest.param("sst", ("a", "b"), id="a tuple for a text"),
        pytest.param("sst", ["a"], id="a list of a text"),
        pytest.param("sst", b"a", id="bytes"),
        pytest.param("sst", 7, id="a number"),
        pytest.param("sst", "so happy \ud83d", id="half an emoji"),
    ],
)
def test_anything_else_is_no_row(pipe, task, row):
    good = ("a", "b") if task == "sts" else "a"
    with pytest.raises(InputError, match=rf"rows\[1\] is .*; task '{task}' takes") as error:
        pipe.table(task, [good, row])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rows",
    [{"text": ["a"]}, {"a", "b"}, b"ab", 7, None],
    ids=["columns", "set", "bytes", "number", "None"],
)
def test_rows_that_are_no_list(pipe, rows):
    with pytest.raises(InputError, match="rows is .*; expected a list of rows"):
        pipe.table("sst", rows)


def test_an_unknown_task_is_named(pipe):
    with pytest.raises(InputError, match="no task 'nli'; it has sst, quora, sts"):
        pipe.table("nli", ["x"])


def test_separately_encoded_pairs_in_any_batch_size(tiny_bert, tokenizer):
    """The scores of one pair, whatever it is batched with, and by the model's own tensors."""
    tasks = ["sst", "quora", "sts"]
    model = MultitaskBertModel.from_pretrained(
        tiny_bert, tasks=tasks, pair_encoding="separate", encoder_sharing="per_task"
    )
    pairs = [("a good film", "a film"), ("dull", "a dull and very long story of a cast"), ("", "fine")]
    pipe = MultitaskPipeline(model, tokenizer)
    together = pipe.table("sts", pairs)["score"][:]
    for pair, score in zip(pairs, together, strict=True):
        alone = MultitaskPipeline(model, tokenizer, batch_size=1).table("sts", [pair])
        assert alone["score"][0] == pytest.approx(score, abs=1e-4)
        encoded = tokenizer(list(pair), padding=True, return_tensors="pt")
        logits = model("sts", **{name: value.unsqueeze(0) for name, value in encoded.items()}).logits
        assert logits.item() == pytest.approx(score, abs=1e-4)
    assert len(pipe.table("sst", ["fine"])) == 1


TEXTS = ["a gripping film", "dull", "fine, in its way, and long enough to need padding", ""]


def test_answers(model, tokenizer, pipe):
    """Against the model's own logits, by the names of the labels."""
    table, names = pipe.table("topic", TEXTS), TOPIC["label_names"]
    for row, label, probabilities in zip(pipe("topic", TEXTS), table["label"], table["probabilities"], strict=True):
        assert row == {"label": names[label], "probabilities": dict(zip(names, probabilities, strict=True))}
    with torch.inference_mode():
        logits = model("topic", **tokenizer(TEXTS[0], return_tensors="pt")).logits[0]
    answer = pipe("topic", TEXTS[0])
    assert answer["label"] == names[logits.argmax()]
    assert list(answer["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-6)
    pair = ("Is it far?", "How far is it?")
    assert pipe("sts", pair) == pipe("sts", {"sentence1": pair[0], "sentence2": pair[1], "id": 3})
    assert pipe("sts", [pair])[0]["score"] == pytest.approx(pipe.table("sts", [pair])["score"][0], abs=1e-6)
    assert pipe("quora", pair)["label"] in TASKS["quora"].label_names
    assert pipe("sst", []) == [] and pipe.all([]) == []


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_all_single_texts_from_one_pass(monkeypatch, tiny_bert, tokenizer, sharing, pooling):
    tasks = ["sst", "sts", TOPIC, {"name": "mark", "kind": "regression"}]
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=tasks, encoder_sharing=sharing, pooling=pooling)
    pipe = MultitaskPipeline(model, tokenizer, batch_size=2)
    alone = {task: pipe(task, TEXTS) for task in ("sst", "topic", "mark")}
    calls, forward = [], MinBertModel.forward
    monkeypatch.setattr(MinBertModel, "forward", lambda *a, **options: (calls.append(1), forward(*a, **options))[1])
    together = pipe.all(TEXTS)
    assert len(calls) == 2 * (1 if sharing == "shared" else 3)  # batches of two
    for number, row in enumerate(together):
        assert row.keys() == alone.keys()
        for task, answer in row.items():
            expected = alone[task][number]
            assert answer.get("label") == expected.get("label")
            numbers = [found.get("score", found.get("probabilities")) for found in (answer, expected)]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)
    assert pipe.all(TEXTS[0]).keys() == alone.keys()
    done = []
    pipe.predict({"sst": [TEXTS], "topic": [TEXTS[:3]]}, done.append)
    assert sum(done) == pytest.approx(len(TEXTS) / 2 + 3 / 2), "a row is done when all its tasks are"


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA], ids=["None", "NaN", "NA"])
def test_a_missing_text_is_an_empty_one(pipe, missing):
    """In every form of rows, as in files."""
    empty = pipe("sst", "")
    assert pipe("sst", [missing, "A film"]) == pipe("sst", ["", "A film"])
    assert pipe("sst", {"sentence": missing}) == empty
    frame = pipe("sst", pd.DataFrame({"sentence": [missing]}, dtype=object))
    assert frame["sst_probability"][0] == pytest.approx(max(empty["probabilities"].values()), abs=1e-6)
    half = pipe("sts", ("A dog", ""))
    assert pipe("sts", ("A dog", missing)) == half == pipe("sts", {"text": "A dog", "text_pair": missing})
    with pytest.raises(InputError, match="expected a list of rows"):
        pipe("sst", missing)


def test_it_says_what_it_answers(pipe):
    assert repr(pipe).startswith("MultitaskPipeline(") and "sst, quora, sts" in repr(pipe)


def test_a_frame_keeps_its_rows_and_index(pipe):
    frame = pd.DataFrame(
        {"n": [1, 2, 3, 4], "title": [*TEXTS[:3], None], "sentence": TEXTS, "label": list("abcd")}, index=[7, 7, 3, 9]
    )
    before, found = frame.copy(), pipe.all(frame)
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(found[frame.columns], frame)
    answers = {task: pipe(task, TEXTS) for task in ("sst", "topic")}
    for task, rows in answers.items():
        assert found[f"{task}_label"].tolist() == [row["label"] for row in rows]
        assert found[f"{task}_probability"].tolist() == pytest.approx(
            [row["probabilities"][row["label"]] for row in rows], abs=1e-6
        )
        assert [len(row) for row in found[f"{task}_probabilities"]] == [len(row["probabilities"]) for row in rows]
    added = [f"{task}_{column}" for task in answers for column in ("label", "probabilities", "probability")]
    assert [*found] == [*frame, *added]
    assert len(pipe("sts", pd.DataFrame({"text": TEXTS, "text_pair": TEXTS}))["sts_score"]) == 4
    with pytest.raises(InputError, match="a column 'topic_label' already"):
        pipe("topic", found)
    with pytest.raises(InputError, match="the frame has the columns n; task 'sst' takes sentence"):
        pipe("sst", frame[["n"]])
    with pytest.raises(InputError, match="and no task takes them: sst: sentence; quora: sentence1 and sentence2"):
        pipe.all(frame[["n"]])
    with pytest.raises(InputError, match=r"row 2 holds \['a'\] .list.; expected a text"):
        pipe("sst", pd.DataFrame({"sentence": ["a", ["a"]]}))


def test_a_copy_loads_a_run_once(monkeypatch, tmp_path, model, tokenizer, pipe):
    model.save_pretrained(tmp_path / "run"), tokenizer.save_pretrained(tmp_path / "run")
    named = MultitaskPipeline(tmp_path / "run", max_length=99)
    loads, load = [], MultitaskBertModel.from_pretrained
    monkeypatch.setattr(MultitaskBertModel, "from_pretrained", lambda name: (loads.append(name), load(name))[1])
    stored = pickle.dumps(named)
    assert len(stored) < 100_000 and not loads
    copies = [pickle.loads(stored) for _ in range(2)]
    expected = pipe("topic", TEXTS)
    for copy in (*copies, pickle.loads(pickle.dumps(copies[0]))):
        assert copy("topic", TEXTS) == expected and copy.max_length == 99
    assert len(loads) == 1
    again = MultitaskPipeline(tmp_path / "run")
    assert again("topic", TEXTS) == expected and len(loads) == 2, "another pipeline reads the folder as it is now"
    assert pickle.loads(pickle.dumps(pipe))("topic", TEXTS) == expected, "a model that was given travels along"


def test_threads_may_share_a_tokenizer(pipe):
    """A server answers each request in a thread, and how long a row may be is a setting of the tokenizer."""
    pipes = [pipe, MultitaskPipeline(*pipe.load(), max_length=16)] * 3
    rows = ["long " * 300, *["short"] * 50]
    alone = [one("topic", rows) for one in pipes]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda one: [one("topic", rows) for _ in range(4)], pipes))
    for found, expected in zip(together, alone, strict=True):
        assert all(answers == expected for answers in found)


def test_devices(model, tokenizer, tmp_path):
    """-1 is the CPU, as in Transformers' pipelines; a device that is not there ends in one line."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert MultitaskPipeline(tmp_path, device=-1)("sst", "a film")["label"]
    for wrong in (-2, "gpu"):
        with pytest.raises(InputError, match=f"device is {wrong!r}.*; expected for example 'cpu'"):
            MultitaskPipeline(model, tokenizer, device=wrong)
    gone = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(InputError, match=f"device is {gone}, which this machine cannot use"):
        MultitaskPipeline(tmp_path, device=gone)("sst", "a film")


def test_the_task_comes_before_the_rows(pipe):
    for task in (["a film"], ["sst", "topic"], None, {"text": "a film"}):
        with pytest.raises(InputError, match=r"expected the name of one task, before the rows: pipe\(task, rows\)"):
            pipe(task, "sst")


def test_what_is_no_model(tiny_bert, model, tokenizer):
    with pytest.raises(InputError, match="encoder without heads"):
        MultitaskPipeline(tiny_bert)
    with pytest.raises(InputError, match=r"with its tokenizer: MultitaskPipeline\(model, tokenizer\)"):
        MultitaskPipeline(model)
    with pytest.raises(InputError, match="^model is a OptimizedModule; expected a MultitaskBertModel"):
        MultitaskPipeline(torch.compile(model), tokenizer)
    with pytest.raises(InputError, match="batch_size is 0; expected at least 1"):
        MultitaskPipeline(model, tokenizer, batch_size=0)
    pairs_only = MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sts"])
    with pytest.raises(InputError, match="the model's tasks, sts, take pairs"):
        MultitaskPipeline(pairs_only, tokenizer).all(["a"])
