"""`infer`: claims in, tables out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradbase.common.errors import UsageError
from gradbase.tables.fuse import _measured as measured
from gradbase.tables.fuse import _tables as tables
from gradbase.tables.fuse._choose import Known, solve
from gradbase.tables.fuse._detect import kind_of, read_options
from gradbase.tables.fuse._history import history
from gradbase.tables.fuse._members import find_members
from gradbase.tables.fuse._problem import Problem, build, read_keys
from gradbase.tables.fuse._types import AttributeOptions, Claims, Config, Hierarchy, Ints, Result, Table


class _Parts:
    """Pieces of the result's tables, as the models hand them in."""

    def __init__(self) -> None:
        self.truths: list[Table] = []
        self.sources: list[Table] = []
        self.copies: list[Table] = []
        self.why: list[Table] = []
        self.history: list[Table] = []
        self.gates: list[Table] = []


def infer(
    claims: Claims,
    *,
    attributes: Mapping[str, AttributeOptions] | None = None,
    hierarchy: Hierarchy | None = None,
    config: Config | None = None,
) -> Result:
    """What is true of every (object, attribute), and how good every source is."""
    config = config or Config()
    if not len(claims):
        raise UsageError("there are no claims", "expected at least one row with object, attribute, source and value")
    options = read_options(claims, attributes, hierarchy)
    kinds = {code: kind_of(option) for code, option in options.items()}
    keys = read_keys(claims, kinds)
    if (keys.code < 0).all():
        raise UsageError("no claim has a value", "expected at least one that is not empty")
    parts = _Parts()
    told = [code for code, kind in kinds.items() if kind.name not in ("measure", "set")]
    _add_discrete(parts, build(claims, kinds, keys, _rows_of(claims, told)), options, config)
    for code, kind in kinds.items():
        if kind.name == "measure":
            _add_measured(parts, build(claims, kinds, keys, _rows_of(claims, [code])), code, config)
        elif kind.name == "set":
            _add_set(parts, build(claims, kinds, keys, _rows_of(claims, [code])), code, config)
    return _result(parts, {claims.attribute_names[code]: option.kind for code, option in options.items()})


def _rows_of(claims: Claims, attributes: list[int]) -> Ints:
    return np.flatnonzero(np.isin(claims.attribute, attributes))


def _add_discrete(parts: _Parts, problem: Problem, options: dict[int, AttributeOptions], config: Config) -> None:
    if not problem.claims:
        return
    solution = solve(problem, options, config, Known())
    decision = tables.decide(solution)
    parts.truths.append(tables.discrete_truths(solution, decision))
    parts.sources.append(tables.discrete_sources(solution, config.level))
    parts.copies.append(tables.copies(solution))
    parts.why.append(tables.discrete_why(solution, decision))
    if solution.timeline is not None:
        parts.history.append(history(problem, solution.timeline))
    parts.gates.append(tables.gates(solution.gates))


def _add_measured(parts: _Parts, problem: Problem, attribute: int, config: Config) -> None:
    if not problem.claims:
        return
    value = np.array(problem.key[problem.candidate], dtype=np.float64)
    data = measured.Measurements(value, problem.item, problem.source, problem.weight, problem.items, problem.sources)
    found = measured.estimate(data, (problem.draw + config.seed * 0.6180339887498949) % 1.0, config.iterations_max)
    parts.truths.append(tables.measured_truths(problem, found, data, config.level))
    parts.sources.append(tables.measured_sources(problem, found, data, attribute, config.level))
    parts.why.append(tables.measured_why(problem, found, data))
    parts.gates.append(tables.gates(found.gates))


def _add_set(parts: _Parts, problem: Problem, attribute: int, config: Config) -> None:
    if not problem.claims:
        return
    found = find_members(problem, config.iterations_max)
    parts.truths.append(tables.member_truths(problem, found))
    parts.sources.append(tables.member_sources(problem, found, attribute, config.level))
    parts.why.append(tables.member_why(problem, found))


def _result(parts: _Parts, kinds: Mapping[str, str]) -> Result:
    truths = tables.stack(tables.TRUTHS, parts.truths)
    order = np.lexsort((truths["attribute"], truths["object"]))
    return Result(
        truths={name: column[order] for name, column in truths.items()},
        sources=tables.stack(tables.SOURCES, parts.sources),
        copies=tables.stack(tables.COPIES, parts.copies),
        why=tables.stack(tables.WHY, parts.why),
        history=tables.stack(tables.HISTORY, parts.history),
        gates=tables.stack(tables.GATES, parts.gates),
        kinds=kinds,
    )
