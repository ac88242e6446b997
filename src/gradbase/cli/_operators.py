"""What crowd, fuse and match have in common at the command line: columns, files, notes, events."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradbase.cli._catalog import aligned
from gradbase.cli._console import Console
from gradbase.common.errors import TableError, UsageError
from gradbase.tables.evaluate import Evaluation
from gradbase.tables.io import Outputs
from gradbase.tables.state import STATE_ENDINGS, save_state

_ENDINGS = {"--html": (".html", ".htm"), "--state-out": STATE_ENDINGS}
_MOST_PRINTED = 50  # rows of --next that people are shown; --next-out has all of them


@dataclass(frozen=True)
class Operator:
    """A function of `tables.api` at the command line.

    `tables` maps options that name files (without dashes) to the fields of what it returns, which are asked for only
    where they are wanted; `inputs` are the arguments that name what is read; `read` and `summary` give what the
    events of these names say beside what they always do.
    """

    name: str
    title: str
    tables: Mapping[str, str]
    inputs: Sequence[str]
    read: Callable[[Any], Mapping[str, Any]]
    summary: Callable[[Any], Mapping[str, Any]]
    keeps_state: bool = True


def operate(operator: Operator, arguments: argparse.Namespace, console: Console, *inputs: Any, **options: Any) -> int:
    """Ask the operator, write what was asked for, and say what was found. Raises TableError."""
    began = time.perf_counter()
    with _errors_on_one_line(), _outputs(operator, arguments) as files:
        from gradbase.tables import api

        found = getattr(api, operator.name)(arguments.input, *inputs, **_shared(arguments), **options)
        _tell(console, found.counts, found.notes, operator.read(found))
        _tell_gates(console, getattr(found, "gates", None))
        _write(operator, files, found, f"{operator.title}: {arguments.input}")
        _tell_evaluation(console, found.evaluation)
        _tell_next(console, getattr(found, "next", None))
        _finish(console, files, began, operator.summary(found))
    return 0


def of_claims(arguments: argparse.Namespace) -> dict[str, Any]:
    """What crowd and fuse take: one table of claims, kept statistics, and how much to buy. Raises TableError."""
    if arguments.next_out is not None and not arguments.next:
        raise TableError("--next-out was given without --next", "say how many to list: --next 100")
    return {
        "table": arguments.table,
        "query": arguments.query,
        "columns": pairs(arguments.columns, "--columns"),
        "next": arguments.next,
        "state": arguments.state_in,
    }


def _shared(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"gold": arguments.gold, "seed": arguments.seed, "memory": arguments.memory}


def pairs(text: str | None, option: str) -> dict[str, str] | None:
    """item=qid,label=answer as a mapping. Raises TableError."""
    if text is None:
        return None
    entries = [entry.partition("=") for entry in text.split(",")]
    wrong = next((name for name, sign, value in entries if not (name.strip() and sign and value.strip())), None)
    if wrong is not None:
        raise TableError(f"{option} {text!r} is not a list of NAME=VALUE", f"expected for example {option} item=qid")
    return {name.strip(): value.strip() for name, _, value in entries}


def on_progress(console: Console) -> Callable[[str, int, int], None]:
    """How far it is, on standard error."""

    def update(stage: str, done: int, total: int) -> None:
        console.progress.update(stage, done, total)

    return update


@contextlib.contextmanager
def _errors_on_one_line() -> Iterator[None]:
    """Whatever a table command refuses, it says on one line."""
    try:
        yield
    except UsageError as error:
        raise TableError(error.problem, *error.remedies) from error


def _outputs(operator: Operator, arguments: argparse.Namespace) -> Outputs:
    """The files of `--NAME` options, checked before anything is read. Raises TableError."""
    names = [*operator.tables, "html", *(["state-out"] if operator.keeps_state else [])]
    wanted = {f"--{name}": getattr(arguments, name.replace("-", "_")) for name in names}
    read = [getattr(arguments, name) for name in operator.inputs]
    return Outputs(wanted, read, _ENDINGS)


def _write(operator: Operator, files: Outputs, found: Any, title: str) -> None:
    for option, field in operator.tables.items():
        rows = getattr(found, field) if f"--{option}" in files else None
        if rows is not None:
            files.table(f"--{option}", rows)
    if "--html" in files:
        files.text("--html", found.html(title))
    if "--state-out" in files:
        files.file("--state-out", lambda path: save_state(path, operator.name, found.state))


def _tell(console: Console, counts: Mapping[str, int], notes: Sequence[str], more: Mapping[str, Any]) -> None:
    """What was read, and what has to be said about it."""
    console.event("read", **counts, **more)
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    console.say(told)
    for note in notes:
        console.event("note", text=note)
        console.say(f"note: {note}")


def _tell_evaluation(console: Console, found: Evaluation | None) -> None:
    """The comparison with gold: what was asked for, so on standard output."""
    if found is None:
        return
    if console.json_lines:
        console.event("evaluation", **found.figures())
    else:
        console.product(found.summary())


def _tell_gates(console: Console, gates: Any) -> None:
    """What was tried on claims held out, and whether it was kept."""
    for gate in [] if gates is None else gates.to_pylist():
        console.event("gate", **gate)


def _tell_next(console: Console, rows: Any) -> None:
    """What is most worth buying."""
    if rows is None:
        return
    if console.json_lines:
        for row in rows.to_pylist():
            console.event("next", **row)
        return
    shown = [tuple(row.values()) for row in rows.slice(0, _MOST_PRINTED).to_pylist()]
    console.product(aligned(rows.column_names, shown))


def _finish(console: Console, files: Outputs, began: float, figures: Mapping[str, Any]) -> None:
    """Put the files into their places, and say so."""
    for name, path in files.commit().items():
        console.event("written", option=name, path=str(path), nbytes=path.stat().st_size)
        console.say(f"wrote {path}")
    console.event("summary", **figures, time_us=round((time.perf_counter() - began) * 1e6))
