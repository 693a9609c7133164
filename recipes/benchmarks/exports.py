"""What an export costs: a task of a run in PyTorch, as ONNX, and as ONNX with 8-bit weights."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bert_multitask import InputError, MultitaskPipeline
from bert_multitask.data.rows import text_columns
from bert_multitask.evaluation.metrics import score_decisions
from bert_multitask.inference.graph import OnnxSession, export_graph
from bert_multitask.inference.split_tables import SplitTables
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.kinds import KINDS
from bert_multitask.model.tasks import Task

from .rig import alternate

BATCH = 64  # rows at a time, of similar length
ALONE = 200  # rows that are answered one at a time
Texts = Sequence[Sequence[str]]  # the texts of the rows, and of pairs their second texts
Answer = Callable[[Texts], np.ndarray]  # texts -> probabilities (N, C), or scores (N,)


def exports(options) -> dict:
    """A task's dev rows answered in PyTorch, by ONNX Runtime, and by it with 8-bit weights; tokenising included."""
    run = TrainedRun.open(options.run)
    dev = SplitTables([run], "dev", tasks=[options.task])
    task, rows = dev.tasks[options.task], dev.rows(options.task)
    if KINDS[task.kind].words:
        raise InputError(f"task {task.name!r} labels each word; what is measured here has one answer a row")
    texts = [rows[column][:] for column in text_columns(task)]
    model, tokenizer = run.load_model(), run.load_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        files = export_graph(model, task.name, tokenizer, folder, int8=True, max_length=run.max_length)
        beside = AutoTokenizer.from_pretrained(folder)
        sides = [in_pytorch(MultitaskPipeline(model, tokenizer, max_length=run.max_length), task)]
        sides += [in_onnx(OnnxSession(file), beside) for file in files]
        parts = [model.encoder(task.name), model.heads[task.name]]
        sizes = [sum(weight.nbytes for part in parts for weight in part.parameters())]
        sizes += [os.path.getsize(file) for file in files]
        names = ["PyTorch", *(Path(file).name for file in files)]
        measured = compare(options.rounds, sides, texts)
    answers = measured.pop("answers")
    table = {"": names, "MB": [size / 1e6 for size in sizes], **measured}
    table[f"dev {task.metric}"] = [dev_score(task, values, dev.labels[task.name]) for values in answers]
    table["largest difference"] = [float(np.abs(values - answers[0]).max()) for values in answers]
    return {"rows": len(rows), task.name: pd.DataFrame(table).to_dict("records")}


def in_pytorch(pipe: MultitaskPipeline, task: Task) -> Answer:
    """Our own prediction."""

    def answer(texts: Texts) -> np.ndarray:
        table = pipe.table(task.name, list(zip(*texts, strict=True)) if task.text_pair else texts[0])
        column = "probabilities" if "probabilities" in table.column_names else KINDS[task.kind].decision
        return np.array(table[column][:])

    return answer


def in_onnx(session: OnnxSession, tokenizer: PreTrainedTokenizerBase) -> Answer:
    """An exported model with the tokenizer beside it, in batches of similar length as ours are."""

    def answer(texts: Texts) -> np.ndarray:
        order = np.argsort([-sum(map(len, row)) for row in zip(*texts, strict=True)], kind="stable")
        found = []
        for start in range(0, len(order), BATCH):
            batch = [[column[number] for number in order[start : start + BATCH]] for column in texts]
            outputs = session(tokenizer(*batch, padding=True, truncation=True, return_tensors="pt"))
            found.append(outputs[session.outputs[1]].numpy())
        return np.concatenate(found)[np.argsort(order)]

    return answer


def compare(rounds: int, sides: Sequence[Answer], texts: Texts) -> dict[str, list]:
    """The answers of each side, its rows a second in batches, and its milliseconds for a row alone: medians."""

    def timed(answer: Answer) -> Callable:
        def side(_) -> tuple[float, float, np.ndarray]:
            start = time.perf_counter()
            answers = answer(texts)
            batches = time.perf_counter()
            for row in range(min(ALONE, len(answers))):
                answer([column[row : row + 1] for column in texts])
            return batches - start, time.perf_counter() - batches, answers

        return side

    found = list(zip(*alternate(rounds, *map(timed, sides)), strict=True))  # of each side its rounds
    count = len(texts[0])
    return {
        "rows/s": [count / median(seconds for seconds, _, _ in side) for side in found],
        "ms, a row alone": [1e3 * median(alone for _, alone, _ in side) / min(ALONE, count) for side in found],
        "answers": [side[0][2] for side in found],
    }


def dev_score(task: Task, answers: np.ndarray, labels: np.ndarray) -> float:
    """The task's metric of probabilities or scores."""
    kind = KINDS[task.kind]
    member = dict.fromkeys(("probabilities", kind.decision), answers)
    decided = kind.combine(task, [member], "soft")[kind.decision]  # a vote of one
    return score_decisions(task, decided, labels)[task.metric]
