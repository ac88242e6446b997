"""Push, apply and pull of parameters between two processes, by every way there is, in one run.

    python -m benchmarks.store.transport [--megabytes 100] [--rounds 9] [--only slab,wire-tcp] [--json]

A worker pushes a gradient as large as all parameters, the server applies SGD page by page (the same code for all),
the worker pulls the parameters. Rounds of all transports alternate, so that a busy machine is busy for each; ratios
are of medians.

slab       both in shared memory: only a byte goes each way
wire-unix  gradbase.store.wire over a Unix socket: frames, limits and handshake included
wire-tcp   the same over TCP on loopback
raw-tcp    sendall and recv_into on the same loopback, without any protocol
gloo       torch.distributed send and recv
ray        a Ray actor that takes and returns tensors, RAY_ENABLE_ZERO_COPY_TORCH_TENSORS=1
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from mmap import mmap
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import torch

from gradbase.common.units import format_us
from gradbase.store.layout import Layout, TensorSpec, elements, lay_out, page_view
from gradbase.store.machine.messages import Pull, PullReply, Push
from gradbase.store.update import Updater, UpdateRule, allocate, memory_plan
from gradbase.store.wire import Address, Block, Connection, Listener, connect, new_token

LR = 0.01
SGD = {
    "optimizer": "SGD", "lr": LR, "weight_decay": 0.0, "maximize": None, "foreach": None, "fused": None,
    "momentum": 0.0, "dampening": 0.0, "nesterov": False,
}  # fmt: skip
RULE = UpdateRule((SGD,), {"weights": 0})
_spawn = multiprocessing.get_context("spawn")


def layout_of(nbytes: int) -> Layout:
    return lay_out([TensorSpec("weights", (nbytes // 4,))], 1)


class Server:
    """Parameters, a place for a gradient, and the update; every transport's other end."""

    def __init__(self, nbytes: int, memory: dict[str, Any] | None = None, gradient: torch.Tensor | None = None) -> None:
        self.layout = layout_of(nbytes)
        memory = memory or allocate(self.layout, RULE)
        self.updater = Updater(self.layout, RULE, memory)
        slab = torch.zeros(self.layout.slab_nbytes, dtype=torch.uint8)
        self.gradient = elements(slab, 0, nbytes // 4, "float32") if gradient is None else gradient
        self.values = elements(memory["values"], 0, nbytes // 4, "float32")
        self.values.zero_()

    def apply(self) -> None:
        for page in self.layout.pages:
            self.updater.apply(page.number, [self.gradient[page.start : page.start + page.numel]])


class Transport(ABC):
    """One way to push and pull. `round` takes the gradient to the server and brings the values back into `values`."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.gradient = torch.ones(nbytes // 4)
        self.values = torch.zeros(nbytes // 4)

    def start(self, target: Callable[..., None], *arguments: object) -> None:
        self.child = _spawn.Process(target=target, args=(self.nbytes, *arguments), daemon=True)
        self.child.start()

    @abstractmethod
    def round(self) -> None:
        """Push the gradient, have it applied, and pull the values."""

    def close(self) -> None:
        self.child.terminate()
        self.child.join()


class Slab(Transport):
    """Both processes map one file of shared memory; gradient and values are views into it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.file = tempfile.NamedTemporaryFile(dir="/dev/shm")  # noqa: SIM115 (closed with the process)
        self.file.truncate(2 * layout_of(nbytes).slab_nbytes)
        self.ours, theirs = _spawn.Pipe()
        self.gradient, self.values = map_slab(self.file.name, nbytes)
        self.gradient.fill_(1.0)
        self.start(serve_slab, self.file.name, theirs)
        self.ours.recv_bytes()

    def round(self) -> None:
        self.ours.send_bytes(b"p")
        self.ours.recv_bytes()


def map_slab(name: str, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient, values) of the shared file."""
    with open(name, "r+b") as file:
        memory = mmap(file.fileno(), 0)
    half = len(memory) // 2
    return elements(memory, 0, nbytes // 4, "float32"), elements(memory, half, nbytes // 4, "float32")


def serve_slab(nbytes: int, name: str, pipe: Pipe) -> None:
    torch.set_num_threads(1)
    gradient, values = map_slab(name, nbytes)
    layout = layout_of(nbytes)
    steps = torch.zeros(memory_plan(layout, RULE)["steps"], dtype=torch.uint8)
    server = Server(nbytes, {"values": values.view(torch.uint8), "steps": steps}, gradient)
    pipe.send_bytes(b"r")
    while True:
        pipe.recv_bytes()
        server.apply()
        pipe.send_bytes(b"d")


class Wire(Transport):
    """Our frames: a Push with a block a page, then a Pull, and bodies received where they belong."""

    def __init__(self, nbytes: int, unix: bool) -> None:
        super().__init__(nbytes)
        self.directory = tempfile.TemporaryDirectory()
        token = new_token()
        ours, theirs = _spawn.Pipe()
        self.start(serve_wire, f"{self.directory.name}/s" if unix else "", token, theirs)
        self.connection = connect(ours.recv(), token)
        layout = layout_of(nbytes)
        pages = [(page.number, slice(page.start, page.start + page.numel)) for page in layout.pages]
        self.payload = tuple(Block(number, b"", self.gradient[part].numpy().data) for number, part in pages)
        self.homes = [self.values[part].numpy().data.cast("B") for _, part in pages]

    def round(self) -> None:
        self.connection.send(Push(1, 0, 1, 0, 0, 0, 0, 1, self.payload))
        self.connection.send(Pull(1, 0, 1, 1))
        letter = self.connection.receive(lambda kind, key, head, nbytes: self.homes[key])
        assert letter is not None and isinstance(letter.message, PullReply)


def serve_wire(nbytes: int, path: str, token: str, pipe: Pipe) -> None:
    torch.set_num_threads(1)
    server = Server(nbytes)
    pages = server.layout.pages
    gradients = [server.gradient[p.start : p.start + p.numel].numpy().data.cast("B") for p in pages]
    values = tuple(Block(p.number, b"", page_view(server.layout, server.updater.memory["values"], p).numpy().data)
                   for p in pages)  # fmt: skip

    def serve(connection: Connection) -> None:
        while (letter := connection.receive(lambda kind, key, head, nbytes: gradients[key])) is not None:
            if isinstance(letter.message, Push):
                server.apply()
            else:
                connection.send(PullReply(1, 1, 0, 1, (0,), values, 0))

    listener = Listener(Address("", 0, path) if path else Address(), token, serve)
    pipe.send(listener.address)
    time.sleep(1e6)


class RawTcp(Transport):
    """What the loopback gives when nothing is framed, checked or named."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        listening = socket.create_server(("127.0.0.1", 0))
        self.start(serve_raw, listening.getsockname()[1])
        self.socket, _ = listening.accept()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def round(self) -> None:
        self.socket.sendall(self.gradient.numpy().data.cast("B"))
        receive_all(self.socket, self.values)


def serve_raw(nbytes: int, port: int) -> None:
    torch.set_num_threads(1)
    server = Server(nbytes)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            receive_all(peer, server.gradient)
            server.apply()
            peer.sendall(server.values.numpy().data.cast("B"))


def receive_all(peer: socket.socket, tensor: torch.Tensor) -> None:
    view = tensor.numpy().data.cast("B")
    while len(view):
        count = peer.recv_into(view, 0, socket.MSG_WAITALL)
        if count == 0:
            raise SystemExit
        view = view[count:]


class Gloo(Transport):
    """torch.distributed point to point."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.directory = tempfile.TemporaryDirectory()
        rendezvous = f"file://{self.directory.name}/store"
        self.start(serve_gloo, rendezvous)
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=2)

    def round(self) -> None:
        torch.distributed.send(self.gradient, 1)
        torch.distributed.recv(self.values, 1)

    def close(self) -> None:
        super().close()
        torch.distributed.destroy_process_group()


def serve_gloo(nbytes: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    server = Server(nbytes)
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=1, world_size=2)
    while True:
        torch.distributed.recv(server.gradient, 0)
        server.apply()
        torch.distributed.send(server.values, 0)


class RayActor(Transport):
    """A Ray actor; tensors go through the object store without being pickled."""

    def __init__(self, nbytes: int) -> None:
        os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"
        import ray

        super().__init__(nbytes)
        self.ray = ray
        root = str(Path(__file__).parents[2])
        environment = {"PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", ""))), "OMP_NUM_THREADS": "1"}
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {**environment, "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}},
        )
        self.actor = ray.remote(RayServer).remote(nbytes)

    def round(self) -> None:
        self.values = self.ray.get(self.actor.push_pull.remote(self.gradient))

    def close(self) -> None:
        self.ray.shutdown()


class RayServer:
    def __init__(self, nbytes: int) -> None:
        torch.set_num_threads(1)
        self.server = Server(nbytes)

    def push_pull(self, gradient: torch.Tensor) -> torch.Tensor:
        self.server.gradient = gradient
        self.server.apply()
        return self.server.values


TRANSPORTS: dict[str, Callable[[int], Transport]] = {
    "slab": Slab,
    "wire-unix": lambda nbytes: Wire(nbytes, unix=True),
    "wire-tcp": lambda nbytes: Wire(nbytes, unix=False),
    "raw-tcp": RawTcp,
    "gloo": Gloo,
    "ray": RayActor,
}


def measure(nbytes: int, rounds: int, names: list[str]) -> dict[str, list[float]]:
    """Seconds of each round by transport; the first round of each warms up and is checked, not counted."""
    transports: dict[str, Transport] = {}
    try:
        for name in names:
            print(f"starting {name}", file=sys.stderr)
            transports[name] = TRANSPORTS[name](nbytes)
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name, transport in transports.items():
                begin = time.perf_counter()
                transport.round()
                times[name].append(time.perf_counter() - begin)
                expected = -LR * (number + 1)
                assert torch.allclose(transport.values[:: len(transport.values) // 99], torch.tensor(expected)), name
        return {name: seconds[1:] for name, seconds in times.items()}
    finally:
        for transport in transports.values():
            transport.close()


def report(nbytes: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and what they are of raw TCP's and of Ray's."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    rows = [
        {
            "transport": name,
            "median_us": round(1e6 * middle),
            "least_us": round(1e6 * min(times[name])),
            "bytes_per_s": round(2 * nbytes / middle),
            **{f"time_over_{peer}": round(middle / medians[peer], 3) for peer in ("raw-tcp", "ray") if peer in medians},
        }
        for name, middle in medians.items()
    ]
    return {"benchmark": "transport", "nbytes": nbytes, "rounds": len(next(iter(times.values()))), "rows": rows}


def table(result: dict[str, Any]) -> str:
    lines = [f"push, apply and pull of {result['nbytes'] / 1e6:g} MB, median of {result['rounds']} rounds"]
    for row in result["rows"]:
        ratios = "  ".join(f"{key.removeprefix('time_over_')} x {row[key]:.2f}" for key in row if "over" in key)
        rate = f"{row['bytes_per_s'] / 1e9:6.2f} GB/s"
        lines.append(f"{row['transport']:10} {format_us(row['median_us']):>10} {rate}  time of {ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default=",".join(TRANSPORTS), help="transports, separated by commas")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    nbytes = int(arguments.megabytes * 1e6) // 4 * 4
    result = report(nbytes, measure(nbytes, arguments.rounds, arguments.only.split(",")))
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
