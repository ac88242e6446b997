from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.tables.match import _decide

SCORED = st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=30)


@settings(max_examples=50)
@given(SCORED)
def test_the_threshold_is_nearly_the_best_there_is(rows):
    log_odds = np.array([s / 4 for s, _ in rows])
    targets = np.array([t for _, t in rows])
    chosen = _decide.f1_score(log_odds > _decide.choose_threshold(log_odds, targets), targets)
    cuts = np.append(np.unique(log_odds), log_odds.min() - 1)
    best = max(_decide.f1_score(log_odds > cut, targets) for cut in cuts)
    assert chosen >= best - 0.5 / max(targets.sum(), 1) - 1e-9


def test_zero_is_kept_where_it_is_as_good_as_any():
    log_odds, targets = np.array([3.0, 2.0, -1.0, -4.0]), np.array([True, True, False, False])
    assert _decide.choose_threshold(log_odds, targets) == 0.0


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(-9, 9)), max_size=20)


@settings(max_examples=50)
@given(PAIRS)
def test_one_partner_at_most_and_never_an_idle_pair(rows):
    left, right, log_odds = (np.array([r[k] for r in rows], dtype=np.int64) for k in range(3))
    matched = log_odds > 0
    kept = _decide.keep_best(matched, log_odds.astype(float), left, right)
    assert not (kept & ~matched).any()
    assert len(set(left[kept])) == len(left[kept]) and len(set(right[kept])) == len(right[kept])
    for k in np.flatnonzero(matched & ~kept):
        assert left[k] in left[kept] or right[k] in right[kept]


def group(nodes, rows):
    left, right, log_odds = (np.array([r[k] for r in rows]) for k in range(3))
    found = _decide.clusters(nodes, left, right, log_odds.astype(float), log_odds > 0).tolist()
    return {frozenset(k for k in range(nodes) if found[k] == c) for c in found}


def test_matches_join_their_records():
    assert group(5, [(0, 1, 2.0), (1, 2, 3.0), (3, 4, -1.0)]) == {frozenset({0, 1, 2}), frozenset({3}), frozenset({4})}


def test_a_weak_link_does_not_chain_two_clusters():
    rows = [(0, 1, 5.0), (2, 3, 5.0), (1, 2, 0.5), (0, 2, -4.0), (0, 3, -4.0), (1, 3, -4.0)]
    assert group(4, rows) == {frozenset({0, 1}), frozenset({2, 3})}


def test_clusters_are_named_by_their_least_member():
    assert _decide.names_of(np.array([7, 3, 7]), ["b", "c", "a"]) == ("a", "c", "a")


def test_two_partners_are_seldom_only_up_to_a_few_slips():
    left, right = np.arange(100), np.arange(100)
    every = np.ones(100, dtype=bool)
    assert _decide.seldom_two(left, right, every) and _decide.seldom_two(left, right, ~every)
    assert _decide.seldom_two(np.minimum(left, 98), right, every)
    assert not _decide.seldom_two(left, right // 2, every)
