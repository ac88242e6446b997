"""Messages as bytes: pure functions, driven by the annotations of `machine/messages.py`. README.md has the format."""

from __future__ import annotations

import hashlib
import struct
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradbase.common.errors import StoreError
from gradbase.store.machine import messages
from gradbase.store.machine.messages import Address

Buffer = bytes | bytearray | memoryview

FRAME = struct.Struct("<2sBBBBxxIIIQ")
ROLES = ("coordinator", "worker", "shard")
MAGIC = b"gb"
VERSION = 1
HEAD_MAX = 64
_BLOCK = struct.Struct("<qHQ")
_COUNT = struct.Struct("<I")


class Block(NamedTuple):
    """A piece of a payload: a page (key: its number, head: the codec's header), or rows of a table."""

    key: int
    head: Buffer
    body: Buffer


Payload = tuple[Block, ...]  # of a message; None where there is nothing


@dataclass(frozen=True)
class Limits:
    """What a connection takes from its peer. Bytes of fields and of bodies are of one message."""

    fields_max: int = 1 << 20
    bodies_max: int = 1 << 30
    handshake_s: float = 5.0
    frame_s: float = 60.0
    waiting_max: int = 16
    connections_max: int = 256


class Letter(NamedTuple):
    """A message with who is to have it and who sent it; one connection may carry those of several machines."""

    message: Any
    to: Address
    sender: Address


class Frame(NamedTuple):
    """What the head of a frame says."""

    kind: int
    to: Address
    sender: Address
    fields_nbytes: int
    bodies_nbytes: int


class Plan(NamedTuple):
    """A message whose bodies are still to come: sizes by block, and `finish(bodies)` to make it."""

    kind: type
    blocks: tuple[tuple[int, Buffer, int], ...]  # key, head, bytes of the body
    finish: Callable[[Sequence[Buffer]], Any]


def pack(letter: Letter, limits: Limits) -> list[Buffer]:
    """A message as buffers to be sent one after the other; bodies are not copied."""
    message, (to, to_number), (sender, sender_number) = letter
    spec = _SPECS[type(message)]
    fields, bodies = bytearray(), []
    for field, value in zip(spec.fields, message, strict=True):
        if field == _PAYLOAD:
            bodies = _pack_payload(fields, value)
        else:
            _pack_field(fields, field, value)
    nbytes = sum(len(body) for body in bodies)
    if len(fields) > limits.fields_max or nbytes > limits.bodies_max:
        raise StoreError(
            f"a {spec.name} of {len(fields)} + {nbytes} bytes is larger than this connection's limits",
            f"they are {limits.fields_max} and {limits.bodies_max}; push in more parts, or raise them on both sides",
        )
    roles = ROLES.index(to), ROLES.index(sender)
    header = FRAME.pack(MAGIC, VERSION, spec.number, *roles, to_number, sender_number, len(fields), nbytes)
    return [header + fields, *(body for body in bodies if len(body))]


def read_frame(header: Buffer, limits: Limits) -> Frame:
    """The frame that begins; StoreError if it is none or too large."""
    magic, version, kind, to, sender, to_number, sender_number, fields, bodies = FRAME.unpack(header)
    if magic != MAGIC or version != VERSION:
        raise refused(f"it begins with {bytes(header[:3])!r}")
    if kind >= len(_KINDS):
        raise refused(f"message type {kind} does not exist")
    if max(to, sender) >= len(ROLES):
        raise refused(f"roles {to} and {sender} do not exist")
    if fields > limits.fields_max or bodies > limits.bodies_max:
        raise refused(f"{fields} + {bodies} bytes are above the limits {limits.fields_max} and {limits.bodies_max}")
    return Frame(kind, (ROLES[to], to_number), (ROLES[sender], sender_number), fields, bodies)


def read_fields(kind: int, data: memoryview, bodies_nbytes: int) -> Plan:
    """Read a message up to its bodies."""
    spec, reader = _KINDS[kind], _Reader(data)
    values: list[Any] = []
    blocks: tuple[tuple[int, Buffer, int], ...] | None = ()
    place = None
    for field in spec.fields:
        if field == _PAYLOAD:
            place, blocks = len(values), reader.blocks()
            values.append(None)
        else:
            values.append(_read_field(reader, field))
    reader.end()
    if sum(nbytes for _, _, nbytes in blocks or ()) != bodies_nbytes:
        raise refused("the sizes of its blocks do not add up to the bytes it announces")

    def finish(bodies: Sequence[Buffer]) -> Any:
        if place is not None and blocks is not None:
            pairs = zip(blocks, bodies, strict=True)
            values[place] = tuple(Block(key, head, body) for (key, head, _), body in pairs)
        return spec.type(*values)

    return Plan(spec.type, blocks or (), finish)


def refused(why: str) -> StoreError:
    return StoreError(f"the peer sent no message of a store: {why}", "it runs another program, or was damaged")


# What a field of a message may be.
_INT, _BOOL, _INTS, _PAIRS, _TRIPLES, _PAYLOAD = range(6)
_ARITY = {_INTS: 1, _PAIRS: 2, _TRIPLES: 3}
_FIELDS = {
    int: _INT,
    bool: _BOOL,
    tuple[int, ...]: _INTS,
    tuple[tuple[int, int], ...]: _PAIRS,
    tuple[tuple[int, int, int], ...]: _TRIPLES,
    object: _PAYLOAD,
}


class _Spec(NamedTuple):
    type: Any
    name: str
    number: int
    fields: tuple[int, ...]


def _spec(number: int, kind: Any) -> _Spec:
    hints = typing.get_type_hints(kind)
    fields = tuple(_FIELDS[hints[name]] for name in kind._fields)
    assert fields.count(_PAYLOAD) <= 1, f"{kind.__name__} has two payloads"
    return _Spec(kind, kind.__name__, number, fields)


_KINDS = tuple(_spec(number, kind) for number, kind in enumerate(typing.get_args(messages.Message)))
_SPECS = {spec.type: spec for spec in _KINDS}

# Peers that disagree about the messages find out in the handshake.
DIGEST = hashlib.sha256(repr([(s.name, s.type._fields, s.fields) for s in _KINDS]).encode()).digest()[:8]


def _pack_field(out: bytearray, field: int, value: Any) -> None:
    if field == _INT:
        out += struct.pack("<q", value)
    elif field == _BOOL:
        out.append(bool(value))
    else:
        out += _COUNT.pack(len(value))
        flat = value if field == _INTS else [number for item in value for number in item]
        assert len(flat) == len(value) * _ARITY[field]
        out += struct.pack(f"<{len(flat)}q", *flat)


def _pack_payload(out: bytearray, payload: Payload | None) -> list[memoryview]:
    if payload is None:
        out.append(0)
        return []
    out.append(1)
    out += _COUNT.pack(len(payload))
    bodies = [memoryview(body).cast("B") for _, _, body in payload]
    for (key, head, _), body in zip(payload, bodies, strict=True):
        assert len(head) <= HEAD_MAX
        out += _BLOCK.pack(key, len(head), len(body))
        out += head
    return bodies


def _read_field(reader: _Reader, field: int) -> Any:
    if field == _INT:
        return reader.numbers(1)[0]
    if field == _BOOL:
        return reader.truth()
    count, arity = reader.count(), _ARITY[field]
    numbers = reader.numbers(count * arity)
    if arity == 1:
        return numbers
    return tuple(numbers[i : i + arity] for i in range(0, len(numbers), arity))


class _Reader:
    """Takes values off the front of a message's fields; never reads beyond them."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, nbytes: int) -> memoryview:
        if nbytes > len(self.data) - self.at:
            raise refused(f"{nbytes} bytes were announced where {len(self.data) - self.at} are left")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}q", self.take(8 * count))

    def count(self) -> int:
        return int(_COUNT.unpack(self.take(_COUNT.size))[0])

    def truth(self) -> bool:
        value = self.take(1)[0]
        if value > 1:
            raise refused(f"{value} is no truth value")
        return value == 1

    def blocks(self) -> tuple[tuple[int, Buffer, int], ...] | None:
        if not self.truth():
            return None
        return tuple(self.block() for _ in range(self.count()))

    def block(self) -> tuple[int, Buffer, int]:
        key, head, nbytes = _BLOCK.unpack(self.take(_BLOCK.size))
        if head > HEAD_MAX:
            raise refused(f"the head of a block has {head} bytes, at most {HEAD_MAX} are allowed")
        return key, bytes(self.take(head)), nbytes

    def end(self) -> None:
        if self.at != len(self.data):
            raise refused(f"{len(self.data) - self.at} bytes are left over")
