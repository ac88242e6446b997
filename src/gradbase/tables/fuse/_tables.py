"""From fits to the tables of a `Result`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradbase.tables._intervals import of_believed_share, standard_errors
from gradbase.tables.fuse._choose import Solution
from gradbase.tables.fuse._discrete import STRENGTH, contributions, posterior
from gradbase.tables.fuse._gates import Gate
from gradbase.tables.fuse._history import best_of_chains, gains, last_beliefs
from gradbase.tables.fuse._measured import Estimate, Measurements, quality
from gradbase.tables.fuse._members import Members
from gradbase.tables.fuse._problem import Problem
from gradbase.tables.fuse._relations import EXACT
from gradbase.tables.fuse._types import Floats, Ints, Objects, Table

TRUTHS = ("object", "attribute", "value", "probability", "runner_up", "runner_up_probability", "claims", "low", "high")
SOURCES = ("source", "attribute", "quality", "low", "high", "claims", "bias", "scale")
COPIES = ("copier", "original", "probability", "evidence", "shared", "same")
WHY = ("claim", "object", "attribute", "source", "value", "member", "log_odds")
HISTORY = ("object", "attribute", "value", "since", "until", "probability")
GATES = ("name", "kept", "gain")

COMMON = 0.05  # of the doubt about a source's claims: with it 90% intervals hold for the seven sources of birthplaces

_TYPES: dict[str, npt.DTypeLike] = {
    **dict.fromkeys(("object", "attribute", "claims", "source", "copier", "original", "claim"), np.int64),
    **dict.fromkeys(("shared", "same"), np.int64),
    **dict.fromkeys(("value", "runner_up", "member", "name"), np.object_),
    "kept": np.bool_,
}


def stack(names: Sequence[str], parts: Sequence[Table]) -> Table:
    """One table of several, with these columns and the types that they have everywhere."""
    types = {name: _TYPES.get(name, np.float64) for name in names}
    if len(parts) == 1:
        return {name: parts[0][name].astype(types[name], copy=False) for name in names}
    return {
        name: np.concatenate([np.empty(0, types[name]), *(part[name].astype(types[name]) for part in parts)])
        for name in names
    }


# -- discrete truths


def winners(problem: Problem, score: Floats) -> tuple[Ints, Ints]:
    """(items,) the best and the second best candidate of each, -1 where there is none.

    Equal scores (to nine digits) go to the value with more claims, then to the first in the order of its text.
    """
    if not problem.candidates:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.lexsort((problem.rank, -problem.per_candidate(), -np.round(score, 9), problem.candidate_item))
    item = problem.candidate_item[order]
    starts = np.searchsorted(item, np.arange(problem.items))
    sizes = np.bincount(item, minlength=problem.items)
    second = np.where(sizes > 1, order[np.minimum(starts + 1, len(order) - 1)], -1)
    return order[starts], second


@dataclass(frozen=True)
class Decision:
    """best, second (items,): candidates, -1 for none; probability, other (items,): theirs, `other` that of any
    unclaimed value where there is no second."""

    best: Ints
    second: Ints
    probability: Floats
    other: Floats


def decide(solution: Solution) -> Decision:
    """What is true, now where it changes."""
    problem, timeline = solution.model.problem, solution.timeline
    probability, unclaimed = posterior(solution.model, solution.fit.score, solution.sharpness)
    best, second = winners(problem, solution.fit.score)
    if timeline is not None:
        chains, beliefs = timeline.chains, last_beliefs(timeline)
        first = best_of_chains(timeline, len(chains.item), beliefs)
        best[chains.item] = chains.values[first]
        second[chains.item] = chains.values[best_of_chains(timeline, len(chains.item), beliefs, but=first)]
        claimed = 1 - unclaimed[problem.candidate_item[chains.values]]
        probability[chains.values] = np.maximum(beliefs, 1e-300) * claimed
    return Decision(best, second, probability[best], np.where(second >= 0, probability[second], unclaimed))


def discrete_truths(solution: Solution, decision: Decision, counted: Ints) -> Table:
    """One row an item. `counted` (candidates,): claims, earlier ones too."""
    problem = solution.model.problem
    missing = np.full(problem.items, np.nan)
    return {
        "object": problem.object,
        "attribute": problem.attribute,
        "value": problem.value[decision.best],
        "probability": decision.probability,
        "runner_up": _values_or_none(problem.value, decision.second),
        "runner_up_probability": decision.other,
        "claims": np.bincount(problem.candidate_item, counted, problem.items),
        "low": missing,
        "high": missing,
    }


def _values_or_none(values: Objects, position: Ints) -> Objects:
    chosen: Objects = np.where(position >= 0, values[position], None)
    return chosen


def discrete_why(solution: Solution, decision: Decision) -> Table:
    """Each claim's log-odds for the winner over the runner-up (over any unclaimed value where there is none)."""
    model = solution.model
    problem = model.problem
    log_odds, before = _claim_odds(solution, decision), _prior_odds(solution, decision)
    if solution.timeline is not None:
        chains = solution.timeline.chains
        places = chains.place[decision.best[chains.item]], chains.place[decision.second[chains.item]]
        log_odds[chains.claim] = gains(solution.timeline, *places)
        before[chains.item] = 0.0
    claims = {
        "claim": problem.row,
        "object": problem.object[problem.item],
        "attribute": problem.attribute[problem.item],
        "source": problem.source,
        "value": problem.value[problem.candidate],
        "member": np.full(problem.claims, None),
        "log_odds": log_odds,
    }
    return stack(WHY, [claims, _prior_rows(problem, before)])


def _claim_odds(solution: Solution, decision: Decision) -> Floats:
    """(claims,)"""
    model, links, fitted = solution.model, solution.model.links, solution.fit
    gained = contributions(model, fitted.profile, fitted.lift, solution.weight)
    item = model.problem.candidate_item[links.true]
    sign = (decision.best[item] == links.true).astype(np.float64) - (decision.second[item] == links.true)
    return solution.sharpness[model.problem.item] * np.bincount(links.claim, sign * gained, model.problem.claims)


def _prior_odds(solution: Solution, decision: Decision) -> Floats:
    """(items,) what was known before any claim."""
    return solution.sharpness * np.where(decision.second < 0, -solution.model.log_unclaimed, 0.0)


def _prior_rows(problem: Problem, log_odds: Floats) -> Table:
    nothing = np.full(problem.items, -1, dtype=np.int64)
    none: Objects = np.full(problem.items, None)
    return {
        "claim": nothing,
        "object": problem.object,
        "attribute": problem.attribute,
        "source": nothing,
        "value": none,
        "member": none,
        "log_odds": log_odds,
    }


def discrete_sources(solution: Solution, level: float) -> Table:
    """Sources with claims: how probably a claim of theirs is exactly true, with an interval."""
    problem, fitted = solution.model.problem, solution.fit
    count = problem.per_source()
    source = np.flatnonzero(count > 0)
    share = fitted.profile[source, EXACT] / fitted.profile[source].sum(axis=1)
    believed, _ = posterior(solution.model, fitted.score, solution.sharpness)
    doubt = _doubts(problem, believed)[source]
    low, high = of_believed_share(share, fitted.counts[source].sum(axis=1) + STRENGTH, doubt, COMMON, level)
    missing = np.full(len(source), np.nan)
    return {
        "source": source,
        "attribute": np.full(len(source), -1),
        "quality": share,
        "low": low,
        "high": high,
        "claims": count[source],
        "bias": missing,
        "scale": missing,
    }


def _doubts(problem: Problem, believed: Floats) -> Floats:
    """(sources,) the mean variance of what is believed of a source's claims; `believed` (candidates,)."""
    variance = (believed * (1.0 - believed))[problem.candidate]
    return problem.per_source(variance) / np.maximum(problem.per_source(), 1)


def copies(solution: Solution) -> Table:
    found = solution.copying
    order = np.lexsort((found.original, found.copier, -found.evidence))
    return {
        "copier": found.copier[order],
        "original": found.original[order],
        "probability": 1 / (1 + np.exp(-found.evidence[order])),
        "evidence": found.evidence[order],
        "shared": found.shared[order],
        "same": found.same[order],
    }


# -- measured truths


def measured_truths(problem: Problem, found: Estimate, data: Measurements, level: float, counted: Ints) -> Table:
    """The estimate with its interval, NaN where one number is all there is; the runner-up is the plain mean of the
    claims."""
    mean, odds = _against_mean(found, data)
    half = standard_errors(level) * found.error if data.comparable else np.full(problem.items, np.nan)
    probability = 1 / (1 + np.exp(-np.minimum(odds, 700.0)))
    return {
        "object": problem.object,
        "attribute": problem.attribute,
        "value": _floats_as_objects(data.unscaled(found.truth)),
        "probability": probability,
        "runner_up": _floats_as_objects(data.unscaled(mean)),
        "runner_up_probability": 1 - probability,
        "claims": counted,
        "low": data.unscaled(found.truth - half),
        "high": data.unscaled(found.truth + half),
    }


def _floats_as_objects(values: Floats) -> Objects:
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values.tolist()
    return array


def _against_mean(found: Estimate, data: Measurements) -> tuple[Floats, Floats]:
    """(items,) the plain mean, and the log-odds of the estimate over it: log densities of N(truth, error)."""
    count = np.maximum(data.by_item(np.ones(len(data.item))), 1)
    mean = data.by_item(data.value) / count
    return mean, (found.truth - mean) ** 2 / (2 * np.maximum(found.error, 1e-150) ** 2)


def measured_why(problem: Problem, found: Estimate, data: Measurements) -> Table:
    """The log-odds shared among claims as they pull the truth away from the plain mean: the truth less the mean is the
    sum of the claims' shares of (claim less mean), so these add up."""
    mean, _ = _against_mean(found, data)
    part = np.zeros(problem.items) if found.earlier is None else found.earlier.share
    pull = (1 - part)[data.item] * found.share * (found.corrected - mean[data.item])
    before = np.zeros(problem.items) if found.earlier is None else part * (found.earlier.truth - mean)
    factor = (found.truth - mean) / (2 * np.maximum(found.error, 1e-150) ** 2)
    claims = {
        "claim": problem.row,
        "object": problem.object[problem.item],
        "attribute": problem.attribute[problem.item],
        "source": problem.source,
        "value": problem.value[problem.candidate],
        "member": np.full(problem.claims, None),
        "log_odds": pull * factor[data.item],
    }
    return stack(WHY, [claims, _prior_rows(problem, before * factor)])


def measured_sources(problem: Problem, found: Estimate, data: Measurements, attribute: int, level: float) -> Table:
    """Sources with claims. The interval is that of their noise: a log standard error of the root of 2 / claims."""
    count = problem.per_source()
    source = np.flatnonzero(count > 0)
    share = np.clip(quality(data, found)[source], 1e-9, 1 - 1e-9)
    half = standard_errors(level) * np.sqrt(2 / count[source])
    odds = np.log(share / (1 - share))
    return {
        "source": source,
        "attribute": np.full(len(source), attribute),
        "quality": share,
        "low": 1 / (1 + np.exp(half - odds)),
        "high": 1 / (1 + np.exp(-half - odds)),
        "claims": count[source],
        "bias": data.unscaled(found.fit.bias[source]),
        "scale": found.fit.scale[source],
    }


def gates(tried: Sequence[Gate]) -> Table:
    return {
        "name": np.array([gate.name for gate in tried], dtype=np.object_),
        "kept": np.array([gate.kept for gate in tried], dtype=np.bool_),
        "gain": np.array([gate.gain for gate in tried], dtype=np.float64),
    }


# -- sets


def member_truths(problem: Problem, found: Members, counted: Ints) -> Table:
    """One row per member more probable than not, and the best of an item that has none."""
    best, _ = winners(problem, found.score)
    chosen = found.score > 0
    chosen[best] = True
    member = np.flatnonzero(chosen)
    item = problem.candidate_item[member]
    missing = np.full(len(member), np.nan)
    return {
        "object": problem.object[item],
        "attribute": problem.attribute[item],
        "value": problem.value[member],
        "probability": found.probability[member],
        "runner_up": np.full(len(member), None),
        "runner_up_probability": 1 - found.probability[member],
        "claims": counted[member],
        "low": missing,
        "high": missing,
    }


def member_why(problem: Problem, found: Members) -> Table:
    """For every value its claims, and one row without a claim for the sources that left it out."""
    value = problem.value[problem.candidate]
    claims = {
        "claim": problem.row,
        "object": problem.object[problem.item],
        "attribute": problem.attribute[problem.item],
        "source": problem.source,
        "value": value,
        "member": value,
        "log_odds": found.claimed,
    }
    nothing = np.full(problem.candidates, -1, dtype=np.int64)
    omitted = {
        "claim": nothing,
        "object": problem.object[problem.candidate_item],
        "attribute": problem.attribute[problem.candidate_item],
        "source": nothing,
        "value": np.full(problem.candidates, None),
        "member": problem.value,
        "log_odds": found.omitted,
    }
    return stack(WHY, [claims, omitted])


def member_sources(problem: Problem, found: Members, attribute: int, level: float) -> Table:
    """Quality is the expected share of true members among those claimed (precision)."""
    count = problem.per_source()
    source = np.flatnonzero(count > 0)
    seen = found.right[source] + found.wrong[source] + STRENGTH
    common = (found.right.sum() + 1) / (found.right.sum() + found.wrong.sum() + 2)
    share = (found.right[source] + STRENGTH * common) / seen
    low, high = of_believed_share(share, seen, _doubts(problem, found.probability)[source], COMMON, level)
    missing = np.full(len(source), np.nan)
    return {
        "source": source,
        "attribute": np.full(len(source), attribute),
        "quality": share,
        "low": low,
        "high": high,
        "claims": count[source],
        "bias": missing,
        "scale": missing,
    }
