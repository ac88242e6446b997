"""Long recomputations: where one dropped storage needs another that was dropped too, and so on.

The covering problem prices every gap as if the rest were kept. Many neighbours given up together then cost far more
than their sum: each is recomputed from far away. Keeping one now and then cuts such chains, which is what
checkpoints between blocks do.
"""

from __future__ import annotations

from gradbase.planner.problem import Problem
from gradbase.planner.walk import RECOMPUTE, Choice


def cut_chains(problem: Problem, choice: Choice, limit_us: float) -> Choice:
    """A copy of the choice in which no storage takes more than about `limit_us` to recompute."""
    choice = choice.copy()
    cost_us = [0.0] * len(problem.nbytes)  # storage -> what bringing it back takes, 0 while it is kept
    for operator in problem.order:
        for storage in problem.writes[operator]:
            cost = problem.time_us[operator] + sum(cost_us[read] for read in problem.reads[operator])
            gap = _last_recomputed(problem, choice, storage)
            if gap < 0:
                # Kept, paged, or never idle: what reads it later finds it, unless it is dead by then.
                cost_us[storage] = 0.0 if problem.gaps_of[storage] else cost
            elif cost > limit_us:
                choice.forget(gap)
            else:
                cost_us[storage] = cost
    return choice


def _last_recomputed(problem: Problem, choice: Choice, storage: int) -> int:
    """The longest gap of the storage that ends in a recomputation, -1 if there is none."""
    gaps = [problem.gaps[g] for g in problem.gaps_of[storage] if choice.action[g] == RECOMPUTE]
    return max(gaps, key=lambda g: (g.before - g.after, g.id)).id if gaps else -1
