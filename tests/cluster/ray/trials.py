"""`python -m tests.cluster.ray.trials FOLDER [NAME ...]`: trials of the Ray engine, with one Ray, results as JSON.

A process of its own can be ended when it hangs, with all that Ray has started; and starting Ray costs seconds. Without
names it runs all trials, those too that take longer than the test suite has time for, and says which went wrong.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradbase.cluster.job import CodecChoice, Request
from gradbase.cluster.ray import RayEngine
from gradbase.cluster.steward import StepReport, Worker
from gradbase.cluster.testing import Result, Trial, engine_checks
from gradbase.store.machine.notes import Note
from tests.cluster import recipes
from tests.cluster.killing import killed_and_resumed

WORKERS, STEPS, KILLED_AFTER = 2, 44, 16
STALE_STEPS, PLANNED_STEPS, DRIVER_STEPS = 20, 8, 60
CODEC = "int8,*=int8"  # the recipe's tensors are so small that none would go through a codec that does not name it
# Of the suite of all engines, what can be done to this one: the machines die with the caller, as "driver" has it.
CHECKS = tuple(
    name
    for name in engine_checks()
    if "killed" not in name and "die" not in name or "a worker is killed" in name
)


class Actors:
    """The engine, for the suite of all engines. Actors can be killed; the driver is killed from outside."""

    mortal = frozenset(("worker",))

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def run(self, trial: Trial) -> Result:
        job, history = trial.job, list[Note]()
        deaths = [int(death.share * job.batches) for death in trial.deaths]
        killed: list[int] = []
        reports = 0

        def kill(report: StepReport) -> None:
            nonlocal reports
            reports += 1
            others = [pid for pid in engine.processes() if pid != os.getpid()]
            while deaths and reports >= deaths[0] and others:
                deaths.pop(0)
                killed.append(others.pop())
                os.kill(killed[-1], signal.SIGKILL)

        self._count += 1
        request = Request(
            recipes.build,
            trial.workers,
            job.steps,
            job.consistency,
            job.staleness_steps,
            job.durability,
            None if job.durability == "none" else self._folder / str(self._count),
            lanes=job.lanes,
            logging=job.logging,
        )
        engine = RayEngine(request, on_report=kill, note=history.append)
        return Result(recipes.digest(engine.run().model), len(killed), history)


def killed(folder: Path, *, wire: bool, codec: str | None = None) -> dict[str, Any]:
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
    request = Request(build, WORKERS, STEPS, codec=codec or "none")
    engine = RayEngine(request, wire=wire, on_report=kill)
    outcome = engine.run()
    digest = recipes.digest(outcome.model)
    found = {"steps": outcome.steps, "lost": outcome.lost, "killed": len(victims), "digest": digest}
    return found | {"traffic": outcome.traffic}


def stale(folder: Path) -> dict[str, Any]:
    """An ssp:1 job over the wire, which is measured to choose the codec."""
    reports: list[StepReport] = []
    choices: list[CodecChoice] = []
    request = Request(recipes.build, WORKERS, STALE_STEPS, "ssp", 1)
    outcome = RayEngine(request, wire=True, on_report=reports.append, on_codec=choices.append).run()
    return {
        "choices": choices,
        "codec": outcome.codec,
        "steps": outcome.steps,
        "batches": sorted(report.batch for report in reports),
        "workers": sorted({report.worker for report in reports}),
        "staleness_steps": max(report.staleness_steps for report in reports),
    }


def planned(folder: Path) -> dict[str, Any]:
    """Each worker plans its step to a budget, a lossy codec is on the wire, and a store is kept."""
    plans: dict[int, Worker] = {}
    given: dict[str, Any] = {"durability": "wal", "store": folder / "planned", "memory": "200MB"}
    request = Request(recipes.build, WORKERS, PLANNED_STEPS, codec=CODEC, **given)
    outcome = RayEngine(request, wire=True, on_plan=lambda worker: plans.update({worker.slot: worker})).run()
    return {
        "digest": recipes.digest(outcome.model),
        "traffic": outcome.traffic,
        "slots": sorted(plans),
        "peaks_bytes": [worker.measured_peak_bytes for worker in plans.values()],
    }


def driver(folder: Path, *, kind: str, logging: str, codec: str = "") -> dict[str, Any]:
    """The driver is killed, with all machines and its own worker; it is started again on its store."""
    import ray

    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    digest, firsts = killed_and_resumed(kind, folder / f"driver-{kind}", DRIVER_STEPS, (50,), logging, codec, address)
    return {"digest": digest, "firsts": firsts}


def suite(folder: Path) -> dict[str, Any]:
    """Raises AssertionError."""
    for number, name in enumerate(CHECKS):
        engine_checks()[name](Actors(folder / f"suite-{number}"))
    return {"passed": CHECKS}


SHORT: dict[str, Callable[[Path], dict[str, Any]]] = {
    "slab": functools.partial(killed, wire=False),
    "codec": functools.partial(killed, wire=True, codec=CODEC),
    "stale": stale,
    "planned": planned,
    "driver": functools.partial(driver, kind="ray", logging="physical"),
}
LONG: dict[str, Callable[[Path], dict[str, Any]]] = {
    "wire": functools.partial(killed, wire=True),
    "driver of a codec": functools.partial(driver, kind="wire", logging="command", codec=CODEC),
    "suite": suite,
}
DIGESTS = {  # of one process that does the same
    "slab": lambda: recipes.plain(WORKERS, STEPS),
    "wire": lambda: recipes.plain(WORKERS, STEPS),
    "codec": lambda: recipes.plain(WORKERS, STEPS, "int8"),
    "planned": lambda: recipes.plain(WORKERS, PLANNED_STEPS, "int8"),
    "driver": lambda: recipes.plain(WORKERS, DRIVER_STEPS),
    "driver of a codec": lambda: recipes.plain(WORKERS, DRIVER_STEPS, "int8"),
}


def main() -> None:
    import ray

    folder, *wanted = sys.argv[1:]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    wrong = []
    for name in wanted or (SHORT | LONG):
        result = (SHORT | LONG)[name](Path(folder))
        print(json.dumps({"trial": name, **result}), flush=True)
        if name in DIGESTS and result["digest"] != DIGESTS[name]():
            wrong.append(name)
    ray.shutdown()
    print(json.dumps({"trial": "over", "wrong": wrong}), flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
