"""Planner rules, in the order in which they apply. Each can be switched off by name; the plan stays correct."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from gradbase.common.errors import UsageError
from gradbase.ir.logical import LogicalPlan
from gradbase.planner.rules.early_update import early_update
from gradbase.planner.rules.reorder import reorder


@dataclass(frozen=True, slots=True)
class Rule:
    """`reorders` gives a new order of operator ids, None for rules that the search itself asks about."""

    name: str
    description: str
    reorders: Callable[[LogicalPlan, list[int]], list[int]] | None = None


RULES: tuple[Rule, ...] = (
    Rule("early_update", "run each parameter update as soon as its gradient is there, so gradients die young",
         early_update),
    Rule("reorder", "run operators that free more than they allocate early, others just before their first use",
         reorder),
    Rule("inplace", "let a result take over the frame of an argument that nobody needs any more"),
    Rule("recompute", "drop a storage between two uses and run its operator again"),
    Rule("page", "write a storage to the page file between two uses and read it back in time"),
    Rule("spill", "keep parameters and optimizer state in the page file, in memory only for their uses"),
)


def chosen_rules(names: Collection[str] | None) -> tuple[Rule, ...]:
    """The rules with these names, in order; all of them for None. Raises UsageError for a name that is none."""
    if names is None:
        return RULES
    unknown = sorted(set(names) - {rule.name for rule in RULES})
    if unknown:
        raise UsageError(
            f"{unknown[0]!r} is not a planner rule", "expected any of: " + ", ".join(rule.name for rule in RULES)
        )
    return tuple(rule for rule in RULES if rule.name in names)
