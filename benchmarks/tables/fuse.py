"""Fusion: accuracy on sets of conflicting claims, beside peers in the same run.

    python -m benchmarks.tables.fuse --data DIR [--sets NAME,...] [--no-ablations] [--json FILE]

DIR holds fusion/NAME/ with claims.csv (object, attribute, source, value), gold.csv (object, attribute, value) and maybe
hierarchy.csv (ID, name, parentID), and numeric/NAME/ with labels.csv (item, worker, value) and gold.csv (item, value).

An item counts when it has gold and at least one claim. An answer is right when its key is that of the gold value
(`gradbase.tables.fuse.normalise` with the attribute's kind); a peer whose best values are tied gets the right one's
share. Numeric sets: mean absolute error. One configuration for all sets; "no hierarchy" is the same one without the
file, for comparison with peers that have none. Times are process CPU seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables.fuse_peers import PEERS, Votes
from gradbase.tables.fuse import Claims, Config, Hierarchy, Result, infer, normalise

Item = tuple[str, str]
Row = dict[str, Any]

ABLATIONS: dict[str, Config] = {
    "copies off": Config(copies="off"),
    "copies ungated": Config(copies="ungated"),
    "no similarity": Config(similarity=False),
    "no similarity, copies off": Config(similarity=False, copies="off"),
    "no similarity, copies ungated": Config(similarity=False, copies="ungated"),
}


def read(path: Path) -> dict[str, list[str]]:
    """A file as columns."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return {name: [row[k] for row in rows[1:]] for k, name in enumerate(rows[0])}


def read_hierarchy(folder: Path) -> Hierarchy | None:
    if not (folder / "hierarchy.csv").exists():
        return None
    table = read(folder / "hierarchy.csv")
    return Hierarchy.from_nodes(table["ID"], table["name"], table["parentID"])


def read_gold(path: Path) -> dict[Item, str]:
    """The first gold value of each item."""
    table, gold = read(path), {}
    for o, a, value in zip(table["object"], table["attribute"], table["value"], strict=True):
        gold.setdefault((o, a), value)
    return gold


def fused(claims: Claims, config: Config, hierarchy: Hierarchy | None) -> tuple[Result, float]:
    start = time.process_time()
    result = infer(claims, hierarchy=hierarchy, config=config)
    return result, time.process_time() - start


def score(claims: Claims, result: Result, gold: Mapping[Item, str]) -> Row:
    """Accuracy and calibration of a result."""
    right, believed = [], []
    columns = (result.truths[name] for name in ("object", "attribute", "value", "probability"))
    for o, a, value, probability in zip(*columns, strict=True):
        item = claims.object_names[o], claims.attribute_names[a]
        if item in gold:
            one, other = normalise(result.kinds[item[1]], [value, gold[item]])
            right.append(one == other)
            believed.append(probability)
    return {
        "accuracy": 100 * float(np.mean(right)),
        "items": len(right),
        "calibration_error": calibration_error(np.array(believed), np.array(right, dtype=np.float64)),
        "copies": len(result.copies["copier"]),
    }


def calibration_error(believed: Any, right: Any) -> float:
    """Expected calibration error in ten bins of equal width."""
    bins = np.clip((believed * 10).astype(int), 0, 9)
    return float(sum(abs((believed - right)[bins == b].sum()) for b in range(10)) / len(right))


def votes_of(table: Mapping[str, list[str]], kinds: Mapping[str, str]) -> tuple[Votes, list[Item], list[Any]]:
    """Different claims as the peers take them, the items, and the keys of the candidates."""
    keys: list[Any] = [None] * len(table["value"])
    for attribute in set(table["attribute"]):
        rows = [i for i, a in enumerate(table["attribute"]) if a == attribute]
        for i, key in zip(rows, normalise(kinds[attribute], [table["value"][i] for i in rows]), strict=True):
            keys[i] = key
    columns = zip(table["object"], table["attribute"], keys, table["source"], strict=True)
    rows_of = sorted({row for row in columns if row[2] is not None}, key=repr)
    items: dict[Item, int] = {}
    candidates: dict[tuple[Item, Any], int] = {}
    sources: dict[str, int] = {}
    coded = []
    for o, a, key, source in rows_of:
        items.setdefault((o, a), len(items))
        coded.append((candidates.setdefault(((o, a), key), len(candidates)), sources.setdefault(source, len(sources))))
    codes = np.array(coded, dtype=np.int64)
    item_of = np.array([items[item] for item, _ in candidates], dtype=np.int64)
    return Votes(codes[:, 0], codes[:, 1], item_of), list(items), [key for _, key in candidates]


def score_peers(table: Mapping[str, list[str]], kinds: Mapping[str, str], gold: Mapping[Item, str]) -> list[Row]:
    votes, items, keys = votes_of(table, kinds)
    wanted = {i: normalise(kinds[item[1]], [gold[item]])[0] for i, item in enumerate(items) if item in gold}
    is_gold = np.array([wanted.get(i) == key for i, key in zip(votes.item_of.tolist(), keys, strict=True)])
    rows = []
    for name, peer in PEERS.items():
        start = time.process_time()
        scores = peer(votes)
        seconds = time.process_time() - start
        top = np.full(votes.items, -np.inf)
        np.maximum.at(top, votes.item_of, scores)
        best = scores >= top[votes.item_of] - 1e-9 * np.maximum(1, np.abs(top[votes.item_of]))
        share = votes.by_item((best & is_gold).astype(np.float64)) / votes.by_item(best.astype(np.float64))
        accuracy = 100 * float(share[list(wanted)].mean())
        rows.append({"system": name, "accuracy": accuracy, "items": len(wanted), "cpu_s": seconds})
    return rows


def measure_fusion(folder: Path, ablations: bool) -> list[Row]:
    """All systems on one set of claims."""
    table, gold, hierarchy = read(folder / "claims.csv"), read_gold(folder / "gold.csv"), read_hierarchy(folder)
    claims = Claims.from_columns(table["object"], table["attribute"], table["source"], table["value"])
    settings = [("gradbase", Config(), hierarchy)]
    if hierarchy is not None:
        settings.append(("gradbase, no hierarchy", Config(), None))
    if ablations:
        settings += [(name, config, hierarchy) for name, config in ABLATIONS.items()]
    rows = []
    for name, config, places in settings:
        result, seconds = fused(claims, config, places)
        rows.append({"system": name, **score(claims, result, gold), "cpu_s": seconds})
        kinds = rows[0].setdefault("kinds", dict(result.kinds))
    return [{"set": folder.name, **row} for row in (*score_peers(table, kinds, gold), *rows)]


def fused_numbers(table: Mapping[str, list[str]], config: Config) -> tuple[dict[str, float], float]:
    """The truth of every item, and CPU seconds."""
    values = [float(value) for value in table["value"]]
    claims = Claims.from_columns(table["item"], ["value"] * len(values), table["worker"], values)
    result, seconds = fused(claims, config, None)
    columns = result.truths["object"], result.truths["value"]
    return {claims.object_names[o]: v for o, v in zip(*columns, strict=True)}, seconds


def read_numeric(folder: Path) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Labels and gold."""
    table, gold = read(folder / "labels.csv"), read(folder / "gold.csv")
    return table, dict(zip(gold["item"], map(float, gold["value"]), strict=True))


def mean_absolute_error(answer: Mapping[str, float], gold: Mapping[str, float]) -> float:
    return float(np.mean([abs(answer[item] - gold[item]) for item in gold if item in answer]))


def measure_numeric(folder: Path) -> list[Row]:
    """Mean absolute errors on one set of measured numbers."""
    table, gold = read_numeric(folder)
    by_item: dict[str, list[float]] = {}
    for item, value in zip(table["item"], table["value"], strict=True):
        by_item.setdefault(item, []).append(float(value))
    found, seconds = fused_numbers(table, Config())
    answers = {
        "mean": {item: float(np.mean(v)) for item, v in by_item.items()},
        "median": {item: float(np.median(v)) for item, v in by_item.items()},
        "gradbase": found,
    }
    return [
        {
            "set": folder.name,
            "system": name,
            "mean_absolute_error": mean_absolute_error(answer, gold),
            "items": sum(item in answer for item in gold),
            "cpu_s": seconds if name == "gradbase" else None,
        }
        for name, answer in answers.items()
    ]


def summary(rows: list[Row]) -> list[Row]:
    """The mean accuracy of every system that ran on all sets of claims."""
    told = [row for row in rows if "accuracy" in row]
    sets = {row["set"] for row in told}
    systems = dict.fromkeys(row["system"] for row in told)
    means = []
    for system in systems:
        own = [row for row in told if row["system"] == system]
        if {row["set"] for row in own} == sets:
            means.append({"set": "mean", "system": system, "accuracy": float(np.mean([r["accuracy"] for r in own]))})
    return means


def comparison(means: list[Row]) -> str:
    """Our default beside the best peer that ran on the same sets."""
    ours = {row["system"]: row["accuracy"] for row in means if row["system"].startswith("gradbase")}
    peers = {row["system"]: row["accuracy"] for row in means if row["system"] in PEERS}
    own, best = ours["gradbase"], max(peers, key=peers.__getitem__)
    errors = (100 - own) / (100 - peers[best])
    return f"gradbase {own:.1f}, best peer {best} {peers[best]:.1f}: errors {errors:.2f} times the peer's"


def printed(row: Row) -> str:
    measure, value = next((name, row[name]) for name in ("accuracy", "mean_absolute_error") if name in row)
    error = f"  calibration error {row['calibration_error']:.3f}" if "calibration_error" in row else ""
    seconds = f"  {row['cpu_s']:.1f} CPU s" if row.get("cpu_s") is not None else ""
    return f"{row['set']:<12} {row['system']:<30} {measure} {value:6.2f}{error}{seconds}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables.fuse", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder with fusion/ and numeric/")
    parser.add_argument("--sets", type=lambda text: text.split(","), help="names of sets; all by default")
    parser.add_argument("--no-ablations", action="store_true", help="the default configuration and the peers alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for folder in sorted(arguments.data.glob("fusion/*")) + sorted(arguments.data.glob("numeric/*")):
        if arguments.sets is None or folder.name in arguments.sets:
            told = folder.parent.name == "fusion"
            found = measure_fusion(folder, not arguments.no_ablations) if told else measure_numeric(folder)
            rows += found
            print(*map(printed, found), sep="\n", flush=True)
    rows += (means := summary(rows))
    print(*map(printed, means), sep="\n")
    if means:
        print(comparison(means))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
