"""A machine that runs physical plans on symbols: what a storage holds is the history of how it was computed.

Written from the rules of the plan language alone. The arena is a set of byte spans; writing a span destroys whatever
it touches, a page-in's frame is garbage until its await, and a page-out saves what its frame holds at its await if
that is what it held at its start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradbase.ir.logical import LogicalPlan, Operator
from gradbase.ir.physical import Await, Compute, Life, PageIn, PageOut, PhysicalPlan

Content = int
GARBAGE = "garbage"


def _mix(*parts: Any) -> Content:
    return hash(parts)


def effect(operator: Operator, held: dict[int, Any], number: int) -> dict[int, Content]:
    """What an operator leaves in the storages it writes and mutates, given what it reads and its random number."""
    inputs = tuple(held[s] for s in operator.reads)
    changed = (*operator.writes, *operator.mutates)
    return {s: _mix(operator.id, index, inputs, number) for index, s in enumerate(changed)}


def run_plainly(plan: LogicalPlan) -> dict[int, Content]:
    """Contents of every storage after the step in its own order, nothing ever thrown away."""
    held: dict[int, Any] = {s.id: _mix("before", s.id) for s in plan.storages if s.external}
    drawn = 0
    for operator in plan.operators:
        drawn += operator.random
        held.update(effect(operator, held, drawn if operator.random else 0))
    return held


@dataclass
class Machine:
    logical: LogicalPlan
    plan: PhysicalPlan
    resident: dict[int, Any] = field(default_factory=dict)
    page_file: dict[int, Any] = field(default_factory=dict)
    frames: dict[tuple[int, int], tuple[int, Any]] = field(default_factory=dict)  # span -> storage, content
    saving: dict[int, Any] = field(default_factory=dict)
    loading: dict[int, Any] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    drawn: int = 0
    most_bytes: int = 0

    def run(self) -> dict[int, Any]:
        """Contents of results and external storages after the step."""
        for storage in self.logical.storages:
            if storage.external:
                home = self.page_file if storage.id in self.plan.spilled else self.resident
                home[storage.id] = _mix("before", storage.id)
        for at, instruction in enumerate(self.plan.instructions):
            if isinstance(instruction, Compute):
                self.compute(instruction, at)
            elif isinstance(instruction, PageOut):
                life = self.plan.lives[instruction.life]
                self.saving[life.id] = self.look(life)
            elif isinstance(instruction, PageIn):
                self.start_loading(self.plan.lives[instruction.life])
            else:
                self.wait(instruction)
        assert not self.saving and not self.loading, "transfers must be awaited before the step ends"
        return self.outcome()

    def outcome(self) -> dict[int, Any]:
        held = {**self.page_file_of_spilled(), **self.resident}
        for (_, _), (storage, content) in self.frames.items():
            if storage in self.logical.results:
                held[storage] = content
        return held

    def page_file_of_spilled(self) -> dict[int, Any]:
        return {s: self.page_file[s] for s in self.plan.spilled}

    def compute(self, instruction: Compute, at: int) -> None:
        operator = self.logical.operators[instruction.operator]
        lives = {self.plan.lives[r].storage: self.plan.lives[r] for r in instruction.reads}
        held = {s: self.look(lives[s]) if s in lives else self.resident[s] for s in operator.reads}
        assert GARBAGE not in held.values(), f"instruction {at}: {operator.name} reads garbage"
        written = [self.plan.lives[w] for w in instruction.writes]
        self.check_frames(operator, list(lives.values()), written, at)
        number = self.number(operator, instruction.run)
        left = effect(operator, held, number)
        for life in written:
            self.put(life, left[life.storage])
        for storage in operator.mutates:
            if storage in lives:
                assert lives[storage].id not in self.saving, "a frame is changed while it is being saved"
                self.put(lives[storage], left[storage])
            else:
                self.resident[storage] = left[storage]

    def check_frames(self, operator: Operator, reads: list[Life], writes: list[Life], at: int) -> None:
        """A result lies apart from every argument and other result, except over one it may take the place of."""
        pairs = set(operator.inplace)
        for write in writes:
            for other in (*reads, *(w for w in writes if w is not write)):
                if _span(write)[0] < _span(other)[1] and _span(other)[0] < _span(write)[1]:
                    assert (write.storage, other.storage) in pairs and write.offset == other.offset
                    assert write.reuses == other.id and other.dies == at == write.born
                    assert other.id not in self.saving

    def number(self, operator: Operator, run: int) -> int:
        if not operator.random:
            return 0
        if run == 0:
            self.drawn += 1
            self.numbers[operator.id] = self.drawn
        return self.numbers[operator.id]

    def start_loading(self, life: Life) -> None:
        assert not any(self.plan.lives[s].storage == life.storage for s in self.saving), "its page is being written"
        self.loading[life.id] = self.page_file[life.storage]
        self.put(life, GARBAGE)

    def wait(self, instruction: Await) -> None:
        life = self.plan.lives[instruction.life]
        if instruction.direction == "in":
            self.put(life, self.loading.pop(life.id))
        else:
            before = self.saving.pop(life.id)
            self.page_file[life.storage] = before if self.look(life) == before else GARBAGE

    def look(self, life: Life) -> Any:
        storage, content = self.frames.get(_span(life), (-1, GARBAGE))
        return content if storage == life.storage else GARBAGE

    def put(self, life: Life, content: Any) -> None:
        low, high = _span(life)
        assert high <= self.plan.arena_bytes
        for span in [s for s in self.frames if s[0] < high and low < s[1]]:
            del self.frames[span]
        self.frames[low, high] = (life.storage, content)
        self.most_bytes = max(self.most_bytes, high)


def _span(life: Life) -> tuple[int, int]:
    # A storage of no bytes still needs a place of its own among the symbols.
    return (life.offset, life.offset + life.nbytes) if life.nbytes else (-1 - life.id, -1 - life.id)
