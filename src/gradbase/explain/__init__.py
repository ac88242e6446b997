"""EXPLAIN: one plan, several renderers. Nothing here allocates a model or needs torch."""

from gradbase.explain._curve import render_curve_text
from gradbase.explain._html import render_html
from gradbase.explain._json import render_json
from gradbase.explain._measured import Measurements
from gradbase.explain._perfetto import render_perfetto
from gradbase.explain._text import render_text
from gradbase.explain._timeline import Timeline, timeline

__all__ = [
    "Measurements",
    "Timeline",
    "render_curve_text",
    "render_html",
    "render_json",
    "render_perfetto",
    "render_text",
    "timeline",
]
