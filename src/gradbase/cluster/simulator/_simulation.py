"""One run of a whole job in one thread and virtual time: network, disks, clocks, processes and their deaths.

Everything that happens is drawn from the plan's seed, so a run can be had again by its number. The faults a job must
survive: crashes of any processes, several at once, at any event; loss of what a disk was not asked to sync, in part
or whole; full disks; messages lost, doubled, reordered, or late by more than a timeout; partitions; processes that
hang and come back as zombies beside their successors; clocks that jump; workers that come and go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from traceback import extract_tb
from typing import Any, Final, TypeAlias

from gradbase.cluster.simulator._disk import Disk
from gradbase.cluster.simulator._plan import Fault, Plan
from gradbase.cluster.simulator._values import CountPages, StepPages, gradient, unfailed
from gradbase.store.machine import Coordinator, Session, Shard, new_coordinator, new_session, new_shard
from gradbase.store.machine.history import Violation, check, count_of
from gradbase.store.machine.messages import (
    COORDINATOR,
    Address,
    Append,
    Compute,
    Effect,
    Load,
    Loaded,
    Payload,
    PushRecord,
    Replace,
    Retire,
    Send,
    StepRecord,
    Stop,
    Sync,
    WriteCheckpoint,
)
from gradbase.store.machine.notes import Note

Machine: TypeAlias = Coordinator | Session | Shard
Pages: TypeAlias = StepPages | CountPages

TICK_US: Final = 2_000
LATENCY_US: Final = 20  # and up to SPREAD_US more
SPREAD_US: Final = 200
LATE_US_MAX: Final = 40_000  # how late an odd message may be: several timeouts
SYNC_US: Final = 150
SLOW_SYNC_US: Final = 20_000
WRITE_US: Final = 1_000
COMPUTE_US: Final = 300
RESTART_US: Final = 1_000
ZOMBIE_US: Final = 20_000  # how long after the last fault a process may go on beside its successor
PATIENCE_US: Final = 3_000_000  # after the last fault; then the run counts as stuck


@dataclass(frozen=True)
class Machines:
    """What to simulate; tests put machines with planted bugs here."""

    coordinator: Callable[..., Coordinator] = new_coordinator
    session: Callable[..., Session] = new_session
    shard: Callable[..., Shard] = new_shard
    disk: Callable[[], Disk] = Disk


class Process:
    """A machine with what an operating system gives it. `incarnation`: of its disk, or a worker's nonce."""

    __slots__ = ("address", "ahead_us", "alive", "hung_until_us", "incarnation", "machine", "pages", "receive",
                 "slow_us", "tick")  # fmt: skip

    def __init__(self, address: Address, machine: Machine, incarnation: int, pages: Pages | None = None) -> None:
        self.address = address
        self.machine = machine
        self.incarnation = incarnation
        self.pages = pages
        self.alive = True
        self.ahead_us = 0
        self.hung_until_us = 0
        self.slow_us = 0
        self.receive = machine.receive  # looked up once: it is called for every message
        self.tick = machine.tick


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `events`: what was handled: messages received (`messages`), ticks of machines, parts computed,
    disk operations that ended, processes started, faults. What a machine asks for is not counted before it happens.
    """

    plan: Plan
    violations: tuple[Violation, ...]
    events: int
    messages: int
    virtual_us: int
    terms: int


class _Over(Exception):
    """The run is at its end."""


class Simulation:
    """`run` once. `history` keeps what the machines noted."""

    def __init__(self, plan: Plan, machines: Machines | None = None) -> None:
        self.plan = plan
        self.job = plan.job
        self.now_us = 0
        self.history: list[Note] = []
        self._machines = machines or Machines()
        self._random = Random(plan.seed ^ 0x5DEECE66D)
        self._draw = self._random.random
        self._odd = plan.odd
        self._calm = False
        self._cut: list[Process] = []
        self._heap: list[tuple[int, int, Any, Any]] = []  # time, order; for whom, a message; or None, a call
        self._order = count(1).__next__  # of two things at the same time, the one asked for first comes first
        self._events = 0
        self._messages = 0
        self._at: dict[Any, Process] = {}  # by address
        self._zombies: list[Process] = []
        self._full: list[Address] = []
        self._starting: set[Address] = set()
        self._finished = False
        self._right: tuple[tuple[Payload, ...], ...] = ()  # bsp: what all shards must hold after 0, 1, ... steps
        self.killed = 0
        shards = [("shard", shard) for shard in range(self.job.shards)]
        self._disks: dict[Address, Disk] = {address: self._machines.disk() for address in (COORDINATOR, *shards)}

    def run(self) -> Outcome:
        violations: list[Violation] = []
        try:
            self._prepare()
            self._go()
        except _Over:
            pass
        except Exception as error:  # a machine found itself where it must never be
            violations.append(Violation("crash", _where(error), len(self.history)))
        self._heap.clear()  # what waits there holds on to this object: a run that is over is then no garbage
        self._right = unfailed(self.job, self.plan.parts) if self.job.consistency == "bsp" else ()
        expected = self._expected_step if self._right else self._expected_count
        violations += check(self.job, self.history, expected)
        violations += self._judge_end() if not violations else []
        terms = self._disks[COORDINATOR].records[-1].lsn if self._disks[COORDINATOR].records else 0
        return Outcome(self.plan, tuple(violations), self._events, self._messages, self.now_us, terms)

    def values(self) -> list[Payload]:
        """Of every shard, as they are now; None where no process has them in memory."""
        processes = [self._at.get(("shard", shard)) for shard in range(self.job.shards)]
        return [process.pages.value if process is not None and process.pages else None for process in processes]

    # The loop.

    def _prepare(self) -> None:
        for address in self._disks:
            self._start(address)
        for worker in range(self.plan.workers):
            self._start(("worker", worker))
        self._after(TICK_US, self._tick)
        if self.plan.checkpoint_us:
            self._after(self.plan.checkpoint_us, self._checkpoint)
        for fault in self.plan.faults:
            self._after(fault.at_us, partial(self._begin, fault))
        self._after(self.plan.calm_us, self._calm_down)
        self._after(self.plan.calm_us + PATIENCE_US, self._give_up)

    def _go(self) -> None:
        """Until `_Over`."""
        heap, at, carry, zombies = self._heap, self._at, self._carry, self._zombies
        messages = others = 0
        try:
            while True:
                now_us, _, address, what = heappop(heap)
                self.now_us = now_us
                if address is None:
                    others += 1
                    what()
                    continue
                process = at.get(address)
                if process is not None:
                    if process.hung_until_us > now_us:
                        self._put(process.hung_until_us + self._random.randrange(1000), address, what)
                        continue
                    messages += 1
                    effects = process.receive(what)
                    if effects:
                        carry(process, effects)
                if zombies:
                    self._give_zombies(address, what)
        finally:
            self._messages += messages
            self._events += messages + others

    def _give_up(self) -> None:
        raise _Over

    def _carry(self, process: Process, effects: list[Any]) -> None:
        """Carry out what a machine asked for, in order. A message costs one random number, for delay or oddness."""
        draw, order, heap = self._draw, self._order, self._heap
        soonest_us = self.now_us + LATENCY_US
        odd = 1.0 if self._cut else self._odd
        for effect in effects:
            if type(effect) is Send:
                to, message = effect
                luck = draw()
                if luck < odd:
                    self._send_oddly(process, to, message, luck)
                else:
                    heappush(heap, (soonest_us + int(luck * SPREAD_US), order(), to, message))
            else:
                _DO[type(effect)](self, process, effect)

    def _send_oddly(self, process: Process, to: Any, message: Any, luck: float) -> None:
        if process in self._cut or self._at.get(to) in self._cut:
            return
        kind = int(luck * 2**30) % 4 if luck < self._odd else 3
        if kind == 0:
            return  # lost
        if kind == 1:  # doubled, the second one late
            self._put(self.now_us + self._random.randrange(LATE_US_MAX), to, message)
        late_us = self._random.randrange(LATE_US_MAX) if kind == 2 else 0
        self._put(self.now_us + LATENCY_US + int(luck * SPREAD_US) + late_us, to, message)

    def _put(self, at_us: int, address: Any, what: Any) -> None:
        heappush(self._heap, (at_us, self._order(), address, what))

    def _after(self, delay_us: int, what: Callable[[], None]) -> None:
        heappush(self._heap, (self.now_us + delay_us, self._order(), None, what))

    def _give_zombies(self, address: Any, message: Any) -> None:
        """What is sent to an address half the time also reaches a process that should no longer be there."""
        for zombie in list(self._zombies):
            if zombie.address == address and zombie.hung_until_us <= self.now_us and self._draw() < 0.5:
                self._messages += 1
                self._events += 1
                self._carry(zombie, zombie.receive(message))

    def _tick(self) -> None:
        now_us, carry = self.now_us, self._carry
        ready = [process for process in (*self._at.values(), *self._zombies) if process.hung_until_us <= now_us]
        self._events += len(ready) - 1  # the timer itself is none
        for process in ready:
            effects = process.tick(now_us + process.ahead_us)
            if effects:
                carry(process, effects)
        self._after(TICK_US, self._tick)

    def _checkpoint(self) -> None:
        process = self._at.get(COORDINATOR)
        if process is not None and isinstance(process.machine, Coordinator):
            self._carry(process, process.machine.take_checkpoint())
        self._after(self.plan.checkpoint_us, self._checkpoint)

    # Processes.

    def _start(self, address: Address) -> None:
        self._starting.discard(address)
        if address in self._at:
            return
        kind, number = address
        note = self.history.append
        if kind == "worker":
            nonce = self._random.getrandbits(40) << 20
            session = self._machines.session(self.job, number, nonce, note)
            process = Process(address, session, nonce)
            effects = session.start()
        elif kind == "shard":
            disk = self._disks[address]
            pages = self._new_pages(number)
            shard = self._machines.shard(self.job, number, pages, note)
            process = Process(address, shard, disk.open(self._random, self._draw() < 0.5), pages)
            states = [state for state, _ in disk.checkpoints.values()]
            effects = shard.opened(process.incarnation, states, list(disk.records))
        else:
            disk = self._disks[address]
            coordinator = self._machines.coordinator(self.job, note)
            process = Process(address, coordinator, disk.open(self._random, self._draw() < 0.5))
            effects = coordinator.opened(list(disk.records))
        self._at[address] = process
        self._carry(process, effects)

    def _start_later(self, address: Address, delay_us: int) -> None:
        if address not in self._starting:
            self._starting.add(address)
            self._after(delay_us, partial(self._start, address))

    def _kill(self, process: Process) -> None:
        process.alive = False
        if self._at.get(process.address) is process:
            del self._at[process.address]
        elif process in self._zombies:
            self._zombies.remove(process)

    def _replace(self, _: Process, effect: Replace) -> None:
        """The coordinator gave this one up. Half the time it cannot be killed, and goes on beside its successor."""
        process = self._at.get(effect.who)
        if process is None:
            if effect.who not in self._starting:
                self._start_later(effect.who, RESTART_US)
            return
        if self._calm or self._draw() < 0.5:
            self._kill(process)
        else:
            del self._at[effect.who]
            self._zombies.append(process)
        self._start_later(effect.who, RESTART_US)

    def _stop(self, process: Process, effect: Stop) -> None:
        self._finished = True
        raise _Over

    # Disks and computing.

    def _append(self, process: Process, effect: Append) -> None:
        disk = self._disks[process.address]
        if disk.owner == process.incarnation and not disk.append(effect.record):
            self._after(0, partial(self._failed_append, process, effect.record.lsn))

    def _failed_append(self, process: Process, lsn: int) -> None:
        machine: Any = process.machine
        if process.alive:
            self._carry(process, machine.log_failed(lsn))

    def _sync(self, process: Process, effect: Sync) -> None:
        disk = self._disks[process.address]
        if disk.owner == process.incarnation and disk.next_lsn <= effect.lsn:
            return  # a record of it was refused, which is told
        slow = self._draw() < self.plan.slow_syncs and not self._calm
        delay_us = SYNC_US + int(self._draw() * (SLOW_SYNC_US if slow else SYNC_US))
        self._after(delay_us, partial(self._synced, process, effect.lsn))

    def _synced(self, process: Process, lsn: int) -> None:
        disk = self._disks[process.address]
        machine: Any = process.machine
        if not process.alive or disk.owner != process.incarnation:
            return
        if process.hung_until_us > self.now_us:
            self._put(process.hung_until_us, None, partial(self._synced, process, lsn))
            return
        disk.sync(lsn)
        self._carry(process, machine.synced(lsn))

    def _write_checkpoint(self, process: Process, effect: WriteCheckpoint) -> None:
        self._after(int(self._draw() * WRITE_US), partial(self._written, process, effect))

    def _written(self, process: Process, effect: WriteCheckpoint) -> None:
        disk = self._disks[process.address]
        machine: Any = process.machine
        if not process.alive or disk.owner != process.incarnation:
            return
        if disk.full:
            self._carry(process, machine.checkpoint_failed(effect.state.number))
        else:
            disk.checkpoints[effect.state.number] = (effect.state, effect.snapshot)
            self._carry(process, machine.checkpoint_written(effect.state.number))

    def _load(self, process: Process, effect: Load) -> None:
        self._after(WRITE_US, partial(self._loaded, process, effect.number))

    def _loaded(self, process: Process, number: int | None) -> None:
        disk = self._disks[process.address]
        machine: Any = process.machine
        if not process.alive or disk.owner != process.incarnation:
            return
        state, snapshot = disk.checkpoints[number] if number is not None else (None, None)
        records = disk.records_after(state.lsn if state is not None else 0)
        self._carry(process, machine.loaded(Loaded(state, snapshot, records)))

    def _retire(self, process: Process, effect: Retire) -> None:
        disk = self._disks[process.address]
        if disk.owner == process.incarnation:
            disk.retire(effect.number, effect.lsn)

    def _compute(self, process: Process, effect: Compute) -> None:
        delay_us = COMPUTE_US + int(self._draw() * COMPUTE_US) + process.slow_us
        self._after(delay_us, partial(self._computed, process, effect))

    def _computed(self, process: Process, effect: Compute) -> None:
        machine: Any = process.machine
        if not process.alive:
            return
        term, seq, lane, batch, values = effect
        count = self.plan.parts
        effects: list[Effect] = []
        for shard in range(self.job.shards):
            for part, payload in enumerate(gradient(self.job, values, batch, shard, count)):
                effects += machine.computed(term, seq, lane, shard, part, count, payload)
        self._events += self.job.shards * count - 1  # each part is one, their timer none
        self._carry(process, effects)

    # Faults.

    def _begin(self, fault: Fault) -> None:
        for address in fault.who:
            self._hit(fault, address)

    def _hit(self, fault: Fault, address: Address) -> None:
        process = self._at.get(address)
        if fault.kind == "join":
            self._start_later(address, 0)
        elif fault.kind == "disk_full":
            self._disks[address].full = True
            self._after(fault.for_us, partial(setattr, self._disks[address], "full", False))
        elif process is not None:
            self._hit_process(fault, process)

    def _hit_process(self, fault: Fault, process: Process) -> None:
        if fault.kind in ("crash", "power"):
            self._kill(process)
            self.killed += 1
            self._tell_of_death(process)
            self._start_later(process.address, fault.for_us)
        elif fault.kind == "leave":
            assert isinstance(process.machine, Session)
            self._carry(process, process.machine.leave())
            self._kill(process)
        elif fault.kind == "partition":
            self._cut.append(process)
            self._after(fault.for_us, partial(self._cut.remove, process))
        elif fault.kind == "clock_jump":
            process.ahead_us += fault.amount
        elif fault.kind == "hang":
            process.hung_until_us = self.now_us + fault.for_us
        elif fault.kind == "slow":
            process.slow_us = fault.amount

    def _tell_of_death(self, process: Process) -> None:
        """Half the time the engine sees that a worker's process ended; else only its silence tells."""
        coordinator = self._at.get(COORDINATOR)
        if process.address[0] == "worker" and coordinator is not None and self._draw() < 0.5:
            assert isinstance(coordinator.machine, Coordinator) and isinstance(process.machine, Session)
            lost = coordinator.machine.worker_lost(process.address[1], process.machine.nonce)
            self._carry(coordinator, lost)

    def _calm_down(self) -> None:
        """No more faults: messages arrive, and whoever should be there is started. Zombies end some time later."""
        self._calm = True
        self._odd = 0.0
        self._after(ZOMBIE_US, self._end_zombies)
        for process in self._at.values():
            process.slow_us = 0
        for address in (*self._disks, ("worker", 0)):
            if address not in self._at:
                self._start_later(address, 0)

    def _end_zombies(self) -> None:
        for zombie in list(self._zombies):
            self._kill(zombie)

    # The end.

    def _expected_step(self, shard: int, step: int, count: int) -> Payload:
        return self._right[step][shard]

    def _expected_count(self, shard: int, step: int, count: int) -> Payload:
        return count

    def _judge_end(self) -> list[Violation]:
        if not self._finished:
            states = {address: self._describe(process) for address, process in self._at.items()}
            return [Violation("I11 progress", f"stuck {PATIENCE_US / 1e6:.0f} s after the last fault: {states}", -1)]
        problems = [self._judge_shard(shard) for shard in range(self.job.shards)]
        return [problem for problem in problems if problem is not None]

    def _describe(self, process: Process) -> str:
        machine = process.machine
        if isinstance(machine, Coordinator):
            return f"{machine.phase.name} term {machine.term}"
        return f"term {machine.term} at {machine.seq if isinstance(machine, Session) else machine.open_term}"

    def _judge_shard(self, shard: int) -> Violation | None:
        """The final value, as it is in memory; with a log also as it comes back after everything loses power."""
        process = self._at.get(("shard", shard))
        if self.job.consistency == "bsp":
            right = self._expected_step(shard, self.job.steps, 0)
        else:
            right = self._expected_count(shard, 0, count_of(range(self.job.batches)))
        pages = process.pages if process is not None and self._is_loaded(process) else None
        if pages is not None and pages.value != right:
            problem = f"shard {shard} ends with {pages.value!r}, not {right!r}"
            return Violation("I9 exactly once, I10 the same", problem, -1)
        return self._judge_recovery(shard, right) if self.job.durability == "wal" else None

    def _is_loaded(self, process: Process) -> bool:
        return isinstance(process.machine, Shard) and process.machine.open_term != 0

    def _judge_recovery(self, shard: int, right: Payload) -> Violation | None:
        """What the disk alone gives back: its newest checkpoint, and the durable records after it."""
        disk = self._disks["shard", shard]
        state, value = max(disk.checkpoints.values(), key=lambda pair: pair[0].lsn, default=(None, None))
        lsn = state.lsn if state is not None else 0
        records = [record for record in disk.records[: disk.synced] if record.lsn > lsn]
        if self.job.logging == "command" and self.job.consistency == "bsp":
            steps = records[-1].lsn if records else lsn
            right, recovered = self.job.steps, steps
        else:
            pages = self._new_pages(shard)
            pages.restore(value)
            for record in records:
                if isinstance(record, StepRecord | PushRecord) and record.update is not None:
                    pages.apply(record.update)
            recovered = pages.value  # type: ignore[assignment]
        if recovered == right:
            return None
        return Violation("I6 acknowledged means durable", f"shard {shard} recovers {recovered!r}, not {right!r}", -1)

    def _new_pages(self, shard: int) -> Pages:
        return StepPages(shard) if self.job.consistency == "bsp" else CountPages()


_DO: dict[type, Callable[[Simulation, Process, Any], None]] = {
    Append: Simulation._append,
    Sync: Simulation._sync,
    WriteCheckpoint: Simulation._write_checkpoint,
    Load: Simulation._load,
    Retire: Simulation._retire,
    Compute: Simulation._compute,
    Replace: Simulation._replace,
    Stop: Simulation._stop,
}


def _where(error: Exception) -> str:
    frames = extract_tb(error.__traceback__)
    return f"{error!r} at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
