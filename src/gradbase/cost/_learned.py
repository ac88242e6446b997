"""Time learned from measured operators of the same target.

A power law in arithmetic and traffic, log t = a + b log(1 + flops) + c log(1 + moved bytes), fitted robustly
(Huber's loss by reweighting, a touch of ridge because the two are often proportional), plus what nearby
measurements say the law misses: their residuals, averaged with a weight that falls with distance. The second
part carries the kinks (caches, threads) that no power law has. It answers only within its range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradbase.catalog import OperatorStatistics
from gradbase.cost._profiles import DeviceProfile
from gradbase.cost._roofline import roofline_time_us
from gradbase.ir.costs import Estimate

Floats = npt.NDArray[np.float64]

ROWS_MIN = 6  # measured rows needed: two for every coefficient
FOLDS_MAX = 32  # leave-one-out up to so many rows; above it, so many folds

_HUBER = 1.345  # of the residuals' scale: 95% efficient on normal noise (Huber 1981)
_MAD_PER_SIGMA = 0.6745
_REWEIGHTINGS = 8
_RIDGE = 1e-3
_REACH = math.log(2)  # a factor of two in flops or bytes is near
_NEAREST_MAX = math.log(4)  # no measurement within a factor of four: no answer
_TIME_US_MIN = 1e-3

_DTYPE = re.compile(r"\b(?:bfloat|float|complex|uint|int)\d+\w*")


def group_of(target: str, signature: str) -> tuple[str, str]:
    """What is learned together: one target in one dtype, the first that its signature names."""
    dtype = _DTYPE.search(signature)
    return target, dtype.group() if dtype else ""


@dataclass(frozen=True)
class LearnedModel:
    """A fitted model of one group. `points` (rows, 2): log flops and log moved bytes; `residuals` (rows,): log time."""

    points: Floats = field(repr=False)
    residuals: Floats = field(repr=False)
    coefficients: Floats
    rows: tuple[OperatorStatistics, ...] = field(repr=False)

    def covers(self, flops: float, moved_bytes: float) -> bool:
        """Whether a query lies in the measured range or near it, with a measurement within reach."""
        point = _point(flops, moved_bytes)
        inside = (point >= self.points.min(axis=0) - _REACH) & (point <= self.points.max(axis=0) + _REACH)
        return bool(inside.all()) and float(self._distances(point).min()) <= _NEAREST_MAX

    def time_us(self, flops: float, moved_bytes: float) -> float:
        """The predicted time."""
        point = _point(flops, moved_bytes)
        nearness = np.exp(-((self._distances(point) / _REACH) ** 2))
        # One in the denominator: a lone neighbour is believed by half, many together nearly in full.
        correction = float(nearness @ self.residuals) / (float(nearness.sum()) + 1)
        return math.exp(float(self.coefficients @ _design(point[None])[0]) + correction)

    def scratch_bytes(self, flops: float, moved_bytes: float) -> int:
        """Scratch in proportion to traffic, as the most demanding of the three nearest measurements had it."""
        nearest = np.argsort(self._distances(_point(flops, moved_bytes)), kind="stable")[:3]
        share: float = max(self.rows[i].scratch_bytes / max(1, self.rows[i].moved_bytes) for i in nearest)
        return math.ceil(share * moved_bytes)

    def estimate(self, flops: float, moved_bytes: float) -> Estimate:
        return Estimate(self.time_us(flops, moved_bytes), self.scratch_bytes(flops, moved_bytes), "learned")

    def _distances(self, point: Floats) -> Floats:
        distances: Floats = np.hypot(*(self.points - point).T)
        return distances


def fit(rows: Iterable[OperatorStatistics]) -> LearnedModel | None:
    """A model of measured rows of one group; None when fewer than ROWS_MIN of them say what they computed."""
    usable = tuple(row for row in rows if row.moved_bytes > 0 and row.time_us > 0)
    if len(usable) < ROWS_MIN:
        return None
    points = np.array([_point(row.flops, row.moved_bytes) for row in usable])
    times = np.log([max(row.time_us, _TIME_US_MIN) for row in usable])
    coefficients = _huber(_design(points), times)
    residuals = times - _design(points) @ coefficients
    # A measurement far off the law is noise sooner than a kink: it may not pull its neighbours with it.
    limit = 3 * _scale(residuals)
    return LearnedModel(points, np.clip(residuals, -limit, limit), coefficients, usable)


def _point(flops: float, moved_bytes: float) -> Floats:
    return np.log1p(np.array([flops, moved_bytes], dtype=np.float64))


def _design(points: Floats) -> Floats:
    """(rows, 3): one, log flops, log moved bytes."""
    return np.column_stack([np.ones(len(points)), points])


def _huber(design: Floats, target: Floats) -> Floats:
    """Coefficients (3,) of the robust fit, by iteratively reweighted least squares."""
    center = np.array([0.0, *design[:, 1:].mean(axis=0)])
    centered = design - center
    weights = np.ones(len(target))
    solution: Floats = np.zeros(design.shape[1])
    for _ in range(_REWEIGHTINGS):
        weighted = centered.T * weights
        penalty = np.diag([0.0, _RIDGE, _RIDGE])
        solution = np.linalg.solve(weighted @ centered + penalty, weighted @ target)
        residuals = np.abs(target - centered @ solution)
        limit = _HUBER * _scale(residuals)
        weights = limit / np.maximum(residuals, limit)
    solution[0] -= float(center @ solution)
    return solution


def _scale(residuals: Floats) -> float:
    """A standard deviation that outliers do not move; never zero."""
    return max(float(np.median(np.abs(residuals))) / _MAD_PER_SIGMA, 1e-6)


@dataclass(frozen=True, slots=True)
class Validation:
    """Median relative error of both estimators on `count` measured rows; the learned one never saw its row."""

    count: int
    learned_error: float
    roofline_error: float

    @property
    def learned_is_better(self) -> bool:
        return self.learned_error < self.roofline_error


def validate(rows: Sequence[OperatorStatistics], profile: DeviceProfile) -> Validation | None:
    """Leave-one-out (up to FOLDS_MAX rows, else that many folds) against the roofline; None with too few rows."""
    usable = [row for row in rows if row.moved_bytes > 0 and row.time_us > 0]
    if len(usable) <= ROWS_MIN:
        return None
    learned = np.empty(len(usable))
    folds = min(len(usable), FOLDS_MAX)
    for fold in range(folds):
        held = range(fold, len(usable), folds)
        model = fit(row for i, row in enumerate(usable) if i % folds != fold)
        if model is None:
            return None
        learned[held] = [model.time_us(usable[i].flops, usable[i].moved_bytes) for i in held]
    actual = np.array([row.time_us for row in usable])
    rooflines = np.array([_roofline_of(row, profile) for row in usable])
    return Validation(len(usable), _median_error(learned, actual), _median_error(rooflines, actual))


def _roofline_of(row: OperatorStatistics, profile: DeviceProfile) -> float:
    _, dtype = group_of(row.op, row.signature)
    return roofline_time_us(row.flops, row.moved_bytes, dtype, profile)


def _median_error(estimated: Floats, actual: Floats) -> float:
    errors: Any = np.abs(estimated - actual) / actual
    return float(np.median(errors))
