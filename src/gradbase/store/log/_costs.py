"""What durability costs, and what follows from it: which scheme to log with, and how often to take a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gradbase.common.units import format_bytes, format_us
from gradbase.store.files import DiskRate

COMMAND_BYTES = 60
Scheme = Literal["command", "physical"]


@dataclass(frozen=True)
class StepCosts:
    """What was measured of one training step, on one shard.

    step_us: the whole step. update_bytes: the reduced update as it would be logged. pack_us: processor time that
    copying and checksumming it takes from the step. apply_us: the optimizer alone: all that a physical replay runs.
    """

    step_us: float
    update_bytes: int
    pack_us: float
    apply_us: float


@dataclass(frozen=True)
class SchemeChoice:
    """A scheme, what both cost a step (logging, plus replay weighted by how often it happens), and why."""

    scheme: Scheme
    command_us: float
    physical_us: float
    reason: str


def choose_scheme(
    costs: StepCosts, disk: DiskRate, *, consistency: str, mtbf_us: float, interval_steps: float
) -> SchemeChoice:
    """Command or physical records, by expected time a step; `reason` is the line that a plan prints.

    A step fails with probability step_us / mtbf_us, and then half an interval of steps is replayed on the mean. The
    write itself runs beside the step: it costs what does not fit beside it, and the processor time of packing.
    """
    if consistency != "bsp":
        return SchemeChoice(
            "physical", math.inf, _logging_us(costs, disk, costs.update_bytes),
            f"physical: under {consistency} a step cannot be computed again, what it read is not reproducible",
        )  # fmt: skip
    replays = costs.step_us / mtbf_us * interval_steps / 2
    read_us = costs.update_bytes / disk.bytes_per_us
    command_us = disk_excess_us(disk, COMMAND_BYTES, costs.step_us) + replays * costs.step_us
    physical_us = _logging_us(costs, disk, costs.update_bytes) + replays * (costs.apply_us + read_us)
    scheme: Scheme = "command" if command_us <= physical_us else "physical"
    return SchemeChoice(scheme, command_us, physical_us, _reason(scheme, costs, command_us, physical_us))


def disk_excess_us(disk: DiskRate, nbytes: int, step_us: float) -> float:
    """How much longer than a step it takes to make `nbytes` durable; zero if the disk keeps up."""
    return max(0.0, disk.write_us(nbytes) - step_us)


def checkpoint_interval_us(cost_us: float, mtbf_us: float) -> float:
    """Time between checkpoints that loses the least, for a checkpoint that costs `cost_us` of training.

    Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22, 2006, equation 37:
    sqrt(2 C M) (1 + 1/3 sqrt(C / 2M) + 1/9 C / 2M) - C for C < 2 M, else M; its first term is Young's (CACM 17, 1974).
    """
    assert cost_us >= 0 and mtbf_us > 0
    ratio = cost_us / (2 * mtbf_us)
    if ratio >= 1:
        return mtbf_us
    root = math.sqrt(ratio)
    return max(math.sqrt(2 * cost_us * mtbf_us) * (1 + root / 3 + ratio / 9) - cost_us, cost_us)


def checkpoint_loss(interval_us: float, cost_us: float, mtbf_us: float) -> float:
    """The share of time lost to taking checkpoints and to doing work again, to first order: C/T + T/2M."""
    return cost_us / interval_us + interval_us / (2 * mtbf_us)


def _logging_us(costs: StepCosts, disk: DiskRate, nbytes: int) -> float:
    return costs.pack_us + disk_excess_us(disk, nbytes, costs.step_us)


def _reason(scheme: Scheme, costs: StepCosts, command_us: float, physical_us: float) -> str:
    ours, other = (command_us, physical_us) if scheme == "command" else (physical_us, command_us)
    nbytes = COMMAND_BYTES if scheme == "command" else costs.update_bytes
    name = "physical" if scheme == "command" else "command"
    replay = costs.step_us if scheme == "command" else costs.apply_us
    return (
        f"{scheme}: {format_bytes(nbytes)} a step, replayed in {format_us(replay)} a step; "
        f"{format_us(ours)} a step expected, {name} {format_us(other)}"
    )
