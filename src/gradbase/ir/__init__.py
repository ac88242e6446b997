"""The plan language: logical and physical plans, costs, their text form and their verifier."""

from gradbase.ir.verify import PlanError, verify_logical, verify_physical

__all__ = ["PlanError", "verify_logical", "verify_physical"]
