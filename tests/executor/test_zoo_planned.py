"""Every job of the zoo, planned: the same losses and parameters as eager PyTorch, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gradbase as gb
from gradbase.catalog import Catalog
from tests.zoo import BATCHES, REFUSED, ZOO, Case, eager_run, state_sha256


def planned_run(case: Case, steps: int, catalog: Catalog, spill: Path, memory: str | None) -> tuple[list[float], str]:
    torch.manual_seed(0)
    model = case.model()
    optimizer = case.optimizer(model)
    losses = []
    step = None
    for batch, _ in zip(case.batches(), range(steps), strict=False):
        if step is None:
            step = gb.compile(
                model, case.loss, optimizer, batch, memory, catalog=catalog, spill=spill, planning_effort_s=1
            )
        losses.append(step(batch).item())
    assert step is not None
    step.close()
    return losses, state_sha256(model)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_unlimited_equals_eager(name: str, catalog: Catalog, tmp_path: Path) -> None:
    assert planned_run(ZOO[name], BATCHES, catalog, tmp_path, None) == eager_run(ZOO[name], BATCHES)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_least_memory_equals_eager(name: str, catalog: Catalog, tmp_path: Path) -> None:
    """The tightest plan there is recomputes and pages as much as it can."""
    case = ZOO[name]
    with pytest.raises(gb.InfeasibleError) as refused:
        planned_run(case, 1, catalog, tmp_path, "1KB")
    least = refused.value.least_bytes
    assert planned_run(case, BATCHES, catalog, tmp_path, str(least)) == eager_run(case, BATCHES)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_the_users_line(name: str, catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(gb.CaptureError) as refused:
        planned_run(REFUSED[name], 1, catalog, tmp_path, None)
    assert "zoo.py" in str(refused.value)
