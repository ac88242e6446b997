"""Twelve residual layers of width 512 over 8192 rows, a regression."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, ROWS = 12, 512, 8192


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.gelu(self.linear(self.norm(x)))


def model() -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(LAYERS)), nn.Linear(WIDTH, 1))


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows, float32 [8192, 512], and targets, float32 [8192, 1]."""
    generator = torch.Generator().manual_seed(1)
    while True:
        rows = torch.randn(ROWS, WIDTH, generator=generator)
        yield rows, torch.randn(ROWS, 1, generator=generator)


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    rows, targets = batch
    return F.mse_loss(model(rows), targets)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def blocks(model: nn.Sequential) -> list[nn.Module]:
    """What per-block recomputation wraps."""
    return list(model)[:-1]
