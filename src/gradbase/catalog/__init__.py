"""The catalogue: measured statistics in one SQLite file that several processes write and the user queries."""

from gradbase.catalog._catalog import Catalog, default_path
from gradbase.catalog._records import OperatorStatistics, RunRecord, TierStatistics, medium_of, merge
from gradbase.catalog._tables import TABLES, Column, Table, describe

__all__ = [
    "TABLES",
    "Catalog",
    "Column",
    "OperatorStatistics",
    "RunRecord",
    "Table",
    "TierStatistics",
    "default_path",
    "describe",
    "medium_of",
    "merge",
]
