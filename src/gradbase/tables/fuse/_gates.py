"""What is kept is what predicts held-out claims better.

Folds come from the claims' content (`Problem.draw`), turned by the seed, so that no name and no order of rows moves a
claim into another fold. A gate opens when the mean gain in log-likelihood is above one standard error of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradbase.tables.fuse._discrete import Fit, Model, fit, predict, shared_claims
from gradbase.tables.fuse._types import Bools, Floats

FOLDS = 2
HELD_SHARE = 0.2
SHARPNESSES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

Weigh = Callable[[Model, Fit, Floats], Floats]
"""Weights of claims from a fit without them and the weights it used."""


@dataclass(frozen=True)
class Gate:
    """Something tried: its gain in nats per held-out claim, and whether it was kept."""

    name: str
    kept: bool
    gain: float


@dataclass(frozen=True)
class Folds:
    """Held-out claims of each fold, (claims,) each, and the weights of the claims with theirs."""

    held: tuple[Bools, ...]
    weight: Floats

    @classmethod
    def of(cls, model: Model, weight: Floats, seed: int) -> Folds:
        draw = (model.problem.draw + seed * 0.6180339887498949) % 1.0
        spoken = shared_claims(model, weight) & (weight > 0)
        lows = (fold * HELD_SHARE for fold in range(FOLDS))
        return cls(tuple(spoken & (draw >= low) & (draw < low + HELD_SHARE) for low in lows), weight)

    def fits(self, model: Model, iterations_max: int) -> list[Fit]:
        return [fit(model, self.weight * ~held, iterations_max) for held in self.held]

    def likelihood(self, model: Model, fits: list[Fit], sharpness: float = 1.0) -> Floats:
        """(held claims of all folds,) log-likelihoods."""
        return np.concatenate([predict(model, f, held, sharpness) for f, held in zip(fits, self.held, strict=True)])


def judge(name: str, without: Floats, having: Floats) -> Gate:
    """Compare two models on the same held-out claims."""
    gains = having - without
    if len(gains) < 2:
        return Gate(name, False, 0.0)
    gain, error = float(gains.mean()), float(gains.std()) / len(gains) ** 0.5
    return Gate(name, gain > error and gain > 0, gain)


def best_sharpness(folds: Folds, model: Model, fits: list[Fit]) -> tuple[float, Gate]:
    """How far posteriors are to be believed: sources are not as independent as the model has it.

    The largest value that predicts as well as the best one, but for one standard error of the difference.
    """
    if not any(held.any() for held in folds.held):
        return 1.0, Gate("sharpness 1", False, 0.0)
    tried = {sharpness: folds.likelihood(model, fits, sharpness) for sharpness in SHARPNESSES}
    best = max(SHARPNESSES, key=lambda s: (round(float(tried[s].mean()), 9), s))
    chosen = max(s for s in SHARPNESSES if s == best or not judge("", tried[s], tried[best]).kept)
    return chosen, Gate(f"sharpness {chosen:g}", chosen < 1, float(tried[chosen].mean() - tried[1.0].mean()))
