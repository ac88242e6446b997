"""Class labels: simulated crowds with known truth, and the corners."""

from __future__ import annotations

import numpy as np
import pytest

from gradbase.common.errors import UsageError
from gradbase.tables.crowd import NONE, Claims, Config, infer
from gradbase.tables.crowd._table import table_of
from tests.tables.crowd.worlds import world


def log_odds_by_item(result) -> np.ndarray:
    why = result.why()
    return np.bincount(why.item, why.log_odds, len(result.value))


def assert_reasons_add_up(result) -> None:
    odds = np.log(result.probability / np.where(result.runner_up == NONE, 1.0, result.runner_up_probability))
    wanted = np.where(result.runner_up == NONE, 0.0, odds)
    np.testing.assert_allclose(log_odds_by_item(result), wanted, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "crowd",
    [
        dict(quality=[0.9] * 5 + [0.5] * 10, per_item=7),  # spammers
        dict(quality=[0.85] * 8 + [0.1] * 4, per_item=7),  # adversaries
        dict(quality=[0.85] * 6 + [0.6] * 6, drift=0.2),
        dict(quality=[0.9, 0.9, 0.8, 0.8] + [0.3] * 8, n_classes=6, per_item=7),
    ],
    ids=["spammers", "adversaries", "drift", "six classes"],
)
def test_simulated_crowds_do_not_fool_it(crowd: dict, seed: int) -> None:
    simulated = world(seed, **crowd)
    result = infer(simulated.claims)
    assert simulated.accuracy(result.value) >= simulated.accuracy(simulated.majority())
    assert_reasons_add_up(result)


def test_adversaries_are_told_from_honest_workers() -> None:
    simulated = world(3, quality=[0.85] * 8 + [0.1] * 4, per_item=7)
    workers = infer(simulated.claims).workers
    assert workers.quality[:8].min() > 0.6 and workers.quality[8:].max() < 0.4
    assert (workers.low < workers.quality).all() and (workers.quality < workers.high).all()
    np.testing.assert_allclose(workers.confusion.sum(2), 1.0, atol=1e-9)
    assert workers.claims.sum() == len(simulated.claims)


@pytest.mark.parametrize("misleading", [0.0, 0.1])
@pytest.mark.parametrize("per_item", [3, 8])
def test_intervals_of_workers_hold_what_they_promise(per_item: int, misleading: float) -> None:
    """Also where all err together on some items, so that no label tells that these are errors."""
    held = []
    for seed in range(6):
        quality = np.random.default_rng(seed).beta(8, 3, 20)
        crowd = world(seed, quality=quality.tolist(), n_items=1000, per_item=per_item, misleading=misleading)
        workers = infer(crowd.claims).workers
        really = quality * (1 - misleading) + (1 - quality) * misleading
        held += ((workers.low <= really) & (really <= workers.high)).tolist()
    assert np.mean(held) >= 0.85


def test_one_class_has_no_runner_up() -> None:
    result = infer(Claims.from_columns([1, 1, 2], ["a", "b", "a"], ["x", "x", "x"]))
    assert result.value.tolist() == [0, 0] and result.probability.tolist() == [1.0, 1.0]
    assert result.runner_up.tolist() == [NONE, NONE]
    assert_reasons_add_up(result)


def test_items_that_nobody_labelled_get_the_prior() -> None:
    result = infer(Claims.from_columns([1, 2, 3], ["a", "a", "b"], ["x", "x", "x"], items=[9], classes=["y"]))
    assert result.claim_count.tolist() == [1, 1, 1, 0]
    assert result.value[3] == 0 and 0.5 < result.probability[3] < 1.0
    assert_reasons_add_up(result)


def test_single_labels_and_single_claims() -> None:
    """Items with one label and workers with one item: every answer is somebody's, probabilities are of the simplex."""
    items = np.arange(50)
    result = infer(Claims.from_columns(items, items, items % 3))
    assert result.value.tolist() == (items % 3).tolist()
    np.testing.assert_allclose(result.posterior.sum(1), 1.0)


def test_three_hundred_classes() -> None:
    """More classes than confusion matrices have room for: one number a worker."""
    simulated = world(5, quality=[0.7] * 60 + [0.1] * 60, n_classes=300, n_items=600)
    result = infer(simulated.claims)
    assert result.workers.confusion is None
    assert simulated.accuracy(result.value) > simulated.accuracy(simulated.majority())
    assert result.workers.quality[:60].min() > result.workers.quality[60:].max()
    assert_reasons_add_up(result)


def test_two_answers_to_one_item_share_a_vote() -> None:
    item, worker, label = [0, 0, 0, 1, 1, 1], list("aabcab"), [0, 1, 0, 1, 1, 1]
    result = infer(Claims.from_columns(item, worker, label))
    assert result.value.tolist() == [0, 1]
    odds = result.why()
    of_a = odds.log_odds[(odds.item == 0) & (odds.worker == 0)]
    assert len(of_a) == 2 and of_a[0] * of_a[1] <= 0


def test_seeds_agree_on_what_is_clear() -> None:
    simulated = world(6, quality=[0.85] * 10)
    first, second = (infer(simulated.claims, config=Config(seed=seed)) for seed in (0, 1))
    sure = first.probability > 0.9
    assert sure.sum() > 50 and (first.value == second.value)[sure].all()


def test_the_callers_randomness_is_left_alone() -> None:
    import torch

    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    infer(world(0, quality=[0.8] * 5).claims)
    assert torch.rand(1) == wanted


def test_no_claims_are_an_error() -> None:
    with pytest.raises(UsageError, match="no claims"):
        infer(Claims.from_columns([], [], []))


def test_codes_beyond_the_names_are_an_error() -> None:
    with pytest.raises(UsageError, match="label has codes from 0 to 2, expected 0 to 1"):
        Claims(np.arange(3), np.zeros(3, int), np.arange(3), np.arange(3), np.arange(1), np.arange(2))


def test_columns_of_different_lengths_are_an_error() -> None:
    with pytest.raises(UsageError, match="differ in length: item 2, worker 1, label 2"):
        Claims.from_columns([1, 2], ["a"], [0, 1])


def test_codes_that_come_in_order_are_not_held_twice() -> None:
    item, worker = (np.array(codes, dtype=np.int32) for codes in ([0, 0, 1, 1], [0, 1, 0, 1]))
    names = np.arange(2)
    for order, shared in (([0, 1, 2, 3], True), ([2, 3, 0, 1], False)):
        given = item[order]
        table = table_of(Claims(given, worker[order], np.zeros(4, dtype=np.int32), names, names, names))
        assert table.item.tolist() == [0, 0, 1, 1] and (table.item.data_ptr() == given.ctypes.data) is shared


def test_many_classes_and_few_labels_are_told_by_who_knows_them() -> None:
    draw = np.random.default_rng(3)
    truth, quality = draw.integers(0, 150, 900), draw.beta(6, 2, 30)
    item = np.repeat(np.arange(900), 3)
    worker = np.concatenate([draw.choice(30, 3, replace=False) for _ in truth])
    wrong = (truth[item] + draw.integers(1, 150, len(item))) % 150
    label = np.where(draw.random(len(item)) < quality[worker], truth[item], wrong)
    found = infer(Claims(item, worker, label, np.arange(900), np.arange(30), np.arange(150)))
    votes = np.zeros((900, 150))
    np.add.at(votes, (item, label), 1.0)
    most = votes == votes.max(1, keepdims=True)
    majority = (most[np.arange(900), truth] / most.sum(1)).mean()
    assert (found.value == truth).mean() > majority + 0.02
