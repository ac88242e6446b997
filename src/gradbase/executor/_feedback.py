"""What steps show about the statistics they were planned with.

As in a query optimizer that learns from the queries it ran (Stillger et al., LEO, VLDB 2001): statistics that were
taken while other processes used the machine, or on kernels that have changed, would mislead every later plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from gradbase.catalog import OperatorStatistics
from gradbase.executor._engine import Planned
from gradbase.ir.physical import Compute

# Beside transfers, and with caches as other operators leave them, an operator takes up to a third longer.
_FAR_OFF = 1.5
# Calling a small kernel and taking the time costs some µs.
_WORTH_CORRECTING_US = 100.0
# The first step warms up: a median of fewer would rest on it.
_STEPS_MIN = 3


def corrections(planned: Planned, statistics: Mapping[str, OperatorStatistics]) -> list[OperatorStatistics]:
    """Statistics of the operators whose median time in the last steps is more than 1.5 times off, as measured there.

    Empty before the third step.
    """
    if len(planned.times_us) < _STEPS_MIN:
        return []
    found = []
    for signature, times_us in _times_by_signature(planned).items():
        known = statistics[signature]
        seen = OperatorStatistics.from_samples(known.op, signature, times_us)
        if _far_off(known.time_us, seen.time_us):
            found.append(replace(known, time_us=seen.time_us, spread_us=seen.spread_us, count=seen.count))
    return found


def _times_by_signature(planned: Planned) -> dict[str, list[float]]:
    """µs of every run of an operator, recomputations included."""
    operators = planned.program.plan.operators
    times_us: dict[str, list[float]] = defaultdict(list)
    for instruction, *of_steps in zip(planned.plan.instructions, *planned.times_us, strict=True):
        if isinstance(instruction, Compute):
            times_us[operators[instruction.operator].signature] += of_steps
    return times_us


def _far_off(estimated_us: float, measured_us: float) -> bool:
    error_us = abs(measured_us - estimated_us)
    return error_us > _WORTH_CORRECTING_US and not estimated_us / _FAR_OFF <= measured_us <= estimated_us * _FAR_OFF
