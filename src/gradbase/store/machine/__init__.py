"""The store's state machines: pure, single-threaded, without I/O. The protocol is in ../README.md.

`messages` has what they say, what they ask of an engine, and `Pages`, which an engine gives them.
"""

from __future__ import annotations

from gradbase.store.machine._clocks import ClockShard
from gradbase.store.machine._coordinator import Coordinator, Member, Phase, Server
from gradbase.store.machine._coordinators import ClockCoordinator, StepCoordinator
from gradbase.store.machine._session import Session
from gradbase.store.machine._sessions import ClockSession, StepSession
from gradbase.store.machine._shard import Shard
from gradbase.store.machine._steps import StepShard
from gradbase.store.machine.consistency import Job, Limits, parse_consistency
from gradbase.store.machine.messages import Pages
from gradbase.store.machine.notes import Notes

__all__ = [
    "Coordinator",
    "Job",
    "Limits",
    "Member",
    "Pages",
    "Phase",
    "Server",
    "Session",
    "Shard",
    "new_coordinator",
    "new_session",
    "new_shard",
    "parse_consistency",
]


def new_shard(job: Job, shard: int, pages: Pages, note: Notes | None = None) -> Shard:
    """The shard of this number, as the job's consistency needs it. It is to be `opened` first."""
    kind = StepShard if job.consistency == "bsp" else ClockShard
    return kind(job, shard, pages, note)


def new_session(job: Job, worker: int, nonce: int, note: Notes | None = None) -> Session:
    """A process in slot `worker`; `nonce` is its own random number, never used before. It is to be `start`ed first."""
    kind = StepSession if job.consistency == "bsp" else ClockSession
    return kind(job, worker, nonce, note)


def new_coordinator(job: Job, note: Notes | None = None) -> Coordinator:
    """The one that hands out terms. It is to be `opened` with its log first."""
    return (StepCoordinator if job.consistency == "bsp" else ClockCoordinator)(job, note)
