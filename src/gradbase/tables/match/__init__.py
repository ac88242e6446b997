"""Matching of records: which records of one or two tables are about the same thing."""

from gradbase.tables.match._types import BlockingStatistics, Config, Labelled, Records, Result, ScoredPairs

__all__ = ["BlockingStatistics", "Config", "Labelled", "Records", "Result", "ScoredPairs"]
