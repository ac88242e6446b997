"""Matching of records: F1 on sets of labelled pairs, beside gradient boosting on similarity features in the same run.

    python -m benchmarks.tables.match --data DIR [--labels all,50,none] [--seeds 3] [--sets NAME,...] [--json]

DIR holds folders with train.csv, valid.csv and test.csv (label, l_*, r_*). Training and valid pairs train; the test
pairs only score. "alone" judges each pair by itself; the default also by other pairs of its records, for which all
pairs of a set are candidates (their labels known or not). The peer needs scikit-learn: pip install 'gradbase[peers]'.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from gradbase.tables.match import Config, score_pair_tables

Pairs = dict[str, list[str]]
Row = dict[str, Any]

SYSTEMS = ("boosting", "alone", "default")


def read(path: Path) -> Pairs:
    """A file of pairs as columns."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return {name: [row[k] for row in rows[1:]] for k, name in enumerate(rows[0])}


def joined(*tables: Pairs) -> Pairs:
    """The rows of all, one table after the other."""
    return {name: [v for table in tables for v in table[name]] for name in tables[0]}


def chosen(table: Pairs, rows: Any) -> Pairs:
    return {name: [values[k] for k in rows] for name, values in table.items()}


def split(known: Pairs, labels: str, seed: int) -> tuple[Pairs, Pairs]:
    """The pairs whose labels are given, and the others."""
    total = len(known["label"])
    wanted = total if labels == "all" else 0 if labels == "none" else int(labels)
    order = np.random.default_rng(seed).permutation(total)
    return chosen(known, order[:wanted]), chosen(known, order[wanted:])


def f1(matched: Any, label: Any) -> float:
    return float(2 * (matched & label).sum() / max(matched.sum() + label.sum(), 1))


def quality(log_odds: Any, matched: Any, label: Any) -> Row:
    """F1 in percent; of probabilities the negative log-likelihood and the expected calibration error (10 bins)."""
    loss = np.logaddexp(0, np.where(label, -log_odds, log_odds)).mean()
    probability = 1 / (1 + np.exp(-log_odds))
    bins = np.minimum((probability * 10).astype(int), 9)
    gaps = np.bincount(bins, probability - label, minlength=10)
    return {"f1": 100 * f1(matched, label), "nll": float(loss), "ece": float(np.abs(gaps).sum() / len(label))}


def run_ours(test: Pairs, given: Pairs, others: Pairs, config: Config) -> Row:
    label = np.array(test["label"]) == "1"
    asked = joined(test, others) if config.other_pairs else test
    result = score_pair_tables(asked, [given] if given["label"] else [], config)
    rows = slice(0, len(label))
    return quality(result.pairs.log_odds[rows], result.pairs.matched[rows], label)


def plain_similarities(pairs: Pairs) -> Any:
    """What one would write first: eight string similarities a column, and the difference of numbers."""
    from rapidfuzz import fuzz
    from rapidfuzz.distance import JaroWinkler, Levenshtein

    columns = [name[2:] for name in pairs if name.startswith("l_")]
    table = []
    for column in columns:
        for a, b in zip(pairs[f"l_{column}"], pairs[f"r_{column}"], strict=True):
            a, b = a.lower(), b.lower()
            words, grams = (set(a.split()), set(b.split())), [{t[i : i + 3] for i in range(len(t) - 2)} for t in (a, b)]
            table.append(
                [
                    *(s(a, b) for s in (fuzz.ratio, fuzz.partial_ratio, fuzz.token_sort_ratio, fuzz.token_set_ratio)),
                    JaroWinkler.similarity(a, b),
                    Levenshtein.normalized_similarity(a, b),
                    *(len(x & y) / max(len(x | y), 1) for x, y in (words, grams)),
                    float(a == b),
                    _difference(a, b),
                ]
            )
    return np.concatenate(np.array(table).reshape(len(columns), -1, len(table[0])), axis=1)


def _difference(a: str, b: str) -> float:
    try:
        return abs(float(a.rstrip(" %")) - float(b.rstrip(" %")))
    except ValueError:
        return -1.0


def weighted_overlaps(known: Pairs, asked: Pairs) -> Any:
    """Cosines of TF-IDF vectors, of words and of trigrams, for every column and for whole records: what common values
    are worth where some are rarer than others. Frequencies are those of the known pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    columns = [name[2:] for name in known if name.startswith("l_")]
    table = []
    for part in ([[column] for column in columns] + [columns]):
        given, sides = [texts(known, side, part) for side in "lr"], [texts(asked, side, part) for side in "lr"]
        for options in ({"token_pattern": r"\w+"}, {"analyzer": "char_wb", "ngram_range": (3, 3)}):
            weigh = TfidfVectorizer(**options, sublinear_tf=True)
            try:
                weigh.fit(dict.fromkeys(given[0] + given[1]))
            except ValueError:  # no word at all in the column
                continue
            left, right = (weigh.transform(side) for side in sides)
            table.append(np.asarray(left.multiply(right).sum(axis=1)).ravel())
    return np.array(table).T


def texts(pairs: Pairs, side: str, columns: list[str]) -> list[str]:
    cells = (pairs[f"{side}_{column}"] for column in columns)
    return [" ".join(values).lower() for values in zip(*cells, strict=True)]


def run_boosting(test: Pairs, given: Pairs, seed: int) -> Row | None:
    """scikit-learn's histogram gradient boosting as it comes, on similarities and TF-IDF cosines; None where it cannot
    train."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    label = np.array(given["label"]) == "1"
    if not len(label) or label.all() or not label.any():
        return None
    train, asked = (np.c_[plain_similarities(p), weighted_overlaps(given, p)] for p in (given, test))
    model = HistGradientBoostingClassifier(random_state=seed).fit(train, label)
    log_odds = model.decision_function(asked)
    return quality(log_odds, log_odds > 0, np.array(test["label"]) == "1")


def measure(folder: Path, labels: str, seeds: int) -> Iterator[Row]:
    """A row a system: means over seeds."""
    known, test = joined(read(folder / "train.csv"), read(folder / "valid.csv")), read(folder / "test.csv")
    for system in SYSTEMS:
        runs, start = [], time.process_time()
        for seed in range(seeds):
            given, others = split(known, labels, seed)
            if system == "boosting":
                run = run_boosting(test, given, seed)
            else:
                run = run_ours(test, given, others, Config(seed=seed, other_pairs=system == "default"))
            runs += [run] if run else []
        if runs:
            means = {key: round(mean(r[key] for r in runs), 4) for key in runs[0]}
            spread = round(max(r["f1"] for r in runs) - min(r["f1"] for r in runs), 2)
            cpu_s = round((time.process_time() - start) / len(runs), 2)
            yield {"set": folder.name, "labels": labels, "system": system, **means, "f1_spread": spread, "cpu_s": cpu_s}


def table(rows: list[Row]) -> str:
    """F1 by set (lines) and by labels and system (columns), with the means over sets."""
    keys = list(dict.fromkeys((r["labels"], r["system"]) for r in rows))
    sets = list(dict.fromkeys(r["set"] for r in rows))
    cells = {key: {r["set"]: r["f1"] for r in rows if (r["labels"], r["system"]) == key} for key in keys}
    lines = [["F1", *(f"{labels}: {system}" for labels, system in keys)]]
    lines += [[s, *(f"{cells[key][s]:.1f}" if s in cells[key] else "" for key in keys)] for s in sets]
    lines.append(["mean", *(f"{mean(cells[key].values()):.1f}" for key in keys)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of sets")
    parser.add_argument("--sets", help="names of sets, by commas (default: all)")
    parser.add_argument("--labels", default="all,50,none", help="how many labelled pairs: all, none or a number")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    options = parser.parse_args()
    folders = sorted(p.parent for p in options.data.glob("*/test.csv"))
    names = options.sets.split(",") if options.sets else [f.name for f in folders]
    rows = []
    for folder in (f for f in folders if f.name in names):
        for labels in options.labels.split(","):
            for row in measure(folder, labels, options.seeds):
                rows.append(row)
                print(json.dumps(row), file=sys.stdout if options.json else sys.stderr, flush=True)
    if not options.json:
        print(table(rows))


if __name__ == "__main__":
    main()
