"""Small things the machines are made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.common.errors import UsageError
from gradbase.store.machine import Job, parse_consistency
from gradbase.store.machine._ranges import NumberSet, as_ranges, holds, numbers_in, subtract, union
from gradbase.store.machine.timing import Stopwatch

numbers = st.lists(st.integers(0, 40), max_size=40)


@given(numbers, numbers)
def test_ranges_are_sets(left: list[int], right: list[int]) -> None:
    a, b = as_ranges(left), as_ranges(right)
    assert set(numbers_in(a)) == set(left)
    assert set(numbers_in(subtract(a, b))) == set(left) - set(right)
    assert union(a, b) == as_ranges([*left, *right])
    assert all(holds(a, number) == (number in left) for number in range(42))


@given(numbers, numbers)
def test_a_number_set_grows_like_a_set(first: list[int], later: list[int]) -> None:
    grown = NumberSet(as_ranges(first))
    for number in later:
        grown.add(number)
    assert set(numbers_in(grown.ranges())) == {*first, *later}
    assert all((number in grown) == (number in {*first, *later}) for number in range(42))


def test_a_stopwatch_cuts_jumps_off() -> None:
    watch = Stopwatch(100)
    assert [watch.passed_us(now) for now in (50, 60, 10_000, 0, 30)] == [0, 10, 100, 0, 30]


@pytest.mark.parametrize(("text", "parsed"), [("bsp", ("bsp", 0)), ("asp", ("asp", 0)), ("ssp:3", ("ssp", 3))])
def test_consistencies_parse(text: str, parsed: tuple[str, int]) -> None:
    assert parse_consistency(text) == parsed


@pytest.mark.parametrize("text", ["", "ssp", "ssp:", "ssp:-1", "bsp:1", "asp:0", "ssp:1.5", "BSP"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ssp:3"):
        parse_consistency(text)


def test_command_logging_needs_bsp() -> None:
    with pytest.raises(UsageError, match="computed again"):
        Job(1, 1, 1, "asp", durability="wal", logging="command")


def test_a_job_needs_something_to_do_it_with() -> None:
    for lanes, shards, steps in ((0, 1, 1), (1, 0, 1), (1, 1, -1)):
        with pytest.raises(UsageError):
            Job(lanes, shards, steps)
