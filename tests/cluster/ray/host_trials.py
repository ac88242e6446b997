"""`python -m tests.cluster.ray.host_trials FOLDER [NAME ...]`: a job over several hosts, to which things happen.

Every trial has a Ray cluster of its own: the caller's host is its head and has no room for actors, the others have room
for one each. A job trains until what was to happen has happened, is then interrupted as by Ctrl-C, and says after how
many steps it ended and what the parameters are: those of one process that does the same, bit for bit. Without names
all trials are run, those too that take longer than the test suite has time for.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from gradbase.store.wire import Address, connect, new_token
from tests.cluster import recipes
from tests.cluster.ray.hosts import Bridge, Host, entered

RECIPE = Path(__file__).with_name("recipe.py")
STEPS_MAX = 100_000
CUT_S = 2.0
INT8 = "int8,*=int8"  # the recipe's tensors are so small that none would go through a codec that does not name it
_LIMIT_S = 240.0  # of one trial


class Job:
    """`gradbase train` on a host. What it prints is read as it comes, so that waiting for something means from now."""

    def __init__(self, host: Host, *options: str, workers: int = 2) -> None:
        command = [sys.executable, "-m", "gradbase", "train", str(RECIPE), "--json", "--engine", "ray"]
        given = ["--address", host.ray_address, "--workers", str(workers), "--seed", str(recipes.SEED), *options]
        words = [*command, *given, "--steps", str(STEPS_MAX)]
        self._host = host
        self._process = host.start(["sh", "-c", 'echo "$$"; exec "$@"', "sh", *words])
        assert self._process.stdout is not None
        self._pid = self._process.stdout.readline().strip()  # as its own host counts
        self.events: list[dict[str, Any]] = []
        self._come, self._over = threading.Condition(), False
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            if line.startswith("{"):  # Ray prints there too
                with self._come:
                    self.events.append(json.loads(line))
                    self._come.notify_all()
        with self._come:
            self._over = True
            self._come.notify_all()

    def until(self, wanted: Callable[[dict[str, Any]], bool], count: int = 1) -> dict[str, Any]:
        """Wait until so many events have come that are wanted; the last of them."""
        with self._come:
            begun = len(self.events)
            self._come.wait_for(lambda: self._over or sum(map(wanted, self.events[begun:])) >= count)
            found = [event for event in self.events[begun:] if wanted(event)]
        assert len(found) >= count, f"the job has ended, status {self._process.wait()}, after {self.events[-3:]}"
        return found[count - 1]

    def steps_of(self, worker: int, count: int) -> None:
        """Wait until a worker has computed so many more gradients."""
        self.until(lambda event: event["event"] == "step" and event["worker"] == worker, count)

    def interrupt(self) -> dict[str, Any]:
        """Its summary."""
        interrupting = threading.Timer(0.2, self._host.run, [["kill", "-INT", self._pid]])
        interrupting.start()
        summary = self.until(lambda event: event["event"] == "summary")
        status = self._process.wait()
        assert status == 130, f"ended with status {status}"
        return summary

    def ports(self) -> list[int]:
        """Those it listens on for other hosts."""
        table = self._host.run(["cat", f"/proc/{self._pid}/net/tcp"])
        inodes = set(re.findall(r"socket:\[(\d+)\]", self._host.run(["ls", "-l", f"/proc/{self._pid}/fd"])))
        fields = [line.split() for line in table.splitlines()[1:]]
        return [int(each[1].split(":")[1], 16) for each in fields if each[3] == "0A" and each[9] in inodes]


def cluster(nodes: int = 1) -> list[Host]:
    """The head and so many other hosts."""
    Bridge()
    head, *others = [Host(number) for number in range(1, nodes + 2)]
    head.start_ray()
    for host in others:
        host.start_ray(head, cpus=1)
    return [head, *others]


def judged(summary: dict[str, Any], lanes: int = 2, codec: str = "none") -> dict[str, Any]:
    """What a trial reports: its summary beside the bits of one process. The wire carried something."""
    wanted = recipes.plain(lanes, summary["steps"], codec)
    names = ("steps", "workers_lost", "codec", "pushed_bytes", "pulled_bytes", "gradient_bytes")
    same = summary["parameters_sha256"] == wanted
    return {"same": same, **{name: summary[name] for name in names}}


def trouble(folder: Path) -> dict[str, Any]:
    """A stranger calls, the network is gone for a moment, then a host is lost and replaced: of one job."""
    head, far = cluster()
    job = Job(head, "--codec", "none", "--store", str(folder / "trouble"))
    job.steps_of(1, 5)
    refused = [int(far.run([sys.executable, "-m", __spec__.name, "call", head.address, str(p)])) for p in job.ports()]
    began_s = time.monotonic()
    far.down()
    time.sleep(CUT_S)
    far.up()
    job.steps_of(1, 5)
    away_s = time.monotonic() - began_s
    far.kill()
    job.steps_of(0, 20)  # of both lanes
    return {"refused": refused, "away_s": away_s, **judged(job.interrupt())}


def replaced(folder: Path, *, silent: bool, codec: str = "none") -> dict[str, Any]:
    """A host is lost, a new one with its address joins. silent: its cable is pulled first, so nobody says farewell."""
    head, far = cluster()
    job = Job(head, "--codec", codec, "--store", str(folder / f"replaced-{silent}-{codec[:4]}"))
    job.steps_of(1, 10)
    if silent:
        far.down()
    far.kill()
    began_s = time.monotonic()
    far = Host(2)
    far.start_ray(head, cpus=1)
    job.steps_of(1, 10)
    back_s = time.monotonic() - began_s
    return {"back_s": back_s, **judged(job.interrupt(), codec=codec.split(",")[0])}


def apart(folder: Path, *, for_s: float, dead: bool) -> dict[str, Any]:
    """The network is gone for so long, or until the other is given up, if that is longer; the caller goes on alone.

    dead: so long that Ray's node ends, too, when it hears again what was thought of it, and has to be started again.
    """
    head, far = cluster()
    job = Job(head, "--codec", "none", "--store", str(folder / f"apart-{for_s:g}"))
    job.steps_of(1, 10)
    far.down()
    began_s = time.monotonic()
    longest_s, last_s = 0.0, began_s
    while time.monotonic() - began_s < for_s:
        job.steps_of(0, 1)
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
    far.up()
    began_s = time.monotonic()
    if dead:
        while far.run(["sh", "-c", "pgrep -x raylet || true"]):
            time.sleep(0.5)
        far.start_ray(head, cpus=1)
    job.steps_of(1, 10)
    back_s = time.monotonic() - began_s
    return {"longest_pause_s": longest_s, "back_s": back_s, **judged(job.interrupt())}


def stopped(folder: Path) -> dict[str, Any]:
    """The actor is stopped (SIGSTOP): its host answers, it does not."""
    head, far = cluster()
    job = Job(head, "--codec", "none")
    job.steps_of(1, 10)
    began_s = time.monotonic()
    signalled = "kill -{} $(pgrep -f ^ray::Servant)"  # as Ray names the process
    far.run(["sh", "-c", signalled.format("STOP")])
    job.steps_of(0, 5)
    pause_s = time.monotonic() - began_s
    far.run(["sh", "-c", signalled.format("CONT")])
    job.steps_of(1, 10)  # it finds out that it was given up, and calls again
    return {"pause_s": pause_s, **judged(job.interrupt())}


def resumed(folder: Path) -> dict[str, Any]:
    """The caller's host is lost, with the head of the cluster; all begins anew and goes on from the store."""
    store = ["--codec", "none", "--store", str(folder / "resumed")]
    head, far = cluster()
    job = Job(head, *store)
    job.steps_of(1, 30)
    head.kill()
    far.kill()
    head, far = Host(1), Host(2)
    head.start_ray()
    far.start_ray(head, cpus=1)
    again = Job(head, *store, "--resume")
    reached = max(each["step"] for each in job.events if each["event"] == "step")
    again.until(lambda event: event["event"] == "step" and event["step"] > reached and event["worker"] == 1)
    first = next(each["step"] for each in again.events if each["event"] == "step")
    return {"reached": reached, "first": first, **judged(again.interrupt())}


def three(folder: Path) -> dict[str, Any]:
    """Three hosts, the codec as it is chosen; the recipe's tensors are so small that none goes through it."""
    head, *_ = cluster(2)
    job = Job(head, workers=3)
    job.steps_of(1, 10)
    job.steps_of(2, 10)
    return judged(job.interrupt(), 3)


SHORT: dict[str, Callable[[Path], dict[str, Any]]] = {"trouble": trouble}
LONG: dict[str, Callable[[Path], dict[str, Any]]] = {
    "replaced": functools.partial(replaced, silent=False),
    "replaced in silence": functools.partial(replaced, silent=True),
    "replaced under a codec": functools.partial(replaced, silent=False, codec=INT8),
    "apart": functools.partial(apart, for_s=8.0, dead=False),
    "apart for long": functools.partial(apart, for_s=60.0, dead=True),
    "stopped": stopped,
    "resumed": resumed,
    "three": three,
}


def call(host: str, port: str) -> None:
    """Print 1 if whoever listens there refuses a stranger, else 0."""
    try:
        connect(Address(host, int(port)), new_token()).close()
    except Exception as error:
        print(int("token" in str(error)))
    else:
        print(0)


def main() -> None:
    folder, *wanted = sys.argv[1:]
    if folder == "call":
        call(*wanted)
    elif len(wanted) == 1 and os.getpid() == 1:
        print(json.dumps({"trial": wanted[0], **(SHORT | LONG)[wanted[0]](Path(folder))}), flush=True)
    else:
        sys.exit(_run_each(folder, wanted or [*SHORT, *LONG]))


def _run_each(folder: str, names: Sequence[str]) -> bool:
    """Every trial where hosts may be made, which end with it; whether any went wrong."""
    wrong = False
    for name in names:
        command = entered([sys.executable, "-m", __spec__.name, folder, name])
        try:
            wrong |= subprocess.run(command, timeout=_LIMIT_S).returncode != 0
        except subprocess.TimeoutExpired:
            print(json.dumps({"trial": name, "over": f"no end within {_LIMIT_S:g} s"}), flush=True)
            wrong = True
    return wrong


if __name__ == "__main__":
    main()
