"""Yes/no sets: every tag of an item is a question of two answers, asked of the same workers.

Workers have one confusion matrix over all tags, so that a worker with few answers on a tag is known by the others; how
common a tag is comes in as the prior of its questions, learned from a first round of inference.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradbase.tables.crowd._confusion import Fit
from gradbase.tables.crowd._copies import heard_once
from gradbase.tables.crowd._ensemble import Opinion, judge
from gradbase.tables.crowd._state import State
from gradbase.tables.crowd._table import table_of
from gradbase.tables.crowd._types import NONE, Claims, Config, Result, Why
from gradbase.tables.crowd._why import why_of
from gradbase.tables.crowd._workers import workers_of

ANSWERS = np.array([0, 1])  # no, yes


def sets(claims: Claims, config: Config, start: dict[str, Fit], settled: int) -> Result:
    """The result for claims of kind "sets"."""
    n_items, n_tags = len(claims.items), len(claims.classes)
    table, copies = heard_once(table_of(as_questions(claims)), config.seed)
    first = judge(table, None, config.seed, start, config.on_progress)
    tilt = _commonness(first.posterior, n_tags)
    opinion: Opinion = judge(table, tilt, config.seed, first.fits, config.on_progress)
    yes = opinion.posterior[:, 1].double().numpy().reshape(n_items, n_tags)
    value = yes > 0.5
    flat = value.reshape(-1).astype(np.int64)
    return Result(
        claims=claims,
        value=value,
        probability=np.where(value, yes, 1.0 - yes),
        runner_up=np.full(n_items, NONE),
        runner_up_probability=np.zeros(n_items),
        claim_count=np.diff(table.item_starts.numpy()).reshape(n_items, n_tags).sum(1).astype(np.int64),
        posterior=yes,
        workers=workers_of(table, opinion.posterior),
        explain=lambda: _of_tags(why_of(table, opinion.posterior, flat, 1 - flat, tilt), n_tags),
        state=State(claims, opinion.fits, settled),
        copies=copies,
    )


def as_questions(claims: Claims) -> Claims:
    """Claims of kind "classes" (no and yes) about items that are questions: item * tags + tag."""
    assert claims.tag is not None
    n_tags = len(claims.classes)
    names = np.arange(len(claims.items) * n_tags)
    return Claims(claims.item * n_tags + claims.tag, claims.worker, claims.label, names, claims.workers, ANSWERS)


def _commonness(posterior: Tensor, n_tags: int) -> Tensor:
    """float[n_items * n_tags, 2]: log odds of each tag's share of yes against the share over all tags."""
    yes = posterior[:, 1].double().reshape(-1, n_tags)
    whole = yes.mean().clamp(1e-6, 1 - 1e-6)
    share = (yes.sum(0) + 2.0 * whole) / (len(yes) + 2.0)
    tilt = torch.stack([(1 - share).log() - (1 - whole).log(), share.log() - whole.log()], 1)
    return tilt.repeat(len(yes), 1)


def _of_tags(why: Why, n_tags: int) -> Why:
    """Rows by question turned into rows by item and tag."""
    reason = np.where(why.reason == "features", "prior", why.reason)
    return Why(why.item // n_tags, why.worker, why.label, reason, why.log_odds, why.item % n_tags)
