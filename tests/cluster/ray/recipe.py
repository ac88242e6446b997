"""What hosts train: the recipe of all engines' tests, slow enough that something can happen to them meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.cluster.recipes import batches, model, optimizer, slow_loss

__all__ = ["batches", "loss", "model", "optimizer"]
PAUSE_S = 0.05


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return slow_loss(model, batch, PAUSE_S)
