"""Which claims are worth buying: those that are expected to tell most of what is not known yet."""

from __future__ import annotations

import numpy as np

from gradbase.common.errors import UsageError
from gradbase.tables.fuse._types import Bools, Floats, Ints, Result, Table

SOURCES_TRIED = 24  # the best ones; an item is offered the best that has not spoken of it


def next_claims(result: Result, count: int) -> Table:
    """The `count` items with the highest expected gain, each with the source to ask: the mutual information of its
    claim and the truth, in nats. Raises UsageError when `count` is below one."""
    if count < 1:
        raise UsageError(f"{count} claims cannot be bought", "give a number above zero")
    truths, measured = result.truths, ~np.isnan(result.truths["low"])
    source, quality = _best_unused(result, measured)
    gain = np.where(measured, _measured_gain(truths["claims"], quality), _told_gain(truths, quality))
    gain = np.where(source >= 0, gain, -np.inf)
    # Equal gains: first what fewer speak of. Never by codes, which follow names.
    order = np.lexsort((truths["claims"], -np.round(gain, 9)))[:count]
    order = order[np.isfinite(gain[order])]
    return {
        "object": truths["object"][order],
        "attribute": truths["attribute"][order],
        "source": source[order],
        "gain": gain[order],
    }


def _best_unused(result: Result, measured: Bools) -> tuple[Ints, Floats]:
    """(truths,) of every row the source with the highest lower bound of quality that made no claim of its item, and
    that bound; -1 where all of the best have."""
    truths, why, sources = result.truths, result.why, result.sources
    source, bound = np.full(len(measured), -1, dtype=np.int64), np.zeros(len(measured))
    told = why["source"] >= 0
    attributes = int(max(truths["attribute"].max(initial=0), sources["attribute"].max(initial=0))) + 1
    width = int(sources["source"].max(initial=0)) + 1
    item = truths["object"] * attributes + truths["attribute"]
    used = np.unique((why["object"][told] * attributes + why["attribute"][told]) * width + why["source"][told])
    known = np.unique(sources["attribute"])
    row = np.where(np.isin(truths["attribute"], known), truths["attribute"], -1)
    for attribute in known:
        own = np.flatnonzero(sources["attribute"] == attribute)
        ranked = own[np.lexsort((-sources["claims"][own], -sources["low"][own]))][:SOURCES_TRIED]
        for position in ranked:
            free = (row == attribute) & (source < 0)
            free &= ~np.isin(item * width + sources["source"][position], used)
            source[free], bound[free] = sources["source"][position], sources["low"][position]
    return source, bound


def _told_gain(truths: Table, quality: Floats) -> Floats:
    """Of the winner, the runner-up and anything else: the entropy of the claim less that of the claim given the truth,
    for a source that is wrong in every way alike."""
    first = np.clip(truths["probability"], 0, 1)
    second = np.clip(truths["runner_up_probability"], 0, 1)
    shares = np.stack([first, second, np.clip(1 - first - second, 0, 1)])
    exact = np.clip(quality, 1 / 3, 1 - 1e-9)
    claimed = exact * shares + (1 - exact) / 2 * (1 - shares)
    given = -exact * np.log(exact) - (1 - exact) * np.log((1 - exact) / 2)
    gain: Floats = -(claimed * np.log(np.maximum(claimed, 1e-300))).sum(axis=0) - given
    return np.maximum(gain, 0.0)


def _measured_gain(claims: Ints, quality: Floats) -> Floats:
    """One more claim among n as good ones narrows a normal posterior by half of log(1 + 1 / n)."""
    gain: Floats = 0.5 * np.log1p(1 / np.maximum(claims, 1)) * quality
    return gain
