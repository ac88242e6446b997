"""Random numbers that belong to an item's content, not to its place: names and row order change nothing.

Symmetry between subtypes of a class has to be broken somehow. Drawing by row would make the answer depend on the order
of rows; here a draw is a hash of who labelled the item and how, where a worker is known by what he did.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradbase.tables.crowd._table import Table

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64's finalizer


def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64[n]: splitmix64's finalizer (Steele, Lea, Flood 2014): every input bit changes half of the output's."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    return mixed ^ (mixed >> np.uint64(31))


def _sums(groups: NDArray[np.int64], values: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """uint64[size]: sums modulo 2**64 by group, whatever the order."""
    low = np.bincount(groups, (values & np.uint64(0xFFFFFFFF)).astype(np.float64), size)
    high = np.bincount(groups, (values >> np.uint64(32)).astype(np.float64), size)
    return low.astype(np.uint64) + (high.astype(np.uint64) << np.uint64(32))


def item_hashes(table: Table, seed: int) -> NDArray[np.uint64]:
    """uint64[n_items]: a hash of who labelled an item, with how many others; names and classes do not matter."""
    item, worker = table.item.numpy().astype(np.int64), table.worker.numpy().astype(np.int64)
    return _item_part(item, _worker_hashes(table, item, worker, seed)[worker], table.n_items)


def _worker_hashes(
    table: Table, item: NDArray[np.int64], worker: NDArray[np.int64], seed: int
) -> NDArray[np.uint64]:
    """uint64[n_workers]: what a worker did: how many claims, and how contested and crowded the items were."""
    votes = table.votes().numpy()
    own = votes[item, table.label.numpy().astype(np.int64)]
    seen = np.rint(own * 60.0).astype(np.uint64) * np.uint64(1_000_003)
    seen += np.rint(votes.sum(1)[item] * 60.0).astype(np.uint64)
    return scramble(_sums(worker, scramble(seen + np.uint64(seed)), table.n_workers))


def _item_part(item: NDArray[np.int64], hashes: NDArray[np.uint64], n_items: int) -> NDArray[np.uint64]:
    return scramble(_sums(item, hashes >> np.uint64(12), n_items))


def class_noise(table: Table, subtypes: int, seed: int) -> Tensor:
    """float[n_items, n_classes, subtypes]: shares of the subtypes in each class, Dirichlet(1) distributed.

    A draw depends on which workers gave the item which class: renaming classes permutes the draws along.
    """
    item, worker = table.item.numpy().astype(np.int64), table.worker.numpy().astype(np.int64)
    hashes = _worker_hashes(table, item, worker, seed)[worker]
    everyone = _item_part(item, hashes, table.n_items)
    pair = item * table.n_classes + table.label.numpy()
    own = _item_part(pair, hashes, table.n_items * table.n_classes).reshape(table.n_items, table.n_classes)
    base = scramble(own + everyone[:, None])
    steps = scramble(np.arange(1, subtypes + 1, dtype=np.uint64) * np.uint64(7919) + np.uint64(seed))
    bits = scramble(base[:, :, None] ^ steps)
    draws = -np.log((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54)
    return torch.from_numpy(draws / draws.sum(2, keepdims=True))
