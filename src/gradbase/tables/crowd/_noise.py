"""Random numbers that belong to an item's content, not to its place: names and row order change nothing.

Symmetry between subtypes of a class has to be broken somehow. Drawing by row would make the answer depend on the order
of rows; here a draw is a hash of who labelled the item and how, where a worker is known by what he did.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradbase.tables._contents import scramble
from gradbase.tables.crowd._table import Table


def item_hashes(table: Table, seed: int) -> NDArray[np.uint64]:
    """uint64[n_items]: a hash of who labelled an item; the names of workers, items and classes do not matter."""
    everyone = _worker_hashes(table, seed).repeat(table.n_classes)[:, None]
    return scramble(_whole(table.count_over_items(_exact(everyone)))[:, 0])


def _worker_hashes(table: Table, seed: int) -> NDArray[np.uint64]:
    """uint64[n_workers]: a hash of what a worker did: how many claims, and how contested and crowded the items were."""
    votes = np.rint(table.votes().numpy() * 60.0).astype(np.uint64)
    seen = scramble(votes * np.uint64(1_000_003) + votes.sum(1, keepdims=True) + np.uint64(seed))
    sums = _whole(table.count_over_cells(_exact(seen))).reshape(table.n_workers, table.n_classes, table.n_classes)
    return scramble(np.einsum("wkk->w", sums))


def class_noise(table: Table, subtypes: int, seed: int) -> Tensor:
    """float[n_items, n_classes, subtypes]: shares of the subtypes in each class, Dirichlet(1) distributed.

    A draw depends on which workers gave the item which class: renaming classes permutes the draws along.
    """
    workers = _worker_hashes(table, seed).repeat(table.n_classes)[:, None]
    of_label = np.eye(table.n_classes, dtype=np.uint64)[np.tile(np.arange(table.n_classes), table.n_workers)]
    own = _whole(table.count_over_items(_exact(workers) * torch.from_numpy(of_label.astype(np.float64))))
    everyone = own.sum(1, keepdims=True)
    base = scramble(scramble(own) + everyone)
    steps = scramble(np.arange(1, subtypes + 1, dtype=np.uint64) * np.uint64(7919) + np.uint64(seed))
    bits = scramble(base[:, :, None] ^ steps)
    draws = -np.log((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54)
    return torch.from_numpy(draws / draws.sum(2, keepdims=True))


def _exact(hashes: NDArray[np.uint64]) -> Tensor:
    """float64 whole numbers below 2**32: up to two million of them add up exactly, in any order."""
    return torch.from_numpy((hashes >> np.uint64(32)).astype(np.float64))


def _whole(sums: Tensor) -> NDArray[np.uint64]:
    return sums.numpy().astype(np.uint64)
