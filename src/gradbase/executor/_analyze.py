"""From a captured program to costs: looked up in the catalogue, measured where it has nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import optim

from gradbase.buffer import Frames, measure_tier, total_bytes, union
from gradbase.capture import Program, eager_signature
from gradbase.catalog import Catalog, OperatorStatistics, TierStatistics, medium_of
from gradbase.cost import DeviceProfile, estimate
from gradbase.executor._measure import Analyzer
from gradbase.executor._traits import Trait, apply_trait, eager_extra
from gradbase.ir.costs import Costs, Tier

# Below this, a kernel runs in a library's resident code with hardly any buffer.
_WORTH_WARMING_FLOPS = 1_000_000

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Place:
    """Where statistics hold: device name, torch version, threads, and whether kernels are given frames."""

    device: str
    torch_version: str
    threads: int

    @staticmethod
    def here(device: torch.device, frames: Frames | None) -> Place:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        # Without frames a kernel's results are copied: other times, other scratch, so other statistics.
        return Place(
            name if frames or device.type != "cpu" else f"{name}/copied", torch.__version__, torch.get_num_threads()
        )


@dataclass(frozen=True)
class Analyzed:
    """Statistics of a program's operators by signature, and how many had to be measured."""

    statistics: Mapping[str, OperatorStatistics]
    measured: int


def analyze(
    program: Program,
    optimizer: optim.Optimizer,
    parameters: Mapping[str, torch.Tensor],
    catalog: Catalog,
    place: Place,
    frames: Frames | None,
    warm: set[str],
    progress: Progress,
) -> Analyzed:
    """Statistics for every operator; `program` is corrected by what they tell (hidden results, workspaces).

    Measures each operator that the catalogue does not know, and records it there. Of the others, the large ones
    run once: libraries build code and keep buffers for them, which then are there before the first step. `warm`
    holds the signatures that have run in this process.
    """
    signatures = [op.signature for op in program.plan.operators]
    known = lookup(program, catalog, place)
    missing = {s for s in signatures if s not in known}
    analyzer = Analyzer(program, optimizer, parameters, frames, next(iter(parameters.values())).device)
    fresh: list[OperatorStatistics] = []
    for position in range(len(program.plan.operators)):
        operator = program.plan.operators[position]
        cold = operator.signature not in warm
        entry = known.get(operator.signature)
        if entry is None or (cold and not analyzer.packs_alike(operator, Trait.decoded(entry.details))):
            missing.add(operator.signature)
            known[operator.signature] = analyzer.measure(operator)
            fresh.append(known[operator.signature])
            progress("measuring operators", len(fresh), len(missing))
        trait = Trait.decoded(known[operator.signature].details)
        apply_trait(program, operator, trait)
        if cold and operator.signature not in missing and operator.flops >= _WORTH_WARMING_FLOPS:
            analyzer.warm_up(program.plan.operators[position], trait)
        warm.add(operator.signature)
    if fresh:
        catalog.record(fresh, device=place.device, torch_version=place.torch_version, threads=place.threads)
    return Analyzed(known, len(fresh))


def lookup(program: Program, catalog: Catalog, place: Place) -> dict[str, OperatorStatistics]:
    """What the catalogue knows of a program's operators, by signature; nothing is measured."""
    signatures = {op.signature for op in program.plan.operators}
    rows = catalog.lookup(signatures, place.device, place.torch_version, place.threads)
    return {signature: row for signature, row in rows.items() if Trait.known(row.details)}


def apply_known(program: Program, statistics: Mapping[str, OperatorStatistics]) -> None:
    """Correct a program by statistics that are there; nothing is measured."""
    for position in range(len(program.plan.operators)):
        operator = program.plan.operators[position]
        if operator.signature in statistics:
            apply_trait(program, operator, Trait.decoded(statistics[operator.signature].details))


def traits_of(program: Program, statistics: Mapping[str, OperatorStatistics]) -> dict[int, Trait]:
    """Traits by operator id."""
    return {op.id: Trait.decoded(statistics[op.signature].details) for op in program.plan.operators}


def costs_of(
    program: Program,
    statistics: Mapping[str, OperatorStatistics],
    profile: DeviceProfile,
    tier: Tier | None,
    process_bytes: int = 0,
) -> Costs:
    """Measured, else learned, else roofline estimates, and the tier. `process_bytes` is added to each scratch.

    What any operator touches of the region stays: it is added to the scratch of all that use it.
    """
    packings = {s: Trait.decoded(known.details).packing for s, known in statistics.items()}
    region_bytes = total_bytes(union(*(packing.touched for packing in packings.values() if packing)))
    estimates = []
    for operator, each in zip(program.plan.operators, estimate(program.plan, statistics, profile), strict=True):
        extra_bytes = process_bytes + (region_bytes if packings.get(operator.signature) else 0)
        estimates.append(replace(each, scratch_bytes=each.scratch_bytes + extra_bytes))
    return Costs(tuple(estimates), tier)


def process_bytes(eager_peak_bytes: int, operators: int) -> int:
    """What the interpreter, the I/O threads and the step's own Python objects take while it runs.

    0.4 to 1.9 MiB where measured for 46 to 375 operators, 4.2 for 569 with convolutions; never more than a 64th of the
    step, since tiny steps are planned for their own sake.
    """
    return min((5 << 18) + operators * 6656, eager_peak_bytes // 64)


def tier_of(directory: Path, catalog: Catalog, progress: Progress) -> Tier:
    """The tier that a directory's medium is, measured once and then from the catalogue."""
    medium = medium_of(directory)
    known = catalog.lookup_tier(medium)
    if known is None:
        progress("measuring the page file's disk", 0, 1)
        tier = measure_tier(directory)
        known = TierStatistics(
            medium=medium,
            name=str(directory),
            write_bytes_per_us=tier.write_bytes_per_us,
            read_bytes_per_us=tier.read_bytes_per_us,
            latency_us=tier.latency_us,
            compute_tax=tier.compute_tax,
            duplex=tier.duplex,
            alignment_bytes=tier.alignment_bytes,
        )
        catalog.record_tier(known)
        progress("measuring the page file's disk", 1, 1)
    return replace(known.tier(), source="measured")


def link_of(device: torch.device, catalog: Catalog, place: Place, progress: Progress) -> Tier:
    """The tier of an accelerator: pinned host memory behind its link, measured once."""
    medium = f"{place.device} host link"
    known = catalog.lookup_tier(medium)
    if known is None:
        progress("measuring the host link", 0, 1)
        known = TierStatistics(medium, medium, *_link_rates(device), latency_us=20.0, compute_tax=0.02, duplex=True)
        catalog.record_tier(known)
        progress("measuring the host link", 1, 1)
    return known.tier()


def _link_rates(device: torch.device) -> tuple[float, float]:
    """Bytes per µs to and from pinned host memory: the best of a few copies of 64 MiB."""
    host = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
    frame = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    return _copy_rate(host, frame), _copy_rate(frame, host)


def _copy_rate(target: torch.Tensor, source: torch.Tensor) -> float:
    rates = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        rates.append(source.numel() / ((time.perf_counter() - start) * 1e6))
    return max(rates)


def eager_extras(statistics: Mapping[str, OperatorStatistics]) -> Callable[..., tuple[int, int]]:
    """For `eager_peak_bytes`: what the statistics know of a kernel's memory beside its traced results."""
    found: dict[str, tuple[int, int]] = {}

    def extra(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], promised_bytes: int) -> tuple[int, int]:
        key = eager_signature(target, args, kwargs)
        if key not in found:
            entry = statistics.get(key)
            trait = Trait.decoded(entry.details) if entry else Trait()
            found[key] = eager_extra(trait, entry.scratch_bytes if entry else 0, promised_bytes)
        return found[key]

    return extra


def update_workspace_bytes(entry: OperatorStatistics) -> int:
    """What eager's update takes beside parameters, gradients and state: of whole parameters."""
    trait = Trait.decoded(entry.details)
    return max(trait.workspace_bytes, trait.whole_bytes)
