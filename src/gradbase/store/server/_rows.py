"""Rows of tables on their way to a worker and back: those that its batches need, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from gradbase.common.errors import StoreError
from gradbase.store.layout import Layout, tensor_view
from gradbase.store.server._pages import key_of_rows, pack_rows
from gradbase.store.sparse import RowRoutes
from gradbase.store.wire import Block

if TYPE_CHECKING:
    from gradbase.store.layout import Memory

Wanted = Callable[[int], Mapping[str, torch.Tensor]]
Asked = Sequence[Mapping[int, torch.Tensor]]  # by shard: the ids of each table, by its number, ascending


class WorkerRows:
    """What a worker asks each shard for, where the answers go, and what it pushes.

    values: the worker's memory, as `RemoteWorker` has it. wanted(batch): by name of a table, the ids that computing
    the batch looks up, integers of any shape.
    """

    def __init__(self, layout: Layout, values: Memory, wanted: Wanted) -> None:
        tables = [(i, spec.name) for i, spec in enumerate(layout.tensors) if spec.kind == "rows"]
        self._wanted, self._shard_count = wanted, layout.shard_count
        self._numbers = {name: number for number, name in tables}
        self._routes = {name: RowRoutes(layout, name, range(layout.shard_count)) for _, name in tables}
        self._views = {number: tensor_view(layout, values, name) for number, name in tables}

    def ask(self, batches: Iterable[int]) -> Asked:
        """Raises StoreError for rows that do not exist, or of what is no table."""
        found: dict[str, list[torch.Tensor]] = {}
        for batch in batches:
            for name, ids in self._wanted(batch).items():
                found.setdefault(self._table(name), []).append(ids.reshape(-1).to(torch.int64))
        asked: list[dict[int, torch.Tensor]] = [{} for _ in range(self._shard_count)]
        for name, parts in found.items():
            unique = torch.unique(torch.cat(parts))
            for shard, places in self._routes[name].of(unique):
                asked[shard][self._numbers[name]] = unique[places]
        return asked

    def selection(self, asked: Asked, shard: int) -> tuple[Block, ...]:
        return tuple(Block(key_of_rows(table), b"", ids.numpy().tobytes()) for table, ids in asked[shard].items())

    def put(self, block: Block, asked: Asked, shard: int) -> None:
        """Put rows that were asked for where the model reads them."""
        number = -1 - block.key
        ids, view = asked[shard][number], self._views[number]
        if len(ids):
            rows = torch.frombuffer(bytearray(block.body), dtype=view.dtype).view(len(ids), *view.shape[1:])
            view.index_copy_(0, ids, rows)

    def pushed(self, name: str, gradient: torch.Tensor, asked: Asked) -> Iterator[tuple[int, Block]]:
        """What goes to which shard of a table's gradient: sparse, as of `nn.Embedding(sparse=True)`, duplicates
        summed; or dense, of which the rows are taken that were asked for.
        """
        number = self._numbers[self._table(name)]
        known = torch.cat([ids for of_shard in asked if (ids := of_shard.get(number)) is not None] or [_NO_IDS])
        ids, values = _rows_of(gradient, torch.sort(known).values)
        if not bool(torch.isin(ids, known).all()):
            row = int(ids[~torch.isin(ids, known)][0])
            raise StoreError(
                f"row {row} of {name} was used, and not asked for", "name it in what rows(batch) gives for this batch"
            )
        for shard, places in self._routes[name].of(ids):
            yield shard, pack_rows(number, ids[places], values[places])

    def _table(self, name: str) -> str:
        if name not in self._numbers:
            raise StoreError(f"{name} is no table of rows", f"those are {', '.join(self._numbers) or 'none'}")
        return name


_NO_IDS = torch.empty(0, dtype=torch.int64)


def _rows_of(gradient: torch.Tensor, asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending ids and their gradients."""
    if not gradient.is_sparse:
        return asked, gradient[asked]
    summed = gradient.detach().coalesce()
    return summed.indices()[0], summed.values()
