"""Which members there are, how they are averaged, and how far they are believed.

No single model of workers wins on all crowds: subtypes of items pay where there are many items of two classes, and
mislead on a hundred items or where classes themselves are what is confused. So several fits are averaged, with weights
that depend on the size of the task alone. Their posteriors are far too sure of themselves, because workers err
together; the vote shares are too unsure. The mean of both is near what is right, without any gold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradbase.common.malloc import release_freed_memory
from gradbase.tables.crowd._confusion import Fit, Member, fit
from gradbase.tables.crowd._guess import fit_guess
from gradbase.tables.crowd._noise import item_hashes
from gradbase.tables.crowd._table import Table

SIMPLE = (
    Member(learned=True, mean_field=False),
    Member(learned=True),
    Member(),
)
SUBTYPES = 10
SUBTYPED = tuple(Member(subtypes=SUBTYPES, rounds=100, seed=seed) for seed in range(3))
ITEMS_FOR_SUBTYPES = 300.0  # at so many items, members with subtypes weigh as much as those without
TRUST = 0.65  # of the members; the rest is the votes'
CONFUSION_ENTRIES_MAX = 4_000_000  # above, workers get one number each
ROW_CLAIMS_LEAST = 2.5  # claims per worker and class: with fewer, rows of matrices are noise, as simulations show
SAMPLE_CLAIMS = 100_000  # members converge on so many claims, then see all
FULL_ROUNDS = 3
WARM_ROUNDS = 20  # on from an earlier state, where claims are few


@dataclass(frozen=True)
class Opinion:
    """The averaged posterior float[n_items, K], calibrated (`posterior`) and as the members have it (`members`);
    `fits` are theirs, by name."""

    posterior: Tensor
    members: Tensor
    fits: Mapping[str, Fit]


def judge(
    table: Table,
    tilt: Tensor | None = None,
    seed: int = 0,
    start: Mapping[str, Fit] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Opinion:
    """What all members together believe. `tilt` float[n_items, K]: log p(class | features) up to a constant.
    `start` are fits to go on from, by the names of the members."""
    plan = weighted_members(table, seed)
    if not plan:
        posterior = fit_guess(table, tilt)
        return Opinion(calibrated(table, posterior, tilt), posterior, {})
    members = torch.zeros(table.n_items, table.n_classes, dtype=table.dtype)
    first = {} if start is None else dict(start)
    sample = _Sample.of(table, tilt, seed) if len(first) < len(plan) else None
    fits = {}
    for done, (weight, member) in enumerate(plan):
        fitted = _fitted(table, sample, member, tilt, first.get(member.name))
        if sample is not None:
            release_freed_memory()  # of many claims: the next member takes it in other sizes
        members += weight * fitted.posterior
        fits[member.name] = replace(fitted, posterior=torch.empty(0))
        if progress:
            progress("members", done + 1, len(plan))
    return Opinion(calibrated(table, members, tilt), members, fits)


def weighted_members(table: Table, seed: int) -> list[tuple[float, Member]]:
    """Members with weights that sum to one; none where there are too many classes for confusion matrices."""
    rows = table.n_workers * table.n_classes
    if rows * table.n_classes > CONFUSION_ENTRIES_MAX or (table.n_classes > 2 and len(table) < ROW_CLAIMS_LEAST * rows):
        return []
    share = 0.0
    if table.n_classes == 2:
        share = table.n_items / (table.n_items + ITEMS_FOR_SUBTYPES)
    plan = [((1 - share) / len(SIMPLE), member) for member in SIMPLE]
    if share:
        drawn = SUBTYPED if len(table) <= 2 * SAMPLE_CLAIMS else SUBTYPED[:1]  # so much data leaves little to chance
        plan += [(share / len(drawn), replace(m, seed=m.seed + 1000 * seed)) for m in drawn]
    return plan


@dataclass(frozen=True)
class _Sample:
    """The claims on some items, chosen by content."""

    table: Table
    tilt: Tensor | None

    @classmethod
    def of(cls, table: Table, tilt: Tensor | None, seed: int) -> _Sample | None:
        """None where there are hardly more claims than are needed to converge."""
        if len(table) <= 2 * SAMPLE_CLAIMS:
            return None
        chosen = item_hashes(table, seed) < np.uint64(SAMPLE_CLAIMS / len(table) * 2.0**64)
        drawn = cls(table.part(chosen), None if tilt is None else tilt[torch.from_numpy(chosen)])
        release_freed_memory()  # that of hashing all items
        return drawn


def _fitted(table: Table, sample: _Sample | None, member: Member, tilt: Tensor | None, start: Fit | None) -> Fit:
    if start is None and sample is not None:
        start = fit(sample.table, member, sample.tilt)
    if start is None:
        return fit(table, member, tilt)
    few = len(table) <= 2 * SAMPLE_CLAIMS
    return fit(table, member, tilt, start=start, rounds=WARM_ROUNDS if few else FULL_ROUNDS)


def calibrated(table: Table, members: Tensor, tilt: Tensor | None) -> Tensor:
    """The members' mean, mixed with vote shares. One more vote is spread evenly, or as the classifier says."""
    extra = torch.full_like(members, 1.0 / table.n_classes) if tilt is None else torch.softmax(tilt.to(table.dtype), 1)
    votes = table.votes()
    shares = (votes + extra) / (votes.sum(1, keepdim=True) + 1.0)
    return TRUST * members + (1 - TRUST) * shares
