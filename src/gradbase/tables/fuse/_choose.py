"""Which parts of the discrete model are kept, and the fit with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gradbase.common.malloc import release_freed_memory
from gradbase.tables.fuse._copying import Copying, Together, detect, foretold, nothing_copied, twins
from gradbase.tables.fuse._discrete import Fit, Model, Sharpness, fit, link, posterior, predict, without_similarity
from gradbase.tables.fuse._gates import ERRORS_MIN, SHARPNESSES, Folds, Gate, best_sharpness, judge
from gradbase.tables.fuse._problem import Problem
from gradbase.tables.fuse._relations import EXACT, relate_candidates
from gradbase.tables.fuse._temporal import Timeline, chain, claim_beliefs, dated_claims, rates, refine
from gradbase.tables.fuse._types import AttributeOptions, Bools, Config, Floats

GATED_CLAIMS_MAX = 120_000  # of larger problems a part decides what is kept
_COPY_ROUNDS = 2
_PAIR_COST = 3.0  # nats: of two stories that foretell alike, the one with fewer copiers,
_PARTIAL_COST = 8.0  # and the one in which they copy all, for that leaves less to chance


@dataclass(frozen=True)
class Solution:
    """weight: (claims,) that the fit gave each. sharpness: (items,) what log-odds are multiplied by."""

    model: Model
    fit: Fit
    weight: Floats
    sharpness: Floats
    copying: Copying
    timeline: Timeline | None
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class _Choice:
    similar: bool
    lifted: bool
    informed: bool  # by features of sources
    copied: bool
    twins: bool  # the search for copies starts from sources that always agree
    sharpness: Sharpness
    rate: float  # of change in time; 0 where the truth is constant
    gates: tuple[Gate, ...]


def solve(
    problem: Problem,
    options: Mapping[int, AttributeOptions],
    config: Config,
    known: Floats | None,
    features: Floats | None,
) -> Solution:
    """Choose on held-out claims, then fit all of them. `known` (sources, RELATIONS): counts from claims of other items,
    `features` (sources, columns), standardised; either may be None."""
    network = _Prior(features, config) if features is not None else None
    choice = _choose(_sample(problem), options, config, known, network)
    release_freed_memory()  # what led to the choice: the fit of all claims takes more
    model = _model(problem, options, config.similarity and choice.similar)
    model = replace(model, lifted=choice.lifted, known=known)
    weight, copying = problem.weight, nothing_copied()
    fitted = fit(model, weight, config.iterations_max)
    if network is not None:
        if choice.informed:
            model = network.inform(model, fitted)
            fitted = fit(model, weight, config.iterations_max)
        network.close()
    if choice.copied:
        together = Together.of(model, problem.weight)
        fitted, weight, copying = _discounted(model, fitted, problem.weight, together, config, choice.twins)
    chains, timeline = chain(model) if choice.rate else None, None
    if chains is not None:
        fitted, timeline = refine(model, chains, fitted, weight, choice.sharpness.contested, choice.rate)
    return Solution(model, fitted, weight, choice.sharpness.of_items(problem), copying, timeline, choice.gates)


def _model(problem: Problem, options: Mapping[int, AttributeOptions], similar: bool) -> Model:
    pairs = relate_candidates(problem, options)
    return Model(problem, link(problem, pairs if similar else pairs.exact_only()))


def _sample(problem: Problem) -> Problem:
    """A part of the items with at most GATED_CLAIMS_MAX claims, chosen by content."""
    if problem.claims <= GATED_CLAIMS_MAX:
        return problem
    draw = np.full(problem.items, 2.0)
    np.minimum.at(draw, problem.item, problem.draw)
    order = np.lexsort((np.arange(problem.items), draw))
    kept = np.zeros(problem.items, dtype=np.bool_)
    kept[order[np.cumsum(problem.per_item()[order]) <= GATED_CLAIMS_MAX]] = True
    return problem.subset(kept)


def _choose(
    problem: Problem,
    options: Mapping[int, AttributeOptions],
    config: Config,
    known: Floats | None,
    network: _Prior | None,
) -> _Choice:
    model = replace(_model(problem, options, config.similarity), known=known)
    folds = Folds.of(model, problem.weight, config.seed)
    fits = folds.fits(model, config.iterations_max)
    best, gates = folds.likelihood(model, fits), []
    similar = bool((model.links.relation != EXACT).any())
    if similar:
        plain = without_similarity(model)
        plain_fits = folds.fits(plain, config.iterations_max)
        gates.append(judge("similarity", folds.likelihood(plain, plain_fits), best))
        similar = gates[-1].kept
        if not similar:
            model, fits, best = plain, plain_fits, folds.likelihood(plain, plain_fits)
    flat = replace(model, lifted=False)
    flat_fits = folds.fits(flat, config.iterations_max)
    gates.append(judge("lift", folds.likelihood(flat, flat_fits), best))
    if not gates[-1].kept:
        model, fits = flat, flat_fits
    informed = False
    if network is not None:
        informed, model, fits = _judge_features(model, folds, fits, config, network, gates)
    copied, from_twins, fits = _judge_copies(model, folds, fits, config, gates)
    sharpness, sharp_gates = best_sharpness(folds, model, fits)
    gates += sharp_gates
    rate, sharpness = _judge_time(model, folds, fits, sharpness, gates)
    return _Choice(similar, model.lifted, informed, copied, from_twins, sharpness, rate, tuple(gates))


class _Prior:
    """Priors of sources from their features."""

    def __init__(self, features: Floats, config: Config) -> None:
        from gradbase.tables.fuse._features import Network

        self._network = Network(features, config.memory, config.seed)

    def close(self) -> None:
        self._network.close()

    def inform(self, model: Model, fitted: Fit) -> Model:
        """The model with each source's prior learned from the other sources."""
        from gradbase.tables.fuse._features import learned_prior

        draw = np.ones(model.problem.sources)
        np.minimum.at(draw, model.problem.source, model.problem.draw)
        order = np.argsort(np.argsort(draw, kind="stable"), kind="stable")
        draw = np.random.default_rng(0).permutation(len(draw))[order] / len(draw)
        return replace(model, prior=learned_prior(self._network, fitted.counts, fitted.mean, draw))


def _judge_features(
    model: Model, folds: Folds, fits: list[Fit], config: Config, network: _Prior, gates: list[Gate]
) -> tuple[bool, Model, list[Fit]]:
    """Whether priors from features predict better. What follows then is judged with the last fold's priors."""
    informed = [network.inform(model, fitted) for fitted in fits]
    weights = [folds.weight * ~held for held in folds.held]
    refits = [fit(m, weight, config.iterations_max) for m, weight in zip(informed, weights, strict=True)]
    gates.append(judge("features", folds.likelihood(model, fits), folds.likelihood(model, refits)))
    return (True, informed[-1], refits) if gates[-1].kept else (False, model, fits)


def _judge_time(
    model: Model, folds: Folds, fits: list[Fit], sharpness: Sharpness, gates: list[Gate]
) -> tuple[float, Sharpness]:
    """The rate of change that predicts dated claims best, and how sharp posteriors are then; a rate of 0 when a
    constant truth predicts as well."""
    chains = chain(model)
    if chains is None:
        return 0.0, sharpness
    dated = dated_claims(model, chains)

    def likelihood(rate: float, sharpness: Sharpness) -> Floats:
        found = []
        for fitted, held in zip(fits, folds.held, strict=True):
            beliefs = None
            if rate:
                weight = folds.weight * ~held
                fitted, timeline = refine(model, chains, fitted, weight, sharpness.contested, rate)
                sharp = sharpness.of_items(model.problem)
                beliefs = claim_beliefs(model, timeline, posterior(model, fitted.score, sharp)[0])
            found.append(predict(model, fitted, held, sharpness, beliefs)[dated[held]])
        return np.concatenate(found)

    tried = {(rate, sharpness): likelihood(rate, sharpness) for rate in rates(model, chains)}
    best = max(tried, key=lambda key: float(tried[key].sum()))
    # What looked like dependent sources may have been change.
    sharper = [replace(sharpness, contested=sharp) for sharp in SHARPNESSES if sharp > sharpness.contested]
    tried |= {(best[0], sharp): likelihood(best[0], sharp) for sharp in sharper}
    best = max(tried, key=lambda key: float(tried[key].sum()))
    gates.append(judge("time", likelihood(0.0, sharpness), tried[best]))
    return best if gates[-1].kept else (0.0, sharpness)


def _judge_copies(
    model: Model, folds: Folds, fits: list[Fit], config: Config, gates: list[Gate]
) -> tuple[bool, bool, list[Fit]]:
    """Whether copies are discounted, whether the search for them starts from twins, and the fits.

    Of two starts the one is taken whose truths and copiers together foretell the held-out claims better, less a cost
    for every pair. Copies are then discounted when that predicts the sources better that copy from nobody: what a
    copier says next is no measure, for it is foretold by its original whether or not the original is right. An original
    is foretold by its copies too, but sources in neither role may be few: they alone are asked where the others do not
    decide, of the attributes that copiers speak of, and have to be surer.
    """
    if config.copies == "off":
        return False, False, fits
    weights = [folds.weight * ~held for held in folds.held]
    folded = list(zip(fits, folds.held, weights, strict=True))
    said = [Together.of(model, weight) for weight in weights]
    found = {
        start: [_discounted(model, f, w, t, config, start) for f, w, t in zip(fits, weights, said, strict=True)]
        for start in (False, True)
    }

    def total(start: bool) -> float:
        own = [predict(model, other, held) for (other, _, _), held in zip(found[start], folds.held, strict=True)]
        parts = zip(found[start], own, folds.held, weights, strict=True)
        return sum(
            float(foretold(model, copying, p, held, w).sum()) - _cost(copying)
            for (_, _, copying), p, held, w in parts
        )

    start = total(True) > total(False) + 1e-6
    predicted = [
        np.stack([predict(model, fitted, held), predict(model, other, held)])
        for (fitted, held, _), (other, _, _) in zip(folded, found[start], strict=True)
    ]

    def judged(among: Callable[[Problem, Copying], Bools], errors: float) -> Gate:
        pairs = zip(predicted, found[start], folds.held, strict=True)
        without, having = np.concatenate([p[:, among(model.problem, f[2])[held]] for p, f, held in pairs], axis=1)
        return judge("copies", without, having, errors)

    gate = judged(_no_copiers, ERRORS_MIN)
    if not gate.kept:
        gate = judged(_in_no_role, 2 * ERRORS_MIN)
    copied = gate.kept or config.copies == "ungated"
    gates.append(replace(gate, kept=copied))
    return copied, start, [other for other, _, _ in found[start]] if copied else fits


def _no_copiers(problem: Problem, copying: Copying) -> Bools:
    """(claims,) whether the source copies from nobody."""
    return ~np.isin(problem.source, copying.copier)


def _in_no_role(problem: Problem, copying: Copying) -> Bools:
    """(claims,) whether nobody copies from the source either, and copiers speak of the claim's attribute."""
    attribute = problem.attribute[problem.item]
    theirs = np.isin(attribute, attribute[np.isin(problem.source, copying.copier)])
    return theirs & ~np.isin(problem.source, np.union1d(copying.copier, copying.original))


def _cost(copying: Copying) -> float:
    return float((_PAIR_COST + _PARTIAL_COST * (1 - copying.rate)).sum())


def _discounted(
    model: Model, fitted: Fit, weight: Floats, together: Together, config: Config, from_twins: bool
) -> tuple[Fit, Floats, Copying]:
    """Find copies and fit again without them, twice: better truths show copies better. `together`: of the claims with
    a weight."""
    if from_twins:
        own = weight * twins(together).independence(model.problem)
        fitted = fit(model, own, config.iterations_max)
    for _ in range(_COPY_ROUNDS):
        copying = detect(model, fitted, together)
        own = weight * copying.independence(model.problem)
        fitted = fit(model, own, config.iterations_max)
    return fitted, own, copying
