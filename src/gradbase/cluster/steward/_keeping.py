"""What is to be kept: from the machines to the storage, and what the storage reports back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradbase.cluster.operations import Operation
from gradbase.cluster.steward._loop import Loop
from gradbase.cluster.steward._machines import Machines
from gradbase.cluster.steward._storage import Storage
from gradbase.cluster.storage import Events
from gradbase.common.errors import GradbaseError
from gradbase.store.log import DiskFullError
from gradbase.store.machine import messages as m


class Keeping:
    """`is_ahead(step)`: some lane has left that step behind, and what its codecs left out with it."""

    def __init__(
        self,
        storage: Storage,
        machines: Machines,
        loop: Loop,
        is_ahead: Callable[[int], bool],
        on_warning: Callable[[str], None],
    ) -> None:
        self._storage, self._machines, self._loop = storage, machines, loop
        self._is_ahead, self._on_warning = is_ahead, on_warning
        storage.listen(Events(self._synced, self._log_failed, self._checkpointed, on_warning))

    @property
    def carry_out(self) -> Mapping[type, Callable[[m.Address, Any], None]]:
        """What is done for each kind of effect that is for the storage."""
        return {
            m.Append: lambda owner, effect: self._storage.append(owner, effect.record),
            m.Sync: lambda owner, effect: self._storage.sync(owner, effect.lsn),
            m.WriteCheckpoint: self._write_checkpoint,
            m.Load: self._load,
            m.Retire: lambda owner, effect: self._storage.retire(owner, effect.number, effect.lsn),
        }

    def _write_checkpoint(self, owner: m.Address, effect: m.WriteCheckpoint) -> None:
        assert isinstance(effect.snapshot, Operation), "a snapshot is a place in the shard's queue"
        effect.snapshot.work = lambda: self._checkpoint(owner, effect.state)

    def _checkpoint(self, owner: m.Address, state: m.CheckpointState) -> None:
        """Unless a lane is ahead of the version already: then its residuals are, and the next checkpoint does it."""
        if self._is_ahead(state.step):
            self._checkpointed(owner, state.number, False)
        else:
            self._storage.write_checkpoint(owner, state)

    def _load(self, owner: m.Address, effect: m.Load) -> None:
        loaded = self._storage.load(owner, effect.number)
        self._machines.do(owner, self._machines.shards[owner[1]].loaded(loaded))

    # -- reports, which come on the storage's threads

    def _synced(self, owner: m.Address, lsn: int) -> None:
        self._loop.call(lambda: self._machines.do(owner, self._machines.at(owner).synced(lsn)))

    def _log_failed(self, owner: m.Address, lsn: int, error: GradbaseError) -> None:
        """A full disk is waited for; a broken one ends the job, which can then be resumed from what is durable."""

        def failed() -> None:
            if not isinstance(error, DiskFullError):
                raise error
            self._on_warning(f"warning: {error.problem}; the job waits for room")
            self._machines.do(owner, self._machines.at(owner).log_failed(lsn))

        self._loop.call(failed)

    def _checkpointed(self, owner: m.Address, number: int, good: bool) -> None:
        shard = self._machines.shards[owner[1]]
        tell = shard.checkpoint_written if good else shard.checkpoint_failed
        self._loop.call(lambda: self._machines.do(owner, tell(number)))
