"""Pages for a worker on another host: values come and gradients go over the store's wire.

    servant -> caller    Pull(session=number) to a shard       values of the shard's pages, in PullReplies
                         Pull(session=number) to a worker      in the same way, what is kept of that lane's residuals
                         Push(session=number, lane, parts=0)   gradients of some pages, encoded; more follow
                         Push(session=number, lane, parts=1)   the last ones, and buffers; answered by PushReply
                         Push(session=number) to a worker      residuals of that lane, to be kept; parts as above

`number` is the servant's own; once it is fenced nothing that it sends gets into the slab.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gradbase.cluster.codecs import Feedback
from gradbase.cluster.job import Traffic
from gradbase.cluster.local import Map, SharedPages
from gradbase.cluster.ray._outbox import Outbox
from gradbase.common.errors import StoreError
from gradbase.store.codec import Codec, decode, encode
from gradbase.store.layout import Page
from gradbase.store.machine.messages import Address, Pull, PullReply, Push, PushReply
from gradbase.store.wire import Block, Connection, Place

# Far below what a connection takes in one message, and soon over on a slow link too.
_MESSAGE_BYTES = 64 << 20


class PagesGone(StoreError):
    """The connection for pages has ended: the servant that had it is of no use any more, but can begin again."""


class PageServer:
    """The caller's side; `serve` runs in a thread for every connection."""

    def __init__(self, pages: SharedPages, where: Map) -> None:
        self._pages, self._map = pages, where
        self._pushed = pushed_pages(where)
        self._fenced: set[int] = set()
        self._traffic: dict[int, Traffic] = {}
        self._lock = threading.Lock()

    def fence(self, number: int) -> None:
        """From when this returns, pushes of this servant are refused."""
        with self._lock:
            self._fenced.add(number)

    def traffic(self, number: int) -> Traffic | None:
        """Bytes of one servant, None if it has not called for pages."""
        return self._traffic.get(number)

    @property
    def all_traffic(self) -> Traffic:
        """Of all servants that ever called."""
        total = Traffic()
        for each in list(self._traffic.values()):
            total = total.plus(each)
        return total

    def serve(self, connection: Connection) -> None:
        arrived: set[int] = set()  # pages of the push under way
        while (letter := connection.receive()) is not None:
            message, to = letter.message, letter.to
            if isinstance(message, Pull):
                blocks = self._values(to)
                self._count(message.session, pulled_nbytes=_nbytes(blocks))
                for some, _ in _messages(blocks):
                    connection.send(PullReply(0, message.session, to[1], 0, (), some, 0))
            elif isinstance(message, Push):
                self._take(message, to, arrived)
                if message.parts:
                    connection.send(PushReply(0, message.session, to[1], 0, message.lane, 0, True, 0))
            else:
                raise StoreError(f"a servant sent {type(message).__name__}", "run the same gradbase on all hosts")

    def _values(self, of: Address) -> tuple[Block, ...]:
        kind, number = of
        if kind == "worker":
            kept = self._pages.residuals(self._checked(number, self._map.lanes))
            return tuple(Block(page, b"", _bytes_of(residual)) for page, residual in kept.items())
        shard = self._checked(number, self._map.layout.shard_count)
        return tuple(
            Block(page.number, b"", _bytes_of(self._pages.page(self._map.values, page)))
            for page in self._map.layout.of_shard(shard)
        )

    def _take(self, message: Push, to: Address, arrived: set[int]) -> None:
        """Put what was pushed where it belongs, unless the servant is out by now."""
        assert isinstance(message.payload, tuple)
        lane = self._checked(to[1] if to[0] == "worker" else message.lane, self._map.lanes)
        kept = self._pages.residuals(lane) if to[0] == "worker" else None
        with self._lock:
            if message.session in self._fenced:
                raise StoreError("a servant that was given up pushed", "it is to call again as a new one")
            if kept is None:
                self._pages.take_any_rows(lane)
            for block in message.payload:
                self._put(block, self._home(block.key, lane, kept))
        if kept is None:
            arrived.update(block.key for block in message.payload)
            raw_nbytes = sum(self._map.layout.pages[block.key].nbytes for block in message.payload)
            self._count(message.session, pushed_nbytes=_nbytes(message.payload), gradient_nbytes=raw_nbytes)
            if message.parts:
                self._check_whole(arrived)
        else:
            self._count(message.session, pushed_nbytes=_nbytes(message.payload))

    def _home(self, number: int, lane: int, kept: Mapping[int, torch.Tensor] | None) -> torch.Tensor:
        """Where a page that was pushed goes: to the lane's gradients, or its residuals."""
        if number not in (self._pushed if kept is None else kept):
            raise StoreError(f"page {number} was pushed, which is not trained", "run the same gradbase on all hosts")
        if kept is not None:
            return kept[number]
        return self._pages.page(self._map.pushes(lane), self._map.layout.pages[number])

    def _put(self, block: Block, home: torch.Tensor) -> None:
        decode((block.head, block.body), home.numel(), home.dtype, out=home)

    def _check_whole(self, arrived: set[int]) -> None:
        if arrived != self._pushed:
            problem = f"{len(arrived)} pages were pushed of {len(self._pushed)}"
            raise StoreError(problem, "run the same gradbase on all hosts")
        arrived.clear()

    def _count(self, number: int, **nbytes: int) -> None:
        self._traffic[number] = self._traffic.get(number, Traffic()).plus(Traffic(**nbytes))

    def _checked(self, number: int, count: int) -> int:
        if not 0 <= number < count:
            raise StoreError(f"a servant named shard or lane {number} of {count}")
        return number


class RemoteMemory:
    """A servant's model in memory of its own. `shared`: under bsp, values are pulled whole before every step.

    Gradients are encoded and sent by a thread while the backward pass goes on, of those that are complete the ones
    first that the next step needs first.
    """

    can_apply = False

    def __init__(self, model: nn.Module, where: Map, connection: Connection, number: int, *, shared: bool) -> None:
        self._map, self._connection, self._number, self._shared = where, connection, number, shared
        self._values = bytearray(where.layout.slab_nbytes)
        self._pushes = bytearray(where.layout.slab_nbytes)
        self._feedback = Feedback(where.codecs, self._kept)
        self._outbox = Outbox(self._send)
        self._lane = 0
        pushed = pushed_pages(where)
        names = {name: spec.name for spec in where.layout.tensors for name in (spec.name, *spec.aliases)}
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}
        self._pages: dict[nn.Parameter, list[int]] = {}
        for name, parameter in model.named_parameters():
            parameter.data = _tensor(where, self._values, names[name])
            self._gradients[parameter] = _tensor(where, self._pushes, names[name])
            numbers = [page.number for page in where.layout.of_tensor(names[name])]
            self._pages[parameter] = [each for each in numbers if each in pushed]
        self._buffers = {}
        for name, buffer in model.named_buffers():
            if name in names:
                buffer.data = _tensor(where, self._values, names[name])
                self._buffers[names[name]] = buffer

    def close(self) -> None:
        """End the connection, and the thread that sends."""
        self._connection.close()
        self._outbox.close()

    def buffers(self, lane: int) -> Mapping[nn.Parameter, torch.Tensor]:
        return self._gradients

    def before(self, lane: int, number: int) -> None:
        self._lane = lane
        self._feedback.begin(lane, number // self._map.lanes)
        if self._shared:
            for shard in range(self._map.layout.shard_count):
                self.fetch(shard)

    def complete(self, lane: int, parameter: nn.Parameter) -> None:
        self._outbox.put(self._pages[parameter])

    def after(self, lane: int) -> None:
        """Push buffers as the forward pass left them; return when all is in the slab."""
        for name, buffer in self._buffers.items():
            _tensor(self._map, self._pushes, name).copy_(buffer)
            self._outbox.put(page.number for page in self._map.layout.of_tensor(name) if page.numel)
        self._outbox.flush()
        self._answer(PushReply, {})

    def apply(self, op: int, shard: int, lanes: Sequence[int]) -> None:
        raise AssertionError("a servant that says it cannot apply is not asked to")

    def fetch(self, shard: int) -> None:
        """Pull a shard's values straight into the model's tensors."""
        self._say(Pull(0, 0, self._number, 0, None), ("shard", shard))
        memory = memoryview(self._values)
        self._answer(PullReply, {page.number: _part(memory, page) for page in self._map.layout.of_shard(shard)})

    def keep(self, lane: int) -> None:
        residuals = self._feedback.of_lane(lane).state()
        blocks = tuple(Block(number, *encode(Codec(), residual)) for number, residual in residuals.items())
        for some, last in _messages(blocks):
            self._say(Push(0, 0, self._number, 0, lane, 0, 0, int(last), some), ("worker", lane))
        self._answer(PushReply, {})

    def _kept(self, lane: int) -> Mapping[int, torch.Tensor]:
        """Under bsp, what the caller keeps of a lane's residuals."""
        residuals = {number: torch.zeros(self._map.residual_numel(number)) for number in self._map.residual_pages}
        if residuals:
            self._say(Pull(0, 0, self._number, 0, None), ("worker", lane))
            self._answer(PullReply, {number: _bytes_of(residual) for number, residual in residuals.items()})
        return residuals

    def _send(self, numbers: Sequence[int], last: bool) -> None:
        """Called by the outbox's thread, with pages whose gradients are complete."""
        compressor = self._feedback.of_lane(self._lane)
        blocks = []
        for page in (self._map.layout.pages[number] for number in numbers):
            dtype = getattr(torch, self._map.layout.tensors[page.tensor].dtype)
            gradient = torch.frombuffer(self._pushes, dtype=dtype, count=page.numel, offset=page.offset)
            blocks.append(Block(page.number, *compressor.encode(page.number, gradient)))
        push = Push(0, 0, self._number, 0, self._lane, 0, 0, int(last), tuple(blocks))
        self._say(push, ("shard", 0))

    def _say(self, message: Any, to: Address) -> None:
        try:
            self._connection.send(message, to)
        except StoreError as error:
            raise PagesGone(error.problem, *error.remedies) from error

    def _answer(self, kind: type, places: Mapping[int, memoryview]) -> None:
        """Receive what was asked for, in as many messages as it takes to fill `places`, one at least."""
        missing = dict(places)

        def place(message: type, key: int, head: Any, nbytes: int) -> memoryview | None:
            known = missing.pop(key, None)
            return known if known is not None and len(known) == nbytes else None

        self._receive(kind, place)
        while missing:
            self._receive(kind, place)

    def _receive(self, kind: type, place: Place) -> None:
        try:
            answer = self._connection.receive(place)
        except StoreError as error:
            raise PagesGone(error.problem, *error.remedies) from error
        if answer is None or not isinstance(answer.message, kind):
            raise PagesGone("the caller has closed the connection for pages", "the job is over, or has to be resumed")


def _messages(blocks: Sequence[Block]) -> Iterator[tuple[tuple[Block, ...], bool]]:
    """The blocks in order, as many in a message as fit, and whether it is the last. Without blocks one without any."""
    some: list[Block] = []
    nbytes = 0
    for block in blocks:
        nbytes += _nbytes([block])
        if some and nbytes > _MESSAGE_BYTES:
            yield tuple(some), False
            some, nbytes = [], _nbytes([block])
        some.append(block)
    yield tuple(some), True


def pushed_pages(where: Map) -> set[int]:
    """Numbers of the pages that go with every push: of all that is trained, and of buffers."""
    specs = where.layout.tensors
    goes = [spec.kind == "buffer" or where.rule.settings(spec.name) is not None for spec in specs]
    return {page.number for page in where.layout.pages if goes[page.tensor] and page.numel}


def _tensor(where: Map, memory: bytearray, name: str) -> torch.Tensor:
    spec, pages = where.layout.spec(name), where.layout.of_tensor(name)
    dtype = getattr(torch, spec.dtype)
    if not pages:
        return torch.empty(spec.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=spec.numel, offset=pages[0].offset)
    return flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)


def _part(memory: memoryview, page: Page) -> memoryview:
    return memory[page.offset : page.offset + page.nbytes]


def _nbytes(blocks: Sequence[Block]) -> int:
    return sum(len(block.head) + len(block.body) for block in blocks)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy())
