"""What lies where in the slab, and the update in place that survives `kill -9`.

    header      64 bytes that name the slab, then as many for every shard: operation, pages done, page saved + 1,
                updates of that page before it was saved
    values, state, steps    what an `Updater` works on; the models of all processes are views of the values (bsp)
    pushes      as much room as the values for every lane: its gradients, and the buffers (batch norm) as it left them
    undo        a frame for every shard, as large as its largest page with its state
    residuals   for every lane, what codecs had left out of its gradients when the last checkpoint was taken (bsp)

A trained page is updated in three moves: it is copied to the shard's frame, its number is written, it is changed in
place. A page of a buffer is overwritten, as often as need be; one that is frozen is not touched. Who takes over from a
dead process finds in the record how many pages are done, and puts the frame back if the next one was saved: whether
that page was changed, half changed or not touched, it is then as it was. What the lanes pushed stays until the step is
over, so the update can be repeated, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import nn

from gradbase.cluster.codecs import Feedback
from gradbase.cluster.local._slab import Slab
from gradbase.store.codec import Codec
from gradbase.store.layout import Layout, Page
from gradbase.store.recovery import replay_update
from gradbase.store.update import Updater, UpdateRule, memory_plan

_RECORD_BYTES = 64
_BLOCK_BYTES = 4096
_OPERATION, _DONE, _SAVED, _STEPS = range(4)


class Map:
    """Byte offsets of the slab's parts: a function of the layout, the update rule, the number of lanes, and `codecs`.

    codecs: by page, of gradients that do not go as they are. residuals: whether there is room for what they leave out.
    """

    def __init__(
        self,
        layout: Layout,
        rule: UpdateRule,
        lanes: int,
        codecs: Mapping[int, Codec] | None = None,
        *,
        residuals: bool = False,
    ) -> None:
        self.layout, self.rule, self.lanes = layout, rule, lanes
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
        """A page, and as much again for every kind of state (rounded up: state of rows has an item for a row)."""
        kinds = 1 + len(self.rule.all_state_keys)
        return _up(kinds * max((_up(page.nbytes) for page in self.layout.pages), default=0))

    def residual(self, lane: int, number: int) -> int:
        """Where a page's residual is, float32; of `residual_pages` only."""
        return self.frame(self.layout.shard_count) + lane * self._residual_nbytes + self._residual_places[number]

    @cached_property
    def _residual_places(self) -> dict[int, int]:
        places, end = {}, 0
        for number in self.residual_pages:
            places[number] = end
            end += _RECORD_BYTES * -(-4 * self.layout.pages[number].numel // _RECORD_BYTES)
        return places

    @cached_property
    def _residual_nbytes(self) -> int:
        return _up(sum(4 * self.layout.pages[number].numel + _RECORD_BYTES for number in self.residual_pages))

    @property
    def nbytes(self) -> int:
        return self.frame(self.layout.shard_count) + self.lanes * self._residual_nbytes


class SharedPages:
    """The slab's pages as tensors, and their updates. `crash` is called between any two moves, for tests."""

    def __init__(self, slab: Slab, where: Map, crash: Callable[[str], None] | None = None) -> None:
        self._slab = slab
        self.map = where
        self._crash = crash or (lambda place: None)
        memory = {key: slab.tensor(offset, torch.uint8, nbytes) for key, (offset, nbytes) in where.parts.items()}
        self.updater = Updater(where.layout, where.rule, memory)
        self._pages: dict[int, torch.Tensor] = {}
        self._frames = {
            shard: slab.tensor(where.frame(shard), torch.uint8, where.frame_nbytes)
            for shard in range(where.layout.shard_count)
        }
        self._changing = [self._changing_of(shard) for shard in range(where.layout.shard_count)]

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
        pages = self._changing[shard]
        if record[_SAVED] == record[_DONE] + 1:
            self._restore(shard, pages[record[_DONE]], record[_STEPS])
        for index in range(record[_DONE], len(pages)):
            if self._is_trained(pages[index]):
                record[_STEPS] = self._save(shard, pages[index])
                record[_SAVED] = index + 1
            self._crash("saved")
            self._update(pages[index], [self.page(self.map.pushes(lane), pages[index]) for lane in lanes])
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
        """What is kept of a lane, by page: float32 [numel], in the slab."""
        pages = self.map.layout.pages
        return {
            number: self._slab.tensor(self.map.residual(lane, number), torch.float32, pages[number].numel)
            for number in self.map.residual_pages
        }

    def replay(self, shard: int, data: memoryview) -> None:
        """Update a shard's pages with what `pushed_bytes` gave for each lane."""
        replay_update(self.updater, shard, data, lanes=self.map.lanes)

    def _changing_of(self, shard: int) -> list[Page]:
        """The pages that an update changes: not those of frozen parameters."""
        tensors = self.map.layout.tensors
        pages = self.map.layout.of_shard(shard)
        return [page for page in pages if self._is_trained(page) or tensors[page.tensor].kind == "buffer"]

    def _is_trained(self, page: Page) -> bool:
        return self.map.rule.settings(self.map.layout.tensors[page.tensor].name) is not None

    def _update(self, page: Page, pushed: list[torch.Tensor]) -> None:
        if self._is_trained(page):
            self.updater.apply(page.number, pushed, 1 / self.map.lanes)
        else:
            self.updater.assign(page.number, pushed[0])

    def _save(self, shard: int, page: Page) -> int:
        """Copy a page with its state to the shard's frame; how often it was updated."""
        for view, saved in self._saved(shard, page):
            saved.copy_(view)
        return int(self.updater.steps[page.number])

    def _restore(self, shard: int, page: Page, steps: int) -> None:
        for view, saved in self._saved(shard, page):
            view.copy_(saved)
        self.updater.steps[page.number] = steps

    def _saved(self, shard: int, page: Page) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The page's value and state, each with its place in the shard's frame."""
        start = 0
        for view in (self.updater.value(page), *self.updater.state(page).values()):
            yield view, self._frames[shard][start : start + view.nbytes].view(view.dtype)
            start = start + (view.nbytes + 63) // 64 * 64


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
        self._lanes: dict[int, dict[nn.Parameter, torch.Tensor]] = {}
        self._feedback = Feedback(where.codecs, pages.residuals)
        for parameter, name in self._parameters.items():
            parameter.data = pages.tensor(where.values, name) if shared else self._copy(name)
        if not shared:
            for name, buffer in self._model_buffers.items():
                buffer.data = self._copy(name)

    def buffers(self, lane: int) -> Mapping[nn.Parameter, torch.Tensor]:
        """The lane's gradients in the slab."""
        if lane not in self._lanes:
            base = self._map.pushes(lane)
            self._lanes[lane] = {p: self._pages.tensor(base, name) for p, name in self._parameters.items()}
        return self._lanes[lane]

    def before(self, lane: int, number: int) -> None:
        """Under bsp, take the buffers of this version; where parameters are copies, buffers were fetched with them."""
        self._feedback.begin(lane, number // self._map.lanes)
        if self._shared:
            for name, buffer in self._model_buffers.items():
                buffer.copy_(self._stored[name])

    def complete(self, lane: int, parameter: nn.Parameter) -> None:
        """The gradient is pushed as it lies there, or as its codec would have let it arrive."""
        for page in self._map.layout.of_tensor(self._parameters[parameter]):
            if page.number in self._map.codecs:
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

    def _copy(self, name: str) -> torch.Tensor:
        """A tensor of this process alone; its elements in memory order are kept for `fetch`."""
        spec = self._map.layout.spec(name)
        self._own[name] = flat = torch.empty(spec.numel, dtype=getattr(torch, spec.dtype))
        return flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy()) if tensor.numel() else memoryview(bytearray())


def _up(nbytes: int) -> int:
    return -(-nbytes // _BLOCK_BYTES) * _BLOCK_BYTES
