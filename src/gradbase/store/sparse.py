"""Embedding rows by id: pulled, used, and pushed back without the table ever being whole in one place.

A table is a tensor of kind "rows" [rows, ...], cut into pages of whole rows. `RowTable` is a server's part of it,
`RowClient` a worker's view of all parts. Ids are int64 and count rows of the whole table; duplicates are summed in the
order in which they come, so the same pushes give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from gradbase.common.errors import StoreError
from gradbase.store.layout import Layout, elements
from gradbase.store.update import Updater, row_sums, update_rows
from gradbase.store.update._updater import VALUES


class Rows(Protocol):
    """Where the rows of a shard are: a `RowTable` here, or a server elsewhere."""

    def pull(self, ids: torch.Tensor) -> torch.Tensor: ...

    def push(self, ids: torch.Tensor, gradients: torch.Tensor, scale: float = 1.0) -> None: ...


def combine(ids: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum values of the same id, first to last: ids int64 [n], values [n, ...] to ascending ids [m], sums [m, ...]."""
    if bool((ids[1:] > ids[:-1]).all()):
        return ids, values
    ordered, positions = torch.sort(ids, stable=True)
    first = torch.ones(len(ids), dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    starts = first.nonzero().flatten()
    flat = values.detach().flatten(1)
    # Bags of positions, summed one after the other: many times faster than index_add_.
    sums = F.embedding_bag(positions, flat, starts, mode="sum")
    return ordered[starts], sums.reshape(-1, *values.shape[1:])


class RowTable:
    """The rows of a table that an `Updater` holds: all of them in a slab, or those of one shard.

    Pushes apply the table's optimizer (SGD, Adagrad, RowwiseAdagrad) to the rows named, in place.
    """

    def __init__(self, updater: Updater, name: str) -> None:
        spec, shard = updater.layout.spec(name), updater.shard
        assert spec.kind == "rows", f"{name} is pushed as a whole"
        self.name, self._updater = name, updater
        self._first, self._rows_per_page = _local_rows(updater.layout, name, shard)
        self.table = _rows_of(updater, name, VALUES).view(-1, *spec.shape[1:])
        self._flat = self.table.flatten(1)

    def check(self, ids: torch.Tensor) -> None:
        """StoreError for ids of rows that are not here."""
        self._local(ids)

    def pull(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of ids, [n, ...], copied."""
        return F.embedding(self._local(ids), self._flat).view(-1, *self.table.shape[1:])

    def push(self, ids: torch.Tensor, gradients: torch.Tensor, scale: float = 1.0) -> None:
        """Update the rows of ids with their gradients, [n, ...], duplicates summed, times `scale`."""
        if len(ids) != len(gradients) or gradients.shape[1:] != self.table.shape[1:]:
            raise StoreError(
                f"gradients of shape {list(gradients.shape)} for {len(ids)} rows of {self.name}",
                f"give [{len(ids)}, {', '.join(map(str, self.table.shape[1:]))}]",
            )
        rows, sums = combine(self._local(ids), gradients)
        if len(rows):
            self.push_unique(rows, sums if scale == 1 else sums * scale)

    def push_unique(self, rows: torch.Tensor, gradients: torch.Tensor) -> None:
        """Update local rows, each named once."""
        settings = self._updater.rule.settings(self.name)
        assert settings is not None, f"{self.name} is not trained"
        flat = gradients.flatten(1)
        if settings["optimizer"] == "RowwiseAdagrad":
            sums = row_sums(self._updater.layout, self._updater.memory["row_sum"], self.name, self._updater.shard)
            update_rows(self._flat, sums, rows, flat, settings["lr"], settings["eps"])
        elif settings["optimizer"] == "Adagrad":
            state = _rows_of(self._updater, self.name, "sum").view(len(self.table), -1)
            squares = F.embedding(rows, state).add_(flat.square())
            state.index_copy_(0, rows, squares)
            self._add(rows, flat / squares.sqrt_().add_(settings["eps"]), -settings["lr"])
        else:
            self._add(rows, flat, -settings["lr"])

    def _add(self, rows: torch.Tensor, step: torch.Tensor, factor: float) -> None:
        self._flat.index_copy_(0, rows, F.embedding(rows, self._flat).add_(step, alpha=factor))

    def _local(self, ids: torch.Tensor) -> torch.Tensor:
        """Row numbers in this table's memory; StoreError for ids that are not here."""
        if len(ids) == 0:
            return ids
        least, most = torch.aminmax(ids)
        if least < 0 or most >= len(self._first) * self._rows_per_page:
            raise self._absent(int(least) if least < 0 else int(most))
        if self._updater.shard is None:
            return ids if most < len(self.table) else self._refuse(ids, len(self.table))
        page = torch.div(ids, self._rows_per_page, rounding_mode="floor")
        rows = self._first[page] + ids - page * self._rows_per_page
        missing = (self._first[page] < 0) | (rows >= len(self.table))
        if missing.any():
            raise self._absent(int(ids[missing][0]))
        return rows

    def _refuse(self, ids: torch.Tensor, rows: int) -> torch.Tensor:
        raise self._absent(int(ids[ids >= rows][0]))

    def _absent(self, row: int) -> StoreError:
        where = "" if self._updater.shard is None else f" on shard {self._updater.shard}"
        rows = self._updater.layout.spec(self.name).shape[0]
        return StoreError(f"row {row} of {self.name} is not{where}", f"the table has rows 0 to {rows - 1}")


@dataclass(frozen=True)
class Pulled:
    """Rows that a worker pulled for some ids: each row once, ready for autograd.

    `unique` int64 [m] ascending; `rows` [m, ...], a leaf that collects the gradient; `inverse` has the shape of the
    ids.
    """

    unique: torch.Tensor
    rows: torch.Tensor
    inverse: torch.Tensor

    def lookup(self) -> torch.Tensor:
        """What an embedding layer gives: the row of every id, [*ids.shape, ...]."""
        return F.embedding(self.inverse, self.rows.flatten(1)).view(*self.inverse.shape, *self.rows.shape[1:])

    @property
    def gradient(self) -> torch.Tensor:
        """After the backward pass: what to push for `unique`, duplicates summed by it; zeros if nothing was used."""
        return torch.zeros_like(self.rows) if self.rows.grad is None else self.rows.grad


class RowRoutes:
    """Which of `shards` has which rows of a table."""

    def __init__(self, layout: Layout, name: str, shards: Sequence[int]) -> None:
        spec, pages = layout.spec(name), layout.of_tensor(name)
        self._rows_per_page = pages[0].numel // spec.row_numel if pages else 1
        self._shard_of_page = torch.tensor([page.shard for page in pages], dtype=torch.int64)
        self._count, self._name, self._shards = spec.shape[0], name, shards

    def of(self, unique: torch.Tensor) -> Sequence[tuple[int, torch.Tensor | slice]]:
        """(shard, which of the ascending ids it has); everything at once where one shard has the whole table.

        Raises StoreError for an id that no row has.
        """
        if len(unique) and (unique[0] < 0 or unique[-1] >= self._count):
            row = int(unique[0] if unique[0] < 0 else unique[-1])
            raise StoreError(f"row {row} of {self._name} does not exist", f"it has rows 0 to {self._count - 1}")
        if len(self._shards) == 1:
            return [(self._shards[0], slice(None))]
        shards = self._shard_of_page[torch.div(unique, self._rows_per_page, rounding_mode="floor")]
        routes = [(shard, (shards == shard).nonzero().flatten()) for shard in self._shards]
        return [(shard, places) for shard, places in routes if len(places)]


class RowClient:
    """All rows of a table, whichever shard has them."""

    def __init__(self, layout: Layout, name: str, shards: Mapping[int, Rows]) -> None:
        spec = layout.spec(name)
        self._row_shape, self._dtype = spec.shape[1:], getattr(torch, spec.dtype)
        self._routes, self._shards = RowRoutes(layout, name, list(shards)), shards

    def pull(self, ids: torch.Tensor) -> Pulled:
        """Fetch the rows of ids (int64, any shape), each once."""
        unique, inverse = torch.unique(ids, return_inverse=True)
        rows = torch.empty(len(unique), *self._row_shape, dtype=self._dtype)
        for shard, places in self._routes.of(unique):
            rows[places] = self._shards[shard].pull(unique[places])
        return Pulled(unique, rows.requires_grad_(), inverse)

    def push(self, ids: torch.Tensor, gradients: torch.Tensor, scale: float = 1.0) -> None:
        """Send gradients [n, ...] of ids [n] to the shards that have them; duplicates are summed before they go."""
        unique, sums = combine(ids, gradients)
        for shard, places in self._routes.of(unique):
            self._shards[shard].push(unique[places], sums[places], scale)


def _local_rows(layout: Layout, name: str, shard: int | None) -> tuple[torch.Tensor, int]:
    """The local row that each page starts with, -1 for pages elsewhere, int64 [pages]; and rows a page."""
    spec, pages = layout.spec(name), layout.of_tensor(name)
    here = [
        layout.first_row(page, home=shard is not None) if shard in (None, page.shard) else -1 for page in pages
    ]  # fmt: skip
    return torch.tensor(here, dtype=torch.int64), pages[0].numel // spec.row_numel if pages else 1


def _rows_of(updater: Updater, name: str, key: str) -> torch.Tensor:
    """The elements of a table, or of its state, that an updater holds, flat."""
    layout, shard = updater.layout, updater.shard
    pages = [page for page in layout.of_tensor(name) if shard in (None, page.shard)]
    offset = (pages[0].offset if shard is None else pages[0].place) if pages else 0
    return elements(updater.memory[key], offset, sum(page.numel for page in pages), layout.spec(name).dtype)
