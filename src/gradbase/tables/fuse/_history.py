"""From a timeline: what is true now, what each claim did for it, and what was true until when."""

from __future__ import annotations

import numpy as np

from gradbase.tables.fuse._problem import Problem
from gradbase.tables.fuse._temporal import Timeline
from gradbase.tables.fuse._types import Floats, Ints, Table


def last_beliefs(timeline: Timeline) -> Floats:
    """(values,) of the chains' values: how probably each is true after the last claim of its item."""
    chains, result = timeline.chains, np.empty(len(timeline.chains.values))
    for step, beliefs in enumerate(timeline.filtered):
        longer = chains.alive(step + 1) if step + 1 < chains.length else 0
        ended = slice(int(chains.starts[longer]), int(chains.starts[chains.alive(step)]))
        result[ended] = beliefs[ended]
    return result


def gains(timeline: Timeline, best: Ints, second: Ints) -> Floats:
    """(steps,) by how much each claim, and the time before it, moved the log-odds of best over second (both (chains,),
    positions among the chains' values)."""
    chains = timeline.chains
    odds, moved = np.zeros(len(chains.item)), []
    for step, beliefs in enumerate(timeline.filtered):
        alive = chains.alive(step)
        logs = np.log(np.maximum(beliefs, 1e-300))
        after = logs[best[:alive]] - logs[second[:alive]]
        moved.append(after - odds[:alive])
        odds[:alive] = after
    return np.concatenate(moved)


def history(problem: Problem, timeline: Timeline) -> Table:
    """One row per time that a value was true, of items with more than one: `until` is NaN for what still is."""
    chain, winner, belief, time = _winners(problem, timeline)
    order = np.argsort(chain, kind="stable")  # steps are in order of time already
    chain, winner, belief, time = chain[order], winner[order], belief[order], time[order]
    fresh = np.ones(len(chain), dtype=np.bool_)
    fresh[1:] = (chain[1:] != chain[:-1]) | (winner[1:] != winner[:-1])
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.r_[starts, len(chain)])
    same_item = np.r_[chain[starts][1:] == chain[starts][:-1], False] if len(starts) else np.empty(0, np.bool_)
    following = np.r_[time[starts][1:], np.nan] if len(starts) else np.empty(0)
    mean = np.add.reduceat(belief, starts) / sizes if len(starts) else np.empty(0)
    changed = np.bincount(chain[starts], minlength=len(timeline.chains.item))[chain[starts]] > 1
    item = timeline.chains.item[chain[starts]]
    table = {
        "object": problem.object[item],
        "attribute": problem.attribute[item],
        "value": problem.value[timeline.chains.values[winner[starts]]],
        "since": time[starts],
        "until": np.where(same_item, following, np.nan),
        "probability": mean,
    }
    return {name: column[changed] for name, column in table.items()}


def _winners(problem: Problem, timeline: Timeline) -> tuple[Ints, Ints, Floats, Floats]:
    """(steps,) each: the chain, its most probable value at that time, how probable, and the time."""
    chains, parts = timeline.chains, []
    for step, beliefs in enumerate(timeline.smoothed):
        alive = chains.alive(step)
        chain = np.arange(alive)
        best = best_of_chains(timeline, alive, beliefs)
        claims = chains.claim[chains.bounds[step] : chains.bounds[step + 1]]
        parts.append((chain, best, beliefs[best], problem.time[claims]))
    columns = zip(*parts, strict=True)
    chain, best, belief, time = (np.concatenate(column) for column in columns)
    return chain, best, belief, time


def best_of_chains(timeline: Timeline, alive: int, beliefs: Floats, but: Ints | None = None) -> Ints:
    """(alive,) positions of the most probable values, `but` for the ones given; the first of equals."""
    chains = timeline.chains
    owner = np.repeat(np.arange(alive), np.diff(chains.starts[: alive + 1]))
    rounded = np.round(beliefs, 12)
    if but is not None:
        rounded[but] = -1.0
    order = np.lexsort((-rounded, owner))
    return order[chains.starts[:alive]]
