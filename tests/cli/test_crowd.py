"""`gradbase crowd` from files to files."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest

from tests.cli.commands import called, events, gradbase
from tests.tables.examples import BIRDS, labels

LABELS, GOLD = BIRDS / "labels.csv", BIRDS / "gold.csv"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_everything_at_once(cache: Path, tmp_path: Path) -> None:
    ran = gradbase(
        cache, "crowd", LABELS, "--out", "truths.parquet", "--workers-out", "workers.csv", "--why-out", "why.parquet",
        "--copies-out", "copies.csv", "--gold", GOLD, "--html", "page.html", "--state-out", "state.duckdb", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = {event["event"]: event for event in events(ran.stdout)}
    assert told["read"]["claims"] == 4212 and told["read"]["kind"] == "classes"
    assert told["evaluation"]["accuracy"] >= 0.87 > told["evaluation"]["majority_accuracy"]
    assert {event["option"] for event in events(ran.stdout) if event["event"] == "written"} == {
        "--out", "--workers-out", "--copies-out", "--why-out", "--html", "--state-out"
    }  # fmt: skip
    assert told["summary"]["items"] == 108 and events(ran.stdout)[-1]["event"] == "summary"
    with duckdb.connect() as connection:
        query = "SELECT count(*), avg((truths.value = gold.label)::int) FROM 'truths.parquet' truths JOIN '{}' gold"
        count, accuracy = connection.execute(query.format(GOLD) + " USING (item)").fetchall()[0]
        assert count == 108 and accuracy == pytest.approx(told["evaluation"]["accuracy"])
        assert connection.execute("SELECT count(*) FROM 'workers.csv'").fetchall() == [(39,)]
        assert Path("copies.csv").read_text() == '"copier","original","probability","evidence","shared","same"\n'
        assert connection.execute("SELECT count(*) >= 4212 FROM 'why.parquet'").fetchall() == [(True,)]
    assert Page((tmp_path / "page.html").read_text()).headings == [
        f"Crowd: {LABELS}", "Calibration", "Workers", "Most contested items"
    ]  # fmt: skip


class Page(HTMLParser):
    """A page that is well formed and loads nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "script", "img", "iframe") and not {"src", "href"} & dict(attributes).keys()
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "circle", "rect", "polyline", "line")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_for_people(cache: Path) -> None:
    ran = called(cache, "crowd", LABELS, "--out", "t.csv", "--gold", GOLD)
    assert ran.returncode == 0
    assert ran.stdout.startswith("accuracy ") and "(majority vote 75.9%)" in ran.stdout
    assert "4,212 rows" in ran.stderr and "wrote t.csv" in ran.stderr
    assert Path("t.csv").read_text().startswith('"item","value","probability","runner_up","runner_up_probability"')


def test_from_a_sqlite_query_with_columns_given(cache: Path) -> None:
    claims, _ = labels(items=10, workers=3)
    with closing(sqlite3.connect("t.sqlite")) as connection:
        connection.execute("CREATE TABLE said (qid, who, says)")
        connection.executemany("INSERT INTO said VALUES (?, ?, ?)", zip(*claims.values(), strict=True))
        connection.commit()
    columns = "item=qid,worker=who,label=says"
    query = "SELECT * FROM said WHERE qid < 5"
    ran = called(cache, "crowd", "t.sqlite", "--query", query, "--columns", columns, "--out", "t.csv", "--quiet")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert len(Path("t.csv").read_text().splitlines()) == 6


def test_from_a_postgresql_table(cache: Path, postgres_address: str) -> None:
    from adbc_driver_postgresql import dbapi

    claims, _ = labels(items=10, workers=3)
    with dbapi.connect(postgres_address) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE crowd_labels (item bigint, worker text, label text)")
        cursor.executemany("INSERT INTO crowd_labels VALUES ($1, $2, $3)", list(zip(*claims.values(), strict=True)))
        connection.commit()
    ran = called(cache, "crowd", postgres_address, "--table", "crowd_labels", "--out", "t.csv")
    assert ran.returncode == 0, ran.stderr
    assert len(Path("t.csv").read_text().splitlines()) == 11


def test_growing(cache: Path) -> None:
    half = "SELECT * FROM input WHERE item::int % 2 = {}"
    first = called(cache, "crowd", LABELS, "--query", half.format(0), "--out", "a.csv", "--state-out", "s.duckdb")
    grown = called(
        cache, "crowd", LABELS, "--query", half.format(1), "--out", "b.csv", "--state-in", "s.duckdb", "--gold", GOLD
    )
    assert first.returncode == grown.returncode == 0, first.stderr + grown.stderr
    assert "108 items with gold" in grown.stdout
    refused = called(cache, "fuse", LABELS, "--out", "c.csv", "--state-in", "s.duckdb")
    assert refused.returncode == 2 and "s.duckdb is a state of crowd" in refused.stderr


def test_next(cache: Path) -> None:
    ran = called(cache, "crowd", LABELS, "--out", "t.csv", "--next", 3, "--next-out", "next.csv", "--json")
    bought = [event for event in events(ran.stdout) if event["event"] == "next"]
    assert len(bought) == 3 and bought[0]["gain"] >= bought[2]["gain"]
    assert len(Path("next.csv").read_text().splitlines()) == 4
    ran = called(cache, "crowd", LABELS, "--out", "t.csv", "--next", 3)
    assert ran.stdout.splitlines()[0].split() == ["item", "gain"] and "(3 rows)" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.csv", "--out", "t.csv"], "[table] there is no file nothing.csv"),
        (["labels.csv", "--out", "t.xlsx"], "--out t.xlsx does not say what to write; expected an ending of .parquet"),
        (["labels.csv", "--out", "labels.csv"], "--out labels.csv is also read"),
        (["labels.csv", "--out", "t.csv", "--why-out", "./t.csv"], "--out and --why-out are both t.csv"),
        (["labels.csv", "--out", "none/t.csv"], "there is no folder none"),
        (["labels.csv", "--out", "t.csv", "--html", "t.csv"], "expected an ending of .html"),
        (["labels.csv", "--out", "t.csv", "--columns", "item:qid"], "--columns 'item:qid' is not a list of NAME=VALUE"),
        (["labels.csv", "--out", "t.csv", "--columns", "item=qid"], "has no column 'qid'"),
        (["labels.csv", "--out", "t.csv", "--next-out", "n.csv"], "--next-out was given without --next"),
        (["labels.csv", "--out", "t.csv", "--memory", "much"], "memory 'much' is not an amount"),
        (["labels.csv", "--out", "t.csv", "--gold", "twice.csv"], "item '1' has two golds in twice.csv: '0' and '1'"),
        (["labels.csv", "--out", "t.csv", "--gold", "labels.csv"], "has two golds"),
        (["labels.csv", "--out", "t.csv", "--features", "x.npy"], "there is no file x.npy"),
        (["labels.csv", "--out", "t.csv", "--kind", "numbers", "--query", "SELECT 1 item, 2 worker, 'a' label"],
         "label 'a' is not a number"),
        (["labels.csv", "--out", "t.csv", "--query", "SELECT item % 2 AS item, worker, label FROM input"],
         "its columns are all text: item::int is a number"),
        (["empty.csv", "--out", "t.csv"], "has no rows"),
        (["labels.csv"], "the following arguments are required: --out"),
        (["labels.csv", "--out", "t.csv", "--nxet", "3"], "did you mean '--next'?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], told: str, cache: Path) -> None:
    shutil.copy(LABELS, "labels.csv")
    Path("twice.csv").write_text("item,label\n1,0\n1,1\n")
    Path("empty.csv").write_text("item,worker,label\n")
    before = sorted(path.name for path in Path().iterdir())
    ran = called(cache, "crowd", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert told in ran.stderr and len(ran.stderr.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == before


def test_a_missing_extra_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    ran = called(cache, "crowd", LABELS, "--out", "t.csv")
    assert ran.returncode == 2 and "pip install 'gradbase[tables]'" in ran.stderr and len(ran.stderr.splitlines()) == 1


def test_the_report_shows_confidence_without_gold_and_escapes_names(cache: Path) -> None:
    Path("t.csv").write_text('item,worker,label\n<b>,"<script>alert(1)</script>",x\n<b>,v,y\n<i>,v,x\n<i>,u,x\n')
    ran = called(cache, "crowd", "t.csv", "--out", "out.csv", "--html", "page.html")
    assert ran.returncode == 0, ran.stderr
    page = Path("page.html").read_text()
    assert "Confidence" in Page(page).headings and "&lt;script&gt;" in page
