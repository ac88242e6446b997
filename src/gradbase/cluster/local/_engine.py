"""The local engine: workers are processes of one host, and one of them is the caller's.

The caller's thread computes as a worker and does nothing else; a thread beside it is the steward; the other workers
are forked from a server that has torch and the model ready, so that one that is killed is replaced within a moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch

from gradbase.cluster.channel import Channel
from gradbase.cluster.codecs import any_direction, parse_codecs
from gradbase.cluster.forks import ForkServer
from gradbase.cluster.job import STEPS_UNKNOWN, CodecChoice, Outcome, Request, Traffic
from gradbase.cluster.local._choice import StoreChoice, measured_choice
from gradbase.cluster.local._memory import LocalMemory, Map, SharedPages
from gradbase.cluster.local._slab import Slab
from gradbase.cluster.local._task import Task, equip
from gradbase.cluster.servant import serve
from gradbase.cluster.steward import ResidualsLost, ShardStatus, StepReport, Steward, Storage, Worker
from gradbase.cluster.storage import (
    Durable,
    Manifest,
    Volatile,
    check_free,
    choose_logging,
    disk_of,
    is_store,
    make_directory,
    new_store_id,
    read_manifest,
    resumed_directory,
)
from gradbase.cluster.worker import Learner, Recipe, tables_of
from gradbase.common.errors import StepError, UsageError
from gradbase.common.malloc import freed_memory_kept
from gradbase.store.codec import choose, measure_speeds
from gradbase.store.files import DiskRate
from gradbase.store.layout import Layout, lay_out, specs_of_model
from gradbase.store.log import SchemeChoice, StepCosts
from gradbase.store.machine import Notes
from gradbase.store.machine.consistency import Job, Logging
from gradbase.store.update import UpdateRule, rule_of

_WORKERS_PER_CORE = 32  # more would fill the memory with processes that wait for a core
_STOPPED_S = 2.0  # a process that is stopped (SIGSTOP) while it has work is ended after this long
_IN_VAIN_MAX = 3  # so often a run is gone back with that comes no further than the one before
_IDLE_S = 120.0  # likewise one that gets no processor time at all: its input hangs, or a lock


class LocalEngine:
    """Runs one job. `on_report` is called for every gradient, `on_lost` for every worker that ended,
    `on_plan` when a worker's plan, or the peak it measured, is new, `note` with what
    the machines note for `store.machine.history`; all on another thread. `on_store` and `on_codec` are called on the
    caller's, once it is known how a store is kept, and which codec gradients go through where there is a choice.
    """

    def __init__(
        self,
        request: Request,
        *,
        on_report: Callable[[StepReport], None] = lambda report: None,
        on_lost: Callable[[Worker], None] = lambda worker: None,
        on_warning: Callable[[str], None] = lambda text: None,
        on_store: Callable[[StoreChoice], None] = lambda choice: None,
        on_plan: Callable[[Worker], None] = lambda worker: None,
        on_codec: Callable[[CodecChoice], None] = lambda choice: None,
        note: Notes | None = None,
    ) -> None:
        self._request, self._note = request, note
        self._on_report, self._on_lost, self._on_warning = on_report, on_lost, on_warning
        self._on_store, self._on_plan, self._on_codec = on_store, on_plan, on_codec
        self._steward: Steward | None = None
        self._layout: Layout | None = None
        self._stop_asked = False
        self._lost_count = 0
        self._launched: Launcher | None = None
        self._chosen: str | None = None
        self._traffic = Traffic()  # of runs that were gone back with
        self._length: int | None = None  # of the stream, once the job is known to use it to its end

    def run(self) -> Outcome:
        """Train. Raises UsageError or StoreError for what cannot be run, StepError when a worker's recipe fails."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._request.threads)
        try:
            with freed_memory_kept(self._request.memory is None):  # a planned step frees nothing that is large
                return self._run_until_done()
        finally:
            torch.set_num_threads(threads)

    def _run_until_done(self) -> Outcome:
        """Run, and again from what was kept whenever a worker took with it what a codec had left out."""
        request, furthest, in_vain = self._request, 0, 0
        while True:
            try:
                with contextlib.ExitStack() as closing:
                    return self._run(request, closing)
            except ResidualsLost:
                assert self._launched is not None
                self._traffic = self._traffic.plus(self._launched.all_traffic)
                steps = self._steward.steps_done if self._steward is not None else 0
                in_vain = 0 if steps > furthest else in_vain + 1
                furthest = max(steps, furthest)
                if in_vain > _IN_VAIN_MAX:
                    raise StepError(
                        f"workers end again and again at step {furthest + 1}, and no step was completed in between",
                        "look for what kills them: the system's log names those killed for want of memory",
                    ) from None
                request = replace(self._request, resume=request.store is not None and is_store(request.store))
                place = "the newest checkpoint" if request.resume else "the beginning"
                what = "a worker ended, and with it what the codec had left out of its gradients"
                self._on_warning(f"warning: {what}; the job goes on from {place}")

    def stop(self) -> None:
        """Stop after the step at work; may be called by a signal handler, and more than once."""
        self._stop_asked = True
        if self._steward is not None:
            self._steward.stop()

    def processes(self) -> list[int]:
        """Process ids of the caller and of all workers; on the steward's thread (in `on_report` and `on_lost`) only."""
        workers = self._steward.workers.values() if self._steward is not None else ()
        return [os.getpid(), *(worker.pid for worker in workers if worker.pid is not None)]

    def status(self) -> list[tuple[ShardStatus, int]]:
        """Every shard with the bytes of its parameters; where `processes` may be called."""
        if self._steward is None or self._layout is None:
            return []
        return list(zip(self._steward.status(), self._layout.home_nbytes, strict=True))

    def traffic(self) -> dict[int, Traffic]:
        """Of every worker that shares no memory with the caller; where `processes` may be called."""
        if self._steward is None or self._launched is None:
            return {}
        found = {slot: self._launched.traffic(worker) for slot, worker in self._steward.workers.items()}
        return {slot: each for slot, each in found.items() if each is not None}

    def _run(self, request: Request, closing: contextlib.ExitStack) -> Outcome:
        if request.store is not None and not request.resume:
            check_free(request.store)
        launcher = self._launched = self._launcher(closing)
        recipe = request.build()
        task = self._task(request, recipe, launcher)
        where = task.map()
        _check_logging(request, where, task.codec)
        slab = Slab.create(where.nbytes)
        closing.callback(slab.close)
        pages = SharedPages(slab, where)
        _fill(pages, where, recipe)
        learner, memory = equip(recipe, slab, where, shared=request.shared, budget=request.memory)
        closing.callback(learner.close)
        steps = self._steps(learner.length)
        manifest = _manifest(request, recipe.seed, where, task.codec)
        storage, logging = self._storage(request, manifest, pages, learner, memory)
        job = replace(request, logging=logging).job(steps, recipe.seed)
        steward = self._steward = self._new_steward(job, storage, pages, launcher)
        closing.callback(steward.abort)
        launcher.launch(task, steward, slab, where)
        self._work(steward, learner, memory)
        _take_values(recipe, pages, where)
        done, traffic = self._done(steward), self._traffic.plus(launcher.all_traffic)
        return Outcome(
            recipe.model,
            done,
            self._stop_asked,
            self._lost_count,
            slab.nbytes,
            task.codec,
            traffic,
            self._left_out,
        )

    def _task(self, request: Request, recipe: Recipe, launcher: Launcher) -> Task:
        """What workers are to run: how the parameters lie, how they are updated, what gradients go through."""
        rule = rule_of(recipe.optimizer, recipe.model)
        specs = specs_of_model(recipe.model, rows=tables_of(recipe.model), costs=rule.costs())
        layout = lay_out(specs, request.lane_count)
        self._layout = layout
        codec = self._codec(request, launcher, layout, rule)
        rule = parse_codecs(codec).directing(layout, rule)
        return Task(
            request.build,
            layout.to_json(),
            rule.to_json(),
            request.lane_count,
            request.shared,
            request.threads,
            request.memory,
            codec,
        )

    def _new_steward(self, job: Job, storage: Storage, pages: SharedPages, launcher: Launcher) -> Steward:
        return Steward(
            job,
            storage,
            replay=pages.replay,
            on_warning=self._on_warning,
            copies=not self._request.shared,
            residuals=bool(pages.map.residual_pages),
            expected=self._request.workers,
            note=self._note,
            spawn=launcher.spawn,
            on_report=self._on_report,
            on_lost=lambda worker: self._note_lost(worker, launcher),
            on_plan=self._on_plan,
            on_end=self._note_end,
            watch=launcher.watch,
        )

    def _work(self, steward: Steward, learner: Learner, memory: LocalMemory) -> None:
        """Be one of the workers, until the job is over."""
        ours, theirs = Channel.pair()
        steward.admit(theirs)  # so that it is told of the end, even if the machines cannot be opened
        steward.start()
        if self._stop_asked:
            steward.stop()
        serve(ours, learner, memory)
        steward.join()

    def _codec(self, request: Request, launcher: Launcher, layout: Layout, rule: UpdateRule) -> str:
        """What gradients go through: as asked for, as the store was made, or by what the link is measured to do."""
        if self._chosen is not None:
            return self._chosen  # in the run that was gone back with
        if request.codec is not None:
            choice = CodecChoice(str(parse_codecs(request.codec)), "as asked for")
        elif request.resume and request.store is not None:
            choice = CodecChoice(read_manifest(request.store).codec, "as the store was made")
        else:
            link = launcher.link_bytes_per_s()
            if link is None:
                self._chosen = "none"
                return self._chosen
            found = choose(layout.slab_nbytes, link, measure_speeds(direction=any_direction(layout, rule)))
            choice = CodecChoice(str(found.codec), found.reason)
        self._chosen = choice.codec
        directed = len(parse_codecs(choice.codec).directing(layout, rule).directed)
        of = f"; of Adam's directions, which workers find, for {directed} tensors" if directed else ""
        self._on_codec(choice._replace(reason=choice.reason + of))
        return choice.codec

    def _steps(self, length: int | None) -> int:
        """How many there are, at most as many as `length` batches make, if it is known."""
        request = self._request
        if length is not None:
            return min(request.steps or STEPS_UNKNOWN, self._steps_of(length))
        if request.steps is None and request.consistency != "bsp":
            raise UsageError(
                f"batches() does not say how many there are, and {request.consistency} hands them out by number",
                "give --steps, or let batches() return something that has a length",
            )
        return request.steps or STEPS_UNKNOWN

    def _steps_of(self, length: int) -> int:
        """bsp: whole steps; else as many as use every batch, the last one in part."""
        lanes = self._request.lane_count
        whole = length // lanes
        if length < (lanes if self._request.consistency == "bsp" else 1):
            problem = f"batches() has {length}, and a step takes {lanes}" if length else "batches() has none"
            raise UsageError(problem, "use fewer workers, or more batches, which may be smaller")
        if self._request.consistency != "bsp":
            return -(-length // lanes)
        if (self._request.steps or STEPS_UNKNOWN) > whole:
            self._note_end(length)
        return whole

    def _note_end(self, length: int) -> None:
        """The job uses the stream to its end. Under bsp batches that make no whole step are left out, which is told."""
        if self._length is not None:
            return
        self._length = length
        if self._left_out:
            lanes, rest = self._request.lane_count, self._left_out
            self._on_warning(f"warning: a step takes {lanes} batches: the last {rest} of {length} are left out")

    @property
    def _left_out(self) -> int:
        return (self._length or 0) % self._request.lane_count if self._request.consistency == "bsp" else 0

    def _done(self, steward: Steward) -> int:
        """The steps of the job. Under ssp and asp numbers beyond the stream's end count as used; they make no step."""
        limit = STEPS_UNKNOWN if self._length is None else -(-self._length // self._request.lane_count)
        return min(steward.steps_done, limit)

    def _storage(
        self, request: Request, wanted: Manifest, pages: SharedPages, learner: Learner, memory: LocalMemory
    ) -> tuple[Storage, Logging | None]:
        """What the job's durability asks for, and the scheme it logs with."""
        if request.store is None:
            return Volatile(), request.logging
        if request.resume:
            manifest = resumed_directory(request.store, wanted)
            disk, reason = disk_of(request.store), f"{manifest.logging}: as the store was made"
        else:
            disk = disk_of(request.store)
            choice = self._choice(pages, learner, memory, disk)
            manifest, reason = make_directory(request.store, replace(wanted, logging=choice.scheme)), choice.reason
        residuals = [pages.residuals(lane) for lane in range(pages.map.lanes)]
        storage = Durable(request.store, manifest, pages.updater, pages.pushed_bytes, disk, residuals, pages.map.codecs)
        logged = (manifest.logging, reason) if request.durability == "wal" else (None, None)
        self._on_store(StoreChoice(*logged, storage.checkpoint_interval_s * 1e6, storage.checkpoint_reason))
        return storage, "command" if manifest.logging == "command" else "physical"

    def _choice(
        self, pages: SharedPages, learner: Learner, memory: LocalMemory, disk: DiskRate
    ) -> SchemeChoice:
        """The scheme of a new store: as asked for, or measured where both can be had and one is used."""
        request, where = self._request, pages.map
        if request.logging is not None:
            return SchemeChoice(request.logging, 0.0, 0.0, f"{request.logging}: as asked for")
        if where.residual_pages:
            return SchemeChoice("command", 0.0, 0.0, "command: computing again brings back what the codec left out")
        if request.consistency == "bsp" and request.durability == "wal":
            return measured_choice(learner, memory, pages, where, workers=request.workers, disk=disk)
        costs = StepCosts(1.0, where.layout.slab_nbytes, 0.0, 0.0)
        return choose_logging(costs, disk, request.consistency, where.layout.slab_nbytes)

    def _launcher(self, closing: contextlib.ExitStack) -> Launcher:
        check_workers(self._request.workers)
        return _Forks(self._request.workers - 1, closing)

    def _note_lost(self, worker: Worker, launcher: Launcher) -> None:
        self._lost_count += 1
        launcher.lost(worker)
        self._on_lost(worker)


class Launcher(Protocol):
    """Starts the workers beside the caller's. All but `launch` is called on the steward's thread."""

    def launch(self, task: Task, steward: Steward, slab: Slab, where: Map) -> None:
        """Start the first ones; before the steward itself starts. Each is given to `steward.admit`."""

    def spawn(self) -> None:
        """One was lost: start another."""

    def lost(self, worker: Worker) -> None:
        """This one is out. When this returns, nothing it sends any more has an effect."""

    def watch(self, worker: Worker) -> None:
        """Called now and then for every worker: end one that has work and does not get on with it."""

    def link_bytes_per_s(self) -> float | None:
        """Of the slowest link to a worker, measured; before `launch`. None if all of them reach the slab."""

    def traffic(self, worker: Worker) -> Traffic | None:
        """Of one worker; None if it shares memory with the caller."""

    @property
    def all_traffic(self) -> Traffic:
        """Of all there were."""


class _Forks:
    """The workers that are forked: `count` of them at first, then one for every one that was lost.

    The server they are forked from may be killed too, and takes them with it: another one is started.
    """

    def __init__(self, count: int, closing: contextlib.ExitStack) -> None:
        self._waiting = count  # to be asked for
        self._channels: dict[int, Channel] = {}  # asked for, by ticket
        self._ready = False
        self._server = ForkServer() if count else None
        closing.callback(self._close)

    def launch(self, task: Task, steward: Steward, slab: Slab, where: Map) -> None:
        self._task, self._steward, self._slab = task, steward, slab
        if self._server is not None:
            self._prepare(self._server)

    def _prepare(self, server: ForkServer) -> None:
        self._server, self._ready = server, False
        server.prepare(self._task)
        self._steward.listen(server.connection.fileno(), lambda: self._listen(server))

    def spawn(self) -> None:
        self._waiting += 1
        self._fork()

    def _fork(self) -> None:
        assert self._server is not None, "the caller's own worker does not die alone"
        while self._ready and self._waiting:
            ours, theirs = Channel.pair()
            try:
                ticket = self._server.fork([theirs.fileno(), self._slab.fd])
            except OSError:  # it has ended, which its connection will say
                ours.close()
                return
            finally:
                theirs.close()
            self._channels[ticket] = ours
            self._waiting -= 1

    def _listen(self, server: ForkServer) -> None:
        try:
            answer = server.hear()
        except StepError:
            if not self._ready:  # another one would end the same way
                raise
            self._replace(server)
        else:
            self._hear(*answer)

    def _replace(self, server: ForkServer) -> None:
        self._steward.forget(server.connection.fileno())
        server.close()
        for channel in self._channels.values():
            channel.close()
        self._waiting += len(self._channels)
        self._channels.clear()
        self._prepare(ForkServer())

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()

    def lost(self, worker: Worker) -> None:
        """Its process has ended, so there is nothing to fence."""

    def watch(self, worker: Worker) -> None:
        _watch(worker)

    def link_bytes_per_s(self) -> None:
        """They share the slab: nothing is sent."""

    def traffic(self, worker: Worker) -> None:
        """Likewise."""

    @property
    def all_traffic(self) -> Traffic:
        return Traffic()

    def _hear(self, verb: str, *rest: Any) -> None:
        if verb == "ready":
            self._ready = True
            self._fork()
        elif verb == "forked":
            ticket, pid = rest
            self._steward.admit(self._channels.pop(ticket), _descriptor_of(pid), pid)
        elif verb == "failed":
            raise rest[0]


def check_workers(count: int) -> None:
    """Raise UsageError for more workers than this host can be meant to have."""
    cores = os.cpu_count() or 1
    if count > _WORKERS_PER_CORE * cores:
        raise UsageError(
            f"{count} workers are too many for {cores} core{'' if cores == 1 else 's'}: each is a process of its own",
            f"use {cores}, or at most {_WORKERS_PER_CORE * cores}",
        )


def _check_logging(request: Request, where: Map, codec: str) -> None:
    if where.residual_pages and request.logging == "physical":
        raise UsageError(
            f"the log of a bsp job whose gradients go through {codec} cannot be physical: what a codec leaves out "
            "comes back only where gradients are computed again",
            'choose logging="command"',
        )


def _manifest(request: Request, seed: int, where: Map, codec: str) -> Manifest:
    """Of the store that the job makes, or that it goes on with."""
    return Manifest(
        new_store_id(),
        request.lane_count,
        request.consistency,
        request.staleness_steps,
        request.durability,
        request.logging or "",
        seed,
        request.threads,
        where.layout.to_json(),
        where.rule.to_json(),
        codec,
    )


def _descriptor_of(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None if that has happened: its channel says so too."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _watch(worker: Worker) -> None:
    """End a process that has work and does not get on with it; its death is then noticed like any other."""
    if worker.pid is None or worker.death is None:
        return
    with contextlib.suppress(OSError), open(f"/proc/{worker.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        state, used = fields[0], int(fields[11]) + int(fields[12])
        now = time.monotonic()
        if not worker.busy or (used != worker.watched_used and state not in "Tt"):
            worker.watched_used, worker.watched_since_s = used, now
        elif now - worker.watched_since_s > (_STOPPED_S if state in "Tt" else _IDLE_S):
            signal.pidfd_send_signal(worker.death, signal.SIGKILL)


def _fill(pages: SharedPages, where: Map, recipe: Recipe) -> None:
    """The values that the job starts with."""
    pages.updater.initialize()
    for name, tensor in _tensors(recipe, where).items():
        pages.tensor(where.values, name).copy_(tensor)


def _take_values(recipe: Recipe, pages: SharedPages, where: Map) -> None:
    """Give the model the final values in memory of its own."""
    for name, tensor in _tensors(recipe, where).items():
        tensor.data = pages.tensor(where.values, name).clone()


def _tensors(recipe: Recipe, where: Map) -> dict[str, torch.Tensor]:
    """The model's tensors by their names in the layout, each once."""
    held = {spec.name for spec in where.layout.tensors}
    found = [*recipe.model.named_parameters(), *recipe.model.named_buffers()]
    return {name: tensor for name, tensor in found if name in held}
