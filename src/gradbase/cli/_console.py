"""Where a command writes: what it was asked for on standard output, words for people on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO

from gradbase.cli._progress import Progress


class Console:
    """The streams of one command.

    While it is open, whatever a recipe or a library prints on standard output goes to standard error instead, so
    that a program which reads `--json` meets nothing but JSON.
    """

    def __init__(self, *, json_lines: bool = False, quiet: bool = False) -> None:
        self.json_lines = json_lines
        self.quiet = quiet
        self.progress = Progress(sys.stderr, quiet=quiet)
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Console:
        self._product = self._closing.enter_context(_product_stream())
        self._closing.enter_context(_logging_to(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.clear()
        self._closing.close()

    def product(self, text: str) -> None:
        """Write what the command was asked for to standard output."""
        self.progress.clear()
        self._product.write(text if text.endswith("\n") else text + "\n")
        self._product.flush()

    def event(self, name: str, /, **fields: Any) -> None:
        """With --json: one object on one line, {"event": name, ...}. A figure that is not finite is null."""
        if self.json_lines:
            self.json({"event": name} | fields)

    def json(self, fields: dict[str, Any]) -> None:
        """One JSON object on one line of standard output."""
        self.product(json.dumps(_finite(fields), allow_nan=False, default=str))

    def say(self, text: str) -> None:
        """Tell people, unless they asked for quiet."""
        if not self.quiet:
            self.progress.line(text)

    def fail(self, text: str) -> None:
        """Tell people what went wrong, also when they asked for quiet."""
        self.progress.line(text)


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _product_stream() -> Iterator[TextIO]:
    """The standard output as it was, while the name and the descriptor lead to standard error."""
    outer = sys.stdout
    with contextlib.ExitStack() as closing:
        product = outer
        if _descriptor(outer) == 1:  # native code and child processes write to the descriptor
            outer.flush()
            product = closing.enter_context(_diverted(outer))
        closing.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield product


@contextlib.contextmanager
def _diverted(outer: TextIO) -> Iterator[TextIO]:
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding=outer.encoding, errors="replace", closefd=False) as product:
            yield product
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, io.UnsupportedOperation):
        return None


class _Handler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.fail(f"{record.levelname.lower()}: {record.getMessage()}")


@contextlib.contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """Warnings of gradbase's own loggers, on lines of their own beside the progress bar."""
    logger, handler = logging.getLogger("gradbase"), _Handler(console)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
