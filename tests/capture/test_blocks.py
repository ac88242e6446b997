"""An update in blocks gives the bits of the whole one, and holds less meanwhile."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

import gradbase as gb
from gradbase.buffer import load_frames
from gradbase.capture import BlockStep, takes_blocks
from gradbase.capture._blocks import BLOCK_NUMEL
from gradbase.catalog import Catalog

OPTIMIZERS: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (optim.AdamW, {"maximize": True}),
    (optim.AdamW, {"fused": True}),
    (optim.Adagrad, {"lr_decay": 0.1}),
    (optim.RMSprop, {"centered": True, "momentum": 0.9}),
    (optim.Adamax, {}),
    (optim.NAdam, {}),
    (optim.RAdam, {}),
]
ROWS, COLUMNS = 1111, 777  # three blocks and a rest that no vector divides


def stepped(kind: type[optim.Optimizer], settings: dict[str, Any], *, in_blocks: bool) -> tuple[Any, Any]:
    """The parameter and its state after four steps."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(ROWS, COLUMNS, generator=generator).t())
    optimizer = kind([parameter], lr=1e-2, **settings)  # type: ignore[call-arg]
    step = BlockStep(optimizer, parameter) if in_blocks else optimizer.step
    assert takes_blocks(optimizer, parameter)
    for _ in range(4):
        parameter.grad = torch.randn(ROWS, COLUMNS, generator=generator).t()
        with torch.no_grad():
            step()
    return parameter.data, optimizer.state_dict()


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
def test_blocks_give_the_bits_and_the_state_of_the_whole(kind: type[optim.Optimizer], settings: dict[str, Any]) -> None:
    (whole, known), (blocks, made) = (stepped(kind, settings, in_blocks=b) for b in (False, True))
    assert torch.equal(whole, blocks)
    torch.testing.assert_close(made, known, rtol=0, atol=0)
    assert [list(s) for s in made["state"].values()] == [list(s) for s in known["state"].values()]


def test_nothing_that_was_made_for_a_block_stays() -> None:
    blocks: list[weakref.ref[torch.Tensor]] = []

    class Seen(optim.AdamW):
        def step(self, closure: Any = None) -> None:
            blocks.extend(map(weakref.ref, self.param_groups[0]["params"]))

    parameter = nn.Parameter(torch.zeros(4 * BLOCK_NUMEL))
    step = BlockStep(Seen([parameter]), parameter)
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        step()
    assert len(blocks) == 8
    assert not any(block() is not None for block in blocks)


@pytest.mark.parametrize(
    ("kind", "settings", "shape"),
    [
        (optim.AdamW, {}, (BLOCK_NUMEL,)),  # too small
        (optim.AdamW, {"foreach": True}, (4 * BLOCK_NUMEL,)),  # all at a time
        (optim.Adafactor, {}, (4, BLOCK_NUMEL)),  # a row's elements see each other
    ],
)
def test_what_is_not_cut(kind: type[optim.Optimizer], settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    assert not takes_blocks(kind([parameter], **settings), parameter)


class Words(nn.Module):
    """Most of it is one table of 16 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16384, 256)
        self.head = nn.Linear(256, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids).mean(1))


def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).square().mean()


@pytest.mark.skipif(load_frames() is None, reason="without a compiler updates are not cut")
@pytest.mark.parametrize(("kind", "memory"), [(optim.AdamW, "75%"), (optim.SGD, None)])
def test_a_step_whose_widest_operator_is_an_update(
    tmp_path: Path, kind: type[optim.Optimizer], memory: str | None
) -> None:
    """Bit-equal in less than the temporaries of the whole table would leave, state made in frames included."""
    ids = torch.randint(16384, (4, 8), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    eager = Words()
    torch.manual_seed(0)
    planned = Words()
    optimizer = kind(eager.parameters(), lr=1e-2)  # type: ignore[call-arg]
    other = kind(planned.parameters(), lr=1e-2)  # type: ignore[call-arg]
    with (
        Catalog(tmp_path / "catalog.sqlite") as catalog,
        gb.compile(planned, loss, other, ids, memory=memory, catalog=catalog, spill=tmp_path) as step,
    ):
        workspaces = [s.nbytes for s in step.logical.storages if s.kind == "workspace" and "update" in s.name]
        assert max(workspaces, default=0) < 8 * 4 * BLOCK_NUMEL  # a block's state, temporaries and parts of them
        for _ in range(3):
            optimizer.zero_grad()
            value = loss(eager, ids)
            value.backward()
            optimizer.step()
            assert step(ids).item() == value.item()
        assert all(map(torch.equal, eager.parameters(), planned.parameters()))
