"""The process of a Ray actor: a servant that calls home."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import socket
import sys
import time
from dataclasses import dataclass

import torch

from gradbase.cluster.channel import Channel
from gradbase.cluster.local import Slab, Task, equip
from gradbase.cluster.ray._beats import Beats
from gradbase.cluster.ray._remote import PagesGone, RemoteMemory
from gradbase.cluster.servant import Memory, serve
from gradbase.cluster.worker import BatchStream, Learner, place_of
from gradbase.common.errors import GradbaseError, StoreError
from gradbase.common.malloc import freed_memory_kept
from gradbase.store.wire import Connection, TimedStream, connect, dial, introduce, keep_watch, parse_address

_HANDSHAKE_S = 5.0
_AGAIN_S = 1.0
_AWAY_S = 300.0  # a caller that is gone has its actors ended by Ray; this is for where Ray cannot


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
        """Be a worker until told to stop, or until home does not answer for long. Called again by Ray after a restart.

        Whoever has lost home may have been given up there, so it calls again as somebody new.
        """
        heard_s = time.monotonic()
        while time.monotonic() - heard_s < _AWAY_S:
            try:
                sock = self._call_home()
            except (StoreError, OSError):
                time.sleep(_AGAIN_S)
                continue
            if self._work(sock):
                return
            heard_s = time.monotonic()
            time.sleep(_AGAIN_S)

    def _call_home(self) -> socket.socket:
        sock = dial(parse_address(self._home.commands), _HANDSHAKE_S)
        try:
            introduce(TimedStream(sock, _HANDSHAKE_S), self._home.token.encode())
        except BaseException:
            sock.close()
            raise
        sock.settimeout(None)
        keep_watch(sock)
        return sock

    def _work(self, sock: socket.socket) -> bool:
        """Build the recipe and do what is asked; whether that is over, as opposed to home being lost."""
        channel, number = Channel(sock), secrets.randbits(62)
        with contextlib.closing(channel), contextlib.ExitStack() as closing:
            try:
                closing.enter_context(Beats(channel))
                learner, memory = self._equipped(number, closing)
                closing.enter_context(freed_memory_kept(self._task.memory is None))
                return serve(channel, learner, memory, number)
            except PagesGone:
                return False
            except GradbaseError as error:
                channel.send("failed", error.problem, *error.remedies)
            except Exception as error:
                channel.send("failed", f"a worker failed: {type(error).__name__}: {error}", *place_of(error))
        return True

    def _equipped(self, number: int, closing: contextlib.ExitStack) -> tuple[Learner, Memory]:
        """Over the slab where it is on this host, else over the wire."""
        task, where = self._task, self._task.map()
        torch.set_num_threads(1)  # as in the fork server, so that the same values come out
        recipe = task.build()
        torch.set_num_threads(task.threads)
        slab = _slab_at(self._home)
        if slab is not None:
            return equip(recipe, slab, where, shared=task.shared, budget=task.memory)
        memory = RemoteMemory(recipe.model, where, self._pages(), number, shared=task.shared)
        closing.callback(memory.close)
        stream = BatchStream(recipe.batches, recipe.random_state, 2 * where.lanes)
        return Learner(recipe, stream, task.memory), memory

    def _pages(self) -> Connection:
        try:
            return connect(parse_address(self._home.pages), self._home.token)
        except StoreError as error:
            raise PagesGone(error.problem, *error.remedies) from error


def _slab_at(home: Home) -> Slab | None:
    """The caller's slab, unless it is on another host: there the path leads nowhere, or to something else."""
    if not home.slab_path or not os.path.exists(home.slab_path):
        return None
    try:
        slab = Slab.open(home.slab_path)
    except (OSError, ValueError):
        return None
    return slab if slab.nbytes > 8 and slab.words(0, 1)[0] == home.slab_name else None


