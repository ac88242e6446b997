"""A proven lower bound: no plan with this order of operators within the budget is faster.

Whatever a plan does, every operator runs once, and while the one at position p runs for the first time, its arguments
and results are resident and so is every storage whose gap covers p, unless that gap was given up. Giving up a gap
costs at least the tax of reading it back (and a share of writing it), or a share of its producer's time. In-place
operators get every credit they could have. Dropping the rest of what a plan must obey (stalls, arguments of
recomputations, packing, integrality) only makes the bound smaller, so it stays one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradbase.planner.cover import Item, cover
from gradbase.planner.problem import Gap, Problem


def lower_bound_us(problem: Problem, budget_bytes: int | None) -> float:
    """The bound in µs; inf when the covering problem proves that nothing fits."""
    if budget_bytes is None:
        return problem.total_us
    demand = keep_all_bytes(problem) - problem.capacity_bytes(budget_bytes)
    items = [i for gap in problem.gaps if (i := _item(problem, gap)) is not None]
    return problem.total_us + cover(items, demand).cost_us


def keep_all_bytes(problem: Problem) -> NDArray[np.float64]:
    """Bytes that must be live at each position when no gap is given up and every in-place operator works in place."""
    change = np.zeros(problem.end + 2)
    for storage, uses in enumerate(problem.uses):
        if problem.arena[storage] and uses:
            change[uses[0]] += problem.nbytes[storage]
            change[uses[-1] + 1] -= problem.nbytes[storage]
    live = np.cumsum(change)[: problem.end + 1]
    live += sum(problem.gaps[g].nbytes for g in problem.spill_of.values())
    for position, (_, nbytes, later) in _inplace_credit(problem):
        if not later:
            live[position] -= nbytes
    return live


def _inplace_credit(problem: Problem) -> list[tuple[int, tuple[int, int, bool]]]:
    """(position, (read, bytes, whether the read is used later)) for one pair of every written storage, the best one."""
    credit = []
    for operator in problem.logical.operators if problem.inplace else ():
        position = problem.position[operator.id]
        by_write: dict[int, tuple[bool, int]] = {}
        for written, read in operator.inplace:
            if problem.arena[read] and problem.arena[written]:
                option = (problem.uses[read][-1] > position, read)
                by_write[written] = min(by_write.get(written, option), option)
        credit += [(position, (read, problem.nbytes[w], later)) for w, (later, read) in by_write.items()]
    return credit


def _item(problem: Problem, gap: Gap) -> Item | None:
    storage = problem.producer[gap.storage]
    if gap.spill:
        return Item(((0, gap.after - 1), (gap.after + 1, problem.end)), gap.nbytes, gap.page_us, gap.id)
    costs = []
    if problem.tier is not None and gap.page_us < float("inf"):
        tax, gaps = problem.tier.compute_tax, len(problem.gaps_of[gap.storage])
        costs.append(tax * (gap.in_us + gap.out_us / gaps))
    if problem.may_recompute(gap.storage, gap.before):
        costs.append(problem.time_us[storage] / len(problem.writes[storage]))
    if not costs:
        return None
    return Item(((_first_covered(problem, gap), gap.before - 1),), gap.nbytes, min(costs), gap.id)


def _first_covered(problem: Problem, gap: Gap) -> int:
    """In-place: where a read could be overwritten, giving it up already helps the operator that reads it."""
    if not problem.inplace or gap.after >= problem.end:
        return gap.after + 1
    pairs = problem.logical.operators[problem.order[gap.after]].inplace
    return gap.after if any(read == gap.storage for _, read in pairs) else gap.after + 1
