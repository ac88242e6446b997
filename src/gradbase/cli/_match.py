"""`gradbase match`: which records are about the same thing, and what they say of it together."""

from __future__ import annotations

import argparse

from gradbase.cli._console import Console
from gradbase.cli._operators import Operator, operate

_MATCH = Operator(
    name="match",
    title="Matching",
    tables={
        "out": "pairs",
        "clusters-out": "clusters",
        "claims-out": "claims",
        "golden-out": "golden",
        "why-out": "why",
    },
    inputs=("input", "other", "labelled", "gold"),
    read=lambda found: {},
    summary=lambda found: {name: found.counts[name] for name in ("matched", "clusters")},
    keeps_state=False,
)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Which records belong together. Raises TableError."""
    return operate(
        _MATCH,
        arguments,
        console,
        arguments.other,
        id=arguments.id,
        source_column=arguments.source_column,
        labelled=arguments.labelled,
        golden=arguments.golden_out is not None,
        threshold=arguments.threshold,
    )
