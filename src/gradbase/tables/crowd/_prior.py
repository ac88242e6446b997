"""Inference and training in turn: what the crowd believes teaches the classifier, which is then each item's prior.

In every round the classifier's out-of-fold p(k | features) and the items' labels make a posterior, from which workers'
confusion matrices are learned anew: P(k) is proportional to p(k | features) times the chance of the labels to a power.
To teach (TEACH) the labels count much: that an item whose features are those of one class was labelled otherwise shows
how workers err. In the answer they count less where the workers of an item err together, by what the item looks like,
while a classifier averages such errors over all items. How much (CROWD) is what foretells labels best that are left out
one by one: the others of the item and its features say what it is, and that what its worker says. A label left out
shares the errors of the others too, so that power is too high, and its square is taken. No label can tell whether what
is common to an item's labels is the truth or an error: the more of the crowd a classifier foretells (SKILL_TO_DIFFER),
the more it is believed where they differ.

What networks of several rounds say is averaged: a single one is noisy. The classifier that is handed out is taught the
answer, which is nearer to the truth than what the networks before it were taught. Rounds are many, because workers'
confusion, of few labels each, is learned anew in small steps. One that predicts the crowd hardly better than the shares
of the classes do is not heard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradbase.common.errors import UsageError
from gradbase.tables._contents import Hashes, scramble
from gradbase.tables.crowd._classifier import Classifier, Weights, best_trainer, cross_fitted, own_randomness
from gradbase.tables.crowd._features import Encoder, Order, content_hashes
from gradbase.tables.crowd._table import Table
from gradbase.tables.crowd._types import Config, Features, Floats, Ints
from gradbase.tables.crowd._workers import CONFUSION_ENTRIES_MAX, PRIOR_CLAIMS, confusion_of

CROWD = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # powers of the labels in the answer
TEACH = 0.6
MEMORY = 0.5  # of log chances for those of earlier rounds
SKILL = (0.02, 0.1)  # share of the entropy of classes explained out of fold: a classifier is not heard, fully heard
SKILL_TO_DIFFER = (0.1, 0.25)  # labels left out alone say how much labels count; they count least
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
    order = _by_content(hashes := content_hashes(features, columns), crowd.numpy())
    folds = (scramble(hashes[order] + np.uint64(config.seed)) % np.uint64(config.folds)).astype(np.int64)
    encoder, place, back = Encoder.of(features, columns), torch.from_numpy(order), torch.from_numpy(np.argsort(order))
    posterior, answer, chances, skill = crowd, crowd, None, 0.0
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
                skill = _skill(now[labelled], crowd[labelled])  # while the crowd alone is what was taught
            chances = now if chances is None else MEMORY * chances + (1 - MEMORY) * now
            posterior, answer, tilt = _weigh(table, crowd, labelled, posterior, chances, skill)
            if config.on_progress:
                config.on_progress("classifier", turn + 1, config.rounds)
    return Informed(answer, tilt, Classifier(encoder, networks, crowd.shape[1], shape))


def _by_content(hashes: Hashes, crowd: Floats) -> Ints:
    """An order of items by their features; of equal ones by what the crowd says, the rarest class first."""
    classes = np.argsort(-crowd.sum(0), kind="stable")
    return np.lexsort((*np.round(crowd[:, classes], 9).T, hashes))


def _weigh(
    table: Table, crowd: Tensor, labelled: Tensor, posterior: Tensor, chances: Tensor, skill: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What to teach next, what to answer, and the classifier's log odds, float64[n, K] each."""
    trust, shares = _ramp(skill, SKILL), posterior[labelled].mean(0).clamp(min=1e-12).log()
    said = _said(table, crowd, posterior)
    alone, tilt = crowd.clamp(min=1e-12).log(), trust * (chances - shares)

    def answered(power: float) -> Tensor:
        return torch.softmax(trust * (power * said + shares) + (1 - trust) * alone + tilt, 1)

    least, differs = CROWD[0], _ramp(skill, SKILL_TO_DIFFER)
    power = least if differs == 1 else _power(table, posterior, said, shares + tilt) ** (1 - differs) * least**differs
    return answered(TEACH), answered(power), tilt


def _has_matrices(table: Table) -> bool:
    return table.n_workers * table.n_classes**2 <= CONFUSION_ENTRIES_MAX


def _power(table: Table, posterior: Tensor, said: Tensor, prior: Tensor) -> float:
    """The power of CROWD whose root foretells labels best. `prior` float64[n, K]: log chances before any label."""
    if not _has_matrices(table):
        return CROWD[0]
    item, label = table.item.long(), table.label.long()
    own = confusion_of(table, posterior).reshape(-1, table.n_classes).clamp(min=1e-9).log().double()[table.cell.long()]
    weight = torch.ones(len(table), 1) if table.weight is None else table.weight[:, None]
    others, chance = said[item] - own * weight, _label_chances(table, posterior, item, label)

    def foretold(power: float) -> float:
        believed = torch.log_softmax(power**0.5 * others + prior[item], 1)
        return float((torch.logsumexp(believed + chance, 1) * weight[:, 0]).sum())

    return max(CROWD, key=foretold)


def _label_chances(table: Table, posterior: Tensor, item: Tensor, label: Tensor) -> Tensor:
    """float64[claims, K]: log p(the claim's label | truth) by what its worker said of all other items."""
    counts = table.over_cells(posterior.to(table.dtype)).double().reshape(table.n_workers, table.n_classes, -1)
    drawn = confusion_of(table, posterior).double()  # counts and the crowd's, whose total is one for every truth
    total = counts.sum(1) + PRIOR_CLAIMS
    rows, own = table.worker.long(), posterior[item].double()
    without = drawn[rows, label] * total[rows] - own
    return (without.clamp(min=1e-6) / (total[rows] - own).clamp(min=1e-6)).log()


def _said(table: Table, crowd: Tensor, posterior: Tensor) -> Tensor:
    """float64[n, K]: log chances of an item's labels, up to a constant, when items are what `posterior` says."""
    if not _has_matrices(table):
        return crowd.clamp(min=1e-12).log() - crowd.mean(0).clamp(min=1e-12).log()
    theta = confusion_of(table, posterior).reshape(-1, table.n_classes)
    return table.over_items(theta.clamp(min=1e-9).log()).double()


def _skill(chances: Tensor, crowd: Tensor) -> float:
    """How well the classifier predicts, out of fold, what the crowd alone believes: a share of the classes' entropy."""
    shares = crowd.mean(0).clamp(min=1e-12).log()
    entropy = -float((shares.exp() * shares).sum())
    return float((crowd * (chances - shares)).sum(1).mean()) / max(entropy, 1e-12)


def _ramp(value: float, between: tuple[float, float]) -> float:
    """0 below, 1 above."""
    return min(max((value - between[0]) / (between[1] - between[0]), 0.0), 1.0)
