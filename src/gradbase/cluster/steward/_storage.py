"""What the steward needs of whoever keeps records and checkpoints."""

from __future__ import annotations

from typing import Protocol

from gradbase.cluster.storage import Events
from gradbase.store.machine import messages as m


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
