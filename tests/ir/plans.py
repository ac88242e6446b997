"""Plans written by hand, small enough to check on paper, for the tests of `ir` and `explain`."""

from __future__ import annotations

from dataclasses import replace

from gradbase.ir.costs import Costs, Estimate, Tier
from gradbase.ir.logical import LogicalPlan, Operator, Storage, Tensor
from gradbase.ir.physical import Await, Compute, Decision, Life, PageIn, PageOut, PhysicalPlan

WEIGHT, X, HIDDEN, DROPPED, LOSS, GRAD_DROPPED, GRAD_WEIGHT, STATE = range(8)


def _f32(storage: int, *shape: int) -> Tensor:
    strides = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return Tensor(storage, "float32", shape, tuple(strides))


def six_operators() -> LogicalPlan:
    """Linear, dropout, loss, their backward, and an update with one state."""
    storages = (
        Storage(WEIGHT, 400, "parameter", "fc1.weight"),
        Storage(X, 800, "batch", "batch[0]"),
        Storage(HIDDEN, 1000, "activation", "fc1"),
        Storage(DROPPED, 1000, "activation", "drop"),
        Storage(LOSS, 4, "activation", "loss"),
        Storage(GRAD_DROPPED, 1000, "gradient", "grad of drop"),
        Storage(GRAD_WEIGHT, 400, "gradient", "grad of fc1.weight"),
        Storage(STATE, 400, "state", "momentum_buffer of fc1.weight"),
    )
    operators = (
        Operator(0, "fc1", "aten.mm.default", (X, WEIGHT), (HIDDEN,), module="fc1", source="model.py:10", flops=1000,
                 inputs=(_f32(X, 10, 10), _f32(WEIGHT, 10, 10)), outputs=(_f32(HIDDEN, 10, 10),), moved_bytes=2200),
        Operator(1, "drop", "aten.native_dropout.default", (HIDDEN,), (DROPPED,), module="drop", source="model.py:11",
                 random=True, inplace=((DROPPED, HIDDEN),), signature="native_dropout(float32[10,10], p=0.1)"),
        Operator(2, "loss", "aten.mean.default", (DROPPED,), (LOSS,), source="model.py:12"),
        Operator(3, "loss_backward", "aten.mul.Tensor", (DROPPED,), (GRAD_DROPPED,), phase="backward"),
        Operator(4, "fc1_backward", "aten.mm.default", (X, HIDDEN, GRAD_DROPPED), (GRAD_WEIGHT,), module="fc1",
                 source="model.py:10", phase="backward"),
        Operator(5, "update fc1.weight", "gradbase.update.SGD", (WEIGHT, GRAD_WEIGHT, STATE), (), (WEIGHT, STATE),
                 module="fc1", phase="update", recomputable=False),
    )  # fmt: skip
    return LogicalPlan(storages, operators, results=(LOSS,), notes=('a "note"\nof two lines',))


def six_costs() -> Costs:
    """Times in round figures; the tier moves 100 bytes a µs after 1 µs, and halves the speed of computing."""
    times = (100.0, 20.0, 10.0, 10.0, 100.0, 50.0)
    tier = Tier(write_bytes_per_us=100.0, read_bytes_per_us=100.0, latency_us=1.0, compute_tax=0.5, duplex=True)
    return Costs(tuple(Estimate(time, 32, "measured" if time > 50 else "roofline") for time in times), tier)


def six_physical() -> PhysicalPlan:
    """`HIDDEN` is recomputed, `DROPPED` goes out and comes back, and `STATE` rests in the page file."""
    instructions = (
        Compute(0, 0, (), (0,)),
        Compute(1, 0, (0,), (1,)),
        PageOut(1),
        Compute(2, 0, (1,), (2,)),
        Await(1, "out"),
        PageIn(3),
        Await(3, "in"),
        Compute(3, 0, (3,), (4,)),
        PageIn(5),
        Compute(0, 1, (), (6,)),
        Compute(4, 0, (6, 4), (7,)),
        Await(5, "in"),
        Compute(5, 0, (7, 5), ()),
        PageOut(5),
        Await(5, "out"),
    )
    lives = (
        Life(0, HIDDEN, 0, 1024, 0, 1, "compute"),
        Life(1, DROPPED, 0, 1024, 1, 4, "compute", reuses=0),
        Life(2, LOSS, 3072, 64, 3, 14, "compute"),
        Life(3, DROPPED, 0, 1024, 5, 7, "page-in"),
        Life(4, GRAD_DROPPED, 1024, 1024, 7, 10, "compute"),
        Life(5, STATE, 2560, 512, 8, 14, "page-in"),
        Life(6, HIDDEN, 0, 1024, 9, 10, "recompute"),
        Life(7, GRAD_WEIGHT, 2048, 512, 10, 12, "compute"),
    )
    decisions = (
        Decision(HIDDEN, 1, 4, "recompute", 100.0, "1000 B for 100 µs, the cheapest left"),
        Decision(DROPPED, 2, 3, "page", 12.0, "a page-out hides behind the loss"),
        Decision(STATE, -1, 5, "page", 0.0, "used once a step"),
    )
    return PhysicalPlan(
        instructions, lives, decisions, arena_bytes=3136, resident_bytes=1200, scratch_bytes=32, spilled=(STATE,),
        page_file_bytes=4096, budget_bytes=4500, predicted_time_us=414.0, unlimited_time_us=290.0,
        lower_bound_time_us=400.0, planning_s=0.25, rules=("order", "search"),
        estimates=(("measured", 2), ("roofline", 4)),
    )  # fmt: skip


def reordered(physical: PhysicalPlan, order: list[int]) -> PhysicalPlan:
    """The instructions at the old indices `order`; spans of lives move along, and end earlier where one is left out."""
    kept = [sum(old <= index for old in order) - 1 for index in range(len(physical.instructions))]
    place = {old: new for new, old in enumerate(order)}
    lives = tuple(
        replace(life, born=place.get(life.born, kept[life.born]), dies=place.get(life.dies, max(kept[life.dies], 0)))
        for life in physical.lives
    )
    return replace(physical, instructions=tuple(physical.instructions[old] for old in order), lives=lives)


def chain(layers: int) -> tuple[LogicalPlan, PhysicalPlan]:
    """`layers` forward operators, as many backward that read them in reverse order; everything kept, no transfers."""
    size, last = 256, 2 * layers - 1
    storages = [Storage(0, size, "batch", "x")]
    operators: list[Operator] = []
    lives: list[Life] = []
    instructions: list[Compute] = []
    for index in range(2 * layers):
        backward = index >= layers
        saved = (last - index + 1,) if backward else ()
        module = f"h.{last - index if backward else index}"
        kind, phase = ("gradient", "backward") if backward else ("activation", "forward")
        storages.append(Storage(index + 1, size, kind, f"v{index}"))
        operators.append(
            Operator(index, f"op{index}", "aten.relu.default", (index, *saved) if saved != (index,) else saved,
                     (index + 1,), phase=phase, module=module)
        )  # fmt: skip
        dies = last if index == last else max(index + 1, last - index)
        offset = (layers + index % 2) * size if backward else index * size
        lives.append(Life(index, index + 1, offset, size, index, dies, "compute"))
        instructions.append(Compute(index, 0, tuple(r - 1 for r in operators[-1].reads if r), (index,)))
    logical = LogicalPlan(tuple(storages), tuple(operators), results=(2 * layers,))
    physical = PhysicalPlan(
        tuple(instructions), tuple(lives), (), arena_bytes=(layers + 2) * size, resident_bytes=size, scratch_bytes=0,
        spilled=(), page_file_bytes=0, budget_bytes=None, predicted_time_us=2.0 * layers,
        unlimited_time_us=2.0 * layers, lower_bound_time_us=2.0 * layers,
    )  # fmt: skip
    return logical, physical
