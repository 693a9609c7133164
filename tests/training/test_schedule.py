"""The plan and the dealing of rows: properties over all sizes, and the paper's probabilities."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_multitask.training.schedule import (
    FILLER,
    SCHEDULES,
    PlanSampler,
    count_batches,
    describe,
    first_steps,
    flatten_sizes,
    round_robin,
    sequential,
)

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=4)
seeds = st.integers(0, 2**32)


@given(sizes, seeds, st.sampled_from(sorted(SCHEDULES)))
def test_every_batch_is_in_the_plan_once(counts, seed, name):
    batches = {f"task{number}": count for number, count in enumerate(counts)}
    plan = SCHEDULES[name](batches, seed)
    assert Counter(plan) == batches
    assert plan == SCHEDULES[name](batches, seed)


def test_a_plan_is_cut_to_max_steps():
    assert first_steps("aab", 2) == ["a", "a"] and first_steps("aab", 9) == first_steps("aab", -1) == ["a", "a", "b"]


@pytest.mark.parametrize("order", list(permutations([1, 4, 9])))
def test_no_size_order_loses_a_batch(order):
    batches = dict(zip("abc", order, strict=True))
    assert Counter(round_robin(batches, 7)) == batches
    assert sequential(batches, 7) == ["a"] * order[0] + ["b"] * order[1] + ["c"] * order[2]


def test_round_robin_draws_in_proportion_to_the_totals():
    """First draws over many seeds: 1/10, 3/10 and 6/10, within five standard errors; and then one after another."""
    batches = {"a": 10, "b": 30, "c": 60}
    first = Counter(round_robin(batches, seed)[0] for seed in range(2000))
    for task, count in batches.items():
        share = count / 100
        assert abs(first[task] / 2000 - share) < 5 * np.sqrt(share * (1 - share) / 2000)


def test_round_robin_draws_by_totals_and_not_by_what_is_left():
    """Two tasks of 300: at even odds to the end, one runs out first and leaves the other a long tail, of 2 x the mean
    distance of a random walk, about 24 steps. Drawing by what is left would pull the counts together, to about 2."""
    tails = []
    for seed in range(60):
        plan = round_robin({"a": 300, "b": 300}, seed)
        tails.append(next(n for n, task in enumerate(reversed(plan)) if task != plan[-1]))
    assert 12 < np.mean(tails) < 40


def test_another_seed_is_another_plan():
    batches = {"a": 20, "b": 20}
    assert round_robin(batches, 0) != round_robin(batches, 1)


def test_plan_ignores_and_leaves_global_random_state():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = round_robin({"a": 20, "b": 20}, 0)
    np.random.seed(6)
    assert round_robin({"a": 20, "b": 20}, 0) == first
    np.random.seed(5)
    assert (np.random.get_state()[1] == before).all()


@given(st.integers(1, 1000), st.integers(1, 10), st.integers(1, 64), st.floats(0.001, 1))
def test_budget_scales_the_batches(rows, epochs, batch_size, budget):
    full = count_batches({"a": rows}, {"a": epochs}, batch_size, 1.0)["a"]
    assert full == epochs * int(np.ceil(rows / batch_size))
    part = count_batches({"a": rows}, {"a": epochs}, batch_size, budget)["a"]
    assert 1 <= part <= full and abs(part - budget * full) <= 1


def sampled_rows(plan, rows, **kwargs) -> list:
    """(task, row) pairs of every process and micro-batch, fillers left out, one list a step."""
    processes, accumulation = kwargs.get("processes", 1), kwargs.get("accumulation", 1)
    samplers = [PlanSampler(plan, rows, seed=11, rank=rank, **kwargs) for rank in range(processes)]
    ranks = [list(sampler) for sampler in samplers]
    assert all(len(sampler) == len(batches) for sampler, batches in zip(samplers, ranks, strict=True))
    steps = []
    for step in range(len(plan)):
        shares = [batch for rank in ranks for batch in rank[step * accumulation : (step + 1) * accumulation]]
        assert all(share for share in shares), "a process without rows would not take part in the step"
        assert {task for share in shares for task, _ in share} == {plan[step]}
        real = [[pair for pair in share if pair[1] != FILLER] for share in shares]
        assert max(map(len, real)) - min(map(len, real)) <= 1
        steps.append([pair for share in real for pair in share])
    return steps


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    seeds,
)
def test_every_row_is_seen_exactly_epochs_times(counts, batch_size, epochs, processes, accumulation, seed):
    """Ragged last batches, fewer rows than processes, any number of processes and accumulation steps."""
    rows = {f"task{number}": count for number, count in enumerate(counts)}
    plan = round_robin(count_batches(rows, dict.fromkeys(rows, epochs), batch_size, 1.0), seed)
    steps = sampled_rows(plan, rows, batch_size=batch_size, processes=processes, accumulation=accumulation)
    seen = Counter(pair for step in steps for pair in step)
    assert seen == {(task, row): epochs for task, count in rows.items() for row in range(count)}


def test_the_rows_of_a_step_do_not_depend_on_processes_or_accumulation():
    rows = {"a": 37, "b": 9}
    plan = round_robin({"a": 10, "b": 3}, 0)
    one = [sorted(step) for step in sampled_rows(plan, rows, batch_size=8)]
    for processes, accumulation in [(2, 1), (3, 1), (1, 4), (2, 4), (3, 3)]:
        other = sampled_rows(plan, rows, batch_size=8, processes=processes, accumulation=accumulation)
        assert [sorted(step) for step in other] == one


def test_epochs_are_shuffled_anew():
    rows = {"a": 32}
    first, second = sampled_rows(["a", "a"], rows, batch_size=32)
    assert first != second and sorted(first) == sorted(second)


def test_description():
    rows, epochs = {"sst": 33, "quora": 64}, {"sst": 2, "quora": 1}
    text = describe(["sst"] * 4 + ["quora"] * 2, rows, epochs, 32)
    assert text.splitlines()[1].split() == ["sst", "33", "2", "4", "66.7%"]
    assert text.splitlines()[-1] == "6 steps of up to 32 rows"
    assert " of 2" in describe(["sst"], {"sst": 33}, {"sst": 2}, 32), "a scaled budget shows in the epochs"


def test_shares_by_temperature():
    """Size^(1/T), by hand: square roots of 100, 400 and 1600 are as 1, 2 and 4."""
    assert flatten_sizes({"a": 100, "b": 400, "c": 1600}, 2) == {"a": 300, "b": 600, "c": 1200}
    assert flatten_sizes({"a": 900, "b": 100}, 2) == {"a": 750, "b": 250}
    assert flatten_sizes({"a": 7, "b": 1001}, 1e9) == {"a": 504, "b": 504}
    assert flatten_sizes({"a": 1, "b": 100_000}, 0.1) == {"a": 1, "b": 100_001}, "at least one, and no overflow"


@given(sizes, st.floats(0.3, 20))
def test_a_temperature_keeps_the_sum_and_the_order(counts, temperature):
    batches = {f"task{number}": count for number, count in enumerate(counts)}
    assert flatten_sizes(batches, 1) == batches
    flat = flatten_sizes(batches, temperature)
    exact = np.array(counts) ** (1 / temperature)
    exact *= sum(counts) / exact.sum()
    assert all(abs(got - want) < 1 or (got == 1 and want < 1) for got, want in zip(flat.values(), exact, strict=True))
    assert 0 <= sum(flat.values()) - sum(counts) < len(counts)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_trainer_lays_such_a_plan(make_trainer, schedule):
    """Of 6, 4 and 6 batches at T = 1/2, whose squares are as 36 : 16 : 36; what is left out is said."""
    plain, flat = (make_trainer(schedule=schedule, sampling_temperature=t) for t in (1, 0.5))
    assert Counter(plain.plan) == {"sst": 6, "quora": 4, "sts": 6}
    assert Counter(flat.plan) == flat.batches == {"sst": 7, "quora": 3, "sts": 6}
    text = flat.describe_plan()
    assert "of 1 epochs; 25% of the rows are left out" in text and "of 2 epochs\n" in text
