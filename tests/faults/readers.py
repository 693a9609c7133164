"""Every reader of the package, with valid inputs of other writers, damage, and a second opinion on what it reads."""

import dataclasses
import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import yaml
from datasets import Dataset
from pyarrow import parquet
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, BertTokenizer

from bert_multitask.commands.command_line import RecipeParser
from bert_multitask.data.rows import load_rows
from bert_multitask.data.tokens import load_tokenizer
from bert_multitask.evaluation.tables import read_predictions, write_predictions
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.losses import UNLABELLED
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS, Task
from bert_multitask.reporting.subject import open_sources
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.run_folder import read_run

from . import plain
from .mutations import mutate_bytes, mutate_json, mutate_json_bytes, walk
from .plain import NOTHING

PIECES = [
    "good",
    "bad film",
    "naïve",
    "感情",
    "😀",
    "e\u0301",
    '"',
    '""',
    "'",
    ",",
    ";",
    "\t",
    "\n",
    "\r\n",
    "\0",
    "\\",
    "\\n",
]
PIECES += [
    "\u2028",
    "\x85",
    "\ufeff",
    "\u200f",
    " ",
    "  ",
    "=1+1",
    "-1",
    "NA",
    "nan",
    "null",
    "None",
    "#",
    "<b>",
    "x" * 300,
]
NAMES = ("neg", "pos")


class Reader:
    """One kind of input.

    Attributes:
        share: of all inputs, so that a slow reader gets fewer.
        file: the damaged file, in the folder.
    """

    share: float
    file: str

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / self.file
        self.prepare()

    def prepare(self) -> None:
        """What all inputs have in common."""

    def make(self, rng: random.Random):
        """Write a valid input, and return what must be read from it."""
        raise NotImplementedError

    def damage(self, rng: random.Random) -> None:
        """Damage the input that `make` wrote."""
        self.path.write_bytes(mutate_bytes(self.path.read_bytes(), rng))

    def read(self):
        """What the package reads."""
        raise NotImplementedError

    def second_opinion(self):
        """What another reader reads from the damaged input; NOTHING where it refuses."""
        raise NotImplementedError

    def compare(self, reading, expected) -> str | None:
        """How a reading differs from what is expected; None where it does not. `expected` may be NOTHING: then the
        input is not of its form, and a reading of it is one difference."""
        if expected is NOTHING:
            return "read what is not of the file's form"
        return None if reading == expected else f"read {short(reading)}, not {short(expected)}"

    def names(self, message: str) -> bool:
        """Whether an error says where it is."""
        return self.path.name in message


def short(value) -> str:
    return repr(value)[:200]


class Rows(Reader):
    """Rows of a task with two classes."""

    def prepare(self):
        self.tasks = [
            Task("a", "binary", "text", pair, "label", NAMES, files={"train": self.file, "dev": self.file})
            for pair in (None, "other")
        ]

    def make(self, rng):
        self.task = rng.choice(self.tasks)
        rows, ids = [], rng.sample([*range(5), 2**60, "a b", "x-1", "é", "=1", "007"], 6)
        for number in range(rng.randint(1, 6)):
            row = {"text": self.text(rng), "label": self.label(rng), "noise": rng.choice(["", "0", "z"])}
            row |= {"other": self.text(rng)} if self.task.text_pair else {}
            row |= {"id": ids[number]} if ids[0] else {}
            rows.append(row)
        columns = rng.sample(sorted(rows[0]), len(rows[0]))
        self.write([{column: row[column] for column in columns} for row in rows], rng)
        return self.clean(rows)

    def text(self, rng) -> str:
        return "".join(rng.choices(PIECES, k=rng.randint(0, 5)))

    def label(self, rng):
        return rng.choice(["0", "1", "neg", "pos", ""])

    def write(self, rows: list[dict], rng: random.Random) -> None:
        """Write a file of rows."""
        raise NotImplementedError

    def clean(self, rows: list[dict]) -> list[dict]:
        """Rows as the package should give them; NOTHING where a column is missing."""
        columns = ["text", "label", *["other"] * bool(self.task.text_pair)]
        if any(column not in row for row in rows for column in columns):
            return NOTHING
        return [
            {
                "id": str(number if row.get("id") in (None, "") or row["id"] != row["id"] else row["id"]),
                "text": "" if row["text"] is None else row["text"],
                "label": plain.label(row["label"], NAMES),
                **({"text_pair": "" if row["other"] is None else row["other"]} if self.task.text_pair else {}),
            }
            for number, row in enumerate(rows)
        ]

    def read(self):
        return load_rows(self.task, str(self.folder), splits=["train"])["train"].to_list()

    def compare(self, reading, expected):
        if expected is NOTHING:
            return "read what is not of the file's form"
        if len(reading) != len(expected):
            return f"read {len(reading)} rows, not {len(expected)}"
        for number, (ours, theirs) in enumerate(zip(reading, expected, strict=True), start=1):
            for column, value in theirs.items():
                got = ours[column] if column != "label" or ours[column] != UNLABELLED else None
                # A text that is no string, and a label that is written oddly, are the reader's to judge.
                if value is NOTHING and got in (None, 0, 1) or column != "label" and not isinstance(value, str):
                    continue
                if got != value:
                    return f"row {number}, {column}: {short(got)}, not {short(value)}"
        return None


class Tables(Rows):
    """Tables of pandas."""

    share, file = 0.35, "rows.csv"

    def text(self, rng):
        return super().text(rng).replace("\0", "")  # pandas' writer leaves it out of some fields

    def write(self, rows, rng):
        quoting = rng.choice([0, 0, 1, 2])
        encoding, end = rng.choice(["utf-8", "utf-8", "utf-8-sig"]), rng.choice(["\n", "\n", "\r\n"])
        frame = pd.DataFrame(rows)
        with open(self.path, "w", encoding=encoding, newline="") as file:
            frame.to_csv(file, index=False, sep=rng.choice(",\t"), quoting=quoting, lineterminator=end)

    def second_opinion(self):
        rows = plain.table(self.path.read_bytes())
        return rows if rows is NOTHING else self.clean(rows)


class JsonLines(Rows):
    """JSON lines of pandas (ujson), and of the standard library."""

    share, file = 0.27, "rows.jsonl"

    def label(self, rng):
        return rng.choice(["0", "neg", "pos", "", None, 0, 1, 1.0, True, False])

    def write(self, rows, rng):
        if rng.random() < 0.5:
            lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
            end = rng.choice(["\n", "\r\n", "\n\n"])
            self.path.write_bytes((end.join(lines) + rng.choice(["", end])).encode())
        else:
            frame = pd.DataFrame(rows, dtype=object)
            frame.to_json(self.path, orient="records", lines=True, force_ascii=rng.random() < 0.5)

    def damage(self, rng):
        lines = self.path.read_bytes().split(b"\n")
        at = rng.randrange(len(lines))
        if rng.random() < 0.5 or not lines[at].strip():
            return super().damage(rng)
        lines[at] = mutate_json_bytes(lines[at], rng).replace(b"\n", b" ")
        self.path.write_bytes(b"\n".join(lines))

    def second_opinion(self):
        rows = plain.json_lines(self.path.read_bytes())
        return rows if rows is NOTHING else self.clean(rows)


class Parquet(Rows):
    """Parquet files of pyarrow, with many types and layouts."""

    share, file = 0.12, "rows.parquet"

    def prepare(self):
        super().prepare()
        whole = [pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64()]
        self.label_types = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.bool_(), *whole]

    def write(self, rows, rng):
        self.type = rng.choice(self.label_types)
        written = str if self.type in self.label_types[:3] else bool if self.type == pa.bool_() else int
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        labels = [rng.choice([None, 0, 1]) for _ in rows]
        columns["label"] = pa.array([None if label is None else written(label) for label in labels], self.type)
        for row, label in zip(rows, labels, strict=True):
            row["label"] = label
        if "id" in columns:
            columns["id"] = list(map(str, columns["id"]))
        text = rng.choice([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
        for name in {"text", "other"} & set(columns):
            columns[name] = pa.array(columns[name], text)
        settings = {
            "compression": rng.choice(["snappy", "none", "gzip", "zstd"]),
            "row_group_size": rng.choice([1, 3, 99]),
        }
        settings |= {"use_dictionary": rng.random() < 0.5, "data_page_version": rng.choice(["1.0", "2.0"])}
        parquet.write_table(pa.table(columns), self.path, **settings)

    def make(self, rng):
        rows = []
        write = self.write

        def remember(written, rng):
            rows.extend(written)
            write(written, rng)

        self.write = remember
        super().make(rng)
        self.write = write
        return self.clean(rows)

    def second_opinion(self):
        """Arrow's too, which there is no other reader of here, but by another way: all at once, through pandas."""
        try:
            frame = parquet.read_table(self.path).to_pandas(integer_object_nulls=True)
        except Exception:  # whatever it finds wrong
            return NOTHING
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return self.clean(rows)


class CourseFiles(Reader):
    """Prediction files in the course's form, written by hand."""

    share, file = 0.08, "sst-dev.csv"

    def make(self, rng):
        names = ["a", "0f 1", "x,y", '"q"', "é", "=1+1", "\x85z", "a\u2028b", "😀", "n\x1cm", "7" * 60]
        ids = rng.sample(names, rng.randint(1, 6))
        labels = [rng.randrange(5) for _ in ids]
        lines = ["id \t Predicted_Sentiment ", *(f"{name} , {label} " for name, label in zip(ids, labels, strict=True))]
        end = rng.choice(["\n", "\n", "\r\n"])
        self.path.write_bytes((end.join(lines) + end).encode())
        return list(zip(ids, labels, strict=True))

    def read(self):
        table = read_predictions(self.path).table
        return list(zip(table["id"][:], table["label"][:], strict=True))

    def second_opinion(self):
        try:
            header, *lines = self.path.read_bytes().decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            return NOTHING
        rows = [line.removesuffix("\r").rpartition(",")[::2] for line in lines]
        if header.split() != ["id", "Predicted_Sentiment"]:
            return NOTHING
        names = TASKS["sst"].label_names
        return [(row_id.strip(" \t"), plain.label(label.strip(), names)) for row_id, label in rows]

    def compare(self, reading, expected):
        if expected is NOTHING or any(label is None for _, label in expected):
            return "read what is not of the file's form"
        if [row_id.strip(" \t") for row_id, _ in reading] != [row_id for row_id, _ in expected]:
            return f"ids {short(reading)}, not {short(expected)}"
        different = [(ours, theirs) for (_, ours), (_, theirs) in zip(reading, expected, strict=True) if theirs != ours]
        return f"labels {different}" if any(theirs is not NOTHING for _, theirs in different) else None


class PredictionTables(Reader):
    """Prediction files as the package writes them, read back: the course's form and Parquet, of classes and scores."""

    share, file = 0.05, "sts-dev.parquet"

    def make(self, rng):
        self.task = TASKS[rng.choice(["sst", "sts"])]
        names = ["a", "x , 1", "x,", '"q', "é", "=1+1", "\x85z", "a\u2028b", "n\x1cm", "😀", "7" * 60]
        ids = rng.sample(names, rng.randint(1, 6))
        columns = {"id": ids, "score": [rng.uniform(0, 5) for _ in ids]}
        if self.task.kind == "classification":
            shares = np.random.default_rng(rng.randrange(2**32)).dirichlet([1] * 5, len(ids)).astype(np.float32)
            columns = {"id": ids, "label": shares.argmax(1), "probabilities": shares.tolist()}
        for old in self.folder.glob("s*-dev.*"):
            old.unlink()
        write_predictions(self.task, Dataset.from_dict(columns), self.folder / f"{self.task.name}-dev")
        self.path = self.folder / f"{self.task.name}-dev.{rng.choice(['parquet', 'csv'])}"
        return self.table(columns)

    def table(self, columns) -> dict:
        column = "label" if self.task.kind == "classification" else "score"
        return {"id": list(columns["id"]), column: [float(np.float32(value)) for value in columns[column]]}

    def read(self):
        return self.table(read_predictions(self.path).table.to_dict())

    def second_opinion(self):
        if self.path.suffix == ".csv":
            return None  # see CourseFiles
        try:
            columns = parquet.read_table(self.path).to_pandas().to_dict("list")
            return self.table(columns)
        except Exception:  # whatever it finds wrong
            return NOTHING

    def compare(self, reading, expected):
        column = "label" if self.task.kind == "classification" else "score"
        if not all(map(math.isfinite, reading[column])):
            return f"read {short(reading[column])}"
        return None if expected is None else super().compare(reading, expected)


class Yaml(Reader):
    """Configurations: YAML of PyYAML, and JSON, which is YAML too."""

    share, file = 0.06, "config.yaml"
    values = {
        "seed": [0, 1, 42, 2**32 - 1],
        "learning_rate": [0, 1e-5, 0.1, 1],
        "schedule": ["round_robin", "sequential"],
        "max_length": [8, 32, 512],
        "encoder_sharing": ["shared", "per_task"],
        "smart_radius": [1e-5, 1],
        "task_epochs": [{"sst": 2}, {"sst": 1, "sts": 3}],
        "per_device_train_batch_size": [1, 4],
        "do_predict": [True, False],
        "eval_strategy": ["no", "steps"],
        "data_dir": ["data", "../data", "package:bert_multitask/sample"],
        "head_dropout": [0, 0.2, {"sst": 0.3}],
    }
    own = {"name": "a", "kind": "binary", "label_names": ["neg", "pos"], "files": {"train": "t.csv", "dev": "d.csv"}}

    def prepare(self):
        self.parser = RecipeParser((RunArguments, MultitaskTrainingArguments), self.path, "")

    def make(self, rng):
        chosen = {name: rng.choice(self.values[name]) for name in rng.sample(sorted(self.values), rng.randint(0, 9))}
        fields = {"output_dir": "out", "tasks": [*["sst", "sts"], *[self.own] * rng.choice([0, 1])]} | chosen
        text = json.dumps(fields) if rng.random() < 0.5 else yaml.safe_dump(fields, sort_keys=rng.random() < 0.5)
        self.path.write_text(text)
        return fields

    def damage(self, rng):
        if rng.random() < 0.5:
            return super().damage(rng)
        fields = yaml.safe_load(self.path.read_text())
        text = json.dumps(mutate_json(fields, rng))
        self.path.write_text(text)

    def read(self):
        run, args, _ = self.parser.parse([str(self.path)])
        tasks = run.load_tasks()
        values = {name: getattr(run if hasattr(run, name) else args, name) for name in self.values}
        return values | {"output_dir": args.output_dir, "tasks": [task.name for task in tasks]}

    def second_opinion(self):
        """By PyYAML as well, and JSON where it is JSON."""
        try:
            fields = json.loads(self.path.read_bytes(), parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            try:
                fields = yaml.load(self.path.read_bytes(), yaml.CSafeLoader)
            except (ValueError, yaml.YAMLError, RecursionError, MemoryError):
                return NOTHING
        return fields if isinstance(fields, dict) else NOTHING

    def compare(self, reading, expected):
        if expected is NOTHING:
            return "read what is not of the file's form"
        for name in {*self.values, "output_dir"} & set(expected):
            ours, theirs = reading[name], expected[name]
            if theirs is None or name == "eval_strategy" or isinstance(theirs, (list, dict)) and name != "task_epochs":
                continue  # a list of one value is taken as the value
            # A number may be written as text, a whole one as a float, and true in other ways.
            if str(ours).lower() != str(theirs).lower() and not (
                isinstance(ours, (int, float)) and as_number(theirs) == ours
            ):
                return f"{name}: {short(ours)}, not {short(theirs)}"
        return None

    def names(self, message):
        return True  # a flag or a field of a task; the file is the one that was typed


def refuse_constant(name: str):
    """NaN and Infinity are no JSON; YAML reads them as text."""
    raise ValueError(name)


def field_names(value) -> set[str]:
    """The keys of a JSON value, at any depth, that are words enough to be looked for in a message."""
    return {key for parent, key in walk(value) if isinstance(parent, dict) and len(key) > 3}


def names_a_field(message: str, fields: set[str]) -> bool:
    """Whether a message names one of the fields."""
    return any(re.search(rf"\b{re.escape(field)}\b", message) for field in fields)


def as_number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class Checkpoint(Reader):
    """Trained checkpoints of three presets, of a layer of 8 components; loaded to predict, or by `from_pretrained`."""

    def prepare(self):
        letters = [chr(number) for number in range(97, 123)]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "good"]
        tokenizer, self.vocabulary = BertTokenizer(vocab={word: at for at, word in enumerate(words)}), len(words)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        torch.manual_seed(0)
        base = self.folder / "base"
        config = BertConfig(vocab_size=self.vocabulary, max_position_embeddings=32, **sizes)
        BertModel(config).save_pretrained(base)
        tokenizer.save_pretrained(base)
        self.whole = {}
        for sharing in ("shared", "per_task"):
            folder = self.whole[sharing] = self.folder / sharing
            model = MultitaskBertModel.from_pretrained(base, tasks=["sst", "quora", "sts"], encoder_sharing=sharing)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        self.fields = field_names(json.loads((self.whole["shared"] / "config.json").read_text()))
        self.run = self.folder / "run"
        self.path = self.run / self.file

    def make(self, rng):
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.whole[rng.choice(["shared", "per_task"])], self.run)
        self.by_run = rng.random() < 0.5
        return self.second_opinion()

    def names(self, message):
        return str(self.run) in message or self.path.name in message or names_a_field(message, self.fields)

    def read(self):
        if self.by_run:
            model = TrainedRun.open(str(self.run)).load_model()
        else:
            model = MultitaskBertModel.from_pretrained(self.run)
        return {name: weight.double().numpy() for name, weight in model.state_dict().items()}

    def second_opinion(self):
        return plain.tensors((self.run / "model.safetensors").read_bytes())

    def compare(self, reading, expected):
        if expected is NOTHING:
            return "read what is not of the file's form"
        for name, weight in reading.items():
            if name not in expected:
                return f"{name} is not in the file"
            if not np.isfinite(weight).all():
                return f"{name} is not finite"
            theirs = expected[name].astype(np.float32)
            if theirs.shape != weight.shape or not np.array_equal(theirs, weight.astype(np.float32)):
                return f"{name} is not as in the file"
        left = [name for name in expected if name not in reading and not name.startswith("heads.")]
        return f"{left[0]} of the file is left out" if left else None


class Config(Checkpoint):
    share, file = 0.012, "config.json"

    def damage(self, rng):
        self.path.write_bytes(mutate_json_bytes(self.path.read_bytes(), rng))


class Weights(Checkpoint):
    share, file = 0.012, "model.safetensors"

    def damage(self, rng):
        data = self.path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        action = rng.random()
        if action < 0.4:
            header = mutate_json_bytes(data[8 : 8 + size], rng)
            size = len(header) if rng.random() < 0.8 else size
            data = size.to_bytes(8, "little") + header + data[8 + len(data[8 : 8 + size]) :]
        elif action < 0.6:
            at = 8 + size + 4 * rng.randrange((len(data) - 8 - size) // 4)
            value = rng.choice([math.nan, math.inf, -math.inf, 1e30, 0.0])
            data = data[:at] + np.float32(value).tobytes() + data[at + 4 :]
        else:
            data = mutate_bytes(data, rng)
        self.path.write_bytes(data)


class Tokenizers(Checkpoint):
    """Tokenizers, loaded and used to predict. What Transformers makes of a damaged one has no second reader:
    it rebuilds the special tokens, which `tokenizers` below it does not."""

    share, file = 0.018, "tokenizer.json"
    texts = ["good", "a good z", "", "é 感情 \0 [SEP]", "good " * 40]

    def prepare(self):
        super().prepare()
        self.model = MultitaskBertModel.from_pretrained(self.whole["shared"])

    def make(self, rng):
        super().make(rng)
        tokenizer = Tokenizer.from_file(str(self.path))
        tokenizer.enable_truncation(32)
        return [tokenizer.encode(text).ids for text in self.texts]

    def damage(self, rng):
        self.path.write_bytes(mutate_json_bytes(self.path.read_bytes(), rng))

    def read(self):
        tokenizer = load_tokenizer(str(self.run), self.vocabulary)
        MultitaskPipeline(self.model, tokenizer, max_length=32).table("sst", self.texts)
        return [tokenizer(text, truncation=True, max_length=32)["input_ids"] for text in self.texts]

    def second_opinion(self):
        return None

    def compare(self, reading, expected):
        if not all(0 <= number < self.vocabulary for ids in reading for number in ids):
            return f"read {short(reading)}"
        return None if expected is None else Reader.compare(self, reading, expected)


class RunFiles(Reader):
    """A run folder as a report reads it: its predictions, its rows, `run.json` and `history.jsonl`."""

    def prepare(self):
        self.folder.mkdir(exist_ok=True)
        rows = pd.DataFrame({"id": ["a", "b", "c"], "sentence": ["x", "y", "z"], "sentiment": [0, 4, 2]})
        for split in ("train", "dev"):
            rows.to_csv(self.folder / f"ids-sst-{split}.csv", sep="\t", index=False)
        self.run = self.folder / "run"
        columns = {"id": ["a", "b", "c"], "label": [0, 4, 1], "probabilities": [[0.2] * 5] * 3}
        write_predictions(TASKS["sst"], Dataset.from_dict(columns), self.run / "predictions" / "sst-dev")
        run = RunArguments(tasks=["sst"], data_dir=str(self.folder))
        decides = {"tasks": ["sst"], "seed": 1, "data_seed": None, "schedule": "round_robin", "max_steps": -1}
        record = {"decides": decides, "run": vars(run), "training": {"seed": 1, "learning_rate": 0.1}, "processes": 1}
        record |= {"tasks": [dataclasses.asdict(TASKS["sst"])], "data_dir": str(self.folder), "max_length": 32}
        record |= {"batches": {"sst": 3}, "versions": {"torch": "2"}, "commit": None}
        self.record, self.fields = json.dumps(record, indent=2), field_names(record)
        self.entries = [{"loss": 1.5 / step, "loss_sst": 1.0, "step": step, "epoch": step / 3} for step in (1, 2, 3)]
        self.entries.append({"eval_sst_accuracy": 0.5, "eval_overall": 0.5, "step": 3, "epoch": 1.0})
        self.path = self.run / self.file

    def make(self, rng):
        (self.run / "run.json").write_text(self.record)
        (self.run / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))
        return self.second_opinion()

    def read(self):
        (source,) = open_sources([str(self.run)], "dev")
        source.plan()
        return source

    def names(self, message):
        return str(self.run) in message or names_a_field(message, self.fields)


class History(RunFiles):
    share, file = 0.01, "history.jsonl"

    def read(self):
        return super().read().history

    def second_opinion(self):
        lines = [line for line in self.path.read_bytes().split(b"\n") if line.strip()]
        return [plain.json_value(line) for line in lines]

    def compare(self, reading, expected):
        """A last line that was cut off, or is no entry with a step, may be left out."""
        if NOTHING in expected[:-1] or not all(isinstance(entry, dict) for entry in expected[:-1]):
            return "read what is not of the file's form"
        last = expected[-1] if expected else {}
        if expected and not (isinstance(last, dict) and isinstance(last.get("step"), int)):
            expected = expected[:-1]
        return super().compare(reading, expected)


class Record(RunFiles):
    share, file = 0.018, "run.json"

    def damage(self, rng):
        self.path.write_bytes(mutate_json_bytes(self.path.read_bytes(), rng))

    def read(self):
        super().read()
        return read_run(self.run)

    def second_opinion(self):
        return plain.json_value(self.path.read_bytes())

    def compare(self, reading, expected):
        if not isinstance(expected, dict):
            return "read what is not of the file's form"
        if {name: value for name, value in reading.items() if name in expected} != expected:
            return f"read {short(reading)}, not {short(expected)}"
        # Without its tasks a record is an older version's, and they are worked out from its flags.
        left = reading.keys() - expected.keys() - {"tasks", "data_dir", "max_length"}
        return f"{min(left)} is not in the file" if left else None


def subclasses(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield from subclasses(kind)
        if "file" in vars(kind):
            yield kind


READERS = {kind.__name__: kind for kind in subclasses(Reader)}
