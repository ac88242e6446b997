"""Claims in the two orders that inference reads them in: by item (to weigh evidence), by worker and label (to count).

Both sums over claims are `embedding_bag`: gather and scatter in one pass, without a row per claim in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from gradbase.tables.crowd._types import Claims, Codes, Ints

WIDE_FROM = 100_000  # from here on sums are in single precision: an order of magnitude faster, exact to 1e-6


@dataclass(frozen=True)
class Table:
    """Distinct claims, sorted by item, worker, label.

    `item` int[n] and `cell` int[n] (worker * n_classes + label); `item_starts` int[n_items + 1]; the same claims by
    cell: `item_by_cell` int[n], `cell_starts` int[n_workers * n_classes + 1]. `weight` float[n] (and `weight_by_cell`)
    is below one where a worker gave an item several answers, None where nobody did.
    """

    n_items: int
    n_workers: int
    n_classes: int
    item: Tensor
    cell: Tensor
    item_starts: Tensor
    item_by_cell: Tensor
    cell_starts: Tensor
    dtype: torch.dtype
    weight: Tensor | None = None
    weight_by_cell: Tensor | None = None

    def __len__(self) -> int:
        return len(self.item)

    @property
    def worker(self) -> Tensor:
        return self.cell // self.n_classes

    @property
    def label(self) -> Tensor:
        return self.cell % self.n_classes

    def over_items(self, of_cells: Tensor) -> Tensor:
        """float[n_items, z]: the sum over an item's claims of the rows of `of_cells` float[cells, z]."""
        return embedding_bag(
            self.cell, of_cells, self.item_starts, mode="sum", per_sample_weights=self.weight, include_last_offset=True
        )

    def over_cells(self, of_items: Tensor) -> Tensor:
        """float[cells, z]: the sum over a worker's claims of one label of the rows of `of_items` float[n_items, z]."""
        return embedding_bag(
            self.item_by_cell,
            of_items,
            self.cell_starts,
            mode="sum",
            per_sample_weights=self.weight_by_cell,
            include_last_offset=True,
        )

    def count_over_items(self, of_cells: Tensor) -> Tensor:
        """As `over_items`, with every claim in full."""
        return embedding_bag(self.cell, of_cells, self.item_starts, mode="sum", include_last_offset=True)

    def count_over_cells(self, of_items: Tensor) -> Tensor:
        """As `over_cells`, with every claim in full."""
        return embedding_bag(self.item_by_cell, of_items, self.cell_starts, mode="sum", include_last_offset=True)

    def cell_counts(self) -> Ints:
        """int64[n_workers, n_classes]: how many claims of each label a worker made."""
        return np.diff(self.cell_starts.numpy()).astype(np.int64).reshape(self.n_workers, self.n_classes)

    def votes(self) -> Tensor:
        """float[n_items, n_classes]: how many said what."""
        ones = torch.eye(self.n_classes, dtype=self.dtype).repeat(self.n_workers, 1)
        return self.over_items(ones)

    def part(self, chosen: NDArray[np.bool_]) -> Table:
        """The chosen items (bool[n_items]) alone, renumbered, with their claims; workers keep their codes."""
        keep = torch.from_numpy(chosen)[self.item.long()]
        number = torch.from_numpy(np.cumsum(chosen) - 1)
        item, weight = number[self.item[keep].long()], None if self.weight is None else self.weight[keep]
        return _indexed(int(chosen.sum()), self.n_workers, self.n_classes, item, self.cell[keep], weight)


def table_of(claims: Claims) -> Table:
    """The table of claims of kind "classes". Rows that say the same are one claim."""
    n_classes, n_workers = len(claims.classes), len(claims.workers)
    keys = distinct_keys(claims.item, claims.worker, claims.label, n_workers, n_classes)
    weight = _shared_votes(keys, n_classes)
    n_cells = n_workers * n_classes
    cell = _narrow(keys % n_cells, n_cells)
    keys //= n_cells
    item = _same_memory(_narrow(keys, len(claims.items)), claims.item)
    del keys
    return _indexed(len(claims.items), n_workers, n_classes, item, cell, weight)


def distinct_keys(item: Codes, worker: Codes, label: Codes, n_workers: int, n_classes: int) -> Ints:
    """Sorted int64 keys (item, worker, label) packed into one number, each once."""
    keys: Ints = np.multiply(item, n_workers * n_classes, dtype=np.int64)
    keys += np.multiply(worker, n_classes, dtype=np.int64)
    keys += label
    if (keys[1:] < keys[:-1]).any():  # tables are read in order
        keys.sort()
    if len(keys) > 1:
        first = np.empty(len(keys), dtype=bool)
        first[0] = True
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        if not first.all():
            keys = keys[first]
    return keys


def _shared_votes(keys: Ints, n_classes: int) -> Tensor | None:
    """Weights of claims when some worker answers twice for one item; `keys` as `distinct_keys` gives them."""
    answers = keys // n_classes
    again = answers[1:] == answers[:-1]
    if not again.any():
        return None
    several = np.zeros(len(keys), dtype=bool)
    several[1:] = again
    several[:-1] |= again
    _, group, count = np.unique(answers[several], return_inverse=True, return_counts=True)
    weight = np.ones(len(keys), dtype=np.float32 if len(keys) >= WIDE_FROM else np.float64)
    weight[several] = 1.0 / count[group]
    return torch.from_numpy(weight)


def _same_memory(codes: Tensor, given: Codes) -> Tensor:
    """The codes, in the memory of those that were given where they are the same: of many claims one array less."""
    own = codes.numpy()
    shared = given.flags.writeable and own.dtype == given.dtype and np.array_equal(own, given)
    return torch.from_numpy(given) if shared else codes


def _narrow(codes: Ints, size: int) -> Tensor:
    return torch.from_numpy(codes.astype(np.int32) if size < 2**31 else codes)


def _indexed(n_items: int, n_workers: int, n_classes: int, item: Tensor, cell: Tensor, weight: Tensor | None) -> Table:
    n_cells = n_workers * n_classes
    dtype = torch.float32 if len(item) >= WIDE_FROM else torch.float64
    wide = torch.int32 if max(n_items, n_cells, len(item)) < 2**31 else torch.int64
    item, cell = item.to(wide), cell.to(wide)
    order = torch.sort(cell, stable=True).indices
    return Table(
        n_items,
        n_workers,
        n_classes,
        item,
        cell,
        _starts(item, n_items, wide),
        item[order],
        _starts(cell, n_cells, wide),
        dtype,
        None if weight is None else weight.to(dtype),
        None if weight is None else weight[order].to(dtype),
    )


def _starts(codes: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """int[size + 1]: where each code's run begins, in sorted order."""
    counts = torch.bincount(codes, minlength=size)
    starts = torch.zeros(size + 1, dtype=dtype)
    starts[1:] = torch.cumsum(counts, 0)
    return starts
