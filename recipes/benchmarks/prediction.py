"""Prediction: against CrossEncoder and the pipeline, and of several runs together against each alone."""

import tempfile
import time
from collections.abc import Callable, Mapping
from operator import itemgetter
from statistics import median

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from bert_multitask import MultitaskPipeline
from bert_multitask.data.rows import text_columns
from bert_multitask.evaluation.tables import prediction_table
from bert_multitask.inference.split_tables import SplitTables
from bert_multitask.model.tasks import TASKS, Task

from .rig import NAMES, Rig, alternate

MEMBERS = 6  # of an ensemble, as in the paper


def predict_rows(options) -> dict:
    """Texts to predictions, tokenising included, against CrossEncoder and the pipeline."""
    from sentence_transformers import CrossEncoder
    from transformers import pipeline

    rig = Rig(options)
    rig.model.eval(), rig.stock.model.eval()
    texts = {name: dev_and_test(rig.rows[name], TASKS[name], options.rows) for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        rig.stock.model.save_pretrained(folder)
        rig.tokenizer.save_pretrained(folder)
        encoder = CrossEncoder(folder, device="cpu", activation_fn=nn.Identity())
        pipe = pipeline("text-classification", model=folder, tokenizer=folder, device="cpu", top_k=None)

    pairs = {name: rows for name, rows in texts.items() if TASKS[name].text_pair}  # CrossEncoder takes nothing else

    def timed(one_task: Callable[[str, list], object], texts: dict) -> Callable:
        def side(_) -> tuple[float, dict]:
            start = time.perf_counter()
            results = {name: one_task(name, rows) for name, rows in texts.items()}
            return time.perf_counter() - start, results

        return side

    def cross_encoder(_, rows: list):
        return encoder.predict(rows, batch_size=64, convert_to_tensor=True, show_progress_bar=False)

    def stock_pipeline(_, rows: list):
        inputs = [{"text": row[0], "text_pair": row[1]} if isinstance(row, tuple) else row for row in rows]
        return pipe(inputs, batch_size=32, function_to_apply="none")

    ours = MultitaskPipeline(rig.model, rig.tokenizer).table
    sides = timed(ours, texts), timed(stock_pipeline, texts), timed(ours, pairs), timed(cross_encoder, pairs)
    return compare_sides(rig, sum(map(len, texts.values())), list(alternate(options.rounds, *sides)))


def compare_sides(rig: Rig, rows: int, rounds: list) -> dict:
    """What `predict_rows` reports of its rounds: each gives (seconds, results) of ours, the pipeline, ours on the pairs
    alone, and CrossEncoder."""
    tables, piped, _, crossed = (results for _, results in rounds[0])
    seconds = [[side[0] for side in sides] for sides in rounds]
    return {
        "rows": rows,
        "largest difference of a probability or score, pipeline": largest_difference(
            rig, tables, {name: torch.tensor(list(map(logits_of, rows))) for name, rows in piped.items()}
        ),
        "largest difference of a probability or score, CrossEncoder": largest_difference(rig, tables, crossed),
        "rows/s, ours": rows / median(side[0] for side in seconds),
        "times faster than pipeline": median(side[1] / side[0] for side in seconds),
        "times faster than CrossEncoder.predict, pairs only": median(side[3] / side[2] for side in seconds),
    }


def logits_of(labels: list[dict]) -> list[float]:
    """The logits of a row, from the pipeline's list of labels, the likeliest first."""
    return [label["score"] for label in sorted(labels, key=itemgetter("label"))]


def largest_difference(rig: Rig, tables: Mapping[str, datasets.Dataset], logits: Mapping[str, torch.Tensor]) -> float:
    """Of our tables' probabilities and scores from those of a peer's logits, {task: (rows, 7)}."""
    differences = []
    for name, values in logits.items():
        theirs = prediction_table(TASKS[name], tables[name]["id"], rig.stock.predict(name, values).numpy())
        column = theirs.column_names[-1]  # probabilities, or scores
        differences.append(np.abs(np.array(tables[name][column]) - np.array(theirs[column])).max().item())
    return max(differences)


def dev_and_test(rows: datasets.DatasetDict, task: Task, limit: int) -> list:
    """The first texts, or (text, text) pairs, of a task's dev and test rows together."""
    parts = [rows[split] for split in ("dev", "test") if split in rows]
    texts = [row for part in parts for row in zip(*(part[column][:] for column in text_columns(task)), strict=True)]
    return [row if task.text_pair else row[0] for row in texts[:limit]]


def ensemble(options) -> dict:
    """The dev rows predicted by six runs together, which reads and tokenises once, and by each of them alone."""
    rig = Rig(options)
    with tempfile.TemporaryDirectory() as folder:
        PartialState(cpu=True)
        for number in range(MEMBERS):
            rig.model.save_pretrained(f"{folder}/{number}")
            rig.tokenizer.save_pretrained(f"{folder}/{number}")

        def predictions(groups: list[list[int]]) -> Callable[[int], tuple[float, list]]:
            def side(_) -> tuple[float, list]:
                with tempfile.TemporaryDirectory() as cache:
                    datasets.config.HF_DATASETS_CACHE = cache
                    start, members = time.perf_counter(), []
                    for group in groups:
                        names = [f"{folder}/{number}" for number in group]
                        members += SplitTables(names, "dev", data_dir=options.data_dir).members
                    return time.perf_counter() - start, [member.tables["sts"].table["score"][:] for member in members]

            return side

        together, apart = predictions([list(range(MEMBERS))]), predictions([[number] for number in range(MEMBERS)])
        rounds = list(alternate(options.rounds, together, apart))
    (_, ours), (_, theirs) = rounds[0]
    return {
        "largest difference of a similarity score": np.abs(np.array(ours) - np.array(theirs)).max().item(),
        "seconds, together": median(side[0][0] for side in rounds),
        "seconds, apart": median(side[1][0] for side in rounds),
        "together by apart": median(side[0][0] / side[1][0] for side in rounds),
    }
