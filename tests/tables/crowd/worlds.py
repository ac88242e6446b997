"""Seeded crowds whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.tables.crowd import Claims


@dataclass(frozen=True)
class World:
    claims: Claims
    truth: NDArray[np.int64]

    def accuracy(self, value: NDArray[np.int64]) -> float:
        return float((value == self.truth).mean())

    def majority(self) -> NDArray[np.int64]:
        votes = np.zeros((len(self.truth), len(self.claims.classes)))
        np.add.at(votes, (self.claims.item, self.claims.label), 1)
        return votes.argmax(1)


def world(
    seed: int,
    *,
    quality: list[float],
    n_items: int = 200,
    n_classes: int = 2,
    per_item: int = 5,
    drift: float = 0.0,
) -> World:
    """Workers are right with their `quality` (below chance: adversaries). With `drift`
    quality falls by that much from the first item to the last."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, n_classes, n_items)
    n_workers = len(quality)
    said = np.zeros((n_items, n_workers), dtype=np.int64)
    for worker, skill in enumerate(quality):
        chance = skill - drift * np.linspace(0, 1, n_items)
        wrong = (truth + generator.integers(1, n_classes, n_items)) % n_classes
        said[:, worker] = np.where(generator.random(n_items) < chance, truth, wrong)
    chosen = np.stack([generator.permutation(n_workers)[:per_item] for _ in range(n_items)])
    item = np.repeat(np.arange(n_items), per_item)
    worker = chosen.reshape(-1)
    claims = Claims(item, worker, said[item, worker], np.arange(n_items), np.arange(n_workers), np.arange(n_classes))
    return World(claims, truth)
