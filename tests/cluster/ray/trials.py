"""`python -m tests.cluster.ray.trials`: every trial of the Ray engine, in one process with one Ray, results as JSON.

A process of its own can be ended when it hangs, with all that Ray has started; and starting Ray costs seconds.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from typing import Any

from gradbase.cluster.job import Request
from gradbase.cluster.ray import RayEngine
from gradbase.cluster.steward import StepReport
from tests.cluster import recipes

WORKERS, STEPS, KILLED_AFTER = 2, 44, 16
STALE_STEPS = 20


def killed(*, wire: bool) -> dict[str, Any]:
    """A bsp job whose actor is killed in its middle."""
    reports: list[StepReport] = []
    victims: list[int] = []

    def kill(report: StepReport) -> None:
        reports.append(report)
        others = [pid for pid in engine.processes() if pid != os.getpid()]
        if len(reports) >= KILLED_AFTER and others and not victims:
            victims.append(others[0])
            os.kill(others[0], signal.SIGKILL)

    build = functools.partial(recipes.build, pause_s=0.05)  # long enough for Ray to bring the actor back
    engine = RayEngine(Request(build, WORKERS, STEPS), wire=wire, on_report=kill)
    outcome = engine.run()
    digest = recipes.digest(outcome.model)
    return {"steps": outcome.steps, "lost": outcome.lost, "killed": len(victims), "digest": digest}


def stale() -> dict[str, Any]:
    """An ssp:1 job over the wire."""
    reports: list[StepReport] = []
    request = Request(recipes.build, WORKERS, STALE_STEPS, "ssp", 1)
    outcome = RayEngine(request, wire=True, on_report=reports.append).run()
    return {
        "steps": outcome.steps,
        "batches": sorted(report.batch for report in reports),
        "workers": sorted({report.worker for report in reports}),
        "staleness_steps": max(report.staleness_steps for report in reports),
    }


def main() -> None:
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    trials = {
        "slab": functools.partial(killed, wire=False),
        "wire": functools.partial(killed, wire=True),
        "stale": stale,
    }
    for name, trial in trials.items():
        print(json.dumps({"trial": name, **trial()}), flush=True)
    ray.shutdown()
    print(json.dumps({"trial": "over"}), flush=True)


if __name__ == "__main__":
    main()
