"""Copiers: found by common errors, heard as one, and nobody else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradbase.tables.crowd import infer
from gradbase.tables.crowd._copies import heard_once
from gradbase.tables.crowd._table import table_of
from tests.tables.crowd.worlds import with_copiers, world


@pytest.mark.parametrize("seed", [0, 1])
def test_a_crowd_is_not_taken_over_by_copiers(seed: int) -> None:
    """Five of thirteen workers say the same and are right in 60%: heard as one they do little harm."""
    simulated = with_copiers(seed, honest=8, copiers=4, copied=0.9)
    result = infer(simulated.claims)
    assert simulated.accuracy(result.value) > simulated.accuracy(simulated.majority()) + 0.03
    assert result.workers.quality[:8].min() > result.workers.quality[8:].max()
    why = result.why()
    odds = np.log(result.probability / result.runner_up_probability)
    np.testing.assert_allclose(np.bincount(why.item, why.log_odds), odds, atol=1e-9)


def test_copied_votes_are_shared_by_those_who_agree() -> None:
    simulated = with_copiers(2, honest=8, copiers=4, copied=1.0)
    table = heard_once(table_of(simulated.claims), 0)
    group = table.worker >= 8
    assert (table.weight[~group] == 1).all()
    assert float(table.weight[group].max()) == 1.0 and float(table.weight[group].min()) < 0.25
    np.testing.assert_allclose(table.weight_by_cell.sum(), table.weight.sum())
    nobody = torch.zeros(table.n_items, dtype=torch.float64)
    together = nobody.index_add(0, table.item[group].long(), table.weight[group])
    assert float(together.max()) < 1.5  # five who say the same are hardly more than one


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "crowd",
    [
        dict(quality=[0.75] * 12),
        dict(quality=[0.9] * 3 + [0.55] * 9, per_item=7),  # experts against a crowd
        dict(quality=[0.9] * 5 + [0.5] * 10, per_item=7),
        dict(quality=[0.9, 0.9, 0.8, 0.8] + [0.3] * 8, n_classes=6, per_item=7),
    ],
    ids=["alike", "experts", "spammers", "six classes"],
)
def test_workers_on_their_own_are_no_copiers(crowd: dict, seed: int) -> None:
    table = table_of(world(seed, n_items=300, **crowd).claims)
    assert heard_once(table, 0) is table


def test_who_copies_does_not_depend_on_names() -> None:
    simulated = with_copiers(3, honest=8, copiers=4, copied=0.9)
    claims, generator = simulated.claims, np.random.default_rng(0)
    item, worker = generator.permutation(600), generator.permutation(13)
    renamed = type(claims)(
        item[claims.item], worker[claims.worker], 1 - claims.label, claims.items, claims.workers, claims.classes
    )
    first, second = infer(claims), infer(renamed)
    np.testing.assert_allclose(second.posterior[item][:, ::-1], first.posterior, atol=1e-6)
    np.testing.assert_allclose(second.workers.quality[worker], first.workers.quality, atol=1e-6)


def test_a_part_of_many_items_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradbase.tables.crowd import _copies

    simulated = with_copiers(4, honest=8, copiers=4, copied=1.0, n_items=2000)
    monkeypatch.setattr(_copies, "MEETINGS_MAX", 20_000)
    assert float(heard_once(table_of(simulated.claims), 0).weight.min()) < 0.25
