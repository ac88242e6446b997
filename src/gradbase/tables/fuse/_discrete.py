"""One truth among open values: sources as multinomials over relations, values lifted by who claims them where.

Of item i with the truth t, source s claims c with probability profile[s, r] / choices, where r is the relation of c
to t (`_relations`): the truth itself, a vaguer or finer form, something near it, or any other of an open domain of
values. Profiles have a Dirichlet prior whose mean is learned (empirical Bayes); the hierarchical part follows TDH
(Jung, Kim, Shim, "Crowdsourced truth discovery in the presence of hierarchies", ICDE 2019), the open domain of false
values ACCU (Dong, Berti-Equille, Srivastava, VLDB 2009). Nobody may have claimed the truth: the unclaimed rest of the
domain is a candidate too, so a lone claim is as probable as its source is right.

What a source says of one value may be better or worse than what it says in general (a parser that takes first names
for towns). Every (source, value) therefore has a *lift*: its odds to be right over those its source gives it, from all
its other claims of that value, shrunk towards none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gradbase.tables.fuse._problem import Problem
from gradbase.tables.fuse._relations import EXACT, OTHER, RELATIONS, Pairs
from gradbase.tables.fuse._types import Bools, Floats, Ints

DOMAIN = 100.0  # false values that an item may have, as in ACCU; no more than its attribute has at all
UNCLAIMED = 0.1  # what a value of an open domain weighs that nobody claimed
STRENGTH = 4.0  # claims that a profile's prior is worth
LIFT_STRENGTH = 2.0  # claims that "no lift" is worth
BASE = np.array([0.60, 0.15, 0.05, 0.05, 0.15])  # the first guess at the mean profile
_PROFILE_MIN = 1e-4
_UNSEEN_MIN = 1e-6  # values of a domain that is known to its last
_TOLERANCE = 1e-4  # of probabilities, between rounds


@dataclass(frozen=True)
class Links:
    """Every claim with every candidate it is related to. (links,) each; `choices` (links,): the log of 1 / how many
    candidates of the item stand in this relation to this truth."""

    claim: Ints
    true: Ints
    relation: npt.NDArray[np.int8]
    choices: Floats


def link(problem: Problem, pairs: Pairs) -> Links:
    """Expand pairs of candidates to claims; linear in the claims of related candidates."""
    by_candidate = np.argsort(problem.candidate, kind="stable")
    counts = np.bincount(problem.candidate, minlength=problem.candidates)
    starts = np.cumsum(counts) - counts
    repeats = counts[pairs.claimed]
    place = np.arange(int(repeats.sum()))
    place += np.repeat(starts[pairs.claimed] - (np.cumsum(repeats) - repeats), repeats)
    group = pairs.true * RELATIONS + pairs.relation
    choices = -np.log(np.bincount(group, minlength=problem.candidates * RELATIONS)[group])
    return Links(
        claim=by_candidate[place],
        true=np.repeat(pairs.true, repeats),
        relation=np.repeat(pairs.relation.astype(np.int8), repeats),
        choices=np.repeat(choices, repeats),
    )


@dataclass(frozen=True)
class Model:
    """What a fit is of. `known` (sources, RELATIONS): counts from claims of other items; `prior` (sources,
    RELATIONS): the mean profile of each source, where something is known of it.
    """

    problem: Problem
    links: Links
    lifted: bool = True
    known: Floats | None = None
    prior: Floats | None = None

    @cached_property
    def cell(self) -> Ints:
        """(links,) where a table (sources, RELATIONS) has the link's source and relation."""
        return self.problem.source[self.links.claim] * RELATIONS + self.links.relation

    @cached_property
    def openness(self) -> Floats:
        """(links,) how much less likely an unclaimed value makes a claim, whoever makes it."""
        return self.links.choices + self.log_domain[self.problem.item[self.links.claim]]

    @cached_property
    def log_domain(self) -> Floats:
        """(items,) of the number of values that a false claim may be of."""
        vocabulary = self.problem.vocabulary
        return np.log(np.where(vocabulary > DOMAIN, DOMAIN + self._claimed, np.maximum(vocabulary - 1, 1)))

    def log_rest(self, claimed: Ints) -> Floats:
        """(items,) of the number of values of the domain beyond the `claimed` (items,) ones. Where those are all of a
        small vocabulary, what is left are those that no claim is of yet."""
        vocabulary = self.problem.vocabulary
        unseen = np.where(vocabulary > 1, np.maximum(self.problem.unseen, _UNSEEN_MIN), 1.0)
        rest = np.where(vocabulary > claimed, vocabulary - claimed, unseen)
        return np.log(np.where(vocabulary > DOMAIN, DOMAIN, rest))

    @cached_property
    def log_unclaimed(self) -> Floats:
        """(items,) what the values that nobody claimed weigh together."""
        return self.log_weight + self.log_rest(self._claimed)

    @cached_property
    def log_weight(self) -> Floats:
        """(items,) what such a value weighs, where a claimed one weighs one before its claims. The values of a small
        vocabulary weigh alike; of an open domain, what is claimed at all is likelier from the start."""
        return np.where(self.problem.vocabulary > DOMAIN, np.log(UNCLAIMED), 0.0)

    @cached_property
    def _claimed(self) -> Ints:
        return np.bincount(self.problem.candidate_item, minlength=self.problem.items)


@dataclass(frozen=True)
class Fit:
    """profile (sources, RELATIONS); lift (claims,); score (candidates,) log-odds against an unclaimed value;
    probability (candidates,); unclaimed (items,); counts (sources, RELATIONS) expected; mean (RELATIONS,)."""

    profile: Floats
    lift: Floats
    score: Floats
    probability: Floats
    unclaimed: Floats
    counts: Floats
    mean: Floats


def fit(model: Model, weight: Floats, iterations_max: int, start: Fit | None = None) -> Fit:
    """Expectation maximisation. `weight` (claims,): 0 for claims to be left out, less than 1 for copies."""
    problem = model.problem
    heard = weight * shared_claims(model, weight)
    total = problem.per_source(heard)
    mean = BASE if start is None else start.mean
    prior = np.tile(mean, (problem.sources, 1)) if model.prior is None else model.prior
    profile, lift = (prior, np.zeros(problem.claims)) if start is None else (start.profile, start.lift)
    before = np.zeros(problem.candidates)
    counts = np.zeros_like(prior)
    for _ in range(iterations_max):
        score = scores(model, profile, lift, weight)
        probability, unclaimed = posterior(model, score)
        counts = _counts(model, probability[model.links.true], heard, total)
        profile, mean = _profiles(model, counts, mean)
        if model.lifted:
            lift = _lifts(problem, profile, probability, heard)
        if np.abs(probability - before).max(initial=0.0) < _TOLERANCE:
            break
        before = probability
    score = scores(model, profile, lift, weight)  # of the last profiles, so that contributions add up to it
    probability, unclaimed = posterior(model, score)
    return Fit(profile, lift, score, probability, unclaimed, counts, mean)


def shared_claims(model: Model, weight: Floats) -> Bools:
    """(claims,) of items that two sources speak of, or spoke: a lone claim agrees with itself, which tells nothing."""
    return (model.problem.sources_of_items(weight > 0) > 1)[model.problem.item]


def contributions(model: Model, profile: Floats, lift: Floats, weight: Floats) -> Floats:
    """(links,) log-odds that a claim gives a candidate, against an unclaimed value."""
    links, logs = model.links, np.log(profile)
    gained: Floats = (logs - logs[:, [OTHER]]).ravel()[model.cell]
    gained += model.openness
    if model.lifted:
        gained += np.where(links.relation == EXACT, lift[links.claim], 0.0)
    gained *= weight[links.claim]
    return gained


def scores(model: Model, profile: Floats, lift: Floats, weight: Floats) -> Floats:
    """(candidates,) the sum of contributions."""
    gained = contributions(model, profile, lift, weight)
    return np.bincount(model.links.true, gained, model.problem.candidates)


@dataclass(frozen=True)
class Sharpness:
    """By what log-odds are multiplied to be calibrated: of items with one value, and of those with several. Sources
    that agree on most items may be no better than chance where they differ: those are the hard ones."""

    agreed: float = 1.0
    contested: float = 1.0

    def of_items(self, problem: Problem, candidates: Bools | None = None) -> Floats:
        """(items,), from all candidates or from those given (candidates,)."""
        item = problem.candidate_item if candidates is None else problem.candidate_item[candidates]
        several = np.bincount(item, minlength=problem.items) > 1
        return np.where(several, self.contested, self.agreed)


AS_FOUND = Sharpness()


def posterior(
    model: Model, score: Floats, sharpness: Floats | None = None, unclaimed: Floats | None = None
) -> tuple[Floats, Floats]:
    """Probabilities of the candidates and, per item, of a value that nobody claimed. `sharpness` (items,); `unclaimed`
    (items,) the log of what such values weigh, where that is not the model's."""
    problem = model.problem
    sharpness = np.ones(problem.items) if sharpness is None else sharpness
    unclaimed = model.log_unclaimed if unclaimed is None else unclaimed
    top = unclaimed.copy()
    np.maximum.at(top, problem.candidate_item, score)
    raised = np.exp(sharpness[problem.candidate_item] * (score - top[problem.candidate_item]))
    rest = np.exp(sharpness * (unclaimed - top))
    total = np.bincount(problem.candidate_item, raised, problem.items) + rest
    return raised / total[problem.candidate_item], rest / total


def profiles_of(model: Model, beliefs: Floats, weight: Floats, mean: Floats) -> tuple[Floats, Floats, Floats]:
    """profile, counts and mean, given how probably each link's value was true when it was claimed (links,)."""
    heard = weight * shared_claims(model, weight)
    counts = _counts(model, beliefs, heard, model.problem.per_source(heard))
    profile, mean = _profiles(model, counts, mean)
    return profile, counts, mean


def _counts(model: Model, beliefs: Floats, weight: Floats, total: Floats) -> Floats:
    """(sources, RELATIONS) how often each source's claims stand in each relation to the truth, in expectation. `total`
    (sources,): the sums of their weights."""
    links, problem = model.links, model.problem
    held = weight[links.claim] * beliefs
    counts = np.bincount(model.cell, held, problem.sources * RELATIONS).reshape(-1, RELATIONS)
    counts[:, OTHER] = np.maximum(total - counts[:, :OTHER].sum(axis=1), 0.0)
    return counts if model.known is None else counts + model.known


def claim_counts(model: Model, beliefs: Floats, weight: Floats) -> Floats:
    """(claims, RELATIONS) what each claim adds to its source's counts."""
    links, problem = model.links, model.problem
    held = weight * shared_claims(model, weight)
    cell = links.claim * RELATIONS + links.relation
    counts = np.bincount(cell, held[links.claim] * beliefs, problem.claims * RELATIONS).reshape(-1, RELATIONS)
    counts[:, OTHER] = np.maximum(held - counts[:, :OTHER].sum(axis=1), 0.0)
    return counts


def _profiles(model: Model, counts: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """Posterior mean profiles, and the mean over sources, each with the weight that its claims give it."""
    total = counts.sum(axis=1)
    trust = total / (total + STRENGTH)
    raw = (counts + STRENGTH * mean) / (total + STRENGTH)[:, None]
    mean = (trust @ raw + BASE) / (trust.sum() + 1)
    mean = np.maximum(mean, _PROFILE_MIN) / np.maximum(mean, _PROFILE_MIN).sum()
    prior = mean if model.prior is None else model.prior
    profile = (counts + STRENGTH * prior) / (total + STRENGTH)[:, None]
    return np.maximum(profile, _PROFILE_MIN), mean


def _lifts(problem: Problem, profile: Floats, probability: Floats, weight: Floats) -> Floats:
    """(claims,) log-odds of the claim's (source, value) over its source's, from the other items' claims of it."""
    expected = profile[problem.source, EXACT]
    cells = int(problem.cell.max(initial=-1)) + 1

    def others(amount: Floats) -> Floats:
        mine = weight * amount
        return np.maximum(np.bincount(problem.cell, mine, cells)[problem.cell] - mine, 0.0)

    count, right, hoped = others(np.ones(problem.claims)), others(probability[problem.candidate]), others(expected)
    for_right = (right + LIFT_STRENGTH * expected) / (hoped + LIFT_STRENGTH * expected)
    doubt = LIFT_STRENGTH * (1 - expected) + _PROFILE_MIN
    for_wrong = (np.maximum(count - right, 0) + doubt) / (np.maximum(count - hoped, 0) + doubt)
    return np.log(for_right / for_wrong)


def predict(
    model: Model, fitted: Fit, held: Bools, sharpness: Sharpness = AS_FOUND, beliefs: Floats | None = None
) -> Floats:
    """(held claims,) log probability of claims, from the truths that the others gave.

    A value that only held claims have is no candidate: it is one of the domain that nobody claimed. `beliefs` (links,)
    stand for the posterior where the truth changes in time.
    """
    problem, links = model.problem, model.links
    alive = np.bincount(problem.candidate[~held], minlength=problem.candidates) > 0
    sharp = sharpness.of_items(problem, alive)
    rest = model.log_rest(np.bincount(problem.candidate_item[alive], minlength=problem.items))
    score = np.where(alive, fitted.score, -np.inf)
    probability, unclaimed = posterior(model, score, sharp, model.log_weight + rest)
    log_domain, item = model.log_domain, problem.item
    exact, other = fitted.profile[problem.source, EXACT], fitted.profile[problem.source, OTHER]
    other = other * np.exp(-log_domain[item])
    used = held[links.claim]
    claim, true = links.claim[used], links.true[used]
    believed = probability[true] if beliefs is None else alive[true] * beliefs[used]
    related = fitted.profile[problem.source[claim], links.relation[used]] * np.exp(links.choices[used])
    extra = np.bincount(claim, believed * (related - other[claim]), problem.claims)
    novel = ~alive[problem.candidate] * unclaimed[item] * exact * np.exp(-rest[item])
    return np.log(np.maximum(other + extra + novel, 1e-12))[held]


def without_similarity(model: Model) -> Model:
    """The same model with nothing related but the same."""
    kept, links = model.links.relation == EXACT, model.links
    exact = Links(links.claim[kept], links.true[kept], links.relation[kept], links.choices[kept])
    return replace(model, links=exact)
