"""The servants of a job: those on their way, and those that count."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gradbase.cluster.channel import Channel
from gradbase.cluster.operations import Operation
from gradbase.cluster.steward._loop import Loop
from gradbase.cluster.worker import Figures
from gradbase.store.machine import messages as m


@dataclass(eq=False)
class Worker:
    """A servant. Once it has a slot, a session runs for it. `watched_*` belong to who watches its process."""

    channel: Channel
    death: int | None  # a descriptor that is readable once the process has ended
    pid: int | None
    can_apply: bool = False
    number: int = 0  # by which its launcher knows it
    slot: int = -1
    lane: int = -1  # the buffers that are its own under ssp and asp
    nonce: int = 0
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


class Crew:
    """`workers`: those that count, by slot. `expected`: so many wait for each other, so that the first term has them
    all. `hear` is called when a servant has said something, `lost` when one's process has ended or cannot be reached.
    """

    def __init__(
        self, loop: Loop, expected: int, hear: Callable[[Worker], None], lost: Callable[[Worker], None]
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self.expected = expected
        self._loop, self._on_message, self._on_death = loop, hear, lost
        self._arriving: set[Worker] = set()
        self._ready: list[Worker] = []
        self._under_way = False
        self._nonces = 0

    def admit(self, channel: Channel, death: int | None, pid: int | None) -> None:
        """A servant was started."""
        worker = Worker(channel, death, pid)
        self._arriving.add(worker)
        self._loop.listen(channel, lambda: self._on_message(worker))
        if death is not None:
            self._loop.listen(death, lambda: self._on_death(worker))

    def arrived(self, worker: Worker) -> list[Worker]:
        """It can work now; who is to be seated by that, if anybody is."""
        self._arriving.discard(worker)
        self._ready.append(worker)
        if not self._under_way and len(self._ready) < self.expected:
            return []
        self._under_way = True
        ready, self._ready = self._ready, []
        return ready

    def seat(self, worker: Worker, slots: int, free_lanes: set[int]) -> None:
        """Give it the first free slot and lane (-1: there is none), and a nonce that nobody had."""
        worker.slot = min(set(range(slots)) - self.workers.keys())
        worker.lane = min(free_lanes - {each.lane for each in self.workers.values()}, default=-1)
        self._nonces += 1
        worker.nonce = self._nonces
        self.workers[worker.slot] = worker

    def dismiss(self, worker: Worker) -> bool:
        """Forget a worker; False if that has been done."""
        known = worker in self._arriving or worker in self._ready or self.workers.get(worker.slot) is worker
        if known:
            self._arriving.discard(worker)
            self._ready = [each for each in self._ready if each is not worker]
            self.workers.pop(worker.slot, None)
            self._loop.forget(worker.channel)
            worker.channel.close()
            if worker.death is not None:
                self._loop.forget(worker.death)
                os.close(worker.death)
        return known

    def say(self, worker: Worker, *message: Any) -> None:
        """Send it a message; that it cannot be reached is told once everything else under way is done."""
        try:
            worker.channel.send(*message)
        except OSError:
            self._loop.call(lambda: self._on_death(worker))

    def send_home(self) -> None:
        """Everybody is told to stop, and none is known any more."""
        for worker in [*self.workers.values(), *self._arriving, *self._ready]:
            self._stop(worker)
        self.workers.clear()

    def _stop(self, worker: Worker) -> None:
        try:
            worker.channel.send("stop")
        except OSError:
            return  # it is gone already
        finally:
            worker.channel.close()

    @property
    def computing(self) -> bool:
        return any(worker.computing for worker in self.workers.values())
