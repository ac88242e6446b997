"""How good workers are, read off the final posterior."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradbase.tables.crowd._table import Table
from gradbase.tables.crowd._types import Floats, Workers

CONFUSION_ENTRIES_MAX = 4_000_000
PRIOR_CLAIMS = 4.0
Z90 = 1.6448536269514722  # the normal distribution's 95th percentile: 5% on each side


def workers_of(table: Table, posterior: Tensor) -> Workers:
    """Quality: the expected share of right claims, drawn to the crowd's mean by four claims' weight."""
    small = table.n_workers * table.n_classes**2 <= CONFUSION_ENTRIES_MAX
    right, claims = (_right_of_counts if small else _right)(table, posterior)
    mean = (right.sum() + 1.0) / (claims.sum() + 2.0)
    total = claims + PRIOR_CLAIMS
    quality = (right + PRIOR_CLAIMS * mean) / total
    low, high = wilson(quality, total)
    confusion = confusion_of(table, posterior).transpose(1, 2).double().numpy() if small else None
    return Workers(quality, low, high, table.cell_counts().sum(1), confusion)


def _right_of_counts(table: Table, posterior: Tensor) -> tuple[Floats, Floats]:
    """float[n_workers] each: expected right claims, and all claims (several answers to one item share one)."""
    counts = table.over_cells(posterior.to(table.dtype)).double().numpy()
    counts = counts.reshape(table.n_workers, table.n_classes, table.n_classes)
    return np.einsum("wkk->w", counts), counts.sum((1, 2))


def _right(table: Table, posterior: Tensor) -> tuple[Floats, Floats]:
    """The same, one claim at a time: for more classes than a matrix has room for."""
    own = posterior[table.item.long(), table.label.long()].double()
    weight = torch.ones_like(own) if table.weight is None else table.weight.double()
    worker = table.worker.numpy()
    right = np.bincount(worker, (own * weight).numpy(), table.n_workers)
    return right, np.bincount(worker, weight.numpy(), table.n_workers)


def confusion_of(table: Table, posterior: Tensor) -> Tensor:
    """float[n_workers, K labels, K truths]: p(label | truth), drawn to the crowd's own confusion by four claims."""
    counts = table.over_cells(posterior.to(table.dtype)).reshape(table.n_workers, table.n_classes, -1)
    crowd = counts.sum(0) + 0.5 * torch.eye(table.n_classes, dtype=counts.dtype) + 0.5 / table.n_classes
    total = counts + PRIOR_CLAIMS * crowd / crowd.sum(0)
    return total / total.sum(1, keepdim=True)


def wilson(share: Floats, total: Floats) -> tuple[Floats, Floats]:
    """The 90% score interval of a share out of `total` trials (Wilson 1927)."""
    centre = (share + Z90**2 / (2 * total)) / (1 + Z90**2 / total)
    half = Z90 / (1 + Z90**2 / total) * np.sqrt(share * (1 - share) / total + Z90**2 / (4 * total**2))
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)
