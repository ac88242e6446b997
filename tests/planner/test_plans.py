"""Every plan, whatever the step and the budget, computes what the plain step computes, within its budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradbase.common.errors import InfeasibleError, UsageError
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import Compute, PageIn, PhysicalPlan
from gradbase.ir.verify import verify_logical, verify_physical
from gradbase.planner import RULES, curve, least_bytes, lower_bound, plan, problem
from gradbase.planner.rules._dependencies import predecessors
from tests.planner.machine import Machine, run_plainly
from tests.planner.steps import DUPLEX_TIER, FAST_TIER, SLOW_TIER, TIERS, graph, net, without_tier

NAMES = [rule.name for rule in RULES]


def check(logical: LogicalPlan, costs: Costs, physical: PhysicalPlan) -> None:
    """The plan language's own verifier, the symbolic machine, and the budget."""
    verify_physical(logical, physical, alignment_bytes=64, costs=costs)
    outcome, plain = Machine(logical, physical).run(), run_plainly(logical)
    wanted = {s.id for s in logical.storages if s.external} | set(logical.results)
    assert {s: outcome[s] for s in wanted} == {s: plain[s] for s in wanted}
    if physical.budget_bytes is not None:
        assert physical.predicted_peak_bytes <= physical.budget_bytes
    assert physical.lower_bound_time_us <= physical.predicted_time_us * (1 + 1e-9)
    for life in physical.lives:
        paged = any(isinstance(i, PageIn) and i.life == life.id for i in physical.instructions)
        if paged and costs.tier is not None:
            assert life.offset % costs.tier.alignment_bytes == 0 and life.nbytes % costs.tier.alignment_bytes == 0


def check_at(logical: LogicalPlan, costs: Costs, share: float, rules: list[str] | None = None) -> PhysicalPlan | None:
    """Plan at a share of the way from the least memory to what keeping everything takes."""
    unlimited = plan(logical, costs, None, rules=rules)
    check(logical, costs, unlimited)
    least, _ = least_bytes(logical, costs, rules=rules, effort_s=1.0)
    budget = int(least + share * (unlimited.predicted_peak_bytes - least))
    try:
        physical = plan(logical, costs, budget, rules=rules, effort_s=1.0)
    except InfeasibleError as error:
        assert error.least_bytes > budget
        return None
    check(logical, costs, physical)
    return physical


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.sampled_from(TIERS), st.floats(0, 1))
@example(454773, 22, TIERS[2], 0.43572848820519283)  # a rerun makes a storage anew that was changed since
@example(431369, 14, TIERS[2], 0.9657843228354901)  # and is not all that its reader needs
@example(669235, 17, TIERS[0], 0.7826443143424725)  # two operators sink to one place, one needs the other
def test_random_graphs(seed: int, operators: int, tier: object, share: float) -> None:
    logical, costs = graph(seed, operators, tier)  # type: ignore[arg-type]
    verify_logical(logical)
    check_at(logical, costs, share)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_the_order_respects_what_depends_on_what(seed: int, operators: int) -> None:
    logical, _ = graph(seed, operators, None)
    order = list(range(operators))
    for rule in RULES:
        if rule.reorders is not None:
            order = rule.reorders(logical, order)
    before = predecessors(logical)
    assert sorted(order) == list(range(operators))
    assert all(before[operator] <= set(order[:index]) for index, operator in enumerate(order))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 20), st.sampled_from(TIERS), st.floats(0, 1), st.integers(0, 2), st.booleans()
)
def test_random_nets(seed: int, layers: int, tier: object, share: float, states: int, clip: bool) -> None:
    logical, costs = net(layers, tier, seed=seed, states=states, clip=clip)  # type: ignore[arg-type]
    verify_logical(logical)
    check_at(logical, costs, share)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.sampled_from(TIERS), st.floats(0, 1), st.booleans())
def test_random_nets_whose_weights_may_leave_memory(
    seed: int, layers: int, tier: object, share: float, graphs: bool
) -> None:
    """With weights as small as those of the test nets worth a transfer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problem, "_LEAST_PARAMETER_BYTES", 64)
        step = graph(seed, layers, tier) if graphs else net(layers, tier, seed=seed, states=1, weights=4)  # type: ignore[arg-type]
        check_at(*step, share)


def test_weights_rest_in_the_page_file_when_memory_is_short() -> None:
    logical, costs = net(20, FAST_TIER, seed=4, states=2, weights=64)
    with pytest.MonkeyPatch.context() as patch:
        staying, _ = least_bytes(logical, costs)
        patch.setattr(problem, "_LEAST_PARAMETER_BYTES", 4096)
        least, _ = least_bytes(logical, costs)
        physical = plan(logical, costs, least)
    assert least < 0.8 * staying
    fetched = [physical.lives[i.life].storage for i in physical.instructions if isinstance(i, PageIn)]
    weights = [s.id for s in logical.storages if s.kind == "parameter" and s.id in physical.spilled]
    assert weights and max(map(fetched.count, weights)) >= 2  # once for the forward pass, once for the backward pass


@pytest.mark.parametrize("seed", range(4))
def test_the_least_memory_does_not_depend_on_the_tiers_speed(seed: int) -> None:
    """With a slow tier there is no time between a weight's uses, and packing long transfers wastes memory: whoever asks
    for the least waits instead."""
    logical, costs = net(20, FAST_TIER, seed=seed, states=2, weights=64)
    fast = replace(FAST_TIER, read_bytes_per_us=1e9, write_bytes_per_us=1e9, latency_us=0.0)
    slow = replace(FAST_TIER, read_bytes_per_us=1.0, write_bytes_per_us=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problem, "_LEAST_PARAMETER_BYTES", 4096)
        at_once, _ = least_bytes(logical, replace(costs, tier=fast))
        waiting, _ = least_bytes(logical, replace(costs, tier=slow))
        check(logical, replace(costs, tier=slow), plan(logical, replace(costs, tier=slow), waiting))
    assert waiting <= 1.02 * at_once


@pytest.mark.parametrize("off", [*NAMES, "all"])
def test_every_rule_can_be_switched_off(off: str) -> None:
    on = [] if off == "all" else [name for name in NAMES if name != off]
    logical, costs = net(14, FAST_TIER, seed=3)
    physical = check_at(logical, costs, 0.5, on)
    assert physical is not None and physical.rules == tuple(on)
    runs = [i.run for i in physical.instructions if isinstance(i, Compute)]
    if "inplace" not in on:
        assert all(life.reuses == -1 for life in physical.lives)
    if "recompute" not in on:
        assert max(runs) == 0
    if "spill" not in on:
        assert not physical.spilled
    if "page" not in on:
        external = {s.id for s in logical.storages if s.external}
        assert all(life.storage in external for life in physical.lives if life.origin == "page-in")


def test_an_unknown_rule_is_refused() -> None:
    logical, costs = net(2)
    with pytest.raises(UsageError, match="early_update"):
        plan(logical, costs, None, rules=["fuse"])


@pytest.mark.parametrize("tier", [None, FAST_TIER, SLOW_TIER, DUPLEX_TIER])
def test_what_least_bytes_says_is_met_and_less_is_refused(tier: object) -> None:
    logical, costs = net(20, tier, seed=5)  # type: ignore[arg-type]
    least, operator = least_bytes(logical, costs)
    check(logical, costs, plan(logical, costs, least))
    with pytest.raises(InfeasibleError) as caught:
        plan(logical, costs, least // 2)
    assert caught.value.least_bytes == least
    assert caught.value.operator == logical.operators[operator].name
    assert str(least) in str(caught.value)


def test_a_plan_at_unlimited_memory_costs_nothing() -> None:
    logical, costs = net(30, seed=1)
    unlimited = plan(logical, costs, None)
    assert unlimited.predicted_time_us == pytest.approx(sum(e.time_us for e in costs.operators))
    again = plan(logical, costs, unlimited.predicted_peak_bytes)
    assert again.predicted_time_us == pytest.approx(unlimited.predicted_time_us)
    assert not again.decisions


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_the_same_input_gives_the_same_plan(share: float) -> None:
    logical, costs = net(25, SLOW_TIER, seed=9)
    least, _ = least_bytes(logical, costs)
    budget = int(least + share * (plan(logical, costs, None).predicted_peak_bytes - least))
    first, second = (plan(logical, costs, budget, effort_s=100) for _ in range(2))
    assert first.instructions == second.instructions and first.lives == second.lives


@pytest.mark.parametrize("tier", [None, FAST_TIER, SLOW_TIER])
def test_the_curve_falls(tier: object) -> None:
    logical, costs = net(20, tier, seed=2)  # type: ignore[arg-type]
    points = curve(logical, costs, points=6)
    assert [p.budget_bytes for p in points] == sorted(p.budget_bytes for p in points)
    times = [p.predicted_time_us for p in points]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]
    assert all(p.lower_bound_time_us <= p.predicted_time_us for p in points)
    assert all(p.predicted_peak_bytes <= p.budget_bytes for p in points)
    assert points[0].budget_bytes == least_bytes(logical, costs)[0]
    assert points[-1].budget_bytes == plan(logical, costs, None).predicted_peak_bytes


def test_state_rests_in_the_page_file_when_memory_is_short() -> None:
    logical, costs = net(20, FAST_TIER, seed=4, states=2)
    least, _ = least_bytes(logical, costs)
    physical = plan(logical, costs, least)
    assert physical.spilled
    assert {logical.storages[s].kind for s in physical.spilled} == {"state"}
    assert physical.resident_bytes == sum(
        s.nbytes for s in logical.storages if s.external and s.id not in physical.spilled
    )


def test_early_updates_let_gradients_die_young() -> None:
    logical, costs = net(30, None, seed=6, weights=8)
    late = plan(logical, costs, None, rules=[name for name in NAMES if name != "early_update"])
    early = plan(logical, costs, None)
    assert early.predicted_peak_bytes < late.predicted_peak_bytes
    updates = {o.id for o in logical.operators if o.phase == "update"}
    ran = [i.operator for i in late.instructions if isinstance(i, Compute)]
    assert set(ran[-len(updates) :]) == updates


def test_the_bound_is_finite_exactly_where_a_plan_may_exist() -> None:
    logical, costs = net(15, FAST_TIER, seed=8)
    least, _ = least_bytes(logical, costs)
    assert lower_bound(logical, costs, least) < float("inf")
    assert lower_bound(logical, costs, least // 4) == float("inf")
    assert lower_bound(logical, without_tier(costs), None) == sum(e.time_us for e in costs.operators)


def test_progress_is_told() -> None:
    told: list[str] = []
    logical, costs = net(5)
    plan(logical, costs, None, on_progress=told.append)
    assert told
