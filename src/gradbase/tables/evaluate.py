"""Answers beside gold: how often they are right, whether their probabilities can be believed, and what a vote says.

Calibration error is the expected calibration error with ten bins of equal width (Naeini et al., AAAI 2015): the mean
over items of |accuracy - probability| of the bin the item's probability falls into. The negative log-likelihood is
that of the gold value, in nats, with probabilities of at least `LEAST_PROBABILITY`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import TableError

BINS = 10
LEAST_PROBABILITY = 1e-9

Codes = NDArray[np.int32] | NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Items whose probability is in [low, high): how many, their mean probability, the share that is right."""

    low: float
    high: float
    items: int
    probability: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """`items` were compared; `unanswered` golds are of items nobody answered, and are left out.

    Classes and values: `accuracy`, `majority_accuracy` (of items with claims; a tie counts as its chance),
    `calibration_error`, `negative_log_likelihood`, `f1` per class (of few classes) and `bins`. Numbers:
    `mean_absolute_error`, that of the mean of the claims, and `coverage`, the share of golds inside their interval.
    """

    items: int
    unanswered: int
    accuracy: float | None = None
    majority_accuracy: float | None = None
    calibration_error: float | None = None
    negative_log_likelihood: float | None = None
    f1: Mapping[str, float] = field(default_factory=dict)
    bins: tuple[Bin, ...] = ()
    mean_absolute_error: float | None = None
    mean_mean_absolute_error: float | None = None
    coverage: float | None = None

    def figures(self) -> dict[str, Any]:
        """All that is known, for one line of JSON."""
        found = asdict(self)
        found["bins"] = [asdict(each) for each in self.bins]
        return {name: value for name, value in found.items() if value is not None and value != {} and value != []}

    def summary(self) -> str:
        """One line for people."""
        if self.mean_absolute_error is not None:
            told = f"mean absolute error {self.mean_absolute_error:.3g} (mean of the claims"
            inside = "" if self.coverage is None else f", {self.coverage:.1%} of golds inside their interval"
            return f"{told} {self.mean_mean_absolute_error:.3g}){inside}, {self._counted()}"
        vote = "" if self.majority_accuracy is None else f" (majority vote {self.majority_accuracy:.1%})"
        likelihood = self.negative_log_likelihood
        more = "" if likelihood is None else f", negative log-likelihood {likelihood:.3f}"
        error = f"calibration error {self.calibration_error:.3f}"
        return f"accuracy {self.accuracy:.1%}{vote}{self._f1()}, {error}{more}, {self._counted()}"

    def _f1(self) -> str:
        """Of two classes, that of the second: 1, true, yes."""
        if len(self.f1) != 2:
            return ""
        name, score = list(self.f1.items())[1]
        return f", F1 of {name!r} {score:.1%}"

    def _counted(self) -> str:
        left = f"; {self.unanswered} golds are of items without claims" if self.unanswered else ""
        return f"{self.items} items with gold{left}"


def one_gold_each(items: Sequence[Any], values: Sequence[Any], where: str) -> dict[str, str]:
    """Item to its gold, both as texts. Raises TableError for an item with two different golds."""
    gold: dict[str, str] = {}
    for item, value in zip(map(str, items), map(str, values), strict=True):
        if gold.setdefault(item, value) != value:
            raise TableError(
                f"item {item!r} has two golds in {where}: {gold[item]!r} and {value!r}", "keep one of them"
            )
    return gold


def calibration(probability: Floats, right: NDArray[Any]) -> tuple[float, tuple[Bin, ...]]:
    """The expected calibration error and its bins; `right` is 0 or 1 (or a chance) per item."""
    bins: list[Bin] = []
    place = np.clip((probability * BINS).astype(np.int64), 0, BINS - 1)
    for number in np.unique(place):
        inside = place == number
        mean, accuracy = float(probability[inside].mean()), float(right[inside].mean())
        bins.append(Bin(number / BINS, (number + 1) / BINS, int(inside.sum()), mean, accuracy))
    error = sum(each.items * abs(each.accuracy - each.probability) for each in bins) / max(len(probability), 1)
    return error, tuple(bins)


def negative_log_likelihood(probability_of_gold: Floats) -> float:
    """Mean over items, in nats."""
    return float(-np.log(np.clip(probability_of_gold, LEAST_PROBABILITY, 1)).mean())


def majority_right(item: Codes, value: Codes, gold: Mapping[int, int]) -> Floats:
    """For each item of `gold` (codes), the chance that a vote over its claims gives the gold value: ties are broken
    by lot. NaN for items without claims: there is no vote."""
    chosen = np.isin(item, np.fromiter(gold, dtype=np.int64, count=len(gold)))
    pairs, votes = np.unique(np.stack([item[chosen], value[chosen]]), axis=1, return_counts=True)
    best: dict[int, int] = {}
    for code, count in zip(pairs[0].tolist(), votes.tolist(), strict=True):
        best[code] = max(best.get(code, 0), count)
    winners: dict[int, list[int]] = {}
    for code, answer, count in zip(pairs[0].tolist(), pairs[1].tolist(), votes.tolist(), strict=True):
        if count == best[code]:
            winners.setdefault(code, []).append(answer)
    chances = [
        (truth in winners[code]) / len(winners[code]) if code in winners else np.nan for code, truth in gold.items()
    ]
    return np.array(chances, dtype=np.float64)


def f1_scores(value: Sequence[Any], gold: Sequence[Any]) -> dict[str, float]:
    """F1 of every class among the golds."""
    answered, truths = np.asarray(value, dtype=object), np.asarray(gold, dtype=object)
    scores: dict[str, float] = {}
    for name in sorted(set(truths.tolist())):
        both = int(((answered == name) & (truths == name)).sum())
        scores[str(name)] = 2 * both / max(int((answered == name).sum()) + int((truths == name).sum()), 1)
    return scores


def evaluate_values(
    value: Sequence[Any],
    probability: Floats,
    gold: Sequence[Any],
    *,
    probability_of_gold: Floats | None = None,
    majority: Floats | None = None,
    unanswered: int = 0,
    classes_max: int = 20,
) -> Evaluation:
    """Compare values with golds, item by item; `majority` is the chance that the vote is right on each.

    Raises TableError when there is nothing to compare.
    """
    if not len(gold):
        raise no_common_items(unanswered)
    right = np.array([answered == truth for answered, truth in zip(value, gold, strict=True)], dtype=np.float64)
    error, bins = calibration(probability, right)
    few = len(set(gold)) <= classes_max
    return Evaluation(
        items=len(gold),
        unanswered=unanswered,
        accuracy=float(right.mean()),
        majority_accuracy=_voted(majority),
        calibration_error=error,
        negative_log_likelihood=None if probability_of_gold is None else negative_log_likelihood(probability_of_gold),
        f1=f1_scores(value, gold) if few else {},
        bins=bins,
    )


def _voted(majority: Floats | None) -> float | None:
    """Accuracy of the vote, over the items that were voted on."""
    if majority is None or np.isnan(majority).all():
        return None
    return float(np.nanmean(majority))


def evaluate_numbers(
    value: Floats, gold: Floats, mean: Floats, interval: Floats | None = None, unanswered: int = 0
) -> Evaluation:
    """Compare numbers with golds, beside the mean of the claims. Raises TableError when there is nothing to compare."""
    if not len(gold):
        raise no_common_items(unanswered)
    inside = None if interval is None else float(((interval[:, 0] <= gold) & (gold <= interval[:, 1])).mean())
    return Evaluation(
        items=len(gold),
        unanswered=unanswered,
        mean_absolute_error=float(np.abs(value - gold).mean()),
        mean_mean_absolute_error=float(np.abs(mean - gold).mean()),
        coverage=inside,
    )


def no_common_items(unanswered: int) -> TableError:
    """What is said where gold and claims speak of different items."""
    return TableError(
        f"none of the {unanswered} items with gold is among the claims", "do both name their items in the same way?"
    )
