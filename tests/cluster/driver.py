"""`python -m tests.cluster.driver ENGINE STORE STEPS LOGGING [CODEC]`: a bsp job of two workers, to be killed.

Goes on from the store where there is one. Prints "step N" for every gradient, at last the digest of the parameters.
ENGINE: local, ray (slab) or wire (Ray without), the latter two on the cluster that RAY_ADDRESS names.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from gradbase.cluster import storage
from gradbase.cluster.job import Request
from tests.cluster import recipes

WORKERS = 2


def main() -> None:
    kind, store, steps, logging, *codec = sys.argv[1:]
    storage._MTBF_US = 1e4  # checkpoints are taken all the time, so that a job that is killed goes back to one
    path = Path(store)
    request = Request(
        functools.partial(recipes.build, pause_s=0.01),
        WORKERS,
        int(steps),
        durability="wal",
        store=path,
        resume=storage.is_store(path),
        logging=logging,  # type: ignore[arg-type]
        codec=codec[0] if codec else None,
    )
    outcome = engine(kind)(request, on_report=lambda report: print("step", report.step, flush=True)).run()
    print("lost", outcome.lost, flush=True)
    print("digest", recipes.digest(outcome.model), flush=True)


def engine(kind: str) -> Any:
    if kind == "local":
        from gradbase.cluster.local import LocalEngine

        return LocalEngine
    from gradbase.cluster.ray import RayEngine

    return functools.partial(RayEngine, address="auto", wire=kind == "wire")


if __name__ == "__main__":
    main()
