"""The pages of a shard as its machine sees them, when pushes and pulls are blocks on a wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gradbase.common.errors import StoreError
from gradbase.store.codec import Codec, decode, encode
from gradbase.store.layout import ITEM_BYTES, Page
from gradbase.store.sparse import RowTable
from gradbase.store.update import Updater
from gradbase.store.wire import Block

RowPush = tuple[torch.Tensor, torch.Tensor]  # ids int64 [n], gradients [n, ...]


@dataclass(frozen=True)
class Gradients:
    """What one push says about one shard: gradients by page number, and rows by tensor number."""

    pages: Mapping[int, torch.Tensor] = field(default_factory=dict)
    rows: Mapping[int, RowPush] = field(default_factory=dict)


def key_of_rows(tensor: int) -> int:
    """The key of a block with rows of a table; pages have their number, which is not negative."""
    return -1 - tensor


def pack_rows(tensor: int, ids: torch.Tensor, gradients: torch.Tensor) -> Block:
    """Rows of a table for a push: the ids, then the gradients."""
    pieces = (ids.to(torch.int64), gradients.detach())
    body = b"".join(piece.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for piece in pieces if len(ids))
    return Block(key_of_rows(tensor), b"", body)


class TensorPages:
    """`Pages` over an `Updater` of one shard: blocks out, `Gradients` in.

    A read gives every page that is pulled whole, and of tables the rows that the selection names. With `copies` it is
    a copy: where values may change while a reader's answer is under way, as under ssp and asp.
    """

    def __init__(self, updater: Updater, lanes: int, *, copies: bool) -> None:
        assert updater.shard is not None
        self.updater, self.lanes, self.copies = updater, lanes, copies
        layout = updater.layout
        self._whole = [page for page in updater.pages if layout.tensors[page.tensor].kind != "rows"]
        here = {page.tensor for page in updater.pages}
        tables = [(i, spec) for i, spec in enumerate(layout.tensors) if spec.kind == "rows" and i in here]
        self._tables = {i: RowTable(updater, spec.name) for i, spec in tables}
        self._initial = self.snapshot()

    def unpack(self, payload: object) -> Gradients:
        """Read what a worker pushed, from wherever it comes; StoreError for pages and rows that are not of this shard.

        Changes nothing and may be called from any thread.
        """
        layout, shard = self.updater.layout, self.updater.shard
        pages: dict[int, torch.Tensor] = {}
        rows: dict[int, RowPush] = {}
        for key, head, body in _blocks(payload):
            if key < 0:
                rows[-1 - key] = self._read_rows(-1 - key, memoryview(body))
                continue
            if key >= len(layout.pages) or layout.pages[key].shard != shard:
                raise StoreError(f"a push names page {key}, which shard {shard} does not have")
            page = layout.pages[key]
            dtype = getattr(torch, layout.tensors[page.tensor].dtype)
            pages[key] = decode((head, body), page.numel, dtype)
        return Gradients(pages, rows)

    def check(self, selection: object) -> None:
        """StoreError if a pull asks for what is not here. May be called from any thread."""
        for block in _blocks(selection) if selection is not None else ():
            self._asked(block)

    def read(self, selection: object) -> tuple[Block, ...]:
        """Blocks of pages, and of the rows whose ids the blocks of `selection` hold."""
        asked = _blocks(selection) if selection is not None else ()
        return (*map(self._page, self._whole), *(self._rows(block) for block in asked))

    def reduce(self, lanes: Sequence[tuple[object, ...]]) -> tuple[Gradients, ...]:
        """The lanes in order; they are summed when they are applied, while a page is in the cache."""
        return tuple(_merged(parts) for parts in lanes)

    def apply(self, update: object) -> None:
        assert isinstance(update, tuple)
        lanes: tuple[Gradients, ...] = update
        scale = 1 / self.lanes
        for page in self.updater.pages:
            given = [lane.pages[page.number] for lane in lanes if page.number in lane.pages]
            if given and self._trained(page):
                self.updater.apply(page.number, given, scale)
            elif given:
                self.updater.assign(page.number, given[0])
        for tensor, table in self._tables.items():
            pushed = [lane.rows[tensor] for lane in lanes if tensor in lane.rows]
            if pushed:
                ids, gradients = (torch.cat(each) for each in zip(*pushed, strict=True))
                table.push(ids, gradients, scale)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Copies of values, state and counts."""
        return {key: self._bytes(key).clone() for key in self.updater.memory}

    def restore(self, snapshot: object) -> None:
        source = self._initial if snapshot is None else snapshot
        assert isinstance(source, dict)
        for key, content in source.items():
            self._bytes(key).copy_(content)

    def _trained(self, page: Page) -> bool:
        return self.updater.rule.settings(self.updater.layout.tensors[page.tensor].name) is not None

    def _page(self, page: Page) -> Block:
        value = self.updater.value(page)
        return Block(page.number, *encode(Codec(), value.clone() if self.copies else value))

    def _rows(self, block: Block) -> Block:
        table, ids = self._asked(block)
        values = table.pull(ids)
        return Block(block.key, b"", values.view(-1).view(torch.uint8).numpy().data if len(ids) else b"")

    def _asked(self, block: Block) -> tuple[RowTable, torch.Tensor]:
        table, body = self._table(-1 - block.key), memoryview(block.body)
        if len(body) % 8:
            raise StoreError(f"{len(body)} bytes are no ids of rows")
        ids = _numbers(body, len(body) // 8, torch.int64)
        table.check(ids)
        return table, ids

    def _read_rows(self, tensor: int, body: memoryview) -> RowPush:
        table, spec = self._table(tensor), self.updater.layout.tensors[tensor]
        nbytes = 8 + spec.row_numel * ITEM_BYTES[spec.dtype]
        count = len(body) // nbytes
        if count * nbytes != len(body):
            raise StoreError(f"{len(body)} bytes are no rows of {spec.name}, which take {nbytes} each")
        ids = _numbers(body[: 8 * count], count, torch.int64)
        table.check(ids)
        values = _numbers(body[8 * count :], count * spec.row_numel, getattr(torch, spec.dtype))
        return ids, values.view(count, *spec.shape[1:])

    def _table(self, tensor: int) -> RowTable:
        if tensor not in self._tables:
            raise StoreError(f"shard {self.updater.shard} has no rows of tensor {tensor}")
        return self._tables[tensor]

    def _bytes(self, key: str) -> torch.Tensor:
        memory = self.updater.memory[key]
        return memory if isinstance(memory, torch.Tensor) else torch.frombuffer(memory, dtype=torch.uint8)


def _blocks(payload: object) -> tuple[Block, ...]:
    if not isinstance(payload, tuple) or not all(isinstance(block, Block) for block in payload):
        raise StoreError("a push or pull holds no blocks")
    return payload


def _numbers(body: memoryview, numel: int, dtype: torch.dtype) -> torch.Tensor:
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(body) if body.readonly else body, dtype=dtype, count=numel)


def _merged(parts: Sequence[object]) -> Gradients:
    """The parts of one push as one."""
    pages: dict[int, torch.Tensor] = {}
    rows: dict[int, RowPush] = {}
    for part in parts:
        assert isinstance(part, Gradients)
        pages.update(part.pages)
        rows.update(part.rows)
    return Gradients(pages, rows)
