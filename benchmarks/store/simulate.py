"""How fast the store's simulator runs, whether it is clean, and how many seeds each planted bug needs.

python -m benchmarks.store.simulate [--runs 10000] [--seed 0] [--rounds 5] [--plain-only] > simulate.json

An event is something handled: a message received by a machine, a tick of one, a part computed, a disk operation that
ended, a process started, a timer or a fault. Sends do not count, nor does what is lost. Rates include all that a run
takes: drawing its faults, and checking every invariant on its history.

Rates are of this process's CPU time; `heap_pairs_per_cpu_s` (one push and one pop on a small heap) says how fast the
machine was meanwhile, so that rates of a busy and of a quiet machine can be compared. Every round runs the same
seeds; the best and the median are given. The interpreter matters: one built with profile-guided optimization, as
distributions ship it, is faster than one built from source without.

Both ways to run are measured in turn: plain, the modules as they are, and compiled (`--compiled` of the simulator's
command; it takes mypy and a C compiler, and some two minutes the first time). That both had the same outcome of every
seed is asserted. The planted bugs are looked for in plain modules.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from statistics import median

from gradbase.cluster.simulator import Totals, compiled_folder, hunt
from tests.cluster.simulator.planted import PLANTED

HEAP_ROUNDS = 100_000
FINDS = 3  # how many failing seeds of every planted bug are looked for


def heap_pairs_per_cpu_s() -> float:
    random = Random(1).random
    heap = [(number, number) for number in range(20)]
    start_s = time.process_time()
    for number in range(HEAP_ROUNDS):
        heappush(heap, (heappop(heap)[0] + int(random() * 200), number))
    return HEAP_ROUNDS / (time.process_time() - start_s)


def measure(first: int, runs: int, folder: Path | None) -> dict[str, float | str]:
    """One hunt, in a process of its own. `folder`: where the compiled modules are; None: run the plain ones."""
    pace = heap_pairs_per_cpu_s()
    command = [sys.executable, "-m", "gradbase.cluster.simulator", "--runs", str(runs), "--seed", str(first)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    summary = json.loads(done.stdout)
    assert summary["code"] == ("plain" if folder is None else "compiled"), summary
    return {
        "events_per_cpu_s": summary["events_per_cpu_s"],
        "receipts_per_cpu_s": round(summary["messages"] / summary["cpu_s"]),
        "runs_per_cpu_s": summary["runs_per_cpu_s"],
        "events_per_run": round(summary["events"] / summary["runs"], 1),
        "heap_pairs_per_cpu_s": round(pace),
        "failed": len(summary["failed_seeds"]),
        "outcomes_crc32": summary["outcomes_crc32"],
    }


def of_rounds(rounds: list[dict[str, float | str]]) -> dict[str, object]:
    rates = [float(measured["events_per_cpu_s"]) for measured in rounds]
    return {"events_per_cpu_s": {"best": max(rates), "median": median(rates)}, "rounds": rounds}


def seeds_to_find(name: str) -> dict[str, object]:
    """The first seeds that show a planted bug, and the invariant that is broken first."""
    planted = PLANTED[name]
    found: Totals = hunt(range(FINDS * planted.seeds_max), planted.machines, planted.job, failures_max=FINDS)
    return {
        "bug": name,
        "seeds": [outcome.plan.seed for outcome in found.failed],
        "broken": sorted({outcome.violations[0].invariant for outcome in found.failed}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2_000, help="seeds a round (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain-only", action="store_true", help="compile nothing")
    options = parser.parse_args()
    folders = {"plain": None} if options.plain_only else {"plain": None, "compiled": compiled_folder()}
    rounds: dict[str, list[dict[str, float | str]]] = {code: [] for code in folders}
    for _ in range(options.rounds):
        for code, folder in folders.items():
            rounds[code].append(measure(options.seed, options.runs, folder))
    outcomes = {measured["outcomes_crc32"] for measured in sum(rounds.values(), [])}
    assert len(outcomes) == 1, outcomes
    report = {
        "python": platform.python_version(),
        "build": platform.python_compiler(),
        "machine": platform.machine(),
        **{code: of_rounds(measured) for code, measured in rounds.items()},
        "planted": [seeds_to_find(name) for name in PLANTED],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
