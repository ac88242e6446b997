"""`fuse` as an operator over tables: claims in; values, sources, copies and reasons out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import TableError
from gradbase.tables._columns import column, named, table
from gradbase.tables.evaluate import Evaluation, evaluate_numbers, evaluate_values, majority_right
from gradbase.tables.io import (
    ATTRIBUTE,
    CLAIM_BYTES,
    CONFIDENCE,
    OBJECT,
    SOURCE,
    TIME,
    VALUE,
    CodedTable,
    Role,
    Workspace,
    modules,
    open_scan,
    read_coded,
    read_features,
    read_roles,
    resolve,
)

if TYPE_CHECKING:
    from gradbase.tables.fuse import AttributeOptions, Claims, Hierarchy, Result

_ZONE = re.compile(r"(:\d{2}(?:\.\d+)?[-+]\d{2})$")  # of hours alone, which Python 3.10 does not read
ATTRIBUTE_OF_ALL = "value"  # what claims are about when no column says it
_HIERARCHY = (
    Role("id", ("node", "key", "code", "identity"), required=False),
    Role("name", ("value", "child", "place", "label", "narrower")),
    Role("parent", ("contained_in", "part_of", "broader", "is_in")),
)
_ALSO_CALLED = {"text": "categorical", "authors": "author set"}  # kinds without a blank, for the command line
_GOLD_VALUE = Role("value", (*VALUE.aliases, "gold", "truth", "true_value"))


@dataclass(frozen=True)
class FuseTables:
    """What `fuse` returns; every table is an Arrow table.

    truths: object, attribute, value, probability, runner_up, runner_up_probability, claims, low, high (of measured
        numbers); one row per member for attributes whose truth is a set.
    sources: source, attribute (null: all that are not measured), quality, quality_low, quality_high, claims, bias,
        scale (of measured numbers).
    copies: copier, original, probability, evidence, shared, same.
    why: object, attribute, source (null: what was known before any claim), value, member, log_odds.
    history: object, attribute, value, since, until (moments in UTC where times are dates), probability, of items whose
        truth changed.
    gates: name, kept, gain: what was tried on claims held out, and whether it was kept.
    next: object, attribute, source, gain: the claims most worth buying, best first.
    state: named tables, to be given to the next call together with new claims.
    """

    truths: Any
    sources: Any
    copies: Any
    history: Any
    gates: Any
    next: Any
    kinds: Mapping[str, str]
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    evaluation: Evaluation | None = None
    result: Result | None = field(default=None, repr=False)
    names: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    @cached_property
    def why(self) -> Any:
        assert self.result is not None
        return _with_names({name: c for name, c in self.result.why.items() if name != "claim"}, self.names)

    @property
    def state(self) -> dict[str, Any]:
        assert self.result is not None
        return {name: table(getattr(self.result.statistics, name)) for name in ("values", "sources", "claims")}

    def html(self, title: str = "Fusion") -> str:
        """The report: one page that needs no network."""
        from gradbase.tables.report import fuse_page

        return fuse_page(self, title)


def read_fuse_claims(
    source: Any, *, table: str | None, query: str | None, columns: Mapping[str, str] | None
) -> tuple[Claims, CodedTable, list[str]]:
    """Claims of an input, what was read, and what has to be said about it. Raises TableError."""
    from gradbase.tables.fuse import Claims, Coded

    with Workspace() as workspace:
        scan = open_scan(source, workspace, table=table, query=query)
        roles = (OBJECT, ATTRIBUTE, SOURCE, VALUE, TIME, CONFIDENCE)
        coded = read_coded(scan, workspace, roles, columns, row_bytes=CLAIM_BYTES)
    attributes = _texts(coded.names["attribute"]) if "attribute" in coded.names else [ATTRIBUTE_OF_ALL]
    code = coded.codes.get("attribute", np.zeros(len(coded), dtype=np.int32)).astype(np.int64)
    return Claims(
        object=coded.codes["object"].astype(np.int64),
        attribute=code,
        source=coded.codes["source"].astype(np.int64),
        value=Coded(coded.codes["value"], _objects(coded.names["value"])),
        object_names=_texts(coded.names["object"]),
        attribute_names=attributes,
        source_names=_texts(coded.names["source"]),
        time=_times(coded),
        confidence=_confidence(coded),
    ), coded, _notes(coded)  # fmt: skip


def _texts(names: NDArray[Any]) -> list[str]:
    return list(map(str, names.tolist()))


def _objects(names: NDArray[Any]) -> NDArray[np.object_]:
    found = np.empty(len(names), dtype=object)
    found[:] = names.tolist()
    return found


def _times(coded: CodedTable) -> NDArray[np.float64] | None:
    """Numbers as they are, dates as seconds; NaN where unknown; None when no time is known at all."""
    names = coded.names.get("time")
    if names is None or not len(names):
        return None
    seconds = np.array([*(_seconds(name, coded.columns["time"]) for name in names.tolist()), np.nan])
    found: NDArray[np.float64] = seconds[coded.codes["time"]]  # -1, not known, is the last
    return found


def _seconds(name: Any, where: str) -> float:
    try:
        return float(name)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(_ZONE.sub(r"\1:00", str(name).replace("Z", "+00")))
    except ValueError:
        told = f"time {name!r} in column {where!r} is neither a number nor a date"
        raise TableError(told, "expected 2024-05-31T12:00") from None
    return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()


def _confidence(coded: CodedTable) -> NDArray[np.float64] | None:
    names = coded.names.get("confidence")
    if names is None or not len(names):
        return None
    try:
        values = np.array([*map(float, names.tolist()), np.nan])
    except ValueError as error:
        raise TableError(f"a confidence is not a number: {error}", "expected probabilities from 0 to 1") from None
    found: NDArray[np.float64] = values[coded.codes["confidence"]]
    return found


def _notes(coded: CodedTable) -> list[str]:
    notes = []
    if coded.rows_missing:
        notes.append(f"{coded.rows_missing} of {coded.rows_read} rows lack an object, source or value and are left out")
    if coded.rows_repeated:
        notes.append(f"{coded.rows_repeated} of {coded.rows_read} rows are repetitions and count once")
    return notes


def load_hierarchy(source: Any) -> Hierarchy:
    """From nodes (id, name, parent's id) or edges (name, parent's name). Raises TableError, UsageError."""
    from gradbase.tables.fuse import Hierarchy

    with Workspace() as workspace:
        read = read_roles(open_scan(source, workspace), workspace, _HIERARCHY)
    if "id" in read:
        return Hierarchy.from_nodes(read["id"], [name or "" for name in read["name"]], read["parent"])
    edges = [(n, p) for n, p in zip(read["name"], read["parent"], strict=True) if n is not None and p is not None]
    return Hierarchy.from_edges([child for child, _ in edges], [parent for _, parent in edges])


def attribute_options(claims: Claims, kinds: Mapping[str, str]) -> dict[str, AttributeOptions]:
    """How attributes are read. Raises TableError for attributes that do not occur."""
    from gradbase.tables.fuse import AttributeOptions

    strange = next((name for name in kinds if name not in claims.attribute_names), None)
    if strange is not None:
        known = ", ".join(map(repr, list(claims.attribute_names)[:12]))
        raise TableError(f"no claim is about attribute {strange!r}", f"attributes are {known}")
    return {name: AttributeOptions(kind=_ALSO_CALLED.get(kind, kind)) for name, kind in kinds.items()}


def load_source_features(source: Any, claims: Claims, columns: Mapping[str, str] | None) -> NDArray[np.float64]:
    """Numbers known of each source, in the order of the claims' sources; NaN where not known. Raises TableError."""
    with Workspace() as workspace:
        scan = open_scan(source, workspace)
        given = {role: name for role, name in (columns or {}).items() if role == "source" and name in scan.columns}
        name = resolve(list(scan.columns), (SOURCE,), given, scan.name)["source"]
        found = read_features(scan, workspace, {"item": name})
    if found.numeric is None:
        raise TableError(f"{scan.name} has no columns of numbers beside {name!r}", "features of sources are numbers")
    row = {item: number for number, item in enumerate(found.items)}
    rows = np.array([row.get(source, -1) for source in claims.source_names])
    if (rows < 0).all():
        raise TableError(f"{scan.name} names none of the sources", "do both spell them in the same way?")
    return np.where(rows[:, None] < 0, np.nan, found.numeric[rows].astype(np.float64))


def fuse_tables_of(
    result: Result, claims: Claims, coded: CodedTable, notes: Sequence[str], count: int, evaluation: Evaluation | None
) -> FuseTables:
    """Everything but the reasons, which are made when they are asked for."""
    counts = {
        **coded.counts(),
        "claims": len(claims),
        "objects": len(claims.object_names),
        "attributes": len(claims.attribute_names),
        "sources": len(claims.source_names),
        "items": len(result.truths["object"]),
        "copies": len(result.copies["copier"]),
    }
    names = _typed_names(claims, coded)
    renamed = {"low": "quality_low", "high": "quality_high"}
    sources = {renamed.get(name, name): values for name, values in result.sources.items()}
    return FuseTables(
        truths=_with_names(result.truths, names),
        sources=_with_names(sources, names),
        copies=_with_names(result.copies, names),
        history=_dated(_with_names(result.history, names), coded),
        gates=table(result.gates),
        next=_with_names(result.next(count), names) if count else None,
        kinds=dict(result.kinds),
        counts=counts,
        notes=(*notes, *_unread(result)),
        evaluation=evaluation,
        result=result,
        names=names,
    )


def _unread(result: Result) -> list[str]:
    """What is said of claims that could not be read as the attribute's kind."""
    return [
        f"{count} claims of {name!r} have no value of kind {result.kinds[name]!r} and are left out"
        for name, count in result.unread.items()
    ]


def _typed_names(claims: Claims, coded: CodedTable) -> dict[str, NDArray[Any]]:
    """Names by column of the results; whole numbers stay numbers."""
    attributes = coded.names.get("attribute", np.array(claims.attribute_names, dtype=object))
    source = coded.names["source"]
    return {
        "object": coded.names["object"], "attribute": attributes, "source": source, "copier": source, "original": source
    }  # fmt: skip


def _with_names(columns: Mapping[str, Any], names: Mapping[str, NDArray[Any]]) -> Any:
    return table({
        name: named(names[name], np.asarray(values)) if name in names else column(values)
        for name, values in columns.items()
    })  # fmt: skip


def _dated(history: Any, coded: CodedTable) -> Any:
    """Times as they were given: numbers, or else moments, in UTC."""
    times = coded.names.get("time", np.empty(0)).tolist()
    if not any(isinstance(name, str) and not _is_number(name) for name in times):
        return history
    _, arrow = modules()
    for name in ("since", "until"):
        seconds = history[name].to_pylist()
        moments = [None if at is None else round(at * 1e6) for at in seconds]
        dates = arrow.array(moments, arrow.timestamp("us", "UTC"))
        history = history.set_column(history.column_names.index(name), name, dates)
    return history


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


Gold = dict[tuple[str, str], list[str]]


def read_fuse_gold(source: Any, columns: Mapping[str, str] | None) -> tuple[Gold, str]:
    """(object, attribute) to its gold values, and the name of the input. Raises TableError."""
    roles = (OBJECT, ATTRIBUTE, _GOLD_VALUE)
    with Workspace() as workspace:
        scan = open_scan(source, workspace)
        asked = {role.name for role in roles}
        given = {role: name for role, name in (columns or {}).items() if role in asked and name in scan.columns}
        coded = read_coded(scan, workspace, roles, given)
    attributes = _texts(coded.column("attribute")) if "attribute" in coded.codes else [ATTRIBUTE_OF_ALL] * len(coded)
    gold: Gold = {}
    for name, attribute, value in zip(_texts(coded.column("object")), attributes, coded.column("value"), strict=True):
        gold.setdefault((name, attribute), []).append(value)
    return gold, scan.name


def compare_fuse(result: Result, claims: Claims, gold: tuple[Gold, str]) -> Evaluation:
    """The result beside gold, by the keys that make two spellings one value. Raises TableError for an item with two
    golds (unless its truth is a set), and when no item is in both."""
    known = _known(result, claims, gold[0])
    _refuse_two(result, known, gold[1])
    left = len(gold[0]) - len(known)
    measured = {key: values for key, values in known.items() if result.kinds[key[1]] == "measure"}
    if measured and len(measured) == len(known):
        return _compare_measured(result, claims, measured, left)
    return _compare_keys(result, claims, {key: known[key] for key in known if key not in measured}, left)


def _known(result: Result, claims: Claims, gold: Gold) -> Gold:
    """The golds of items that have an answer."""
    objects, attributes = claims.object_names, claims.attribute_names
    items = zip(result.truths["object"].tolist(), result.truths["attribute"].tolist(), strict=True)
    answered = {(str(objects[o]), str(attributes[a])) for o, a in items}
    return {key: values for key, values in gold.items() if key in answered}


def _refuse_two(result: Result, known: Gold, where: str) -> None:
    for (name, attribute), values in known.items():
        kind = result.kinds[attribute]
        if len(values) > 1 and kind != "set" and len(set(_keys(kind, values))) > 1:
            raise TableError(
                f"item {name!r}, {attribute!r} has two golds in {where}: {values[0]!r} and {values[1]!r}",
                "keep one of them",
            )


def _keys(kind: str, values: Sequence[Any]) -> list[Any]:
    from gradbase.tables.fuse import normalise

    return list(normalise(kind, values))


def _compare_keys(result: Result, claims: Claims, known: Gold, left: int) -> Evaluation:
    """An item of a set is right when all its members are, and no others."""
    truths = result.truths
    answers: dict[tuple[str, str], list[int]] = {}
    for row, (o, a) in enumerate(zip(truths["object"].tolist(), truths["attribute"].tolist(), strict=True)):
        answers.setdefault((str(claims.object_names[o]), str(claims.attribute_names[a])), []).append(row)
    right, probability = [], []
    for key, values in known.items():
        kind = result.kinds[key[1]]
        rows = answers[key]
        right.append(set(_keys(kind, [truths["value"][row] for row in rows])) == set(_keys(kind, values)))
        probability.append(float(np.min(truths["probability"][rows])))
    vote = _majority(result, claims, known)
    every = [True] * len(right)
    return evaluate_values(right, np.array(probability), every, majority=vote, unanswered=left, classes_max=0)


def _majority(result: Result, claims: Claims, known: Gold) -> NDArray[np.float64]:
    """The chance that the most frequent key is right."""
    place = {key: number for number, key in enumerate(known)}
    keys: dict[tuple[int, Any], int] = {}
    items, codes = [], []
    of = [(str(claims.object_names[o]), str(claims.attribute_names[a])) for o, a in
          zip(claims.object.tolist(), claims.attribute.tolist(), strict=True)]  # fmt: skip
    chosen = [row for row, key in enumerate(of) if key in place]
    for row in chosen:
        number, kind = place[of[row]], result.kinds[of[row][1]]
        code = keys.setdefault((number, repr(_keys(kind, [claims.value[row]])[0])), len(keys))
        items.append(number)
        codes.append(code)
    gold = {
        number: keys.get((number, repr(_keys(result.kinds[key[1]], values[:1])[0])), -1)
        for number, (key, values) in enumerate(known.items())
    }
    return majority_right(np.array(items, dtype=np.int64), np.array(codes, dtype=np.int64), gold)


def _compare_measured(result: Result, claims: Claims, known: Gold, left: int) -> Evaluation:
    truths = result.truths
    rows = {
        (str(claims.object_names[o]), str(claims.attribute_names[a])): row
        for row, (o, a) in enumerate(zip(truths["object"].tolist(), truths["attribute"].tolist(), strict=True))
    }
    chosen = np.array([rows[key] for key in known])
    gold = _numbers([values[0] for values in known.values()])
    low, high = np.asarray(truths["low"], dtype=np.float64), np.asarray(truths["high"], dtype=np.float64)
    means = _means(claims)
    mean = np.array([means[int(truths["object"][row]), int(truths["attribute"][row])] for row in chosen])
    interval = np.stack([low, high], axis=1)[chosen]
    return evaluate_numbers(_numbers(truths["value"][chosen]), gold, mean, interval, left)


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise TableError(f"a gold is not a number: {error}", "the attribute is measured") from None


def _means(claims: Claims) -> dict[tuple[int, int], float]:
    total: dict[tuple[int, int], tuple[float, int]] = {}
    for o, a, value in zip(claims.object.tolist(), claims.attribute.tolist(), claims.value, strict=True):
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        before = total.get((o, a), (0.0, 0))
        total[o, a] = before[0] + number, before[1] + 1
    return {key: added / count for key, (added, count) in total.items()}
