"""Names, their order, the order of rows and repeated rows mean nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.tables.crowd import Claims, Result, infer
from tests.tables.crowd.worlds import world


@st.composite
def crowds(draw: st.DrawFn) -> Claims:
    n_items, n_workers, n_classes = draw(st.integers(2, 8)), draw(st.integers(1, 5)), draw(st.integers(2, 4))
    claim = st.tuples(st.integers(0, n_items - 1), st.integers(0, n_workers - 1), st.integers(0, n_classes - 1))
    rows = np.array(draw(st.lists(claim, min_size=1, max_size=40)))
    return Claims(*rows.T, np.arange(n_items), np.arange(n_workers), np.arange(n_classes))


def untied(result: Result) -> np.ndarray:
    return result.probability - result.runner_up_probability > 1e-6


def renamed(claims: Claims, orders: list[np.ndarray]) -> Claims:
    """Code c becomes orders[...][c]."""
    item, worker, label = orders
    names = (np.arange(len(order)) for order in orders)
    return Claims(item[claims.item], worker[claims.worker], label[claims.label], *names)


@settings(max_examples=10)
@given(crowds(), st.integers(0, 2**32 - 1))
def test_renaming_items_workers_and_classes_changes_no_answer(claims: Claims, seed: int) -> None:
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(names)) for names in (claims.items, claims.workers, claims.classes)]
    first, second = infer(claims), infer(renamed(claims, orders))
    item, worker, label = orders
    np.testing.assert_allclose(second.posterior[np.ix_(item, label)], first.posterior, atol=1e-6)
    np.testing.assert_allclose(second.workers.quality[worker], first.workers.quality, atol=1e-6)
    same = second.value[item] == label[first.value]
    assert same[untied(first)].all()


@settings(max_examples=10)
@given(crowds(), st.integers(0, 2**32 - 1))
def test_the_order_of_rows_and_repeated_rows_change_nothing(claims: Claims, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = np.concatenate([generator.permutation(len(claims)), generator.integers(0, len(claims), 5)])
    parts = (claims.item[rows], claims.worker[rows], claims.label[rows])
    first, second = infer(claims), infer(Claims(*parts, claims.items, claims.workers, claims.classes))
    assert (first.posterior == second.posterior).all() and (first.value == second.value).all()


def test_renaming_a_whole_crowd_with_subtypes_changes_no_answer() -> None:
    claims = world(0, quality=[0.8, 0.7, 0.9, 0.6, 0.75, 0.4], n_items=300, per_item=4).claims
    generator = np.random.default_rng(0)
    orders = [generator.permutation(len(names)) for names in (claims.items, claims.workers, claims.classes)]
    first, second = infer(claims), infer(renamed(claims, orders))
    np.testing.assert_allclose(second.posterior[np.ix_(orders[0], orders[2])], first.posterior, atol=1e-6)
