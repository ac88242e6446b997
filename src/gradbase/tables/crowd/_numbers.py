"""Numbers: truths as means of what workers say, weighted by how far each of them usually is off.

x = truth + bias[w] + noise of variance[w]; no shrinkage of truths, for which the spread of the crowd is no guide.
Variances of workers are drawn to the crowd's; where no item has two claims, they are as large as that of all numbers.
Biases are *gated*: they are kept only where they make a worker's number, predicted from the other workers' alone and
from the worker's other numbers, better by a tenth; below that they rather follow which items a worker got.
Intervals are `_spread`'s.

Numbers are taken by a power of two that brings the widest difference between them near one: no bit of them changes, and
squares of the largest and the smallest numbers stay in range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradbase.tables._intervals import standard_errors
from gradbase.tables.crowd._spread import half_widths
from gradbase.tables.crowd._state import State
from gradbase.tables.crowd._types import NONE, Claims, Floats, Result, Why, Workers

PRIOR_CLAIMS = 100.0  # strength of the prior on a worker's variance
GATE = 0.9  # of the held-out squared error, what biases have to get below
ROUNDS = 50


@dataclass(frozen=True)
class _Rows:
    """Distinct claims, `value` in units of 2**exponent; `share` float64[n] is 1 / answers where a worker gave an item
    several."""

    item: Tensor
    worker: Tensor
    value: Tensor
    share: Tensor
    n_items: int
    n_workers: int
    exponent: int

    def unscaled(self, amounts: Floats) -> Floats:
        """Of numbers in the claims' own unit, those that they stand for."""
        return np.ldexp(amounts, self.exponent)

    def by_item(self, values: Tensor) -> Tensor:
        return torch.zeros(self.n_items, dtype=torch.float64).index_add_(0, self.item, values * self.share)

    def by_worker(self, values: Tensor) -> Tensor:
        return torch.zeros(self.n_workers, dtype=torch.float64).index_add_(0, self.worker, values * self.share)


@dataclass(frozen=True)
class _Estimate:
    truth: Tensor
    precision: Tensor
    bias: Tensor
    variance: Tensor
    held_out: float


def numbers(claims: Claims) -> Result:
    """The result for claims of kind "numbers"."""
    rows = _rows(claims)
    plain, biased = _estimate(rows, biased=False), _estimate(rows, biased=True)
    best = biased if biased.held_out < GATE * plain.held_out else plain
    count = np.bincount(rows.item.numpy(), minlength=rows.n_items).astype(np.int64)
    known = count > 0
    truth = np.where(known, best.truth.numpy(), np.nan)
    claimed = rows.by_item(torch.ones_like(rows.value)).numpy()
    rest = rows.value - best.bias[rows.worker] - best.truth[rows.item]
    squares = rows.by_item(rest**2 / best.variance[rows.worker])
    told = known & (bool((claimed > 1).any()) or float(rows.value.var(unbiased=False)) > 0)
    half = np.where(told, half_widths(best.precision.numpy(), squares.numpy(), claimed), np.nan)
    return Result(
        claims=claims,
        value=rows.unscaled(truth),
        probability=np.where(told, 0.9, 0.0),
        runner_up=np.full(rows.n_items, NONE),
        runner_up_probability=np.zeros(rows.n_items),
        claim_count=count,
        posterior=None,
        workers=_workers(rows, best),
        explain=_explanation(rows, best),
        state=State(claims, {}, len(claims)),
        interval=rows.unscaled(np.stack([truth - half, truth + half], 1)),
    )


def _rows(claims: Claims) -> _Rows:
    table = np.stack([claims.item, claims.worker, claims.label], 1, dtype=np.float64)
    distinct = np.unique(table, axis=0)
    pairs, inverse, answers = np.unique(distinct[:, :2], axis=0, return_inverse=True, return_counts=True)
    item, worker = (torch.from_numpy(distinct[:, column].astype(np.int64)) for column in (0, 1))
    share = torch.from_numpy(1.0 / answers[inverse.reshape(-1)])
    exponent = _exponent(distinct[:, 2])
    value = torch.from_numpy(np.ldexp(distinct[:, 2], -exponent))
    return _Rows(item, worker, value, share, len(claims.items), len(claims.workers), exponent)


def _exponent(value: Floats) -> int:
    """Of the power of two above half of the widest difference, or above the number if there is but one."""
    low, high = float(value.min(initial=np.inf)), float(value.max(initial=-np.inf))
    return math.frexp(high / 2 - low / 2 or high)[1]


def _estimate(rows: _Rows, biased: bool) -> _Estimate:
    ones = torch.ones_like(rows.value)
    claims = rows.by_worker(ones).clamp(min=1e-9)
    widest = max(float(rows.value.var(unbiased=False)), 1e-12)
    floor = widest * 1e-6
    variance = torch.full((rows.n_workers,), widest, dtype=torch.float64)
    bias = torch.zeros(rows.n_workers, dtype=torch.float64)
    for _ in range(ROUNDS):
        truth, precision, rest = _truths(rows, bias, variance)
        leverage = 1.0 - (1.0 / variance[rows.worker] * rows.share) / precision[rows.item]
        if biased:
            bias = _biases(rows, rest, leverage, variance, bias, claims)
            rest = rows.value - bias[rows.worker] - truth[rows.item]
        squares = torch.where(leverage > 1e-9, rest**2 / leverage.clamp(min=1e-9), 0.0)
        compared = rows.by_worker((leverage > 1e-9).double())
        pool = float(rows.by_worker(squares).sum() / compared.sum()) if compared.sum() > 0 else widest
        variance = ((rows.by_worker(squares) + PRIOR_CLAIMS * pool) / (compared + PRIOR_CLAIMS)).clamp(min=floor)
    truth, precision, rest = _truths(rows, bias, variance)
    leverage = 1.0 - (rows.share / variance[rows.worker]) / precision[rows.item]
    own = _own_part(rows, rest, leverage, bias, claims) if biased else torch.zeros_like(rest)
    judged = (leverage > 1e-6) & (compared > 1.5)[rows.worker]
    return _Estimate(truth, precision, bias, variance, _held_out(rest[judged], leverage[judged], own[judged]))


def _truths(rows: _Rows, bias: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Truths and their precisions float64[n_items], and what of each claim they leave unexplained."""
    weight = 1.0 / variance[rows.worker]
    precision = rows.by_item(weight).clamp(min=1e-30)
    truth = rows.by_item(weight * (rows.value - bias[rows.worker])) / precision
    return truth, precision, rows.value - bias[rows.worker] - truth[rows.item]


def _biases(
    rows: _Rows, rest: Tensor, leverage: Tensor, variance: Tensor, bias: Tensor, claims: Tensor
) -> Tensor:
    """Mean differences to the others, shrunk by how much of their spread chance explains; their median is zero."""
    mean = rows.by_worker(_differences(rows, rest, leverage, bias)) / claims
    chance = variance / claims
    seen = claims > 0.5
    spread = (mean**2 - chance)[seen].mean().clamp(min=0.0)
    shrunk = mean * spread / (spread + chance)
    return shrunk - shrunk[seen].median()


def _differences(rows: _Rows, rest: Tensor, leverage: Tensor, bias: Tensor) -> Tensor:
    """float64[n]: how far each claim is from what the others say of its item; its worker's bias where nobody does."""
    return torch.where(leverage > 1e-9, rest / leverage.clamp(min=1e-9), 0.0) + bias[rows.worker]


def _own_part(rows: _Rows, rest: Tensor, leverage: Tensor, bias: Tensor, claims: Tensor) -> Tensor:
    """float64[n]: how much of its worker's bias comes from the claim itself."""
    differences = _differences(rows, rest, leverage, bias)
    mean = (rows.by_worker(differences) / claims)[rows.worker]
    others = claims[rows.worker] - rows.share
    without = (mean * claims[rows.worker] - differences * rows.share) / others.clamp(min=1e-9)
    return mean - torch.where(others > 1e-9, without, 0.0)


def _held_out(rest: Tensor, leverage: Tensor, own: Tensor) -> float:
    """Mean squared error of predicting each claim from the others of its item, and its worker's bias from the others
    of the worker; `own` is what the claim itself adds to that bias."""
    return float(((rest / leverage + own) ** 2).mean()) if len(rest) else 0.0


def _workers(rows: _Rows, best: _Estimate) -> Workers:
    """Quality 1 / (1 + error variance / variance of truths); its interval from the variance's (normal in the log)."""
    counts = np.bincount(rows.worker.numpy(), minlength=rows.n_workers).astype(np.int64)
    said = torch.zeros(rows.n_items, dtype=torch.bool).index_fill_(0, rows.item, True)
    spread = max(float(best.truth[said].var(unbiased=False)), 1e-12)
    error = (best.variance + best.bias**2).numpy()
    factor = np.exp(standard_errors() * np.sqrt(2.0 / (counts + PRIOR_CLAIMS)))

    def quality(of: Floats) -> Floats:
        return 1.0 / (1.0 + of / spread)

    low, high = quality(error * factor), quality(error / factor)
    bias, deviation = (rows.unscaled(of.numpy()) for of in (best.bias, best.variance.sqrt()))
    return Workers(quality(error), low, high, counts, None, bias, deviation)


def _explanation(rows: _Rows, best: _Estimate) -> Callable[[], Why]:
    def explain() -> Why:
        weight = rows.share / best.variance[rows.worker] / best.precision[rows.item]
        reason = np.full(len(rows.value), "claim", dtype=object)
        return Why(rows.item.numpy(), rows.worker.numpy(), rows.unscaled(rows.value.numpy()), reason, weight.numpy())

    return explain
