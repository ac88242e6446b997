"""A packed candidate becomes a physical plan: instructions, lives, decisions and figures."""

from __future__ import annotations

from collections import Counter

from gradbase.ir.physical import Action, Await, Compute, Decision, Instruction, Life, PageIn, PageOut, PhysicalPlan
from gradbase.planner.problem import Gap, Problem, round_up
from gradbase.planner.search import Candidate
from gradbase.planner.transfers import AWAIT_IN, AWAIT_OUT, COMPUTE, IN, OUT, gap_costs
from gradbase.planner.walk import KEEP, PAGE


def physical_plan(
    problem: Problem,
    candidate: Candidate,
    *,
    budget_bytes: int | None,
    unlimited_time_us: float,
    lower_bound_time_us: float,
    planning_s: float,
    rules: tuple[str, ...],
) -> PhysicalPlan:
    """The plan for a candidate whose bytes fit."""
    assert lower_bound_time_us <= candidate.time_us * (1 + 1e-6), "a plan is faster than what was proven possible"
    spilled = tuple(s for s, gaps in sorted(problem.spill_of.items()) if candidate.choice.action[gaps[0]] == PAGE)
    return PhysicalPlan(
        instructions=_instructions(candidate),
        lives=_lives(candidate),
        decisions=_decisions(problem, candidate),
        arena_bytes=candidate.arena_bytes,
        resident_bytes=problem.resident_bytes + candidate.unspilled_bytes,
        scratch_bytes=problem.scratch_bytes,
        spilled=spilled,
        page_file_bytes=_page_file_bytes(problem, candidate, spilled),
        budget_bytes=budget_bytes,
        predicted_time_us=candidate.timeline.time_us,
        unlimited_time_us=unlimited_time_us,
        lower_bound_time_us=min(lower_bound_time_us, candidate.time_us),  # equal but for the solver's rounding
        planning_s=planning_s,
        rules=rules,
        estimates=tuple(sorted(Counter(e.source for e in problem.costs.operators).items())),
    )


def _instructions(candidate: Candidate) -> tuple[Instruction, ...]:
    walk = candidate.timeline.walk
    instructions: list[Instruction] = []
    for kind, index in candidate.timeline.steps:
        if kind == COMPUTE:
            run = walk.runs[index]
            instructions.append(Compute(run.operator, run.run, tuple(run.reads), tuple(run.writes)))
        elif kind == OUT:
            instructions.append(PageOut(index))
        elif kind == IN:
            instructions.append(PageIn(index))
        elif kind == AWAIT_OUT:
            instructions.append(Await(index, "out"))
        else:
            assert kind == AWAIT_IN
            instructions.append(Await(index, "in"))
    return tuple(instructions)


def _lives(candidate: Candidate) -> tuple[Life, ...]:
    line = candidate.timeline
    return tuple(
        Life(i, s.storage, candidate.offsets[i], line.nbytes[i], line.born[i], line.dies[i], s.origin, s.reuses)
        for i, s in enumerate(line.walk.stays)
    )


def _page_file_bytes(problem: Problem, candidate: Candidate, spilled: tuple[int, ...]) -> int:
    if problem.tier is None:
        return 0
    paged = {s.storage for s in candidate.timeline.walk.stays if s.out} | set(spilled)
    return sum(round_up(problem.nbytes[s], problem.tier.alignment_bytes) for s in paged)


def _decisions(problem: Problem, candidate: Candidate) -> tuple[Decision, ...]:
    """One for every gap that was given up, with what it costs in this plan."""
    costs = gap_costs(problem, candidate.timeline)
    return tuple(
        _decision(problem, gap, candidate.choice.action[gap.id] == PAGE, costs.get(gap.id, 0.0))
        for gap in problem.gaps
        if candidate.choice.action[gap.id] != KEEP
    )


def _decision(problem: Problem, gap: Gap, paged: bool, cost_us: float) -> Decision:
    action: Action = "page" if paged else "recompute"
    if gap.spill:
        why = f"rests in the page file between its uses: {gap.out_us:.0f} µs out, {gap.in_us:.0f} µs in"
        before = -1 if gap.wraps else problem.order[gap.before]
        return Decision(gap.storage, problem.order[gap.after], before, action, cost_us, why)
    after = problem.order[gap.after]
    before = problem.order[gap.before] if gap.before < problem.end else -1
    return Decision(gap.storage, after, before, action, cost_us, _why(gap, paged))


def _why(gap: Gap, paged: bool) -> str:
    """The other way, with its estimate, since that is what the reader compares with."""
    idle = gap.before - gap.after
    if paged:
        other = f"recomputing would take {gap.recompute_us:.0f} µs" if gap.recompute_us < float("inf") else (
            "cannot be recomputed"
        )
        return f"idle for {idle} operators; paging costs {gap.page_us:.0f} µs of computing, {other}"
    other = f"paging would cost {gap.page_us:.0f} µs" if gap.page_us < float("inf") else "cannot be paged"
    return f"idle for {idle} operators; running its operator again takes {gap.recompute_us:.0f} µs, {other}"
