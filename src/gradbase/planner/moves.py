"""What a plan that does not fit yet can still give up, as rows of arrays.

A move frees `nbytes` at positions `low` .. `high` and costs `cost_us`:
 - give up a gap that is kept;
 - stop keeping a storage that another recomputation brought back early ("lone");
 - start a page-in later than the prefetch would, and wait for it;
 - wait for a page-out sooner.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.planner.problem import INFINITE_US, Problem
from gradbase.planner.transfers import Timeline
from gradbase.planner.walk import KEEP, PAGE, RECOMPUTE, Choice, Walk, together

Floats = NDArray[np.float64]

GIVE_UP, LONE, LATE_IN, HARD_OUT = range(4)


@dataclass(slots=True)
class Moves:
    """Rows of the table. `key` is a gap; the last two kinds only free the stretch of excess a move is made for."""

    problem: Problem
    kind: NDArray[np.int64]
    key: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    nbytes: Floats
    cost_us: Floats
    action: NDArray[np.int64]
    position: int = 0  # what the move was chosen for

    def cheapest(self, excess: Floats, position: int) -> int | None:
        """The row with the least cost per excess byte that it removes, among those that help at `position`."""
        rows = np.nonzero((self.low <= position) & (self.high >= position) & (self.nbytes > 0))[0]
        if not len(rows):
            return None
        count = np.concatenate([[0.0], np.cumsum(excess > 0)])
        area = np.concatenate([[0.0], np.cumsum(excess)])
        low, high = self.low[rows], self.high[rows] + 1
        useful = np.minimum((count[high] - count[low]) * self.nbytes[rows], area[high] - area[low])
        self.position = position
        return int(rows[np.argmin(self.cost_us[rows] / useful)])

    def make(self, row: int, choice: Choice, excess: Floats) -> None:
        """Write the move into the choice, and subtract from the excess what it frees."""
        gap, kind = int(self.key[row]), int(self.kind[row])
        if kind == GIVE_UP:
            for member in together(self.problem, gap):
                choice.action[member] = int(self.action[row])
        elif kind == LONE:
            choice.lone.add(gap)
        elif kind == LATE_IN:
            self.high[row] = min(int(self.high[row]), _stretch(excess, self.position)[1])
            choice.early_in[gap] = max(choice.early_in.get(gap, 0), int(self.high[row]) + 1)
        else:
            self.low[row] = max(int(self.low[row]), _stretch(excess, self.position)[0])
            choice.hard_out[gap] = min(choice.hard_out.get(gap, self.problem.end), int(self.low[row]))
        self.lower(excess, row)

    def lower(self, excess: Floats, row: int) -> None:
        """Subtract what the move frees, and take it out of the table."""
        inside = excess[self.low[row] : self.high[row] + 1]
        np.maximum(inside - self.nbytes[row], 0.0, out=inside)
        self.nbytes[row] = 0.0
        if self.kind[row] == GIVE_UP and self.problem.gaps[int(self.key[row])].spill:
            self.lower_the_rest(excess, row)

    def lower_the_rest(self, excess: Floats, row: int) -> None:
        """A spill has a row for every stretch between its visits."""
        members = together(self.problem, int(self.key[row]))
        for other in np.nonzero(np.isin(self.key, members) & (self.kind == GIVE_UP) & (self.nbytes > 0))[0]:
            inside = excess[self.low[other] : self.high[other] + 1]
            np.maximum(inside - self.nbytes[other], 0.0, out=inside)
            self.nbytes[other] = 0.0


def _stretch(excess: Floats, position: int) -> tuple[int, int]:
    """The positions around one with excess that have excess too."""
    fine = np.flatnonzero(excess <= 0)
    at = int(np.searchsorted(fine, position))
    return int(fine[at - 1]) + 1 if at else 0, int(fine[at]) - 1 if at < len(fine) else len(excess) - 1


def possible_moves(
    problem: Problem, choice: Choice, timeline: Timeline, page_us: Floats, recompute_us: Floats
) -> Moves:
    """The table for a simulated choice; `page_us` and `recompute_us` are estimates per gap."""
    rows = _kept_gaps(problem, choice, page_us, recompute_us)
    rows += _waiting(problem, choice, timeline, page_us, recompute_us)
    rows += _prefetches(problem, timeline)
    rows += _page_outs(problem, timeline)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 7)
    kind, key, low, high = (table[:, i].astype(np.int64) for i in range(4))
    return Moves(problem, kind, key, low, high, table[:, 4], table[:, 5], table[:, 6].astype(np.int64))


Row = tuple[int, int, int, int, float, float, int]


def _kept_gaps(problem: Problem, choice: Choice, page_us: Floats, recompute_us: Floats) -> list[Row]:
    rows: list[Row] = []
    pages, recomputes = page_us.tolist(), recompute_us.tolist()
    for gap in problem.gaps:
        cost = min(sum(pages[g] for g in together(problem, gap.id)), recomputes[gap.id])
        if choice.action[gap.id] != KEEP or cost == INFINITE_US:
            continue
        action = RECOMPUTE if recomputes[gap.id] <= pages[gap.id] else PAGE
        spans = [(low, high) for low, high in gap.spans(problem.end) if low <= high]
        rows += [(GIVE_UP, gap.id, low, high, gap.nbytes, cost, action) for low, high in spans]
    return rows


def _waiting(
    problem: Problem, choice: Choice, timeline: Timeline, page_us: Floats, recompute_us: Floats
) -> list[Row]:
    walk, rows = timeline.walk, list[Row]()
    for life in walk.stays:
        if life.origin == "compute" or life.gap < 0 or life.gap in choice.lone:
            continue
        gap = problem.gaps[life.gap]
        # In the position that brought it back it is free as soon as the recomputation is done.
        low = position_of(walk, life.first if life.origin == "page-in" else life.born)
        if not gap.spill and low < gap.before and life.last >= walk.first_run[gap.before]:
            paged = choice.action[gap.id] == PAGE
            cost = problem.tier.compute_tax * gap.in_us if paged and problem.tier else float(recompute_us[gap.id])
            rows.append((LONE, gap.id, low, gap.before - 1, gap.nbytes, cost, 0))
    return rows


def _prefetches(problem: Problem, timeline: Timeline) -> list[Row]:
    """Starting a page-in one position later costs what it no longer overlaps; estimated by the whole transfer."""
    walk, rows = timeline.walk, list[Row]()
    for stay, slot in timeline.in_slot.items():
        life = walk.stays[stay]
        low, high = position_of(walk, slot), position_of(walk, life.first) - 1
        if low <= high and life.gap >= 0:
            gap = problem.gaps[life.gap]
            rows.append((LATE_IN, gap.id, low, high, gap.nbytes, gap.in_us, 0))
    return rows


def _page_outs(problem: Problem, timeline: Timeline) -> list[Row]:
    walk, rows = timeline.walk, list[Row]()
    for stay, slot in timeline.out_slot.items():
        life = walk.stays[stay]
        # An await in a position's first slot ends before that position allocates anything.
        low, high = position_of(walk, life.last) + 1, position_of(walk, slot - 1)
        if low <= high:
            gap = problem.gaps[life.next_gap]
            rows.append((HARD_OUT, gap.id, low, high, gap.nbytes, gap.out_us, 0))
    return rows


def position_of(walk: Walk, run: int) -> int:
    """The position a run belongs to; the end's for what comes after the last."""
    return bisect_right(walk.first_run, run) - 1
