"""Addresses for a timeline: frames that are taken over in place become one block, transfers need aligned ones."""

from __future__ import annotations

from gradbase.planner.pack import pack
from gradbase.planner.problem import Problem
from gradbase.planner.transfers import Timeline


def pack_timeline(problem: Problem, timeline: Timeline, enough: int, thorough: bool) -> tuple[list[int], int]:
    """Offsets per stay and the arena's size; stops trying at `enough` bytes."""
    walk, root = timeline.walk, list(range(len(timeline.walk.stays)))
    for stay, life in enumerate(walk.stays):
        if life.reuses >= 0:
            root[stay] = root[life.reuses]
    blocks = sorted(set(root))
    number = {stay: index for index, stay in enumerate(blocks)}
    dies, alignment = [0] * len(blocks), [64] * len(blocks)
    for stay, life in enumerate(walk.stays):
        block = number[root[stay]]
        dies[block] = max(dies[block], timeline.dies[stay])
        if problem.tier is not None and (life.out or life.origin == "page-in"):
            alignment[block] = max(alignment[block], problem.tier.alignment_bytes)
    offsets, arena = pack(
        [timeline.born[b] for b in blocks],
        dies,
        [timeline.nbytes[b] for b in blocks],
        alignment,
        enough,
        thorough=thorough,
    )
    return [offsets[number[r]] for r in root], arena
