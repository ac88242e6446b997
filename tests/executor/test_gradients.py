"""A planned forward and backward pass whose update is somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import gradbase as gb
from gradbase.catalog import Catalog
from gradbase.compiled import GradientStep, compile_gradients


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 256), nn.Linear(256, 8))
    model[3].bias.requires_grad_(False)
    return model


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def make_batches(count: int) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(64, 32, generator=generator), torch.randint(0, 8, (64,), generator=generator))
        for _ in range(count)
    ]


def eager_gradients(model: nn.Module, batches: list[Any]) -> list[torch.Tensor | None]:
    torch.manual_seed(7)
    model.zero_grad()
    for batch in batches:
        loss(model, batch).backward()
    return [p.grad for p in model.parameters()]


@pytest.fixture
def compiled(catalog: Catalog) -> Iterator[Callable[..., GradientStep]]:
    steps: list[GradientStep] = []

    def compile_(*args: Any, **options: Any) -> GradientStep:
        steps.append(compile_gradients(*args, catalog=catalog, **options))
        return steps[-1]

    yield compile_
    for step in steps:
        step.close()


def same(left: list[torch.Tensor | None], right: list[torch.Tensor | None]) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(left, right, strict=True)
    )


def slab_views(model: nn.Module) -> torch.Tensor:
    """Every `.grad` a view into one piece of memory, full of what an earlier step may have left there."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    slab = torch.full((sum(p.numel() for p in wanted),), torch.nan)
    offset = 0
    for p in wanted:
        p.grad = slab[offset : offset + p.numel()].view_as(p)
        offset += p.numel()
    return slab


@pytest.mark.parametrize("tight", [False, True], ids=["unlimited", "least"])
def test_the_gradients_are_eagers_and_lie_where_the_caller_wants_them(
    compiled: Callable[..., GradientStep], tight: bool
) -> None:
    model, batches = make_model(), make_batches(2)
    slab = slab_views(model)
    places = [p.grad.data_ptr() for p in model.parameters() if p.grad is not None]
    memory = None
    if tight:
        with pytest.raises(gb.InfeasibleError) as refused:
            compiled(model, loss, batches[0], 1)
        memory = refused.value.least_bytes
    before = [p.detach().clone() for p in model.parameters()]
    step = compiled(model, loss, batches[0], memory)
    torch.manual_seed(7)
    for batch, add in zip(batches, (False, True), strict=True):
        step(batch, add=add)
    assert [p.grad.data_ptr() for p in model.parameters() if p.grad is not None] == places
    assert not slab.isnan().any()
    assert same([p.grad for p in model.parameters()], eager_gradients(make_model(), batches))
    assert same(before, [p.detach() for p in model.parameters()])


def test_a_new_sum_overwrites_the_former(compiled: Callable[..., GradientStep]) -> None:
    model, batches = make_model(), make_batches(2)
    step = compiled(model, loss, batches[0])
    step(batches[0])
    torch.manual_seed(7)
    step(batches[1])
    assert same([p.grad for p in model.parameters()], eager_gradients(make_model(), batches[1:]))


def test_who_waits_for_gradients_hears_of_each_once_and_of_the_last_layer_first(
    compiled: Callable[..., GradientStep],
) -> None:
    model, (batch,) = make_model(), make_batches(1)
    step = compiled(model, loss, batch)
    heard: list[str] = []
    torch.manual_seed(7)
    expected = dict(zip([n for n, _ in model.named_parameters()], eager_gradients(make_model(), [batch]), strict=True))

    def on_ready(names: Any) -> None:
        for name in names:
            assert torch.equal(model.get_parameter(name).grad, expected[name])  # complete when it is told
        heard.extend(names)

    torch.manual_seed(7)
    step(batch, on_ready=on_ready)
    assert sorted(heard) == ["0.bias", "0.weight", "3.weight", "4.bias", "4.weight"]
    assert heard.index("3.weight") < heard.index("0.weight")


def test_a_failure_leaves_the_gradient_buffers_in_place(compiled: Callable[..., GradientStep]) -> None:
    model, (batch,) = make_model(), make_batches(1)
    slab_views(model)
    places = [None if p.grad is None else p.grad.data_ptr() for p in model.parameters()]
    step = compiled(model, loss, batch)

    def fail(names: Any) -> None:
        raise RuntimeError("the link is down")

    with pytest.raises(gb.StepError, match="no parameter was changed"):
        step(batch, on_ready=fail)
    assert [None if p.grad is None else p.grad.data_ptr() for p in model.parameters()] == places


def test_the_budget_holds_the_gradient_buffers(compiled: Callable[..., GradientStep]) -> None:
    model, (batch,) = make_model(), make_batches(1)
    step = compiled(model, loss, batch)
    buffers = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    parameters = sum(p.numel() * 4 for p in model.parameters())
    with pytest.raises(gb.InfeasibleError):
        compiled(model, loss, batch, buffers + parameters)
    assert step.plan.predicted_peak_bytes > buffers + parameters
