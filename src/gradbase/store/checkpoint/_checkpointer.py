"""Taking checkpoints of an owner's memory while others change it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradbase.common.errors import DamageError, GradbaseError, StoreError
from gradbase.store.checkpoint._checksum import Bytes, checksum
from gradbase.store.checkpoint._out import STAGE_BYTES, Out, new_stage, touched
from gradbase.store.checkpoint._part import (
    CHECKPOINTS,
    SPARE,
    FilePart,
    Part,
    Piece,
    checkpoint_path,
    numbers,
    part_path,
    read_checkpoint,
    read_part,
    write_part,
)
from gradbase.store.checkpoint._safetensors import DataFile
from gradbase.store.files import BLOCK_BYTES, Files, align_up, is_full

SPARE_BYTES = 256 << 20
_LOGGER = logging.getLogger(__name__)

GONE = ".gone"
_PENDING, _BUSY, _SAVED, _TAKEN = range(4)


@dataclass(frozen=True)
class Source:
    """Memory (uint8 [n]) that holds bytes of a tensor of a data file, from byte `start` of the tensor on.

    key: the number by which `before_overwrite` names it, with others; a page.
    """

    file: str
    tensor: str
    start: int
    memory: Bytes
    key: int = 0


@dataclass(frozen=True)
class CheckpointStats:
    """What a checkpoint took. stall_us: time for which those who overwrite pages were held up."""

    number: int
    written_bytes: int
    kept_bytes: int
    saved_bytes: int
    stall_us: float
    wall_us: float


@dataclass(frozen=True)
class _Place:
    """A source and where it goes."""

    file: str
    offset: int
    memory: Bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.memory)

    @cached_property
    def is_aligned(self) -> bool:
        """Whether it can be written from where it lies."""
        return not (
            self.memory.ctypes.data % BLOCK_BYTES or self.offset % BLOCK_BYTES or len(self.memory) % BLOCK_BYTES
        )


class Checkpointer:
    """Writes the pieces of one owner, and reads them back.

    files: the store. owner: "shard-0003", one of `members`, whose parts together are a checkpoint. data_files: those
    this owner has pieces in. sources: its memory; kept, not copied. spare_bytes: memory for pieces that are overwritten
    before they are on the disk; when it is used up, `before_overwrite` waits for the disk.

    One snapshot at a time. `snapshot` and `before_overwrite` belong to the thread that changes the memory.
    """

    def __init__(
        self,
        files: Files,
        owner: str,
        members: Sequence[str],
        data_files: Iterable[DataFile],
        sources: Sequence[Source],
        *,
        spare_bytes: int = SPARE_BYTES,
    ) -> None:
        assert owner in members
        self.files, self.owner, self.members = files, owner, tuple(members)
        self.data_files = {each.name: each for each in data_files}
        ordered = sorted(sources, key=lambda source: (source.file, self._offset(source)))
        self.places = [_Place(source.file, self._offset(source), source.memory) for source in ordered]
        self._by_key: dict[int, list[int]] = {}
        for index, source in enumerate(ordered):
            self._by_key.setdefault(source.key, []).append(index)
        self._changed = np.ones(len(ordered), np.bool_)
        self._versions = np.zeros(len(ordered), np.int64)
        self._spare = touched(min(spare_bytes, sum(align_up(len(place.memory)) for place in self.places)))
        self.stage = new_stage(self.nbytes)
        self._snapshot: Snapshot | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of a whole checkpoint of this owner."""
        return sum(len(place.memory) for place in self.places)

    def snapshot(self) -> Snapshot:
        """Fix the values of this moment; copies nothing. Raises StoreError while another one is being written."""
        if self._snapshot is not None:
            raise StoreError("a checkpoint is being written", "take the next one when it is done")
        self._snapshot = Snapshot(self, self._changed, self._spare)
        self._changed = np.zeros_like(self._changed)
        return self._snapshot

    def before_overwrite(self, keys: Iterable[int] | None = None) -> None:
        """Announce that the pieces of these keys (None: all) are about to change."""
        indices = range(len(self.places)) if keys is None else self._indices(keys)
        for index in indices:
            self._changed[index] = True
        snapshot = self._snapshot
        if snapshot is not None:
            snapshot.preserve(indices)

    def restore(self, number: int) -> Mapping[str, Any]:
        """Read this owner's pieces of a checkpoint into the memory they came from, and give back its state.

        Raises DamageError, StoreError if the checkpoint was taken with another layout.
        """
        part = read_part(self.files, checkpoint_path(number), self.owner)
        if part is None or part.number != number:
            raise StoreError(f"checkpoint {number} has no part of {self.owner}", "resume from an older checkpoint")
        assert self._snapshot is None
        listed = _pieces_of(part)
        for index, place in enumerate(self.places):
            piece = listed.get((place.file, place.offset))
            if piece is None or piece.nbytes != len(place.memory):
                raise StoreError(
                    f"checkpoint {number} of {self.owner} was taken with another layout",
                    "resume with the model, optimizer and number of shards it was taken with",
                )
            self._versions[index] = piece.version
        self._read_pieces(number, listed)
        self._changed[:] = False
        return part.state

    def retire(self, number: int, *, keep: int = 2) -> None:
        """Let checkpoints older than `number` go, but for the newest `keep` - 1 complete ones of them.

        Only the first of the members does it; `number` must be complete. What cannot be removed is warned of, and tried
        again the next time: it costs room and nothing else.
        """
        if self.owner != self.members[0]:
            return
        try:
            self._retire([each for each in numbers(self.files) if each < number], keep)
        except OSError as error:
            _LOGGER.warning("checkpoints before %d cannot be removed: %s", number, error)

    def _retire(self, older: Sequence[int], keep: int) -> None:
        found = [read_checkpoint(self.files, number) for number in older]
        complete = [each for each in found if each.complete]
        kept = {each.number for each in complete[max(len(complete) - (keep - 1), 0) :]}
        going = [each for each in found if each.number not in kept]
        if going and going[-1].complete and not self.files.exists(SPARE):
            self._keep_as_spare(going.pop().path)
        discard(self.files, [each.path for each in going])

    def _keep_as_spare(self, directory: str) -> None:
        """Files that somebody else has open or linked are given up to them."""
        self.files.rename(directory, SPARE)
        for name in self.files.names(SPARE):
            file = self.files.open(f"{SPARE}/{name}")
            shared = file.is_shared()
            file.close()
            if shared:
                discard(self.files, [SPARE])
                return

    def _offset(self, source: Source) -> int:
        return self.data_files[source.file].offsets[source.tensor] + source.start

    def _indices(self, keys: Iterable[int]) -> list[int]:
        return [index for key in keys for index in self._by_key.get(key, ())]

    def _read_pieces(self, number: int, listed: Mapping[tuple[str, int], Piece]) -> None:
        for name in self.data_files:
            path = f"{checkpoint_path(number)}/{name}"
            file = self.files.open(path)
            try:
                for place in (each for each in self.places if each.file == name):
                    moved = file.read_into(place.offset, place.memory.data)
                    if moved != len(place.memory) or checksum(place.memory) != listed[name, place.offset].checksum:
                        raise damaged_piece(path, place.offset)
            finally:
                file.close()

    def _ended(self, versions: Any | None, changed: Any) -> None:
        """The snapshot was written, as these versions, or given up."""
        if versions is None:
            self._changed |= changed
        else:
            self._versions = versions
        self._snapshot = None


class Snapshot:
    """The values of a moment. Must be written or closed; until then overwritten pieces are copied aside."""

    def __init__(self, owner: Checkpointer, changed: Any, spare: Bytes) -> None:
        self._owner, self._changed, self._spare = owner, changed, spare
        self._state = bytearray(len(owner.places))
        self._saved: dict[int, Bytes] = {}
        self._spare_used = self._saved_bytes = 0
        self._disturbed = False  # somebody overwrites pieces: whoever is held up now is held up often
        self._moved = threading.Condition()
        self._stall_s = 0.0
        self._written = 0
        self._open = True

    def write(self, number: int, state: Mapping[str, Any]) -> CheckpointStats:
        """Write this owner's part of checkpoint `number` and return when it is durable under its name.

        state: JSON. Raises StoreError, after which nothing of it is left and nothing else has changed.
        """
        start = time.perf_counter()
        try:
            versions = self._write(number, state)
        except OSError as error:
            self.close()
            with contextlib.suppress(OSError):
                self._owner.files.remove(checkpoint_path(number))
            raise self._failure(number, error) from error
        except BaseException:
            self.close()
            raise
        self._close(versions)
        return CheckpointStats(
            number, self._written, self._owner.nbytes - self._written, self._saved_bytes, self._stall_s * 1e6,
            (time.perf_counter() - start) * 1e6,
        )  # fmt: skip

    def start(
        self, number: int, state: Mapping[str, Any], done: Callable[[CheckpointStats | GradbaseError], None]
    ) -> threading.Thread:
        """`write` on a thread of its own, which then calls `done` with what came of it."""

        def run() -> None:
            try:
                outcome: CheckpointStats | GradbaseError = self.write(number, state)
            except GradbaseError as error:
                outcome = error
            done(outcome)

        thread = threading.Thread(target=run, name="gradbase-checkpoint", daemon=True)
        thread.start()
        return thread

    def preserve(self, indices: Iterable[int]) -> None:
        """Copy pieces aside that are not taken yet; wait where there is no room."""
        start = time.perf_counter()
        for index in indices:
            if self._state[index] in (_PENDING, _BUSY):
                self._disturbed = True
                self._save(index)
        self._stall_s += time.perf_counter() - start

    def close(self) -> None:
        """Give the snapshot up; its changes belong to the next one. After `write` this does nothing."""
        self._close(None)

    def _close(self, versions: Any | None) -> None:
        with self._moved:
            was_open, self._open = self._open, False
            self._state[:] = bytes([_TAKEN]) * len(self._state)
            self._moved.notify_all()
        if was_open:
            self._owner._ended(versions, self._changed)

    def _save(self, index: int) -> None:
        memory = self._owner.places[index].memory
        with self._moved:
            self._moved.wait_for(lambda: self._state[index] != _BUSY)
            if self._state[index] != _PENDING:
                return
            room = self._spare[self._spare_used : self._spare_used + len(memory)]
            if len(room) < len(memory):
                self._moved.wait_for(lambda: self._state[index] == _TAKEN)
                return
            self._spare_used += align_up(len(memory))
            self._saved_bytes += len(memory)
            self._state[index] = _BUSY
        np.copyto(room, memory)
        self._saved[index] = room
        self._leave(index, _SAVED)

    def _hold(self, index: int) -> Bytes:
        """A piece as it was at the moment of the snapshot; it stays so until `_leave`."""
        return self._hold_all((index,))[0]

    def _hold_all(self, run: Sequence[int]) -> list[Bytes]:
        """The same of several pieces, for the price of one: the lock is what costs."""
        state, places, saved = self._state, self._owner.places, self._saved
        with self._moved:
            self._moved.wait_for(lambda: all(state[index] != _BUSY for index in run))
            assert all(state[index] != _TAKEN for index in run)
            for index in run:
                state[index] = _BUSY
            return [saved.pop(index) if index in saved else places[index].memory for index in run]

    def _leave(self, index: int, state: int) -> None:
        self._leave_all((index,), state)

    def _leave_all(self, run: Sequence[int], state: int) -> None:
        with self._moved:
            for index in run:
                self._state[index] = state if self._open else _TAKEN
            self._moved.notify_all()

    def _write(self, number: int, state: Mapping[str, Any]) -> Any:
        """Write all files and the part; the versions of the pieces."""
        owner, files = self._owner, self._owner.files
        directory = checkpoint_path(number)
        base = self._claim(number)
        versions = np.where(self._changed, number, owner._versions)
        parts = {
            data_file.name: self._write_file(directory, data_file, base, versions)
            for data_file in owner.data_files.values()
        }
        part = Part(number, owner.owner, owner.members, dict(state), parts)
        write_part(files, directory, part)
        return versions

    def _claim(self, number: int) -> Part | None:
        """Make the directory, out of the spare if there is one; what this owner wrote into the spare, if it did."""
        files, directory = self._owner.files, checkpoint_path(number)
        files.make_directory(CHECKPOINTS)
        if not files.exists(directory):
            try:
                files.rename(SPARE, directory)
            except FileNotFoundError:
                files.make_directory(directory)
        try:
            base = read_part(files, directory, self._owner.owner)
        except DamageError:
            base = None
        files.sync_directory(CHECKPOINTS)
        files.remove(part_path(directory, self._owner.owner))
        files.sync_directory(directory)
        return None if base is None or base.number == number else base

    def _write_file(self, directory: str, data_file: DataFile, base: Part | None, versions: Any) -> FilePart:
        header_crc = data_file.header_crc
        old = base.files.get(data_file.name) if base else None
        usable = old is not None and (old.nbytes, old.header_crc) == (data_file.nbytes, header_crc)
        kept = {piece.offset: piece for piece in old.pieces} if old is not None and usable else {}
        places = self._owner.places
        mine = [index for index, place in enumerate(places) if place.file == data_file.name]
        pieces: dict[int, Piece] = {}
        for index in mine:
            piece = kept.get(places[index].offset)
            if piece and (piece.version, piece.nbytes) == (versions[index], len(places[index].memory)):
                pieces[index] = piece
                self._skip(index)
        with Out(self._owner.files, f"{directory}/{data_file.name}", data_file, self._owner.stage) as out:
            for run in _runs(places, [index for index in mine if index not in pieces]):
                for index, check in zip(run, self._write_run(out, run), strict=True):
                    place = places[index]
                    pieces[index] = Piece(place.offset, len(place.memory), check, int(versions[index]))
            out.sync()
        return FilePart(data_file.nbytes, header_crc, tuple(pieces[index] for index in mine))

    def _write_run(self, out: Out, run: Sequence[int]) -> list[int]:
        """Write pieces that follow each other in the file, and give their checksums."""
        checks = []
        for (aligned, at_rest), group in itertools.groupby(run, self._kind):
            part = list(group)
            nbytes = sum(len(self._owner.places[index].memory) for index in part)
            self._written += nbytes
            straight = aligned and at_rest and out.goes_straight(nbytes)
            checks += self._write_straight(out, part) if straight else self._write_staged(out, part)
        return checks

    def _kind(self, index: int) -> tuple[bool, bool]:
        """Whether a piece is aligned, and whether nobody will want to overwrite it while it is written."""
        at_rest = not self._disturbed or self._state[index] == _SAVED
        return self._owner.places[index].is_aligned, at_rest

    def _write_staged(self, out: Out, run: Sequence[int]) -> list[int]:
        """Copy the pieces to where their bytes are aligned as in the file, and write that."""
        places = self._owner.places
        start = places[run[0]].offset
        stage = out.stage(start, places[run[-1]].end)
        checks = []
        for index in run:
            view = stage[places[index].offset - start : places[index].end - start]
            np.copyto(view, self._hold(index))
            self._leave(index, _TAKEN)
            checks.append(checksum(view))
        out.write(start, stage)
        return checks

    def _write_straight(self, out: Out, run: Sequence[int]) -> list[int]:
        """The same without a copy. Whoever overwrites one of the pieces waits for the write, unless it was saved."""
        parts = self._hold_all(run)
        checks = [checksum(part) for part in parts]
        out.write_straight(self._owner.places[run[0]].offset, parts)
        self._leave_all(run, _TAKEN)
        return checks

    def _skip(self, index: int) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._state[index] != _BUSY)
            self._saved.pop(index, None)
            self._state[index] = _TAKEN
            self._moved.notify_all()

    def _failure(self, number: int, error: OSError) -> StoreError:
        free = self._owner.files.free_bytes()
        remedy = f"free space: {free} bytes are free" if is_full(error) else "check the disk"
        return StoreError(
            f"cannot write checkpoint {number} of {self._owner.owner}: {error.strerror} (errno {error.errno})",
            f"older checkpoints and the log are as they were; {remedy}",
        )


def discard(files: Files, directories: Sequence[str]) -> None:
    """Remove directories of checkpoints. Names go first: one that is half removed must not look like a whole one."""
    _remove_gone(files)
    for directory in directories:
        files.rename(directory, f"{directory}{GONE}")
    files.sync_directory(CHECKPOINTS)
    _remove_gone(files)


def _remove_gone(files: Files) -> None:
    for name in files.names(CHECKPOINTS):
        if name.endswith(GONE):
            files.remove(f"{CHECKPOINTS}/{name}")


def damaged_piece(path: str, offset: int) -> DamageError:
    """What is said of a data file whose bytes do not match their checksum."""
    return DamageError(
        f"{path} is damaged: the checksum of the piece at byte {offset} is wrong",
        "restore the file from a copy, or remove its checkpoint and resume from an older one",
        path=path,
        offset=offset,
    )


def _pieces_of(part: Part) -> dict[tuple[str, int], Piece]:
    return {(name, piece.offset): piece for name, file in part.files.items() for piece in file.pieces}


def _runs(places: Sequence[_Place], indices: Sequence[int]) -> Iterable[list[int]]:
    """Pieces that follow each other in their file, as many as fit into one write."""
    run: list[int] = []
    for index in indices:
        follows = run and places[run[-1]].end == places[index].offset
        if run and not (follows and places[index].end - places[run[0]].offset <= STAGE_BYTES):
            yield run
            run = []
        run.append(index)
    if run:
        yield run
