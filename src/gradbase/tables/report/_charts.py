"""The charts of the pages, as SVG: calibration, confidence, and quality with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from gradbase.tables.evaluate import Bin

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 84, 24, 18, 42
_SQUARE = 380  # height of the calibration and confidence charts
_ROW = 18  # height of a row of the quality chart
_NAME = 190  # room for names left of it


@dataclass(frozen=True)
class Quality:
    """A worker or source: what it is called, its quality from 0 to 1 with an interval, how many claims."""

    name: str
    quality: float
    low: float
    high: float
    claims: int


def calibration_chart(bins: Sequence[Bin]) -> str:
    """Accuracy against probability; a point's area is its share of the items, on the dashed line the two agree."""
    items = sum(each.items for each in bins) or 1
    parts = [*_square_grid("probability", "accuracy")]
    parts.append(f'<path class="budget" d="M{_x(0):.1f} {_y(0):.1f}L{_x(1):.1f} {_y(1):.1f}"/>')
    line = " ".join(f"{_x(each.probability):.1f},{_y(each.accuracy):.1f}" for each in bins)
    parts.append(f'<polyline class="plan" points="{line}"/>')
    for each in bins:
        radius = 3 + 22 * math.sqrt(each.items / items)
        text = f"{each.items} items: probability {each.probability:.3f}, accuracy {each.accuracy:.3f}"
        place = f'cx="{_x(each.probability):.1f}" cy="{_y(each.accuracy):.1f}" r="{radius:.1f}"'
        parts.append(f'<circle class="plan-point" fill-opacity=".55" {place}><title>{text}</title></circle>')
    told = "; ".join(f"{each.probability:.2f}: {each.accuracy:.2f}" for each in bins)
    return _svg("calibration", f"Accuracy by probability: {told}", _SQUARE, parts)


def confidence_chart(probabilities: Sequence[float], bins: int = 20) -> str:
    """How many items have which probability."""
    counts = [0] * bins
    for probability in probabilities:
        if not math.isnan(probability):
            counts[min(int(probability * bins), bins - 1)] += 1
    most = max(max(counts), 1)
    parts = [*_square_grid("probability of the value", "items", most)]
    for number, count in enumerate(counts):
        left, right, top = _x(number / bins), _x((number + 1) / bins), _y(count / most)
        shape = f'x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" height="{_y(0) - top:.1f}"'
        text = f"{count} items from {number / bins:.2f} to {(number + 1) / bins:.2f}"
        parts.append(f'<rect class="plan-point" {shape}><title>{text}</title></rect>')
    sure = sum(counts[-2:]) / max(sum(counts), 1)
    return _svg("confidence", f"Items by probability: {sure:.0%} of them at 0.9 or more", _SQUARE, parts)


def quality_chart(rows: Sequence[Quality]) -> str:
    """A point and its interval for each row, in their order."""
    height = _TOP + _ROW * len(rows) + _BOTTOM
    start, stop = _NAME, _WIDTH - 70

    def x(value: float) -> float:
        return start + min(max(value, 0.0), 1.0) * (stop - start)

    parts: list[str] = []
    for tick in range(0, 11, 2):
        place = x(tick / 10)
        parts.append(f'<path class="grid" d="M{place:.1f} {_TOP}V{height - _BOTTOM}"/>')
        parts.append(_text(place, height - _BOTTOM + 16, f"{tick / 10:g}", "middle"))
    for number, row in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        title = f"{row.name}: {row.quality:.3f}, from {row.low:.3f} to {row.high:.3f}, {row.claims} claims"
        parts.append(f"<g><title>{escape(title)}</title>")
        parts.append(_text(start - 8, y + 4, escape(_short(row.name)), "end"))
        parts.append(f'<path class="plan" d="M{x(row.low):.1f} {y:.1f}H{x(row.high):.1f}"/>')
        parts.append(f'<circle class="plan-point" cx="{x(row.quality):.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(_text(stop + 60, y + 4, f"{row.claims:,}", "end") + "</g>")
    parts.append(_text((start + stop) / 2, height - 8, "quality and its interval; right: claims", "middle"))
    told = f"Quality of {len(rows)}, from {min(r.quality for r in rows):.2f} to {max(r.quality for r in rows):.2f}"
    return _svg("quality", told, height, parts)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _square_grid(across: str, up: str, most: int | None = None) -> Iterator[str]:
    for tick in range(0, 11, 2):
        share = tick / 10
        yield f'<path class="grid" d="M{_LEFT} {_y(share):.1f}H{_WIDTH - _RIGHT}"/>'
        label = f"{share:g}" if most is None else f"{share * most:,.0f}"
        yield _text(_LEFT - 8, _y(share) + 4, label, "end")
        yield _text(_x(share), _SQUARE - _BOTTOM + 16, f"{share:g}", "middle")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _SQUARE - 6, across, "middle")
    middle = (_TOP + _SQUARE - _BOTTOM) / 2
    yield f'<text class="axis" transform="translate(22 {middle:.0f}) rotate(-90)" text-anchor="middle">{up}</text>'


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _RIGHT - _LEFT)


def _y(share: float) -> float:
    return _SQUARE - _BOTTOM - share * (_SQUARE - _BOTTOM - _TOP)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(name: str, label: str, height: int, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {_WIDTH} {height}"'
    return f'<svg id="{name}" {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
