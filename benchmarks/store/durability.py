"""What durability costs: `python -m benchmarks.store.durability --dir DIR [--json FILE]`.

    logging      blocks of steps with a log record a step beside the same without, in pairs: shares of time
    recovery     from the directory of a store to values in memory: open the logs, restore, read what is to be replayed
    checkpoint   500 MB while a step computes and updates all of it: processor time and stall, beside torch.save

Everything runs on one thread of computing, in rounds; a figure is the median, ratios are taken within a round.
Processor time is the process's own, the system's part included, so that other programs disturb little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradbase.store.checkpoint import Checkpointer, CheckpointStats, Source, Tensor, data_file
from gradbase.store.files import DiskFiles, aligned_memory, measure_disk
from gradbase.store.log import (
    LogReader,
    LogWriter,
    StepCosts,
    checkpoint_interval_us,
    checkpoint_loss,
    choose_scheme,
    from_record,
    open_log,
    to_record,
)
from gradbase.store.machine.messages import StepRecord

PAGE_BYTES = 1 << 20
STORE_ID = bytes(16)
TIMES = {"cpu": "processor time", "wall": "time"}
TARGETS = {
    "logging_share": 0.03,
    "recovery_s": 1.0,
    "checkpoint_cpu_s": 0.100,
    "checkpoint_stall_s": 0.050,
}


class RawUpdates:
    """Updates that are buffers."""

    def to_bytes(self, update: Any) -> tuple[int, tuple[Any]]:
        return 1, (update,)

    def from_bytes(self, codec: int, data: memoryview) -> memoryview:
        return data


class State:
    """Parameters of `nbytes` in pages of 1 MiB, in tensors of 64 MiB and a few small ones, and their checkpointer."""

    def __init__(self, files: DiskFiles, nbytes: int) -> None:
        self.values: dict[str, torch.Tensor] = {}
        left = nbytes
        while left > 0:
            size = min(left, 64 << 20)
            self.values[f"weight.{len(self.values)}"] = _slab(size)
            self.values[f"bias.{len(self.values)}"] = torch.rand(1000)
            left -= size
        out = data_file(
            "parameters.safetensors", [Tensor(k, "float32", tuple(v.shape)) for k, v in self.values.items()]
        )
        self.sources = list(self._sources())
        self.checkpointer = Checkpointer(
            files, "shard-0000", ["shard-0000"], [out], self.sources, spare_bytes=nbytes + PAGE_BYTES
        )

    def _sources(self) -> Iterator[Source]:
        key = 0
        for name, value in self.values.items():
            flat = value.numpy().view(np.uint8)
            for start in range(0, len(flat), PAGE_BYTES):
                yield Source("parameters.safetensors", name, start, flat[start : start + PAGE_BYTES], key)
                key += 1

    def update(self) -> tuple[float, float]:
        """Change every page, as an optimizer does; seconds, and processor time, that announcing it took."""
        stall_s = cpu_s = 0.0
        for source in self.sources:
            start, start_cpu = time.perf_counter(), time.thread_time()
            self.checkpointer.before_overwrite((source.key,))
            cpu_s += time.thread_time() - start_cpu
            stall_s += time.perf_counter() - start
            torch.from_numpy(source.memory.view(np.float32)).mul_(0.999)
        return stall_s, cpu_s


def _slab(nbytes: int) -> torch.Tensor:
    """Random numbers in memory as a store lays it out: large tensors start on a block."""
    return torch.frombuffer(aligned_memory(nbytes), dtype=torch.float32)[: nbytes // 4].uniform_()


def measure_logging(directory: Path, pairs: int, block_s: float, width: int) -> dict[str, Any]:
    """What a record a step costs: a command record (the default under bsp), and the whole gradient.

    A pair is two blocks of the same steps of an MLP, one logged and one not, one right after the other and in turn
    the first; each takes about `block_s` of processor time. A pair gives two ratios, of processor time and of time.
    """
    step, gradient = _mlp_step(width)
    steps, step_cpu_s = _steps_in(block_s, step)
    plain = Block(step, steps)
    found: dict[str, Any] = {"step_cpu_s": step_cpu_s, "steps_a_block": steps, "update_bytes": gradient.nbytes}
    for scheme, update, count in (("command", None, pairs), ("physical", gradient, max(pairs // 8, 6))):
        with LoggedBlock(step, steps, directory / scheme, update) as logged:
            found[scheme] = _compare(logged, plain, count)
        shutil.rmtree(directory / scheme)
    found["command_record_us"] = _record_us(directory / "records")
    found["command_record_share"] = found["command_record_us"] / 1e6 / step_cpu_s
    return found


class Block:
    """Steps that are measured together."""

    def __init__(self, step: Callable[[], None], steps: int) -> None:
        self.step, self.steps = step, steps

    def run(self) -> None:
        for _ in range(self.steps):
            self.step()

    def measure(self) -> tuple[float, float]:
        """Processor seconds of this process, all threads and the system's part included, and seconds."""
        start, start_cpu = time.perf_counter(), time.process_time()
        self.run()
        return time.process_time() - start_cpu, time.perf_counter() - start


class LoggedBlock(Block):
    """The same, each with its record, as a store logs them: the next step begins while the last record is written."""

    def __init__(self, step: Callable[[], None], steps: int, directory: Path, update: np.ndarray | None) -> None:
        super().__init__(step, steps)
        self._log = LogWriter(open_log(DiskFiles(directory), "log/0", store_id=STORE_ID, shard=0)[0])
        self._update = update
        self._lsn = 0

    def run(self) -> None:
        for _ in range(self.steps):
            self.step()
            number = self._lsn
            self._lsn += 1
            content = StepRecord(self._lsn, 1, 1, number, (2 * number, 2 * number + 1), 0, self._update)
            self._log.append(to_record(content, RawUpdates()))
            self._log.sync(self._lsn)
        self._log.wait(self._lsn)
        self._log.truncate(self._lsn)

    def __enter__(self) -> LoggedBlock:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()


def _steps_in(block_s: float, step: Callable[[], None]) -> tuple[int, float]:
    """How many steps take so long where nothing else runs, and the processor time of one."""
    for _ in range(5):
        step()
    step_cpu_s = statistics.median(Block(step, 5).measure()[0] / 5 for _ in range(5))
    return max(round(block_s / step_cpu_s), 1), step_cpu_s


def _compare(logged: Block, plain: Block, pairs: int) -> dict[str, Any]:
    """Of both kinds of time: the median share that logging adds, and where it lies with 95%."""
    logged.measure(), plain.measure()
    shares: dict[str, list[float]] = {"cpu": [], "wall": []}
    for number in range(pairs):
        order = (logged, plain) if number % 2 else (plain, logged)
        times = {id(block): block.measure() for block in order}
        for position, kind in enumerate(shares):
            shares[kind].append(times[id(logged)][position] / times[id(plain)][position] - 1)
    return {kind: _median_within(values) for kind, values in shares.items()} | {"pairs": pairs}


def _median_within(values: list[float], confidence: float = 0.95) -> dict[str, float]:
    """The median, an interval that holds the true one with this confidence, and the middle half of the values.

    The interval ends at ranks of a binomial distribution: it needs nothing of how the values are distributed, and
    shrinks with the root of their number. With fewer than six values it is all of them, and the confidence is less.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < (count - 1) // 2:
        outside += math.comb(count, rank) / 2**count
        if outside > (1 - confidence) / 2:
            break
        rank += 1
    rank = max(rank - 1, 0)
    quarter = count // 4
    return {
        "median": statistics.median(ordered),
        "low": ordered[rank],
        "high": ordered[count - 1 - rank],
        "quarter": ordered[quarter],
        "three_quarters": ordered[count - 1 - quarter],
    }


def _mlp_step(width: int) -> tuple[Callable[[], None], np.ndarray]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch, labels = torch.randn(64, width), torch.randint(0, 10, (64,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()

    return step, np.zeros(sum(p.numel() for p in model.parameters()), np.float32)


def _record_us(directory: Path, records: int = 2000) -> float:
    """Processor time of one command record, made durable before the next is appended."""
    appender, _ = open_log(DiskFiles(directory), "log/0", store_id=STORE_ID, shard=0)

    def append() -> None:
        for number in range(records):
            log.append(to_record(StepRecord(number + 1, 1, 1, number, (number,), 0, None), RawUpdates()))
            log.wait(number + 1)

    with LogWriter(appender) as log:
        seconds = _cpu_s(append)
    shutil.rmtree(directory)
    return seconds / records * 1e6


def measure_recovery(directory: Path, rounds: int, nbytes: int) -> dict[str, Any]:
    """A store of `nbytes` with a hundred command records to replay, and with ten updates of a tenth of its size."""
    results = {}
    for scheme, records, update in (("command", 100, None), ("physical", 10, np.zeros(nbytes // 10, np.uint8))):
        root = directory / f"recovery-{scheme}"
        _write_store(root, nbytes, records, update)
        times = [_recovered_s(root, nbytes, records) for _ in range(rounds)]
        results[scheme] = {
            "restore_s": statistics.median(t[0] for t in times),
            "read_log_s": statistics.median(t[1] for t in times),
        }
        shutil.rmtree(root)
    return results


def _write_store(root: Path, nbytes: int, records: int, update: np.ndarray | None) -> None:
    files = DiskFiles(root)
    State(files, nbytes).checkpointer.snapshot().write(1, {"lsn": 0})
    with open_log(files, "log/0", store_id=STORE_ID, shard=0)[0] as log:
        for number in range(records):
            log.append([to_record(StepRecord(number + 1, 1, 1, number, (number,), 0, update), RawUpdates())])


def _recovered_s(root: Path, nbytes: int, records: int) -> tuple[float, float]:
    """Seconds to open the log and have the values in memory, and to read the records behind the checkpoint."""
    files = DiskFiles(root)
    state = State(files, nbytes)  # a process that comes up has its memory before it reads
    start = time.perf_counter()
    with open_log(files, "log/0", store_id=STORE_ID, shard=0)[0]:
        state.checkpointer.restore(1)
        restored = time.perf_counter()
        found = [from_record(record, RawUpdates()) for record in LogReader(files, "log/0")]
        assert len(found) == records
        return restored - start, time.perf_counter() - restored


def measure_checkpoint(directory: Path, rounds: int, nbytes: int, compute_s: float) -> dict[str, Any]:
    """Checkpoints of all pages, each changed since the last, beside `compute_s` of computing and an update of all."""
    files = DiskFiles(directory)
    state = State(files, nbytes)
    matrix = torch.rand(512, 512)
    rows = []
    for number in range(1, rounds + 3):
        row = _checkpointed(state, number, matrix, compute_s)
        state.checkpointer.retire(number, keep=1)
        row["torch_save_cpu_s"], row["torch_save_s"] = _torch_save(directory / "saved.pt", state.values)
        rows.append(row)
    rows = rows[2:]  # the first two make the files that the others write again
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]} | {"nbytes": nbytes}


def _checkpointed(state: State, number: int, matrix: torch.Tensor, compute_s: float) -> dict[str, float]:
    """One checkpoint beside a step. Its processor time: its thread's, and what it took of the training thread's."""
    done: list[tuple[CheckpointStats, float]] = []

    def write() -> None:
        before = time.thread_time()
        stats = snapshot.write(number, {"lsn": number})
        done.append((stats, time.thread_time() - before))

    start, start_cpu = time.perf_counter(), time.thread_time()
    snapshot = state.checkpointer.snapshot()
    thread = threading.Thread(target=write)
    thread.start()
    stall_s, cpu_s = time.perf_counter() - start, time.thread_time() - start_cpu
    until = time.perf_counter() + compute_s
    while time.perf_counter() < until:
        torch.mm(matrix, matrix)
    held_s, held_cpu_s = state.update()
    thread.join()
    stats, writer_s = done[0]
    return {
        "cpu_s": cpu_s + held_cpu_s + writer_s,
        "stall_s": stall_s + held_s,
        "wall_s": stats.wall_us / 1e6,
        "saved_bytes": stats.saved_bytes,
        "written_bytes": stats.written_bytes,
    }


def _torch_save(path: Path, values: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Processor time, and time for which training stands still, of torch.save and an fsync."""
    start, start_cpu = time.perf_counter(), time.process_time()
    torch.save(values, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    seconds = time.process_time() - start_cpu, time.perf_counter() - start
    path.unlink()
    return seconds


def _cpu_s(action: Callable[[], object]) -> float:
    """Processor time of this process, all threads and the system's part included."""
    start = time.process_time()
    action()
    return time.process_time() - start


def report(results: dict[str, Any]) -> str:
    """A line a figure: measured, and what it is to be."""
    logging, recovery, checkpoint = results["logging"], results["recovery"], results["checkpoint"]
    at_once = results["checkpoint_at_once"]
    torch_ratio = checkpoint["torch_save_cpu_s"] / checkpoint["cpu_s"]
    lines = [
        f"disk: {results['disk']}",
        *_logging_lines(logging),
        f"scheme: {results['scheme']}",
        f"recovery: {recovery['command']['restore_s']:.2f} s (at most {TARGETS['recovery_s']:.0f} s), then the log: "
        f"commands {recovery['command']['read_log_s']:.2f} s, updates {recovery['physical']['read_log_s']:.2f} s",
        f"checkpoint of {checkpoint['nbytes'] / 1e6:.0f} MB: processor {checkpoint['cpu_s'] * 1e3:.0f} ms (at most "
        f"{TARGETS['checkpoint_cpu_s'] * 1e3:.0f}), stall {checkpoint['stall_s'] * 1e3:.0f} ms (at most "
        f"{TARGETS['checkpoint_stall_s'] * 1e3:.0f}), on the disk after {checkpoint['wall_s'] * 1e3:.0f} ms",
        f"the same, all pages overwritten at once: processor {at_once['cpu_s'] * 1e3:.0f} ms, stall "
        f"{at_once['stall_s'] * 1e3:.0f} ms, {at_once['saved_bytes'] / 1e6:.0f} MB copied aside",
        f"torch.save: processor {checkpoint['torch_save_cpu_s'] * 1e3:.0f} ms, {torch_ratio:.1f} times; stall "
        f"{checkpoint['torch_save_s'] * 1e3:.0f} ms, {checkpoint['torch_save_s'] / checkpoint['stall_s']:.0f} times",
        f"interval: {results['interval']}",
    ]
    return "\n".join(lines)


def _logging_lines(logging: dict[str, Any]) -> list[str]:
    target = TARGETS["logging_share"]
    lines = []
    for scheme, what in (("command", "command records"), ("physical", f"{logging['update_bytes'] / 1e6:.0f} MB")):
        found = logging[scheme]
        shares = ", ".join(f"{_share(found[kind])} of {name}" for kind, name in TIMES.items())
        lines.append(f"logging, {what} a step: {shares}; {found['pairs']} pairs of {logging['steps_a_block']} steps")
    verdict = _verdict([logging["command"][kind] for kind in TIMES], target)
    lines[0] += f"; at most {target:.0%}: {verdict}"
    lines.append(
        f"a command record made durable by itself: {logging['command_record_us']:.0f} µs of processor, "
        f"{logging['command_record_share']:.2%} of a step's {logging['step_cpu_s'] * 1e3:.1f} ms"
    )
    return lines


def _share(found: dict[str, float]) -> str:
    spread = f"half of the pairs {found['quarter']:+.1%} to {found['three_quarters']:+.1%}"
    return f"{found['median']:+.2%} [{found['low']:+.2%}, {found['high']:+.2%}; {spread}]"


def _verdict(found: list[dict[str, float]], target: float) -> str:
    if all(each["high"] <= target for each in found):
        return "held"
    return "missed" if any(each["low"] > target for each in found) else "cannot be told, more --pairs"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="durability-", dir=arguments.dir) as folder:
        if arguments.logging_only:
            results = {"logging": measure_logging(Path(folder), arguments.pairs, arguments.block_s, arguments.width)}
            print("\n".join(_logging_lines(results["logging"])))
        else:
            results = _measure(Path(folder), arguments)
            print(report(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def _measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    disk = measure_disk(DiskFiles(folder))
    logging = measure_logging(folder, arguments.pairs, arguments.block_s, arguments.width)
    costs = StepCosts(
        step_us=logging["step_cpu_s"] * 1e6,
        update_bytes=logging["update_bytes"],
        pack_us=max(logging["physical"]["cpu"]["median"], 0) * logging["step_cpu_s"] * 1e6,
        apply_us=logging["step_cpu_s"] * 1e5,
    )
    checkpoint = measure_checkpoint(folder / "beside", arguments.rounds, arguments.nbytes, arguments.compute_s)
    at_once = measure_checkpoint(folder / "at-once", arguments.rounds, arguments.nbytes, 0.0)
    mtbf_us = 3.6e9
    interval_us = checkpoint_interval_us(checkpoint["cpu_s"] * 1e6, mtbf_us)
    loss = checkpoint_loss(interval_us, checkpoint["cpu_s"] * 1e6, mtbf_us)
    choice = choose_scheme(costs, disk, consistency="bsp", mtbf_us=mtbf_us, interval_steps=interval_us / costs.step_us)
    return {
        "disk": f"{disk.bytes_per_us:.0f} MB/s, a durable block in {disk.sync_us:.0f} µs ({disk.mode})",
        "logging": logging,
        "scheme": choice.reason,
        "recovery": measure_recovery(folder, arguments.rounds, arguments.recovery_nbytes),
        "checkpoint": checkpoint,
        "checkpoint_at_once": at_once,
        "interval": f"every {interval_us / 1e6:.1f} s at one failure an hour, {loss:.2%} of the time lost",
        "targets": TARGETS,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store.durability", description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure (default: the temporary one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logging-only", action="store_true", help="what logging costs, and nothing else")
    parser.add_argument("--pairs", type=int, default=100, help="of blocks of steps with and without a log")
    parser.add_argument("--block-s", type=float, default=0.4, help="how long a block of steps is")
    parser.add_argument("--width", type=int, default=1000, help="of the MLP that logs")
    parser.add_argument("--nbytes", type=int, default=500_000_000, help="of the checkpoint")
    parser.add_argument("--recovery-nbytes", type=int, default=100_000_000, help="of the recovered store")
    parser.add_argument("--compute-s", type=float, default=1.0, help="forward and backward pass beside a checkpoint")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
