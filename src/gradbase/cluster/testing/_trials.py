"""What the suite asks of an engine, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gradbase.store.machine import Job
from gradbase.store.machine.notes import Note

Kind = Literal["worker", "shard", "coordinator"]


@dataclass(frozen=True)
class Death:
    """Kill -9 these processes at once when about `share` (0 to 1) of the job is done; whatever the engine does, it
    does.
    """

    who: tuple[tuple[Kind, int], ...]
    share: float


@dataclass(frozen=True)
class Trial:
    job: Job
    workers: int
    deaths: tuple[Death, ...] = ()


@dataclass(frozen=True)
class Result:
    """`digest`: of the final values of all shards, bit for bit. `killed`: how many processes were. `history`: all
    notes, each machine's in its order; over a restart of everything those of before come first.
    """

    digest: str
    killed: int
    history: Sequence[Note]


class Engine(Protocol):
    """`mortal`: the kinds of processes that can be killed one by one. Where shards and coordinator live in one
    process, that is "coordinator": its death takes them all, and the engine is started again on the same directory.
    """

    mortal: frozenset[Kind]

    def run(self, trial: Trial) -> Result:
        """Run the job to its end, through all deaths. Every run starts from the same values and the same batches."""
