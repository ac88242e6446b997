"""The renderers on the plan of six operators: golden text, documented keys, a page that loads nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gradbase.explain import Measurements, render_curve_text, render_html, render_json, render_perfetto, render_text
from tests.explain.plans import CURVE, blocks, six_measurements
from tests.ir.plans import six_costs, six_operators, six_physical

FIXTURES = Path(__file__).parent / "fixtures"


def _six() -> tuple[Any, Any, Any]:
    return six_operators(), six_physical(), six_costs()


TEXTS = {
    "explain.txt": lambda: render_text(*_six()),
    "analyze.txt": lambda: render_text(*_six(), measurements=six_measurements(), source=True, curve=CURVE),
    "elsewhere.txt": lambda: render_text(*blocks(6), device_profile="h100", depth=2),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_as_it_was(name: str) -> None:
    """To accept a change of wording, write what the test got over the fixture."""
    assert TEXTS[name]() == (FIXTURES / name).read_text("utf-8")


def test_depth_hides_what_lies_deeper() -> None:
    assert "├─ fc1" in render_text(*_six())
    assert "fc1 " not in render_text(*_six(), depth=0).split("recomputed:")[0].split("module")[1]


def test_json_has_the_documented_keys() -> None:
    explained = render_json(*_six(), measurements=six_measurements(), curve=CURVE)
    assert json.loads(json.dumps(explained, allow_nan=False)) == explained
    documented = set(re.findall(r'^ +- ("[^:]+?)(?=:|$)', render_json.__doc__ or "", re.MULTILINE))
    assert set(explained) == {key for line in documented for key in re.findall(r'"(\w+)"', line)}
    assert explained["memory"]["predicted_peak_bytes"] == 4368
    assert explained["estimates"] == {"roofline": 4, "measured": 2}
    assert explained["memory"]["before_planning_bytes"] == 4636
    assert explained["time"]["gap"] == pytest.approx(0.035)
    assert explained["time"]["waiting_us"] == pytest.approx(5.5 + 2.5)
    assert [row["kind"] for row in explained["timeline"]][:6] == [
        "compute", "compute", "page-out", "compute", "await-out", "page-in",
    ]  # fmt: skip
    assert explained["operators"][0] == {
        "operator": 0,
        "name": "fc1",
        "module": "fc1",
        "target": "aten.mm.default",
        "phase": "forward",
        "source_line": "model.py:10",
        "runs": 2,
        "time_us": 200.0,
        "measured_us": 310.0,
        "estimate": "measured",
    }
    assert explained["measured"]["q_error"] == {"count": 7, "median": pytest.approx(1.1), "p90": pytest.approx(1.46)}


def test_measurements_of_no_instruction_leave_the_columns_empty() -> None:
    measurements = Measurements((), measured_peak_bytes=4300)
    text = render_text(*_six(), measurements=measurements)
    assert "peak 4.20 KiB, 98.4% of the predicted" in text
    assert "q-error" not in text
    explained = render_json(*_six(), measurements=measurements)
    assert {row["measured_us"] for row in explained["operators"]} == {None}
    render_html(*_six(), measurements=measurements)
    render_perfetto(*_six(), measurements=measurements)


def test_json_knows_no_infinity() -> None:
    physical = replace(six_physical(), lower_bound_time_us=float("inf"), budget_bytes=None)
    explained = render_json(six_operators(), physical, six_costs())
    assert explained["time"]["lower_bound_us"] is None
    json.dumps(explained, allow_nan=False)


class _Page(HTMLParser):
    """Checks that tags close in order, and collects what the page would load."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href", "srcset", "action") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.remove(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def test_page_is_whole_and_loads_nothing() -> None:
    html = render_html(*_six(), measurements=six_measurements(), curve=CURVE, device_profile="h100")
    page = _Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert page.loads == []
    assert not re.search(r"https?://|@import|url\(", html)
    assert page.tags.count("svg") == 2
    assert "estimates for h100" in html
    for heading in ("Memory over the step", "Most expensive operators", "Recomputed", "Paged", "Memory against time"):
        assert heading in html


def test_names_cannot_break_the_page() -> None:
    logical = six_operators()
    storages = list(logical.storages)
    storages[2] = replace(storages[2], name="</script><b>&")
    operators = list(logical.operators)
    operators[0] = replace(operators[0], name="</script><i>", module="<fc1>")
    html = render_html(replace(logical, storages=tuple(storages), operators=tuple(operators)), *_six()[1:], title="<x>")
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert not {"b", "x", "fc1"} & set(page.tags)
    data = re.search(r'id="memory-data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert "</script><i>" in json.loads(data.group(1))["columns"][0]["text"]


def test_long_steps_are_thinned_but_keep_their_peak() -> None:
    html = render_html(*blocks(3000))
    data = re.search(r'id="memory-data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    shown = json.loads(data.group(1))["columns"]
    assert len(shown) <= 901
    assert any("750.50 KiB" in column["text"] for column in shown)  # 3001 values, and the batch, of 256 bytes


def test_perfetto_tracks_do_not_overlap() -> None:
    trace = render_perfetto(*_six(), measurements=six_measurements())
    assert json.loads(json.dumps(trace)) == trace
    events = trace["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert list(names.values()) == ["compute", "page-out", "page-in", "compute, measured"]
    for track, name in names.items():
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == track)
        assert spans, name
        for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
            assert start >= end - 1e-9, name
    counters = [sum(event["args"].values()) for event in events if event["ph"] == "C"]
    assert max(counters) == 1200 + 3136 + 32


def test_curve_text() -> None:
    lines = render_curve_text(reversed(CURVE)).splitlines()
    assert " ".join(lines[1].split()) == "2.93 KiB 2.92 KiB 520 µs 1.793× 500 µs 4.0%"
    assert sum(line.count("●") for line in lines) == 4  # three points and the legend
    assert render_curve_text(()) == ""


def test_explaining_needs_no_torch() -> None:
    program = "import sys, gradbase.explain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
