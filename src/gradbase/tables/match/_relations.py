"""What other pairs say about a pair: a record with a known match elsewhere, or a better candidate, rarely has another.

The evidence of a labelled pair is made as if the labels of its fold were unknown, because a pair whose answer is
wanted sees the labels of others, never its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.tables.match._types import Floats, Ints

NAMES = (
    "alike (all columns)",
    "alike (without labels)",
    "left has a known match",
    "right has a known match",
    "strength of the left's other candidates",
    "strength of the right's other candidates",
    "left has a better candidate",
    "right has a better candidate",
)

OWN = 2  # the first names are of the pair itself

LIMIT = 8.0  # log-odds beyond which a network's certainty is not believed

_RIDGE = 1.0
_NEWTON_STEPS = 30


@dataclass(frozen=True)
class Labels:
    """For each pair: its fold (-1 without label) and target (0 to 1; 0 without label)."""

    folds: Ints
    targets: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        return self.folds >= 0


def evidence(scores: Floats, prior: Floats, left: Ints, right: Ints, labels: Labels) -> Floats:
    """float64[pairs, NAMES], from the networks' log-odds, those of the unsupervised model, and the pairs' records."""
    table = np.zeros((len(scores), len(NAMES)))
    clipped = np.clip(scores, -LIMIT, LIMIT)
    table[:, 0], table[:, 1] = clipped, np.clip(prior, -LIMIT, LIMIT)
    for fold in np.unique(labels.folds):
        mine = labels.folds == fold
        hidden = mine | ~labels.known
        for side, records in enumerate((left, right)):
            matched = np.bincount(records[~hidden], labels.targets[~hidden] > 0.5, minlength=records.max() + 1)
            rival = best_rival(records, clipped, hidden)
            table[mine, 2 + side] = np.minimum(matched[records], 1)[mine]
            table[mine, 4 + side] = np.logaddexp(0, rival)[mine]
            table[mine, 6 + side] = np.maximum(rival - clipped, 0)[mine]
    return table


def best_rival(records: Ints, scores: Floats, open_: NDArray[np.bool_]) -> Floats:
    """Of each pair, the highest score among the other open pairs of its record; -LIMIT where there is none."""
    open_scores = np.where(open_, scores, -LIMIT)
    order = np.lexsort((-open_scores, records))
    sorted_records = records[order]
    starts = np.flatnonzero(np.r_[True, sorted_records[1:] != sorted_records[:-1]])
    group = np.searchsorted(starts, np.arange(len(order)), side="right") - 1
    padded = np.append(open_scores[order], -LIMIT)
    ends = np.append(starts[1:], len(order))
    second = np.where(starts + 1 < ends, padded[starts + 1], -LIMIT)
    is_first = np.arange(len(order)) == starts[group]
    rivals = np.empty(len(order))
    rivals[order] = np.where(is_first, second[group], padded[starts][group])
    return rivals


@dataclass(frozen=True)
class Logistic:
    """Log-odds as a weighted sum: `weights` of standardised columns and `intercept`."""

    mean: Floats
    scale: Floats
    weights: Floats
    intercept: float

    def contributions(self, table: Floats) -> Floats:
        return (table - self.mean) / self.scale * self.weights

    def log_odds(self, table: Floats) -> Floats:
        return self.contributions(table).sum(axis=1) + self.intercept


def fit_logistic(table: Floats, targets: Floats, rows_weigh: Floats) -> Logistic:
    """Ridge-penalised logistic regression by Newton's method: a convex problem in a handful of weights."""
    mean, scale = table.mean(axis=0), table.std(axis=0) + 1e-6
    inputs = np.column_stack([(table - mean) / scale, np.ones(len(table))])
    ridge = np.diag(np.append(np.full(table.shape[1], _RIDGE), 1e-3))
    weights = np.zeros(inputs.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-inputs @ weights))
        curvature = (inputs.T * (p * (1 - p) * rows_weigh)) @ inputs + ridge
        weights -= np.linalg.solve(curvature, inputs.T @ ((p - targets) * rows_weigh) + ridge @ weights)
    return Logistic(mean, scale, weights[:-1], float(weights[-1]))
