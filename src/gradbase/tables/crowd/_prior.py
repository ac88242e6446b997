"""Inference and training in turn: what the crowd believes teaches the classifier, which is then each item's prior.

The crowd's calibrated posterior P0(k | labels) and the classifier's out-of-fold p(k | features) are two witnesses of
the same truth: P(k) is proportional to (P0(k) / p(k))^CROWD p(k | features), with p(k) the classes' shares. The power
is below one because the workers of an item err together, by what the item looks like, while a classifier averages such
errors over all items: two workers who agree tell less than their confusion matrices say. A classifier that predicts the
crowd hardly better than the shares do is not heard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradbase.common.errors import UsageError
from gradbase.tables.crowd._classifier import Classifier, Trainer, cross_fitted, own_randomness
from gradbase.tables.crowd._features import Encoder, content_hashes
from gradbase.tables.crowd._noise import scramble
from gradbase.tables.crowd._types import Config, Features

CROWD = 0.3
SKILL = (0.02, 0.1)  # share of the entropy of classes explained out of fold: a classifier is not heard, fully heard
LEAST_ITEMS = 20  # with labels and features: below, a classifier would be noise


@dataclass(frozen=True)
class Informed:
    """With features: posterior and log odds by the classifier (`tilt`), float64[n_items, K] each; the classifier."""

    posterior: Tensor
    tilt: Tensor
    classifier: Classifier


def with_features(crowd: Tensor, labelled: Tensor, features: Features, config: Config) -> Informed:
    """`crowd` float64[n, K] is P0, `labelled` bool[n] where anybody said anything.

    Raises UsageError where there is too little to learn from.
    """
    if int(labelled.sum()) < LEAST_ITEMS:
        raise UsageError(
            f"a classifier cannot be learned from {int(labelled.sum())} labelled items, expected {LEAST_ITEMS} or more",
            "leave the features out",
        )
    crowd = torch.where(labelled[:, None], crowd, crowd[labelled].mean(0))
    hashes = content_hashes(features)
    order = np.argsort(hashes, kind="stable")
    folds = (scramble(hashes[order] + np.uint64(config.seed)) % np.uint64(config.folds)).astype(np.int64)
    encoder = Encoder.of(features)
    place = torch.from_numpy(order)
    with own_randomness(config.seed), Trainer(encoder(features)[place], crowd.shape[1], config) as trainer:
        posterior, said = crowd[place], crowd[place].clamp(min=1e-12).log()
        for turn in range(config.rounds):
            target, known = posterior.float(), labelled[place]
            chances, networks = cross_fitted(trainer, folds, known, target, config.seed + 100 * turn)
            shares = posterior[known].mean(0).log()
            trust = _trust(chances.double()[known], crowd[place][known], shares)
            tilt = trust * (chances.double() - shares)
            posterior = torch.softmax((1 - trust * (1 - CROWD)) * (said - shares) + shares + tilt, 1)
            if config.on_progress:
                config.on_progress("classifier", turn + 1, config.rounds)
    back = torch.empty_like(place)
    back[place] = torch.arange(len(place))
    return Informed(posterior[back], tilt[back], Classifier(encoder, networks, crowd.shape[1]))


def _trust(chances: Tensor, crowd: Tensor, shares: Tensor) -> float:
    """0 to 1: how far the classifier is heard, by how well it predicts, out of fold, what the crowd alone believes."""
    entropy = -float((shares.exp() * shares).sum())
    skill = float((crowd * (chances - shares)).sum(1).mean()) / max(entropy, 1e-12)
    return min(max((skill - SKILL[0]) / (SKILL[1] - SKILL[0]), 0.0), 1.0)
