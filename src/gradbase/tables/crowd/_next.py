"""Which labels to buy next: those that are expected to tell most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import UsageError
from gradbase.tables.crowd._types import Floats, Purchases, Result

DEPTH_MAX = 16  # labels of one item in one shopping list


def next_labels(result: Result, k: int) -> Purchases:
    """The `k` labels most worth buying, best first, from workers like those so far.

    Classes and sets: by the information that one more label of the crowd's typical quality is expected to give on the
    item; a second label of the same item counts what is left after the first. Numbers: by the variance that a
    further claim takes away. An item comes at most 16 times. Raises UsageError for k below 1.
    """
    if k < 1:
        raise UsageError(f"k is {k}, expected 1 or more", "ask for as many labels as you will buy at once")
    depth = int(min(DEPTH_MAX, max(1, k)))
    gains = _gains_of_numbers(result, depth) if result.claims.kind == "numbers" else _gains(result, depth)
    item = np.repeat(np.arange(len(gains)), gains.shape[1])
    flat = gains.reshape(-1)
    order = np.argsort(-flat, kind="stable")[:k]
    return Purchases(item[order], flat[order])


def _gains(result: Result, depth: int) -> Floats:
    """float64[n_items, depth]: information in nats of the first, second, ... further label."""
    assert result.posterior is not None
    if result.claims.kind == "sets":
        yes = result.posterior.reshape(-1)
        gains = _information(np.stack([1 - yes, yes], 1), _crowd(result, 2), depth)
        return gains.reshape(len(result.posterior), -1, depth).sum(1)
    return _information(result.posterior, _crowd(result, result.posterior.shape[1]), depth)


def _crowd(result: Result, n_classes: int) -> Floats:
    """float64[K, K]: p(label | truth) of a typical worker, who errs evenly."""
    workers = result.workers
    quality = float((workers.quality * workers.claims).sum() / max(workers.claims.sum(), 1))
    quality = min(max(quality, 1.0 / n_classes + 1e-3), 1.0 - 1e-6)
    confusion = np.full((n_classes, n_classes), (1.0 - quality) / max(n_classes - 1, 1))
    np.fill_diagonal(confusion, quality)
    return confusion


def _information(posterior: Floats, confusion: Floats, depth: int) -> Floats:
    """Mutual information of an item's class and one label; each further label finds the entropy that is left.

    For a worker who errs evenly the information is H(label) - H(label | truth), and H(label) comes from the
    posterior alone. What is left shrinks by the share of the entropy that a label takes.
    """
    certain = confusion.max()
    noise = -float((confusion[0] * np.log(np.maximum(confusion[0], 1e-300))).sum())
    label = posterior * (certain - confusion.min()) + confusion.min()
    first = np.maximum(_entropy(label) - noise, 0.0)
    before = _entropy(posterior)
    left = np.divide(before - first, before, out=np.zeros_like(before), where=before > 0).clip(0.0, 1.0)
    powers: NDArray[np.float64] = left[:, None] ** np.arange(depth)
    return first[:, None] * powers


def _entropy(shares: Floats) -> Floats:
    return -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)


def _gains_of_numbers(result: Result, depth: int) -> Floats:
    """float64[n_items, depth]: the truth's variance less what it is after the first, second, ... further claim."""
    assert result.interval is not None and result.workers.deviation is not None
    workers = result.workers
    typical = float((workers.deviation**2 * workers.claims).sum() / max(workers.claims.sum(), 1))
    half = (result.interval[:, 1] - result.interval[:, 0]) / 2 / 1.6448536269514722
    variance = np.where(np.isnan(half), 4.0 * typical, half**2)
    claims = typical / np.maximum(variance, 1e-300)
    steps = claims[:, None] + np.arange(depth + 1)
    return -np.diff(typical / steps, axis=1)
