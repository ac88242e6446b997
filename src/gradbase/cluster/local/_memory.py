"""What lies where in the slab, and the update in place that survives `kill -9`.

    header      64 bytes that name the slab, then as many for every shard: operation, blocks done, block saved + 1,
                updates of its page before it was saved
    values, state, steps    what an `Updater` works on; the models of all processes are views of the values (bsp)
    pushes      as much room as the values for every lane: its gradients, and the buffers (batch norm) as it left them
    undo        a frame for every shard, as large as the largest block with its state
    residuals   for every lane, what codecs had left out of its gradients when the last checkpoint was taken, and the
                moments by which it finds directions (bsp)
    lists       for every lane and table of rows, which rows it has a gradient for (`_rows.py`)

A trained page is updated in blocks, of a table of rows those rows that were used, and a block in three moves: it is
copied to the shard's frame, its number is written, it is changed in place. The frame is small, and what was just copied
is near: that costs less than copies of whole pages. A page of a buffer is one block, overwritten as often as need be;
one that is frozen is not touched. Who takes over from a dead process finds in the record how many blocks are done, and
puts the frame back if the next one was saved: whether that block was changed, half changed or not touched, it is then
as it was. What the lanes pushed stays until the step is over, so the update can be repeated, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import nn

from gradbase.cluster.codecs import Feedback
from gradbase.cluster.local._rows import LaneRows, RowBlock, ShardRows, list_words
from gradbase.cluster.local._slab import Slab
from gradbase.cluster.local._views import PlannedBlock, PlannedUpdater, planned_blocks
from gradbase.store.codec import Codec, carried_numel
from gradbase.store.layout import ITEM_BYTES, Layout, Page, TensorSpec
from gradbase.store.recovery import replay_update
from gradbase.store.update import BLOCK_NUMEL, UpdateRule, memory_plan

_RECORD_BYTES = 64
_BLOCK_BYTES = 4096
_OPERATION, _DONE, _SAVED, _STEPS = range(4)


class Map:
    """Byte offsets of the slab's parts: a function of the layout, the update rule, the number of lanes, and `codecs`.

    codecs: by page, of gradients that do not go as they are. residuals: whether there is room for what they leave out.
    block_numel: how much of a page is updated at once, at most BLOCK_NUMEL.
    """

    def __init__(
        self,
        layout: Layout,
        rule: UpdateRule,
        lanes: int,
        codecs: Mapping[int, Codec] | None = None,
        *,
        residuals: bool = False,
        block_numel: int = BLOCK_NUMEL,
    ) -> None:
        self.layout, self.rule, self.lanes, self.block_numel = layout, rule, lanes, block_numel
        self.codecs = dict(codecs or {})
        self.residual_pages = sorted(self.codecs) if residuals else []
        self.parts: dict[str, tuple[int, int]] = {}
        end = _up(_RECORD_BYTES * (1 + layout.shard_count))
        for key, nbytes in memory_plan(layout, rule).items():
            self.parts[key] = end, nbytes
            end = _up(end + nbytes)
        self._pushes = end

    @property
    def values(self) -> int:
        return self.parts["values"][0]

    def pushes(self, lane: int) -> int:
        return self._pushes + lane * _up(self.layout.slab_nbytes)

    def frame(self, shard: int) -> int:
        return self.pushes(self.lanes) + shard * self.frame_nbytes

    @cached_property
    def frame_nbytes(self) -> int:
        """A block, and as much again for every kind of state."""
        kinds = 1 + len(self.rule.all_state_keys)
        items = [ITEM_BYTES[spec.dtype] for spec in self.layout.tensors]
        blocks = [items[page.tensor] * min(page.numel, self.block_numel) for page in self.layout.pages]
        blocks += [items[index] * max(spec.row_numel, self.block_numel) for index, spec in self.tables.items()]
        return kinds * _up(max(blocks, default=0))

    def residual(self, lane: int, number: int) -> int:
        """Where what a lane keeps of a page is, float32; of `residual_pages` only."""
        return self.frame(self.layout.shard_count) + lane * self._residual_nbytes + self._residual_places[number]

    def residual_numel(self, number: int) -> int:
        """How many numbers that is: what was left out, and moments where a lane has them."""
        return carried_numel(self.layout.pages[number].numel, self.codecs[number].direction)

    @cached_property
    def _residual_places(self) -> dict[int, int]:
        places, end = {}, 0
        for number in self.residual_pages:
            places[number] = end
            end += _RECORD_BYTES * -(-4 * self.residual_numel(number) // _RECORD_BYTES)
        return places

    @cached_property
    def _residual_nbytes(self) -> int:
        return _up(sum(4 * self.residual_numel(number) + _RECORD_BYTES for number in self.residual_pages))

    @cached_property
    def tables(self) -> dict[int, TensorSpec]:
        """Tensors by number that are pushed and updated by row."""
        trained = [self.rule.settings(spec.name) is not None for spec in self.layout.tensors]
        found = enumerate(self.layout.tensors)
        return {index: spec for index, spec in found if spec.kind == "rows" and trained[index] and spec.numel}

    def list_of(self, lane: int, index: int) -> tuple[int, int]:
        """Where the list of a lane's rows of a table is, and its words."""
        before = sum(_list_nbytes(spec) for number, spec in self.tables.items() if number < index)
        return self._lists + lane * self._lists_nbytes + before, list_words(self.tables[index].shape[0])

    @property
    def _lists(self) -> int:
        return _up(self.frame(self.layout.shard_count) + self.lanes * self._residual_nbytes)

    @cached_property
    def _lists_nbytes(self) -> int:
        return sum(map(_list_nbytes, self.tables.values()))

    @property
    def nbytes(self) -> int:
        return self._lists + self.lanes * self._lists_nbytes


class SharedPages:
    """The slab's pages as tensors, and their updates. `crash` is called between any two moves, for tests."""

    def __init__(self, slab: Slab, where: Map, crash: Callable[[str], None] | None = None) -> None:
        self._slab = slab
        self.map = where
        self._crash = crash or (lambda place: None)
        memory = {key: slab.tensor(offset, torch.uint8, nbytes) for key, (offset, nbytes) in where.parts.items()}
        self.updater = PlannedUpdater(where.layout, where.rule, memory)
        self._pages: dict[int, torch.Tensor] = {}
        self._changing: dict[int, tuple[list[PlannedBlock], list[ShardRows]]] = {}

    def tensor(self, base: int, name: str) -> torch.Tensor:
        """A whole tensor of the layout, in the model's shape and strides, in the part that starts at `base`."""
        spec = self.map.layout.spec(name)
        pages = self.map.layout.of_tensor(name)
        flat = self._slab.tensor(base + (pages[0].offset if pages else 0), getattr(torch, spec.dtype), spec.numel)
        return flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)

    def page(self, base: int, page: Page) -> torch.Tensor:
        """A page, [numel], in the part that starts at `base`."""
        offset = base + page.offset
        if offset not in self._pages:
            dtype = getattr(torch, self.map.layout.tensors[page.tensor].dtype)
            self._pages[offset] = self._slab.tensor(offset, dtype, page.numel)
        return self._pages[offset]

    def apply(self, operation: int, shard: int, lanes: Sequence[int]) -> None:
        """Update a shard's pages with what `lanes` pushed; begun by another process, it goes on where that stopped.

        `operation` is above zero and names this update of this shard alone.
        """
        record = self._slab.words(_RECORD_BYTES * (1 + shard), _RECORD_BYTES // 8)
        if record[_OPERATION] != operation:
            record[_DONE] = record[_SAVED] = 0
            record[_OPERATION] = operation
        planned, tables = self._changing_of(shard)
        blocks = [*planned, *(block for table in tables for block in table.blocks(lanes))]
        if record[_SAVED] == record[_DONE] + 1:
            half_done = blocks[record[_DONE]]
            half_done.restore()
            self.updater.steps[half_done.numbers] = record[_STEPS]
        with torch.no_grad():
            for index in range(record[_DONE], len(blocks)):
                self._change(blocks[index], index, record, lanes)

    def _change(self, block: PlannedBlock | RowBlock, index: int, record: memoryview, lanes: Sequence[int]) -> None:
        if isinstance(block, RowBlock) or block.is_trained:
            block.save()
            step = record[_STEPS] = int(self.updater.steps[block.page.number])
            record[_SAVED] = index + 1
            self._crash("saved")
            block.update(lanes, 1 / self.map.lanes, step)
            if block.is_last:
                self.updater.steps[block.numbers] = step + 1
        else:
            self._crash("saved")
            block.value.copy_(block.pushed[lanes[0]])
        self._crash("changed")
        record[_DONE] = index + 1

    @property
    def name(self) -> memoryview:
        """Words that tell this slab from any other."""
        return self._slab.words(0, _RECORD_BYTES // 8)

    def pushed_bytes(self, shard: int, lane: int) -> bytes:
        """A copy of what a lane pushed to a shard: its pages, one after the other."""
        pages = self.map.layout.of_shard(shard)
        return b"".join(_bytes_of(self.page(self.map.pushes(lane), page)) for page in pages)

    def residuals(self, lane: int) -> dict[int, torch.Tensor]:
        """What is kept of a lane, by page: float32 [residual_numel], in the slab."""
        return {
            number: self._slab.tensor(self.map.residual(lane, number), torch.float32, self.map.residual_numel(number))
            for number in self.map.residual_pages
        }

    def replay(self, shard: int, data: memoryview) -> None:
        """Update a shard's pages with what `pushed_bytes` gave for each lane."""
        replay_update(self.updater, shard, data, lanes=self.map.lanes)

    def buffer(self, lane: int, name: str) -> torch.Tensor | LaneRows:
        """Where a lane's gradient of a parameter goes."""
        gradient, index = self.tensor(self.map.pushes(lane), name), self.map.layout.index_of(name)
        return LaneRows(gradient, self._list(lane, index)) if index in self.map.tables else gradient

    def take_any_rows(self, lane: int) -> None:
        """Gradients of this lane's tables come whole."""
        for index, spec in self.map.tables.items():
            LaneRows(self.tensor(self.map.pushes(lane), spec.name), self._list(lane, index)).take_any()

    def _list(self, lane: int, index: int) -> torch.Tensor:
        offset, words = self.map.list_of(lane, index)
        return self._slab.tensor(offset, torch.int64, words)

    def _changing_of(self, shard: int) -> tuple[list[PlannedBlock], list[ShardRows]]:
        """What an update of the shard changes: blocks, not of frozen parameters, and of tables some rows."""
        if shard not in self._changing:
            frame = self._slab.tensor(self.map.frame(shard), torch.uint8, self.map.frame_nbytes)
            pages = [page for page in self.map.layout.of_shard(shard) if page.tensor not in self.map.tables]
            planned = [block for page in pages for block in self._blocks(page, frame)]
            kinds = [spec.kind for spec in self.map.layout.tensors]
            changing = [block for block in planned if block.is_trained or kinds[block.page.tensor] == "buffer"]
            self._changing[shard] = changing, self._tables_of(shard, frame)
        return self._changing[shard]

    def _tables_of(self, shard: int, frame: torch.Tensor) -> list[ShardRows]:
        found, lanes = [], range(self.map.lanes)
        for index, spec in self.map.tables.items():
            pushed = [self.tensor(self.map.pushes(lane), spec.name) for lane in lanes]
            lists = [self._list(lane, index) for lane in lanes]
            if pages := [page for page in self.map.layout.of_shard(shard) if page.tensor == index]:
                found.append(ShardRows(self.updater, pages, pushed, lists, frame, self.map.block_numel))
        return found

    def _blocks(self, page: Page, frame: torch.Tensor) -> list[PlannedBlock]:
        pushed = [self.page(self.map.pushes(lane), page) for lane in range(self.map.lanes)]
        return planned_blocks(page, self.updater, pushed, frame, self.map.block_numel)


class LocalMemory:
    """A servant's model over the slab. `shared`: its parameters are the slab's own; else copies, filled by `fetch`.

    Buffers of the model are always its own: the forward pass changes them, and the store decides what becomes of that.
    """

    can_apply = True

    def __init__(self, model: nn.Module, pages: SharedPages, where: Map, *, shared: bool) -> None:
        self._pages = pages
        self._map = where
        self._shared = shared
        names = {name: spec.name for spec in where.layout.tensors for name in (spec.name, *spec.aliases)}
        self._parameters = {p: names[name] for name, p in model.named_parameters()}
        self._model_buffers = {names[name]: b for name, b in model.named_buffers() if name in names}
        self._stored = {name: pages.tensor(where.values, name) for name in self._model_buffers}
        self._own: dict[str, torch.Tensor] = {}
        self._lanes: dict[int, dict[nn.Parameter, torch.Tensor | LaneRows]] = {}
        self._feedback = Feedback(where.codecs, pages.residuals)
        self._squeezed = {p: self._coded_pages(name) for p, name in self._parameters.items()}
        for parameter, name in self._parameters.items():
            parameter.data = pages.tensor(where.values, name) if shared else self._copy(name)
        if not shared:
            for name, buffer in self._model_buffers.items():
                buffer.data = self._copy(name)

    def buffers(self, lane: int) -> Mapping[nn.Parameter, torch.Tensor | LaneRows]:
        """The lane's gradients in the slab."""
        if lane not in self._lanes:
            self._lanes[lane] = {p: self._pages.buffer(lane, name) for p, name in self._parameters.items()}
        return self._lanes[lane]

    def before(self, lane: int, number: int) -> None:
        """Under bsp, take the buffers of this version; where parameters are copies, buffers were fetched with them."""
        self._feedback.begin(lane, number // self._map.lanes)
        if self._shared:
            for name, buffer in self._model_buffers.items():
                buffer.copy_(self._stored[name])

    def complete(self, lane: int, parameter: nn.Parameter) -> None:
        """The gradient is pushed as it lies there, or as its codec would have let it arrive: of a table, any row."""
        buffer = self.buffers(lane)[parameter]
        if isinstance(buffer, LaneRows) and self._squeezed[parameter]:
            buffer.take_any()
        for page in self._squeezed[parameter]:
            self._feedback.squeeze(lane, page.number, self._pages.page(self._map.pushes(lane), page))

    def after(self, lane: int) -> None:
        """Push the model's buffers as the forward pass left them."""
        for name, buffer in self._model_buffers.items():
            self._pages.tensor(self._map.pushes(lane), name).copy_(buffer)

    def apply(self, op: int, shard: int, lanes: Sequence[int]) -> None:
        self._pages.apply(op, shard, lanes)

    def fetch(self, shard: int) -> None:
        """Copy the shard's pages into the model's own tensors."""
        for page in self._map.layout.of_shard(shard):
            own = self._own[self._map.layout.tensors[page.tensor].name]
            own[page.start : page.start + page.numel].copy_(self._pages.page(self._map.values, page))

    def keep(self, lane: int) -> None:
        kept = self._pages.residuals(lane)
        for number, residual in self._feedback.of_lane(lane).state().items():
            kept[number].copy_(residual)

    def _coded_pages(self, name: str) -> list[Page]:
        return [page for page in self._map.layout.of_tensor(name) if page.number in self._map.codecs]

    def _copy(self, name: str) -> torch.Tensor:
        """A tensor of this process alone; its elements in memory order are kept for `fetch`."""
        spec = self._map.layout.spec(name)
        self._own[name] = flat = torch.empty(spec.numel, dtype=getattr(torch, spec.dtype))
        return flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy()) if tensor.numel() else memoryview(bytearray())


def _list_nbytes(spec: TensorSpec) -> int:
    return _RECORD_BYTES * -(-8 * list_words(spec.shape[0]) // _RECORD_BYTES)


def _up(nbytes: int) -> int:
    return -(-nbytes // _BLOCK_BYTES) * _BLOCK_BYTES
