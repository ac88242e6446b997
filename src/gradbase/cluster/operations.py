"""The order in which a shard's pages are read and written, when those who read and write are other processes.

A shard's machine thinks that `apply` and `read` happen when it calls them. Here they are put into the shard's queue,
in that order, and carried out by servants: an update alone, fetches side by side. So a reader gets exactly the
updates that the machine counted when it answered, and a shard of which one process holds the pages needs no process
of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["apply", "fetch", "keep", "inline"]


@dataclass(eq=False)
class Operation:
    """`number` is above all before. `worker`: who is to do it, None if anybody may (or, of a fetch, nobody yet)."""

    number: int
    shard: int
    kind: Kind
    lanes: tuple[int, ...] = ()
    worker: int | None = None
    work: Callable[[], None] | None = None  # of an inline operation: done by the steward itself
    started: bool = False
    done: bool = False


@dataclass
class Queue:
    """The operations of one shard that are not done, oldest first."""

    shard: int
    waiting: deque[Operation] = field(default_factory=deque)

    def startable(self) -> list[Operation]:
        """What can begin now: the oldest, and with a fetch all fetches that follow it."""
        while self.waiting and self.waiting[0].done:
            self.waiting.popleft()
        ready: list[Operation] = []
        for operation in self.waiting:
            if operation.kind != "fetch" and operation is not self.waiting[0]:
                break
            if not operation.started and not operation.done:
                ready.append(operation)
            if operation.kind != "fetch":
                break
        return ready


class Operations:
    """The queues of all shards, filled by the machines' calls of `Pages`."""

    def __init__(self, shards: int, *, copies: bool) -> None:
        self.queues = [Queue(shard) for shard in range(shards)]
        self.copies = copies
        self._count = 0

    def put(self, shard: int, kind: Kind, **given: object) -> Operation:
        self._count += 1
        operation = Operation(self._count, shard, kind, **given)  # type: ignore[arg-type]
        self.queues[shard].waiting.append(operation)
        return operation

    @property
    def idle(self) -> bool:
        return not any(not operation.done for queue in self.queues for operation in queue.waiting)

    @property
    def lanes(self) -> set[int]:
        """Lanes whose buffers are still to be read."""
        return {lane for queue in self.queues for each in queue.waiting if not each.done for lane in each.lanes}

    def last(self, shard: int) -> Operation | None:
        """The newest operation of a shard that is not done."""
        waiting = self.queues[shard].waiting
        return waiting[-1] if waiting and not waiting[-1].done else None


@dataclass(frozen=True)
class Pushed:
    """What a worker pushed: it lies in this lane's buffers of the slab. No lane: the stream had no such batch."""

    lane: int | None
    worker: int


@dataclass(frozen=True)
class Update:
    """What is applied to one shard at once."""

    shard: int
    lanes: tuple[int, ...]
    worker: int | None


@dataclass(frozen=True)
class Logged:
    """An update as a log kept it: of each of its lanes the gradients of the shard's pages, one after the other."""

    data: memoryview


@dataclass(frozen=True)
class Reading:
    """What a reader gets of a shard: valid once these operations are done."""

    shard: int
    after: Operation | None


class ShardPages:
    """The `Pages` of one shard, as its machine sees them.

    With `copies` every reader has parameters of its own and a read is a fetch; else models are views of the slab,
    nobody computes while an update runs, and a read is done when the updates before it are.
    `residuals`: gradients go through lossy codecs, and a job that is resumed needs what those have left out; the shard
    keeps that of the lane with its number.
    """

    def __init__(
        self,
        operations: Operations,
        shard: int,
        replay: Callable[[int, memoryview], None],
        *,
        residuals: bool = False,
    ) -> None:
        self._operations = operations
        self._shard = shard
        self._replay = replay
        self._residuals = residuals

    def read(self, selection: object) -> Reading:
        if self._operations.copies:
            return Reading(self._shard, self._operations.put(self._shard, "fetch"))
        return Reading(self._shard, self._operations.last(self._shard))

    def reduce(self, lanes: Sequence[tuple[object, ...]]) -> Update | None:
        found = [part for parts in lanes for part in parts if isinstance(part, Pushed)]
        given = tuple(part.lane for part in found if part.lane is not None)
        return Update(self._shard, given, found[0].worker if len(found) == 1 else None) if given else None

    def apply(self, update: object) -> None:
        if isinstance(update, Logged):
            self._replay(self._shard, update.data)  # nobody works yet: the job is being resumed
        elif update is not None:
            assert isinstance(update, Update)
            self._operations.put(self._shard, "apply", lanes=update.lanes, worker=update.worker)

    def snapshot(self) -> Operation:
        """A place in the queue, at which the values are copied; with them goes what a lane's codecs have left out."""
        if self._residuals:
            self._operations.put(self._shard, "keep", lanes=(self._shard,))
        return self._operations.put(self._shard, "inline")

    def restore(self, snapshot: object) -> None:
        assert snapshot is None, "loading has put the values where they belong"
