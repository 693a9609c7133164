"""What a step costs: seconds as a sum of counted work, each kind times a constant of the machine; and what that makes
of the paper's runs (docs/performance.md)."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from transformers import BertConfig

from bert_multitask.commands.command_line import RecipeParser
from bert_multitask.model.packing import BUCKET_STEP
from bert_multitask.model.tasks import Task
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.callbacks import EpochEnds
from bert_multitask.training.schedule import first_steps

# kind of step -> forward passes' work in it: a backward pass is two; SMART has a clean pass, an ascent of two, a
# perturbed pass, and a backward pass through both predictions.
PASSES = {"predict": 1, "train": 3, "smart": 8}
# What is counted of a step, and in what.
FEATURES = {
    "products": "multiply-adds with the layers' weights, billions",
    "values": "values of hidden states, millions, of which a layer has several: norms, activations, dropout",
    "attention": "attention weights, millions",
    "update": "trained weights, millions: clipping, the optimizer, the word embeddings' dense gradient",
    "exchange": "bytes that a process sends, millions",
}


def count_parameters(config: BertConfig) -> int:
    """Weights of an encoder that training moves: all but the pooler's."""
    width, inner = config.hidden_size, config.intermediate_size
    embeddings = config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2
    layer = 4 * width**2 + 2 * width * inner + 9 * width + inner
    return embeddings * width + config.num_hidden_layers * layer


def count_work(
    lengths: Sequence[int], config: BertConfig, kind: str = "train", processes: int = 1, encoders: int = 1
) -> np.ndarray:
    """The work of a step on the process that has most of it.

    Args:
        lengths: tokens of each sequence of the step.
        config: the encoder's.
        kind: key of PASSES.
        processes: that share the step's rows.
        encoders: of the model, of which the step trains one.

    Returns:
        One number for each of FEATURES.
    """
    lengths = max(np.array_split(np.asarray(lengths), processes), key=sum)
    rows, tokens, passes = len(lengths), lengths.sum(), PASSES[kind]
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    groups = itertools.groupby(sorted(lengths), key=lambda length: -(-length // BUCKET_STEP))
    buckets = [list(group) for _, group in groups]  # as `Packing` cuts them
    # The last layer needs queries, output and feed-forward of the first token of each row alone.
    products = ((layers - 1) * tokens + rows) * (2 * width**2 + 2 * width * inner) + layers * tokens * 2 * width**2
    pairs = sum(len(bucket) * bucket[-1] * (bucket[-1] * (layers - 1) + 1) for bucket in buckets)
    parameters = count_parameters(config)
    return np.array(
        [
            passes * products / 1e9,
            passes * layers * tokens * width / 1e6,
            passes * pairs * config.num_attention_heads / 1e6,
            parameters / 1e6 * (kind != "predict"),
            2 * (processes - 1) / processes * encoders * parameters * 4 / 1e6,
        ]
    )


def fit(work: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The constants, none below 0, by which the work (steps, features) makes the seconds (steps,), with the least sum
    of squared relative errors."""
    return nnls(work / seconds[:, None], np.ones(len(seconds)))[0]


def paper_run(path: Path, lengths: Mapping, config: BertConfig, constants: np.ndarray) -> dict[str, float | str]:
    """Steps and hours of one of the paper's systems, whose configuration is at a path, on the course's row counts and
    the machine's constants.

    Args:
        lengths: {(task, pair_encoding): tokens of each sequence, (rows,) or (rows, 2)}, of a sample of the rows.
    """
    run, args, _ = RecipeParser((RunArguments, MultitaskTrainingArguments), path, "").parse([str(path)])
    tasks = {task.name: task for task in run.load_tasks()}

    def seconds(task: Task, kind: str, size: int) -> float:
        """Of a step of so many rows, on average."""
        tokens = lengths[task.name, task.pair_encoding or run.pair_encoding]
        starts = range(0, max(1, len(tokens) - size + 1), size)
        batches = [tokens[start : start + size].flatten() for start in starts]
        return float(np.mean([count_work(batch, config, kind) for batch in batches], axis=0) @ constants)

    rows, size = args.total_train_batch_size, args.per_device_eval_batch_size
    step = {name: seconds(task, "smart" if task.smart_weight else "train", rows) for name, task in tasks.items()}
    predict = {name: seconds(task, "predict", size) / size for name, task in tasks.items()}
    course_rows = {name: task.course_rows for name, task in tasks.items()}
    steps, training, evaluation = run_cost(run, args, course_rows, step, predict)
    hours = {"training, h": training / 3600, "evaluation, h": evaluation / 3600}
    return {"run": path.stem, "steps": steps} | hours | {"in all, h": sum(hours.values())}


def run_cost(
    run: RunArguments,
    args: MultitaskTrainingArguments,
    rows: Mapping[str, Mapping[str, int]],
    step: Mapping[str, float],
    predict: Mapping[str, float],
) -> tuple[int, float, float]:
    """Steps of a run, the seconds of its training, and those of its evaluations and of its predictions at the end.

    Args:
        rows: {task: {split: rows}}.
        step: {task: seconds of a training step}.
        predict: {task: seconds of the prediction of a row}.
    """
    tasks = {task.name: task for task in run.load_tasks()}
    train = {name: min(rows[name]["train"], task.max_train_samples or math.inf) for name, task in tasks.items()}
    _, plan = args.lay_plan(train, {name: task.epochs for name, task in tasks.items()})
    plan = first_steps(plan, args.max_steps)
    evaluated = count_evaluations(plan, train, args, run.encoder_sharing == "per_task")
    predicted = {name: (evaluated[name] + 1) * rows[name]["dev"] + rows[name].get("test", 0) for name in tasks}
    training = sum(plan.count(name) * step[name] for name in tasks)
    return len(plan), training, sum(predicted[name] * predict[name] for name in tasks)


def count_evaluations(
    plan: list[str], rows: Mapping[str, int], args: MultitaskTrainingArguments, per_task: bool
) -> Counter[str]:
    """{task: how often training predicts its dev rows}: at shares of the plan, at its end and at a sequential plan's
    epoch ends; of all tasks or, `per_task` (each has its encoder), after the first time of those that trained since."""
    every = math.ceil(args.eval_steps * len(plan)) if args.eval_steps < 1 else int(args.eval_steps)
    steps = {*range(every, len(plan), every), len(plan)}
    if args.evaluates_epoch_ends:
        steps |= EpochEnds(plan, rows, args.total_train_batch_size).steps
    evaluated, last = Counter(), 0
    for step in sorted(steps):
        evaluated.update(set(plan[last:step]) if per_task and last else rows.keys())
        last = step
    return evaluated
