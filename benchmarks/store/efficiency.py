"""CPU efficiency of data parallel training on one host: CPU-seconds a sample of one process over those of a mode.

    python -m benchmarks.store.efficiency [--models mlp,transformer,wide] [--modes ...] [--rounds 3] [--out FILE.json]

Modes, each of 2 workers with 1 thread: `local` (gradbase, bsp), `ray` (gradbase's Ray engine on this host),
`independent` (two processes that share nothing: the ceiling, as cores share caches and memory) and `ddp`
(DistributedDataParallel on gloo). The one process that all are compared with is a plain PyTorch loop, with what
PyTorch does if nothing is said. The engines have malloc keep what was freed, as a plain loop can have it: `kept`
is one such process, so that it can be told apart what is saved by that and what by everything else.

The one process runs before each mode and after the last, and a mode is compared with the mean of its neighbours in
time; the median over rounds is reported. CPU time is user and system time of all processes of the mode, Ray's own
included, between the first and the last step counted, so start-up is not in it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import nn

from gradbase.common.malloc import freed_memory_kept

WORKERS = 2
WARM_STEPS = 5
CPU_S = 3.0  # of one worker in the counted steps, about
TARGETS = {
    "local": {"mlp": 0.95, "transformer": 0.97, "wide": 0.93},
    "ray": {"mlp": 0.90, "transformer": 0.90, "wide": 0.90},
}


class Transformer(nn.Module):
    """A causal language model of 15 MB."""

    def __init__(self, vocabulary: int = 1024, width: int = 256, layers: int = 4, length: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.layers(self.tokens(tokens) + self.places, mask=mask, is_causal=True))


def perceptron(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Batches(Sequence[Any]):
    """`count` batches, four different ones in turn: making them is not what is measured."""

    def __init__(self, count: int, make: Callable[[], Any]) -> None:
        self._count = count
        self._batches = [make() for _ in range(4)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._batches[index % 4]


def _rows(rows: int, width: int) -> Any:
    return torch.randn(rows, width), torch.randint(10, (rows,))


def _tokens() -> Any:
    return torch.randint(1024, (8, 65))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": (lambda: perceptron(784, 1024, 1024, 10), lambda: _rows(128, 784)),
    "transformer": (Transformer, _tokens),
    "wide": (lambda: perceptron(2048, 4096, 4000, 10), lambda: _rows(64, 2048)),
}


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    if isinstance(batch, torch.Tensor):
        scores = model(batch[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
    rows, classes = batch
    return F.cross_entropy(model(rows), classes)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def process_cpu_s(pid: int) -> float:
    """User and system time of a process so far, from its CPU clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def process_tree(pid: int) -> list[int]:
    """A process and all that it has started, and they; Ray's processes are among them."""
    found = [pid]
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in tasks.read_text().split():
            found += process_tree(int(child))
    return found


# -- one process, and copies of it


def plain_loop(name: str, steps: int, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> float:
    """CPU-seconds a step of this process, after warming up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make_model, make_batch = MODELS[name]
    model = wrap(make_model())
    rule, batches = optimizer(model), Batches(steps + WARM_STEPS, make_batch)
    began = 0.0
    for number in range(steps + WARM_STEPS):
        if number == WARM_STEPS:
            began = time.process_time()
        rule.zero_grad()
        loss(model, batches[number]).backward()
        rule.step()
    return (time.process_time() - began) / steps


def _child(role: str, name: str, steps: int, rank: int, folder: str) -> None:
    """A worker of `independent`, `kept` or `ddp`; prints its CPU-seconds a step."""
    if role == "ddp":
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
        print(plain_loop(name, steps, nn.parallel.DistributedDataParallel))
        dist.destroy_process_group()
    else:
        with freed_memory_kept(role == "kept"):
            print(plain_loop(name, steps))


def _children(role: str, name: str, steps: int, count: int) -> float:
    """Mean CPU-seconds a step over processes that run at the same time."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.store.efficiency", "--child", role, name, str(steps)]
        running = [
            subprocess.Popen([*command, str(rank), folder], stdout=subprocess.PIPE, text=True) for rank in range(count)
        ]
        printed = [process.communicate()[0] for process in running]
    return statistics.mean(float(text.split()[-1]) for text in printed)


# -- gradbase


def build(name: str, steps: int) -> Any:
    from gradbase.cluster.worker import Recipe

    make_model, make_batch = MODELS[name]
    count = (steps + WARM_STEPS) * WORKERS
    return Recipe.build(0, make_model, optimizer, lambda: Batches(count, make_batch), loss)


def engine_run(name: str, steps: int, engine_of: Callable[..., Any]) -> float:
    """CPU-seconds a micro-batch over all processes of an engine, the steward's thread included."""
    from gradbase.cluster.job import Request

    marks: dict[int, float] = {}

    def mark(report: Any) -> None:
        if report.step in (WARM_STEPS, WARM_STEPS + steps) and report.step not in marks:
            marks[report.step] = sum(process_cpu_s(pid) for pid in process_tree(os.getpid()))

    engine = engine_of(Request(functools.partial(build, name, steps), WORKERS), on_report=mark)
    engine.run()
    return (marks[WARM_STEPS + steps] - marks[WARM_STEPS]) / steps / WORKERS


def local(name: str, steps: int) -> float:
    from gradbase.cluster.local import LocalEngine

    return engine_run(name, steps, LocalEngine)


def ray(name: str, steps: int) -> float:
    """Its cluster is started by the first run and kept: starting it costs seconds, and none of them is counted."""
    import ray

    from gradbase.cluster.ray import RayEngine

    if not ray.is_initialized():
        ray.init(num_cpus=max(os.cpu_count() or 1, WORKERS), include_dashboard=False, logging_level="error")
    return engine_run(name, steps, RayEngine)


MODES: dict[str, Callable[[str, int], float]] = {
    "independent": lambda name, steps: _children("independent", name, steps, WORKERS),
    "kept": lambda name, steps: _children("kept", name, steps, 1),
    "local": local,
    "ray": ray,
    "ddp": lambda name, steps: _children("ddp", name, steps, WORKERS),
}


def measure(name: str, modes: Sequence[str], rounds: int) -> dict[str, Any]:
    """Efficiencies of each mode, a list over rounds, and CPU-seconds a step of one process."""
    steps = max(10, round(CPU_S / plain_loop(name, 10)))
    found: dict[str, list[float]] = {mode: [] for mode in modes}
    single: list[float] = []
    for _ in range(rounds):
        single.append(_children("independent", name, steps, 1))
        for mode in modes:
            spent = MODES[mode](name, steps)
            single.append(_children("independent", name, steps, 1))
            found[mode].append(statistics.mean(single[-2:]) / spent)
    nbytes = sum(p.nbytes for p in MODELS[name][0]().parameters())
    return {"model": name, "nbytes": nbytes, "steps": steps, "single_cpu_s": single, "efficiency": found}


def lines(found: dict[str, Any]) -> Iterator[str]:
    step_ms = statistics.median(found["single_cpu_s"]) * 1e3
    yield f"{found['model']}: {found['nbytes'] / 1e6:.1f} MB, {step_ms:.1f} ms a step"
    for mode, values in found["efficiency"].items():
        target = TARGETS.get(mode, {}).get(found["model"])
        wanted = f"   target {target:.2f}" if target else ""
        yield f"  {mode:<12} {statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f}){wanted}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--modes", default="independent,kept,local,ray,ddp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=5, metavar=("ROLE", "MODEL", "STEPS", "RANK", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.child:
        role, name, steps, rank, folder = arguments.child
        _child(role, name, int(steps), int(rank), folder)
        return
    results = []
    for name in arguments.models.split(","):
        results.append(measure(name, arguments.modes.split(","), arguments.rounds))
        print("\n".join(lines(results[-1])), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    from benchmarks.store import efficiency  # under its own name, so that other processes find `build` there

    efficiency.main()
