from __future__ import annotations

import math

import pytest

from gradbase.common.errors import UsageError
from gradbase.tables.match import Config, Labelled, Records


def test_cells_become_texts_and_missing_ones_none():
    records = Records.from_columns({"x": [" a ", "", None, math.nan, 3.0, 2.5]})
    assert records.values == (("a", None, None, None, "3", "2.5"),)
    assert records.ids == ("0", "1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("columns", "ids", "said"),
    [
        ({}, [], "no columns"),
        ({"x": ["a", "b"]}, ["1"], "2 values for 1 ids"),
        ({"x": ["a", "b"]}, ["7", "7"], "'7' is there twice"),
        ({"x": ["a", "b"]}, ["7", None], "row 2 of table 'a' has no id"),
    ],
)
def test_what_records_refuse(columns, ids, said):
    with pytest.raises(UsageError, match=said):
        Records.from_columns(columns, ids)


def test_labels_are_0_or_1_and_complete():
    with pytest.raises(UsageError, match="label 2"):
        Labelled(("a",), ("b",), (2,))
    with pytest.raises(UsageError, match="1 left ids, 2 right ids"):
        Labelled(("a",), ("b", "c"), (1,))


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"one_to_one": "maybe"}, {"members": 0}, {"candidates_max": 0}, {"memory": "much"}]
)
def test_configuration_is_checked_when_it_is_made(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Config(**wrong)
