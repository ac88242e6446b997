"""`infer`: from claims to truths, whatever their kind."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradbase.common.errors import UsageError
from gradbase.common.malloc import release_freed_memory
from gradbase.tables.crowd._confusion import Fit
from gradbase.tables.crowd._copies import heard_once
from gradbase.tables.crowd._ensemble import judge
from gradbase.tables.crowd._features import check, spread
from gradbase.tables.crowd._numbers import numbers
from gradbase.tables.crowd._prior import with_features
from gradbase.tables.crowd._sets import sets
from gradbase.tables.crowd._state import State, joined
from gradbase.tables.crowd._table import Table, table_of
from gradbase.tables.crowd._types import NONE, Claims, Config, Features, Ints, Result
from gradbase.tables.crowd._why import why_of
from gradbase.tables.crowd._workers import workers_of

TIE = 1e-7  # probabilities closer than this are tied: the class that is claimed more often wins


def infer(
    claims: Claims, features: Features | None = None, config: Config | None = None, state: State | None = None
) -> Result:
    """What is true of each item, how good each worker is, and why.

    `features` (rows in the order of `claims.items`) train a classifier whose word is each item's prior. `state` is the
    `Result.state` of earlier claims: inference goes on from its statistics with all claims together, names united. Only
    a new class, or twice as many claims as when it last did, make it start over, so that all the growth from one claim
    to many costs no more than two starts at the end. Raises UsageError for no claims, features of another length, a
    state of another kind.
    """
    config = config or Config()
    if features is not None:
        check(features, len(claims.items))
    start: dict[str, Fit] = {}
    settled = 0
    if state is not None:
        given = claims.items
        claims, start = joined(state, claims)
        settled = state.settled
        features = None if features is None else spread(features, np.searchsorted(claims.items, given), claims.items)
    if len(claims) >= 2 * settled:
        start, settled = {}, len(claims)
    if len(claims) == 0:
        raise UsageError("there are no claims", "expected at least one row that says what somebody thinks of an item")
    if features is not None and claims.kind != "classes":
        raise UsageError(f"features are of no use to claims of kind {claims.kind!r}", "give them with class labels")
    if claims.kind == "numbers":
        return numbers(claims)
    if claims.kind == "sets":
        return sets(claims, config, start, settled)
    return _classes(claims, features, config, start, settled)


def _classes(
    claims: Claims, features: Features | None, config: Config, start: dict[str, Fit], settled: int
) -> Result:
    table, copies = heard_once(table_of(claims), config.seed)
    release_freed_memory()  # that of looking for copies: the members take as much
    opinion = judge(table, None, config.seed, start, config.on_progress)
    claim_count = np.diff(table.item_starts.numpy()).astype(np.int64)
    posterior, tilt, classifier = opinion.posterior, None, None
    if features is not None:
        informed = with_features(table, posterior.double(), torch.from_numpy(claim_count > 0), features, config)
        posterior, tilt, classifier = informed.posterior, informed.tilt, informed.classifier
    value, runner_up = _best_two(table, posterior)
    release_freed_memory()  # the members': tables of results take their own
    rows = np.arange(table.n_items)
    dense = posterior.double().numpy()
    second = np.where(runner_up == NONE, 0.0, dense[rows, np.maximum(runner_up, 0)])
    return Result(
        claims=claims,
        value=value,
        probability=dense[rows, value],
        runner_up=runner_up,
        runner_up_probability=second,
        claim_count=claim_count,
        posterior=dense,
        workers=workers_of(table, posterior),
        explain=lambda: why_of(table, posterior, value, runner_up, tilt),
        state=State(claims, opinion.fits, settled),
        classifier=classifier,
        copies=copies,
    )


def _best_two(table: Table, posterior: Tensor) -> tuple[Ints, Ints]:
    """int64[n_items] each: the two likeliest classes. Ties go to the class claimed more often, then by name."""
    claimed = torch.from_numpy(table.cell_counts().sum(0)).double()
    ranked = posterior.double() + TIE * claimed / claimed.sum()
    value = ranked.argmax(1)
    if table.n_classes == 1:
        return value.numpy(), np.full(table.n_items, NONE)
    ranked[torch.arange(table.n_items), value] = -1.0
    return value.numpy(), ranked.argmax(1).numpy()

