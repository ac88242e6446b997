"""Peers of fusion, written from their papers, on the same claims: (claims,) arrays of item, candidate and source.

A peer returns a score per candidate; the highest of an item is its answer. No peer sees similarity, time or hierarchy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_ROUNDS = 20
_TINY = 1e-12


@dataclass(frozen=True)
class Votes:
    """Different claims. item_of (candidates,): the item of each candidate."""

    candidate: Ints
    source: Ints
    item_of: Ints

    @property
    def item(self) -> Ints:
        return self.item_of[self.candidate]

    @property
    def items(self) -> int:
        return int(self.item_of.max()) + 1

    def by_candidate(self, amounts: Floats | None = None) -> Floats:
        return np.bincount(self.candidate, amounts, len(self.item_of)).astype(np.float64)

    def by_source(self, amounts: Floats | None = None) -> Floats:
        return np.bincount(self.source, amounts, int(self.source.max()) + 1).astype(np.float64)

    def by_item(self, amounts: Floats) -> Floats:
        """Sums of candidates' amounts."""
        return np.bincount(self.item_of, amounts, self.items)


def vote(votes: Votes) -> Floats:
    """How many claim it."""
    return votes.by_candidate()


def truth_finder(votes: Votes) -> Floats:
    """Yin, Han, Yu, "Truth discovery with multiple conflicting information providers on the web", KDD 2007; no
    influence between values; dampening 0.3 as there."""
    trust = np.full(int(votes.source.max()) + 1, 0.9)
    for _ in range(_ROUNDS):
        doubt = -np.log(np.maximum(1 - trust, _TINY))
        confidence = 1 / (1 + np.exp(-0.3 * votes.by_candidate(doubt[votes.source])))
        trust = votes.by_source(confidence[votes.candidate]) / np.maximum(votes.by_source(), 1)
    return votes.by_candidate(doubt[votes.source])


def pooled_investment(votes: Votes) -> Floats:
    """Pasternack, Roth, "Knowing what to believe (when you already know something)", COLING 2010; growth 1.4."""
    claims = np.maximum(votes.by_source(), 1)
    belief = votes.by_candidate() / votes.by_item(votes.by_candidate())[votes.item_of]
    trust = np.ones(len(claims))
    for _ in range(_ROUNDS):
        invested = (trust / claims)[votes.source]
        pool = np.maximum(votes.by_candidate(invested), 1e-300)
        trust = votes.by_source(belief[votes.candidate] * invested / pool[votes.candidate])
        trust /= trust.max()
        gathered = votes.by_candidate((trust / claims)[votes.source])
        grown = gathered**1.4
        belief = gathered * grown / np.maximum(votes.by_item(grown), 1e-300)[votes.item_of]
    return belief


def accu(votes: Votes) -> Floats:
    """Dong, Berti-Equille, Srivastava, "Integrating conflicting data: the role of source dependence", VLDB 2009,
    without copying; 100 false values."""
    accuracy = np.full(int(votes.source.max()) + 1, 0.8)
    for _ in range(_ROUNDS):
        bounded = np.clip(accuracy, 0.01, 0.99)
        score = votes.by_candidate(np.log(100 * bounded / (1 - bounded))[votes.source])
        top = np.full(votes.items, -np.inf)
        np.maximum.at(top, votes.item_of, score)
        raised = np.exp(score - top[votes.item_of])
        probability = raised / votes.by_item(raised)[votes.item_of]
        accuracy = votes.by_source(probability[votes.candidate]) / np.maximum(votes.by_source(), 1)
    return score


def catd(votes: Votes) -> Floats:
    """Li et al., "A confidence-aware approach for truth discovery on long-tail data", VLDB 2014, for categories:
    weights are chi-squared quantiles (Wilson and Hilferty's approximation) at 0.05 over a source's losses."""
    count = votes.by_source()
    # 0.975 quantile over the count, as in the paper's interval at a significance of 0.05.
    quantile = count * (1 - 2 / (9 * np.maximum(count, 1)) + 1.959964 * np.sqrt(2 / (9 * np.maximum(count, 1)))) ** 3
    score = votes.by_candidate()
    for _ in range(_ROUNDS):
        top = np.full(votes.items, -np.inf)
        np.maximum.at(top, votes.item_of, score)
        wrong = (score < top[votes.item_of] - _TINY).astype(np.float64)
        loss = votes.by_source(wrong[votes.candidate])
        weight = quantile / np.maximum(loss, 0.5)
        score = votes.by_candidate(weight[votes.source])
    return score


PEERS: dict[str, Callable[[Votes], Floats]] = {
    "vote": vote,
    "TruthFinder": truth_finder,
    "PooledInvestment": pooled_investment,
    "Accu": accu,
    "CATD": catd,
}
