"""The timeline against figures worked out by hand, and what must hold for any plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.explain import timeline
from gradbase.explain._timeline import layers, live_bytes, unplanned
from gradbase.ir.physical import Await, Compute, Life, PageIn, PageOut, PhysicalPlan
from tests.explain.plans import blocks
from tests.ir.plans import six_costs, six_operators, six_physical

# Out of 1000 bytes: 1 + 1000 / 100 = 11 µs, of which computing pays half where it starts; of 400 bytes: 5 µs.


def test_times_by_hand() -> None:
    times = timeline(six_operators(), six_physical(), six_costs())
    assert times.issued_us == pytest.approx(
        [0, 100, 120, 125.5, 135.5, 135.5, 141, 146.5, 156.5, 159, 259, 359, 359, 409, 411.5]
    )
    assert (times.start_us[2], times.end_us[2]) == (120, 131)  # page-out of the dropped values, behind the loss
    assert (times.issued_us[6], times.left_us[6]) == (141, 146.5)  # waits for the page-in that began at 135.5
    assert times.time_us == pytest.approx(six_physical().predicted_time_us)
    assert times.live_bytes == (
        1024, 1024, 1024, 1088, 1088, 1088, 1088, 2112, 1600, 2624, 3136, 1088, 1088, 576, 576,
    )  # fmt: skip


def test_one_channel_makes_a_page_in_wait_for_a_page_out() -> None:
    costs = six_costs()
    assert costs.tier is not None
    shared = replace(costs, tier=replace(costs.tier, duplex=False, compute_tax=0.0))
    physical = six_physical()
    # The state comes in while the dropped values go out: its page-in stands right behind the page-out.
    instructions = list(physical.instructions)
    instructions.insert(3, instructions.pop(8))
    moved = replace(physical, instructions=tuple(instructions))
    times = timeline(six_operators(), moved, shared)
    assert times.start_us[3] == times.end_us[2] == 131
    duplex = timeline(six_operators(), moved, replace(shared, tier=replace(costs.tier, compute_tax=0.0)))
    assert duplex.start_us[3] == 120


def test_layers_add_up_to_what_is_occupied() -> None:
    logical, physical, costs = six_operators(), six_physical(), six_costs()
    stacked = layers(logical, physical, costs)
    scratch = [32 if isinstance(step, Compute) else 0 for step in physical.instructions]
    assert stacked["scratch"] == tuple(scratch)
    for index, live in enumerate(live_bytes(physical)):
        assert sum(values[index] for values in stacked.values()) == physical.resident_bytes + live + scratch[index]
    assert stacked["recomputed"][10] == 1024
    assert stacked["paged in"][5:8] == (1024,) * 3
    assert stacked["spilled"][8] == 512


def test_before_planning_everything_lives_until_its_last_use() -> None:
    before = unplanned(six_operators(), six_costs())
    # While fc1_backward runs: 1600 bytes external, both activations' survivors and both gradients, the loss, scratch.
    assert before.total_bytes[4] == 1600 + 1000 + 4 + 1000 + 400 + 32
    assert before.peak_bytes == 1600 + 1000 + 1000 + 1000 + 4 + 32
    assert before.time_us == 290


@st.composite
def _packed(draw: st.DrawFn) -> PhysicalPlan:
    """Lives at random spans, each at the lowest offset that is free; some take over the frame of one that ends."""
    count = draw(st.integers(1, 12))
    lives: list[Life] = []
    for identity in range(count):
        born = draw(st.integers(0, 9))
        dies = draw(st.integers(born, 9))
        taken = {life.reuses for life in lives}
        ending = [life for life in lives if life.dies == born and life.born < born and life.id not in taken]
        if ending and draw(st.booleans()):
            old = ending[0]
            if not _collides(lives, old.offset, old.nbytes, born, dies, old.id):
                lives.append(Life(identity, 0, old.offset, old.nbytes, born, dies, "compute", reuses=old.id))
                continue
        nbytes, offset = draw(st.integers(0, 40)), 0
        while _collides(lives, offset, nbytes, born, dies, -1):
            offset += 1
        lives.append(Life(identity, 0, offset, nbytes, born, dies, "compute"))
    arena = max(life.offset + life.nbytes for life in lives)
    return PhysicalPlan((PageIn(0),) * 10, tuple(lives), (), arena, 0, 0, (), 0, None, 0.0, 0.0, 0.0)


def _collides(lives: list[Life], offset: int, nbytes: int, born: int, dies: int, spared: int) -> bool:
    return any(
        life.id != spared
        and life.born <= dies
        and born <= life.dies
        and life.offset < offset + nbytes
        and offset < life.offset + life.nbytes
        for life in lives
    )


@given(_packed())
def test_bytes_live_never_exceed_the_arena(physical: PhysicalPlan) -> None:
    assert max(live_bytes(physical)) <= physical.arena_bytes


@pytest.mark.parametrize("count", [1, 7])
def test_everything_kept_takes_the_time_of_the_operators(count: int) -> None:
    logical, physical, costs = blocks(count)
    times = timeline(logical, physical, costs)
    assert times.time_us == 2 * count
    assert max(times.live_bytes) <= physical.arena_bytes


def test_awaits_of_what_is_done_cost_nothing() -> None:
    times = timeline(six_operators(), six_physical(), six_costs())
    for index, step in enumerate(six_physical().instructions):
        if isinstance(step, Await) and step.life == 5 and step.direction == "in":
            assert times.issued_us[index] == times.left_us[index]
        if isinstance(step, (PageOut, PageIn)):
            assert times.end_us[index] > times.start_us[index] >= times.issued_us[index]
