"""Hosts on one machine: network, process and shared memory namespaces of their own, plugged into one bridge.

Everything is made within a namespace of the caller, `enter`ed first, so that nothing is left when that one ends,
however it ends. Needs Linux, root, and the programs `ip`, `unshare` and `nsenter`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_UNSHARE = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
_PORT = 6379
_BRIDGE = "lan"
# The shell stays, because the first process of a namespace has to reap whatever loses its parent there.
_UP = "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo up && while :; do sleep 60; done"
_UP_S = 60.0
_FAREWELL_S = 2.0
_RAY_TOKEN = secrets.token_hex(32)


def missing() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    absent = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}"
    veth = "ip link add left type veth peer right && ip link add lan type bridge && mount -t tmpfs tmpfs /dev/shm"
    probe = subprocess.run([*_UNSHARE, "sh", "-c", veth], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"no namespaces: {probe.stderr.strip()}"


def entered(command: Sequence[str]) -> list[str]:
    """A command line that runs `command` where hosts may be made."""
    return [*_UNSHARE, *command]


class Bridge:
    """What hosts are plugged into. One of them in every namespace."""

    def __init__(self) -> None:
        _ip(f"link add name {_BRIDGE} type bridge")
        _ip(f"link set {_BRIDGE} up")


class Host:
    """One host, with the address 10.77.0.`number`, running. `down` and `up` pull its cable out and plug it in."""

    def __init__(self, number: int) -> None:
        self.address = f"10.77.0.{number}"
        self._cable = f"host{number}"
        self._init = subprocess.Popen([*_UNSHARE, "sh", "-c", _UP], stdout=subprocess.PIPE, text=True)
        assert self._init.stdout is not None and self._init.stdout.readline() == "up\n"
        _ip(f"link add name {self._cable} type veth peer name eth0 netns {self._init.pid}")
        _ip(f"link set {self._cable} master {_BRIDGE} up")
        self.run(["ip", "address", "add", f"{self.address}/24", "dev", "eth0"])
        self.run(["ip", "link", "set", "eth0", "up"])

    def run(self, command: Sequence[str], timeout_s: float = _UP_S) -> str:
        """Run a command there to its end; its standard output. Raises CalledProcessError."""
        done = subprocess.run(
            self._inside(command), env=_environment(), timeout=timeout_s, check=True, stdout=subprocess.PIPE
        )
        return done.stdout.decode()

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command there; its standard output is a pipe."""
        return subprocess.Popen(
            self._inside(command), env=_environment(), stdout=subprocess.PIPE, text=True
        )

    def start_ray(self, head: Host | None = None, cpus: int = 0) -> None:
        """Make it the head of a cluster, or a node of `head`'s. Returns when Ray says that it is."""
        if head is None:
            role = ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        else:
            role = [f"--address={head.ray_address}"]
        size = [f"--num-cpus={cpus}", "--object-store-memory=80000000", "--disable-usage-stats"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self.address}", *role, *size]
        self.run(ray, timeout_s=120.0)

    @property
    def ray_address(self) -> str:
        return f"{self.address}:{_PORT}"

    def down(self) -> None:
        _ip(f"link set {self._cable} down")

    def up(self) -> None:
        _ip(f"link set {self._cable} up")

    def kill(self) -> None:
        """`kill -9` of everything that runs there, at once. Its addresses may be given to a new host."""
        self._init.kill()
        self._init.wait()
        deadline = time.monotonic() + _FAREWELL_S
        while self._cable in _ip("-brief link"):  # ends a moment after the last process, unless something is unsent
            if time.monotonic() > deadline:
                _ip(f"link delete {self._cable}")
            time.sleep(0.05)

    def _inside(self, command: Sequence[str]) -> list[str]:
        spaces = f"/proc/{self._init.pid}/ns"
        entries = [f"--net={spaces}/net", f"--mount={spaces}/mnt", f"--uts={spaces}/uts"]
        return ["nsenter", f"--wd={_ROOT}", *entries, f"--pid={spaces}/pid_for_children", *command]


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/dev/shm", "TMPDIR": "/dev/shm"}
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _RAY_TOKEN}  # hosts have no home of their own to keep one in
    return {**os.environ, **own, **ray}


def _ip(arguments: str) -> str:
    return subprocess.run(["ip", *arguments.split()], check=True, stdout=subprocess.PIPE, text=True).stdout
