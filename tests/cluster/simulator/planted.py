"""Bugs to plant. Each is a small change to a machine or to the disk; the simulator has to find every one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradbase.cluster.simulator import Machines
from gradbase.cluster.simulator._disk import Disk
from gradbase.store.machine import Coordinator, Session, Shard, new_coordinator
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

    def _durable(self) -> int:
        return self.lsn if self._wal else self._kept


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


PLANTED: dict[str, Machines] = {
    "the dedupe table is dropped": _shards(StepShard, NoDedupeShard),
    "a batch leased again is applied again": _shards(StepShard, NoBatchDedupeShard),
    "acknowledged before the sync": _shards(EagerStepShard, EagerClockShard),
    "the fence is skipped, ssp and asp": _shards(StepShard, UnfencedClockShard),
    "the fence is skipped, bsp": _shards(UnfencedStepShard, ClockShard),
    "a late reply is taken": _sessions(LateStepSession, LateClockSession),
    "gradients are summed as they arrive": _shards(ArrivalOrderShard, ClockShard),
    "one step too stale": _shards(StepShard, TooStaleShard),
    "own writes are not waited for": _shards(StepShard, ImpatientShard),
    "replay stops one record early": _shards(StepShard, ShortReplayShard),
    "a checkpoint ahead of its log": _shards(StepShard, HastyCheckpointShard),
    "a zombie's storage is not fenced": Machines(disk=OpenDisk),
    "terms are used twice": Machines(coordinator=_forgetful_coordinator),
}
