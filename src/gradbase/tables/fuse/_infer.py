"""`infer`: claims in, tables out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradbase.common.errors import UsageError
from gradbase.tables.fuse import _grow as grow
from gradbase.tables.fuse import _measured as measured
from gradbase.tables.fuse import _tables as tables
from gradbase.tables.fuse._choose import Solution, solve
from gradbase.tables.fuse._detect import kind_of, read_options
from gradbase.tables.fuse._history import history
from gradbase.tables.fuse._kinds import Kind
from gradbase.tables.fuse._members import find_members
from gradbase.tables.fuse._problem import Keys, Problem, build, read_keys
from gradbase.tables.fuse._types import (
    AttributeOptions,
    Claims,
    Config,
    Floats,
    Hierarchy,
    Ints,
    Result,
    Statistics,
    Table,
)

_GOLDEN = 0.6180339887498949  # turns the folds by the seed


@dataclass(frozen=True)
class _Task:
    """What every model is given."""

    earlier: grow.Earlier
    keys: Keys
    kinds: Mapping[int, Kind]
    options: Mapping[int, AttributeOptions]
    config: Config
    features: Any

    @property
    def claims(self) -> Claims:
        return self.earlier.claims

    def problem(self, attributes: list[int], *, known: bool = True) -> Problem:
        """The claims of these attributes, with the values known earlier or without."""
        rows = np.flatnonzero(np.isin(self.claims.attribute, attributes))
        kinds = {code: self.kinds[code] for code in attributes}
        return build(self.claims, kinds, self.keys, rows if known else rows[rows < self.earlier.row])

    def counted(self, problem: Problem) -> Ints:
        """(candidates,) claims of each, earlier ones too."""
        mine = np.bincount(problem.candidate[problem.row < self.earlier.row], minlength=problem.candidates)
        before: Ints = self.earlier.of_candidates(problem, self.earlier.count, 0).astype(np.int64)
        return mine + before


@dataclass(frozen=True)
class _Parts:
    """Pieces of the result's tables, as the models hand them in."""

    truths: list[Table] = field(default_factory=list)
    sources: list[Table] = field(default_factory=list)
    copies: list[Table] = field(default_factory=list)
    why: list[Callable[[], Table]] = field(default_factory=list)
    history: list[Table] = field(default_factory=list)
    gates: list[Table] = field(default_factory=list)
    statistics: list[Callable[[], Statistics]] = field(default_factory=list)


def infer(
    claims: Claims,
    *,
    attributes: Mapping[str, AttributeOptions] | None = None,
    hierarchy: Hierarchy | None = None,
    source_features: Any = None,
    config: Config | None = None,
    statistics: Statistics | None = None,
) -> Result:
    """What is true of every (object, attribute), how good every source is, who copies whom, and why.

    attributes: options by attribute name; without, the kind is chosen by the values. hierarchy: for the attributes
    whose values it names. source_features: (sources, columns) numbers, NaN for gaps, in the order of
    `claims.source_names`. statistics: those of an earlier result, to add these claims to it; the tables then are of the
    items that are spoken of here, the new statistics of all.

    Raises UsageError when there is no claim with a value, or an argument does not fit the claims.
    """
    config = config or Config()
    if not len(claims):
        raise UsageError("there are no claims", "expected at least one row with object, attribute, source and value")
    earlier = grow.extend(claims, statistics)
    options = read_options(claims, attributes, hierarchy, grow.earlier_kinds(statistics))
    kinds = {code: kind_of(option) for code, option in options.items()}
    keys = read_keys(earlier.claims, kinds)
    if (keys.code[: len(claims)] < 0).all():
        raise UsageError("no claim has a value", "expected at least one that is not empty")
    features = None if source_features is None else _standardised(source_features, claims, earlier)
    task, parts = _Task(earlier, keys, kinds, options, config, features), _Parts()
    _add_discrete(parts, task, [code for code, kind in kinds.items() if kind.name not in ("measure", "set")])
    for code, kind in kinds.items():
        if kind.name == "measure":
            _add_measured(parts, task, code)
        elif kind.name == "set":
            _add_set(parts, task, code)
    return _result(parts, task, statistics)


def _standardised(features: Any, claims: Claims, earlier: grow.Earlier) -> Floats:
    from gradbase.tables.fuse._features import standardised

    matrix = standardised(features, len(claims.source_names))
    nobody = len(earlier.claims.source_names) - len(matrix)
    return np.concatenate([matrix, np.zeros((nobody, matrix.shape[1]))])


def _add_discrete(parts: _Parts, task: _Task, attributes: list[int]) -> None:
    problem, earlier = task.problem(attributes), task.earlier
    if not problem.claims:
        return
    solution = solve(problem, task.options, task.config, earlier.counts, task.features)
    decision = tables.decide(solution)
    counted = problem.per_candidate()
    parts.truths.append(tables.discrete_truths(solution, decision, counted))
    parts.sources.append(tables.discrete_sources(solution, task.config.level))
    parts.copies.append(tables.copies(solution))
    parts.why.append(lambda: grow.folded(tables.discrete_why(solution, decision), earlier.row))
    if solution.timeline is not None:
        parts.history.append(history(problem, solution.timeline))
    parts.gates.append(tables.gates(solution.gates))
    parts.statistics.append(lambda: _told_statistics(task, solution, counted))


def _told_statistics(task: _Task, solution: Solution, counted: Ints) -> Statistics:
    model, fitted, claims = solution.model, solution.fit, task.claims
    said = grow.known_claims(claims, model, fitted.probability, solution.weight)
    return Statistics(
        grow.known_values(claims, model.problem, fitted.score, counted),
        grow.known_sources(task.earlier, model.problem, said),
        said,
    )


def _add_measured(parts: _Parts, task: _Task, attribute: int) -> None:
    problem, config = task.problem([attribute], known=False), task.config
    if not problem.claims:
        return
    value = np.array(problem.key[problem.candidate], dtype=np.float64)
    sizes = problem.items, problem.sources
    data = measured.Measurements(value, problem.item, problem.source, problem.weight, *sizes).scaled
    found = measured.estimate(data, (problem.draw + config.seed * _GOLDEN) % 1.0, config.iterations_max)
    before = grow.known_measures(task.earlier, task.keys, problem)
    found = measured.combined(found, *(np.ldexp(known, -data.exponent) for known in (before.truth, before.error)))
    counted = problem.per_item() + before.count
    parts.truths.append(tables.measured_truths(problem, found, data, config.level, counted))
    parts.sources.append(tables.measured_sources(problem, found, data, attribute, config.level))
    parts.why.append(lambda: tables.measured_why(problem, found, data))
    parts.gates.append(tables.gates(found.gates))
    told = data.unscaled(found.truth), data.unscaled(found.error)
    parts.statistics.append(lambda: Statistics(grow.measured_values(task.claims, problem, *told, counted), {}))


def _add_set(parts: _Parts, task: _Task, attribute: int) -> None:
    problem, earlier = task.problem([attribute]), task.earlier
    if not problem.claims:
        return
    found = find_members(problem, task.config.iterations_max, earlier.of_candidates(problem, earlier.evidence, 0.0))
    counted = task.counted(problem)
    parts.truths.append(tables.member_truths(problem, found, counted))
    parts.sources.append(tables.member_sources(problem, found, attribute, task.config.level))
    parts.why.append(lambda: tables.member_why(problem, found))
    parts.statistics.append(lambda: Statistics(grow.known_values(task.claims, problem, found.score, counted), {}))


def _result(parts: _Parts, task: _Task, statistics: Statistics | None) -> Result:
    nobody = task.earlier.nobody
    truths = tables.stack(tables.TRUTHS, parts.truths)
    sources = tables.stack(tables.SOURCES, parts.sources)
    copies = tables.stack(tables.COPIES, parts.copies)
    by_item = np.lexsort((truths["attribute"], truths["object"]))
    named = np.flatnonzero(sources["source"] < nobody)
    return Result(
        truths=_rows(truths, by_item),
        sources=_rows(sources, named),
        copies=_rows(copies, np.flatnonzero((copies["copier"] < nobody) & (copies["original"] < nobody))),
        history=tables.stack(tables.HISTORY, parts.history),
        gates=tables.stack(tables.GATES, parts.gates),
        kinds={task.claims.attribute_names[code]: option.kind for code, option in task.options.items()},
        explain=lambda: _why(parts, task.earlier.row),
        keep=lambda: grow.merge(statistics, [part() for part in parts.statistics]),
        unread=_unread(task),
    )


def _unread(task: _Task) -> dict[str, int]:
    """How many claims of this call say nothing of their attribute's kind, by attribute; those that have none are not
    named."""
    rows, names = task.earlier.row, task.claims.attribute_names
    counts = np.bincount(task.claims.attribute[:rows][task.keys.code[:rows] < 0], minlength=len(names))
    return {names[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}


def _why(parts: _Parts, row: int) -> Table:
    """Reasons of the claims before `row`: those of this call."""
    why = tables.stack(tables.WHY, [part() for part in parts.why])
    return _rows(why, np.flatnonzero(why["claim"] < row))


def _rows(table: Table, rows: Ints) -> Table:
    return {name: column[rows] for name, column in table.items()}
