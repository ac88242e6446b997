"""Measured numbers: bias, scale, units, gross errors, intervals, reasons."""

import numpy as np
import pytest

from gradbase.tables.fuse import AttributeOptions, Claims, infer
from gradbase.tables.fuse._measured import Measurements, estimate
from tests.tables.fuse.worlds import World, mean_error, mean_error_of_means, odds_left_unexplained, readings

MEASURED = {"x": AttributeOptions(kind="measure")}


def by_source(claims: Claims, table: dict[str, np.ndarray], column: str, sources: int) -> np.ndarray:
    found = {claims.source_names[s]: value for s, value in zip(table["source"], table[column], strict=True)}
    return np.array([found[f"s{i}"] for i in range(sources)])


def test_noisy_sources_count_less() -> None:
    world, _, _ = readings(seed=1)
    claims = world.claims()
    result = infer(claims)
    assert result.kinds == {"x": "measure"}
    assert mean_error(world, claims, result) < 0.8 * mean_error_of_means(world)


def test_bias_is_taken_off() -> None:
    world, bias, _ = readings(bias=8.0, seed=2)
    claims = world.claims()
    result = infer(claims)
    assert np.corrcoef(by_source(claims, result.sources, "bias", 12), bias)[0, 1] > 0.95
    assert mean_error(world, claims, result) < 0.7 * mean_error_of_means(world)


def test_scale_is_taken_back() -> None:
    world, _, scale = readings(scale=0.3, seed=3)
    claims = world.claims()
    result = infer(claims)
    assert np.corrcoef(by_source(claims, result.sources, "scale", 12), scale)[0, 1] > 0.95
    assert mean_error(world, claims, result) < 0.5 * mean_error_of_means(world)


def test_units_and_gross_errors() -> None:
    world, _, _ = readings(seed=4)
    random = np.random.default_rng(0)
    for i, (o, a, s, value, t) in enumerate(world.rows):
        wrong = 1e5 if random.random() < 0.01 else 1.0
        world.rows[i] = (o, a, s, value * (0.001 if s == "s2" else wrong), t)
    claims = world.claims()
    result = infer(claims, attributes=MEASURED)
    assert by_source(claims, result.sources, "scale", 12)[2] == pytest.approx(0.001, rel=0.1)
    assert mean_error(world, claims, result) < 3.0 < 0.1 * mean_error_of_means(world)


def test_intervals_hold_the_truth() -> None:
    world, _, _ = readings(items=300, seed=5)
    claims = world.claims()
    truths = infer(claims).truths
    true = np.array([world.truth[claims.object_names[o]] for o in truths["object"]])
    assert 0.88 < np.mean((truths["low"] <= true) & (true <= truths["high"])) <= 1.0


@pytest.mark.parametrize("shape", [{}, {"bias": 5.0}, {"scale": 0.4}])
def test_reasons_sum_to_the_decision(shape: dict[str, float]) -> None:
    world, _, _ = readings(items=60, seed=6, **shape)
    result = infer(world.claims(), attributes=MEASURED)
    assert odds_left_unexplained(result) < 1e-6 * max(1.0, float(np.abs(result.why["log_odds"]).max()))


def test_equal_claims_and_text_among_numbers() -> None:
    world = World(
        [("o", "x", "a", 3, np.nan), ("o", "x", "b", 3.0, np.nan), ("o", "x", "c", "n/a", np.nan)], {"o": 3.0}
    )
    truths = infer(world.claims(), attributes=MEASURED).truths
    assert truths["value"].tolist() == [3.0] and truths["claims"].tolist() == [2]


def test_claims_that_are_all_drawn_together_are_not_held_out() -> None:
    item, source = np.divmod(np.arange(120), 2)
    data = Measurements(np.full(120, 1.5), item, source, np.ones(120), 60, 2)
    found = estimate(data, np.full(120, 0.1), 50)
    assert (found.truth == 1.5).all() and not any(gate.kept for gate in found.gates)


def test_where_no_item_has_two_claims_they_may_be_off_as_far_as_numbers_are_apart() -> None:
    said = np.random.default_rng(0).normal(50, 20, 60)
    claims = Claims.from_columns([*range(60)], ["x"] * 60, ["a", "b"] * 30, said.tolist())
    truths = infer(claims, attributes=MEASURED).truths
    np.testing.assert_allclose((truths["high"] - truths["low"]) / 2, 1.645 * said.std(), rtol=0.25)


def said_in(unit: float) -> tuple[Claims, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Claims of a small world in another unit, their truths and sources."""
    world, _, _ = readings(items=40, seed=7)
    world.rows = [(o, a, s, value * unit, t) for o, a, s, value, t in world.rows]
    result = infer(world.claims(), attributes=MEASURED)
    return world.claims(), result.truths, result.sources


@pytest.mark.parametrize("unit", [1e-312, 1e-200, 1e-9, 1e9, 1e160, 1e306])
def test_the_unit_of_all_numbers_does_not_matter(unit: float) -> None:
    """Squares of the largest and the smallest are out of range; of millions, what they differ by is not."""
    (_, one, sources), (_, other, others) = said_in(1.0), said_in(unit)
    for name in ("value", "low", "high", "runner_up"):
        there = np.array(other[name], dtype=np.float64) / unit
        np.testing.assert_allclose(there, np.array(one[name], dtype=np.float64), rtol=0.01, atol=0.3)
    np.testing.assert_allclose(others["quality"], sources["quality"], rtol=0.05)


@pytest.mark.parametrize("number", [1e50, 1e300])
def test_one_number_out_of_all_proportion_moves_no_other(number: float) -> None:
    world, _, _ = readings(items=40, seed=8)
    without = infer(world.claims(), attributes=MEASURED)
    world.say("o0", "s0", number) if world.rows[0][2] != "s0" else world.say("o0", "s1", number)
    having = infer(world.claims(), attributes=MEASURED)
    assert having.unread == ({"x": 1} if number == 1e300 else {})
    of = [dict(zip(result.truths["object"], result.truths["value"], strict=True)) for result in (without, having)]
    assert max(abs(of[0][item] - of[1][item]) for item in of[0]) < 1.0


def truth_of(world: World, item: str) -> dict[str, float]:
    claims = world.claims()
    truths = infer(claims, attributes=MEASURED).truths
    row = [claims.object_names[code] for code in truths["object"]].index(item)
    return {name: float(truths[name][row]) for name in ("value", "low", "high")}


def test_of_claims_that_are_all_far_off_the_likeliest_is_kept() -> None:
    world, _, _ = readings(items=40, seed=9)
    world.say("two", "s0", 48.0)
    world.say("two", "s1", 4.8e6)
    assert truth_of(world, "two")["value"] == pytest.approx(48.0, rel=0.05)
    world.say("far", "s0", 5e6)
    world.say("far", "s1", 6e6)
    assert truth_of(world, "far")["value"] == pytest.approx(5e6, rel=0.01)


def test_claims_of_no_confidence_say_where_the_truth_is_and_hardly_more() -> None:
    world, _, _ = readings(items=40, seed=10)
    columns = list(zip(*world.rows, strict=True))
    item = columns[0][0]
    mine = np.array([value for name, *_, value, _ in world.rows if name == item], dtype=np.float64)
    confidence = [0.0 if name == item else 1.0 for name in columns[0]]
    claims = Claims.from_columns(*columns[:4], confidence=confidence)
    truths = infer(claims, attributes=MEASURED).truths
    row = [claims.object_names[code] for code in truths["object"]].index(item)
    width = truths["high"] - truths["low"]
    assert mine.min() <= truths["value"][row] <= mine.max()
    assert width[row] > 100 * np.median(width)


def test_one_number_alone_has_no_interval() -> None:
    truths = infer(World([("o", "x", "a", 5.0, np.nan)], {}).claims(), attributes=MEASURED).truths
    assert truths["value"].tolist() == [5.0] and np.isnan(truths["low"]).all() and np.isnan(truths["high"]).all()


@pytest.mark.parametrize("number", [5e-324, 3.25, 1.5e308])
def test_sources_that_all_say_one_number_are_right(number: float) -> None:
    rows = [(f"o{i}", "x", f"s{s}", number, np.nan) for i in range(20) for s in range(4)]
    result = infer(World(rows, {}).claims(), attributes=MEASURED)
    np.testing.assert_allclose(result.truths["value"].astype(np.float64), number, rtol=1e-12)
    assert (result.sources["quality"] > 0.99).all()
