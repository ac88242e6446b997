"""`crowd` as an operator over tables: labels in; truths, workers, copies and reasons out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import TableError
from gradbase.tables._columns import column, confusions, named, table
from gradbase.tables.evaluate import (
    Evaluation,
    evaluate_numbers,
    evaluate_values,
    majority_right,
    no_common_items,
    one_gold_each,
)
from gradbase.tables.io import (
    ANSWER,
    ITEM,
    LABEL,
    WORKER,
    CodedTable,
    FeatureTable,
    Role,
    Workspace,
    open_scan,
    read_coded,
    read_features,
    read_matrix,
    read_roles,
)

if TYPE_CHECKING:
    from gradbase.tables.crowd import Claims, Features, Result

KINDS = ("auto", "classes", "numbers", "sets")
_CLASSES_NOTED = 20  # of whole numbers as labels so many may well be measured
_NUMBERS = ("value", "number", "score", "estimate", "measurement")  # columns that hold numbers where all are numbers
_YES, _NO = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f")
_INFINITE = ("inf", "infinity")
_GOLD = Role("label", (*LABEL.aliases, "gold", "truth", "gold_label", "true_label", "correct"))


@dataclass(frozen=True)
class CrowdTables:
    """What `crowd` returns; every table is an Arrow table.

    truths: item, value, probability, runner_up, runner_up_probability, claims; for numbers also low and high, of the
        interval that `probability` is of; for sets a row per item and label, and value is true or false.
    workers: worker, quality, quality_low, quality_high, claims, confusion (truth, label, probability; null where
        classes are many); for numbers also bias and deviation.
    copies: copier, original, probability, evidence, shared, same: workers who repeat each other's errors.
    why: item, worker, label, reason, log_odds: the rows of an item sum to the log-odds of its value against the
        runner-up. For sets there is a column `tag`. Made when it is first asked for.
    next: item, gain: the labels most worth buying, best first.
    state: named tables, to be given to the next call together with new labels.
    """

    truths: Any
    workers: Any
    copies: Any
    next: Any
    kind: str
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    evaluation: Evaluation | None = None
    result: Result | None = field(default=None, repr=False)

    @cached_property
    def why(self) -> Any:
        assert self.result is not None
        return _why(self.result)

    @property
    def state(self) -> dict[str, Any]:
        assert self.result is not None
        return {name: table(columns) for name, columns in self.result.state.tables().items()}

    def html(self, title: str = "Crowd") -> str:
        """The report: one page that needs no network."""
        from gradbase.tables.report import crowd_page

        return crowd_page(self, title)


def read_claims(
    source: Any,
    *,
    table: str | None,
    query: str | None,
    columns: Mapping[str, str] | None,
    kind: str,
    features: FeatureTable | None,
) -> tuple[Claims, dict[str, int], list[str]]:
    """Claims of an input, how many rows were read, and what has to be said about it. Raises TableError."""
    if kind not in KINDS:
        raise TableError(f"kind {kind!r} is not known", f"expected one of {', '.join(KINDS)}")
    with Workspace() as workspace:
        scan = open_scan(source, workspace, table=table, query=query)
        coded = read_coded(scan, workspace, (ITEM, WORKER, LABEL, ANSWER), columns)
    chosen = _kind(coded, kind, "answer" in (columns or {}))
    claims = _claims(coded, chosen, [] if features is None else features.items)
    return claims, coded.counts(), _notes(coded, claims, kind == "auto")


def _kind(coded: CodedTable, kind: str, answer_given: bool) -> str:
    """Sets where there is a yes or no per label; numbers where all are and the column is called so, or some are not
    whole; else classes."""
    answers = {str(name).lower() for name in coded.names.get("answer", ())}
    yes_or_no = bool(answers) and answers <= {*_YES, *_NO}
    if kind == "sets" or (kind == "auto" and (yes_or_no or answer_given)):
        if answers and not yes_or_no:
            stranger = sorted(answers - {*_YES, *_NO})[0]
            raise TableError(f"column {coded.columns['answer']!r} says {stranger!r}", "expected yes or no, or 1 or 0")
        return "sets"
    if kind != "auto":
        return kind
    labels, called = coded.names["label"], coded.columns["label"].lower()
    _refuse_infinite(labels)
    if not _are_numbers(labels):
        return "classes"
    whole = all(float(name).is_integer() for name in labels)
    return "numbers" if not whole or (called in _NUMBERS and len(labels) > 2) else "classes"


def _refuse_infinite(labels: NDArray[Any]) -> None:
    """One that is no number makes classes of all; an overflow among numbers is not meant so. Raises TableError."""
    wrong = [name for name in labels.tolist() if not _is_number(name)]
    if wrong and len(wrong) < len(labels) and all(str(name).lower().lstrip("+-") in _INFINITE for name in wrong):
        raise TableError(
            f"label {wrong[0]!r} is not finite, and all others are numbers", "leave the row out, or say --kind classes"
        )


def _are_numbers(names: NDArray[Any]) -> bool:
    return all(_is_number(name) for name in names)


def _is_number(name: Any) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _claims(coded: CodedTable, kind: str, more_items: Sequence[str]) -> Claims:
    from gradbase.tables.crowd import Claims

    items, of_item = with_more_names(coded.names["item"], coded.codes["item"], more_items)
    workers, labels = coded.names["worker"], coded.names["label"]
    if kind == "classes":
        return Claims(of_item, coded.codes["worker"], coded.codes["label"], items, workers, labels)
    item, worker, label = (codes.astype(np.int64) for codes in (of_item, coded.codes["worker"], coded.codes["label"]))
    if kind == "numbers":
        wrong = next((name for name in labels if not _is_number(name)), None)
        if wrong is not None:
            raise TableError(f"label {wrong!r} is not a number", "kind numbers needs finite numbers only")
        values = np.array([float(name) for name in labels])[label]
        return Claims(item, worker, values, items, workers, np.empty(0, dtype=object), "numbers")
    if "answer" in coded.codes:
        says = np.array([str(name).lower() in _YES for name in coded.names["answer"]], dtype=np.int64)
        known = coded.codes["answer"] >= 0
        yes = says[coded.codes["answer"][known]]
        return Claims(item[known], worker[known], yes, items, workers, labels, "sets", label[known])
    return _chosen(item, worker, label, items, workers, labels)


def _chosen(item: Any, worker: Any, label: Any, items: Any, workers: Any, labels: Any) -> Claims:
    """Rows name the labels that a worker chose for an item: what others chose of it, and they did not, is a no."""
    from gradbase.tables.crowd import Claims

    pairs, place = np.unique(np.stack([item, worker]), axis=1, return_inverse=True)
    yes = np.zeros((pairs.shape[1], len(labels)), dtype=np.int64)
    yes[place.ravel(), label] = 1
    row, tag = np.indices(yes.shape).reshape(2, -1)
    return Claims(pairs[0][row], pairs[1][row], yes.ravel(), items, workers, labels, "sets", tag.astype(np.int64))


def with_more_names(
    names: NDArray[Any], codes: NDArray[np.int32], more: Sequence[str]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Names and codes, with names beside those that occur; in order again. Whole numbers stay numbers if all are."""
    known = set(map(str, names.tolist())) if len(more) else set()
    extra = [name for name in dict.fromkeys(more) if name not in known]
    if not extra:
        return names, codes
    if names.dtype == np.int64 and all(name.removeprefix("-").isdigit() and str(int(name)) == name for name in extra):
        every: NDArray[Any] = np.concatenate([names, np.array(extra, dtype=np.int64)])
    else:
        every = np.array([*map(str, names.tolist()), *extra], dtype=object)
    order = np.argsort(every, kind="stable")
    place = np.empty(len(every), dtype=np.int32)
    place[order] = np.arange(len(every))
    return every[order], place[codes]


def _notes(coded: CodedTable, claims: Claims, chosen_here: bool) -> list[str]:
    """What has to be said of the claims. `chosen_here`: nobody said of which kind they are."""
    notes = []
    if coded.rows_missing:
        notes.append(f"{coded.rows_missing} of {coded.rows_read} rows lack an item, worker or label and are left out")
    if coded.rows_repeated:
        notes.append(f"{coded.rows_repeated} of {coded.rows_read} rows are repetitions and count once")
    twice = answered_twice(claims)
    if twice:
        notes.append(f"{twice} times a worker answered an item in different ways: the answers share one vote")
    if claims.kind == "classes" and len(claims.classes) == 1:
        notes.append(f"all labels are {str(claims.classes[0])!r}: every item gets that value")
    many = chosen_here and claims.kind == "classes" and len(claims.classes) > _CLASSES_NOTED
    if many and _are_numbers(claims.classes):
        notes.append(f"{len(claims.classes)} whole numbers are read as classes; for measurements say kind numbers")
    return notes


def answered_twice(claims: Claims) -> int:
    """How many pairs of item and worker (and tag) have several different answers; rows are in order."""
    keys = [claims.item, claims.worker, *([] if claims.tag is None else [claims.tag])]
    if claims.tag is not None or not len(claims):
        order = np.lexsort(keys[::-1])
        keys = [key[order] for key in keys]
    again = np.all([key[1:] == key[:-1] for key in keys], axis=0)
    return int(np.count_nonzero(again & ~np.concatenate([[False], again[:-1]]))) if len(again) else 0


def load_features(source: Any, items: Any, columns: Mapping[str, str] | None) -> FeatureTable:
    """Features from a table, or a matrix (a .npy file or an array) with its items beside it. Raises TableError."""
    given = {"item": columns["item"]} if columns and "item" in columns else None
    if isinstance(source, np.ndarray):
        names = None if items is None else [str(name) for name in items]
        return _matrix_in_memory(source, names)
    if isinstance(source, (str, os.PathLike)) and str(source).endswith(".npy"):
        return read_matrix(source, None if items is None else _item_column(items))
    if items is not None:
        raise TableError("items of features are given beside a table", "they belong beside a matrix (.npy) only")
    with Workspace() as workspace:
        scan = open_scan(source, workspace)
        return read_features(scan, workspace, given if given and given["item"] in scan.columns else None)


def _matrix_in_memory(matrix: NDArray[Any], items: list[str] | None) -> FeatureTable:
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise TableError(f"features of shape {list(matrix.shape)} are no matrix of finite numbers", "one row an item")
    names = [str(row) for row in range(len(matrix))] if items is None else items
    if len(names) != len(matrix):
        raise TableError(f"features have {len(matrix)} rows and {len(names)} items are named", "one row an item")
    return FeatureTable(items=names, embedding=matrix.astype(np.float32))


def _item_column(source: Any) -> list[str | None]:
    with Workspace() as workspace:
        scan = open_scan(source, workspace)
        only = {"item": scan.contents[0]} if len(scan.contents) == 1 else None
        return read_roles(scan, workspace, (ITEM,), only)["item"]


def features_for(claims: Claims, found: FeatureTable) -> Features:
    """Features in the order of the claims' items. Raises TableError when vectors are missing for some."""
    from gradbase.tables.crowd import Features

    row = {name: number for number, name in enumerate(found.items)}
    rows = np.array([row.get(str(name), -1) for name in claims.items.tolist()], dtype=np.int64)
    without = np.flatnonzero(rows < 0)
    labelled = rows[claims.item]
    if (labelled < 0).all() or (len(without) and found.embedding is not None):
        raise TableError(
            f"{len(without)} of {len(rows)} items have no features, the first is {str(claims.items[without[0]])!r}",
            "give a row for every item; do both name them in the same way?",
        )
    numeric = None if found.numeric is None else np.where(rows[:, None] < 0, np.nan, found.numeric[rows])
    text = {name: ["" if r < 0 else cells[r] for r in rows.tolist()] for name, cells in found.text.items()}
    return Features(numeric, text, None if found.embedding is None else found.embedding[rows])


def tables_of(
    result: Result, rows: Mapping[str, int], notes: Sequence[str], next_table: Any, evaluation: Evaluation | None
) -> CrowdTables:
    """Everything but the reasons, which are made when they are asked for."""
    claims = result.claims
    return CrowdTables(
        truths=_truths(result),
        workers=_workers(result),
        copies=_copies(result),
        next=next_table,
        kind=claims.kind,
        counts={
            **rows,
            "claims": len(claims),
            "items": len(claims.items),
            "workers": len(claims.workers),
            "classes": len(claims.classes),
            "copies": len(result.copies),
        },
        notes=tuple(notes),
        evaluation=evaluation,
        result=result,
    )


def _truths(result: Result) -> Any:
    claims = result.claims
    if claims.kind == "sets":
        return _set_truths(result)
    columns: dict[str, Any] = {"item": column(claims.items)}
    if claims.kind == "numbers":
        columns |= {"value": result.value, "probability": result.probability}
        columns |= {"runner_up": np.full(len(claims.items), np.nan), "runner_up_probability": _nothing(claims)}
    else:
        columns |= {"value": named(claims.classes, result.value), "probability": result.probability}
        columns |= {"runner_up": named(claims.classes, result.runner_up)}
        columns |= {"runner_up_probability": np.where(result.runner_up < 0, np.nan, result.runner_up_probability)}
    columns["claims"] = result.claim_count
    if result.interval is not None:
        columns |= {"low": result.interval[:, 0], "high": result.interval[:, 1]}
    return table(columns)


def _nothing(claims: Claims) -> NDArray[np.float64]:
    return np.full(len(claims.items), np.nan)


def _set_truths(result: Result) -> Any:
    claims = result.claims
    item, tag = np.indices(result.value.shape).reshape(2, -1)
    value, probability = result.value.ravel().astype(bool), np.asarray(result.probability).ravel()
    return table({
        "item": named(claims.items, item),
        "label": named(claims.classes, tag),
        "value": value,
        "probability": probability,
        "runner_up": ~value,
        "runner_up_probability": 1 - probability,
        "claims": result.claim_count[item],
    })


def _workers(result: Result) -> Any:
    claims, workers = result.claims, result.workers
    classes = np.array(["no", "yes"], dtype=object) if claims.kind == "sets" else claims.classes
    columns: dict[str, Any] = {
        "worker": column(claims.workers),
        "quality": workers.quality,
        "quality_low": workers.low,
        "quality_high": workers.high,
        "claims": workers.claims,
    }
    if claims.kind == "numbers":
        columns |= {"bias": workers.bias, "deviation": workers.deviation}
    else:
        columns["confusion"] = confusions(workers.confusion, classes, len(claims.workers))
    return table(columns)


def _copies(result: Result) -> Any:
    copies, workers = result.copies, result.claims.workers
    numbers = {name: getattr(copies, name) for name in ("probability", "evidence", "shared", "same")}
    return table({"copier": named(workers, copies.copier), "original": named(workers, copies.original), **numbers})


def _why(result: Result) -> Any:
    why, claims = result.why(), result.claims
    columns: dict[str, Any] = {"item": named(claims.items, why.item), "worker": named(claims.workers, why.worker)}
    if why.tag is not None:
        columns["tag"] = named(claims.classes, why.tag)
    if claims.kind == "classes":
        columns["label"] = named(claims.classes, why.label)
    else:
        columns["label"] = column(np.where(why.worker < 0, np.nan, why.label.astype(np.float64)))
    return table(columns | {"reason": column(why.reason.astype(object)), "log_odds": why.log_odds})


def next_of(result: Result, count: int) -> Any:
    """item, gain of the `count` labels most worth buying."""
    from gradbase.tables.crowd import next_labels

    bought = next_labels(result, count)
    return table({"item": named(result.claims.items, bought.item), "gain": bought.gain})


def read_gold(source: Any, kind: str, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Item (for sets: item and label, as a pair) to its gold. Raises TableError for an item with two golds."""
    roles = (ITEM, _GOLD, ANSWER) if kind == "sets" else (ITEM, _GOLD)
    with Workspace() as workspace:
        scan = open_scan(source, workspace)
        asked = {role.name for role in roles}
        given = {role: name for role, name in (columns or {}).items() if role in asked and name in scan.columns}
        coded = read_coded(scan, workspace, roles, given)
    items, labels = coded.column("item").tolist(), coded.column("label").tolist()
    if kind != "sets":
        return one_gold_each(items, labels, scan.name)
    pairs = [f"{item}\0{label}" for item, label in zip(items, labels, strict=True)]
    answers = coded.column("answer").tolist() if "answer" in coded.codes else ["yes"] * len(pairs)
    return one_gold_each(pairs, [str(str(name).lower() in _YES) for name in answers], scan.name)


def refuse_strangers(gold: Mapping[str, str], claims: Claims) -> None:
    """Raises TableError where no item of `gold` is among the claims: said before anything slow is done."""
    known = set(map(str, claims.items.tolist()))
    if not any((key.partition("\0")[0] if claims.kind == "sets" else key) in known for key in gold):
        raise no_common_items(len(gold))


def compare(result: Result, gold: Mapping[str, str]) -> Evaluation:
    """The result beside gold. Raises TableError if no item is in both."""
    if result.claims.kind == "sets":
        return _compare_sets(result, gold)
    code = {str(name): number for number, name in enumerate(result.claims.items.tolist())}
    known = {code[item]: value for item, value in gold.items() if item in code}
    rows = np.fromiter(known, dtype=np.int64, count=len(known))
    left = len(gold) - len(known)
    if result.claims.kind == "numbers":
        return _compare_numbers(result, known, rows, left)
    return _compare_classes(result, known, rows, left)


def _compare_classes(result: Result, known: Mapping[int, str], rows: NDArray[np.int64], left: int) -> Evaluation:
    claims = result.claims
    names = [str(name) for name in claims.classes.tolist()]
    truth = _class_of(names, known.values())
    if len(truth) > 1 and (truth < 0).all():
        shown, said = ", ".join(map(repr, names[:6])), next(iter(known.values()))
        raise TableError(f"no gold is a class that anybody claimed: {said!r}", f"the labels are {shown}")
    assert result.posterior is not None
    likelihood = np.where(truth < 0, 0.0, result.posterior[rows, truth])
    return evaluate_values(
        [names[value] for value in result.value[rows].tolist()],
        result.probability[rows],
        [value if t < 0 else names[t] for t, value in zip(truth.tolist(), known.values(), strict=True)],
        probability_of_gold=likelihood,
        majority=majority_right(claims.item, claims.label, dict(zip(rows.tolist(), truth.tolist(), strict=True))),
        unanswered=left,
    )


def _class_of(names: Sequence[str], golds: Iterable[str]) -> NDArray[np.int64]:
    """int64[golds]: the class of each gold, -1 where nobody said it. Tables write one value in several ways: what is
    not found as it stands is looked for as a number or as true and false."""
    exact = {name: number for number, name in enumerate(names)}
    plain: dict[str, int] = {}
    for name, number in exact.items():
        plain[_plainly(name)] = -1 if _plainly(name) in plain else number
    return np.array([exact.get(gold, plain.get(_plainly(gold), -1)) for gold in golds], dtype=np.int64)


def _plainly(name: str) -> str:
    if _is_number(name):
        return repr(float(name))
    return name.lower() if name.lower() in ("true", "false") else name


def _compare_numbers(result: Result, known: Mapping[int, str], rows: NDArray[np.int64], left: int) -> Evaluation:
    wrong = next((value for value in known.values() if not _is_number(value)), None)
    if wrong is not None:
        raise TableError(f"gold {wrong!r} is not a number", "the labels are numbers; give numbers, or kind classes")
    claims = result.claims
    count = np.bincount(claims.item, minlength=len(claims.items))
    mean = np.bincount(claims.item, claims.label, minlength=len(claims.items)) / np.maximum(count, 1)
    rows_with = rows[count[rows] > 0]
    gold = np.array([float(known[row]) for row in rows_with.tolist()])
    interval = None if result.interval is None else result.interval[rows_with]
    left += len(rows) - len(rows_with)
    return evaluate_numbers(result.value[rows_with], gold, mean[rows_with], interval, left)


def _compare_sets(result: Result, gold: Mapping[str, str]) -> Evaluation:
    """Every pair of item and label is one question."""
    known, left = _set_gold(result.claims, gold)
    if not known:
        return evaluate_values([], np.empty(0), [], unanswered=left)
    claims, width = result.claims, len(result.claims.classes)
    pairs = np.fromiter(known, dtype=np.int64, count=len(known))
    truth = np.array(list(known.values()))
    rows, tags = np.divmod(pairs, width)
    assert claims.tag is not None and result.posterior is not None
    yes = result.posterior[rows, tags]
    return evaluate_values(
        result.value[rows, tags].astype(bool).tolist(),
        np.asarray(result.probability)[rows, tags],
        truth.tolist(),
        probability_of_gold=np.where(truth, yes, 1 - yes),
        majority=majority_right(claims.item * width + claims.tag, claims.label, dict(zip(pairs, truth, strict=True))),
        unanswered=left,
    )


def _set_gold(claims: Claims, gold: Mapping[str, str]) -> tuple[dict[int, bool], int]:
    """Item times labels plus label, to its truth; and how many golds are about nothing that was asked.

    Gold that only says yes lists what is true: the other labels of its items are false.
    """
    item = {str(name): number for number, name in enumerate(claims.items.tolist())}
    tag = {str(name): number for number, name in enumerate(claims.classes.tolist())}
    split = [(*key.partition("\0")[::2], value == "True") for key, value in gold.items()]
    found = [(item[name], tag[label], yes) for name, label, yes in split if name in item and label in tag]
    known: dict[int, bool] = {}
    if all(yes for *_, yes in split):
        known = {row * len(tag) + number: False for row, *_ in found for number in range(len(tag))}
    known |= {row * len(tag) + number: yes for row, number, yes in found}
    return known, len(split) - len(found)
