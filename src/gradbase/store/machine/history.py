"""The invariants of the store (../README.md, I1 to I11), checked on what machines noted while they ran.

`check` reads a whole history in the order in which it was noted; a history gathered from several processes is in
order for each machine, which is what the checks need, except that reads are compared with what was pushed before
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import le
from typing import Any, Final

from gradbase.store.machine import notes
from gradbase.store.machine._ranges import numbers_in
from gradbase.store.machine.consistency import UNBOUNDED, Job
from gradbase.store.machine.messages import NO_BATCH, Payload

DIGIT_BITS: Final = 4  # of the number that counts batches: one hexadecimal digit a batch

Expected = Callable[[int, int, int], Payload]


@dataclass(frozen=True)
class Violation:
    """A broken invariant: its name, what happened, and where in the history."""

    invariant: str
    problem: str
    position: int

    def __str__(self) -> str:
        return f"{self.invariant}: {self.problem} (note {self.position})"


def count_of(batches: Iterable[int]) -> int:
    """A number with one digit a batch, so that a batch used twice, or not at all, shows."""
    return sum(1 << (DIGIT_BITS * batch) for batch in batches)


def check(job: Job, history: Iterable[notes.Note], expected: Expected | None = None) -> list[Violation]:
    """Everything that is wrong with a history. `expected(shard, step, count)` is the value a shard must have: bsp,
    after `step` steps; ssp and asp, with the batches `count` says (see `count_of`). Without it, values are not looked
    at.
    """
    judge = _Judge(job, expected)
    judge.listen(history)
    return judge.violations


@dataclass(slots=True)
class _Replica:
    """What one incarnation of a shard must hold, from what it noted."""

    fenced: int = 0
    open_term: int = 0
    step: int = -1
    clock: list[int] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    count: int = 0
    sessions: dict[int, int] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    logged: int = 0
    durable: int = 0
    unsynced: deque[tuple[int, int, int]] = field(default_factory=deque)  # (lsn, worker, seq)
    kept_step: int = 0
    kept_clock: tuple[int, ...] = ()


class _Judge:
    def __init__(self, job: Job, expected: Expected | None) -> None:
        self.job = job
        self.violations: list[Violation] = []
        self._expected = expected
        self._bsp = job.consistency == "bsp"
        self._wal = job.durability == "wal"
        self._bound = job.bound_steps
        self._bounded = self._bound != UNBOUNDED
        self._position = 0
        self._owners = [0] * job.shards
        self._durable = [0] * job.shards
        self._acknowledged_seq: dict[tuple[int, int], int] = {}  # by shard and worker
        self._replicas: dict[tuple[int, int], _Replica] = {}
        self._term = 0
        self._pushed: dict[tuple[int, int, int], int] = {}
        self._last_read: dict[tuple[int, int, int], tuple[int, tuple[int, ...]]] = {}
        self._leased: dict[int, tuple[int, int]] = {}

    def listen(self, history: Iterable[notes.Note]) -> None:
        handlers: dict[type, Callable[[Any], None]] = {
            notes.Recovered: self._recovered,
            notes.Restored: self._restored,
            notes.TermFenced: self._term_fenced,
            notes.TermOpened: self._term_opened,
            notes.Logged: self._logged,
            notes.Synced: self._synced,
            notes.Acknowledged: self._acknowledged,
            notes.CheckpointCounts: self._checkpoint_counts,
            notes.Applied: self._applied_step if self._bsp else self._applied_push,
            notes.Served: self._served_step if self._bsp else self._served_clock,
            notes.Read: self._read,
            notes.Pushed: self._pushed_now,
            notes.Leased: self._leased_now,
            notes.TermBegun: self._term_begun,
        }
        position = 0
        for position, note in enumerate(history):
            self._position = position
            handlers[type(note)](note)

    def _broken(self, invariant: str, problem: str) -> None:
        self.violations.append(Violation(invariant, problem, self._position))

    # Storage.

    def _recovered(self, note: notes.Recovered) -> None:
        shard = note.shard
        if note.incarnation <= self._owners[shard]:
            self._broken("I7 one owner", f"{note} after incarnation {self._owners[shard]}")
        if note.lsn < self._durable[shard]:
            self._broken("I6 acknowledged means durable", f"{note} lacks records up to {self._durable[shard]}")
        self._owners[shard] = note.incarnation
        replica = _Replica(clock=[0] * self.job.slots, logged=note.lsn, durable=note.lsn)
        self._replicas[shard, note.incarnation] = replica

    def _logged(self, note: notes.Logged) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        if note.lsn != replica.logged + 1:
            self._broken("I5 order", f"{note} follows LSN {replica.logged}")
        replica.logged = note.lsn
        replica.unsynced.append((note.lsn, note.worker, note.seq))

    def _synced(self, note: notes.Synced) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        if note.lsn > replica.logged:
            self._broken("I5 order", f"{note}, but only {replica.logged} is logged")
        if note.incarnation != self._owners[note.shard]:
            self._broken("I7 one owner", f"{note} while incarnation {self._owners[note.shard]} owns the shard")
        replica.durable = note.lsn
        self._durable[note.shard] = max(self._durable[note.shard], note.lsn)
        while replica.unsynced and replica.unsynced[0][0] <= note.lsn:
            replica.unsynced.popleft()

    def _acknowledged(self, note: notes.Acknowledged) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        if not self._is_durable(replica, note.worker, note.durable):
            self._broken("I6 acknowledged means durable", f"{note} while durable is LSN {replica.durable}")
        key = (note.shard, note.worker)
        self._acknowledged_seq[key] = max(note.durable, self._acknowledged_seq.get(key, 0))

    def _is_durable(self, replica: _Replica, worker: int, durable: int) -> bool:
        if self._wal and self._bsp:
            return durable <= replica.durable
        if self._wal:
            return not any(who == worker and seq < durable for _, who, seq in replica.unsynced)
        return durable <= (replica.kept_step if self._bsp else replica.kept_clock[worker])

    def _checkpoint_counts(self, note: notes.CheckpointCounts) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        replica.kept_step = max(replica.kept_step, note.step)
        replica.kept_clock = note.clock

    def _restored(self, note: notes.Restored) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        replica.step = note.step
        replica.used = set(numbers_in(note.used))
        replica.count = count_of(replica.used)
        if not self._bsp:
            replica.clock = list(note.clock)
            self._check_restored_clock(note)

    def _check_restored_clock(self, note: notes.Restored) -> None:
        for worker, clock in enumerate(note.clock):
            acknowledged = self._acknowledged_seq.get((note.shard, worker), 0)
            if self._wal and clock < acknowledged:
                self._broken("I6 acknowledged means durable", f"{note} lacks pushes of {worker} before {acknowledged}")

    # Terms.

    def _term_begun(self, note: notes.TermBegun) -> None:
        if note.term <= self._term:
            self._broken("I8 fenced", f"term {note.term} is begun after term {self._term}")
        self._term = note.term

    def _term_fenced(self, note: notes.TermFenced) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        if note.term <= replica.fenced:
            self._broken("I8 fenced", f"{note} after term {replica.fenced}")
        replica.fenced = note.term
        replica.open_term = 0

    def _term_opened(self, note: notes.TermOpened) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        if note.term != replica.fenced:
            self._broken("I8 fenced", f"{note}, but fenced by term {replica.fenced}")
        replica.open_term = note.term
        replica.sessions = {worker: session for worker, session, _ in note.members}
        replica.live = set(replica.sessions)
        if not self._bsp:
            for worker, _, clock in note.members:
                replica.clock[worker] = max(replica.clock[worker], clock)

    # Updates.

    def _applied_step(self, note: notes.Applied) -> None:
        replica = self._replicas[note.shard, note.incarnation]
        if note.seq != replica.step:
            self._broken("I4 exact value", f"{note} on version {replica.step}")
        replica.step = note.seq + 1

    def _applied_push(self, note: notes.Applied) -> None:
        shard, incarnation, term, worker, session, seq, batch, fresh = note
        replica = self._replicas[shard, incarnation]
        if term != replica.open_term or replica.sessions.get(worker) != session:
            self._unfenced(note, replica)
        if seq != replica.clock[worker]:
            self._broken("I9 exactly once", f"{note} at clock {replica.clock[worker]}")
        if self._pushed.get((worker, session, seq)) != batch:
            self._broken("I5 order", f"{note} was never pushed")
        if fresh != (batch != NO_BATCH and batch not in replica.used):
            self._broken("I9 exactly once", f"{note}, but the values hold {sorted(replica.used)}")
        replica.clock[worker] = seq + 1
        if fresh:
            replica.used.add(batch)
            replica.count += 1 << (DIGIT_BITS * batch)
        if batch == NO_BATCH:
            replica.live.discard(worker)
        else:
            replica.live.add(worker)

    def _pushed_now(self, note: notes.Pushed) -> None:
        key = (note.worker, note.session, note.seq)
        before = self._pushed.get(key)
        if not self._bsp and before is not None and before != note.batch:
            self._broken("I9 exactly once", f"{note} was pushed with batch {before}")
        self._pushed[key] = note.batch

    def _leased_now(self, note: notes.Leased) -> None:
        for batch in note.batches:
            term, session = self._leased.get(batch, (0, 0))
            if term == note.term:
                self._broken("I9 exactly once", f"{note}, but {batch} is leased to session {session} in this term")
            self._leased[batch] = (note.term, note.session)

    # Reads.

    def _served_step(self, note: notes.Served) -> None:
        shard, incarnation, term, worker, session, seq, clock, value = note
        replica = self._replicas[shard, incarnation]
        if term != replica.open_term or replica.sessions.get(worker) != session:
            self._unfenced(note, replica)
        if seq != replica.step or clock != (replica.step,) * self.job.lanes:
            self._broken("I4 exact value", f"{note} at version {replica.step}")
        self._check_value(note, shard, replica.step, 0, value)

    def _served_clock(self, note: notes.Served) -> None:
        shard, incarnation, term, worker, session, seq, clock, value = note
        replica = self._replicas[shard, incarnation]
        if term != replica.open_term or replica.sessions.get(worker) != session:
            self._unfenced(note, replica)
        right = replica.clock
        if seq >= right[worker]:
            replica.live.add(worker)
        if clock != tuple(right):
            self._broken("I4 exact value", f"{note} at clock {right}")
        if self._bounded:
            lowest = min([right[live] for live in replica.live], default=seq)
            if seq - lowest > self._bound:
                self._broken("I1 bound", f"{note} while the slowest is at {lowest}")
        self._check_value(note, shard, 0, replica.count, value)

    def _unfenced(self, note: notes.Served | notes.Applied, replica: _Replica) -> None:
        self._broken("I8 fenced", f"{note} in term {replica.open_term} of sessions {replica.sessions}")

    def _check_value(self, note: notes.Served, shard: int, step: int, count: int, value: Payload) -> None:
        if self._expected is not None and value != (right := self._expected(shard, step, count)):
            self._broken("I4 exact value", f"{note} should be {right!r}")

    def _read(self, note: notes.Read) -> None:
        worker, session, shard, term, seq, clock, value = note
        if self._bsp:
            if clock != (seq,) * self.job.lanes:
                self._broken("I3 own writes", f"{note}")
            elif self._expected is not None and value != self._expected(shard, seq, 0):
                self._broken("I4 exact value", f"{note}")
        elif clock[worker] < seq:
            self._broken("I3 own writes", f"{note}")
        key = (worker, session, shard)
        last_term, last = self._last_read.get(key, (0, ()))
        if last_term == term and not all(map(le, last, clock)):
            self._broken("I2 monotonic", f"{note} after {last}")
        self._last_read[key] = (term, clock)
