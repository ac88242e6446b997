"""The physical plan: which instruction runs when, and where in the arena every storage lies.

The arena is one allocation. A storage lives in it for one or more *lives*: the first from the operator that
computes it, later ones from a recomputation or a page-in. A life has a fixed offset and a span of
instructions; two lives that overlap in time never overlap in the arena, except that a life may take over the
frame of another that ends at the very instruction that begins it (`Life.reuses`, an in-place operator).

Instruction i runs before instruction i + 1. I/O is asynchronous: `PageOut` and `PageIn` start a transfer and
`Await` blocks until it is done. The frame of a life is occupied from `born` to `dies`, both inclusive:
 - computed: from the Compute that writes it, to its last reading Compute, or the Await of its page-out;
 - paged in: from the PageIn, to its last reading Compute, or the Await of its page-out when it is dirty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Origin = Literal["compute", "recompute", "page-in"]
Action = Literal["keep", "recompute", "page"]


@dataclass(frozen=True, slots=True)
class Life:
    """One stay of a storage in the arena. `id` is its index in `PhysicalPlan.lives`; offsets in bytes."""

    id: int
    storage: int
    offset: int
    nbytes: int
    born: int  # index of the instruction that begins it
    dies: int  # index of the last instruction during which the frame is occupied
    origin: Origin
    reuses: int = -1  # the life whose frame this one takes over in place, or -1


@dataclass(frozen=True, slots=True)
class Compute:
    """Run an operator. `run` 0 is the first time, above it recomputations.

    `reads` and `writes` are life ids for storages in the arena, aligned with no particular order; storages
    that are external and resident have no life. A recomputation may write a storage nobody needs again: it
    still gets a life that is born and dies at this instruction.
    """

    operator: int
    run: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PageOut:
    """Start writing a life's frame to its place in the page file."""

    life: int


@dataclass(frozen=True, slots=True)
class PageIn:
    """Start reading a storage from the page file into the frame of a new life."""

    life: int


@dataclass(frozen=True, slots=True)
class Await:
    """Block until the page-out or page-in of a life is done."""

    life: int
    direction: Literal["in", "out"]


Instruction = Compute | PageOut | PageIn | Await


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for a storage between two of its uses, and why, for people to read.

    `after` and `before` are operator ids; -1 for "before the step" or "after the step" (optimizer state
    that rests on disk between steps). `cost_us` is what the action adds to the step.
    """

    storage: int
    after: int
    before: int
    action: Action
    cost_us: float
    why: str


@dataclass(frozen=True, slots=True)
class PhysicalPlan:
    """A plan that can be executed. Bytes and microseconds.

    predicted_peak_bytes = resident_bytes + arena_bytes + scratch_bytes, where resident_bytes are external
    storages that stay in memory for the whole step and scratch_bytes is the most that a kernel allocates
    beside its results (workspace), plus results that have to be copied into the arena.
    """

    instructions: tuple[Instruction, ...]
    lives: tuple[Life, ...]
    decisions: tuple[Decision, ...]
    arena_bytes: int
    resident_bytes: int
    scratch_bytes: int
    spilled: tuple[int, ...]  # external storages that rest in the page file between their uses
    page_file_bytes: int
    budget_bytes: int | None  # None: no limit was asked for
    predicted_time_us: float
    unlimited_time_us: float  # the same order with everything kept: what memory pressure adds is the difference
    lower_bound_time_us: float  # no plan with this order of operators within the budget is faster (proven)
    planning_s: float = 0.0
    rules: tuple[str, ...] = ()  # planner rules that were on, in order
    estimates: tuple[tuple[str, int], ...] = field(default=())  # operators by source: ("measured", 180)

    @property
    def predicted_peak_bytes(self) -> int:
        return self.arena_bytes + self.resident_bytes + self.scratch_bytes
