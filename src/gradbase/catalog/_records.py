"""What the catalogue stores, as frozen records, and how two measurements of one thing become one."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradbase.ir.costs import Tier

# The interquartile range of a normal distribution, in standard deviations: what a shift between two
# medians adds to the spread is brought to the same scale by it.
_IQR_PER_SIGMA = 2 * statistics.NormalDist().inv_cdf(0.75)

_INTEGER_MAX = 2**63 - 1  # what an SQLite INTEGER holds


@dataclass(frozen=True, slots=True)
class OperatorStatistics:
    """One operator as measured on one device.

    `time_us` is the median of `count` runs, `spread_us` their interquartile range (75th minus 25th
    percentile). `outputs` holds (nbytes, strides in elements) of every real output when any of them differs
    from what tracing promised, else it is empty. `details` is JSON text the executor keeps for itself.
    Raises ValueError when a figure cannot be a measurement (not finite, negative, no samples).
    """

    op: str
    signature: str
    time_us: float
    spread_us: float
    count: int
    scratch_bytes: int
    outputs: tuple[tuple[int, tuple[int, ...]], ...] = ()
    details: str = ""
    flops: int = 0
    moved_bytes: int = 0

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.op, self.signature, self.details)):
            raise ValueError(f"op, signature and details of {self.signature!r} must be text")
        if not all(math.isfinite(value) and value >= 0 for value in (self.time_us, self.spread_us)):
            raise ValueError(f"time {self.time_us} or spread {self.spread_us} µs of {self.op} is not a time")
        if not 0 < self.count <= _INTEGER_MAX:
            raise ValueError(f"count {self.count} of {self.op} is not a number of samples")
        if not all(0 <= value <= _INTEGER_MAX for value in (self.scratch_bytes, self.flops, self.moved_bytes)):
            raise ValueError(f"scratch, flops or moved bytes of {self.op} is out of range")

    @classmethod
    def from_samples(
        cls,
        op: str,
        signature: str,
        times_us: Sequence[float],
        *,
        scratch_bytes: int = 0,
        outputs: tuple[tuple[int, tuple[int, ...]], ...] = (),
        details: str = "",
        flops: int = 0,
        moved_bytes: int = 0,
    ) -> OperatorStatistics:
        """Median and interquartile range of timed runs (at least one)."""
        spread_us = 0.0
        if len(times_us) > 1:
            low, _, high = statistics.quantiles(times_us, n=4, method="inclusive")
            spread_us = high - low
        return cls(
            op=op,
            signature=signature,
            time_us=float(statistics.median(times_us)),
            spread_us=float(spread_us),
            count=len(times_us),
            scratch_bytes=scratch_bytes,
            outputs=outputs,
            details=details,
            flops=flops,
            moved_bytes=moved_bytes,
        )


def merge(stored: OperatorStatistics, new: OperatorStatistics) -> OperatorStatistics:
    """Two measurements of one operator as one.

    Counts add up. The time is the mean of the two medians weighted by count, so it lies between them and any
    order of merging ends at the same value. The spread follows the law of total variance: the weighted mean
    of the squared spreads plus the squared distance of the medians, so a machine that got slower shows.
    Scratch is the larger of the two, because a budget is a promise. What is not a sample (outputs, details,
    flops, moved bytes) is taken from `new`, the later one.
    """
    assert stored.signature == new.signature, (stored.signature, new.signature)
    count = stored.count + new.count
    share = new.count / count
    shift_us = new.time_us - stored.time_us
    within = (1 - share) * stored.spread_us**2 + share * new.spread_us**2
    between = share * (1 - share) * (shift_us * _IQR_PER_SIGMA) ** 2
    return OperatorStatistics(
        op=new.op,
        signature=new.signature,
        time_us=stored.time_us + share * shift_us,
        spread_us=math.sqrt(within + between),
        count=count,
        scratch_bytes=max(stored.scratch_bytes, new.scratch_bytes),
        outputs=new.outputs,
        details=new.details,
        flops=new.flops,
        moved_bytes=new.moved_bytes,
    )


def merge_all(entries: Iterable[OperatorStatistics]) -> dict[str, OperatorStatistics]:
    """One record per signature, in order of first appearance."""
    merged: dict[str, OperatorStatistics] = {}
    for entry in entries:
        known = merged.get(entry.signature)
        merged[entry.signature] = entry if known is None else merge(known, entry)
    return merged


def encode_outputs(outputs: tuple[tuple[int, tuple[int, ...]], ...]) -> str:
    return json.dumps([[nbytes, list(strides)] for nbytes, strides in outputs], separators=(",", ":"))


def decode_outputs(text: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The reverse of `encode_outputs`; ValueError or TypeError on anything else."""
    return tuple((int(nbytes), tuple(int(stride) for stride in strides)) for nbytes, strides in json.loads(text))


def decode_statistics(row: Sequence[Any]) -> OperatorStatistics:
    """A row of DECODED_COLUMNS; ValueError or TypeError when it cannot be one of ours."""
    op, signature, count, time_us, spread_us, scratch_bytes, outputs, details, flops, moved_bytes = row
    return OperatorStatistics(
        op=op,
        signature=signature,
        time_us=time_us,
        spread_us=spread_us,
        count=count,
        scratch_bytes=scratch_bytes,
        outputs=decode_outputs(outputs),
        details=details,
        flops=flops,
        moved_bytes=moved_bytes,
    )


DECODED_COLUMNS = (
    "op",
    "signature",
    "count",
    "time_us",
    "spread_us",
    "scratch_bytes",
    "outputs",
    "details",
    "flops",
    "moved_bytes",
)


@dataclass(frozen=True, slots=True)
class TierStatistics:
    """A slow tier as measured; `medium` is its key (`medium_of`), `name` what to call it. Fields as in `ir.Tier`.

    Raises ValueError when a bandwidth is not above zero or a figure is not finite.
    """

    medium: str
    name: str
    write_bytes_per_us: float
    read_bytes_per_us: float
    latency_us: float
    compute_tax: float
    duplex: bool
    alignment_bytes: int = 4096
    measured_at: str = ""  # set by the catalogue

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) and v > 0 for v in (self.write_bytes_per_us, self.read_bytes_per_us)):
            raise ValueError(f"bandwidth of {self.name} is not above zero")
        if not all(math.isfinite(v) and v >= 0 for v in (self.latency_us, self.compute_tax)):
            raise ValueError(f"latency or compute tax of {self.name} is out of range")
        if self.alignment_bytes < 1:
            raise ValueError(f"alignment of {self.name} is not above zero")

    def tier(self) -> Tier:
        """What the planner is told."""
        return Tier(
            write_bytes_per_us=self.write_bytes_per_us,
            read_bytes_per_us=self.read_bytes_per_us,
            latency_us=self.latency_us,
            compute_tax=self.compute_tax,
            duplex=self.duplex,
            alignment_bytes=self.alignment_bytes,
            source="measured",
        )


def medium_of(directory: Path) -> str:
    """The key of the device a directory lies on: host name and device id, the same for all its directories."""
    return f"{platform.node()}:{os.stat(directory).st_dev}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One finished run. `budget_bytes` None: no limit was asked for; `measured_peak_bytes` None: not known."""

    recipe: str
    plan_digest: str
    budget_bytes: int | None
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    predicted_time_us: float
    median_step_time_us: float
    steps: int
    started_at: str  # ISO 8601, UTC
    device: str = "cpu"
