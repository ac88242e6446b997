"""Many runs, one after the other, and what came of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from zlib import crc32

from gradbase.cluster.simulator._plan import draw_plan
from gradbase.cluster.simulator._simulation import Machines, Outcome, Simulation
from gradbase.store.machine import Job

COLLECT_EVERY_RUNS = 2_000  # runs leave no cycles behind but where they fail; looking for some takes long


@dataclass
class Totals:
    """Of all runs so far. `failed` has the outcomes with violations; `cpu_s` is this process's own time. Two hunts with
    the same `outcomes_crc32` had the same outcome of every seed.
    """

    runs: int = 0
    events: int = 0
    messages: int = 0
    terms: int = 0
    virtual_us: int = 0
    outcomes_crc32: int = 0
    cpu_s: float = 0.0
    failed: list[Outcome] = field(default_factory=list)

    @property
    def events_per_cpu_s(self) -> float:
        return self.events / self.cpu_s if self.cpu_s else 0.0

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.events += outcome.events
        self.messages += outcome.messages
        self.terms += outcome.terms
        self.virtual_us += outcome.virtual_us
        self.outcomes_crc32 = crc32(_in_short(outcome).encode(), self.outcomes_crc32)
        if outcome.violations:
            self.failed.append(outcome)


def _in_short(outcome: Outcome) -> str:
    violations = [str(violation) for violation in outcome.violations]
    numbers = (outcome.plan.seed, outcome.events, outcome.messages, outcome.virtual_us, outcome.terms)
    return f"{numbers} {violations}"


def hunt(
    seeds: Iterable[int],
    machines: Machines | None = None,
    job: Job | None = None,
    failures_max: int = 1,
    on_run: Callable[[Totals], None] | None = None,
) -> Totals:
    """Run these seeds until `failures_max` of them broke an invariant. `job`: for all runs; else every seed draws its
    own.
    """
    totals = Totals()
    start_s = time.process_time()
    with _own_garbage():
        for seed in seeds:
            totals.add(Simulation(draw_plan(seed, job), machines).run())
            totals.cpu_s = time.process_time() - start_s
            if on_run is not None:
                on_run(totals)
            if len(totals.failed) >= failures_max:
                break
            if totals.runs % COLLECT_EVERY_RUNS == 0:
                gc.collect()
    return totals


@contextmanager
def _own_garbage() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
