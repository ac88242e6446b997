"""Every rule of the verifier: a sound plan passes, and the plan with one rule broken is found out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from gradbase.ir import PlanError, verify_logical, verify_physical
from gradbase.ir.logical import LogicalPlan, Operator, Storage, Tensor
from gradbase.ir.physical import Await, Compute, Decision, Instruction, Life, PageIn, PageOut, PhysicalPlan
from tests.ir.plans import (
    DROPPED,
    GRAD_DROPPED,
    HIDDEN,
    LOSS,
    STATE,
    WEIGHT,
    X,
    chain,
    reordered,
    six_costs,
    six_operators,
    six_physical,
)


def _with_operator(plan: LogicalPlan, index: int, **changes: object) -> LogicalPlan:
    operators = list(plan.operators)
    operators[index] = replace(operators[index], **changes)  # type: ignore[arg-type]
    return replace(plan, operators=tuple(operators))


def _with_storage(plan: LogicalPlan, index: int, **changes: object) -> LogicalPlan:
    storages = list(plan.storages)
    storages[index] = replace(storages[index], **changes)  # type: ignore[arg-type]
    return replace(plan, storages=tuple(storages))


def _with_life(plan: PhysicalPlan, index: int, **changes: object) -> PhysicalPlan:
    lives = list(plan.lives)
    lives[index] = replace(lives[index], **changes)  # type: ignore[arg-type]
    return replace(plan, lives=tuple(lives))


def _with_instruction(plan: PhysicalPlan, index: int, instruction: Instruction) -> PhysicalPlan:
    instructions = list(plan.instructions)
    instructions[index] = instruction
    return replace(plan, instructions=tuple(instructions))


def _without(plan: PhysicalPlan, *indices: int) -> PhysicalPlan:
    return reordered(plan, [index for index in range(len(plan.instructions)) if index not in indices])


def _inserted(plan: PhysicalPlan, index: int, instruction: Instruction) -> PhysicalPlan:
    """One more instruction at `index`; a life that dies just before it stays dead."""
    lives = tuple(
        replace(life, born=life.born + (life.born >= index), dies=life.dies + (life.dies >= index))
        for life in plan.lives
    )
    instructions = (*plan.instructions[:index], instruction, *plan.instructions[index:])
    return replace(plan, instructions=instructions, lives=lives)


def _added(plan: PhysicalPlan, life: Life) -> PhysicalPlan:
    return replace(plan, lives=(*plan.lives, life))


def test_sound_plans_pass() -> None:
    logical = six_operators()
    verify_logical(logical)
    verify_physical(logical, six_physical(), alignment_bytes=64, costs=six_costs())
    for plan, physical in (chain(1), chain(20)):
        verify_logical(plan)
        verify_physical(plan, physical, alignment_bytes=256)


BROKEN_LOGICAL: dict[str, tuple[Callable[[LogicalPlan], LogicalPlan], str]] = {
    "storage ids": (lambda p: _with_storage(p, 3, id=4), "at position 3 has id 4"),
    "operator ids": (lambda p: _with_operator(p, 3, id=4), "at position 3 has id 4"),
    "negative size": (lambda p: _with_storage(p, 3, nbytes=-1), "has -1 bytes"),
    "reads nothing": (lambda p: _with_operator(p, 2, reads=(99,)), "names storage 99 in reads"),
    "reads twice": (lambda p: _with_operator(p, 2, reads=(DROPPED, DROPPED)), "twice in reads"),
    "reads unborn": (lambda p: _with_operator(p, 1, reads=(GRAD_DROPPED,), inplace=()), "before anything writes it"),
    "writes again": (lambda p: _with_operator(p, 3, writes=(HIDDEN,)), "exists already"),
    "writes external": (lambda p: _with_operator(p, 3, writes=(STATE,)), "exists already"),
    "mutates unread": (lambda p: _with_operator(p, 5, reads=(WEIGHT, 6)), "not among its reads"),
    "in-place of strangers": (lambda p: _with_operator(p, 1, inplace=((DROPPED, X),)), "not a written storage"),
    "in-place sizes": (lambda p: _with_storage(p, DROPPED, nbytes=1004), "sizes must be equal"),
    "tensor too long": (
        lambda p: _with_operator(p, 0, inputs=(Tensor(X, "float32", (10, 10), (30, 1)),)),
        "ends at byte 1120",
    ),
    "tensor nowhere": (lambda p: _with_operator(p, 0, inputs=(Tensor(50, "bool", (), ()),)), "does not exist"),
    "tensor strides": (lambda p: _with_operator(p, 0, inputs=(Tensor(X, "bool", (2,), ()),)), "does not go with"),
    "tensor dtype": (lambda p: _with_operator(p, 0, inputs=(Tensor(X, "float", (2,), (1,)),)), "is unknown"),
    "returns a stranger": (
        lambda p: _with_operator(p, 0, outputs=(Tensor(STATE, "bool", (), ()),)),
        "does not touch",
    ),
    "result": (lambda p: replace(p, results=(8,)), "nothing writes"),
}


@pytest.mark.parametrize("case", BROKEN_LOGICAL)
def test_broken_logical_plan_is_found(case: str) -> None:
    breaks, message = BROKEN_LOGICAL[case]
    with pytest.raises(PlanError, match=message):
        verify_logical(breaks(six_operators()))


BROKEN_PHYSICAL: dict[str, tuple[Callable[[PhysicalPlan], PhysicalPlan], str]] = {
    "life ids": (lambda p: _with_life(p, 3, id=2), "position 3 has id 2"),
    "life of nothing": (lambda p: _with_life(p, 3, storage=99), "does not exist"),
    "life span": (lambda p: _with_life(p, 3, dies=4), r"spans \[5, 4\]"),
    "life of a resident": (lambda p: _with_life(p, 3, storage=WEIGHT), "needs no life"),
    "life too small": (lambda p: _with_life(p, 3, nbytes=960), "960 bytes for a storage of 1000"),
    "arena": (lambda p: replace(p, arena_bytes=3135), r"\[3072, 3136\) of an arena of 3135"),
    "negative offset": (lambda p: _with_life(p, 3, offset=-64), r"\[-64, 960\) of an arena"),
    "alignment": (lambda p: _with_life(p, 2, offset=3040, nbytes=4), "no multiple of 64"),
    "spilled twice": (lambda p: replace(p, spilled=(STATE, STATE)), "twice in spilled"),
    "spilled activation": (lambda p: replace(p, spilled=(STATE, HIDDEN)), "not external"),
    "unknown operator": (lambda p: _with_instruction(p, 3, Compute(6, 0, (1,), (2,))), "which does not exist"),
    "unknown life": (lambda p: _with_instruction(p, 3, Compute(2, 0, (8,), (2,))), "names life 8 of 8"),
    "run number": (lambda p: _with_instruction(p, 9, Compute(0, 2, (), (6,))), "run 1 is due"),
    "first run twice": (lambda p: _with_instruction(p, 9, Compute(0, 0, (), (6,))), "run 1 is due"),
    "update twice": (
        lambda p: _inserted(p, 13, Compute(5, 1, (7, 5), ())),
        "recomputes an operator that must run once",
    ),
    "read of another storage": (lambda p: _with_instruction(p, 3, Compute(2, 0, (1, 0), (2,))), "not in its reads"),
    "read twice": (lambda p: _with_instruction(p, 3, Compute(2, 0, (1, 1), (2,))), "twice in reads"),
    "read through no life": (lambda p: _with_instruction(p, 3, Compute(2, 0, (), (2,))), "through no life"),
    "spilled read through no life": (lambda p: _with_instruction(p, 12, Compute(5, 0, (7,), ())), "through no life"),
    "write into no life": (lambda p: _with_instruction(p, 0, Compute(0, 0, (), ())), "into no life"),
    "read before begun": (lambda p: _with_instruction(p, 3, Compute(2, 0, (3,), (2,))), "has not begun"),
    "read after death": (lambda p: _with_life(p, 4, dies=9), "died at instruction 9"),
    "read after overwriting": (lambda p: _with_instruction(p, 10, Compute(4, 0, (0, 4), (7,))), "died at .* 1$"),
    "read before the page-in is done": (lambda p: reordered(p, [*range(6), 7, 6, *range(8, 15)]), "not awaited yet"),
    "begun elsewhere": (lambda p: _with_life(p, 4, born=6), "which is born at 6"),
    "begun twice": (lambda p: _with_instruction(p, 9, Compute(0, 1, (), (0,))), "a second time"),
    "wrong origin": (lambda p: _with_life(p, 6, origin="compute"), "which says it comes from compute"),
    "never begun": (lambda p: _added(p, Life(8, HIDDEN, 0, 1024, 2, 2, "compute")), "begun by no instruction"),
    "never run": (lambda p: _without(p, 12), "operator 5 .* never runs"),
    "overlap in the arena": (lambda p: _with_life(p, 4, offset=960), "life 4 .* lies over life 3"),
    "overlap at the shared instruction": (lambda p: _with_life(p, 1, reuses=-1), "lies over life"),
    "in-place by another operator": (lambda p: _with_life(p, 4, reuses=3), "cannot do in place"),
    "in-place of a living argument": (lambda p: _with_life(p, 0, dies=2), "which lives to 2"),
    "in-place elsewhere": (lambda p: _with_life(p, 1, offset=64), "the frame must be the same"),
    "page-in over a life": (lambda p: _with_life(p, 3, reuses=1), "only an operator may do that"),
    "page-out of the dead": (lambda p: _inserted(p, 5, PageOut(1)), "pages out .* died"),
    "page-out twice": (lambda p: _inserted(p, 3, PageOut(1)), "last page-out is not awaited"),
    "page-out never awaited": (lambda p: _without(p, 14), "page-out of life 5 is never awaited"),
    "page-in never awaited": (
        lambda p: _added(_inserted(p, 13, PageIn(8)), Life(8, DROPPED, 0, 1024, 13, 13, "page-in")),
        "page-in of life 8 is never awaited",
    ),
    "page-out awaited after the frame went": (lambda p: _with_life(p, 1, dies=3), "after its frame was given up"),
    "awaits nothing": (lambda p: _inserted(p, 5, Await(2, "out")), "which is not under way"),
    "awaits the other way": (lambda p: _with_instruction(p, 6, Await(3, "out")), "which is not under way"),
    "page-in of what is going out": (lambda p: reordered(p, [0, 1, 2, 3, 5, 4, *range(6, 15)]), "is not awaited"),
    "page-in of what never went out": (lambda p: _without(p, 2, 4), "never paged out"),
    "change while going out": (lambda p: reordered(p, [*range(12), 13, 12, 14]), "while life 5 is being paged out"),
    "not written back": (lambda p: _without(p, 13, 14), "version 0 of 1"),
    "result gone": (lambda p: _with_life(p, 2, dies=13), "result .* not resident"),
    "resident bytes": (lambda p: replace(p, resident_bytes=1199), "take 1200 bytes"),
    "page file": (lambda p: replace(p, page_file_bytes=399), "page file has 399"),
    "budget": (lambda p: replace(p, budget_bytes=4367), "peak of 4368 bytes is above"),
    "bound": (lambda p: replace(p, lower_bound_time_us=414.5), "below the proven bound"),
    "scratch": (lambda p: replace(p, scratch_bytes=31), "needs 32 bytes of scratch"),
    "decision": (lambda p: replace(p, decisions=(Decision(LOSS, 0, 6, "keep", 0.0, ""),)), "no such place"),
}


@pytest.mark.parametrize("case", BROKEN_PHYSICAL)
def test_broken_physical_plan_is_found(case: str) -> None:
    breaks, message = BROKEN_PHYSICAL[case]
    with pytest.raises(PlanError, match=message):
        verify_physical(six_operators(), breaks(six_physical()), alignment_bytes=64, costs=six_costs())


# Two updates of one parameter with a reading between them, for the rules about order.
#   0 use -> USED, 1 update, 2 use again -> AGAIN, 3 update, all of storage 0; operators 0 and 2 are random.


def _two_updates() -> LogicalPlan:
    storages = (Storage(0, 8, "state", "s"), Storage(1, 8, "activation", "used"), Storage(2, 8, "activation", "again"))
    operators = (
        Operator(0, "use", "t.use", (0,), (1,), random=True),
        Operator(1, "step", "t.step", (0,), (), (0,), recomputable=False),
        Operator(2, "use again", "t.use", (0,), (2,), random=True),
        Operator(3, "step again", "t.step", (0,), (), (0,), recomputable=False),
    )
    return LogicalPlan(storages, operators, results=(2,))


def _resident_in_order(order: tuple[int, ...]) -> PhysicalPlan:
    """`_two_updates` with the state resident, operators in `order`, a second entry of one being a recomputation."""
    instructions, lives = [], []
    for at, operator in enumerate(order):
        run = order[:at].count(operator)
        writes = ()
        if operator in (0, 2):
            writes = (len(lives),)
            origin = "recompute" if run else "compute"
            lives.append(Life(len(lives), 1 + operator // 2, 8 * len(lives), 8, at, len(order) - 1, origin))
        instructions.append(Compute(operator, run, (), writes))
    return PhysicalPlan(
        tuple(instructions), tuple(lives), (), arena_bytes=8 * len(lives), resident_bytes=8, scratch_bytes=0,
        spilled=(), page_file_bytes=0, budget_bytes=None, predicted_time_us=1.0, unlimited_time_us=1.0,
        lower_bound_time_us=0.0,
    )  # fmt: skip


def test_order_of_mutations_and_random_operators() -> None:
    logical = _two_updates()
    verify_logical(logical)
    for order in ((0, 1, 2, 3), (0, 0, 1, 2, 3), (0, 1, 2, 2, 3)):
        verify_physical(logical, _resident_in_order(order))
    broken = {
        (0, 2, 1, 3): "operator 2 .* version 0, which is stale: eager reads version 1",
        (1, 0, 2, 3): "operator 0 .* version 1, which is already changed: eager reads version 0",
        (0, 3, 2, 1): "operator 3 .* version 0, which is stale",
        (0, 1, 0, 2, 3): "operator 0 .*, run 1\\) .* already changed",
    }
    for order, message in broken.items():
        with pytest.raises(PlanError, match=message):
            verify_physical(logical, _resident_in_order(order))


def test_random_operators_keep_their_order() -> None:
    storages = tuple(Storage(index, 8, "activation", f"r{index}") for index in range(2))
    operators = tuple(Operator(index, f"r{index}", "t.rand", (), (index,), random=True) for index in range(2))
    logical = LogicalPlan(storages, operators)
    lives = (Life(0, 1, 0, 8, 0, 1, "compute"), Life(1, 0, 8, 8, 1, 1, "compute"))
    instructions = (Compute(1, 0, (), (0,)), Compute(0, 0, (), (1,)))
    physical = replace(_resident_in_order(()), instructions=instructions, lives=lives, arena_bytes=16)
    with pytest.raises(PlanError, match="operator 0 .* draws random numbers after operator 1"):
        verify_physical(logical, physical)


def test_stale_page_is_found() -> None:
    """The state is paged in again without having been written back: eager would read the changed one."""
    logical = _two_updates()
    instructions = (
        PageIn(0),
        Await(0, "in"),
        Compute(0, 0, (0,), (1,)),
        Compute(1, 0, (0,), ()),
        PageIn(2),
        Await(2, "in"),
        Compute(2, 0, (2,), (3,)),
    )
    lives = (
        Life(0, 0, 0, 8, 0, 3, "page-in"),
        Life(1, 1, 8, 8, 2, 2, "compute"),
        Life(2, 0, 0, 8, 4, 6, "page-in"),
        Life(3, 2, 8, 8, 6, 6, "compute"),
    )
    physical = replace(
        _resident_in_order(()), instructions=instructions, lives=lives, arena_bytes=16, resident_bytes=0,
        spilled=(0,), page_file_bytes=8,
    )  # fmt: skip
    with pytest.raises(PlanError, match="through life 2 at version 0, which is stale"):
        verify_physical(logical, physical)


def test_ten_thousand_instructions_verify_in_a_second() -> None:
    logical, physical = chain(5000)
    started = time.process_time()
    verify_physical(logical, physical)
    assert time.process_time() - started < 1.0
