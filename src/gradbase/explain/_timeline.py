"""A plan laid out in time: when each instruction runs and how many bytes are live meanwhile.

The model is the planner's. One thread computes. Transfers of one direction run in the order in which they were
started (of both, when the tier is not duplex), each taking the tier's latency plus bytes over bandwidth. A
transfer slows computing by `compute_tax` of its time, charged where it starts; an await blocks until it is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from gradbase.ir.costs import Costs, Tier
from gradbase.ir.logical import LogicalPlan, StorageKind
from gradbase.ir.physical import Await, Compute, Life, PageIn, PageOut, PhysicalPlan

# What occupies memory, from the bottom of a stacked chart to its top. "resident" are external storages that
# never leave, "spilled" external ones while they are in memory, "scratch" the workspace of a running kernel.
LAYERS = ("resident", "activation", "gradient", "recomputed", "paged in", "spilled", "scratch")


@dataclass(frozen=True, slots=True)
class Timeline:
    """One entry per instruction; times in µs from the start of the step.

    `issued_us` is when the computing thread reaches the instruction and `left_us` when it goes on: a Compute's
    run, an Await's wait, the slowing of computing by a transfer. `start_us` and `end_us` are the same but for
    transfers, where they say when the channel is busy. `live_bytes` counts the arena during the instruction.
    """

    issued_us: tuple[float, ...]
    left_us: tuple[float, ...]
    start_us: tuple[float, ...]
    end_us: tuple[float, ...]
    live_bytes: tuple[int, ...]
    time_us: float


def timeline(logical: LogicalPlan, physical: PhysicalPlan, costs: Costs) -> Timeline:
    """Simulate a verified plan. Pure: the same arguments give the same timeline."""
    clock = _Clock(logical, physical, costs)
    rows = [clock.step(instruction) for instruction in physical.instructions]
    issued, left, start, end = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Timeline(issued, left, start, end, live_bytes(physical), clock.now_us)


class _Clock:
    def __init__(self, logical: LogicalPlan, physical: PhysicalPlan, costs: Costs) -> None:
        self.logical, self.physical, self.costs = logical, physical, costs
        self.now_us = 0.0
        self.free_us = {"out": 0.0, "in": 0.0}
        self.done_us: dict[tuple[int, str], float] = {}

    def step(self, instruction: Compute | PageOut | PageIn | Await) -> tuple[float, float, float, float]:
        """Advance over one instruction: when it was issued and left, and when its work starts and ends."""
        issued = self.now_us
        if isinstance(instruction, (PageOut, PageIn)):
            start, end = self.transfer(instruction.life, "out" if isinstance(instruction, PageOut) else "in")
            return issued, self.now_us, start, end
        if isinstance(instruction, Compute):
            self.now_us += self.costs.operators[instruction.operator].time_us
        else:
            self.now_us = max(self.now_us, self.done_us[instruction.life, instruction.direction])
        return issued, self.now_us, issued, self.now_us

    def transfer(self, life: int, direction: str) -> tuple[float, float]:
        tier = self.costs.tier
        assert tier is not None, "a plan that pages needs costs with a tier"
        storage = self.logical.storages[self.physical.lives[life].storage]
        duration_us = transfer_time_us(tier, storage.nbytes, direction)
        channel = direction if tier.duplex else "out"
        start = max(self.free_us[channel], self.now_us)
        self.free_us[channel] = self.done_us[life, direction] = start + duration_us
        self.now_us += tier.compute_tax * duration_us
        return start, start + duration_us


def transfer_time_us(tier: Tier, nbytes: int, direction: str) -> float:
    """How long one transfer occupies its channel; direction is "in" or "out"."""
    bandwidth = tier.read_bytes_per_us if direction == "in" else tier.write_bytes_per_us
    return tier.latency_us + nbytes / bandwidth


def live_bytes(physical: PhysicalPlan, lives: Iterable[Life] | None = None) -> tuple[int, ...]:
    """Bytes of the arena occupied during each instruction, by all lives or by some.

    A frame that is taken over in place counts once: for the old life at the shared instruction.
    """
    change = [0] * (len(physical.instructions) + 1)
    for life in physical.lives if lives is None else lives:
        change[life.born + (life.reuses != -1)] += life.nbytes
        change[life.dies + 1] -= life.nbytes
    return tuple(accumulate(change[:-1]))


def layer_of(kind: StorageKind, life: Life) -> str:
    """The layer of LAYERS in which a life of a storage of this kind is drawn."""
    if kind == "workspace":
        return "scratch"
    if kind not in ("activation", "gradient"):
        return "spilled"
    if life.origin == "compute":
        return kind
    return "recomputed" if life.origin == "recompute" else "paged in"


def layers(logical: LogicalPlan, physical: PhysicalPlan, costs: Costs) -> dict[str, tuple[int, ...]]:
    """Bytes by layer during each instruction; the sum of all layers is what the step occupies then."""
    groups: dict[str, list[Life]] = {name: [] for name in LAYERS}
    for life in physical.lives:
        groups[layer_of(logical.storages[life.storage].kind, life)].append(life)
    stacked = {name: live_bytes(physical, groups[name]) for name in LAYERS}
    stacked["resident"] = (physical.resident_bytes,) * len(physical.instructions)
    stacked["scratch"] = tuple(
        nbytes + (costs.operators[step.operator].scratch_bytes if isinstance(step, Compute) else 0)
        for nbytes, step in zip(stacked["scratch"], physical.instructions, strict=True)
    )
    return stacked


@dataclass(frozen=True, slots=True)
class Unplanned:
    """The step before planning: eager order, nothing recomputed or paged, each value freed after its last use.

    One entry per operator: when it ends, and the bytes of the whole step that are live while it runs.
    """

    end_us: tuple[float, ...]
    total_bytes: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        return max(self.total_bytes, default=0)

    @property
    def time_us(self) -> float:
        return self.end_us[-1] if self.end_us else 0.0


def unplanned(logical: LogicalPlan, costs: Costs) -> Unplanned:
    """What the step needs in eager order when every storage lives until its last use."""
    last = {storage: operator.id for operator in logical.operators for storage in (*operator.reads, *operator.writes)}
    last |= dict.fromkeys(logical.results, len(logical.operators) - 1)
    change = [0] * (len(logical.operators) + 1)
    for operator in logical.operators:
        for storage in operator.writes:
            change[operator.id] += logical.storages[storage].nbytes
            change[last[storage] + 1] -= logical.storages[storage].nbytes
    external = sum(storage.nbytes for storage in logical.storages if storage.external)
    total = (
        external + live + estimate.scratch_bytes
        for live, estimate in zip(accumulate(change[:-1]), costs.operators, strict=True)
    )
    return Unplanned(tuple(accumulate(estimate.time_us for estimate in costs.operators)), tuple(total))
