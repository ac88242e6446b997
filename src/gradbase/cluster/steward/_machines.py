"""The machines of a job, and the post between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gradbase.store.machine import Notes, new_coordinator, new_session, new_shard
from gradbase.store.machine import messages as m
from gradbase.store.machine.consistency import Job

CarryOut = Mapping[type, Callable[[m.Address, Any], None]]


class Machines:
    """Shards, coordinator, and a session for every slot that is taken.

    `carry_out`, set before anything happens, has for every kind of effect but `Send` what is to be done. `on_read` is
    called with the slot of a reader before its session is told.
    """

    carry_out: CarryOut

    def __init__(
        self,
        job: Job,
        pages: Callable[[int], m.Pages],
        note: Notes | None,
        on_read: Callable[[int, m.PullReply], None],
    ) -> None:
        self.job, self._note, self._on_read = job, note, on_read
        self.coordinator = new_coordinator(job, note)
        self.shards = [new_shard(job, k, pages(k), note) for k in range(job.shards)]
        self.sessions: dict[int, Any] = {}
        self._mail: deque[tuple[m.Address, m.Message]] = deque()

    def open(self, storage: Callable[[m.Address], tuple[int, Any, Any]]) -> None:
        """Hand every machine what its storage kept."""
        for k, shard in enumerate(self.shards):
            self.do(("shard", k), shard.opened(*storage(("shard", k))))
        _, _, records = storage(m.COORDINATOR)
        self.do(m.COORDINATOR, self.coordinator.opened(records))

    def enroll(self, slot: int, nonce: int) -> None:
        """Begin a session for whoever has this slot now."""
        self.sessions[slot] = new_session(self.job, slot, nonce, self._note)
        self.do(("worker", slot), self.sessions[slot].start())

    def lose(self, slot: int, nonce: int) -> None:
        """Its session is gone: the coordinator begins a new term without it."""
        self.sessions.pop(slot, None)
        self.do(m.COORDINATOR, self.coordinator.worker_lost(slot, nonce))

    def at(self, address: m.Address) -> Any:
        """The machine there; None where a session has ended."""
        kind, number = address
        if kind == "coordinator":
            return self.coordinator
        return self.shards[number] if kind == "shard" else self.sessions.get(number)

    def do(self, owner: m.Address, effects: list[m.Effect]) -> None:
        """Carry out what a machine asks for; its messages are delivered when it is their turn."""
        for effect in effects:
            if isinstance(effect, m.Send):
                self._mail.append((effect.to, effect.message))
            else:
                self.carry_out[type(effect)](owner, effect)

    def deliver(self) -> None:
        """Deliver messages until none is left."""
        while self._mail:
            to, message = self._mail.popleft()
            machine = self.at(to)
            if machine is None:
                continue  # it died; whoever needs its answer is told by a new term
            if isinstance(message, m.PullReply):
                self._on_read(to[1], message)
            self.do(to, machine.receive(message))

    @property
    def expecting(self) -> bool:
        """Whether there is mail."""
        return bool(self._mail)

    def tick(self, now_us: int) -> None:
        self.do(m.COORDINATOR, self.coordinator.tick(now_us))
        for k, shard in enumerate(self.shards):
            self.do(("shard", k), shard.tick(now_us))
        for slot, session in list(self.sessions.items()):
            self.do(("worker", slot), session.tick(now_us))

    def take_checkpoint(self) -> None:
        self.do(m.COORDINATOR, self.coordinator.take_checkpoint())

    def shorten(self, steps: int) -> None:
        """The job is shorter than was thought; the machines find that it is done."""
        self.job = replace(self.job, steps=min(steps, self.job.steps))
        for machine in (self.coordinator, *self.shards, *self.sessions.values()):
            machine.job = self.job

    @property
    def finished(self) -> bool:
        """No session has anything more to do."""
        return all(session.finished for session in self.sessions.values())

    @property
    def steps_done(self) -> int:
        """The steps that all shards have; under ssp and asp as many batches as there are lanes count as one."""
        if self.job.consistency == "bsp":
            return max(min(shard.version for shard in self.shards), 0)
        used = [sum(high - low for low, high in shard.used.ranges()) for shard in self.shards]
        return min(used) // self.job.lanes
