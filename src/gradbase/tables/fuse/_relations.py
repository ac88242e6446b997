"""How what was claimed relates to what is true: the same, vaguer, finer, near, or something else.

Only candidates of one item are related, and only related pairs are kept; everything else is "other". Their number is
bounded: of an item with very many values only the `COMPARED_MAX` most claimed are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbase.tables.fuse._kinds import Kind, text_key
from gradbase.tables.fuse._problem import Problem
from gradbase.tables.fuse._types import AttributeOptions, Bools, Hierarchy, Ints

EXACT, VAGUER, FINER, NEAR, OTHER = range(5)
RELATIONS = 5
COMPARED_MAX = 48

Relate = Callable[[Any, Any], int]


@dataclass(frozen=True)
class Pairs:
    """(pairs,) each: `claimed` stands in `relation` to `true`, both candidates of one item; every (c, c) is EXACT."""

    claimed: Ints
    true: Ints
    relation: Ints

    def kept(self, wanted: Bools) -> Pairs:
        return Pairs(self.claimed[wanted], self.true[wanted], self.relation[wanted])

    def exact_only(self) -> Pairs:
        return self.kept(self.relation == EXACT)


def relate_candidates(problem: Problem, options: dict[int, AttributeOptions]) -> Pairs:
    """All related pairs of the problem's candidates, sorted by what is true, then by what is claimed."""
    own = np.arange(problem.candidates, dtype=np.int64)
    claimed, true, relation = [own], [own], [np.full(problem.candidates, EXACT, dtype=np.int64)]
    attribute = problem.attribute[problem.candidate_item]
    for code, kind in problem.kinds.items():
        relate = _relate_of(kind, options[code])
        if relate is not None:
            found = _compare(problem, np.flatnonzero(attribute == code), relate)
            for column, part in zip((claimed, true, relation), found, strict=True):
                column.append(part)
    columns = [np.concatenate(column) for column in (claimed, true, relation)]
    order = np.lexsort((columns[0], columns[1]))
    return Pairs(*(column[order] for column in columns))


def _compare(problem: Problem, candidates: Ints, relate: Relate) -> tuple[Ints, Ints, Ints]:
    """Related ordered pairs of different candidates of the same item."""
    one, other = _pairs_within(problem, candidates)
    keys = problem.key
    relation = np.fromiter(
        (relate(keys[a], keys[b]) for a, b in zip(one.tolist(), other.tolist(), strict=True)), np.int64, len(one)
    )
    related = relation != OTHER
    return one[related], other[related], relation[related]


def _pairs_within(problem: Problem, candidates: Ints) -> tuple[Ints, Ints]:
    """All ordered pairs of different candidates of one item, of each item the COMPARED_MAX most claimed."""
    item = problem.candidate_item[candidates]
    order = np.lexsort((candidates, -problem.per_candidate()[candidates], item))
    candidates, item = candidates[order], item[order]
    starts = np.flatnonzero(np.r_[True, item[1:] != item[:-1]]) if len(item) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(item)])
    one, other = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(np.minimum(sizes, COMPARED_MAX)).tolist():
        group = starts[np.minimum(sizes, COMPARED_MAX) == size]
        left, right = np.nonzero(~np.eye(size, dtype=np.bool_))
        one.append(candidates[(group[:, None] + left).ravel()])
        other.append(candidates[(group[:, None] + right).ravel()])
    return np.concatenate(one), np.concatenate(other)


def _relate_of(kind: Kind, options: AttributeOptions) -> Relate | None:
    if options.hierarchy is not None:
        return _by_hierarchy(options.hierarchy)
    similarity = options.similarity or kind.similarity
    vaguer, near = kind.vaguer, kind.near
    if similarity is None and vaguer is None:
        return None

    def relate(claimed: Any, true: Any) -> int:
        if vaguer is not None and vaguer(claimed, true):
            return VAGUER
        if vaguer is not None and vaguer(true, claimed):
            return FINER
        if similarity is not None:
            alike = similarity(claimed, true)
            return NEAR if alike >= near and alike > 0 else OTHER
        return OTHER

    return relate


def _by_hierarchy(hierarchy: Hierarchy) -> Relate:
    """Vaguer is what contains; a name of several nodes contains what any of them does."""
    names = [text_key(name) for name in hierarchy.names]
    above: dict[str, set[str]] = {}
    # A single root contains everything, which says nothing; of several, each says something.
    roots = np.flatnonzero(hierarchy.parents < 0)
    world = int(roots[0]) if len(roots) == 1 else -1
    for node, name in enumerate(names):
        above.setdefault(name, set()).update(names[i] for i in _ancestors(hierarchy, node) if i != world)

    def relate(claimed: str, true: str) -> int:
        if claimed in above.get(true, ()):
            return VAGUER
        return FINER if true in above.get(claimed, ()) else OTHER

    return relate


def _ancestors(hierarchy: Hierarchy, node: int) -> Iterator[int]:
    node = int(hierarchy.parents[node])
    while node >= 0:
        yield node
        node = int(hierarchy.parents[node])
