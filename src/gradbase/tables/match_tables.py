"""`match` as an operator over tables: records in; pairs, clusters, claims and one golden table out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbase.common.errors import TableError
from gradbase.tables._columns import table
from gradbase.tables.evaluate import Evaluation, evaluate_values
from gradbase.tables.io import Role, Workspace, open_scan, read_roles, read_texts

if TYPE_CHECKING:
    from gradbase.tables.match import Config, Labelled, Records, Result

_PAIR = (
    Role("left", ("a", "id_a", "a_id", "left_id", "ltable", "ltable_id", "l", "first")),
    Role("right", ("b", "id_b", "b_id", "right_id", "rtable", "rtable_id", "r", "second")),
    Role("label", ("match", "is_match", "same", "gold")),
)
_MATCH_WORDS = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}


@dataclass(frozen=True)
class MatchTables:
    """What `match` returns; every table is an Arrow table.

    pairs: left, right (ids), probability, matched.
    clusters: table, record, cluster: one row a record.
    claims: object (cluster), attribute, source, value: what `fuse` reads.
    golden: cluster, records, and for every column its value, probability and reason; None when it was not asked for.
    why: left, right, feature, column, log_odds.
    """

    pairs: Any
    clusters: Any
    claims: Any
    golden: Any
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    evaluation: Evaluation | None = None
    result: Result | None = field(default=None, repr=False)

    @cached_property
    def why(self) -> Any:
        assert self.result is not None
        return table(self.result.why_table())

    def figures(self) -> list[tuple[str, int, str]]:
        """Counts for people: name, count, more."""
        counts = self.counts
        pairs = f"of {counts['pairs_possible']:,} possible"
        return [
            ("Records", counts["records"], f"in {counts['clusters']:,} clusters"),
            ("Candidate pairs", counts["candidates"], pairs),
            ("Matches", counts["matched"], "pairs"),
        ]

    def hardest(self, count: int) -> Any:
        """The pairs whose probability is closest to one half."""
        distance = np.abs(self.pairs["probability"].to_numpy() - 0.5)
        return self.pairs.take(np.argsort(distance, kind="stable")[:count])

    def html(self, title: str = "Matching") -> str:
        """The report: one page that needs no network."""
        from gradbase.tables.report import match_page

        return match_page(self, title)


def matched(
    a: Any, b: Any, identity: str | None, labelled: Any, gold: Any, config: Config
) -> tuple[Result, Evaluation | None]:
    """The result of one table, of two, or of a table of pairs, beside gold if there is any. Raises TableError."""
    from gradbase.tables import match

    columns = read_all(a)
    if b is None and _are_pairs(columns):
        return _matched_pairs(columns, labelled, gold, config)
    names = table_names(a, b)
    left = records_of(columns, names[0], identity)
    right = None if b is None else records_of(read_all(b), names[1], identity)
    known, truth = (None if pairs is None else read_labelled(pairs) for pairs in (labelled, gold))
    result = match.match(left, right, known, config)
    return result, None if truth is None else compare_pairs(result, truth)


def read_all(source: Any) -> dict[str, list[str | None]]:
    """All columns of an input, as texts. Raises TableError."""
    with Workspace() as workspace:
        scan = open_scan(source, workspace)
        columns = read_texts(scan, workspace)
    if not len(next(iter(columns.values()))):
        raise TableError(f"{scan.name} has no rows", "expected one row a record")
    return columns


def _are_pairs(columns: Mapping[str, Any]) -> bool:
    """Whether a row holds two records: every column but the label is l_NAME or r_NAME."""
    sides = [name[:2] for name in columns if name != "label"]
    return set(sides) == {"l_", "r_"} and sides.count("l_") == sides.count("r_")


def _matched_pairs(
    columns: Mapping[str, list[str | None]], labelled: Any, gold: Any, config: Config
) -> tuple[Result, Evaluation | None]:
    from gradbase.tables.match import score_pair_tables

    result = score_pair_tables(columns, [] if labelled is None else [read_all(labelled)], config)
    if gold is None:
        return result, None
    truth = read_all(gold)
    if "label" not in truth or {n: c for n, c in truth.items() if n != "label"} != {
        name: column for name, column in columns.items() if name != "label"
    }:
        raise TableError("gold of a table of pairs has other rows than the pairs", "expected the same and `label`")
    answers = [_answer(label, row) for row, label in enumerate(truth["label"], start=1)]
    found = list(zip(result.pairs.probability.tolist(), result.pairs.matched.tolist(), strict=True))
    return result, _compare(found, answers)


def _answer(label: str | None, row: int) -> int:
    if str(label).lower() not in _MATCH_WORDS:
        raise TableError(f"label {label!r} in row {row} is neither 1 nor 0", "1 is a match")
    return _MATCH_WORDS[str(label).lower()]


def records_of(columns: dict[str, list[str | None]], name: str, identity: str | None) -> Records:
    """Records with ids from the column `identity` (default: one called id, if there is one), else their numbers.

    Raises TableError, UsageError."""
    from gradbase.tables.match import Records

    if identity is not None and identity not in columns:
        raise TableError(f"table {name!r} has no column {identity!r}", f"found {', '.join(map(repr, columns))}")
    chosen = identity or next((column for column in columns if column.strip().lower() == "id"), None)
    ids = columns.pop(chosen) if chosen is not None else None
    if not columns:
        raise TableError(f"table {name!r} has no columns to compare", "expected one or more beside the id")
    if all(cell is None for column in columns.values() for cell in column):
        raise TableError(f"table {name!r} has no values to compare", "all cells beside the id are missing")
    return Records.from_columns(columns, ids, name)


def table_names(a: Any, b: Any) -> tuple[str, str]:
    """What the two tables are called in clusters and claims: the names of their files, where these differ."""
    names = [Path(str(each)).name.split(".")[0] if isinstance(each, (str, Path)) else "" for each in (a, b)]
    return (names[0], names[1]) if all(names) and names[0] != names[1] else ("a", "b")


def read_labelled(source: Any) -> Labelled:
    """Pairs whose answer is known: left, right (ids) and label. Raises TableError, UsageError."""
    from gradbase.tables.match import Labelled

    with Workspace() as workspace:
        scan = open_scan(source, workspace)
        read = read_roles(scan, workspace, _PAIR)
    answers: dict[tuple[str, str], int] = {}
    for row, (left, right, label) in enumerate(zip(read["left"], read["right"], read["label"], strict=True), start=1):
        if left is None or right is None:
            raise TableError(f"row {row} of {scan.name} lacks an id", "expected two ids and 1 or 0")
        answer = _answer(label, row)
        if answers.setdefault((left, right), answer) != answer:
            raise TableError(f"the pair {left!r}, {right!r} is labelled twice, differently, in {scan.name}", "keep one")
    if not answers:
        raise TableError(f"{scan.name} has no rows", "expected one row a pair")
    lefts, rights = zip(*answers, strict=True)
    return Labelled(lefts, rights, tuple(answers.values()))


def compare_pairs(result: Result, gold: Labelled) -> Evaluation:
    """Decisions beside labelled pairs; a pair that is no candidate was decided to be different."""
    pairs = result.pairs_table()
    rows = zip(pairs["left"], pairs["right"], pairs["probability"], pairs["matched"], strict=True)
    found = {(left, right): (p, m) for left, right, p, m in rows}
    if result.records_b is None:
        found |= {(right, left): answer for (left, right), answer in found.items()}
    return _compare([found.get(pair, (0.0, False)) for pair in zip(gold.left, gold.right, strict=True)], gold.label)


def _compare(answers: Sequence[tuple[float, bool]], truths: Sequence[int]) -> Evaluation:
    """Probabilities of a match, and decisions, beside what is true."""
    decided = [int(matched) for _, matched in answers]
    match, truth = np.array([probability for probability, _ in answers]), np.array(truths)
    probability = np.where(np.array(decided) == 1, match, 1 - match)
    likelihood = np.where(truth == 1, match, 1 - match)
    return evaluate_values(decided, probability, truth.tolist(), probability_of_gold=likelihood)


def match_tables_of(
    result: Result, claims: Mapping[str, Sequence[Any]], evaluation: Evaluation | None
) -> MatchTables:
    """The tables of a result, but for the golden one."""
    clusters = table(result.clusters_table())
    return MatchTables(
        pairs=table(result.pairs_table()),
        clusters=clusters,
        claims=table(claims),
        golden=None,
        counts={
            "records": clusters.num_rows,
            "clusters": len(set(result.clusters)),
            "candidates": len(result.pairs),
            "pairs_possible": _possible(result),
            "matched": int(result.pairs.matched.sum()),
        },
        notes=(),
        evaluation=evaluation,
        result=result,
    )


def _possible(result: Result) -> int:
    """How many pairs there are to look at: those that were given, or all."""
    if result.blocking is None:
        return len(result.pairs)
    left = len(result.records_a)
    return left * (left - 1) // 2 if result.records_b is None else left * len(result.records_b)


def golden_table(clusters: Any, columns: Sequence[str], truths: Any, why: Any) -> Any:
    """A row per cluster: what `fuse` made of the claims of its records, with a probability and a reason a cell.

    truths, why: as of `FuseTables`. A cell that no record fills is empty.
    """
    names = sorted(set(clusters["cluster"].to_pylist()), key=_natural)
    place = {name: row for row, name in enumerate(names)}
    records = [0] * len(names)
    for name in clusters["cluster"].to_pylist():
        records[place[name]] += 1
    found: dict[str, list[Any]] = {"cluster": names, "records": records}
    for column in columns:
        found |= {column: [None] * len(names), f"{column}_probability": [None] * len(names)}
        found |= {f"{column}_reason": [None] * len(names)}
    reasons = _reasons(why)
    for row in truths.to_pylist():
        at, column = place[str(row["object"])], str(row["attribute"])  # names of digits are read as numbers
        said = found[column][at]
        found[column][at] = str(row["value"]) if said is None else f"{said}; {row['value']}"
        before = found[f"{column}_probability"][at]
        found[f"{column}_probability"][at] = row["probability"] if before is None else min(before, row["probability"])
        found[f"{column}_reason"][at] = reasons.get((str(row["object"]), column))
    return table(found)


def _reasons(why: Any) -> dict[tuple[str, str], str]:
    """Who spoke for the value and who against it, with what each adds to its log-odds."""
    told: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for row in why.to_pylist():
        if row["source"] is not None:
            said = f"{row['source']} says {row['value']!r} ({row['log_odds']:+.2f})"
            told.setdefault((str(row["object"]), str(row["attribute"])), []).append((-row["log_odds"], said))
    return {key: "; ".join(text for _, text in sorted(rows)) for key, rows in told.items()}


def _natural(name: str) -> tuple[int, str]:
    return (len(name) if name.isdigit() else 0, name)
