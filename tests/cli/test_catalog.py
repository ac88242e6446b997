"""`gradbase catalog` on a catalogue with known rows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from gradbase.catalog import TABLES, Catalog, OperatorStatistics
from gradbase.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "catalog.sqlite"
    entries = [
        OperatorStatistics.from_samples(f"aten.{op}", f"aten.{op}({n})", [time_us])
        for op, n, time_us in (("mm", 1, 10.0), ("mm", 2, 20.5), ("add", 1, 1 / 3))
    ]
    with Catalog(file) as catalog:
        catalog.record(entries, device="cpu", torch_version="2.13", threads=2)
    return file


QUERY = "SELECT op, avg(time_us) AS time_us, NULL AS missing FROM statistics GROUP BY op ORDER BY op"


def test_a_table_for_people(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", QUERY, "--catalog", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "op         time_us  missing",
        "--------  --------  -------",
        "aten.add  0.333333",
        "aten.mm      15.25",
        "(2 rows)",
    ]


def test_json_keeps_every_digit(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", QUERY, "--catalog", str(path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        {"op": "aten.add", "time_us": 1 / 3, "missing": None},
        {"op": "aten.mm", "time_us": 15.25, "missing": None},
    ]


def test_csv(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", QUERY, "--catalog", str(path), "--csv"]) == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        ["op", "time_us", "missing"],
        ["aten.add", str(1 / 3), ""],
        ["aten.mm", "15.25", ""],
    ]


def test_no_rows(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "SELECT op FROM statistics WHERE op = 'x'", "--catalog", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["op", "--", "(0 rows)"]


def test_without_sql_every_column_is_listed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "--catalog", str(path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["table"], row["column"]) for row in rows] == [(t.name, c) for t in TABLES for c in t.column_names]
    assert {row["rows"] for row in rows if row["table"] == "statistics"} == {3}


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT tim_us FROM statistics", "did you mean time_us?"),
        ("SELECT * FROM statistic", "did you mean statistics?"),
        ("DELETE FROM statistics", "may only read"),
        ("SELEKT", "syntax error"),
    ],
)
def test_sql_that_is_wrong(sql: str, told: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", sql, "--catalog", str(path), "--json"]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and told in seen.err and "Traceback" not in seen.err


def test_the_path(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["catalog", "--path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache' / 'gradbase' / 'catalog.sqlite'}\n"
    assert main(["catalog", "--path", "--catalog", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_a_name_that_is_mistyped_makes_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "SELECT 1", "--catalog", str(tmp_path / "absent")]) == 2
    assert "there is no catalogue at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_csv_and_json_exclude_each_other(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "SELECT 1", "--catalog", str(path), "--csv", "--json"]) == 2
    assert "exclude each other" in capsys.readouterr().err
