"""The classifier p(truth | features): a small network, trained by gradbase's own engine, and its cross-fitting.

Items are told what they are by networks that have not seen them: folds come from the content of the features, so that
items with the same features are in one fold. All folds and rounds run through one compiled step; parameters and
optimizer state are set back in place in between. The last layer starts at zero: no class is ahead by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradbase import compiled
from gradbase.tables.crowd._features import Encoder
from gradbase.tables.crowd._types import Config, Features, Floats

HIDDEN = 64
BATCH_ITEMS = 256
RATE = 3e-3
DECAY = 1e-2
WARM_SHARE = 0.25  # of the steps, in which the rate rises; then it falls to nothing

Weights = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Classifier:
    """Networks of all folds, averaged. `predict` gives float64[n, K], rows summing to one."""

    encoder: Encoder
    networks: tuple[Weights, ...]
    n_classes: int

    def predict(self, features: Features) -> Floats:
        encoded = self.encoder(features)
        return torch.softmax(self.log_chances(encoded), 1).double().numpy()

    def log_chances(self, encoded: Tensor) -> Tensor:
        """float32[n, K]: the folds' mean log chances."""
        model = network(encoded.shape[1], self.n_classes)
        return torch.stack([_told(model, weights, encoded) for weights in self.networks]).mean(0)


def network(width: int, n_classes: int) -> nn.Sequential:
    model = nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(width, HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(HIDDEN, n_classes),
    )
    last = model[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return model


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy to soft targets."""
    encoded, target = batch
    return -(target * torch.log_softmax(model(encoded), 1)).sum(1).mean()


def _told(model: nn.Module, weights: Weights, encoded: Tensor) -> Tensor:
    """float32[n, K]: log chances by these weights."""
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        told = torch.log_softmax(model(encoded), 1)
    model.train()
    return told


class Trainer:
    """Trains networks on parts of one matrix; use it as a context manager."""

    def __init__(self, encoded: Tensor, n_classes: int, config: Config) -> None:
        """`encoded` float32[n, d], in an order that belongs to the content."""
        self._encoded = encoded
        self._config = config
        self._model = network(encoded.shape[1], n_classes)
        self._first = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=RATE, weight_decay=DECAY)
        self._size = min(BATCH_ITEMS, len(encoded))
        batch = encoded[: self._size].clone(), torch.full((self._size, n_classes), 1.0 / n_classes)
        self._step = compiled.compile(
            self._model, _loss, self._optimizer, batch, memory=config.memory, catalog=config.catalog
        )

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._step.close()

    def train(self, rows: Tensor, target: Tensor, seed: int) -> Weights:
        """Weights after training on `rows` int64[m] towards `target` float32[n, K]."""
        self._reset()
        generator = torch.Generator().manual_seed(seed)
        for step in range(self._config.steps):
            self._optimizer.param_groups[0]["lr"] = RATE * _schedule(step, self._config.steps)
            chosen = rows[torch.randint(len(rows), (self._size,), generator=generator)]
            self._step((self._encoded[chosen], target[chosen]))
        return {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    def _reset(self) -> None:
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                value.copy_(self._first[name])
            for state in self._optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def told(self, weights: Weights, rows: Tensor) -> Tensor:
        return _told(network(self._encoded.shape[1], len(weights["7.bias"])), weights, self._encoded[rows])


def _schedule(step: int, steps: int) -> float:
    """Up in a line, down in a cosine."""
    warm = max(WARM_SHARE * steps, 1.0)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(steps - warm, 1.0))))


def cross_fitted(
    trainer: Trainer, folds: NDArray[np.int64], known: Tensor, target: Tensor, seed: int
) -> tuple[Tensor, tuple[Weights, ...]]:
    """Log chances float32[n, K] of every item by networks that did not see it, and the networks.

    `known` bool[n] are the items with labels, which are trained on; others are told by all networks together.
    """
    fold = torch.from_numpy(folds)
    chances = torch.zeros_like(target)
    networks = []
    for number in sorted(set(folds.tolist())):
        rows = torch.nonzero(known & (fold != number))[:, 0]
        if len(rows) == 0:  # all that is known is in one fold: nothing else can tell about it
            continue
        weights = trainer.train(rows, target, seed + number)
        networks.append(weights)
        own = torch.nonzero(known & (fold == number))[:, 0]
        chances[own] = trainer.told(weights, own)
    others = torch.nonzero(~known)[:, 0]
    if networks and len(others):
        chances[others] = torch.stack([trainer.told(weights, others) for weights in networks]).mean(0)
    return chances, tuple(networks)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Draw from a seed of our own and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
