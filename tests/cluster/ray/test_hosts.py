"""Workers on several hosts, which are namespaces of this one. Skipped where those cannot be made."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.ray import host_trials, hosts

LIMIT_S = 500  # a tenth of it on two cores that are free
pytestmark = pytest.mark.timeout(LIMIT_S + 60)
_ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_hosts_share_a_job_through_strangers_a_cut_and_a_death(tmp_path: Path) -> None:
    """The bits of one process; what a stranger gets is a refusal, and the job waits for a host that is cut off."""
    pytest.importorskip("ray")
    if why := hosts.missing():
        pytest.skip(f"hosts cannot be made here: {why}")
    result = _result("trouble", tmp_path)
    assert result["same"] and result["steps"] > 0
    assert len(result["refused"]) == 2 and all(result["refused"])
    assert result["away_s"] >= host_trials.CUT_S and result["workers_lost"] == 1
    assert result["pushed_bytes"] > result["gradient_bytes"] > 0 and result["pulled_bytes"] > 0


def _result(name: str, folder: Path) -> dict[str, object]:
    """Of one trial. What it has started is gone when this returns, however it ends."""
    path = os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])
    process = subprocess.Popen(
        hosts.entered([sys.executable, "-m", host_trials.__name__, str(folder), name]),
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert lines, f"the trial ended without a result, status {process.returncode}"
    return json.loads(lines[-1])
