"""Progress: on a terminal one line that is drawn again and again, elsewhere a plain line now and then."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import TextIO

_REDRAW_S = 0.1
_PAUSE_S = 2.0  # between plain lines; doubles with each, so that a log of a long run stays short
_PAUSE_MAX_S = 60.0
_BAR_CELLS = 24


class Progress:
    """Draws on `stream`; `clock` gives seconds. Writes nothing but permanent lines when `quiet`."""

    def __init__(self, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self.quiet = quiet
        self._clock = clock
        self._terminal = stream.isatty()
        self._drawn = 0  # lines that are to be drawn over
        self._next_s = float("-inf")
        self._pause_s = _PAUSE_S
        self._label = ""

    def update(self, label: str, done: int, total: int | None, detail: str = "") -> None:
        """Show that `done` of `total` (None: not known) of what `label` names is done."""
        now = self._clock()
        if label != self._label:
            self._label, self._next_s, self._pause_s = label, float("-inf"), _PAUSE_S
        if self.quiet or now < self._next_s:
            return
        if self._terminal:
            self._next_s = now + _REDRAW_S
            self._draw(_bar_line(label, done, total, detail))
        else:
            self._next_s = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
            self._write(_plain_line(label, done, total, detail) + "\n")

    def line(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(text.rstrip("\n") + "\n")

    def block(self, lines: Sequence[str]) -> None:
        """Draw several lines on a terminal over what was drawn there before."""
        size = shutil.get_terminal_size()
        shown = [line[: size.columns - 1] for line in lines[: size.lines - 1]]
        wiped, self._drawn = self._wiping(), len(shown)
        self._write(wiped + "\n".join(shown))

    def clear(self) -> None:
        """Wipe what is being redrawn, if anything is."""
        if self._drawn:
            wiped, self._drawn = self._wiping(), 0
            self._write(wiped)

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        wiped, self._drawn = self._wiping(), 1
        self._write(f"{wiped}{text[:width]}")

    def _wiping(self) -> str:
        """To the start of the first line that was drawn, with everything from there on wiped."""
        above = self._drawn - 1
        return f"\r\x1b[{above}A\x1b[J" if above > 0 else "\r\x1b[K"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _bar_line(label: str, done: int, total: int | None, detail: str) -> str:
    bar = ""
    if total:
        filled = min(_BAR_CELLS, _BAR_CELLS * done // total)
        bar = f" [{'#' * filled}{'.' * (_BAR_CELLS - filled)}]"
    return f"{label}{bar}{_count(done, total)}{'  ' * bool(detail)}{detail}"


def _plain_line(label: str, done: int, total: int | None, detail: str) -> str:
    return f"{label}{_count(done, total)}{'  ' * bool(detail)}{detail}"


def _count(done: int, total: int | None) -> str:
    if total:
        return f" {done}/{total}"
    return f" {done}" if done else ""
