"""`gradbase train --workers N`: a recipe trained by several processes over one store of parameters."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from gradbase.cli._console import Console
from gradbase.cli._interrupts import Interrupts
from gradbase.cli._table import Table
from gradbase.common.errors import StoreError, UsageError
from gradbase.common.units import format_bytes, format_us

if TYPE_CHECKING:
    from gradbase.cluster.job import CodecChoice, Outcome, Request
    from gradbase.cluster.local import StoreChoice
    from gradbase.cluster.steward import StepReport, Worker
    from gradbase.cluster.worker import Figures
    from gradbase.cluster.worker import Recipe as WorkerRecipe
    from gradbase.store.machine.consistency import Durability

DONE, INTERRUPTED = 0, 130
_OPTIONS = ("workers", "consistency", "durability", "store", "resume", "address", "codec")
_ALONE = ("compare_eager", "analyze", "html", "perfetto", "rules", "no_rule", "spill", "catalog")  # of one plan, here


def wanted(arguments: argparse.Namespace) -> bool:
    """Whether any option asks for workers or a store."""
    return arguments.engine != "local" or any(getattr(arguments, name) for name in _OPTIONS)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Train, report. Raises GradbaseErrors; KeyboardInterrupt when it is not to wait for the step at work."""
    request = _request(arguments)
    from gradbase.cli._state import check_savable, parameters_sha256, save_state

    if arguments.save:
        check_savable(arguments.save)
    watcher = _Watcher(console, request)
    engine = _engine(arguments, request, watcher)
    if request.workers > request.lane_count:
        idle = request.workers - request.lane_count
        console.say(f"the store has {request.lane_count} micro-batches a step: {idle} of the workers wait for a place")
    watcher.engine = engine
    outcome = _run(engine, console)
    watcher.table.close()
    summary = _summary(arguments, request, watcher, outcome) | {"parameters_sha256": parameters_sha256(outcome.model)}
    if arguments.save:
        save_state(outcome.model, arguments.save)
    console.event("summary", **summary)
    if arguments.steps is not None and outcome.steps < arguments.steps and not outcome.interrupted:
        console.say(f"batches() ended after {outcome.steps} of {arguments.steps} steps")
    for line in _lines(summary, watcher):
        console.say(line)
    return INTERRUPTED if outcome.interrupted else DONE


def _run(engine: Any, console: Console) -> Outcome:
    """Run to the end. The first Ctrl-C lets the steps at work finish, the second does not."""
    outcome: Outcome | None = None

    def stop() -> None:
        console.say("stopping after this step; Ctrl-C again stops at once")
        engine.stop()

    try:
        with Interrupts(stop) as interrupts, interrupts.deferred():
            outcome = engine.run()
    except KeyboardInterrupt:
        if outcome is None:
            raise
    assert outcome is not None
    return outcome


@dataclass
class Builder:
    """Makes the recipe, in every process the same. Of it only path and seed are pickled."""

    path: Path
    seed: int

    def __call__(self) -> WorkerRecipe:
        from gradbase.cli.recipe import build_model, build_optimizer, load_recipe
        from gradbase.cluster.worker import Recipe

        recipe = load_recipe(self.path)
        for name, value, remedy in (
            ("scheduler", recipe.scheduler, "its steps would depend on which worker is where"),
            ("clip_grad_norm", recipe.clip_grad_norm, "no shard sees the whole gradient"),
            ("accumulate", recipe.accumulate != 1, "with N workers an update already has the gradients of N batches"),
        ):
            if value:
                problem = f"{name} of {recipe.path} cannot be had with --workers"
                raise UsageError(problem, remedy, "leave one of them out")

        def loss(model: Any, batch: Any) -> Any:
            with recipe.blamed("a step"):
                return recipe.loss(model, batch)

        def batches() -> Any:
            with recipe.blamed("batches()"):
                return recipe.batches()

        return Recipe.build(
            self.seed,
            lambda: build_model(recipe),
            lambda model: build_optimizer(recipe, model),
            batches,
            loss,
        )


def _request(arguments: argparse.Namespace) -> Request:
    """The job that the arguments ask for. Raises UsageError before anything slow is imported."""
    from gradbase.store.machine import parse_consistency

    kept = _kept(arguments)
    consistency, staleness_steps = parse_consistency(arguments.consistency or kept.consistency)
    durability = arguments.durability or kept.durability
    _check_options(arguments, durability)
    workers = arguments.workers or kept.lanes or 1
    if arguments.engine == "local" and workers > 1:
        from gradbase.cluster.forks import start_early

        start_early()
    from gradbase.cluster.codecs import parse_codecs
    from gradbase.cluster.job import Request

    if arguments.codec is not None:
        parse_codecs(arguments.codec)
    return Request(
        Builder(arguments.recipe, arguments.seed),
        workers,
        arguments.steps,
        consistency,
        staleness_steps,
        durability,
        arguments.store,
        arguments.resume,
        kept.threads or _threads(workers),
        arguments.memory,
        kept.lanes,
        codec=arguments.codec,
    )


class _Kept(NamedTuple):
    """What a job is unless the arguments say otherwise; for a store that is gone on with, what it was made with.

    lanes, threads: None where workers and machine decide. Both are the store's to say, since bits depend on them: so
    any number of workers can go on with it, each with one micro-batch of a step, or several, or none.
    """

    consistency: str = "bsp"
    durability: Durability = "none"
    lanes: int | None = None
    threads: int | None = None


def _kept(arguments: argparse.Namespace) -> _Kept:
    """Raises UsageError where there is nothing to go on with, StoreError where it cannot be read."""
    if arguments.store is None:
        return _Kept()
    if not arguments.resume:
        return _Kept(durability="wal")
    from gradbase.store.files import DiskFiles
    from gradbase.store.recovery import MANIFEST, read_manifest

    if not (arguments.store / MANIFEST).is_file():
        raise UsageError(f"there is no store at {arguments.store}", "leave --resume out to make one")
    made = read_manifest(DiskFiles(arguments.store))
    try:
        staleness = f":{made['staleness_steps']}" if made["consistency"] == "ssp" else ""
        return _Kept(f"{made['consistency']}{staleness}", made["durability"], made["lanes"], made["threads"])
    except KeyError as error:
        raise StoreError(f"{arguments.store / MANIFEST} does not say {error}", "restore it from a copy") from error


def _check_options(arguments: argparse.Namespace, durability: str) -> None:
    for name in _ALONE:
        if getattr(arguments, name):
            option = "--" + name.replace("_", "-")
            problem = f"{option} is about one plan, and --workers makes one for every process"
            raise UsageError(problem, f"leave {option} out")
    if durability != "none" and arguments.store is None:
        raise UsageError(f"--durability {durability} needs a directory", "say --store DIR")
    if durability == "none" and arguments.store is not None:
        raise UsageError("--durability none keeps nothing in --store", "leave --store out, or choose checkpoint or wal")
    if arguments.resume and arguments.store is None:
        raise UsageError("--resume goes on where a store stands, and none is named", "say --store DIR")
    if arguments.address is not None and arguments.engine != "ray":
        raise UsageError("--address is that of a Ray cluster", "say --engine ray, or leave --address out")


def _threads(workers: int) -> int:
    """Threads of torch for each worker: its share of those that one process would use."""
    import torch

    return max(torch.get_num_threads() // workers, 1)


def _engine(arguments: argparse.Namespace, request: Request, watcher: _Watcher) -> Any:
    given = {
        "on_report": watcher.report,
        "on_lost": watcher.lost,
        "on_warning": watcher.console.fail,
        "on_store": watcher.store,
        "on_plan": watcher.plan,
        "on_codec": watcher.codec,
    }
    if arguments.engine == "ray":
        from gradbase.cluster.ray import RayEngine

        return RayEngine(request, address=arguments.address, **given)
    from gradbase.cluster.local import LocalEngine

    return LocalEngine(request, **given)


@dataclass
class _Watcher:
    """Hears of every gradient and every loss of a worker, on the steward's thread."""

    console: Console
    request: Request
    engine: Any = None
    losses: list[float] = field(default_factory=list)
    times_us: list[float] = field(default_factory=list)
    plans: dict[int, Figures] = field(default_factory=dict)  # of every worker that plans
    peaks_bytes: list[int] = field(default_factory=list)
    samples: int = 0
    began_s: float = 0.0

    def __post_init__(self) -> None:
        self.table = Table(self.console.progress, self.request.steps)

    def report(self, report: StepReport) -> None:
        self.began_s = self.began_s or time.monotonic() - report.time_us / 1e6
        self.losses.append(report.loss)
        self.times_us.append(report.time_us)
        self.samples += report.samples
        if not math.isfinite(report.loss) and all(map(math.isfinite, self.losses[:-1])):
            self.console.fail(f"warning: the loss of step {report.step} is {report.loss}")
        self.console.event(
            "step",
            step=report.step,
            loss=report.loss,
            time_us=report.time_us,
            worker=report.worker,
            staleness_steps=report.staleness_steps,
            batch=report.batch,
        )
        self.table.report(report)
        self.table.draw(self.engine.status, self.engine.traffic)

    def store(self, choice: StoreChoice) -> None:
        self.console.event("store", path=str(self.request.store), durability=self.request.durability, **vars(choice))
        if choice.logging_reason:
            self.console.say(f"log: {choice.logging_reason}")
        self.console.say(f"checkpoints: {choice.checkpoint_reason}")

    def codec(self, choice: CodecChoice) -> None:
        self.console.event("codec", codec=choice.codec, reason=choice.reason)
        self.console.say(f"codec of gradients: {choice.codec} ({choice.reason})")

    def plan(self, worker: Worker) -> None:
        if worker.measured_peak_bytes is not None:
            self.peaks_bytes.append(worker.measured_peak_bytes)
        figures = worker.figures
        if figures is None or self.plans.get(worker.slot) == figures:
            return
        self.plans[worker.slot] = figures
        self.console.event("plan", worker=worker.slot, **figures._asdict())
        budget = "" if figures.budget_bytes is None else f" of {format_bytes(figures.budget_bytes)} allowed"
        self.console.say(
            f"plan of worker {worker.slot}: peak {format_bytes(figures.predicted_peak_bytes)}{budget}, "
            f"{format_us(figures.predicted_time_us)} a gradient"
        )

    def lost(self, worker: Worker) -> None:
        self.console.say(f"worker {worker.slot} (process {worker.pid}) ended; others do its work until it is replaced")

    @property
    def samples_per_s(self) -> float:
        return self.samples / max(time.monotonic() - self.began_s, 1e-9)


def _summary(
    arguments: argparse.Namespace, request: Request, watcher: _Watcher, outcome: Outcome
) -> dict[str, Any]:
    return {
        "steps": outcome.steps,
        **_memory(watcher),
        "median_step_time_us": median(watcher.times_us) if watcher.times_us else None,
        "interrupted": outcome.interrupted,
        "workers": request.workers,
        "workers_lost": outcome.lost,
        "batches_left_out": outcome.left_out,
        "engine": arguments.engine,
        "consistency": _consistency(request),
        "durability": request.durability,
        "store": str(request.store) if request.store else None,
        "samples_per_s": watcher.samples_per_s if watcher.samples else None,
        "slab_bytes": outcome.slab_nbytes,
        "codec": outcome.codec,
        "pushed_bytes": outcome.traffic.pushed_nbytes,
        "pulled_bytes": outcome.traffic.pulled_nbytes,
        "gradient_bytes": outcome.traffic.gradient_nbytes,
    }


def _consistency(request: Request) -> str:
    return f"ssp:{request.staleness_steps}" if request.consistency == "ssp" else request.consistency


def _memory(watcher: _Watcher) -> dict[str, Any]:
    """Of the worker that needs most; None without plans."""
    plans = watcher.plans.values()
    budgets = [plan.budget_bytes for plan in plans if plan.budget_bytes is not None]
    return {
        "measured_peak_bytes": max(watcher.peaks_bytes, default=None),
        "budget_bytes": max(budgets, default=None),
        "predicted_peak_bytes": max((plan.predicted_peak_bytes for plan in plans), default=None),
    }


def _lines(summary: dict[str, Any], watcher: _Watcher) -> list[str]:
    ended = "interrupted after" if summary["interrupted"] else "done:"
    steps = f"{summary['steps']} step{'' if summary['steps'] == 1 else 's'}"
    losses = f", loss {watcher.losses[0]:.4f} at first, {watcher.losses[-1]:.4f} at last" if watcher.losses else ""
    workers = f"{summary['workers']} worker{'' if summary['workers'] == 1 else 's'}"
    lines = [f"{ended} {steps} of {workers}, {summary['consistency']}{losses}"]
    if summary["workers_lost"]:
        lines.append(f"workers that ended and were replaced: {summary['workers_lost']}")
    if summary["median_step_time_us"] is not None:
        gradient = format_us(summary["median_step_time_us"])
        lines.append(f"time: {gradient} a gradient (median), {summary['samples_per_s']:.1f} samples/s")
    if summary["measured_peak_bytes"] is not None:
        budget = f", budget {format_bytes(summary['budget_bytes'])}" if summary["budget_bytes"] else ""
        lines.append(f"memory: measured peak {format_bytes(summary['measured_peak_bytes'])} of a worker{budget}")
    lines.append(f"shared memory: {format_bytes(summary['slab_bytes'])}")
    if summary["pulled_bytes"]:
        pushed, raw = format_bytes(summary["pushed_bytes"]), format_bytes(summary["gradient_bytes"])
        pulled = format_bytes(summary["pulled_bytes"])
        lines.append(f"wire: {pushed} pushed for {raw} of gradients (codec {summary['codec']}), {pulled} pulled")
    if summary["store"]:
        lines.append(f"store: {summary['store']} ({summary['durability']}); --resume goes on from there")
    return [*lines, f"parameters: sha256 {summary['parameters_sha256']}"]
