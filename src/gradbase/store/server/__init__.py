"""A store that listens: coordinator and shards in one process, workers on any host that has the token."""

from gradbase.store.server._pages import Gradients, TensorPages
from gradbase.store.server._server import StoreServer
from gradbase.store.server._worker import Compute, RemoteWorker

__all__ = ["Compute", "Gradients", "RemoteWorker", "StoreServer", "TensorPages"]
