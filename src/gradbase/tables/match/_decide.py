"""From log-odds to decisions: the threshold, one partner at most, clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradbase.tables.match._types import Floats, Ints

_TWICE_MOST = 0.03  # of the records with a match: slips of who labelled, or copies in one table


def choose_threshold(log_odds: Floats, targets: NDArray[np.bool_]) -> float:
    """The log-odds that part held-out pairs with the best F1; among nearly as good ones, the nearest to 0.

    "Nearly" is half a match: with few of them, the very best threshold is an accident of the sample.
    """
    order = np.argsort(-log_odds, kind="stable")
    hits = np.cumsum(targets[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + targets.sum())
    ranked = log_odds[order]
    last_of_ties = np.r_[ranked[1:] < ranked[:-1], True]
    middles = (ranked + np.r_[ranked[1:], ranked[-1] - 1]) / 2
    good = last_of_ties & (f1 >= f1[last_of_ties].max() - 0.5 / max(targets.sum(), 1))
    return float(_nearest_to_zero(middles[good], ranked[good], np.r_[ranked[1:], -np.inf][good]))


def _nearest_to_zero(middles: Floats, above: Floats, below: Floats) -> float:
    """0 where it lies between two scores; else the middle next to it."""
    if np.any((above > 0) & (below <= 0)):
        return 0.0
    return float(middles[np.argmin(np.abs(middles))])


def f1_score(matched: NDArray[np.bool_], targets: NDArray[np.bool_]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where there is nothing to find and nothing was found."""
    return float(2 * (matched & targets).sum() / max(matched.sum() + targets.sum(), 1))


def seldom_two(left: Ints, right: Ints, matches: NDArray[np.bool_]) -> bool:
    """Whether, among known matches, at most `_TWICE_MOST` of the records have a second one (true without any)."""
    counts = [np.bincount(side[matches]) for side in (left, right)]
    return all((c > 1).sum() <= _TWICE_MOST * (c > 0).sum() for c in counts)


def keep_best(matched: NDArray[np.bool_], log_odds: Floats, left: Ints, right: Ints) -> NDArray[np.bool_]:
    """One partner at most: the surest pair first, then those whose records are both still free."""
    kept = np.zeros(len(matched), dtype=bool)
    taken_l: set[int] = set()
    taken_r: set[int] = set()
    chosen = np.flatnonzero(matched)
    for k in chosen[np.argsort(-log_odds[chosen], kind="stable")].tolist():
        if left[k] not in taken_l and right[k] not in taken_r:
            kept[k] = True
            taken_l.add(left[k])
            taken_r.add(right[k])
    return kept


def clusters(nodes: int, left: Ints, right: Ints, log_odds: Floats, matched: NDArray[np.bool_]) -> Ints:
    """A cluster number for each of `nodes`: matched pairs join their clusters, the surest first, unless the pairs
    scored between the two clusters speak against it in sum. So one weak link does not chain two clusters together.
    """
    forest = _Forest(nodes)
    for k in range(len(left)):
        forest.add(int(left[k]), int(right[k]), float(log_odds[k]))
    chosen = np.flatnonzero(matched)
    for k in chosen[np.argsort(-log_odds[chosen], kind="stable")].tolist():
        forest.join(int(left[k]), int(right[k]))
    return np.array([forest.root(i) for i in range(nodes)], dtype=np.int64)


class _Forest:
    """Disjoint sets whose roots know the summed log-odds towards other roots."""

    def __init__(self, nodes: int) -> None:
        self._parent = list(range(nodes))
        self._size = [1] * nodes
        self._towards: list[dict[int, float]] = [{} for _ in range(nodes)]

    def add(self, a: int, b: int, log_odds: float) -> None:
        if a != b:
            self._towards[a][b] = self._towards[b][a] = log_odds

    def root(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b or (self._towards[a][b] <= 0 and self._size[a] * self._size[b] > 1):
            return
        if (self._size[a], -a) < (self._size[b], -b):
            a, b = b, a
        self._parent[b] = a
        self._size[a] += self._size[b]
        for other, log_odds in self._towards[b].items():
            del self._towards[other][b]
            if other != a:
                total = self._towards[a].get(other, 0.0) + log_odds
                self._towards[a][other] = self._towards[other][a] = total


def names_of(clusters_: Ints, members: Sequence[str]) -> tuple[str, ...]:
    """Each cluster by the least of its members' names."""
    least: dict[int, str] = {}
    for cluster, name in zip(clusters_.tolist(), members, strict=True):
        least[cluster] = min(least.get(cluster, name), name)
    return tuple(least[c] for c in clusters_.tolist())
