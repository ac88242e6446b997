"""Between arrays with names and Arrow columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradbase.tables.io import modules

_CONFUSION_LEAST = 0.0005  # rarer entries of a confusion are not written


def table(columns: Mapping[str, Any]) -> Any:
    """An Arrow table of arrays (numpy, lists or Arrow)."""
    _, arrow = modules()
    return arrow.table({name: column(values) for name, values in columns.items()})


def column(values: Any) -> Any:
    """One Arrow column. NaN is missing; objects of several types become text, but for None."""
    _, arrow = modules()
    if isinstance(values, (arrow.Array, arrow.ChunkedArray)):
        return values
    array = np.asarray(values) if not isinstance(values, list) else _objects(values)
    if array.dtype.kind == "f":
        return arrow.array(array, from_pandas=True)
    if array.dtype.kind != "O":
        return arrow.array(array)
    kinds = {type(cell) for cell in array.tolist() if cell is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        array = _objects([None if cell is None else str(cell) for cell in array.tolist()])
    return arrow.array(array.tolist()) if kinds else arrow.array([None] * len(array), arrow.string())


def named(names: NDArray[Any], codes: NDArray[Any]) -> Any:
    """The name of each code; missing for -1."""
    _, arrow = modules()
    indices = arrow.array(codes.astype(np.int64), mask=np.asarray(codes) < 0)
    return column(names).take(indices) if len(names) else arrow.nulls(len(codes), arrow.string())


def confusions(confusion: NDArray[np.float64] | None, classes: NDArray[Any], rows: int) -> Any:
    """A confusion matrix per row as a list of (truth, label, probability), without entries that are next to zero."""
    _, arrow = modules()
    entry = arrow.struct([("truth", column(classes).type), ("label", column(classes).type), ("probability", "float64")])
    if confusion is None:
        return arrow.nulls(rows, arrow.list_(entry))
    row, truth, label = np.nonzero(confusion >= _CONFUSION_LEAST)
    fields = [named(classes, truth), named(classes, label), arrow.array(confusion[row, truth, label])]
    entries = arrow.StructArray.from_arrays(fields, fields=list(entry))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(np.int32)
    return arrow.ListArray.from_arrays(arrow.array(starts), entries)


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    """A list as an array of objects, also when its entries are lists."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
