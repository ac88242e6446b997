"""Matching without labels: a mixture of matches and others over a few similarities, with candidates in competition.

Fellegi and Sunter's model ("A Theory for Record Linkage", JASA 1969) by expectation-maximisation, with Gaussian
similarities whose correlation the two components share (as in ZeroER: Wu, Chaba, Sawlani, Chu, Thirumuruganathan,
"ZeroER: Entity Resolution using Zero Labeled Examples", SIGMOD 2020). In every expectation a record's candidates
compete with each other and with "none of them", which is what tells a match from a near miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.tables.match._features import WHOLE, Features
from gradbase.tables.match._relations import best_rival
from gradbase.tables.match._types import Floats, Ints

COMPETITION = "other candidates"

_ROUNDS = 25
_LOG_ODDS_MOST = 30.0
_SURENESS = 0.2  # of the mixture's log-odds, which are far too sure: similarities of one pair are hardly Gaussian
_SHRINKAGE = 0.1  # of correlations towards none
_VARIANCE_LEAST = 0.02  # of standardised similarities
_PRIOR_COUNT = 1.0  # of pairs, towards no difference and little variance
_SEED_MATCH, _SEED_OTHER = 0.9, 0.02
_PRESENT_LEAST = 0.02

_PER_COLUMN = ("tokens cos", "3-grams cos")
_OVERALL = ("tokens cos", "tokens cover", "3-grams cos", "edits of common tokens")
_CODES = ("codes same", "codes left contained", "codes right contained")


@dataclass(frozen=True)
class Mixture:
    """`log_odds`: float64[pairs]; `parts`: what each similarity adds, float64[pairs, similarities]; `names` of them
    as (column, name), the last being the competition; `intercept`: the log-odds of any pair."""

    log_odds: Floats
    parts: Floats
    names: tuple[tuple[str, str], ...]
    intercept: float

    @property
    def guesses(self) -> Floats:
        """Probabilities as the mixture itself believes them: nearly decided, good to learn from."""
        return 1 / (1 + np.exp(-self.log_odds / _SURENESS))


def fit_mixture(
    features: Features, left: Ints, right: Ints, *, exclusive: bool, known: Floats | None = None
) -> Mixture:
    """Fit to candidate pairs of the records `left` and `right`.

    `exclusive`: at most one of a record's candidates is a match, and log-odds say so; the components are learned with
    competition in either case, because what is best for both its records shows what matches look like.
    `known`: float64[pairs], 0 or 1, NaN if not known.
    """
    similarities, names = _similarities(features)
    shape = _Standard.of(similarities)
    answers = np.full(len(left), np.nan) if known is None else known
    chance = _clamped(_seed(shape, left, right), answers)
    for _ in range(_ROUNDS):
        parts, intercept = _expectation(shape, chance)
        alone = np.clip(parts.sum(axis=1) + intercept, -_LOG_ODDS_MOST, _LOG_ODDS_MOST)
        log_odds = compete(alone, left, right)
        chance = _clamped(1 / (1 + np.exp(-np.clip(log_odds, -_LOG_ODDS_MOST, _LOG_ODDS_MOST))), answers)
    log_odds = log_odds if exclusive else alone
    columns = np.column_stack([parts, log_odds - parts.sum(axis=1) - intercept])
    return Mixture(_SURENESS * log_odds, _SURENESS * columns, (*names, (WHOLE, COMPETITION)), _SURENESS * intercept)


def compete(log_odds: Floats, left: Ints, right: Ints) -> Floats:
    """Log-odds against "none" and all other candidates of the left record, or of the right, whichever are stronger."""
    return log_odds - np.maximum(_others(log_odds, left), _others(log_odds, right))


def _others(log_odds: Floats, records: Ints) -> Floats:
    """log(1 + sum of the odds of a record's other candidates)."""
    most = np.full(records.max() + 1, -_LOG_ODDS_MOST)
    np.maximum.at(most, records, log_odds)
    scaled = np.exp(log_odds - most[records])
    rest = np.maximum(np.bincount(records, scaled)[records] - scaled, 1e-12)
    return np.logaddexp(0, np.log(rest) + most[records])


def _similarities(features: Features) -> tuple[Floats, list[tuple[str, str]]]:
    """A few that say little twice; NaN where a value is missing. Those hardly ever there are left out."""
    found: dict[tuple[str, str], Floats] = {}
    has = set(zip(features.columns, features.names, strict=True))
    for column in [c for c in dict.fromkeys(features.columns) if c != WHOLE]:
        for name in _PER_COLUMN:
            found[column, name] = _where(features, column, "present", name)
        if (column, "amount near") in has:
            found[column, "amount near"] = _where(features, column, "amount known", "amount near")
    for name in _OVERALL:
        found[WHOLE, name] = features.of(WHOLE, name).astype(np.float64)
    found[WHOLE, "codes"] = _code_agreement(features)
    kept = {key: v for key, v in found.items() if np.isfinite(v).mean() > _PRESENT_LEAST and np.nanstd(v) > 0}
    kept = kept or {(WHOLE, _OVERALL[0]): found[WHOLE, _OVERALL[0]]}
    return np.column_stack(list(kept.values())), list(kept)


def _where(features: Features, column: str, condition: str, name: str) -> Floats:
    return np.where(features.of(column, condition) > 0, features.of(column, name).astype(np.float64), np.nan)


def _code_agreement(features: Features) -> Floats:
    agreement = np.max([features.of(WHOLE, name) for name in _CODES], axis=0).astype(np.float64)
    return np.where((features.of(WHOLE, "codes in both") > 0) | (agreement > 0), agreement, np.nan)


@dataclass(frozen=True)
class _Standard:
    """Standardised similarities: 0 where missing."""

    values: Floats
    present: NDArray[np.bool_]

    @classmethod
    def of(cls, similarities: Floats) -> _Standard:
        present = np.isfinite(similarities)
        centred = (similarities - np.nanmean(similarities, axis=0)) / (np.nanstd(similarities, axis=0) + 1e-6)
        return cls(np.where(present, centred, 0.0), present)


def _clamped(chance: Floats, known: Floats) -> Floats:
    return np.where(np.isnan(known), chance, known)


def _seed(data: _Standard, left: Ints, right: Ints) -> Floats:
    """To begin with, matches are pairs that are each other's best candidate and about as alike as such pairs are."""
    score = data.values.sum(axis=1) / np.sqrt(data.present.sum(axis=1) + 1)
    every = np.ones(len(score), dtype=bool)
    rival = np.maximum(best_rival(left, score, every), best_rival(right, score, every))
    best = (score >= rival) & (score >= np.median(score))
    least = 0.7 * np.median(score[best]) if best.any() else np.inf
    return np.where(best & (score >= least), _SEED_MATCH, _SEED_OTHER)


def _expectation(data: _Standard, chance: Floats) -> tuple[Floats, float]:
    """What each similarity adds to a pair's log-odds, after re-estimating both components, and the prior log-odds."""
    match, other = (_moments(data, weight) for weight in (chance, 1 - chance))
    precision = np.linalg.inv(_correlation(data, chance, match, other))
    share = float(np.clip(chance.mean(), 1e-6, 0.5))
    parts = _log_density(data, match, precision) - _log_density(data, other, precision)
    return parts, float(np.log(share / (1 - share)))


_Moments = tuple[Floats, Floats]


def _moments(data: _Standard, weight: Floats) -> _Moments:
    counts = (weight[:, None] * data.present).sum(axis=0) + _PRIOR_COUNT
    mean = (weight[:, None] * data.values).sum(axis=0) / counts
    squares = (weight[:, None] * data.present * (data.values - mean) ** 2).sum(axis=0)
    return mean, (squares + 0.1 * _PRIOR_COUNT) / counts + _VARIANCE_LEAST


def _deviations(data: _Standard, moments: _Moments) -> Floats:
    return np.where(data.present, (data.values - moments[0]) / np.sqrt(moments[1]), 0.0)


def _correlation(data: _Standard, chance: Floats, match: _Moments, other: _Moments) -> Floats:
    """Within components, pooled over both, shrunk."""
    products = np.zeros((data.values.shape[1],) * 2)
    for weight, moments in ((chance, match), (1 - chance, other)):
        deviations = _deviations(data, moments)
        products += (deviations * weight[:, None]).T @ deviations
    scale = np.sqrt(np.diag(products)) + 1e-6
    return (1 - _SHRINKAGE) * products / np.outer(scale, scale) + _SHRINKAGE * np.eye(len(scale))


def _log_density(data: _Standard, moments: _Moments, precision: Floats) -> Floats:
    """Row sums are Gaussian log-densities, less a constant; an entry is the similarity's own share of the sum."""
    deviations = _deviations(data, moments)
    return -0.5 * (deviations @ precision * deviations + np.log(moments[1]) * data.present)
