"""Where the steward keeps what the machines want kept: nowhere, or in the directory of a store."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbase.cluster.operations import Logged, Update
from gradbase.common.errors import GradbaseError, StoreError, UsageError
from gradbase.common.units import format_bytes, format_us
from gradbase.store.checkpoint import (
    Checkpointer,
    CheckpointStats,
    DataFile,
    Source,
    Tensor,
    complete_checkpoints,
    data_file,
    pack_state,
    shard_owners,
    shard_sources,
    store_files,
    unpack_state,
)
from gradbase.store.files import PROBE, DiskFiles, DiskRate, measure_disk
from gradbase.store.layout import Layout
from gradbase.store.log import (
    COORDINATOR,
    LogReader,
    LogWriter,
    SchemeChoice,
    StepCosts,
    checkpoint_interval_us,
    choose_scheme,
    from_record,
    open_log,
    to_record,
)
from gradbase.store.logged import encoded_update, raw_update
from gradbase.store.machine import messages as m
from gradbase.store.recovery import FORMAT, MANIFEST, missing_log
from gradbase.store.update import Updater, UpdateRule

if TYPE_CHECKING:
    import torch

    from gradbase.store.codec import Codec

RESIDUALS = "residuals.safetensors"
_RESIDUAL = -1  # the key of a lane's residuals; those of pages are their numbers
_MTBF_US = 3600e6  # a process is lost every hour, say
_FIXED_US = 5_000.0  # of a checkpoint, beside its bytes


class Volatile:
    """Durability `none`: a record is as good as kept once it was handed over, and gone with the process."""

    checkpoint_interval_s = float("inf")

    def listen(self, events: Events) -> None:
        self._events = events

    def open(self, owner: m.Address) -> tuple[int, tuple[m.CheckpointState, ...], tuple[m.Record, ...]]:
        return 1, (), ()

    def append(self, owner: m.Address, record: m.Record) -> None:
        pass

    def sync(self, owner: m.Address, lsn: int) -> None:
        self._events.synced(owner, lsn)

    def before_apply(self, shard: int) -> None:
        pass

    def before_keep(self, lane: int) -> None:
        pass

    def write_checkpoint(self, owner: m.Address, state: m.CheckpointState) -> None:
        self._events.checkpoint(owner, state.number, False)

    def load(self, owner: m.Address, number: int | None) -> m.Loaded:
        assert number is None, "nothing was ever kept"
        return m.Loaded(None, None, ())

    def retire(self, owner: m.Address, number: int, lsn: int) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Events:
    """What a storage reports, on any thread."""

    synced: Callable[[m.Address, int], None]
    log_failed: Callable[[m.Address, int, GradbaseError], None]
    checkpoint: Callable[[m.Address, int, bool], None]
    warning: Callable[[str], None]


@dataclass(frozen=True)
class Manifest:
    """What a store is of: it can be resumed only by a job with the same values. Kept as MANIFEST.json."""

    store_id: str
    lanes: int
    consistency: str
    staleness_steps: int
    durability: str
    logging: str
    seed: int
    threads: int
    layout: Mapping[str, Any]
    rule: Mapping[str, Any]
    codec: str = "none"

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any], path: Path) -> Manifest:
        if data.get("format") != FORMAT:
            raise StoreError(f"{path} has format {data.get('format')!r}", f"this gradbase reads format {FORMAT}")
        try:
            found = {"codec": "none", **data}  # older ones do not say
            return Manifest(**{each.name: found[each.name] for each in fields(Manifest)})
        except KeyError as error:
            raise StoreError(f"{path} does not say {error}", "restore it from a copy") from error


def is_store(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def check_free(path: Path) -> None:
    """Raise UsageError unless a store can be made at `path`, where a job may have been killed while it made one."""
    if (path / MANIFEST).exists():
        raise UsageError(f"there is a store at {path} already", "go on with it by --resume, or name another directory")
    begun = (PROBE, _part_of(path / MANIFEST).name)
    if path.is_dir() and any(each.name not in begun for each in path.iterdir()):
        raise UsageError(f"{path} is not empty and no store", "name another directory")


def disk_of(path: Path) -> DiskRate:
    """What the disk under `path` does. Raises UsageError where nothing can be written."""
    try:
        return measure_disk(DiskFiles(path))
    except OSError as error:
        raise UsageError(f"cannot make a store at {path}: {error.strerror}", "name another directory") from error


def make_directory(path: Path, wanted: Manifest) -> Manifest:
    """Make a store at `path`, which `check_free` has found good."""
    _write_whole(path / MANIFEST, json.dumps(wanted.to_json(), indent=1))
    return wanted


def resumed_directory(path: Path, wanted: Manifest) -> Manifest:
    """What the store at `path` is of: the job of `wanted`, whose `logging` may be empty for whatever it was.

    Raises UsageError if there is none or it is of another job; StoreError if it cannot be read, DamageError if a log
    of it is gone.
    """
    found = read_manifest(path)
    _check_same(found, replace(wanted, logging=wanted.logging or found.logging), path)
    missing = missing_log(DiskFiles(path), found.lanes)
    if missing is not None:
        raise missing
    return found


def read_manifest(path: Path) -> Manifest:
    """What the store at `path` is of. Raises UsageError if there is none; StoreError if it cannot be read."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise UsageError(f"there is no store at {path}", "leave --resume out to make one")
    try:
        return Manifest.from_json(json.loads(manifest.read_text()), manifest)
    except (ValueError, OSError) as error:
        raise StoreError(f"{manifest} cannot be read: {error}", "restore it from a copy") from error


def new_store_id() -> str:
    return uuid.uuid4().hex


def _check_same(found: Manifest, wanted: Manifest, path: Path) -> None:
    """Raise UsageError for the first thing that differs."""
    for name in ("lanes", "consistency", "staleness_steps", "durability", "logging", "seed", "threads", "codec"):
        then, now = getattr(found, name), getattr(wanted, name)
        if then != now:
            option = {"lanes": "workers", "staleness_steps": "consistency"}.get(name, name)
            raise UsageError(f"the store at {path} was made with {name} {then}, not {now}", f"say --{option} as then")
    for what, part in (
        ("a model of other tensors", _tensors_of),
        ("another optimizer", lambda manifest: manifest.rule),
        ("pages that lie elsewhere", lambda manifest: manifest.layout),
    ):
        then, now = (json.loads(json.dumps(part(each))) for each in (found, wanted))
        if then != now:
            raise UsageError(f"the store at {path} is of {what}", "resume with the recipe it was made with")


def _tensors_of(manifest: Manifest) -> list[Any]:
    """Of a layout, without what the optimizer decides: on which shard pages lie, and what they weigh."""
    return [(spec["name"], spec["shape"], spec["dtype"]) for spec in manifest.layout["tensors"]]


def _part_of(path: Path) -> Path:
    """What a file is called while it is being written."""
    return path.with_name(f".{path.name}.part")


def _write_whole(path: Path, text: str) -> None:
    """Write a file durably, whole or not at all."""
    part = _part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"cannot make a store at {path.parent}: {error.strerror}", "name another directory") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Durable:
    """Logs and checkpoints of a store, for a steward that has all shards in its process.

    `gradients(shard, lane)` gives what a lane pushed to a shard as bytes, at the moment of the call. residuals: of
    every lane, by page, what its codecs have left out; checkpoints hold them. codecs: by page, of the gradients.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        updater: Updater,
        gradients: Callable[[int, int], bytes],
        disk: DiskRate,
        residuals: Sequence[Mapping[int, torch.Tensor]] = (),
        codecs: Mapping[int, Codec] | None = None,
    ) -> None:
        self._files = DiskFiles(path)
        self._store_id = bytes.fromhex(manifest.store_id)
        layout, rule = Layout.from_json(manifest.layout), UpdateRule.from_json(manifest.rule)
        self._checkpointers = _checkpointers(self._files, layout, rule, updater, residuals)
        self._updates = [_Updates(layout, k, codecs or {}, gradients) for k in range(layout.shard_count)]
        self._pages = [[page.number for page in layout.of_shard(k)] for k in range(layout.shard_count)]
        self._found = complete_checkpoints(self._files)
        self._logs: dict[m.Address, LogWriter] = {}
        self._awaited: dict[m.Address, int] = {}
        self._writing: dict[m.Address, threading.Thread] = {}  # the last checkpoint of each
        self._lock = threading.Lock()
        self._cost_us = checkpoint_cost_us(sum(each.nbytes for each in self._checkpointers), disk)

    @property
    def checkpoint_interval_s(self) -> float:
        """By Daly's formula from what the last checkpoint took, before the first from what it should take."""
        return checkpoint_interval_us(self._cost_us, _MTBF_US) / 1e6

    @property
    def checkpoint_reason(self) -> str:
        """Why `checkpoint_interval_s` is what it is, in one line."""
        nbytes = sum(each.nbytes for each in self._checkpointers)
        return (
            f"every {format_us(self.checkpoint_interval_s * 1e6)} (Young/Daly): {format_bytes(nbytes)} are expected to "
            f"take {format_us(self._cost_us)} on this disk, and a process is lost every {format_us(_MTBF_US)}"
        )

    def listen(self, events: Events) -> None:
        self._events = events

    def open(self, owner: m.Address) -> tuple[int, tuple[m.CheckpointState, ...], tuple[m.Record, ...]]:
        """Raises StoreError when another process has the store, DamageError for what is not as it was written."""
        states = self._states(owner[1]) if owner[0] == "shard" else ()
        newest = max((state.lsn for state in states), default=0)
        shard = owner[1] if owner[0] == "shard" else COORDINATOR
        appender, _ = open_log(self._files, _directory(owner), store_id=self._store_id, shard=shard, after=newest)
        self._logs[owner] = LogWriter(
            appender,
            on_durable=lambda lsn: self._durable(owner, lsn),
            on_failed=lambda lsn, error: self._failed(owner, lsn, error),
        )
        oldest = min((state.lsn for state in states), default=0)
        records = self._records(owner, None)  # those before the newest checkpoint that counts may be gone
        return appender.incarnation, states, tuple(record for record in records if record.lsn > oldest)

    def append(self, owner: m.Address, record: m.Record) -> None:
        """Hand a record to the log's thread; what it refers to is copied first."""
        self._logs[owner].append(to_record(record, self._updates_of(owner)))

    def sync(self, owner: m.Address, lsn: int) -> None:
        log = self._logs[owner]
        with self._lock:
            self._awaited[owner] = lsn
        log.sync(lsn)
        self._durable(owner, log.durable_lsn)

    def before_apply(self, shard: int) -> None:
        """The shard's pages are about to change: what a checkpoint still needs of them is copied."""
        self._checkpointers[shard].before_overwrite(self._pages[shard])

    def before_keep(self, lane: int) -> None:
        self._checkpointers[lane].before_overwrite([_RESIDUAL])

    def write_checkpoint(self, owner: m.Address, state: m.CheckpointState) -> None:
        """Fix the values of this moment; they are written by a thread."""

        def done(outcome: CheckpointStats | GradbaseError) -> None:
            if isinstance(outcome, CheckpointStats):
                self._cost_us = outcome.wall_us
            else:
                self._events.warning(f"warning: {outcome}")
            self._events.checkpoint(owner, state.number, isinstance(outcome, CheckpointStats))

        self._writing[owner] = self._checkpointers[owner[1]].snapshot().start(state.number, pack_state(state), done)

    def load(self, owner: m.Address, number: int | None) -> m.Loaded:
        """Put a checkpoint's values into the shard's pages (None: those are there), and read the log behind it."""
        if number is None:
            return m.Loaded(None, None, self._records(owner, 0))
        self._checkpointers[owner[1]].restore(number)
        state = next(each for each in self._states(owner[1]) if each.number == number)
        return m.Loaded(state, None, self._records(owner, state.lsn))

    def retire(self, owner: m.Address, number: int, lsn: int) -> None:
        self._checkpointers[owner[1]].retire(number)
        self._logs[owner].truncate(lsn)

    def close(self) -> None:
        """Afterwards nothing is written any more: the store can be opened again."""
        for thread in self._writing.values():
            thread.join()
        for log in self._logs.values():
            log.close()

    def _states(self, shard: int) -> tuple[m.CheckpointState, ...]:
        return tuple(unpack_state(checkpoint.parts[f"shard-{shard:04d}"]) for checkpoint in self._found)

    def _records(self, owner: m.Address, after: int | None) -> tuple[m.Record, ...]:
        reader = LogReader(self._files, _directory(owner), after=after)
        updates = self._updates_of(owner)
        return tuple(from_record(record, updates) for record in reader if record.lsn > (after or 0))

    def _updates_of(self, owner: m.Address) -> _Updates:
        """The coordinator's records hold none, so it may have anybody's."""
        return self._updates[owner[1] if owner[0] == "shard" else 0]

    def _durable(self, owner: m.Address, lsn: int) -> None:
        """One sync is under way at a time; groups that were written without it are no news."""
        with self._lock:
            awaited = self._awaited.get(owner)
            if awaited is None or lsn < awaited:
                return
            del self._awaited[owner]
        self._events.synced(owner, awaited)

    def _failed(self, owner: m.Address, lsn: int, error: GradbaseError) -> None:
        with self._lock:
            self._awaited.pop(owner, None)
        self._events.log_failed(owner, lsn, error)


def checkpoint_cost_us(nbytes: int, disk: DiskRate) -> float:
    """What a checkpoint should take, as long as none was measured."""
    return _FIXED_US + disk.write_us(nbytes)


def choose_logging(costs: StepCosts, disk: DiskRate, consistency: str, nbytes: int) -> SchemeChoice:
    """Command or physical records, for a store whose checkpoint has `nbytes`."""
    interval_us = checkpoint_interval_us(checkpoint_cost_us(nbytes, disk), _MTBF_US)
    interval_steps = interval_us / costs.step_us
    return choose_scheme(costs, disk, consistency=consistency, mtbf_us=_MTBF_US, interval_steps=interval_steps)


class _Updates:
    """Updates of a shard as bytes: what each lane pushed to it, one after the other, in the bytes of the codecs that
    it has gone through (`store.logged`).
    """

    def __init__(
        self, layout: Layout, shard: int, codecs: Mapping[int, Codec], gradients: Callable[[int, int], bytes]
    ) -> None:
        self._layout, self._shard, self._codecs = layout, shard, codecs
        self._gradients = gradients

    def to_bytes(self, update: Any) -> tuple[int, list[Any]]:
        assert isinstance(update, Update) and update.shard == self._shard
        pushes = [self._gradients(self._shard, lane) for lane in update.lanes]
        return encoded_update(self._layout, self._shard, self._codecs, pushes)

    def from_bytes(self, codec: int, data: memoryview) -> Logged:
        return Logged(raw_update(self._layout, self._shard, codec, data))


def _checkpointers(
    files: DiskFiles,
    layout: Layout,
    rule: UpdateRule,
    updater: Updater,
    residuals: Sequence[Mapping[int, torch.Tensor]],
) -> list[Checkpointer]:
    """One for every shard, with the pieces that are its own, and the residuals of the lane with its number."""
    sources = shard_sources(layout, updater)
    members = shard_owners(layout.shard_count)
    kept = [_residual_sources(layout, lane, each) for lane, each in enumerate(residuals)]
    data_files = [*store_files(layout, rule), *([_residual_file(kept)] if any(kept) else [])]
    return [
        Checkpointer(
            files,
            members[k],
            members,
            data_files,
            [source for source in sources if layout.pages[source.key].shard == k] + (kept[k] if any(kept) else []),
        )
        for k in range(layout.shard_count)
    ]


def _residual_sources(layout: Layout, lane: int, residuals: Mapping[int, torch.Tensor]) -> list[Source]:
    """All under one key: a lane's residuals change together."""
    sources = []
    for number, residual in residuals.items():
        page = layout.pages[number]
        name = f"lane-{lane:04d}/{layout.tensors[page.tensor].name}/{page.start}"
        sources.append(Source(RESIDUALS, name, 0, residual.numpy().view(np.uint8), _RESIDUAL))
    return sources


def _residual_file(kept: Sequence[Sequence[Source]]) -> DataFile:
    tensors = [Tensor(each.tensor, "float32", (len(each.memory) // 4,)) for sources in kept for each in sources]
    return data_file(RESIDUALS, tensors)


def _directory(owner: m.Address) -> str:
    return "log/coordinator" if owner == m.COORDINATOR else f"log/{owner[1]}"
