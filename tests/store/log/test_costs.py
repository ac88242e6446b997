"""Choices that follow from measured costs."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbase.store.files import DiskFiles, DiskRate, measure_disk
from gradbase.store.log import StepCosts, checkpoint_interval_us, checkpoint_loss, choose_scheme

HOUR_US = 3.6e9
DISK = DiskRate(bytes_per_us=1000.0, sync_us=200.0, mode="durable")


def chosen(costs: StepCosts, consistency="bsp", interval_steps=100.0, mtbf_us=HOUR_US):
    return choose_scheme(costs, DISK, consistency=consistency, mtbf_us=mtbf_us, interval_steps=interval_steps)


def test_a_dense_update_is_logged_as_a_command():
    choice = chosen(StepCosts(step_us=300_000, update_bytes=100_000_000, pack_us=60_000, apply_us=20_000))
    assert choice.scheme == "command" and choice.command_us < choice.physical_us
    assert choice.reason == (
        "command: 60 B a step, replayed in 300.00 ms a step; 1.25 ms a step expected, physical 60.50 ms"
    )


def test_a_small_update_of_a_long_step_is_logged_itself():
    choice = chosen(StepCosts(step_us=300_000, update_bytes=100_000, pack_us=60, apply_us=20))
    assert choice.scheme == "physical" and choice.reason.startswith("physical: 97.66 KiB a step, replayed in 20 µs")


@pytest.mark.parametrize("consistency", ["ssp", "asp"])
def test_without_bsp_only_the_update_itself_will_do(consistency):
    choice = chosen(StepCosts(300_000, 100_000_000, 60_000, 20_000), consistency)
    assert choice.scheme == "physical" and math.isinf(choice.command_us) and consistency in choice.reason


def test_a_disk_that_cannot_keep_up_costs_what_it_is_behind():
    choice = chosen(StepCosts(step_us=50_000, update_bytes=100_000_000, pack_us=0, apply_us=0), mtbf_us=1e15)
    assert choice.physical_us == pytest.approx(100_000 + 200 - 50_000, abs=1)


@given(cost_us=st.floats(1, 1e8), mtbf_us=st.floats(1e7, 1e12))
def test_no_other_interval_loses_much_less(cost_us, mtbf_us):
    interval_us = checkpoint_interval_us(cost_us, mtbf_us)
    assert interval_us >= min(cost_us, mtbf_us)
    if cost_us < mtbf_us / 50:
        best = checkpoint_loss(math.sqrt(2 * cost_us * mtbf_us), cost_us, mtbf_us)
        assert best <= checkpoint_loss(interval_us, cost_us, mtbf_us) <= 1.05 * best


def test_the_interval_of_a_known_case():
    """500 MB in 60 ms and a failure an hour: a checkpoint every 21 s, 0.6% of the time (Young)."""
    interval_us = checkpoint_interval_us(60_000, HOUR_US)
    assert interval_us == pytest.approx(20.8e6, rel=0.01)
    assert checkpoint_loss(interval_us, 60_000, HOUR_US) == pytest.approx(0.0058, rel=0.01)


def test_a_real_disk_is_measured_and_left_as_it_was(tmp_path):
    rate = measure_disk(DiskFiles(tmp_path), "store")
    assert rate.bytes_per_us > 0 and rate.sync_us > 0 and rate.mode in ("plain", "durable")
    assert rate.write_us(1 << 20) > rate.sync_us
    assert list((tmp_path / "store").iterdir()) == []


def test_a_process_that_is_killed_while_it_measures_leaves_no_file(tmp_path, monkeypatch):
    """Its pages are freed with it; a file with a name would stay in the store."""
    seen = []

    def timed(file, offset, block):
        seen.append(os.listdir(tmp_path))
        return 1.0

    monkeypatch.setattr("gradbase.store.files._disk._timed_us", timed)
    measure_disk(DiskFiles(tmp_path))
    assert seen and not any(seen)
