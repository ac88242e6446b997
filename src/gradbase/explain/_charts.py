"""The two charts of the page as SVG: memory over the step, and the memory/time curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from gradbase.common.units import format_bytes, format_us
from gradbase.explain._report import CurvePoint, Report
from gradbase.explain._timeline import LAYERS, layers
from gradbase.ir.physical import Compute

WIDTH = 1000
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 84, 18, 18, 42
_COLUMNS_MAX = 900  # more steps than this are drawn by the widest of each pixel's


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` onto pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.stop - self.start) if span else self.start


@dataclass(frozen=True, slots=True)
class Column:
    """A stretch of the step in which the same is live: bytes by layer, and the instruction."""

    start_us: float
    end_us: float
    nbytes: tuple[int, ...]
    instruction: int

    @property
    def total_bytes(self) -> int:
        return sum(self.nbytes)


def columns(report: Report) -> list[Column]:
    """What the memory chart stacks, at most one column a pixel: of several the highest, so peaks stay."""
    stacked = layers(report.logical, report.physical, report.costs)
    rows = zip(*(stacked[name] for name in LAYERS), strict=True)
    times = zip(report.times.issued_us, report.times.left_us, strict=True)
    found = [
        Column(start, end, row, index) for index, ((start, end), row) in enumerate(zip(times, rows, strict=True))
    ]
    return _thinned(found, report.times.time_us) if len(found) > _COLUMNS_MAX else found


def _thinned(found: list[Column], time_us: float) -> list[Column]:
    bins: dict[int, list[Column]] = {}
    for column in found:
        bins.setdefault(int(column.start_us / time_us * _COLUMNS_MAX) if time_us else 0, []).append(column)
    thin = []
    for members in bins.values():
        highest = max(members, key=lambda column: column.total_bytes)
        thin.append(Column(members[0].start_us, members[-1].end_us, highest.nbytes, highest.instruction))
    return thin


def memory_chart(report: Report, stack: Sequence[Column]) -> str:
    """Stacked bytes of the plan over its step, the step before planning as a line, and the budget."""
    x, y = _memory_axes(report)
    peak, before = report.physical.predicted_peak_bytes, report.before.peak_bytes
    label = f"Memory over the step: at most {format_bytes(peak)} as planned, {format_bytes(before)} before planning"
    parts = [*_bytes_grid(y), *_time_ticks(x), *_areas(stack, x, y)]
    parts.append(f'<path class="before" d="{_before_path(report, x, y)}"/>')
    parts += _budget_line(report, y)
    parts += _peak_mark(report, x, y)
    parts.append(f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    return _svg("memory-chart", label, parts, focusable=True)


def column_x(report: Report, column: Column) -> float:
    """Where a column begins on the memory chart, in its own units."""
    return _memory_axes(report)[0](column.start_us)


def _memory_axes(report: Report) -> tuple[Axis, Axis]:
    time_us = max(report.times.time_us, report.before.time_us)
    top = max(report.peak.total_bytes, report.before.peak_bytes, report.physical.budget_bytes or 0)
    return Axis(0, time_us, _LEFT, WIDTH - _RIGHT), Axis(0, top * 1.06, _HEIGHT - _BOTTOM, _TOP)


def _areas(stack: Sequence[Column], x: Axis, y: Axis) -> Iterator[str]:
    base = [0] * len(stack)
    for layer, name in enumerate(LAYERS):
        top = [low + column.nbytes[layer] for low, column in zip(base, stack, strict=True)]
        if top != base:
            css = name.replace(" ", "-")
            yield f'<path style="fill:var(--{css})" d="{_area(stack, base, top, x, y)}"><title>{name}</title></path>'
        base = top


def _area(stack: Sequence[Column], base: Sequence[int], top: Sequence[int], x: Axis, y: Axis) -> str:
    upper = [(x(column.start_us), x(column.end_us), y(high)) for column, high in zip(stack, top, strict=True)]
    lower = [(x(column.end_us), x(column.start_us), y(low)) for column, low in zip(stack, base, strict=True)]
    return _steps(upper) + "L" + _steps(reversed(lower))[1:] + "Z"


def _steps(spans: Sequence[tuple[float, float, float]] | Iterator[tuple[float, float, float]]) -> str:
    """A path of flat stretches (from, to, height)."""
    points = (f"{start:.1f} {height:.1f}H{end:.1f}" for start, end, height in spans)
    return "M" + "L".join(points)


def _before_path(report: Report, x: Axis, y: Axis) -> str:
    spans: list[tuple[float, float, float]] = []
    start = 0.0
    for end, total in zip(report.before.end_us, report.before.total_bytes, strict=True):
        height = y(total)
        if spans and x(end) - spans[-1][0] < (WIDTH - _LEFT) / _COLUMNS_MAX:
            first, _, highest = spans.pop()
            spans.append((first, x(end), min(height, highest)))  # a smaller y is more memory
        else:
            spans.append((x(start), x(end), height))
        start = end
    return _steps(spans) if spans else ""


def _budget_line(report: Report, y: Axis) -> Iterator[str]:
    budget = report.physical.budget_bytes
    if budget is not None:
        height = y(budget)
        yield f'<path class="budget" d="M{_LEFT} {height:.1f}H{WIDTH - _RIGHT}"/>'
        text = f"budget {format_bytes(budget)}"
        yield f'<text class="budget-label" x="{WIDTH - _RIGHT}" y="{height - 5:.1f}" text-anchor="end">{text}</text>'


def _peak_mark(report: Report, x: Axis, y: Axis) -> Iterator[str]:
    at = report.peak.instruction
    if at != -1:
        middle = (report.times.issued_us[at] + report.times.left_us[at]) / 2
        yield f'<circle class="peak" cx="{x(middle):.1f}" cy="{y(report.peak.total_bytes):.1f}" r="3.5">'
        yield f"<title>peak: {escape(format_bytes(report.peak.total_bytes))}</title></circle>"


def curve_chart(points: Sequence[CurvePoint], chosen_bytes: int | None) -> str:
    """Predicted time and its proven bound against the budget; the plan's own budget is ringed."""
    times = [time for p in points for time in (p.predicted_time_us, p.lower_bound_time_us) if 0 < time < math.inf]
    budgets = [point.budget_bytes for point in points]
    x = Axis(min(budgets), max(budgets), _LEFT + 14, WIDTH - _RIGHT - 34)
    y = Axis(min(times) * 0.97, max(times) * 1.03, _HEIGHT - _BOTTOM, _TOP)
    plan = [(x(p.budget_bytes), y(p.predicted_time_us)) for p in points]
    bound = [(x(p.budget_bytes), y(p.lower_bound_time_us)) for p in points if p.lower_bound_time_us >= y.low]
    parts = [*_time_grid(y), *_byte_ticks(x, points), _polyline("bound", bound), _polyline("plan", plan)]
    for point, (px, py) in zip(points, plan, strict=True):
        text = f"{format_bytes(point.budget_bytes)}: {format_us(point.predicted_time_us)}"
        parts.append(f'<circle class="plan-point" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>{text}</title></circle>')
    if chosen_bytes is not None and budgets[0] <= chosen_bytes <= budgets[-1]:
        parts.append(f'<path class="budget" d="M{x(chosen_bytes):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    ends = (f"{format_us(p.predicted_time_us)} at {format_bytes(p.budget_bytes)}" for p in (points[0], points[-1]))
    return _svg("curve-chart", f"Predicted time against the budget: {' to '.join(ends)}", parts)


def _polyline(css: str, points: Sequence[tuple[float, float]]) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{css}" points="{joined}"/>'


def _svg(name: str, label: str, parts: Sequence[str], focusable: bool = False) -> str:
    focus = ' tabindex="0"' if focusable else ""
    return (
        f'<svg id="{name}" viewBox="0 0 {WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}"{focus}>'
        + "".join(parts)
        + "</svg>"
    )


def _bytes_grid(y: Axis) -> Iterator[str]:
    step = 2.0 ** math.ceil(math.log2(max(y.high, 1) / 6))
    yield from _grid(y, step, format_bytes)


def _time_grid(y: Axis) -> Iterator[str]:
    yield from _grid(y, _decimal_step(y.high - y.low), format_us)


def _grid(y: Axis, step: float, text: Callable[[float], str]) -> Iterator[str]:
    for count in range(math.ceil(y.low / step), math.floor(y.high / step) + 1):
        height, label = y(count * step), _round(text(count * step))
        yield f'<path class="grid" d="M{_LEFT} {height:.1f}H{WIDTH - _RIGHT}"/>'
        yield f'<text class="axis" x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{label}</text>'


def _round(figure: str) -> str:
    """A tick's figure without idle digits: "100.00 ms" -> "100 ms", "2.50 s" -> "2.5 s"."""
    number, _, unit = figure.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def _time_ticks(x: Axis) -> Iterator[str]:
    step = _decimal_step(x.high - x.low)
    for count in range(math.floor(x.high / step) + 1):
        yield _tick(x(count * step), _round(format_us(count * step)))
    yield _axis_title("time in the step")


def _byte_ticks(x: Axis, points: Sequence[CurvePoint]) -> Iterator[str]:
    shown = -math.inf
    for point in points:
        if x(point.budget_bytes) - shown > 90:
            shown = x(point.budget_bytes)
            yield _tick(shown, format_bytes(point.budget_bytes))
    yield _axis_title("budget")


def _tick(x: float, text: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{text}</text>'


def _axis_title(text: str) -> str:
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return f'<text class="axis" x="{middle:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{text}</text>'


def _decimal_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that a span holds three to eight steps."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / 3))
    return next(factor * power for factor in (10, 5, 2, 1) if span / (factor * power) >= 3)


def about(report: Report, column: Column) -> str:
    """One line for the reader who points at a column."""
    step = report.physical.instructions[column.instruction]
    if isinstance(step, Compute):
        name = report.logical.operators[step.operator].name + (" (again)" if step.run else "")
    else:
        storage = report.logical.storages[report.physical.lives[step.life].storage].name
        name = f"{type(step).__name__} {storage}"
    parts = [f"{layer} {format_bytes(n)}" for layer, n in zip(LAYERS, column.nbytes, strict=True) if n]
    return f"{format_us(column.start_us)} · {name} · {format_bytes(column.total_bytes)}: {', '.join(parts)}"
