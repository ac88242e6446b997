"""gradbase beside its peers: `python -m benchmarks.run`.

Every measurement is a process of its own (`benchmarks.worker`), one at a time. Each system runs once with the
allocator that shows memory, then in rounds for time: a round runs every system once, eager first, and a system's time
ratio is the median over rounds of its step time by that of eager in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import memory, report

Row = dict[str, Any]

RECIPES = Path(__file__).parent / "recipes"
WORKLOADS = ("gpt2", "resnet50", "unet", "bert", "lstm", "mlp")
PEERS = ("checkpoint", "disk")
COMPILE_BUDGETS = ("1.0", "0.5", "0.2", "0.0")
MEMORY_STEPS = 2  # the first makes the optimizer's state, the second is measured
TIME_STEPS = 8  # also the steps after which parameters are compared with eager's; the first two warm up


def main() -> None:
    arguments = _arguments()
    results = []
    for workload in arguments.workloads:
        results.append(measure_workload(workload, arguments))
        print(report.table(results[-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report.markdown(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--budgets", type=_names, default=("100", "75", "50", "35"), help="percent of eager's peak")
    parser.add_argument("--peers", type=_names, default=PEERS, help='of checkpoint, disk, compile; "" for none')
    parser.add_argument("--compile-budgets", type=_names, default=COMPILE_BUDGETS, help="of torch.compile, 0 to 1")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of time runs; 0 measures memory alone")
    parser.add_argument("--brief", action="store_true", help="do not time the least memory and the peers' memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    arguments = parser.parse_args()
    unknown = set(arguments.peers) - {*PEERS, "compile"}
    if unknown:
        parser.error(f"--peers {', '.join(sorted(unknown))}: expected some of checkpoint,disk,compile")
    return arguments


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def measure_workload(workload: str, arguments: argparse.Namespace) -> Row:
    """All systems on one recipe: memory first, then rounds of time."""
    with tempfile.TemporaryDirectory(prefix="gradbase-bench-") as folder:
        bench = Bench(workload, Path(folder) / "catalog.sqlite")
        first_planning = bench.run_worker("gradbase-100%", TIME_STEPS)  # fills the catalogue: the others plan from it
        held = {system: bench.run_worker(system, MEMORY_STEPS, "--memory") for system in _systems(arguments)}
        timed = [system for system in held if not (arguments.brief and system == "gradbase-least")]
        if not arguments.brief:
            matched = _at_the_memory_of_peers(held)
            held |= {system: bench.run_worker(system, MEMORY_STEPS, "--memory") for system in matched}
            timed += matched
        rounds = [_round(bench, timed, index) for index in range(arguments.rounds)]
    return {
        "workload": workload,
        "first_planning_s": first_planning.get("planning_s"),
        "systems": [summary(system, held, rounds) for system in held],
    }


def _systems(arguments: argparse.Namespace) -> Iterator[str]:
    yield "eager"
    for peer in arguments.peers:
        yield from (f"compile-{b}" for b in arguments.compile_budgets) if peer == "compile" else (peer,)
    for budget in arguments.budgets:
        yield f"gradbase-{budget}%"
    yield "gradbase-least"


def _at_the_memory_of_peers(held: dict[str, Row]) -> list[str]:
    """gradbase with what each memory-saving peer was seen to need as its budget: who is faster at equal memory?"""
    return [f"gradbase-{held[peer]['peak_bytes']}" for peer in PEERS if "peak_bytes" in held.get(peer, {})]


def _round(bench: Bench, systems: list[str], index: int) -> dict[str, Row]:
    """Eager first; the others start elsewhere each round, so that no one always runs on a warmer machine."""
    others = [system for system in systems if system != "eager"]
    turn = index % max(1, len(others))
    return {system: bench.run_worker(system, TIME_STEPS) for system in ["eager", *others[turn:], *others[:turn]]}


class Bench:
    """Starts workers for one recipe; gradbase's keep their statistics in `catalog`."""

    def __init__(self, workload: str, catalog: Path) -> None:
        self._recipe = RECIPES / f"{workload}.py"
        self._catalog = catalog

    def run_worker(self, system: str, steps: int, *flags: str) -> Row:
        """The worker's JSON line; `{"error": ...}` when it failed or was refused."""
        arguments = [str(self._recipe), system, "--steps", str(steps), "--catalog", str(self._catalog), *flags]
        allocator = memory.ENVIRONMENT if "--memory" in flags else {}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **allocator},
        )
        row: Row = json.loads(done.stdout) if done.returncode == 0 else {"error": _last_line(done.stderr)}
        print(f"{self._recipe.stem} {system}{' (memory)' if flags else ''}: {_brief(row)}", file=sys.stderr)
        return row


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "the worker died without a word"


def _brief(row: Row) -> str:
    if "error" in row:
        return row["error"].splitlines()[0]
    if "peak_bytes" in row:
        return f"peak {row['peak_bytes'] / 2**20:.1f} MiB"
    return f"{row['step_time_us'] / 1e6:.3f} s a step"


def summary(system: str, held: dict[str, Row], rounds: list[dict[str, Row]]) -> Row:
    """One line of the table: memory, time ratios to eager of the same round, equality, what gradbase predicted."""
    pairs = [(run[system], run["eager"]) for run in rounds if system in run]
    good = [(own, eager) for own, eager in pairs if "error" not in own and "error" not in eager]
    error = next((row["error"] for row in (held[system], *(own for own, _ in pairs)) if "error" in row), None)
    return {
        "system": system,
        "label": _label(system, held),
        "error": error,
        "memory": held[system],
        "times_us": [own["step_time_us"] for own, _ in good],
        "time_ratios": [own["step_time_us"] / eager["step_time_us"] for own, eager in good],
        "losses_equal": all(own["losses"] == eager["losses"] for own, eager in good) if good else None,
        "parameters_equal": _all_equal(good, "parameters_sha256"),
        "planning_s": [own["planning_s"] for own, _ in good if "planning_s" in own],
        "search_s": [own["search_s"] for own, _ in good if "search_s" in own],
        "build_s": [own["build_s"] + own["first_step_s"] for own, _ in good],
    }


def _label(system: str, held: dict[str, Row]) -> str:
    """ "gradbase-394190912" -> "gradbase at checkpoint's", the peer that needs so much."""
    for peer in PEERS:
        if system == f"gradbase-{held.get(peer, {}).get('peak_bytes')}":
            return f"gradbase at {peer}'s"
    return system.replace("-", " ", 1)


def _all_equal(pairs: list[tuple[Row, Row]], key: str) -> bool | None:
    return all(own[key] == eager[key] for own, eager in pairs) if pairs else None


if __name__ == "__main__":
    main()
