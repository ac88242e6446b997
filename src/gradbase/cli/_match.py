"""`gradbase match`: which records are about the same thing, and what they say of it together."""

from __future__ import annotations

import argparse
import time

from gradbase.cli._console import Console
from gradbase.cli._operators import errors_on_one_line, finish, outputs, tell, tell_evaluation

_OUTPUTS = ("out", "clusters-out", "claims-out", "golden-out", "why-out", "html")
_INPUTS = ("input", "other", "labelled", "gold")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Match, write what was asked for, and say what was found. Raises TableError."""
    began = time.perf_counter()
    with errors_on_one_line(), outputs(arguments, _OUTPUTS, _INPUTS) as files:
        from gradbase.tables.api import match

        found = match(
            arguments.input,
            arguments.other,
            id=arguments.id,
            source_column=arguments.source_column,
            labelled=arguments.labelled,
            gold=arguments.gold,
            golden="--golden-out" in files,
            threshold=arguments.threshold,
            seed=arguments.seed,
            memory=arguments.memory,
        )
        tell(console, found.counts, found.notes)
        files.table("--out", found.pairs)
        files.table("--clusters-out", found.clusters)
        files.table("--claims-out", found.claims)
        if found.golden is not None:
            files.table("--golden-out", found.golden)
        if "--why-out" in files:
            files.table("--why-out", found.why)
        if "--html" in files:
            files.text("--html", found.html(f"Matching: {arguments.input}"))
        tell_evaluation(console, found.evaluation)
        finish(console, files, began, matched=found.counts["matched"], clusters=found.counts["clusters"])
    return 0
