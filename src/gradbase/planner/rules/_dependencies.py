"""Which operators must run before which, and how an order is changed without breaking that."""

from __future__ import annotations

from gradbase.ir.logical import LogicalPlan


def predecessors(logical: LogicalPlan) -> list[set[int]]:
    """Per operator the operators that must run before it.

    A read follows the write or mutation that made the contents; a mutation follows every read of the old contents;
    random operators keep their order, since they share one generator.
    """
    before: list[set[int]] = []
    made: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    last_random = -1
    for operator in logical.operators:
        needs = {made[s] for s in (*operator.reads, *operator.mutates) if s in made}
        for storage in operator.mutates:
            needs.update(readers.pop(storage, ()))
        if operator.random:
            needs.update({last_random} - {-1})
            last_random = operator.id
        for storage in (*operator.writes, *operator.mutates):
            made[storage] = operator.id
        for storage in operator.reads:
            if storage not in operator.mutates:
                readers.setdefault(storage, []).append(operator.id)
        needs.discard(operator.id)
        before.append(needs)
    return before


def successors(before: list[set[int]]) -> list[set[int]]:
    """The same edges the other way round."""
    after: list[set[int]] = [set() for _ in before]
    for operator, needs in enumerate(before):
        for need in needs:
            after[need].add(operator)
    return after


def readers_of(logical: LogicalPlan) -> list[list[int]]:
    """Per storage the operators that read it."""
    readers: list[list[int]] = [[] for _ in logical.storages]
    for operator in logical.operators:
        for storage in operator.reads:
            readers[storage].append(operator.id)
    return readers


def move_after(order: list[int], anchor: dict[int, int]) -> list[int]:
    """Put every operator of `anchor` directly behind its anchor (-1: at the start), which may itself have moved."""
    behind: dict[int, list[int]] = {}
    for operator in order:
        if operator in anchor:
            behind.setdefault(anchor[operator], []).append(operator)
    return _expand([-1, *(o for o in order if o not in anchor)], behind)


def move_before(order: list[int], anchor: dict[int, int]) -> list[int]:
    """Put every operator of `anchor` directly before its anchor, which may itself have moved."""
    ahead: dict[int, list[int]] = {}
    for operator in reversed(order):
        if operator in anchor:
            ahead.setdefault(anchor[operator], []).append(operator)
    backwards = _expand([o for o in reversed(order) if o not in anchor], ahead)
    return backwards[::-1]


def _expand(fixed: list[int], attached: dict[int, list[int]]) -> list[int]:
    order: list[int] = []
    stack = fixed[::-1]
    while stack:
        operator = stack.pop()
        if operator >= 0:
            order.append(operator)
        stack.extend(reversed(attached.get(operator, ())))
    return order


def respecting(before: list[set[int]], order: list[int]) -> list[int]:
    """The order with every operator moved up that a later one in it must follow.

    Anchors are chosen one by one, and several operators at one anchor may depend on each other.
    """
    done: set[int] = set()
    result: list[int] = []
    rank = {operator: index for index, operator in enumerate(order)}
    for wanted in order:
        stack = [wanted]
        while stack:
            operator = stack[-1]
            missing = sorted((o for o in before[operator] if o not in done), key=rank.__getitem__, reverse=True)
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if operator not in done:
                done.add(operator)
                result.append(operator)
    return result
