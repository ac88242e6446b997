"""The planner: order of operators, keep / recompute / page for every storage, addresses, and a proven lower bound."""

from gradbase.planner.api import CurvePoint, curve, least_bytes, lower_bound, plan
from gradbase.planner.rules import RULES, Rule

__all__ = ["RULES", "CurvePoint", "Rule", "curve", "least_bytes", "lower_bound", "plan"]
