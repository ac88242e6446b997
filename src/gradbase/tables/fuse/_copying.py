"""Who copies whom: sources that share what independent ones would hardly say both (Dong, Berti-Equille, Srivastava,
"Integrating conflicting data: the role of source dependence", VLDB 2009).

A copier takes its original's value with probability `rate` and speaks for itself otherwise. The same true value tells
little, for both are likely to know it; the same rare and false one tells much. Values that many of an item claim are
popular, and sharing them is no sign either.

Whether copies are then discounted is decided outside, on held-out claims (`_gates`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradbase.tables.fuse._discrete import Fit, Model
from gradbase.tables.fuse._relations import EXACT, OTHER
from gradbase.tables.fuse._types import Bools, Floats, Ints

CLAIMERS_MAX = 24  # a value claimed by more is popular
PAIRS_MAX = 4000  # suspects that are looked at closely
SAME_MIN = 3  # values shared before a pair is suspected
RATES = np.array([0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.98])
_EVIDENCE_MIN = 3.0  # nats, beyond what the number of pairs asks for
_TWIN_RATE = 0.88  # of the shared items: from here on two sources are suspected before any truth is known
_TWIN_SAME = 10
_DATED_SHARE = 0.8  # of the shared values: so many later ones make the later source the copier


@dataclass(frozen=True)
class Copying:
    """(pairs,) each; evidence in log-odds. `claim`, `copied`: claims that may be copies, and how probably they are."""

    copier: Ints
    original: Ints
    evidence: Floats
    rate: Floats
    shared: Ints
    same: Ints
    claim: Ints
    copied: Floats

    def independence(self, claims: int) -> Floats:
        """(claims,) the probability that a claim is its source's own."""
        own = np.ones(claims)
        np.multiply.at(own, self.claim, 1 - self.copied)
        return own


@dataclass(frozen=True)
class _Same:
    """Pairs of claims of one candidate by two sources: (same,) each. `rarity`: -log of the chance to agree."""

    copying: Ints
    copied: Ints
    chance: Floats


def detect(model: Model, fitted: Fit, weight: Floats) -> Copying:
    """Pairs with evidence beyond chance, for the claims with a weight."""
    chance = _chance(model, fitted)
    same = _same_values(model, np.flatnonzero(weight > 0), chance)
    problem = model.problem
    one, other = problem.source[same.copying], problem.source[same.copied]
    pair, names = _groups(one * problem.sources + other)
    names, same, pair = _suspects(names, pair, same)
    copier, original = names // max(1, problem.sources), names % max(1, problem.sources)
    shared = _shared_items(model, weight, copier, original)
    agreed = np.bincount(pair, minlength=len(names))
    by_rate = np.stack([_evidence(rate, pair, same.chance, agreed, shared) for rate in RATES], axis=1)
    best = by_rate.argmax(axis=1) if len(names) else np.empty(0, np.int64)
    evidence = by_rate.max(axis=1, initial=-np.inf)
    active = len(np.unique(problem.source[weight > 0]))
    kept = evidence > _EVIDENCE_MIN + np.log(max(1, active * (active - 1) // 2))
    used, rate = kept[pair], RATES[best]
    position = np.cumsum(kept) - 1
    own_rate = rate[pair[used]]
    copied = own_rate / (own_rate + (1 - own_rate) * same.chance[used])
    return (
        Copying(
            copier[kept],
            original[kept],
            evidence[kept],
            rate[kept],
            shared[kept],
            agreed[kept],
            same.copying[used],
            copied,
        )
        if len(position)
        else nothing_copied()
    )


def twins(model: Model, fitted: Fit, weight: Floats) -> Copying:
    """Pairs that nearly always say the same, before anything is believed: a clique of copiers that outvotes the others
    makes its own truth, by which it is the others who seem to copy their mistakes from each other."""
    problem = model.problem
    same = _same_values(model, np.flatnonzero(weight > 0), _chance(model, fitted))
    pair, names = _groups(problem.source[same.copying] * problem.sources + problem.source[same.copied])
    often = np.bincount(pair, minlength=len(names)) >= _TWIN_SAME
    used, position = often[pair], np.cumsum(often) - 1
    names, pair = names[often], position[pair[used]]
    same = _Same(same.copying[used], same.copied[used], same.chance[used])
    copier, original = names // max(1, problem.sources), names % max(1, problem.sources)
    shared, agreed = _shared_items(model, weight, copier, original), np.bincount(pair, minlength=len(names))
    rate = agreed / np.maximum(shared, 1)
    kept = rate >= _TWIN_RATE
    if not kept.any():
        return nothing_copied()
    used, none = kept[pair], np.zeros(int(kept.sum()))
    copied = np.minimum(rate[pair[used]], RATES[-1])
    return Copying(
        copier[kept], original[kept], none, rate[kept], shared[kept], agreed[kept], same.copying[used], copied
    )


def foretold(model: Model, copying: Copying, own: Floats, held: Bools, weight: Floats) -> Floats:
    """(held claims,) log probability when copiers may take what their originals say of the item. `own` (held claims,)
    is that of the sources speaking for themselves, `weight` that of the claims that are not held out."""
    problem = model.problem
    claims, given = np.flatnonzero(held), weight > 0
    order = np.argsort(copying.copier, kind="stable")
    bounds = np.searchsorted(copying.copier[order], np.arange(problem.sources + 1))
    pairs = np.diff(bounds)[problem.source[claims]]
    claim = np.repeat(np.arange(len(claims)), pairs)
    within = np.arange(len(claim)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    pair = order[bounds[problem.source[claims]][claim] + within]
    original, at = copying.original[pair], claims[claim]
    spoke = np.isin(original * problem.items + problem.item[at], (problem.source * problem.items + problem.item)[given])
    said = problem.source * problem.candidates + problem.candidate
    agrees = np.isin(original * problem.candidates + problem.candidate[at], said[given])
    rate = np.where(spoke, np.minimum(copying.rate[pair], 0.98), 0.0)
    alone = np.exp(np.bincount(claim, np.log1p(-rate), len(claims)))
    share = np.bincount(claim, rate * agrees, len(claims)) / np.maximum(np.bincount(claim, rate, len(claims)), 1e-12)
    return np.log(alone * np.exp(own) + (1 - alone) * share)


def nothing_copied() -> Copying:
    """No pair at all."""
    ints, floats = np.empty(0, np.int64), np.empty(0)
    return Copying(ints, ints, floats, floats, ints, ints, ints, floats)


def _groups(values: Ints) -> tuple[Ints, Ints]:
    names, group = np.unique(values, return_inverse=True)
    return group, names


def _chance(model: Model, fitted: Fit) -> Floats:
    """(claims,) how likely each source was to say by itself what it says."""
    problem = model.problem
    truth = fitted.probability[problem.candidate]
    exact, other = fitted.profile[problem.source, EXACT], fitted.profile[problem.source, OTHER]
    claimers = problem.per_candidate()[problem.candidate]
    popular = np.maximum(claimers - 2, 0) / problem.per_item()[problem.item]
    choice = np.maximum(np.exp(-model.log_domain[problem.item]), popular)
    return np.clip(truth * exact + (1 - truth) * (1 - exact) * choice + other * 1e-6, 1e-6, 1 - 1e-6)


def _same_values(model: Model, claims: Ints, chance: Floats) -> _Same:
    """Every two claims of a candidate that is not popular, the copier's first."""
    problem = model.problem
    order = claims[np.argsort(problem.candidate[claims], kind="stable")]
    candidate = problem.candidate[order]
    starts = np.flatnonzero(np.r_[True, candidate[1:] != candidate[:-1]]) if len(order) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(order)])
    one, other = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in range(2, CLAIMERS_MAX + 1):
        left, right = np.triu_indices(size, 1)
        group = starts[sizes == size]
        one.append(order[(group[:, None] + left).ravel()])
        other.append(order[(group[:, None] + right).ravel()])
    first, second = np.concatenate(one), np.concatenate(other)
    different = problem.source[first] != problem.source[second]
    copying, copied = _directed(model, first[different], second[different])
    return _Same(copying, copied, chance[copying])


def _directed(model: Model, first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Each pair with the copier's claim first: the source that mostly comes later where dates say so, else the one
    with fewer claims; an order among all sources, so that nobody copies from himself in a circle."""
    problem = model.problem
    size = problem.per_source()
    seen = np.full(problem.sources, problem.claims)
    np.minimum.at(seen, problem.source, np.arange(problem.claims))
    rank = np.empty(problem.sources, dtype=np.int64)
    rank[np.lexsort((seen, -size))] = np.arange(problem.sources)
    swap = rank[problem.source[first]] < rank[problem.source[second]]
    small, large = np.where(swap, second, first), np.where(swap, first, second)
    # Dates may turn a whole pair of sources round.
    pair, _ = _groups(problem.source[small] * problem.sources + problem.source[large])
    dated = ~np.isnan(problem.time[small] + problem.time[large])
    later = np.where(dated, np.sign(problem.time[large] - problem.time[small]), 0.0)
    total = np.bincount(pair, minlength=1)[pair] if len(pair) else np.empty(0)
    turned = np.bincount(pair, later, minlength=1)[pair] > _DATED_SHARE * total if len(pair) else np.empty(0, np.bool_)
    return np.where(turned, large, small), np.where(turned, small, large)


def _suspects(names: Ints, pair: Ints, same: _Same) -> tuple[Ints, _Same, Ints]:
    """The pairs that share most surprising values, at most PAIRS_MAX, with their shared values."""
    surprise = np.bincount(pair, -np.log(same.chance), len(names))
    suspected = (np.bincount(pair, minlength=len(names)) >= SAME_MIN) & (surprise > _EVIDENCE_MIN)
    if suspected.sum() > PAIRS_MAX:
        suspected &= surprise >= np.sort(surprise[suspected])[-PAIRS_MAX]
    used = suspected[pair]
    position = np.cumsum(suspected) - 1
    return names[suspected], _Same(same.copying[used], same.copied[used], same.chance[used]), position[pair[used]]


def _shared_items(model: Model, weight: Floats, copier: Ints, original: Ints) -> Ints:
    """(pairs,) items that both speak of."""
    problem = model.problem
    claims = np.flatnonzero(weight > 0)
    spoken = np.unique(problem.source[claims] * problem.items + problem.item[claims])
    source, item = spoken // max(1, problem.items), spoken % max(1, problem.items)
    bounds = np.searchsorted(source, np.arange(problem.sources + 1))
    items = {s: item[bounds[s] : bounds[s + 1]] for s in {*copier.tolist(), *original.tolist()}}
    both = (len(np.intersect1d(items[a], items[b], assume_unique=True)) for a, b in zip(copier, original, strict=True))
    return np.fromiter(both, np.int64, len(copier))


def _evidence(rate: float, pair: Ints, chance: Floats, agreed: Ints, shared: Ints) -> Floats:
    """(pairs,) log odds of copying at this rate over independence."""
    gained = np.log((rate + (1 - rate) * chance) / chance)
    return np.bincount(pair, gained, len(agreed)) + np.maximum(shared - agreed, 0) * np.log(1 - rate)
