"""The covering problem under every plan: which gaps to give up so that every position fits, at least cost.

With m(p) the bytes freed at position p, a linear program over 0 <= x <= 1 (the share of a gap that is given up):

    minimise  sum of cost * x      subject to      m(p) = sum of nbytes * x over gaps that cover p,   m(p) >= demand(p)

m is written as differences between neighbouring positions, so every gap stands in two rows instead of in every
position it covers: the constraint matrix of a network, on which the dual simplex takes few steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

_SCALE = 1 / 2**20  # rows in MiB, so that coefficients stay near one


@dataclass(frozen=True, slots=True)
class Item:
    """Something to give up: the bytes it frees at the positions of its inclusive spans, and its cost in µs."""

    spans: tuple[tuple[int, int], ...]
    nbytes: int
    cost_us: float
    group: int  # at most one unit of a group is given up


@dataclass(frozen=True, slots=True)
class Cover:
    """Share of each item given up, and a proven lower bound of the cost (inf: no cover exists)."""

    shares: NDArray[np.float64]
    cost_us: float


def cover(items: Sequence[Item], demand: NDArray[np.float64]) -> Cover:
    """Solve the relaxation for `demand` bytes per position."""
    rows = np.nonzero(demand > 0)[0]
    if not len(rows):
        return Cover(np.zeros(len(items)), 0.0)
    spans = [_in_rows(item, rows) for item in items]
    used = [i for i, s in enumerate(spans) if s]
    model = _model([items[i] for i in used], [spans[i] for i in used], demand[rows])
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return Cover(np.ones(len(items)), float("inf"))
    shares = np.zeros(len(items))
    shares[used] = np.array(solver.getSolution().col_value)[: len(used)]
    return Cover(shares, float(solver.getInfo().objective_function_value))


def _in_rows(item: Item, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Half-open spans of row numbers that an item covers."""
    spans = []
    for low, high in item.spans:
        first, last = (int(x) for x in np.searchsorted(rows, (low, high + 1)))
        if first < last:
            spans.append((first, last))
    return spans


def _model(items: Sequence[Item], spans: list[list[tuple[int, int]]], demand: NDArray[np.float64]) -> highspy.HighsLp:
    """Columns: items, then m per row. Rows: m(r) - m(r - 1) - (items starting) + (items ending) = 0, then groups."""
    count, rows = len(items), len(demand)
    columns = [_column(item, span, rows) for item, span in zip(items, spans, strict=True)]
    groups = _add_groups(items, columns, rows)
    columns += [[(r, 1.0)] + ([(r + 1, -1.0)] if r + 1 < rows else []) for r in range(rows)]
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = count + rows, rows + groups
    lp.col_cost_ = np.array([i.cost_us for i in items] + [0.0] * rows)
    lp.col_lower_ = np.concatenate([np.zeros(count), demand * _SCALE])
    lp.col_upper_ = np.concatenate([np.ones(count), np.full(rows, highspy.kHighsInf)])
    lp.row_lower_ = np.concatenate([np.zeros(rows), np.full(groups, -highspy.kHighsInf)])
    lp.row_upper_ = np.concatenate([np.zeros(rows), np.ones(groups)])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.cumsum([0] + [len(c) for c in columns]).astype(np.int32)
    lp.a_matrix_.index_ = np.array([r for c in columns for r, _ in c], dtype=np.int32)
    lp.a_matrix_.value_ = np.array([v for c in columns for _, v in c])
    return lp


def _column(item: Item, spans: list[tuple[int, int]], rows: int) -> list[tuple[int, float]]:
    entries: dict[int, float] = {}
    for first, last in spans:
        entries[first] = entries.get(first, 0.0) - item.nbytes * _SCALE
        if last < rows:
            entries[last] = entries.get(last, 0.0) + item.nbytes * _SCALE
    return [(row, value) for row, value in sorted(entries.items()) if value]


def _add_groups(items: Sequence[Item], columns: list[list[tuple[int, float]]], rows: int) -> int:
    """One row for every group of several items: their shares sum to one at most."""
    members: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        members.setdefault(item.group, []).append(index)
    several = [indices for indices in members.values() if len(indices) > 1]
    for number, indices in enumerate(several):
        for index in indices:
            columns[index].append((rows + number, 1.0))
    return len(several)
