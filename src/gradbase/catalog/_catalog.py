"""The catalogue: measured statistics of operators, tiers, devices and runs, in one file."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from gradbase.catalog._database import Damage, Database
from gradbase.catalog._query import QueryResult, run_query
from gradbase.catalog._records import (
    DECODED_COLUMNS,
    OperatorStatistics,
    RunRecord,
    TierStatistics,
    decode_statistics,
    encode_outputs,
    merge,
    merge_all,
)
from gradbase.catalog._tables import PROFILES, RUNS, STATISTICS, TIERS

# Names bound in one SELECT: well below the 999 that SQLite allowed before 3.32.
_KEYS_PER_QUERY = 900

_SELECT = f"SELECT {', '.join(DECODED_COLUMNS)} FROM statistics WHERE device = ? AND torch_version = ? AND threads = ?"


def default_path() -> Path:
    """gradbase/catalog.sqlite in the user's cache directory ($XDG_CACHE_HOME, else ~/.cache)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "gradbase" / "catalog.sqlite"


class Catalog:
    """Measured statistics in one SQLite file; opening it creates it.

    Several processes and threads may use one file at once. A damaged file is set aside as NAME.damaged-N with
    a warning on the logger "gradbase.catalog" and rebuilt. Every method raises CatalogError when the file
    cannot be used (no permission, disk full, locked for half a minute). `clock` gives seconds since 1970.
    """

    def __init__(self, path: Path | str | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.path = (default_path() if path is None else Path(path)).expanduser().resolve()
        self._clock = clock
        self._database = Database(self.path)

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._database.close()

    def record(self, entries: Iterable[OperatorStatistics], *, device: str, torch_version: str, threads: int) -> None:
        """Add measurements, merged with what is stored (see `merge`), in one transaction."""
        new = merge_all(entries)
        if not new:
            return
        where = (device, torch_version, threads)
        rows = STATISTICS.insert_sql(replace=True)

        def work(connection: sqlite3.Connection) -> None:
            stored = _lookup(connection, new, where)
            merged = (merge(stored[key], entry) if key in stored else entry for key, entry in new.items())
            connection.executemany(rows, [_encode(entry, where, self._now()) for entry in merged])

        self._database.write(work)

    def correct(self, entries: Iterable[OperatorStatistics], *, device: str, torch_version: str, threads: int) -> None:
        """Put measurements in the place of what is stored, which was found to be wrong, in one transaction."""
        where = (device, torch_version, threads)
        rows = [_encode(entry, where, self._now()) for entry in entries]
        self._database.write(lambda connection: connection.executemany(STATISTICS.insert_sql(replace=True), rows))

    def lookup(
        self, signatures: Iterable[str], device: str, torch_version: str, threads: int
    ) -> dict[str, OperatorStatistics]:
        """What is known of these signatures; a signature that was never measured is absent."""
        wanted = dict.fromkeys(signatures)
        return self._database.read(lambda connection: _lookup(connection, wanted, (device, torch_version, threads)))

    def lookup_targets(
        self, targets: Iterable[str], device: str, torch_version: str, threads: int
    ) -> dict[str, OperatorStatistics]:
        """Everything measured for these targets, by signature: what `cost` learns from."""
        wanted = dict.fromkeys(targets)
        where = (device, torch_version, threads)
        return self._database.read(lambda connection: _lookup(connection, wanted, where, column="op"))

    def record_tier(self, tier: TierStatistics) -> None:
        """Keep a measured tier; the last measurement of a medium replaces the one before."""
        values = (
            tier.medium,
            tier.name,
            tier.write_bytes_per_us,
            tier.read_bytes_per_us,
            tier.latency_us,
            tier.compute_tax,
            int(tier.duplex),
            tier.alignment_bytes,
            self._now(),
        )
        self._database.write(lambda connection: connection.execute(TIERS.insert_sql(replace=True), values))

    def lookup_tier(self, medium: str) -> TierStatistics | None:
        """The tier of this medium (`medium_of`), None if never measured."""
        sql = f"SELECT {', '.join(TIERS.column_names)} FROM tiers WHERE medium = ?"
        return self._database.read(lambda connection: _decode_tier(connection.execute(sql, (medium,)).fetchone()))

    def record_run(self, run: RunRecord) -> None:
        """Add a finished run to the history."""
        values = tuple(_storable(getattr(run, name)) for name in RUNS.column_names if name != "id")
        self._database.write(lambda connection: connection.execute(RUNS.insert_sql(replace=False), values))

    def record_profile(self, device: str, threads: int, document: str) -> None:
        """Keep a measured device profile (JSON); the last one replaces the one before."""
        values = (device, threads, document, self._now())
        self._database.write(lambda connection: connection.execute(PROFILES.insert_sql(replace=True), values))

    def lookup_profile(self, device: str, threads: int) -> str | None:
        """The JSON kept by `record_profile`, None if there is none."""
        sql = "SELECT document FROM profiles WHERE device = ? AND threads = ?"
        row = self._database.read(lambda connection: connection.execute(sql, (device, threads)).fetchone())
        return None if row is None else str(row[0])

    def query(self, sql: str) -> QueryResult:
        """Column names and rows of one SELECT over `statistics`, `tiers`, `runs` and `profiles`.

        Raises UsageError, with SQLite's words and the tables, when the SQL is wrong or would write.
        """
        return self._database.read(lambda connection: run_query(self.path, sql))

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), timezone.utc).isoformat(timespec="seconds")


def _lookup(
    connection: sqlite3.Connection, keys: Iterable[str], where: tuple[str, str, int], column: str = "signature"
) -> dict[str, OperatorStatistics]:
    found: dict[str, OperatorStatistics] = {}
    for chunk in _chunks(keys):
        sql = f"{_SELECT} AND {column} IN ({', '.join('?' * len(chunk))})"
        for row in connection.execute(sql, (*where, *chunk)):
            entry = _decode(row)
            found[entry.signature] = entry
    return found


def _storable(value: Any) -> Any:
    """A file name that is not valid UTF-8 reaches Python as surrogates, which SQLite does not take."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _chunks(keys: Iterable[str]) -> Iterator[tuple[str, ...]]:
    remaining = iter(keys)
    while chunk := tuple(islice(remaining, _KEYS_PER_QUERY)):
        yield chunk


def _decode(row: Sequence[Any]) -> OperatorStatistics:
    try:
        return decode_statistics(row)
    except (TypeError, ValueError) as error:
        raise Damage(f"a row of statistics is not readable: {error}") from error


def _decode_tier(row: Sequence[Any] | None) -> TierStatistics | None:
    if row is None:
        return None
    medium, name, write, read, latency_us, tax, duplex, alignment_bytes, measured_at = row
    try:
        return TierStatistics(
            medium, name, write, read, latency_us, tax, bool(duplex), alignment_bytes, measured_at=measured_at
        )
    except (TypeError, ValueError) as error:
        raise Damage(f"a row of tiers is not readable: {error}") from error


def _encode(entry: OperatorStatistics, where: tuple[str, str, int], now: str) -> tuple[Any, ...]:
    """A row in the order of STATISTICS' columns."""
    return (
        entry.op,
        entry.signature,
        *where,
        entry.count,
        float(entry.time_us),
        float(entry.spread_us),
        entry.scratch_bytes,
        encode_outputs(entry.outputs),
        entry.details,
        entry.flops,
        entry.moved_bytes,
        now,
    )
