"""Progress, streams and interrupts, with a clock and streams of the tests' own."""

from __future__ import annotations

import io
import logging
import os
import signal

import pytest

from gradbase.cli._console import Console
from gradbase.cli._interrupts import Interrupts
from gradbase.cli._progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_on_a_terminal_one_line_is_redrawn() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock=clock)
    for done in range(5):
        progress.update("step", done, 4, "loss 1.0")
        clock.now_s += 0.06
    progress.line("finished")
    drawn = stream.getvalue().split("\r\x1b[K")
    assert [part.count("#") for part in drawn if part.startswith("step")] == [0, 12, 24], "every second one is drawn"
    assert drawn[-1] == "finished\n" and "loss 1.0" in drawn[1]


def test_elsewhere_plain_lines_come_ever_more_rarely() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    for step in range(1, 101):
        progress.update("step", step, None)
        clock.now_s += 1
    assert stream.getvalue() == "".join(f"step {n}\n" for n in (1, 3, 7, 15, 31, 63))
    progress.update("saving", 0, None)
    assert stream.getvalue().endswith("saving\n"), "a new stage is told at once"


def test_quiet_draws_nothing() -> None:
    stream = Terminal()
    progress = Progress(stream, quiet=True)
    progress.update("step", 1, 2)
    progress.clear()
    assert stream.getvalue() == ""


def test_what_others_print_does_not_reach_the_product(capfd: pytest.CaptureFixture[str]) -> None:
    with Console(json_lines=True) as console:
        print("a library")
        logging.getLogger("gradbase.anything").warning("beware of %s", "this")
        console.event("step", loss=float("nan"), time_us=1.5)
        console.say("words")
    seen = capfd.readouterr()
    assert seen.out == '{"event": "step", "loss": null, "time_us": 1.5}\n'
    assert "a library" in seen.err and "warning: beware of this" in seen.err and "words" in seen.err


def test_an_interrupt_waits_for_the_end_of_the_step() -> None:
    told: list[str] = []
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts(lambda: told.append("wait")) as interrupts:
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("step")
        done.append("never")
    assert done == ["step"] and told == ["wait"]


def test_a_second_interrupt_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts(lambda: None) as interrupts, interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert not done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_between_steps_an_interrupt_is_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts(lambda: None) as interrupts:
        with interrupts.deferred():
            pass
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")


def test_ignored_interrupts_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts(lambda: None) as interrupts, interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
