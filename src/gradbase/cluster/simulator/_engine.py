"""The simulator as an engine like the others: a trial in, its result out."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from gradbase.cluster.simulator._plan import LIMITS, Fault, Plan
from gradbase.cluster.simulator._simulation import Simulation
from gradbase.cluster.testing import Result, Trial
from gradbase.cluster.testing._trials import Kind

RESTART_US = 2_000
CHECKPOINT_US = 1_500
ODD_US = 20_000


class SimulatedEngine:
    """Every process is one that can die. `odd`: the share of messages that are lost, doubled or late meanwhile. No
    two runs have the same delays.
    """

    mortal: frozenset[Kind] = frozenset(("worker", "shard", "coordinator"))

    def __init__(self, seed: int = 0, odd: float = 0.0) -> None:
        self._seed = seed
        self._odd = odd

    def run(self, trial: Trial) -> Result:
        self._seed += 1
        plan = self._plan(trial)
        if trial.deaths:
            whole_us = Simulation(plan).run().virtual_us
            faults = tuple(Fault("crash", int(death.share * whole_us), RESTART_US, death.who) for death in trial.deaths)
            plan = replace(plan, faults=faults, calm_us=max(whole_us, plan.calm_us))
        simulation = Simulation(plan)
        outcome = simulation.run()
        assert not outcome.violations, [str(violation) for violation in outcome.violations]
        digest = sha256(repr(simulation.values()).encode()).hexdigest()
        return Result(digest, simulation.killed, simulation.history)

    def _plan(self, trial: Trial) -> Plan:
        job = replace(trial.job, limits=LIMITS, workers_max=trial.job.lanes + 2)
        checkpoint_us = CHECKPOINT_US if job.durability != "none" else 0
        calm_us = ODD_US if self._odd else 0
        return Plan(self._seed, job, trial.workers, 1, self._odd, 0.0, calm_us, checkpoint_us, ())
