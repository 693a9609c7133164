"""What all measurements have in common: our model, its stock twin, the rows, the rounds, the clock."""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from bert_multitask import MultitaskBertModel, MultitaskTrainer, MultitaskTrainingArguments
from bert_multitask.data.collate import Collator
from bert_multitask.data.rows import load_rows
from bert_multitask.data.tokens import load_tokenizer, tokenise_splits
from bert_multitask.model.tasks import TASKS

from .peers import Stock, StockTrainer

NAMES = ("sst", "quora", "sts")
SMART_NAMES = ("sst", "sts")  # the paper's SMART leaves Quora out
WARM_UP = 3  # steps of a round that are not timed


class Clock(TrainerCallback):
    """Seconds of each step after the warm-up, from the end of the one before; and of what Trainer calls inside.

    Args:
        now: the time, in seconds; `time.process_time` counts what the process computes, whatever else the machine does.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now = now
        self.ends = []
        self.inside = 0.0
        self.watched = []

    def on_train_end(self, args, state, control, **kwargs):
        for owner, name in self.watched:
            vars(owner).pop(name, None)

    def on_step_end(self, args, state, control, **kwargs):
        done = len(self.ends) + 1
        if torch.accelerator.is_available() and done in (WARM_UP, middle(state.max_steps), state.max_steps):
            torch.accelerator.synchronize()  # where what is measured begins and ends
        self.ends.append(self.now())
        if len(self.ends) == WARM_UP:
            self.inside = 0.0

    @property
    def seconds(self) -> float:
        """Of all the timed steps."""
        return self.ends[-1] - self.ends[WARM_UP - 1]

    @property
    def second_half(self) -> float:
        """Seconds of a step in the second half of the timed ones."""
        half = self.ends[middle(len(self.ends)) - 1 :]
        return (half[-1] - half[0]) / max(1, len(half) - 1)

    def watch(self, owner, name: str) -> None:
        """Count the time in a method of an object, until training ends."""
        method = getattr(owner, name)
        self.watched.append((owner, name))

        @functools.wraps(method)
        def timed(*args, **kwargs):
            start = self.now()
            try:
                return method(*args, **kwargs)
            finally:
                self.inside += self.now() - start

        setattr(owner, name, timed)


def middle(steps: int) -> int:
    """The step after which the second half of the timed ones begins."""
    return (WARM_UP + steps) // 2


class Rig:
    """The model, its stock twin, and the rows of the real mix."""

    def __init__(self, options, smart: bool = False):
        set_seed(0)
        self.options = options
        self.own = {}  # training arguments of our side alone
        tasks = [vars(TASKS[name]) | {"smart_weight": float(smart and name in SMART_NAMES)} for name in NAMES]
        self.model = MultitaskBertModel.from_pretrained(options.model_name_or_path, tasks=tasks, pooling="pooler")
        self.stock = Stock(self.model)
        self.tokenizer = load_tokenizer(options.model_name_or_path, self.model.config.vocab_size)
        self.rows = {name: load_rows(TASKS[name], options.data_dir) for name in NAMES}
        self.tokens = {
            name: tokenise_splits(TASKS[name], rows, self.tokenizer, 512) for name, rows in self.rows.items()
        }

    def trainer(self, seed: int) -> MultitaskTrainer:
        """Ours, on the first steps of the seed's plan."""
        args = MultitaskTrainingArguments(**self.settings(), **self.own, data_seed=seed)
        return MultitaskTrainer(self.model, args, {name: splits["train"] for name, splits in self.tokens.items()})

    def settings(self) -> dict:
        """What both sides' arguments have in common."""
        return training_settings(self.options)

    def train(self, seed: int, now: Callable[[], float] = time.perf_counter) -> Clock:
        """Time our side."""
        trainer, clock = self.trainer(seed), Clock(now)
        trainer.remove_callback(trainer.table)  # a benchmark prints what it measured
        trainer.add_callback(clock)
        clock.watch(self.model, "forward")
        clock.watch(trainer.accelerator, "backward")
        clock.watch(trainer, "_clip_grad_norm")  # which belongs to the optimizer's step
        trainer.create_optimizer()
        clock.watch(trainer.optimizer, "step")
        trainer.train()
        forget_trainer(self.model)
        return clock

    def train_stock(self, seed: int, attention: str = "sdpa") -> Clock:
        """Time the other side on the same batches, with either of its attention implementations."""
        self.stock.model.set_attn_implementation(attention)
        clock = Clock()
        args = TrainingArguments(**self.settings(), remove_unused_columns=False)
        trainer = StockTrainer(self.stock.model, args, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        ours = self.trainer(seed)
        ours.data_collator = Collator(self.model.config.pad_token_id or 0)  # which adds nothing for our encoder
        trainer.stock, trainer.loader = self.stock, ours.get_train_dataloader()
        trainer.train()
        forget_trainer(self.stock.model)
        return clock

    def batches(self, seed: int = 0) -> list[dict]:
        """The batches of a round."""
        return list(self.trainer(seed).get_train_dataloader())


def training_settings(options) -> dict:
    """The arguments of a training whose steps alone are measured."""
    return {
        "output_dir": tempfile.gettempdir(),
        "max_steps": WARM_UP + options.steps,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "logging_steps": 10,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": options.bf16,
        "use_cpu": True,
    }


def forget_trainer(model: nn.Module) -> None:
    """Take off what Accelerate put on a model: the next Trainer would keep it, and train in this one's precision."""
    for mark in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(mark, None)


def alternate(rounds: int, *sides: Callable[[int], object]) -> Iterator[list]:
    """Yield what the sides gave in each round, run in turns, forwards and backwards."""
    for number in range(rounds):
        order = list(enumerate(sides))
        results = [None] * len(sides)
        for index, side in order if number % 2 == 0 else reversed(order):
            results[index] = side(number)
        yield results
