"""Who may speak to a store: both sides prove that they know the token, and that they speak of the same messages."""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from typing import Protocol

from gradbase.common.errors import StoreError, UsageError
from gradbase.store.wire._frames import DIGEST, VERSION

_HELLO = struct.Struct("<8sH8s32s")
_STATUS = struct.Struct("<BH")
_MAGIC = b"GRADBASE"
_MAC_BYTES = 32
_NONCE_BYTES = 32
_REASON_BYTES_MAX = 200
TOKEN_LENGTH_MIN = 16
_WELCOME, _REFUSED = 0, 1
WRONG_TOKEN = "wrong token"
OTHER_VERSION = "another version"

Random = Callable[[int], bytes]


class Stream(Protocol):
    """A connection's bytes, with a deadline behind both calls; `read` gives exactly as many or raises."""

    def read(self, nbytes: int) -> bytes: ...

    def write(self, data: bytes) -> None: ...


def new_token() -> str:
    """A token that cannot be guessed: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def checked_token(token: str) -> bytes:
    """A token as bytes; UsageError if it is too short to protect anything."""
    if len(token) < TOKEN_LENGTH_MIN:
        raise UsageError(
            f"a token of {len(token)} characters can be guessed",
            f"give at least {TOKEN_LENGTH_MIN}, for example those of: openssl rand -hex 32",
        )
    return token.encode()


def greet(stream: Stream, token: bytes, random: Random = secrets.token_bytes) -> None:
    """The server's side. Returns when the peer is trusted; else tells it why not, and raises StoreError."""
    nonce = random(_NONCE_BYTES)
    stream.write(_hello(nonce))
    magic, version, digest, theirs = _HELLO.unpack(stream.read(_HELLO.size))
    if magic != _MAGIC:
        raise StoreError("refused a connection that is not from gradbase")
    if (version, digest) != (VERSION, DIGEST):
        _refuse(stream, OTHER_VERSION)
    if not hmac.compare_digest(stream.read(_MAC_BYTES), _mac(token, b"client", nonce, theirs)):
        _refuse(stream, WRONG_TOKEN)
    proof = _mac(token, b"server", theirs, nonce)
    stream.write(_STATUS.pack(_WELCOME, len(proof)) + proof)


def introduce(stream: Stream, token: bytes, random: Random = secrets.token_bytes) -> None:
    """The client's side. Returns when both trust each other; StoreError says why not."""
    magic, version, digest, theirs = _HELLO.unpack(stream.read(_HELLO.size))
    if magic != _MAGIC:
        raise StoreError("what answers there is no store of gradbase", "check host and port")
    if (version, digest) != (VERSION, DIGEST):
        raise _version_error()
    nonce = random(_NONCE_BYTES)
    stream.write(_hello(nonce) + _mac(token, b"client", theirs, nonce))
    status, nbytes = _STATUS.unpack(stream.read(_STATUS.size))
    if nbytes > _REASON_BYTES_MAX:
        raise StoreError("what answers there is no store of gradbase", "check host and port")
    answer = stream.read(nbytes)
    if status != _WELCOME:
        raise _refusal(answer.decode("ascii", "replace"))
    if not hmac.compare_digest(answer, _mac(token, b"server", nonce, theirs)):
        raise StoreError("the store does not know the token", "it may be an impostor: nothing was sent to it")


def _hello(nonce: bytes) -> bytes:
    return _HELLO.pack(_MAGIC, VERSION, DIGEST, nonce)


def _mac(token: bytes, role: bytes, first: bytes, second: bytes) -> bytes:
    """The role keeps a peer from answering a challenge with the challenger's own words."""
    return hmac.digest(token, role + first + second, "sha256")


def _refuse(stream: Stream, reason: str) -> None:
    stream.write(_STATUS.pack(_REFUSED, len(reason)) + reason.encode())
    raise StoreError(f"refused a connection: {reason}")


def _refusal(reason: str) -> StoreError:
    if reason == WRONG_TOKEN:
        return StoreError("the store refuses this token", "use the token that the store was started with")
    if reason == OTHER_VERSION:
        return _version_error()
    return StoreError(f"the store refuses the connection: {reason!r}")


def _version_error() -> StoreError:
    return StoreError("the store speaks another version of the protocol", "run the same gradbase on both sides")
