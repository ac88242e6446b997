"""Numbers and yes/no sets."""

from __future__ import annotations

import numpy as np
import pytest

from gradbase.common.errors import UsageError
from gradbase.tables.crowd import Claims, State, infer, next_labels
from gradbase.tables.crowd._spread import student90


def measured(seed: int, bias: float) -> tuple[Claims, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.normal(0, 10, 150)
    deviation, offset = generator.uniform(1, 8, 9), generator.normal(0, bias, 9)
    item, worker = np.repeat(np.arange(150), 6), np.stack([generator.permutation(9)[:6] for _ in range(150)]).ravel()
    said = truth[item] + offset[worker] + generator.normal(0, 1, 900) * deviation[worker]
    return Claims.from_columns(item, worker, said, kind="numbers"), truth


@pytest.mark.parametrize("bias", [0.0, 8.0])
def test_numbers_are_nearer_than_the_mean(bias: float) -> None:
    claims, truth = measured(0, bias)
    result = infer(claims)
    mean = np.bincount(claims.item, claims.label) / np.bincount(claims.item)
    shift = 0.0 if bias == 0 else np.median(result.value - truth)  # a bias of all workers cannot be seen
    assert np.abs(result.value - shift - truth).mean() < np.abs(mean - truth).mean()
    weights = result.why()
    np.testing.assert_allclose(np.bincount(weights.item, weights.log_odds), 1.0)
    assert (result.interval[:, 0] < result.value).all() and (result.value < result.interval[:, 1]).all()


def test_biases_that_tell_nothing_are_left_out() -> None:
    assert (infer(measured(1, 0.0)[0]).workers.bias == 0).all()
    assert np.ptp(infer(measured(1, 8.0)[0]).workers.bias) > 5


def inside(result, truth: np.ndarray) -> float:
    return float(((result.interval[:, 0] <= truth) & (truth <= result.interval[:, 1])).mean())


@pytest.mark.parametrize("per_item", [2, 4, 8])
def test_intervals_hold_what_they_promise(per_item: int) -> None:
    """Independent errors: nine truths of ten are inside, and not nearly all."""
    found = []
    for seed in range(4):
        generator = np.random.default_rng(seed)
        truth, deviation = generator.normal(0, 10, 200), generator.uniform(2, 6, 12)
        item = np.repeat(np.arange(200), per_item)
        worker = np.stack([generator.permutation(12)[:per_item] for _ in range(200)]).ravel()
        said = truth[item] + generator.normal(0, 1, len(item)) * deviation[worker]
        found.append(inside(infer(Claims.from_columns(item, worker, said, kind="numbers")), truth))
    assert 0.88 < np.mean(found) < 0.97


def test_what_divides_a_crowd_is_less_certain() -> None:
    """Half of the items are hard, and there all err together: their intervals are wide enough all the same."""
    generator = np.random.default_rng(0)
    hard = np.arange(300) % 2
    truth, together = generator.normal(0, 10, 300), generator.normal(0, 1, 300) * (0.2 + 4 * hard)
    item, worker = np.repeat(np.arange(300), 8), np.tile(np.arange(8), 300)
    said = (truth + together)[item] + generator.normal(0, 1, 2400) * (0.5 + 7 * hard)[item]
    result = infer(Claims.from_columns(item, worker, said, kind="numbers"))
    width = np.diff(result.interval, axis=1)[:, 0]
    assert np.median(width[hard == 1]) > 2 * np.median(width[hard == 0])
    assert inside(result, truth) > 0.85


def test_where_nobody_can_be_compared_a_number_may_be_off_as_far_as_numbers_are_apart() -> None:
    said = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    result = infer(Claims.from_columns(np.arange(5), ["a"] * 5, said, kind="numbers"))
    np.testing.assert_allclose(result.value, said)
    np.testing.assert_allclose(np.diff(result.interval)[:, 0] / 2, 1.645 * said.std(), rtol=0.02)
    alone = infer(Claims.from_columns([0], ["a"], [1.5], kind="numbers"))
    assert alone.value == [1.5] and np.isnan(alone.interval).all() and alone.probability == [0.0]


def test_one_item_tells_no_biases() -> None:
    result = infer(Claims.from_columns([0, 0, 0], ["a", "b", "c"], [1.5, 2.5, 9.0], kind="numbers"))
    assert (result.workers.bias == 0).all() and np.diff(result.interval) > 5


def test_few_items_that_are_compared_tell_how_far_all_may_be_off() -> None:
    generator = np.random.default_rng(0)
    truth, item = generator.normal(0, 10, 600), np.concatenate([np.arange(600), np.arange(100)])
    worker = np.concatenate([generator.integers(0, 6, 600), generator.integers(6, 12, 100)])
    said = truth[item] + generator.normal(0, 2, 700)
    result = infer(Claims.from_columns(item, worker, said, kind="numbers"))
    assert 0.85 < inside(result, truth) < 0.97


def test_students_quantiles() -> None:
    np.testing.assert_allclose(student90(np.array([2.0, 5.0, 30.0])), [2.920, 2.015, 1.697], rtol=0.004)


def test_rows_again_and_a_new_order_change_no_number() -> None:
    claims, _ = measured(2, 0.0)
    rows = np.random.default_rng(0).integers(0, len(claims), 2000)
    rows = np.concatenate([np.arange(len(claims))[::-1], rows])
    parts = (claims.item[rows], claims.worker[rows], claims.label[rows])
    again = infer(Claims(*parts, claims.items, claims.workers, claims.classes, "numbers"))
    np.testing.assert_array_equal(again.value, infer(claims).value)


def test_one_number_and_none() -> None:
    result = infer(Claims.from_columns([1], ["a"], [5.0], kind="numbers", items=[2]))
    assert result.value[0] == 5.0 and np.isnan(result.value[1])
    assert next_labels(result, 1).item.tolist() == [1]


def test_numbers_grow() -> None:
    claims, _ = measured(3, 0.0)
    half = [
        Claims.from_columns(*(c[rows] for c in (claims.item, claims.worker, claims.label)), kind="numbers")
        for rows in (slice(0, 450), slice(450, None))
    ]
    state = State.from_tables(infer(half[0]).state.tables())
    np.testing.assert_allclose(infer(half[1], state=state).value, infer(claims).value)


def test_numbers_that_are_none_are_an_error() -> None:
    with pytest.raises(UsageError, match="1 of 2 numbers are NaN or infinite"):
        Claims.from_columns([1, 2], ["a", "a"], [1.0, float("nan")], kind="numbers")


def test_sets_beat_majority_and_their_reasons_add_up() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((120, 5)) < np.array([0.5, 0.3, 0.1, 0.05, 0.6])
    hit, false_alarm = generator.beta(6, 3, 15), generator.beta(2, 15, 15)
    item = np.repeat(np.arange(120), 4)
    worker = np.stack([generator.permutation(15)[:4] for _ in range(120)]).ravel()
    chance = np.where(truth[item], hit[worker, None], false_alarm[worker, None])
    chosen = [np.flatnonzero(generator.random(5) < row).tolist() for row in chance]
    claims = Claims.from_sets(item, worker, chosen)
    result = infer(claims)
    votes = np.zeros((120, 5))
    np.add.at(votes, (claims.item, claims.tag), claims.label)
    assert (result.value == truth).mean() > ((votes > 2) == truth).mean()
    why = result.why()
    odds = np.zeros((120, 5))
    np.add.at(odds, (why.item, why.tag), why.log_odds)
    np.testing.assert_allclose(odds, np.log(result.probability / (1 - result.probability)), atol=1e-9)
    again = infer(claims, state=State.from_tables(result.state.tables()))
    assert (again.value == result.value).mean() > 0.98


def test_a_tag_left_out_is_a_no() -> None:
    claims = Claims.from_sets([1, 1, 2], ["a", "b", "a"], [["x", "y"], ["x"], []])
    assert claims.classes.tolist() == ["x", "y"] and len(claims) == 6
    assert infer(claims).value[:, 0].tolist() == [True, False]


@pytest.mark.parametrize("power", [-1040, -600, -30, 30, 500, 1015])
def test_the_unit_of_all_numbers_does_not_matter(power: int) -> None:
    """By powers of two no bit of a number changes, but that the smallest have few; squares are out of range."""
    claims, _ = measured(2, 8.0)
    other = Claims.from_columns(claims.item, claims.worker, np.ldexp(claims.label, power), kind="numbers")
    one, two = infer(claims), infer(other)
    rough = {"rtol": 1e-7 if power < -1000 else 0.0}
    np.testing.assert_allclose(np.ldexp(two.value, -power), one.value, **rough)
    np.testing.assert_allclose(np.ldexp(two.interval, -power), one.interval, **rough)
    np.testing.assert_allclose(np.ldexp(two.workers.bias, -power), one.workers.bias, **rough)
    np.testing.assert_allclose(two.workers.quality, one.workers.quality, **rough)
    np.testing.assert_array_equal(next_labels(two, 5).item, next_labels(one, 5).item)


def test_one_number_out_of_all_proportion_moves_no_other() -> None:
    claims, _ = measured(3, 0.0)
    label = claims.label.copy()
    label[0] = 1e300
    result = infer(Claims.from_columns(claims.item, claims.worker, label, kind="numbers"))
    mean = np.bincount(claims.item, claims.label) / np.bincount(claims.item)
    assert np.isfinite(result.value).all() and np.isfinite(result.interval).all()
    assert np.abs(result.value - mean)[np.arange(150) != claims.item[0]].max() < 10
