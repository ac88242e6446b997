"""Short messages between a steward and its servants: JSON arrays behind a length, over a stream socket.

JSON because what a peer sends is data and never code; 4 bytes of length, little-endian, at most `MESSAGE_BYTES_MAX`.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import Any

from gradbase.common.errors import StoreError

MESSAGE_BYTES_MAX = 1 << 20
_LENGTH = struct.Struct("<I")
_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one for every message
_decode = json.JSONDecoder().decode


class Gone(BrokenPipeError, EOFError):
    """The other end has closed, or its host cannot be reached. A type of its own: a recipe may raise the others."""


class Channel:
    """One end. `receive` blocks; `ready` takes what has arrived without blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._read = b""

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    @classmethod
    def of_descriptor(cls, fd: int) -> Channel:
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, *message: Any) -> None:
        """Send one message, from any thread. Raises Gone."""
        body = _encode(message).encode()
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self) -> list[Any]:
        """Wait for one message. Raises Gone."""
        while (message := self._next()) is None:
            self._fill()
        return message

    def ready(self) -> list[list[Any]]:
        """One read, which has to be possible; then every whole message that has arrived. Raises Gone."""
        self._fill()
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def close(self) -> None:
        self._socket.close()

    def _fill(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise Gone(str(error)) from error
        if not data:
            raise Gone("the other end has closed")
        self._read += data

    def _next(self) -> list[Any] | None:
        if len(self._read) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._read)
        if length > MESSAGE_BYTES_MAX:
            raise StoreError(f"a message of {length} bytes arrived", f"at most {MESSAGE_BYTES_MAX} are read")
        end = _LENGTH.size + length
        if len(self._read) < end:
            return None
        body, self._read = self._read[_LENGTH.size : end], self._read[end:]
        message = _decode(body.decode())
        if not isinstance(message, list) or not message:
            raise StoreError("a message arrived that is no JSON array", "both ends must run the same gradbase")
        return message
