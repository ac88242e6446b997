"""What the pages show, from small made-up tables."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest

from gradbase.tables.crowd_tables import CrowdTables
from gradbase.tables.evaluate import Bin, Evaluation
from gradbase.tables.report import crowd_page
from gradbase.tables.report._charts import calibration_chart, confidence_chart

COUNTS = {"rows": 5, "rows_missing": 0, "rows_repeated": 0, "claims": 5, "items": 2, "workers": 2, "classes": 2}


class _WithReasons(CrowdTables):
    """Tables whose reasons are given, not inferred."""

    why = pa.table({
        "item": [1, 1, 2, 2], "worker": ["<b>", None, "v", "v"], "label": ["x", None, "x", "y"],
        "reason": ["claim", "prior", "claim", "claim"], "log_odds": [1.25, 0.5, 0.1, -0.1],
    })  # fmt: skip


def page(evaluation: Evaluation | None = None, **columns: list[object]) -> str:
    truths = {
        "item": [1, 2, 3], "value": ["x", "y", "z"], "probability": [0.9, 0.5, 1.0],
        "runner_up": ["y", "x", None], "runner_up_probability": [0.1, 0.5, None], "claims": [2, 2, 5],
    }  # fmt: skip
    workers = pa.table({
        "worker": ["<b>", "v"], "quality": [0.7, None], "quality_low": [0.6, None], "quality_high": [0.8, None],
        "claims": [3, 2], "confusion": [[{"truth": "x"}], None],
    })  # fmt: skip
    copies = pa.table({"copier": ["<b>"], "original": ["v"], "evidence": [12.5]})
    tables = _WithReasons(pa.table(truths | columns), workers, copies, None, "classes", COUNTS, ("a note",), evaluation)
    return crowd_page(tables, "Crowd & more")


def test_contested_items_come_first_with_their_claims() -> None:
    text = page()
    contested = text[text.index("Most contested items") :]
    rows = re.findall(r"<tr><td>(\d)</td>", contested)
    assert rows == ["2", "1"]  # the third has no runner-up
    assert '&lt;b&gt;: x <span class="quiet">(+1.25)</span>' in contested and "<b>" not in text
    assert "Who copies whom</h2>" in text and "<tr><td>&lt;b&gt;</td><td>v</td><td>12.5</td></tr>" in text
    assert "<h1>Crowd &amp; more</h1>" in text and "a note" in text


def test_calibration_with_gold_and_confidence_without() -> None:
    bins = (Bin(0.9, 1.0, 2, 0.95, 0.5),)
    with_gold = page(Evaluation(items=2, unanswered=0, accuracy=0.5, calibration_error=0.45, bins=bins))
    assert "Calibration</h2>" in with_gold and "2 items: probability 0.950, accuracy 0.500" in with_gold
    assert "Confidence</h2>" in page() and "1 items from 0.90 to 0.95" in page()


def test_workers_without_a_quality_are_not_drawn_but_listed() -> None:
    text = page()
    assert text.count('<circle class="plan-point"') == 1 and "from 0.600 to 0.800, 3 claims" in text


def test_charts_say_in_words_what_they_show() -> None:
    assert 'aria-label="Items by probability: 50% of them at 0.9 or more"' in confidence_chart([1.0, 0.2, float("nan")])
    assert 'aria-label="Accuracy by probability: 0.40: 1.00"' in calibration_chart([Bin(0.4, 0.5, 1, 0.4, 1.0)])


@pytest.mark.parametrize("word", ["http", "src=", "@import", "url("])
def test_nothing_is_loaded(word: str) -> None:
    assert word not in page()
