"""What is known of sources tells how good they are: a small network from features to exactness.

It learns from the claims of all sources how often claims of sources with such features are right, and gives each
source its prior. Cross-fitted: a source's prior comes from a network that never saw the source's own claims, which
would otherwise count twice. The training step is planned by `gradbase.compile`, inside the memory that was given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from gradbase.common.errors import UsageError
from gradbase.compiled import compile as compile_step
from gradbase.tables.fuse._relations import EXACT, RELATIONS
from gradbase.tables.fuse._types import Bools, Floats

FOLDS = 2
_WIDTH = 16
_STEPS = 60
_LEARNING_RATE = 0.05
_DECAY = 0.02

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def standardised(features: Any, sources: int) -> Floats:
    """(sources, columns) of zero mean and unit variance, with a column for each that has gaps.

    Raises UsageError when there is not one row per source, or a column is without any number.
    """
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) != sources:
        raise UsageError(f"source features have shape {matrix.shape}", f"expected ({sources}, columns), a row a source")
    gaps = ~np.isfinite(matrix)
    if gaps.all(axis=0).any():
        raise UsageError(f"column {int(gaps.all(axis=0).argmax())} of the source features has no number")
    filled = np.where(gaps, np.nan, matrix)
    filled = (matrix - np.nanmean(filled, axis=0)) / np.maximum(np.nanstd(filled, axis=0), 1e-12)
    columns = np.column_stack([np.where(gaps, 0.0, filled), gaps[:, gaps.any(axis=0)]])
    return np.clip(columns, -5, 5)


def _loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean negative log-likelihood of right and wrong claims."""
    features, right, wrong = batch
    logit = model(features).squeeze(-1)
    softplus = nn.functional.softplus
    return (right * softplus(-logit) + wrong * softplus(logit)).sum() / (right + wrong).sum().clamp_min(1e-6)


class Network:
    """A network and its planned training step, trained anew for every fold. `memory` as `gradbase.compile` takes it."""

    def __init__(self, features: Floats, memory: str | int | float | None, seed: int) -> None:
        self._features = torch.from_numpy(features.astype(np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._model = nn.Sequential(nn.Linear(features.shape[1], _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, 1))
        self._start = [parameter.detach().clone() for parameter in self._model.parameters()]
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LEARNING_RATE, weight_decay=_DECAY)
        none = torch.zeros(len(features))
        self._step = compile_step(self._model, _loss, self._optimizer, (self._features, none, none), memory)

    def close(self) -> None:
        """Give the plan's memory back."""
        self._step.close()

    def train(self, right: Floats, wrong: Floats) -> Floats:
        """(sources,) logits of exactness after training on these counts alone."""
        with torch.no_grad():
            for parameter, start in zip(self._model.parameters(), self._start, strict=True):
                parameter.copy_(start)
                for moment in self._optimizer.state.get(parameter, {}).values():
                    moment.zero_()
        counts = (torch.from_numpy(column.astype(np.float32)) for column in (right, wrong))
        batch = (self._features, *counts)
        for _ in range(_STEPS):
            self._step(batch)
        with torch.no_grad():
            return self._model(self._features).squeeze(-1).double().numpy()


def learned_prior(network: Network, counts: Floats, mean: Floats, draw: Floats) -> Floats:
    """(sources, RELATIONS) mean profiles, cross-fitted. `counts` as in a fit, `mean` its mean profile; `draw`
    (sources,) in [0, 1) puts sources into folds."""
    fold = np.minimum((draw * FOLDS).astype(np.int64), FOLDS - 1)
    logit = np.zeros(len(counts))
    for held in range(FOLDS):
        mine: Bools = fold == held
        right, wrong = counts[:, EXACT] * ~mine, (counts.sum(axis=1) - counts[:, EXACT]) * ~mine
        logit[mine] = network.train(right, wrong)[mine]
    exact = np.clip(1 / (1 + np.exp(-logit)), 0.02, 0.98)
    prior = np.tile(mean, (len(counts), 1))
    prior *= ((1 - exact) / (1 - mean[EXACT]))[:, None]
    prior[:, EXACT] = exact
    assert prior.shape == (len(counts), RELATIONS)
    return prior
