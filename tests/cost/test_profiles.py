"""Device profiles: every figure has its source, and the figures hang together."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from gradbase.catalog import Catalog
from gradbase.common.errors import UsageError
from gradbase.cost import (
    PROFILES,
    DeviceProfile,
    HostMeasurements,
    get_profile,
    host_profile,
    measure_host,
    profile_from_measurements,
    tier_from_profile,
)

SMALL = HostMeasurements(2e9, 1e9, 4e9, 2**33)
EVERY = [*PROFILES.values(), profile_from_measurements("here", SMALL)]


@pytest.mark.parametrize("profile", EVERY, ids=lambda profile: profile.name)
def test_every_figure_has_a_source_and_every_source_a_figure(profile: DeviceProfile) -> None:
    assert profile.sources.keys() == profile.figures().keys()
    assert all(len(source) > 10 for key, source in profile.sources.items() if key != "memory_bandwidth_bytes_per_s")


@pytest.mark.parametrize("profile", EVERY, ids=lambda profile: profile.name)
def test_figures_are_plausible(profile: DeviceProfile) -> None:
    assert all(math.isfinite(v) and v > 0 for key, v in profile.figures().items() if key != "tier_duplex")
    assert 0 < profile.compute_efficiency <= 1 and 0 < profile.memory_efficiency <= 1
    peaks = profile.peak_flops
    assert peaks["float64"] <= peaks["float32"] <= peaks["bfloat16"]
    assert profile.tier_write_bytes_per_s < profile.memory_bandwidth_bytes_per_s


def test_no_gpu_peak_counts_sparsity() -> None:
    """The sheets print the figure with 2:4 sparsity beside or instead of the dense one, which is half of it."""
    assert {name: PROFILES[name].peak_flops["bfloat16"] for name in ("h100", "a100", "rtx4090")} == {
        "h100": pytest.approx(1979e12 / 2, rel=1e-3),
        "a100": pytest.approx(624e12 / 2),
        "rtx4090": pytest.approx(330.3e12 / 2, rel=1e-3),
    }


@pytest.mark.parametrize("profile", EVERY, ids=lambda profile: profile.name)
def test_a_profile_survives_its_json(profile: DeviceProfile) -> None:
    assert DeviceProfile.from_json(profile.to_json()) == profile


def test_names_are_found_in_any_case_and_guessed_when_near() -> None:
    assert get_profile("H100") is PROFILES["h100"]
    with pytest.raises(UsageError) as caught:
        get_profile("rtx-4090")
    assert "did you mean rtx4090?" in str(caught.value)
    assert all(name in str(caught.value) for name in PROFILES)
    with pytest.raises(UsageError) as caught:
        get_profile("zzz")
    assert "did you mean" not in str(caught.value)


def test_a_gpu_pages_over_its_link_and_a_cpu_to_disk() -> None:
    link = tier_from_profile(PROFILES["h100"])
    assert 64_000 * 0.7 < link.write_bytes_per_us < 64_000  # 64 GB/s is PCI Express 5.0 each way
    assert link.duplex and link.source == "roofline" and link.compute_tax < 0.05
    disk = tier_from_profile(PROFILES["laptop-cpu"])
    assert not disk.duplex and disk.read_bytes_per_us < 10_000
    assert link.compute_tax < disk.compute_tax < 1


def test_the_host_is_measured_once_and_kept(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> HostMeasurements:
        calls.append(1)
        return SMALL

    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        first = host_profile(catalog, threads=2, measure=measure)
        assert host_profile(catalog, threads=2, measure=measure) == first
        assert len(calls) == 1
        host_profile(catalog, threads=1, measure=measure)
        assert len(calls) == 2
    assert first.kind == "cpu" and first.flops_per_s("float32") == 2e9 and first.bytes_per_s() == 4e9


@pytest.mark.parametrize("kept", ["{}", "not JSON", "[]", '{"name": "x"}', "null"])
def test_a_kept_profile_of_another_form_is_measured_again(tmp_path: Path, kept: str) -> None:
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        device = host_profile(measure=lambda: SMALL).name
        catalog.record_profile(device, 2, kept)
        profile = host_profile(catalog, threads=2, measure=lambda: SMALL)
        assert catalog.lookup_profile(device, 2) == profile.to_json()


def test_this_machine_can_be_measured() -> None:
    start = time.perf_counter()
    measured = measure_host()
    assert time.perf_counter() - start < 10
    assert measured.float64_flops_per_s > 1e8 and 1e8 < measured.float32_flops_per_s < 1e15
    assert 1e8 < measured.copy_bytes_per_s < 1e13
    assert measured.memory_bytes > 2**26
