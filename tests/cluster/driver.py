"""`python -m tests.cluster.driver ENGINE STORE STEPS LOGGING [CODEC]`: a job that is to be killed.

Of two workers under bsp, unless WORKERS and CONSISTENCY say otherwise. Goes on from the store where there is one.
Prints "step N" for every gradient (not under bsp: the N-th batch), at last the digest of the parameters. ENGINE: local,
ray (slab) or wire (Ray without), the latter two on the cluster that RAY_ADDRESS names.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from gradbase.cluster import storage
from gradbase.cluster.job import Request
from gradbase.cluster.steward import StepReport
from gradbase.store.machine import parse_consistency
from tests.cluster import recipes


def main() -> None:
    kind, store, steps, logging, *codec = sys.argv[1:]
    storage._MTBF_US = 1e4  # checkpoints are taken all the time, so that a job that is killed goes back to one
    path = Path(store)
    consistency, staleness_steps = parse_consistency(os.environ.get("CONSISTENCY", "bsp"))
    request = Request(
        functools.partial(recipes.build, pause_s=0.01),
        int(os.environ.get("WORKERS", "2")),
        int(steps),
        consistency,
        staleness_steps,
        durability="wal",
        store=path,
        resume=storage.is_store(path),
        logging=logging,  # type: ignore[arg-type]
        codec=codec[0] if codec else None,
    )

    def tell(report: StepReport) -> None:
        print("step", report.step if consistency == "bsp" else report.batch + 1, flush=True)

    outcome = engine(kind)(request, on_report=tell).run()
    print("lost", outcome.lost, "steps", outcome.steps, flush=True)
    print("digest", recipes.digest(outcome.model), flush=True)


def engine(kind: str) -> Any:
    if kind == "local":
        from gradbase.cluster.local import LocalEngine

        return LocalEngine
    from gradbase.cluster.ray import RayEngine

    return functools.partial(RayEngine, address="auto", wire=kind == "wire")


if __name__ == "__main__":
    main()
