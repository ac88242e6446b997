"""`gradbase fuse`: from the claims of many sources to what is true."""

from __future__ import annotations

import argparse

from gradbase.cli._console import Console
from gradbase.cli._operators import Operator, of_claims, operate, pairs

_FUSE = Operator(
    name="fuse",
    title="Fusion",
    tables={
        "out": "truths",
        "sources-out": "sources",
        "copies-out": "copies",
        "why-out": "why",
        "history-out": "history",
        "next-out": "next",
    },
    inputs=("input", "gold", "hierarchy", "source_features", "state_in"),
    read=lambda found: {"kinds": found.kinds},
    summary=lambda found: {name: found.counts[name] for name in ("items", "copies")},
)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """What claims say together. Raises TableError."""
    return operate(
        _FUSE,
        arguments,
        console,
        **of_claims(arguments),
        kinds=pairs(arguments.kinds, "--kinds"),
        hierarchy=arguments.hierarchy,
        source_features=arguments.source_features,
        copies=arguments.copies,
    )
