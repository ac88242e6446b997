"""The engine of several machines: Ray places workers on nodes and starts them again."""

from gradbase.cluster.ray._engine import RayEngine

__all__ = ["RayEngine"]
