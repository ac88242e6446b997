from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.tables.match import match
from gradbase.tables.match._unsupervised import COMPETITION, compete
from tests.tables.match.people import two_tables

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(-20, 20)), min_size=1, max_size=15)


@settings(max_examples=50)
@given(ROWS)
def test_competition_only_takes_away_and_leaves_one_likely_partner(rows):
    left, right = (np.array([r[k] for r in rows]) for k in (0, 1))
    alone = np.array([r[2] for r in rows])
    left, right = left * 5 + right * 0, right  # left 0, 5, 10, ...: gaps in the numbers are no records
    together = compete(alone, left, right)
    assert (together <= alone + 1e-9).all()
    for records in (left, right):
        assert all((together[records == r] > 1e-6).sum() <= 1 for r in set(records.tolist()))


def test_a_pair_without_rivals_keeps_its_odds():
    assert np.allclose(compete(np.array([2.0, -1.0]), np.array([0, 1]), np.array([1, 0])), [2.0, -1.0], atol=1e-6)


def test_what_competition_took_is_a_reason_of_its_own():
    a, b, _ = two_tables(40)
    why = match(a, b).why_table(matched_only=False)
    taken = [v for f, v in zip(why["feature"], why["log_odds"], strict=True) if f == COMPETITION]
    assert len(taken) > 0 and min(taken) < -0.1
