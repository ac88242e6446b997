"""The benchmarks run, on small data of the same form."""

from __future__ import annotations

import csv
import random
import sys

import pytest

from benchmarks.tables import match as benchmark
from benchmarks.tables import match_blocking
from tests.tables.match.people import two_tables


@pytest.fixture
def folder(tmp_path):
    """Sets of pairs of people: each with its own, and with the next."""
    a, b, _ = two_tables(60)
    rows = [(int(k == j), i, j) for i in range(60) for k, j in ((i, i), (i, (i + 1) % 60))]
    random.Random(0).shuffle(rows)
    names = ["label", *(f"{s}_{c}" for s in "lr" for c in a.columns)]
    path = tmp_path / "people"
    path.mkdir()
    for name, part in (("train", rows[:60]), ("valid", rows[60:80]), ("test", rows[80:])):
        with (path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [names, *([y, *(v[i] for v in a.values), *(v[j] for v in b.values)] for y, i, j in part)]
            )
    return path


def test_the_benchmark_of_matching_prints_a_table(folder, monkeypatch, capsys):
    arguments = ["match", "--data", str(folder.parent), "--labels", "none"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    head, line, means = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "F1" and line.startswith("people") and means.startswith("mean")
    assert min(map(float, line.split()[1:])) > 80


def test_the_peer_needs_labels_of_both_kinds(folder):
    pytest.importorskip("sklearn")
    known, test = (benchmark.read(folder / f"{part}.csv") for part in ("train", "test"))
    assert benchmark.run_boosting(test, known, 0)["f1"] > 80
    assert benchmark.run_boosting(test, benchmark.split(known, "none", 0)[0], 0) is None


def test_the_benchmark_of_blocking_knows_the_truth():
    row = match_blocking.measure(500, seed=0, most=5)
    assert row["recall"] > 0.98 and row["candidates"] <= 5 * 1000
