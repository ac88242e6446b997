"""What machines note down while they run, for `history` to judge. An engine passes `note`, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from gradbase.store.machine.messages import Clock, Payload, Ranges


class Recovered(NamedTuple):
    """A shard's storage was opened; `lsn` is the last record read back (or held by a checkpoint)."""

    shard: int
    incarnation: int
    lsn: int


class Restored(NamedTuple):
    """A shard's values now hold these updates: bsp, all steps before `step`; ssp and asp, `clock` and `used`."""

    shard: int
    incarnation: int
    step: int
    clock: Clock
    used: Ranges


class TermFenced(NamedTuple):
    shard: int
    incarnation: int
    term: int


class TermOpened(NamedTuple):
    """A shard serves a term; `members`: (worker, session, clock)."""

    shard: int
    incarnation: int
    term: int
    members: tuple[tuple[int, int, int], ...]


class Logged(NamedTuple):
    shard: int
    incarnation: int
    lsn: int
    worker: int
    seq: int


class Synced(NamedTuple):
    shard: int
    incarnation: int
    lsn: int


class Acknowledged(NamedTuple):
    """A shard told a worker that all its pushes with seq < durable are durable."""

    shard: int
    incarnation: int
    worker: int
    durable: int


class CheckpointCounts(NamedTuple):
    """A shard heard that all shards have this checkpoint of it."""

    shard: int
    incarnation: int
    step: int
    clock: Clock


class Applied(NamedTuple):
    """bsp: step `seq` (worker, session and batch are -1). ssp, asp: one push; not `fresh`: its batch was in already."""

    shard: int
    incarnation: int
    term: int
    worker: int
    session: int
    seq: int
    batch: int
    fresh: bool


class Served(NamedTuple):
    """A shard answered a read."""

    shard: int
    incarnation: int
    term: int
    worker: int
    session: int
    seq: int
    clock: Clock
    value: Payload


class Read(NamedTuple):
    """A session took an answer; `seq` is what it had asked for."""

    worker: int
    session: int
    shard: int
    term: int
    seq: int
    clock: Clock
    value: Payload


class Pushed(NamedTuple):
    """A session made a push (not: sent it again)."""

    worker: int
    session: int
    term: int
    seq: int
    lane: int
    batch: int


class Leased(NamedTuple):
    term: int
    worker: int
    session: int
    batches: tuple[int, ...]


class TermBegun(NamedTuple):
    term: int


Note: TypeAlias = (
    Recovered | Restored | CheckpointCounts | TermFenced | TermOpened | Logged | Synced | Acknowledged | Applied
    | Served | Read | Pushed | Leased | TermBegun
)  # fmt: skip
Notes: TypeAlias = Callable[[Note], object]
