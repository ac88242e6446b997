"""python -m gradbase.cluster.simulator --runs 1000000: hunt for a seed that breaks an invariant of the store.

Standard output ends in one JSON object; what people read goes to standard error. Exit code 1: a seed was found.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from gradbase.cluster.simulator._compiled import is_compiled, run_compiled
from gradbase.cluster.simulator._hunt import Totals, hunt
from gradbase.cluster.simulator._plan import draw_plan
from gradbase.cluster.simulator._simulation import Outcome, Simulation
from gradbase.common.errors import GradbaseError, UsageError

PROGRESS_EVERY_RUNS = 5_000


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.runs < 1 or options.seed < 0:
            raise UsageError(f"{options.runs} runs from seed {options.seed}", "at least one run, and seeds from 0 on")
        if options.compiled:
            return run_compiled(_plain_arguments(options))
        return _show(options.seed) if options.history else _hunt(options.seed, options.runs, options.failures)
    except GradbaseError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m gradbase.cluster.simulator", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000, help="how many seeds, one run each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many failing seeds (%(default)s)")
    parser.add_argument("--history", action="store_true", help="print all that was noted in the run of --seed")
    parser.add_argument("--compiled", action="store_true", help="run compiled code: the same, faster; builds it first")
    return parser


def _plain_arguments(options: argparse.Namespace) -> list[str]:
    numbers = [f"--{name}={getattr(options, name)}" for name in ("runs", "seed", "failures")]
    return [*numbers, "--history"] if options.history else numbers


def _hunt(first: int, runs: int, failures_max: int) -> int:
    totals = hunt(range(first, first + runs), failures_max=failures_max, on_run=_progress)
    for outcome in totals.failed:
        _tell(outcome)
    print(json.dumps(_summary(first, totals)))
    return 1 if totals.failed else 0


def _summary(first: int, totals: Totals) -> dict[str, object]:
    return {
        "event": "summary",
        "first_seed": first,
        "runs": totals.runs,
        "failed_seeds": [outcome.plan.seed for outcome in totals.failed],
        "events": totals.events,
        "messages": totals.messages,
        "terms": totals.terms,
        "virtual_s": totals.virtual_us / 1e6,
        "cpu_s": round(totals.cpu_s, 3),
        "events_per_cpu_s": round(totals.events_per_cpu_s),
        "runs_per_cpu_s": round(totals.runs / totals.cpu_s, 1),
        "outcomes_crc32": f"{totals.outcomes_crc32:08x}",
        "code": "compiled" if is_compiled() else "plain",
    }


def _progress(totals: Totals) -> None:
    if totals.runs % PROGRESS_EVERY_RUNS == 0:
        rate = totals.events_per_cpu_s / 1e3
        print(f"{totals.runs} runs, {len(totals.failed)} failed, {rate:.0f}k events per CPU-second", file=sys.stderr)


def _tell(outcome: Outcome) -> None:
    print(f"seed {outcome.plan.seed} breaks the store\n  {outcome.plan}", file=sys.stderr)
    for violation in outcome.violations[:5]:
        print(f"  {violation}", file=sys.stderr)
    print(f"  again, with its history: --seed {outcome.plan.seed} --history", file=sys.stderr)


def _show(seed: int) -> int:
    simulation = Simulation(draw_plan(seed))
    outcome = simulation.run()
    for position, note in enumerate(simulation.history):
        print(position, note)
    for violation in outcome.violations:
        print(violation)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
