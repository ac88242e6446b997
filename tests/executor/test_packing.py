"""Recurrent layers ask for several times the workspace that they write: what they do not touch takes no memory."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import torch
from torch import nn

import gradbase as gb
from gradbase.buffer import load_frames, total_bytes
from gradbase.catalog import Catalog
from gradbase.executor._traits import Packing, Trait

LENGTH, SEQUENCES, WIDTH, LAYERS = 24, 8, 128, 3

needs_frames = pytest.mark.skipif(load_frames() is None, reason="without a compiler, results are copied, not packed")


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return x


def job() -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    model = Layers()
    return model, torch.optim.AdamW(model.parameters()), torch.randn(LENGTH, SEQUENCES, WIDTH)


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def eager_steps(count: int) -> tuple[list[float], list[torch.Tensor]]:
    model, optimizer, batch = job()
    losses = []
    for _ in range(count):
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses, list(model.parameters())


def compiled(
    catalog: Catalog, folder: Path, memory: int | None = None
) -> tuple[gb.Step, nn.Module, torch.Tensor]:
    model, optimizer, batch = job()
    return gb.compile(model, loss, optimizer, batch, memory=memory, catalog=catalog, spill=folder), model, batch


@needs_frames
@pytest.mark.parametrize("tight", [False, True])
def test_packed_workspaces_give_the_same_bits(tmp_path: Path, tight: bool) -> None:
    losses, parameters = eager_steps(3)
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        memory = None
        if tight:
            with pytest.raises(gb.InfeasibleError) as refused:
                compiled(catalog, tmp_path, memory=1)
            memory = refused.value.least_bytes
        step, model, batch = compiled(catalog, tmp_path, memory)
        with step:
            assert [step(batch).item() for _ in range(3)] == losses
            assert all(map(torch.equal, model.parameters(), parameters))
            packed = step.prepare(batch)[0].program.packed
            assert len(packed) == LAYERS
            for value, kept in packed.items():
                storage = step.prepare(batch)[0].program.values[value].storage
                assert step.logical.storages[storage].nbytes == total_bytes(kept.runs) < 0.75 * kept.nbytes
        assert all(packing and packing.overlay for packing in _packings(catalog))


@needs_frames
def test_a_kernel_that_touches_more_than_the_catalogue_says_is_measured_again(tmp_path: Path) -> None:
    """As when the file comes from a machine whose kernels lay their workspace out otherwise."""
    losses, _ = eager_steps(2)
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        compiled(catalog, tmp_path)[0].close()
        told = _packings(catalog)
        _forget_last_run(catalog)
        assert _packings(catalog) != told
        step, _, batch = compiled(catalog, tmp_path)
        with step:
            assert [step(batch).item() for _ in range(2)] == losses
        assert _packings(catalog) == told


def _packings(catalog: Catalog) -> list[Packing | None]:
    return [Trait.decoded(details).packing for (details,) in _details(catalog)]


def _details(catalog: Catalog) -> list[tuple[str]]:
    sql = "SELECT details FROM statistics WHERE op LIKE '%mkldnn_rnn_layer.default' ORDER BY signature"
    return catalog.query(sql)[1]


def _forget_last_run(catalog: Catalog) -> None:
    """Let the kernels be known to touch, and keep, less than they do."""
    with sqlite3.connect(catalog.path) as connection:
        for rowid, text in connection.execute("SELECT rowid, details FROM statistics").fetchall():
            fields = json.loads(text)
            if fields["packing"]:
                for name in ("touched", "kept"):
                    fields["packing"][name] = fields["packing"][name][:-1]
                connection.execute("UPDATE statistics SET details = ? WHERE rowid = ?", (json.dumps(fields), rowid))


@needs_frames
def test_eager_is_not_said_to_need_what_its_kernels_never_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog(tmp_path / "packed.sqlite") as catalog, compiled(catalog, tmp_path)[0] as step:
        packed_bytes = step.eager_peak_bytes
        (packing,) = _packings(catalog)
        untouched_bytes = LAYERS * (packing.nbytes - total_bytes(packing.kept))
    monkeypatch.setattr("gradbase.executor._touched.pays", lambda nbytes, touched: False)
    with Catalog(tmp_path / "whole.sqlite") as catalog, compiled(catalog, tmp_path)[0] as step:
        assert step.eager_peak_bytes - packed_bytes > untouched_bytes / 2
