"""Matching of records: which records of one or two tables are about the same thing."""

from gradbase.tables.match._api import match, score_pairs
from gradbase.tables.match._claims import claims
from gradbase.tables.match._pairs import PairRows, pair_tables, score_pair_tables
from gradbase.tables.match._types import BlockingStatistics, Config, Labelled, Records, Result, ScoredPairs

__all__ = [
    "BlockingStatistics",
    "Config",
    "Labelled",
    "PairRows",
    "Records",
    "Result",
    "ScoredPairs",
    "claims",
    "match",
    "pair_tables",
    "score_pair_tables",
    "score_pairs",
]
