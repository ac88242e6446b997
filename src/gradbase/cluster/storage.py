"""Where the steward keeps what the machines want kept: nowhere, or in the directory of a store."""

from __future__ import annotations

from collections.abc import Callable

from gradbase.store.machine import messages as m


class Volatile:
    """Durability `none`: a record is as good as kept once it was handed over, and gone with the process."""

    def open(self, owner: m.Address) -> tuple[int, tuple[m.CheckpointState, ...], tuple[m.Record, ...]]:
        return 1, (), ()

    def append(self, owner: m.Address, record: m.Record) -> None:
        pass

    def sync(self, owner: m.Address, lsn: int, done: Callable[[int | None], None]) -> None:
        done(lsn)

    def write_checkpoint(self, owner: m.Address, state: m.CheckpointState, done: Callable[[bool], None]) -> None:
        done(False)

    def load(self, owner: m.Address, number: int | None) -> m.Loaded:
        assert number is None, "nothing was ever kept"
        return m.Loaded(None, None, ())

    def retire(self, owner: m.Address, number: int, lsn: int) -> None:
        pass

    def close(self) -> None:
        pass
