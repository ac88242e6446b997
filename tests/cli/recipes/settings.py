"""Every optional part of a recipe: clipping, accumulation, a scheduler. It also prints, as recipes do."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from tiny import ROWS, WIDTH, loss, model

__all__ = ["batches", "loss", "model", "optimizer", "scheduler"]

clip_grad_norm = 0.1
accumulate = 2

print("a word on standard output")


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    os.write(1, b"native code writes here\n")
    for _ in range(6):
        print("a batch")
        yield torch.randn(ROWS, WIDTH), torch.randn(ROWS, 1)


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
