"""Decisions become a sequence of computes and lives: the walk through the step, one position after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradbase.ir.physical import Origin
from gradbase.planner.problem import Problem

KEEP, RECOMPUTE, PAGE = 0, 1, 2

# A plan that runs operators more often than this on average is of no use.
_MOST_RUNS = 4


@dataclass(slots=True)
class Choice:
    """What the search decides. Everything not mentioned is kept, and prefetched when it suits.

    `action` per gap; `early_in[gap]` the first position at which the gap's page-in may start; `hard_out[gap]` the
    position before which its page-out must be over; `lone` gaps whose storage, recomputed early because another
    recomputation reads it, is not kept for its own next use; `room_bytes` per position: what such storages may occupy.
    """

    action: list[int]
    early_in: dict[int, int] = field(default_factory=dict)
    hard_out: dict[int, int] = field(default_factory=dict)
    lone: set[int] = field(default_factory=set)
    room_bytes: NDArray[np.float64] | None = None

    def copy(self) -> Choice:
        return Choice(list(self.action), dict(self.early_in), dict(self.hard_out), set(self.lone), self.room_bytes)

    def forget(self, gap: int) -> None:
        """Keep the gap again, with nothing left of how it was given up (`keep_again` where it may be a spill)."""
        self.action[gap] = KEEP
        self.early_in.pop(gap, None)
        self.hard_out.pop(gap, None)
        self.lone.discard(gap)


def together(problem: Problem, gap: int) -> tuple[int, ...]:
    """The gaps that are given up with this one: all of a spilled storage's, else itself alone."""
    one = problem.gaps[gap]
    return problem.spill_of[one.storage] if one.spill else (gap,)


def keep_again(problem: Problem, choice: Choice, gap: int) -> None:
    for member in together(problem, gap):
        choice.forget(member)


@dataclass(slots=True)
class Stay:
    """A life before it has an address, in indices of runs: `born`, its `first` and `last` use.

    `gap` is the one that it ends, `next_gap` the one that begins when it dies; `out`: its contents are then written to
    the page file.
    """

    storage: int
    born: int
    last: int
    origin: Origin
    first: int = -1
    gap: int = -1
    next_gap: int = -1
    out: bool = False
    reuses: int = -1
    reused: bool = False
    blamed_on: int = -1  # the gap whose recomputation made this necessary


@dataclass(slots=True)
class Run:
    """One Compute: operator, run number, the position it belongs to, stay ids, and the gap that caused a rerun."""

    operator: int
    run: int
    position: int
    reads: list[int]
    writes: list[int]
    cause: int = -1


@dataclass(slots=True)
class Walk:
    """The result: runs in order, stays, and for every position the index of its first run."""

    runs: list[Run]
    stays: list[Stay]
    first_run: list[int]


class DeadEnd(Exception):
    """A recomputation cannot be done any more: the gap whose decision asked for it, and the storage that is gone."""

    def __init__(self, gap: int, storage: int) -> None:
        super().__init__(gap, storage)
        self.gap = gap
        self.storage = storage


class TooLong(Exception):
    """Recomputations need so many others that the walk was given up."""


class Walker:
    """Carries what is resident, and what lies clean in the page file, through the positions."""

    def __init__(self, problem: Problem, choice: Choice) -> None:
        self.problem = problem
        self.choice = choice
        self.walk = Walk([], [], [])
        self.resident: dict[int, int] = {}  # storage -> stay
        self.clean: set[int] = set()  # storages whose contents lie in the page file
        self.changed: set[int] = set()  # spilled storages that their page in the file is behind of
        self.used = [-1] * len(problem.uses)  # storage -> index of its last use
        self.run_count = [0] * len(problem.order)
        self.most_runs = _MOST_RUNS * len(problem.order) + 1000
        self.room = None if choice.room_bytes is None else choice.room_bytes.copy()

    def go(self) -> Walk:
        """Walk through the step. Raises DeadEnd when something dropped cannot be brought back, and TooLong."""
        problem = self.problem
        for position in range(problem.end + 1):
            self.walk.first_run.append(len(self.walk.runs))
            reads = problem.reads_at(position)
            made = self.fetch(reads, position)
            if position < problem.end:
                operator = problem.order[position]
                self.compute(operator, position, -1)
                self.after_use((*reads, *problem.writes[operator]))
            else:
                for storage in reads:
                    self.touch(self.resident[storage], len(self.walk.runs))
            self.after_help(made, set(reads), position)
        return self.walk

    def fetch(self, reads: Iterable[int], position: int) -> list[int]:
        """Make storages resident, and what recomputing them takes. Returns everything that was not resident before."""
        made: list[int] = []
        for storage in reads:
            if storage not in self.resident:
                self.bring(storage, position, made)
        return made

    def bring(self, storage: int, position: int, made: list[int]) -> None:
        """Page one storage in, or rerun its producer and whatever that needs, in the step's order."""
        problem, cause = self.problem, self.current_gap(storage)
        operators: set[int] = set()
        stack = [storage]
        while stack:
            current = stack.pop()
            if current in self.resident:
                continue
            operator, possible = problem.producer[current], problem.may_recompute(current, position)
            if possible and operator in operators:
                continue
            if current in self.clean and not (possible and self.wants_recompute(current)):
                self.page_in(current, cause)
                made.append(current)
                continue
            if not possible:
                raise DeadEnd(cause, current)
            operators.add(operator)
            stack.extend(problem.reads[operator])
        if len(self.walk.runs) + len(operators) > self.most_runs:
            raise TooLong
        for operator in sorted(operators, key=problem.position.__getitem__):
            self.compute(operator, position, cause, made)

    def wants_recompute(self, storage: int) -> bool:
        gap = self.current_gap(storage)
        return gap >= 0 and self.choice.action[gap] == RECOMPUTE

    def current_gap(self, storage: int) -> int:
        """The gap that a storage which is not resident is in, -1 after its last use."""
        gaps, index = self.problem.gaps_of[storage], self.used[storage]
        return gaps[index] if 0 <= index < len(gaps) else -1

    def page_in(self, storage: int, cause: int) -> None:
        gap = self.current_gap(storage)
        self.begin(storage, len(self.walk.runs), "page-in", gap, cause)

    def begin(self, storage: int, born: int, origin: Origin, gap: int, cause: int, *, valid: bool = True) -> int:
        """A new stay, which others read from here on unless the storage is resident; not `valid`: nobody does."""
        stay = len(self.walk.stays)
        self.walk.stays.append(Stay(storage, born, born, origin, gap=gap, blamed_on=cause))
        if valid and storage not in self.resident:
            self.resident[storage] = stay
        return stay

    def compute(self, operator: int, position: int, cause: int, made: list[int] | None = None) -> None:
        """Run an operator now; what it writes becomes resident unless it is already."""
        problem, index, run = self.problem, len(self.walk.runs), self.run_count[operator]
        self.run_count[operator] += 1
        spilled = self.admit(operator, position, cause)
        reads = [self.resident[s] for s in (*problem.reads[operator], *spilled)]
        for stay in reads:
            self.touch(stay, index)
        origin: Origin = "recompute" if run else "compute"
        valid = {s for s in problem.writes[operator] if problem.is_as_made(s, position)}
        if made is not None:
            made.extend(s for s in problem.writes[operator] if s in valid and s not in self.resident)
        writes = [
            self.begin(s, index, origin, self.current_gap(s), cause, valid=s in valid) for s in problem.writes[operator]
        ]
        self.walk.runs.append(Run(operator, run, position, reads, writes, cause))
        self.clean.difference_update(problem.logical.operators[operator].mutates)
        self.changed.update(s for s in problem.logical.operators[operator].mutates if s in spilled)
        for storage in spilled:
            self.dismiss(storage, position, first=not run)

    def touch(self, stay: int, index: int) -> None:
        life = self.walk.stays[stay]
        life.last = index
        if life.first < 0:
            life.first = index

    def after_use(self, storages: Iterable[int]) -> None:
        """Storages used at a position of the plain order: what the next gap says happens to them."""
        problem = self.problem
        for storage in dict.fromkeys(storages):
            self.used[storage] += 1
            gap = self.current_gap(storage)
            if gap < 0:
                del self.resident[storage]
            elif self.choice.action[gap] != KEEP:
                stay = self.walk.stays[self.resident.pop(storage)]
                stay.next_gap = gap
                if self.choice.action[gap] == PAGE and storage not in self.clean:
                    stay.out = True
                    self.clean.add(storage)
        assert problem.tier is not None or not self.clean

    def after_help(self, made: list[int], used: set[int], position: int) -> None:
        """Storages that only a recomputation needed: keep them for their own next use where there is room."""
        waiting = [(self.next_use(s), s) for s in dict.fromkeys(made) if s not in used and s in self.resident]
        for before, storage in sorted(waiting):
            gap = self.current_gap(storage)
            if gap < 0 or gap in self.choice.lone or not self.take_room(storage, position, before):
                del self.resident[storage]

    def next_use(self, storage: int) -> int:
        uses, index = self.problem.uses[storage], self.used[storage] + 1
        return uses[index] if index < len(uses) else self.problem.end + 1

    def take_room(self, storage: int, position: int, before: int) -> bool:
        if self.room is None:
            return True
        between = self.room[position + 1 : before]
        nbytes = self.problem.nbytes[storage]
        if between.size and between.min() < nbytes:
            return False
        between -= nbytes
        return True

    def admit(self, operator: int, position: int, cause: int) -> list[int]:
        """Page in the spilled storages that an operator touches, unless their visit has begun. Returns them all."""
        spilled = [s for s in self.problem.visitors[operator] if self.is_spilled(s)]
        for storage in spilled:
            if storage not in self.resident:
                visit = self.visit(storage, position)
                gap = -1 if visit is None else self.problem.spill_of[storage][visit - 1]
                self.begin(storage, len(self.walk.runs), "page-in", gap, cause)
        return spilled

    def dismiss(self, storage: int, position: int, *, first: bool) -> None:
        """End a stay at the end of its visit, or at once where only a recomputation came for it."""
        visit = self.visit(storage, position)
        if visit is not None and not (first and self.problem.visits[storage][visit][1] == position):
            return
        stay = self.walk.stays[self.resident.pop(storage)]
        if visit is not None:
            stay.next_gap = self.problem.spill_of[storage][visit]
        stay.out = storage in self.changed
        self.changed.discard(storage)

    def visit(self, storage: int, position: int) -> int | None:
        """The number of the visit that a position lies in."""
        visits = self.problem.visits[storage]
        index = bisect_right(visits, (position, self.problem.end)) - 1
        return index if index >= 0 and position <= visits[index][1] else None

    def is_spilled(self, storage: int) -> bool:
        return self.choice.action[self.problem.spill_of[storage][0]] == PAGE


def walk_through(problem: Problem, choice: Choice) -> Walk:
    """Runs and stays for a choice, in-place operators included. Raises DeadEnd and TooLong."""
    walk = Walker(problem, choice).go()
    if problem.inplace:
        _take_over_frames(problem, walk)
    return walk


def _take_over_frames(problem: Problem, walk: Walk) -> None:
    for index, run in enumerate(walk.runs):
        pairs = problem.logical.operators[run.operator].inplace
        if not pairs:
            continue
        reads = {walk.stays[r].storage: r for r in run.reads}
        writes = {walk.stays[w].storage: w for w in run.writes}
        for written, read in pairs:
            if written not in writes or read not in reads:
                continue
            new, old = walk.stays[writes[written]], walk.stays[reads[read]]
            if new.reuses < 0 and not old.reused and old.last == index and not old.out:
                new.reuses, old.reused = reads[read], True
