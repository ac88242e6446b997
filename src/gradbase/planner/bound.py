"""A proven lower bound: no plan with this order of operators within the budget is faster.

Whatever a plan does, every operator runs once, and while the one at position p runs for the first time, its arguments
and results are resident and so is every storage whose gap covers p, unless that gap was given up. Giving up a gap
costs at least the tax of reading it back (and a share of writing it), or its part of its producer's time. It is read
back within its gap, and written since it was made: where a channel is too slow for that, the step gets longer.
In-place operators get every credit they could have. Dropping the rest of what a plan must obey (the order of
transfers, arguments of recomputations, packing, integrality) only makes the bound smaller, so it stays one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradbase.planner.cover import Item, Transfer, cover
from gradbase.planner.problem import INFINITE_US, Gap, Problem, transfer_us


def lower_bound_us(problem: Problem, budget_bytes: int | None) -> float:
    """The bound in µs; inf when the covering problem proves that nothing fits."""
    if budget_bytes is None:
        return problem.total_us
    demand = keep_all_bytes(problem) - problem.capacity_bytes(budget_bytes)
    items = [item for gap in problem.gaps if not gap.spill for item in _items(problem, gap)]
    for storage in problem.spill_of:
        items += _spilled(problem, storage, len(problem.gaps) + len(items))
    return problem.total_us + cover(items, demand, position_us(problem), added=True).cost_us


def position_us(problem: Problem) -> NDArray[np.float64]:
    """Computing time of each position in µs; the end takes none."""
    return np.array([problem.time_us[operator] for operator in problem.order] + [0.0])


def keep_all_bytes(problem: Problem) -> NDArray[np.float64]:
    """Bytes that must be live at each position when no gap is given up and every in-place operator works in place."""
    change = np.zeros(problem.end + 2)
    for storage, uses in enumerate(problem.uses):
        if problem.arena[storage] and uses:
            change[uses[0]] += problem.nbytes[storage]
            change[uses[-1] + 1] -= problem.nbytes[storage]
    live = np.cumsum(change)[: problem.end + 1]
    live += sum(problem.nbytes[storage] for storage in problem.spill_of)
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


def _items(problem: Problem, gap: Gap) -> list[Item]:
    """The ways to give up a gap, at the least that each can cost."""
    covered = ((_first_covered(problem, gap), gap.before - 1),)
    items = []
    if gap.page_us < INFINITE_US and problem.tier is not None:
        out_us = gap.out_us / len(problem.gaps_of[gap.storage])
        cost = problem.tier.compute_tax * (gap.in_us + out_us)
        moves = transfers(problem, gap, problem.uses[gap.storage][0], out_us)
        items.append(Item(covered, gap.nbytes, cost, gap.id, moves))
    if problem.may_recompute(gap.storage, gap.before):
        items.append(Item(covered, gap.nbytes, _share_us(problem, gap.storage), gap.id))
    return items


def _share_us(problem: Problem, storage: int) -> float:
    """A storage's part in a run of its producer, which may bring back all that it writes: by their bytes.

    Any parts that sum to the whole run give a bound; with these it does not pay to bring back a large result, and to
    charge a small one for it.
    """
    operator = problem.producer[storage]
    written = sum(problem.nbytes[other] for other in problem.writes[operator])
    return problem.time_us[operator] * problem.nbytes[storage] / written if written else 0.0


def transfers(problem: Problem, gap: Gap, written_after: int, out_us: float) -> tuple[Transfer, ...]:
    """What paging a gap puts on the channels: `out_us` of writing from `written_after` on, then reading it back."""
    assert problem.tier is not None
    reading = int(problem.tier.duplex)
    return Transfer(0, written_after, gap.before, out_us), Transfer(reading, gap.after, gap.before, gap.in_us)


def _spilled(problem: Problem, storage: int, group: int) -> list[Item]:
    """Ways to free a storage that may rest in the page file: each stretch between two uses costs reading it back.

    The stretch around the step's end also costs writing it, if the step changes it. A plan may free any of them alone.
    """
    tier, nbytes, uses = problem.tier, problem.nbytes[storage], problem.uses[storage]
    assert tier is not None
    reading, in_us = int(tier.duplex), transfer_us(tier, nbytes, "in")
    out_us = transfer_us(tier, nbytes, "out") if problem.mutations[storage] else 0.0
    around = (0, uses[0] - 1), (uses[-1] + 1, problem.end)
    written = Transfer(0, (problem.mutations[storage] or [-1])[0], problem.end, out_us)
    moves = (written, Transfer(reading, -1, uses[0], in_us))
    items = [Item(around, nbytes, tier.compute_tax * (in_us + out_us), group, moves)]
    for after, before in zip(uses, uses[1:], strict=False):
        back = Transfer(reading, after, before, in_us)
        group += 1
        items.append(Item(((after + 1, before - 1),), nbytes, tier.compute_tax * in_us, group, (back,)))
    return items


def _first_covered(problem: Problem, gap: Gap) -> int:
    """In-place: where a read could be overwritten, giving it up already helps the operator that reads it."""
    if not problem.inplace or gap.after >= problem.end:
        return gap.after + 1
    pairs = problem.logical.operators[problem.order[gap.after]].inplace
    return gap.after if any(read == gap.storage for _, read in pairs) else gap.after + 1
