"""The Ray engine: actors that share the slab, and actors that reach it only over the wire, killed and restarted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradbase.cluster.job import Request
from gradbase.cluster.ray import RayEngine
from gradbase.common.errors import UsageError
from tests.cluster import recipes
from tests.cluster.ray import trials

LIMIT_S = 150  # of all trials together; they take a third of it on two busy cores
_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, dict[str, Any]]]:
    """What every trial came to. One that hangs is ended with everything it has started, and has no result."""
    pytest.importorskip("ray")
    path = os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.ray.trials"],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        _end(process)
        output, _ = process.communicate()
    finally:
        _end(process)
    lines = (json.loads(line) for line in output.splitlines() if line.startswith("{"))  # Ray prints there too
    yield {line["trial"]: line for line in lines}


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["slab", "wire"])
def test_an_actor_that_is_killed_is_restarted_and_changes_nothing(results: dict[str, Any], way: str) -> None:
    result = results[way]
    assert result["steps"] == trials.STEPS and result["lost"] == result["killed"] == 1
    assert result["digest"] == recipes.plain(trials.WORKERS, trials.STEPS)


@pytest.mark.slow
def test_staleness_keeps_its_bound_over_the_wire(results: dict[str, Any]) -> None:
    result = results["stale"]
    assert result["steps"] == trials.STALE_STEPS
    assert result["batches"] == list(range(trials.WORKERS * trials.STALE_STEPS))
    assert result["workers"] == [0, 1] and result["staleness_steps"] <= 1


@pytest.mark.slow
def test_nothing_hangs_when_all_is_over(results: dict[str, Any]) -> None:
    assert "over" in results, f"no end within {LIMIT_S} s; done: {', '.join(results)}"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="needs ray") as raised:
        RayEngine(Request(recipes.build, 1, 1))
    assert "pip install 'gradbase[ray]'" in raised.value.remedies[0]
