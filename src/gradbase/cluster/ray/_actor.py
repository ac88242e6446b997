"""The process of a Ray actor: a servant that calls home."""

from __future__ import annotations

import os
import pickle
import secrets
import sys
from dataclasses import dataclass

import torch

from gradbase.cluster.channel import Channel
from gradbase.cluster.local import Map, Slab, Task, equip
from gradbase.cluster.ray._remote import RemoteMemory
from gradbase.cluster.servant import Memory, serve
from gradbase.cluster.worker import BatchStream, Learner, Recipe
from gradbase.common.errors import GradbaseError
from gradbase.store.wire import TimedStream, connect, dial, introduce, parse_address

_HANDSHAKE_S = 5.0


@dataclass(frozen=True)
class Home:
    """Where an actor calls: for commands, for pages, and where the slab is if it is on the same host, and its name."""

    commands: str
    pages: str
    token: str
    slab_path: str
    slab_name: int


class Servant:
    """The actor. Its constructor is cheap; `serve` returns when the job is over."""

    def __init__(self, path: list[str], task: bytes, home: Home) -> None:
        sys.path.extend(folder for folder in path if folder not in sys.path)  # the recipe lies in one of them
        self._task: Task = pickle.loads(task)
        self._home = home

    def serve(self) -> None:
        """Build the recipe, call home, and do what is asked. Called again by Ray after a restart."""
        task, home = self._task, self._home
        torch.set_num_threads(1)  # as in the fork server, so that the same values come out
        recipe = task.build()
        torch.set_num_threads(task.threads)
        where = task.map()
        number = secrets.randbits(62)
        sock = dial(parse_address(home.commands), _HANDSHAKE_S)
        introduce(TimedStream(sock, _HANDSHAKE_S), home.token.encode())
        sock.settimeout(None)
        channel = Channel(sock)
        try:
            learner, memory = self._equipped(recipe, where, number)
            serve(channel, learner, memory, number)
        except GradbaseError as error:
            channel.send("failed", error.problem, *error.remedies)
        except Exception as error:
            channel.send("failed", f"a worker failed: {type(error).__name__}: {error}")
        finally:
            channel.close()

    def _equipped(self, recipe: Recipe, where: Map, number: int) -> tuple[Learner, Memory]:
        """Over the slab where it is on this host, else over the wire."""
        slab = _slab_at(self._home)
        if slab is not None:
            return equip(recipe, slab, where, shared=self._task.shared, budget=self._task.memory)
        connection = connect(parse_address(self._home.pages), self._home.token)
        memory = RemoteMemory(recipe.model, where, connection, number, shared=self._task.shared)
        stream = BatchStream(recipe.batches, recipe.random_state, 2 * where.lanes)
        return Learner(recipe, stream, self._task.memory), memory


def _slab_at(home: Home) -> Slab | None:
    """The caller's slab, unless it is on another host: there the path leads nowhere, or to something else."""
    if not home.slab_path or not os.path.exists(home.slab_path):
        return None
    try:
        slab = Slab.open(home.slab_path)
    except (OSError, ValueError):
        return None
    return slab if slab.nbytes > 8 and slab.words(0, 1)[0] == home.slab_name else None


