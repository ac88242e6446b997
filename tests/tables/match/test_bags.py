from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.tables.match._bags import Bags, ranges

SETS = st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), min_size=1, max_size=5)


@settings(max_examples=40)
@given(SETS, SETS)
def test_similarities_are_those_of_plain_sets(left, right):
    bags = Bags(left, right)
    rows = [(i, j) for i in range(len(left)) for j in range(len(right))]
    found = bags.compare(np.array([i for i, _ in rows]), np.array([j for _, j in rows]))
    for k, (i, j) in enumerate(rows):
        expected = _plain(left, right, set(left[i]), set(right[j]))
        for name, value in expected.items():
            assert math.isclose(found[name][k], value, abs_tol=1e-6), name


def _plain(left, right, a, b):
    every = [set(x) for x in [*left, *right]]
    weight = {t: math.log(1 + len(every) / (sum(t in x for x in every) + 0.5)) for t in "abcdef"}

    def heavy(tokens):
        return sum(weight[t] for t in tokens)

    def length(tokens):
        return math.sqrt(sum(weight[t] ** 2 for t in tokens))

    return {
        "cos": length(a & b) ** 2 / (length(a) * length(b) or 1),
        "jaccard": heavy(a & b) / (heavy(a | b) or 1),
        "cover_left": heavy(a & b) / (heavy(a) or 1),
        "common": max((weight[t] for t in a & b), default=0),
        "only_left": max((weight[t] for t in a - b), default=0),
        "only_right": max((weight[t] for t in b - a), default=0),
        "count": len(a & b),
    }


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_ranges_lie_one_after_the_other(wanted):
    starts, counts = (np.array([w[k] for w in wanted], dtype=np.int64) for k in (0, 1))
    assert ranges(starts, counts).tolist() == [s + k for s, n in wanted for k in range(n)]
