"""`gradbase crowd`: from the labels of many workers to what is true."""

from __future__ import annotations

import argparse
import time

from gradbase.cli._console import Console
from gradbase.cli._operators import (
    errors_on_one_line,
    finish,
    on_progress,
    outputs,
    pairs,
    tell,
    tell_evaluation,
    tell_next,
    write_state,
)

_OUTPUTS = ("out", "workers-out", "copies-out", "why-out", "next-out", "html", "state-out")
_INPUTS = ("input", "gold", "features", "feature_items", "state_in")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Infer, write what was asked for, and say what was found. Raises TableError."""
    began = time.perf_counter()
    with errors_on_one_line(), outputs(arguments, _OUTPUTS, _INPUTS) as files:
        from gradbase.tables.api import crowd

        found = crowd(
            arguments.input,
            table=arguments.table,
            query=arguments.query,
            columns=pairs(arguments.columns, "--columns"),
            kind=arguments.kind,
            features=arguments.features,
            feature_items=arguments.feature_items,
            gold=arguments.gold,
            next=arguments.next,
            state=arguments.state_in,
            seed=arguments.seed,
            memory=arguments.memory,
            catalog=arguments.catalog,
            on_progress=on_progress(console),
        )
        tell(console, found.counts, found.notes, kind=found.kind)
        files.table("--out", found.truths)
        files.table("--workers-out", found.workers)
        files.table("--copies-out", found.copies)
        if "--why-out" in files:
            files.table("--why-out", found.why)
        if found.next is not None:
            files.table("--next-out", found.next)
        if "--html" in files:
            files.text("--html", found.html(f"Crowd: {arguments.input}"))
        write_state(files, "crowd", lambda: found.state)
        tell_evaluation(console, found.evaluation)
        tell_next(console, found.next)
        finish(console, files, began, items=found.truths.num_rows, workers=found.workers.num_rows)
    return 0
