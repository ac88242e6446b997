"""The step as the search sees it: positions, uses, gaps between uses, and what may be done in each gap.

Position p (0 .. n - 1) is the p-th operator of the chosen order; position n is the end of the step, at which the
results are "read". A *gap* lies between two consecutive uses of one arena storage. A parameter or optimizer state may
rest in the page file (it is *spilled*): then it is in the arena only for its *visits*, stretches of uses that lie
close together. The gaps between its visits, the last of which goes around the step's end, are given up together or not
at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gradbase.ir.costs import Costs, Tier
from gradbase.ir.logical import LogicalPlan, Operator, Storage

INFINITE_US = float("inf")

# Below this a parameter's transfers cost more channel time than its bytes are worth.
_LEAST_PARAMETER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions strictly between `after` and `before`, where `storage` is not used. Costs in µs, inf: impossible.

    `out_us` and `in_us` are how long the transfers take; `recompute_us` is the producer's time with everything that
    is dead by then and has to be recomputed first. `spill`: between two visits of a storage that rests in the page
    file; the last of these gaps goes around the step's end, so that its `before` is not above its `after`.
    """

    id: int
    storage: int
    after: int
    before: int
    nbytes: int
    page_us: float
    recompute_us: float
    out_us: float
    in_us: float
    spill: bool = False

    @property
    def wraps(self) -> bool:
        return self.before <= self.after

    def spans(self, end: int) -> tuple[tuple[int, int], ...]:
        """The positions inside the gap, as inclusive spans (an empty one has its ends crossed)."""
        if self.wraps:
            return (0, self.before - 1), (self.after + 1, end)
        return ((self.after + 1, self.before - 1),)


@dataclass(slots=True)
class Problem:
    """A logical plan in a chosen order. Lists are indexed by position, operator or storage as their comment says."""

    logical: LogicalPlan
    costs: Costs
    order: list[int]  # position -> operator id
    position: list[int]  # operator id -> position
    time_us: list[float]  # operator id
    arena: list[bool]  # storage id: not external
    nbytes: list[int]  # storage id
    producer: list[int]  # storage id -> operator id, -1 for external ones
    reads: list[tuple[int, ...]]  # operator id -> arena storages it reads
    writes: list[tuple[int, ...]]  # operator id -> arena storages it writes
    uses: list[list[int]]  # storage id -> positions, ascending
    mutations: list[list[int]]  # storage id -> positions, ascending
    expiry: list[int]  # operator id -> last position before which it may run again; -1 never
    tier: Tier | None
    inplace: bool
    gaps: list[Gap] = field(default_factory=list)
    gaps_of: list[list[int]] = field(default_factory=list)  # storage id -> gap after its i-th use
    spill_of: dict[int, tuple[int, ...]] = field(default_factory=dict)  # storage that may rest in the file -> gaps
    visits: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # the same -> first and last positions
    visitors: list[tuple[int, ...]] = field(default_factory=list)  # operator id -> such storages that it touches
    resident_bytes: int = 0  # external storages that never leave
    scratch_bytes: int = 0

    @property
    def end(self) -> int:
        return len(self.order)

    @property
    def total_us(self) -> float:
        return sum(self.time_us)

    def capacity_bytes(self, budget_bytes: int) -> int:
        """What lives in the arena, and what could be spilled, may occupy."""
        return budget_bytes - self.resident_bytes - self.scratch_bytes

    def reads_at(self, position: int) -> Sequence[int]:
        """Arena storages that must be resident at a position."""
        if position == self.end:
            return [s for s in self.logical.results if self.arena[s]]
        return self.reads[self.order[position]]

    def may_rerun(self, operator: int, position: int) -> bool:
        """Whether everything the operator read still has the contents it had, just before `position`."""
        return position <= self.expiry[operator]

    def may_recompute(self, storage: int, position: int) -> bool:
        """Whether running the producer again gives the contents the storage should have before `position`."""
        return self.may_rerun(self.producer[storage], position) and self.is_as_made(storage, position)

    def is_as_made(self, storage: int, position: int) -> bool:
        """Whether nothing changes the storage in place before `position`."""
        mutations = self.mutations[storage]
        return not mutations or position <= mutations[0]


def safe_until(problem: Problem) -> list[int]:
    """Per storage the last position before which it can be recomputed even if everything it needs was dropped."""
    until = [-1] * len(problem.nbytes)
    for operator in problem.order:
        reads = [until[s] for s in problem.reads[operator]]
        for storage in problem.writes[operator]:
            changed = problem.mutations[storage][:1]
            until[storage] = min([problem.expiry[operator], *reads, *changed])
    return until


def build_problem(
    logical: LogicalPlan,
    costs: Costs,
    order: list[int],
    *,
    inplace: bool,
    recompute: bool,
    page: bool,
    spill: bool,
    waiting: bool = False,
) -> Problem:
    """Index a logical plan for the search. `inplace` to `spill` say what a plan may use; with `waiting`, what rests in
    the page file leaves between uses where the step has to wait for it: that takes the least memory, and much time.
    """
    position = [0] * len(order)
    for index, operator in enumerate(order):
        position[operator] = index
    arena = [not s.external for s in logical.storages]
    mutations = _mutations(logical, position)
    problem = Problem(
        logical=logical,
        costs=costs,
        order=order,
        position=position,
        visitors=[() for _ in logical.operators],
        time_us=[e.time_us for e in costs.operators],
        arena=arena,
        nbytes=[s.nbytes for s in logical.storages],
        producer=_producers(logical),
        reads=[tuple(dict.fromkeys(s for s in (*o.reads, *o.mutates) if arena[s])) for o in logical.operators],
        writes=[tuple(s for s in o.writes if arena[s]) for o in logical.operators],
        uses=_uses(logical, position),
        mutations=mutations,
        expiry=[_expiry(o, position[o.id], mutations, len(order)) if recompute else -1 for o in logical.operators],
        tier=costs.tier if page or spill else None,
        inplace=inplace,
        scratch_bytes=max((e.scratch_bytes for e in costs.operators), default=0),
    )
    _add_gaps(problem, page)
    if spill and problem.tier is not None:
        _add_spills(problem, waiting)
    problem.resident_bytes = sum(s.nbytes for s in logical.storages if s.external and s.id not in problem.spill_of)
    return problem


def transfer_us(tier: Tier, nbytes: int, direction: str) -> float:
    """How long one transfer occupies its channel, alone."""
    bandwidth = tier.write_bytes_per_us if direction == "out" else tier.read_bytes_per_us
    return tier.latency_us + nbytes / bandwidth


def round_up(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _producers(logical: LogicalPlan) -> list[int]:
    producer = [-1] * len(logical.storages)
    for operator in logical.operators:
        for storage in operator.writes:
            producer[storage] = operator.id
    return producer


def _mutations(logical: LogicalPlan, position: list[int]) -> list[list[int]]:
    mutations: list[list[int]] = [[] for _ in logical.storages]
    for operator in logical.operators:
        for storage in operator.mutates:
            mutations[storage].append(position[operator.id])
    for positions in mutations:
        positions.sort()
    return mutations


def _uses(logical: LogicalPlan, position: list[int]) -> list[list[int]]:
    uses: list[set[int]] = [set() for _ in logical.storages]
    for operator in logical.operators:
        for storage in (*operator.reads, *operator.writes, *operator.mutates):
            uses[storage].add(position[operator.id])
    for storage in logical.results:
        uses[storage].add(len(position))
    return [sorted(positions) for positions in uses]


def _expiry(operator: Operator, position: int, mutations: list[list[int]], end: int) -> int:
    if not operator.recomputable or operator.mutates:
        return -1
    return min((m for s in operator.reads for m in mutations[s] if m > position), default=end)


def _add_gaps(problem: Problem, page: bool) -> None:
    dead_cost = _DeadChain(problem)
    for storage, uses in enumerate(problem.uses):
        ids: list[int] = []
        if problem.arena[storage]:
            for after, before in zip(uses, uses[1:], strict=False):
                ids.append(len(problem.gaps))
                problem.gaps.append(_gap(problem, len(problem.gaps), storage, after, before, page, dead_cost))
        problem.gaps_of.append(ids)


def _gap(
    problem: Problem, gap_id: int, storage: int, after: int, before: int, page: bool, dead_cost: _DeadChain
) -> Gap:
    nbytes, tier = problem.nbytes[storage], problem.tier
    out_us = in_us = page_us = INFINITE_US
    if page and tier is not None and nbytes >= tier.alignment_bytes:
        out_us, in_us = transfer_us(tier, nbytes, "out"), transfer_us(tier, nbytes, "in")
        page_us = tier.compute_tax * (out_us + in_us)
    cost = dead_cost.of(storage, before)
    return Gap(gap_id, storage, after, before, nbytes, page_us, cost, out_us, in_us)


class _DeadChain:
    """What recomputing a storage costs when everything that has a later use was kept."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def of(self, storage: int, position: int) -> float:
        """Time in µs, inf when something on the way cannot run again or the way is very long."""
        problem = self.problem
        seen: set[int] = set()
        stack, total = [storage], 0.0
        while stack:
            current = stack.pop()
            operator = problem.producer[current]
            if operator in seen:
                continue
            if not problem.may_recompute(current, position) or len(seen) > 200:
                return INFINITE_US
            seen.add(operator)
            total += problem.time_us[operator]
            stack.extend(s for s in problem.reads[operator] if problem.uses[s][-1] < position)
        return total


def _add_spills(problem: Problem, waiting: bool) -> None:
    start_us = [0.0]
    for operator in problem.order:
        start_us.append(start_us[-1] + problem.time_us[operator])
    for storage in problem.logical.storages:
        if _may_rest(problem, storage):
            _add_spill(problem, storage.id, start_us, waiting)
    problem.visitors = [
        tuple(dict.fromkeys(s for s in (*o.reads, *o.mutates) if s in problem.spill_of))
        for o in problem.logical.operators
    ]


def _may_rest(problem: Problem, storage: Storage) -> bool:
    """State that one update reads and changes, and parameters that are worth a transfer."""
    assert problem.tier is not None
    uses = problem.uses[storage.id]
    if storage.kind == "state":
        lonely = len(uses) == 1 and problem.mutations[storage.id] == uses
        return lonely and storage.nbytes >= problem.tier.alignment_bytes
    used = bool(uses) and storage.id not in problem.logical.results
    return storage.kind == "parameter" and used and storage.nbytes >= _LEAST_PARAMETER_BYTES


def _add_spill(problem: Problem, storage: int, start_us: list[float], waiting: bool) -> None:
    tier, nbytes = problem.tier, problem.nbytes[storage]
    assert tier is not None
    in_us = transfer_us(tier, nbytes, "in")
    visits = _visits(problem.uses[storage], start_us, 0.0 if waiting else 2 * in_us)
    first = len(problem.gaps)
    for (begin, end), (following, _) in zip(visits, [*visits[1:], visits[0]], strict=True):
        changed = any(begin <= position <= end for position in problem.mutations[storage])
        out_us = transfer_us(tier, nbytes, "out") if changed else 0.0
        cost = tier.compute_tax * (out_us + in_us)
        gap = Gap(len(problem.gaps), storage, end, following, nbytes, cost, INFINITE_US, out_us, in_us, spill=True)
        problem.gaps.append(gap)
    problem.visits[storage] = visits
    problem.spill_of[storage] = tuple(range(first, len(problem.gaps)))


def _visits(uses: list[int], start_us: list[float], least_us: float) -> list[tuple[int, int]]:
    """Uses are one visit where there is nothing between them, or less time than it takes to fetch the storage again."""
    visits: list[tuple[int, int]] = []
    for position in uses:
        following = visits[-1][1] + 1 if visits else -1
        if visits and (position == following or start_us[position] - start_us[following] < least_us):
            visits[-1] = (visits[-1][0], position)
        else:
            visits.append((position, position))
    return visits
