from __future__ import annotations

import pytest

from gradbase.common.errors import UsageError
from gradbase.tables.match import pair_tables, score_pair_tables

TRAIN = {"label": ["1", "0"], "l_x": ["a", "a"], "l_y": ["1", "1"], "r_x": ["b", "c"], "r_y": ["2", ""]}
TEST = {"l_x": ["a", "d"], "l_y": ["1", "4"], "r_x": ["c", "b"], "r_y": [None, "2"]}


def test_equal_records_are_one_across_tables():
    a, b, (train, test) = pair_tables(TRAIN, TEST)
    assert a.columns == b.columns == ("x", "y")
    assert a.values == (("a", "d"), ("1", "4")) and b.values == (("b", "c"), ("2", None))
    assert train.left == (0, 0) and train.right == (0, 1) and train.label == (1, 0)
    assert test.left == (0, 1) and test.right == (1, 0) and test.label is None


def test_rows_come_back_in_their_order():
    result = score_pair_tables(TEST, [TRAIN])
    assert len(result.pairs) == 2 and result.learned_from == "no labels"
    assert not result.pairs.matched[0]  # labelled 0 in the other table


def test_labels_of_the_pairs_asked_for_are_not_looked_at():
    asked = {**TEST, "label": ["1", "1"]}
    plain, labelled = score_pair_tables(TEST), score_pair_tables(asked)
    assert plain.pairs.log_odds.tolist() == labelled.pairs.log_odds.tolist()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"x": ["a"]}, r"column l_\*"),
        ({"l_x": ["a"], "r_z": ["b"]}, "column r_x, r_z"),
        ({**TRAIN, "label": ["1", "maybe"]}, "'maybe' in row 2"),
    ],
)
def test_what_is_refused(table, said):
    with pytest.raises(UsageError, match=said):
        pair_tables(table)


def test_training_pairs_need_labels():
    with pytest.raises(UsageError, match="no column 'label'"):
        score_pair_tables(TEST, [TEST])
