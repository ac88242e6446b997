"""Adding claims without starting over: items that are spoken of again are judged anew, all others rest.

Of told values, `extend` puts the earlier claims of these items behind the new ones, and what their sources did
elsewhere becomes counts; so answers are those of all claims, but that items at rest do not learn
what later claims teach about their sources. Of measured numbers and sets, the known values come back instead, each as
one claim without weight by a source that is nobody; they carry their evidence. `merge` writes the tables anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradbase.common.errors import UsageError
from gradbase.tables.fuse._discrete import Model, claim_counts
from gradbase.tables.fuse._problem import Keys, Problem
from gradbase.tables.fuse._relations import RELATIONS
from gradbase.tables.fuse._types import Claims, Floats, Ints, Objects, Statistics, Table

_COUNTS = ("exact", "vaguer", "finer", "near", "other")
VALUES = ("object", "attribute", "kind", "value", "evidence", "error", "claims")
SOURCES = ("source", *_COUNTS)
CLAIMS = ("object", "attribute", "source", "value", "time", "confidence", *_COUNTS)
_NOT_TOLD = ("measure", "set")


@dataclass(frozen=True)
class Earlier:
    """claims: the new ones, from `row` on the known values of measured numbers and sets, then earlier claims.
    evidence, error, count: of the known values. counts (sources, RELATIONS): of the sources' claims of other items.
    nobody: how many sources the new claims name, and the code of the one that is nobody."""

    claims: Claims
    row: int
    evidence: Floats
    error: Floats
    count: Ints
    counts: Floats | None
    nobody: int

    def of_candidates(self, problem: Problem, column: Floats | Ints, default: float) -> Floats:
        """(candidates,) the column's entry for the known values."""
        found = np.full(problem.candidates, default, dtype=np.float64)
        old = problem.row >= self.row
        found[problem.candidate[old]] = column[problem.row[old] - self.row]
        return found


def extend(claims: Claims, statistics: Statistics | None) -> Earlier:
    """The claims with what is known of their items. Raises UsageError when the tables lack a column."""
    none, nobody = np.empty(0), len(claims.source_names)
    if statistics is None:
        return Earlier(claims, len(claims), none, none, none.astype(np.int64), None, nobody)
    _check(statistics)
    values, said = statistics.values, statistics.claims
    at, told = _known_items(claims, values), ~np.isin(values["kind"].astype(np.str_), _NOT_TOLD)
    known, again = np.flatnonzero((at[0] >= 0) & ~told), _known_items(claims, said)
    names = [*claims.source_names, "", *sorted(set(said["source"].tolist()) - set(claims.source_names))]
    sources = _positions(names)
    sources[""] = nobody if "" not in claims.source_names else sources[""]
    back = np.flatnonzero(again[0] >= 0)
    spoken = _coded(sources, said["source"][back])
    codes = [np.r_[a[known], b[back]] for a, b in zip(at, again, strict=True)]
    nameless = replace(claims, source_names=names)
    longer = _appended(
        nameless,
        (*codes, np.r_[np.full(len(known), nobody), spoken]),
        np.concatenate([values["value"][known], said["value"][back]]),
        np.r_[np.full(len(known), np.nan), said["time"][back].astype(np.float64)],
        np.r_[np.zeros(len(known)), said["confidence"][back].astype(np.float64)],
    )
    counts = np.zeros((len(names), RELATIONS))
    place = _coded(sources, statistics.sources["source"])
    for i, column in enumerate(_COUNTS):
        counts[place[place >= 0], i] = statistics.sources[column][place >= 0]
        counts[:, i] -= np.bincount(spoken, said[column][back], len(names))
    evidence, error, count = (values[name][known] for name in ("evidence", "error", "claims"))
    return Earlier(longer, len(claims), evidence, error, count.astype(np.int64), np.maximum(counts, 0.0), nobody)


def _known_items(claims: Claims, table: Table) -> tuple[Ints, Ints]:
    """(rows,) codes of object and attribute, -1 for items that the claims do not speak of."""
    objects = _coded(_positions(claims.object_names), table["object"])
    attributes = _coded(_positions(claims.attribute_names), table["attribute"])
    width = len(claims.attribute_names)
    spoken = np.isin(objects * width + attributes, claims.object * width + claims.attribute)
    spoken &= (objects >= 0) & (attributes >= 0)
    return np.where(spoken, objects, -1), np.where(spoken, attributes, -1)


def _coded(position: dict[str, int], names: Objects) -> Ints:
    return np.fromiter((position.get(name, -1) for name in names.tolist()), np.int64, len(names))


def _check(statistics: Statistics) -> None:
    tables = (("values", VALUES), ("sources", SOURCES), ("claims", CLAIMS))
    for title, columns in tables:
        table = getattr(statistics, title)
        missing = [name for name in columns if name not in table]
        if missing:
            raise UsageError(
                f"the statistics' table {title!r} has no column {missing[0]!r}", f"expected {', '.join(columns)}"
            )


def _positions(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _appended(claims: Claims, codes: tuple[Ints, ...], values: Objects, time: Floats, confidence: Floats) -> Claims:
    """The claims, then these rows (objects, attributes, sources)."""
    given = np.full(len(claims), np.nan) if claims.confidence is None else claims.confidence
    dated = np.full(len(claims), np.nan) if claims.time is None else claims.time
    times = np.r_[dated, time]
    return replace(
        claims,
        object=np.r_[claims.object, codes[0]],
        attribute=np.r_[claims.attribute, codes[1]],
        source=np.r_[claims.source, codes[2]],
        value=np.concatenate([claims.value, values.astype(np.object_)]),
        time=None if np.isnan(times).all() else times,
        confidence=np.r_[given, confidence],
    )


def merge(statistics: Statistics | None, parts: Sequence[Statistics]) -> Statistics:
    """The earlier tables with the rows of the parts' items and sources put in place of theirs."""
    fresh = Statistics(
        _stack(VALUES, [part.values for part in parts]),
        _stack(SOURCES, [part.sources for part in parts if part.sources]),
        _stack(CLAIMS, [part.claims for part in parts if part.claims]),
    )
    if statistics is None:
        return fresh
    return Statistics(
        _replaced(statistics.values, fresh.values, ("object", "attribute")),
        _replaced(statistics.sources, fresh.sources, ("source",)),
        _replaced(statistics.claims, fresh.claims, ("object", "attribute")),
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


def measured_values(claims: Claims, problem: Problem, truth: Floats, error: Floats, counted: Ints) -> Table:
    """A row for every item; `truth` and its standard `error` (items,)."""
    value = np.empty(problem.items, dtype=np.object_)
    value[:] = truth.tolist()
    item = np.arange(problem.items)
    return _value_rows(claims, problem, item, value, np.full(len(item), np.nan), error, counted)


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


def known_sources(earlier: Earlier, problem: Problem, said: Table) -> Table:
    """A row for every source with a claim or a count: those of other items, and what the claims `said` add."""
    counts = np.zeros((problem.sources, RELATIONS)) if earlier.counts is None else earlier.counts.copy()
    for i, column in enumerate(_COUNTS):
        counts[:, i] += np.bincount(problem.source, said[column], problem.sources)
    source = np.flatnonzero((problem.per_source() > 0) | (counts.sum(axis=1) > 0))
    source = source[source != earlier.nobody]
    named = {"source": _named(earlier.claims.source_names, source)}
    return named | {column: counts[source, i] for i, column in enumerate(_COUNTS)}


def known_claims(claims: Claims, model: Model, probability: Floats, weight: Floats) -> Table:
    """A row for every claim, with what it adds to its source's counts."""
    problem = model.problem
    counts = claim_counts(model, probability[model.links.true], weight)
    confidence = np.full(len(claims), np.nan) if claims.confidence is None else claims.confidence
    named = {
        "object": _named(claims.object_names, problem.object[problem.item]),
        "attribute": _named(claims.attribute_names, problem.attribute[problem.item]),
        "source": _named(claims.source_names, problem.source),
        "value": problem.value[problem.candidate],
        "time": problem.time,
        "confidence": confidence[problem.row],
    }
    return named | {column: counts[:, i] for i, column in enumerate(_COUNTS)}


def folded(why: Table, row: int) -> Table:
    """A table of reasons with those of earlier claims, from `row` on, added to their item's row without a claim."""
    earlier, alone = why["claim"] >= row, np.flatnonzero(why["claim"] < 0)
    if not earlier.any():
        return why
    width = int(why["attribute"].max()) + 1
    item = why["object"] * width + why["attribute"]
    order = alone[np.argsort(item[alone], kind="stable")]
    place = order[np.searchsorted(item[order], item[earlier])]
    odds = why["log_odds"].copy()
    np.add.at(odds, place, odds[earlier])
    return {name: column[~earlier] for name, column in (why | {"log_odds": odds}).items()}


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
    for row in range(earlier.row, earlier.row + len(earlier.evidence)):
        i = position.get((int(earlier.claims.object[row]), int(earlier.claims.attribute[row])))
        if i is not None:
            found.truth[i] = keys.key[keys.code[row]]
            found.error[i] = earlier.error[row - earlier.row]
            found.count[i] = earlier.count[row - earlier.row]
    return found


def _stack(names: Sequence[str], parts: Sequence[Table]) -> Table:
    """One table of several; named columns are text, the others numbers."""
    objects = ("object", "attribute", "kind", "value", "source")
    empty = {name: np.empty(0, np.object_ if name in objects else np.float64) for name in names}
    return {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in names}
