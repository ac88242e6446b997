"""`gradbase.crowd` on tables of every kind: what comes out, and what it does not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradbase
from gradbase.common.errors import TableError
from gradbase.tables.crowd_tables import CrowdTables
from tests.tables.examples import BIRDS, labels

CLAIMS, GOLD = labels()


@pytest.fixture(scope="module")
def found() -> CrowdTables:
    return gradbase.crowd(CLAIMS, gold=GOLD)


def test_truths(found: CrowdTables) -> None:
    rows = found.truths.to_pylist()
    assert list(rows[0]) == ["item", "value", "probability", "runner_up", "runner_up_probability", "claims"]
    assert [row["item"] for row in rows] == list(range(60)) and {row["claims"] for row in rows} == {8}
    assert all(row["probability"] >= row["runner_up_probability"] and row["value"] != row["runner_up"] for row in rows)
    assert found.evaluation is not None and found.evaluation.accuracy > 0.95
    assert found.counts == {
        "rows": 480, "rows_missing": 0, "rows_repeated": 0, "claims": 480, "items": 60, "workers": 8, "classes": 3,
        "copies": 0,
    }  # fmt: skip


def test_workers(found: CrowdTables) -> None:
    for row in found.workers.to_pylist():
        assert row["quality_low"] <= row["quality"] <= row["quality_high"] and row["claims"] == 60
        by_truth: dict[str, float] = {}
        for entry in row["confusion"]:
            by_truth[entry["truth"]] = by_truth.get(entry["truth"], 0) + entry["probability"]
        assert by_truth == {f"c{c}": pytest.approx(1, abs=0.01) for c in range(3)}


def test_why_adds_up_to_the_log_odds(found: CrowdTables) -> None:
    claims = pa.table(CLAIMS)
    connection = duckdb.connect()
    for name, rows in {"why": found.why, "truths": found.truths, "claims": claims}.items():
        connection.register(name, rows)
    sums = connection.sql(
        "SELECT max(abs(log_odds - ln(probability / runner_up_probability))) FROM truths JOIN"
        " (SELECT item, sum(log_odds) AS log_odds FROM why GROUP BY item) USING (item)"
    ).fetchall()
    assert sums[0][0] < 0.01
    unexplained = connection.sql(
        "SELECT count(*) FROM claims ANTI JOIN why USING (item, worker, label)"
    ).fetchall()  # fmt: skip
    assert unexplained == [(0,)]


def test_the_same_from_every_form_of_input(found: CrowdTables, tmp_path: Path) -> None:
    frame = pd.DataFrame(CLAIMS)
    frame.to_csv(tmp_path / "t.csv", index=False)
    connection = duckdb.connect()
    connection.register("frame", frame)
    connection.execute("CREATE TABLE labels AS FROM frame")
    forms: list[tuple[Any, dict[str, str]]] = [
        (frame, {}), (tmp_path / "t.csv", {}), (connection, {"table": "labels"}), (connection.table("labels"), {})
    ]  # fmt: skip
    for source, options in forms:
        again = gradbase.crowd(source, into=connection, **options)
        assert again.truths.equals(found.truths)
    assert connection.sql("SELECT count(*) FROM crowd_truths").fetchall() == [(60,)]
    assert connection.sql("SELECT count(*) FROM crowd_workers").fetchall() == [(8,)]
    assert connection.sql("SELECT count(*) FROM crowd_copies").fetchall() == [(0,)]


def test_a_table_of_the_user_is_not_hidden() -> None:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE crowd_truths AS SELECT 1")
    with pytest.raises(TableError, match="the connection has a table 'crowd_truths' of its own"):
        gradbase.crowd(CLAIMS, into=connection)


@settings(max_examples=6, deadline=None)
@given(st.randoms(use_true_random=False))
def test_neither_order_nor_names_nor_repetitions_change_an_answer(random: Any) -> None:
    claims, _ = labels(seed=random.randrange(99), items=12, workers=4)
    base = gradbase.crowd(claims).truths.to_pydict()
    order = [*range(len(claims["item"])), *random.choices(range(len(claims["item"])), k=5)]
    random.shuffle(order)
    items = random.sample(range(1000), 12)
    classes = dict(zip(("c0", "c1", "c2"), random.sample(["x", "y", "z"], 3), strict=True))
    renamed = {
        "item": [f"i{items[claims['item'][row]]}" for row in order],
        "worker": [claims["worker"][row][::-1] for row in order],
        "label": [classes[claims["label"][row]] for row in order],
    }
    found = {row["item"]: row for row in gradbase.crowd(renamed).truths.to_pylist()}
    for item, value, probability in zip(base["item"], base["value"], base["probability"], strict=True):
        row = found[f"i{items[item]}"]
        assert row["probability"] == pytest.approx(probability, abs=1e-4)
        assert row["value"] == classes[value] or probability < 0.51


def test_numbers() -> None:
    generator = np.random.default_rng(1)
    truth = generator.normal(0, 10, 40)
    item, worker = (axis.ravel() for axis in np.meshgrid(np.arange(40), np.arange(6), indexing="ij"))
    value = np.where(worker == 5, generator.normal(0, 20, len(item)), truth[item] + generator.normal(0, 1 + worker))
    found = gradbase.crowd({"item": item, "worker": worker, "value": value}, gold={"item": range(40), "value": truth})
    assert found.kind == "numbers" and found.evaluation is not None and found.evaluation.summary()
    assert found.evaluation.mean_absolute_error < found.evaluation.mean_mean_absolute_error
    assert {"low", "high"} <= set(found.truths.column_names) and "bias" in found.workers.column_names
    assert found.why.num_rows >= len(item) and "<svg" in found.html()


@pytest.mark.parametrize("called", ["value", "score", "estimate", "measurement"])
def test_columns_that_hold_numbers_are_found_by_name(called: str) -> None:
    found = gradbase.crowd({"item": [1, 1, 2, 2], "worker": ["a", "b"] * 2, called: [3, 4, 70, 72]})
    assert found.kind == "numbers"


def test_many_whole_numbers_that_may_be_measured_are_not_read_as_classes_in_silence() -> None:
    ratings = {"item": [i // 2 for i in range(60)], "worker": [i % 2 for i in range(60)], "rating": list(range(60))}
    found = gradbase.crowd(ratings, columns={"label": "rating"})
    assert found.kind == "classes" and "60 whole numbers are read as classes" in " ".join(found.notes)
    assert not gradbase.crowd(ratings, columns={"label": "rating"}, kind="classes").notes
    assert gradbase.crowd(ratings, columns={"label": "rating"}, kind="numbers").kind == "numbers"


SETS = {
    "item": [1, 1, 1, 1, 2, 2, 2, 2, 3, 3],
    "worker": ["a", "a", "b", "b", "a", "a", "b", "b", "a", "b"],
    "label": ["cat", "dog", "cat", "dog", "cat", "dog", "cat", "dog", "dog", "dog"],
    "answer": ["yes", "no", "yes", "no", "no", "yes", "no", "yes", "yes", "yes"],
}


def test_sets() -> None:
    gold = {"item": [1, 2, 3], "label": ["cat", "dog", "dog"]}
    found = gradbase.crowd(SETS, gold=gold)
    assert found.kind == "sets" and found.evaluation is not None
    chosen = {(row["item"], row["label"]): row["value"] for row in found.truths.to_pylist()}
    assert chosen[1, "cat"] and not chosen[1, "dog"] and chosen[2, "dog"] and not chosen[2, "cat"] and chosen[3, "dog"]
    assert found.evaluation.items == 6 and found.why.num_rows >= 10 and "<svg" in found.html()


def test_sets_of_chosen_labels_say_no_to_the_others() -> None:
    rows = [row for row in zip(*SETS.values(), strict=True) if row[3] == "yes"]
    item, worker, label, _ = map(list, zip(*rows, strict=True))
    found = gradbase.crowd({"item": item, "worker": worker, "label": label}, kind="sets")
    chosen = {(row["item"], row["label"]) for row in found.truths.to_pylist() if row["value"]}
    assert chosen == {(1, "cat"), (2, "dog"), (3, "dog")}


def test_growing_is_like_all_at_once() -> None:
    late = [item >= 40 for item in CLAIMS["item"]]
    old, new = (
        {name: [v for v, after in zip(column, late, strict=True) if after is which] for name, column in CLAIMS.items()}
        for which in (False, True)
    )
    grown = gradbase.crowd(new, state=gradbase.crowd(old).state)
    whole = gradbase.crowd(CLAIMS)
    assert grown.truths.num_rows == 60
    assert grown.truths["value"].to_pylist() == whole.truths["value"].to_pylist()
    np.testing.assert_allclose(grown.truths["probability"], whole.truths["probability"], atol=0.05)


def test_the_labels_most_worth_buying() -> None:
    found = gradbase.crowd(BIRDS / "labels.csv", next=5)
    assert found.next.num_rows == 5 and found.next.column_names[:2] == ["item", "gain"]
    gains = found.next["gain"].to_pylist()
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "class"}, "kind 'class' is not known"),
        ({"kind": "numbers"}, "label 'c0' is not a number"),
        ({"gold": {"item": [1, 1], "label": ["c0", "c1"]}}, "item '1' has two golds"),
        ({"gold": {"item": ["x"], "label": ["c0"]}}, "none of the 1 items with gold is among the claims"),
        ({"features": np.zeros((3, 2))}, "57 of 60 items have no features, the first is '3'"),
        ({"features": np.zeros(3)}, "no matrix"),
        ({"features": np.zeros((2, 2)), "feature_items": [1]}, "2 rows and 1 items are named"),
        ({"memory": "much"}, "memory 'much' is not an amount"),
        ({"features": {"item": ["x"], "size": [1]}}, "60 of 61 items have no features, the first is '0'"),
        ({"feature_items": [1]}, "items of features are given without features"),
        ({"into": 3}, "expected a DuckDB connection"),
        ({"state": "none.duckdb"}, "there is no state none.duckdb"),
        ({"state": BIRDS / "gold.csv"}, "is not a state that can be read: it is no DuckDB file"),
    ],
)
def test_refusals(options: dict[str, Any], told: str) -> None:
    with pytest.raises(gradbase.GradbaseError) as caught:
        gradbase.crowd(CLAIMS, **options)
    assert told in str(caught.value)


def test_golds_may_be_written_as_another_table_writes_them() -> None:
    said = {"item": [1, 1, 2, 2, 3], "worker": ["a", "b", "a", "b", "a"], "label": [True, True, False, False, True]}
    found = gradbase.crowd(said, gold={"item": ["1", "2"], "label": ["True", "FALSE"]})
    assert found.evaluation is not None and found.evaluation.accuracy == 1.0
    numbers = said | {"label": [1, 1, 2, 2, 1]}
    found = gradbase.crowd(numbers, gold={"item": ["1", "2"], "label": ["1.0", "2.0"]})
    assert found.evaluation is not None and found.evaluation.accuracy == 1.0
    with pytest.raises(TableError, match="no gold is a class that anybody claimed: 'yes'"):
        gradbase.crowd(said, gold={"item": [1, 2], "label": ["yes", "no"]})


def test_reasons_of_sets_add_up_to_the_log_odds_of_yes_or_no() -> None:
    found = gradbase.crowd(SETS)
    sums: dict[tuple[int, str], float] = {}
    for row in found.why.to_pylist():
        sums[row["item"], row["tag"]] = sums.get((row["item"], row["tag"]), 0.0) + row["log_odds"]
    for row in found.truths.to_pylist():
        odds = row["probability"] / row["runner_up_probability"]
        assert sums[row["item"], row["label"]] == pytest.approx(np.log(odds), abs=1e-6)


def test_a_row_that_is_left_out_leaves_nothing_behind() -> None:
    said = {"item": [1, 2, 1, 3], "worker": ["a", None, "b", "c"], "label": ["x", "y", "x", None]}
    found = gradbase.crowd(said)
    assert found.truths["item"].to_pylist() == [1] and found.workers["worker"].to_pylist() == ["a", "b"]
    assert (found.counts["rows_missing"], found.counts["classes"]) == (2, 1)


def test_a_gold_of_strangers_is_refused_before_anything_slow() -> None:
    stages: list[str] = []
    with pytest.raises(TableError, match="none of the 2 items with gold is among the claims"):
        strangers = {"item": ["x", "y"], "label": ["c0", "c1"]}
        gradbase.crowd(CLAIMS, gold=strangers, on_progress=lambda *at: stages.append(at[0]))
    assert not stages


@pytest.mark.parametrize("infinite", ["inf", "-Infinity"])
def test_an_overflow_among_numbers_makes_no_classes_of_them(infinite: str) -> None:
    rows = {"item": [1, 1, 2], "worker": ["a", "b", "a"], "score": ["1.5", infinite, "2.5"]}
    with pytest.raises(TableError, match=f"label '{infinite}' is not finite, and all others are numbers"):
        gradbase.crowd(rows)
    assert gradbase.crowd(rows, kind="classes").truths["value"].to_pylist()[1] == "2.5"


@pytest.mark.parametrize("role", ["item", "worker", "label"])
def test_growing_by_a_text_where_all_were_whole_numbers(role: str) -> None:
    old = {"item": [1, 1, 2, 2, 3, 3], "worker": [1, 2] * 3, "label": [0, 0, 1, 1, 0, 0]}
    new = {"item": [1, 3], "worker": [3, 4], "label": [0, 0]} | {role: [f"a {role}"] * 2}
    both = {name: [*map(str, old[name]), *map(str, new[name])] for name in old}
    whole = gradbase.crowd(both).truths
    for first, second in ((old, new), (new, old)):
        grown = gradbase.crowd(second, state=gradbase.crowd(first).state).truths
        for name in ("item", "value", "claims"):
            assert list(map(str, grown[name].to_pylist())) == list(map(str, whole[name].to_pylist()))


def test_labels_that_come_again_do_not_make_a_state_grow() -> None:
    first = gradbase.crowd(CLAIMS)
    again = gradbase.crowd(CLAIMS, state=first.state)
    assert again.counts["claims"] == first.counts["claims"] == again.state["claims"].num_rows


def test_one_class_only_and_a_worker_who_answers_twice() -> None:
    found = gradbase.crowd({"item": [1, 2], "worker": ["a", "a"], "label": ["x", "x"]})
    assert found.truths["value"].to_pylist() == ["x", "x"] and found.truths["runner_up"].to_pylist() == [None, None]
    assert "all labels are 'x': every item gets that value" in found.notes
    twice = {"item": [1, 1, 1, 2], "worker": ["a", "a", "b", "b"], "label": ["x", "y", "x", "y"]}
    assert any("1 times a worker answered an item in different ways" in note for note in gradbase.crowd(twice).notes)
