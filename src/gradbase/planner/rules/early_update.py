"""Rule early_update: run each optimizer update as soon as everything it depends on has run.

Eager PyTorch computes all gradients, then updates all parameters, so every gradient is alive at once. An update
depends on its gradient and on the last reader of its parameter's old value; behind those it may run at once, and the
gradient's memory is free again (optimizer-in-backward).
"""

from __future__ import annotations

from gradbase.ir.logical import LogicalPlan
from gradbase.planner.rules._dependencies import move_after, predecessors, respecting


def early_update(logical: LogicalPlan, order: list[int]) -> list[int]:
    """The order with every update directly behind its last predecessor."""
    before, rank = predecessors(logical), {operator: index for index, operator in enumerate(order)}
    anchor: dict[int, int] = {}
    place: dict[int, float] = {}  # where moved operators come to stand
    for operator in order:
        if logical.operators[operator].phase != "update":
            continue
        anchor[operator] = max(before[operator], key=lambda o: (place.get(o, rank[o]), rank[o]), default=-1)
        place[operator] = place.get(anchor[operator], rank.get(anchor[operator], -1))
    return respecting(before, move_after(order, anchor))
