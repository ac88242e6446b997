"""How crowdsourced truth grows: CPU seconds and peak memory from 1e5 to 1e7 labels.

    python -m benchmarks.tables.crowd_scale [--labels 1e5,1e6,1e7] [--peer 1e6] [--json FILE]

Simulated labels of two classes, five an item, each size in a process of its own with one thread. Peak memory is the
process's whole, the columns that go in included. "files" is all of `gradbase crowd`, from a Parquet file of shuffled
rows with texts for ids to a Parquet file of truths. The peer is crowd-kit's Dawid-Skene with its default ten rounds,
where it is installed (pip install 'gradbase[peers]').
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def simulated(n_labels: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """item, worker, label, truth: workers are right in 75% on average; nobody labels an item twice."""
    generator = np.random.default_rng(seed)
    n_items, n_workers = n_labels // 5, max(50, n_labels // 2000)
    truth = generator.integers(0, 2, n_items)
    item = np.repeat(np.arange(n_items), 5)
    first = generator.integers(0, n_workers, n_items)
    worker = (first[:, None] + np.arange(5) * (n_workers // 5)).reshape(-1) % n_workers
    right = generator.random(len(item)) < generator.beta(6, 2, n_workers)[worker]
    return item, worker, np.where(right, truth[item], 1 - truth[item]), truth


def ours(n_labels: int) -> Row:
    from gradbase.tables.crowd import Claims, infer

    item, worker, label, truth = simulated(n_labels)
    claims = Claims(item, worker, label, np.arange(len(truth)), np.arange(worker.max() + 1), np.arange(2))
    start = time.process_time()
    result = infer(claims)
    return _row("gradbase", n_labels, start, float((result.value == truth).mean()))


def files(n_labels: int) -> Row:
    """The command, in a process of its own; its table is made in this one."""
    import pandas

    item, worker, label, truth = simulated(n_labels)
    with tempfile.TemporaryDirectory() as folder:
        labels, truths = Path(folder, "labels.parquet"), Path(folder, "truths.parquet")
        table = pandas.DataFrame({"item": item, "worker": worker, "label": label})
        table = table.sample(frac=1, random_state=0).assign(item=lambda rows: "item-" + rows["item"].astype(str))
        table.to_parquet(labels)
        command = [sys.executable, "-m", "gradbase", "crowd", str(labels), "--out", str(truths), "--quiet"]
        subprocess.run(command, check=True)
        found = pandas.read_parquet(truths)
    right = truth[found["item"].str.removeprefix("item-").astype(int)] == found["value"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "system": "gradbase, files",
        "labels": n_labels,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "accuracy": float(right.mean()),
    }


def peer(n_labels: int) -> Row:
    import pandas
    from crowdkit.aggregation import DawidSkene

    item, worker, label, truth = simulated(n_labels)
    table = pandas.DataFrame({"task": item, "worker": worker, "label": label})
    start = time.process_time()
    found = DawidSkene(n_iter=10).fit_predict(table)
    return _row("crowd-kit Dawid-Skene", n_labels, start, float((found.sort_index().to_numpy() == truth).mean()))


def _row(system: str, n_labels: int, start: float, accuracy: float) -> Row:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "system": system,
        "labels": n_labels,
        "cpu_s": time.process_time() - start,
        "peak_bytes": peak,
        "accuracy": accuracy,
    }


def alone(system: str, n_labels: int) -> Row:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tables.crowd_scale", "--one", system, "--labels", str(n_labels)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="1e5,1e6,1e7")
    parser.add_argument("--peer", default="1e6", help="size for the peer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=("ours", "files", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(float(size)) for size in options.labels.split(",")]
    if options.one:
        print(json.dumps({"ours": ours, "files": files, "peer": peer}[options.one](sizes[0])))
        return
    rows = [alone("files", size) for size in sizes] + [alone("ours", size) for size in sizes]
    if importlib.util.find_spec("crowdkit") is not None:
        rows.append(alone("peer", int(float(options.peer))))
    for row in rows:
        print(
            f"{row['system']:22} {row['labels']:>10,} labels {row['cpu_s']:8.1f} CPU s "
            f"{row['peak_bytes'] / 2**20:8.0f} MiB  accuracy {row['accuracy']:.4f}"
        )
    if rows[-1]["system"] != rows[0]["system"]:
        own = min(rows[len(sizes) : -1], key=lambda row: abs(row["labels"] - rows[-1]["labels"]))
        times = (rows[-1]["cpu_s"] / rows[-1]["labels"]) / (own["cpu_s"] / own["labels"])
        print(f"per label the peer takes {times:.1f} times the CPU time of gradbase at {own['labels']:,} labels")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
