"""What running a plan found out, for EXPLAIN ANALYZE."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measured beside estimated. Times in µs, sizes in bytes.

    `instruction_time_us` is aligned with `PhysicalPlan.instructions`: the median over the measured steps of how
    long the instruction kept the computing thread, or None where it was not measured. `step_time_us` holds one
    whole step each. Eager's figures are None unless eager was run for comparison.
    """

    instruction_time_us: tuple[float | None, ...]
    measured_peak_bytes: int | None = None
    step_time_us: tuple[float, ...] = ()
    eager_peak_bytes: int | None = None
    eager_step_time_us: float | None = None

    @property
    def median_step_time_us(self) -> float | None:
        return median(self.step_time_us) if self.step_time_us else None
