"""The search: a choice for every gap so that the simulated plan fits, and costs as little time as it finds.

Start from the covering problem's solution, then repair on the simulated plan: give up what frees most excess bytes
per µs until nothing exceeds the target, take back what turned out not to be needed, pack, and tighten the target by
what packing wasted. Where the result is not close to the bound, parts of the choice are forgotten and repaired again
(large neighbourhood search). Estimates of what giving up a gap costs follow what it cost in simulated plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.planner.bound import keep_all_bytes, position_us
from gradbase.planner.chains import cut_chains
from gradbase.planner.cover import Item, Transfer, cover
from gradbase.planner.moves import possible_moves
from gradbase.planner.packing import pack_timeline
from gradbase.planner.problem import INFINITE_US, Gap, Problem, safe_until
from gradbase.planner.transfers import COMPUTE, Timeline, gap_costs, lay_out
from gradbase.planner.walk import (
    KEEP,
    PAGE,
    RECOMPUTE,
    Choice,
    DeadEnd,
    TooLong,
    keep_again,
    together,
    walk_through,
)

Floats = NDArray[np.float64]

# Repairs in a row that may fail to lower the excess.
_PATIENCE = 8
_SHRINK_ROUNDS = 4
# After this many recomputations in one walk that turn out impossible, all that might be are given up.
_DEAD_ENDS = 4
_BLAME = 3.0
_BLAMED = 3  # gaps per repair
# What counts as lowering the excess.
_BETTER = 0.99
_NO_LIMIT = 1 << 62
# By how much more than packing wasted the target is lowered, as a part of the arena.
_PACK_MARGINS = (0.0, 0.001, 0.003, 0.01, 0.02, 0.0)
_TAKE_BACK_ROUNDS = 8
_STRETCHES = 32  # of the step, in each of which transfers overlap with computing or do not
# The neighbourhood search ends after this many runs simulated, or tries in a row that bring nothing: its length does
# not depend on the clock.
_NEIGHBOUR_RUNS = 120_000
_NEIGHBOUR_PATIENCE = 25
_CLOSE_ENOUGH = 0.005
# Steps (runs and transfers) that an ordinary core simulates and repairs in a second.
_STEPS_PER_S = 40_000
# Chains of recomputations are cut to these parts of the step's time, one try each.
_CHAIN_PARTS = (15, 50, 200)


@dataclass(slots=True)
class Candidate:
    """A choice, its simulation and its addresses. `total_bytes` counts what could be spilled and is not."""

    problem: Problem
    choice: Choice
    timeline: Timeline
    unspilled_bytes: int
    offsets: list[int]
    arena_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.arena_bytes + self.unspilled_bytes

    @property
    def time_us(self) -> float:
        return self.timeline.time_us


@dataclass(slots=True)
class Effort:
    """How much a search may still simulate. Counted in steps, not by a clock: the same input gives the same plan."""

    steps: float

    @classmethod
    def of_seconds(cls, seconds: float) -> Effort:
        """What an ordinary core does in so many seconds."""
        return cls(seconds * _STEPS_PER_S)

    def spend(self, steps: int) -> None:
        self.steps -= steps

    @property
    def spent(self) -> bool:
        return self.steps <= 0


@dataclass(slots=True)
class Draft:
    """A choice that was simulated but not packed; `excess` bytes per position above the target."""

    choice: Choice
    timeline: Timeline
    excess: Floats

    @property
    def worst(self) -> float:
        return float(self.excess.max())

    @property
    def fits(self) -> bool:
        return self.worst <= 0


class Search:
    """One budget's search. `capacity_bytes` is what the arena and all that was not spilled may take together."""

    def __init__(self, problem: Problem, capacity_bytes: int, effort: Effort, bound_us: float = 0.0) -> None:
        self.problem, self.capacity, self.effort, self.bound_us = problem, capacity_bytes, effort, bound_us
        self.keep_all = keep_all_bytes(problem)
        self.start_us = np.concatenate([[0.0], np.cumsum(position_us(problem))])
        self.page_us = np.array([g.page_us for g in problem.gaps])
        self.recompute_us = np.array([g.recompute_us for g in problem.gaps])
        self.moved_us = np.array([g.out_us + g.in_us if g.page_us < INFINITE_US else 0.0 for g in problem.gaps])
        self.safe_until = safe_until(problem)
        self.congestion = 0.0  # µs waited per µs of transfer
        self.random = np.random.default_rng(0)
        self.noise = np.ones(len(problem.gaps))
        self.simulated_runs = 0
        self.target = float(capacity_bytes)
        self.best: Candidate | None = None
        self.least: Candidate | None = None

    def run(self) -> Candidate | None:
        """The fastest candidate found that fits, or None."""
        tried: set[tuple[int, ...]] = set()
        for choice in self.starts():
            if self.close_enough() or self.effort.spent:
                break
            if tuple(choice.action) not in tried:
                tried.add(tuple(choice.action))
                self.descend(choice)
        self.neighbours()
        return self.best

    def starts(self) -> Iterator[Choice]:
        """The covering problem's choice, then with chains cut, then recomputation between checkpoints."""
        first = self.first_choice(float(self.capacity))
        yield first
        for base in (first, self.recompute_all()):
            for parts in _CHAIN_PARTS:
                yield cut_chains(self.problem, base, self.problem.total_us / parts)

    def recompute_all(self) -> Choice:
        """Give up whatever can be recomputed; with chains cut, recomputation between checkpoints."""
        return Choice([RECOMPUTE if self.is_safe(g) else KEEP for g in self.problem.gaps])

    def is_safe(self, gap: Gap) -> bool:
        """Whether the gap can end in a recomputation whatever else is dropped."""
        return not gap.spill and gap.recompute_us < INFINITE_US and gap.before <= self.safe_until[gap.storage]

    def descend(self, choice: Choice) -> None:
        """Improve a choice; where packing wastes so much that it does not fit, again with a lower target."""
        target = float(self.capacity)
        for margin in _PACK_MARGINS:
            self.target = target
            draft = self.improved(choice, target)
            if not draft.fits or (self.best is not None and draft.timeline.time_us >= self.best.time_us):
                break
            candidate = self.note(draft)
            waste = candidate.total_bytes - self.capacity
            if waste <= 0 or self.effort.spent:
                break
            target, choice = target - waste - margin * candidate.arena_bytes, draft.choice

    def close_enough(self) -> bool:
        return self.best is not None and self.best.time_us <= self.bound_us * (1 + _CLOSE_ENOUGH)

    def shrink(self) -> Candidate:
        """The candidate with the least bytes found, between what no plan can do without and the first one found."""
        low = floor = float(self.floor().max())
        self.note_tightly(self.repair(self.first_choice(low), low), low)
        assert self.least is not None
        for _ in range(_SHRINK_ROUNDS):
            high = float(self.least.total_bytes)
            if self.effort.spent or high <= low * (1 + _CLOSE_ENOUGH):
                break
            target = (low + high) / 2
            draft = self.repair(self.first_choice(target), target)
            if target + draft.worst < high:  # else no packing can make it the least
                self.note_tightly(draft, target)
            if self.least.total_bytes > target:
                low = target
        if self.least.total_bytes > floor * (1 + _CLOSE_ENOUGH):
            self.note(self.build(self.without_overlap(self.all_away()), floor))
        return self.least

    def all_away(self) -> Choice:
        """Page whatever can be paged, however long that takes, and recompute what else can be."""
        choice = self.recompute_all()
        for gap in self.problem.gaps:
            if self.page_us[gap.id] < INFINITE_US:
                choice.action[gap.id] = PAGE
        return choice

    def note_tightly(self, draft: Draft, target: float) -> None:
        """Note a draft; where packing it wastes memory, also with lives as short as can be, which fit each other."""
        candidate = self.note(draft)
        if candidate.arena_bytes > draft.timeline.arena_bytes:
            self.note(self.build(self.without_overlap(draft.choice), target))

    def without_overlap(self, choice: Choice) -> Choice:
        """Every page-out is over before the next operator, every page-in starts when its reader is due."""
        hard = choice.copy()
        for gap in self.problem.gaps:
            if hard.action[gap.id] == PAGE:
                hard.early_in[gap.id], hard.hard_out[gap.id] = gap.before, gap.after + 1
        return hard

    def improve(self, candidate: Candidate) -> Candidate:
        """The fastest of a candidate that fits and its neighbours."""
        self.best = candidate
        self.overlap_again()
        self.neighbours()
        return self.best

    def overlap_again(self) -> None:
        """Let transfers overlap with computing again, stretch by stretch of the step, where there is room for that."""
        for stretch in range(_STRETCHES):
            if self.best is None or self.effort.spent:
                break
            low, high = (self.problem.end * end // _STRETCHES for end in (stretch, stretch + 1))
            choice = self.best.choice.copy()
            for gap in self.problem.gaps:
                if low <= gap.before < high:
                    choice.early_in.pop(gap.id, None)
                if low <= gap.after < high:
                    choice.hard_out.pop(gap.id, None)
            draft = self.build(choice, float(self.capacity))
            if draft.fits and draft.timeline.time_us < self.best.time_us:
                self.note(draft, thorough=False)

    def floor(self) -> Floats:
        """Bytes live at each position when every gap is given up."""
        return -self.room(Choice([PAGE] * len(self.problem.gaps)), 0.0)

    def note(self, draft: Draft, thorough: bool = True) -> Candidate:
        """Pack a draft and remember it if it is the fastest that fits, or the smallest."""
        candidate = self.packed(draft, thorough)
        if self.least is None or candidate.total_bytes < self.least.total_bytes:
            self.least = candidate
        if candidate.total_bytes <= self.capacity and (self.best is None or candidate.time_us < self.best.time_us):
            self.best = candidate
        return candidate

    def packed(self, draft: Draft, thorough: bool = True) -> Candidate:
        state = self.unspilled(draft.choice)
        offsets, arena = pack_timeline(self.problem, draft.timeline, self.capacity - state, thorough)
        return Candidate(self.problem, draft.choice.copy(), draft.timeline, state, offsets, arena)

    def keep_everything(self) -> Candidate:
        """The candidate that gives up nothing."""
        self.capacity = 0  # pack as tightly as possible
        return self.packed(self.build(Choice([KEEP] * len(self.problem.gaps)), float(_NO_LIMIT)))

    # ------------------------------------------------------------------------------------------- simulated drafts

    def build(self, choice: Choice, target: float) -> Draft:
        """Walk and simulate. Gaps that cannot be recomputed after all are paged or kept, endless chains are cut."""
        limits_us = [self.problem.total_us / parts for parts in (*_CHAIN_PARTS, INFINITE_US)]
        dead_ends = 0
        while True:
            choice.room_bytes = self.room(choice, target)
            try:
                walk = walk_through(self.problem, choice)
            except DeadEnd as dead:
                dead_ends += 1
                gaps = [dead.gap] if dead_ends < _DEAD_ENDS else self.unsafe(choice)
                for gap in gaps:
                    self.give_in(choice, gap)
            except TooLong:
                if limits_us:
                    choice = cut_chains(self.problem, choice, limits_us.pop(0))
                else:  # many short recomputations that call for each other: none at all
                    self.give_in_all(choice)
            else:
                break
        self.simulated_runs += len(walk.runs)
        timeline = lay_out(self.problem, choice, walk)
        self.effort.spend(len(timeline.steps))
        self.learn(choice, timeline)
        excess: Floats = timeline.peak_bytes.astype(np.float64) + (self.unspilled(choice) - target)
        return Draft(choice, timeline, excess)

    def unsafe(self, choice: Choice) -> list[int]:
        return [g.id for g in self.problem.gaps if choice.action[g.id] == RECOMPUTE and not self.is_safe(g)]

    def give_in(self, choice: Choice, gap: int) -> None:
        assert choice.action[gap] == RECOMPUTE, "only a recomputation can reach a dead end"
        self.recompute_us[gap] = INFINITE_US
        choice.action[gap] = PAGE if self.page_us[gap] < INFINITE_US else KEEP

    def give_in_all(self, choice: Choice) -> None:
        for gap in self.problem.gaps:
            if choice.action[gap.id] == RECOMPUTE:
                self.give_in(choice, gap.id)

    def learn(self, choice: Choice, timeline: Timeline) -> None:
        """Move estimates halfway to what was seen: what recomputing a gap took, and how full the channels are."""
        for gap, cost in gap_costs(self.problem, timeline).items():
            if gap >= 0 and choice.action[gap] == RECOMPUTE:
                alone = self.problem.gaps[gap].recompute_us
                self.recompute_us[gap] = max(alone, (self.recompute_us[gap] + cost) / 2)
        if timeline.transfer_us > 0:
            seen = sum(timeline.stall_us.values()) / timeline.transfer_us
            self.congestion = (self.congestion + seen) / 2

    def paging_us(self) -> Floats:
        """What paging each gap costs: the tax, and its part in the waiting for channels that are too slow."""
        return self.page_us + self.congestion * self.moved_us

    def room(self, choice: Choice, target: float) -> Floats:
        """Bytes free at each position when only what the choice keeps is live."""
        live, change = self.keep_all.copy(), np.zeros(len(self.keep_all) + 1)
        for gap in self.problem.gaps:
            if choice.action[gap.id] == KEEP:
                continue
            for low, high in gap.spans(self.problem.end):
                change[low] -= gap.nbytes
                change[high + 1] += gap.nbytes
        room: Floats = target - live - np.cumsum(change)[: len(live)]
        return room

    def unspilled(self, choice: Choice) -> int:
        spill_of = self.problem.spill_of
        return sum(self.problem.nbytes[s] for s, gaps in spill_of.items() if choice.action[gaps[0]] == KEEP)

    # ------------------------------------------------------------------------------------------------- the start

    def first_choice(self, target: float) -> Choice:
        """Gaps that the relaxed covering problem gives up for more than half."""
        demand = self.keep_all - target
        tight = np.nonzero(demand > 0)[0]
        items = [i for gap in self.problem.gaps for i in self.items(gap, tight)]
        solution = cover([i for i, _ in items], demand, position_us(self.problem), added=False)
        choice = Choice([KEEP] * len(self.problem.gaps))
        if solution.cost_us < INFINITE_US:
            for (item, action), share in zip(items, solution.shares, strict=True):
                if share > 0.5:
                    for gap in together(self.problem, item.group):
                        choice.action[gap] = action
        return choice

    def items(self, gap: Gap, tight: NDArray[np.int64]) -> list[tuple[Item, int]]:
        """Ways to give up a gap, with the action; `tight` are positions at which memory is short."""
        items: list[tuple[Item, int]] = []
        members = together(self.problem, gap.id)
        page_us, recompute_us = float(self.page_us[list(members)].sum()), float(self.recompute_us[gap.id])
        if page_us < INFINITE_US and gap.id == members[0]:
            gaps = [self.problem.gaps[g] for g in members]
            away = [self.away(g) for g in gaps]
            moved = tuple(t for g, spans in zip(gaps, away, strict=True) for t in self.moved(g, spans, tight))
            items.append((Item(tuple(s for spans in away for s in spans), gap.nbytes, page_us, gap.id, moved), PAGE))
        if recompute_us < INFINITE_US:
            items.append((Item(((gap.after + 1, gap.before - 1),), gap.nbytes, recompute_us, gap.id), RECOMPUTE))
        return items

    def away(self, gap: Gap) -> tuple[tuple[int, int], ...]:
        """Positions at which a paged gap's frame is free: not while it is written or read."""
        begin = float(self.start_us[gap.after + 1]) + gap.out_us
        end = float(self.start_us[gap.before]) - gap.in_us
        low, high = (int(x) for x in np.searchsorted(self.start_us, (begin, end)))
        low, high = max(low, gap.after + 1), min(high, gap.before) - 1
        return ((0, high), (low, self.problem.end)) if gap.wraps else ((low, high),)

    def moved(self, gap: Gap, spans: tuple[tuple[int, int], ...], tight: NDArray[np.int64]) -> tuple[Transfer, ...]:
        """Transfers: writing is over where memory first is short while the frame is free, reading starts after that."""
        assert self.problem.tier is not None
        first = int(np.searchsorted(tight, spans[-1][0]))
        last = int(np.searchsorted(tight, spans[0][1] + 1)) - 1
        over = int(tight[first]) if first < len(tight) else self.problem.end
        ready = int(tight[last]) if last >= 0 else -1
        reading = int(self.problem.tier.duplex)
        before = self.problem.end if gap.wraps else gap.before
        after = -1 if gap.wraps else gap.after
        read = Transfer(reading, max(ready, after), gap.before, gap.in_us)
        return (Transfer(0, gap.after, min(over, before), gap.out_us), read) if gap.out_us else (read,)

    # ---------------------------------------------------------------------------------------------- improvement

    def improved(self, choice: Choice, target: float) -> Draft:
        """Repaired and, when it fits, relieved of what is not needed."""
        draft = self.repair(choice, target)
        return self.take_back(draft, target) if draft.fits else draft

    def repair(self, choice: Choice, target: float) -> Draft:
        """Give up more until the simulation fits or nothing is left to give; the draft with the least excess."""
        draft = best = self.build(choice, target)
        patience = _PATIENCE
        while patience and not draft.fits and not self.effort.spent:
            choice = draft.choice.copy()
            # What did not help is asked for with more room to spare: the next moves are other ones.
            excess = np.maximum(draft.excess + (_PATIENCE - patience) * draft.worst, 0.0)
            blamed = self.blame(choice, draft.timeline, excess)
            if not self.give_up(choice, draft.timeline, excess) and not blamed:
                break
            draft = self.build(choice, target)
            patience = _PATIENCE if draft.worst < best.worst * _BETTER else patience - 1
            if draft.worst < best.worst:
                best = draft
        return best

    def blame(self, choice: Choice, timeline: Timeline, excess: Floats) -> bool:
        """Where only a recomputation does not fit, do not recompute that gap, and think of it as dear."""
        blamed = 0
        for position in sorted(np.nonzero(excess > 0)[0].tolist(), key=lambda p: -excess[p]):
            gap = self.culprit(choice, timeline, position, float(excess[position]))
            if gap >= 0 and blamed < _BLAMED:
                self.recompute_us[gap] *= _BLAME
                choice.forget(gap)
                low, high = self.problem.gaps[gap].after + 1, self.problem.gaps[gap].before
                excess[low:high] += self.problem.gaps[gap].nbytes
                excess[position] = 0.0
                blamed += 1
        return blamed > 0

    def culprit(self, choice: Choice, timeline: Timeline, position: int, excess: float) -> int:
        """The gap whose recomputation exceeds the target where the operator itself would fit, or -1."""
        if timeline.first_step[position] >= len(timeline.steps):
            return -1
        step = timeline.peak_step(position)
        kind, index = timeline.steps[step]
        own = timeline.own_bytes(position)
        if kind != COMPUTE or own > timeline.live_bytes[step] - excess:
            return -1
        gap = timeline.walk.runs[index].cause
        return gap if gap >= 0 and choice.action[gap] == RECOMPUTE else -1

    def give_up(self, choice: Choice, timeline: Timeline, excess: Floats) -> bool:
        """Make the moves with the least cost per useful byte until the estimate fits. False when there are none."""
        page_us, recompute_us = self.paging_us() * self.noise, self.recompute_us * self.noise
        moves = possible_moves(self.problem, choice, timeline, page_us, recompute_us)
        changed = False
        while excess.max() > 0:
            worst = int(excess.argmax())
            move = moves.cheapest(excess, worst)
            if move is None:
                excess[worst] = 0.0
            else:
                moves.make(move, choice, excess)
                changed = True
        return changed

    def take_back(self, draft: Draft, target: float) -> Draft:
        """Keep again what fits after all, the most expensive first, as long as that makes the plan faster."""
        for _ in range(_TAKE_BACK_ROUNDS):
            trial = draft.choice.copy()
            if self.effort.spent or not self.restore(trial, draft):
                break
            after = self.build(trial, target)
            if not after.fits:
                after = self.repair(trial, target)
            if not after.fits or after.timeline.time_us >= draft.timeline.time_us:
                break
            draft = after
        return draft

    def restore(self, choice: Choice, draft: Draft) -> bool:
        slack, cost = -draft.excess, np.minimum(self.paging_us(), self.recompute_us)
        given_up = [g for g, action in enumerate(choice.action) if action != KEEP]
        changed = False
        for gap in sorted(given_up, key=lambda g: (-cost[g], g)):
            one = self.problem.gaps[gap]
            between = slack if one.spill else slack[one.after + 1 : one.before]
            if choice.action[gap] != KEEP and (not between.size or between.min() >= one.nbytes):
                between -= one.nbytes
                keep_again(self.problem, choice, gap)
                changed = True
        return changed

    # ---------------------------------------------------------------------------------------- the neighbourhood

    def neighbours(self) -> None:
        """Forget parts of the best choice and repair it with disturbed estimates, while that pays."""
        until, patience = self.simulated_runs + _NEIGHBOUR_RUNS, _NEIGHBOUR_PATIENCE
        while self.best is not None and patience and not self.effort.spent and self.simulated_runs < until:
            before = self.best.time_us
            if self.close_enough():
                break
            self.noise = np.exp(self.random.normal(0.0, 0.4, len(self.problem.gaps)))
            draft = self.improved(self.forgotten(self.best), self.target)
            if draft.fits and draft.timeline.time_us < before:
                self.note(draft, thorough=False)
            patience = _NEIGHBOUR_PATIENCE if self.best.time_us < before * (1 - 1e-4) else patience - 1

    def forgotten(self, candidate: Candidate) -> Choice:
        """A copy of the choice without some of its decisions: the expensive ones, a stretch of them, or long chains."""
        choice = candidate.choice.copy()
        given_up = np.array([g for g, action in enumerate(choice.action) if action != KEEP], dtype=np.int64)
        way = self.random.random()
        if way < 0.2 or not len(given_up):
            return cut_chains(self.problem, choice, self.problem.total_us * float(self.random.uniform(0.001, 0.1)))
        if way < 0.5:
            born = np.array([self.problem.gaps[g].after for g in given_up])
            begin = self.random.uniform(-0.2, 1.0) * self.problem.end
            chosen = (born >= begin) & (born < begin + 0.2 * self.problem.end)
        else:
            cost = gap_costs(self.problem, candidate.timeline)
            weight = np.array([cost.get(g, 0.0) for g in given_up.tolist()]) + 1e-9
            chosen = self.random.random(len(given_up)) < 0.05 + 0.5 * weight / weight.max()
        for gap in given_up[chosen].tolist():
            keep_again(self.problem, choice, gap)
        return choice
