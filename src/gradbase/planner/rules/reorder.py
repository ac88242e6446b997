"""Rule reorder: shorten lives without looking at the budget.

An operator that frees more than it allocates moves up behind the last operator it depends on, or that reads what it
frees. An operator whose arguments stay alive anyway moves down to just before its result is first used. Both only
ever shorten lives, the idea of order rewriting in OLLA and ROAM without their solvers.
"""

from __future__ import annotations

from gradbase.ir.logical import LogicalPlan, Operator
from gradbase.planner.rules._dependencies import (
    move_after,
    move_before,
    predecessors,
    readers_of,
    respecting,
    successors,
)


def reorder(logical: LogicalPlan, order: list[int]) -> list[int]:
    """The order with eager consumers hoisted, then early producers sunk; the old one where that is no better."""
    for change in (_hoist, _sink):
        changed = change(logical, order)
        if _live(logical, changed) <= _live(logical, order):
            order = changed
    return order


def _hoist(logical: LogicalPlan, order: list[int]) -> list[int]:
    before, readers = predecessors(logical), readers_of(logical)
    rank = {operator: index for index, operator in enumerate(order)}
    anchor: dict[int, int] = {}
    place: dict[int, float] = {}
    for operator in order:
        if logical.operators[operator].phase == "update":
            continue  # these are the business of early_update
        dies = _dying(logical, logical.operators[operator], readers, rank)
        if _bytes(logical, dies) <= _bytes(logical, logical.operators[operator].writes):
            continue
        behind = before[operator] | {r for s in dies for r in readers[s]}
        behind.discard(operator)
        last = max(behind, key=lambda o: (place.get(o, rank[o]), rank[o]), default=-1)
        if last >= 0 and place.get(last, rank[last]) < rank[operator] - 1:
            anchor[operator] = last
            place[operator] = place.get(last, rank[last])
    return respecting(before, move_after(order, anchor))


def _dying(logical: LogicalPlan, operator: Operator, readers: list[list[int]], rank: dict[int, int]) -> list[int]:
    """Arena storages that this operator is the last to read."""
    return [
        s
        for s in set(operator.reads)
        if not logical.storages[s].external
        and s not in logical.results
        and all(rank[r] <= rank[operator.id] for r in readers[s])
    ]


def _sink(logical: LogicalPlan, order: list[int]) -> list[int]:
    before, readers = predecessors(logical), readers_of(logical)
    after = successors(before)
    rank = {operator: index for index, operator in enumerate(order)}
    anchor: dict[int, int] = {}
    place: dict[int, float] = {}
    for operator in reversed(order):
        if not after[operator]:
            continue
        first = min(after[operator], key=lambda o: (place.get(o, rank[o]), rank[o]))
        until = place.get(first, rank[first])
        waits = any(
            not logical.storages[s].external and all(rank[r] < until for r in readers[s] if r != operator)
            for s in logical.operators[operator].reads
        )
        if not waits and until > rank[operator] + 1:
            anchor[operator] = first
            place[operator] = until
    return respecting(before, move_before(order, anchor))


def _bytes(logical: LogicalPlan, storages: tuple[int, ...] | list[int]) -> int:
    return sum(logical.storages[s].nbytes for s in storages)


def _live(logical: LogicalPlan, order: list[int]) -> tuple[int, int]:
    """Peak of live bytes, and their sum over the order."""
    rank = {operator: index for index, operator in enumerate(order)}
    change = [0] * (len(order) + 2)
    first, last = _spans(logical, rank)
    for storage in logical.storages:
        if not storage.external and storage.id in first:
            change[first[storage.id]] += storage.nbytes
            change[last[storage.id] + 1] -= storage.nbytes
    peak = total = live = 0
    for delta in change:
        live += delta
        peak, total = max(peak, live), total + live
    return peak, total


def _spans(logical: LogicalPlan, rank: dict[int, int]) -> tuple[dict[int, int], dict[int, int]]:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for operator in logical.operators:
        for storage in (*operator.reads, *operator.writes):
            first[storage] = min(first.get(storage, len(rank)), rank[operator.id])
            last[storage] = max(last.get(storage, 0), rank[operator.id])
    for storage in logical.results:
        last[storage] = len(rank)
    return first, last
