"""The local engine with real processes: the bits of one process, whoever is killed and whenever."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gradbase.cluster.job import Outcome, Request
from gradbase.cluster.local import LocalEngine, StoreChoice
from gradbase.cluster.steward import StepReport
from gradbase.common.errors import DamageError, StepError, StoreError, UsageError
from gradbase.store.machine import parse_consistency
from tests.cluster import recipes

BACK_S = 5.0  # on a busy machine; on a quiet one it is a tenth of a second


class Run:
    """A job, what it reported, and someone who does things to its workers every so many reports."""

    def __init__(self, request: Request, act: Any = None, every: int = 0) -> None:
        self.reports: list[StepReport] = []
        self.times_s: list[float] = []
        self._act, self._every = act, every
        self.engine = LocalEngine(request, on_report=self._report)
        self.outcome: Outcome = self.engine.run()

    def _report(self, report: StepReport) -> None:
        self.reports.append(report)
        self.times_s.append(time.monotonic())
        if self._every and len(self.reports) % self._every == 0:
            others = [pid for pid in self.engine.processes() if pid != os.getpid()]
            if others:
                self._act(others)

    @property
    def longest_pause_s(self) -> float:
        return max(after - before for before, after in zip(self.times_s, self.times_s[1:], strict=False))


def _request(consistency: str = "bsp", workers: int = 3, steps: int | None = 40, **given: Any) -> Request:
    level, staleness_steps = parse_consistency(consistency)
    build = given.pop("build", recipes.build)
    return Request(build, workers, steps, level, staleness_steps, **given)


def test_bsp_gives_the_bits_of_one_process_that_accumulates() -> None:
    run = Run(_request())
    assert recipes.digest(run.outcome.model) == recipes.plain(3, 40)
    assert run.outcome.steps == 40 and run.outcome.lost == 0 and not run.outcome.interrupted
    assert {(report.step, report.lane) for report in run.reports} == {(s, n) for s in range(1, 41) for n in range(3)}
    assert all(report.staleness_steps == 0 and report.samples == recipes.ROWS for report in run.reports)


def test_one_worker_needs_no_other_process() -> None:
    run = Run(_request(workers=1, steps=20))
    assert recipes.digest(run.outcome.model) == recipes.plain(1, 20)


def test_workers_that_are_killed_again_and_again_change_nothing() -> None:
    moments = random.Random(5)

    def kill(pids: list[int]) -> None:
        victims = moments.sample(pids, moments.randint(1, len(pids)))
        delay_s = moments.uniform(0, 0.01)
        threading.Timer(delay_s, lambda: [_kill(pid) for pid in victims]).start()

    run = Run(_request(steps=80), kill, every=25)
    assert recipes.digest(run.outcome.model) == recipes.plain(3, 80)
    assert run.outcome.lost >= 5
    assert run.longest_pause_s < BACK_S


@pytest.mark.parametrize("generations", [1, 2], ids=["server of the job", "server of servers"])
def test_what_workers_are_forked_from_is_replaced_when_it_is_killed(generations: int) -> None:
    killed: set[int] = set()

    def kill_above(pids: list[int]) -> None:
        with contextlib.suppress(FileNotFoundError):
            pid = pids[0]
            for _ in range(generations):
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            killed.add(pid)
            _kill(pid)

    run = Run(_request(steps=60), kill_above, every=80)
    assert killed and os.getpid() not in killed and run.outcome.lost >= 2
    assert recipes.digest(run.outcome.model) == recipes.plain(3, 60)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_worker_that_is_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradbase.cluster.local._engine._STOPPED_S", 0.3)
    stopped: list[int] = []

    def stop(pids: list[int]) -> None:
        if not stopped:
            stopped.append(pids[0])
            os.kill(pids[0], signal.SIGSTOP)

    run = Run(_request(), stop, every=30)
    assert run.outcome.lost == 1
    assert recipes.digest(run.outcome.model) == recipes.plain(3, 40)


@pytest.mark.parametrize("consistency", ["ssp:2", "asp"])
def test_batches_are_used_once_each_and_the_bound_holds(consistency: str) -> None:
    run = Run(_request(consistency, workers=3, steps=30))
    used = Counter(report.batch for report in run.reports)
    assert used == Counter(range(90))
    assert run.outcome.steps == 30
    if consistency != "asp":
        assert max(report.staleness_steps for report in run.reports) <= 2
    assert recipes.digest(run.outcome.model) != recipes.digest(recipes.build().model)


def test_asp_goes_on_without_workers_that_are_killed() -> None:
    run = Run(_request("asp", steps=60), lambda pids: _kill(pids[0]), every=40)
    assert run.outcome.lost >= 2 and run.outcome.steps == 60
    assert {report.batch for report in run.reports} == set(range(180))


def test_a_stream_that_ends_ends_the_job_with_its_last_whole_step() -> None:
    run = Run(_request(steps=None, workers=2, build=functools.partial(recipes.build, count=9)))
    assert run.outcome.steps == 4 and not run.outcome.interrupted
    endless = Run(_request(steps=None, workers=2, build=_nine_from_a_generator))
    assert endless.outcome.steps == 4
    assert recipes.digest(endless.outcome.model) == recipes.digest(run.outcome.model)


@pytest.mark.parametrize("consistency", ["ssp:2", "asp"])
@pytest.mark.parametrize("steps", [None, 40])
def test_an_epoch_is_used_to_its_last_batch(consistency: str, steps: int | None) -> None:
    run = Run(_request(consistency, steps=steps, workers=2, build=functools.partial(recipes.build, count=9)))
    assert Counter(report.batch for report in run.reports) == Counter(range(9)) and run.outcome.steps == 5
    if steps is not None:
        unsaid = Run(_request(consistency, steps=steps, workers=2, build=_nine_from_a_generator))
        assert unsaid.outcome.steps == 5 and len(unsaid.reports) == 9


def test_batches_that_make_no_whole_step_are_told() -> None:
    nine, warnings = functools.partial(recipes.build, count=9), list[str]()
    LocalEngine(_request(steps=None, workers=2, build=nine), on_warning=warnings.append).run()
    assert len(warnings) == 1 and "the last 1 of 9 are left out" in warnings[0]
    LocalEngine(_request(steps=4, workers=2, build=nine), on_warning=warnings.append).run()
    assert len(warnings) == 1
    generated = functools.partial(_request, workers=2, build=_nine_from_a_generator)
    outcome = LocalEngine(generated(steps=None), on_warning=warnings.append).run()
    assert warnings[1:] == warnings[:1] and outcome.left_out == 1, "what only its end shows is told then, once"
    outcome = LocalEngine(generated(steps=4), on_warning=warnings.append).run()
    assert len(warnings) == 2 and outcome.left_out == 0, "nobody asked for more"
    with pytest.raises(UsageError, match="batches\\(\\) has 9, and a step takes 10"):
        LocalEngine(_request(steps=None, workers=1, lanes=10, build=nine)).run()
    with pytest.raises(UsageError, match="batches\\(\\) has none"):
        LocalEngine(_request("asp", steps=None, workers=1, build=functools.partial(recipes.build, count=0))).run()


def test_another_optimizer_is_not_taken_for_another_model(tmp_path: Path) -> None:
    """Though pages are placed by what their updates cost."""
    given: dict[str, Any] = {"workers": 2, "durability": "wal", "store": tmp_path / "store"}
    LocalEngine(_request(steps=2, **given)).run()
    with pytest.raises(UsageError, match="is of another optimizer"):
        LocalEngine(_request(steps=4, build=_with_sgd, resume=True, **given)).run()


def _with_sgd() -> Any:
    recipe = recipes.build()
    recipe.optimizer = torch.optim.SGD([p for p in recipe.model.parameters() if p.requires_grad], lr=1e-2)
    return recipe


def _nine_from_a_generator() -> Any:
    recipe = recipes.build()
    recipe.batches = _nine
    return recipe


def _nine() -> Any:
    yield from recipes._first(9)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_that_fails_is_not_one_that_has_ended(workers: int) -> None:
    """An IndexError of the recipe's own, above all."""
    with pytest.raises(StepError, match="batches\\(\\) failed: IndexError: list index out of range"):
        LocalEngine(_request(steps=None, workers=workers, build=_nine_and_a_mistake)).run()
    with pytest.raises(UsageError, match="batches\\(\\) returned int"):
        LocalEngine(_request(steps=2, workers=workers, build=_five)).run()


def _five() -> Any:
    recipe = recipes.build()
    recipe.batches = lambda: 5
    return recipe


def _nine_and_a_mistake() -> Any:
    recipe = recipes.build()
    recipe.batches = _nine_then_a_mistake
    return recipe


def _nine_then_a_mistake() -> Any:
    batches = recipes._first(9)
    for number in range(10):
        yield batches[number]


def test_without_a_length_asp_wants_to_be_told_the_steps() -> None:
    with pytest.raises(UsageError, match="give --steps"):
        LocalEngine(_request("asp", steps=None, workers=1)).run()


def test_a_loss_that_fails_says_so() -> None:
    with pytest.raises((StepError, ValueError), match="this loss cannot be had"):
        LocalEngine(_request(build=functools.partial(recipes.build, fails=True))).run()


@pytest.mark.parametrize("mtbf_us", [3600e6, 1e3], ids=["rarely", "all the time"])
def test_stop_ends_with_a_whole_step_and_a_store_that_resumes(
    tmp_path: Path, mtbf_us: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while checkpoints are taken as often as they can be, of versions that then will not be."""
    monkeypatch.setattr("gradbase.cluster.storage._MTBF_US", mtbf_us)
    store = tmp_path / "store"
    reports: list[StepReport] = []

    def report(each: StepReport) -> None:
        reports.append(each)
        if len(reports) == 20:
            engine.stop()

    engine = LocalEngine(_request(durability="wal", store=store), on_report=report)
    first = engine.run()
    assert first.interrupted and 5 < first.steps < 40
    assert recipes.digest(first.model) == recipes.plain(3, first.steps)
    again = LocalEngine(_request(durability="wal", store=store, resume=True)).run()
    assert again.steps == 40 and recipes.digest(again.model) == recipes.plain(3, 40)
    with pytest.raises(UsageError, match="made with lanes 3, not 2"):
        LocalEngine(_request(workers=2, durability="wal", store=store, resume=True)).run()


def test_a_store_logs_as_it_was_chosen_to_and_is_resumed_so(tmp_path: Path) -> None:
    """Both ways give the bits of the plain loop; what was chosen is kept, and only that can be asked for again."""
    for given, expected in ((None, "command"), ("physical", "physical")):
        choices: list[StoreChoice] = []
        kept = {"durability": "wal", "store": tmp_path / expected}
        LocalEngine(_request(steps=5, logging=given, **kept), on_store=choices.append).run()
        again = LocalEngine(_request(steps=10, resume=True, **kept), on_store=choices.append).run()
        assert [choice.logging for choice in choices] == [expected] * 2
        assert all(choice.checkpoint_interval_us > 0 for choice in choices)
        assert recipes.digest(again.model) == recipes.plain(3, 10)
    with pytest.raises(UsageError, match="made with logging physical, not command"):
        LocalEngine(_request(resume=True, logging="command", **kept)).run()


def test_a_store_is_made_where_a_job_was_killed_while_it_made_one(tmp_path: Path) -> None:
    for name in (".disk", ".MANIFEST.json.part"):
        (tmp_path / name).write_bytes(b"half")
    given: dict[str, Any] = {"durability": "wal", "store": tmp_path}
    LocalEngine(_request(steps=2, workers=1, **given)).run()
    assert {path.name for path in tmp_path.iterdir()} == {"MANIFEST.json", "checkpoints", "log"}
    assert LocalEngine(_request(steps=4, workers=1, resume=True, **given)).run().steps == 4


def test_a_log_that_is_damaged_is_refused(tmp_path: Path) -> None:
    """The steward ends before it has heard of any worker; nobody waits for it."""
    given: dict[str, Any] = {"durability": "wal", "store": tmp_path / "store", "logging": "physical"}
    LocalEngine(_request(steps=4, workers=2, **given)).run()
    for path in (tmp_path / "store" / "checkpoints").iterdir():
        shutil.rmtree(path)
    for segment in (tmp_path / "store" / "log" / "0").glob("*.log"):
        data = bytearray(segment.read_bytes())
        data[len(data) // 3] ^= 0xFF
        segment.write_bytes(data)
    with pytest.raises((DamageError, StoreError)):
        LocalEngine(_request(steps=8, workers=2, resume=True, **given)).run()


def test_a_log_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    """Shard 0 would start from its first values, beside another that does not."""
    given: dict[str, Any] = {"durability": "wal", "store": tmp_path / "store"}
    LocalEngine(_request("asp", steps=4, workers=2, **given)).run()
    shutil.rmtree(tmp_path / "store" / "log" / "0")
    with pytest.raises(DamageError, match="the log log/0 is missing"):
        LocalEngine(_request("asp", steps=8, workers=2, resume=True, **given)).run()


def test_the_model_is_its_owners_again() -> None:
    """No hook of the engine takes the gradients of what it gives back."""
    model = Run(_request(workers=1, steps=2)).outcome.model
    recipes.loss(model, next(recipes.batches())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_no_process_and_no_memory_is_left() -> None:
    before, slabs = set(os.listdir("/dev/shm")), _open_slabs()
    run = Run(_request(steps=3))
    assert run.engine.processes() == [os.getpid()]
    assert set(os.listdir("/dev/shm")) == before
    del run
    gc.collect()  # views that are in cycles keep the mapping, and the mapping a descriptor
    assert _open_slabs() <= slabs  # other tests of this process may have some


def _open_slabs() -> int:
    return sum("gradbase-slab" in _target(name) for name in os.listdir("/proc/self/fd"))


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""
