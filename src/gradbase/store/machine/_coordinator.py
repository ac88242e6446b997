"""The coordinator: terms, membership, lanes and leases, checkpoints over all shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from gradbase.store.machine import notes
from gradbase.store.machine.consistency import Job
from gradbase.store.machine.messages import (
    Append,
    Beat,
    CheckpointKept,
    CheckpointRecord,
    CheckpointTaken,
    Effect,
    Fence,
    Fenced,
    Finished,
    Join,
    LeaseRequest,
    Leave,
    Message,
    NewTerm,
    Open,
    Ready,
    Record,
    Replace,
    Report,
    Send,
    ShardReport,
    ShardUp,
    Sync,
    TakeCheckpoint,
    TermRecord,
    View,
)
from gradbase.store.machine.timing import Stopwatch

LOOKS = 8  # how often silence is looked at while it grows to what is too much


class Phase(Enum):
    GATHERING = "waiting for shards and workers"
    LOGGING = "writing the new term"
    FENCING = "waiting for reports"
    OPENING = "waiting for shards to be where the term begins"
    OPEN = "running"
    DONE = "every batch is used"


@dataclass
class Member:
    """A live session. `quiet_us`: since it was heard of; `begin`: where its view starts; `seq`, `done`: what it said
    last.
    """

    worker: int
    session: int
    nonce: int
    quiet_us: int = 0
    begin: int = 0
    seq: int = 0
    done: int = -1
    lanes: tuple[int, ...] = ()
    lease: int = 0
    leases: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Server:
    """A shard as the coordinator knows it. `incarnation` 0: never heard of."""

    incarnation: int = 0
    quiet_us: int = 0
    step: int = 0


@dataclass
class Checkpoint:
    """One being taken: which shards have it, at which LSN. `kept`: the log says so, and waits for its sync."""

    number: int
    lsns: dict[int, int] = field(default_factory=dict)
    kept_lsn: int = 0


class Coordinator(ABC):
    """Made by `new_coordinator`; every public method returns the effects to carry out, in order."""

    _HANDLERS: ClassVar[dict[type, str]] = {
        Join: "_join",
        Report: "_report",
        Beat: "_beat",
        Leave: "_leave",
        LeaseRequest: "_lease_request",
        ShardUp: "_shard_up",
        ShardReport: "_shard_report",
        Ready: "_shard_ready",
        CheckpointTaken: "_checkpoint_taken",
    }
    _on: ClassVar[dict[type, Callable[[Any, Any], None]]]

    def __init_subclass__(cls) -> None:
        """Look the handlers up once a class: a machine is then no cycle of references, and is quick to make."""
        cls._on = {kind: getattr(cls, name) for kind, name in cls._HANDLERS.items()}

    def __init__(self, job: Job, note: notes.Notes | None = None) -> None:
        self.job = job
        self.phase = Phase.GATHERING
        self.term = 0
        self.members: dict[int, Member] = {}
        self.shards = [Server() for _ in range(job.shards)]
        self.checkpoint: Checkpoint | None = None
        self.last_kept = -1  # the newest checkpoint that all shards have
        self._note = note
        self._out: list[Effect] = []
        self._joining: dict[int, int] = {}  # nonce by worker
        self._reports: dict[int, Report] = {}
        self._shard_reports: dict[int, ShardReport] = {}
        self._opens: list[Open] = []
        self._ready: set[int] = set()
        self._lsn = 0
        self._unsynced: deque[Record] = deque()
        self._failed_lsn = 0
        self._sync_lsn = 0
        self._watch = Stopwatch(job.limits.tick_us_max)
        self._again_us = 0
        self._gathering_us = 0
        self._look_us = job.limits.silence_us_max // LOOKS
        self._silent_us = 0  # since everybody's silence was looked at

    # What happens to a coordinator.

    def opened(self, records: Iterable[Record]) -> list[Effect]:
        """Its log, durable: which terms may not be used again, which checkpoints are whole."""
        for record in records:
            self._lsn = record.lsn
            if isinstance(record, TermRecord):
                self.term = record.term
            elif isinstance(record, CheckpointRecord):
                self.last_kept = record.number
        return self._take()

    def receive(self, message: Message) -> list[Effect]:
        handler = self._on.get(type(message))
        if handler is not None:
            handler(self, message)
        out = self._out
        self._out = []
        return out

    def synced(self, lsn: int) -> list[Effect]:
        if lsn >= self._sync_lsn:
            self._sync_lsn = 0
        done: list[Record] = []
        while self._unsynced and self._unsynced[0].lsn <= lsn:
            done.append(self._unsynced.popleft())
        for record in done:
            if isinstance(record, TermRecord):
                self._begin_term(record.term)
            else:
                self._checkpoint_kept()
        self._sync()
        return self._take()

    def log_failed(self, lsn: int) -> list[Effect]:
        """Nothing goes on without the log; it is tried again at every beat."""
        self._failed_lsn = min(lsn, self._failed_lsn or lsn)
        if self._sync_lsn >= lsn:
            self._sync_lsn = 0
        return self._take()

    def worker_lost(self, worker: int, nonce: int) -> list[Effect]:
        """The engine saw this process end."""
        member = self.members.get(worker)
        if self._joining.get(worker) == nonce:
            del self._joining[worker]
        if member is not None and member.nonce == nonce:
            self._drop(member)
        return self._take()

    def take_checkpoint(self) -> list[Effect]:
        """Begin one on all shards, unless one is under way or the job is not running."""
        if self.phase in (Phase.OPEN, Phase.DONE) and self.checkpoint is None and self.job.durability != "none":
            self.checkpoint = Checkpoint(self._next_checkpoint())
            self._ask_checkpoint()
        return self._take()

    def tick(self, now_us: int) -> list[Effect]:
        passed = self._watch.passed_us(now_us)
        if self.phase is Phase.GATHERING:
            self._gathering_us += passed
            self._start_if_gathered()
        self._silent_us += passed
        if self._silent_us >= self._look_us:
            self._silence(self._silent_us)
            self._silent_us = 0
        self._again_us -= passed
        if self._again_us <= 0:
            self._again_us = self.job.limits.retry_us
            self._again()
        return self._take()

    # Membership.

    def _join(self, message: Join) -> None:
        member = self.members.get(message.worker)
        if member is not None and member.nonce == message.nonce:
            self._tell_term(member)
            return
        if self.phase is Phase.DONE:
            self._send_worker(message.worker, Finished(self.term, 0))
            return
        self._joining[message.worker] = message.nonce
        if member is not None:
            self._drop(member)
        elif self.phase is Phase.OPEN and self._has_room():
            self._change()

    def _has_room(self) -> bool:
        """Whether another member would have something to do."""
        return self.job.consistency != "bsp" or len(self.members) < self.job.lanes

    def _leave(self, message: Leave) -> None:
        member = self._member(message.worker, message.session)
        if member is not None:
            self._drop(member)

    def _drop(self, member: Member) -> None:
        del self.members[member.worker]
        if self.phase is not Phase.DONE:
            self._change()

    def _member(self, worker: int, session: int) -> Member | None:
        """The live session that says so; whoever else speaks in its name is told that it is out."""
        member = self.members.get(worker)
        if member is not None and member.session == session:
            member.quiet_us = 0
            return member
        if self.phase is Phase.DONE:
            self._send_worker(worker, Finished(self.term, session))
        elif worker not in self._joining:
            self._send_worker(worker, Fenced(session))
        return None

    def _silence(self, passed: int) -> None:
        most = self.job.limits.silence_us_max + self._look_us  # whoever was heard between two looks gets all of it
        for member in list(self.members.values()):
            member.quiet_us += passed
            if member.quiet_us > most:
                self._out.append(Replace(("worker", member.worker)))
                self._drop(member)
        for shard, server in enumerate(self.shards):
            server.quiet_us += passed
            if server.quiet_us > most and server.incarnation:
                server.quiet_us = 0
                self._out.append(Replace(("shard", shard)))

    # A term begins.

    def _start_if_gathered(self) -> None:
        """Wait a little for all workers, so that a start is one term and not one a worker."""
        if not self._joining or not all(server.incarnation for server in self.shards):
            self._gathering_us = 0
        elif len(self._joining) >= self.job.lanes or self._gathering_us > 2 * self.job.limits.beat_us:
            self._change()

    def _change(self) -> None:
        """Something is different: begin a new term, unless one is about to begin anyway."""
        if self.phase is Phase.LOGGING:
            return
        if not self.members and not self._joining:
            self.phase = Phase.GATHERING
            return
        self.phase = Phase.LOGGING
        self.checkpoint = None if self.checkpoint and not self.checkpoint.kept_lsn else self.checkpoint
        self._append(TermRecord(self._lsn + 1, self.term + 1))

    def _begin_term(self, term: int) -> None:
        self.term = term
        if self._note is not None:
            self._note(notes.TermBegun(term))
        self.phase = Phase.FENCING
        self._reports.clear()
        self._shard_reports.clear()
        self._ready.clear()
        for worker in sorted(self._joining):
            if self._has_room():
                self.members[worker] = Member(worker, term, self._joining.pop(worker))
        if not self.members:  # all went while the term was written
            self.phase = Phase.GATHERING
            return
        self._fence()

    def _fence(self) -> None:
        for shard, server in enumerate(self.shards):
            if shard not in self._shard_reports:
                self._send_shard(shard, Fence(self.term, server.incarnation))
        for member in self.members.values():
            if member.worker not in self._reports:
                self._tell_term(member)

    def _tell_term(self, member: Member) -> None:
        self._send_worker(member.worker, NewTerm(self.term, member.session, member.nonce))

    def _report(self, message: Report) -> None:
        member = self._member(message.worker, message.session)
        if member is None or message.term != self.term:
            return
        if self.phase is Phase.FENCING:
            self._reports[message.worker] = message
            self._open_if_reported()
        elif self.phase is Phase.OPEN:
            self._show(member)

    def _shard_report(self, message: ShardReport) -> None:
        if not self._is_current(message) or self.phase is not Phase.FENCING:
            return
        self._shard_reports[message.shard] = message
        self._open_if_reported()

    def _is_current(self, message: ShardReport | Ready) -> bool:
        server = self.shards[message.shard]
        good = message.incarnation == server.incarnation and message.term == self.term
        if good:
            server.quiet_us = 0
        return good

    def _open_if_reported(self) -> None:
        if len(self._shard_reports) == len(self.shards) and self._reports.keys() == self.members.keys():
            self.phase = Phase.OPENING
            self._opens = self._plan()
            self._open_shards()

    def _open_shards(self) -> None:
        for shard, message in enumerate(self._opens):
            if shard not in self._ready:
                self._send_shard(shard, message)

    def _shard_ready(self, message: Ready) -> None:
        if self._is_current(message) and self.phase is Phase.OPENING:
            self._ready.add(message.shard)
            if len(self._ready) == len(self.shards):
                self._run()

    def _run(self) -> None:
        self.phase = Phase.OPEN
        for member in self.members.values():
            self._show(member)
        if self._joining and self._has_room():
            self._change()
        else:
            self._finish_if_done()

    def _show(self, member: Member) -> None:
        incarnations = tuple(server.incarnation for server in self.shards)
        self._send_worker(member.worker, View(self.term, member.session, member.begin, member.lanes, incarnations))

    def _shard_up(self, message: ShardUp) -> None:
        server = self.shards[message.shard]
        if message.incarnation < server.incarnation:
            return
        server.quiet_us = 0
        server.step = message.step
        if message.incarnation > server.incarnation:
            server.incarnation = message.incarnation
            if self.phase in (Phase.FENCING, Phase.OPENING, Phase.OPEN):
                self._change()
            elif self.phase is Phase.DONE:
                self._change_after_end()

    def _change_after_end(self) -> None:
        """A shard came back after the last batch: what it lost has to be made again, if anyone is left to do it."""
        self.phase = Phase.OPEN
        self._change()

    # Running.

    def _beat(self, message: Beat) -> None:
        member = self._member(message.worker, message.session)
        if member is None or message.term != self.term or self.phase not in (Phase.OPEN, Phase.DONE):
            return
        member.seq, member.done = message.seq, message.lease_done
        if self.phase is Phase.DONE:
            self._send_worker(member.worker, Finished(self.term, member.session))
        else:
            self._hear(member)
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self.phase is Phase.OPEN and self._is_done():
            self.phase = Phase.DONE
            for member in self.members.values():
                self._send_worker(member.worker, Finished(self.term, member.session))

    def _again(self) -> None:
        """Repeat what has not been answered."""
        if self._failed_lsn:
            lsn, self._failed_lsn = self._failed_lsn, 0
            self._out.extend(Append(record) for record in self._unsynced if record.lsn >= lsn)
            self._sync()
        if self.phase is Phase.FENCING:
            self._fence()
        elif self.phase is Phase.OPENING:
            self._open_shards()
        elif self.checkpoint is not None and self.phase in (Phase.OPEN, Phase.DONE):
            self._ask_checkpoint()

    # Checkpoints.

    def _ask_checkpoint(self) -> None:
        checkpoint = self.checkpoint
        assert checkpoint is not None
        for shard, server in enumerate(self.shards):
            if shard not in checkpoint.lsns:
                self._send_shard(shard, TakeCheckpoint(self.term, server.incarnation, checkpoint.number))

    def _checkpoint_taken(self, message: CheckpointTaken) -> None:
        checkpoint = self.checkpoint
        current = message.incarnation == self.shards[message.shard].incarnation
        if checkpoint is None or message.number != checkpoint.number or not current or checkpoint.kept_lsn:
            return
        if not message.good:
            self.checkpoint = None
            return
        checkpoint.lsns[message.shard] = message.lsn
        if len(checkpoint.lsns) == len(self.shards):
            lsns = tuple(checkpoint.lsns[shard] for shard in range(len(self.shards)))
            checkpoint.kept_lsn = self._lsn + 1
            self._append(CheckpointRecord(checkpoint.kept_lsn, checkpoint.number, lsns))

    def _checkpoint_kept(self) -> None:
        assert self.checkpoint is not None
        self.last_kept = self.checkpoint.number
        self.checkpoint = None
        for shard, server in enumerate(self.shards):
            self._send_shard(shard, CheckpointKept(server.incarnation, self.last_kept))

    # The log, and sending.

    def _append(self, record: Record) -> None:
        self._lsn = record.lsn
        self._unsynced.append(record)
        if not self._failed_lsn:
            self._out.append(Append(record))
            self._sync()

    def _sync(self) -> None:
        if self._unsynced and not self._failed_lsn and not self._sync_lsn:
            self._sync_lsn = self._lsn
            self._out.append(Sync(self._lsn))

    def _send_worker(self, worker: int, message: Message) -> None:
        self._out.append(Send(("worker", worker), message))

    def _send_shard(self, shard: int, message: Message) -> None:
        self._out.append(Send(("shard", shard), message))

    def _take(self) -> list[Effect]:
        out = self._out
        self._out = []
        return out

    # What differs between the levels.

    @abstractmethod
    def _plan(self) -> list[Open]:
        """From all reports: where every shard begins, and what every member has to do."""

    @abstractmethod
    def _lease_request(self, message: LeaseRequest) -> None: ...

    @abstractmethod
    def _hear(self, member: Member) -> None: ...

    @abstractmethod
    def _is_done(self) -> bool: ...

    @abstractmethod
    def _next_checkpoint(self) -> int: ...
