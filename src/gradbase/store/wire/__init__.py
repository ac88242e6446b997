"""The machines' messages between processes: fixed binary frames, a token, limits on everything. See README.md."""

from gradbase.store.wire._address import Address, parse_address
from gradbase.store.wire._connection import Connection, connect
from gradbase.store.wire._frames import Block, Letter, Limits
from gradbase.store.wire._handshake import new_token
from gradbase.store.wire._listener import Listener

__all__ = [
    "Address",
    "Block",
    "Connection",
    "Letter",
    "Limits",
    "Listener",
    "connect",
    "new_token",
    "parse_address",
]
