"""More labels without starting over, and which labels to buy."""

from __future__ import annotations

import numpy as np
import pytest

from gradbase.common.errors import UsageError
from gradbase.tables.crowd import Claims, State, infer, next_labels
from tests.tables.crowd.worlds import world


def part(claims: Claims, rows: np.ndarray) -> Claims:
    """Some rows, with the names that occur in them alone."""
    columns = (claims.items[claims.item[rows]], claims.workers[claims.worker[rows]], claims.classes[claims.label[rows]])
    return Claims.from_columns(*columns)


def test_growing_comes_to_what_all_labels_at_once_say() -> None:
    simulated = world(0, quality=[0.85, 0.8, 0.9, 0.6, 0.55, 0.7], n_items=300, per_item=4)
    rows = np.random.default_rng(0).permutation(len(simulated.claims))
    state = None
    for some in np.array_split(rows, 4):
        result = infer(part(simulated.claims, some), state=state)
        state = State.from_tables(result.state.tables())
    whole = infer(simulated.claims)
    assert result.claims.items.tolist() == simulated.claims.items.tolist()
    assert (result.value == whole.value).mean() > 0.97
    np.testing.assert_allclose(result.workers.quality, whole.workers.quality, atol=0.03)


def test_labels_that_come_again_change_nothing_much() -> None:
    claims = world(1, quality=[0.8] * 6).claims
    first = infer(claims)
    again = infer(claims, state=first.state)
    assert again.claim_count.tolist() == first.claim_count.tolist()
    assert (again.value == first.value).mean() > 0.98


def test_a_few_more_labels_do_not_start_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradbase.tables.crowd import _confusion

    claims = world(2, quality=[0.8] * 6).claims
    rows = np.arange(len(claims))
    first = infer(part(claims, rows[:-10]))
    monkeypatch.setattr(_confusion, "_start", None)  # what a start would call
    assert infer(part(claims, rows[-10:]), state=first.state).claim_count.sum() == len(claims)


def test_a_class_that_is_new_is_learned() -> None:
    old = infer(Claims.from_columns([1, 1, 2, 2], list("abab"), ["x", "x", "y", "y"]))
    result = infer(Claims.from_columns([3, 3], list("ab"), ["z", "z"]), state=old.state)
    assert result.claims.classes[result.value].tolist() == ["x", "y", "z"]


def test_a_state_of_another_kind_is_an_error() -> None:
    state = infer(Claims.from_columns([1], ["a"], ["x"])).state
    with pytest.raises(UsageError, match="the state is of kind 'classes', the claims of kind 'numbers'"):
        infer(Claims.from_columns([1], ["a"], [1.0], kind="numbers"), state=state)


def test_a_state_without_a_table_is_an_error() -> None:
    tables = infer(Claims.from_columns([1], ["a"], ["x"])).state.tables()
    del tables["shares"]
    with pytest.raises(UsageError, match="no table shares"):
        State.from_tables(tables)


def test_bought_labels_are_worth_more_than_any() -> None:
    simulated = world(7, quality=[0.75] * 12, n_items=200, per_item=12)
    claims, generator = simulated.claims, np.random.default_rng(0)
    shelves = [generator.permutation(np.flatnonzero(claims.item == item)).tolist() for item in range(200)]
    have = [shelf.pop() for shelf in shelves for _ in range(2)]
    while len(have) < 1000:
        result = infer(only(claims, have))
        have += [shelves[item].pop() for item in next_labels(result, 200).item if shelves[item]]
    any_rows = generator.permutation(len(claims))[: len(have)]
    bought, drawn = (simulated.accuracy(infer(only(claims, rows)).value) for rows in (have, any_rows))
    assert bought > drawn


def only(claims: Claims, rows) -> Claims:
    parts = (column[np.asarray(rows)] for column in (claims.item, claims.worker, claims.label))
    return Claims(*parts, claims.items, claims.workers, claims.classes)


def test_an_item_without_labels_is_bought_first() -> None:
    claims = Claims.from_columns([1, 1, 2, 2], list("abab"), ["x", "x", "y", "y"], items=[3])
    wanted = next_labels(infer(claims), 2)
    assert wanted.item[0] == 2 and (np.diff(wanted.gain) <= 0).all()


def test_no_labels_cannot_be_bought() -> None:
    with pytest.raises(UsageError, match="k is 0"):
        next_labels(infer(Claims.from_columns([1], ["a"], ["x"])), 0)
