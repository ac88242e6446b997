"""What the user's Python does beside calling kernels: carried on, refused with its line, and always taken back."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradbase as gb
from gradbase.capture import capture_step, contents_of, numbers_of

ROWS = torch.ones(4, 8)


class Stateful(nn.Module):
    """A module whose forward pass does `then(self, result)` at its end."""

    def __init__(self, then: Callable[[nn.Module, torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.then = then
        self.state: Any = None
        self.seen: list[Any] = []
        self.known = torch.ones(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        self.then(self, y)
        return y


def keep_state(module: nn.Module, y: torch.Tensor) -> None:
    module.state = y.detach() if module.state is None else module.state + y.detach()


def change_known(module: nn.Module, y: torch.Tensor) -> None:
    module.known = module.known * 0.9 + y.detach().mean(0)


def make_anew(module: nn.Module, y: torch.Tensor) -> None:
    module.known = y.detach().mean(0)


def count(module: nn.Module, y: torch.Tensor) -> None:
    module.state = (module.state or 0) + 1


def captured(model: nn.Module, loss: Callable[..., Any] = lambda m, b: m(b).sum()) -> Any:
    return capture_step(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), ROWS)


@pytest.mark.parametrize(
    ("then", "name"),
    [
        (keep_state, "state"),
        (change_known, "known"),
        (lambda m, y: m.seen.append(y), "seen"),
        (lambda m, y: m.register_buffer("late", y.detach()), "late"),
    ],
    ids=["state", "known", "list", "buffer"],
)
def test_a_tensor_left_for_the_next_step_is_refused_and_taken_back(then: Any, name: str) -> None:
    model = Stateful(then)
    before = {**vars(model), "known": model.known.clone(), "seen": []}
    with pytest.raises(gb.CaptureError, match=rf"leaves a tensor in {name} of the model: .*test_python.py:\d+"):
        captured(model)
    assert torch.equal(model.known, before.pop("known"))
    assert {k: v for k, v in vars(model).items() if k != "known"} == before
    assert not model._buffers


def test_a_tensor_that_is_made_anew_in_every_step_may_be_left() -> None:
    model = Stateful(make_anew)
    known = model.known
    captured(model)
    assert model.known is known


def test_a_number_that_is_left_is_noted_and_taken_back() -> None:
    model = Stateful(count)
    (assignment,) = captured(model).trace.assignments
    assert model.state is None
    assignment()
    assert model.state == 1


@pytest.mark.parametrize(("draw", "name"), [(random.random, "Python's random"), (np.random.rand, "numpy.random")])
def test_numbers_that_torch_does_not_draw_are_refused(draw: Callable[[], float], name: str) -> None:
    before = random.getstate(), np.random.get_state()[2]
    with pytest.raises(gb.CaptureError, match=name):
        captured(nn.Linear(8, 1), lambda m, b: m(b).sum() * float(draw()))
    assert (random.getstate(), np.random.get_state()[2]) == before


OWN = torch.Generator().manual_seed(1)


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (lambda m, y: m.known.add_(1), "changes a tensor in place that is no buffer"),
        (lambda m, y: setattr(m.linear.weight, "data", m.linear.weight.data * 2), "linear.weight other memory"),
        (lambda m, y: y.to_sparse(), "layout torch.sparse_coo: test_python.py"),
        (lambda m, y: torch.rand(8, generator=OWN), "a generator of its own: test_python.py"),
    ],
    ids=["constant", "data", "sparse", "generator"],
)
def test_what_a_recording_leaves_out_is_refused(then: Any, told: str) -> None:
    with pytest.raises(gb.CaptureError, match=told):
        captured(Stateful(then))


def test_a_write_that_another_tensor_would_show_is_refused() -> None:
    model = Stateful(lambda m, y: m.part.add_(1))
    model.register_buffer("whole", torch.zeros(8))
    model.register_buffer("part", model.whole[:4])
    with pytest.raises(gb.CaptureError, match="changes part in place, which shares its memory with whole"):
        captured(model)


def scaled(model: nn.Module, batch: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return model(batch).sum() * scale * FACTOR


FACTOR = 1.0


def test_numbers_are_read_from_modules_closures_globals_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    model, scale = nn.Sequential(nn.Dropout(0.1)), 1.0

    def closed(m: nn.Module, b: torch.Tensor) -> torch.Tensor:
        return m(b).sum() * scale

    before = numbers_of(closed)
    scale = 2.0
    assert before != numbers_of(closed)
    numbers = contents_of(model).numbers
    model[0].p = 0.2
    assert numbers != contents_of(model).numbers == contents_of(model).numbers
    assert numbers_of(scaled) != numbers_of(partial(scaled, scale=2.0))
    before = numbers_of(scaled)
    monkeypatch.setitem(globals(), "sum", 3.0)  # the name of a method that is called, too
    assert before == numbers_of(scaled)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert before != numbers_of(scaled)
