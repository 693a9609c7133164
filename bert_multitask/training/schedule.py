"""Which task's batch comes next, and which rows are in it: index arithmetic without tensors.

A plan is a list of task names, one for each optimizer step. A step trains on one batch of that task. The batch is split
into shares, one for each process and accumulation step. Plan and rows depend only on the number of rows of each task,
the rows of a step and the seed. They do not depend on global random state or on the number of processes.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.collate import FILLER


def round_robin(batches: Mapping[str, int], seed: int) -> list[str]:
    """The paper's shuffled, size-proportional round-robin (section 4.2.2).

    Each step draws a task with probability proportional to its total number of batches, among the tasks that have
    batches left, until all have run out.

    Args:
        batches: {task: its batches in the whole training}.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    left = dict(batches)
    plan = []
    while tasks := [task for task, count in left.items() if count]:
        weights = np.array([batches[task] for task in tasks], dtype=float)
        # Many draws at once: the probabilities change only when a task has no batches left.
        for choice in generator.choice(len(tasks), size=sum(left.values()), p=weights / weights.sum()):
            task = tasks[choice]
            plan.append(task)
            left[task] -= 1
            if not left[task]:
                break
    return plan


def sequential(batches: Mapping[str, int], seed: int) -> list[str]:
    """One task after the other, in the given order (the paper's baseline, section 4.1). The seed is not used."""
    return [task for task, count in batches.items() for _ in range(count)]


sequential.epoch_ends = True  # the trainer evaluates and saves where a task ends an epoch (see `EpochEnds`)

SCHEDULES: dict[str, Callable[[Mapping[str, int], int], list[str]]] = {
    "round_robin": round_robin,
    "sequential": sequential,
}


def first_steps(plan: Sequence[str], max_steps: int) -> list[str]:
    """The first `--max_steps` steps of a plan; all of them if that is 0 or less."""
    return list(plan[:max_steps] if max_steps > 0 else plan)


def count_batches(rows: Mapping[str, int], epochs: Mapping[str, int], batch_size: int, budget: float) -> dict[str, int]:
    """Batches of each task in the whole training: batches per epoch × epochs × budget, at least one.

    Args:
        rows: {task: training rows}, each at least 1.
        epochs: {task: how often each row is seen}.
        batch_size: rows of one optimizer step.
        budget: share of the full training, in (0, 1].
    """
    return {task: max(1, round(budget * epochs[task] * -(-count // batch_size))) for task, count in rows.items()}


def flatten_sizes(batches: Mapping[str, int], temperature: float) -> dict[str, int]:
    """Distribute the steps of a plan over its tasks in proportion to size^(1 / T) (Arivazhagan et al., 2019).

    These are the expected numbers of a sampler with temperature T. Above 1, small tasks get more steps than their
    epochs have, and large ones fewer.

    Args:
        batches: {task: its batches in the whole training}, taken as its size.
        temperature: T, above 0. At 1 nothing changes; towards infinity all tasks get the same number.

    Returns:
        {task: batches}, with the same sum, unless a task had to be raised to one.
    """
    logs = np.log(list(batches.values())) / temperature
    weights = np.exp(logs - logs.max())
    exact = sum(batches.values()) * weights / weights.sum()
    counts = np.floor(exact + 1e-9).astype(int)
    left = sum(batches.values()) - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1  # those with the largest remainders
    return {task: max(1, int(count)) for task, count in zip(batches, counts, strict=True)}


def log_interval(steps: int) -> int:
    """Steps from one log entry to the next: 1/20 of a plan of up to 1,000 steps, 50 for one of up to 5,000 steps, 1/100
    of a longer one."""
    return max(1, round(max(min(steps / 20, 50), steps / 100)))


def epoch_batches(rows: int, batch_size: int, seed: int, task: int) -> Iterator[np.ndarray]:
    """Yield one task's batches of row indices, epoch after epoch without end.

    Every epoch is a new permutation of the rows, cut into batches; the last batch of an epoch may be smaller.
    """
    for epoch in itertools.count():
        order = np.random.default_rng([seed, task, epoch]).permutation(rows)
        yield from (order[start : start + batch_size] for start in range(0, rows, batch_size))


@dataclass(eq=False)
class PlanSampler:
    """The batch sampler of one process: yields the (task, row) pairs of each of its micro-batches.

    All processes work on the same task in a step, each on its own share of the batch's rows. Shares differ in size by
    at most one row. A share without rows gets one FILLER, so that every process takes part in every step.

    Args:
        plan: task of each optimizer step.
        rows: {task: training rows}.
        batch_size: rows of one optimizer step, all processes and accumulation steps together.
        seed: of the order of rows.
        accumulation: micro-batches of a process in each optimizer step.
        rank: number of this process, from 0.
        processes: how many processes share each step.
    """

    plan: list[str]
    rows: Mapping[str, int]
    batch_size: int
    seed: int
    accumulation: int = 1
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return len(self.plan) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        batches = {
            task: epoch_batches(rows, self.batch_size, self.seed, number)
            for number, (task, rows) in enumerate(self.rows.items())
        }
        for task in self.plan:
            shares = np.array_split(next(batches[task]), self.accumulation * self.processes)
            for micro in range(self.accumulation):
                share = shares[micro * self.processes + self.rank].tolist()
                yield [(task, row) for row in share or [FILLER]]


def describe(plan: list[str], rows: Mapping[str, int], epochs: Mapping[str, int], batch_size: int) -> str:
    """The plan as a table to print before training: each task's rows, epochs, batches and share of the steps."""
    width = max(12, *map(len, rows))
    lines = [f"{'task':{width}} {'rows':>9} {'epochs':>7} {'batches':>8} {'share':>7}"]
    for task, count in rows.items():
        batches = plan.count(task)
        seen = batches / -(-count // batch_size)
        cut = "" if seen == epochs[task] else f"   of {epochs[task]} epochs"
        cut += f"; {1 - seen:.0%} of the rows are left out" if seen < 1 else ""
        lines.append(f"{task:{width}} {count:9,} {seen:7.3g} {batches:8,} {batches / len(plan):7.1%}{cut}")
    return "\n".join(lines + [f"{len(plan):,} steps of up to {batch_size} rows"])
