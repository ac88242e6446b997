"""Crowdsourced truth: accuracy, calibration, features, numbers and bought labels, beside peers in the same run.

    python -m benchmarks.tables.crowd --data DIR [--sets NAME,...] [--skip features,numbers,next] [--rounds 30]
                                    [--json FILE]

DIR holds crowd/NAME/ with labels.csv (item, worker, label), gold.csv (item, label) and maybe items.csv or X_train.npy,
X_test.npy, z_test.csv (features); numeric/NAME/ with labels.csv (item, worker, value), gold.csv (item, value). One
configuration for all. Gold only scores. Peers are crowd-kit's (an extra: pip install 'gradbase[peers]'; without it they
are left out and standard error says so). Measured elsewhere, not run here: EBCC (Li et al., ICML 2019) has a mean of
81.4 over the 13 sets, CROWDLAB 0.82 F1 on product, 82.7 / 84.1 on the items / the test set of labelme.

Calibration error: ten bins of confidence, 0 to 1, weighted by their items; `workers_held`: how many workers' shares of
right answers lie in their 90% intervals. Times are process CPU seconds.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradbase.tables.crowd import Claims, Features, Result, infer, next_labels

Row = dict[str, Any]
BUYERS = 16  # seeds: a single one is off by half a point
GOLD_ANSWERS = 20  # of a worker, for its share of right ones to say what the worker is like
PEERS = ("MajorityVote", "Wawa", "GLAD", "DawidSkene")


def read(path: Path) -> dict[str, np.ndarray]:
    """A file as columns of text."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return {name: np.array([row[k] for row in rows[1:]], dtype=str) for k, name in enumerate(rows[0])}


def claims_of(folder: Path) -> Claims:
    table = read(folder / "labels.csv")
    return Claims.from_columns(table["item"], table["worker"], table["label"])


def gold_of(folder: Path, claims: Claims) -> np.ndarray:
    """int64[n_items] codes of the gold classes; -1 without gold, -2 for a class that nobody said."""
    table = read(folder / "gold.csv")
    place = {name: code for code, name in enumerate(claims.items.tolist())}
    classes = {name: code for code, name in enumerate(claims.classes.tolist())}
    gold = np.full(len(claims.items), -1)
    for item, label in zip(table["item"].tolist(), table["label"].tolist(), strict=True):
        if item in place:
            gold[place[item]] = classes.get(label, -2)
    return gold


def score(result: Result, gold: np.ndarray) -> Row:
    """Accuracy in percent, expected calibration error, negative log-likelihood, F1 of the second class of two."""
    known = gold != -1
    right = result.value[known] == gold[known]
    confidence = result.probability[known]
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    chance = np.where(gold[known] >= 0, result.posterior[known, np.maximum(gold[known], 0)], 0.0)
    found, true = result.value[known] == 1, gold[known] == 1
    f1 = 2 * (found & true).sum() / max(found.sum() + true.sum(), 1)
    nll = -np.log(np.clip(chance, 1e-6, 1)).mean()
    return {"accuracy": 100 * right.mean(), "ece": sum(gaps), "nll": nll, "f1": f1}


def peer_accuracy(name: str, folder: Path) -> float:
    """Accuracy of a method of crowd-kit, in percent."""
    import pandas
    from crowdkit import aggregation

    labels = pandas.read_csv(folder / "labels.csv", dtype=str).rename(columns={"item": "task"}).drop_duplicates()
    gold = pandas.read_csv(folder / "gold.csv", dtype=str).set_index("item").label
    found = getattr(aggregation, name)().fit_predict(labels)
    shared = gold.index.intersection(found.index)
    return float((found.reindex(shared) == gold.reindex(shared)).mean() * 100)


def plain(folder: Path, peers: tuple[str, ...]) -> Row:
    """One set without features."""
    claims = claims_of(folder)
    start = time.process_time()
    result = infer(claims)
    gold = gold_of(folder, claims)
    row = {"set": folder.name, **score(result, gold), "cpu_s": time.process_time() - start}
    row["workers_held"] = workers_held(result, gold)
    return row | {peer: peer_accuracy(peer, folder) for peer in peers}


def workers_held(result: Result, gold: np.ndarray) -> float:
    """Of the workers with some gold answers, the share whose share of right ones lies in the 90% interval."""
    claims, workers = result.claims, result.workers
    known = gold[claims.item] != -1
    right = gold[claims.item] == claims.label
    answers = np.bincount(claims.worker[known], minlength=len(claims.workers))
    share = np.bincount(claims.worker[known], right[known], len(claims.workers)) / np.maximum(answers, 1)
    inside = (workers.low <= share) & (share <= workers.high)
    return float(inside[answers >= GOLD_ANSWERS].mean())


def features_of(folder: Path, claims: Claims) -> Features | None:
    if (folder / "items.csv").exists():
        table = read(folder / "items.csv")
        place = {name: row for row, name in enumerate(table.pop("item").tolist())}
        rows = [place[name] for name in claims.items.tolist()]
        return Features(text={name: column[rows].tolist() for name, column in table.items()})
    if (folder / "X_train.npy").exists():
        matrix = np.load(folder / "X_train.npy")
        return Features(embedding=matrix.reshape(len(matrix), -1)[claims.items.astype(np.int64)])
    return None


def featured(folder: Path) -> Row | None:
    """One set with features, where it has them; "test" is the classifier's accuracy on items nobody labelled."""
    claims = claims_of(folder)
    features = features_of(folder, claims)
    if features is None:
        return None
    start = time.process_time()
    result = infer(claims, features)
    row = {"set": folder.name, **score(result, gold_of(folder, claims)), "cpu_s": time.process_time() - start}
    if (folder / "X_test.npy").exists() and result.classifier is not None:
        matrix, truth = np.load(folder / "X_test.npy"), read(folder / "z_test.csv")
        told = result.classifier.predict(Features(embedding=matrix.reshape(len(matrix), -1))).argmax(1)
        row["test"] = 100 * np.mean(claims.classes[told[truth["item"].astype(int)]] == truth["label"])
    return row


def numeric(folder: Path) -> Row:
    """Mean absolute error of numbers, and of their plain mean."""
    table, gold = read(folder / "labels.csv"), read(folder / "gold.csv")
    claims = Claims.from_columns(table["item"], table["worker"], table["value"].astype(float), kind="numbers")
    place = np.searchsorted(claims.items, gold["item"])
    result = infer(claims)
    truth = gold["value"].astype(float)
    mean = np.bincount(claims.item, claims.label) / np.bincount(claims.item)
    inside = (result.interval[place, 0] <= truth) & (truth <= result.interval[place, 1])
    errors = {"mae": np.abs(result.value[place] - truth).mean(), "mean_mae": np.abs(mean[place] - truth).mean()}
    return {"set": folder.name, **errors, "coverage_of_90": inside.mean()}


def bought(folder: Path, seed: int, rounds: int) -> Row:
    """Half of the labels, chosen by `next_labels` after two per item: accuracy against all labels, and any half.

    A round buys one in `rounds` of those labels, and then asks again.
    """
    claims, generator = claims_of(folder), np.random.default_rng(seed)
    gold = gold_of(folder, claims)
    order = generator.permutation(len(claims))
    shelves: list[list[int]] = [[] for _ in claims.items]
    for row in order.tolist():
        shelves[claims.item[row]].append(row)
    have = [shelf.pop() for shelf in shelves for _ in range(min(2, len(shelf)))]
    half = len(claims) // 2
    while len(have) < half:
        wanted = next_labels(infer(_only(claims, have)), 4 * half // rounds).item.tolist()
        new = _take(wanted, shelves, min(half // rounds, half - len(have)))
        if not new:
            break
        have += new
    accuracy = {
        name: score(infer(_only(claims, rows)), gold)["accuracy"]
        for name, rows in (("bought", have), ("any", order[:half]), ("all", order))
    }
    short = accuracy["all"] - accuracy["bought"]
    return {"set": folder.name, "seed": seed, **accuracy, "short_of_all": short}


def _take(wanted: list[int], shelves: list[list[int]], least: int) -> list[int]:
    new = []
    for item in wanted:
        if shelves[item] and len(new) < least:
            new.append(shelves[item].pop())
    return new


def _only(claims: Claims, rows: Any) -> Claims:
    rows = np.asarray(rows)
    parts = (claims.item[rows], claims.worker[rows], claims.label[rows])
    return Claims(*parts, claims.items, claims.workers, claims.classes)


def show(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("  ".join(f"{name:>12}" for name in names))
    for row in rows:
        cells = [row.get(name, "") for name in names]
        print("  ".join(f"{cell:>12.3f}" if isinstance(cell, float) else f"{cell:>12}" for cell in cells))


def mean_row(rows: list[Row]) -> Row:
    numbers = [name for name, value in rows[0].items() if isinstance(value, float | np.floating)]
    return {"set": "mean"} | {name: float(np.mean([row[name] for row in rows])) for name in numbers}


def comparison(rows: list[Row], peers: tuple[str, ...]) -> list[str]:
    """A line per peer: mean accuracies of both, and the set where we are furthest behind it."""
    lines = []
    for peer in peers:
        ours, theirs = (float(np.mean([row[name] for row in rows])) for name in ("accuracy", peer))
        worst = min(rows, key=lambda row: row["accuracy"] - row[peer])
        lines.append(
            f"gradbase {ours:.1f}, {peer} {theirs:.1f}: {ours - theirs:+.1f} points,"
            f" errors {(100 - ours) / (100 - theirs):.2f} times the peer's;"
            f" at worst {worst['accuracy'] - worst[peer]:+.1f} on {worst['set']}"
        )
    return lines


def gather(
    folder: Path, wanted: Callable[[str], bool], skip: set[str], peers: tuple[str, ...], rounds: int
) -> dict[str, list[Row]]:
    crowds = sorted(path for path in (folder / "crowd").iterdir() if path.is_dir() and wanted(path.name))
    found: dict[str, list[Row]] = {"plain": [plain(path, peers) for path in crowds]}
    if "features" not in skip:
        found["features"] = [row for path in crowds if (row := featured(path)) is not None]
    if "numbers" not in skip and (folder / "numeric").exists():
        found["numbers"] = [numeric(path) for path in sorted((folder / "numeric").iterdir())]
    if "next" not in skip:
        for path in (path for path in crowds if path.name in ("possent", "rte")):
            rows = [bought(path, seed, rounds) for seed in range(BUYERS)]
            error = float(np.std([row["short_of_all"] for row in rows], ddof=1) / len(rows) ** 0.5)
            mean = mean_row(rows) | {"set": f"{path.name} mean", "standard_error": error}
            found["next"] = found.get("next", []) + [*rows, mean]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="", help="names, comma-separated; all by default")
    parser.add_argument("--skip", default="", help="of features, numbers, next, peers")
    parser.add_argument("--rounds", type=int, default=30, help="in which labels are bought")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen, skip = set(filter(None, options.sets.split(","))), set(options.skip.split(","))
    peers = () if "peers" in skip or importlib.util.find_spec("crowdkit") is None else PEERS
    if not peers:
        print("peers are left out: pip install 'gradbase[peers]'", file=sys.stderr)
    found = gather(options.data, lambda name: not chosen or name in chosen, skip, peers, options.rounds)
    compared = comparison(found["plain"], peers)
    found["plain"].append(mean_row(found["plain"]))
    for title, rows in found.items():
        if rows:
            show(title, rows)
    print(*compared, sep="\n")
    if options.json:
        options.json.write_text(json.dumps(found, default=float, indent=1))


if __name__ == "__main__":
    main()
