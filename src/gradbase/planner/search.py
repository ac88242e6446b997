"""The search: a choice for every gap so that the simulated plan fits, and costs as little time as it finds.

Start from the covering problem's solution, then repair on the simulated plan: give up what frees most excess bytes
per µs until nothing exceeds the target, take back what turned out not to be needed, pack, and tighten the target by
what packing wasted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.planner.bound import keep_all_bytes
from gradbase.planner.cover import Item, cover
from gradbase.planner.pack import pack
from gradbase.planner.problem import INFINITE_US, Gap, Problem
from gradbase.planner.transfers import Timeline, lay_out
from gradbase.planner.walk import KEEP, PAGE, RECOMPUTE, Choice, DeadEnd, Walk, walk_through

_ROUNDS = 60


@dataclass(slots=True)
class Candidate:
    """A choice, its simulation and, once packed, its addresses. `total_bytes` counts state that was not spilled."""

    choice: Choice
    timeline: Timeline
    kept_state_bytes: int
    offsets: list[int]
    arena_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.arena_bytes + self.kept_state_bytes


@dataclass(slots=True)
class Deadline:
    """Ends a search early. Rounds end most searches, so that a plan rarely depends on the clock."""

    until: float
    clock: Callable[[], float] = time.monotonic

    def passed(self) -> bool:
        return self.clock() > self.until


class Search:
    """One budget's search. `capacity_bytes` is what arena and unspilled state may take together."""

    def __init__(self, problem: Problem, capacity_bytes: int, deadline: Deadline) -> None:
        self.problem, self.capacity, self.deadline = problem, capacity_bytes, deadline
        self.banned: set[int] = set()  # gaps that may not be recomputed
        self.low = np.array([0 if g.spill else g.after + 1 for g in problem.gaps], dtype=np.int64)
        self.high = np.array([problem.end if g.spill else g.before - 1 for g in problem.gaps], dtype=np.int64)
        self.nbytes = np.array([g.nbytes for g in problem.gaps], dtype=np.float64)
        self.page_us = np.array([g.page_us for g in problem.gaps])
        self.recompute_us = np.array([g.recompute_us for g in problem.gaps])
        self.best: Candidate | None = None
        self.least: Candidate | None = None

    def run(self) -> Candidate | None:
        """The fastest candidate found that fits, or None."""
        target = float(self.capacity)
        choice = self.first_choice(target)
        for _ in range(6):
            choice, timeline = self.repair(choice, target)
            candidate = self.packed(choice, timeline)
            self.note(candidate)
            if self.fits(timeline, choice, target):
                choice, timeline = self.take_back(choice, timeline, target)
                candidate = self.packed(choice, timeline)
                self.note(candidate)
            waste = candidate.total_bytes - self.capacity
            if waste <= 0 or self.deadline.passed() or not self.fits(timeline, choice, target):
                break
            target -= waste
        return self.best

    def keep_everything(self) -> Candidate:
        """The candidate that gives up nothing."""
        choice = Choice([KEEP] * len(self.problem.gaps))
        timeline = self.build(choice, float(self.capacity))
        state = self.kept_state(choice)
        offsets, arena = pack_timeline(self.problem, timeline, 0)
        return Candidate(choice, timeline, state, offsets, arena)

    def note(self, candidate: Candidate) -> None:
        if self.least is None or candidate.total_bytes < self.least.total_bytes:
            self.least = candidate
        if candidate.total_bytes <= self.capacity and (
            self.best is None or candidate.timeline.time_us < self.best.timeline.time_us
        ):
            self.best = candidate

    # -- building -----------------------------------------------------------------------------------------------

    def build(self, choice: Choice, target: float) -> Timeline:
        """Walk and simulate; gaps that cannot be recomputed after all are paged or kept instead."""
        choice.room_bytes = self.room(choice, target)
        while True:
            try:
                walk = walk_through(self.problem, choice)
            except DeadEnd as dead:
                self.give_in(choice, dead)
            else:
                return lay_out(self.problem, choice, walk)

    def give_in(self, choice: Choice, dead: DeadEnd) -> None:
        gap = dead.gap
        assert choice.action[gap] == RECOMPUTE, "only a recomputation can reach a dead end"
        self.banned.add(gap)
        self.recompute_us[gap] = INFINITE_US
        choice.action[gap] = PAGE if self.page_us[gap] < INFINITE_US else KEEP

    def room(self, choice: Choice, target: float) -> NDArray[np.float64]:
        """Bytes free at each position when only what the choice keeps is live."""
        live = keep_all_bytes(self.problem)
        change = np.zeros(len(live) + 1)
        for gap in self.problem.gaps:
            if choice.action[gap.id] == KEEP:
                continue
            if gap.spill:
                live -= gap.nbytes
                live[gap.after] += gap.nbytes
            else:
                change[gap.after + 1] -= gap.nbytes
                change[gap.before] += gap.nbytes
        room: NDArray[np.float64] = target - live - np.cumsum(change)[: len(live)]
        return room

    def kept_state(self, choice: Choice) -> int:
        return sum(self.problem.gaps[g].nbytes for g in self.problem.spill_of.values() if choice.action[g] == KEEP)

    def excess(self, timeline: Timeline, choice: Choice, target: float) -> NDArray[np.float64]:
        return timeline.peak_bytes + float(self.kept_state(choice)) - target

    def fits(self, timeline: Timeline, choice: Choice, target: float) -> bool:
        return bool(self.excess(timeline, choice, target).max() <= 0)

    def packed(self, choice: Choice, timeline: Timeline) -> Candidate:
        state = self.kept_state(choice)
        offsets, arena = pack_timeline(self.problem, timeline, self.capacity - state)
        return Candidate(choice.copy(), timeline, state, offsets, arena)

    # -- the start ----------------------------------------------------------------------------------------------

    def first_choice(self, target: float) -> Choice:
        """Gaps that the relaxed covering problem gives up for more than half."""
        demand = keep_all_bytes(self.problem) - target
        items = [i for gap in self.problem.gaps for i in self.items(gap)]
        solution = cover(items, demand)
        choice = Choice([KEEP] * len(self.problem.gaps))
        if solution.cost_us == INFINITE_US:
            return choice
        for item, share in zip(items, solution.shares, strict=True):
            if share > 0.5:
                choice.action[item.group] = PAGE if item.cost_us == self.page_us[item.group] else RECOMPUTE
        return choice

    def items(self, gap: Gap) -> list[Item]:
        items = []
        if gap.page_us < INFINITE_US:
            if gap.spill:
                spans = ((0, gap.after - 1), (gap.after + 1, self.problem.end))
            else:
                spans = ((gap.after + 1, gap.before - 1),)
            items.append(Item(spans, gap.nbytes, gap.page_us, gap.id))
        if self.recompute_us[gap.id] < gap.page_us:
            items.append(Item(((gap.after + 1, gap.before - 1),), gap.nbytes, float(self.recompute_us[gap.id]), gap.id))
        return items

    # -- repair -------------------------------------------------------------------------------------------------

    def repair(self, choice: Choice, target: float) -> tuple[Choice, Timeline]:
        """Give up more until the simulation fits, or nothing is left to give."""
        timeline = self.build(choice, target)
        best = (float(self.excess(timeline, choice, target).max()), choice.copy(), timeline)
        for _ in range(_ROUNDS):
            excess = self.excess(timeline, choice, target)
            worst = float(excess.max())
            if worst < best[0]:
                best = (worst, choice.copy(), timeline)
            if worst <= 0 or self.deadline.passed() or not self.give_up(choice, timeline, excess):
                break
            timeline = self.build(choice, target)
        return best[1], best[2]

    def give_up(self, choice: Choice, timeline: Timeline, excess: NDArray[np.float64]) -> bool:
        """Give up the gaps with the least cost per useful byte until the estimate fits. False when there are none."""
        excess = np.maximum(excess, 0.0)
        changed = False
        for _ in range(len(self.problem.gaps)):
            worst = int(excess.argmax())
            if excess[worst] <= 0:
                break
            gap = self.cheapest(choice, excess, worst)
            if gap is None:
                changed |= self.wait_instead(choice, timeline, excess, worst)
                excess[worst] = 0.0
                continue
            choice.action[gap] = RECOMPUTE if self.recompute_us[gap] <= self.page_us[gap] else PAGE
            self.lower(excess, gap)
            changed = True
        return changed

    def cheapest(self, choice: Choice, excess: NDArray[np.float64], position: int) -> int | None:
        cost = np.minimum(self.page_us, self.recompute_us)
        kept = np.array(choice.action) == KEEP
        cand = np.nonzero(kept & (self.low <= position) & (self.high >= position) & (cost < INFINITE_US))[0]
        cand = np.array([c for c in cand if not self.problem.gaps[c].spill or self.problem.gaps[c].after != position],
                        dtype=np.int64)
        if not len(cand):
            return None
        count = np.concatenate([[0.0], np.cumsum(excess > 0)])
        area = np.concatenate([[0.0], np.cumsum(excess)])
        low, high = self.low[cand], self.high[cand] + 1
        useful = np.minimum((count[high] - count[low]) * self.nbytes[cand], area[high] - area[low])
        return int(cand[np.argmin(cost[cand] / useful)])

    def lower(self, excess: NDArray[np.float64], gap: int) -> None:
        own = self.problem.gaps[gap].after
        at_own = excess[own]
        inside = excess[self.low[gap] : self.high[gap] + 1]
        np.maximum(inside - self.nbytes[gap], 0.0, out=inside)
        if self.problem.gaps[gap].spill:
            excess[own] = at_own

    def wait_instead(self, choice: Choice, timeline: Timeline, excess: NDArray[np.float64], position: int) -> bool:
        """Nothing is left to give up here: delay page-ins past the position, end page-outs before it."""
        walk, changed, need = timeline.walk, False, float(excess[position])
        for stay, slot in sorted(timeline.in_slot.items()):
            life = walk.stays[stay]
            start, used = _position(walk, slot), _position(walk, life.first)
            if start <= position < used and choice.early_in.get(life.gap, -1) <= position:
                choice.early_in[life.gap] = position + 1
                changed = True
                need -= self.problem.nbytes[life.storage]
                if need <= 0:
                    return True
        for stay, slot in sorted(timeline.out_slot.items()):
            life = walk.stays[stay]
            issued = _position(walk, life.last)
            if issued < position <= _position(walk, slot) and choice.hard_out.get(life.next_gap, 1 << 60) > position:
                choice.hard_out[life.next_gap] = position
                changed = True
                need -= self.problem.nbytes[life.storage]
                if need <= 0:
                    return True
        return self.leave_alone(choice, walk, position) or changed

    def leave_alone(self, choice: Choice, walk: Walk, position: int) -> bool:
        """Recomputed storages that wait here for a later use are recomputed again instead."""
        changed = False
        for life in walk.stays:
            if life.origin == "compute" or life.gap < 0 or life.gap in choice.lone:
                continue
            gap = self.problem.gaps[life.gap]
            if not gap.spill and _position(walk, life.born) <= position < gap.before:
                choice.lone.add(life.gap)
                changed = True
        return changed

    # -- pruning ------------------------------------------------------------------------------------------------

    def take_back(self, choice: Choice, timeline: Timeline, target: float) -> tuple[Choice, Timeline]:
        """Keep again what fits after all, the most expensive first; only steps that keep the plan fitting and faster."""
        for _ in range(8):
            trial = choice.copy()
            if self.deadline.passed() or not self.restore(trial, timeline, target):
                break
            after = self.build(trial, target)
            if not self.fits(after, trial, target):
                trial, after = self.repair(trial, target)
            if not self.fits(after, trial, target) or after.time_us >= timeline.time_us:
                break
            choice, timeline = trial, after
        return choice, timeline

    def restore(self, choice: Choice, timeline: Timeline, target: float) -> bool:
        slack = -self.excess(timeline, choice, target)
        cost = np.minimum(self.page_us, self.recompute_us)
        given_up = [g for g in range(len(choice.action)) if choice.action[g] != KEEP]
        changed = False
        for gap in sorted(given_up, key=lambda g: (-cost[g], g)):
            # Kept state lies outside of the arena around its own update too, where it was counted as a life before.
            between = slack[self.low[gap] : self.high[gap] + 1]
            if between.size and between.min() < self.nbytes[gap]:
                continue
            between -= self.nbytes[gap]
            choice.action[gap] = KEEP
            changed = True
        return changed


def _position(walk: Walk, run: int) -> int:
    return walk.runs[run].position if run < len(walk.runs) else len(walk.first_run) - 1


def pack_timeline(problem: Problem, timeline: Timeline, enough: int) -> tuple[list[int], int]:
    """Offsets per stay and the arena's size; stays that take over a frame share a block."""
    walk, root = timeline.walk, list(range(len(timeline.walk.stays)))
    for stay, life in enumerate(walk.stays):
        if life.reuses >= 0:
            root[stay] = root[life.reuses]
    blocks = sorted(set(root))
    number = {stay: index for index, stay in enumerate(blocks)}
    dies, alignment = [0] * len(blocks), [64] * len(blocks)
    for stay, life in enumerate(walk.stays):
        block = number[root[stay]]
        dies[block] = max(dies[block], timeline.dies[stay])
        if problem.tier is not None and (life.out or life.origin == "page-in"):
            alignment[block] = max(alignment[block], problem.tier.alignment_bytes)
    tries = max(4, min(60, 30_000 // max(1, len(blocks))))
    offsets, arena = pack(
        [timeline.born[b] for b in blocks], dies, [timeline.nbytes[b] for b in blocks], alignment, enough, tries
    )
    return [offsets[number[r]] for r in root], arena
