"""`gradbase match` from files to files."""

from __future__ import annotations

import csv
from pathlib import Path

import duckdb
import pytest

from tests.cli.commands import called, events
from tests.cli.test_crowd import Page
from tests.tables.examples import RESTAURANTS


def rows_of(path: Path | str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: str, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restaurants of one city, in both guides."""
    monkeypatch.chdir(tmp_path)
    known = set()
    for name in ("fodors", "zagats"):
        chosen = [row for row in rows_of(RESTAURANTS / f"{name}.csv") if row["city"].startswith("atlanta")]
        known |= {row["id"] for row in chosen}
        write(f"{name}.csv", chosen)
    pairs = rows_of(RESTAURANTS / "labelled.csv")
    write("gold.csv", [pair for pair in pairs if {pair["left"], pair["right"]} <= known])


def test_two_tables_become_one_golden_table(cache: Path) -> None:
    ran = called(
        cache, "match", "fodors.csv", "zagats.csv", "--out", "pairs.csv", "--clusters-out", "clusters.csv",
        "--claims-out", "claims.csv", "--golden-out", "golden.parquet", "--gold", "gold.csv", "--why-out", "why.csv",
        "--html", "page.html", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = {event["event"]: event for event in events(ran.stdout)}
    assert told["evaluation"]["f1"]["1"] > 0.8 and told["summary"]["matched"] > 5
    with duckdb.connect() as connection:
        records, clusters = connection.execute("SELECT sum(records), count(*) FROM 'golden.parquet'").fetchall()[0]
        assert records == told["read"]["records"] and clusters == told["summary"]["clusters"]
        named = "SELECT count(name), count(name_probability), count(name_reason) FROM 'golden.parquet'"
        assert connection.execute(named).fetchall() == [(clusters, clusters, clusters)]
        unknown = "SELECT count(*) FROM 'claims.csv' c ANTI JOIN 'golden.parquet' g ON c.object = g.cluster"
        assert connection.execute(unknown).fetchall() == [(0,)]
    assert "Pairs that are hardest to tell" in Page(Path("page.html").read_text()).headings


def test_the_claims_are_what_fuse_reads(cache: Path) -> None:
    assert called(cache, "match", "fodors.csv", "zagats.csv", "--out", "p.csv", "--claims-out", "c.csv").returncode == 0
    fused = called(cache, "fuse", "c.csv", "--out", "f.csv")
    assert fused.returncode == 0, fused.stderr


def test_a_table_of_pairs(cache: Path) -> None:
    left, right = ({row["id"]: row for row in rows_of(f"{name}.csv")} for name in ("fodors", "zagats"))
    pairs = []
    for pair in rows_of("gold.csv"):
        sides = {"l": left[pair["left"]], "r": right[pair["right"]]}
        cells = {f"{side}_{name}": row[name] for side, row in sides.items() for name in ("name", "addr", "phone")}
        pairs.append({"label": pair["label"]} | cells)
    write("pairs.csv", pairs)
    ran = called(cache, "match", "pairs.csv", "--gold", "pairs.csv", "--out", "out.csv")
    assert ran.returncode == 0 and f"{len(pairs)} items with gold" in ran.stdout, ran.stderr
    assert len(Path("out.csv").read_text().splitlines()) == len(pairs) + 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fodors.csv", "none.csv"], "there is no file none.csv"),
        (["fodors.csv", "zagats.csv", "--id", "key"], "table 'fodors' has no column 'key'; found 'id', 'name'"),
        (["fodors.csv", "zagats.csv", "--id", "city"], "is there twice"),
        (["fodors.csv", "gold.csv"], "column"),
        (["fodors.csv", "zagats.csv", "--threshold", "2"], "expected a probability from 0 to 1"),
        (["fodors.csv", "zagats.csv", "--labelled", "zagats.csv"], "has no column for left"),
        (["fodors.csv", "zagats.csv", "--labelled", "wrong.csv"], "label 'maybe' in row 1 is neither 1 nor 0"),
        (["fodors.csv", "zagats.csv", "--labelled", "twice.csv"], "is labelled twice, differently"),
        (["empty.csv"], "empty.csv has no rows"),
        (["ids.csv"], "has no columns to compare"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], told: str, cache: Path) -> None:
    Path("wrong.csv").write_text("left,right,label\na,b,maybe\n")
    Path("twice.csv").write_text("left,right,label\na,b,1\na,b,0\n")
    Path("empty.csv").write_text("id,name\n")
    Path("ids.csv").write_text("id\n1\n2\n")
    before = sorted(Path().iterdir())
    ran = called(cache, "match", *arguments, "--out", "out.csv")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert told in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert sorted(Path().iterdir()) == before
