"""Which kind an attribute is of, from its values and who claims how many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbase.common.errors import UsageError
from gradbase.tables.fuse._kinds import Kind, is_missing, kind_named, to_date, to_number
from gradbase.tables.fuse._problem import all_different, factorize
from gradbase.tables.fuse._types import AttributeOptions, Claims, Floats, Hierarchy, Ints

_MOSTLY = 0.95  # of the distinct values, to be numbers or dates
_LISTS = 0.10  # of the distinct values have a semicolon between authors
_SEVERAL = 0.25  # of (source, item) pairs have more than one value: members of a set
_EXACT_AGREEMENT = 0.12  # beyond chance, of two claims of one item: below it numbers are measured, not told
_POPULAR = 0.05  # of all claims: so common a number (nothing, the end of a scale) says little when two agree on it
_RARE_SHARE = 0.2  # of the claims: fewer with other than popular numbers, and those are counted too
_PAIRS_MIN = 200  # of claims of one item, to tell for one attribute; with fewer, all numbers are looked at together
_LOOKED_AT = 5000  # distinct values
_NUMBERS = "numbers, told or measured"


def read_options(
    claims: Claims,
    given: Mapping[str, AttributeOptions] | None,
    hierarchy: Hierarchy | None,
    earlier: Mapping[str, str],
) -> dict[int, AttributeOptions]:
    """Options of every attribute, with the kind settled. `hierarchy` is for the attributes whose values it names,
    `earlier` the kinds that attributes had before these claims."""
    given = given or {}
    unknown = sorted(set(given) - set(claims.attribute_names))
    if unknown:
        raise UsageError(
            f"attribute {unknown[0]!r} has options but no claims", f"there are {', '.join(claims.attribute_names[:8])}"
        )
    options: dict[int, AttributeOptions] = {}
    by_attribute = np.argsort(claims.attribute, kind="stable")
    bounds = np.searchsorted(claims.attribute[by_attribute], np.arange(len(claims.attribute_names) + 1))
    for code, name in enumerate(claims.attribute_names):
        rows = by_attribute[bounds[code] : bounds[code + 1]]
        wanted = given.get(name, AttributeOptions())
        if wanted.kind == "auto" and wanted.hierarchy is None and name in earlier:
            wanted = replace(wanted, kind=earlier[name])
        options[code] = _settled(claims, rows, wanted, hierarchy)
    numbers = [code for code, option in options.items() if option.kind == _NUMBERS]
    pairs = {code: _same_pairs(claims, by_attribute[bounds[code] : bounds[code + 1]]) for code in numbers}
    for code in numbers:
        enough = pairs[code][1] >= _PAIRS_MIN
        told = _agreement(pairs[code] if enough else np.sum(list(pairs.values()), axis=0)) >= _EXACT_AGREEMENT
        options[code] = replace(options[code], kind="number" if told else "measure")
    return options


def kind_of(options: AttributeOptions) -> Kind:
    """The registered kind, with the attribute's own functions in it."""
    kind = kind_named(options.kind)
    return replace(kind, whole=options.normalise or kind.whole, similarity=options.similarity or kind.similarity)


def _settled(claims: Claims, rows: Ints, options: AttributeOptions, hierarchy: Hierarchy | None) -> AttributeOptions:
    if options.kind != "auto":
        kind_named(options.kind)
        if options.kind == "hierarchy" and options.hierarchy is None:
            return replace(options, hierarchy=hierarchy or Hierarchy([], np.empty(0, np.int64)))
        return options
    if options.hierarchy is not None:
        return replace(options, kind="hierarchy")
    values = [value for value in factorize(claims.value[rows])[1] if not is_missing(value)]
    distinct = sorted(values, key=repr)[:: max(1, len(values) // _LOOKED_AT)]
    if hierarchy is not None and _names_most(hierarchy, distinct):
        return replace(options, kind="hierarchy", hierarchy=hierarchy)
    return replace(options, kind=_kind_by_values(claims, rows, distinct))


def _kind_by_values(claims: Claims, rows: Ints, distinct: Sequence[Any]) -> str:
    if not distinct:
        return "categorical"
    if _share(distinct, lambda value: to_number(value) is not None) >= _MOSTLY:
        return _NUMBERS
    if _share(distinct, lambda value: to_date(value) is not None) >= _MOSTLY:
        return "date"
    if _share(distinct, lambda value: ";" in str(value)) >= _LISTS:
        return "author set"
    if _several(claims, rows) >= _SEVERAL:
        return "set"
    return "categorical"


def _share(values: Sequence[Any], test: Any) -> float:
    return float(sum(map(test, values)) / len(values))


def _names_most(hierarchy: Hierarchy, distinct: Sequence[Any]) -> bool:
    names = set(hierarchy.names)
    return bool(distinct) and _share(distinct, lambda value: str(value) in names) >= 0.5


def _several(claims: Claims, rows: Ints) -> float:
    """The share of sources' items with more than one value, where the source says more than one in no order of time."""
    if claims.time is not None and not np.isnan(claims.time[rows]).all():
        return 0.0
    speaker = claims.object[rows] * len(claims.source_names) + claims.source[rows]
    if all_different(speaker):  # each speaks once
        return 0.0
    raw, raws = factorize(claims.value[rows])
    value = np.append(factorize(list(map(str, raws)))[0], -1)[raw]
    order = np.lexsort((value, speaker))
    speaker, value = speaker[order], value[order]
    first = np.r_[True, speaker[1:] != speaker[:-1]]  # of a source's claims of an item
    more = ~first & np.r_[True, value[1:] != value[:-1]]
    return float((np.bincount(np.cumsum(first) - 1, more) > 0).mean())


def _same_pairs(claims: Claims, rows: Ints) -> Floats:
    """Ordered pairs of claims, (4,): of one item with the same number, of one item, the same of any, any."""
    raw, raws = factorize(claims.value[rows])
    numbers = np.array([np.nan if number is None else number for number in [*map(to_number, raws), None]])[raw]
    known = ~np.isnan(numbers)
    _, value = np.unique(numbers[known], return_inverse=True)
    item = claims.object[rows][known]
    rare = (np.bincount(value, minlength=1) <= max(1.0, _POPULAR * len(value)))[value]
    if rare.sum() >= _RARE_SHARE * len(value):
        item, value = item[rare], value[rare]
    item_value = item * (int(value.max(initial=0)) + 1) + value
    return np.array([_pairs(group) for group in (item_value, item, value, np.zeros_like(item))])


def _pairs(group: Ints) -> float:
    sizes = np.unique(group, return_counts=True)[1].astype(np.float64)
    return float((sizes * (sizes - 1)).sum())


def _agreement(pairs: Floats) -> float:
    """How often two claims of an item are the same number, beyond how often two claims of anything are (Cohen's kappa);
    one where no item has two."""
    same, within, same_anywhere, anywhere = pairs.tolist()
    if within == 0 or same_anywhere == anywhere:
        return 1.0
    chance = same_anywhere / anywhere
    return float((same / within - chance) / (1 - chance))
