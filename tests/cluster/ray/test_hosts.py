"""Workers on several hosts, which are namespaces of this one. Skipped where those cannot be made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster.ray import host_trials, hosts
from tests.cluster.ray.apart import results_of

LIMIT_S = 500  # a tenth of it on two cores that are free
pytestmark = pytest.mark.timeout(LIMIT_S + 60)


@pytest.mark.slow
def test_hosts_share_a_job_through_strangers_a_cut_and_a_death(tmp_path: Path) -> None:
    """The bits of one process; what a stranger gets is a refusal, and the job waits for a host that is cut off."""
    pytest.importorskip("ray")
    if why := hosts.missing():
        pytest.skip(f"hosts cannot be made here: {why}")
    command = [sys.executable, "-m", host_trials.__name__, str(tmp_path), "trouble"]
    results = results_of(hosts.entered(command), LIMIT_S)
    assert results, f"the trial ended without a result, or not within {LIMIT_S} s"
    result = results[-1]
    assert result["same"] and result["steps"] > 0
    assert len(result["refused"]) == 2 and all(result["refused"])
    assert result["away_s"] >= host_trials.CUT_S and result["workers_lost"] == 1
    assert result["pushed_bytes"] > result["gradient_bytes"] > 0 and result["pulled_bytes"] > 0
