"""A shard under bsp: a step is every lane's push, complete on all shards before it is applied on any."""

from __future__ import annotations

from gradbase.common.errors import UsageError
from gradbase.store.machine import notes
from gradbase.store.machine._shard import Shard
from gradbase.store.machine.consistency import Job
from gradbase.store.machine.messages import (
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
    PushReply,
    Ranges,
    Record,
    Send,
    ShardReport,
    StepRecord,
    new,
)

_UNLOADED = -1


class StepShard(Shard):
    """`version` steps are applied. The log holds one record a step, so step t has LSN t + 1.

    `_update` is the reduced update of step `version` once that step is complete, `_proven` the highest version known
    to be reachable by every shard: steps below it may be applied.
    """

    def __init__(self, job: Job, shard: int, pages: Pages, note: notes.Notes | None = None) -> None:
        super().__init__(job, shard, pages, note)
        self.version = _UNLOADED
        self._physical = self._wal and job.logging == "physical"
        self._complete = False
        self._update: Payload | None = None
        self._proven = 0
        self._staged: list[tuple[Payload, ...] | None] = [None] * job.lanes
        self._parts: dict[tuple[int, int], Payload] = {}  # by lane and part, of pushes in several parts
        self._missing = job.lanes
        self._holders: set[int] = set()
        self._pending: dict[int, Pull] = {}  # one a worker
        self._clock = (0,) * job.lanes
        self._kept = 0  # the version of the newest checkpoint that all shards have
        self._log_from = -1  # the log replays from this version on; -1: nothing was found when it was opened

    # Pushes.

    def _push(self, message: Push) -> None:
        if message.term != self.open_term or self._sessions[message.worker] != message.session:
            return
        step = message.seq
        if step > self.version:
            self._prove(step)
        if step == self.version and not self._complete:
            self._stage(message)
        elif step <= self.version:
            self._reply(message.worker, step, -1, -1, True)

    def _stage(self, message: Push) -> None:
        if len(self._unsynced) >= self._unsynced_max:
            busy = Busy(self.open_term, message.session, self.shard, message.seq)
            self._out.append(new(Send, (self._workers[message.worker], busy)))
        elif self._staged[message.lane] is not None or not self._whole(message):
            self._holders.add(message.worker)
            self._reply(message.worker, message.seq, message.lane, message.part, False)
        else:
            self._holders.add(message.worker)
            self._missing -= 1
            if not self._missing:
                self._completed()

    def _whole(self, message: Push) -> bool:
        """Keep the part; whether the lane's push is now all here."""
        lane = message.lane
        if message.parts == 1:
            self._staged[lane] = (message.payload,)
            return True
        self._parts.setdefault((lane, message.part), message.payload)
        parts = [self._parts[lane, part] for part in range(message.parts) if (lane, part) in self._parts]
        if len(parts) < message.parts:
            return False
        self._staged[lane] = tuple(parts)
        return True

    def _completed(self) -> None:
        self._update = self.pages.reduce([parts for parts in self._staged if parts is not None])
        self._complete = True
        if self._wal and self.version >= self.lsn:  # else this step was computed again, and its record is there
            self._append(self._record())
        for worker in sorted(self._holders):
            self._reply(worker, self.version, -1, -1, True)
        if self.job.shards == 1 or self._proven > self.version:
            self._apply()

    def _record(self) -> StepRecord:
        step, lanes = self.version, self.job.lanes
        batches = tuple(range(step * lanes, (step + 1) * lanes))
        update = self._update if self._physical else None
        return StepRecord(self.lsn + 1, self.incarnation, self.term, step, batches, self.job.seed, update)

    def _prove(self, version: int) -> None:
        """Someone has heard from all shards that the steps before `version` are complete."""
        if version > self._proven:
            self._proven = version
            if self._complete and self.version < version:
                self._apply()

    def _apply(self) -> None:
        self.pages.apply(self._update)
        if self._note is not None:
            self._note(new(notes.Applied, (self.shard, self.incarnation, self.term, -1, -1, self.version, -1, True)))
        self._arrive(self.version + 1)
        if self._pending:
            self._serve_pending()
        if self._wanted is not None:
            self._checkpoint_if_due()

    def _arrive(self, version: int) -> None:
        self.version = version
        self._clock = (version,) * self.job.lanes
        self._clear()

    def _clear(self) -> None:
        self._complete = False
        self._update = None
        self._staged = [None] * self.job.lanes
        self._missing = self.job.lanes
        self._holders = set()
        self._parts.clear()

    def _poll(self, message: Poll) -> None:
        if message.term != self.open_term or self._sessions[message.worker] != message.session:
            return
        if message.seq < self.version or (message.seq == self.version and self._complete):
            self._reply(message.worker, message.seq, -1, -1, True)

    # Pulls.

    def _pull(self, message: Pull) -> None:
        if message.term != self.open_term or self._sessions[message.worker] != message.session:
            return
        if message.seq > self.version:
            self._prove(message.seq)
        if message.seq == self.version:
            self._serve(message)
        elif message.seq > self.version:
            self._pending[message.worker] = message

    def _serve(self, message: Pull) -> None:
        worker, session = message.worker, message.session
        value = self.pages.read(message.selection)
        if self._note is not None:
            self._note(
                new(
                    notes.Served,
                    (self.shard, self.incarnation, self.term, worker, session, message.seq, self._clock, value),
                )
            )
        durable = self.durable_lsn if self._wal else self._kept
        if durable > self._told[worker]:
            self._tell(worker, durable)
        reply = new(PullReply, (self.open_term, session, self.shard, message.seq, self._clock, value, durable))
        self._out.append(new(Send, (self._workers[worker], reply)))

    def _serve_pending(self) -> None:
        for worker, message in list(self._pending.items()):
            if message.seq <= self.version:
                del self._pending[worker]
                if message.seq == self.version:
                    self._serve(message)

    def _reply(self, worker: int, seq: int, lane: int, part: int, complete: bool) -> None:
        durable = self.durable_lsn if self._wal else self._kept
        if durable > self._told[worker]:
            self._tell(worker, durable)
        session = self._sessions[worker]
        reply = new(PushReply, (self.open_term, session, self.shard, seq, lane, part, complete, durable))
        self._out.append(new(Send, (self._workers[worker], reply)))

    def _acknowledge(self, lsn: int) -> None:
        if self.open_term and (self._physical or lsn >= self.job.steps):
            for worker, session, _ in self._members:
                if lsn > self._told[worker]:
                    self._tell(worker, lsn)
                self._out.append(new(Send, (self._workers[worker], Durable(self.open_term, session, self.shard, lsn))))

    # Terms, recovery, checkpoints.

    def _scan(self, record: Record) -> None:
        assert isinstance(record, StepRecord), record
        lanes = self.job.lanes
        expected = tuple(range(record.step * lanes, (record.step + 1) * lanes))
        if (record.lsn, record.batches, record.seed) != (record.step + 1, expected, self.job.seed):
            raise UsageError(
                f"the log of shard {self.shard} is of another job: LSN {record.lsn} holds step {record.step} of "
                f"batches {record.batches} with seed {record.seed}, "
                f"expected batches {expected} with seed {self.job.seed}",
                "resume with the lanes, batches and seed the job was started with, or choose an empty directory",
            )
        if self._log_from < 0:
            self._log_from = record.step
        if record.update is not None and not self._physical:
            raise UsageError(f"the log of shard {self.shard} is physical, this job logs commands", 'logging="physical"')

    def _after_scan(self) -> None:
        if self._log_from < 0:
            self._log_from = self.lsn
        self._say_up()

    def _report(self) -> ShardReport:
        complete = max(self._high(), 0)
        return ShardReport(self.shard, self.incarnation, self.term, self._reach(), complete, (), ())

    def _high(self) -> int:
        """The highest version this shard reaches by itself."""
        if self.version == _UNLOADED:
            return self._replays_to()
        return self.version + self._complete

    def _replays_to(self) -> int:
        newest = max((state.step for state in self._checkpoints.values()), default=0)
        return max(self.lsn, newest) if self._physical else newest

    def _reach(self) -> Ranges:
        points = sorted({0, *(state.step for state in self._checkpoints.values())})
        ranges = [(point, point + 1) for point in points]
        if self.version != _UNLOADED:
            ranges.append((self.version, self.version + self._complete + 1))
        if self._physical:
            base = min((point for point in points if point >= self._log_from), default=self.durable_lsn)
            ranges.append((base, self.durable_lsn + 1))
        return tuple(ranges)

    def _forget(self) -> None:
        self._pending.clear()
        if not self._complete:
            self._clear()

    def _go_to(self, seq: int) -> None:
        self._proven = seq
        if self.version != _UNLOADED and (self.version == seq or seq > self._high()):
            if self._complete and seq > self.version:
                self._apply()
            self._opened()
        elif self._complete and seq == self.version + 1:
            self._apply()
            self._opened()
        else:
            self._load(self._best_checkpoint(min(seq, self._replays_to())))

    def _best_checkpoint(self, version: int) -> int | None:
        return max((number for number, state in self._checkpoints.items() if state.step <= version), default=None)

    def _restore(self, loaded: Loaded) -> None:
        """Take the checkpoint and replay physical records up to where this term begins. The one after it is kept
        complete.
        """
        target = self._opening.seq if self._opening is not None else 0
        self.pages.restore(loaded.snapshot)
        self._arrive(loaded.state.step if loaded.state is not None else 0)
        if self._physical:
            for record in loaded.records:
                if isinstance(record, StepRecord) and self.version <= record.step < target:
                    assert record.step == self.version, (record.step, self.version)
                    self.pages.apply(record.update)
                    self._arrive(self.version + 1)
        if self._note is not None:
            self._note(notes.Restored(self.shard, self.incarnation, self.version, self._clock, ()))

    def _after_restore(self) -> None:
        if self._opening is not None:
            self._opened()

    def _admit(self, worker: int, clock: int) -> None:
        """Under bsp every member stands where the term begins."""

    def _checkpoint_if_due(self) -> None:
        assert self._wanted is not None
        if self._wanted.number == self.version:
            self._snapshot()
        elif self._wanted.number < self.version:
            number, self._wanted = self._wanted.number, None
            self._refuse_checkpoint(number)

    def _checkpoint_counts(self, state: CheckpointState) -> None:
        self._kept = max(self._kept, state.step)
        self._log_from = max(self._log_from, state.lsn)

    def _state(self, number: int) -> CheckpointState:
        return CheckpointState(number, self.version if self._wal else 0, self.version, (), (), ())

    def _step(self) -> int:
        return max(self.version, 0)
