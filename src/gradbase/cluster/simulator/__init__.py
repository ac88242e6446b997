"""The store under every fault at once, in one thread and virtual time. A seed is a run; a failing one fails again.

`python -m gradbase.cluster.simulator --runs 1000000` hunts for a seed that breaks an invariant.
"""

from __future__ import annotations

from gradbase.cluster.simulator._engine import SimulatedEngine
from gradbase.cluster.simulator._hunt import Totals, hunt
from gradbase.cluster.simulator._plan import Fault, Plan, draw_plan, job_of
from gradbase.cluster.simulator._simulation import Machines, Outcome, Simulation

__all__ = [
    "Fault",
    "Machines",
    "Outcome",
    "Plan",
    "SimulatedEngine",
    "Simulation",
    "Totals",
    "draw_plan",
    "hunt",
    "job_of",
]
