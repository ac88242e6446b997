"""Accepts connections, lets in who knows the token, and runs each in a thread of its own."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from gradbase.common.errors import StoreError
from gradbase.store.wire._address import Address, listen
from gradbase.store.wire._connection import Connection, TimedStream
from gradbase.store.wire._frames import Limits
from gradbase.store.wire._handshake import checked_token, greet

_log = logging.getLogger("gradbase.store")


class Listener:
    """Listens from construction to `close`. `serve(connection)` runs in the connection's thread until it returns.

    A StoreError out of `serve` ends that connection and is logged; others are not touched.
    """

    def __init__(
        self, address: Address, token: str, serve: Callable[[Connection], None], limits: Limits | None = None
    ) -> None:
        self._token, self._serve, self._limits = checked_token(token), serve, limits or Limits()
        self._server, self.address = listen(address)
        if not self.address.is_local:
            _log.warning("listening on %s: other hosts can connect, and what they send is not encrypted", self.address)
        self._connections: set[Connection] = set()
        self._waiting: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="gradbase-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and stop listening; returns when no further one is accepted. Twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ending, waiting = list(self._connections), list(self._waiting)
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
        for sock in waiting:
            sock.close()
        for connection in ending:
            connection.close()
        if self.address.path:
            Path(self.address.path).unlink(missing_ok=True)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._server.accept()
            except OSError as error:
                if self._closed:
                    return
                _log.warning("could not accept a connection: %s", error)
                continue
            name = f"the peer at {peer[0]}:{peer[1]}" if self.address.path == "" else "a peer on this host"
            if not self._admit(sock):
                _log.warning("turned %s away: too many connections", name)
                sock.close()
                continue
            threading.Thread(target=self._run, args=(sock, name), name="gradbase-connection", daemon=True).start()

    def _admit(self, sock: socket.socket) -> bool:
        with self._lock:
            full = len(self._waiting) >= self._limits.waiting_max
            if self._closed or full or len(self._connections) >= self._limits.connections_max:
                return False
            self._waiting.add(sock)
            return True

    def _run(self, sock: socket.socket, name: str) -> None:
        try:
            connection = self._trusted(sock, name)
        except StoreError as error:
            sock.close()
            if not self._closed:
                _log.warning("%s: %s", name, error.problem)
            return
        except OSError:
            sock.close()  # by `close` already, as this listener's: the peer is told nothing else
            return
        try:
            self._serve(connection)
        except StoreError as error:
            _log.warning("%s", error)
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)

    def _trusted(self, sock: socket.socket, name: str) -> Connection:
        """The connection after its handshake; counted as waiting until then."""
        try:
            greet(TimedStream(sock, self._limits.handshake_s), self._token)
            connection = Connection(sock, self._limits, name)
            with self._lock:
                if self._closed:
                    raise StoreError("the store is closing")
                self._connections.add(connection)
            return connection
        finally:
            with self._lock:
                self._waiting.discard(sock)
