"""What a shard does at every consistency level: terms, the log, checkpoints. The levels are in _steps and _clocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from gradbase.store.machine import notes
from gradbase.store.machine.consistency import Job
from gradbase.store.machine.messages import (
    COORDINATOR,
    Append,
    CheckpointKept,
    CheckpointState,
    CheckpointTaken,
    Effect,
    Fence,
    Load,
    Loaded,
    Message,
    Open,
    Pages,
    Payload,
    Poll,
    Pull,
    Push,
    PushRecord,
    Ready,
    Record,
    Retire,
    Send,
    ShardReport,
    ShardUp,
    StepRecord,
    Sync,
    TakeCheckpoint,
    WriteCheckpoint,
    new,
)
from gradbase.store.machine.timing import Stopwatch


class Shard(ABC):
    """One shard. Made by `new_shard`; every public method returns the effects to carry out, in order.

    After `opened` it waits to be fenced and opened by the coordinator. The engine makes a new object for every
    process.
    """

    _HANDLERS: ClassVar[dict[type, str]] = {
        Pull: "_pull",
        Push: "_push",
        Poll: "_poll",
        Fence: "_fence",
        Open: "_open",
        TakeCheckpoint: "_take_checkpoint",
        CheckpointKept: "_checkpoint_kept",
    }
    _on: ClassVar[dict[type, Callable[[Any, Any], None]]]

    def __init_subclass__(cls) -> None:
        """Look the handlers up once a class: a machine is then no cycle of references, and is quick to make."""
        cls._on = {kind: getattr(cls, name) for kind, name in cls._HANDLERS.items()}

    def __init__(self, job: Job, shard: int, pages: Pages, note: notes.Notes | None = None) -> None:
        self.job = job
        self.shard = shard
        self.pages = pages
        self.incarnation = 0
        self.term = 0  # the highest that fenced this shard
        self.open_term = 0  # the one it serves; 0: none
        self.lsn = 0
        self.durable_lsn = 0
        self._note = note
        self._out: list[Effect] = []
        self._wal = job.durability == "wal"
        self._workers: list[object] = [("worker", worker) for worker in range(job.slots)]  # addresses
        self._sessions = [0] * job.slots
        self._members: tuple[tuple[int, int, int], ...] = ()
        self._told = [0] * job.slots  # per worker, the last durable number it was given
        self._unsynced: deque[Record] = deque()
        self._unsynced_max = job.limits.unsynced_max
        self._sync_lsn = 0  # of the sync under way; 0: none is
        self._report_due = False
        self._failed_lsn = 0  # records from here on are not in the log file; 0: all are
        self._checkpoints: dict[int, CheckpointState] = {}
        self._wanted: TakeCheckpoint | None = None
        self._unwritten: tuple[CheckpointState, Payload] | None = None
        self._writing = False
        self._loads = 0
        self._opening: Open | None = None
        self._watch = Stopwatch(job.limits.tick_us_max)
        self._beat_us = 0

    # What happens to a shard.

    def opened(
        self, incarnation: int, checkpoints: Sequence[CheckpointState], records: Iterable[Record]
    ) -> list[Effect]:
        """The storage is this incarnation's. `checkpoints`: all that are whole; `records`: the whole log, durable."""
        assert incarnation > 0 and self.incarnation == 0, (incarnation, self.incarnation)
        self.incarnation = incarnation
        self._checkpoints = {state.number: state for state in checkpoints}
        self.lsn = max((state.lsn for state in checkpoints), default=0)
        for record in records:
            self._scan(record)
            self.lsn = record.lsn
        self.durable_lsn = self.lsn
        if self._note is not None:
            self._note(notes.Recovered(self.shard, incarnation, self.lsn))
        self._after_scan()
        return self._take()

    def receive(self, message: Message) -> list[Effect]:
        handler = self._on.get(type(message))
        if handler is not None and self.incarnation:
            handler(self, message)
        out = self._out
        self._out = []
        return out

    def synced(self, lsn: int) -> list[Effect]:
        """All records up to `lsn` are durable. May be called more often than there were syncs, for any LSN that is."""
        assert lsn <= self.lsn, (lsn, self.lsn)
        if lsn >= self._sync_lsn:
            self._sync_lsn = 0
        if lsn > self.durable_lsn:
            self._now_durable(lsn)
        self._sync()
        return self._take()

    def _now_durable(self, lsn: int) -> None:
        self.durable_lsn = lsn
        unsynced = self._unsynced
        while unsynced and unsynced[0].lsn <= lsn:
            unsynced.popleft()
        if self._note is not None:
            self._note(new(notes.Synced, (self.shard, self.incarnation, lsn)))
        self._acknowledge(lsn)
        self._write_checkpoint()
        if self._report_due:
            self._tell_report()

    def log_failed(self, lsn: int) -> list[Effect]:
        """Records from `lsn` on did not get into the log, and no sync that includes them will be answered. They are
        kept and tried again; meanwhile the queue fills.
        """
        if self._sync_lsn >= lsn:
            self._sync_lsn = 0
        self._failed_lsn = min(lsn, self._failed_lsn or lsn)
        return self._take()

    def checkpoint_written(self, number: int) -> list[Effect]:
        self._checkpoints[number] = self._written(number)
        self._say_taken(number)
        return self._take()

    def checkpoint_failed(self, number: int) -> list[Effect]:
        self._written(number)
        self._refuse_checkpoint(number)
        return self._take()

    def loaded(self, loaded: Loaded) -> list[Effect]:
        """The answer to a `Load`; answers come in the order in which they were asked for, and only the last one
        counts.
        """
        self._loads -= 1
        if not self._loads:
            self._restore(loaded)
            self._after_restore()
        return self._take()

    def tick(self, now_us: int) -> list[Effect]:
        self._beat_us -= self._watch.passed_us(now_us)
        if self._beat_us > 0:
            return []
        self._beat_us = self.job.limits.beat_us
        self._append_again()
        if self.incarnation and not self._loads:
            self._say_up()
        return self._take()

    # Terms.

    def _fence(self, message: Fence) -> None:
        if message.incarnation != self.incarnation or message.term < self.term or self._loads:
            return
        if message.term > self.term:
            self.term = message.term
            self.open_term = 0
            self._opening = None
            self._wanted = None
            self._forget()
            if self._note is not None:
                self._note(notes.TermFenced(self.shard, self.incarnation, self.term))
        self._report_due = True
        self._tell_report()

    def _tell_report(self) -> None:
        """What a report says is in the values must not be lost any more, where it decides what is computed again."""
        if self._report_is_durable():
            self._report_due = False
            self._tell_coordinator(self._report())

    def _open(self, message: Open) -> None:
        if message.incarnation != self.incarnation or message.term != self.term:
            return
        if self.open_term == message.term:
            self._tell_coordinator(Ready(self.shard, self.incarnation, self.term))
        elif self._opening is None:
            self._opening = message
            self._report_due = False
            self._go_to(message.seq)

    def _opened(self) -> None:
        message = self._opening
        assert message is not None
        self._opening = None
        self.open_term = message.term
        self._members = message.members
        self._sessions = [0] * self.job.slots
        self._told = [0] * self.job.slots
        for worker, session, clock in message.members:
            self._sessions[worker] = session
            self._admit(worker, clock)
        if self._note is not None:
            self._note(notes.TermOpened(self.shard, self.incarnation, self.term, message.members))
        self._tell_coordinator(Ready(self.shard, self.incarnation, self.term))

    def _say_up(self) -> None:
        self._tell_coordinator(new(ShardUp, (self.shard, self.incarnation, self.open_term, self._step())))

    def _tell_coordinator(self, message: Message) -> None:
        self._out.append(new(Send, (COORDINATOR, message)))

    # The log.

    def _append(self, record: StepRecord | PushRecord) -> None:
        lsn = record.lsn
        assert lsn == self.lsn + 1, (lsn, self.lsn)
        self.lsn = lsn
        self._unsynced.append(record)
        if self._note is not None:
            worker, seq = (-1, record.step) if isinstance(record, StepRecord) else (record.worker, record.seq)
            self._note(new(notes.Logged, (self.shard, self.incarnation, lsn, worker, seq)))
        if not self._failed_lsn:
            self._out.append(new(Append, (record,)))
            self._sync()

    def _sync(self) -> None:
        """Group commit: one sync at a time, for everything appended since."""
        if self._unsynced and not self._failed_lsn and not self._sync_lsn:
            self._sync_lsn = self.lsn
            self._out.append(new(Sync, (self.lsn,)))

    def _append_again(self) -> None:
        if self._failed_lsn:
            lsn, self._failed_lsn = self._failed_lsn, 0
            self._out.extend(Append(record) for record in self._unsynced if record.lsn >= lsn)
            self._sync()

    def _tell(self, worker: int, durable: int) -> None:
        """A reply says something new about what is durable."""
        self._told[worker] = durable
        if self._note is not None:
            self._note(new(notes.Acknowledged, (self.shard, self.incarnation, worker, durable)))

    # Checkpoints.

    def _take_checkpoint(self, message: TakeCheckpoint) -> None:
        if message.incarnation != self.incarnation or message.term != self.open_term:
            return
        if message.number in self._checkpoints:
            self._say_taken(message.number)
        elif self._unwritten is None:
            self._wanted = message
            self._checkpoint_if_due()

    def _snapshot(self) -> None:
        assert self._wanted is not None
        state = self._state(self._wanted.number)
        self._wanted = None
        self._unwritten = (state, self.pages.snapshot())
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        """A checkpoint never runs ahead of the log, or the log would have a gap before it."""
        if self._unwritten is None or self._writing:
            return
        if not self._wal or self._unwritten[0].lsn <= self.durable_lsn:
            self._writing = True
            self._out.append(WriteCheckpoint(*self._unwritten))

    def _written(self, number: int) -> CheckpointState:
        assert self._unwritten is not None and self._unwritten[0].number == number, number
        state = self._unwritten[0]
        self._unwritten = None
        self._writing = False
        return state

    def _say_taken(self, number: int) -> None:
        state = self._checkpoints[number]
        self._tell_coordinator(CheckpointTaken(self.shard, self.incarnation, number, state.lsn, state.step, True))

    def _refuse_checkpoint(self, number: int) -> None:
        self._tell_coordinator(CheckpointTaken(self.shard, self.incarnation, number, 0, self._step(), False))

    def _checkpoint_kept(self, message: CheckpointKept) -> None:
        state = self._checkpoints.get(message.number)
        if message.incarnation != self.incarnation or state is None:
            return
        self._checkpoints = {n: s for n, s in self._checkpoints.items() if n >= message.number}
        self._out.append(Retire(message.number, state.lsn))
        self._checkpoint_counts(state)
        if self._note is not None:
            self._note(notes.CheckpointCounts(self.shard, self.incarnation, state.step, state.clock))

    def _load(self, number: int | None) -> None:
        self._loads += 1
        self._out.append(Load(number))

    def _take(self) -> list[Effect]:
        out = self._out
        self._out = []
        return out

    # What differs between the levels.

    @abstractmethod
    def _push(self, message: Push) -> None: ...

    @abstractmethod
    def _pull(self, message: Pull) -> None: ...

    @abstractmethod
    def _poll(self, message: Poll) -> None: ...

    @abstractmethod
    def _scan(self, record: Record) -> None:
        """One record of the log as it was found when the storage was opened."""

    @abstractmethod
    def _after_scan(self) -> None: ...

    @abstractmethod
    def _restore(self, loaded: Loaded) -> None: ...

    @abstractmethod
    def _after_restore(self) -> None: ...

    @abstractmethod
    def _report(self) -> ShardReport: ...

    def _report_is_durable(self) -> bool:
        return True

    @abstractmethod
    def _forget(self) -> None:
        """A term ended: drop what waits."""

    @abstractmethod
    def _go_to(self, seq: int) -> None:
        """Begin to open a term at version `seq`; ends in `_opened`."""

    @abstractmethod
    def _admit(self, worker: int, clock: int) -> None: ...

    @abstractmethod
    def _acknowledge(self, lsn: int) -> None:
        """The log is durable up to `lsn`: tell those who wait for it."""

    @abstractmethod
    def _checkpoint_if_due(self) -> None: ...

    @abstractmethod
    def _checkpoint_counts(self, state: CheckpointState) -> None: ...

    @abstractmethod
    def _state(self, number: int) -> CheckpointState: ...

    @abstractmethod
    def _step(self) -> int:
        """For the live table: the version, or the lowest clock."""
