"""How fusion grows: CPU seconds and peak memory from 1e5 to 1e7 claims.

    python -m benchmarks.tables.fuse_scale [--claims 1e5,1e6,1e7] [--values 200] [--json FILE]

Simulated claims of one attribute with an open domain of `--values` names, five claims an item, sources that are right
in 75% on average and some that copy from another; each size in a process of its own with one thread. Peak memory is the
process's whole, less what Python and the columns that go in take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PER_ITEM = 5
COPIERS = 0.1
Row = dict[str, Any]


def simulated(count: int, values: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """item, source, value of every claim, and the truths: codes. No source speaks twice of an item; of every ten
    sources one says what its neighbour said, where it can."""
    generator = np.random.default_rng(seed)
    items, sources = count // PER_ITEM, max(50, count // 2000)
    truth = generator.integers(0, values, items)
    item = np.repeat(np.arange(items), PER_ITEM)
    first = generator.integers(0, sources, items)
    source = ((first[:, None] + np.arange(PER_ITEM)) % sources).reshape(-1)
    right = generator.random(len(item)) < generator.beta(6, 2, sources)[source]
    value = np.where(right, truth[item], generator.integers(0, values, len(item)))
    copies = np.flatnonzero((generator.random(sources) < COPIERS)[source] & (np.arange(len(item)) % PER_ITEM > 0))
    value[copies] = value[copies - 1]
    return item, source, value, truth


def measure(count: int, values: int) -> Row:
    from gradbase.tables.fuse import Claims, infer

    item, source, value, truth = simulated(count, values)
    names = np.array([f"value {v}" for v in range(values)], dtype=np.object_)
    objects, sources = ([f"o{k}" for k in range(len(truth))], [f"s{k}" for k in range(source.max() + 1)])
    claims = Claims(item, np.zeros_like(item), source, names[value], objects, ["x"], sources)
    start, before = time.process_time(), peak_bytes()
    truths = infer(claims).truths
    found = np.array([int(v.split()[1]) for v in truths["value"]])
    return {
        "claims": count,
        "cpu_s": time.process_time() - start,
        "peak_bytes": peak_bytes() - before,
        "accuracy": float((found == truth[truths["object"]]).mean()),
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(count: int, values: int) -> Row:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tables.fuse_scale", "--one", "--claims", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--values", str(values)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables.fuse_scale", description=__doc__.splitlines()[0])
    parser.add_argument("--claims", default="1e5,1e6,1e7")
    parser.add_argument("--values", type=int, default=200, help="size of the domain")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(float(size)) for size in options.claims.split(",")]
    if options.one:
        print(json.dumps(measure(sizes[0], options.values)))
        return
    rows = []
    for size in sizes:
        rows.append(row := alone(size, options.values))
        print(
            f"{row['claims']:>10,} claims {row['cpu_s']:8.1f} CPU s {row['peak_bytes'] / 2**20:8.0f} MiB"
            f" ({row['peak_bytes'] / row['claims']:.0f} bytes a claim)  accuracy {row['accuracy']:.4f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
