"""Records, and the merge of two measurements as algebra."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.catalog import OperatorStatistics, TierStatistics, merge
from gradbase.catalog._records import decode_outputs, encode_outputs, merge_all

times = st.floats(0, 1e9)
outputs = st.lists(
    st.tuples(st.integers(0, 2**40), st.lists(st.integers(0, 2**31), max_size=4).map(tuple)), max_size=3
).map(tuple)
entries = st.builds(
    OperatorStatistics,
    op=st.just("aten.mm.default"),
    signature=st.just("mm f32[2,2]"),
    time_us=times,
    spread_us=times,
    count=st.integers(1, 10**6),
    scratch_bytes=st.integers(0, 2**50),
    outputs=outputs,
    details=st.text(max_size=5),
    flops=st.integers(0, 2**60),
    moved_bytes=st.integers(0, 2**60),
)


def same_measurement(left: OperatorStatistics, right: OperatorStatistics) -> bool:
    return (
        left.count == right.count
        and left.scratch_bytes == right.scratch_bytes
        and math.isclose(left.time_us, right.time_us, rel_tol=1e-9, abs_tol=1e-6)
        and math.isclose(left.spread_us, right.spread_us, rel_tol=1e-6, abs_tol=1e-2)
    )


@given(entries, entries)
def test_merge_adds_counts_and_stays_between_the_medians(stored: OperatorStatistics, new: OperatorStatistics) -> None:
    merged = merge(stored, new)
    low, high = sorted((stored.time_us, new.time_us))
    assert merged.count == stored.count + new.count
    assert low - 1e-6 <= merged.time_us <= high * (1 + 1e-12) + 1e-6
    assert merged.spread_us >= min(stored.spread_us, new.spread_us) * (1 - 1e-9) - 1e-6
    assert merged.scratch_bytes == max(stored.scratch_bytes, new.scratch_bytes)
    assert (merged.outputs, merged.details) == (new.outputs, new.details)
    assert (merged.flops, merged.moved_bytes) == (new.flops, new.moved_bytes)


@given(entries, entries)
def test_merge_does_not_depend_on_order(left: OperatorStatistics, right: OperatorStatistics) -> None:
    assert same_measurement(merge(left, right), merge(right, left))


@given(entries, entries, entries)
def test_merge_does_not_depend_on_grouping(a: OperatorStatistics, b: OperatorStatistics, c: OperatorStatistics) -> None:
    assert same_measurement(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(entries)
def test_merge_with_itself_only_doubles_the_count(entry: OperatorStatistics) -> None:
    assert same_measurement(merge(entry, entry), replace(entry, count=2 * entry.count))


def test_a_shift_between_measurements_shows_in_the_spread() -> None:
    calm = OperatorStatistics("op", "s", time_us=100, spread_us=0, count=5, scratch_bytes=0)
    merged = merge(calm, replace(calm, time_us=200))
    # Half the samples at each of two points 100 apart have a standard deviation of 50.
    assert merged.spread_us == pytest.approx(50 * 2 * statistics.NormalDist().inv_cdf(0.75))


@given(st.lists(times, min_size=1, max_size=30))
def test_from_samples_is_the_median_and_the_interquartile_range(samples: list[float]) -> None:
    entry = OperatorStatistics.from_samples("op", "s", samples)
    ordered = sorted(samples)

    def quantile(q: float) -> float:
        place = q * (len(ordered) - 1)
        low = ordered[math.floor(place)]
        return low + (place - math.floor(place)) * (ordered[math.ceil(place)] - low)

    assert entry.count == len(samples)
    assert entry.time_us == pytest.approx(quantile(0.5), abs=1e-6)
    assert entry.spread_us == pytest.approx(quantile(0.75) - quantile(0.25), abs=1e-5)


def test_merge_all_keeps_the_order_of_first_appearance() -> None:
    first = OperatorStatistics("op", "b", 1, 0, 1, 0)
    merged = merge_all([first, replace(first, signature="a"), first])
    assert list(merged) == ["b", "a"]
    assert [entry.count for entry in merged.values()] == [2, 1]


@given(outputs)
def test_outputs_survive_their_text(value: tuple[tuple[int, tuple[int, ...]], ...]) -> None:
    assert decode_outputs(encode_outputs(value)) == value


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_us": math.nan},
        {"time_us": -1.0},
        {"spread_us": math.inf},
        {"count": 0},
        {"scratch_bytes": -1},
        {"flops": 2**63},
        {"op": None},
    ],
)
def test_what_cannot_be_a_measurement_is_refused(wrong: dict[str, object]) -> None:
    entry = OperatorStatistics("op", "s", 1.0, 0.0, 1, 0)
    with pytest.raises(ValueError):
        replace(entry, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"write_bytes_per_us": 0.0}, {"latency_us": math.nan}, {"alignment_bytes": 0}])
def test_what_cannot_be_a_tier_is_refused(wrong: dict[str, float]) -> None:
    tier = TierStatistics("m", "disk", 1.0, 1.0, 1.0, 0.1, False)
    with pytest.raises(ValueError):
        replace(tier, **wrong)  # type: ignore[arg-type]
