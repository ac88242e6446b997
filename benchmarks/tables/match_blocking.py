"""Blocking at scale: which share of the true pairs survives, and what finding the candidates costs.

    python -m benchmarks.tables.match_blocking [--records 10000,100000] [--seed 0] [--json]

Records are made up: six words of a vocabulary with Zipf's frequencies; the second table has each record again, a word
dropped from half of them and a letter from half.
"""

from __future__ import annotations

import argparse
import json
import random
import time

from gradbase.tables.match import Records
from gradbase.tables.match._blocking import candidates

VOCABULARY = 30_000
WORDS = 6


def words(chance: random.Random) -> list[str]:
    return ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(4, 8))) for _ in range(VOCABULARY)]


def damaged(record: list[str], chance: random.Random) -> str:
    """The record with a word or a letter less, or both, or neither."""
    kept = list(record)
    if chance.random() < 0.5:
        kept.pop(chance.randrange(len(kept)))
    if chance.random() < 0.5:
        k = chance.randrange(len(kept))
        place = chance.randrange(len(kept[k]))
        kept[k] = kept[k][:place] + kept[k][place + 1 :]
    return " ".join(kept)


def tables(count: int, seed: int) -> tuple[Records, Records]:
    """Two tables of `count` records, where row i of one is row i of the other."""
    chance = random.Random(seed)
    vocabulary = words(chance)
    weights = [1 / (k + 1) ** 0.9 for k in range(VOCABULARY)]
    rows = [chance.choices(vocabulary, weights, k=WORDS) for _ in range(count)]
    left = Records.from_columns({"text": [" ".join(r) for r in rows]}, name="a")
    return left, Records.from_columns({"text": [damaged(r, chance) for r in rows]}, name="b")


def measure(count: int, seed: int, most: int) -> dict[str, float]:
    a, b = tables(count, seed)
    start = time.process_time()
    left, right = candidates(a, b, most)
    cpu_s = time.process_time() - start
    found = int((left == right).sum())
    return {"records": count, "candidates": len(left), "recall": found / count, "cpu_s": round(cpu_s, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", default="10000,100000", help="records a table, by commas")
    parser.add_argument("--candidates", type=int, default=10, help="the most candidates of a record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    for count in map(int, options.records.split(",")):
        row = measure(count, options.seed, options.candidates)
        text = "{records:>9} records  {candidates:>10} candidates  recall {recall:.4f}  {cpu_s:.1f} CPU-s".format(**row)
        print(json.dumps(row) if options.json else text, flush=True)


if __name__ == "__main__":
    main()
