"""`gradbase fuse`: from the claims of many sources to what is true."""

from __future__ import annotations

import argparse
import time

from gradbase.cli._console import Console
from gradbase.cli._operators import (
    errors_on_one_line,
    finish,
    outputs,
    pairs,
    tell,
    tell_evaluation,
    tell_next,
    write_state,
)

_OUTPUTS = ("out", "sources-out", "copies-out", "why-out", "history-out", "next-out", "html", "state-out")
_INPUTS = ("input", "gold", "hierarchy", "source_features", "state_in")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Infer, write what was asked for, and say what was found. Raises TableError."""
    began = time.perf_counter()
    with errors_on_one_line(), outputs(arguments, _OUTPUTS, _INPUTS) as files:
        from gradbase.tables.api import fuse

        found = fuse(
            arguments.input,
            table=arguments.table,
            query=arguments.query,
            columns=pairs(arguments.columns, "--columns"),
            kinds=pairs(arguments.kinds, "--kinds"),
            hierarchy=arguments.hierarchy,
            source_features=arguments.source_features,
            gold=arguments.gold,
            next=arguments.next,
            state=arguments.state_in,
            copies=arguments.copies,
            seed=arguments.seed,
            memory=arguments.memory,
        )
        tell(console, found.counts, found.notes, kinds=found.kinds)
        for gate in found.gates.to_pylist():
            console.event("gate", **gate)
        files.table("--out", found.truths)
        files.table("--sources-out", found.sources)
        files.table("--copies-out", found.copies)
        files.table("--history-out", found.history)
        if "--why-out" in files:
            files.table("--why-out", found.why)
        if found.next is not None:
            files.table("--next-out", found.next)
        if "--html" in files:
            files.text("--html", found.html(f"Fusion: {arguments.input}"))
        write_state(files, "fuse", lambda: found.state)
        tell_evaluation(console, found.evaluation)
        tell_next(console, found.next)
        finish(console, files, began, items=found.counts["items"], copies=found.counts["copies"])
    return 0
