"""Figures against ones that are counted by hand, and against another library's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.common.errors import TableError
from gradbase.tables.evaluate import (
    calibration,
    evaluate_numbers,
    evaluate_values,
    f1_scores,
    majority_right,
    negative_log_likelihood,
    one_gold_each,
)


def test_calibration_counted_by_hand() -> None:
    probability = np.array([0.55, 0.55, 0.95, 0.95, 1.0])
    error, bins = calibration(probability, np.array([1, 0, 1, 1, 0]))
    assert [(each.items, each.accuracy) for each in bins] == [(2, 0.5), (3, pytest.approx(2 / 3))]
    assert error == pytest.approx(2 / 5 * 0.05 + 3 / 5 * (2.9 / 3 - 2 / 3))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_calibration_is_a_mean_of_differences(rows: list[tuple[float, bool]]) -> None:
    probability, right = np.array([p for p, _ in rows]), np.array([float(r) for _, r in rows])
    error, bins = calibration(probability, right)
    assert 0 <= error <= 1 and sum(each.items for each in bins) == len(rows)
    assert error >= abs(probability.mean() - right.mean()) - 1e-9  # bins cannot hide the whole


def test_likelihood_of_what_was_called_impossible_is_finite() -> None:
    assert negative_log_likelihood(np.array([1.0, 0.5])) == pytest.approx(np.log(2) / 2)
    assert negative_log_likelihood(np.array([0.0])) == pytest.approx(-np.log(1e-9))


claims = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=30)


@given(claims, st.dictionaries(st.integers(0, 5), st.integers(-1, 2), min_size=1))
def test_majority_agrees_with_counting(rows: list[tuple[int, int]], gold: dict[int, int]) -> None:
    item, value = (np.array(column) for column in zip(*rows, strict=True))
    expected = []
    for wanted, truth in gold.items():
        votes = Counter(v for i, v in rows if i == wanted)
        best = [v for v, count in votes.items() if count == max(votes.values())]
        expected.append((truth in best) / len(best) if best else np.nan)
    np.testing.assert_array_equal(majority_right(item, value, gold), expected)


def test_f1_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    value, gold = generator.integers(0, 4, (2, 200)).astype(str)
    expected = metrics.f1_score(gold, value, average=None, labels=sorted(set(gold)))
    assert list(f1_scores(value, gold).values()) == pytest.approx(expected.tolist())


def test_values_in_one_line_and_in_json() -> None:
    found = evaluate_values(
        ["a", "b", "a"], np.array([0.9, 0.8, 0.7]), ["a", "a", "a"], majority=np.array([1, 0.5, 1]), unanswered=2
    )
    assert found.accuracy == pytest.approx(2 / 3) and found.majority_accuracy == pytest.approx(2.5 / 3)
    assert "accuracy 66.7% (majority vote 83.3%)" in found.summary()
    assert "2 golds are of items without" in found.summary()
    assert "negative_log_likelihood" not in found.figures() and found.figures()["items"] == 3


def test_numbers() -> None:
    value, gold, mean = np.array([1.0, 2.0]), np.array([2.0, 2.0]), np.array([4.0, 2.0])
    found = evaluate_numbers(value, gold, mean, np.array([[0.0, 1.5], [1.0, 3.0]]))
    assert (found.mean_absolute_error, found.mean_mean_absolute_error, found.coverage) == (0.5, 1.0, 0.5)
    assert "mean absolute error 0.5 (mean of the claims 1), 50.0% of golds inside" in found.summary()


@pytest.mark.parametrize(
    "compare", [lambda: evaluate_values([], np.empty(0), []), lambda: evaluate_numbers(*np.empty((3, 0)))]
)
def test_nothing_to_compare(compare: Any) -> None:
    with pytest.raises(TableError, match="do both name their items in the same way"):
        compare()


def test_two_golds() -> None:
    assert one_gold_each([1, 2, 1], ["a", "b", "a"], "gold.csv") == {"1": "a", "2": "b"}
    with pytest.raises(TableError, match="item '1' has two golds in gold.csv: 'a' and 'b'; keep one of them"):
        one_gold_each([1, 1], ["a", "b"], "gold.csv")
