"""The engine of one host: worker processes over shared memory."""

from gradbase.cluster.local._choice import StoreChoice
from gradbase.cluster.local._engine import Launcher, LocalEngine, check_workers
from gradbase.cluster.local._memory import LocalMemory, Map, SharedPages
from gradbase.cluster.local._slab import Slab
from gradbase.cluster.local._task import Task, equip

__all__ = [
    "Launcher",
    "LocalEngine",
    "LocalMemory",
    "Map",
    "SharedPages",
    "Slab",
    "StoreChoice",
    "Task",
    "check_workers",
    "equip",
]
