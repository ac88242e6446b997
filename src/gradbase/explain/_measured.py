"""What running a plan found out, for EXPLAIN ANALYZE."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measured beside estimated. Times in µs, sizes in bytes.

    `instruction_time_us` is aligned with `PhysicalPlan.instructions`: the median over the measured steps of how
    long the instruction kept the computing thread, or None where it was not measured; empty when none was.
    `step_time_us` holds one whole step each. Eager's figures are None unless eager was run for comparison.
    """

    instruction_time_us: tuple[float | None, ...]
    measured_peak_bytes: int | None = None
    step_time_us: tuple[float, ...] = ()
    eager_peak_bytes: int | None = None
    eager_step_time_us: float | None = None

    def times_of(self, instructions: int) -> tuple[float | None, ...]:
        """`instruction_time_us` for a plan of so many instructions, None for each where nothing was measured."""
        times_us = self.instruction_time_us or (None,) * instructions
        assert len(times_us) == instructions, f"{len(times_us)} measured times for {instructions} instructions"
        return times_us

    @property
    def median_step_time_us(self) -> float | None:
        return median(self.step_time_us) if self.step_time_us else None
