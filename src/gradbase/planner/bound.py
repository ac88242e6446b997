"""A proven lower bound: no plan with this order of operators within the budget is faster.

Whatever a plan does, every operator runs once, and while the one at position p runs for the first time, its arguments
and results are resident and so is every storage whose gap covers p, unless that gap was given up. Giving up a gap
costs at least the tax of reading it back (and a share of writing it), or its part of its producer's time. It is read
back within its gap, and written since it was used: where a channel is too slow for that, the step gets longer. A
transfer beside an operator holds its frame all the while that operator runs: beside operators that take long, a
storage either makes room or is on its way.
In-place operators get every credit they could have. Dropping the rest of what a plan must obey (the order of
transfers, arguments of recomputations, packing, integrality) only makes the bound smaller, so it stays one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradbase.planner.cover import Item, Transfer, cover, long_positions
from gradbase.planner.problem import INFINITE_US, Gap, Problem, transfer_us


def lower_bound_us(problem: Problem, budget_bytes: int | None) -> float:
    """The bound in µs; inf when the covering problem proves that nothing fits."""
    if budget_bytes is None:
        return problem.total_us
    demand = keep_all_bytes(problem) - problem.capacity_bytes(budget_bytes)
    time_us = position_us(problem)
    long = long_positions(time_us)
    items = [item for gap in problem.gaps if not gap.spill for item in _items(problem, gap, long)]
    for storage in problem.spill_of:
        items += _spilled(problem, storage, len(problem.gaps) + len(items), long)
    return problem.total_us + cover(items, demand, time_us, added=True).cost_us


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


class _Absence(NamedTuple):
    """Where a storage makes room: inclusive positions (none if last < first), from written to read back.

    It is written before the position `written_by` and read after the position `read_after`.
    """

    first: int
    last: int
    written_by: int
    read_after: int


def _absences(after: int, before: int, long: list[int], first: int | None = None) -> Iterator[_Absence]:
    """The ways to be away between uses at `after` and `before`: its transfers run beside some of the long operators.

    Writing is beside the first few of them, reading beside the last few. Beside other operators it counts as away.
    """
    inside = [p for p in long if after < p < before]
    bounds = [after, *inside, before]
    for writing in range(len(inside) + 1):
        begin = bounds[writing] + 1 if writing or first is None else first
        for reading in range(len(inside) + 1 - writing):
            end = bounds[-1 - reading]
            if begin <= end:
                yield _Absence(begin, end - 1, bounds[writing + 1], bounds[-2 - reading])


def _items(problem: Problem, gap: Gap, long: list[int]) -> list[Item]:
    """The ways to give up a gap, at the least that each can cost."""
    first = _first_covered(problem, gap)
    items = []
    if gap.page_us < INFINITE_US and problem.tier is not None:
        gaps = problem.gaps_of[gap.storage]
        out_us = gap.out_us / len(gaps)
        cost = problem.tier.compute_tax * (gap.in_us + out_us)
        used = problem.gaps[gaps[0]].after
        for away in _absences(gap.after, gap.before, long, first):
            if away.last < away.first:
                continue
            moves = (
                Transfer(0, used, away.written_by, out_us),
                Transfer(int(problem.tier.duplex), away.read_after, gap.before, gap.in_us),
            )
            items.append(Item(((away.first, away.last),), gap.nbytes, cost, gap.id, moves))
    if problem.may_recompute(gap.storage, gap.before):
        covered = ((first, gap.before - 1),)
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


def _spilled(problem: Problem, storage: int, group: int, long: list[int]) -> list[Item]:
    """Ways to free a storage that may rest in the page file: each stretch between two uses costs reading it back.

    The stretch around the step's end also costs writing it, if the step changes it. A plan may free any of them alone.
    """
    tier, nbytes, uses = problem.tier, problem.nbytes[storage], problem.uses[storage]
    assert tier is not None
    reading, in_us = int(tier.duplex), transfer_us(tier, nbytes, "in")
    out_us = transfer_us(tier, nbytes, "out") if problem.mutations[storage] else 0.0
    changed = (problem.mutations[storage] or [-1])[0]
    items = []
    for head in _absences(-1, uses[0], long):
        for tail in _absences(uses[-1], problem.end + 1, long):
            if head.first > 0 or tail.last < problem.end:
                continue  # it is in the page file before the step and after it
            around = (head.first, head.last), (tail.first, tail.last)
            moves = (
                Transfer(0, changed, min(tail.written_by, problem.end), out_us),
                Transfer(reading, head.read_after, uses[0], in_us),
            )
            items.append(Item(around, nbytes, tier.compute_tax * (in_us + out_us), group, moves))
    for after, before in zip(uses, uses[1:], strict=False):
        group += 1
        for away in _absences(after, before, long):
            if away.first > after + 1 or away.last < away.first:
                continue  # it need not be written here, or makes no room
            back = Transfer(reading, away.read_after, before, in_us)
            items.append(Item(((away.first, away.last),), nbytes, tier.compute_tax * in_us, group, (back,)))
    return items


def _first_covered(problem: Problem, gap: Gap) -> int:
    """In-place: where a read could be overwritten, giving it up already helps the operator that reads it."""
    if not problem.inplace or gap.after >= problem.end:
        return gap.after + 1
    pairs = problem.logical.operators[problem.order[gap.after]].inplace
    return gap.after if any(read == gap.storage for _, read in pairs) else gap.after + 1
