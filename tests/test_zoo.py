"""The zoo is sound: each job trains by plain PyTorch, the same way each time."""

from __future__ import annotations

import math

import pytest

from tests.zoo import BATCHES, REFUSED, ZOO, eager_run


@pytest.mark.parametrize("name", sorted(ZOO))
def test_eager_runs_repeat_bit_for_bit(name: str) -> None:
    losses, digest = eager_run(ZOO[name], BATCHES)
    assert len(losses) == BATCHES
    assert all(math.isfinite(value) for value in losses)
    assert (losses, digest) == eager_run(ZOO[name], BATCHES)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_training_changes_the_state(name: str) -> None:
    assert eager_run(ZOO[name], 1)[1] != eager_run(ZOO[name], 2)[1]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_trains_in_eager(name: str) -> None:
    assert all(math.isfinite(value) for value in eager_run(REFUSED[name], BATCHES)[0])
