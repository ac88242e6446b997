"""The machines' messages between processes: fixed binary frames, a token, limits on everything. See README.md."""

from gradbase.store.wire._address import Address, dial, listen, parse_address
from gradbase.store.wire._connection import Connection, Place, TimedStream, connect, keep_watch
from gradbase.store.wire._frames import Block, Letter, Limits
from gradbase.store.wire._handshake import greet, introduce, new_token
from gradbase.store.wire._listener import Listener

__all__ = [
    "Address",
    "Block",
    "Connection",
    "Letter",
    "Limits",
    "Listener",
    "Place",
    "TimedStream",
    "connect",
    "dial",
    "greet",
    "introduce",
    "keep_watch",
    "listen",
    "new_token",
    "parse_address",
]
