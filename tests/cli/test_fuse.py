"""`gradbase fuse` from files to files."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from tests.cli.commands import called, events
from tests.cli.test_crowd import Page
from tests.tables.examples import BOOKS

CLAIMS, GOLD = BOOKS / "claims.csv", BOOKS / "gold.csv"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_everything_at_once(cache: Path) -> None:
    ran = called(
        cache, "fuse", CLAIMS, "--out", "truths.parquet", "--sources-out", "sources.csv", "--copies-out", "copies.csv",
        "--why-out", "why.parquet", "--history-out", "history.csv", "--gold", GOLD, "--html", "page.html",
        "--state-out", "state.duckdb", "--next", 4, "--next-out", "next.csv", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = {event["event"]: event for event in events(ran.stdout)}
    assert told["read"]["claims"] == 2057 and told["read"]["kinds"] == {"authors": "author set"}
    assert told["evaluation"]["accuracy"] >= 0.85 > told["evaluation"]["majority_accuracy"]
    assert {"gate", "next", "written"} <= told.keys() and told["summary"]["items"] == 100
    with duckdb.connect() as connection:
        assert connection.execute("SELECT count(*) FROM 'truths.parquet'").fetchall() == [(100,)]
        assert connection.execute("SELECT count(*) FROM 'sources.csv'").fetchall()[0][0] >= 228
        assert connection.execute("SELECT count(*) FROM 'next.csv'").fetchall() == [(4,)]
        copies = connection.execute("SELECT count(*) FROM 'copies.csv'").fetchall()[0][0]
        assert copies == told["summary"]["copies"] == told["read"]["copies"]
    assert {"Calibration", "Sources", "Most contested items"} <= set(Page(Path("page.html").read_text()).headings)


def test_growing(cache: Path) -> None:
    part = "SELECT * FROM input WHERE hash(object) % 2 = {}"
    first = called(cache, "fuse", CLAIMS, "--query", part.format(0), "--out", "a.csv", "--state-out", "s.duckdb")
    grown = called(cache, "fuse", CLAIMS, "--query", part.format(1), "--out", "b.csv", "--state-in", "s.duckdb")
    assert first.returncode == grown.returncode == 0, first.stderr + grown.stderr
    assert len(Path("a.csv").read_text().splitlines()) + len(Path("b.csv").read_text().splitlines()) == 102


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "a.csv", "--copies", "maybe"], "'maybe' is not one of gated, off, ungated"),
        (["--out", "a.csv", "--kinds", "autors=text"], "no claim is about attribute 'autors'"),
        (["--out", "a.csv", "--hierarchy", "none.csv"], "there is no file none.csv"),
        (["--out", "a.csv", "--state-in", "none.duckdb"], "there is no state none.duckdb"),
        (["--out", "a.csv", "--gold", CLAIMS], "has two golds in"),
        (["--out", "a.csv", "--columns", "object=source"], "has no column for source"),
        (["--out", "a.csv", "--columns", "vlue=value"], "'vlue' is not a column that is asked for here, did you mean"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[object], told: str, cache: Path) -> None:
    ran = called(cache, "fuse", CLAIMS, *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert told in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert list(Path().iterdir()) == []
