"""The Ray engine: actors that share the slab, and actors that reach it only over the wire, killed and restarted."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from gradbase.cluster.job import Request
from gradbase.cluster.ray import RayEngine
from gradbase.common.errors import UsageError
from tests.cluster import recipes
from tests.cluster.ray import trials
from tests.cluster.ray.apart import results_of

LIMIT_S = 500  # of all trials together; they take a third of it on two busy cores
pytestmark = pytest.mark.timeout(LIMIT_S + 60)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What every trial came to. One that hangs is ended with everything it has started, and has no result."""
    pytest.importorskip("ray")
    stores = str(tmp_path_factory.mktemp("stores"))
    command = [sys.executable, "-m", trials.__name__, stores, *trials.SHORT]
    return {result["trial"]: result for result in results_of(command, LIMIT_S)}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["slab", "codec"])
def test_an_actor_that_is_killed_is_restarted_and_changes_nothing(results: dict[str, Any], way: str) -> None:
    """Over the wire with what a lossy codec leaves out, which goes with the actor: the job goes back."""
    result = results[way]
    assert result["steps"] == trials.STEPS and result["lost"] == result["killed"] == 1
    assert result["digest"] == trials.DIGESTS[way]()
    pushed_nbytes, pulled_nbytes, gradient_nbytes = result["traffic"]
    assert (way == "slab") == (pushed_nbytes == pulled_nbytes == gradient_nbytes == 0)


@pytest.mark.slow
def test_staleness_keeps_its_bound_over_the_wire(results: dict[str, Any]) -> None:
    result = results["stale"]
    assert result["steps"] == trials.STALE_STEPS
    assert result["batches"] == list(range(trials.WORKERS * trials.STALE_STEPS))
    assert result["workers"] == [0, 1] and result["staleness_steps"] <= 1


@pytest.mark.slow
def test_the_link_is_measured_where_there_is_one_and_the_choice_is_told(results: dict[str, Any]) -> None:
    ((codec, reason),) = results["stale"]["choices"]
    assert codec == results["stale"]["codec"]
    assert "/s" in reason and all(name in reason for name in {"none", "bf16", "int8", "topk:0.01"} - {codec})


@pytest.mark.slow
def test_budgets_codecs_and_stores_go_together(results: dict[str, Any]) -> None:
    result = results["planned"]
    assert result["slots"] == [0, 1] and all(0 < nbytes <= 200_000_000 for nbytes in result["peaks_bytes"])
    assert result["digest"] == trials.DIGESTS["planned"]()
    pushed_nbytes, pulled_nbytes, gradient_nbytes = result["traffic"]
    assert pushed_nbytes > 0 and 0 < gradient_nbytes < pulled_nbytes


@pytest.mark.slow
def test_the_driver_is_killed_and_the_same_bits_come_out(results: dict[str, Any]) -> None:
    result = results["driver"]
    assert result["digest"] == trials.DIGESTS["driver"]()
    assert result["firsts"][0] == 1 < result["firsts"][1]  # what was logged is not computed again


@pytest.mark.slow
def test_nothing_hangs_when_all_is_over(results: dict[str, Any]) -> None:
    assert "over" in results, f"no end within {LIMIT_S} s; done: {', '.join(results)}"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="needs ray") as raised:
        RayEngine(Request(recipes.build, 1, 1))
    assert "pip install 'gradbase[ray]'" in raised.value.remedies[0]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_told_at_once(scheme: str) -> None:
    ray = pytest.importorskip("ray")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"no Ray cluster at {address} can be joined: .*refused"):
            RayEngine(Request(recipes.build, 2, 1), address=address).run()
    assert not ray.is_initialized()
