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
    misleading: float = 0.0,
) -> World:
    """Workers are right with their `quality` (below chance: adversaries). With `drift` quality falls by that much from
    the first item to the last. A `misleading` share of the items looks like another class to everybody."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, n_classes, n_items)
    n_workers = len(quality)
    said = np.zeros((n_items, n_workers), dtype=np.int64)
    looks = (truth + (np.arange(n_items) < misleading * n_items)) % n_classes
    for worker, skill in enumerate(quality):
        chance = skill - drift * np.linspace(0, 1, n_items)
        wrong = (looks + generator.integers(1, n_classes, n_items)) % n_classes
        said[:, worker] = np.where(generator.random(n_items) < chance, looks, wrong)
    chosen = np.stack([generator.permutation(n_workers)[:per_item] for _ in range(n_items)])
    item = np.repeat(np.arange(n_items), per_item)
    worker = chosen.reshape(-1)
    claims = Claims(item, worker, said[item, worker], np.arange(n_items), np.arange(n_workers), np.arange(n_classes))
    return World(claims, truth)


def with_copiers(seed: int, *, honest: int, copiers: int, copied: float, n_items: int = 600) -> World:
    """Everybody labels 6 of 10 items, honest workers right in 75%. The worker after them is right in 60%, and repeated
    by `copiers` in `copied` of cases."""
    generator = np.random.default_rng(seed)
    n_workers = honest + 1 + copiers
    truth = generator.integers(0, 2, n_items)
    chance = np.array([0.75] * honest + [0.6] * (1 + copiers))
    said = np.where(generator.random((n_items, n_workers)) < chance, truth[:, None], 1 - truth[:, None])
    repeats = generator.random((n_items, copiers)) < copied
    said[:, honest + 1 :] = np.where(repeats, said[:, honest, None], said[:, honest + 1 :])
    item, worker = np.nonzero(generator.random((n_items, n_workers)) < 0.6)
    claims = Claims(item, worker, said[item, worker], np.arange(n_items), np.arange(n_workers), np.arange(2))
    return World(claims, truth)
