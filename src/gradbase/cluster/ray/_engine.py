"""Workers as Ray actors: Ray owns their placement, their life and their restarts; the steward is the local engine's.

An actor on the caller's host maps the same slab as a forked worker does. On another host it holds copies: pages come
and gradients go over the store's wire. Either way its commands come over a socket of its own, so that no message of a
step waits for Ray. An actor whose process dies is restarted by Ray and calls again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gradbase.cluster.channel import Channel
from gradbase.cluster.job import CodecChoice, Outcome, Request, Traffic
from gradbase.cluster.local import Launcher, LocalEngine, Map, SharedPages, Slab, StoreChoice, Task, check_workers
from gradbase.cluster.ray._actor import Home, Servant
from gradbase.cluster.ray._link import LinkProbe, pull_probe
from gradbase.cluster.ray._remote import PageServer
from gradbase.cluster.steward import StepReport, Steward, Worker
from gradbase.common.errors import StepError, StoreError, UsageError
from gradbase.store.machine import Notes
from gradbase.store.wire import Address, Listener, TimedStream, greet, keep_watch, listen, new_token

_HANDSHAKE_S = 5.0
_REACH_S = 10.0
_SILENT_S = 20.0  # of a worker that has work; its thread for signs of life gives one a second
_LEAVE_S = 2.0


class RayEngine(LocalEngine):
    """The local engine with its workers on Ray. `address` is that of a cluster; None starts one on this host alone.

    `wire` keeps actors off the slab, as if they were on other hosts. Raises UsageError when ray is not installed.
    """

    def __init__(
        self,
        request: Request,
        *,
        address: str | None = None,
        wire: bool = False,
        on_report: Callable[[StepReport], None] = lambda report: None,
        on_lost: Callable[[Worker], None] = lambda worker: None,
        on_warning: Callable[[str], None] = lambda text: None,
        on_store: Callable[[StoreChoice], None] = lambda choice: None,
        on_plan: Callable[[Worker], None] = lambda worker: None,
        on_codec: Callable[[CodecChoice], None] = lambda choice: None,
        note: Notes | None = None,
    ) -> None:
        _imported_ray()
        super().__init__(
            request,
            on_report=on_report,
            on_lost=on_lost,
            on_warning=on_warning,
            on_store=on_store,
            on_plan=on_plan,
            on_codec=on_codec,
            note=note,
        )
        self._address, self._wire = address, wire

    def _run_until_done(self) -> Outcome:
        if self._address is None:
            check_workers(self._request.workers)
        with contextlib.ExitStack() as closing:
            _connect(_imported_ray(), self._request, self._address, closing)
            return super()._run_until_done()

    def _launcher(self, closing: contextlib.ExitStack) -> Launcher:
        return _Actors(self._request, self._address, self._wire, closing)


class _Actors:
    """One actor for every worker but the caller's."""

    def __init__(self, request: Request, address: str | None, wire: bool, closing: contextlib.ExitStack) -> None:
        self._ray = _imported_ray()
        self._request, self._wire, self._closing = request, wire, closing
        self._token = new_token()
        self._over = False
        self._actors: list[Any] = []
        self._server: PageServer | None = None
        self._waiting: threading.Thread | None = None
        self._host = "127.0.0.1" if address is None else self._ray.util.get_node_ip_address()

    def launch(self, task: Task, steward: Steward, slab: Slab, where: Map) -> None:
        self._steward = steward
        pages = SharedPages(slab, where)
        pages.name[0] = secrets.randbits(62)
        self._server = PageServer(pages, where)
        listener = Listener(Address(self._host), self._token, self._server.serve)
        self._closing.callback(listener.close)
        commands, at = listen(Address(self._host))
        self._closing.callback(commands.close)
        threading.Thread(target=self._accept, args=(commands, steward), name="gradbase-actors", daemon=True).start()
        path = "" if self._wire else slab.path
        home = Home(str(at), str(listener.address), self._token, path, int(pages.name[0]))
        actor = self._ray.remote(Servant).options(
            num_cpus=self._request.threads, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
        )
        given = (list(sys.path), pickle.dumps(task), home)
        self._actors = [actor.remote(*given) for _ in range(self._request.workers - 1)]
        serving = [each.serve.remote() for each in self._actors]
        self._waiting = threading.Thread(target=self._wait, args=(serving, steward), name="gradbase-ray", daemon=True)
        self._waiting.start()
        self._closing.callback(self._kill)

    def spawn(self) -> None:
        """Ray restarts an actor whose process has ended, and repeats its call."""

    def lost(self, worker: Worker) -> None:
        assert self._server is not None, "actors call after the launch"
        self._server.fence(worker.number)

    def watch(self, worker: Worker) -> None:
        """One that has work and gives no sign of life is stopped, or its host is, or the way there is broken."""
        silent_s = time.monotonic() - worker.heard_s
        if not worker.busy or worker.pid == os.getpid() or silent_s < _SILENT_S:
            return
        if self.traffic(worker) is None and worker.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it shares memory with us, so it must not wake up again
                os.kill(worker.pid, signal.SIGKILL)
        self._steward.give_up(worker)

    def link_bytes_per_s(self) -> float | None:
        """To every other host, or to an actor that is kept off the slab; a task there receives some megabytes."""
        nodes = self._far_nodes()
        if self._request.workers == 1 or not nodes:
            return None
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        probe = LinkProbe()
        with Listener(Address(self._host), self._token, probe.serve) as listener:
            for node in nodes:
                where = NodeAffinitySchedulingStrategy(node, soft=False)
                there = self._ray.remote(pull_probe).options(num_cpus=0, scheduling_strategy=where)
                self._ray.get(there.remote(list(sys.path), str(listener.address), self._token))
        return probe.slowest_bytes_per_s

    def _far_nodes(self) -> list[str]:
        """Nodes whose actors will not reach the slab."""
        live = [node for node in self._ray.nodes() if node["Alive"]]
        here = self._ray.get_runtime_context().get_node_id()
        return [node["NodeID"] for node in live if self._wire or node["NodeID"] != here]

    def traffic(self, worker: Worker) -> Traffic | None:
        return None if self._server is None else self._server.traffic(worker.number)

    @property
    def all_traffic(self) -> Traffic:
        return Traffic() if self._server is None else self._server.all_traffic

    def _wait(self, serving: list[Any], steward: Steward) -> None:
        """A call that ends before the job does, other than by a death that Ray mends, is a failure."""
        for call in serving:
            if self._over:
                return  # asking Ray for anything now would start it again
            try:
                self._ray.get(call)
            except Exception as error:
                if self._over:
                    return
                problem = f"a Ray actor failed: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
                steward.call(functools.partial(_fail, problem))

    def _accept(self, commands: socket.socket, steward: Steward) -> None:
        while True:
            try:
                sock, _ = commands.accept()
            except OSError:
                return  # closed: the job is over
            threading.Thread(target=self._admit, args=(sock, steward), daemon=True).start()

    def _admit(self, sock: socket.socket, steward: Steward) -> None:
        """Whoever knows the token is a servant; others are turned away."""
        try:
            greet(TimedStream(sock, _HANDSHAKE_S), self._token.encode())
        except (StoreError, OSError):
            sock.close()
            return
        sock.settimeout(None)
        keep_watch(sock)
        steward.call(lambda: steward.admit(Channel(sock)))

    def _kill(self) -> None:
        """They were told to stop, and return then; whatever does not is killed. Nobody may wait for Ray beyond this."""
        assert self._waiting is not None, "actors are waited for from the launch on"
        self._over = True
        self._waiting.join(_LEAVE_S)
        for actor in self._actors:
            self._ray.kill(actor)
        self._waiting.join(_LEAVE_S)


def _fail(problem: str) -> None:
    raise StepError(problem, "what it said is above; `ray logs` has the rest")


def _imported_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("the Ray engine needs ray, which is not installed", "pip install 'gradbase[ray]'") from error
    return ray


def _connect(ray: Any, request: Request, address: str | None, closing: contextlib.ExitStack) -> None:
    """Join the cluster at `address`, or start one here; leave alone one that this process has joined already."""
    if ray.is_initialized():
        return
    given: dict[str, Any] = {"address": address}
    if address is None:
        cpus = max(os.cpu_count() or 1, request.workers * request.threads)
        given = {"num_cpus": cpus, "include_dashboard": False}
    try:
        if address is not None:
            _reach(address)
        ray.init(log_to_driver=True, logging_level="warning", configure_logging=False, **given)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"no Ray cluster at {address} can be joined: {first}" if address else f"Ray does not start: {first}"
        raise UsageError(problem, "start one with: ray start --head") from error
    closing.callback(ray.shutdown)


def _reach(address: str) -> None:
    """Raises OSError where nobody listens at a host and port: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
