"""`gradbase.fuse` on tables: what comes out, and what it does not depend on."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradbase
from gradbase.common.errors import TableError
from gradbase.tables.fuse_tables import FuseTables, load_source_features, read_fuse_claims
from tests.tables.examples import BOOKS

HIERARCHY = {"name": ["london", "paris", "rome", "england"], "parent": ["england", "france", "italy", "europe"]}


def claims(seed: int = 0, objects: int = 30, right: float = 0.8) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Claims of five sources about where somebody was born, and the truth."""
    generator = np.random.default_rng(seed)
    places = ["london", "paris", "rome", "oslo"]
    truth = generator.integers(0, 4, objects)
    rows: list[tuple[Any, ...]] = []
    for source in range(5):
        said = np.where(generator.random(objects) < right, truth, (truth + generator.integers(1, 4, objects)) % 4)
        rows += [(number, "born", f"s{source}", places[place]) for number, place in enumerate(said)]
    names = ("object", "attribute", "source", "value")
    gold = {"object": list(range(objects)), "attribute": ["born"] * objects, "value": [places[t] for t in truth]}
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)), gold


CLAIMS, GOLD = claims()


@pytest.fixture(scope="module")
def found() -> FuseTables:
    return gradbase.fuse(CLAIMS, gold=GOLD)


def test_truths(found: FuseTables) -> None:
    rows = found.truths.to_pylist()
    assert list(rows[0])[:7] == [
        "object", "attribute", "value", "probability", "runner_up", "runner_up_probability", "claims"
    ]  # fmt: skip
    assert sorted(row["object"] for row in rows) == list(range(30)) and {row["claims"] for row in rows} == {5}
    assert found.evaluation is not None and found.evaluation.accuracy >= 0.9
    assert {row["source"] for row in found.sources.to_pylist()} == {f"s{n}" for n in range(5)}
    for row in found.sources.to_pylist():
        assert row["quality_low"] <= row["quality"] <= row["quality_high"] and row["claims"] == 30


def test_why_adds_up_to_the_log_odds(found: FuseTables) -> None:
    connection = duckdb.connect()
    connection.register("why", found.why)
    connection.register("truths", found.truths)
    worst = connection.sql(
        "SELECT max(abs(log_odds - ln(probability / runner_up_probability))) FROM truths JOIN"
        " (SELECT object, sum(log_odds) AS log_odds FROM why GROUP BY object) USING (object)"
    ).fetchall()[0][0]
    assert worst < 0.01
    assert found.why.filter(found.why["source"].is_valid()).num_rows == len(CLAIMS["object"])


def test_into_a_connection_and_from_it() -> None:
    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE claims AS SELECT * FROM read_csv('{BOOKS / 'claims.csv'}', all_varchar = true)")
    found = gradbase.fuse(connection, table="claims", into=connection, gold=BOOKS / "gold.csv")
    assert connection.sql("SELECT count(*) FROM fuse_truths").fetchall() == [(100,)]
    assert connection.sql("SELECT count(*) FROM fuse_sources").fetchall()[0][0] >= 228
    assert found.evaluation is not None and found.evaluation.accuracy >= 0.85
    assert found.evaluation.majority_accuracy == pytest.approx(0.7, abs=0.02)
    page = found.html()
    assert "Most contested items" in page and "Calibration" in page


@settings(max_examples=6, deadline=None)
@given(st.randoms(use_true_random=False))
def test_neither_order_nor_names_nor_repetitions_change_an_answer(random: Any) -> None:
    said, _ = claims(seed=random.randrange(99), objects=8)
    base = {row["object"]: row for row in gradbase.fuse(said).truths.to_pylist()}
    order = [*range(len(said["object"])), *random.choices(range(len(said["object"])), k=5)]
    random.shuffle(order)
    objects = random.sample(range(1000), 8)
    renamed = {
        "object": [f"o{objects[said['object'][row]]}" for row in order],
        "attribute": ["birthplace"] * len(order),
        "source": [f"from {said['source'][row]}" for row in order],
        "value": [said["value"][row] for row in order],
    }
    for row in gradbase.fuse(renamed).truths.to_pylist():
        other = base[objects.index(int(row["object"][1:]))]
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-4)
        assert row["value"] == other["value"] or other["probability"] < 0.51


def test_a_hierarchy_of_edges_lets_a_general_claim_support_a_special_one() -> None:
    cities = ["london", "paris", "rome"]
    rows: list[tuple[str, str, str]] = []
    for number in range(24):
        city = cities[number % 3]
        wrong = cities[(number + 1) % 3]
        general = HIERARCHY["parent"][HIERARCHY["name"].index(city)]
        rows += [(f"o{number}", "special", city), (f"o{number}", "general", general)]
        rows.append((f"o{number}", "careless", wrong if number % 2 else city))
    objects, sources, values = (list(column) for column in zip(*rows, strict=True))
    gold = {"object": [f"o{number}" for number in range(24)], "value": [cities[number % 3] for number in range(24)]}
    found = gradbase.fuse({"object": objects, "source": sources, "value": values}, hierarchy=HIERARCHY, gold=gold)
    assert found.evaluation is not None and found.evaluation.accuracy == 1
    assert found.evaluation.majority_accuracy < 0.8


def test_measured_numbers() -> None:
    generator = np.random.default_rng(3)
    truth = generator.normal(100, 20, 40)
    rows = [(n, f"s{s}", truth[n] + generator.normal(0, 1 + 3 * s)) for n in range(40) for s in range(5)]
    objects, sources, values = (list(column) for column in zip(*rows, strict=True))
    found = gradbase.fuse(
        {"object": objects, "source": sources, "value": values}, gold={"object": range(40), "value": truth}
    )
    assert found.evaluation is not None and "mean absolute error" in found.evaluation.summary()
    assert found.evaluation.mean_absolute_error < found.evaluation.mean_mean_absolute_error
    assert "<svg" in found.html()


def test_growing_and_buying() -> None:
    late = [number >= 20 for number in CLAIMS["object"]]
    old, new = (
        {name: [v for v, after in zip(column, late, strict=True) if after is which] for name, column in CLAIMS.items()}
        for which in (False, True)
    )
    asked = {name: [v for row, v in enumerate(column) if row % 7] for name, column in old.items()}  # some gaps to fill
    first = gradbase.fuse(asked, next=3)
    assert first.next.num_rows == 3 and {"object", "source", "gain"} <= set(first.next.column_names)
    pairs = set(zip(asked["object"], asked["source"], strict=True))
    assert not pairs & set(zip(*first.next.select(["object", "source"]).to_pydict().values(), strict=True))
    grown = gradbase.fuse(new, state=first.state, gold=GOLD)
    assert {row["object"] for row in grown.truths.to_pylist()} == set(range(20, 30))
    assert len(grown.state["values"]) > len(first.state["values"])


def test_times_may_be_dates() -> None:
    said = CLAIMS | {"updated": ["2020-01-01", "2021-05-05T10:00:00Z", None] * 50}
    assert gradbase.fuse(said, columns={"time": "updated"}).truths.num_rows == 30
    with pytest.raises(TableError, match="time 'soon' in column 'ts' is neither a number nor a date"):
        gradbase.fuse(CLAIMS | {"ts": ["soon"] * 150})


def test_features_of_sources_in_the_order_of_the_sources() -> None:
    read, _, _ = read_fuse_claims(CLAIMS, table=None, query=None, columns=None)
    features = {"visitors": [5, 4, None], "source": ["s3", "s1", "s0"], "color": ["red", "red", "blue"]}
    np.testing.assert_array_equal(load_source_features(features, read, None), [[np.nan], [4], [np.nan], [5], [np.nan]])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gold": {"object": [1, 1], "attribute": ["born"] * 2, "value": ["a", "b"]}}, "has two golds"),
        ({"gold": {"object": ["x"], "attribute": ["born"], "value": ["a"]}}, "none of the 1 items with gold"),
        ({"kinds": {"brn": "text"}}, "no claim is about attribute 'brn'; attributes are 'born'"),
        ({"kinds": {"born": "txt"}}, "kind 'txt' is not known"),
        ({"copies": "maybe"}, "copies 'maybe' is not known"),
        ({"hierarchy": {"name": ["a", "b"], "parent": ["b", "a"]}}, "circle"),
        ({"hierarchy": {"what": ["a"], "parent": ["b"]}}, "no column for name"),
        ({"source_features": {"source": ["x"], "size": [1]}}, "names none of the sources"),
        ({"source_features": {"size": [1]}}, "has no column for source"),
        ({"source_features": {"source": ["s1"], "color": ["red"]}}, "features of sources are numbers"),
    ],
)
def test_refusals(options: dict[str, Any], told: str) -> None:
    with pytest.raises(gradbase.GradbaseError) as caught:
        gradbase.fuse(CLAIMS, **options)
    assert told in str(caught.value)


def test_columns_that_are_named_are_named_in_every_table() -> None:
    said = {"thing": [1, 1, 2, 2], "who": ["a", "b", "a", "b"], "value": ["x", "x", "Y", "y"]}
    columns = {"object": "thing", "source": "who"}
    gold, features = {"thing": [1, 2], "value": ["x", "y"]}, {"who": ["b", "a"], "size": [1, 2]}
    found = gradbase.fuse(said, columns=columns, gold=gold, source_features=features, kinds={"value": "text"})
    assert found.evaluation is not None and found.evaluation.accuracy == 1.0
    assert found.kinds == {"value": "categorical"}


def test_claims_without_anything_to_say() -> None:
    said = {"object": [1, 2, 3], "source": ["a", "b", "b"], "value": ["x", None, ""]}
    found = gradbase.fuse(said)
    assert found.truths.num_rows == 1 and found.counts["rows_missing"] == 2
    assert any("2 of 3 rows lack an object, source or value" in note for note in found.notes)


def test_texts_among_measured_numbers_are_left_out_and_counted() -> None:
    asked = [(item, source) for item in range(30) for source in range(5)]
    spread = [(f"o{item}", f"s{source}", f"{100 + 10 * item + source * 0.13:.2f}") for item, source in asked]
    found = gradbase.fuse(_columns([*spread, ("o1", "s9", "unknown"), ("only", "s9", "n/a")]))
    assert found.kinds == {"value": "measure"} and found.truths.num_rows == 30
    assert found.notes == ("2 claims of 'value' have no value of kind 'measure' and are left out",)
    assert gradbase.fuse(_columns(spread)).notes == ()


def _columns(rows: list[tuple[str, ...]]) -> dict[str, list[str]]:
    return dict(zip(("object", "source", "value"), map(list, zip(*rows, strict=True)), strict=True))
