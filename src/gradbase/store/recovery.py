"""A store that lies on the disk, without a job that runs: what is in it, whether it is whole, and its parameters.

A directory of a store: MANIFEST.json (what it is of), log/<shard>/ and log/coordinator/ (see log/README.md), and
checkpoints/ (see checkpoint/README.md). Nothing here writes into it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbase.common.errors import DamageError, StoreError, UsageError
from gradbase.store.checkpoint import (
    Checkpoint,
    Checkpointer,
    Tensor,
    data_file,
    in_order,
    numbers,
    read_checkpoint,
    read_parameters,
    shard_sources,
    store_files,
    verify,
)
from gradbase.store.files import File, Files
from gradbase.store.layout import Layout
from gradbase.store.log import KINDS, LogReader, RawUpdates, Torn, from_record, has_segments, list_segments
from gradbase.store.logged import ENCODED, RAW, raw_update
from gradbase.store.machine.messages import PushRecord, StepRecord

if TYPE_CHECKING:
    from gradbase.store.update import Updater, UpdateRule

MANIFEST = "MANIFEST.json"
FORMAT = 1
_LOGS = "log"
COORDINATOR = "coordinator"
_REMEDY = "restore it from a copy, or begin a new store from the parameters.safetensors of a checkpoint"
_SCHEMES = {RAW: "physical", ENCODED: "physical encoded"}


@dataclass(frozen=True)
class LogSummary:
    """One log. `kinds` counts records of its last segment; `scheme` is command, physical, physical encoded (updates
    through codecs, see `logged`), or "" where nothing tells.
    """

    name: str
    segments: int
    nbytes: int
    first_lsn: int
    last_lsn: int
    incarnation: int
    closed: bool
    scheme: str
    kinds: Mapping[str, int]
    torn: Torn | None


@dataclass(frozen=True)
class Verdict:
    """One log or checkpoint that was verified: what was in it, or what is wrong with it."""

    name: str
    records: int = 0
    nbytes: int = 0
    damage: DamageError | None = None


@dataclass(frozen=True)
class Recovered:
    """What `recover` put together. `recompute`: (first, last) step that only training again gives; None if none."""

    number: int
    tensors: tuple[Tensor, ...]
    replayed: int
    recompute: tuple[int, int] | None
    skipped: tuple[DamageError, ...] = ()


def read_manifest(files: Files) -> Mapping[str, Any]:
    """What the store is of. Raises UsageError if there is none, StoreError if it cannot be read."""
    if not files.exists(MANIFEST):
        raise UsageError("there is no store here: MANIFEST.json is missing", "name a directory given to train --store")
    file = files.open(MANIFEST)
    try:
        manifest = json.loads(file.read(0, file.size()))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this program reads format {FORMAT}")
        bytes.fromhex(manifest["store_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{MANIFEST} cannot be read: {error}", "restore it from a copy") from error
    finally:
        file.close()
    found: Mapping[str, Any] = manifest
    return found


def log_names(files: Files) -> list[str]:
    """Names of the logs: "0", "1", ..., "coordinator"."""
    names = [name for name in files.names(_LOGS) if name.isdecimal() or name == COORDINATOR]
    return sorted(names, key=lambda name: (not name.isdecimal(), len(name), name))


def missing_log(files: Files, shard_count: int) -> DamageError | None:
    """One of a store's logs that is gone as a whole; None if all are there, or nothing was ever kept.

    A log that is not there looks like one that was never written to, and a shard would begin again without a word.
    The coordinator's is made last, before any record is written or checkpoint taken: without it, there is none.
    """
    names = [str(shard) for shard in range(shard_count)]
    if has_segments(files, f"{_LOGS}/{COORDINATOR}"):
        missing = [name for name in names if not has_segments(files, f"{_LOGS}/{name}")]
    else:
        used = bool(numbers(files)) or any(_has_records(files, name) for name in names)
        missing = [COORDINATOR] if used else []
    if not missing:
        return None
    path = f"{_LOGS}/{missing[0]}"
    return DamageError(
        f"the log {path} is missing, and the store was in use",
        "what was acknowledged may be in it, and cannot be skipped",
        _REMEDY,
        path=path,
        offset=0,
    )


def summarize_log(files: Files, name: str) -> LogSummary:
    """What a log's last segment says. Raises DamageError."""
    directory = f"{_LOGS}/{name}"
    segments = list_segments(files, directory)
    last = segments[-1].first_lsn - 1 if segments else None
    reader = LogReader(files, directory, after=last)
    kinds: dict[str, int] = {}
    scheme = ""
    for record in reader:
        kind = KINDS.get(record.kind, str(record.kind))
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind in ("step", "push"):
            scheme = _SCHEMES.get(record.codec, "physical") if record.codec else scheme or "command"
    return LogSummary(
        name,
        len(segments),
        sum(_size(files, segment.path) for segment in segments),
        segments[0].first_lsn if segments else 1,
        reader.next_lsn - 1,
        segments[-1].header.incarnation if segments else 0,
        reader.closed,
        scheme,
        kinds,
        reader.torn,
    )


def verify_store(files: Files) -> Iterator[Verdict]:
    """Read every log and every complete checkpoint to the end and check every checksum."""
    manifest = read_manifest(files)
    missing = missing_log(files, int(manifest.get("lanes", 0)))
    if missing is not None:
        yield Verdict(missing.path, damage=missing)
    held = _held_lsns(files)
    for name in log_names(files):
        yield _verify_log(files, name, held.get(name, 0))
    for number in numbers(files):
        verdict = _verify_checkpoint(files, number)
        if verdict is not None:
            yield verdict


def recover(files: Files, out: File) -> Recovered:
    """Write the newest parameters that the store can give, as one plain safetensors file.

    Takes the newest complete checkpoint that is whole (`skipped` says what was wrong with newer ones) and replays
    physical records; steps of command records are counted. Under bsp no shard is replayed further than all can be.

    Raises StoreError when there is no such checkpoint, DamageError for a damaged log.
    """
    manifest = read_manifest(files)
    missing = missing_log(files, int(manifest.get("lanes", 0)))
    if missing is not None:
        raise missing
    checkpoint, skipped = _newest_whole(files)
    records = {name: _records_after(files, name, checkpoint) for name in log_names(files) if name.isdecimal()}
    physical = {name: [record for record in each if record.update is not None] for name, each in records.items()}
    physical = _in_step(physical, manifest)
    replayed = sum(map(len, physical.values()))
    tensors = _write_replayed(files, checkpoint, manifest, physical, out) if replayed else None
    if tensors is None:
        tensors = write_plain(out, list(read_parameters(files, checkpoint)))
    return Recovered(checkpoint.number, tuple(tensors), replayed, _steps_to_recompute(records), tuple(skipped))


def replay_update(updater: Updater, shard: int, data: memoryview, *, lanes: int) -> None:
    """Apply a logged update (RAW; see `logged`) to the pages of a shard.

    data: the pushes it was made of. lanes: of the job; their sum is divided by it.
    """
    import torch

    layout = updater.layout
    pages = layout.of_shard(shard)
    push_bytes = sum(page.nbytes for page in pages)
    pushes, rest = divmod(len(data), push_bytes)
    if rest or not pushes:
        raise StoreError(
            f"a logged update of shard {shard} has {len(data)} bytes, its pages take {push_bytes}",
            "resume with the model it was logged with",
        )
    memory = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    offset = 0
    for page in pages:
        spec = layout.tensors[page.tensor]
        spans = [range(push * push_bytes + offset, push * push_bytes + offset + page.nbytes) for push in range(pushes)]
        parts = [memory[span.start : span.stop].clone().view(getattr(torch, spec.dtype)) for span in spans]
        if updater.rule.settings(spec.name) is not None:
            updater.apply(page.number, parts, 1 / lanes)
        elif spec.kind == "buffer":  # of a frozen parameter nothing was pushed, and anything may lie there
            updater.assign(page.number, parts[0])
        offset += page.nbytes


def write_plain(out: File, items: Iterable[tuple[Tensor, Any]]) -> list[Tensor]:
    """Write tensors, each with its bytes in the usual order, as a file that `load_state_dict` takes as it is."""
    held = list(items)
    layout = data_file("parameters", [tensor for tensor, _ in held], {"format": "pt"})
    out.write(0, memoryview(layout.header))
    for tensor, data in held:
        out.write(layout.offsets[tensor.name], memoryview(data))
    out.sync()
    return [tensor for tensor, _ in held]


def _has_records(files: Files, name: str) -> bool:
    try:
        return any(True for _ in LogReader(files, f"{_LOGS}/{name}", after=None))
    except DamageError:
        return True  # what it was is for whoever reads it to say


def _verify_log(files: Files, name: str, held_lsn: int) -> Verdict:
    """held_lsn: the newest of the log's records that is in a checkpoint, and so was durable before that was taken."""
    count = nbytes = 0
    try:
        reader = LogReader(files, f"{_LOGS}/{name}", after=None)
        for record in reader:
            count, nbytes = count + 1, nbytes + record.nbytes
    except DamageError as damage:
        return Verdict(f"log {name}", count, nbytes, damage)
    short = reader.end is not None and reader.next_lsn <= held_lsn
    return Verdict(f"log {name}", count, nbytes, _ends_too_soon(reader, held_lsn) if short else None)


def _ends_too_soon(reader: LogReader, held_lsn: int) -> DamageError:
    assert reader.end is not None
    path, offset = reader.end
    return DamageError(
        f"the log is damaged at LSN {reader.next_lsn}: {path}, byte {offset}: it ends there, and a checkpoint has what "
        f"it held up to LSN {held_lsn}",
        _REMEDY,
        path=path,
        offset=offset,
        lsn=reader.next_lsn,
    )


def _held_lsns(files: Files) -> dict[str, int]:
    """By name of a shard's log, up to where complete checkpoints hold it; of those that can be read."""
    held: dict[str, int] = {}
    for number in numbers(files):
        with contextlib.suppress(DamageError):
            checkpoint = read_checkpoint(files, number)
            for owner, part in checkpoint.parts.items() if checkpoint.complete else ():
                shard = owner.removeprefix("shard-")
                if shard.isdecimal():
                    held[str(int(shard))] = max(held.get(str(int(shard)), 0), int(part.state["lsn"]))
    return held


def _verify_checkpoint(files: Files, number: int) -> Verdict | None:
    """None for a checkpoint that was not finished: nobody was told of it."""
    name = f"checkpoint {number}"
    try:
        checkpoint = read_checkpoint(files, number)
        if not checkpoint.complete:
            return None
        seen = verify(files, checkpoint)
    except DamageError as damage:
        return Verdict(name, damage=damage)
    return Verdict(name, seen.pieces, seen.nbytes)


def _newest_whole(files: Files) -> tuple[Checkpoint, list[DamageError]]:
    skipped: list[DamageError] = []
    for number in reversed(numbers(files)):
        try:
            checkpoint = read_checkpoint(files, number)
            if checkpoint.complete:
                verify(files, checkpoint)
                return checkpoint, skipped
        except DamageError as damage:
            skipped.append(damage)
    if skipped:
        raise skipped[0]
    raise StoreError("the store has no complete checkpoint", "train on with --resume: it starts where the job started")


def _records_after(files: Files, name: str, checkpoint: Checkpoint) -> list[StepRecord | PushRecord]:
    state = checkpoint.parts[f"shard-{int(name):04d}"].state
    reader = LogReader(files, f"{_LOGS}/{name}", after=int(state["lsn"]))
    found = (from_record(record, RawUpdates()) for record in reader)
    return [record for record in found if isinstance(record, (StepRecord, PushRecord))]


def _in_step(records: Mapping[str, list[Any]], manifest: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Under bsp the steps that every shard has; else all."""
    if manifest["consistency"] != "bsp":
        return dict(records)
    reached = min((each[-1].step for each in records.values() if each), default=0) if all(records.values()) else -1
    return {name: [record for record in each if record.step <= reached] for name, each in records.items()}


def _steps_to_recompute(records: Mapping[str, list[StepRecord | PushRecord]]) -> tuple[int, int] | None:
    steps = [r.step for each in records.values() for r in each if isinstance(r, StepRecord) and r.update is None]
    return (min(steps), max(steps)) if steps else None


def _write_replayed(
    files: Files, checkpoint: Checkpoint, manifest: Mapping[str, Any], records: Mapping[str, list[Any]], out: File
) -> list[Tensor]:
    from gradbase.store.update import Updater, UpdateRule, allocate

    layout, rule = Layout.from_json(manifest["layout"]), UpdateRule.from_json(manifest["rule"])
    updater = Updater(layout, rule, allocate(layout, rule))
    _restore(files, checkpoint, layout, rule, updater)
    for name, each in records.items():
        for record in each:
            data = raw_update(layout, int(name), *record.update)
            replay_update(updater, int(name), data, lanes=int(manifest.get("lanes", 0)))
    return write_plain(out, _plain_tensors(updater))


def _restore(files: Files, checkpoint: Checkpoint, layout: Layout, rule: UpdateRule, updater: Updater) -> None:
    sources = shard_sources(layout, updater)
    for shard, owner in enumerate(f"shard-{number:04d}" for number in range(layout.shard_count)):
        mine = [source for source in sources if layout.pages[source.key].shard == shard]
        reader = Checkpointer(files, owner, [owner], store_files(layout, rule), mine, spare_bytes=0)
        reader.restore(checkpoint.number)


def _plain_tensors(updater: Updater) -> Iterator[tuple[Tensor, bytes]]:
    import torch

    layout = updater.layout
    for spec in layout.tensors:
        pages = [updater.value(page).view(torch.uint8).numpy().tobytes() for page in layout.of_tensor(spec.name)]
        data = b"".join(pages)
        if spec.stride is not None:
            data = in_order(data, spec.dtype, spec.shape, spec.stride)
        for name in (spec.name, *spec.aliases):
            yield Tensor(name, spec.dtype, spec.shape), data


def _size(files: Files, path: str) -> int:
    file = files.open(path)
    try:
        return file.size()
    finally:
        file.close()
