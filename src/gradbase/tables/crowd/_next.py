"""Which labels to buy next: those of items that more labels would most likely turn.

An item whose good workers are split has an open answer, however sure a model is that multiplies their chances, and one
that they agree on needs no more labels. So the share of the crowd that is for the value has a Beta posterior, from
votes that are weighted by how good their workers are. A label is worth what it takes, if it agrees, from the chance
that this share is below one half: the optimistic knowledge gradient of Chen, Lin and Zhou (Statistical Decision Making
for Optimal Budget Allocation in Crowd Labeling, JMLR 2015). Beside a classifier, which votes know nothing of, a label
is worth the information that it gives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from gradbase.common.errors import UsageError
from gradbase.tables._intervals import standard_errors
from gradbase.tables.crowd._sets import as_questions
from gradbase.tables.crowd._table import Table, table_of
from gradbase.tables.crowd._types import Floats, Purchases, Result

DEPTH_MAX = 16  # labels of one item in one shopping list
GUESS = 0.02  # votes of a worker who knows no more than chance; a label is one vote on average
QUALITY_MAX = 0.999
Gain = Callable[[NDArray[np.intp], int], Floats]


def next_labels(result: Result, k: int) -> Purchases:
    """The `k` labels most worth buying, best first, from workers like those so far.

    Classes and sets: by how far one more label would settle the answer, if it agrees; with a classifier by the
    information, in nats, that a label of the crowd's typical quality gives. A second label of the same item counts what
    is left after the first. Numbers: by the variance that a further claim takes away. An item comes at most 16 times.
    Raises UsageError for k below 1.
    """
    if k < 1:
        raise UsageError(f"k is {k}, expected 1 or more", "ask for as many labels as you will buy at once")
    gain = _gain_of(result)
    everyone = np.arange(len(result.claims.items))
    first = gain(everyone, 1)[:, 0]
    best = np.sort(np.argsort(-first, kind="stable")[:k])  # no label of another item can be among the k best
    gains = gain(best, min(DEPTH_MAX, k))
    item, flat = np.repeat(best, gains.shape[1]), gains.reshape(-1)
    order = np.argsort(-flat, kind="stable")[:k]
    with np.errstate(over="ignore"):  # a variance may be past the largest number; the order is not
        return Purchases(item[order], np.ldexp(flat[order], 2 * _exponent(result)))


def _exponent(result: Result) -> int:
    """Numbers are looked at by this power of two, in which the squares of the largest and the smallest are in range."""
    return int(np.frexp(result.workers.deviation.max(initial=0.0))[1]) if result.claims.kind == "numbers" else 0


def _gain_of(result: Result) -> Gain:
    """A function of items and a depth: float64[items, depth], gains of the first, second, ... further label."""
    if result.claims.kind == "numbers":
        return lambda items, depth: _variance_taken(result, items, depth)
    if result.claims.kind == "sets":
        of_tags = _votes(result, table_of(as_questions(result.claims))).reshape(*result.value.shape, 2)
        return lambda items, depth: _settling(of_tags[items], depth).sum(1)
    if result.classifier is not None:
        return lambda items, depth: _information(result, items, depth)
    votes = _votes(result, table_of(result.claims))
    return lambda items, depth: _settling(votes[items], depth)


def _votes(result: Result, table: Table) -> Floats:
    """float64[n_items, 2]: votes for the class that has most, and for the next.

    A vote counts by the log-odds that its worker is right. Of two classes, who is mostly wrong votes for the other.
    """
    quality = np.clip(result.workers.quality, 1 - QUALITY_MAX, QUALITY_MAX)
    odds = np.log(quality * max(table.n_classes - 1, 1) / (1 - quality))[table.worker.numpy()]
    share = np.ones(len(table)) if table.weight is None else table.weight.double().numpy()
    weight = np.maximum(np.abs(odds) if table.n_classes == 2 else odds, GUESS) * share
    label = table.label.numpy()
    meant = np.where(odds < 0, 1 - label, label) if table.n_classes == 2 else label
    size = table.n_items * table.n_classes
    votes = np.bincount(table.item.numpy().astype(np.int64) * table.n_classes + meant, weight, size)
    votes = votes.reshape(table.n_items, table.n_classes) / weight.mean()
    if table.n_classes == 1:
        return np.column_stack([votes, np.zeros(table.n_items)])
    return np.partition(votes, table.n_classes - 2, axis=1)[:, :-3:-1]


def _settling(votes: Floats, depth: int) -> Floats:
    """float64[..., depth]: what each further label takes from the chance that the votes turn, if it agrees."""
    ahead, behind = votes[..., :1] + 1.0 + np.arange(depth + 1), votes[..., 1:] + 1.0
    gains = -np.diff(_less_than_half(ahead, behind), axis=-1)
    return np.minimum.accumulate(np.maximum(gains, 0.0), axis=-1)


def _less_than_half(ahead: Floats, behind: Floats) -> Floats:
    """The chance that a share with the Beta posterior (ahead, behind) is below one half: normal in the arcsine of its
    root, whose variance hardly depends on the share."""
    total = ahead + behind
    distance = np.arcsin(np.sqrt(ahead / total)) - np.pi / 4
    return torch.special.ndtr(torch.from_numpy(-2.0 * np.sqrt(total) * distance)).numpy()


def _information(result: Result, items: NDArray[np.intp], depth: int) -> Floats:
    """Mutual information of an item's class and one label; each further label finds the entropy that is left.

    For a worker who errs evenly the information is H(label) - H(label | truth), and H(label) comes from the
    posterior alone. What is left shrinks by the share of the entropy that a label takes.
    """
    assert result.posterior is not None
    posterior = result.posterior[items]
    confusion = _crowd(result, posterior.shape[1])
    certain = confusion.max()
    noise = -float((confusion[0] * np.log(np.maximum(confusion[0], 1e-300))).sum())
    label = posterior * (certain - confusion.min()) + confusion.min()
    first = np.maximum(_entropy(label) - noise, 0.0)
    before = _entropy(posterior)
    left = np.divide(before - first, before, out=np.zeros_like(before), where=before > 0).clip(0.0, 1.0)
    powers: NDArray[np.float64] = left[:, None] ** np.arange(depth)
    return first[:, None] * powers


def _crowd(result: Result, n_classes: int) -> Floats:
    """float64[K, K]: p(label | truth) of a typical worker, who errs evenly."""
    workers = result.workers
    quality = float((workers.quality * workers.claims).sum() / max(workers.claims.sum(), 1))
    quality = min(max(quality, 1.0 / n_classes + 1e-3), 1.0 - 1e-6)
    confusion = np.full((n_classes, n_classes), (1.0 - quality) / max(n_classes - 1, 1))
    np.fill_diagonal(confusion, quality)
    return confusion


def _entropy(shares: Floats) -> Floats:
    return -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)


def _variance_taken(result: Result, items: NDArray[np.intp], depth: int) -> Floats:
    """float64[items, depth]: the truth's variance, in units of 4**_exponent, less what it is after the first, second
    and further claims."""
    assert result.interval is not None and result.workers.deviation is not None
    workers = result.workers
    exponent = -_exponent(result)
    deviation, interval = np.ldexp(workers.deviation, exponent), np.ldexp(result.interval[items], exponent)
    typical = float((deviation**2 * workers.claims).sum() / max(workers.claims.sum(), 1))
    half = (interval[:, 1] - interval[:, 0]) / 2 / standard_errors()
    variance = np.where(np.isnan(half), 4.0 * typical / (1.0 + result.claim_count[items]), half**2)
    claims = typical / np.maximum(variance, 1e-300)
    steps = claims[:, None] + np.arange(depth + 1)
    return -np.diff(typical / steps, axis=1)
