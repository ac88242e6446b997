"""The Ray engine: actors that share the slab, and actors that reach it only over the wire, killed and restarted."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from gradbase.cluster.job import Request
from gradbase.cluster.ray import RayEngine
from gradbase.cluster.steward import StepReport
from gradbase.common.errors import UsageError
from tests.cluster import recipes

WORKERS, STEPS = 2, 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests here: starting it costs seconds, and gigabytes while it runs."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("wire", [False, True], ids=["slab", "wire"])
def test_an_actor_that_is_killed_is_restarted_and_changes_nothing(cluster: None, wire: bool) -> None:
    reports: list[StepReport] = []
    killed: list[int] = []

    def kill(report: StepReport) -> None:
        reports.append(report)
        others = [pid for pid in engine.processes() if pid != os.getpid()]
        if len(reports) == 30 and others:
            killed.append(others[0])
            os.kill(others[0], signal.SIGKILL)

    build = functools.partial(recipes.build, pause_s=0.05)  # long enough for Ray to bring the actor back
    engine = RayEngine(Request(build, WORKERS, STEPS), wire=wire, on_report=kill)
    outcome = engine.run()
    assert outcome.steps == STEPS and outcome.lost == len(killed) == 1
    assert recipes.digest(outcome.model) == recipes.plain(WORKERS, STEPS)


@pytest.mark.slow
def test_staleness_keeps_its_bound_over_the_wire(cluster: None) -> None:
    reports: list[StepReport] = []
    request = Request(recipes.build, WORKERS, 20, "ssp", 1)
    outcome = RayEngine(request, wire=True, on_report=reports.append).run()
    assert outcome.steps == 20 and {report.batch for report in reports} == set(range(40))
    assert {report.worker for report in reports} == {0, 1}
    assert max(report.staleness_steps for report in reports) <= 1


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="needs ray") as raised:
        RayEngine(Request(recipes.build, 1, 1))
    assert "pip install 'gradbase[ray]'" in raised.value.remedies[0]
