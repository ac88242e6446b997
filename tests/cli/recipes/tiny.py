"""A perceptron with dropout and batch norm, four batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, ROWS, BATCHES = 32, 16, 4


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 4 * WIDTH), nn.BatchNorm1d(4 * WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * WIDTH, 1)
    )


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for _ in range(BATCHES):
        yield torch.randn(ROWS, WIDTH), torch.randn(ROWS, 1)


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    rows, targets = batch
    return F.mse_loss(model(rows), targets)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)
