"""Parts: what an owner says it wrote; and the checkpoints that parts make up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradbase.common.errors import DamageError
from gradbase.store.files import Files

FORMAT = 1
CHECKPOINTS = "checkpoints"
SPARE = f"{CHECKPOINTS}/spare"


class Piece(NamedTuple):
    """Bytes of a data file as a part lists them. `version`: the checkpoint in which they were new."""

    offset: int
    nbytes: int
    checksum: int
    version: int


@dataclass(frozen=True)
class FilePart:
    """What an owner wrote into one data file."""

    nbytes: int
    header_crc: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Part:
    """What an owner wrote into a checkpoint, and the state it had."""

    number: int
    owner: str
    members: tuple[str, ...]
    state: Mapping[str, Any]
    files: Mapping[str, FilePart]

    def pack(self) -> bytes:
        body = {
            "format": FORMAT,
            "number": self.number,
            "owner": self.owner,
            "members": list(self.members),
            "state": self.state,
            "files": {
                name: {"nbytes": file.nbytes, "header_crc": file.header_crc, "pieces": [list(p) for p in file.pieces]}
                for name, file in self.files.items()
            },
        }
        return json.dumps(body | {"digest": _digest(body)}, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def unpack(data: bytes, path: str) -> Part:
        """Raises DamageError."""
        try:
            body = json.loads(data)
            if body.pop("digest") != _digest(body):
                raise ValueError("its digest is wrong")
            if body["format"] != FORMAT:
                raise ValueError(f"its format is of version {body['format']}, this program reads version {FORMAT}")
            files = {name: _file_part(entry) for name, entry in body["files"].items()}
            return Part(body["number"], body["owner"], tuple(body["members"]), body["state"], files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's directory and the parts in it that carry its number."""

    number: int
    path: str
    parts: Mapping[str, Part]

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(sorted({member for part in self.parts.values() for member in part.members}))

    @property
    def missing(self) -> tuple[str, ...]:
        """Owners whose parts are not there."""
        return tuple(member for member in self.members if member not in self.parts)

    @property
    def complete(self) -> bool:
        return bool(self.parts) and not self.missing

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(
            piece.nbytes for part in self.parts.values() for file in part.files.values() for piece in file.pieces
        )

    @property
    def new_nbytes(self) -> int:
        """Bytes that had changed since the checkpoint before."""
        files = [file for part in self.parts.values() for file in part.files.values()]
        return sum(piece.nbytes for file in files for piece in file.pieces if piece.version == self.number)


def checkpoint_path(number: int) -> str:
    return f"{CHECKPOINTS}/{number:020d}"


def part_path(directory: str, owner: str) -> str:
    return f"{directory}/{owner}.json"


def numbers(files: Files) -> list[int]:
    """Numbers of all checkpoints that have a directory, complete or not, ascending."""
    return [int(name) for name in files.names(CHECKPOINTS) if name.isdecimal() and len(name) == 20]


def read_checkpoint(files: Files, number: int) -> Checkpoint:
    """A checkpoint as it is. Raises DamageError for a part that is not as it was written."""
    directory = checkpoint_path(number)
    owners = [name.removesuffix(".json") for name in files.names(directory) if name.endswith(".json")]
    parts = (read_part(files, directory, owner) for owner in owners)
    return Checkpoint(number, directory, {part.owner: part for part in parts if part and part.number == number})


def complete_checkpoints(files: Files) -> list[Checkpoint]:
    """All that are complete, oldest first. Raises DamageError."""
    found = (read_checkpoint(files, number) for number in numbers(files))
    return [checkpoint for checkpoint in found if checkpoint.complete]


def read_part(files: Files, directory: str, owner: str) -> Part | None:
    """The part of an owner, of whatever number, or None. Raises DamageError."""
    path = part_path(directory, owner)
    if not files.exists(path):
        return None
    file = files.open(path)
    try:
        part = Part.unpack(file.read(0, file.size()), path)
    finally:
        file.close()
    if part.owner != owner:
        raise _damaged(path, f"it is the part of {part.owner}")
    return part


def write_part(files: Files, directory: str, part: Part) -> None:
    """Put a part under its name, durably. Raises OSError."""
    path = part_path(directory, part.owner)
    temporary = f"{path}.new"
    file = files.open(temporary, create=True)
    try:
        file.truncate(0)
        file.write(0, memoryview(part.pack()))
        file.sync()
    finally:
        file.close()
    files.rename(temporary, path)
    files.sync_directory(directory)


def _file_part(entry: Mapping[str, Any]) -> FilePart:
    pieces = tuple(Piece(*map(int, piece)) for piece in entry["pieces"])
    return FilePart(int(entry["nbytes"]), int(entry["header_crc"]), pieces)


def _digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _damaged(path: str, why: str) -> DamageError:
    return DamageError(
        f"{path} is damaged: {why}",
        "restore the file from a copy, or remove its checkpoint and resume from an older one",
        path=path,
        offset=0,
    )


def owners(kind: str, count: int) -> Sequence[str]:
    """`shard-0000`, `shard-0001`, ...: names of owners."""
    return [f"{kind}-{number:04d}" for number in range(count)]
