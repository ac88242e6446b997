"""Lines that differ only in their block's number are one line to a reader: "gelu_* ×6" in "blocks.*.mlp"."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gradbase.explain._report import Choice, Holder, OperatorRow

_T = TypeVar("_T")

_COUNTER = re.compile(r"_\d+$")
_NUMBER = re.compile(r"(?<![^. ])\d+(?![^. ])")  # a whole part of a dotted name


@dataclass(frozen=True, slots=True)
class Group(Generic[_T]):
    """Members in their given order; `name` and `module` stand for all of them."""

    name: str
    module: str
    members: tuple[_T, ...]


def choice_groups(choices: Iterable[Choice]) -> list[Group[Choice]]:
    """Equal storages of equal blocks, the largest sum of bytes first."""
    groups = _grouped(choices, lambda c: c.name, lambda c: c.module, lambda c: (c.nbytes, c.action))
    return sorted(groups, key=lambda group: -sum(choice.nbytes for choice in group.members))


def holder_groups(holders: Iterable[Holder]) -> list[Group[Holder]]:
    """Equal storages of equal blocks, the largest sum of bytes first."""
    groups = _grouped(holders, lambda h: h.name, lambda h: h.module, lambda h: (h.nbytes, h.layer))
    return sorted(groups, key=lambda group: -sum(holder.nbytes for holder in group.members))


def operator_groups(rows: Iterable[OperatorRow]) -> list[Group[OperatorRow]]:
    """Equal operators of equal blocks, the most expensive sum first."""
    groups = _grouped(
        rows,
        lambda row: row.operator.name,
        lambda row: row.operator.module,
        lambda row: (row.operator.target, row.operator.phase, row.operator.source),
    )
    return sorted(groups, key=lambda group: -sum(row.time_us for row in group.members))


def _grouped(
    items: Iterable[_T], name: Callable[[_T], str], module: Callable[[_T], str], rest: Callable[[_T], Hashable]
) -> list[Group[_T]]:
    found: dict[Hashable, list[_T]] = {}
    for item in items:
        found.setdefault((_stem(name(item)), _pattern(module(item)), rest(item)), []).append(item)
    return [
        Group(_span([name(item) for item in members]), _common([module(item) for item in members]), tuple(members))
        for members in found.values()
    ]


def _stem(name: str) -> str:
    return _pattern(_COUNTER.sub("", name))


def _pattern(module: str) -> str:
    return _NUMBER.sub("*", module)


def _span(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    counted = any(_COUNTER.search(name) for name in names)
    return f"{_common([_COUNTER.sub('', name) for name in names])}{'_*' if counted else ''} ×{len(names)}"


def _common(names: Sequence[str]) -> str:
    """The names with a star for each part in which they differ; equal patterns have as many parts."""
    columns = zip(*(re.split(r"([. ])", name) for name in names), strict=True)
    return "".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
