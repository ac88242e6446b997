"""`match` and `score_pairs`: from records to scored pairs and clusters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import UsageError
from gradbase.tables._contents import column_order, hashes_of_texts
from gradbase.tables.match import _decide, _network, _relations
from gradbase.tables.match._blocking import candidates
from gradbase.tables.match._features import WHOLE, Features, compare
from gradbase.tables.match._types import (
    BlockingStatistics,
    Config,
    Floats,
    Ints,
    Labelled,
    Records,
    Result,
    ScoredPairs,
)
from gradbase.tables.match._unsupervised import fit_mixture

LABELS_LEAST = 30  # of matches, and of other pairs, for training; with fewer, labels only anchor the mixture

Explain = Callable[[Ints], tuple[Floats, Floats]]


def match(
    records_a: Records, records_b: Records | None = None, labelled: Labelled | None = None, config: Config | None = None
) -> Result:
    """Find the records of two tables, or of one, that are about the same thing.

    The two tables have the same columns, in any order. `labelled` holds pairs by id (0 or 1; a pair given twice counts
    with its mean): they train the matcher and are decided as labelled. With fewer than LABELS_LEAST of either kind, or
    none, the matcher learns from the records alone. Answers do not depend on the order of rows or columns, on
    the names of columns, nor on ids.

    Raises UsageError for columns that differ and for labelled ids that are not there.
    """
    config = config or Config()
    start = time.process_time()
    table = _Table.of(records_a, records_b)
    known = table.labelled(labelled)
    found = table.keys(*candidates(table.left, table.right, config.candidates_max))
    blocking = _blocking(records_a, records_b, found, known, time.process_time() - start)
    return _result(table, np.unique(np.concatenate([found, *known[:1]])), known, config, blocking)


def score_pairs(
    records_a: Records,
    records_b: Records | None,
    left: Sequence[int] | Ints,
    right: Sequence[int] | Ints,
    labelled: Labelled | None = None,
    config: Config | None = None,
) -> Result:
    """As `match`, for given candidate pairs: rows of A and of B (of A, for one table).

    `Result.pairs` has the given pairs, in their order. Labelled pairs need not be among them.
    """
    config = config or Config()
    table = _Table.of(records_a, records_b)
    known = table.labelled(labelled)
    rows = _rows(left, len(records_a), "left"), _rows(right, len(table.rank_b), "right")
    if len(rows[0]) != len(rows[1]):
        raise UsageError(f"there are {len(rows[0])} left rows and {len(rows[1])} right rows", "a pair has one of each")
    asked = table.keys_of_rows(*rows)
    return _result(table, np.unique(np.concatenate([asked, known[0]])), known, config, None, asked)


def _rows(rows: Sequence[int] | Ints, length: int, side: str) -> Ints:
    array = np.asarray(rows, dtype=np.int64).reshape(-1)
    wrong = array[(array < 0) | (array >= length)]
    if len(wrong):
        raise UsageError(f"{side} row {wrong[0]} of a pair is not there", f"expected 0 to {length - 1}")
    return array


_Known = tuple[Ints, Floats]  # keys of labelled pairs, sorted, and their targets (0 to 1)


@dataclass(frozen=True)
class _Table:
    """The records in an order that their contents decide, so that the user's order changes nothing.

    `rank_a[row]`: the place of the user's row; `right` is None for one table. A pair is a key: left * width + right.
    """

    records_a: Records
    records_b: Records | None
    left: Records
    right: Records | None
    rank_a: Ints
    rank_b: Ints

    @classmethod
    def of(cls, a: Records, b: Records | None) -> _Table:
        if b is not None and set(a.columns) != set(b.columns):
            raise UsageError(
                f"tables {a.name!r} and {b.name!r} have different columns: {', '.join(a.columns)} and "
                f"{', '.join(b.columns)}",
                "rename or drop columns so that both have the same",
            )
        names = _columns_in_order(a, b)
        left, rank_a = _sorted(a, names)
        right, rank_b = (None, rank_a) if b is None else _sorted(b, names)
        return cls(a, b, left, right, rank_a, rank_b)

    @property
    def other(self) -> Records:
        return self.left if self.right is None else self.right

    @property
    def width(self) -> int:
        return max(len(self.other), 1)

    def keys(self, left: Ints, right: Ints) -> Ints:
        """Keys of pairs in the sorted order; of one table, the lower record is the left one."""
        if self.right is None:
            left, right = np.minimum(left, right), np.maximum(left, right)
        return left * self.width + right

    def keys_of_rows(self, left: Ints, right: Ints) -> Ints:
        """Keys of pairs of the user's rows."""
        if self.right is None and np.any(left == right):
            name = self.records_a.ids[left[left == right][0]]
            raise UsageError(f"a pair of record {name!r} with itself", "drop the pair: it says nothing")
        return self.keys(self.rank_a[left], self.rank_b[right])

    def labelled(self, labelled: Labelled | None) -> _Known:
        if labelled is None or not len(labelled):
            return np.zeros(0, np.int64), np.zeros(0)
        left = _found(labelled.left, self.records_a)
        right = _found(labelled.right, self.records_a if self.records_b is None else self.records_b)
        keys, where = np.unique(self.keys_of_rows(left, right), return_inverse=True)
        return keys, np.bincount(where, labelled.label) / np.bincount(where)


def _columns_in_order(a: Records, b: Records | None) -> list[str]:
    """By what they hold: a whole record is read in this order, and networks start from it."""
    names = sorted(a.columns)
    tables = [a] if b is None else [a, b]
    texts = ([v or "" for t in tables for v in t.values[t.columns.index(name)]] for name in names)
    return [names[place] for place in column_order(np.stack([*map(hashes_of_texts, texts)], axis=1))]


def _sorted(records: Records, names: Sequence[str]) -> tuple[Records, Ints]:
    columns = [records.columns.index(name) for name in names]
    rows = list(zip(*(records.values[c] for c in columns), records.ids, strict=True))
    order = sorted(range(len(rows)), key=lambda i: tuple((v is not None, v or "") for v in rows[i]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    values = tuple(tuple(records.values[c][i] for i in order) for c in columns)
    return Records(records.name, tuple(names), values, tuple(records.ids[i] for i in order)), rank


def _found(ids: Sequence[str], records: Records) -> Ints:
    rows = {name: i for i, name in enumerate(records.ids)}
    missing = next((i for i in ids if i not in rows), None)
    if missing is not None:
        raise UsageError(
            f"a labelled pair names {missing!r}, which is no id of table {records.name!r}",
            "drop the pair, or correct it",
        )
    return np.array([rows[i] for i in ids], dtype=np.int64)


def _blocking(a: Records, b: Records | None, found: Ints, known: _Known, cpu_s: float) -> BlockingStatistics:
    matches = known[0][known[1] > 0.5]
    recall = float(np.isin(matches, found).mean()) if len(matches) else None
    return BlockingStatistics(len(a), len(a if b is None else b), len(found), recall, cpu_s)


# -- scoring


@dataclass(frozen=True)
class _Scored:
    log_odds: Floats
    names: tuple[tuple[str, str], ...]
    explain: Explain


def _result(
    table: _Table,
    keys: Ints,
    known: _Known,
    config: Config,
    blocking: BlockingStatistics | None,
    asked: Ints | None = None,
) -> Result:
    """Score all pairs `keys` together, decide, and hand out those asked for in the order asked."""
    left, right = keys // table.width, keys % table.width
    targets = np.full(len(keys), np.nan)
    targets[np.searchsorted(keys, known[0])] = known[1]
    trained = _enough(targets)
    scored = (_supervised if trained else _unsupervised)(table, left, right, targets, config)
    matched, threshold, single = _decided(table, scored.log_odds, left, right, targets, trained, config)
    groups = _clustered(table, left, right, scored.log_odds, matched, targets)
    shown = np.arange(len(keys)) if asked is None else np.searchsorted(keys, asked)
    return Result(
        table.records_a,
        table.records_b,
        _handed_out(table, left, right, shown, scored, matched, threshold),
        groups,
        single,
        "labels" if trained else "no labels",
        blocking,
    )


def _enough(targets: Floats) -> bool:
    return bool((targets > 0.5).sum() >= LABELS_LEAST and (targets <= 0.5).sum() >= LABELS_LEAST)


def _handed_out(
    table: _Table, left: Ints, right: Ints, shown: Ints, scored: _Scored, matched: NDArray[np.bool_], threshold: float
) -> ScoredPairs:
    """In the user's rows."""
    row_a, row_b = np.argsort(table.rank_a), np.argsort(table.rank_b)
    return ScoredPairs(
        row_a[left[shown]],
        row_b[right[shown]],
        scored.log_odds[shown],
        matched[shown],
        float(1 / (1 + np.exp(-threshold))),
        scored.names,
        lambda numbers: scored.explain(shown[numbers]),
    )


def _unsupervised(table: _Table, left: Ints, right: Ints, targets: Floats, config: Config) -> _Scored:
    if not len(left):
        return _Scored(np.zeros(0), (), lambda rows: (np.zeros((len(rows), 0)), np.zeros(len(rows))))
    features = compare(table.left, table.other, left, right)
    mixture = fit_mixture(features, left, right, exclusive=_exclusive(table, config), known=targets)
    return _Scored(
        mixture.log_odds, mixture.names, lambda rows: (mixture.parts[rows], np.full(len(rows), mixture.intercept))
    )


def _exclusive(table: _Table, config: Config) -> bool:
    """Whether candidates of a record compete: in one table, several records may be about the same thing."""
    return config.other_pairs and (
        config.one_to_one == "yes" or (config.one_to_one == "auto" and table.right is not None)
    )


def _supervised(table: _Table, left: Ints, right: Ints, targets: Floats, config: Config) -> _Scored:
    """Networks on similarities, then a logistic model of their scores and of what other pairs say, cross-fitted."""
    features = compare(table.left, table.other, left, right)
    mixture = fit_mixture(features, left, right, exclusive=_exclusive(table, config))
    known = np.flatnonzero(~np.isnan(targets))
    folds = np.full(len(left), -1, dtype=np.int64)
    folds[known] = _network.folds_of(len(known), config.seed)
    lessons = _network.Lessons.of(targets, mixture.guesses, folds, config.seed)
    matcher = _network.train(features.values, lessons, config)
    scores = matcher.log_odds(features.values, folds)
    labels = _relations.Labels(folds, np.nan_to_num(targets))
    evidence = _relations.evidence(scores, mixture.log_odds, left, right, labels)
    if not config.other_pairs:
        evidence[:, _relations.OWN :] = 0.0
    return _Judge.fit(features, matcher, scores, evidence, folds, lessons).scored()


@dataclass(frozen=True)
class _Judge:
    """The last word on each pair: one logistic model for pairs without a label, one a fold for those with one."""

    features: Features
    matcher: _network.Matcher
    scores: Floats
    evidence: Floats
    folds: Ints
    models: Mapping[int, _relations.Logistic]

    @classmethod
    def fit(
        cls,
        features: Features,
        matcher: _network.Matcher,
        scores: Floats,
        evidence: Floats,
        folds: Ints,
        lessons: _network.Lessons,
    ) -> _Judge:
        models = {}
        weights = lessons.weights()
        for fold in range(-1, _network.FOLDS):
            seen = (lessons.folds != fold) | (fold < 0)
            rows = lessons.rows[seen]
            models[fold] = _relations.fit_logistic(evidence[rows], lessons.targets[seen], weights[seen])
        return cls(features, matcher, scores, evidence, folds, models)

    def scored(self) -> _Scored:
        own = tuple(zip(self.features.columns, self.features.names, strict=True))
        names = (*own, *((WHOLE, name) for name in ("limit of certainty", *_relations.NAMES[1:])))
        return _Scored(self._per_model(lambda m, rows: m.log_odds(self.evidence[rows])), names, self.explain)

    def _per_model(self, ask: Callable[[_relations.Logistic, Ints], Floats]) -> Floats:
        answer = np.zeros(len(self.folds))
        for fold, model in self.models.items():
            rows = np.flatnonzero(self.folds == fold)
            answer[rows] = ask(model, rows)
        return answer

    def explain(self, rows: Ints) -> tuple[Floats, Floats]:
        """The networks' log-odds split over features; the rest is linear as it is."""
        parts, base = self.matcher.contributions(self.features.values[rows], self.folds[rows])
        models = [self.models[fold] for fold in self.folds[rows].tolist()]
        slope = np.array([m.weights[0] / m.scale[0] for m in models])
        limit = (self.evidence[rows, 0] - self.scores[rows]) * slope
        others = np.array([m.contributions(e)[1:] for m, e in zip(models, self.evidence[rows], strict=True)])
        intercept = np.array([m.intercept - m.mean[0] * m.weights[0] / m.scale[0] for m in models]) + base * slope
        others = others.reshape(len(rows), len(_relations.NAMES) - 1)
        return np.column_stack([parts * slope[:, None], limit, others]), intercept


# -- decisions


def _decided(
    table: _Table, log_odds: Floats, left: Ints, right: Ints, targets: Floats, trained: bool, config: Config
) -> tuple[NDArray[np.bool_], float, bool]:
    """Which pairs match, the threshold (log-odds) and whether a record was kept to one partner."""
    known = ~np.isnan(targets)
    threshold = _threshold(log_odds, targets, known, trained, config)
    matched = log_odds > threshold
    single = config.one_to_one == "yes"
    if config.one_to_one == "auto" and config.other_pairs and table.right is not None:
        single = _decide.seldom_two(left, right, known & (targets > 0.5))
    if single:
        matched = _decide.keep_best(matched, log_odds, left, right)
    return np.where(known, targets > 0.5, matched), threshold, single


def _threshold(log_odds: Floats, targets: Floats, known: NDArray[np.bool_], trained: bool, config: Config) -> float:
    if config.threshold is not None:
        share = min(max(config.threshold, 1e-12), 1 - 1e-12)
        return float(np.log(share / (1 - share)))
    return _decide.choose_threshold(log_odds[known], targets[known] > 0.5) if trained else 0.0


def _clustered(
    table: _Table, left: Ints, right: Ints, log_odds: Floats, matched: NDArray[np.bool_], targets: Floats
) -> tuple[str, ...]:
    """The cluster of each of the user's records of A, then of B."""
    shift = 0 if table.right is None else len(table.left)
    nodes = shift + len(table.other)
    weight = np.where(np.isnan(targets), log_odds, np.where(targets > 0.5, 1e3, -1e3))
    groups = _decide.clusters(nodes, left, right + shift, weight, matched)
    if table.right is None:
        return _decide.names_of(groups[table.rank_a], table.records_a.ids)
    assert table.records_b is not None
    rows = np.concatenate([table.rank_a, shift + table.rank_b])
    members = [f"{t.name}:{i}" for t in (table.records_a, table.records_b) for i in t.ids]
    return _decide.names_of(groups[rows], members)
