"""What goes in comes out, and what a user's SQL sees."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

import gradbase.catalog
from gradbase.catalog import (
    TABLES,
    Catalog,
    OperatorStatistics,
    RunRecord,
    TierStatistics,
    default_path,
    describe,
    medium_of,
    merge,
)
from gradbase.common.errors import CatalogError, UsageError

HERE = {"device": "cpu", "torch_version": "2.13.0", "threads": 2}
NOON = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def entry(number: int, op: str = "aten.mm.default") -> OperatorStatistics:
    return OperatorStatistics(
        op=op,
        signature=f"{op} f32[{number}]",
        time_us=1.5 * (number + 1),
        spread_us=0.25,
        count=3,
        scratch_bytes=64 * number,
        outputs=((4 * number, (number, 1)), (8, ())),
        details='{"workspace": 1}',
        flops=2**40 + number,
        moved_bytes=12 * number,
    )


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "catalog.sqlite", clock=lambda: NOON)


def test_thousands_of_statistics_come_back_as_recorded(catalog: Catalog) -> None:
    entries = [entry(number) for number in range(2500)]
    catalog.record(entries, **HERE)
    wanted = [e.signature for e in entries] + ["never measured"]
    assert catalog.lookup(iter(wanted), "cpu", "2.13.0", 2) == {e.signature: e for e in entries}


def test_recording_again_merges(catalog: Catalog) -> None:
    first, second = entry(1), replace(entry(1), time_us=9.0, count=7, scratch_bytes=1, details="")
    catalog.record([first], **HERE)
    catalog.record([second], **HERE)
    assert catalog.lookup([first.signature], "cpu", "2.13.0", 2) == {first.signature: merge(first, second)}


def test_one_signature_twice_in_one_recording_merges(catalog: Catalog) -> None:
    first, second = entry(1), replace(entry(1), time_us=9.0)
    catalog.record([first, second], **HERE)
    assert catalog.lookup([first.signature], "cpu", "2.13.0", 2) == {first.signature: merge(first, second)}


@pytest.mark.parametrize("elsewhere", [("cuda", "2.13.0", 2), ("cpu", "2.12.0", 2), ("cpu", "2.13.0", 1)])
def test_device_version_and_threads_are_part_of_the_key(catalog: Catalog, elsewhere: tuple[str, str, int]) -> None:
    catalog.record([entry(1)], **HERE)
    assert catalog.lookup([entry(1).signature], *elsewhere) == {}
    assert catalog.lookup_targets(["aten.mm.default"], *elsewhere) == {}


def test_lookup_by_target_finds_every_shape(catalog: Catalog) -> None:
    products = [entry(number) for number in range(5)]
    catalog.record([*products, entry(1, "aten.add.Tensor")], **HERE)
    found = catalog.lookup_targets(["aten.mm.default", "aten.none"], "cpu", "2.13.0", 2)
    assert found == {e.signature: e for e in products}


def test_statistics_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "odd name?#%.sqlite"
    with Catalog(path) as first:
        first.record([entry(1)], **HERE)
    with Catalog(path) as second:
        assert second.lookup([entry(1).signature], "cpu", "2.13.0", 2) == {entry(1).signature: entry(1)}


def test_a_recording_happens_whole_or_not_at_all(catalog: Catalog) -> None:
    def entries() -> object:
        yield entry(1)
        raise RuntimeError("the measurement failed")

    with pytest.raises(RuntimeError):
        catalog.record(entries(), **HERE)  # type: ignore[arg-type]
    assert catalog.query("SELECT count(*) FROM statistics")[1] == [(0,)]


def test_a_correction_replaces_what_was_measured(catalog: Catalog) -> None:
    catalog.record([entry(1), entry(2)], **HERE)
    corrected = replace(entry(1), time_us=7.0, count=3)
    catalog.correct([corrected], **HERE)
    wanted = [entry(1).signature, entry(2).signature]
    assert catalog.lookup(wanted, "cpu", "2.13.0", 2) == dict(zip(wanted, (corrected, entry(2)), strict=True))


def test_the_last_measurement_of_a_tier_counts(catalog: Catalog, tmp_path: Path) -> None:
    medium = medium_of(tmp_path)
    assert medium == medium_of(tmp_path.parent)
    assert catalog.lookup_tier(medium) is None
    first = TierStatistics(medium, str(tmp_path), 500.0, 900.0, 80.0, 0.1, True, 512)
    catalog.record_tier(first)
    catalog.record_tier(replace(first, write_bytes_per_us=250.0))
    found = catalog.lookup_tier(medium)
    assert found == replace(first, write_bytes_per_us=250.0, measured_at="2027-01-15T08:00:00+00:00")
    tier = found.tier()
    assert (tier.write_bytes_per_us, tier.read_bytes_per_us, tier.alignment_bytes) == (250.0, 900.0, 512)
    assert (tier.duplex, tier.source) == (True, "measured")


def test_estimates_can_be_compared_with_outcomes_by_sql(catalog: Catalog) -> None:
    run = RunRecord("gpt.py", "ab12", 2000, 1900, 1950, 100.0, 110.0, 5, "2027-01-15T08:00:00+00:00")
    catalog.record_run(run)
    catalog.record_run(replace(run, recipe="mlp.py", budget_bytes=None, measured_peak_bytes=None))
    names, rows = catalog.query(
        "SELECT recipe, budget_bytes, median_step_time_us / predicted_time_us AS error FROM runs ORDER BY id"
    )
    assert names == ("recipe", "budget_bytes", "error")
    assert rows == [("gpt.py", 2000, 1.1), ("mlp.py", None, 1.1)]


def test_a_recipe_whose_name_is_no_utf8_is_recorded(catalog: Catalog) -> None:
    catalog.record_run(RunRecord("gpt\udcff.py", "ab12", None, 1, None, 1.0, 1.0, 1, "now"))
    assert catalog.query("SELECT recipe FROM runs")[1] == [("gpt\\udcff.py",)]


def test_a_profile_is_kept_per_device_and_threads(catalog: Catalog) -> None:
    catalog.record_profile("epyc", 2, "{}")
    catalog.record_profile("epyc", 2, '{"a": 1}')
    assert catalog.lookup_profile("epyc", 2) == '{"a": 1}'
    assert catalog.lookup_profile("epyc", 4) is None


def test_a_closed_catalogue_says_so(catalog: Catalog) -> None:
    catalog.close()
    catalog.close()
    with pytest.raises(CatalogError, match="it was closed"):
        catalog.lookup(["x"], "cpu", "2.13.0", 2)


def test_the_file_lies_in_the_users_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "gradbase" / "catalog.sqlite"
    with Catalog() as catalog:
        assert catalog.path == default_path().resolve()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "gradbase" / "catalog.sqlite"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM statistics",
        "UPDATE statistics SET time_us = 0",
        "DROP TABLE runs",
        "INSERT INTO profiles VALUES ('a', 1, '{}', '')",
        "CREATE TEMP TABLE t (x)",
        "PRAGMA user_version = 9",
        "ATTACH 'other.sqlite' AS other",
        "VACUUM INTO 'copy.sqlite'",
        "WITH a AS (SELECT 1) DELETE FROM runs",
    ],
)
def test_a_query_cannot_write(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.chdir(tmp_path)
    catalog.record([entry(1)], **HERE)
    with pytest.raises(UsageError, match="may only read"):
        catalog.query(sql)
    assert catalog.query("SELECT count(*), min(time_us) FROM statistics")[1] == [(1, 3.0)]
    assert not list(tmp_path.glob("*other*")) and not list(tmp_path.glob("copy*"))


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT time FROM statistics", "did you mean time_us?"),
        ("SELECT * FROM statistic", "did you mean statistics?"),
        ("SELECT s.signatur FROM statistics s", "did you mean signature?"),
        ("SELEC 1", "syntax error"),
        ("", "there is no statement in it"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT ?", "Incorrect number of bindings"),
        ("SELECT '\0'", "null character"),
        ("SELECT '\udcff'", "surrogates not allowed"),
    ],
)
def test_wrong_sql_is_answered_with_sqlites_words_and_the_tables(catalog: Catalog, sql: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.query(sql)
    assert words in str(caught.value)
    assert all(f"{table.name}({', '.join(table.column_names)})" in str(caught.value) for table in TABLES)


def test_queries_may_use_what_sqlite_reads_with(catalog: Catalog) -> None:
    catalog.record([entry(1), entry(2)], **HERE)
    sql = "SELECT sum(json_extract(value, '$[0]')) FROM statistics, json_each(outputs)"
    assert catalog.query(sql) == (("sum(json_extract(value, '$[0]'))",), [(4 + 8 + 8 + 8,)])
    columns = [row[1] for row in catalog.query("PRAGMA table_info(tiers)")[1]]
    assert columns[0] == "medium"
    assert catalog.query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT max(i) FROM n"
    )


def test_the_schema_is_the_declared_one(catalog: Catalog) -> None:
    catalog.close()
    with sqlite3.connect(catalog.path) as plain:
        for table in TABLES:
            found = [(row[1], row[2]) for row in plain.execute(f"PRAGMA table_info({table.name})")]
            assert found == [(column.name, column.type) for column in table.columns]
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_column_is_described_and_the_readme_shows_it() -> None:
    assert all(column.description for table in TABLES for column in table.columns)
    measures = [c for table in TABLES for c in table.columns if c.name.endswith(("_us", "_bytes"))]
    assert all(column.unit for column in measures)
    readme = Path(gradbase.catalog.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert describe() in readme
