"""Adding claims without the old ones: what they said is kept as evidence by value and as counts by source.

`extend` puts the known values of the items that are spoken of again among the new claims, each as one claim without
weight by a source that is nobody; they make the value a candidate and carry its evidence. `merge` writes the tables
anew. A claim that was counted before is counted again: only the old claims could tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradbase.common.errors import UsageError
from gradbase.tables.fuse._measured import Estimate
from gradbase.tables.fuse._problem import Keys, Problem
from gradbase.tables.fuse._relations import RELATIONS
from gradbase.tables.fuse._types import Claims, Floats, Ints, Objects, Statistics, Table

VALUES = ("object", "attribute", "kind", "value", "evidence", "error", "claims")
SOURCES = ("source", "exact", "vaguer", "finer", "near", "other")
_COUNTS = SOURCES[1:]


@dataclass(frozen=True)
class Earlier:
    """claims: with the known values behind the new ones. row: where those start. evidence, error, count: theirs.
    counts (sources, RELATIONS): of the sources' earlier claims."""

    claims: Claims
    row: int
    evidence: Floats
    error: Floats
    count: Ints
    counts: Floats

    def of_candidates(self, problem: Problem, column: Floats | Ints, default: float) -> Floats:
        """(candidates,) the column's entry for the known values."""
        found = np.full(problem.candidates, default, dtype=np.float64)
        old = problem.row >= self.row
        found[problem.candidate[old]] = column[problem.row[old] - self.row]
        return found


def extend(claims: Claims, statistics: Statistics | None) -> Earlier:
    """The claims with what is known of their items. Raises UsageError when the tables lack a column."""
    none = np.empty(0)
    if statistics is None:
        return Earlier(claims, len(claims), none, none, none.astype(np.int64), np.zeros((0, RELATIONS)))
    _check(statistics)
    values = statistics.values
    objects, attributes = (_positions(names) for names in (claims.object_names, claims.attribute_names))
    spoken = set((claims.object * len(attributes) + claims.attribute).tolist())
    code = [
        (objects.get(o, -1), attributes.get(a, -1))
        for o, a in zip(values["object"].tolist(), values["attribute"].tolist(), strict=True)
    ]
    known = [i for i, (o, a) in enumerate(code) if min(o, a) >= 0 and o * len(attributes) + a in spoken]
    nobody = len(claims.source_names)
    longer = _appended(claims, [code[i] for i in known], values["value"][known], nobody)
    counts = np.zeros((nobody + 1, RELATIONS))
    sources = _positions(claims.source_names)
    for i, name in enumerate(statistics.sources["source"].tolist()):
        if name in sources:
            counts[sources[name]] = [statistics.sources[column][i] for column in _COUNTS]
    chosen = (values[name][known] for name in ("evidence", "error", "claims"))
    evidence, error, count = chosen
    return Earlier(longer, len(claims), evidence, error, count.astype(np.int64), counts)


def _check(statistics: Statistics) -> None:
    for title, table, columns in (("values", statistics.values, VALUES), ("sources", statistics.sources, SOURCES)):
        missing = [name for name in columns if name not in table]
        if missing:
            raise UsageError(
                f"the statistics' table {title!r} has no column {missing[0]!r}", f"expected {', '.join(columns)}"
            )


def _positions(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _appended(claims: Claims, codes: list[tuple[int, int]], values: Objects, nobody: int) -> Claims:
    """The claims, then one of no weight for every known value."""
    added = np.array(codes, dtype=np.int64).reshape(-1, 2)
    confidence = np.full(len(claims), np.nan) if claims.confidence is None else claims.confidence
    times = None if claims.time is None else np.r_[claims.time, np.full(len(added), np.nan)]
    return replace(
        claims,
        object=np.r_[claims.object, added[:, 0]],
        attribute=np.r_[claims.attribute, added[:, 1]],
        source=np.r_[claims.source, np.full(len(added), nobody)],
        value=np.concatenate([claims.value, values.astype(np.object_)]),
        source_names=[*claims.source_names, ""],
        time=times,
        confidence=np.r_[confidence, np.zeros(len(added))],
    )


def merge(statistics: Statistics | None, values: Table, sources: Table) -> Statistics:
    """The earlier tables with the rows of the given items and sources put in place of theirs."""
    if statistics is None:
        return Statistics(values, sources)
    return Statistics(
        _replaced(statistics.values, values, ("object", "attribute")),
        _replaced(statistics.sources, sources, ("source",)),
    )


def _replaced(old: Table, new: Table, by: tuple[str, ...]) -> Table:
    fresh = set(zip(*(new[name].tolist() for name in by), strict=True))
    kept = [i for i, key in enumerate(zip(*(old[name].tolist() for name in by), strict=True)) if key not in fresh]
    return {name: np.concatenate([old[name][kept], new[name]]) for name in new}


def earlier_kinds(statistics: Statistics | None) -> dict[str, str]:
    """The kind that each attribute was read as."""
    if statistics is None:
        return {}
    return dict(zip(statistics.values["attribute"].tolist(), statistics.values["kind"].tolist(), strict=True))


def known_values(claims: Claims, problem: Problem, score: Floats, counted: Ints) -> Table:
    """A row for every candidate."""
    item = problem.candidate_item
    return _value_rows(claims, problem, item, problem.value, score, np.full(len(item), np.nan), counted)


def measured_values(claims: Claims, problem: Problem, found: Estimate, counted: Ints) -> Table:
    """A row for every item."""
    value = np.empty(problem.items, dtype=np.object_)
    value[:] = found.truth.tolist()
    item = np.arange(problem.items)
    return _value_rows(claims, problem, item, value, np.full(len(item), np.nan), found.error, counted)


def _value_rows(
    claims: Claims, problem: Problem, item: Ints, value: Objects, evidence: Floats, error: Floats, counted: Ints
) -> Table:
    attribute = problem.attribute[item]
    kind = {code: kind.name for code, kind in problem.kinds.items()}
    return {
        "object": _named(claims.object_names, problem.object[item]),
        "attribute": _named(claims.attribute_names, attribute),
        "kind": _named([kind.get(code, "") for code in range(len(claims.attribute_names))], attribute),
        "value": value,
        "evidence": evidence,
        "error": error,
        "claims": counted,
    }


def _named(names: Sequence[str], codes: Ints) -> Objects:
    array = np.empty(len(names), dtype=np.object_)
    array[:] = list(names)
    named: Objects = array[codes]
    return named


def known_sources(claims: Claims, problem: Problem, counts: Floats) -> Table:
    """A row for every source with a claim or a count."""
    source = np.flatnonzero((problem.per_source() > 0) | (counts.sum(axis=1) > 0))
    source = source[[claims.source_names[s] != "" or s < problem.sources - 1 for s in source.tolist()]]
    named = {"source": _named(claims.source_names, source)}
    return named | {column: counts[source, i] for i, column in enumerate(_COUNTS)}


@dataclass(frozen=True)
class Measures:
    """(items,) what was known: NaN, infinity and 0 where nothing was."""

    truth: Floats
    error: Floats
    count: Ints


def known_measures(earlier: Earlier, keys: Keys, problem: Problem) -> Measures:
    """What is known of the items of a measured attribute."""
    nothing = np.full(problem.items, np.nan)
    found = Measures(nothing, np.full(problem.items, np.inf), np.zeros(problem.items, dtype=np.int64))
    position = {pair: i for i, pair in enumerate(zip(problem.object.tolist(), problem.attribute.tolist(), strict=True))}
    for row in range(earlier.row, len(earlier.claims)):
        i = position.get((int(earlier.claims.object[row]), int(earlier.claims.attribute[row])))
        if i is not None:
            found.truth[i] = keys.key[keys.code[row]]
            found.error[i] = earlier.error[row - earlier.row]
            found.count[i] = earlier.count[row - earlier.row]
    return found


def stack(names: Sequence[str], parts: Sequence[Table]) -> Table:
    """One table of several; named columns are text, the others numbers."""
    objects = ("object", "attribute", "kind", "value", "source")
    empty = {name: np.empty(0, np.object_ if name in objects else np.float64) for name in names}
    return {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in names}
