"""The classifier p(truth | features): a network, trained by gradbase's own engine, and its cross-fitting.

Items are told what they are by networks that have not seen them: folds come from the content of the features, so that
items with the same features are in one fold. All folds and rounds run through one compiled step; parameters and
optimizer state are set back in place in between. The last layer starts at zero: no class is ahead by chance.

A network may have hidden layers or none, and those without are held to small weights. Which shape serves depends on the
features (of an embedding mostly the linear one, of measurements often the other) and shows in what is told of items
that were not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

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
ERRORS = 2.0
WARM_PART = 3  # of the steps, one in so many is taken when training goes on
WARM_SHARE = 0.25  # of the steps, in which the rate rises; then it falls to nothing

Weights = dict[str, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """Of a network: `hidden` units in each of two layers (0: it is linear), `penalty` on half of the squared weights of
    a linear one, beside the mean cross entropy of an item in nats."""

    hidden: int
    penalty: float = 0.0


DEEP = Shape(HIDDEN)
LINEAR = tuple(Shape(0, penalty) for penalty in (0.01, 0.03, 0.1, 0.3))


@dataclass(frozen=True)
class Classifier:
    """Networks of all folds, averaged. `predict` gives float64[n, K], rows summing to one."""

    encoder: Encoder
    networks: tuple[Weights, ...]
    n_classes: int
    shape: Shape = DEEP

    def predict(self, features: Features) -> Floats:
        encoded = self.encoder(features)
        return torch.softmax(self.log_chances(encoded), 1).double().numpy()

    def log_chances(self, encoded: Tensor) -> Tensor:
        """float32[n, K]: the folds' mean log chances."""
        model = network(self.shape, encoded.shape[1], self.n_classes)
        return torch.stack([_told(model, weights, encoded) for weights in self.networks]).mean(0)


def network(shape: Shape, width: int, n_classes: int) -> nn.Sequential:
    last = nn.Linear(shape.hidden or width, n_classes)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if not shape.hidden:
        return nn.Sequential(last)
    return nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(width, shape.hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(shape.hidden, shape.hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        last,
    )


def _loss(model: nn.Sequential, batch: Batch) -> Tensor:
    """Cross entropy to soft targets, and the penalty on the weights of the last layer."""
    encoded, target, penalty = batch
    last = model[-1]
    assert isinstance(last, nn.Linear)
    error = -(target * torch.log_softmax(model(encoded), 1)).sum(1).mean()
    return error + 0.5 * penalty * (last.weight * last.weight).sum()


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

    def __init__(self, encoded: Tensor, n_classes: int, hidden: int, config: Config) -> None:
        """`encoded` float32[n, d], in an order that belongs to the content."""
        self._encoded = encoded
        self._config = config
        self._network = partial(network, Shape(hidden), encoded.shape[1], n_classes)
        self._model = self._network()
        self._first = {name: value.clone() for name, value in self._model.state_dict().items()}
        decay = DECAY if hidden else 0.0
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=RATE, weight_decay=decay)
        self._size = min(BATCH_ITEMS, len(encoded))
        even = torch.full((self._size, n_classes), 1.0 / n_classes)
        batch = encoded[: self._size].clone(), even, torch.zeros(())
        self._step = compiled.compile(
            self._model, _loss, self._optimizer, batch, memory=config.memory, catalog=config.catalog
        )

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._step.close()

    @property
    def budget_bytes(self) -> int | None:
        """Of a step, None where it has no limit."""
        return self._step.budget_bytes

    def train(self, rows: Tensor, target: Tensor, penalty: float, seed: int, start: Weights | None = None) -> Weights:
        """Weights after training on `rows` int64[m] towards `target` float32[n, K], on from `start` if given."""
        self._reset(start or self._first)
        held, steps = torch.tensor(penalty), self._config.steps // (WARM_PART if start else 1)
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            self._optimizer.param_groups[0]["lr"] = RATE * _schedule(step, steps)
            chosen = rows[torch.randint(len(rows), (self._size,), generator=generator)]
            self._step((self._encoded[chosen], target[chosen], held))
        return {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    def _reset(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                value.copy_(weights[name])
            for state in self._optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def told(self, weights: Weights, rows: Tensor) -> Tensor:
        return _told(self._network(), weights, self._encoded[rows])


def _schedule(step: int, steps: int) -> float:
    """Up in a line, down in a cosine."""
    warm = max(WARM_SHARE * steps, 1.0)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(steps - warm, 1.0))))


def cross_fitted(
    trainer: Trainer,
    penalty: float,
    folds: NDArray[np.int64],
    known: Tensor,
    target: Tensor,
    seed: int,
    start: Sequence[Weights] = (),
) -> tuple[Tensor, tuple[Weights, ...]]:
    """Log chances float32[n, K] of every item by networks that did not see it, and the networks.

    `known` bool[n] are the items with labels, which are trained on; others are told by all networks together. `start`
    are networks of the same folds to go on from.
    """
    fold = torch.from_numpy(folds)
    chances = torch.zeros_like(target)
    networks: list[Weights] = []
    for number in sorted(set(folds.tolist())):
        rows = torch.nonzero(known & (fold != number))[:, 0]
        if len(rows) == 0:  # all that is known is in one fold: nothing else can tell about it
            continue
        first = start[len(networks)] if start else None
        weights = trainer.train(rows, target, penalty, seed + number, first)
        networks.append(weights)
        own = torch.nonzero(known & (fold == number))[:, 0]
        chances[own] = trainer.told(weights, own)
    others = torch.nonzero(~known)[:, 0]
    if networks and len(others):
        chances[others] = torch.stack([trainer.told(weights, others) for weights in networks]).mean(0)
    return chances, tuple(networks)


@contextmanager
def best_trainer(
    encoded: Tensor, folds: NDArray[np.int64], known: Tensor, target: Tensor, config: Config
) -> Iterator[tuple[Trainer, Shape]]:
    """The shape that tells best, out of fold, what `target` float32[n, K] says of the items that are `known`; one with
    hidden layers only where it is better by more than ERRORS standard errors (the rule for the simplest of about equal
    models of Breiman et al., Classification and Regression Trees, 1984, ch. 3): what is linear learns less of the
    errors of a crowd."""
    with ExitStack() as stack:
        deep = stack.enter_context(Trainer(encoded, target.shape[1], DEEP.hidden, config))
        bound = replace(config, memory=deep.budget_bytes)  # a share is one of the step that takes most
        linear = stack.enter_context(Trainer(encoded, target.shape[1], 0, bound))
        told = {}
        for shape in (DEEP, *LINEAR):
            trainer = deep if shape.hidden else linear
            chances, _ = cross_fitted(trainer, shape.penalty, folds, known, target, config.seed)
            told[shape] = (target * chances)[known].sum(1).double()
            if config.on_progress:
                config.on_progress("shape", len(told), 1 + len(LINEAR))
        best = max(LINEAR, key=lambda shape: float(told[shape].mean()))
        ahead = told[DEEP] - told[best]
        chosen = DEEP if float(ahead.mean()) > ERRORS * float(ahead.std()) / len(ahead) ** 0.5 else best
        yield deep if chosen.hidden else linear, chosen


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Draw from a seed of our own and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
