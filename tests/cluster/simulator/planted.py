"""Bugs to plant. Each is a small change to a machine or to the disk; the simulator has to find every one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gradbase.cluster.simulator import Machines, job_of
from gradbase.cluster.simulator._disk import Disk
from gradbase.store.machine import Coordinator, Job, Session, Shard, new_coordinator
from gradbase.store.machine._clocks import ClockShard
from gradbase.store.machine._ranges import NumberSet
from gradbase.store.machine._sessions import ClockSession, StepSession
from gradbase.store.machine._steps import StepShard
from gradbase.store.machine.messages import Effect, Loaded, Pull, PullReply, Push, Record, Send


class _NothingUsed(NumberSet):
    def __contains__(self, number: int) -> bool:
        return False


class NoDedupeShard(ClockShard):
    """A push that was applied already is applied again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.used = _NothingUsed()

    def _push(self, message: Push) -> None:
        super()._push(message._replace(seq=max(message.seq, self.clock[message.worker])))


class NoBatchDedupeShard(ClockShard):
    """A batch that is leased again is applied again."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.used = _NothingUsed()


class EagerStepShard(StepShard):
    """Says that a step is durable when its record was appended."""

    def _append(self, record: Any) -> None:
        super()._append(record)
        self.durable_lsn = self.lsn


class EagerClockShard(ClockShard):
    """Says that a push is durable when its record was appended."""

    def _append(self, record: Any) -> None:
        super()._append(record)
        self._acknowledge(record.lsn)


class UnfencedStepShard(StepShard):
    """Takes messages of every term and session."""

    def _push(self, message: Push) -> None:
        super()._push(message._replace(term=self.open_term, session=self._sessions[message.worker]))

    def _pull(self, message: Pull) -> None:
        super()._pull(message._replace(term=self.open_term, session=self._sessions[message.worker]))


class UnfencedClockShard(ClockShard):
    """Takes messages of every term and session."""

    def _push(self, message: Push) -> None:
        super()._push(message._replace(term=self.open_term, session=self._sessions[message.worker]))

    def _pull(self, message: Pull) -> None:
        super()._pull(message._replace(term=self.open_term, session=self._sessions[message.worker]))


class LateStepSession(StepSession):
    """Takes any answer for the one it waits for."""

    def _awaited(self, message: PullReply) -> bool:  # type: ignore[override]
        return True


class LateClockSession(ClockSession):
    """Takes any answer for the one it waits for."""

    def _awaited(self, message: PullReply) -> bool:  # type: ignore[override]
        return True


class ArrivalOrderShard(StepShard):
    """Sums gradients as they come, not in lane order."""

    def _whole(self, message: Push) -> bool:
        free = self._staged.index(None)
        return super()._whole(message._replace(lane=free))


class TooStaleShard(ClockShard):
    """Lets a reader be one step further ahead than allowed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bound += 1


class ImpatientShard(ClockShard):
    """Answers a read before the reader's own pushes are in."""

    def _serve(self, message: Pull) -> bool:
        served = super()._serve(message._replace(seq=min(message.seq, self.clock[message.worker])))
        if served:
            reply = self._out.pop()
            assert isinstance(reply, Send) and isinstance(reply.message, PullReply)
            self._out.append(reply._replace(message=reply.message._replace(seq=message.seq)))
        return served


class ShortReplayShard(ClockShard):
    """Leaves out the last record of the log when it recovers."""

    def _restore(self, loaded: Loaded) -> None:
        super()._restore(loaded._replace(records=list(loaded.records)[:-1]))


class HastyCheckpointShard(ClockShard):
    """Writes a checkpoint that is ahead of its log."""

    def _write_checkpoint(self) -> None:
        durable, self.durable_lsn = self.durable_lsn, self.lsn
        super()._write_checkpoint()
        self.durable_lsn = durable


class OpenDisk(Disk):
    """Does not keep older incarnations from writing."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _Anyone(value) if name == "owner" else value)


class _Anyone(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _forgetful_coordinator(*arguments: Any) -> Coordinator:
    """Does not remember which terms were used before it was started again."""
    coordinator = new_coordinator(*arguments)
    opened = coordinator.opened

    def forget(records: Iterable[Record]) -> list[Effect]:
        effects = opened(records)
        coordinator.term = 0
        return effects

    coordinator.opened = forget  # type: ignore[method-assign]
    return coordinator


def _shards(step: type[Shard], clock: type[Shard]) -> Machines:
    return Machines(shard=lambda job, *rest: (step if job.consistency == "bsp" else clock)(job, *rest))


def _sessions(step: type[Session], clock: type[Session]) -> Machines:
    return Machines(session=lambda job, *rest: (step if job.consistency == "bsp" else clock)(job, *rest))


@dataclass(frozen=True)
class Planted:
    """`seeds_max`: within so many seeds it must be found; `job`: in runs of this job, where it can show at all."""

    machines: Machines
    seeds_max: int = 200
    job: Job | None = None


LOGGED = job_of(3, 3, 12, "asp", 0, "wal", "physical")

PLANTED: dict[str, Planted] = {
    "the dedupe table is dropped": Planted(_shards(StepShard, NoDedupeShard), 50),
    "a batch leased again is applied again": Planted(_shards(StepShard, NoBatchDedupeShard)),
    "acknowledged before the sync": Planted(_shards(EagerStepShard, EagerClockShard), 50),
    "the fence is skipped, ssp and asp": Planted(_shards(StepShard, UnfencedClockShard), 400),
    "the fence is skipped, bsp": Planted(_shards(UnfencedStepShard, ClockShard), 400),
    "a late reply is taken": Planted(_sessions(LateStepSession, LateClockSession)),
    "gradients are summed as they arrive": Planted(_shards(ArrivalOrderShard, ClockShard), 50),
    "one step too stale": Planted(_shards(StepShard, TooStaleShard)),
    "own writes are not waited for": Planted(_shards(StepShard, ImpatientShard), 500, LOGGED),
    "replay stops one record early": Planted(_shards(StepShard, ShortReplayShard), 400),
    "a checkpoint ahead of its log": Planted(_shards(StepShard, HastyCheckpointShard)),
    "a zombie's storage is not fenced": Planted(Machines(disk=OpenDisk), 500, LOGGED),
    "terms are used twice": Planted(Machines(coordinator=_forgetful_coordinator)),
}
