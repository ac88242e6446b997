"""Values that were true until another was: a hidden Markov chain through the dated claims of an item.

Between two claims the truth changes with probability 1 - exp(-rate * time between), to any other claimed value. What a
claim says of the truth at its time is what the static model has it say. Items are walked through together, one claim
each at a time, so the work is the sum over items of claims times values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gradbase.tables.fuse._discrete import Fit, Links, Model, contributions, posterior, profiles_of, scores
from gradbase.tables.fuse._types import Bools, Floats, Ints

CHANGES = (0.2, 0.5, 1.0, 2.0, 5.0)  # tried: changes of an item in the median time between its first and last claim
_CELLS_MAX = 2_000_000  # claims times values of an item; larger ones are taken to be constant
_ROUNDS = 3


@dataclass(frozen=True)
class Chains:
    """Dated items in order of falling length, their claims by time.

    claim (steps,): claims in the order of walking, step by step; `bounds` (longest + 1,): where each step starts.
    values: candidates item after item; `starts` (chains + 1,): where each item's begin. place: (candidates,) the
    position of a candidate in `values`, -1 of undated items. gap: (steps,) time since the item's claim before.
    """

    item: Ints
    claim: Ints
    bounds: Ints
    values: Ints
    starts: Ints
    place: Ints
    gap: Floats

    @property
    def length(self) -> int:
        return len(self.bounds) - 1

    def alive(self, step: int) -> int:
        """How many items have a claim at this step: the first so many."""
        return int(self.bounds[step + 1] - self.bounds[step])


@dataclass(frozen=True)
class Timeline:
    """smoothed, filtered: per step, probabilities of the values of the items alive. rate: changes per unit of time."""

    chains: Chains
    rate: float
    filtered: list[Floats]
    smoothed: list[Floats]


def chain(model: Model) -> Chains | None:
    """The items whose claims are all dated, with more than one time and more than one value; None without any."""
    problem = model.problem
    low, high = np.full(problem.items, np.inf), np.full(problem.items, -np.inf)
    np.minimum.at(low, problem.item, np.where(np.isnan(problem.time), -np.inf, problem.time))
    np.maximum.at(high, problem.item, np.where(np.isnan(problem.time), np.inf, problem.time))
    claims = np.bincount(problem.item, minlength=problem.items)
    values = np.bincount(problem.candidate_item, minlength=problem.items)
    dated = np.isfinite(high - low) & (high > low) & (values > 1) & (claims * values <= _CELLS_MAX)
    if not dated.any():
        return None
    item = np.flatnonzero(dated)
    item = item[np.argsort(-claims[item], kind="stable")]
    rank = np.full(problem.items, -1)
    rank[item] = np.arange(len(item))
    order = np.flatnonzero(dated[problem.item])
    order = order[np.lexsort((problem.time[order], rank[problem.item[order]]))]
    first = np.cumsum(claims[item]) - claims[item]
    step = np.arange(len(order)) - first[rank[problem.item[order]]]
    gap = np.where(step > 0, np.diff(problem.time[order], prepend=0.0), 0.0)
    walk = np.argsort(step, kind="stable")
    candidates = np.flatnonzero(dated[problem.candidate_item])
    candidates = candidates[np.argsort(rank[problem.candidate_item[candidates]], kind="stable")]
    place = np.full(problem.candidates, -1)
    place[candidates] = np.arange(len(candidates))
    bounds = np.searchsorted(step[walk], np.arange(int(claims[item[0]]) + 1))
    starts = np.r_[0, np.cumsum(values[item])]
    return Chains(item, order[walk], bounds, candidates, starts, place, gap[walk])


def walk(model: Model, chains: Chains, fitted: Fit, weight: Floats, sharpness: float, rate: float) -> Timeline:
    """Forward and backward through all chains."""
    gained = sharpness * contributions(model, fitted.profile, fitted.lift, weight)
    evidence = _by_step(model.links, chains, gained)
    filtered = _forward(chains, evidence, rate)
    return Timeline(chains, rate, filtered, _backward(chains, evidence, filtered, rate))


def _by_step(links: Links, chains: Chains, gained: Floats) -> list[Floats]:
    """Per step, the log-odds that its claims give the values of the items alive."""
    step_of = np.full(int(links.claim.max(initial=-1)) + 1, -1)
    step_of[chains.claim] = np.repeat(np.arange(chains.length), np.diff(chains.bounds))
    used = step_of[links.claim] >= 0
    order = np.flatnonzero(used)[np.argsort(step_of[links.claim[used]], kind="stable")]
    bounds = np.searchsorted(step_of[links.claim[order]], np.arange(chains.length + 1))
    result = []
    for step in range(chains.length):
        here = order[bounds[step] : bounds[step + 1]]
        size = int(chains.starts[chains.alive(step)])
        result.append(np.bincount(chains.place[links.true[here]], gained[here], size))
    return result


def _sizes(chains: Chains, alive: int) -> Ints:
    return np.diff(chains.starts[: alive + 1])


def _spread(chains: Chains, alive: int, amounts: Floats) -> Floats:
    """From items to their values."""
    return np.repeat(amounts, _sizes(chains, alive))


def _sums(chains: Chains, alive: int, amounts: Floats) -> Floats:
    return np.add.reduceat(amounts, chains.starts[:alive])


def _moved(chains: Chains, step: int, before: Floats, rate: float) -> Floats:
    """Probabilities after the time that passes before a step; the same forth and back, for changes are symmetric."""
    alive = chains.alive(step)
    change = 1 - np.exp(-rate * chains.gap[chains.bounds[step] : chains.bounds[step + 1]])
    others = np.maximum(_sizes(chains, alive) - 1, 1)
    stay = _spread(chains, alive, 1 - change - change / others)
    total = _sums(chains, alive, before)
    return stay * before + _spread(chains, alive, total * change / others)


def _normalised(chains: Chains, alive: int, amounts: Floats) -> Floats:
    return amounts / _spread(chains, alive, np.maximum(_sums(chains, alive, amounts), 1e-300))


def _raised(chains: Chains, alive: int, logs: Floats) -> Floats:
    """Likelihoods from log-odds, the best of each item one."""
    return np.exp(logs - _spread(chains, alive, np.maximum.reduceat(logs, chains.starts[:alive])))


def _forward(chains: Chains, evidence: list[Floats], rate: float) -> list[Floats]:
    belief = 1 / _spread(chains, len(chains.item), _sizes(chains, len(chains.item)).astype(np.float64))
    result = []
    for step, logs in enumerate(evidence):
        alive = chains.alive(step)
        belief = _moved(chains, step, belief[: len(logs)], rate)
        belief = _normalised(chains, alive, belief * np.maximum(_raised(chains, alive, logs), 1e-30))
        result.append(belief)
    return result


def _backward(chains: Chains, evidence: list[Floats], filtered: list[Floats], rate: float) -> list[Floats]:
    """Smoothed beliefs: filtered ones times what the later claims say."""
    later = np.ones(0)
    result: list[Floats] = []
    for step in range(chains.length - 1, -1, -1):
        size = len(filtered[step])
        later = np.r_[later, np.ones(size - len(later))]
        result.append(_normalised(chains, chains.alive(step), filtered[step] * later))
        told = later * np.maximum(_raised(chains, chains.alive(step), evidence[step]), 1e-30)
        later = _normalised(chains, chains.alive(step), _moved(chains, step, told, rate))
        later = later * _spread(chains, chains.alive(step), _sizes(chains, chains.alive(step)).astype(np.float64))
    return result[::-1]


def claim_beliefs(model: Model, timeline: Timeline, static: Floats) -> Floats:
    """(links,) how probably the linked value was true when the claim was made; `static` (candidates,) elsewhere."""
    chains, links = timeline.chains, model.links
    beliefs = static[links.true]
    step_of, offset = np.full(model.problem.claims, -1), np.zeros(chains.length, dtype=np.int64)
    step_of[chains.claim] = np.repeat(np.arange(chains.length), np.diff(chains.bounds))
    offset[1:] = np.cumsum([len(step) for step in timeline.smoothed])[:-1]
    flat = np.concatenate(timeline.smoothed)
    dated = step_of[links.claim] >= 0
    beliefs[dated] = flat[offset[step_of[links.claim[dated]]] + chains.place[links.true[dated]]]
    return beliefs


def refine(
    model: Model, chains: Chains, fitted: Fit, weight: Floats, sharpness: float, rate: float
) -> tuple[Fit, Timeline]:
    """Sources judged by what was true at their time, a few rounds."""
    timeline = walk(model, chains, fitted, weight, sharpness, rate)
    for _ in range(_ROUNDS):
        beliefs = claim_beliefs(model, timeline, fitted.probability)
        profile, counts, mean = profiles_of(model, beliefs, weight, fitted.mean)
        fitted = replace(fitted, profile=profile, counts=counts, mean=mean)
        timeline = walk(model, chains, fitted, weight, sharpness, rate)
    score = scores(model, fitted.profile, fitted.lift, weight)  # for the items without dates
    probability, unclaimed = posterior(model, score)
    return replace(fitted, score=score, probability=probability, unclaimed=unclaimed), timeline


def rates(model: Model, chains: Chains) -> tuple[float, ...]:
    """Rates to try, by the median time that an item's claims span."""
    spans = np.zeros(len(chains.item))
    for step in range(chains.length):
        spans[: chains.alive(step)] += chains.gap[chains.bounds[step] : chains.bounds[step + 1]]
    return tuple(changes / float(np.median(spans)) for changes in CHANGES)


def dated_claims(model: Model, chains: Chains) -> Bools:
    """(claims,)"""
    dated = np.zeros(model.problem.claims, dtype=np.bool_)
    dated[chains.claim] = True
    return dated
