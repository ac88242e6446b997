"""What the tests of explain add to the plans of `tests.ir.plans`: measurements, a curve, a model of equal blocks."""

from __future__ import annotations

from dataclasses import dataclass

from gradbase.explain import Measurements
from gradbase.ir.costs import Costs, Estimate
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import PhysicalPlan
from tests.ir.plans import chain


@dataclass(frozen=True)
class Point:
    """The planner's CurvePoint by its shape."""

    budget_bytes: int
    predicted_peak_bytes: int
    predicted_time_us: float
    lower_bound_time_us: float


CURVE = (Point(3000, 2990, 520.0, 500.0), Point(4500, 4368, 414.0, 400.0), Point(6000, 4640, 290.0, 290.0))


def six_measurements() -> Measurements:
    """Each Compute of the six-operator plan a tenth slower than estimated, the first twice as slow; transfers None."""
    times_us = (200.0, 22.0, None, 11.0, 0.0, None, 5.0, 11.0, None, 110.0, 110.0, 0.0, 55.0, None, 2.0)
    return Measurements(times_us, 4300, (450.0, 440.0, 460.0), 4640, 300.0)


def blocks(layers: int) -> tuple[LogicalPlan, PhysicalPlan, Costs]:
    """A chain of `layers` equal modules h.0, h.1, ... with everything kept; every operator takes 1 µs."""
    logical, physical = chain(layers)
    return logical, physical, Costs(tuple(Estimate(1.0, 0, "learned") for _ in logical.operators), None)
