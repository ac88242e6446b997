"""What is kept is what predicts held-out claims better.

Folds come from the claims' content (`Problem.draw`), turned by the seed, so that no name and no order of rows moves a
claim into another fold. A gate opens when the mean gain in log-likelihood is above one standard error of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradbase.tables.fuse._discrete import AS_FOUND, Fit, Model, Sharpness, fit, predict, shared_claims
from gradbase.tables.fuse._types import Bools, Floats

FOLDS = 2
HELD_SHARE = 0.2
ERRORS_MIN = 1.0  # standard errors that a gain has to be above
SHARED_CLAIMS = 30.0  # of all held-out claims, that the sharpness of one kind of items goes by beside its own
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

    def contested(self, model: Model) -> Bools:
        """(held claims of all folds,) whether the claims not held out name several values of the item."""
        problem, found = model.problem, []
        for held in self.held:
            alive = np.bincount(problem.candidate[~held], minlength=problem.candidates) > 0
            found.append(np.bincount(problem.candidate_item[alive], minlength=problem.items)[problem.item[held]] > 1)
        return np.concatenate(found)

    def likelihood(self, model: Model, fits: list[Fit], sharpness: Sharpness = AS_FOUND) -> Floats:
        """(held claims of all folds,) log-likelihoods."""
        return np.concatenate([predict(model, f, held, sharpness) for f, held in zip(fits, self.held, strict=True)])


def judge(name: str, without: Floats, having: Floats, errors: float = ERRORS_MIN) -> Gate:
    """Compare two models on the same held-out claims; the gain has to be above so many standard errors."""
    gains = having - without
    if len(gains) < 2:
        return Gate(name, False, 0.0)
    gain, error = float(gains.mean()), float(gains.std()) / len(gains) ** 0.5
    return Gate(name, gain > errors * error and gain > 0, gain)


def best_sharpness(folds: Folds, model: Model, fits: list[Fit]) -> tuple[Sharpness, list[Gate]]:
    """How far posteriors are to be believed: sources are not as independent as the model has it.

    What predicts held-out claims best, of agreed and of contested items for themselves; the fewer claims of a kind are
    held out, the more the others count.
    """
    if not any(held.any() for held in folds.held):
        return AS_FOUND, []
    tried = [folds.likelihood(model, fits, Sharpness(s, s)) for s in SHARPNESSES]
    contested, gates, chosen = folds.contested(model), [], []
    for name, own in (("agreed", ~contested), ("contested", contested)):
        total = np.array([t[own].sum() + SHARED_CLAIMS * t.mean() for t in tried])
        best = len(total) - 1 - int(np.argmax(np.round(total, 6)[::-1]))
        chosen.append(SHARPNESSES[best])
        gain = float((tried[best] - tried[-1])[own].mean()) if own.any() else 0.0
        gates.append(Gate(f"sharpness {chosen[-1]:g} of {name} items", chosen[-1] < 1, gain))
    return Sharpness(*chosen), gates
