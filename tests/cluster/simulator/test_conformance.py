"""The simulated engine passes the suite that every engine passes."""

from __future__ import annotations

import pytest

from gradbase.cluster.simulator import Machines, SimulatedEngine
from gradbase.cluster.simulator import _engine as engine_room
from gradbase.cluster.testing import engine_checks
from tests.cluster.simulator.planted import PLANTED
from tests.cluster.watched import Watched

CHECKS = engine_checks()


@pytest.mark.parametrize("odd", (0.0, 0.1))
@pytest.mark.parametrize("name", CHECKS)
def test_simulated_engine(name: str, odd: float) -> None:
    """The check asserts what its name says; that it had something to look at, and killed somebody, is asserted here."""
    for seed in range(0, 100, 20):
        engine = Watched(SimulatedEngine(seed, odd))
        CHECKS[name](engine)
        assert engine.all_died_as_planned, seed


def test_the_suite_fails_for_an_engine_that_sums_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose machines sum gradients in the order of arrival."""
    machines: Machines = PLANTED["gradients are summed as they arrive"].machines
    whole = engine_room.Simulation
    monkeypatch.setattr(engine_room, "Simulation", lambda plan: whole(plan, machines))
    with pytest.raises(AssertionError):
        for seed in range(5):
            CHECKS["bsp gives the same values run after run"](SimulatedEngine(seed))
