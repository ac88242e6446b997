"""What matching reads and writes: records, labelled pairs, a configuration; scored pairs, clusters, claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradbase.common.errors import UsageError
from gradbase.common.units import parse_memory

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, list[Any]]

ONE_TO_ONE = ("auto", "yes", "no")

_CHUNK_PAIRS = 2_000


@dataclass(frozen=True)
class Records:
    """A table of records: `values[column][row]` is a text or None (missing), `ids[row]` a text that is unique.

    `name` says which table it is, in clusters and as the source of its claims.
    """

    name: str
    columns: tuple[str, ...]
    values: tuple[tuple[str | None, ...], ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.columns) == len(self.values)
        if not self.columns:
            raise UsageError(f"table {self.name!r} has no columns to compare", "expected one or more beside the id")
        for column, values in zip(self.columns, self.values, strict=True):
            if len(values) != len(self.ids):
                raise UsageError(
                    f"column {column!r} of table {self.name!r} has {len(values)} values for {len(self.ids)} ids"
                )
        _refuse_repeated(self.columns, f"column of table {self.name!r}")
        _refuse_repeated(self.ids, f"id of table {self.name!r}")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Sequence[object]], ids: Sequence[object] | None = None, name: str = "a"
    ) -> Records:
        """From columns of any values: texts are trimmed; None, NaN and empty texts are missing, 3.0 is "3".

        Without `ids`, records are numbered from 0. Raises UsageError for lengths that differ and ids that repeat.
        """
        length = len(next(iter(columns.values()), ()))
        named = tuple(str(i) for i in range(length)) if ids is None else tuple(text_of(i) or "" for i in ids)
        if "" in named:
            raise UsageError(f"row {named.index('') + 1} of table {name!r} has no id", "every record needs one")
        return cls(name, tuple(columns), tuple(tuple(map(text_of, v)) for v in columns.values()), named)


def text_of(value: object) -> str | None:
    """A cell as text; None for what is missing (None, NaN, NaT, empty)."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _refuse_repeated(names: Sequence[str], what: str) -> None:
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    first = next(n for n in names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
    raise UsageError(f"{what} {first!r} is there twice", "rename one, or drop the repeated rows")


@dataclass(frozen=True)
class Labelled:
    """Pairs whose answer is known: ids of the left and right table (of the same one, for one table), label 0 or 1."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    label: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.left) == len(self.right) == len(self.label):
            raise UsageError(
                f"labelled pairs have {len(self.left)} left ids, {len(self.right)} right ids, {len(self.label)} labels"
            )
        wrong = set(self.label) - {0, 1}
        if wrong:
            raise UsageError(f"label {sorted(wrong)[0]!r} of a labelled pair is not 0 or 1", "1 is a match")

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Config:
    """How to match; one default for all data.

    `other_pairs`: a pair is also judged by what is known or likely of other pairs of its records.
    `threshold`: the least probability of a match, or None to choose it (on labelled pairs held out, or 0.5).
    `one_to_one`: "yes" if a record has at most one partner in the other table, "no" if not, "auto" to read it off
    the labelled pairs and the data. `memory`: the budget of a training step, as `gradbase.compile` takes it.
    `members`: networks that are averaged. `candidates_max`: how many candidates blocking keeps of each record.
    """

    seed: int = 0
    threshold: float | None = None
    one_to_one: str = "auto"
    other_pairs: bool = True
    memory: str | int | float | None = None
    members: int = 2
    candidates_max: int = 10

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}, expected a probability from 0 to 1")
        if self.one_to_one not in ONE_TO_ONE:
            raise UsageError(f"one_to_one is {self.one_to_one!r}, expected one of {', '.join(ONE_TO_ONE)}")
        for name in ("members", "candidates_max"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 1 or more")
        parse_memory(self.memory)


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with their probability of being a match.

    `left`, `right`: rows of the tables, int64[pairs]. `log_odds`: float64[pairs], calibrated; `matched`: bool[pairs],
    the decision (a known label; else the threshold, and one-to-one where it holds). `explain(numbers of pairs)`
    gives float64[those, features], log-odds that add up, with the intercept (float64[those]), to `log_odds`;
    `features` names them as (column, feature): column "" is evidence from all columns or from other pairs.
    """

    left: Ints
    right: Ints
    log_odds: Floats
    matched: NDArray[np.bool_]
    threshold: float
    features: tuple[tuple[str, str], ...]
    explain: Callable[[Ints], tuple[Floats, Floats]]

    def __len__(self) -> int:
        return len(self.left)

    @property
    def probability(self) -> Floats:
        """float64[pairs], from `log_odds`."""
        return 1 / (1 + np.exp(-self.log_odds))


@dataclass(frozen=True)
class BlockingStatistics:
    """How candidates were found. `recall`: share of labelled matches among them, None without any."""

    records_left: int
    records_right: int
    candidates: int
    recall: float | None
    cpu_s: float


@dataclass(frozen=True)
class Result:
    """What was found. `clusters[i]` names the cluster of record i of A, then of B, by its first member.

    `one_to_one`: whether a record was kept to one partner. `learned_from`: "labels" or "no labels" (too few, or none).
    `blocking` is None where the candidates were given.
    """

    records_a: Records
    records_b: Records | None
    pairs: ScoredPairs
    clusters: tuple[str, ...]
    one_to_one: bool
    learned_from: str
    blocking: BlockingStatistics | None

    @property
    def _right(self) -> Records:
        return self.records_a if self.records_b is None else self.records_b

    def pairs_table(self) -> Columns:
        """left, right (ids), probability, matched."""
        return {
            "left": [self.records_a.ids[i] for i in self.pairs.left],
            "right": [self._right.ids[j] for j in self.pairs.right],
            "probability": self.pairs.probability.tolist(),
            "matched": self.pairs.matched.tolist(),
        }

    def clusters_table(self) -> Columns:
        """table, record (id), cluster: one row a record."""
        tables = [self.records_a] if self.records_b is None else [self.records_a, self.records_b]
        return {
            "table": [t.name for t in tables for _ in t.ids],
            "record": [i for t in tables for i in t.ids],
            "cluster": list(self.clusters),
        }

    def why_table(self, *, matched_only: bool = True, least: float = 0.0) -> Columns:
        """left, right, feature, column, log_odds: of each pair the intercept, then features by size.

        Features of less than `least` (log-odds) are left out. Of the pairs that were not matched only if asked.
        """
        chosen = np.flatnonzero(self.pairs.matched) if matched_only else np.arange(len(self.pairs))
        rows = [
            row for k in range(0, len(chosen), _CHUNK_PAIRS) for row in self._why(chosen[k : k + _CHUNK_PAIRS], least)
        ]
        names = ("left", "right", "feature", "column", "log_odds")
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def _why(self, chosen: Ints, least: float) -> Iterator[tuple[str, str, str, str, float]]:
        parts, intercepts = self.pairs.explain(chosen)
        for k, values, intercept in zip(chosen, parts, intercepts, strict=True):
            ids = self.records_a.ids[self.pairs.left[k]], self._right.ids[self.pairs.right[k]]
            yield (*ids, "intercept", "", float(intercept))
            for f in np.argsort(-np.abs(values), kind="stable"):
                if abs(values[f]) >= least:
                    column, feature = self.pairs.features[f]
                    yield (*ids, feature, column, float(values[f]))
