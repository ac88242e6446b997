"""The step as a tree of the user's modules: what each takes, holds, and what was decided for its storages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from gradbase.explain._measured import Measurements
from gradbase.explain._timeline import Timeline
from gradbase.ir.costs import Costs
from gradbase.ir.logical import LogicalPlan, Operator, Phase
from gradbase.ir.physical import Compute, PhysicalPlan

OUTSIDE = "(outside modules)"

_COLUMN: dict[Phase, str] = {
    "forward": "forward",
    "backward": "backward",
    "clip": "update",
    "update": "update",
    "epilogue": "update",
}


@dataclass(slots=True)
class Figures:
    """Sums over the operators of a module and of the modules in it.

    Times in µs, estimated; recomputation counts in `recompute_us` only. `live_bytes` is the most that the whole
    step occupies while one of the operators runs. `kept_bytes` are activations held for a later phase,
    `recomputed_bytes` and `paged_bytes` storages that were dropped and computed again, or went to the slow tier.
    """

    forward_us: float = 0.0
    backward_us: float = 0.0
    update_us: float = 0.0
    recompute_us: float = 0.0
    measured_us: float | None = None
    live_bytes: int = 0
    kept_bytes: int = 0
    recomputed_bytes: int = 0
    paged_bytes: int = 0

    @property
    def time_us(self) -> float:
        return self.forward_us + self.backward_us + self.update_us + self.recompute_us

    def add(self, other: Figures) -> None:
        """Take in the figures of another part of the step."""
        self.forward_us += other.forward_us
        self.backward_us += other.backward_us
        self.update_us += other.update_us
        self.recompute_us += other.recompute_us
        if other.measured_us is not None:
            self.measured_us = (self.measured_us or 0.0) + other.measured_us
        self.live_bytes = max(self.live_bytes, other.live_bytes)
        self.kept_bytes += other.kept_bytes
        self.recomputed_bytes += other.recomputed_bytes
        self.paged_bytes += other.paged_bytes


@dataclass(slots=True)
class Node:
    """A module, or a run of equal sibling modules folded into one (`count` above 1)."""

    name: str
    children: list[Node] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)
    targets: Counter[str] = field(default_factory=Counter)  # forward operators of its own, by target
    sources: Counter[str] = field(default_factory=Counter)  # lines of its own operators
    operators: int = 0  # of its own
    count: int = 1

    def shape(self) -> object:
        """Equal for modules that compute the same: forward operators of their own, children by name and shape."""
        return (sorted(self.targets.items()), [(child.name, child.shape()) for child in self.children])

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and all below it with their depth, parents first."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


def module_tree(
    logical: LogicalPlan,
    physical: PhysicalPlan,
    costs: Costs,
    times: Timeline,
    measurements: Measurements | None = None,
) -> Node:
    """The tree of modules in the order in which they first run, every figure summed upwards, nothing folded."""
    root = Node("step")
    owner = [_descend(root, operator) for operator in logical.operators]
    for operator, node in zip(logical.operators, owner, strict=True):
        node.operators += 1
        if operator.phase == "forward":
            node.targets[operator.target] += 1
        if operator.source:
            node.sources[operator.source] += 1
    _add_times(physical, costs, times, measurements, logical, owner)
    _add_actions(logical, physical, owner)
    _sum_up(root)
    return root


def _descend(root: Node, operator: Operator) -> Node:
    node = root
    for part in operator.module.split(".") if operator.module else (OUTSIDE,):
        found = next((child for child in node.children if child.name == part), None)
        if found is None:
            found = Node(part)
            node.children.append(found)
        node = found
    return node


def _add_times(
    physical: PhysicalPlan,
    costs: Costs,
    times: Timeline,
    measurements: Measurements | None,
    logical: LogicalPlan,
    owner: list[Node],
) -> None:
    measured = (measurements or Measurements(())).times_of(len(physical.instructions))
    for index, instruction in enumerate(physical.instructions):
        if not isinstance(instruction, Compute):
            continue
        estimate = costs.operators[instruction.operator]
        live = physical.resident_bytes + times.live_bytes[index] + estimate.scratch_bytes
        part = Figures(measured_us=measured[index], live_bytes=live)
        column = "recompute" if instruction.run else _COLUMN[logical.operators[instruction.operator].phase]
        setattr(part, f"{column}_us", estimate.time_us)
        owner[instruction.operator].figures.add(part)


def _add_actions(logical: LogicalPlan, physical: PhysicalPlan, owner: list[Node]) -> None:
    home = home_operators(logical)
    recomputed, paged = recomputed_storages(physical), paged_storages(physical)
    held = set(_held(logical))
    for storage in logical.storages:
        if storage.id not in home:
            continue
        figures = owner[home[storage.id]].figures
        figures.recomputed_bytes += storage.nbytes * (storage.id in recomputed)
        figures.paged_bytes += storage.nbytes * (storage.id in paged)
        figures.kept_bytes += storage.nbytes * (storage.id in held and storage.id not in recomputed | paged)


def home_operators(logical: LogicalPlan) -> dict[int, int]:
    """The operator that a storage is counted for: the one that writes it, else the first that reads it."""
    home: dict[int, int] = {}
    for operator in logical.operators:
        for storage in (*operator.writes, *operator.reads):
            home.setdefault(storage, operator.id)
    return home


def recomputed_storages(physical: PhysicalPlan) -> set[int]:
    """Storages that are recomputed because an operator reads them again (not as a by-product)."""
    read = {life for step in physical.instructions if isinstance(step, Compute) for life in step.reads}
    return {life.storage for life in physical.lives if life.origin == "recompute" and life.id in read}


def paged_storages(physical: PhysicalPlan) -> set[int]:
    """Storages that come back from the slow tier at least once."""
    return {life.storage for life in physical.lives if life.origin == "page-in"}


def _held(logical: LogicalPlan) -> Iterable[int]:
    """Storages written in one phase of the step and read in another."""
    born: dict[int, str] = {}
    for operator in logical.operators:
        for storage in operator.reads:
            if born.get(storage, operator.phase) != operator.phase:
                yield storage
        born |= dict.fromkeys(operator.writes, operator.phase)


def _sum_up(node: Node) -> None:
    for child in node.children:
        _sum_up(child)
        node.figures.add(child.figures)


def folded(node: Node) -> Node:
    """The tree as people read it: numbered siblings of equal shape are one, a module that only holds another is joined.

    Six equal blocks in a list `h` become one node "h.0 … h.5" with count 6.
    """
    runs: list[list[Node]] = []
    for child in node.children:
        alike = runs and child.name.isdigit() and runs[-1][0].name.isdigit() and runs[-1][0].shape() == child.shape()
        if alike:
            runs[-1].append(child)
        else:
            runs.append([child])
    children = [_joined(folded(_merged(run))) for run in runs]
    return replace(node, children=children)


def _joined(node: Node) -> Node:
    if node.operators or node.count > 1 or len(node.children) != 1:
        return node
    child = node.children[0]
    return replace(child, name=" … ".join(f"{node.name}.{part}" for part in child.name.split(" … ")))


def _merged(run: list[Node]) -> Node:
    if len(run) == 1:
        return run[0]
    node = Node(f"{run[0].name} … {run[-1].name}", targets=run[0].targets, count=len(run))
    for member in run:
        node.operators += member.operators
        node.figures.add(member.figures)
        node.sources += member.sources
    node.children = [_unnamed(list(peers)) for peers in zip(*(member.children for member in run), strict=True)]
    return node


def _unnamed(peers: list[Node]) -> Node:
    """Equal children of folded modules, under the name that they share."""
    merged = _merged(peers)
    merged.name, merged.count = peers[0].name, 1
    return merged
