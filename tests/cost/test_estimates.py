"""Roofline, learned times, and which of them answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.catalog import OperatorStatistics
from gradbase.cost import (
    PROFILES,
    DeviceProfile,
    estimate,
    fit,
    profile_from_measurements,
    q_errors,
    roofline,
    validate,
)
from gradbase.cost._host import HostMeasurements
from gradbase.ir.logical import LogicalPlan, Operator, Tensor

CPU = profile_from_measurements("here", HostMeasurements(50e9, 25e9, 10e9, 2**34))
amounts = st.integers(0, 2**50)
profiles = st.sampled_from([*PROFILES.values(), CPU])


def operator(flops: int, moved_bytes: int, dtype: str = "float32", target: str = "aten.mm.default") -> Operator:
    tensor = Tensor(0, dtype, (64, 64), (64, 1))
    signature = f"{target} {dtype} {flops} {moved_bytes}"
    return Operator(
        0, "mm", target, (0,), (1,), inputs=(tensor,), signature=signature, flops=flops, moved_bytes=moved_bytes
    )


def plan(*operators: Operator) -> LogicalPlan:
    return LogicalPlan((), operators)


def power_law(
    rows: int, seed: int, noise: float = 0.05, target: str = "aten.mm.default", dtype: str = "float32"
) -> list[OperatorStatistics]:
    """Rows of t = 2e-5 flops^0.7 moved^0.3, with lognormal noise; flops and bytes vary on their own."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        flops, moved = int(10 ** chance.uniform(5, 10)), int(10 ** chance.uniform(4, 8))
        time_us = 2e-5 * flops**0.7 * moved**0.3 * math.exp(chance.normal(0, noise))
        signature = operator(flops, moved, dtype, target).signature
        found.append(OperatorStatistics(target, signature, time_us, 0.0, 5, moved // 4, flops=flops, moved_bytes=moved))
    return found


def keyed(rows: list[OperatorStatistics]) -> dict[str, OperatorStatistics]:
    return {row.signature: row for row in rows}


@given(amounts, amounts, amounts, amounts, profiles)
def test_the_roofline_never_falls_as_work_grows(
    flops: int, moved: int, more_flops: int, more_moved: int, profile: DeviceProfile
) -> None:
    little = roofline(operator(flops, moved), profile)
    much = roofline(operator(flops + more_flops, moved + more_moved), profile)
    assert profile.overhead_us <= little.time_us <= much.time_us


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic() -> None:
    slack = pytest.approx(CPU.overhead_us)
    assert roofline(operator(50_000_000, 0), CPU).time_us - 1000 == slack
    assert roofline(operator(0, 10_000_000), CPU).time_us - 1000 == slack
    assert roofline(operator(50_000_000, 10_000_000), CPU).time_us - 1000 == slack
    assert roofline(operator(0, 0), CPU).source == "roofline"


def test_the_heaviest_input_decides_the_rate() -> None:
    h100 = PROFILES["h100"]
    big = Tensor(0, "bfloat16", (1000, 1000), (1000, 1))
    small = Tensor(1, "float32", (10,), (1,))
    mixed = replace(operator(10**12, 0), inputs=(small, big))
    expected = 10**12 / (h100.peak_flops["bfloat16"] * h100.compute_efficiency) * 1e6
    assert roofline(mixed, h100).time_us == pytest.approx(expected + h100.overhead_us)
    slower = roofline(replace(mixed, inputs=(small,)), h100).time_us
    assert slower == pytest.approx(expected * h100.peak_flops["bfloat16"] / h100.peak_flops["float32"], rel=0.01)
    # Twice the elements in half the width weigh the same; wider and equally long weighs more.
    wide = Tensor(2, "float64", (1000, 1000), (1000, 1))
    slowest = roofline(replace(mixed, inputs=(big, wide)), h100).time_us
    assert slowest > slower


def test_an_operator_without_tensors_still_has_a_time() -> None:
    assert roofline(replace(operator(0, 0), inputs=()), CPU).time_us == CPU.overhead_us


@pytest.mark.parametrize("rows", [8, 20, 100])
def test_learned_beats_the_roofline_left_one_out(rows: int) -> None:
    outcome = validate(power_law(rows, seed=rows), CPU)
    assert outcome is not None and outcome.count == rows
    assert outcome.learned_is_better
    assert outcome.learned_error < 0.15 < outcome.roofline_error


def test_validation_holds_out_what_it_predicts() -> None:
    """With times that have nothing to do with the work, a model that saw its row would look better than chance."""
    chance = np.random.default_rng(3)
    rows = [replace(row, time_us=float(10 ** chance.uniform(0, 4))) for row in power_law(40, seed=1)]
    outcome = validate(rows, CPU)
    assert outcome is not None and outcome.learned_error > 0.5


def test_outliers_do_not_bend_the_fit() -> None:
    rows = power_law(40, seed=5, noise=0.01)
    spoiled = [replace(row, time_us=row.time_us * 50) if i % 10 == 0 else row for i, row in enumerate(rows)]
    model = fit(spoiled)
    assert model is not None
    errors = [abs(model.time_us(row.flops, row.moved_bytes) / row.time_us - 1) for row in rows]
    assert float(np.median(errors)) < 0.05


def test_neighbours_correct_what_the_law_misses() -> None:
    """Four times slower beyond a cache of a megabyte, as kernels are: a kink that no power law has."""

    def time_us(moved: int) -> float:
        return moved / 1000 * (4 if moved > 2**20 else 1)

    sizes = [int(2**exponent) for exponent in np.arange(14, 26, 0.25)]
    rows = [
        OperatorStatistics("add", f"add float32 {size}", time_us(size), 0.0, 3, 0, flops=size // 12, moved_bytes=size)
        for size in sizes
    ]
    model = fit(rows)
    assert model is not None
    corrected = [abs(math.log(model.time_us(row.flops, row.moved_bytes) / row.time_us)) for row in rows]
    law = [abs(float(r)) for r in model.residuals]
    assert float(np.mean(corrected)) < 0.6 * float(np.mean(law))


def test_operators_that_compute_nothing_can_be_learned() -> None:
    rows = [
        OperatorStatistics("copy", f"copy float32 {n}", 1.0 + n, 0.0, 1, 0, flops=0, moved_bytes=n * 1000)
        for n in range(1, 20)
    ]
    model = fit(rows)
    assert model is not None
    assert model.time_us(0, 10_000) == pytest.approx(11, rel=0.2)


def test_too_few_rows_teach_nothing() -> None:
    rows = power_law(5, seed=1)
    assert fit(rows) is None and validate(rows, CPU) is None
    silent = [replace(row, flops=0, moved_bytes=0) for row in power_law(20, seed=1)]
    assert fit(silent) is None and validate(silent, CPU) is None


def test_a_model_answers_only_where_it_was_measured() -> None:
    model = fit(power_law(60, seed=2))
    assert model is not None
    flops = [row.flops for row in model.rows]
    moved = [row.moved_bytes for row in model.rows]
    assert all(model.covers(row.flops, row.moved_bytes) for row in model.rows)
    assert not model.covers(3 * max(flops), max(moved))
    assert not model.covers(min(flops), min(moved) / 3)
    assert not model.covers(0, 0)


def test_a_hole_inside_the_range_is_not_covered() -> None:
    rows = power_law(60, seed=2)
    corners = [row for row in rows if row.flops < 10**6 or row.flops > 10**9]
    model = fit(corners)
    assert model is not None
    assert not model.covers(10**7.5, 10**6)


def test_measured_goes_before_learned_and_learned_before_roofline() -> None:
    rows = power_law(40, seed=4)
    inside = operator(rows[0].flops + 1, rows[0].moved_bytes + 1)
    measured = operator(rows[0].flops, rows[0].moved_bytes)
    outside = operator(10**15, 10**12)
    stranger = operator(10**6, 10**6, target="aten.never.measured")
    found = estimate(plan(outside, measured, inside, stranger), keyed(rows), CPU)
    assert [e.source for e in found] == ["roofline", "measured", "learned", "roofline"]
    assert (found[1].time_us, found[1].scratch_bytes) == (rows[0].time_us, rows[0].scratch_bytes)
    assert found[2].time_us == pytest.approx(rows[0].time_us, rel=0.2)
    assert found[0] == roofline(outside, CPU)


def test_learning_can_be_switched_off() -> None:
    rows = power_law(40, seed=4)
    inside = operator(rows[0].flops + 1, rows[0].moved_bytes + 1)
    assert [e.source for e in estimate(plan(inside), keyed(rows), CPU, learned=False)] == ["roofline"]


def test_dtypes_are_learned_apart() -> None:
    rows = power_law(40, seed=4)
    half = operator(rows[0].flops + 1, rows[0].moved_bytes + 1, dtype="bfloat16")
    assert [e.source for e in estimate(plan(half), keyed(rows), CPU)] == ["roofline"]
    both = keyed(rows) | keyed(power_law(40, seed=4, dtype="bfloat16"))
    assert [e.source for e in estimate(plan(half), both, CPU)] == ["learned"]


def test_a_model_worse_than_the_roofline_is_not_used() -> None:
    """Times exactly on the roofline, where it is hard to beat, but for noise that only a model would learn."""
    exact = [
        replace(row, time_us=roofline(operator(row.flops, row.moved_bytes), CPU).time_us)
        for row in power_law(12, seed=9)
    ]
    query = operator(exact[0].flops + 1, exact[0].moved_bytes + 1)
    assert [e.source for e in estimate(plan(query), keyed(exact), CPU)] == ["roofline"]


def test_learned_scratch_is_the_most_demanding_neighbours() -> None:
    rows = power_law(40, seed=4)
    (found,) = estimate(plan(operator(rows[0].flops + 1, rows[0].moved_bytes + 1)), keyed(rows), CPU)
    assert found.scratch_bytes == pytest.approx(rows[0].moved_bytes / 4, rel=0.01)


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.floats(0.01, 1e6)), min_size=1, max_size=20))
def test_q_errors_are_symmetric_and_at_least_one(pairs: list[tuple[float, float]]) -> None:
    estimated, actual = zip(*pairs, strict=True)
    found = q_errors(estimated, actual)
    assert found == q_errors(actual, estimated)
    assert 1 <= found.median <= found.max and 1 <= found.p90 <= found.max
    assert found.max == pytest.approx(max(max(e / a, a / e) for e, a in pairs))


def test_q_errors_count_factors() -> None:
    found = q_errors([1, 2, 4, 0], [1, 4, 1, 0])
    assert (found.median, found.max, found.count) == (1.5, 4, 4)
