"""The steward: runs every machine of a job in one thread, and has servants move the bytes.

Machines decide: the shards, a session for every worker, the coordinator. Their messages to each other are delivered
here, from a queue; what they ask for becomes short commands to the servants (`servant.py`). A servant that dies takes
no machine with it: its session is given up, the coordinator is told and begins a new term, and what it was applying
is completed by another. So every process may be killed but the one the steward is in, after which the job is resumed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from gradbase.cluster.channel import Channel, Gone
from gradbase.cluster.operations import Operation, Operations, Pushed, Reading, ShardPages
from gradbase.cluster.storage import Events
from gradbase.cluster.worker import Figures
from gradbase.common.errors import GradbaseError, StepError
from gradbase.store.log import DiskFullError
from gradbase.store.machine import Notes, new_coordinator, new_session, new_shard
from gradbase.store.machine import messages as m
from gradbase.store.machine.consistency import Job

TICK_S = 0.05
_WATCH_S = 0.5
_DEATHS_MAX = 3  # of every worker, while no step is completed: then it is the step that kills


class Storage(Protocol):
    """Where the machines' records and checkpoints go; what it has to keep is in `store/README.md`."""

    @property
    def checkpoint_interval_s(self) -> float:
        """How long until the next checkpoint; may change with what the last ones cost."""

    def listen(self, events: Events) -> None:
        """Where it reports; before anything else."""

    def open(self, owner: m.Address) -> tuple[int, tuple[m.CheckpointState, ...], tuple[m.Record, ...]]:
        """Incarnation, checkpoints (of a shard) and records of one machine."""

    def append(self, owner: m.Address, record: m.Record) -> None: ...

    def sync(self, owner: m.Address, lsn: int) -> None:
        """Report `synced` once records up to there are durable."""

    def before_apply(self, shard: int) -> None:
        """The shard's pages are about to change."""

    def before_keep(self, lane: int) -> None:
        """What is kept of the lane's residuals is about to change."""

    def write_checkpoint(self, owner: m.Address, state: m.CheckpointState) -> None:
        """Fix the values of this moment, write them, report."""

    def load(self, owner: m.Address, number: int | None) -> m.Loaded: ...

    def retire(self, owner: m.Address, number: int, lsn: int) -> None: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Worker:
    """A servant and, once it is ready, its session. `watched_*` belong to who watches its process."""

    channel: Channel
    death: int | None  # a descriptor that is readable once the process has ended
    pid: int | None
    can_apply: bool = False
    number: int = 0  # by which its launcher knows it
    slot: int = -1
    lane: int = -1  # the buffers that are its own under ssp and asp
    nonce: int = 0
    session: Any = None
    computing: dict[int, m.Compute] = field(default_factory=dict)
    operations: dict[int, Operation] = field(default_factory=dict)
    staleness_steps: int = 0
    figures: Figures | None = None  # of its plan, if it has one, and what its steps took of it
    measured_peak_bytes: int | None = None
    heard_s: float = 0.0
    watched_used: int = -1
    watched_since_s: float = 0.0

    @property
    def busy(self) -> bool:
        return bool(self.computing or self.operations)

    @property
    def address(self) -> m.Address:
        return "worker", self.slot


@dataclass(frozen=True)
class StepReport:
    """One gradient was computed. `step`, from 1: of the job under bsp, of the worker's own clock under ssp and asp."""

    step: int
    worker: int
    lane: int
    batch: int
    samples: int
    loss: float
    time_us: float
    staleness_steps: int


class ResidualsLost(Exception):
    """A worker ended, and with it what codecs had left out of its lane's gradients: the job has to go back."""


class ShardStatus(NamedTuple):
    """A shard now: operations that wait for it, and the LSNs of its log."""

    queue: int
    lsn: int
    durable_lsn: int


def _nothing_to_replay(shard: int, data: memoryview) -> None:
    raise AssertionError("a job that keeps nothing has nothing to replay")


class Steward:
    """Runs `job` over `storage`. `copies`: every reader has parameters of its own, and a read fetches them.
    `expected`: so many servants are waited for before the first term begins. `residuals`: a bsp job's gradients go
    through lossy codecs, so what a lane pushes depends on what was left out before: a worker that ends takes that with
    it, and ends the run by `ResidualsLost`.

    `spawn` asks for one more servant; it, `watch` (now and then, for every worker), `on_report` and `on_lost` are
    called on the steward's thread, as is `on_plan`. All other threads use `call`, `stop`, `abort` and `join` alone.
    """

    def __init__(
        self,
        job: Job,
        storage: Storage,
        *,
        copies: bool,
        expected: int,
        residuals: bool = False,
        note: Notes | None = None,
        spawn: Callable[[], None],
        replay: Callable[[int, memoryview], None] = _nothing_to_replay,
        on_warning: Callable[[str], None] = lambda text: None,
        watch: Callable[[Worker], None] = lambda worker: None,
        on_report: Callable[[StepReport], None] = lambda report: None,
        on_lost: Callable[[Worker], None] = lambda worker: None,
        on_plan: Callable[[Worker], None] = lambda worker: None,
    ) -> None:
        self.job = job
        self._storage, self._expected, self._note = storage, expected, note
        storage.listen(Events(self._synced, self._log_failed, self._checkpointed, on_warning))
        self._on_warning = on_warning
        self._spawn, self._watch, self._on_report, self._on_lost = spawn, watch, on_report, on_lost
        self._on_plan = on_plan
        self.operations = Operations(job.shards, copies=copies)
        self.coordinator = new_coordinator(job, note)
        self.shards = [
            new_shard(job, k, ShardPages(self.operations, k, replay, residuals=residuals), note)
            for k in range(job.shards)
        ]
        self._residuals = residuals
        self.workers: dict[int, Worker] = {}
        self._arriving: set[Worker] = set()
        self._ready: list[Worker] = []
        self._under_way = False
        self._mail: deque[tuple[m.Address, m.Message]] = deque()
        self._held: list[tuple[Worker, m.Compute]] = []
        self._filled: dict[int, tuple[int, int]] = {}  # lane -> (seq, batch) whose gradient lies in its buffers
        self._last: dict[int, Worker] = {}  # lane -> who computed its last gradient
        self._tickets = self._nonces = self._deaths = 0
        self._newest_seq = self._newest_batch = -1
        self._stopping = self._over = False
        self._kept = False  # the last checkpoint was asked for
        self._next_watch_s = 0.0
        self._next_checkpoint_s = time.monotonic() + storage.checkpoint_interval_s
        self._calls: deque[Callable[[], None]] = deque()
        self._failure: BaseException | None = None
        self._open_selector()
        self._thread = threading.Thread(target=self._run, name="gradbase-steward", daemon=True)
        self._carry_out: dict[type, Callable[[m.Address, Any], None]] = {
            m.Append: self._append,
            m.Sync: lambda owner, effect: self._storage.sync(owner, effect.lsn),
            m.WriteCheckpoint: self._write_checkpoint,
            m.Load: self._load,
            m.Retire: lambda owner, effect: self._storage.retire(owner, effect.number, effect.lsn),
            m.Compute: lambda owner, effect: self._held.append((self.workers[owner[1]], effect)),
            m.Replace: lambda owner, effect: None,  # processes are watched by themselves, machines run right here
            m.Stop: self._stop_machine,
        }
        self._hears: dict[str, Callable[..., None]] = {
            "hello": self._greet,
            "ready": self._arrived,
            "computed": self._computed,
            "ended": self._ended,
            "planned": self._planned,
            "done": self._done,
            "failed": self._failed,
            "beat": lambda worker: None,  # that it was heard is all
        }

    # -- from other threads

    def start(self) -> None:
        self._thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """Have `work` done on the steward's thread, unless the job is over by then."""
        self._calls.append(work)
        with self._waking, contextlib.suppress(BlockingIOError):  # full: it is being woken anyhow
            if not self._closed:
                os.write(self._wake_write, b"\0")

    def stop(self) -> None:
        """Begin no further step, and end when the present one is over."""
        self.call(self._stop)

    def abort(self) -> None:
        """End now, whatever is under way."""
        if self._thread.ident is None:
            self._close()
            return
        self.call(self._end)
        self._thread.join()

    def join(self) -> None:
        """Wait for the end, then raise what went wrong, if anything did."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    @property
    def steps_done(self) -> int:
        """The steps that all shards have; under ssp and asp as many batches as there are lanes count as one."""
        if self.job.consistency == "bsp":
            return max(min(shard.version for shard in self.shards), 0)
        used = [sum(high - low for low, high in shard.used.ranges()) for shard in self.shards]
        return min(used) // self.job.lanes

    def status(self) -> list[ShardStatus]:
        """How the shards stand; on the steward's thread."""
        waiting = (sum(not each.done for each in queue.waiting) for queue in self.operations.queues)
        return [ShardStatus(n, shard.lsn, shard.durable_lsn) for n, shard in zip(waiting, self.shards, strict=True)]

    # -- the loop

    def listen(self, source: Any, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `source`, a descriptor, can be read. Before `start`, or on the steward's thread."""
        self._selector.register(source, selectors.EVENT_READ, handler)

    def _open_selector(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waking, self._closed = threading.RLock(), False  # a signal handler may stop us in `call`
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self.listen(self._wake_read, self._on_wake)

    def _run(self) -> None:
        try:
            self._open_machines()
            next_tick_s = 0.0
            while not self._over:
                for key, _ in self._selector.select(TICK_S):
                    key.data()
                now_s = time.monotonic()
                if now_s >= next_tick_s:
                    next_tick_s = now_s + TICK_S
                    self._tick(now_s)
                self._settle()
        except BaseException as error:
            self._failure = error
        finally:
            self._close()

    def _open_machines(self) -> None:
        """Hand every machine what its storage kept."""
        for k, shard in enumerate(self.shards):
            self._do(("shard", k), shard.opened(*self._storage.open(("shard", k))))
        _, _, records = self._storage.open(m.COORDINATOR)
        self._do(m.COORDINATOR, self.coordinator.opened(records))
        self._settle()

    def _close(self) -> None:
        for worker in [*self.workers.values(), *self._arriving, *self._ready]:
            with contextlib.suppress(OSError):
                worker.channel.send("stop")
            worker.channel.close()
        self.workers.clear()
        self._selector.close()
        with self._waking:
            self._closed = True
            for fd in (self._wake_read, self._wake_write):
                os.close(fd)
        self._storage.close()

    def _tick(self, now_s: float) -> None:
        now_us = int(now_s * 1e6)
        self._do(m.COORDINATOR, self.coordinator.tick(now_us))
        for k, shard in enumerate(self.shards):
            self._do(("shard", k), shard.tick(now_us))
        for worker in list(self.workers.values()):
            self._do(worker.address, worker.session.tick(now_us))
        if now_s >= self._next_watch_s:
            self._next_watch_s = now_s + _WATCH_S
            for worker in list(self.workers.values()):
                self._watch(worker)
        if now_s >= self._next_checkpoint_s and not self._stopping:
            self._next_checkpoint_s = now_s + self._storage.checkpoint_interval_s
            self._do(m.COORDINATOR, self.coordinator.take_checkpoint())

    def _on_wake(self) -> None:
        os.read(self._wake_read, 4096)

    def _settle(self) -> None:
        """Deliver messages and start what can be started, until nothing is left that happens by itself."""
        moved = True
        while moved:
            while self._calls:
                self._calls.popleft()()
            while self._mail:
                self._deliver(*self._mail.popleft())
            moved = self._advance() or bool(self._mail or self._calls)
        if self._stopping and not self._computing and self.operations.idle:
            self._wind_up()

    # -- what the storage reports, on its threads

    def _synced(self, owner: m.Address, lsn: int) -> None:
        self.call(lambda: self._do(owner, self._machine(owner).synced(lsn)))

    def _log_failed(self, owner: m.Address, lsn: int, error: GradbaseError) -> None:
        """A full disk is waited for; a broken one ends the job, which can then be resumed from what is durable."""

        def failed() -> None:
            if not isinstance(error, DiskFullError):
                raise error
            self._on_warning(f"warning: {error.problem}; the job waits for room")
            self._do(owner, self._machine(owner).log_failed(lsn))

        self.call(failed)

    def _checkpointed(self, owner: m.Address, number: int, good: bool) -> None:
        shard = self.shards[owner[1]]
        self.call(lambda: self._do(owner, (shard.checkpoint_written if good else shard.checkpoint_failed)(number)))

    # -- messages and effects

    def _machine(self, address: m.Address) -> Any:
        kind, number = address
        if kind == "coordinator":
            return self.coordinator
        if kind == "shard":
            return self.shards[number]
        return self.workers[number].session if number in self.workers else None

    def _deliver(self, to: m.Address, message: m.Message) -> None:
        machine = self._machine(to)
        if machine is None:
            return  # it died; whoever needs its answer is told by a new term
        if isinstance(message, m.PullReply):
            self._read(self.workers[to[1]], message)
        self._do(to, machine.receive(message))

    def _read(self, worker: Worker, reply: m.PullReply) -> None:
        """A reader is known: its fetch may begin. Its staleness is how far it is ahead of the slowest at work."""
        assert isinstance(reply.value, Reading)
        fetch = reply.value.after
        if self.operations.copies and fetch is not None:
            fetch.worker = worker.slot
            at_work = [each.slot for each in self.workers.values() if each.busy]
            worker.staleness_steps = max(reply.seq - min((reply.clock[slot] for slot in at_work), default=reply.seq), 0)

    def _do(self, owner: m.Address, effects: list[m.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, m.Send):
                self._mail.append((effect.to, effect.message))
            else:
                self._carry_out[type(effect)](owner, effect)

    def _append(self, owner: m.Address, effect: m.Append) -> None:
        self._storage.append(owner, effect.record)

    def _write_checkpoint(self, owner: m.Address, effect: m.WriteCheckpoint) -> None:
        assert isinstance(effect.snapshot, Operation), "a snapshot is a place in the shard's queue"
        effect.snapshot.work = lambda: self._checkpoint(owner, effect.state)

    def _checkpoint(self, owner: m.Address, state: m.CheckpointState) -> None:
        """Unless a lane is ahead of the version already: then its residuals are, and the next checkpoint does it."""
        begun = [each.seq for worker in self.workers.values() for each in worker.computing.values()]
        ahead = any(seq >= state.step for seq in [*begun, *(seq for seq, _ in self._filled.values())])
        if self._residuals and ahead:
            self._checkpointed(owner, state.number, False)
        else:
            self._storage.write_checkpoint(owner, state)

    def _load(self, owner: m.Address, effect: m.Load) -> None:
        self._do(owner, self.shards[owner[1]].loaded(self._storage.load(owner, effect.number)))

    def _stop_machine(self, owner: m.Address, effect: m.Stop) -> None:
        """A session has nothing more to do."""
        if all(worker.session.finished for worker in self.workers.values()):
            self._stopping = True

    # -- servants that come and go

    def admit(self, channel: Channel, death: int | None = None, pid: int | None = None) -> None:
        """A servant was started. It says hello, reads the stream up to where the job is, and only then counts."""
        worker = Worker(channel, death, pid)
        self._arriving.add(worker)
        self.listen(channel, lambda: self._hear(worker))
        if death is not None:
            self.listen(death, lambda: self._lost(worker))

    def _greet(self, worker: Worker, pid: int, can_apply: bool, number: int) -> None:
        worker.pid, worker.can_apply, worker.number = pid, can_apply, number
        self._say(worker, "seek", max(self._newest_batch, 0))

    def _arrived(self, worker: Worker) -> None:
        """The first ones wait for each other, so that the first term has them all."""
        self._arriving.discard(worker)
        self._ready.append(worker)
        if self._under_way or len(self._ready) == self._expected:
            self._under_way = True
            while self._ready:
                self._enroll(self._ready.pop(0))

    def _enroll(self, worker: Worker) -> None:
        worker.slot = min(set(range(self.job.slots)) - self.workers.keys())
        taken = {each.lane for each in self.workers.values()} | self.operations.lanes
        worker.lane = min(set(range(self.job.lanes)) - taken, default=-1)
        self._nonces += 1
        worker.nonce = self._nonces
        worker.session = new_session(self.job, worker.slot, worker.nonce, self._note)
        self.workers[worker.slot] = worker
        self._do(worker.address, worker.session.start())

    def _hear(self, worker: Worker) -> None:
        try:
            messages = worker.channel.ready()
        except Gone:
            self._lost(worker)
            return
        worker.heard_s = time.monotonic()
        for verb, *rest in messages:
            self._hears[verb](worker, *rest)

    def give_up(self, worker: Worker) -> None:
        """Do without a worker that does not get on, as if its process had ended; on the steward's thread."""
        self._lost(worker)

    def _lost(self, worker: Worker) -> None:
        """A process ended: its session with it, and others do what it was doing."""
        if not self._dismiss(worker):
            return
        for operation in worker.operations.values():
            operation.started = False
            operation.worker = None
            operation.done = operation.kind == "fetch"
        self._held = [held for held in self._held if held[0] is not worker]
        if worker.slot >= 0:
            self._do(m.COORDINATOR, self.coordinator.worker_lost(worker.slot, worker.nonce))
        self._on_lost(worker)
        if self._residuals and self._newest_seq >= 0 and not (self._stopping and self.job.durability == "none"):
            raise ResidualsLost
        self._deaths += 1
        if self._deaths > _DEATHS_MAX * self._expected:
            raise StepError(
                f"{self._deaths} workers ended one after the other, and no step was completed in between",
                "look for what kills them: the system's log names processes that were killed for want of memory",
            )
        if not self._stopping:
            self._spawn()

    def _dismiss(self, worker: Worker) -> bool:
        """Forget a worker; False if that has been done."""
        known = worker in self._arriving or worker in self._ready or self.workers.get(worker.slot) is worker
        if known:
            self._arriving.discard(worker)
            self._ready = [each for each in self._ready if each is not worker]
            self.workers.pop(worker.slot, None)
            self._selector.unregister(worker.channel)
            worker.channel.close()
            if worker.death is not None:
                self._selector.unregister(worker.death)
                os.close(worker.death)
        return known

    # -- what servants say

    def _computed(self, worker: Worker, ticket: int, samples: int, loss: float, time_us: float) -> None:
        compute = worker.computing.pop(ticket)
        lane = self._lane_of(worker, compute)
        self._filled[lane] = compute.seq, compute.batch
        self._last[lane] = worker
        place = (compute.seq + 1, worker.slot, compute.lane, compute.batch)
        self._on_report(StepReport(*place, samples, loss, time_us, worker.staleness_steps))
        self._answer(worker, compute, lane)

    def _answer(self, worker: Worker, compute: m.Compute, lane: int | None) -> None:
        """Tell the session that its gradient is there, for all shards at once."""
        pushed = Pushed(lane, worker.slot)
        for k in range(self.job.shards):
            effects = worker.session.computed(compute.term, compute.seq, compute.lane, k, 0, 1, pushed)
            self._do(worker.address, effects)

    def _ended(self, worker: Worker, ticket: int) -> None:
        """The stream has no such batch. bsp: there is no such step; else it counts as used and changes nothing."""
        compute = worker.computing.pop(ticket)
        if self.job.consistency == "bsp":
            self._newest_seq = min(self._newest_seq, compute.seq - 1)
            self._shorten(compute.seq)
        else:
            self._answer(worker, compute, None)

    def _planned(self, worker: Worker, figures: list[Any], measured_peak_bytes: int | None) -> None:
        worker.figures, worker.measured_peak_bytes = Figures(*figures), measured_peak_bytes
        self._on_plan(worker)

    def _done(self, worker: Worker, number: int) -> None:
        worker.operations.pop(number).done = True
        self._deaths = 0

    def _failed(self, worker: Worker, problem: str, *remedies: str) -> None:
        raise StepError(problem, *remedies)

    # -- what servants are asked to do

    def _advance(self) -> bool:
        """Start operations and computations that can be started; whether any was."""
        moved = False
        for queue in self.operations.queues:
            for operation in queue.startable():
                moved |= self._start(operation)
        for held in self._held[:]:
            if self._can_compute(*held):
                self._held.remove(held)
                self._compute(*held)
                moved = True
        return moved

    def _start(self, operation: Operation) -> bool:
        if operation.kind == "inline":
            return self._work(operation)
        if operation.kind == "fetch" and operation.worker is None:
            operation.done = True  # the answer that it belongs to reached nobody
            return True
        if operation.kind == "apply" and not self.operations.copies and self._computing:
            return False  # a computation that a new term has overtaken still reads these pages
        if operation.kind == "keep" and operation.shard not in self._last:
            operation.done = True  # what is kept of this lane is all there is
            return True
        worker = self._last[operation.shard] if operation.kind == "keep" else self._executor(operation)
        if worker is None:
            return False
        operation.started = True
        if operation.kind == "apply":
            self._storage.before_apply(operation.shard)
        elif operation.kind == "keep":
            self._storage.before_keep(operation.shard)
        worker.operations[operation.number] = operation
        self._say(worker, operation.kind, operation.number, operation.shard, operation.lanes)
        return True

    def _work(self, operation: Operation) -> bool:
        if operation.work is None:
            return False
        operation.started = True
        operation.work()
        operation.done = True
        return True

    def _executor(self, operation: Operation) -> Worker | None:
        """Who does it: the one that is named, if it can; of the others each serves its share of the shards."""
        named = self.workers.get(-1 if operation.worker is None else operation.worker)
        if named is not None and (named.can_apply or operation.kind == "fetch"):
            return named
        live = [slot for slot, worker in sorted(self.workers.items()) if worker.can_apply]
        return self.workers[live[operation.shard % len(live)]] if live else None

    def _can_compute(self, worker: Worker, compute: m.Compute) -> bool:
        if not all(value.after is None or value.after.done for value in compute.values if isinstance(value, Reading)):
            return False
        if self._stopping or compute.seq >= self.job.steps and not self.operations.copies:
            return False
        if self._residuals and not self.operations.idle:
            return False  # a checkpoint under way is still to take what this computation changes
        lane = self._lane_of(worker, compute)
        at_work = (self._lane_of(w, c) for w in self.workers.values() for c in w.computing.values())
        return lane >= 0 and lane not in at_work

    def _compute(self, worker: Worker, compute: m.Compute) -> None:
        lane = self._lane_of(worker, compute)
        if not self.operations.copies and self._filled.get(lane) == (compute.seq, compute.batch):
            self._answer(worker, compute, lane)  # computed before a new term began: the same bits
            return
        self._filled.pop(lane, None)
        self._newest_seq = max(self._newest_seq, compute.seq)
        self._newest_batch = max(self._newest_batch, compute.batch)
        self._tickets += 1
        worker.computing[self._tickets] = compute
        self._say(worker, "compute", self._tickets, lane, compute.batch)

    def _lane_of(self, worker: Worker, compute: m.Compute) -> int:
        return worker.lane if self.operations.copies else compute.lane

    def _say(self, worker: Worker, *message: Any) -> None:
        try:
            worker.channel.send(*message)
        except OSError:
            self.call(lambda: self._lost(worker))

    # -- the end

    @property
    def _computing(self) -> bool:
        return any(worker.computing for worker in self.workers.values())

    def _stop(self) -> None:
        """bsp: the job ends with the step that was begun; ssp, asp: with what is being computed."""
        if self.job.consistency == "bsp":
            self._shorten(self._newest_seq + 1)
        else:
            self._stopping = True

    def _shorten(self, steps: int) -> None:
        """The job is shorter than was thought; the machines find that it is done."""
        self.job = replace(self.job, steps=min(steps, self.job.steps))
        for machine in (self.coordinator, *self.shards, *(worker.session for worker in self.workers.values())):
            machine.job = self.job

    def _wind_up(self) -> None:
        """Everything is at rest: keep it, then end. A checkpoint of a version that will not be is given up."""
        wanted = self.coordinator.checkpoint
        if wanted is not None and self.job.consistency == "bsp" and wanted.number > self.job.steps:
            wanted = self.coordinator.checkpoint = None
        if wanted is None and not self._kept and self.job.durability != "none":
            self._kept = True
            self._do(m.COORDINATOR, self.coordinator.take_checkpoint())
            wanted = self.coordinator.checkpoint
        if wanted is None:
            self._end()

    def _end(self) -> None:
        self._over = True
