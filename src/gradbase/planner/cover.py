"""The covering problem under every plan: which gaps to give up so that every position fits, at least cost.

With m(p) the bytes freed at position p, a linear program over 0 <= x <= 1 (the share of a gap that is given up):

    minimise  sum of cost * x      subject to      m(p) = sum of nbytes * x over gaps that cover p,   m(p) >= demand(p)

m is written as differences between neighbouring positions, so every gap stands in two rows instead of in every
position it covers: the constraint matrix of a network, on which the dual simplex takes few steps.

Transfers need time on their channel. The step is cut into segments of about equal computing time, and at operators that
take longer than that; y(i, j) sums the transfers that must happen within segments i .. j and within no shorter stretch,
and for every stretch

    sum of y within the stretch  <=  sum over its segments of (computing time + s)

with s(k) >= 0 the time by which segment k gets longer (0 where the segment is one operator: one waits between them). In
a bound (`added`) the s are all the time that is added, so their sum is minimised and is at least the sum of costs. To
choose a plan they are stalls, on top of the costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Entries = list[tuple[int, float]]

_SCALE = 1 / 2**20  # bytes to MiB, so that coefficients stay near one
_SCALE_US = 1e-3  # µs to ms
_SEGMENTS = 16


@dataclass(frozen=True, slots=True)
class Transfer:
    """`time_us` on a channel, somewhere from the end of the operator at `after` to the start of the one at `before`."""

    channel: int
    after: int
    before: int
    time_us: float


@dataclass(frozen=True, slots=True)
class Item:
    """Something to give up: the bytes it frees at the positions of its inclusive spans, its cost and its transfers."""

    spans: tuple[tuple[int, int], ...]
    nbytes: int
    cost_us: float
    group: int  # at most one unit of a group is given up
    transfers: tuple[Transfer, ...] = ()


@dataclass(frozen=True, slots=True)
class Cover:
    """Share of each item given up, and a proven lower bound of the time that is added (inf: no cover exists)."""

    shares: Floats
    cost_us: float


def long_positions(position_us: Floats) -> list[int]:
    """Positions whose operator takes longer than a segment of the step."""
    return [int(p) for p in np.nonzero(position_us > position_us.sum() / _SEGMENTS)[0]]


def cover(items: Sequence[Item], demand: Floats, position_us: Floats, *, added: bool) -> Cover:
    """Solve the relaxation for `demand` bytes per position; `position_us` is the computing time of each position."""
    rows = np.nonzero(demand > 0)[0]
    if not len(rows):
        return Cover(np.zeros(len(items)), 0.0)
    spans = [_in_rows(item, rows) for item in items]
    used = [i for i, s in enumerate(spans) if s]
    program = _Program()
    columns = [program.column(items[i].cost_us * (not added) * _SCALE_US, 0.0, 1.0) for i in used]
    for column, index in zip(columns, used, strict=True):
        program.add_cover(column, items[index], spans[index], len(rows))
    program.add_demand(demand[rows] * _SCALE)
    program.add_groups(columns, [items[i] for i in used])
    program.add_channels(columns, [items[i] for i in used], _Segments(position_us), added)
    solved = program.solve()
    if solved is None:
        return Cover(np.ones(len(items)), float("inf"))
    shares = np.zeros(len(items))
    shares[used] = solved[0][: len(used)]
    return Cover(shares, max(0.0, solved[1] / _SCALE_US))


def _in_rows(item: Item, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Half-open spans of row numbers that an item covers."""
    spans = []
    for low, high in item.spans:
        first, last = (int(x) for x in np.searchsorted(rows, (low, high + 1)))
        if first < last:
            spans.append((first, last))
    return spans


class _Segments:
    """Positions cut into stretches of about equal computing time; an operator longer than that is one by itself.

    What happens between two positions (stalls, recomputations) counts to the segment of the first, or to the segment
    after it, where that is one long operator.
    """

    def __init__(self, position_us: Floats) -> None:
        long, length = set(long_positions(position_us)), float(position_us.sum()) / _SEGMENTS
        times, self._before = [0.0], []
        self.long: list[int] = []
        for position, time_us in enumerate(position_us.tolist()):
            self._before.append(len(times) - 1)
            if position in long:
                self.long.append(len(times))
                times += [time_us, 0.0]
                continue
            if times[-1] + time_us / 2 >= length:
                times.append(0.0)
            times[-1] += time_us
        self.time_us = np.array(times)

    @property
    def count(self) -> int:
        return len(self.time_us)

    def stretch(self, transfer: Transfer) -> tuple[int, int]:
        """First and last segment in which a transfer may run."""
        last = len(self._before) - 1
        first = self._before[max(0, min(transfer.after + 1, last))]
        return first, max(first, self._before[max(0, min(transfer.before, last))])


class _Solver(highspy.Highs):
    """Without callbacks, to which nobody listens: highspy 1.16 prints a line when it registers them, before it can be
    told to print nothing."""

    def enableCallbacks(self) -> None:
        pass


@dataclass(slots=True)
class _Program:
    """A linear program put together column by column; rows are named by any key."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    entries: list[Entries] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def column(self, cost: float, lower: float, upper: float) -> int:
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.entries.append([])
        return len(self.cost) - 1

    def row(self, lower: float, upper: float) -> int:
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        return len(self.row_lower) - 1

    def add_cover(self, column: int, item: Item, spans: list[tuple[int, int]], rows: int) -> None:
        """The item in m(r) - m(r - 1) - (items starting) + (items ending) = 0; these rows come first."""
        change: dict[int, float] = {}
        for first, last in spans:
            change[first] = change.get(first, 0.0) - item.nbytes * _SCALE
            if last < rows:
                change[last] = change.get(last, 0.0) + item.nbytes * _SCALE
        self.entries[column] += [(row, value) for row, value in sorted(change.items()) if value]

    def add_demand(self, demand: Floats) -> None:
        for index, least in enumerate(demand.tolist()):
            column, row = self.column(0.0, least, highspy.kHighsInf), self.row(0.0, 0.0)
            assert row == index
            self.entries[column].append((row, 1.0))
            if index + 1 < len(demand):
                self.entries[column].append((row + 1, -1.0))

    def add_groups(self, columns: list[int], items: list[Item]) -> None:
        """One row for every group of several items: their shares sum to one at most."""
        members: dict[int, list[int]] = {}
        for column, item in zip(columns, items, strict=True):
            members.setdefault(item.group, []).append(column)
        for group in members.values():
            if len(group) > 1:
                row = self.row(-highspy.kHighsInf, 1.0)
                for column in group:
                    self.entries[column].append((row, 1.0))

    def add_channels(self, columns: list[int], items: list[Item], segments: _Segments, added: bool) -> None:
        longer = [self.column(1.0, 0.0, highspy.kHighsInf) for _ in range(segments.count)]
        for segment in segments.long:
            self.upper[longer[segment]] = 0.0
        if added:
            row = self.row(0.0, highspy.kHighsInf)
            for column in longer:
                self.entries[column].append((row, 1.0))
            for column, item in zip(columns, items, strict=True):
                self.entries[column].append((row, -item.cost_us * _SCALE_US))
        for channel in sorted({t.channel for item in items for t in item.transfers}):
            sums = self.sum_by_stretch(columns, items, segments, channel)
            self.limit_stretches(sums, segments, longer)

    def sum_by_stretch(
        self, columns: list[int], items: list[Item], segments: _Segments, channel: int
    ) -> dict[tuple[int, int], int]:
        """The columns y: a row each says that it is the sum of its transfers."""
        sums: dict[tuple[int, int], int] = {}
        rows: dict[tuple[int, int], int] = {}
        for column, item in zip(columns, items, strict=True):
            for transfer in item.transfers:
                if transfer.channel != channel:
                    continue
                stretch = segments.stretch(transfer)
                if stretch not in sums:
                    sums[stretch], rows[stretch] = self.column(0.0, 0.0, highspy.kHighsInf), self.row(0.0, 0.0)
                    self.entries[sums[stretch]].append((rows[stretch], -1.0))
                self.entries[column].append((rows[stretch], transfer.time_us * _SCALE_US))
        return sums

    def limit_stretches(self, sums: dict[tuple[int, int], int], segments: _Segments, longer: list[int]) -> None:
        for first, last in sorted({(i, j) for i, _ in sums for _, j in sums if i <= j}):
            row = self.row(-highspy.kHighsInf, float(segments.time_us[first : last + 1].sum()) * _SCALE_US)
            for (i, j), column in sums.items():
                if first <= i and j <= last:
                    self.entries[column].append((row, 1.0))
            for column in longer[first : last + 1]:
                self.entries[column].append((row, -1.0))

    def solve(self) -> tuple[list[float], float] | None:
        """Values and the optimum, None when there is no solution."""
        solver = _Solver()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.passModel(self.model())
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return list(solver.getSolution().col_value), float(solver.getInfo().objective_function_value)

    def model(self) -> highspy.HighsLp:
        # One entry per row and column, as the solver wants them.
        merged: list[dict[int, float]] = []
        for entries in self.entries:
            column: dict[int, float] = {}
            for row, value in entries:
                column[row] = column.get(row, 0.0) + value
            merged.append(column)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.cost), len(self.row_lower)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.array(self.cost), np.array(self.lower), np.array(self.upper)
        lp.row_lower_, lp.row_upper_ = np.array(self.row_lower), np.array(self.row_upper)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = np.cumsum([0] + [len(c) for c in merged]).astype(np.int32)
        lp.a_matrix_.index_ = np.array([r for c in merged for r in c], dtype=np.int32)
        lp.a_matrix_.value_ = np.array([v for c in merged for v in c.values()])
        return lp
