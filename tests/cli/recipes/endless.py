"""The tiny recipe with a scheduler and batches that never end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tiny import ROWS, WIDTH, loss, model

__all__ = ["batches", "loss", "model", "optimizer", "scheduler"]


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield torch.randn(ROWS, WIDTH), torch.randn(ROWS, 1)


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
