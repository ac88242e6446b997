"""How far estimates were from what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class QErrors:
    """The q-error over `count` pairs: 1 is exact, 2 is wrong by a factor of two, to either side."""

    median: float
    p90: float
    max: float
    count: int


def q_errors(estimated: Sequence[float], actual: Sequence[float], *, floor: float = 1e-3) -> QErrors:
    """max(estimated / actual, actual / estimated) over pairs; at least one pair.

    The measure of Moerkotte et al. (PVLDB 2(1), 2009) and Leis et al. (PVLDB 9(3), 2015): symmetric, and
    in proportion, so that operators of one µs and of one second count alike. Values below `floor` count as it.
    """
    assert len(estimated) == len(actual) > 0, (len(estimated), len(actual))
    guesses = np.maximum(np.asarray(estimated, dtype=np.float64), floor)
    truths = np.maximum(np.asarray(actual, dtype=np.float64), floor)
    errors = np.maximum(guesses / truths, truths / guesses)
    return QErrors(
        median=float(np.median(errors)),
        p90=float(np.percentile(errors, 90)),
        max=float(errors.max()),
        count=len(errors),
    )
