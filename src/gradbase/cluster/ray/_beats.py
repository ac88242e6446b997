"""Signs of life of a worker on another host, where nobody sees its process."""

from __future__ import annotations

import threading

from gradbase.cluster.channel import Channel, Gone

BEAT_S = 1.0


class Beats:
    """A thread that says ("beat",) every now and then, until closed. Not while the process is stopped (SIGSTOP)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gradbase-beats", daemon=True)

    def __enter__(self) -> Beats:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._channel.send("beat")
            except Gone:
                return  # whoever receives finds out too
