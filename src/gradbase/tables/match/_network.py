"""The trained matcher: many small networks over encoded similarities, trained as one step by `gradbase.compile`.

Every network reads the same batch and skips the pairs of its own fold (their weight is 0 in its loss), so one compiled
step trains the whole cross-fitted ensemble. A labelled pair is scored by the networks that have not seen it, every
other pair by all of them.

Similarities are encoded piecewise linearly over quantiles (Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical
Features in Tabular Deep Learning", NeurIPS 2022), which lets small networks cut features where trees would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import gradbase as gb
from gradbase.tables.match._types import Config, Floats, Ints

FOLDS = 8
GUESSES_WEIGH = 10.0  # labelled pairs: what all guesses together count for

_BINS_MOST = 8
_POSITIVES_PER_BIN = 8
_HIDDEN = 24
_DROPOUT = 0.3
_BATCH_MOST = 128
_BATCH_GUESSES = 32
_GUESSES_MOST = 1000
_STEPS = 600
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 1e-2
_CHUNK_PAIRS = 20_000
_PATH_STEPS = 16


@dataclass(frozen=True)
class Encoder:
    """Piecewise linear encoding: of each feature's bins, the share that a value fills."""

    low: NDArray[np.float32]
    width: NDArray[np.float32]
    feature: Ints
    mean: NDArray[np.float32]

    @classmethod
    def fit(cls, values: NDArray[np.float32], bins: int) -> Encoder:
        """With up to `bins` quantile bins a feature; a constant feature gets none."""
        edges = [np.unique(np.quantile(v, np.linspace(0, 1, bins + 1))) for v in values.T]
        low = np.concatenate([e[:-1] for e in edges]).astype(np.float32)
        width = np.concatenate([np.diff(e) for e in edges]).astype(np.float32)
        feature = np.repeat(np.arange(len(edges)), [len(e) - 1 for e in edges])
        bare = cls(low, width, feature, np.zeros_like(low))
        means = [bare.encode(chunk).sum(axis=0, dtype=np.float64) for chunk in _chunks(values)]
        return cls(low, width, feature, (np.sum(means, axis=0) / len(values)).astype(np.float32))

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[pairs, bins of all features], centred."""
        filled = (values[:, self.feature] - self.low) / self.width
        return np.clip(filled, 0, 1, out=filled) - self.mean


def _chunks(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [values[i : i + _CHUNK_PAIRS] for i in range(0, len(values), _CHUNK_PAIRS)]


class Ensemble(nn.Module):
    """`networks` of two hidden layers and a linear path, computed together: [B, inputs] to [B, networks]."""

    def __init__(self, inputs: int, networks: int) -> None:
        super().__init__()
        self.networks = networks
        self.first = nn.Parameter(torch.randn(inputs, networks * _HIDDEN) / math.sqrt(inputs))
        self.first_bias = nn.Parameter(torch.zeros(networks * _HIDDEN))
        self.second = nn.Parameter(torch.randn(networks, _HIDDEN, _HIDDEN) / math.sqrt(_HIDDEN))
        self.second_bias = nn.Parameter(torch.zeros(networks, 1, _HIDDEN))
        self.last = nn.Parameter(torch.randn(networks, _HIDDEN, 1) / math.sqrt(_HIDDEN))
        self.last_bias = nn.Parameter(torch.zeros(networks, 1, 1))
        self.linear = nn.Parameter(torch.zeros(inputs, networks))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(torch.relu(x @ self.first + self.first_bias))
        hidden = hidden.view(-1, self.networks, _HIDDEN).transpose(0, 1)
        hidden = self.dropout(torch.relu(torch.baddbmm(self.second_bias, hidden, self.second)))
        return torch.baddbmm(self.last_bias, hidden, self.last)[..., 0].T + x @ self.linear


_Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _loss(model: nn.Module, batch: _Batch) -> torch.Tensor:
    """Cross entropy, summed over networks, averaged over the batch; `weight` is 0 where a network must not look."""
    x, target, weight = batch
    logits = model(x)
    losses = binary_cross_entropy_with_logits(logits, target[:, None].expand_as(logits), reduction="none")
    return (losses * weight).sum() / len(target)


class Matcher:
    """A trained ensemble: log-odds of pairs, and what each feature adds to them."""

    def __init__(self, encoder: Encoder, model: Ensemble, members: int) -> None:
        self._encoder, self._model, self._members = encoder, model, members

    def log_odds(self, values: NDArray[np.float32], folds: Ints) -> Floats:
        """float64[pairs]; a pair of fold -1 is scored by all networks, others by those that have not seen its fold."""
        with torch.no_grad():
            parts = [self._model(torch.from_numpy(self._encoder.encode(v))) for v in _chunks(values)]
        scores = torch.cat(parts).double().numpy().reshape(len(values), FOLDS, self._members).mean(axis=2)
        held_out = np.take_along_axis(scores, np.maximum(folds, 0)[:, None], axis=1)[:, 0]
        return np.where(folds >= 0, held_out, scores.mean(axis=1))

    def contributions(self, values: NDArray[np.float32], folds: Ints) -> tuple[Floats, Floats]:
        """float64[pairs, features] and float64[pairs], an average pair's log-odds: together, each pair's log-odds.

        Integrated gradients along the straight line from the average pair (Sundararajan, Taly, Yan, "Axiomatic
        Attribution for Deep Networks", ICML 2017); what the sum over the line's steps misses is shared out in
        proportion.
        """
        encoded = torch.from_numpy(self._encoder.encode(values))
        shares = self._shares(torch.from_numpy(folds))
        gradient = torch.zeros_like(encoded)
        for k in range(_PATH_STEPS):
            point = (encoded * ((k + 0.5) / _PATH_STEPS)).requires_grad_()
            gradient += torch.autograd.grad((self._model(point) * shares).sum(), point)[0] / _PATH_STEPS
        parts = (gradient * encoded).double().numpy()
        by_feature = np.zeros((len(values), values.shape[1]))
        np.add.at(by_feature.T, self._encoder.feature, parts.T)
        with torch.no_grad():
            base = self._model(torch.zeros_like(encoded)).double().numpy()
        base = (base * shares.double().numpy()).sum(axis=1)
        by_feature += _shared_out(by_feature, self.log_odds(values, folds) - base)
        return by_feature, base

    def _shares(self, folds: torch.Tensor) -> torch.Tensor:
        """float32[pairs, networks]: the weight of each network in each pair's log-odds."""
        fold_of = torch.arange(FOLDS).repeat_interleave(self._members)
        alone = (folds[:, None] == fold_of) / self._members
        return torch.where(folds[:, None] >= 0, alone, torch.full_like(alone, 1 / len(fold_of)))


def _shared_out(parts: Floats, totals: Floats) -> Floats:
    """What to add to `parts` so that rows sum to `totals`: in proportion to their sizes."""
    sizes = np.abs(parts) + 1e-12
    return sizes / sizes.sum(axis=1, keepdims=True) * (totals - parts.sum(axis=1))[:, None]


def folds_of(pairs: int, seed: int) -> Ints:
    """A fold for each labelled pair, sizes equal but for one."""
    return np.random.default_rng(seed).permutation(pairs) % FOLDS


@dataclass(frozen=True)
class Lessons:
    """What to learn from: rows of the values, targets (0 to 1) and folds, -1 for guesses.

    Guesses are pairs without a label and what the unsupervised model thinks of them; all of them together weigh as
    much as `GUESSES_WEIGH` labelled pairs. They keep few labels, which are rarely a fair sample, from misleading.
    """

    rows: Ints
    targets: Floats
    folds: Ints

    @classmethod
    def of(cls, targets: Floats, guesses: Floats, folds: Ints, seed: int) -> Lessons:
        """From targets of all pairs (NaN without label) and guesses of all pairs, of which a sample is taken."""
        known = np.flatnonzero(~np.isnan(targets))
        others = np.flatnonzero(np.isnan(targets))
        others = np.random.default_rng(seed).permutation(others)[:_GUESSES_MOST]
        rows = np.concatenate([known, others])
        return cls(rows, np.concatenate([targets[known], guesses[others]]), folds[rows])

    @property
    def labelled(self) -> int:
        return int((self.folds >= 0).sum())

    def weights(self) -> Floats:
        """Of each row: 1 with a label."""
        guesses = max(len(self.rows) - self.labelled, 1)
        return np.where(self.folds >= 0, 1.0, GUESSES_WEIGH / guesses)


def train(values: NDArray[np.float32], lessons: Lessons, config: Config) -> Matcher:
    """Train on pairs, float32[pairs, features]; the encoding's quantiles are of all pairs, labelled or not."""
    targets = lessons.targets[: lessons.labelled]
    positives = int(min(targets.sum(), (1 - targets).sum()))
    encoder = Encoder.fit(values, int(np.clip(positives // _POSITIVES_PER_BIN, 1, _BINS_MOST)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Ensemble(len(encoder.low), FOLDS * config.members)
        _run(model, encoder.encode(values[lessons.rows]), lessons, config)
    return Matcher(encoder, model.eval(), config.members)


def _tensors(encoded: NDArray[np.float32], lessons: Lessons, guess_weight: float, members: int) -> _Batch:
    fold_of = np.repeat(np.arange(FOLDS), members)
    weight = (lessons.folds[:, None] != fold_of) * np.where(lessons.folds >= 0, 1.0, guess_weight)[:, None]
    parts = encoded, lessons.targets.astype(np.float32), weight.astype(np.float32)
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1]), torch.from_numpy(parts[2])


def _run(model: Ensemble, encoded: NDArray[np.float32], lessons: Lessons, config: Config) -> None:
    """A batch is some labelled pairs, in turns, and some guesses. All have one shape, so there is one plan."""
    labelled, rows = lessons.labelled, len(lessons.rows)
    size, guesses = min(_BATCH_MOST, labelled), min(_BATCH_GUESSES, rows - labelled)
    guess_weight = GUESSES_WEIGH / labelled * size / max(guesses, 1)
    data = _tensors(encoded, lessons, guess_weight, config.members)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS + 1)
    order = np.random.default_rng(config.seed)
    waiting = order.permutation(labelled)
    with gb.compile(model, _loss, optimizer, tuple(x[: size + guesses] for x in data), config.memory) as step:
        for _ in range(_STEPS):
            if len(waiting) < size:
                waiting = order.permutation(labelled)
            drawn = order.choice(np.arange(labelled, rows), guesses, replace=False) if guesses else waiting[:0]
            chosen, waiting = torch.from_numpy(np.concatenate([waiting[:size], drawn])), waiting[size:]
            step(tuple(x[chosen] for x in data))
            schedule.step()
