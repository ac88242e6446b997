"""`gradbase train --workers`: events, errors, Ctrl-C, and the death of the whole job at any moment."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from gradbase.cli._progress import Progress
from gradbase.cli._table import Table
from gradbase.cluster.steward import ShardStatus, StepReport
from tests.cli.commands import RECIPES, called, events, started

STREAM = RECIPES / "stream.py"
STEP = {"event", "step", "loss", "time_us", "worker", "staleness_steps", "batch"}


def test_events_and_a_store_that_goes_on_with_the_same_bits(cache: Path, tmp_path: Path) -> None:
    whole = called(cache, "train", STREAM, "--workers", 2, "--steps", 6, "--json")
    assert whole.returncode == 0, whole.stderr
    *steps, summary = events(whole.stdout)
    assert all(each.keys() == STEP for each in steps)
    assert sorted((each["step"], each["batch"]) for each in steps) == [(n // 2 + 1, n) for n in range(12)]
    assert {each["worker"] for each in steps} == {0, 1} and {each["staleness_steps"] for each in steps} == {0}
    assert summary["steps"] == 6 and summary["workers"] == 2 and summary["consistency"] == "bsp"
    store = ("--store", tmp_path / "store", "--durability", "checkpoint")
    first = called(cache, "train", STREAM, "--workers", 2, "--steps", 2, "--json", *store)
    assert first.returncode == 0, first.stderr
    (kept,) = [each for each in events(first.stdout) if each["event"] == "store"]
    assert kept["durability"] == "checkpoint" and kept["logging"] is None and kept["checkpoint_interval_us"] > 0
    assert kept["checkpoint_reason"] in first.stderr
    again = called(cache, "train", STREAM, "--workers", 2, "--steps", 6, "--json", *store, "--resume")
    resumed = [each["step"] for each in events(again.stdout) if each["event"] == "step"]
    assert resumed == [3, 3, 4, 4, 5, 5, 6, 6], again.stderr
    assert events(again.stdout)[-1]["parameters_sha256"] == summary["parameters_sha256"]


def test_batches_that_no_step_took_are_counted(cache: Path) -> None:
    """Of a stream whose length only its end shows."""
    done = called(cache, "train", RECIPES / "nine.py", "--workers", 2, "--steps", 9, "--json")
    summary = events(done.stdout)[-1]
    assert (summary["steps"], summary["batches_left_out"]) == (4, 1), done.stderr
    assert "the last 1 of 9 are left out" in done.stderr and "batches() ended after 4 of 9 steps" in done.stderr


def test_a_store_says_how_it_goes_on_and_any_number_of_workers_can(cache: Path, tmp_path: Path) -> None:
    """What is not said is as the store was made. Bits depend on the batches of a step, not on who computes them."""
    made = ("train", STREAM, "--json", "--store", tmp_path / "bsp")
    assert called(cache, *made, "--workers", 2, "--steps", 2, "--durability", "checkpoint").returncode == 0
    expected = events(called(cache, "train", STREAM, "--json", "--workers", 2, "--steps", 8).stdout)[-1]
    for steps, workers in ((4, ()), (6, ("--workers", 1)), (8, ("--workers", 3))):
        done = called(cache, *made, "--steps", steps, "--resume", *workers)
        assert done.returncode == 0, done.stderr
        summary = events(done.stdout)[-1]
        assert (summary["steps"], summary["durability"], summary["consistency"]) == (steps, "checkpoint", "bsp")
    assert "2 micro-batches a step: 1 of the workers wait" in done.stderr and summary["workers"] == 3
    assert summary["parameters_sha256"] == expected["parameters_sha256"]
    stale = ("train", STREAM, "--json", "--store", tmp_path / "ssp")
    assert called(cache, *stale, "--workers", 2, "--steps", 2, "--consistency", "ssp:2").returncode == 0
    summary = events(called(cache, *stale, "--steps", 3, "--resume").stdout)[-1]
    assert (summary["consistency"], summary["workers"], summary["durability"]) == ("ssp:2", 2, "wal")
    other = called(cache, *stale, "--steps", 4, "--resume", "--consistency", "asp")
    assert other.returncode == 2 and "made with consistency ssp, not asp" in other.stderr


def test_a_planned_step_inside_its_budget_gives_the_same_bits(cache: Path) -> None:
    arguments = ("train", STREAM, "--workers", 2, "--steps", 4, "--json")
    eager, planned = called(cache, *arguments), called(cache, *arguments, "--memory", "300MB")
    assert planned.returncode == 0, planned.stderr
    *others, summary = events(planned.stdout)
    assert summary["parameters_sha256"] == events(eager.stdout)[-1]["parameters_sha256"]
    plans = [each for each in others if each["event"] == "plan"]
    assert {each["worker"] for each in plans} == {0, 1}
    assert all(0 < each["predicted_peak_bytes"] <= each["budget_bytes"] == 300_000_000 for each in plans)
    assert summary["budget_bytes"] == 300_000_000
    assert 0 < summary["measured_peak_bytes"] <= summary["budget_bytes"]
    assert summary["predicted_peak_bytes"] == max(each["predicted_peak_bytes"] for each in plans)


def test_the_codec_is_told_with_its_bytes(cache: Path) -> None:
    done = called(cache, "train", STREAM, "--workers", 1, "--steps", 2, "--json", "--codec", "int8,*=int8")
    assert done.returncode == 0, done.stderr
    first, *_, summary = events(done.stdout)
    assert first == {"event": "codec", "codec": "int8,*=int8", "reason": "as asked for"}
    assert summary["codec"] == "int8,*=int8" and summary["pushed_bytes"] == summary["gradient_bytes"] == 0
    assert "codec of gradients: int8,*=int8 (as asked for)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "2", "--consistency", "sspp"), "no consistency is called 'sspp'"),
        (("--workers", "100000"), "100000 workers are too many for"),
        (("--workers", "100000", "--engine", "ray"), "100000 workers are too many for"),
        (("--workers", "2", "--durability", "wal"), "--durability wal needs a directory"),
        (("--workers", "2", "--resume"), "--resume goes on where a store stands"),
        (("--workers", "2", "--address", "auto"), "--address is that of a Ray cluster"),
        (("--workers", "2", "--codec", "int9"), "there is no codec 'int9'"),
        (("--workers", "2", "--codec", "int8,head"), "'head' names no tensors"),
        (("--workers", "2", "--analyze"), "--analyze is about one plan"),
        (("--workers", "2", "--durability", "none", "--store", "{tmp}/new"), "--durability none keeps nothing"),
        (("--workers", "2", "--resume", "--store", "{tmp}/new"), "there is no store at"),
        (("--workers", "1", "--store", "{tmp}"), "is not empty and no store"),
        (("--workers", "0",), "'0' is not a whole number of at least 1"),
    ],
)
def test_errors_are_told_before_anything_is_written(
    cache: Path, tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("not a store")
    given = [each.format(tmp=tmp_path) for each in arguments]
    done = called(cache, "train", STREAM, "--steps", 1, *given)
    assert done.returncode == 2
    assert words in done.stderr + capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_a_recipe_with_a_scheduler_is_refused(cache: Path) -> None:
    done = called(cache, "train", RECIPES / "endless.py", "--workers", 1, "--steps", 1)
    assert done.returncode == 2 and "scheduler of" in done.stderr and "Traceback" not in done.stderr


def test_killed_with_all_its_workers_again_and_again_the_job_ends_with_the_same_bits(
    cache: Path, tmp_path: Path
) -> None:
    moments = random.Random(11)
    arguments = ("train", STREAM, "--workers", 2, "--steps", 300, "--json", "--quiet")
    expected = events(called(cache, *arguments).stdout)[-1]["parameters_sha256"]
    store, summary, resumed = ("--store", tmp_path / "store"), None, 0
    while summary is None:
        more = ("--resume",) if (tmp_path / "store" / "MANIFEST.json").exists() else ()
        wanted = moments.randint(20, 250) if resumed < 2 else None
        with started(cache, tmp_path / "errors", *arguments, *store, *more) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(wanted)] if wanted else process.stdout.readlines()
            if wanted:
                children = _descendants(process.pid)
                process.send_signal(signal.SIGKILL)
                _await_end(children)
            process.wait(timeout=60)
        resumed += 1
        if not wanted:
            summary = json.loads(lines[-1])
    assert summary["steps"] == 300 and summary["parameters_sha256"] == expected


def test_an_interrupt_leaves_a_store_that_can_be_resumed(cache: Path, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    with started(cache, tmp_path / "errors", "train", STREAM, "--workers", 2, "--json", *store) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(10)]
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        assert process.wait(timeout=60) == 130
    kept, *steps, summary = events("".join(lines))
    assert kept["event"] == "store" and kept["logging"] == "command"
    assert kept["logging_reason"].startswith("command: ") and "physical" in kept["logging_reason"]
    assert summary["interrupted"] is True and summary["steps"] == max(each["step"] for each in steps)
    again = called(cache, "train", STREAM, "--workers", 2, "--steps", summary["steps"], "--json", "--resume", *store)
    assert events(again.stdout)[-1]["parameters_sha256"] == summary["parameters_sha256"], again.stderr


def test_the_table_has_a_row_for_every_worker_and_shard() -> None:
    now_s = [0.0]
    table = Table(Progress(io.StringIO()), 8, stream=io.StringIO(), clock=lambda: now_s[0])
    for step in range(1, 5):
        now_s[0] += 0.5
        for worker in (0, 1):
            table.report(StepReport(step, worker, worker, 2 * step + worker, 16, 0.25, 1000.0, worker))
    lines = table.lines([(ShardStatus(3, 17, 15), 2048)], now_s[0])
    assert lines[0].split() == ["worker", "step", "staleness", "samples/s", "loss"]
    assert lines[2].split() == ["1", "4/8", "1", "42.7", "0.2500"]
    assert lines[-1].split() == ["0", "3", "2.00", "KiB", "17", "15"]


def test_the_table_is_drawn_over_itself() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    progress = Progress(stream)
    progress.block(["one", "two"])
    progress.block(["three", "four"])
    progress.line("stays")
    assert stream.getvalue() == "\r\x1b[Kone\ntwo\r\x1b[1A\x1b[Jthree\nfour\r\x1b[1A\x1b[Jstays\n"


def _descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found


def _await_end(pids: list[int]) -> None:
    """Every worker ends with its job, by itself."""
    deadline_s = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s, "a worker outlived its job"
        time.sleep(0.02)
