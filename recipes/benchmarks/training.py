"""Training: against Trainer and the stock model, SMART against smart-pytorch, and each change taken back alone."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from statistics import median
from unittest.mock import patch

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bert_multitask import InputError
from bert_multitask.model.encoder import MinBertModel
from bert_multitask.model.losses import DIVERGENCES, LOSSES
from bert_multitask.model.packing import Packing

from .memory import forget_peak, resident
from .peers import INPUTS
from .rig import SMART_NAMES, WARM_UP, Rig, alternate


def train(options) -> dict:
    """Training, loss and memory against Hugging Face's Trainer and model."""
    rig = Rig(options)
    difference = loss_difference(rig)
    rounds = list(alternate(options.rounds, rig.train, rig.train_stock, partial(rig.train_stock, attention="eager")))
    ours, theirs, eager = ([clock.seconds for clock in clocks] for clocks in zip(*rounds, strict=True))
    rows = 32 * options.steps
    peak, stock_peak = (peak_memory(rig, stock) for stock in (False, True))
    rise, stock_rise = (resident_rise(options, stock) for stock in (False, True))
    return {
        "largest difference of a batch's loss": difference,
        "rows/s, ours": rows / median(ours),
        "rows/s, Trainer + BertForSequenceClassification": rows / median(theirs),
        "times faster": median(their / our for our, their in zip(ours, theirs, strict=True)),
        "times faster than the same with eager attention": median(b / a for a, b in zip(ours, eager, strict=True)),
        "share of our step outside forward, backward and optimizer": median(
            1 - clocks[0].inside / clocks[0].seconds for clocks in rounds
        ),
        "peak memory of a step, MB, ours": peak,
        "peak memory of a step, MB, theirs": stock_peak,
        "share of their memory": peak / stock_peak,
        "rise of resident memory, MB, ours": rise,
        "rise of resident memory, MB, theirs": stock_rise,
        "share of their resident memory": rise / stock_rise,
    }


@torch.no_grad()
def loss_difference(rig: Rig) -> float:
    """Largest difference of the two sides' loss on a batch, without dropout."""
    rig.model.eval(), rig.stock.model.eval()
    differences = []
    for batch in rig.batches():
        differences.append(abs(rig.model(**batch).loss - rig.stock.batch_loss(batch)).item())
    return max(differences)


def forward_and_backward(rig: Rig, batch: dict, stock: bool) -> None:
    """One step of either side but for the optimizer's."""
    with torch.autocast("cpu", torch.bfloat16, enabled=rig.options.bf16):
        loss = rig.stock.batch_loss(batch) if stock else rig.model(**batch).loss
    loss.backward()


def peak_memory(rig: Rig, stock: bool) -> float:
    """Largest sum of the tensors that a forward and backward pass makes and holds, in MB: PyTorch's own count."""
    model = rig.stock.model if stock else rig.model
    model.train()
    peak = 0
    for batch in rig.batches()[:5]:
        model.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            forward_and_backward(rig, batch, stock)
        held = top = 0
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                top = max(top, held)
        peak = max(peak, top)
        model.zero_grad()
    return peak / 1e6


def resident_rise(options, stock: bool) -> float:
    """The same as the system counts it, in MB: the most that a new process holds in its first five passes, above what
    it held before them."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(take_first_passes, options, stock).result()


def take_first_passes(options, stock: bool) -> float:
    """What `resident_rise` has the new process do."""
    rig = Rig(options)
    model, batches = (rig.stock.model if stock else rig.model), rig.batches()[:5]
    model.train()
    before = forget_peak()
    for batch in batches:
        forward_and_backward(rig, batch, stock)
        model.zero_grad()
    return resident("VmHWM") - before


def time_steps(model: nn.Module, batches: list[dict], loss: Callable[[dict], torch.Tensor], bf16: bool) -> float:
    """Seconds of forward, backward and AdamW of the batches after the warm-up, without Trainer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss(dict(batch))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def smart(options) -> dict:
    """A step with SMART against one without, and against the stock model with smart-pytorch."""
    from smart_pytorch import SMARTLoss  # of the extra, which the other commands do without

    plain, smart = Rig(options), Rig(options, smart=True)
    divergences = {name: DIVERGENCES[task.divergence] for name, task in plain.model.tasks.items()}

    def batches(seed: int) -> list[dict]:
        found = [batch for batch in plain.batches(seed) if batch["task"] in SMART_NAMES]
        if len(found) <= WARM_UP:
            raise InputError(f"--steps {options.steps} gives {len(found)} batches of sst and sts; expected more")
        return found

    def stock_step(batch: dict) -> torch.Tensor:
        model, task, labels = plain.stock.model, batch["task"], batch["labels"]
        embeddings = model.get_input_embeddings()(batch["input_ids"])
        inputs = {name: batch[name] for name in INPUTS[1:]}

        def predict(embeddings: torch.Tensor) -> torch.Tensor:
            return plain.stock.predict(task, model(inputs_embeds=embeddings, **inputs).logits)

        logits = predict(embeddings)
        penalty = SMARTLoss(predict, lambda a, b: divergences[task](a, b).mean())(embeddings, logits)
        return LOSSES[plain.model.tasks[task].loss](logits=logits, labels=labels) + penalty

    def side(model: nn.Module, loss: Callable[[dict], torch.Tensor]) -> Callable[[int], float]:
        return lambda seed: time_steps(model, batches(seed), loss, options.bf16)

    ours = [side(rig.model, partial(rig.trainer(0).compute_loss, rig.model)) for rig in (plain, smart)]
    rounds = list(alternate(options.rounds, *ours, side(plain.stock.model, stock_step)))
    return {
        "seconds of a SMART step by a plain one": median(ours / base for base, ours, _ in rounds),
        "times faster than smart-pytorch with BertForSequenceClassification": median(b / a for _, a, b in rounds),
    }


def ablate(options) -> dict:
    """Forward, backward and AdamW without each of the changes that made them fast, by a step with all of them."""
    rig, encode = Rig(options), MinBertModel.forward

    def every_token(model: MinBertModel, *args, first_token_only: bool = False, **kwargs):
        """The encoder with a last layer that runs for all tokens."""
        return encode(model, *args, **kwargs)

    class Padded(Packing):
        """A packing that keeps the padding: every token of every row."""

        def __init__(self, attention_mask: torch.Tensor, *args):
            super().__init__(torch.ones_like(attention_mask), *args)
            self.mask = attention_mask  # rows of one length stay in order

    without = {
        "nothing": [],
        "packing": [patch("bert_multitask.data.collate.Packing", Padded)],
        "buckets in attention": [patch("bert_multitask.model.packing.BUCKET_STEP", 512)],
        "plain operations for SDPA's": [patch("bert_multitask.model.encoder.eager_attention", sdpa_attention_forward)],
        "dropout from 16 bits": [patch("bert_multitask.model.encoder.drop", nn.functional.dropout)],
        "the last layer for [CLS] alone": [patch.object(MinBertModel, "forward", every_token)],
    }
    without["all of them"] = sum(without.values(), [])

    def side(changes: list) -> Callable[[int], float]:
        def seconds(seed: int) -> float:
            with ExitStack() as stack:
                for change in changes:
                    stack.enter_context(change)
                return time_steps(rig.model, rig.batches(seed), lambda batch: rig.model(**batch).loss, options.bf16)

        return seconds

    rounds = list(alternate(options.rounds, *map(side, without.values())))
    return {
        f"without {name}, times the step with all": median(seconds[number] / seconds[0] for seconds in rounds)
        for number, name in enumerate(without)
        if number
    }
