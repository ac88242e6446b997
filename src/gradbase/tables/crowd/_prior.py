"""Inference and training in turn: what the crowd believes teaches the classifier, which is then each item's prior.

In every round the classifier's out-of-fold p(k | features) and the items' labels make a posterior, from which workers'
confusion matrices are learned anew: P(k) is proportional to p(k | features) times the chance of the labels to a power.
To teach (TEACH) the labels count much: that an item whose features are those of one class was labelled otherwise shows
how workers err. In the answer they count little (CROWD), because the workers of an item err together, by what the item
looks like, while a classifier averages such errors over all items. What networks of several rounds say is averaged: a
single one is noisy. The classifier that is handed out is taught the answer, which is nearer to the truth than what the
networks before it were taught. Rounds are many, because workers' confusion, of few labels each, is learned anew in
small steps. One that predicts the crowd hardly better than the shares of the classes do is not heard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradbase.common.errors import UsageError
from gradbase.tables._contents import scramble
from gradbase.tables.crowd._classifier import Classifier, Weights, best_trainer, cross_fitted, own_randomness
from gradbase.tables.crowd._features import Encoder, Order, content_hashes
from gradbase.tables.crowd._table import Table
from gradbase.tables.crowd._types import Config, Features
from gradbase.tables.crowd._workers import CONFUSION_ENTRIES_MAX, confusion_of

CROWD = 0.1
TEACH = 0.6
MEMORY = 0.5  # of log chances for those of earlier rounds
SKILL = (0.02, 0.1)  # share of the entropy of classes explained out of fold: a classifier is not heard, fully heard
LEAST_ITEMS = 20  # with labels and features: below, a classifier would be noise


@dataclass(frozen=True)
class Informed:
    """With features: posterior and log odds by the classifier (`tilt`), float64[n_items, K] each; the classifier."""

    posterior: Tensor
    tilt: Tensor
    classifier: Classifier


def with_features(
    table: Table, crowd: Tensor, labelled: Tensor, features: Features, config: Config
) -> Informed:
    """`crowd` float64[n, K] is what the labels of `table` alone say, `labelled` bool[n] where anybody said anything.

    Raises UsageError where there is too little to learn from.
    """
    if int(labelled.sum()) < LEAST_ITEMS:
        raise UsageError(
            f"a classifier cannot be learned from {int(labelled.sum())} labelled items, expected {LEAST_ITEMS} or more",
            "leave the features out",
        )
    crowd = torch.where(labelled[:, None], crowd, crowd[labelled].mean(0))
    columns = Order.of(features)
    order = np.argsort(hashes := content_hashes(features, columns), kind="stable")
    folds = (scramble(hashes[order] + np.uint64(config.seed)) % np.uint64(config.folds)).astype(np.int64)
    encoder, place, back = Encoder.of(features, columns), torch.from_numpy(order), torch.from_numpy(np.argsort(order))
    posterior, answer, chances, trust = crowd, crowd, None, 0.0
    known = labelled[place]
    with (
        own_randomness(config.seed),
        best_trainer(encoder(features)[place], folds, known, crowd[place].float(), config) as (trainer, shape),
    ):
        networks: tuple[Weights, ...] = ()
        for turn in range(config.rounds + 1):
            target, seed = (posterior if turn < config.rounds else answer), config.seed + 100 * turn
            start = () if shape.hidden else networks  # what is linear has one optimum, and is near it
            told, networks = cross_fitted(trainer, shape.penalty, folds, known, target[place].float(), seed, start)
            if turn == config.rounds:
                break
            now = told.double()[back]
            if chances is None:
                trust = _trust(now[labelled], crowd[labelled])  # while the crowd alone is what was taught
            chances = now if chances is None else MEMORY * chances + (1 - MEMORY) * now
            posterior, answer, tilt = _weigh(table, crowd, labelled, posterior, chances, trust)
            if config.on_progress:
                config.on_progress("classifier", turn + 1, config.rounds)
    return Informed(answer, tilt, Classifier(encoder, networks, crowd.shape[1], shape))


def _weigh(
    table: Table, crowd: Tensor, labelled: Tensor, posterior: Tensor, chances: Tensor, trust: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What to teach next, what to answer, and the classifier's log odds, float64[n, K] each."""
    shares = posterior[labelled].mean(0).clamp(min=1e-12).log()
    said = _said(table, crowd, posterior)
    alone, tilt = crowd.clamp(min=1e-12).log(), trust * (chances - shares)
    teach = torch.softmax(trust * (TEACH * said + shares) + (1 - trust) * alone + tilt, 1)
    return teach, torch.softmax(trust * (CROWD * said + shares) + (1 - trust) * alone + tilt, 1), tilt


def _said(table: Table, crowd: Tensor, posterior: Tensor) -> Tensor:
    """float64[n, K]: log chances of an item's labels, up to a constant, when items are what `posterior` says."""
    if table.n_workers * table.n_classes**2 > CONFUSION_ENTRIES_MAX:
        return crowd.clamp(min=1e-12).log() - crowd.mean(0).clamp(min=1e-12).log()
    theta = confusion_of(table, posterior).reshape(-1, table.n_classes)
    return table.over_items(theta.clamp(min=1e-9).log()).double()


def _trust(chances: Tensor, crowd: Tensor) -> float:
    """0 to 1: how far the classifier is heard, by how well it predicts, out of fold, what the crowd alone believes."""
    shares = crowd.mean(0).clamp(min=1e-12).log()
    entropy = -float((shares.exp() * shares).sum())
    skill = float((crowd * (chances - shares)).sum(1).mean()) / max(entropy, 1e-12)
    return min(max((skill - SKILL[0]) / (SKILL[1] - SKILL[0]), 0.0), 1.0)
