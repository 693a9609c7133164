"""Load a checkpoint and the presets' datasets from the Hub that `HF_ENDPOINT` names, and print what came.

Tests serve `DATASETS` and a checkpoint "someone/bert" with `hub_server.py` and run this file in a fresh process.
"""

import io
import json


def lines(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def card(name: str, suffix: str = "") -> bytes:
    """A dataset card that lists one configuration's files, as GLUE's does."""
    splits = "train", f"validation{suffix}", f"test{suffix}"
    files = "".join(f"  - split: {split}\n    path: {name}/{split}.parquet\n" for split in splits)
    return f"- config_name: {name}\n  data_files:\n{files}".encode()


# The text columns and the classes of GLUE's other configurations, in the order of their numbers.
GLUE = {
    "cola": (["sentence"], ["unacceptable", "acceptable"], ""),
    "sst2": (["sentence"], ["negative", "positive"], ""),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"], ""),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], "_matched"),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], ""),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], ""),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"], ""),
}


def parquet(rows: list[dict], classes: list[str] | None = None) -> bytes:
    """A Parquet file of GLUE's form: labels are a `ClassLabel`, or scores."""
    from datasets import ClassLabel, Dataset, Features, Value

    types = {name: Value("string") for name in rows[0]} | {"idx": Value("int32")}
    types["label"] = ClassLabel(names=classes) if classes else Value("float32")
    Dataset.from_list(rows, Features(types)).to_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


def glue_files() -> dict[str, bytes]:
    """A row of each class to train on and to score, and hidden labels (-1) in test."""
    files = {}
    for name, (texts, classes, suffix) in GLUE.items():
        for split in ("train", f"validation{suffix}", f"test{suffix}"):
            labels = [-1] if split.startswith("test") else range(len(classes))
            rows = [{text: f"{text} {label}" for text in texts} | {"label": label, "idx": label} for label in labels]
            files[f"{name}/{split}.parquet"] = parquet(rows, classes)
    return files


PARAPHRASE = ["not_duplicate", "duplicate"]
DATASETS = {
    "SetFit/sst5": {
        "train.jsonl": lines(
            {"text": "good", "label": 4, "label_text": "very positive"},
            {"text": "dull", "label": 1, "label_text": "negative"},
        ),
        "dev.jsonl": lines({"text": "fine", "label": 2, "label_text": "neutral"}),
        "test.jsonl": lines({"text": "x", "label": 0, "label_text": "very negative"}),
    },
    "nyu-mll/glue": {
        "README.md": b"---\nconfigs:\n"
        + b"".join([card("qqp"), card("stsb"), *(card(name, GLUE[name][2]) for name in GLUE)])
        + b"---\n",
        **glue_files(),
        "qqp/train.parquet": parquet([{"question1": "a ?", "question2": "b ?", "label": 0, "idx": 9}], PARAPHRASE),
        "qqp/validation.parquet": parquet([{"question1": "a ?", "question2": "b ?", "label": 1, "idx": 7}], PARAPHRASE),
        "qqp/test.parquet": parquet([{"question1": "c ?", "question2": "d ?", "label": -1, "idx": 3}], PARAPHRASE),
        "stsb/train.parquet": parquet([{"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 5}]),
        "stsb/validation.parquet": parquet([{"sentence1": "a", "sentence2": "b", "label": 0.0, "idx": 5}]),
        "stsb/test.parquet": parquet([{"sentence1": "a", "sentence2": "b", "label": -1.0, "idx": 5}]),
    },
    "tasksource/counterfactually-augmented-imdb": {
        "train.tsv": b"Sentiment\tText\nPositive\tlong\nNegative\tshort\n",
        "dev.tsv": b"Sentiment\tText\nPositive\tlong\n",
        "test.tsv": b"Sentiment\tText\nNegative\tshort\n",
    },
}
OLD = {"train.jsonl": lines({"text": "older", "label": 3})}  # branch "old" of SetFit/sst5


def load_everything() -> dict:
    """Load a checkpoint, the presets' datasets, three that fail, and a run just pushed."""
    import dataclasses

    from huggingface_hub import ModelCard
    from transformers import AutoTokenizer

    from bert_multitask.data.rows import load_rows
    from bert_multitask.inference.pipeline import MultitaskPipeline
    from bert_multitask.inference.split_tables import SplitTables
    from bert_multitask.model.modeling import MultitaskBertModel
    from bert_multitask.model.tasks import TASKS, HubSource

    results = {
        name: {split: [list(row.values()) for row in rows] for split, rows in load_rows(task, "hub").items()}
        for name, task in TASKS.items()
    }
    columns = {"text": "question1", "text_pair": "question2", "label_names": PARAPHRASE}
    sources = {
        "slices": ("sst", HubSource("SetFit/sst5", splits={"train": "train[:50%]", "dev": "train[50%:]+validation"})),
        "revision": ("sst", HubSource("SetFit/sst5", splits={"train": "train", "dev": "train"}, revision="old")),
        "an idx twice": (
            "quora",
            HubSource("nyu-mll/glue", "qqp", splits={"train": "validation+validation", "dev": "test"}, **columns),
        ),
    }
    for name, (task, source) in sources.items():
        found = load_rows(dataclasses.replace(TASKS[task], hub=source), "hub")
        results[name] = {split: [list(row.values()) for row in rows] for split, rows in found.items()}
    results |= load_broken()
    model = MultitaskBertModel.from_pretrained("someone/bert", tasks=["sst"])
    tokenizer = AutoTokenizer.from_pretrained("someone/bert")
    results["predicted"] = MultitaskPipeline(model, tokenizer).table("sst", ["fine"])["label"][:]
    results["weights"] = float(model.bert.encoder["layer"][0].output.dense.weight.detach().double().sum())
    ModelCard.validate = lambda card, **options: None  # before 2.0, huggingface.co is asked whatever HF_ENDPOINT says
    model.push_to_hub("me/run")
    tokenizer.push_to_hub("me/run")
    (member,) = SplitTables(["me/run"], "test", data_dir="hub").members
    results["run"] = {name: predictions.table["id"][:] for name, predictions in member.tables.items()}
    return results


def load_broken() -> dict[str, str]:
    """What is said about datasets that fail."""
    import dataclasses

    from bert_multitask.data.rows import load_rows
    from bert_multitask.model.errors import InputError
    from bert_multitask.model.tasks import TASKS, HubSource

    results = {}
    broken = {
        "no revision": HubSource("SetFit/sst5", revision="never"),
        "wrong split": HubSource("SetFit/sst5", splits={"train": "training", "dev": "validation"}),
        "wrong column": HubSource("SetFit/sst5", text="sentence"),
        "absent": HubSource("nobody/nothing"),
    }
    for name, source in broken.items():
        try:
            load_rows(dataclasses.replace(TASKS["sst"], hub=source), "hub")
        except InputError as error:
            results[name] = str(error)
    return results


if __name__ == "__main__":
    print(json.dumps(load_everything()))
