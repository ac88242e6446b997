"""The store under every fault at once, in one thread and virtual time. A seed is a run; a failing one fails again."""

from __future__ import annotations

from gradbase.cluster.simulator._plan import Fault, Plan, draw_plan
from gradbase.cluster.simulator._simulation import Machines, Outcome, Simulation

__all__ = ["Fault", "Machines", "Outcome", "Plan", "Simulation", "draw_plan"]
