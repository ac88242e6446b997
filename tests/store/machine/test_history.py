"""Every invariant, broken by hand, is seen; and a clean history is clean."""

from __future__ import annotations

import pytest

from gradbase.cluster.simulator import Simulation, draw_plan
from gradbase.store.machine import notes
from gradbase.store.machine.history import check, count_of
from gradbase.store.machine.messages import NO_BATCH
from tests.store.machine.machines import job

SSP = job("ssp", staleness_steps=1, durability="wal")
BSP = job(durability="wal")

OPEN = (
    notes.Recovered(0, 1, 0),
    notes.Restored(0, 1, 0, (0, 0, 0), ()),
    notes.TermFenced(0, 1, 1),
    notes.TermOpened(0, 1, 1, ((0, 1, 1), (1, 1, 1))),
)
PUSH = (
    notes.Pushed(0, 1, 1, 1, 0, 5),
    notes.Applied(0, 1, 1, 0, 1, 1, 5, True),
    notes.Logged(0, 1, 1, 0, 1),
)
BSP_STEP = (notes.Applied(0, 1, 1, -1, -1, 0, -1, True), notes.Logged(0, 1, 1, -1, 0))


def test_a_clean_history_is_clean() -> None:
    read = notes.Read(0, 1, 0, 1, 2, (2, 1, 0), None)
    served = notes.Served(0, 1, 1, 0, 1, 2, (2, 1, 0), count_of([5]))
    rest = (*OPEN, *PUSH, notes.Synced(0, 1, 1), notes.Acknowledged(0, 1, 0, 2), served, read)
    assert check(SSP, rest, lambda shard, step, count: count) == []


@pytest.mark.parametrize(
    ("invariant", "broken"),
    {
        "I1 bound": (*PUSH, notes.Pushed(0, 1, 1, 2, 0, 6), notes.Applied(0, 1, 1, 0, 1, 2, 6, True),
                     notes.Served(0, 1, 1, 0, 1, 3, (3, 1, 0), None)),
        "I2 monotonic": (notes.Read(0, 1, 0, 1, 1, (2, 2, 0), None), notes.Read(0, 1, 0, 1, 2, (2, 1, 0), None)),
        "I3 own writes": (notes.Read(0, 1, 0, 1, 3, (2, 1, 0), None),),
        "I4 exact value": (*PUSH, notes.Served(0, 1, 1, 0, 1, 2, (1, 1, 0), None)),
        "I5 order": (notes.Applied(0, 1, 1, 0, 1, 1, 5, True),),
        "I6 acknowledged means durable": (*PUSH, notes.Acknowledged(0, 1, 0, 2)),
        "I7 one owner": (*PUSH, notes.Recovered(0, 2, 0), notes.Synced(0, 1, 1)),
        "I8 fenced": (PUSH[0], notes.TermFenced(0, 1, 2), PUSH[1]),
        "I9 exactly once": (*PUSH, notes.Pushed(1, 1, 1, 1, 0, 5), notes.Applied(0, 1, 1, 1, 1, 1, 5, True)),
    }.items(),
)  # fmt: skip
def test_a_broken_invariant_is_seen(invariant: str, broken: tuple[notes.Note, ...]) -> None:
    assert [violation.invariant for violation in check(SSP, (*OPEN, *broken))] == [invariant]


@pytest.mark.parametrize(
    ("invariant", "broken"),
    [
        ("I5 order", (notes.Synced(0, 1, 1),)),
        ("I5 order", (notes.Logged(0, 1, 2, 0, 1),)),
        ("I6 acknowledged means durable", (*PUSH, notes.Synced(0, 1, 1), notes.Recovered(0, 2, 0))),
        ("I7 one owner", (notes.Recovered(0, 1, 0),)),
        ("I8 fenced", (notes.TermBegun(3), notes.TermBegun(3))),
        ("I8 fenced", (notes.TermFenced(0, 1, 1),)),
        ("I8 fenced", (notes.TermOpened(0, 1, 2, ()),)),
        ("I9 exactly once", (notes.Leased(1, 0, 1, (3, 4)), notes.Leased(1, 1, 1, (4,)))),
        ("I9 exactly once", (*PUSH, notes.Pushed(0, 1, 1, 1, 0, 6))),
    ],
)
def test_other_ways_to_break_them(invariant: str, broken: tuple[notes.Note, ...]) -> None:
    assert invariant in [violation.invariant for violation in check(SSP, (*OPEN, *broken))]


@pytest.mark.parametrize(
    ("invariant", "broken"),
    [
        ("I4 exact value", (notes.Applied(0, 1, 1, -1, -1, 3, -1, True),)),
        ("I4 exact value", (*BSP_STEP, notes.Served(0, 1, 1, 0, 1, 1, (1, 1), "wrong"))),
        ("I3 own writes", (notes.Read(0, 1, 0, 1, 1, (0, 0), "right"),)),
        ("I6 acknowledged means durable", (*BSP_STEP, notes.Acknowledged(0, 1, 0, 1))),
    ],
)
def test_under_bsp(invariant: str, broken: tuple[notes.Note, ...]) -> None:
    violations = check(BSP, (*OPEN, *broken), lambda shard, step, count: "right")
    assert [violation.invariant for violation in violations] == [invariant]


def test_an_update_that_is_lost_or_doubled_shows_in_the_value() -> None:
    for value in (0, count_of([5]) + count_of([5])):
        served = notes.Served(0, 1, 1, 0, 1, 2, (2, 1, 0), value)
        violations = check(SSP, (*OPEN, *PUSH, served), lambda shard, step, count: count)
        assert [violation.invariant for violation in violations] == ["I4 exact value"]


def test_one_who_rests_does_not_count_as_slow() -> None:
    rest = (notes.Pushed(1, 1, 1, 1, 0, NO_BATCH), notes.Applied(0, 1, 1, 1, 1, 1, NO_BATCH, False))
    far = (*PUSH, notes.Pushed(0, 1, 1, 2, 0, 6), notes.Applied(0, 1, 1, 0, 1, 2, 6, True))
    served = notes.Served(0, 1, 1, 0, 1, 3, (3, 2, 0), None)
    assert check(job("ssp"), (*OPEN, *far, *rest, served)) == []


def test_histories_of_real_runs_are_clean_without_looking_at_values() -> None:
    for seed in range(50):
        simulation = Simulation(draw_plan(seed))
        simulation.run()
        assert check(simulation.job, simulation.history) == []
