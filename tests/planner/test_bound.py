"""The lower bound is below the best of all plans, found by trying everything, and that is below the planner's."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import InfeasibleError
from gradbase.ir.costs import Costs, Tier
from gradbase.ir.logical import LogicalPlan
from gradbase.planner import RULES, least_bytes, lower_bound, plan
from tests.planner.steps import FAST_TIER, SLOW_TIER, graph, net

# The order stays as it is: the exhaustive search knows no other.
FIXED_ORDER = [rule.name for rule in RULES if rule.reorders is None]


def best_time_us(
    logical: LogicalPlan, costs: Costs, budget_bytes: int, tier: Tier | None, *, beside: bool = True
) -> float:
    """The least time of any plan in the step's order, by Dijkstra over what is resident.

    Transfers never stall (no plan is faster), or are never beside computing (one such plan is as fast).
    """
    slowdown = 0.0 if tier is None else tier.compute_tax if beside else 1 + tier.compute_tax
    nbytes = [s.nbytes for s in logical.storages]
    external = {s.id for s in logical.storages if s.external}
    room = budget_bytes - sum(nbytes[s] for s in external) - max(e.scratch_bytes for e in costs.operators)
    start = (0, frozenset[int](), frozenset[int]())
    best, queue = {start: 0.0}, [(0.0, 0, start)]
    count = 0
    while queue:
        time_us, _, state = heapq.heappop(queue)
        if time_us > best[state]:
            continue
        done, here, saved = state
        if done == len(logical.operators) and set(logical.results) <= here | external:
            return time_us
        for cost, after in _moves(logical, costs, tier, slowdown, nbytes, external, room, done, here, saved):
            if time_us + cost < best.get(after, float("inf")):
                count += 1
                best[after] = time_us + cost
                heapq.heappush(queue, (time_us + cost, count, after))
    return float("inf")


def _moves(logical, costs, tier, slowdown, nbytes, external, room, done, here, saved):  # type: ignore[no-untyped-def]
    """Run the next operator or one again, drop, save or load a storage: (cost, state after)."""
    for operator in logical.operators[: done + 1]:
        if not set(operator.reads) <= here | external or (operator.id < done and set(operator.writes) <= here):
            continue
        overwritten: set[int] = set()
        for written, read in operator.inplace:  # greedy pairing; droppings before and after are moves of their own
            if read in here and read not in overwritten and written not in here:
                overwritten.add(read)
        for gone in (set(), overwritten):
            alive = here | set(operator.writes)
            if sum(nbytes[s] for s in alive) - sum(nbytes[s] for s in gone) <= room:
                after = frozenset(alive - gone)
                yield costs.operators[operator.id].time_us, (max(done, operator.id + 1), after, saved)
    for storage in here:
        yield 0.0, (done, here - {storage}, saved)
        if tier is not None and storage not in saved and nbytes[storage] >= tier.alignment_bytes:
            cost = slowdown * (tier.latency_us + nbytes[storage] / tier.write_bytes_per_us)
            yield cost, (done, here, saved | {storage})
    for storage in saved - here if tier is not None else ():
        if sum(nbytes[s] for s in here) + nbytes[storage] <= room:
            cost = slowdown * (tier.latency_us + nbytes[storage] / tier.read_bytes_per_us)
            yield cost, (done, here | {storage}, saved)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([None, FAST_TIER, SLOW_TIER]), st.floats(0, 1)
)
def test_bound_optimum_plan_are_in_order(seed: int, operators: int, tier: Tier | None, share: float) -> None:
    logical, costs = graph(seed, operators, tier, pure=True)
    highest = plan(logical, costs, None, rules=FIXED_ORDER).predicted_peak_bytes
    least, _ = least_bytes(logical, costs, rules=FIXED_ORDER)
    budget = int(0.8 * least + share * (highest - 0.8 * least))
    bound = lower_bound(logical, costs, budget, rules=FIXED_ORDER)
    assert bound <= best_time_us(logical, costs, budget, tier, beside=False) * (1 + 1e-9)
    optimum = best_time_us(logical, costs, budget, tier)
    try:
        physical = plan(logical, costs, budget, rules=FIXED_ORDER)
    except InfeasibleError:
        assert budget < least
    else:
        assert optimum <= physical.predicted_time_us * (1 + 1e-9)
        assert bound <= physical.predicted_time_us * (1 + 1e-9)
        assert physical.lower_bound_time_us == pytest.approx(bound)


@pytest.mark.parametrize("share", [0.75, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_plans_with_paging_are_near_the_bound(seed: int, share: float) -> None:
    """A deep net whose transfers fit beside its computing: within 5% of the bound."""
    logical, costs = net(60, FAST_TIER, seed=seed, size=64 * 256)
    budget = int(share * plan(logical, costs, None).predicted_peak_bytes)
    physical = plan(logical, costs, budget)
    assert physical.predicted_time_us <= 1.05 * physical.lower_bound_time_us


def test_a_smaller_budget_never_has_a_smaller_bound() -> None:
    logical, costs = net(30, SLOW_TIER, seed=4)
    highest = plan(logical, costs, None).predicted_peak_bytes
    bounds = [lower_bound(logical, costs, highest * k // 10) for k in range(1, 11)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(sum(e.time_us for e in costs.operators))
