"""For tests of engines: the suite that every engine of the store passes, on one host, on Ray, and simulated.

An engine runs a *trial* (a job, so many workers, and who is killed when) with real machines and tells what the
machines noted and what the values were in the end. What is checked is what `store/README.md` promises, nothing of
how.
"""

from __future__ import annotations

from gradbase.cluster.testing._checks import batches_used, check_engine, engine_checks
from gradbase.cluster.testing._trials import Death, Engine, Result, Trial

__all__ = ["Death", "Engine", "Result", "Trial", "batches_used", "check_engine", "engine_checks"]
