"""Runs the machines of a job in one thread, and has servants move the bytes."""

from gradbase.cluster.steward._crew import Worker
from gradbase.cluster.steward._steward import ResidualsLost, ShardStatus, StepReport, Steward
from gradbase.cluster.steward._storage import Storage

__all__ = ["ResidualsLost", "ShardStatus", "StepReport", "Steward", "Storage", "Worker"]
