"""Intervals of shares: how often a worker is right, or a source.

Whether a claim is right is judged by what all claims together make believe, and where many err they err together: what
is believed is off in the same direction on many items at once. So a share of right claims stays uncertain however many
claims there are, by as much as the beliefs on them are. An interval has both: chance, and a part of the variance of the
beliefs that all claims of a worker have in common.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.9


def standard_errors(level: float = LEVEL) -> float:
    """To either side of an interval of this probability, under the normal distribution."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(share: Floats, total: Floats, level: float = LEVEL) -> tuple[Floats, Floats]:
    """The score interval of a share out of `total` trials (Wilson, JASA 1927)."""
    z = standard_errors(level)
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def of_believed_share(
    share: Floats, total: Floats, doubt: Floats, common: float, level: float = LEVEL
) -> tuple[Floats, Floats]:
    """The same for a share, strictly between 0 and 1, of claims that are only believed to be right: `doubt` is the mean
    variance of these beliefs, p (1 - p), and `common` the part of it that all of the claims have in common."""
    chance = share * (1.0 - share)
    return wilson(share, chance / (chance / total + common * doubt), level)
