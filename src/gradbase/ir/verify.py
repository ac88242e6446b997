"""Checks that a plan means what it says: `verify_logical` and `verify_physical`.

A plan that breaks a rule is our own mistake, so the checks raise `PlanError`, an assertion that names the
instruction, the storage and the life. A physical plan is replayed once, instruction by instruction, over
*versions*: a storage is born at version 0 and every operator that mutates it adds one. Each operator reads
exactly the version it reads in eager order, whatever the order of the plan; a stale page, a reading after
an update and a mutation out of turn are then all the same mistake. Frames are checked by a sweep over time
that keeps the occupied spans sorted by offset. Both are O(n log n): 10,000 instructions take under a second.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan, Operator, Storage, Tensor
from gradbase.ir.physical import Await, Compute, Life, PageIn, PageOut, PhysicalPlan


class PlanError(AssertionError):
    """A plan breaks a rule of the plan language: a mistake of ours, never of the user."""


# ---------------------------------------------------------------- logical plans


def verify_logical(plan: LogicalPlan) -> None:
    """Check a logical plan; raises PlanError at the first rule that is broken.

    Ids are positions; every storage that is not external is born exactly once, before it is read; `mutates`
    is a part of `reads`; in-place pairs have equal sizes; tensors lie inside their storages; results exist.
    """
    for position, storage in enumerate(plan.storages):
        if storage.id != position:
            raise PlanError(f"storage {storage.name!r} at position {position} has id {storage.id}")
        if storage.nbytes < 0:
            raise PlanError(f"{_storage(storage)} has {storage.nbytes} bytes")
    born = {storage.id for storage in plan.storages if storage.external}
    for position, operator in enumerate(plan.operators):
        if operator.id != position:
            raise PlanError(f"operator {operator.name!r} at position {position} has id {operator.id}")
        _verify_operator(plan, operator, born)
        born.update(operator.writes)
    for result in plan.results:
        if result not in born:
            raise PlanError(f"result {result} is a storage that nothing writes")


def _verify_operator(plan: LogicalPlan, operator: Operator, born: set[int]) -> None:
    where = _operator(operator)
    for name in ("reads", "writes", "mutates"):
        ids = getattr(operator, name)
        _check_ids(where, name, ids, len(plan.storages))
    for storage in operator.reads:
        if storage not in born:
            raise PlanError(f"{where} reads {_storage(plan.storages[storage])} before anything writes it")
    for storage in operator.writes:
        if storage in born:
            raise PlanError(f"{where} writes {_storage(plan.storages[storage])}, which exists already")
    for storage in operator.mutates:
        if storage not in operator.reads:
            raise PlanError(f"{where} mutates {_storage(plan.storages[storage])}, which is not among its reads")
    _verify_inplace(plan, operator)
    _verify_tensors(plan, operator)


def _check_ids(where: str, name: str, ids: Sequence[int], count: int) -> None:
    if len(set(ids)) != len(ids):
        raise PlanError(f"{where} names a storage twice in {name}: {tuple(ids)}")
    for identity in ids:
        if not 0 <= identity < count:
            raise PlanError(f"{where} names storage {identity} in {name}, of {count} storages")


def _verify_inplace(plan: LogicalPlan, operator: Operator) -> None:
    for written, read in operator.inplace:
        where = f"{_operator(operator)} has the in-place pair ({written}, {read})"
        if written not in operator.writes or read not in operator.reads:
            raise PlanError(f"{where}, which is not a written storage over a read one")
        if plan.storages[written].nbytes != plan.storages[read].nbytes:
            raise PlanError(
                f"{where} of {plan.storages[written].nbytes} over {plan.storages[read].nbytes} bytes;"
                " sizes must be equal"
            )


def _verify_tensors(plan: LogicalPlan, operator: Operator) -> None:
    touched = {*operator.reads, *operator.writes}
    for tensor in operator.outputs:
        if tensor.storage not in touched:
            raise PlanError(f"{_operator(operator)} returns storage {tensor.storage}, which it does not touch")
    for tensor in (*operator.inputs, *operator.outputs):
        if not 0 <= tensor.storage < len(plan.storages):
            raise PlanError(f"{_operator(operator)} has a tensor on storage {tensor.storage}, which does not exist")
        storage = plan.storages[tensor.storage]
        if len(tensor.shape) != len(tensor.strides):
            raise PlanError(f"{_operator(operator)}: shape {tensor.shape} does not go with strides {tensor.strides}")
        if _extent_bytes(tensor) > storage.nbytes:
            raise PlanError(
                f"{_operator(operator)}: a {tensor.dtype} tensor {tensor.shape} ends at byte {_extent_bytes(tensor)}"
                f" of {_storage(storage)}, which has {storage.nbytes}"
            )


def _extent_bytes(tensor: Tensor) -> int:
    if 0 in tensor.shape:
        return 0
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return (last + 1) * item_bytes(tensor.dtype)


def item_bytes(dtype: str) -> int:
    """Bytes of one element of a dtype named as torch names it without its prefix ("bfloat16" -> 2).

    Raises PlanError for a name that tells no width.
    """
    if dtype == "bool":
        return 1
    width = re.match(r"[a-z]+(\d+)", dtype)
    if width is None:
        raise PlanError(f"dtype {dtype!r} is unknown; expected a name such as float32, bfloat16, int64 or bool")
    return (int(width.group(1)) + 7) // 8


# ---------------------------------------------------------------- physical plans


def verify_physical(
    logical: LogicalPlan, physical: PhysicalPlan, *, alignment_bytes: int = 1, costs: Costs | None = None
) -> None:
    """Check that a physical plan computes its logical plan within its own promises; raises PlanError.

    Checked: every read finds its storage resident, complete and at the version eager would read; lives begin
    and end where they say and never share bytes of the arena, but for an in-place operator taking over its
    argument's frame; transfers are awaited before a frame or a page is used again; each operator runs once,
    only recomputable ones again, random ones in eager order; spilled storages that changed are written back;
    results are resident at the end; the arena holds every life at a multiple of `alignment_bytes`; the
    predicted peak fits the budget, and no predicted time is below the lower bound. With `costs`, also that
    no operator needs more scratch than was promised.
    """
    _verify_lives(logical, physical, alignment_bytes)
    _Replay(logical, physical).run()
    _verify_frames(physical)
    _verify_totals(logical, physical, costs)


def _verify_lives(logical: LogicalPlan, physical: PhysicalPlan, alignment_bytes: int) -> None:
    _verify_spilled(logical, physical)
    spilled, end = set(physical.spilled), len(physical.instructions)
    for position, life in enumerate(physical.lives):
        if life.id != position:
            raise PlanError(f"the life at position {position} has id {life.id}")
        if not 0 <= life.storage < len(logical.storages):
            raise PlanError(f"life {life.id} is of storage {life.storage}, which does not exist")
        storage, where = logical.storages[life.storage], f"life {life.id} of {_storage(logical.storages[life.storage])}"
        if not 0 <= life.born <= life.dies < end:
            raise PlanError(f"{where} spans [{life.born}, {life.dies}] of {end} instructions")
        if storage.external and storage.id not in spilled:
            raise PlanError(f"{where} stands for a storage that is resident and needs no life")
        if life.nbytes < storage.nbytes:
            raise PlanError(f"{where} has {life.nbytes} bytes for a storage of {storage.nbytes}")
        if life.offset < 0 or life.offset + life.nbytes > physical.arena_bytes:
            raise PlanError(
                f"{where} takes bytes [{life.offset}, {life.offset + life.nbytes})"
                f" of an arena of {physical.arena_bytes} bytes"
            )
        if life.offset % alignment_bytes:
            raise PlanError(f"{where} lies at offset {life.offset}, which is no multiple of {alignment_bytes}")


def _verify_spilled(logical: LogicalPlan, physical: PhysicalPlan) -> None:
    if len(set(physical.spilled)) != len(physical.spilled):
        raise PlanError("a storage is named twice in spilled")
    for identity in physical.spilled:
        if not 0 <= identity < len(logical.storages) or not logical.storages[identity].external:
            raise PlanError(f"spilled names storage {identity}, which is not external")


class _Replay:
    """Runs a physical plan over versions instead of bytes. `at` is the index of the current instruction."""

    def __init__(self, logical: LogicalPlan, physical: PhysicalPlan) -> None:
        self.logical, self.physical = logical, physical
        self.at = 0
        self.needed, self.final = _versions(logical)
        self.resident = {s.id for s in logical.storages if s.external} - set(physical.spilled)
        self.resident_version = dict.fromkeys(self.resident, 0)
        self.life_version = [-1] * len(physical.lives)  # -1: not begun
        self.page_version = dict.fromkeys(physical.spilled, 0)
        self.incoming: set[int] = set()  # lives whose page-in is not awaited yet
        self.outgoing: set[int] = set()
        self.runs = [0] * len(logical.operators)
        self.last_random = -1

    def run(self) -> None:
        for at, instruction in enumerate(self.physical.instructions):
            self.at = at
            if isinstance(instruction, Compute):
                self.compute(instruction)
            elif isinstance(instruction, PageOut):
                self.page_out(self.life(instruction.life))
            elif isinstance(instruction, PageIn):
                self.page_in(self.life(instruction.life))
            else:
                self.wait(self.life(instruction.life), instruction)
        self.finish()

    def compute(self, instruction: Compute) -> None:
        if not 0 <= instruction.operator < len(self.logical.operators):
            raise self.error(f"runs operator {instruction.operator}, which does not exist")
        operator = self.logical.operators[instruction.operator]
        self.count_run(operator, instruction)
        covered = self.match(operator, "reads", instruction.reads)
        for storage in operator.reads:
            self.read(operator, storage, covered.get(storage))
        written = self.match(operator, "writes", instruction.writes)
        for storage in operator.writes:
            if storage not in written:
                raise self.error(f"writes {self.name(storage)} into no life")
            self.begin(written[storage], "compute" if instruction.run == 0 else "recompute", 0)
            self.take_over(operator, written[storage], instruction)
        for storage in operator.mutates:
            self.mutate(storage, covered.get(storage))

    def count_run(self, operator: Operator, instruction: Compute) -> None:
        expected, self.runs[operator.id] = self.runs[operator.id], self.runs[operator.id] + 1
        if instruction.run != expected:
            raise self.error(f"is run {instruction.run} of the operator where run {expected} is due")
        if expected and not operator.recomputable:
            raise self.error("recomputes an operator that must run once")
        if operator.random and not expected:
            if operator.id < self.last_random:
                earlier = _operator(self.logical.operators[self.last_random])
                raise self.error(f"draws random numbers after {earlier}, which draws later in eager order")
            self.last_random = operator.id

    def match(self, operator: Operator, what: str, lives: Iterable[int]) -> dict[int, Life]:
        """The lives named in an instruction by storage, each storage once and one of the operator's."""
        found: dict[int, Life] = {}
        expected = getattr(operator, what)
        for identity in lives:
            life = self.life(identity)
            if life.storage not in expected:
                raise self.error(f"names life {identity} of {self.name(life.storage)}, which is not in its {what}")
            if life.storage in found:
                raise self.error(f"names {self.name(life.storage)} twice in {what}")
            found[life.storage] = life
        return found

    def read(self, operator: Operator, storage: int, life: Life | None) -> None:
        if life is None:
            if storage not in self.resident:
                raise self.error(f"reads {self.name(storage)}, which is not resident, through no life")
            version = self.resident_version[storage]
        else:
            self.check_alive(life, "reads")
            version = self.life_version[life.id]
        needed = self.needed[operator.id][storage]
        if version != needed:
            state = "stale" if version < needed else "already changed"
            through = "" if life is None else f" through life {life.id}"
            raise self.error(
                f"reads {self.name(storage)}{through} at version {version}, which is {state}:"
                f" eager reads version {needed}"
            )

    def mutate(self, storage: int, life: Life | None) -> None:
        if life is None:
            self.resident_version[storage] += 1
            return
        if life.id in self.outgoing:
            raise self.error(f"changes {self.name(storage)} while life {life.id} is being paged out")
        self.life_version[life.id] += 1

    def begin(self, life: Life, origin: str, version: int) -> None:
        if self.life_version[life.id] >= 0:
            raise self.error(f"begins life {life.id} of {self.name(life.storage)} a second time")
        if life.born != self.at:
            raise self.error(f"begins life {life.id} of {self.name(life.storage)}, which is born at {life.born}")
        if life.origin != origin:
            raise self.error(f"begins life {life.id} by {origin}, which says it comes from {life.origin}")
        self.life_version[life.id] = version

    def take_over(self, operator: Operator, life: Life, instruction: Compute) -> None:
        """An in-place operator's result takes the frame of its argument, which ends here."""
        if life.reuses == -1:
            return
        old = self.life(life.reuses)
        if old.id not in instruction.reads or (life.storage, old.storage) not in operator.inplace:
            raise self.error(f"puts life {life.id} over life {old.id}, which the operator cannot do in place")
        if old.dies != self.at:
            raise self.error(f"overwrites life {old.id} of {self.name(old.storage)}, which lives to {old.dies}")
        if (old.offset, old.nbytes) != (life.offset, life.nbytes):
            raise self.error(
                f"puts life {life.id} at [{life.offset}, +{life.nbytes}) over life {old.id}"
                f" at [{old.offset}, +{old.nbytes}); the frame must be the same"
            )

    def page_out(self, life: Life) -> None:
        self.check_alive(life, "pages out")
        if life.id in self.outgoing:
            raise self.error(f"pages out life {life.id}, whose last page-out is not awaited yet")
        self.check_page_free(life, self.incoming | self.outgoing)
        self.outgoing.add(life.id)

    def page_in(self, life: Life) -> None:
        if life.reuses != -1:
            raise self.error(f"pages life {life.id} in over life {life.reuses}; only an operator may do that")
        self.check_page_free(life, self.outgoing)
        if life.storage not in self.page_version:
            raise self.error(f"pages in {self.name(life.storage)}, which was never paged out")
        self.begin(life, "page-in", self.page_version[life.storage])
        self.incoming.add(life.id)

    def wait(self, life: Life, instruction: Await) -> None:
        flying = self.incoming if instruction.direction == "in" else self.outgoing
        if life.id not in flying:
            raise self.error(f"waits for a page-{instruction.direction} of life {life.id}, which is not under way")
        if self.at > life.dies:
            raise self.error(
                f"waits for a page-{instruction.direction} of life {life.id} of {self.name(life.storage)}"
                f" after its frame was given up at instruction {life.dies}"
            )
        flying.remove(life.id)
        if instruction.direction == "out":
            self.page_version[life.storage] = self.life_version[life.id]

    def check_page_free(self, life: Life, flying: Iterable[int]) -> None:
        for other in flying:
            if self.physical.lives[other].storage == life.storage:
                raise self.error(
                    f"uses the page of {self.name(life.storage)} while the transfer of life {other} is not awaited"
                )

    def check_alive(self, life: Life, verb: str) -> None:
        what = f"{verb} {self.name(life.storage)} through life {life.id}"
        if self.life_version[life.id] < 0:
            raise self.error(f"{what}, which has not begun")
        if self.at > life.dies:
            raise self.error(f"{what}, which died at instruction {life.dies}")
        if life.id in self.incoming:
            raise self.error(f"{what}, whose page-in is not awaited yet")

    def finish(self) -> None:
        for life in self.physical.lives:
            if self.life_version[life.id] < 0:
                raise PlanError(f"life {life.id} of {self.name(life.storage)} is begun by no instruction")
        for direction, flying in (("in", self.incoming), ("out", self.outgoing)):
            for identity in sorted(flying):
                raise PlanError(f"the page-{direction} of life {identity} is never awaited")
        for operator, runs in zip(self.logical.operators, self.runs, strict=True):
            if not runs:
                raise PlanError(f"{_operator(operator)} never runs")
        for storage in self.physical.spilled:
            if self.page_version[storage] != self.final[storage]:
                raise PlanError(
                    f"{self.name(storage)} rests in the page file at version {self.page_version[storage]}"
                    f" of {self.final[storage]}: it is not written back after its last change"
                )
        self.check_results()

    def check_results(self) -> None:
        end = len(self.physical.instructions) - 1
        overwritten = {life.reuses for life in self.physical.lives}
        lasting = [life for life in self.physical.lives if life.dies == end and life.id not in overwritten]
        present = {life.storage for life in lasting if self.life_version[life.id] == self.final[life.storage]}
        for storage in self.logical.results:
            if storage not in self.resident and storage not in present:
                raise PlanError(f"result {self.name(storage)} is not resident when the step ends")

    def life(self, identity: int) -> Life:
        if not 0 <= identity < len(self.physical.lives):
            raise self.error(f"names life {identity} of {len(self.physical.lives)}")
        return self.physical.lives[identity]

    def name(self, storage: int) -> str:
        return _storage(self.logical.storages[storage])

    def error(self, problem: str) -> PlanError:
        instruction = self.physical.instructions[self.at]
        what = type(instruction).__name__
        if isinstance(instruction, Compute) and 0 <= instruction.operator < len(self.logical.operators):
            what = f"{_operator(self.logical.operators[instruction.operator])}, run {instruction.run}"
        return PlanError(f"instruction {self.at} ({what}) {problem}")


def _versions(logical: LogicalPlan) -> tuple[list[dict[int, int]], list[int]]:
    """Per operator the version of each storage that it reads in eager order; and every storage's last version."""
    changes = [0] * len(logical.storages)
    needed = []
    for operator in logical.operators:
        needed.append({storage: changes[storage] for storage in operator.reads})
        for storage in operator.mutates:
            changes[storage] += 1
    return needed, changes


def _verify_frames(physical: PhysicalPlan) -> None:
    """No two lives share bytes of the arena at one time. Occupied spans stand sorted by offset.

    While no two overlap, a new span can only collide with its neighbours, so one search finds a collision.
    """
    spans: list[tuple[int, int, int]] = []  # offset, end, life
    dying = sorted(physical.lives, key=lambda life: life.dies, reverse=True)
    for life in sorted(physical.lives, key=lambda life: life.born):
        while dying[-1].dies < life.born:
            _drop(spans, dying.pop())
        if life.reuses != -1:
            _drop(spans, physical.lives[life.reuses])
        if life.nbytes:
            _occupy(physical, spans, life)


def _occupy(physical: PhysicalPlan, spans: list[tuple[int, int, int]], life: Life) -> None:
    span = (life.offset, life.offset + life.nbytes, life.id)
    place = bisect_left(spans, span)
    for offset, end, other in spans[max(place - 1, 0) : place + 1]:
        if offset < span[1] and span[0] < end:
            rival = physical.lives[other]
            raise PlanError(
                f"life {life.id} (storage {life.storage}, bytes [{span[0]}, {span[1]}), instructions [{life.born},"
                f" {life.dies}]) lies over life {other} (storage {rival.storage}, bytes [{offset}, {end}),"
                f" instructions [{rival.born}, {rival.dies}])"
            )
    insort(spans, span)


def _drop(spans: list[tuple[int, int, int]], life: Life) -> None:
    span = (life.offset, life.offset + life.nbytes, life.id)
    place = bisect_left(spans, span)
    if place < len(spans) and spans[place] == span:
        del spans[place]


def _verify_totals(logical: LogicalPlan, physical: PhysicalPlan, costs: Costs | None) -> None:
    spilled = set(physical.spilled)
    resident_bytes = sum(s.nbytes for s in logical.storages if s.external and s.id not in spilled)
    if physical.resident_bytes < resident_bytes:
        raise PlanError(f"resident storages take {resident_bytes} bytes, the plan says {physical.resident_bytes}")
    spilled_bytes = sum(logical.storages[identity].nbytes for identity in spilled)
    if physical.page_file_bytes < spilled_bytes:
        raise PlanError(f"spilled storages take {spilled_bytes} bytes, the page file has {physical.page_file_bytes}")
    if physical.budget_bytes is not None and physical.predicted_peak_bytes > physical.budget_bytes:
        raise PlanError(
            f"the predicted peak of {physical.predicted_peak_bytes} bytes is above"
            f" the budget of {physical.budget_bytes}"
        )
    if physical.lower_bound_time_us > physical.predicted_time_us * (1 + 1e-9):
        raise PlanError(
            f"the predicted time of {physical.predicted_time_us} µs is below the proven bound"
            f" of {physical.lower_bound_time_us} µs"
        )
    if costs is not None:
        _verify_scratch(logical, physical, costs)
    for decision in physical.decisions:
        _verify_decision(logical, decision.storage, decision.after, decision.before)


def _verify_scratch(logical: LogicalPlan, physical: PhysicalPlan, costs: Costs) -> None:
    for operator, estimate in zip(logical.operators, costs.operators, strict=True):
        if estimate.scratch_bytes > physical.scratch_bytes:
            raise PlanError(
                f"{_operator(operator)} needs {estimate.scratch_bytes} bytes of scratch, the plan has"
                f" {physical.scratch_bytes}"
            )


def _verify_decision(logical: LogicalPlan, storage: int, after: int, before: int) -> None:
    count = len(logical.operators)
    if not 0 <= storage < len(logical.storages) or not -1 <= after < count or not -1 <= before < count:
        raise PlanError(f"a decision names storage {storage} between operators {after} and {before}: no such place")


def _storage(storage: Storage) -> str:
    return f"storage {storage.id} ({storage.name})"


def _operator(operator: Operator) -> str:
    return f"operator {operator.id} ({operator.name})"
