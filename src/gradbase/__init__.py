"""gradbase: training steps planned, explained and run inside a memory budget, the way a database runs queries."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradbase.common.errors import (
    CaptureError,
    CatalogError,
    GradbaseError,
    InfeasibleError,
    PageError,
    StepError,
    TableError,
    UsageError,
)

if TYPE_CHECKING:
    from gradbase.compiled import Explanation, GradientStep, Step, compile, compile_gradients
    from gradbase.tables.api import crowd, fuse, match

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CatalogError",
    "Explanation",
    "GradbaseError",
    "GradientStep",
    "InfeasibleError",
    "PageError",
    "Step",
    "StepError",
    "TableError",
    "UsageError",
    "compile",
    "compile_gradients",
    "crowd",
    "fuse",
    "match",
]

_FROM_COMPILED = {"Explanation", "GradientStep", "Step", "compile", "compile_gradients"}
_FROM_TABLES = {"crowd", "fuse", "match"}


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed: plans can be read and explained without it."""
    if name in _FROM_COMPILED:
        from gradbase import compiled

        return getattr(compiled, name)
    if name in _FROM_TABLES:
        return getattr(importlib.import_module("gradbase.tables.api"), name)  # by name: rooms below import this module
    raise AttributeError(f"module 'gradbase' has no attribute {name!r}")
