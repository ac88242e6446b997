"""Tables in and out: any input becomes codes and names, any result a file that is whole or not there."""

from gradbase.tables.io._coded import CodedTable, read_coded
from gradbase.tables.io._columns import (
    ANSWER,
    ATTRIBUTE,
    CONFIDENCE,
    ITEM,
    LABEL,
    OBJECT,
    SOURCE,
    TIME,
    VALUE,
    WORKER,
    Role,
    resolve,
)
from gradbase.tables.io._machine import CLAIM_BYTES, available_bytes, needed_bytes
from gradbase.tables.io._outputs import TABLE_ENDINGS, Outputs
from gradbase.tables.io._scan import Scan
from gradbase.tables.io._scans import open_scan
from gradbase.tables.io._wide import FeatureTable, read_features, read_matrix, read_roles, read_texts
from gradbase.tables.io._workspace import Workspace, modules

__all__ = [
    "ANSWER",
    "ATTRIBUTE",
    "CLAIM_BYTES",
    "CONFIDENCE",
    "ITEM",
    "LABEL",
    "OBJECT",
    "SOURCE",
    "TABLE_ENDINGS",
    "TIME",
    "VALUE",
    "WORKER",
    "CodedTable",
    "FeatureTable",
    "Outputs",
    "Role",
    "Scan",
    "Workspace",
    "available_bytes",
    "modules",
    "needed_bytes",
    "open_scan",
    "read_coded",
    "read_features",
    "read_matrix",
    "read_roles",
    "read_texts",
    "resolve",
]
