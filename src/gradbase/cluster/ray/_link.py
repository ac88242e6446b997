"""How fast pages travel to an actor that does not reach the slab."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from gradbase.store.machine.messages import PullReply, Push, PushReply
from gradbase.store.wire import Block, Connection, connect, parse_address

_NBYTES = 4 << 20
_ROUNDS = 3  # the first warms up what both ends allocate


class LinkProbe:
    """The caller's side: takes blocks and times them from the first request to the last byte."""

    def __init__(self) -> None:
        self.slowest_bytes_per_s: float | None = None

    def serve(self, connection: Connection) -> None:
        rates: list[float] = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            connection.send(PullReply(0, 0, 0, 0, (), None, 0))
            if (letter := connection.receive()) is None or not isinstance(letter.message, Push):
                return
            rates.append(_NBYTES / max(time.perf_counter() - began, 1e-9))
        self.slowest_bytes_per_s = min(max(rates), self.slowest_bytes_per_s or float("inf"))
        connection.send(PushReply(0, 0, 0, 0, 0, 0, True, 0))
        connection.receive()  # until the other side has it


def pull_probe(path: Sequence[str], address: str, token: str) -> None:
    """On the other host: push blocks when asked."""
    sys.path.extend(folder for folder in path if folder not in sys.path)
    body = bytes(_NBYTES)
    with connect(parse_address(address), token) as connection:
        while (letter := connection.receive()) is not None and isinstance(letter.message, PullReply):
            connection.send(Push(0, 0, 0, 0, 0, 0, 0, 1, (Block(0, b"", body),)))
