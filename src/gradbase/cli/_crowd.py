"""`gradbase crowd`: from the labels of many workers to what is true."""

from __future__ import annotations

import argparse

from gradbase.cli._console import Console
from gradbase.cli._operators import Operator, of_claims, on_progress, operate

_CROWD = Operator(
    name="crowd",
    title="Crowd",
    tables={
        "out": "truths",
        "workers-out": "workers",
        "copies-out": "copies",
        "why-out": "why",
        "next-out": "next",
    },
    inputs=("input", "gold", "features", "feature_items", "state_in"),
    read=lambda found: {"kind": found.kind},
    summary=lambda found: {"items": found.truths.num_rows, "workers": found.workers.num_rows},
)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """What labels say together. Raises TableError."""
    return operate(
        _CROWD,
        arguments,
        console,
        **of_claims(arguments),
        kind=arguments.kind,
        features=arguments.features,
        feature_items=arguments.feature_items,
        catalog=arguments.catalog,
        on_progress=on_progress(console),
    )
