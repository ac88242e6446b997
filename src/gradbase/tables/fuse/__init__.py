"""Knowledge fusion: what is true when sources disagree, who is how reliable, who copies whom, and why."""

from gradbase.tables.fuse._infer import infer
from gradbase.tables.fuse._kinds import kinds, normalise, register_kind
from gradbase.tables.fuse._types import (
    AttributeOptions,
    Claims,
    Coded,
    Config,
    Hierarchy,
    Result,
    Statistics,
    Table,
)

__all__ = [
    "AttributeOptions",
    "Claims",
    "Coded",
    "Config",
    "Hierarchy",
    "Result",
    "Statistics",
    "Table",
    "infer",
    "kinds",
    "normalise",
    "register_kind",
]
