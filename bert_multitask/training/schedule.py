"""Which task's batch comes next: pure index arithmetic, no tensors.

A plan is a list of task names, one for each optimizer step. A step works on one batch of that task; a batch is cut
into shares, one for each process and accumulation step, which together are all its rows. Plan and rows are functions of
the sizes, the rows of a step and the seed alone: no global random state changes them, and neither does the number of
processes that share a step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

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
        # Drawn in blocks: with the same tasks left, the probabilities stay the same, so only the end of a task's
        # batches ends a block.
        for choice in generator.choice(len(tasks), size=sum(left.values()), p=weights / weights.sum()):
            task = tasks[choice]
            plan.append(task)
            left[task] -= 1
            if not left[task]:
                break
    return plan


def sequential(batches: Mapping[str, int], seed: int) -> list[str]:
    """One task after the other, in the order given (the paper's baseline, section 4.1). The seed plays no part."""
    return [task for task, count in batches.items() for _ in range(count)]


sequential.epoch_ends = True  # the trainer evaluates and saves where a task ends an epoch (see `EpochEnds`)

SCHEDULES: dict[str, Callable[[Mapping[str, int], int], list[str]]] = {
    "round_robin": round_robin,
    "sequential": sequential,
}


def first_steps(plan: Sequence[str], max_steps: int) -> list[str]:
    """A plan cut to `--max_steps`, which are all where that is not above 0."""
    return list(plan[:max_steps] if max_steps > 0 else plan)


def count_batches(rows: Mapping[str, int], epochs: Mapping[str, int], batch_size: int, budget: float) -> dict[str, int]:
    """Batches of each task in the whole training: batches per epoch x epochs, scaled by the budget, at least one.

    Args:
        rows: {task: training rows}, each at least 1.
        epochs: {task: how often each row is seen}.
        batch_size: rows of one optimizer step.
        budget: share of the full training, in (0, 1]; smoke runs use less than 1.
    """
    return {task: max(1, round(budget * epochs[task] * -(-count // batch_size))) for task, count in rows.items()}


def flatten_sizes(batches: Mapping[str, int], temperature: float) -> dict[str, int]:
    """Deal the steps of a plan to its tasks by size^(1 / T) (Arivazhagan et al., 2019), as a sampler with that
    temperature would on average: above 1 small tasks get more than their epochs and large ones less.

    Args:
        batches: {task: its batches in the whole training}, which are its size.
        temperature: T, above 0; at 1 the batches stay as they are, and towards infinity all tasks get as many.

    Returns:
        {task: batches}, with the same sum, but that each task has at least one.
    """
    logs = np.log(list(batches.values())) / temperature
    weights = np.exp(logs - logs.max())
    exact = sum(batches.values()) * weights / weights.sum()
    counts = np.floor(exact + 1e-9).astype(int)
    left = sum(batches.values()) - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1  # to the largest remainders
    return {task: max(1, int(count)) for task, count in zip(batches, counts, strict=True)}


def log_interval(steps: int) -> int:
    """Steps from one log entry to the next: a twentieth of a plan of up to 1,000 steps, 50 steps of one of up to 5,000,
    and a hundredth of a longer one."""
    return max(1, round(max(min(steps / 20, 50), steps / 100)))


def epoch_batches(rows: int, batch_size: int, seed: int, task: int) -> Iterator[np.ndarray]:
    """Yield one task's batches of row indices, epoch after epoch without end.

    Every epoch is a new permutation of the rows, cut into batches; the last batch of an epoch may be smaller.
    """
    epoch = 0
    while True:
        order = np.random.default_rng([seed, task, epoch]).permutation(rows)
        yield from (order[start : start + batch_size] for start in range(0, rows, batch_size))
        epoch += 1


class PlanSampler:
    """The batch sampler of one process: for each micro-batch, the (task, row) pairs that this process works on.

    All processes work on the same task in a step, each on its own share of the batch's rows. Shares differ in size by
    at most one row; a share without a row is one FILLER, so that every process takes part in every step.

    Args:
        plan: task of each optimizer step.
        rows: {task: training rows}.
        batch_size: rows of one optimizer step, all processes and accumulation steps together.
        seed: of the order of rows.
        accumulation: micro-batches a process runs for each optimizer step.
        rank: number of this process, from 0.
        processes: that share each step.
    """

    def __init__(
        self,
        plan: list[str],
        rows: Mapping[str, int],
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
    ):
        self.plan, self.rows, self.size, self.seed = plan, rows, batch_size, seed
        self.accumulation, self.rank, self.processes = accumulation, rank, processes

    def __len__(self) -> int:
        return len(self.plan) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        batches = {
            task: epoch_batches(rows, self.size, self.seed, number)
            for number, (task, rows) in enumerate(self.rows.items())
        }
        for task in self.plan:
            shares = np.array_split(next(batches[task]), self.accumulation * self.processes)
            for micro in range(self.accumulation):
                share = shares[micro * self.processes + self.rank].tolist()
                yield [(task, row) for row in share or [FILLER]]


def describe(plan: list[str], rows: Mapping[str, int], epochs: Mapping[str, int], batch_size: int) -> str:
    """The plan as a table, to be read before training: rows, epochs, batches and share of the steps by task."""
    width = max(12, *map(len, rows))
    lines = [f"{'task':{width}} {'rows':>9} {'epochs':>7} {'batches':>8} {'share':>7}"]
    for task, count in rows.items():
        batches = plan.count(task)
        seen = batches / -(-count // batch_size)
        cut = "" if seen == epochs[task] else f"   of {epochs[task]} epochs"
        cut += f"; {1 - seen:.0%} of the rows are left out" if seen < 1 else ""
        lines.append(f"{task:{width}} {count:9,} {seen:7.3g} {batches:8,} {batches / len(plan):7.1%}{cut}")
    return "\n".join(lines + [f"{len(plan):,} steps of up to {batch_size} rows"])
