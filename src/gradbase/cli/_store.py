"""`gradbase store`: what lies in the directory of a parameter store, without a job that runs."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from gradbase.cli._catalog import aligned
from gradbase.cli._console import Console
from gradbase.common.errors import DamageError, StoreError, UsageError
from gradbase.common.units import format_bytes
from gradbase.store import recovery
from gradbase.store.checkpoint import Checkpoint, numbers, read_checkpoint
from gradbase.store.files import DiskFiles


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Inspect, verify or recover. Raises UsageError, StoreError, DamageError for what is not as it was written."""
    if not arguments.directory.is_dir():
        raise UsageError(f"there is no directory {arguments.directory}", "name what was given to train --store")
    if (arguments.out is None) == (arguments.action == "recover"):
        raise UsageError("recover takes --out FILE, inspect and verify do not", "gradbase store recover DIR --out FILE")
    files = DiskFiles(arguments.directory)
    manifest = recovery.read_manifest(files)
    if arguments.action == "inspect":
        _inspect(files, manifest, console)
    elif arguments.action == "verify":
        _verify(files, console)
    else:
        _recover(files, arguments.out, console)
    return 0


def _inspect(files: DiskFiles, manifest: Any, console: Console) -> None:
    told = {
        key: manifest.get(key) for key in ("store_id", "consistency", "staleness_steps", "durability", "lanes", "seed")
    }
    checkpoints = [_checkpoint_row(read_checkpoint(files, number)) for number in numbers(files)]
    logs = [_log_row(recovery.summarize_log(files, name)) for name in recovery.log_names(files)]
    if console.json_lines:
        console.event("store", **told)
        for row in checkpoints:
            console.event("checkpoint", **row)
        for row in logs:
            console.event("log", **row)
        return
    console.product("  ".join(f"{key} {value}" for key, value in told.items() if value is not None))
    console.product("\ncheckpoints\n" + _table(checkpoints, _CHECKPOINT_COLUMNS))
    console.product("\nlogs\n" + _table(logs, _LOG_COLUMNS))
    for row in logs:
        if row["torn_lsn"] is not None:
            console.product(
                f"log {row['log']}: torn at LSN {row['torn_lsn']}, {row['torn_bytes']} bytes, not acknowledged"
            )


def _verify(files: DiskFiles, console: Console) -> None:
    damages: list[DamageError] = []
    for verdict in recovery.verify_store(files):
        if verdict.damage is None:
            console.event("verified", name=verdict.name, records=verdict.records, nbytes=verdict.nbytes)
            if not console.json_lines:
                console.product(
                    f"{verdict.name}: {verdict.records} checksums over {format_bytes(verdict.nbytes)} are right"
                )
            continue
        damages.append(verdict.damage)
        where = {"path": verdict.damage.path, "offset": verdict.damage.offset, "lsn": verdict.damage.lsn}
        console.event("damaged", name=verdict.name, problem=verdict.damage.problem, **where)
    for damage in damages[1:]:
        console.fail(damage.problem)
    if damages:
        raise damages[0]


def _recover(files: DiskFiles, out: Path, console: Console) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors", "name the file to write so")
    temporary = f".{out.name}.part"
    try:
        folder = DiskFiles(out.absolute().parent)
        file = folder.open(temporary, create=True)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", "name a file in a directory that exists") from error
    try:
        found = recovery.recover(files, file)
        file.close()
        folder.rename(temporary, out.name)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror} (errno {error.errno})", "free space") from error
    finally:
        file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder.root / temporary)
    _tell_recovered(found, out, console)


def _tell_recovered(found: recovery.Recovered, out: Path, console: Console) -> None:
    for damage in found.skipped:
        console.fail(f"warning: a newer checkpoint was passed over: {damage.problem}")
    nbytes = sum(tensor.nbytes for tensor in found.tensors)
    first, last = found.recompute or (None, None)
    console.event(
        "recovered", out=str(out), checkpoint=found.number, tensors=len(found.tensors), nbytes=nbytes,
        replayed_records=found.replayed, recompute_first_step=first, recompute_last_step=last,
        passed_over=[damage.path for damage in found.skipped],
    )  # fmt: skip
    if console.json_lines:
        return
    console.product(f"{out}: {len(found.tensors)} tensors, {format_bytes(nbytes)}, of checkpoint {found.number}")
    if found.replayed:
        console.product(f"{found.replayed} logged updates were applied to it")
    if first is not None:
        console.product(f"steps {first} to {last} are logged as commands: gradbase train --resume computes them again")


def _checkpoint_row(checkpoint: Checkpoint) -> dict[str, Any]:
    states = [dict(part.state) for owner, part in sorted(checkpoint.parts.items()) if owner.startswith("shard")]
    return {
        "checkpoint": checkpoint.number,
        "step": max((state.get("step", 0) for state in states), default=None),
        "lsns": [state.get("lsn") for state in states],
        "nbytes": checkpoint.nbytes,
        "new_nbytes": checkpoint.new_nbytes,
        "complete": checkpoint.complete,
        "missing": list(checkpoint.missing),
    }


def _log_row(log: recovery.LogSummary) -> dict[str, Any]:
    return {
        "log": log.name,
        "first_lsn": log.first_lsn,
        "last_lsn": log.last_lsn,
        "segments": log.segments,
        "nbytes": log.nbytes,
        "scheme": log.scheme or None,
        "incarnation": log.incarnation,
        "closed": log.closed,
        "torn_lsn": log.torn.lsn if log.torn else None,
        "torn_bytes": log.torn.nbytes if log.torn else None,
    }


_CHECKPOINT_COLUMNS = ("checkpoint", "step", "lsns", "nbytes", "new_nbytes", "complete")
_LOG_COLUMNS = ("log", "first_lsn", "last_lsn", "segments", "nbytes", "scheme", "incarnation", "closed")


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    return aligned(columns, [[_cell(name, row[name]) for name in columns] for row in rows])


def _cell(name: str, value: Any) -> Any:
    if name.endswith("nbytes"):
        return format_bytes(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
