"""Made-up training steps for the planner's tests: nets with backward and updates, and random graphs."""

from __future__ import annotations

import random
from dataclasses import replace

from gradbase.ir.costs import Costs, Estimate, Tier
from gradbase.ir.logical import LogicalPlan, Operator, Phase, Storage, StorageKind

FAST_TIER = Tier(2800.0, 1400.0, 5.0, 0.1, False, 64)
SLOW_TIER = Tier(20.0, 10.0, 50.0, 0.1, False, 64)
DUPLEX_TIER = Tier(500.0, 500.0, 1.0, 0.05, True, 256)
TIERS = (None, FAST_TIER, SLOW_TIER, DUPLEX_TIER)


class StepBuilder:
    """Collects storages and operators with their costs."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.operators: list[Operator] = []
        self.estimates: list[Estimate] = []

    def storage(self, nbytes: int, kind: StorageKind = "activation", name: str = "") -> int:
        self.storages.append(Storage(len(self.storages), nbytes, kind, name or f"{kind}{len(self.storages)}"))
        return len(self.storages) - 1

    def operator(
        self,
        reads: tuple[int, ...],
        writes: tuple[int, ...],
        *,
        mutates: tuple[int, ...] = (),
        time_us: float = 10.0,
        scratch_bytes: int = 0,
        phase: Phase = "forward",
        inplace: tuple[tuple[int, int], ...] = (),
        is_random: bool = False,
    ) -> int:
        number = len(self.operators)
        reads = tuple(dict.fromkeys((*reads, *mutates)))
        self.operators.append(
            Operator(
                number, f"op{number}", "test.op", reads, writes, mutates, phase=phase, random=is_random,
                recomputable=not mutates, inplace=inplace,
            )
        )
        self.estimates.append(Estimate(time_us, scratch_bytes, "measured"))
        return number

    def build(self, results: tuple[int, ...], tier: Tier | None) -> tuple[LogicalPlan, Costs]:
        plan = LogicalPlan(tuple(self.storages), tuple(self.operators), results)
        return plan, Costs(tuple(self.estimates), tier)


def net(
    layers: int,
    tier: Tier | None = FAST_TIER,
    *,
    seed: int = 0,
    size: int = 4096,
    states: int = 2,
    clip: bool = False,
    weights: int = 1,
) -> tuple[LogicalPlan, Costs]:
    """Forward, backward and updates of a net of linear, pointwise, dropout and skip layers of random sizes."""
    draw, step = random.Random(seed), StepBuilder()
    value = first = step.storage(size, "batch")
    buffer = step.storage(256, "buffer")
    tape: list[tuple[str, int, int, int, int]] = []  # kind, input, output, weight or mask, time
    older = first
    for _ in range(layers):
        kind, time_us = draw.choice(["linear", "linear", "pointwise", "dropout", "skip"]), draw.randint(1, 200)
        extra = -1
        if kind == "linear":
            extra = step.storage(weights * draw.randint(1, 4) * size // 4, "parameter")
            output = step.storage(size)
            step.operator((value, extra), (output,), time_us=time_us, scratch_bytes=draw.choice([0, 0, size // 2]))
        elif kind == "pointwise":
            output = step.storage(size)
            step.operator((value,), (output,), time_us=time_us / 10, inplace=((output, value),))
        elif kind == "dropout":
            output, extra = step.storage(size), step.storage(size // 4)
            step.operator((value,), (output, extra), time_us=time_us / 10, is_random=True)
            step.operator((output,), (), mutates=(buffer,), time_us=1)
        else:
            output, extra = step.storage(size), older
            step.operator((value, older), (output,), time_us=time_us / 10, inplace=((output, value), (output, older)))
        tape.append((kind, value, output, extra, time_us))
        older, value = value, output
    loss = step.storage(4)
    step.operator((value,), (loss,), time_us=5)
    _backward(step, tape, value, loss, first, states, clip)
    return step.build((loss,), tier)


def _backward(
    step: StepBuilder,
    tape: list[tuple[str, int, int, int, int]],
    value: int,
    loss: int,
    first: int,
    states: int,
    clip: bool,
) -> None:
    """Gradients per storage; those of skips are added up. All updates come last, as eager PyTorch has them."""
    nbytes = [s.nbytes for s in step.storages]
    grads: dict[int, int] = {}
    weights: list[tuple[int, int]] = []

    def give(target: int, grad: int) -> None:
        if target in grads:
            total = step.storage(nbytes[target])
            pairs = ((total, grads[target]), (total, grad))
            step.operator((grads[target], grad), (total,), time_us=3, phase="backward", inplace=pairs)
            grad = total
        grads[target] = grad

    top = step.storage(nbytes[value])
    step.operator((loss, value), (top,), time_us=5, phase="backward")
    give(value, top)
    for kind, source, output, extra, time_us in reversed(tape):
        grad = grads[output]
        if kind == "linear":
            weight_grad = step.storage(nbytes[extra], "gradient")
            step.operator((grad, source), (weight_grad,), time_us=time_us, phase="backward")
            weights.append((extra, weight_grad))
        back = step.storage(nbytes[source])
        reads = {"linear": (grad, extra), "pointwise": (grad, source), "dropout": (grad, extra), "skip": (grad,)}[kind]
        pairs = ((back, grad),) if kind != "linear" and nbytes[source] == nbytes[output] else ()
        step.operator(reads, (back,), time_us=time_us / 2, phase="backward", inplace=pairs)
        give(source, back)
        if kind == "skip":
            other = step.storage(nbytes[extra])
            step.operator((grad,), (other,), time_us=time_us / 10, phase="backward")
            give(extra, other)
    if clip:
        every = tuple(grad for _, grad in weights)
        step.operator((), (step.storage(4),), mutates=every, time_us=5, phase="clip")
    for weight, grad in weights:
        moments = tuple(step.storage(nbytes[weight], "state") for _ in range(states))
        step.operator((grad,), (), mutates=(weight, *moments), time_us=4, phase="update")


def graph(seed: int, operators: int, tier: Tier | None, *, pure: bool = False) -> tuple[LogicalPlan, Costs]:
    """Operators that read random earlier storages, sometimes (unless `pure`) mutate one, and write none to three."""
    draw, step = random.Random(seed), StepBuilder()
    known = [step.storage(draw.randint(1, 40) * 64, draw.choice(["parameter", "batch", "state"])) for _ in range(3)]
    states = [s for s in known if step.storages[s].kind == "state"]
    for _ in range(operators):
        readable = [s for s in known if s not in states]
        reads = tuple(draw.sample(readable, min(len(readable), draw.randint(0, 3))))
        sizes = [draw.randint(0, 40) * 64 + draw.choice([0, 0 if pure else 4]) for _ in range(draw.randint(0, 3))]
        writes = tuple(step.storage(nbytes) for nbytes in sizes)
        mutates = tuple(draw.sample(reads, 1)) if reads and not pure and draw.random() < 0.12 else ()
        if states and not pure and draw.random() < 0.1:
            mutates += (states.pop(),)
        same = tuple(
            (w, r) for w in writes for r in reads
            if step.storages[w].nbytes == step.storages[r].nbytes and r not in mutates
        )
        step.operator(
            reads, writes, mutates=mutates, time_us=draw.uniform(0.5, 60), inplace=same,
            scratch_bytes=draw.choice([0, 0, 0, 640]), is_random=draw.random() < 0.15,
            phase="update" if mutates and draw.random() < 0.5 else "forward",
        )
        known += writes
    made = [s for s in known if not step.storages[s].external]
    return step.build(tuple(made[-1:]), tier)


def without_tier(costs: Costs) -> Costs:
    return replace(costs, tier=None)
