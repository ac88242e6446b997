"""Values that show every mistake: under bsp a hash of all that was applied, in order; else a digit for every batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from gradbase.store.machine import Job
from gradbase.store.machine.history import DIGIT_BITS
from gradbase.store.machine.messages import Payload

# Python's hash of a tuple of integers is the same in every process; only that of strings is not.


class StepPages:
    """bsp: a value is a hash of the value before and the update; an update is a hash of all pushes in lane order."""

    def __init__(self, shard: int) -> None:
        self._start = shard
        self.value: Payload = shard

    def read(self, selection: object) -> Payload:
        return self.value

    def reduce(self, lanes: Sequence[tuple[Payload, ...]]) -> Payload:
        return hash(tuple(lanes))

    def apply(self, update: Payload) -> None:
        self.value = hash((self.value, update))

    def snapshot(self) -> Payload:
        return self.value

    def restore(self, snapshot: Payload | None) -> None:
        self.value = self._start if snapshot is None else snapshot


class CountPages:
    """ssp, asp: a number with one hexadecimal digit a batch, which says how often the batch was used."""

    def __init__(self) -> None:
        self.value: int = 0

    def read(self, selection: object) -> Payload:
        return self.value

    def reduce(self, lanes: Sequence[tuple[Payload, ...]]) -> Payload:
        return sum(int(part) for parts in lanes for part in parts)  # type: ignore[call-overload]

    def apply(self, update: Payload) -> None:
        assert isinstance(update, int), update
        self.value += update

    def snapshot(self) -> Payload:
        return self.value

    def restore(self, snapshot: Payload | None) -> None:
        assert snapshot is None or isinstance(snapshot, int), snapshot
        self.value = 0 if snapshot is None else snapshot


def gradient(job: Job, values: tuple[Payload, ...], batch: int, shard: int, parts: int) -> tuple[Payload, ...]:
    """The parts of what one micro-batch gives for one shard, computed on these values of all shards."""
    if job.consistency == "bsp":
        return tuple(hash((values, batch, shard, part)) for part in range(parts))
    return (1 << (DIGIT_BITS * batch),) + (0,) * (parts - 1)


@lru_cache(maxsize=4096)
def unfailed(job: Job, parts: int) -> tuple[tuple[Payload, ...], ...]:
    """bsp: the values of all shards after 0, 1, ... steps, computed here and now in a plain loop."""
    pages = [StepPages(shard) for shard in range(job.shards)]
    versions = [tuple(page.value for page in pages)]
    for step in range(job.steps):
        values = versions[-1]
        for shard, page in enumerate(pages):
            batches = range(step * job.lanes, (step + 1) * job.lanes)
            page.apply(page.reduce([gradient(job, values, batch, shard, parts) for batch in batches]))
        versions.append(tuple(page.value for page in pages))
    return tuple(versions)
