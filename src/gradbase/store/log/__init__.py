"""The log of a shard: records with checksums, made durable in groups."""

from gradbase.store.log._appender import SEGMENT_BYTES, Appender, DiskFullError, check_owner, open_log
from gradbase.store.log._contents import KINDS, RawUpdates, Updates, from_record, to_record
from gradbase.store.log._costs import (
    SchemeChoice,
    StepCosts,
    checkpoint_interval_us,
    checkpoint_loss,
    choose_scheme,
)
from gradbase.store.log._format import COORDINATOR, Record
from gradbase.store.log._reader import LogReader, Segment, Torn, has_segments, list_segments
from gradbase.store.log._writer import LogWriter

__all__ = [
    "COORDINATOR",
    "SEGMENT_BYTES",
    "Appender",
    "DiskFullError",
    "KINDS",
    "LogReader",
    "LogWriter",
    "RawUpdates",
    "Record",
    "SchemeChoice",
    "Segment",
    "StepCosts",
    "Torn",
    "Updates",
    "check_owner",
    "checkpoint_interval_us",
    "checkpoint_loss",
    "choose_scheme",
    "from_record",
    "has_segments",
    "list_segments",
    "open_log",
    "to_record",
]
