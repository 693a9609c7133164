"""Prediction tables and files, and prediction of plain strings."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_multitask.configuration import InputError
from bert_multitask.heads import MultitaskBertModel
from bert_multitask.prediction import predict, prediction_table, read_predictions, write_predictions
from bert_multitask.tasks import TASKS, Task

LOGITS = {
    "sst": np.array([[0, 1, 2, 3, 4.0], [9, 0, 0, 0, 0]]),
    "quora": np.array([2.0, -1.0]),
    "sts": np.array([1.25, 4.5]),
}


def test_tables():
    table = prediction_table(TASKS["sst"], ["x", "y"], LOGITS["sst"])
    assert table["id"][:] == ["x", "y"] and table["label"][:] == [4, 0]
    exponentials = np.exp(LOGITS["sst"])
    np.testing.assert_allclose(table["probabilities"], exponentials / exponentials.sum(-1, keepdims=True), rtol=1e-5)

    table = prediction_table(TASKS["quora"], ["x", "y"], LOGITS["quora"])
    yes = 1 / (1 + np.exp(-LOGITS["quora"]))
    assert table["label"][:] == [1, 0]
    np.testing.assert_allclose(table["probabilities"], np.stack([1 - yes, yes], -1), rtol=1e-5)

    assert prediction_table(TASKS["sts"], ["x", "y"], LOGITS["sts"])["score"][:] == [1.25, 4.5]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("sst", "id \t Predicted_Sentiment \nx , 4 \ny , 0 \n"),
        ("quora", "id \t Predicted_Is_Paraphrase \nx , 1 \ny , 0 \n"),
        ("sts", "id \t Predicted_Similiary \nx , 1.25 \ny , 4.5 \n"),
    ],
)
def test_files_have_the_courses_form(tmp_path, task, text):
    table = prediction_table(TASKS[task], ["x", "y"], LOGITS[task])
    write_predictions(TASKS[task], table, tmp_path / "new" / f"{task}-dev")
    assert (tmp_path / "new" / f"{task}-dev.csv").read_text() == text
    parquet = load_dataset("parquet", data_files=str(tmp_path / "new" / f"{task}-dev.parquet"), split="train")
    assert parquet[:] == table[:]


def test_files_of_a_users_own_task_have_names(tmp_path):
    """Read back by pandas; the Parquet file knows the task."""
    names = ("entailment", 'so, "so"', "contradiction")
    task = Task(name="nli", kind="classification", text_pair="hypothesis", label_names=names, epochs=2)
    table = prediction_table(task, ["a,b", "y"], np.array([[0, 3, 1.0], [2, 0, 1]]))
    write_predictions(task, table, tmp_path / "nli-dev")
    frame = pd.read_csv(tmp_path / "nli-dev.csv")
    assert frame.columns.tolist() == ["id", "label", "probability"]
    assert frame["id"].tolist() == ["a,b", "y"] and frame["label"].tolist() == [names[1], names[0]]
    np.testing.assert_allclose(frame["probability"], np.max(table["probabilities"][:], axis=1))
    read = read_predictions(tmp_path / "nli-dev.parquet")
    assert read.task == task and read.table[:] == table[:]

    score = Task(name="years", kind="similarity", score_range=(0, 99))
    write_predictions(score, prediction_table(score, ["x"], np.array([41.5])), tmp_path / "years-dev")
    assert (tmp_path / "years-dev.csv").read_text() == "id,score\nx,41.5\n"


def test_predicted_scores_may_lie_outside_the_labels_range(tmp_path):
    """As a cosine of 1 does by rounding."""
    table = prediction_table(TASKS["sts"], ["x", "y"], np.array([5.000001, -0.2]))
    write_predictions(TASKS["sts"], table, tmp_path / "sts-dev")
    assert read_predictions(tmp_path / "sts-dev.csv").table[:] == table[:]
    for value in ("nan", "much", "inf"):
        (tmp_path / "sts-dev.csv").write_text(f"id \t Predicted_Similiary \nx , {value} \n")
        with pytest.raises(InputError, match=f"sts-dev.csv: row 1 has the score '?{value}'?; expected a number"):
            read_predictions(tmp_path / "sts-dev.csv")


def test_tables_that_cannot_be_read_are_named(tmp_path):
    """Anybody's Parquet files, called TASK-SPLIT."""
    for name, columns, message in [
        ("sst", {"id": ["x"], "score": [1.0]}, "no column 'label'; its columns are id, score"),
        ("sts", {"id": ["x"], "label": [1]}, "no column 'score'"),
        ("sst", {"id": ["x", "y"], "label": [0, 5]}, "row 2 has the label 5; expected a class from 0 to 4"),
        ("sst", {"id": ["x", "y"], "label": [0, None]}, "row 2 has the label None; expected"),
        ("nli", {"id": ["x"], "label": [1]}, "does not say what its task is"),
    ]:
        pd.DataFrame(columns, dtype=object).to_parquet(tmp_path / f"{name}-dev.parquet")
        with pytest.raises(InputError, match=f"{name}-dev.parquet: {message}"):
            read_predictions(tmp_path / f"{name}-dev.parquet")
    (tmp_path / "sst-dev.parquet").write_bytes(b"not Parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_predictions(tmp_path / "sst-dev.parquet")


@pytest.fixture(scope="module")
def model(tiny_bert):
    torch.manual_seed(0)
    return MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "quora", "sts"])


def test_plain_strings(model, tokenizer):
    texts = ["a gripping film", "dull", "fine, in its way, and long enough to need padding beside the others"]
    table = predict(model, tokenizer, "sst", texts, batch_size=2)
    model.eval()
    for number, text in enumerate(texts):
        with torch.inference_mode():
            alone = model("sst", **tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert table["label"][number] == alone.argmax().item()
        np.testing.assert_allclose(table["probabilities"][number], alone, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=9), st.integers(1, 5))
def test_the_order_of_rows_is_kept(model, tokenizer, lengths, batch_size):
    """Rows are sorted by length for the batches, and are their own numbers here: each alone gives the same."""
    texts = [f"{number} " + "word " * length for number, length in enumerate(lengths)]
    together = predict(model, tokenizer, "sst", texts, batch_size)
    assert together["id"][:] == [str(number) for number in range(len(texts))]
    for number, text in enumerate(texts):
        alone = predict(model, tokenizer, "sst", [text])["probabilities"][0]
        np.testing.assert_allclose(together["probabilities"][number], alone, atol=1e-5)


def test_plain_pairs(model, tokenizer):
    pairs = [("Is it far?", "How far is it?"), ("Is it far?", "Who are you?")]
    assert all(0 <= score <= 5 for score in predict(model, tokenizer, "sts", pairs)["score"])
    with torch.inference_mode():
        logit = model("quora", **tokenizer(*pairs[1], return_tensors="pt")).logits
    np.testing.assert_allclose(
        predict(model, tokenizer, "quora", pairs)["probabilities"][1][1], logit.sigmoid()[0], 1e-5
    )


def test_no_rows(model, tokenizer):
    assert [len(predict(model, tokenizer, task, [])) for task in ("sst", "quora", "sts")] == [0, 0, 0]


def test_long_rows_are_cut_to_what_the_model_takes(tiny_bert, tokenizer):
    model = MultitaskBertModel.from_pretrained(
        tiny_bert, tasks=["sst"], max_position_embeddings=16, ignore_mismatched_sizes=True
    )
    assert len(predict(model, tokenizer, "sst", ["long " * 50])) == 1


def test_mistakes_are_named(model, tokenizer):
    with pytest.raises(InputError, match="rows is 'a film' .str.; expected a list"):
        predict(model, tokenizer, "sst", "a film")
    with pytest.raises(InputError, match="no task 'nli'; it has sst, quora, sts"):
        predict(model, tokenizer, "nli", ["x"])
    with pytest.raises(InputError, match=r"rows\[1\] is \('a', 'b'\); task 'sst' takes a text"):
        predict(model, tokenizer, "sst", ["a", ("a", "b")])
    with pytest.raises(InputError, match=r"rows\[0\] is 'ab'; task 'sts' takes a pair"):
        predict(model, tokenizer, "sts", ["ab"])


def test_separately_encoded_pairs_in_any_batch_size(tiny_bert, tokenizer):
    """The scores of one pair, whatever it is batched with, and by the model's own tensors."""
    tasks = ["sst", "quora", "sts"]
    model = MultitaskBertModel.from_pretrained(
        tiny_bert, tasks=tasks, pair_encoding="separate", encoder_sharing="per_task"
    )
    pairs = [("a good film", "a film"), ("dull", "a dull and very long story of a cast"), ("", "fine")]
    together = predict(model, tokenizer, "sts", pairs)["score"][:]
    for pair, score in zip(pairs, together, strict=True):
        assert predict(model, tokenizer, "sts", [pair], batch_size=1)["score"][0] == pytest.approx(score, abs=1e-4)
        encoded = tokenizer(list(pair), padding=True, return_tensors="pt")
        logits = model("sts", **{name: value.unsqueeze(0) for name, value in encoded.items()}).logits
        assert logits.item() == pytest.approx(score, abs=1e-4)
    assert len(predict(model, tokenizer, "sst", ["fine"])) == 1
