"""Machines without an engine: messages in, effects out, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from gradbase.store.machine import Job, Limits, Shard, new_shard
from gradbase.store.machine.messages import Effect, Fence, Load, Loaded, Message, Open, Payload, Pull, Push, Send

T = TypeVar("T")


class ListPages:
    """Values are the list of all updates, an update is the list of what was pushed, in lane order."""

    def __init__(self) -> None:
        self.values: list[Payload] = []

    def read(self, selection: object) -> Payload:
        return list(self.values)

    def reduce(self, lanes: Sequence[tuple[Payload, ...]]) -> Payload:
        return list(lanes)

    def apply(self, update: Payload) -> None:
        self.values.append(update)

    def snapshot(self) -> Payload:
        return list(self.values)

    def restore(self, snapshot: Payload | None) -> None:
        self.values = list(snapshot) if isinstance(snapshot, list) else []


def job(consistency: Any = "bsp", **changes: Any) -> Job:
    settings: dict[str, Any] = dict(lanes=2, shards=2, steps=8, workers_max=3, limits=Limits(unsynced_max=2))
    settings |= {"logging": "command" if consistency == "bsp" else "physical", **changes}
    return Job(consistency=consistency, **settings)


def open_shard(job: Job, clock: int = 0) -> tuple[Shard, ListPages]:
    """Shard 0, serving term 1 to sessions 1 of workers 0 and 1."""
    pages = ListPages()
    shard = new_shard(job, 0, pages)
    load_nothing(shard, shard.opened(1, (), ()))
    load_nothing(shard, serve(shard, 1, 0, clock))
    return shard, pages


def load_nothing(shard: Shard, effects: list[Effect]) -> None:
    """If the shard asked for what it begins with: the values of the job's start."""
    if asked(effects, Load):
        shard.loaded(Loaded(None, None, ()))


def serve(shard: Shard, term: int, version: int = 0, clock: int = 0) -> list[Effect]:
    """Fence the shard for this term and open it."""
    shard.receive(Fence(term, shard.incarnation))
    return shard.receive(Open(term, shard.incarnation, version, ((0, 1, clock), (1, 1, clock))))


def push(worker: int, seq: int, lane: int = 0, batch: int = 0, payload: Any = None, **changes: Any) -> Push:
    payload = f"g{worker}.{seq}" if payload is None else payload
    return Push(1, worker, 1, seq, lane, batch, 0, 1, payload)._replace(**changes)


def pull(worker: int, seq: int, term: int = 1) -> Pull:
    return Pull(term, worker, 1, seq)


def sent(effects: list[Effect], kind: type[T]) -> list[T]:
    """The messages of this kind among what is sent."""
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def asked(effects: list[Effect], kind: type[T]) -> list[T]:
    """The effects of this kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def to_worker(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send) and effect.to[0] == "worker"]
