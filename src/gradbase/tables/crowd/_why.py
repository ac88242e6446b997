"""Why a value won: log-odds of the value against the runner-up, claim by claim, adding up to the item's.

Each claim counts with the final confusion of its worker, the prior with the classes' shares, the classifier with what
it says. Averaged, calibrated members are less sure than that sum; claims and prior of an item are scaled down alike
where one factor explains the difference (reason "claim", "prior", "features"), and what is left, mostly nothing, is a
row of its own (reason "members").
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradbase.tables.crowd._table import Table
from gradbase.tables.crowd._types import NONE, Floats, Ints, Why
from gradbase.tables.crowd._workers import CONFUSION_ENTRIES_MAX, confusion_of

TINY = 1e-12


def why_of(
    table: Table, posterior: Tensor, value: Ints, runner_up: Ints, tilt: Tensor | None = None
) -> Why:
    """Rows for every claim, one "prior" row per item, "features" rows where a classifier speaks."""
    wanted = _log_odds(posterior, value, runner_up)
    item = table.item.numpy().astype(np.int64)
    claims = _claim_odds(table, posterior, value, runner_up)
    everyone = np.arange(table.n_items)
    prior = _log_odds((posterior.sum(0) + 1.0).expand(table.n_items, -1), value, runner_up)
    told = None if tilt is None else _log_odds(torch.softmax(tilt, 1), value, runner_up)
    total = np.bincount(item, claims, table.n_items) + prior + (0.0 if told is None else told)
    factor = _factor(wanted, total)
    parts = [
        (item, table.worker.numpy(), table.label.numpy(), "claim", claims * factor[item]),
        (everyone, None, None, "prior", prior * factor),
    ]
    if told is not None:
        parts.append((everyone, None, None, "features", told * factor))
    rest = wanted - total * factor
    left = np.flatnonzero(np.abs(rest) > 1e-9)
    parts.append((left, None, None, "members", rest[left]))
    return _rows(parts)


def _log_odds(posterior: Tensor, value: Ints, runner_up: Ints) -> Floats:
    rows = torch.arange(len(value))
    first = posterior[rows, torch.from_numpy(value)].double().clamp(min=TINY).log()
    second = posterior[rows, torch.from_numpy(np.maximum(runner_up, 0))].double().clamp(min=TINY).log()
    return np.where(runner_up == NONE, 0.0, (first - second).numpy())


def _claim_odds(table: Table, posterior: Tensor, value: Ints, runner_up: Ints) -> Floats:
    """float[n]: log p(label | value) - log p(label | runner-up) of each claim's worker."""
    item, cell = table.item.long(), table.cell.long()
    first, second = torch.from_numpy(value)[item], torch.from_numpy(np.maximum(runner_up, 0))[item]
    if table.n_workers * table.n_classes**2 <= CONFUSION_ENTRIES_MAX:
        theta = confusion_of(table, posterior).reshape(-1, table.n_classes).double().clamp(min=TINY).log()
        odds = theta[cell, first] - theta[cell, second]
    else:
        odds = _one_coin_odds(table, posterior, first, second)
    odds = odds if table.weight is None else odds * table.weight.double()
    return np.where(runner_up[item.numpy()] == NONE, 0.0, odds.numpy())


def _one_coin_odds(table: Table, posterior: Tensor, first: Tensor, second: Tensor) -> Tensor:
    from gradbase.tables.crowd._workers import workers_of

    quality = torch.from_numpy(workers_of(table, posterior).quality)[table.worker.long()].clamp(1e-3, 1 - 1e-3)
    strength = (quality / (1 - quality) * max(table.n_classes - 1, 1)).log()
    label = table.label.long()
    return strength * ((label == first).double() - (label == second).double())


def _factor(wanted: Floats, total: Floats) -> Floats:
    """float[n_items]: by how much an item's rows shrink; one where their sum points the other way."""
    ratio = np.divide(wanted, total, out=np.ones_like(total), where=np.abs(total) > TINY)
    return np.where((ratio > 0) & (ratio < 1), ratio, 1.0)


def _rows(parts: list[tuple[Ints, NDArray[np.int64] | None, NDArray[np.int64] | None, str, Floats]]) -> Why:
    def column(which: int) -> Ints:
        filled = [np.full(len(p[0]), NONE) if p[which] is None else p[which] for p in parts]
        return np.concatenate(filled).astype(np.int64)

    reason = np.concatenate([np.full(len(part[0]), part[3], dtype=object) for part in parts])
    odds = np.concatenate([part[4] for part in parts])
    item, worker, label = column(0), column(1), column(2)
    order = np.argsort(item, kind="stable")
    return Why(item[order], worker[order], label[order], reason[order], odds[order])
