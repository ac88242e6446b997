"""Which pages of a region were touched."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.buffer import Region, total_bytes, union

PAGE = mmap.PAGESIZE
RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6)


def test_untouched_pages_take_no_memory_and_are_told_apart():
    region = Region(10 * PAGE + 100)
    assert region.touched() == ()
    window = region.tensor(0, "uint8", (region.nbytes,), (1,))
    window[2 * PAGE : 4 * PAGE + 1] = 7
    assert int(window[-1]) == 0  # reading touches too
    assert region.touched() == ((2 * PAGE, 3 * PAGE), (10 * PAGE, 100))
    region.clear()
    assert region.touched() == ()
    assert int(window[2 * PAGE]) == 0


def test_where_the_system_does_not_tell_all_counts_as_touched(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr("gradbase.buffer._region._PAGEMAP", tmp_path / "missing")
    assert Region(3 * PAGE).touched() == ((0, 3 * PAGE),)


@given(RUNS, RUNS)
def test_a_union_covers_what_either_covers(first, second):
    covered = {byte for start, length in (*first, *second) for byte in range(start, start + length)}
    merged = union(tuple(first), tuple(second))
    assert {byte for start, length in merged for byte in range(start, start + length)} == covered
    assert total_bytes(merged) == len(covered)
    assert all(a + n < b for (a, n), (b, _) in zip(merged, merged[1:], strict=False))
