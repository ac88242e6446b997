"""Copiers: found by common errors, heard as one, and nobody else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradbase.tables.crowd import Claims, Copies, infer
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
    table, _ = heard_once(table_of(simulated.claims), 0)
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
    heard, copies = heard_once(table, 0)
    assert heard is table and len(copies) == 0


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
    known = {(worker[c], worker[o]): e for c, o, e in zip(*_pairs(first.copies), strict=True)}
    assert known == {(c, o): pytest.approx(e) for c, o, e in zip(*_pairs(second.copies), strict=True)}


def _pairs(copies: Copies) -> tuple[list[int], list[int], list[float]]:
    return copies.copier.tolist(), copies.original.tolist(), copies.evidence.tolist()


@pytest.mark.parametrize("seed", [5, 6])
def test_who_copies_whom_is_told_with_its_evidence(seed: int) -> None:
    """Worker 8 is copied by 9 to 12, in two labels of three: all are named, and nobody else."""
    copies = infer(with_copiers(seed, honest=8, copiers=4, copied=0.67, n_items=1000).claims).copies
    named = {frozenset(pair) for pair in zip(copies.copier.tolist(), copies.original.tolist(), strict=True)}
    assert frozenset().union(*named) == set(range(8, 13))
    assert {frozenset((8, copier)) for copier in range(9, 13)} <= named
    assert (np.diff(copies.evidence) <= 0).all() and (copies.evidence > 3).all()
    assert (copies.same <= copies.shared).all() and (copies.same > 0.5 * copies.shared).all()
    assert len(named) == len(copies)


def test_two_who_say_the_same_of_the_same_are_named_either_way() -> None:
    claims = with_copiers(7, honest=8, copiers=0, copied=0.0).claims
    again = claims.worker == 8
    item, worker, label = (np.concatenate([own, own[again]]) for own in (claims.item, claims.worker, claims.label))
    worker[len(claims) :] = 9
    copies = infer(Claims.from_columns(item, worker, label)).copies
    assert set(zip(copies.copier.tolist(), copies.original.tolist(), strict=True)) == {(8, 9), (9, 8)}


def test_a_part_of_many_items_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradbase.tables.crowd import _copies

    simulated = with_copiers(4, honest=8, copiers=4, copied=1.0, n_items=2000)
    monkeypatch.setattr(_copies, "MEETINGS_MAX", 20_000)
    table, copies = heard_once(table_of(simulated.claims), 0)
    assert float(table.weight.min()) < 0.25
    assert set(copies.copier.tolist()) <= set(range(8, 13))
