"""The engine of one host: worker processes over shared memory."""

from gradbase.cluster.local._engine import LocalEngine

__all__ = ["LocalEngine"]
