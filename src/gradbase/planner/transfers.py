"""When transfers start, when they are waited for, and how long the step then takes.

Slot k is the moment just before run k (slot `len(runs)` is the end of the step). In a slot, in this order: page-outs
of what run k - 1 used last, awaits of page-outs that are due, page-ins, awaits of page-ins that run k reads.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.planner.problem import Problem, round_up, transfer_us
from gradbase.planner.walk import Choice, Walk

# A prefetch is started this much earlier than its transfer needs, because predictions err.
LEAD = 1.25

COMPUTE, OUT, IN, AWAIT_OUT, AWAIT_IN = range(5)


@dataclass(slots=True)
class Timeline:
    """A walk with its transfers in place.

    `steps`: (kind, run or stay). Per stay: first and last step of its life, and bytes it occupies. `live_bytes` per
    step, `peak_bytes` per position. `stall_us` per stay: how long its awaits block.
    """

    walk: Walk
    steps: list[tuple[int, int]]
    born: list[int]
    dies: list[int]
    nbytes: list[int]
    live_bytes: NDArray[np.int64]
    first_step: NDArray[np.int64]  # position -> the step after the previous position's own run
    peak_bytes: NDArray[np.int64]
    time_us: float
    stall_us: dict[int, float]
    transfer_us: float
    in_slot: dict[int, int]
    out_slot: dict[int, int]

    def peak_step(self, position: int) -> int:
        """The step at which a position has most bytes live."""
        first = int(self.first_step[position])
        last = int(self.first_step[position + 1]) if position + 1 < len(self.first_step) else len(self.steps)
        return first + int(self.live_bytes[first : max(last, first + 1)].argmax())

    def own_bytes(self, position: int) -> int:
        """Bytes live while the operator of a position runs for the first time."""
        if position + 1 == len(self.first_step):
            return int(self.live_bytes[-1])
        return int(self.live_bytes[int(self.first_step[position + 1]) - 1])

    @property
    def arena_bytes(self) -> int:
        return int(self.live_bytes.max()) if len(self.live_bytes) else 0


def lay_out(problem: Problem, choice: Choice, walk: Walk) -> Timeline:
    """Schedule transfers of a walk and simulate it."""
    plan = _Schedule(problem, choice, walk)
    plan.place_outs()
    plan.place_ins()
    steps, run_step = _steps(walk, plan.in_slot, plan.out_slot)
    born, dies = _lifetimes(walk, steps, run_step)
    nbytes = _sizes(problem, walk)
    live = _live(walk, born, dies, nbytes, len(steps))
    time_us, stalls, moved_us = simulate(problem, walk, steps)
    first = _first_steps(walk, run_step, problem.end)
    peak = _peak_by_position(live, first)
    return Timeline(
        walk, steps, born, dies, nbytes, live, first, peak, time_us, stalls, moved_us, plan.in_slot, plan.out_slot
    )


class _Schedule:
    """Page-outs as soon as possible in order of last use; page-ins as late as possible, the last need placed first."""

    def __init__(self, problem: Problem, choice: Choice, walk: Walk) -> None:
        self.problem, self.choice, self.walk = problem, choice, walk
        self.in_slot: dict[int, int] = {}
        self.out_slot: dict[int, int] = {}
        self.busy: list[tuple[float, float]] = []  # when page-outs occupy a shared channel
        durations = [problem.time_us[run.operator] for run in walk.runs]
        tax = 0.0
        if problem.tier is not None:
            moved = sum(self.duration(i, "out") for i, s in enumerate(walk.stays) if s.out)
            moved += sum(self.duration(i, "in") for i, s in enumerate(walk.stays) if s.origin == "page-in")
            tax = problem.tier.compute_tax * moved
        total = sum(durations)
        stretch = 1 + tax / total if total else 1.0
        self.start: list[float] = [0.0, *(np.cumsum(durations) * stretch).tolist()]

    def duration(self, stay: int, direction: str) -> float:
        assert self.problem.tier is not None
        return transfer_us(self.problem.tier, self.problem.nbytes[self.walk.stays[stay].storage], direction)

    def slot_of(self, position: int) -> int:
        return self.walk.first_run[min(position, self.problem.end)]

    def place_outs(self) -> None:
        stays, clock, back = self.walk.stays, 0.0, self.first_return()
        for stay in sorted((i for i, s in enumerate(stays) if s.out), key=lambda i: (stays[i].last, i)):
            issue = stays[stay].last + 1
            begin = max(clock, self.start[issue])
            clock = begin + self.duration(stay, "out")
            self.busy.append((begin, clock))
            slot = min(bisect_left(self.start, clock), len(self.walk.runs))
            hard = self.choice.hard_out.get(stays[stay].next_gap)
            if hard is not None:
                slot = min(slot, self.slot_of(hard))
            self.out_slot[stay] = max(min(slot, back.get(stay, slot)), issue)

    def place_ins(self) -> None:
        stays, limit = self.walk.stays, float("inf")
        came_from = self.previous_outs()
        incoming = [i for i, s in enumerate(stays) if s.origin == "page-in"]
        for stay in sorted(incoming, key=lambda i: (-stays[i].first, -i)):
            length = self.duration(stay, "in") * LEAD
            begin = min(limit, self.start[stays[stay].first]) - length
            assert self.problem.tier is not None
            if not self.problem.tier.duplex:
                begin = self.before_outs(begin, length)
            limit = begin
            lower = self.out_slot[came_from[stay]] if stay in came_from else 0
            lower = max(lower, self.slot_of(self.choice.early_in.get(stays[stay].gap, 0)))
            slot = bisect_right(self.start, begin) - 1
            self.in_slot[stay] = min(max(slot, lower), stays[stay].first)

    def first_return(self) -> dict[int, int]:
        """For page-outs: the slot in which their contents are needed again, the last moment to wait for them."""
        back: dict[int, int] = {}
        for stay, source in self.previous_outs().items():
            back[source] = min(back.get(source, len(self.walk.runs)), self.walk.stays[stay].first)
        return back

    def before_outs(self, begin: float, length: float) -> float:
        """The latest time at or before `begin` at which a shared channel is free of page-outs for `length`."""
        index = bisect_left(self.busy, (begin + length, 0.0)) - 1
        while index >= 0 and self.busy[index][1] > begin:
            begin = self.busy[index][0] - length
            index -= 1
        return begin

    def previous_outs(self) -> dict[int, int]:
        """For page-ins: the stay that wrote their contents to the page file in this step."""
        written: dict[int, int] = {}
        source: dict[int, int] = {}
        for stay, life in enumerate(self.walk.stays):
            if life.origin == "page-in" and life.storage in written:
                source[stay] = written[life.storage]
            if life.out:
                written[life.storage] = stay
        return source


def gap_costs(problem: Problem, timeline: Timeline) -> dict[int, float]:
    """µs that each gap costs in a simulated plan: tax and stalls of its transfers, and the runs that it caused."""
    costs: dict[int, float] = {}
    tier = problem.tier
    for stay, life in enumerate(timeline.walk.stays):
        stall, nbytes = timeline.stall_us.get(stay, 0.0), problem.nbytes[life.storage]
        if tier is not None and life.out:
            share = tier.compute_tax * transfer_us(tier, nbytes, "out") + (stall if life.origin != "page-in" else 0.0)
            costs[life.next_gap] = costs.get(life.next_gap, 0.0) + share
        if tier is not None and life.origin == "page-in":
            gap = life.gap if life.gap >= 0 else life.blamed_on
            costs[gap] = costs.get(gap, 0.0) + stall + tier.compute_tax * transfer_us(tier, nbytes, "in")
    for run in timeline.walk.runs:
        if run.run:
            costs[run.cause] = costs.get(run.cause, 0.0) + problem.time_us[run.operator]
    return costs


def _steps(walk: Walk, in_slot: dict[int, int], out_slot: dict[int, int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Instructions in order, and the index of each run's Compute (one more at the end: the number of steps)."""
    slots: list[list[tuple[int, int]]] = [[] for _ in range(len(walk.runs) + 1)]
    for stay in sorted(out_slot, key=lambda i: (walk.stays[i].last, i)):
        slots[walk.stays[stay].last + 1].append((OUT, stay))
    for stay in sorted(out_slot, key=lambda i: (out_slot[i], walk.stays[i].last, i)):
        slots[out_slot[stay]].append((AWAIT_OUT, stay))
    ins = sorted(in_slot, key=lambda i: (in_slot[i], walk.stays[i].first, i))
    for stay in ins:
        slots[in_slot[stay]].append((IN, stay))
    for stay in ins:
        slots[walk.stays[stay].first].append((AWAIT_IN, stay))
    steps: list[tuple[int, int]] = []
    run_step: list[int] = []
    for index, slot in enumerate(slots):
        steps.extend(slot)
        run_step.append(len(steps))
        if index < len(walk.runs):
            steps.append((COMPUTE, index))
    return steps, run_step


def _lifetimes(walk: Walk, steps: list[tuple[int, int]], run_step: list[int]) -> tuple[list[int], list[int]]:
    born = [run_step[s.born] if s.origin != "page-in" else -1 for s in walk.stays]
    dies = [min(run_step[s.last], len(steps) - 1) for s in walk.stays]
    for index, (kind, stay) in enumerate(steps):
        if kind == IN:
            born[stay] = index
        elif kind == AWAIT_OUT:
            dies[stay] = index
    return born, dies


def _sizes(problem: Problem, walk: Walk) -> list[int]:
    """Bytes a stay occupies: rounded for direct I/O when transferred, and one size for all that share a frame."""
    page = problem.tier.alignment_bytes if problem.tier else 64
    sizes = [
        round_up(problem.nbytes[s.storage], page if s.out or s.origin == "page-in" else 64) for s in walk.stays
    ]
    for stay, life in enumerate(walk.stays):
        if life.reuses >= 0:
            sizes[stay] = max(sizes[stay], sizes[life.reuses])
    for stay in range(len(walk.stays) - 1, -1, -1):
        if walk.stays[stay].reuses >= 0:
            sizes[walk.stays[stay].reuses] = sizes[stay]
    return sizes


def _live(walk: Walk, born: list[int], dies: list[int], nbytes: list[int], length: int) -> NDArray[np.int64]:
    change = np.zeros(length + 2, dtype=np.int64)
    taken = np.array([s.reuses >= 0 for s in walk.stays], dtype=np.int64)
    size = np.array(nbytes, dtype=np.int64)
    # A frame that is taken over is counted for the old life until the operator is done.
    np.add.at(change, np.array(born, dtype=np.int64) + taken, size)
    np.subtract.at(change, np.array(dies, dtype=np.int64) + 1, size)
    live: NDArray[np.int64] = np.cumsum(change)[:length]
    return live


def _first_steps(walk: Walk, run_step: list[int], end: int) -> NDArray[np.int64]:
    first = np.zeros(end + 1, dtype=np.int64)
    for position in range(end):
        # The last run of a position is the operator itself.
        first[position + 1] = run_step[walk.first_run[position + 1] - 1] + 1
    return first


def _peak_by_position(live: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most bytes live from after the previous position's own run to the end of this position's run."""
    peak = np.zeros(len(first), dtype=np.int64)
    inside = first < len(live)
    if len(live):
        peak[inside] = np.maximum.reduceat(live, first[inside])
    return peak


def simulate(problem: Problem, walk: Walk, steps: list[tuple[int, int]]) -> tuple[float, dict[int, float], float]:
    """Run the steps on one compute stream and a FIFO channel per direction (one shared, unless duplex).

    Returns the time in µs, what each stay's awaits cost, and the time transfers take. A transfer slows computing by the
    tier's tax, charged where it starts.
    """
    tier, clock, moved = problem.tier, 0.0, 0.0
    free = [0.0, 0.0]
    done: dict[tuple[int, int], float] = {}
    stalls: dict[int, float] = {}
    for kind, index in steps:
        if kind == COMPUTE:
            clock += problem.time_us[walk.runs[index].operator]
            continue
        assert tier is not None
        if kind in (OUT, IN):
            duration = transfer_us(tier, problem.nbytes[walk.stays[index].storage], "out" if kind == OUT else "in")
            channel = int(tier.duplex and kind == IN)
            free[channel] = max(free[channel], clock) + duration
            done[kind, index] = free[channel]
            moved += duration
            clock += tier.compute_tax * duration
        else:
            finish = done[OUT if kind == AWAIT_OUT else IN, index]
            if finish > clock:
                stalls[index] = stalls.get(index, 0.0) + finish - clock
                clock = finish
    return clock, stalls, moved
