"""Small worlds with a known truth, seeded, for the tests of fusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradbase.tables.fuse import Claims, Result


@dataclass
class World:
    """Claims as rows (object, attribute, source, value, time) and what is true of each object."""

    rows: list[tuple[str, str, str, Any, float]] = field(default_factory=list)
    truth: dict[str, Any] = field(default_factory=dict)

    def say(self, object: str, source: str, value: Any, time: float = np.nan) -> None:
        self.rows.append((object, "x", source, value, time))

    def claims(self, *, dated: bool = False) -> Claims:
        columns = list(zip(*self.rows, strict=True))
        return Claims.from_columns(*columns[:4], time=columns[4] if dated else None)

    def accuracy(self, claims: Claims, result: Result) -> float:
        told = zip(result.truths["object"], result.truths["value"], strict=True)
        return float(np.mean([self.truth[claims.object_names[o]] == value for o, value in told]))


def vote(world: World) -> float:
    """Accuracy of the value with most claims; ties go to the first in order, as text."""
    counts: dict[str, dict[str, int]] = {}
    for object, _, _, value, _ in world.rows:
        counts.setdefault(object, {}).setdefault(value, 0)
        counts[object][value] += 1
    chosen = {o: min(c, key=lambda v: (-c[v], v)) for o, c in counts.items()}
    return float(np.mean([chosen[o] == world.truth[o] for o in chosen]))


def opinions(accuracies: list[float], *, items: int = 200, cover: float = 0.5, values: int = 8, seed: int = 0) -> World:
    """Sources of these accuracies, each speaking of a share of the items, wrong in any way alike."""
    random, world = np.random.default_rng(seed), World()
    for i in range(items):
        world.truth[f"o{i}"] = f"v{random.integers(values)}"
    for s, accuracy in enumerate(accuracies):
        for i in np.flatnonzero(random.random(items) < cover).tolist():
            wrong = [f"v{v}" for v in range(values) if f"v{v}" != world.truth[f"o{i}"]]
            said = world.truth[f"o{i}"] if random.random() < accuracy else str(random.choice(wrong))
            world.say(f"o{i}", f"s{s}", said)
    return world


def with_copiers(world: World, original: str, copiers: int, rate: float = 0.95, seed: int = 0) -> World:
    """The same world, with sources that repeat the original's claims."""
    random = np.random.default_rng(seed)
    copied = World(list(world.rows), dict(world.truth))
    for c in range(copiers):
        for object, _, source, value, _ in world.rows:
            if source == original and random.random() < rate:
                copied.say(object, f"copier{c}", value)
    return copied


def changing(*, items: int = 150, sources: int = 12, claims: int = 12, changes: float = 1.0, seed: int = 0) -> World:
    """Values that are replaced now and then between the times 0 and 100; the truth is the last one."""
    random, world = np.random.default_rng(seed), World()
    accuracy = random.uniform(0.6, 0.95, sources)
    for i in range(items):
        moments = np.sort(random.uniform(0, 100, random.poisson(changes)))
        values = [f"v{random.integers(1000)}" for _ in range(len(moments) + 1)]
        world.truth[f"o{i}"] = values[-1]
        for _ in range(claims):
            time, source = float(random.uniform(0, 100)), int(random.integers(sources))
            said, wrong = values[int(np.searchsorted(moments, time))], f"v{random.integers(1000)}"
            world.say(f"o{i}", f"s{source}", said if random.random() < accuracy[source] else wrong, time)
    return world


def readings(
    *, items: int = 200, sources: int = 12, bias: float = 0.0, scale: float = 0.0, cover: float = 0.5, seed: int = 0
) -> tuple[World, np.ndarray, np.ndarray]:
    """Measured numbers around 50, with biases and (log) scales of this spread, zero and one on average."""
    random, world = np.random.default_rng(seed), World()
    offsets, factors = random.normal(0, bias, sources), np.exp(random.normal(0, scale, sources))
    offsets, factors = offsets - offsets.mean(), factors / factors.mean()
    noise = np.exp(random.normal(0.5, 0.8, sources))
    for i in range(items):
        truth = float(random.normal(50, 20))
        world.truth[f"o{i}"] = truth
        for s in np.flatnonzero(random.random(sources) < cover).tolist():
            world.say(f"o{i}", f"s{s}", float(offsets[s] + factors[s] * truth + noise[s] * random.normal()))
    return world, offsets, factors


def mean_error(world: World, claims: Claims, result: Result) -> float:
    """Mean absolute error of measured truths."""
    told = zip(result.truths["object"], result.truths["value"], strict=True)
    return float(np.mean([abs(world.truth[claims.object_names[o]] - value) for o, value in told]))


def mean_error_of_means(world: World) -> float:
    """The same of the plain means of claims."""
    claims: dict[str, list[float]] = {}
    for object, _, _, value, _ in world.rows:
        claims.setdefault(object, []).append(value)
    return float(np.mean([abs(np.mean(values) - world.truth[o]) for o, values in claims.items()]))


def odds_left_unexplained(result: Result) -> float:
    """The largest difference between a decision's log-odds and the sum of its rows in `why`."""
    truths, why = result.truths, result.why
    summed: dict[tuple[Any, ...], float] = {}
    for o, a, m, odds in zip(why["object"], why["attribute"], why["member"], why["log_odds"], strict=True):
        summed[o, a, m] = summed.get((o, a, m), 0.0) + float(odds)
    sets = {m for m in why["member"].tolist() if m is not None}
    worst = 0.0
    columns = ("object", "attribute", "value", "probability", "runner_up_probability")
    for o, a, value, first, second in zip(*(truths[name] for name in columns), strict=True):
        key = (o, a, value if sets and value in sets else None)
        worst = max(worst, abs(summed[key] - float(np.log(first) - np.log(second))))
    return worst


def said_again(world: World, times: tuple[float, ...], spread: float, seed: int = 0) -> World:
    """The same world, in which every source says everything around each of these times."""
    random = np.random.default_rng(seed)
    rows = [(o, a, s, v, time + random.uniform(0, spread)) for time in times for o, a, s, v, _ in world.rows]
    return World(rows, dict(world.truth))
