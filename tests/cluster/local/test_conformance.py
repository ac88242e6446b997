"""The suite that every engine passes, with real processes."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from gradbase.cluster.job import Request
from gradbase.cluster.local import LocalEngine
from gradbase.cluster.steward import StepReport
from gradbase.cluster.testing import Result, Trial, engine_checks
from gradbase.store.machine.notes import Note
from tests.cluster import recipes
from tests.cluster.watched import Watched


class Local:
    """Workers can be killed here. The death of the caller's process, with all machines, is tested from outside."""

    mortal = frozenset(("worker",))

    def run(self, trial: Trial) -> Result:
        job, history = trial.job, list[Note]()
        deaths = [(int(death.share * job.batches), len(death.who)) for death in trial.deaths]
        killed = reports = 0

        def kill(report: StepReport) -> None:
            nonlocal killed, reports
            reports += 1
            while deaths and reports >= deaths[0][0]:
                _, count = deaths.pop(0)
                for pid in [pid for pid in engine.processes() if pid != os.getpid()][:count]:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1

        with tempfile.TemporaryDirectory() as folder:
            store = None if job.durability == "none" else Path(folder) / "store"
            request = Request(
                recipes.build,
                trial.workers,
                job.steps,
                job.consistency,
                job.staleness_steps,
                job.durability,
                store,
                lanes=job.lanes,
                logging=job.logging,
            )
            engine = LocalEngine(request, on_report=kill, note=history.append)
            outcome = engine.run()
        return Result(recipes.digest(outcome.model), killed, history)


CHECKS = {
    name: check
    for name, check in engine_checks().items()
    if "killed" not in name and "die" not in name or "a worker is killed" in name
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_local_engine(name: str) -> None:
    """The check asserts what its name says; that it had something to look at, and killed somebody, is asserted here."""
    engine = Watched(Local())
    CHECKS[name](engine)
    assert engine.all_died_as_planned
