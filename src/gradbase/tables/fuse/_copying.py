"""Who copies whom: sources that share what independent ones would hardly say both (Dong, Berti-Equille, Srivastava,
"Integrating conflicting data: the role of source dependence", VLDB 2009).

A copier takes a value of its original with probability `rate` and speaks for itself otherwise. The same true value
tells little, for both are likely to know it; the same rare and false one tells much. Values that many of an item claim
are popular, and sharing them is no sign either.

Whether copies are then discounted is decided outside, on held-out claims (`_gates`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradbase.tables.fuse._discrete import Fit, Model
from gradbase.tables.fuse._problem import Problem
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


Claimed = npt.NDArray[np.int32]  # positions of claims: there are more pairs of them than of anything else


@dataclass(frozen=True)
class Copying:
    """(pairs,) each; evidence in log-odds. `claim`, `copied`: claims that may be copies, and how probably they are: the
    first of those that differ in their time alone."""

    copier: Ints
    original: Ints
    evidence: Floats
    rate: Floats
    shared: Ints
    same: Ints
    claim: Ints
    copied: Floats

    def independence(self, problem: Problem) -> Floats:
        """(claims,) the probability that a claim is its source's own; what is copied is so however often it is said."""
        own = np.ones(int(problem.voice.max(initial=-1)) + 1)
        np.multiply.at(own, problem.voice[self.claim], 1 - self.copied)
        return own[problem.voice]


@dataclass(frozen=True)
class Together:
    """Who says the same as whom, and who speaks of what as well: of a set of claims, whatever is believed of them. Who
    says the same again later says it once.

    copying, copied: (same,) claims of one candidate by two sources, the copier's and its original's. pair: (same,)
    position in names: (pairs,) copier * sources + original. item: (spoken,) what sources speak of, in order, source by
    source; bounds: (sources + 1,) where each begins; voices: (spoken,) how many different values they say of it.
    beside: (claims,) how many the source of a claim says of its item.
    """

    copying: Claimed
    copied: Claimed
    pair: npt.NDArray[np.int32]
    names: Ints
    item: npt.NDArray[np.int32]
    bounds: Ints
    voices: npt.NDArray[np.int32]
    beside: npt.NDArray[np.int32]

    @classmethod
    def of(cls, model: Model, weight: Floats) -> Together:
        """That of the claims with a weight."""
        problem = model.problem
        claims = problem.first_of_voices(np.flatnonzero(weight > 0))
        copying, copied, pair, names = _directed(model, *_same_values(model, claims))
        of = problem.source * problem.items + problem.item
        said = np.sort(of[claims])
        starts = np.flatnonzero(np.r_[True, said[1:] != said[:-1]]) if len(said) else np.empty(0, np.int64)
        voices, spoken = np.diff(np.r_[starts, len(said)]).astype(np.int32), said[starts]
        beside = np.ones(problem.claims, dtype=np.int32)
        if len(spoken) < len(claims):
            beside[claims] = voices[np.searchsorted(spoken, of[claims])]
        bounds = np.searchsorted(spoken, np.arange(problem.sources + 1) * problem.items)
        item = (spoken % max(1, problem.items)).astype(np.int32)
        return cls(copying, copied, pair, names, item, bounds, voices, beside)

    @property
    def active(self) -> int:
        """Sources that say anything."""
        return int(np.count_nonzero(np.diff(self.bounds)))

    def sources(self, names: Ints) -> tuple[Ints, Ints]:
        """(pairs,) copiers and originals."""
        width = max(1, len(self.bounds) - 1)
        return names // width, names % width

    def shared(self, copier: Ints, original: Ints) -> tuple[Ints, Ints]:
        """(pairs,) items that both speak of, and how many values the copier says of them."""
        shared, said = np.empty(len(copier), np.int64), np.empty(len(copier), np.int64)
        for k, (one, other) in enumerate(zip(copier.tolist(), original.tolist(), strict=True)):
            both = self._also(one, other)
            shared[k], said[k] = len(both), self.voices[both].sum()
        return shared, said

    def _also(self, one: int, other: int) -> Ints:
        """Positions in `item` of what one source speaks of and the other as well."""
        (start, stop), (begin, end) = self.bounds[one : one + 2], self.bounds[other : other + 2]
        mine, theirs = self.item[start:stop], self.item[begin:end]
        if stop - start > end - begin:  # what is fewer is looked up
            place = np.searchsorted(mine, theirs)
            return start + place[mine[np.minimum(place, len(mine) - 1)] == theirs]
        place = np.minimum(np.searchsorted(theirs, mine), len(theirs) - 1)
        return start + np.flatnonzero(theirs[place] == mine)


def detect(model: Model, fitted: Fit, together: Together) -> Copying:
    """Pairs with evidence beyond chance."""
    chance = _chance(model, fitted)
    chance = np.where(together.beside > 1, -np.expm1(together.beside * np.log1p(-chance)), chance)[together.copying]
    suspected = _suspected(together, chance)
    copier, original = together.sources(together.names[suspected])
    pair, used = _renumbered(together, suspected)
    copying, chance, agreed = together.copying[used], chance[used], np.bincount(pair, minlength=len(copier))
    choice = 1 / together.beside[together.copied[used]]
    shared, said = together.shared(copier, original)
    by_rate = np.stack([_evidence(rate, pair, chance, choice, said - agreed) for rate in RATES], axis=1)
    evidence = by_rate.max(axis=1, initial=-np.inf)
    rate = RATES[by_rate.argmax(axis=1)] if len(copier) else np.empty(0)
    kept = evidence > _EVIDENCE_MIN + np.log(max(1, together.active * (together.active - 1) // 2))
    found = kept[pair]
    taken, own = rate[pair[found]] * choice[found], (1 - rate[pair[found]]) * chance[found]
    copied = taken / (taken + own)
    pairs = (column[kept] for column in (copier, original, evidence, rate, shared, agreed))
    return Copying(*pairs, copying[found].astype(np.int64), copied)


def twins(together: Together) -> Copying:
    """Pairs that nearly always say the same, before anything is believed: a clique of copiers that outvotes the others
    makes its own truth, by which it is the others who seem to copy their mistakes from each other."""
    often = np.bincount(together.pair, minlength=len(together.names)) >= _TWIN_SAME
    copier, original = together.sources(together.names[often])
    pair, used = _renumbered(together, often)
    (shared, said), agreed = together.shared(copier, original), np.bincount(pair, minlength=len(copier))
    rate = agreed / np.maximum(said, 1)
    kept = rate >= _TWIN_RATE
    found = kept[pair]
    copied = np.minimum(rate[pair[found]], RATES[-1])
    pairs = (column[kept] for column in (copier, original, np.zeros(len(kept)), rate, shared, agreed))
    return Copying(*pairs, together.copying[used][found].astype(np.int64), copied)


def _renumbered(together: Together, chosen: Bools) -> tuple[Ints, Bools]:
    """Positions among the chosen pairs (pairs,) of the claims that belong to one, and which do (same,)."""
    used = chosen[together.pair]
    return (np.cumsum(chosen) - 1)[together.pair[used]], used


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
    spoke = _among(original * problem.items + problem.item[at], (problem.source * problem.items + problem.item)[given])
    said = problem.source * problem.candidates + problem.candidate
    agrees = _among(original * problem.candidates + problem.candidate[at], said[given])
    rate = np.where(spoke, np.minimum(copying.rate[pair], 0.98), 0.0)
    alone = np.exp(np.bincount(claim, np.log1p(-rate), len(claims)))
    share = np.bincount(claim, rate * agrees, len(claims)) / np.maximum(np.bincount(claim, rate, len(claims)), 1e-12)
    return np.log(alone * np.exp(own) + (1 - alone) * share)


def nothing_copied() -> Copying:
    """No pair at all."""
    ints, floats = np.empty(0, np.int64), np.empty(0)
    return Copying(ints, ints, floats, floats, ints, ints, ints, floats)


def _among(wanted: Ints, values: Ints) -> Bools:
    """(wanted,) which of them are among the values: sorting is faster here than numpy's hashing."""
    ordered = np.append(np.sort(values), np.iinfo(np.int64).max)
    found: Bools = ordered[np.searchsorted(ordered, wanted)] == wanted
    return found


def _chance(model: Model, fitted: Fit) -> Floats:
    """(claims,) how likely each source was to say by itself what it says."""
    problem, item = model.problem, model.problem.candidate_item
    once = problem.first_of_voices(np.arange(problem.claims))
    said = np.bincount(problem.candidate[once], minlength=problem.candidates)
    popular = np.maximum(said - 2, 0) / np.bincount(item, said, problem.items)[item]
    choice = np.maximum(np.exp(-model.log_domain[item]), popular)  # (candidates,)
    exact, other = fitted.profile[:, EXACT], fitted.profile[:, OTHER]  # (sources,)
    chance = fitted.probability[problem.candidate] * exact[problem.source]
    chance += ((1 - fitted.probability) * choice)[problem.candidate] * (1 - exact)[problem.source]
    chance += (other * 1e-6)[problem.source]
    return np.clip(chance, 1e-6, 1 - 1e-6, out=chance)


def _same_values(model: Model, claims: Ints) -> tuple[Claimed, Claimed]:
    """Every two claims, by different sources, of a candidate that is not popular."""
    problem = model.problem
    order = claims[np.argsort(problem.candidate[claims], kind="stable")].astype(np.int32)
    candidate = problem.candidate[order]
    starts = np.flatnonzero(np.r_[True, candidate[1:] != candidate[:-1]]) if len(order) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(order)])
    one, other = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for size in range(2, CLAIMERS_MAX + 1):
        left, right = np.triu_indices(size, 1)
        group = starts[sizes == size]
        one.append(order[(group[:, None] + left).ravel()])
        other.append(order[(group[:, None] + right).ravel()])
    first, second = np.concatenate(one), np.concatenate(other)
    source = problem.source.astype(np.int32)
    different = source[first] != source[second]
    return first[different], second[different]


def _directed(model: Model, first: Claimed, second: Claimed) -> tuple[Claimed, Claimed, npt.NDArray[np.int32], Ints]:
    """Each pair with the copier's claim first: the source that mostly comes later where dates say so, else the one
    with fewer claims; an order among all sources, so that nobody copies from himself in a circle. Also the pairs of
    sources, as `Together` has them."""
    problem = model.problem
    rank = _rank(model)[problem.source].astype(np.int32)  # (claims,)
    swap = rank[first] < rank[second]
    small, large = np.where(swap, second, first), np.where(swap, first, second)
    del swap, rank, first, second
    names, pair = np.unique(problem.source[small] * problem.sources + problem.source[large], return_inverse=True)
    pair = pair.astype(np.int32)
    turned = _turned(problem, small, large, pair, len(names))
    if turned.any():
        copier, original = names // max(1, problem.sources), names % max(1, problem.sources)
        names, place = np.unique(np.where(turned, original * problem.sources + copier, names), return_inverse=True)
        by_claim = turned[pair]
        small, large = np.where(by_claim, large, small), np.where(by_claim, small, large)
        pair = place.astype(np.int32)[pair]
    return small, large, pair, names


def _rank(model: Model) -> Ints:
    """(sources,) the place of each, those with most claims first."""
    problem = model.problem
    seen = np.full(problem.sources, problem.claims)
    np.minimum.at(seen, problem.source, np.arange(problem.claims))
    rank = np.empty(problem.sources, dtype=np.int64)
    rank[np.lexsort((seen, -problem.per_source()))] = np.arange(problem.sources)
    return rank


def _turned(problem: Problem, small: Claimed, large: Claimed, pair: npt.NDArray[np.int32], pairs: int) -> Bools:
    """(pairs,) whether dates turn a pair of sources round: the first's claims mostly come before the other's."""
    if np.isnan(problem.time).all():
        return np.zeros(pairs, dtype=np.bool_)
    later = np.nan_to_num(np.sign(problem.time[large] - problem.time[small]))
    return np.bincount(pair, later, pairs) > _DATED_SHARE * np.bincount(pair, minlength=pairs)


def _suspected(together: Together, chance: Floats) -> Bools:
    """(pairs,) those that share most surprising values, at most PAIRS_MAX. `chance` (same,) to agree by itself."""
    surprise = np.bincount(together.pair, -np.log(chance), len(together.names))
    often = np.bincount(together.pair, minlength=len(together.names)) >= SAME_MIN
    suspected: Bools = often & (surprise > _EVIDENCE_MIN)
    if suspected.sum() > PAIRS_MAX:
        suspected &= surprise >= np.sort(surprise[suspected])[-PAIRS_MAX]
    return suspected


def _evidence(rate: float, pair: Ints, chance: Floats, choice: Floats, other: Ints) -> Floats:
    """(pairs,) log odds of copying at this rate over independence. (same,) `chance` that the copier says this by
    itself, `choice` that a copier takes this of what the original says; (pairs,) `other`: what else the copier says."""
    gained = np.log((rate * choice + (1 - rate) * chance) / chance)
    return np.bincount(pair, gained, len(other)) + other * np.log(1 - rate)
