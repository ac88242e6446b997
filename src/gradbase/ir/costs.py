"""What the planner is told about time and space: one estimate per operator, and the slow tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EstimateSource = Literal["measured", "learned", "roofline"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One operator: time in µs when its arguments are resident, and bytes it allocates beside its results."""

    time_us: float
    scratch_bytes: int
    source: EstimateSource


@dataclass(frozen=True, slots=True)
class Tier:
    """The slow tier (a page file, or pinned host memory), as measured or from a profile.

    `compute_tax` is the share of a transfer's time by which computing is slowed while the transfer runs
    (0.1: ten µs of transfer cost one µs of computing), because cores and memory bandwidth are shared.
    `duplex` says whether reads and writes run at full speed side by side.
    """

    write_bytes_per_us: float
    read_bytes_per_us: float
    latency_us: float
    compute_tax: float
    duplex: bool
    alignment_bytes: int = 4096
    source: EstimateSource = "roofline"


@dataclass(frozen=True, slots=True)
class Costs:
    """Estimates aligned with `LogicalPlan.operators`, and the tier (None: no paging)."""

    operators: tuple[Estimate, ...]
    tier: Tier | None
