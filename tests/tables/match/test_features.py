from __future__ import annotations

import numpy as np

from gradbase.tables.match import Records
from gradbase.tables.match._features import EDITED_CHARACTERS_MAX, WHOLE, compare


def pair(left, right, more=()):
    """Features of one pair of records, among others that give words their rarity."""
    columns = list(left)
    a = Records.from_columns({c: [left[c], *(m[c] for m in more)] for c in columns})
    b = Records.from_columns({c: [right[c], *(m[c] for m in more)] for c in columns}, name="b")
    return compare(a, b, np.array([0]), np.array([0]))


def test_equal_values_are_as_alike_as_can_be():
    found = pair({"name": "Grand Hotel"}, {"name": "grand  hotel"})
    for name in ("equal", "edits", "Jaro-Winkler", "tokens cos", "3-grams cos"):
        assert np.isclose(found.of("name", name)[0], 1), name


def test_a_missing_value_says_nothing_but_that_it_is_missing():
    found = pair({"name": "grand hotel", "year": None}, {"name": "grand hotel", "year": "1999"})
    of_year = {n: v for c, n, v in zip(found.columns, found.names, found.values[0], strict=True) if c == "year"}
    assert of_year.pop("missing in one") == 1
    within = {n for n in of_year if "in record" in n}
    assert not any(v for n, v in of_year.items() if n not in within)


def test_codes_agree_across_spellings_and_conflict():
    same = pair({"name": "cush top f8n044slv"}, {"name": "cushtop f8n044-slv"})
    assert same.of(WHOLE, "codes same")[0] > 0 and same.of(WHOLE, "codes in conflict")[0] == 0
    other = pair({"name": "camera dscw120p"}, {"name": "camera fe360x"})
    assert other.of(WHOLE, "codes in conflict")[0] == 1
    cut = pair({"name": "washer wfw9200swh"}, {"name": "washer wfw9200"})
    assert cut.of(WHOLE, "codes prefix")[0] == 1


def test_numbers_are_near_by_their_ratio():
    found = pair({"price": "$100.00"}, {"price": "100"})
    assert found.of("price", "amount equal")[0] == 1
    far = pair({"price": "100"}, {"price": "200"})
    assert far.of("price", "amount near")[0] < 1


def test_a_value_is_found_in_another_column():
    found = pair({"title": "sony camera", "maker": None}, {"title": "camera", "maker": "sony"})
    assert np.isclose(found.of("title", "left in record cover")[0], 1)


def test_chunks_do_not_change_the_result(monkeypatch):
    a = Records.from_columns({"x": ["ab cd", "cd 12", "ef", None]})
    rows = np.array([0, 1, 2, 3, 0]), np.array([1, 1, 0, 2, 3])
    at_once = compare(a, a, *rows)
    monkeypatch.setattr("gradbase.tables.match._features._CHUNK_PAIRS", 2)
    assert np.array_equal(compare(a, a, *rows).values, at_once.values)


def test_of_very_long_texts_edits_are_counted_over_the_beginning_and_words_over_all():
    long = "word " * EDITED_CHARACTERS_MAX
    found = pair({"x": long + "one"}, {"x": long + "two"})
    assert found.of("x", "edits")[0] == 1
    assert found.of("x", "equal")[0] == 0 and found.of("x", "tokens only_left")[0] > 0
