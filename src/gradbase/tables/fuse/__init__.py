"""Knowledge fusion: what is true when sources disagree, who is how reliable, who copies whom, and why."""

from gradbase.tables.fuse._types import (
    AttributeOptions,
    Claims,
    Config,
    Hierarchy,
    Result,
    Statistics,
    Table,
)

__all__ = [
    "AttributeOptions",
    "Claims",
    "Config",
    "Hierarchy",
    "Result",
    "Statistics",
    "Table",
]
