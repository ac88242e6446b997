"""The store under every fault at once, in one thread and virtual time. A seed is a run; a failing one fails again.

`python -m gradbase.cluster.simulator --runs 1000000` hunts for a seed that breaks an invariant; with `--compiled` as
machine code, which does the same in half the time.
"""

from __future__ import annotations

from gradbase.cluster.simulator._compiled import compiled_folder
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
    "compiled_folder",
    "draw_plan",
    "hunt",
    "job_of",
]
