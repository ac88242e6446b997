"""The estimate of every operator of a plan: measured, else learned, else roofline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from gradbase.catalog import OperatorStatistics
from gradbase.cost._learned import LearnedModel, fit, group_of, validate
from gradbase.cost._profiles import DeviceProfile
from gradbase.cost._roofline import roofline
from gradbase.ir.costs import Estimate
from gradbase.ir.logical import LogicalPlan, Operator


def estimate(
    logical: LogicalPlan,
    statistics: Mapping[str, OperatorStatistics],
    profile: DeviceProfile,
    *,
    learned: bool = True,
) -> tuple[Estimate, ...]:
    """One estimate per operator of `logical`, in its order; `Estimate.source` says where each is from.

    `statistics`, by signature, must be of the device that `profile` describes. Rows of other signatures but the
    same targets (`Catalog.lookup_targets`) are what unmeasured operators are learned from; a model is used
    only where its leave-one-out error is below the roofline's.
    """
    models = _Models(statistics, profile) if learned else None
    return tuple(_estimate_one(operator, statistics, profile, models) for operator in logical.operators)


def _estimate_one(
    operator: Operator,
    statistics: Mapping[str, OperatorStatistics],
    profile: DeviceProfile,
    models: _Models | None,
) -> Estimate:
    measured = statistics.get(operator.signature)
    if measured is not None:
        return Estimate(measured.time_us, measured.scratch_bytes, "measured")
    model = models.of(operator) if models is not None else None
    if model is not None and model.covers(operator.flops, operator.moved_bytes):
        return model.estimate(operator.flops, operator.moved_bytes)
    return roofline(operator, profile)


class _Models:
    """Models by group, each fitted and validated when the first unmeasured operator asks for it."""

    def __init__(self, statistics: Mapping[str, OperatorStatistics], profile: DeviceProfile) -> None:
        self._profile = profile
        self._models: dict[tuple[str, str], LearnedModel | None] = {}
        self._rows: dict[tuple[str, str], list[OperatorStatistics]] = defaultdict(list)
        for row in statistics.values():
            self._rows[group_of(row.op, row.signature)].append(row)

    def of(self, operator: Operator) -> LearnedModel | None:
        """The model for an operator, None when there is none that beats the roofline."""
        group = group_of(operator.target, operator.signature)
        if group not in self._models:
            self._models[group] = self._fit(self._rows.get(group, []))
        return self._models[group]

    def _fit(self, rows: list[OperatorStatistics]) -> LearnedModel | None:
        outcome = validate(rows, self._profile)
        return fit(rows) if outcome is not None and outcome.learned_is_better else None
