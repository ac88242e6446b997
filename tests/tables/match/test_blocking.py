from __future__ import annotations

import numpy as np
import pytest

from gradbase.tables.match import Records, _blocking
from gradbase.tables.match._blocking import candidates
from tests.tables.match.people import two_tables


def test_nearly_every_true_pair_is_a_candidate():
    a, b, truth = two_tables(400)
    left, right = candidates(a, b, 5)
    found = {(a.ids[i], b.ids[j]) for i, j in zip(left, right, strict=True)}
    assert len(truth & found) >= 0.99 * len(truth)
    assert len(found) <= 5 * (len(a) + len(b))


def test_candidates_of_one_table_are_pairs_of_two_records_once():
    a, _, _ = two_tables(100)
    left, right = candidates(a, None, 5)
    assert (left < right).all()
    assert len(set(zip(left.tolist(), right.tolist(), strict=True))) == len(left) > 0


def test_words_written_together_meet():
    a = Records.from_columns({"x": ["cush top", "other thing"]})
    b = Records.from_columns({"x": ["cushtop", "something else"]}, name="b")
    assert [0] == candidates(a, b, 3)[0].tolist() == candidates(a, b, 3)[1].tolist()


def test_work_per_record_is_bounded(monkeypatch):
    """A word in every record is never looked up, so a thousand equal records do not make a million pairs."""
    read = []
    best = _blocking._best

    def counted(index, asking, rows, keys, *rest):
        read.append(int(np.bincount(rows, index.counts[keys]).max()))
        return best(index, asking, rows, keys, *rest)

    monkeypatch.setattr(_blocking, "_best", counted)
    texts = [f"common word{k % 300}" for k in range(1000)]
    candidates(Records.from_columns({"x": texts}), None, 4)
    assert 0 < max(read) <= _blocking._POSTINGS_MOST


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_do_not_change_the_candidates(monkeypatch, size):
    a, b, _ = two_tables(60)
    whole = candidates(a, b, 3)
    monkeypatch.setattr(_blocking, "_CHUNK_POSTINGS", size)
    assert all(np.array_equal(x, y) for x, y in zip(candidates(a, b, 3), whole, strict=True))


@pytest.mark.parametrize("texts", [[], [None], ["---", None]])
def test_records_without_keys_have_no_candidates(texts):
    records = Records.from_columns({"x": texts})
    assert len(candidates(records, None, 3)[0]) == 0
    assert len(candidates(records, Records.from_columns({"x": ["a"]}, name="b"), 3)[0]) == 0
