"""The steward: runs every machine of a job in one thread, and has servants move the bytes.

Machines decide: the shards, a session for every worker, the coordinator. Their messages to each other are delivered
here, from a queue; what they ask for becomes short commands to the servants (`servant.py`). A servant that dies takes
no machine with it: its session is given up, the coordinator is told and begins a new term, and what it was applying
is completed by another. So every process may be killed but the one the steward is in, after which the job is resumed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradbase.cluster.channel import Channel, Gone
from gradbase.cluster.operations import Operations, ShardPages
from gradbase.cluster.steward._crew import Crew, Worker
from gradbase.cluster.steward._keeping import Keeping
from gradbase.cluster.steward._loop import Loop
from gradbase.cluster.steward._machines import Machines
from gradbase.cluster.steward._storage import Storage
from gradbase.cluster.steward._work import Work
from gradbase.cluster.worker import Figures
from gradbase.common.errors import StepError
from gradbase.store.machine import Notes
from gradbase.store.machine import messages as m
from gradbase.store.machine.consistency import Job

TICK_S = 0.05
_WATCH_S = 0.5
_DEATHS_MAX = 3  # of every worker, while no step is completed: then it is the step that kills


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

    `spawn` asks for one more servant; it, `watch` (now and then, for every worker), `on_report`, `on_lost`, `on_plan`
    and `on_end` (with how many batches there were) are called on the steward's thread. All other threads use `call`,
    `stop`, `abort` and `join` alone.
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
        on_end: Callable[[int], None] = lambda length: None,
    ) -> None:
        self._storage, self._residuals = storage, residuals
        self._spawn, self._watch, self._on_report, self._on_lost = spawn, watch, on_report, on_lost
        self._on_plan, self._on_end = on_plan, on_end
        self._loop = Loop()
        self._crew = Crew(self._loop, expected, self._hear, self.give_up)
        operations = self._operations = Operations(job.shards, copies=copies)
        self._machines = Machines(
            job,
            lambda k: ShardPages(operations, k, replay, residuals=residuals),
            note,
            lambda slot, reply: self._work.read(slot, reply),
        )
        self._work = Work(self._machines, self._crew, operations, storage, residuals=residuals)
        keeping = Keeping(storage, self._machines, self._loop, self._work.is_ahead, on_warning)
        self._machines.carry_out = {
            **keeping.carry_out,
            m.Compute: self._work.hold,
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
        self._deaths = 0
        self._over = False
        self._kept = False  # the last checkpoint was asked for
        self._next_watch_s = 0.0
        self._next_checkpoint_s = time.monotonic() + storage.checkpoint_interval_s
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gradbase-steward", daemon=True)

    # -- from other threads

    def start(self) -> None:
        self._thread.start()

    def call(self, work: Callable[[], None]) -> None:
        """Have `work` done on the steward's thread, unless the job is over by then."""
        self._loop.call(work)

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

    # -- how things stand; on the steward's thread, or when it is over

    @property
    def workers(self) -> dict[int, Worker]:
        """Those that count, by slot."""
        return self._crew.workers

    @property
    def steps_done(self) -> int:
        """The steps that all shards have; under ssp and asp as many batches as there are lanes count as one."""
        return self._machines.steps_done

    def status(self) -> list[ShardStatus]:
        """How the shards stand."""
        waiting = (sum(not each.done for each in queue.waiting) for queue in self._operations.queues)
        shards = zip(waiting, self._machines.shards, strict=True)
        return [ShardStatus(count, shard.lsn, shard.durable_lsn) for count, shard in shards]

    # -- the loop

    def listen(self, source: Any, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `source`, a descriptor, can be read. Before `start`, or on the steward's thread."""
        self._loop.listen(source, handler)

    def forget(self, source: Any) -> None:
        """Listen to a descriptor no more, before it is closed. On the steward's thread."""
        self._loop.forget(source)

    def _run(self) -> None:
        try:
            self._machines.open(self._storage.open)
            self._settle()
            next_tick_s = 0.0
            while not self._over:
                self._loop.wait(TICK_S)
                now_s = time.monotonic()
                if now_s >= next_tick_s:
                    next_tick_s = now_s + TICK_S
                    self._tick(now_s)
                self._settle()
        except BaseException as error:
            self._failure = error
        finally:
            self._close()

    def _close(self) -> None:
        self._crew.send_home()
        self._loop.close()
        self._storage.close()

    def _tick(self, now_s: float) -> None:
        self._machines.tick(int(now_s * 1e6))
        if now_s >= self._next_watch_s:
            self._next_watch_s = now_s + _WATCH_S
            for worker in list(self.workers.values()):
                self._watch(worker)
        if now_s >= self._next_checkpoint_s and not self._work.stopping:
            self._next_checkpoint_s = now_s + self._storage.checkpoint_interval_s
            self._machines.take_checkpoint()

    def _settle(self) -> None:
        """Deliver messages and start what can be started, until nothing is left that happens by itself."""
        moved = True
        while moved:
            self._loop.do_calls()
            self._machines.deliver()
            moved = self._work.start() or self._machines.expecting or self._loop.called
        if self._work.stopping and self._work.at_rest:
            self._wind_up()

    # -- servants that come and go

    def admit(self, channel: Channel, death: int | None = None, pid: int | None = None) -> None:
        """A servant was started. It says hello, reads the stream up to where the job is, and only then counts.
        `death`: a descriptor that is readable once its process has ended.
        """
        self._crew.admit(channel, death, pid)

    def _greet(self, worker: Worker, pid: int, can_apply: bool, number: int) -> None:
        worker.pid, worker.can_apply, worker.number = pid, can_apply, number
        self._crew.say(worker, "seek", max(self._work.newest_batch, 0))

    def _arrived(self, worker: Worker) -> None:
        job = self._machines.job
        for each in self._crew.arrived(worker):
            self._crew.seat(each, job.slots, set(range(job.lanes)) - self._operations.lanes)
            self._machines.enroll(each.slot, each.nonce)

    def give_up(self, worker: Worker) -> None:
        """A process has ended, or does not get on: its session with it, and others do what it was doing. On the
        steward's thread.
        """
        if not self._crew.dismiss(worker):
            return
        self._work.take_back(worker)
        if worker.slot >= 0:
            self._machines.lose(worker.slot, worker.nonce)
        self._on_lost(worker)
        begun, kept = self._work.newest_seq >= 0, self._machines.job.durability != "none"
        if self._residuals and begun and (kept or not self._work.stopping):
            raise ResidualsLost
        self._deaths += 1
        if self._deaths > _DEATHS_MAX * self._crew.expected:
            raise StepError(
                f"{self._deaths} workers ended one after the other, and no step was completed in between",
                "look for what kills them: the system's log names processes that were killed for want of memory",
            )
        if not self._work.stopping:
            self._spawn()

    # -- what servants say

    def _hear(self, worker: Worker) -> None:
        try:
            messages = worker.channel.ready()
        except Gone:
            self.give_up(worker)
            return
        worker.heard_s = time.monotonic()
        for verb, *rest in messages:
            self._hears[verb](worker, *rest)

    def _computed(self, worker: Worker, ticket: int, samples: int, loss: float, time_us: float) -> None:
        compute = self._work.computed(worker, ticket)
        place = (compute.seq + 1, worker.slot, compute.lane, compute.batch)
        self._on_report(StepReport(*place, samples, loss, time_us, worker.staleness_steps))
        self._work.answer(worker, compute)

    def _ended(self, worker: Worker, ticket: int, length: int) -> None:
        """The stream has no such batch. bsp: there is no such step; else it counts as used and changes nothing."""
        compute = worker.computing.pop(ticket)
        self._on_end(length)
        if self._machines.job.consistency == "bsp":
            self._work.newest_seq = min(self._work.newest_seq, compute.seq - 1)
            self._machines.shorten(compute.seq)
        else:
            self._work.answer(worker, compute, empty=True)

    def _planned(self, worker: Worker, figures: list[Any], measured_peak_bytes: int | None) -> None:
        worker.figures, worker.measured_peak_bytes = Figures(*figures), measured_peak_bytes
        self._on_plan(worker)

    def _done(self, worker: Worker, number: int) -> None:
        worker.operations.pop(number).done = True
        self._deaths = 0

    def _failed(self, worker: Worker, problem: str, *remedies: str) -> None:
        raise StepError(problem, *remedies)

    # -- the end

    def _stop_machine(self, owner: m.Address, effect: m.Stop) -> None:
        """A session has nothing more to do."""
        if self._machines.finished:
            self._work.stopping = True

    def _stop(self) -> None:
        """bsp: the job ends with the step that was begun; ssp, asp: with what is being computed."""
        if self._machines.job.consistency == "bsp":
            self._machines.shorten(self._work.newest_seq + 1)
        else:
            self._work.stopping = True

    def _wind_up(self) -> None:
        """Everything is at rest: keep it, then end. A checkpoint of a version that will not be is given up."""
        job, coordinator = self._machines.job, self._machines.coordinator
        wanted = coordinator.checkpoint
        if wanted is not None and job.consistency == "bsp" and wanted.number > job.steps:
            wanted = coordinator.checkpoint = None
        if wanted is None and not self._kept and job.durability != "none":
            self._kept = True
            self._machines.take_checkpoint()
            wanted = coordinator.checkpoint
        if wanted is None:
            self._end()

    def _end(self) -> None:
        self._over = True
