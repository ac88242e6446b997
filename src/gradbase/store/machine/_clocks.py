"""A shard under ssp and asp: pushes are applied as they come, each session's own in order, each batch once."""

from __future__ import annotations

from collections import deque

from gradbase.store.machine import notes
from gradbase.store.machine._ranges import NumberSet
from gradbase.store.machine._shard import Shard
from gradbase.store.machine.consistency import UNBOUNDED, Job
from gradbase.store.machine.messages import (
    NO_BATCH,
    Busy,
    CheckpointState,
    Durable,
    Loaded,
    Pages,
    Payload,
    Poll,
    Pull,
    PullReply,
    Push,
    PushRecord,
    PushReply,
    Record,
    Send,
    ShardReport,
    new,
)


class ClockShard(Shard):
    """`clock[w]`: how far the pushes of slot w are applied; `used`: the batches that are in the values."""

    def __init__(self, job: Job, shard: int, pages: Pages, note: notes.Notes | None = None) -> None:
        super().__init__(job, shard, pages, note)
        self.clock = [0] * job.slots
        self.used = NumberSet()
        self._bound = job.bound_steps
        self._live: set[int] = set()  # members that count as slow: not idle
        self._lowest = 0  # of their clocks
        self._durable = [0] * job.slots
        self._parts: dict[int, tuple[int, dict[int, Payload]]] = {}  # by worker: seq and parts
        self._pending: dict[int, Pull] = {}
        self._waiting: deque[tuple[int, int, int]] = deque()  # (lsn, worker, seq) logged and not durable
        self._kept_clock = (0,) * job.slots

    # Pushes.

    def _push(self, message: Push) -> None:
        worker, seq = message.worker, message.seq
        if message.term != self.open_term or self._sessions[worker] != message.session:
            return
        clock = self.clock[worker]
        if seq < clock:
            self._reply(worker, seq, message.lane, message.part, True)
        elif seq > clock:
            return  # those before it come first
        elif len(self._unsynced) >= self._unsynced_max:
            busy = Busy(self.open_term, message.session, self.shard, seq)
            self._out.append(new(Send, (self._workers[worker], busy)))
        elif (parts := self._whole(message)) is None:
            self._reply(worker, seq, message.lane, message.part, False)
        else:
            self._apply(message, parts)
            self._reply(worker, seq, message.lane, message.part, True)
            if self._pending:
                self._serve_pending()

    def _whole(self, message: Push) -> tuple[Payload, ...] | None:
        if message.parts <= 1:
            return (message.payload,)
        seq, parts = self._parts.get(message.worker, (-1, {}))
        if seq != message.seq:
            parts = {}
            self._parts[message.worker] = (message.seq, parts)
        parts[message.part] = message.payload
        if len(parts) < message.parts:
            return None
        del self._parts[message.worker]
        return tuple(parts[part] for part in range(message.parts))

    def _apply(self, message: Push, parts: tuple[Payload, ...]) -> None:
        term, worker, session, seq, _, batch, _, _, _ = message
        fresh = batch != NO_BATCH and batch not in self.used
        update: Payload | None = None
        if fresh:
            update = self.pages.reduce([parts])
            self.pages.apply(update)
            self.used.add(batch)
        self.clock[worker] = seq + 1
        if self._note is not None:
            self._note(new(notes.Applied, (self.shard, self.incarnation, term, worker, session, seq, batch, fresh)))
        if self._bound != UNBOUNDED or batch == NO_BATCH or worker not in self._live:
            self._count(worker, batch == NO_BATCH)
        if self._wal:
            lsn = self.lsn + 1
            self._waiting.append((lsn, worker, seq))
            self._append(new(PushRecord, (lsn, self.incarnation, term, worker, session, seq, batch, update)))

    def _count(self, worker: int, idle: bool) -> None:
        if idle:
            self._live.discard(worker)
        else:
            self._live.add(worker)
        if self._bound != UNBOUNDED:
            clock = self.clock
            self._lowest = min((clock[live] for live in self._live), default=UNBOUNDED)

    def _poll(self, message: Poll) -> None:
        worker = message.worker
        if message.term != self.open_term or self._sessions[worker] != message.session:
            return
        if message.seq < self.clock[worker]:
            self._reply(worker, message.seq, -1, -1, True)

    def _reply(self, worker: int, seq: int, lane: int, part: int, complete: bool) -> None:
        durable = self._durable[worker] if self._wal else self._kept_clock[worker]
        if durable > self._told[worker]:
            self._tell(worker, durable)
        session = self._sessions[worker]
        reply = new(PushReply, (self.open_term, session, self.shard, seq, lane, part, complete, durable))
        self._out.append(new(Send, (self._workers[worker], reply)))

    # Pulls.

    def _pull(self, message: Pull) -> None:
        worker = message.worker
        if message.term != self.open_term or self._sessions[worker] != message.session:
            return
        if worker not in self._live and message.seq >= self.clock[worker]:
            self._count(worker, False)  # back from rest; a late pull of before is not
        if not self._serve(message):
            self._pending[worker] = message

    def _serve(self, message: Pull) -> bool:
        """Answer if the reader's own pushes are in and it is not too far ahead. (The push that follows this read may
        be in as well: the session lost its term while some shards had it, and makes it again.)
        """
        term, worker, session, seq, selection = message
        if seq > self.clock[worker] or seq - self._lowest > self._bound:
            return False
        value = self.pages.read(selection)
        clock = tuple(self.clock)
        if self._note is not None:
            self._note(new(notes.Served, (self.shard, self.incarnation, term, worker, session, seq, clock, value)))
        durable = self._durable[worker] if self._wal else self._kept_clock[worker]
        if durable > self._told[worker]:
            self._tell(worker, durable)
        reply = new(PullReply, (term, session, self.shard, seq, clock, value, durable))
        self._out.append(new(Send, (self._workers[worker], reply)))
        return True

    def _serve_pending(self) -> None:
        for worker, message in list(self._pending.items()):
            if self._serve(message):
                del self._pending[worker]

    def _acknowledge(self, lsn: int) -> None:
        waiting = self._waiting
        told: set[int] = set()
        while waiting and waiting[0][0] <= lsn:
            _, worker, seq = waiting.popleft()
            self._durable[worker] = seq + 1
            told.add(worker)
        if self.open_term:
            for worker in sorted(told):
                session, durable = self._sessions[worker], self._durable[worker]
                self._tell(worker, durable)
                message = new(Durable, (self.open_term, session, self.shard, durable))
                self._out.append(new(Send, (self._workers[worker], message)))

    # Terms, recovery, checkpoints.

    def _scan(self, record: Record) -> None:
        assert isinstance(record, PushRecord), record

    def _after_scan(self) -> None:
        newest = max(self._checkpoints.values(), key=lambda state: (state.lsn, state.number), default=None)
        self._load(newest.number if newest is not None else None)

    def _restore(self, loaded: Loaded) -> None:
        self.pages.restore(loaded.snapshot)
        if loaded.state is not None:
            self.clock = list(loaded.state.clock)
            self.used = NumberSet(loaded.state.used)
        for record in loaded.records:
            assert isinstance(record, PushRecord), record
            self.clock[record.worker] = record.seq + 1
            if record.update is not None:
                self.pages.apply(record.update)
                self.used.add(record.batch)
        self._durable = list(self.clock)
        if self._note is not None:
            clock, used = tuple(self.clock), self.used.ranges()
            self._note(notes.Restored(self.shard, self.incarnation, 0, clock, used))

    def _after_restore(self) -> None:
        self._say_up()

    def _report(self) -> ShardReport:
        clock = tuple(self.clock)
        return ShardReport(self.shard, self.incarnation, self.term, (), 0, clock, self.used.ranges())

    def _report_is_durable(self) -> bool:
        return not self._unsynced

    def _forget(self) -> None:
        self._pending.clear()
        self._parts.clear()

    def _go_to(self, seq: int) -> None:
        self._live = set()
        self._opened()

    def _admit(self, worker: int, clock: int) -> None:
        self.clock[worker] = max(self.clock[worker], clock)
        self._durable[worker] = min(self._durable[worker], self.clock[worker])
        self._count(worker, False)

    def _checkpoint_if_due(self) -> None:
        self._snapshot()

    def _checkpoint_counts(self, state: CheckpointState) -> None:
        self._kept_clock = state.clock

    def _state(self, number: int) -> CheckpointState:
        lsn = self.lsn if self._wal else 0
        return CheckpointState(number, lsn, 0, tuple(self.clock), tuple(self._sessions), self.used.ranges())

    def _step(self) -> int:
        return min((self.clock[worker] for worker in self._live), default=0)
