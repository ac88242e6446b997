"""How far a number may be off: what people disagree on, and what they err in together.

Some items divide a crowd more than others. The factor by which an item's errors spread more than its workers' usually
do has a scaled inverse chi-square prior, whose degrees of freedom are what makes the spreads of all items likeliest;
then the error of a mean of independent errors is Student's (Gelman et al., Bayesian Data Analysis, ch. 3).

Errors are not independent, and no data without gold show what all share: halves of one crowd agree with each other much
better than with the truth. Where spreads of items differ by more than chance, items are hard by what they are, and what
divides people also misleads them together. There, as far as the differences are not chance, errors are taken to
correlate by COMMON: a crowd is then worth no more than 1 / COMMON independent people. That is an assumption to the safe
side. Where items are alike, as measurements are, it changes nothing.
"""

from __future__ import annotations

import numpy as np
import torch

from gradbase.tables._intervals import standard_errors
from gradbase.tables.crowd._types import Floats

COMMON = 0.5  # correlation of errors where items are hard by what they are
FREEDOMS = np.geomspace(2.0, 1000.0, 28)  # of the prior of items' spreads


def half_widths(precision: Floats, squares: Floats, claims: Floats) -> Floats:
    """float64[n_items]: half of the 90% interval. `precision` of a truth were errors independent and items alike,
    `squares` the sum of squared errors in units of the workers' variances, `claims` how many; float64[n_items] each."""
    freedom = np.maximum(claims - 1.0, 0.0)
    several = freedom > 0.0
    prior = _prior_freedom(squares[several], freedom[several])
    spread = (squares + prior) / (freedom + prior)
    common = COMMON * _no_chance(prior, freedom[several])
    variance = spread / precision * (1.0 - common + common * np.maximum(claims, 1.0))
    return student90(freedom + prior) * np.sqrt(variance)


def _prior_freedom(squares: Floats, freedom: Floats) -> float:
    """The likeliest of FREEDOMS when squares / freedom are distributed by F(freedom, prior)."""
    if not len(squares):
        return float(FREEDOMS[-1])
    first = torch.from_numpy(freedom / 2)

    def log_likelihood(prior: float) -> float:
        second = torch.full_like(first, prior / 2)
        beta = torch.lgamma(first) + torch.lgamma(second) - torch.lgamma(first + second)
        rest = -(freedom + prior) / 2 * np.log1p(squares / prior) - freedom / 2 * np.log(prior)
        return float(rest.sum() - beta.sum())

    return float(max(FREEDOMS, key=log_likelihood))


def _no_chance(prior: float, freedom: Floats) -> float:
    """0 to 1: the part of the variance of log spreads between items that chance does not explain."""
    if not len(freedom):
        return 0.0
    between = float(torch.polygamma(1, torch.tensor(prior / 2)))
    chance = float(torch.polygamma(1, torch.from_numpy(freedom / 2)).mean())
    return between / (between + chance)


def student90(freedom: Floats) -> Floats:
    """float64[n]: the 95th percentile of Student's t, to 1.5% from two degrees of freedom on (expansion of Fisher and
    Cornish, Abramowitz and Stegun 26.7.5)."""
    z = standard_errors()
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    total: Floats = z + sum(term / freedom**power for power, term in enumerate(terms, 1))
    return total
