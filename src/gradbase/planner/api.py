"""What other rooms call: plan, least_bytes, curve, lower_bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gradbase.common.errors import InfeasibleError
from gradbase.common.units import format_bytes
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan
from gradbase.ir.physical import PhysicalPlan
from gradbase.planner.bound import lower_bound_us
from gradbase.planner.emit import physical_plan
from gradbase.planner.problem import Problem, build_problem
from gradbase.planner.rules import chosen_rules
from gradbase.planner.search import Candidate, Effort, Search

Progress = Callable[[str], None]

@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of memory against time. Times in µs, for the whole step."""

    budget_bytes: int
    predicted_peak_bytes: int
    predicted_time_us: float
    lower_bound_time_us: float


def plan(
    logical: LogicalPlan,
    costs: Costs,
    budget_bytes: int | None,
    *,
    rules: Collection[str] | None = None,
    effort_s: float = 8.0,
    on_progress: Progress | None = None,
) -> PhysicalPlan:
    """Order, keep / recompute / page, and addresses for one step within `budget_bytes` (None: no limit).

    `rules` are names out of RULES (None: all). Raises InfeasibleError with the least bytes a plan was found for and
    the operator that needs them, UsageError for a rule that does not exist. A search that goes on improving is cut
    short after what an ordinary core simulates in `effort_s` seconds (for up to 1,000 operators; in proportion above):
    work is counted, not time, so the same input gives the same plan on a loaded machine too.
    """
    started = time.perf_counter()
    session = _Session(logical, costs, rules, on_progress)
    candidate = session.find(budget_bytes, effort_s)
    bound = lower_bound_us(candidate.problem, budget_bytes)
    return session.emit(candidate, budget_bytes, bound, time.perf_counter() - started)


def least_bytes(
    logical: LogicalPlan, costs: Costs, *, rules: Collection[str] | None = None, effort_s: float = 8.0
) -> tuple[int, int]:
    """The least budget in bytes for which a plan is found, and the id of the operator at its peak."""
    session = _Session(logical, costs, rules, None)
    return session.least(effort_s)


def lower_bound(
    logical: LogicalPlan, costs: Costs, budget_bytes: int | None, *, rules: Collection[str] | None = None
) -> float:
    """µs below which no plan with the planner's order of operators gets within the budget; inf: proven infeasible."""
    return lower_bound_us(_Session(logical, costs, rules, None).problem, budget_bytes)


def curve(
    logical: LogicalPlan,
    costs: Costs,
    points: int = 12,
    *,
    rules: Collection[str] | None = None,
    effort_s: float = 30.0,
    on_progress: Progress | None = None,
) -> tuple[CurvePoint, ...]:
    """Budget against predicted time, from the least feasible to unlimited. Time never rises with the budget."""
    session = _Session(logical, costs, rules, on_progress)
    share_s = effort_s / (points + 1)
    unlimited = session.find(None, share_s)
    highest = session.total_bytes(unlimited)
    lowest = min(session.least(share_s)[0], highest)
    best, found = session.least_candidate, []
    for index in range(points):
        budget = lowest + (highest - lowest) * index // max(1, points - 1)
        candidate = unlimited if budget >= highest else session.new_search(budget, share_s).run()
        if candidate is not None and (best is None or candidate.timeline.time_us < best.timeline.time_us):
            best = candidate
        assert best is not None
        bound = min(lower_bound_us(session.problem, budget), best.timeline.time_us)
        found.append(CurvePoint(budget, session.total_bytes(best), best.timeline.time_us, bound))
    return tuple(found)


class _Session:
    """One logical plan with its order chosen, and the searches made on it."""

    def __init__(
        self, logical: LogicalPlan, costs: Costs, rules: Collection[str] | None, on_progress: Progress | None
    ) -> None:
        self.rules = chosen_rules(rules)
        self.tell = on_progress or (lambda message: None)
        self.logical, self.costs = logical, costs
        self.order = list(range(len(logical.operators)))
        for rule in self.rules:
            if rule.reorders is not None:
                self.tell(f"rule {rule.name}")
                self.order = rule.reorders(logical, self.order)
        self.problem = self.new_problem()
        self.least_candidate: Candidate | None = None

    def new_problem(self, waiting: bool = False) -> Problem:
        names = {rule.name for rule in self.rules}
        allowed = {name: name in names for name in ("inplace", "recompute", "page", "spill")}
        return build_problem(self.logical, self.costs, self.order, **allowed, waiting=waiting)

    def effort(self, effort_s: float) -> Effort:
        return Effort.of_seconds(effort_s * max(1.0, self.problem.end / 1000))

    def new_search(self, budget_bytes: int, effort_s: float, problem: Problem | None = None) -> Search:
        self.tell(f"searching a plan for {format_bytes(budget_bytes)}")
        problem = problem or self.problem
        capacity, bound = problem.capacity_bytes(budget_bytes), lower_bound_us(problem, budget_bytes)
        return Search(problem, capacity, self.effort(effort_s), bound)

    def find(self, budget_bytes: int | None, effort_s: float) -> Candidate:
        """A candidate within the budget. Raises InfeasibleError."""
        if budget_bytes is None:
            return Search(self.problem, 0, Effort(0)).keep_everything()
        best = self.new_search(budget_bytes, effort_s).run()
        if best is None:
            least, operator = self.least(effort_s)
            if self.least_candidate is None or least > budget_bytes:
                raise self.infeasible(budget_bytes, least, operator)
            best = self.new_search(budget_bytes, effort_s, self.least_candidate.problem).improve(self.least_candidate)
        return best

    def least(self, effort_s: float) -> tuple[int, int]:
        if self.least_candidate is None:
            self.tell("searching the least memory")
            problems, waiting = [self.problem], self.new_problem(waiting=True)
            if len(waiting.gaps) > len(self.problem.gaps):
                problems.append(waiting)
            found = [Search(problem, 0, self.effort(effort_s)).shrink() for problem in problems]
            self.least_candidate = min(found, key=lambda candidate: candidate.total_bytes)
        candidate = self.least_candidate
        return self.total_bytes(candidate), self.problem.order[self.peak_position(candidate)]

    def peak_position(self, candidate: Candidate) -> int:
        return min(int(candidate.timeline.peak_bytes.argmax()), max(0, self.problem.end - 1))

    def total_bytes(self, candidate: Candidate) -> int:
        return candidate.total_bytes + self.problem.resident_bytes + self.problem.scratch_bytes

    def infeasible(self, budget_bytes: int, least: int, operator: int) -> InfeasibleError:
        name = self.problem.logical.operators[operator].name
        return InfeasibleError(
            f"no plan for this step fits in {format_bytes(budget_bytes)}",
            f"needs at least {format_bytes(least)} ({least} bytes): {name} is its widest operator",
            f'try: memory >= "{-(-least // 2**20)}MiB", or a smaller batch',
            least_bytes=least,
            operator=name,
        )

    def emit(
        self, candidate: Candidate, budget_bytes: int | None, bound_us: float, planning_s: float
    ) -> PhysicalPlan:
        return physical_plan(
            candidate.problem,
            candidate,
            budget_bytes=budget_bytes,
            unlimited_time_us=self.problem.total_us,
            lower_bound_time_us=bound_us,
            planning_s=planning_s,
            rules=tuple(rule.name for rule in self.rules),
        )
