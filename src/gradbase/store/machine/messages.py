"""What the machines say to each other, what they ask of their engine, and what they write into logs.

Everything here is a named tuple of integers, tuples of integers, and *payloads*: opaque handles (a region of the
slab, tensors, in the simulator integers) that only the engine and its `Pages` look into. Numbers:

    worker      a slot, 0 .. job.slots - 1; a restarted worker may come back in any slot
    session     the term in which this process of the worker was admitted; a higher one fences a lower one
    term        the number of a view: who holds which lane, which incarnation of each shard; only ever goes up
    incarnation which opening of a shard's storage; handed out by the storage, each higher than all before
    seq         bsp: the step, which is also the version that was read; ssp, asp: the worker's clock
    batch       number of a micro-batch, 0 .. job.batches - 1; NO_BATCH for a push that only moves the clock
    lsn         of a shard's log: 1, 2, 3, ... without gaps, over all incarnations
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

Payload: TypeAlias = object
Address: TypeAlias = tuple[str, int]
Ranges: TypeAlias = tuple[tuple[int, int], ...]  # half open, ascending, not touching
Clock: TypeAlias = tuple[int, ...]  # bsp: one entry a lane; ssp and asp: one a slot

COORDINATOR: Address = ("coordinator", 0)
NO_BATCH: Final = -1

# `new(Send, (to, message))` is `Send(to, message)` in half the time: for what every message of a run goes through.
new = tuple.__new__


class Pages(Protocol):
    """The values of one shard: parameters and optimizer state, cut into pages. Called by the shard, in its thread."""

    def read(self, selection: object) -> Payload:
        """What a reader gets: the pages or rows of `selection`, all of them for None. Valid until the next apply."""

    def reduce(self, lanes: Sequence[tuple[Payload, ...]]) -> Payload:
        """Pushes, each the tuple of its parts, in lane order, as the one update to apply: ((g0 + g1) + ...) /
        job.lanes.

        Under ssp and asp there is one push. What comes back is what the log keeps and what `apply` gets, in this life
        or in a replay: compressed pushes are decompressed or logged as they are, never logged as something else. It
        stays valid until it was applied and its record is durable.
        """

    def apply(self, update: Payload) -> None:
        """Run the optimizer once with this update."""

    def snapshot(self) -> Payload:
        """The values now, for a checkpoint. Later applies must not change what it says."""

    def restore(self, snapshot: Payload | None) -> None:
        """Take the values of a snapshot; None: those the job starts with."""


# Between workers' sessions and shards.


class Pull(NamedTuple):
    """Read version `seq`. Under bsp it also says that step seq - 1 is complete on every shard."""

    term: int
    worker: int
    session: int
    seq: int
    selection: object = None


class PullReply(NamedTuple):
    """`clock` names exactly the updates in `value`. `durable`: every push of this worker with seq < durable is."""

    term: int
    session: int
    shard: int
    seq: int
    clock: Clock
    value: Payload
    durable: int


class Push(NamedTuple):
    """Part `part` of `parts` of what micro-batch `batch` gave. (worker, session, seq), under bsp with the lane, is
    its name.
    """

    term: int
    worker: int
    session: int
    seq: int
    lane: int
    batch: int
    part: int
    parts: int
    payload: Payload


class Poll(NamedTuple):
    """Ask again about a push the shard has said it holds, without sending its bytes again."""

    term: int
    worker: int
    session: int
    seq: int


class PushReply(NamedTuple):
    """`complete`: bsp, all lanes of the step are here; ssp and asp, the push was applied. Else the shard holds the
    part.
    """

    term: int
    session: int
    shard: int
    seq: int
    lane: int
    part: int
    complete: bool
    durable: int


class Durable(NamedTuple):
    """Acknowledgement: the shard's log or checkpoint holds all pushes of this worker with seq < durable."""

    term: int
    session: int
    shard: int
    durable: int


class Busy(NamedTuple):
    """The shard's queue is full; nothing was kept of the push. Try again later."""

    term: int
    session: int
    shard: int
    seq: int


# Between sessions and the coordinator.


class Join(NamedTuple):
    """`nonce` is the process's own random number, so that a repeated Join is not a second worker."""

    worker: int
    nonce: int


class NewTerm(NamedTuple):
    """A new term begins: stop, and report. `nonce` says which process of the worker is meant."""

    term: int
    session: int
    nonce: int


class Report(NamedTuple):
    """What a session holds. `oldest[shard]`: ssp, asp, the first seq it can send (again) to that shard; `next_seq`:
    the next one it will make. `retained`: bsp, (shard, lane, step) of pushes it can send again. `held`: batches it
    answers for.
    """

    term: int
    worker: int
    session: int
    next_seq: int
    oldest: tuple[int, ...]
    retained: tuple[tuple[int, int, int], ...]
    held: tuple[int, ...]


class View(NamedTuple):
    """The term is open. bsp: read version `seq` and compute `lanes`; ssp, asp: go on at clock `seq`."""

    term: int
    session: int
    seq: int
    lanes: tuple[int, ...]
    incarnations: tuple[int, ...]


class Beat(NamedTuple):
    """I live. `seq`: bsp, the last version read in this term; ssp, asp, the clock. `lease_done`: ssp, asp, all
    batches of leases up to this number are used (and as durable as promised) on every shard; bsp, steps before this
    one are durable.
    """

    term: int
    worker: int
    session: int
    seq: int
    lease_done: int


class LeaseRequest(NamedTuple):
    term: int
    worker: int
    session: int
    lease: int


class LeaseReply(NamedTuple):
    """`batches` may be empty: nothing is free now, but leases of others may come back."""

    term: int
    session: int
    lease: int
    batches: tuple[int, ...]


class Leave(NamedTuple):
    """The worker goes; what it held is free for others."""

    worker: int
    session: int


class Fenced(NamedTuple):
    """This session is out: its lanes and batches went to others. Join again."""

    session: int


class Finished(NamedTuple):
    """Every batch was used. `session` is the receiver's."""

    term: int
    session: int


# Between shards and the coordinator.


class ShardUp(NamedTuple):
    """This incarnation has its storage and is ready to be fenced and opened; repeated as the shard's beat."""

    shard: int
    incarnation: int
    term: int
    step: int


class Fence(NamedTuple):
    """Take nothing from lower terms any more, and report. Only for this incarnation."""

    term: int
    incarnation: int


class ShardReport(NamedTuple):
    """`reach`: bsp, the versions this shard can go to (the one applied, the complete one after it, checkpoints, what
    the log can replay). `clock` and `used`: ssp and asp, clocks by slot, and the numbers of the batches in the
    values.
    """

    shard: int
    incarnation: int
    term: int
    reach: Ranges
    complete: int
    clock: Clock
    used: Ranges


class Open(NamedTuple):
    """Serve this term. bsp: from version `seq`. `members`: (worker, session, clock to begin with) of those who live."""

    term: int
    incarnation: int
    seq: int
    members: tuple[tuple[int, int, int], ...]


class Ready(NamedTuple):
    shard: int
    incarnation: int
    term: int


class TakeCheckpoint(NamedTuple):
    """bsp: `number` is the version to keep; ssp, asp: a number higher than all before, and the values of the moment."""

    term: int
    incarnation: int
    number: int


class CheckpointTaken(NamedTuple):
    """`good` is False when that version is already past."""

    shard: int
    incarnation: int
    number: int
    lsn: int
    step: int
    good: bool


class CheckpointKept(NamedTuple):
    """All shards have checkpoint `number`, and the coordinator's log says so: what is older may go."""

    incarnation: int
    number: int


Message: TypeAlias = (
    Pull | PullReply | Push | Poll | PushReply | Durable | Busy | Join | NewTerm | Report | View | Beat | LeaseRequest
    | LeaseReply | Leave | Fenced | Finished | ShardUp | Fence | ShardReport | Open | Ready | TakeCheckpoint
    | CheckpointTaken | CheckpointKept
)  # fmt: skip


# Contents of logs and checkpoints.


class StepRecord(NamedTuple):
    """bsp: step `step` is complete here. `update` is None under command logging: batches and seed compute it again."""

    lsn: int
    incarnation: int
    term: int
    step: int
    batches: tuple[int, ...]
    seed: int
    update: Payload | None


class PushRecord(NamedTuple):
    """ssp, asp: one push as applied. For NO_BATCH, and for a batch already in the values, `update` is None."""

    lsn: int
    incarnation: int
    term: int
    worker: int
    session: int
    seq: int
    batch: int
    update: Payload | None


class TermRecord(NamedTuple):
    """Coordinator: this term was begun and may never be used again."""

    lsn: int
    term: int


class CheckpointRecord(NamedTuple):
    """Coordinator: checkpoint `number` exists on all shards, at these LSNs of their logs."""

    lsn: int
    number: int
    lsns: tuple[int, ...]


Record: TypeAlias = StepRecord | PushRecord | TermRecord | CheckpointRecord


class CheckpointState(NamedTuple):
    """What a shard's checkpoint says beside the values: all that replaying the log up to `lsn` would have given."""

    number: int
    lsn: int
    step: int
    clock: Clock
    sessions: tuple[int, ...]
    used: Ranges


# What a machine asks of its engine.


class Send(NamedTuple):
    """Best effort, in any order, perhaps twice. A shard's or session's own sends to itself are allowed."""

    to: Address
    message: Message


class Append(NamedTuple):
    """Put the record at the log's end. Durable only after a Sync. Failure: `log_failed(first lsn not written)`."""

    record: Record


class Sync(NamedTuple):
    """Make all records up to `lsn` durable, then call `synced(lsn)`. At most one is under way."""

    lsn: int


class WriteCheckpoint(NamedTuple):
    """Write it, durably and under its final name, then call `checkpoint_written(number)` or
    `checkpoint_failed(number)`.
    """

    state: CheckpointState
    snapshot: Payload


class Load(NamedTuple):
    """Read checkpoint `number` (None: there is none to read) and all records after its LSN; then call `loaded(...)`."""

    number: int | None


class Retire(NamedTuple):
    """Checkpoints before `number` and log records up to `lsn` may be deleted, now or later."""

    number: int
    lsn: int


class Compute(NamedTuple):
    """Run micro-batch `batch` on `values`, one a shard; then call `computed(term, seq, lane, shard, part, parts,
    payload)` for every part of what it gives for every shard.
    """

    term: int
    seq: int
    lane: int
    batch: int
    values: tuple[Payload, ...]


class Replace(NamedTuple):
    """This process has been silent for too long: end it if it lives, and start another."""

    who: Address


class Stop(NamedTuple):
    """The machine is done: the job is finished, or its storage was fenced by a newer incarnation."""

    reason: str


Effect: TypeAlias = Send | Append | Sync | WriteCheckpoint | Load | Retire | Compute | Replace | Stop


class Loaded(NamedTuple):
    """What `Load` gives back: `state` and `snapshot` are None where no checkpoint was asked for."""

    state: CheckpointState | None
    snapshot: Payload | None
    records: Iterable[Record]
