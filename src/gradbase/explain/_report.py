"""Everything that is said about a plan, computed once; the renderers only lay it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Protocol

from gradbase.explain._measured import Measurements
from gradbase.explain._timeline import Timeline, Unplanned, layer_of, timeline, unplanned
from gradbase.explain._tree import OUTSIDE, Node, home_operators, module_tree
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan, Operator
from gradbase.ir.physical import Action, Await, Compute, PageIn, PageOut, PhysicalPlan


class CurvePoint(Protocol):
    """A point of memory against time, as the planner returns it."""

    @property
    def budget_bytes(self) -> int: ...
    @property
    def predicted_peak_bytes(self) -> int: ...
    @property
    def predicted_time_us(self) -> float: ...
    @property
    def lower_bound_time_us(self) -> float: ...


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Where the time of the simulated step goes, in µs. `slowed_us` is what transfers take from computing."""

    first_us: float
    recompute_us: float
    waiting_us: float
    slowed_us: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that go out to the slow tier and come in from it during one step."""

    out_bytes: int
    in_bytes: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A storage that is in memory at the peak."""

    name: str
    module: str
    layer: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The instruction during which most bytes are occupied, and who holds them, largest first."""

    instruction: int
    operator: int  # the one that runs then, or the next that runs
    total_bytes: int
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One operator over all its runs in the step. Times in µs; `measured_us` None when not all were measured."""

    operator: Operator
    runs: int
    time_us: float
    measured_us: float | None
    source: str  # where the estimate is from


@dataclass(frozen=True, slots=True)
class Choice:
    """A storage that does not simply stay, and why."""

    name: str
    module: str
    nbytes: int
    action: Action
    after: str
    before: str
    cost_us: float
    why: str


@dataclass(frozen=True, slots=True)
class EstimationError:
    """q-errors of operator times, max(estimate / measured, measured / estimate): 1 is exact."""

    count: int
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class Report:
    """One plan explained. `device_profile` names a profile when the figures are for a device that is not there."""

    logical: LogicalPlan
    physical: PhysicalPlan
    costs: Costs
    measurements: Measurements | None
    curve: tuple[CurvePoint, ...]
    device_profile: str | None
    times: Timeline
    before: Unplanned
    tree: Node
    split: TimeSplit
    traffic: Traffic
    peak: Peak
    operators: tuple[OperatorRow, ...]  # most expensive first
    choices: tuple[Choice, ...]  # largest first
    error: EstimationError | None

    @property
    def estimates(self) -> dict[str, int]:
        """How many operators' estimates are measured, learned, or from the roofline."""
        return dict(sorted(Counter(estimate.source for estimate in self.costs.operators).items(), key=lambda x: -x[1]))

    @property
    def gap(self) -> float | None:
        """By what share the predicted time may lie above the best possible; None without a bound."""
        bound = self.physical.lower_bound_time_us
        return self.physical.predicted_time_us / bound - 1 if bound > 0 else None


def build_report(
    logical: LogicalPlan,
    physical: PhysicalPlan,
    costs: Costs,
    measurements: Measurements | None = None,
    curve: Iterable[CurvePoint] = (),
    device_profile: str | None = None,
) -> Report:
    """Compute what the renderers show. The plans are taken to be verified."""
    times = timeline(logical, physical, costs)
    return Report(
        logical,
        physical,
        costs,
        measurements,
        tuple(curve),
        device_profile,
        times,
        unplanned(logical, costs),
        module_tree(logical, physical, costs, times, measurements),
        _split(physical, costs, times),
        _traffic(logical, physical),
        _peak(logical, physical, costs, times),
        _operator_rows(logical, physical, costs, measurements),
        _choices(logical, physical),
        _estimation_error(physical, costs, measurements),
    )


def _split(physical: PhysicalPlan, costs: Costs, times: Timeline) -> TimeSplit:
    sums = {"first": 0.0, "recompute": 0.0, "waiting": 0.0, "slowed": 0.0}
    for index, instruction in enumerate(physical.instructions):
        if isinstance(instruction, Compute):
            key = "recompute" if instruction.run else "first"
        else:
            key = "waiting" if isinstance(instruction, Await) else "slowed"
        sums[key] += times.left_us[index] - times.issued_us[index]
    return TimeSplit(sums["first"], sums["recompute"], sums["waiting"], sums["slowed"])


def _traffic(logical: LogicalPlan, physical: PhysicalPlan) -> Traffic:
    def total(kind: type[PageOut] | type[PageIn]) -> int:
        lives = (physical.lives[step.life] for step in physical.instructions if isinstance(step, kind))
        return sum(logical.storages[life.storage].nbytes for life in lives)

    return Traffic(total(PageOut), total(PageIn))


def _peak(logical: LogicalPlan, physical: PhysicalPlan, costs: Costs, times: Timeline) -> Peak:
    best, at, operator = physical.resident_bytes, -1, -1
    for index, instruction in enumerate(physical.instructions):
        total = physical.resident_bytes + times.live_bytes[index]
        if isinstance(instruction, Compute):
            total += costs.operators[instruction.operator].scratch_bytes
        if total > best or at == -1:
            best, at = total, index
    for instruction in physical.instructions[at:] if at != -1 else ():
        if isinstance(instruction, Compute):
            operator = instruction.operator
            break
    return Peak(at, operator, best, tuple(_holders(logical, physical, at)))


def _holders(logical: LogicalPlan, physical: PhysicalPlan, at: int) -> list[Holder]:
    home = home_operators(logical)

    def holder(storage: int, layer: str, nbytes: int) -> Holder:
        return Holder(logical.storages[storage].name, module_of(logical, home, storage), layer, nbytes)

    found = [
        holder(life.storage, layer_of(logical.storages[life.storage].kind, life), life.nbytes)
        for life in physical.lives
        if life.born + (life.reuses != -1) <= at <= life.dies
    ]
    spilled = set(physical.spilled)
    found += [holder(s.id, s.kind, s.nbytes) for s in logical.storages if s.external and s.id not in spilled]
    return sorted(found, key=lambda held: (-held.nbytes, held.name))


def module_of(logical: LogicalPlan, home: dict[int, int], storage: int) -> str:
    """The module that a storage belongs to, by the operator that writes or first reads it."""
    return (logical.operators[home[storage]].module or OUTSIDE) if storage in home else OUTSIDE


def _operator_rows(
    logical: LogicalPlan, physical: PhysicalPlan, costs: Costs, measurements: Measurements | None
) -> tuple[OperatorRow, ...]:
    runs = [0] * len(logical.operators)
    measured: list[float | None] = [0.0] * len(logical.operators)
    seen_us = (measurements or Measurements(())).times_of(len(physical.instructions))
    for step, now in zip(physical.instructions, seen_us, strict=True):
        if isinstance(step, Compute):
            runs[step.operator] += 1
            before = measured[step.operator]
            measured[step.operator] = None if before is None or now is None else before + now
    rows = (
        OperatorRow(operator, times, times * estimate.time_us, seen, estimate.source)
        for operator, times, estimate, seen in zip(logical.operators, runs, costs.operators, measured, strict=True)
    )
    return tuple(sorted(rows, key=lambda row: (-row.time_us, row.operator.id)))


def _choices(logical: LogicalPlan, physical: PhysicalPlan) -> tuple[Choice, ...]:
    home = home_operators(logical)

    def place(operator: int, outside: str) -> str:
        return outside if operator == -1 else logical.operators[operator].name

    choices = (
        Choice(
            logical.storages[made.storage].name,
            module_of(logical, home, made.storage),
            logical.storages[made.storage].nbytes,
            made.action,
            place(made.after, "the step begins"),
            place(made.before, "the step ends"),
            made.cost_us,
            made.why,
        )
        for made in physical.decisions
        if made.action != "keep"
    )
    return tuple(sorted(choices, key=lambda choice: (-choice.nbytes, choice.name)))


def _estimation_error(
    physical: PhysicalPlan, costs: Costs, measurements: Measurements | None
) -> EstimationError | None:
    if measurements is None:
        return None
    errors = []
    for step, measured_us in zip(physical.instructions, measurements.times_of(len(physical.instructions)), strict=True):
        if isinstance(step, Compute) and measured_us:
            estimated_us = costs.operators[step.operator].time_us
            if estimated_us > 0:
                errors.append(max(estimated_us / measured_us, measured_us / estimated_us))
    return EstimationError(len(errors), median(errors), _p90(errors)) if errors else None


def _p90(values: Sequence[float]) -> float:
    return quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]
