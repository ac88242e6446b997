"""The memory/time curve as text: a table and a small plot."""

from __future__ import annotations

from collections.abc import Iterable

from gradbase.common.units import format_bytes, format_us
from gradbase.explain._report import CurvePoint

_WIDTH, _HEIGHT = 60, 12


def render_curve_text(points: Iterable[CurvePoint]) -> str:
    """Budget against predicted time, from the least possible memory upwards; "" for no points."""
    curve = sorted(points, key=lambda point: point.budget_bytes)
    if not curve:
        return ""
    fastest = min(point.predicted_time_us for point in curve)
    lines = [f"{'budget':>12}{'peak':>12}{'time':>12}{'slower':>9}{'bound':>12}{'gap':>8}"]
    for point in curve:
        slower = f"{point.predicted_time_us / fastest:.3f}×" if fastest > 0 else "-"
        bound = point.lower_bound_time_us
        gap = f"{point.predicted_time_us / bound - 1:.1%}" if bound > 0 else "-"
        lines.append(
            f"{format_bytes(point.budget_bytes):>12}{format_bytes(point.predicted_peak_bytes):>12}"
            f"{format_us(point.predicted_time_us):>12}{slower:>9}{format_us(bound):>12}{gap:>8}"
        )
    return "\n".join([*lines, "", *_plot(curve)]) + "\n"


def _plot(curve: list[CurvePoint]) -> list[str]:
    """● is a plan and ─ its proven bound; time upwards, memory to the right."""
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    low, high = curve[0].budget_bytes, curve[-1].budget_bytes
    times = [time for p in curve for time in (p.predicted_time_us, p.lower_bound_time_us) if time > 0]
    bottom, top = min(times, default=0.0), max(times, default=0.0)
    for mark in ("─", "●"):  # plans are drawn over bounds
        for point in curve:
            time_us = point.predicted_time_us if mark == "●" else point.lower_bound_time_us
            if time_us > 0:
                row = _HEIGHT - 1 - _cell(time_us, bottom, top, _HEIGHT)
                grid[row][_cell(point.budget_bytes, low, high, _WIDTH)] = mark
    labels = {0: format_us(top), _HEIGHT - 1: format_us(bottom)}
    lines = [f"{labels.get(row, ''):>10} │{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    left, right = format_bytes(low), format_bytes(high)
    axis = f"{'':>10} └{'─' * _WIDTH}"
    return [*lines, axis, f"{'':>12}{left}{right:>{_WIDTH - len(left)}}", f"{'':>12}● plan   ─ proven bound"]


def _cell(value: float, low: float, high: float, cells: int) -> int:
    return round((value - low) / (high - low) * (cells - 1)) if high > low else 0
