"""Pages for a worker on another host: values come and gradients go over the store's wire.

    servant -> a shard    Pull(session=number)          values of the shard's pages, as PullReply
                          Push(session=number, lane)    gradients of the shard's pages, answered by PushReply

`number` is the servant's own; once it is fenced nothing that it sends gets into the slab.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gradbase.cluster.local import Map, SharedPages
from gradbase.common.errors import StoreError
from gradbase.store.layout import Page
from gradbase.store.machine.messages import Pull, PullReply, Push, PushReply
from gradbase.store.wire import Block, Connection


class PageServer:
    """The caller's side; `serve` runs in a thread for every connection."""

    def __init__(self, pages: SharedPages, where: Map) -> None:
        self._pages, self._map = pages, where
        self._fenced: set[int] = set()
        self._lock = threading.Lock()

    def fence(self, number: int) -> None:
        """From when this returns, pushes of this servant are refused."""
        with self._lock:
            self._fenced.add(number)

    def serve(self, connection: Connection) -> None:
        while (letter := connection.receive()) is not None:
            message, shard = letter.message, self._checked(letter.to[1], self._map.layout.shard_count)
            if isinstance(message, Pull):
                connection.send(PullReply(0, message.session, shard, 0, (), self._values(shard), 0))
            elif isinstance(message, Push):
                self._keep(shard, message)
                connection.send(PushReply(0, message.session, shard, 0, message.lane, 0, True, 0))
            else:
                raise StoreError(f"a servant sent {type(message).__name__}", "run the same gradbase on all hosts")

    def _values(self, shard: int) -> tuple[Block, ...]:
        return tuple(
            Block(page.number, b"", _bytes_of(self._pages.page(self._map.values, page)))
            for page in self._map.layout.of_shard(shard)
        )

    def _keep(self, shard: int, message: Push) -> None:
        """Put what was pushed into the lane's buffers, unless the servant is out by now."""
        base = self._map.pushes(self._checked(message.lane, self._map.lanes))
        pages = self._map.layout.of_shard(shard)
        assert isinstance(message.payload, tuple)
        if len(message.payload) != len(pages):
            raise StoreError(f"{len(message.payload)} pages were pushed to shard {shard}, which has {len(pages)}")
        with self._lock:
            if message.session in self._fenced:
                raise StoreError("a servant that was given up pushed", "it is to call again as a new one")
            for page, block in zip(pages, message.payload, strict=True):
                if block.key != page.number or len(block.body) != page.nbytes:
                    problem = f"page {block.key} of {len(block.body)} bytes was pushed in place of {page.number}"
                    raise StoreError(problem, "run the same gradbase on all hosts")
                _bytes_of(self._pages.page(base, page))[:] = block.body

    def _checked(self, number: int, count: int) -> int:
        if not 0 <= number < count:
            raise StoreError(f"a servant named shard or lane {number} of {count}")
        return number


class RemoteMemory:
    """A servant's model in memory of its own. `shared`: under bsp, values are pulled whole before every step."""

    can_apply = False

    def __init__(self, model: nn.Module, where: Map, connection: Connection, number: int, *, shared: bool) -> None:
        self._map, self._connection, self._number, self._shared = where, connection, number, shared
        self._values = bytearray(where.layout.slab_nbytes)
        self._pushes = bytearray(where.layout.slab_nbytes)
        names = {name: spec.name for spec in where.layout.tensors for name in (spec.name, *spec.aliases)}
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            parameter.data = _tensor(where, self._values, names[name])
            self._gradients[parameter] = _tensor(where, self._pushes, names[name])
        self._buffers = {}
        for name, buffer in model.named_buffers():
            if name in names:
                buffer.data = _tensor(where, self._values, names[name])
                self._buffers[names[name]] = buffer

    def buffers(self, lane: int) -> Mapping[nn.Parameter, torch.Tensor]:
        return self._gradients

    def before(self, lane: int) -> None:
        if self._shared:
            for shard in range(self._map.layout.shard_count):
                self.fetch(shard)

    def after(self, lane: int) -> None:
        """Push gradients, and buffers as the forward pass left them; return when they are in the slab."""
        for name, buffer in self._buffers.items():
            _tensor(self._map, self._pushes, name).copy_(buffer)
        for shard in range(self._map.layout.shard_count):
            memory = memoryview(self._pushes)
            blocks = tuple(Block(page.number, b"", _part(memory, page)) for page in self._map.layout.of_shard(shard))
            self._connection.send(Push(0, 0, self._number, 0, lane, 0, 0, 1, blocks), ("shard", shard))
            self._answer(PushReply)

    def apply(self, op: int, shard: int, lanes: Sequence[int]) -> None:
        raise AssertionError("a servant that says it cannot apply is not asked to")

    def fetch(self, shard: int) -> None:
        """Pull a shard's values straight into the model's tensors."""
        self._connection.send(Pull(0, 0, self._number, 0, None), ("shard", shard))
        self._answer(PullReply)

    def _answer(self, kind: type) -> None:
        pages, memory = self._map.layout.pages, memoryview(self._values)

        def place(message: type, key: int, head: Any, nbytes: int) -> memoryview | None:
            known = 0 <= key < len(pages) and pages[key].nbytes == nbytes
            return _part(memory, pages[key]) if known else None

        answer = self._connection.receive(place)
        if answer is None or not isinstance(answer.message, kind):
            raise StoreError("the caller has closed the connection for pages", "the job is over, or has to be resumed")


def _tensor(where: Map, memory: bytearray, name: str) -> torch.Tensor:
    spec, pages = where.layout.spec(name), where.layout.of_tensor(name)
    dtype = getattr(torch, spec.dtype)
    if not pages:
        return torch.empty(spec.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=spec.numel, offset=pages[0].offset)
    return flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)


def _part(memory: memoryview, page: Page) -> memoryview:
    return memory[page.offset : page.offset + page.nbytes]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy())
