"""The plan language: logical and physical plans, costs, their text form and their verifier."""

from gradbase.ir.text import PlanSyntaxError, format_logical, format_physical, parse_logical, parse_physical
from gradbase.ir.verify import PlanError, verify_logical, verify_physical

__all__ = [
    "PlanError",
    "PlanSyntaxError",
    "format_logical",
    "format_physical",
    "parse_logical",
    "parse_physical",
    "verify_logical",
    "verify_physical",
]
