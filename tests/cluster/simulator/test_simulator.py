"""Whole jobs under faults: nothing breaks, seeds reproduce, and every planted bug is found."""

from __future__ import annotations

import json

import pytest

from gradbase.cluster.simulator import Simulation, draw_plan, hunt
from gradbase.cluster.simulator.__main__ import main
from tests.cluster.simulator.planted import PLANTED, Planted

CHUNK = 1_050
SEEDS = 10 * CHUNK  # one in twenty-three is a run without a fault


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    totals = hunt(range(first, first + CHUNK))
    assert totals.runs == CHUNK or not totals.failed, [
        f"seed {outcome.plan.seed}: {violation}" for outcome in totals.failed for violation in outcome.violations
    ]
    assert not totals.failed


def test_the_seeds_cover_every_fault_and_every_level() -> None:
    plans = [draw_plan(seed) for seed in range(2_000)]
    jobs = {(plan.job.consistency, plan.job.durability, plan.job.logging) for plan in plans}
    assert len(jobs) == 3 * 2 + 2 * 3  # bsp with both ways to log, ssp and asp with one; three durabilities each
    kinds = {fault.kind for plan in plans for fault in plan.faults}
    assert kinds == {
        "crash", "power", "partition", "disk_full", "clock_jump", "hang", "leave", "join", "slow",
    }  # fmt: skip
    assert any(len(fault.who) > 1 and fault.kind == "crash" for plan in plans for fault in plan.faults)


def test_at_least_ten_thousand_of_the_runs_are_faulty() -> None:
    assert sum(bool(plan.faults) or plan.odd > 0 for plan in map(draw_plan, range(SEEDS))) >= 10_000


def test_runs_do_go_through_terms_and_crashes() -> None:
    outcomes = [Simulation(draw_plan(seed)).run() for seed in range(300)]
    assert sum(outcome.terms > 2 for outcome in outcomes) > 50


def test_a_seed_gives_the_same_history_again() -> None:
    first, second = Simulation(draw_plan(42)), Simulation(draw_plan(42))
    assert first.run() == second.run()
    assert first.history == second.history
    assert len(first.history) > 50


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    planted: Planted = PLANTED[name]
    totals = hunt(range(planted.seeds_max), planted.machines, planted.job)
    assert totals.failed, f"not one of {totals.runs} seeds showed it"
    again = Simulation(totals.failed[0].plan, planted.machines).run()
    assert again.violations == totals.failed[0].violations
    assert not Simulation(totals.failed[0].plan).run().violations


def test_the_command_counts_and_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs", "20", "--seed", "7"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["runs"] == 20 and summary["first_seed"] == 7 and summary["failed_seeds"] == []
    assert summary["events"] > summary["messages"] > 20


def test_the_command_shows_a_history(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--history"]) == 0
    assert "TermOpened" in capsys.readouterr().out


def test_the_command_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs", "0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("[usage]") and captured.err.count("\n") == 1
