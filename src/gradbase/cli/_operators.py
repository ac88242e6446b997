"""What crowd, fuse and match have in common at the command line: columns, files, notes, events."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gradbase.cli._catalog import aligned
from gradbase.cli._console import Console
from gradbase.common.errors import TableError, UsageError
from gradbase.tables.evaluate import Evaluation
from gradbase.tables.io import Outputs
from gradbase.tables.state import STATE_ENDINGS, save_state

_ENDINGS = {"--html": (".html", ".htm"), "--state-out": STATE_ENDINGS}
_MOST_PRINTED = 50  # rows of --next that people are shown; --next-out has all of them


@contextlib.contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Whatever a table command refuses, it says on one line."""
    try:
        yield
    except UsageError as error:
        raise TableError(error.problem, *error.remedies) from error


def pairs(text: str | None, option: str) -> dict[str, str] | None:
    """item=qid,label=answer as a mapping. Raises TableError."""
    if text is None:
        return None
    entries = [entry.partition("=") for entry in text.split(",")]
    wrong = next((name for name, sign, value in entries if not (name.strip() and sign and value.strip())), None)
    if wrong is not None:
        raise TableError(f"{option} {text!r} is not a list of NAME=VALUE", f"expected for example {option} item=qid")
    return {name.strip(): value.strip() for name, _, value in entries}


def outputs(arguments: argparse.Namespace, names: Sequence[str], inputs: Sequence[str]) -> Outputs:
    """The files of `--NAME` options, checked before anything is read. Raises TableError."""
    wanted = {f"--{name}": getattr(arguments, name.replace("-", "_")) for name in names}
    read = [getattr(arguments, name) for name in inputs]
    return Outputs(wanted, read, _ENDINGS)


def on_progress(console: Console) -> Callable[[str, int, int], None]:
    """How far it is, on standard error."""

    def update(stage: str, done: int, total: int) -> None:
        console.progress.update(stage, done, total)

    return update


def tell(console: Console, counts: Mapping[str, int], notes: Sequence[str], **more: Any) -> None:
    """What was read, and what has to be said about it."""
    console.event("read", **counts, **more)
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    console.say(told)
    for note in notes:
        console.event("note", text=note)
        console.say(f"note: {note}")


def tell_evaluation(console: Console, found: Evaluation | None) -> None:
    """The comparison with gold: what was asked for, so on standard output."""
    if found is None:
        return
    if console.json_lines:
        console.event("evaluation", **found.figures())
    else:
        console.product(found.summary())


def tell_next(console: Console, rows: Any) -> None:
    """What is most worth buying."""
    if rows is None:
        return
    if console.json_lines:
        for row in rows.to_pylist():
            console.event("next", **row)
        return
    shown = [tuple(row.values()) for row in rows.slice(0, _MOST_PRINTED).to_pylist()]
    console.product(aligned(rows.column_names, shown))


def write_state(files: Outputs, operator: str, state: Callable[[], Mapping[str, Any]]) -> None:
    """The statistics to go on from, if they are wanted."""
    if "--state-out" in files:
        files.file("--state-out", lambda path: save_state(path, operator, state()))


def finish(console: Console, files: Outputs, began: float, **figures: Any) -> None:
    """Put the files into their places, and say so."""
    for name, path in files.commit().items():
        console.event("written", option=name, path=str(path), nbytes=path.stat().st_size)
        console.say(f"wrote {path}")
    console.event("summary", **figures, time_us=round((time.perf_counter() - began) * 1e6))
