"""What inference goes on from when more labels come: statistics as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradbase.common.errors import UsageError
from gradbase.tables.crowd._confusion import Fit
from gradbase.tables.crowd._types import Claims, Kind

Columns = dict[str, NDArray[Any]]
TABLES = ("about", "items", "workers", "classes", "claims", "statistics", "shares")


@dataclass(frozen=True)
class State:
    """The claims so far, and per member of the ensemble its sufficient statistics: expected claims by worker, label and
    kind of item, and expected items by kind. `settled` is how many claims there were when the members last started."""

    claims: Claims
    fits: Mapping[str, Fit]
    settled: int

    def tables(self) -> dict[str, Columns]:
        """Tables by name, each with columns of one length: what `from_tables` takes. Save them in any format."""
        claims = self.claims
        rows: Columns = {"item": claims.item, "worker": claims.worker, "label": claims.label}
        if claims.tag is not None:
            rows["tag"] = claims.tag
        return {
            "about": {"kind": np.array([claims.kind], dtype=object), "settled": np.array([self.settled])},
            "items": {"name": claims.items},
            "workers": {"name": claims.workers},
            "classes": {"name": claims.classes},
            "claims": rows,
            "statistics": _long_counts(self.fits),
            "shares": _long_masses(self.fits),
        }

    @classmethod
    def from_tables(cls, tables: Mapping[str, Mapping[str, NDArray[Any]]]) -> State:
        """The state that `tables` were made from. Raises UsageError where one is missing."""
        missing = [name for name in TABLES if name not in tables]
        if missing:
            raise UsageError(f"the state has no table {', '.join(missing)}", f"expected {', '.join(TABLES)}")
        kind: Kind = str(tables["about"]["kind"][0])  # type: ignore[assignment]
        rows = tables["claims"]
        label = np.asarray(rows["label"], dtype=np.float64 if kind == "numbers" else np.int64)
        tag = np.asarray(rows["tag"], dtype=np.int64) if kind == "sets" else None
        item, worker = (np.asarray(rows[name], dtype=np.int64) for name in ("item", "worker"))
        names = (np.asarray(tables[name]["name"]) for name in ("items", "workers", "classes"))
        claims = Claims(item, worker, label, *names, kind, tag)
        return cls(claims, _fits(tables["statistics"], tables["shares"]), int(tables["about"]["settled"][0]))


def _long_counts(fits: Mapping[str, Fit]) -> Columns:
    """One row per member, cell (worker * labels + label) and kind that has any claims."""
    parts = [(name, *fit.counts.double().numpy().nonzero(), fit) for name, fit in sorted(fits.items())]
    return {
        "member": _joined([np.full(len(cell), name, dtype=object) for name, cell, _, _ in parts], object),
        "cell": _joined([cell for _, cell, _, _ in parts], np.int64),
        "kind": _joined([kind for _, _, kind, _ in parts], np.int64),
        "claims": _joined([fit.counts.double().numpy()[cell, kind] for _, cell, kind, fit in parts], np.float64),
    }


def _long_masses(fits: Mapping[str, Fit]) -> Columns:
    """One row per member and kind. `cells` is how many cells the member's statistics have."""
    parts = sorted(fits.items())
    return {
        "member": _joined([np.full(len(fit.mass), name, dtype=object) for name, fit in parts], object),
        "kind": _joined([np.arange(len(fit.mass)) for _, fit in parts], np.int64),
        "items": _joined([fit.mass.double().numpy() for _, fit in parts], np.float64),
        "cells": _joined([np.full(len(fit.mass), len(fit.counts)) for _, fit in parts], np.int64),
    }


def _joined(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)


def _fits(counts: Mapping[str, NDArray[Any]], shares: Mapping[str, NDArray[Any]]) -> dict[str, Fit]:
    fits = {}
    members, known = np.asarray(shares["member"]), np.asarray(counts["member"])
    for name in sorted(set(members.tolist())):
        of_kind, of_cell = members == name, known == name
        mass = np.zeros(int(of_kind.sum()))
        mass[np.asarray(shares["kind"])[of_kind]] = np.asarray(shares["items"])[of_kind]
        table = np.zeros((int(np.asarray(shares["cells"])[of_kind][0]), len(mass)))
        table[np.asarray(counts["cell"])[of_cell], np.asarray(counts["kind"])[of_cell]] = np.asarray(counts["claims"])[
            of_cell
        ]
        fits[str(name)] = Fit(torch.from_numpy(table), torch.from_numpy(mass), torch.empty(0))
    return fits


def joined(state: State, claims: Claims) -> tuple[Claims, dict[str, Fit]]:
    """All claims under common names, and the statistics in their codes; none where a new class came up."""
    if state.claims.kind != claims.kind:
        raise UsageError(
            f"the state is of kind {state.claims.kind!r}, the claims of kind {claims.kind!r}",
            "go on with claims of the kind that the state was made from",
        )
    old = state.claims
    items, (old_item, new_item) = _union(old.items, claims.items)
    workers, (old_worker, new_worker) = _union(old.workers, claims.workers)
    classes, (old_class, new_class) = _union(old.classes, claims.classes)

    def merged(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([first, second])

    item = merged(old_item[old.item], new_item[claims.item])
    worker = merged(old_worker[old.worker], new_worker[claims.worker])
    label, tag = merged(old.label, claims.label), None
    if claims.kind == "classes":
        label = merged(old_class[old.label], new_class[claims.label])
    if old.tag is not None and claims.tag is not None:
        tag = merged(old_class[old.tag], new_class[claims.tag])
    together = _distinct(Claims(item, worker, label, items, workers, classes, claims.kind, tag))
    if len(classes) != len(old.classes):
        return together, {}
    n_labels = 2 if claims.kind == "sets" else len(classes)
    return together, {name: _recoded(fit, old_worker, len(workers), n_labels) for name, fit in state.fits.items()}


def _union(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]]]:
    if first.dtype.kind != second.dtype.kind and len(first) and len(second):  # whole numbers so far, and now a text
        first, second = _texts(first), _texts(second)
    names, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    return names, (codes[: len(first)].astype(np.int64), codes[len(first) :].astype(np.int64))


def _texts(names: NDArray[Any]) -> NDArray[Any]:
    return np.array([str(name) for name in names.tolist()], dtype=object)


def _distinct(claims: Claims) -> Claims:
    """Each row once, in order: a label that comes again is no new one, and states do not grow by it."""
    keys = [claims.item, claims.worker, *([] if claims.tag is None else [claims.tag]), claims.label]
    order = np.lexsort(keys[::-1])
    keys = [key[order] for key in keys]
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    item, worker, *tag, label = (key[new] for key in keys)
    return replace(claims, item=item, worker=worker, label=label, tag=tag[0] if tag else None)


def _recoded(fit: Fit, code: NDArray[Any], n_workers: int, n_labels: int) -> Fit:
    counts = torch.zeros(n_workers, n_labels, fit.counts.shape[1], dtype=fit.counts.dtype)
    counts[torch.from_numpy(code)] = fit.counts.reshape(-1, n_labels, fit.counts.shape[1])
    return Fit(counts.reshape(n_workers * n_labels, -1), fit.mass, fit.posterior)
