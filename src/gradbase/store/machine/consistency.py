"""What a job promises: its consistency, its durability, its limits.

bsp      step t is exactly one micro-batch of every lane; every read of step t sees all of step t - 1 and nothing else
ssp:S    a reader is at most S steps ahead of the slowest live worker
asp      no bound; every update is still used exactly once
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from gradbase.common.errors import UsageError

Consistency = Literal["bsp", "ssp", "asp"]
Durability = Literal["none", "checkpoint", "wal"]
Logging = Literal["command", "physical"]

UNBOUNDED: Final = 1 << 62  # the staleness of asp


@dataclass(frozen=True)
class Limits:
    """Times in µs of a machine's own clock, and lengths of queues. Reaching a length pushes back, it never drops."""

    retry_us: int = 50_000  # an unanswered request is sent again after this long, then after twice as long, ...
    retry_us_max: int = 400_000
    beat_us: int = 100_000  # sessions and shards say that they live
    silence_us_max: int = 1_000_000  # who is silent for longer is taken for dead
    tick_us_max: int = 100_000  # a clock that jumps ahead counts for at most this much between two ticks
    retained_max: int = 8  # pushes a session keeps because they are not durable yet; then it waits
    unsynced_max: int = 64  # log records a shard keeps because they are not durable yet; then it answers Busy
    lease_batches: int = 8  # batches a session holds at a time (ssp, asp)


@dataclass(frozen=True)
class Job:
    """One training run as the machines see it. `staleness_steps` counts only under ssp."""

    lanes: int
    shards: int
    steps: int
    consistency: Consistency = "bsp"
    staleness_steps: int = 0
    durability: Durability = "none"
    logging: Logging = "command"
    workers_max: int = 0
    seed: int = 0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check(
            self.lanes >= 1 and self.shards >= 1 and self.steps >= 0,
            "lanes, shards and steps must be positive",
        )
        _check(self.staleness_steps >= 0, f"a staleness of {self.staleness_steps} steps is less than none")
        if self.durability == "wal" and self.consistency != "bsp":
            _check(
                self.logging == "physical",
                f"command logging needs bsp: under {self.consistency} a gradient cannot be computed again",
                'log the updates instead: logging="physical"',
            )

    @property
    def batches(self) -> int:
        """Micro-batches of the whole run; their numbers are 0 .. batches - 1."""
        return self.steps * self.lanes

    @property
    def slots(self) -> int:
        """How many workers there may be at once: the length of every vector clock."""
        return self.workers_max or 2 * self.lanes

    @property
    def bound_steps(self) -> int:
        """The largest allowed reader's clock - min(clock of live workers)."""
        return {"bsp": 0, "ssp": self.staleness_steps, "asp": UNBOUNDED}[self.consistency]

    @property
    def retains(self) -> bool:
        """Whether sessions keep pushes until their records are durable: wherever a log could miss one."""
        return self.durability == "wal" and self.logging == "physical"


def parse_consistency(text: str) -> tuple[Consistency, int]:
    """`bsp`, `asp` or `ssp:S` as (kind, staleness in steps). Raises UsageError."""
    kind, colon, bound = text.partition(":")
    if kind == "bsp" and not colon:
        return "bsp", 0
    if kind == "asp" and not colon:
        return "asp", 0
    if kind == "ssp" and bound.isdecimal():
        return "ssp", int(bound)
    raise UsageError(f"no consistency is called {text!r}", "one of: bsp, asp, ssp:S with S steps, as in ssp:3")


def _check(good: bool, problem: str, *remedies: str) -> None:
    if not good:
        raise UsageError(problem, *remedies)
