"""Numbers, objects and modes that the user changes between steps: the next step is eager's, or is refused."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradbase as gb
from gradbase.catalog import Catalog
from tests.zoo import state_sha256

Between = Callable[[int, nn.Module, torch.optim.Optimizer], None]


class Scaled(nn.Module):
    """Reads a number and a dropout rate, counts its calls, and has a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 4)
        self.temperature = 1.0
        self.calls = 0
        self.register_buffer("shift", torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        warm = 0.5 if self.calls < 3 else 1.0
        return self.last(self.drop(self.first(x).tanh() + self.shift)) * self.temperature * warm


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def job(make: Callable[..., torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer, list[Any]]:
    torch.manual_seed(0)
    model = Scaled()
    return model, make(model.parameters()), [(torch.randn(8, 16), torch.randint(4, (8,))) for _ in range(6)]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(parameters)[:2], lr=1e-2)


class Alternating(torch.optim.SGD):
    """Every second step shrinks the parameters: it counts its steps in an attribute of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1e-2)
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        super().step()
        if self.steps % 2 == 0:
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(0.9)


def no_change(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    pass


def anneal(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if number == 2:
        model.temperature, model.drop.p = 0.5, 0.3


def add_group(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.last.zero_grad()
    if number == 2:
        optimizer.add_param_group({"params": list(model.last.parameters()), "lr": 1e-3})


def replace_buffer(number: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if number == 2:
        model.shift = torch.ones(32)


def run(step: Callable[[Any], torch.Tensor], data: list[Any], between: Between, *objects: Any) -> Any:
    losses = []
    for number, batch in enumerate(data, start=1):
        losses.append(step(batch).item())
        between(number, *objects)
    model, optimizer = objects
    return losses, state_sha256(model), model.calls, getattr(optimizer, "steps", None)


@pytest.mark.parametrize(
    ("make", "between"),
    [(adamw, anneal), (adamw, add_group), (adamw, replace_buffer), (Alternating, no_change)],
    ids=["numbers", "group", "buffer", "optimizer"],
)
def test_the_next_step_sees_what_changed(make: Any, between: Between, catalog: Catalog, tmp_path: Path) -> None:
    model, optimizer, data = job(make)

    def eager(batch: Any) -> torch.Tensor:
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value

    expected = run(eager, data, between, model, optimizer)
    model, optimizer, data = job(make)
    step = gb.compile(model, loss, optimizer, data[0], catalog=catalog, spill=tmp_path, planning_effort_s=1)
    assert run(step, data, between, model, optimizer) == expected


def test_parameters_that_were_replaced_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    model, optimizer, data = job(adamw)
    step = gb.compile(model, loss, optimizer, data[0], catalog=catalog, spill=tmp_path, planning_effort_s=1)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(gb.UsageError, match=r"(?s)first.weight is not the one.*compile the step again"):
        step(data[0])


def test_autocast_around_a_step_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    model, optimizer, data = job(adamw)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(gb.UsageError, match="inside of the loss"):
        gb.compile(model, loss, optimizer, data[0], catalog=catalog, spill=tmp_path)


def test_a_number_that_changes_at_every_step_is_told(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, data = job(adamw)
    model.calls = 10
    step = gb.compile(model, loss, optimizer, (*data[0], "a"), catalog=catalog, spill=tmp_path, planning_effort_s=1)
    with caplog.at_level(logging.WARNING):
        for name in "bcdef":
            step((*data[0], name))
    assert "planned 6 times" in caplog.text and "'f' was" in caplog.text


class Branching(nn.Module):
    """Short batches take another way."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.short(x) if x.shape[0] < 8 else self.long(x)


def test_a_sum_of_gradients_of_different_parameters_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    model = Branching()
    batch = torch.randn(8, 16), torch.zeros(8, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = gb.compile(model, loss, optimizer, batch, accumulate=2, catalog=catalog, spill=tmp_path)
    step(batch)
    with pytest.raises(gb.UsageError, match="long.bias gets a gradient from some of the batches"):
        step((batch[0][:3], batch[1][:3]))


def test_clipping_with_gradients_that_nobody_owns_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    model, optimizer, data = job(adamw)
    with pytest.raises(gb.UsageError, match="last.weight gets a gradient and is not the optimizer's"):
        gb.compile(model, loss, optimizer, data[0], clip_grad_norm=1.0, catalog=catalog, spill=tmp_path)
