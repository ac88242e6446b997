"""What goes into `infer` and what comes out: arrays and tables of arrays, so that any reader can feed it.

Codes are positions in a list of names: `claims.source[i]` is an index into `claims.source_names`. A `Table` is a
dictionary of columns of one length, in the order in which they are to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gradbase.common.errors import UsageError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Objects = npt.NDArray[np.object_]
Table = dict[str, npt.NDArray[Any]]

Normaliser = Callable[[Sequence[Any]], Sequence[Any]]
"""Distinct raw values to keys: equal keys are one value, None is no value. Called once per attribute."""

Similarity = Callable[[Any, Any], float]
"""Two keys of one item to a number from 0 (nothing in common) to 1 (the same but for its spelling)."""

COPY_MODES = ("gated", "off", "ungated")


@dataclass(frozen=True)
class Coded:
    """A column of few different objects, names[code[i]] in row i: an integer a row where an array of objects has a
    reference, and what is asked of every value is asked of every name. Rows are chosen as of an array.

    code: (rows,) positions in `names`. names: (names,) different objects, not all of which need occur.
    """

    code: npt.NDArray[np.integer[Any]]
    names: Objects

    @property
    def shape(self) -> tuple[int, ...]:
        return self.code.shape

    def __len__(self) -> int:
        return len(self.code)

    def __getitem__(self, rows: Any) -> Any:
        """The object of one row, the Coded of several."""
        code = self.code[rows]
        return Coded(code, self.names) if isinstance(code, np.ndarray) else self.names[code]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.names[self.code])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.names[self.code].astype(dtype or np.object_, copy=False)


@dataclass(frozen=True)
class Claims:
    """Who says what: row i says that `attribute[i]` of `object[i]` is `value[i]`, according to `source[i]`.

    object, attribute, source: (claims,) int64, positions in the lists of names.
    value: (claims,) objects, or Coded; text, numbers or dates. None, NaN and empty text are no claim.
    time: (claims,) float64 or None; when it was claimed, on any scale that grows; NaN where unknown.
    confidence: (claims,) float64 or None; the source's own, from 0 to 1; NaN where unknown.

    Raises UsageError when lengths differ or a code has no name.
    """

    object: Ints
    attribute: Ints
    source: Ints
    value: Objects | Coded
    object_names: Sequence[str]
    attribute_names: Sequence[str]
    source_names: Sequence[str]
    time: Floats | None = None
    confidence: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("object", "attribute", "source", "value", "time", "confidence"):
            column = getattr(self, name)
            if column is not None and np.shape(column) != (len(self),):
                raise UsageError(f"claims.{name} has shape {np.shape(column)}", f"expected ({len(self)},)")
        for name in ("object", "attribute", "source"):
            _check_codes(name, getattr(self, name), len(getattr(self, f"{name}_names")))
        if self.confidence is not None and ((self.confidence < 0) | (self.confidence > 1)).any():
            raise UsageError("claims.confidence has values outside 0 to 1", "give a probability, or NaN for unknown")

    def __len__(self) -> int:
        return len(self.object)

    @classmethod
    def from_columns(
        cls,
        object: Sequence[Any],
        attribute: Sequence[Any],
        source: Sequence[Any],
        value: Sequence[Any],
        *,
        time: Sequence[float] | None = None,
        confidence: Sequence[float] | None = None,
    ) -> Claims:
        """From columns of names; codes follow the sorted names."""
        objects, attributes, sources = (_encode(column) for column in (object, attribute, source))
        values = np.empty(len(value), dtype=np.object_)
        values[:] = list(value)
        times, confidences = (None if c is None else np.asarray(c, dtype=np.float64) for c in (time, confidence))
        return cls(
            objects[1], attributes[1], sources[1], values, objects[0], attributes[0], sources[0], times, confidences
        )


def _encode(column: Sequence[Any]) -> tuple[list[str], Ints]:
    names, codes = np.unique(np.asarray([str(name) for name in column], dtype=np.str_), return_inverse=True)
    return names.tolist(), codes.astype(np.int64)


def _check_codes(name: str, codes: Ints, names: int) -> None:
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < names:
        raise UsageError(
            f"claims.{name} holds codes from {int(codes.min())} to {int(codes.max())}",
            f"expected 0 to {names - 1}: there are {names} {name} names",
        )


@dataclass(frozen=True)
class Hierarchy:
    """Values that contain values: node i is called `names[i]` and lies in node `parents[i]`, -1 at a root.

    Two nodes may share a name (a state and its city). A claim of such a name supports each of them.
    Raises UsageError when a parent is no node, or nodes contain each other in a circle.
    """

    names: Sequence[str]
    parents: Ints  # (nodes,)

    def __post_init__(self) -> None:
        parents = self.parents
        if parents.shape != (len(self.names),):
            raise UsageError(f"the hierarchy has {len(self.names)} names and {len(parents)} parents")
        if len(parents) and not -1 <= int(parents.min()) <= int(parents.max()) < len(parents):
            raise UsageError("the hierarchy names a parent that is no node", "expected a node's position, or -1")
        above, steps = parents, 0
        while (above >= 0).any():
            if (steps := steps + 1) > len(parents):
                circle = self.names[int(np.flatnonzero(above >= 0)[0])]
                raise UsageError(f"the hierarchy goes in a circle at or above {circle!r}", "take one edge out")
            above = np.where(above >= 0, parents[above], -1)

    @classmethod
    def from_nodes(cls, identity: Sequence[Any], name: Sequence[str], parent: Sequence[Any]) -> Hierarchy:
        """From a table of nodes (identity, name, identity of the parent); an unknown parent makes a root."""
        position = {key: i for i, key in enumerate(identity)}
        if len(position) != len(identity):
            raise UsageError(f"the hierarchy has {len(identity)} nodes but {len(position)} different identities")
        return cls([str(n) for n in name], np.array([position.get(p, -1) for p in parent], dtype=np.int64))

    @classmethod
    def from_edges(cls, child: Sequence[str], parent: Sequence[str]) -> Hierarchy:
        """From a table of edges between names, each name one node."""
        names = list(dict.fromkeys([*map(str, child), *map(str, parent)]))
        position = {name: i for i, name in enumerate(names)}
        parents = np.full(len(names), -1, dtype=np.int64)
        for low, high in zip(child, parent, strict=True):
            i, above = position[str(low)], position[str(high)]
            if parents[i] not in (-1, above):
                raise UsageError(f"{low!r} has two parents in the hierarchy", "give nodes with identities instead")
            parents[i] = above
        return cls(names, parents)


@dataclass(frozen=True)
class AttributeOptions:
    """How the values of one attribute are read.

    kind: a registered kind (`kinds()`), or "auto" to choose by the values.
    normalise, similarity: instead of the kind's own.
    hierarchy: what contains what; makes the kind "hierarchy" unless another is given.
    """

    kind: str = "auto"
    normalise: Normaliser | None = None
    similarity: Similarity | None = None
    hierarchy: Hierarchy | None = None


@dataclass(frozen=True)
class Config:
    """One default for all data.

    seed: of the folds of the gate and the network's first weights; nothing else is random.
    memory: what training the network on source features may take, as `gradbase.compile` takes it.
    copies: "gated" keeps copying where it predicts held-out claims better, "ungated" always, "off" never.
    similarity: whether a claim supports the values that resemble its own.
    level: of the intervals of source quality.
    """

    seed: int = 0
    memory: str | int | None = None
    copies: str = "gated"
    similarity: bool = True
    level: float = 0.95
    iterations_max: int = 60

    def __post_init__(self) -> None:
        if self.copies not in COPY_MODES:
            raise UsageError(f"copies {self.copies!r} is not known", f"expected one of {', '.join(COPY_MODES)}")
        if not 0 < self.level < 1:
            raise UsageError(f"level {self.level} is no probability", "expected one between 0 and 1, such as 0.95")
        if self.iterations_max < 1:
            raise UsageError(f"iterations_max {self.iterations_max} is not above zero")


@dataclass(frozen=True)
class Statistics:
    """What is enough to add claims later without starting over; three tables keyed by names, to be stored as they are.

    values: object, attribute, kind, value, evidence (log-odds of its claims), error (of a measured number), claims.
    sources: source, exact, vaguer, finer, near, other (expected counts of its claims by their relation to the truth).
    claims: object, attribute, source, value, time, confidence, and what the claim adds to the counts of its source; of
        told values, for items that are spoken of again are judged by all their claims.
    """

    values: Table
    sources: Table
    claims: Table = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Tables. Codes are those of the claims; -1 stands for none.

    truths: object, attribute, value, probability, runner_up, runner_up_probability, claims, low, high. One row per
        item, or one per true member for the kind "set". low and high: interval of a measured number, else NaN.
    sources: source, attribute (-1: all that are not measured), quality, low, high, claims, bias, scale. For measured
        attributes, quality is the share of the variance of its claims that the truth explains.
    copies: copier, original, probability, evidence (log-odds), shared, same: items of both, same claims among them.
    why: claim (row of the input; -1 for what was known before any claim), object, attribute, source, value, member,
        log_odds. For one item (and member) the log-odds sum to log(probability / runner_up_probability).
    history: object, attribute, value, since, until, probability; only items that changed, from dated claims.
    gates: name, kept, gain (nats per held-out claim): what was tried on held-out claims.
    kinds: attribute name to the kind it was read as.
    unread: attribute name to how many of its claims are left out, as they have no value of that kind: texts among
        measured numbers.
    """

    truths: Table
    sources: Table
    copies: Table
    history: Table
    gates: Table
    kinds: Mapping[str, str]
    explain: Callable[[], Table] = field(repr=False)
    keep: Callable[[], Statistics] = field(repr=False)
    unread: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def why(self) -> Table:
        """One row per claim and prior; made when it is first asked for."""
        return self.explain()

    @cached_property
    def statistics(self) -> Statistics:
        """What an `infer` of later claims needs; made when it is first asked for."""
        return self.keep()

    def next(self, count: int) -> Table:
        """The claims most worth buying, best first: object, attribute, source, gain (nats, expected)."""
        from gradbase.tables.fuse._next import next_claims

        return next_claims(self, count)
