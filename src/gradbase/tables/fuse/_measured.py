"""A measured number: every source sees the truth through a bias, a scale and noise of its own.

    claim = bias + scale * truth + noise,   noise ~ N(0, noise of the source * spread of the item)

as in GTM (Zhao, Han, "A probabilistic model for estimating real-valued truth from conflicting sources", QDB 2012),
with bias and scale beside the noise and all three shrunk to the sources' own distribution of them (empirical Bayes).
Noise is shrunk on the logarithm, by as much as its estimate is uncertain given the tails (kurtosis) of what is left.

Bias and scale are kept where they predict held-out claims better. Two ways then lead from claims to a truth. One takes
each claim back through its scale; the other lets the scale only say how much a claim is worth, which is the safer one
when a low scale is a habit of answering "nothing" and no unit. Their mean is taken, unless held-out claims clearly
speak for the first. Units (a source in thousands) and gross errors (a digit too many) are found before.

Numbers are taken by a power of two that makes what claims of an item typically differ by about one: no bit of them
changes, squares of the largest and the smallest numbers stay in range, and small constants mean the same for all units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from gradbase.tables.fuse._gates import Gate, judge
from gradbase.tables.fuse._types import Bools, Floats, Ints

_UNIT_RATIO = 3.0  # a source whose claims are so many times the others' speaks in another unit
_UNIT_SPREAD = 0.2  # of the ratios, relative, to be believed
_UNIT_CLAIMS = 5
_GROSS = 6.0  # standard deviations
_SCALE_MIN = 0.05
_SPREAD_CLAIMS = 3.0  # claims that the common spread of items is worth
_KURTOSIS = (3.0, 30.0)
_TAIL = 4.0  # degrees of freedom of the predictive distribution
_CLEARLY = 0.02  # nats per held-out claim
_HELD_SHARE = 0.2
_FOLDS = 3
_GATED_MIN = 50  # claims
_SIGNAL_MIN = 1e-6  # variance of truths: where all numbers are one, sources that say it are right
_FINEST = 2.0**-250  # of the largest number: smaller differences are not looked at, so that fourth powers stay in range
_UNHEARD = 1e-6  # weight of claims without any, where an item has no others


@dataclass(frozen=True)
class Measurements:
    """Claims of one attribute: (claims,) each, `value` in units of 2**exponent. `item` and `source` are codes below
    `items` and `sources`."""

    value: Floats
    item: Ints
    source: Ints
    weight: Floats
    items: int
    sources: int
    exponent: int = 0

    @property
    def scaled(self) -> Measurements:
        """The same claims, typically about one apart."""
        largest = _exponent(np.abs(self.value).max(initial=0.0))
        apart = max(_typical(replace(self, value=np.ldexp(self.value, -largest))), _FINEST)
        exponent = largest + _exponent(apart)
        return replace(self, value=np.ldexp(self.value, -exponent), exponent=self.exponent + exponent)

    def unscaled(self, amounts: Floats) -> Floats:
        """Of numbers in the claims' own unit, those that they stand for."""
        return np.ldexp(amounts, self.exponent)

    @property
    def comparable(self) -> bool:
        """Whether anything says how far claims may be off: two of an item, or two different ones."""
        return bool((np.bincount(self.item, minlength=1) > 1).any()) or bool(np.ptp(self.value) > 0)

    def by_item(self, amounts: Floats) -> Floats:
        return np.bincount(self.item, amounts, self.items)

    def by_source(self, amounts: Floats) -> Floats:
        return np.bincount(self.source, amounts, self.sources)


@dataclass(frozen=True)
class Shape:
    """Which parts of the model are on. `uneven`: items differ in spread."""

    biased: bool = False
    scaled: bool = False
    uneven: bool = True


@dataclass(frozen=True)
class Fit:
    """truth, variance, spread: (items,); bias, scale, noise: (sources,), noise with a geometric mean of one."""

    truth: Floats
    variance: Floats
    spread: Floats
    bias: Floats
    scale: Floats
    noise: Floats


@dataclass(frozen=True)
class Estimate:
    """What was found, in the unit of the measurements. `share` (claims,): how much of its item's truth each claim is;
    `corrected` (claims,) the claims read as truths; (items,) `truth`, its standard `error`, and what earlier claims had
    to do with it."""

    truth: Floats
    error: Floats
    share: Floats
    corrected: Floats
    fit: Fit
    gates: tuple[Gate, ...]
    earlier: Earlier | None = None


@dataclass(frozen=True)
class Earlier:
    """(items,) what earlier claims gave: their truth, 0 where there is none, and its share of the present one."""

    truth: Floats
    share: Floats


def estimate(data: Measurements, draw: Floats, iterations_max: int) -> Estimate:
    """Truths of all items. `draw` (claims,) in [0, 1) chooses the held-out claims."""
    units = _units(data)
    data = replace(data, value=data.value / units[data.source])
    data = _heard(replace(data, weight=data.weight * ~_gross(data)))
    if (data.weight > 0).sum() < _GATED_MIN:
        draw = np.ones_like(draw)  # too few to hold any out
    shape, gates = _choose_shape(data, draw, iterations_max)
    fits = [fit(data, replace(shape, uneven=uneven), iterations_max) for uneven in (True, False)]
    both, gate = _both_ways(data, draw, shape, iterations_max)
    ways = (False, True) if both else (True,)
    shares = [_shares(data, f, corrected) for f in fits for corrected in ways]
    values = [_corrected(data, f, corrected) for f in fits for corrected in ways]
    share = np.mean(shares, axis=0)
    # The mean of the members' truths is one weighted mean, of claims as the members on average read them.
    worth = np.sum([s * v for s, v in zip(shares, values, strict=True)], axis=0) / len(shares)
    corrected = np.where(share > 0, worth / np.where(share > 0, share, 1.0), values[0])
    first = replace(fits[0], scale=fits[0].scale * units, bias=fits[0].bias * units)
    error = np.sqrt(np.mean([f.variance for f in fits], axis=0))
    return Estimate(data.by_item(worth), error, share, corrected, first, (*gates, gate))


def combined(found: Estimate, truth: Floats, error: Floats) -> Estimate:
    """The estimate with an earlier one of its items, by their precisions; NaN where there is none."""
    known = ~np.isnan(truth)
    mine, before = 1 / np.maximum(found.error, 1e-150) ** 2, np.where(known, 1 / np.maximum(error, 1e-150) ** 2, 0.0)
    part = before / (mine + before)
    past = Earlier(np.where(known, truth, 0.0), part)
    merged = (1 - part) * found.truth + part * past.truth
    return replace(found, truth=merged, error=1 / np.sqrt(mine + before), earlier=past)


def fit(data: Measurements, shape: Shape, iterations_max: int) -> Fit:
    """Alternate between truths and sources until the truths rest."""
    count = data.by_source(data.weight)
    total = np.maximum(data.by_item(data.weight), 1e-12)
    truth = data.by_item(data.weight * data.value) / total
    level = _level(data, truth)
    state = Fit(
        truth,
        np.full(data.items, level),
        np.full(data.items, level),
        np.zeros(data.sources),
        np.ones(data.sources),
        np.ones(data.sources),
    )
    prior = np.array([level, 0.1])
    for _ in range(iterations_max):
        before = state.truth
        state = _truths(data, state)
        if shape.biased or shape.scaled:
            state, prior = _readings(data, state, shape, count, prior)
        state = _noises(data, state, shape, count, level)
        if np.abs(state.truth - before).max(initial=0.0) <= 1e-6 * math.sqrt(level):
            break
    return _truths(data, state)


def _level(data: Measurements, truth: Floats) -> float:
    """Mean square of what claims are off; where no item has two, they may be as far off as numbers are apart."""
    heard = data.weight > 0
    alone = not (np.bincount(data.item[heard], minlength=1) > 1).any()
    middle = np.average(data.value, weights=data.weight) if alone else truth[data.item]
    return max(float(np.average((data.value - middle) ** 2, weights=data.weight)), 1e-12)


def _precision(data: Measurements, state: Fit) -> Floats:
    return data.weight / (state.noise[data.source] * state.spread[data.item])


def _truths(data: Measurements, state: Fit) -> Fit:
    precision, scale = _precision(data, state), state.scale[data.source]
    information = np.maximum(data.by_item(precision * scale**2), 1e-12)
    truth = data.by_item(precision * scale * (data.value - state.bias[data.source])) / information
    return replace(state, truth=truth, variance=1 / information)


def _readings(data: Measurements, state: Fit, shape: Shape, count: Floats, prior: Floats) -> tuple[Fit, Floats]:
    """Bias and scale of every source: ridge regressions of its claims on the truths, pulled to 0 and 1."""
    precision, truth = _precision(data, state), state.truth[data.item]
    ones = data.by_source(precision) + 1 / prior[0]
    squares = data.by_source(precision * truth**2) + 1 / prior[1]
    crossed = data.by_source(precision * truth) if shape.biased and shape.scaled else np.zeros(data.sources)
    against_bias = data.by_source(precision * (data.value - (0 if shape.scaled else truth)))
    against_scale = data.by_source(precision * truth * data.value) + 1 / prior[1]
    determinant = ones * squares - crossed**2
    bias = (against_bias * squares - against_scale * crossed) / determinant if shape.biased else state.bias
    scale = (against_scale * ones - against_bias * crossed) / determinant if shape.scaled else state.scale
    seen = count > 0
    spreads = np.array(
        [
            np.mean((bias**2 + squares / determinant)[seen]) if shape.biased else prior[0],
            np.mean(((scale - 1) ** 2 + ones / determinant)[seen]) if shape.scaled else prior[1],
        ]
    )
    # Only differences between sources can be seen: together they are taken to be right.
    if shape.biased:
        bias = bias - np.average(bias, weights=count)
    if shape.scaled:
        scale = np.maximum(scale, _SCALE_MIN)
        scale = scale / np.average(scale, weights=count)
    return replace(state, bias=bias, scale=scale), np.maximum(spreads, 1e-9)


def _noises(data: Measurements, state: Fit, shape: Shape, count: Floats, level: float) -> Fit:
    """Noise of sources and spread of items from what the truths leave of the claims."""
    scale = state.scale[data.source]
    left = (data.value - state.bias[data.source] - scale * state.truth[data.item]) ** 2
    left = data.weight * (left + scale**2 * state.variance[data.item])
    noise = _shrunk_noise(data, left / state.spread[data.item], state.noise, count)
    scaled = left / noise[data.source]
    common = max(float(scaled.sum() / max(data.weight.sum(), 1e-12)), 1e-9 * level)
    if not shape.uneven:
        return replace(state, noise=noise, spread=np.full(data.items, common))
    spread = (data.by_item(scaled) + _SPREAD_CLAIMS * common) / (data.by_item(data.weight) + _SPREAD_CLAIMS)
    return replace(state, noise=noise, spread=spread)


def _shrunk_noise(data: Measurements, left: Floats, before: Floats, count: Floats) -> Floats:
    """The sources' mean squares, each logarithm pulled to the common one by its own uncertainty."""
    seen = count > 0
    ratio = left / before[data.source]
    mean = max(float(ratio.sum() / max(count.sum(), 1e-12)), 1e-300)
    tails = float(np.clip((ratio**2).sum() / max(count.sum(), 1e-12) / mean**2, *_KURTOSIS)) - 1
    means = data.by_source(left)[seen] / count[seen]
    logs = np.log(np.maximum(means, 1e-3 * max(float(means.mean()), 1e-300)))
    error = tails / count[seen]
    center, between = float(np.average(logs, weights=1 / error)), 0.0
    for _ in range(3):
        trust = 1 / (between + error) ** 2
        between = max(float(np.average((logs - center) ** 2 - error, weights=trust)), 1e-3)
        center = float(np.average(logs, weights=1 / (between + error)))
    noise = np.full(data.sources, center)
    noise[seen] = center + (logs - center) * between / (between + error)
    return np.exp(noise - np.average(noise[seen], weights=count[seen]))


# -- from claims to truths, two ways


def _shares(data: Measurements, state: Fit, corrected: bool) -> Floats:
    """(claims,) weights that sum to one in every item."""
    scale = state.scale[data.source]
    worth = data.weight * (scale**2 if corrected else scale) / state.noise[data.source]
    return worth / np.maximum(data.by_item(worth), 1e-300)[data.item]


def _corrected(data: Measurements, state: Fit, corrected: bool) -> Floats:
    value = data.value - state.bias[data.source]
    return value / state.scale[data.source] if corrected else value


def _truth_by(data: Measurements, state: Fit, corrected: bool) -> Floats:
    return data.by_item(_shares(data, state, corrected) * _corrected(data, state, corrected))


# -- what held-out claims say


def _held(data: Measurements, draw: Floats) -> list[Bools]:
    """Claims of each fold; none where that would be all there are, which may say the same and so be drawn together."""
    heard = data.weight > 0
    folds = [(draw >= fold * _HELD_SHARE) & (draw < (fold + 1) * _HELD_SHARE) & heard for fold in range(_FOLDS)]
    return [held & bool((heard & ~held).any()) for held in folds]


def _likelihood(data: Measurements, held: Bools, state: Fit, truth: Floats) -> Floats:
    """(held claims with others in their item,) log density of a Student's t around what the source would say."""
    rest = np.bincount(data.item[~held], data.weight[~held], data.items)
    known = held & (rest > 0)[data.item]
    source, item = data.source[known], data.item[known]
    left = data.value[known] - state.bias[source] - state.scale[source] * truth[item]
    variance = state.noise[source] * state.spread[item] + state.scale[source] ** 2 * state.variance[item]
    return -0.5 * np.log(variance) - 0.5 * (_TAIL + 1) * np.log1p(left**2 / variance / _TAIL)


def _choose_shape(data: Measurements, draw: Floats, iterations_max: int) -> tuple[Shape, tuple[Gate, ...]]:
    """Add scale, then bias, each where it predicts better."""
    folds = _held(data, draw)

    def tried(shape: Shape) -> Floats:  # without any held-out claim, nothing is kept
        results = []
        for held in folds:
            state = fit(replace(data, weight=data.weight * ~held), shape, iterations_max)
            results.append(_likelihood(data, held, state, state.truth))
        return np.concatenate(results)

    best, shape, gates = tried(Shape()), Shape(), []
    for name, candidate in (("scale", Shape(scaled=True)), ("bias", Shape(biased=True))):
        candidate = replace(candidate, scaled=shape.scaled or candidate.scaled)
        likelihood = tried(candidate)
        gates.append(judge(name, best, likelihood))
        if gates[-1].kept:
            best, shape = likelihood, candidate
    return shape, tuple(gates)


def _both_ways(data: Measurements, draw: Floats, shape: Shape, iterations_max: int) -> tuple[bool, Gate]:
    """Whether both ways from claims to truths are averaged: not when taking scales back is clearly better."""
    if not shape.scaled:
        return False, Gate("claims taken back through their scale", False, 0.0)
    gains = []
    for held in _held(data, draw):
        rest = replace(data, weight=data.weight * ~held)
        state = fit(rest, shape, iterations_max)
        one, other = (_likelihood(data, held, state, _truth_by(rest, state, way)) for way in (True, False))
        gains.append(one - other)
    gain = float(np.concatenate(gains).mean())
    return gain <= _CLEARLY, Gate("claims taken back through their scale", gain > _CLEARLY, gain)


# -- before anything is fitted


def _middle(data: Measurements) -> tuple[Ints, Ints]:
    """(items,) the claim in the middle of each, or the two of an even number."""
    order = np.lexsort((data.value, data.item))
    counts = np.bincount(data.item, minlength=data.items)
    starts = np.cumsum(counts) - counts
    low, high = starts + (counts - 1) // 2, starts + counts // 2
    return order[np.maximum(low, 0)], order[np.minimum(high, len(order) - 1)]


def _medians(data: Measurements) -> Floats:
    """(items,)"""
    low, high = _middle(data)
    return (data.value[low] + data.value[high]) / 2


def _units(data: Measurements) -> Floats:
    """(sources,) 1, or the ratio at which a source's claims stand steadily to their items' medians."""
    median = _medians(data)[data.item]
    usable = (median != 0) & (data.value != 0) & (np.bincount(data.item, minlength=data.items) > 2)[data.item]
    units = np.ones(data.sources)
    order = np.lexsort((data.value, data.source))
    order = order[usable[order]]
    bounds = np.searchsorted(data.source[order], np.arange(data.sources + 1))
    ratio = data.value[order] / median[order]
    for source in np.flatnonzero(np.diff(bounds) >= _UNIT_CLAIMS):
        own = ratio[bounds[source] : bounds[source + 1]]
        middle = float(np.median(own))
        steady = float(np.median(np.abs(own / middle - 1))) < _UNIT_SPREAD if middle > 0 else False
        if steady and abs(math.log(middle)) > math.log(_UNIT_RATIO):
            units[source] = middle
    return units


def _typical(data: Measurements) -> float:
    """How far claims are from the median of their item, or numbers from the median of all, or from zero: the median of
    what is not zero of the first that is not zero throughout."""
    for middle in (_medians(data)[data.item], np.median(data.value), 0.0):
        away = np.abs(data.value - middle)
        if away.any():
            return float(np.median(away[away > 0]))
    return 1.0


def _exponent(number: float) -> int:
    return math.frexp(number)[1]


def _heard(data: Measurements) -> Measurements:
    """Where no claim of an item has any weight, all have a little: it is about there, and hardly anything is known."""
    silent = data.by_item(data.weight) == 0
    return replace(data, weight=np.where(silent[data.item], _UNHEARD, data.weight))


def _gross(data: Measurements) -> Bools:
    """(claims,) far outside of anything continuous. Of an item that would keep none, the middle claim stays; of two in
    the middle that which is nearer to the median of all numbers."""
    gross = _outside(np.abs(data.value - _medians(data)[data.item]))
    lost = data.by_item((~gross).astype(np.float64)) == 0
    one, other = (claim[lost] for claim in _middle(data))
    away = np.abs(data.value - np.median(data.value))
    gross[np.where(away[one] <= away[other], one, other)] = False
    return gross


def _outside(away: Floats) -> Bools:
    """(claims,) not in the accepted range, which grows from the middle until nothing joins; `away` (claims,) is how far
    from the middle they are."""
    inside = away <= np.quantile(away, 0.75)
    for _ in range(50):
        limit = _GROSS * math.sqrt(float(np.mean(away[inside] ** 2)))
        grown = inside | (away <= limit)
        if limit == 0 or (grown == inside).all():
            break
        inside = grown
    return ~inside if limit > 0 else np.zeros(len(away), dtype=np.bool_)


def quality(data: Measurements, found: Estimate) -> Floats:
    """(sources,) the share of the variance of a source's claims that the truths explain."""
    spread = float(np.median(found.fit.spread))
    signal = max(float(np.var(found.truth)), _SIGNAL_MIN)
    explained = signal / max(signal + spread, 1e-300)
    odds = explained / max(1 - explained, 1e-12) / found.fit.noise
    return odds / (1 + odds)
