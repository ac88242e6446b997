"""Sets: every value that is claimed of an item is a member of its true set or not, each for itself.

A source that speaks of an item claims a true member with its sensitivity and a false one with its false positive rate
(the latent truth model: Zhao, Rubinstein, Gemmell, Han, "A Bayesian approach to discovering truth from conflicting
sources", VLDB 2012). So leaving a member out is evidence too, and speaks louder from sources that list everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradbase.tables.fuse._problem import Problem
from gradbase.tables.fuse._types import Floats, Ints

SENSITIVITY = (3.0, 1.5)  # pseudo claims for and against: a first guess, worth few claims
FALSE_POSITIVE = (1.0, 9.0)  # stronger: a source that mostly invents is no source
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Members:
    """probability, score (candidates,); sensitivity, false_positive (sources,); right, wrong (sources,): expected
    counts of true and false members claimed. `claimed` (claims,), `omitted` (candidates,): log-odds for the member, the
    latter with those of earlier claims."""

    probability: Floats
    score: Floats
    sensitivity: Floats
    false_positive: Floats
    right: Floats
    wrong: Floats
    claimed: Floats
    omitted: Floats


def find_members(problem: Problem, iterations_max: int, earlier: Floats) -> Members:
    """Expectation maximisation from shares of votes; `earlier` (candidates,) is the log-odds of earlier claims."""
    said = problem.first_of_voices(np.flatnonzero(problem.weight > 0))
    spoken = np.unique(problem.item[said] * problem.sources + problem.source[said])
    item, source = spoken // problem.sources, spoken % problem.sources
    speakers = np.bincount(item, minlength=problem.items)
    voices = np.bincount(problem.candidate[said], minlength=problem.candidates)
    probability = voices / np.maximum(speakers, 1)[problem.candidate_item]
    shared = (speakers > 1).astype(np.float64)  # who speaks alone agrees with himself
    for _ in range(iterations_max):
        found = _evidence(problem, said, (item, source), probability, shared, earlier)
        before, probability = probability, found.probability
        if np.abs(probability - before).max(initial=0.0) < _TOLERANCE:
            break
    return found


def _evidence(
    problem: Problem, said: Ints, spoken: tuple[Ints, Ints], probability: Floats, shared: Floats, earlier: Floats
) -> Members:
    """One round: rates of the sources from the members, members from the rates. `said`: claims, one of those that
    differ in their time alone; `spoken`: items and the sources that speak of them."""
    item, source = spoken
    weight = problem.weight * shared[problem.item]
    right = problem.per_source(weight * probability[problem.candidate])
    wrong = problem.per_source(weight * (1 - probability[problem.candidate]))
    true = shared * np.bincount(problem.candidate_item, probability, problem.items)
    false = shared * np.bincount(problem.candidate_item, 1 - probability, problem.items)
    sensitivity = _rate(right, np.bincount(source, true[item], problem.sources), SENSITIVITY)
    false_positive = _rate(wrong, np.bincount(source, false[item], problem.sources), FALSE_POSITIVE)
    left_out = np.log((1 - sensitivity) / (1 - false_positive))
    claimed = problem.weight * (np.log(sensitivity / false_positive))[problem.source]
    omitted = np.bincount(item, left_out[source], problem.items)[problem.candidate_item]
    omitted -= np.bincount(problem.candidate[said], left_out[problem.source[said]], problem.candidates)
    omitted += earlier
    score = problem.per_candidate(claimed) + omitted
    believed = 1 / (1 + np.exp(-np.clip(score, -700, 700)))
    return Members(believed, score, sensitivity, false_positive, right, wrong, claimed, omitted)


def _rate(seen: Floats, of: Floats, prior: tuple[float, float]) -> Floats:
    """Shrunk to the sources' common rate, itself shrunk to the prior's."""
    strength = sum(prior)
    common = (seen.sum() + prior[0]) / (of.sum() + strength)
    common = (common + prior[0] / strength) / 2
    shrunk: Floats = np.clip((seen + strength * common) / (np.maximum(of, seen) + strength), 1e-4, 1 - 1e-4)
    return shrunk
