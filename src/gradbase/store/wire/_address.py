"""Where a store listens: "tcp://127.0.0.1:7070" or "unix:///run/store.sock"."""

from __future__ import annotations

import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gradbase.common.errors import StoreError, UsageError

LOOPBACK = "127.0.0.1"
_UNIX_PATH_BYTES_MAX = 107


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP host and port, or the path of a Unix socket."""

    host: str = LOOPBACK
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only programs on this host can reach it."""
        return bool(self.path) or self.host in (LOOPBACK, "::1", "localhost")


def parse_address(text: str) -> Address:
    """Read "tcp://HOST:PORT", "tcp://:PORT" (loopback) or "unix:///PATH"; UsageError on anything else."""
    try:
        parts = urlsplit(text)
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            return Address("", 0, _checked_path(parts.path))
        if parts.scheme == "tcp" and parts.port is not None and not parts.path.strip("/"):
            return Address(parts.hostname or LOOPBACK, parts.port)
    except ValueError:
        pass
    raise UsageError(f"{text!r} is no address of a store", 'give "tcp://HOST:PORT" or "unix:///PATH"')


def listen(address: Address) -> tuple[socket.socket, Address]:
    """A listening socket and where it really listens (port 0 takes a free one)."""
    try:
        server = _bind_unix(address.path) if address.path else _bind_tcp(address)
    except OSError as error:
        raise StoreError(f"cannot listen on {address}: {error.strerror}", "choose another address") from error
    server.listen(64)
    if address.path:
        return server, address
    return server, Address(address.host, server.getsockname()[1])


def dial(address: Address, timeout_s: float) -> socket.socket:
    """A connected socket; StoreError if nobody answers."""
    try:
        if not address.path:
            return socket.create_connection((address.host, address.port), timeout_s)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(timeout_s)
        client.connect(address.path)
        return client
    except OSError as error:
        raise StoreError(f"no store answers at {address}: {error.strerror or error}", "is it running there?") from error


def _checked_path(path: str) -> str:
    if len(path.encode()) > _UNIX_PATH_BYTES_MAX:
        raise UsageError(f"the path of a Unix socket has at most {_UNIX_PATH_BYTES_MAX} bytes, {path!r} has more")
    return path


def _bind_tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    server = socket.socket(family)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address.host, address.port))
    except OSError:
        server.close()
        raise
    return server


def _bind_unix(path: str) -> socket.socket:
    """Only this user may connect. A socket that a dead store left behind is taken over; any other file is not."""
    server = socket.socket(socket.AF_UNIX)
    try:
        if Path(path).exists() and stat.S_ISSOCK(Path(path).stat().st_mode) and not _answers(path):
            Path(path).unlink()
        server.bind(path)
        Path(path).chmod(0o600)
    except OSError:
        server.close()
        raise
    return server


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True
