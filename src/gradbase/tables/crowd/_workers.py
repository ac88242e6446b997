"""How good workers are, read off the final posterior.

Intervals allow for what a crowd errs together (`_intervals`). On the 13 public crowds of the benchmark a 90% interval
holds for 93% of the workers with 20 gold answers or more, 80% on the worst; one of chance alone held for 59% and 18%.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradbase.tables._intervals import of_believed_share
from gradbase.tables.crowd._table import Table
from gradbase.tables.crowd._types import Floats, Workers

CONFUSION_ENTRIES_MAX = 4_000_000
PRIOR_CLAIMS = 4.0
COMMON = 0.1  # of the variance of what is believed of a claim: what is common to all claims of a worker


def workers_of(table: Table, posterior: Tensor) -> Workers:
    """Quality: the expected share of right claims, drawn to the crowd's mean by four claims' weight."""
    small = table.n_workers * table.n_classes**2 <= CONFUSION_ENTRIES_MAX
    sums = _sums_of_cells if small else _sums_of_claims
    right = sums(table, posterior)
    doubt = sums(table, posterior * (1.0 - posterior))
    claims = sums(table, torch.ones_like(posterior))
    mean = (right.sum() + 1.0) / (claims.sum() + 2.0)
    total = claims + PRIOR_CLAIMS
    quality = (right + PRIOR_CLAIMS * mean) / total
    doubtful = (doubt + PRIOR_CLAIMS * mean * (1.0 - mean)) / total
    low, high = of_believed_share(quality, total, doubtful, COMMON)
    confusion = confusion_of(table, posterior).transpose(1, 2).double().numpy() if small else None
    return Workers(quality, low, high, table.cell_counts().sum(1), confusion)


def _sums_of_cells(table: Table, of_classes: Tensor) -> Floats:
    """float[n_workers]: the sum over a worker's claims of what `of_classes` float[n_items, K] has for the class that is
    claimed (several answers to one item share one)."""
    sums = table.over_cells(of_classes.to(table.dtype)).double().numpy()
    return np.einsum("wkk->w", sums.reshape(table.n_workers, table.n_classes, table.n_classes))


def _sums_of_claims(table: Table, of_classes: Tensor) -> Floats:
    """The same, one claim at a time: for more classes than a matrix has room for."""
    own = of_classes[table.item.long(), table.label.long()].double()
    weighted = own if table.weight is None else own * table.weight.double()
    return np.bincount(table.worker.numpy(), weighted.numpy(), table.n_workers)


def confusion_of(table: Table, posterior: Tensor) -> Tensor:
    """float[n_workers, K labels, K truths]: p(label | truth), drawn to the crowd's own confusion by four claims."""
    counts = table.over_cells(posterior.to(table.dtype)).reshape(table.n_workers, table.n_classes, -1)
    crowd = counts.sum(0) + 0.5 * torch.eye(table.n_classes, dtype=counts.dtype) + 0.5 / table.n_classes
    total = counts + PRIOR_CLAIMS * crowd / crowd.sum(0)
    return total / total.sum(1, keepdim=True)
