"""Workers who copy from each other: found by common errors, kept only where held-out claims say so, and heard as one.

That two workers agree on what is true tells nothing, and what is true cannot be asked of a model that copiers may have
taken over. So only items count where the one who may have been copied is outvoted, and the question is whether the
other repeats the error. Without copying there are two explanations for the other's label: it repeats what the rest of
the crowd says of the item, or comes from how the worker usually answers when the vote is as it is; the likelier one is
taken, so that hard items and adversaries do not look like copying. With copying it is the error with chance c, else
the worker's own. A pair is kept only where either half of the items makes it likelier. Votes of a group of copiers for
one label of an item count 1 / (1 + c (m - 1)) each where m of them agree, as one vote were all of it copied; then the
vote is another, and more may be found. That common errors tell copiers is the idea of Dong, Berti-Equille and
Srivastava (Integrating Conflicting Data: The Role of Source Dependence, VLDB 2009).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from gradbase.tables.crowd._noise import item_hashes, scramble
from gradbase.tables.crowd._table import Table
from gradbase.tables.crowd._types import Copies, Floats, Ints
from gradbase.tables.crowd._workers import CONFUSION_ENTRIES_MAX, confusion_of

CHANCES = (0.6, 0.9)  # of a label to be copied: below one half people rather have the same habits
EVIDENCE = 3.0  # log odds of both halves together, beyond the logarithm of how many pairs were looked at
HALF_EVIDENCE = 1.0  # log odds in either half alone
ERRORS_MIN = 6  # of a worker, on items of both
MEETINGS_MAX = 2_000_000  # pairs of claims on one item; of more, copying is looked for on a part of the items
CONFORMITY_ROUNDS = 10
PASSES = 3
TIED = 1e-4  # of votes, or of evidence: less is no difference


@dataclass(frozen=True)
class _Meetings:
    """Two claims on one item each, the first outvoted: `first` and `second` int64[n] number claims of the table,
    `pair` int64[n] is the code of their workers among `left`, who may have been copied, `right` int64[n_pairs]."""

    first: Ints
    second: Ints
    pair: Ints
    left: Ints
    right: Ints


def heard_once(table: Table, seed: int) -> tuple[Table, Copies]:
    """The table with copied votes shared, and who copies; the same table where nobody is found to."""
    copies = Copies.none()
    if table.n_classes < 2 or table.n_workers * table.n_classes**2 > CONFUSION_ENTRIES_MAX:
        return table, copies
    heard = table
    for _ in range(PASSES):
        known = len(copies)
        copies = _together(copies, _copied(heard, seed))
        if len(copies) == known:
            break
        groups = _groups(table.n_workers, copies.original, copies.copier)
        heard = _shared(table, groups, float(copies.probability.mean()))
    return heard, _one_way(copies)


def _together(known: Copies, found: Copies) -> Copies:
    """Pairs of both, those that were known as they were."""
    every = Copies(*(np.concatenate([getattr(known, f.name), getattr(found, f.name)]) for f in fields(Copies)))
    _, place = np.unique(np.stack([every.original, every.copier]), axis=1, return_index=True)
    return every.rows(place)


def _one_way(copies: Copies) -> Copies:
    """Of two directions the one with more evidence, the strongest pairs first."""
    low, high = np.minimum(copies.copier, copies.original), np.maximum(copies.copier, copies.original)
    _, pair = np.unique(np.stack([low, high]), axis=1, return_inverse=True)
    best = np.full(len(copies), -np.inf)
    np.maximum.at(best, pair.reshape(-1), copies.evidence)
    chosen = copies.rows(copies.evidence >= best[pair.reshape(-1)] - TIED)
    return chosen.rows(np.lexsort([chosen.copier, chosen.original, -chosen.evidence]))


def _copied(table: Table, seed: int) -> Copies:
    """Pairs of workers of whom one repeats the other's errors, in both directions."""
    part = _part(table, seed)
    believed = _outcome(part.votes())
    meetings = _meetings(part, believed)
    half = (item_hashes(part, seed) & np.uint64(1)).astype(np.int64)
    evidence = _evidence(part, believed, meetings, half[part.item.numpy()[meetings.first]])
    best = evidence.sum(1).argmax(0)
    first, second = (evidence[best, side, np.arange(len(best))] for side in (0, 1))
    enough = EVIDENCE + np.log(max(len(best), 1))
    kept = (np.minimum(first, second) > HALF_EVIDENCE) & (first + second > enough)
    alike = (part.label[meetings.first] == part.label[meetings.second]).numpy()
    shared, same = (np.bincount(meetings.pair, weight, len(best)).astype(np.int64) for weight in (None, alike))
    chance = np.array(CHANCES)[best]
    return Copies(meetings.right, meetings.left, chance, first + second, shared, same).rows(kept)


def _part(table: Table, seed: int) -> Table:
    """So many items, chosen by content, that no more than about MEETINGS_MAX pairs of claims meet on them."""
    counts = _claim_counts(table)
    share = 2.0 * MEETINGS_MAX / max(float((counts * (counts - 1)).sum()), 1.0)
    if share >= 1.0:
        return table
    return table.part(scramble(item_hashes(table, seed)) < np.uint64(share * 2.0**64))


def _outcome(votes: Tensor) -> Tensor:
    """float[n_items, K]: one for the class with most votes, shared where several have as many."""
    most = (votes >= votes.max(1, keepdim=True).values - TIED).to(votes.dtype)
    return most / most.sum(1, keepdim=True)


def _claim_counts(table: Table) -> Ints:
    return np.diff(table.item_starts.numpy()).astype(np.int64)


def _meetings(table: Table, believed: Tensor) -> _Meetings:
    item, worker = table.item.numpy(), table.worker.numpy().astype(np.int64)
    parts = []
    for ahead in range(1, int(_claim_counts(table).max(initial=0))):
        first = np.flatnonzero(item[ahead:] == item[:-ahead])
        parts.append(np.stack([first, first + ahead]))
    either = np.concatenate(parts, 1) if parts else np.empty((2, 0), dtype=np.int64)
    first, second = np.concatenate([either, either[::-1]], 1)
    wrong = (believed[table.item.long(), table.label.long()] == 0).numpy()
    asked = wrong[first] & (worker[first] != worker[second])
    first, second = first[asked], second[asked]
    key = worker[first] * table.n_workers + worker[second]
    _, pair, shared = np.unique(key, return_inverse=True, return_counts=True)
    often = shared[pair.reshape(-1)] >= ERRORS_MIN
    first, second, key = first[often], second[often], key[often]
    pairs, pair = np.unique(key, return_inverse=True)
    return _Meetings(first, second, pair.reshape(-1), *np.divmod(pairs, table.n_workers))


def _evidence(table: Table, believed: Tensor, meetings: _Meetings, half: Ints) -> Floats:
    """float64[chances, 2 halves, n_pairs]: the log-likelihood of labels with copying less that without."""
    own = _own_chances(table, believed, meetings)
    label = table.label.numpy()
    same = label[meetings.first] == label[meetings.second]
    place, n_pairs = half * len(meetings.left) + meetings.pair, len(meetings.left)
    found = []
    for chance in CHANCES:
        gain = np.where(same, np.log(1 - chance + chance / own), np.log(1 - chance))
        found.append(np.bincount(place, gain, 2 * n_pairs).reshape(2, n_pairs))
    return np.stack(found)


def _own_chances(table: Table, believed: Tensor, meetings: _Meetings) -> Floats:
    """float64[n]: the chance of the second label of each meeting if nobody copied."""
    item, label, worker = table.item.numpy(), table.label.numpy(), table.worker.numpy()
    weight = np.ones(len(table)) if table.weight is None else table.weight.double().numpy()
    votes = table.votes().double().numpy()
    popular = votes.sum(0) / votes.sum()
    habits = table.cell_counts() + 1.0 / table.n_classes
    habits /= habits.sum(1, keepdims=True)
    theta = confusion_of(table, believed).reshape(-1, table.n_classes)
    usual = (theta[table.cell.long()] * believed[table.item.long()]).sum(1).double().numpy()
    conforms = _conformity(table, votes, weight, habits)
    first, second = meetings.first, meetings.second
    row, said, own = item[second], label[second], worker[second]
    rest = votes[row, said] - weight[second] - weight[first] * (label[first] == said)
    share = (rest + popular[said]) / (votes[row].sum(1) - weight[first] - weight[second] + 1)
    repeated = conforms[own] * share + (1 - conforms[own]) * habits[own, said]
    return np.maximum(repeated, usual[second]).clip(1e-6, 1.0)


def _conformity(table: Table, votes: Floats, weight: Floats, habits: Floats) -> Floats:
    """float64[n_workers]: the share of labels that a worker has from the same place as the item's other labels; the
    rest are habit (expectation-maximisation, with two claims' prior of one half)."""
    item, label, worker = table.item.numpy(), table.label.numpy(), table.worker.numpy()
    popular = votes.sum(0) / votes.sum()
    share = (votes[item, label] - weight + popular[label]) / (votes[item].sum(1) - weight + 1)
    habit, claims = habits[worker, label], np.bincount(worker, minlength=table.n_workers)
    conformity: Floats = np.full(table.n_workers, 0.5)
    for _ in range(CONFORMITY_ROUNDS):
        conforms = conformity[worker] * share
        part = conforms / (conforms + (1 - conformity[worker]) * habit)
        conformity = (np.bincount(worker, part, table.n_workers) + 1.0) / (claims + 2.0)
    return conformity


def _groups(n_workers: int, left: Ints, right: Ints) -> Ints:
    """int64[n_workers]: the least worker that one is connected with."""
    group = np.arange(n_workers)
    while True:
        least = np.minimum(group[left], group[right])
        before = group.copy()
        np.minimum.at(group, left, least)
        np.minimum.at(group, right, least)
        if (before == group).all():
            return group


def _shared(table: Table, group: Ints, chance: float) -> Table:
    """The table with the votes of a group for one label of an item shared."""
    item, label, worker = table.item.numpy().astype(np.int64), table.label.numpy(), table.worker.numpy()
    key = (item * table.n_workers + group[worker]) * table.n_classes + label
    _, place, together = np.unique(key, return_inverse=True, return_counts=True)
    share = torch.from_numpy(1.0 / (1.0 + chance * (together[place.reshape(-1)] - 1.0))).to(table.dtype)
    weight = share if table.weight is None else share * table.weight
    by_cell = weight[torch.sort(table.cell, stable=True).indices]
    return replace(table, weight=weight, weight_by_cell=by_cell)
