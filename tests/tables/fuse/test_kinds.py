"""Which spellings are one value, and how values are related."""

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.common.errors import UsageError
from gradbase.tables.fuse import AttributeOptions, Claims, Hierarchy, infer, kinds, normalise, register_kind
from gradbase.tables.fuse._authors import authors_resemble, authors_vaguer
from gradbase.tables.fuse._kinds import date_vaguer, dates_resemble, name_vaguer


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("Knuth, Donald E.", "knuth d"),
        ("Donald Ervin Knuth", "knuth d"),
        ("knuth d", "knuth d"),
        ("Knuth", "knuth"),
        ("R. Graham & D. E. Knuth", "graham r;knuth d"),
        ("Knuth, Donald; Graham, Ronald; ", "graham r;knuth d"),
        ("Ronald Graham, Donald Knuth, Oren Patashnik", "graham r;knuth d;patashnik o"),
        ("Graham, R., Knuth, D.", "graham r;knuth d"),
        ("O'Leary, Timothy J. (Editor)", "oleary t"),
        ("Müller, Jörg", "muller j"),
        ("...", "none"),
    ],
)
def test_lists_of_authors_have_one_key(raw: str, key: str) -> None:
    assert normalise("author set", [raw]) == [key]
    assert normalise("author set", [key]) == [key]


def test_authors_left_out_are_vaguer() -> None:
    assert authors_vaguer("knuth d", "graham r;knuth d")
    assert authors_vaguer("knuth", "knuth d")
    assert authors_vaguer("graham;knuth", "graham r;knuth d")
    assert not authors_vaguer("knuth d", "knuth")
    assert not authors_vaguer("knuth e", "graham r;knuth d")
    assert authors_resemble("knuth e", "graham r;knuth d") == 0.5
    assert authors_resemble("date c", "knuth d") == 0


@pytest.mark.parametrize(
    ("raw", "key"),
    [("1,234.50", 1234.5), (" 7 ", 7.0), ("-3e2", -300.0), (5, 5.0), ("12%", 12.0), ("about 5", "about 5"), ("", None)],
)
def test_numbers(raw: object, key: object) -> None:
    assert normalise("number", [raw]) == [key]


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("1984-05-02", "1984-05-02"),
        ("May 2, 1984", "1984-05-02"),
        ("2 May 1984", "1984-05-02"),
        ("02.05.1984", "1984-05-02"),
        ("5/2/1984", "1984-05-02"),
        ("1984-05-02T00:00:00Z", "1984-05-02"),
        ("2.5.1984 9:05", "1984-05-02T09:05"),
        ("1984-05-02 09:05:30.25+00", "1984-05-02T09:05:30"),
        (datetime.datetime(1984, 5, 2, 9, 5), "1984-05-02T09:05"),
        (datetime.date(1984, 5, 2), "1984-05-02"),
        ("1984 9:05", "1984 9:05"),
        ("May 1984", "1984-05"),
        ("1984", "1984"),
        ("spring", "spring"),
    ],
)
def test_dates(raw: object, key: str) -> None:
    assert normalise("date", [raw]) == [key]


def test_a_year_is_vaguer_than_its_day_and_a_slip_is_near() -> None:
    assert date_vaguer("1984", "1984-05-02") and date_vaguer("1984-05", "1984-05-02")
    assert date_vaguer("1984-05-02", "1984-05-02T09:05") and date_vaguer("1984-05-02T09:05", "1984-05-02T09:05:30")
    assert not date_vaguer("1985", "1984-05-02") and not date_vaguer("1984-05-02", "1984")
    assert dates_resemble("1984-05-02", "1984-02-05") == dates_resemble("1984-05-02", "1984-05-03") == 0.9
    assert dates_resemble("1984-05-02", "1999-12-31") == 0
    assert dates_resemble("1984-05-02T09:05", "1984-02-05T09:05") == 0.9
    assert dates_resemble("1984-05-02T09:05", "1984-02-05T19:05") == 0


def test_initials_are_vaguer_than_names() -> None:
    key = normalise("name", ["Smith, J.", "John Smith", "Jane Smith"])
    assert key == ["j smith", "john smith", "jane smith"]
    assert name_vaguer(key[0], key[1]) and name_vaguer("smith", key[1])
    assert not name_vaguer(key[1], key[2]) and not name_vaguer(key[1], key[0])


@given(st.text())
def test_a_key_of_text_is_its_own_key(text: str) -> None:
    for kind in ("categorical", "name", "author set", "date"):
        (key,) = normalise(kind, [text])
        assert key is None or kind == "name" or normalise(kind, [key]) in ([key], [None])


def test_missing_values_have_no_key() -> None:
    assert normalise("categorical", [None, float("nan"), "  ", "a"]) == [None, None, None, "a"]


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(UsageError, match="'colour' is not known"):
        normalise("colour", ["red"])


def test_a_kind_can_be_added() -> None:
    register_kind("plate", lambda value: str(value).replace("-", "").upper())
    assert "plate" in kinds()
    claims = Claims.from_columns(["car"] * 3, ["plate"] * 3, ["a", "b", "c"], ["hh-ab 1", "HHAB 1", "HH-AB 2"])
    result = infer(claims, attributes={"plate": AttributeOptions(kind="plate")})
    assert normalise("plate", result.truths["value"]) == ["HHAB 1"]


def test_an_attribute_may_bring_its_own_functions() -> None:
    claims = Claims.from_columns(["o"] * 3, ["x"] * 3, ["a", "b", "c"], ["Red!", "red", "blue"])
    options = AttributeOptions(kind="categorical", normalise=lambda values: [str(v).strip("!").lower() for v in values])
    assert normalise("categorical", infer(claims, attributes={"x": options}).truths["value"])[0].startswith("red")


def test_kinds_are_told_from_values() -> None:
    random = np.random.default_rng(0)
    rows = []
    for i in range(60):
        for s in range(4):
            rows += [
                (f"o{i}", "measured", f"s{s}", random.normal(50, 10)),
                (f"o{i}", "told", f"s{s}", 1000 + i if random.random() < 0.8 else int(random.integers(9999))),
                (f"o{i}", "born", f"s{s}", f"19{i + 10}-03-0{s + 1}"),
                (f"o{i}", "authors", f"s{s}", f"author{i} a; writer{s} b"),
                (f"o{i}", "colour", f"s{s}", "red"),
                (f"o{i}", "tags", f"s{s}", f"tag{s}"),
                (f"o{i}", "tags", f"s{s}", f"tag{i}"),
            ]
    found = infer(Claims.from_columns(*zip(*rows, strict=True))).kinds
    assert found == {
        "measured": "measure",
        "told": "number",
        "born": "date",
        "authors": "author set",
        "colour": "categorical",
        "tags": "set",
    }


def test_hierarchies_say_what_is_wrong_with_them() -> None:
    with pytest.raises(UsageError, match="circle"):
        Hierarchy.from_edges(["a", "b"], ["b", "a"])
    with pytest.raises(UsageError, match="two parents"):
        Hierarchy.from_edges(["a", "a"], ["b", "c"])
    with pytest.raises(UsageError, match="different identities"):
        Hierarchy.from_nodes([1, 1], ["a", "b"], [0, 0])
