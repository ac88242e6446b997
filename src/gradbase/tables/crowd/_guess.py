"""The limit of many classes: a worker knows the answer, or guesses like the crowd.

With hundreds of classes no worker fills a confusion matrix. One number each is left, the chance p[w] to know; who does
not know draws from how often labels are given at all (g): p(y | k) = p[w] [y = k] + (1 - p[w]) g[y]. A learned Beta
prior holds the workers together; expectation-maximisation finds the rest (the "spammer" view of Raykar and Yu, JMLR
2012).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradbase.tables.crowd._table import Table

ROUNDS = 30
PRIOR_CLAIMS = 4.0  # strength of the Beta prior


def fit_guess(table: Table, tilt: Tensor | None = None, rounds: int = ROUNDS) -> Tensor:
    """float[n_items, K]: the posterior of each item's class. `tilt` as in `_confusion.fit`."""
    popular = _popularity(table)
    votes = table.votes()
    posterior = (votes + popular) / (votes.sum(1, keepdim=True) + 1.0)
    for _ in range(rounds):
        knows = _skill(table, posterior, popular)
        before, posterior = posterior, _posterior(table, knows, popular, posterior.sum(0), tilt)
        if float((posterior - before).abs().max()) < 1e-6:
            break
    return posterior


def _popularity(table: Table) -> Tensor:
    counts = torch.bincount(table.label, minlength=table.n_classes).to(table.dtype) + 1.0 / table.n_classes
    return counts / counts.sum()


def _of_claims(table: Table, values: Tensor) -> Tensor:
    return values if table.weight is None else values * table.weight


def _skill(table: Table, posterior: Tensor, popular: Tensor) -> Tensor:
    """float[n_workers]: the chance to know: expected share of claims that are right beyond a lucky guess."""
    label, worker = table.label.long(), table.worker.long()
    right = posterior[table.item.long(), label]
    lucky = popular[label]
    known = _of_claims(table, (right - lucky).clamp(min=0) / (1.0 - lucky).clamp(min=1e-9))
    claims = torch.zeros(table.n_workers, dtype=table.dtype)
    claims = claims.index_add(0, worker, _of_claims(table, torch.ones_like(known)))
    total = torch.zeros_like(claims).index_add(0, worker, known)
    mean = (total.sum() + 1.0) / (claims.sum() + 2.0)
    return ((total + PRIOR_CLAIMS * mean) / (claims + PRIOR_CLAIMS)).clamp(1e-3, 1 - 1e-3)


def _posterior(table: Table, knows: Tensor, popular: Tensor, mass: Tensor, tilt: Tensor | None) -> Tensor:
    label, worker = table.label.long(), table.worker.long()
    known, lucky = knows[worker], (1 - knows[worker]) * popular[label]
    evidence = _of_claims(table, torch.log1p(known / lucky))
    flat = torch.zeros(table.n_items * table.n_classes, dtype=table.dtype)
    flat.index_add_(0, table.item.long() * table.n_classes + label, evidence)
    log_odds = flat.reshape(table.n_items, -1) + ((mass + 1.0) / (mass.sum() + table.n_classes)).log()
    return torch.softmax(log_odds if tilt is None else log_odds + tilt.to(table.dtype), 1)
