"""Sets, change in time, growth, buying, source features, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from gradbase.common.errors import UsageError
from gradbase.tables.fuse import AttributeOptions, Claims, Config, Statistics, infer
from tests.tables.fuse.test_discrete import gate
from tests.tables.fuse.worlds import World, changing, odds_left_unexplained, opinions, readings, said_again


def casts(seed: int = 0) -> tuple[World, set[tuple[str, str]]]:
    """Sets of one to four of six names; sources leave some out and put some in."""
    random, world, members = np.random.default_rng(seed), World(), set()
    sensitivity, false = random.uniform(0.2, 0.95, 12), random.uniform(0.0, 0.3, 12)
    for i in range(150):
        names = [f"m{i} {k}" for k in range(6)]
        true = set(names[: random.integers(1, 5)])
        members |= {(f"o{i}", name) for name in true}
        for s in np.flatnonzero(random.random(12) < 0.5).tolist():
            for name in names:
                if random.random() < (sensitivity[s] if name in true else false[s]):
                    world.say(f"o{i}", f"s{s}", name)
    return world, members


def test_members_of_sets_are_told_apart() -> None:
    world, members = casts()
    claims = world.claims()
    result = infer(claims)
    assert result.kinds == {"x": "set"}
    told = {(claims.object_names[o], v) for o, v in zip(result.truths["object"], result.truths["value"], strict=True)}
    counts: dict[tuple[str, str], int] = {}
    speakers: dict[str, set[str]] = {}
    for o, _, s, v, _ in world.rows:
        counts[o, v] = counts.get((o, v), 0) + 1
        speakers.setdefault(o, set()).add(s)
    voted = {(o, v) for (o, v), n in counts.items() if n > len(speakers[o]) / 2}

    def f1(found: set[tuple[str, str]]) -> float:
        return 2 * len(found & members) / (len(found) + len(members))

    assert f1(told) > f1(voted) + 0.02
    assert odds_left_unexplained(result) < 1e-6


def test_members_said_again_later_are_said_once() -> None:
    world, _ = casts()
    later = said_again(world, (0.0, 10.0, 20.0), spread=5.0).claims(dated=True)
    once, again = (infer(claims, attributes={"x": AttributeOptions(kind="set")}) for claims in (world.claims(), later))
    for column in ("object", "value"):
        assert again.truths[column].tolist() == once.truths[column].tolist()
    np.testing.assert_allclose(again.truths["probability"], once.truths["probability"], atol=1e-6)
    assert odds_left_unexplained(again) < 1e-6


def test_what_was_true_until_when() -> None:
    world = changing()
    claims = world.claims(dated=True)
    dated, undated = infer(claims), infer(world.claims())
    assert gate(dated, "time")[0]
    assert world.accuracy(claims, dated) > world.accuracy(claims, undated) + 0.1
    assert odds_left_unexplained(dated) < 1e-6
    since, until = dated.history["since"], dated.history["until"]
    assert (until[~np.isnan(until)] > since[~np.isnan(until)]).all()
    last = np.isnan(until)
    assert last.sum() == len(np.unique(dated.history["object"]))
    current = dict(zip(dated.truths["object"], dated.truths["value"], strict=True))
    ended = zip(dated.history["object"][last], dated.history["value"][last], strict=True)
    assert all(current[o] == value for o, value in ended)


def test_what_never_changes_has_no_history() -> None:
    world = changing(changes=0.0)
    result = infer(world.claims(dated=True))
    assert not gate(result, "time")[0]
    assert len(result.history["since"]) == 0


def halves(world: World) -> tuple[Claims, Claims]:
    """Every second row each, in codes of their own."""
    return tuple(World(world.rows[i::2], world.truth).claims() for i in range(2))  # type: ignore[return-value]


def test_later_claims_add_to_earlier_ones() -> None:
    world = opinions([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], items=300, cover=0.6, seed=7)
    first, second = halves(world)
    one = infer(first)
    both, alone, at_once = infer(second, statistics=one.statistics), infer(second), infer(world.claims())
    assert world.accuracy(second, both) > world.accuracy(second, alone) + 0.02
    assert world.accuracy(second, both) > world.accuracy(world.claims(), at_once) - 0.04
    assert odds_left_unexplained(both) < 1e-9
    assert max(both.why["claim"]) < len(second) and max(both.why["source"]) < len(second.source_names)
    assert "" not in both.statistics.sources["source"]
    table = both.statistics.values
    assert len(set(zip(table["object"], table["value"], strict=True))) == len(table["object"])
    assert table["claims"].sum() == len(world.rows)


def in_parts(world: World, parts: int, seed: int) -> dict[str, object]:
    """The answer to every item by the last part that speaks of it, the rows dealt out at random."""
    part = np.random.default_rng(seed).integers(parts, size=len(world.rows))
    statistics, answers = None, {}
    for number in range(parts):
        claims = World([row for row, p in zip(world.rows, part, strict=True) if p == number], world.truth).claims()
        result = infer(claims, statistics=statistics)
        statistics = result.statistics
        told = zip(result.truths["object"], result.truths["value"], strict=True)
        answers |= {claims.object_names[o]: value for o, value in told}
    return answers


def test_claims_in_parts_give_nearly_the_answers_of_all_at_once() -> None:
    world = opinions([0.95, 0.8, 0.7, 0.6, 0.5, 0.4], items=300, cover=0.6, seed=11)
    claims = world.claims()
    truths = infer(claims).truths
    at_once = {claims.object_names[o]: v for o, v in zip(truths["object"], truths["value"], strict=True)}
    grown = in_parts(world, parts=5, seed=1)
    assert np.mean([grown[o] != value for o, value in at_once.items()]) < 0.05


def test_a_claim_that_comes_again_counts_once() -> None:
    world = opinions([0.9, 0.8, 0.6, 0.5], items=80, seed=12)
    claims = world.claims()
    once = infer(claims)
    again = infer(claims, statistics=once.statistics)
    np.testing.assert_array_equal(again.truths["value"], once.truths["value"])
    np.testing.assert_allclose(again.truths["probability"], once.truths["probability"], atol=1e-6)
    assert again.truths["claims"].sum() == once.truths["claims"].sum()
    for name in ("exact", "other"):
        np.testing.assert_allclose(again.statistics.sources[name], once.statistics.sources[name], atol=1e-6)


def test_sources_that_said_something_earlier_are_no_part_of_the_tables() -> None:
    world = opinions([0.9, 0.8, 0.7], items=60, seed=13)
    first = infer(world.claims())
    one = World([row for row in world.rows if row[1] == world.rows[0][1]][:5], world.truth).claims()
    later = infer(one, statistics=first.statistics)
    assert set(later.sources["source"]) == {0}
    assert odds_left_unexplained(later) < 1e-9
    assert len(later.statistics.sources["source"]) == 3


def test_later_measurements_add_to_earlier_ones() -> None:
    world, _, _ = readings(items=150, seed=8)
    first, second = halves(world)
    one = infer(first, attributes={"x": AttributeOptions(kind="measure")})
    both = infer(second, statistics=one.statistics)
    alone = infer(second, attributes={"x": AttributeOptions(kind="measure")})

    def error(result: object) -> float:
        told = zip(result.truths["object"], result.truths["value"], strict=True)  # type: ignore[attr-defined]
        return float(np.mean([abs(world.truth[second.object_names[o]] - v) for o, v in told]))

    assert both.kinds == {"x": "measure"}
    assert error(both) < error(alone)
    assert odds_left_unexplained(both) < 1e-6


def test_statistics_without_a_column_are_refused() -> None:
    claims = opinions([0.9, 0.8], items=5).claims()
    with pytest.raises(UsageError, match="no column 'object'"):
        infer(claims, statistics=Statistics({}, {}))


def test_the_most_doubtful_items_are_bought_first() -> None:
    world = opinions([0.95, 0.9, 0.9, 0.6], items=200, cover=0.6, seed=9)
    claims = world.claims()
    result = infer(claims)
    table = result.next(10)
    assert (np.diff(table["gain"]) <= 1e-9).all() and table["gain"][0] > 0
    spoken = set(zip(claims.object, claims.source, strict=True))
    assert not spoken & set(zip(table["object"], table["source"], strict=True))
    probability = dict(zip(result.truths["object"], result.truths["probability"], strict=True))
    assert np.mean([probability[o] for o in table["object"]]) < np.mean(list(probability.values()))
    with pytest.raises(UsageError, match="cannot be bought"):
        result.next(0)


@pytest.mark.slow
def test_source_features_tell_who_is_good() -> None:
    random = np.random.default_rng(0)
    feature = random.normal(size=300)
    world = opinions((1 / (1 + np.exp(-3 * feature))).tolist(), items=250, cover=0.012, seed=1)
    claims = world.claims()
    features = np.column_stack([feature, random.normal(size=300)])[[int(n[1:]) for n in claims.source_names]]
    having = infer(claims, source_features=features, config=Config(memory="64MB"))
    assert gate(having, "features")[0]
    assert world.accuracy(claims, having) > world.accuracy(claims, infer(claims)) + 0.03


@pytest.mark.parametrize(
    ("features", "problem"),
    [(np.zeros((1, 2)), "expected \\(2, columns\\)"), (np.full((2, 1), np.nan), "column 0 .* no number")],
)
def test_features_that_do_not_fit_are_refused(features: np.ndarray, problem: str) -> None:
    claims = Claims.from_columns(["o", "o"], ["x", "x"], ["a", "b"], ["1", "2"])
    with pytest.raises(UsageError, match=problem):
        infer(claims, source_features=features)


def test_claims_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(UsageError, match="no claims"):
        infer(Claims.from_columns([], [], [], []))
    with pytest.raises(UsageError, match="no claim has a value"):
        infer(Claims.from_columns(["o"], ["x"], ["a"], [None]))
    one = Claims.from_columns(["o"], ["x"], ["a"], ["v"])
    with pytest.raises(UsageError, match="'colour' has options but no claims"):
        infer(one, attributes={"colour": AttributeOptions()})
    with pytest.raises(UsageError, match="kind 'colour' is not known"):
        infer(one, attributes={"x": AttributeOptions(kind="colour")})
    with pytest.raises(UsageError, match="shape"):
        Claims.from_columns(["o"], ["x"], ["a"], ["v"], confidence=[1.0, 1.0])
    with pytest.raises(UsageError, match="outside 0 to 1"):
        Claims.from_columns(["o"], ["x"], ["a"], ["v"], confidence=[2.0])
    with pytest.raises(UsageError, match="codes from"):
        Claims(np.array([1]), np.array([0]), np.array([0]), np.array(["v"], object), ["o"], ["x"], ["a"])
    for config in ({"copies": "maybe"}, {"level": 1.0}, {"iterations_max": 0}):
        with pytest.raises(UsageError):
            Config(**config)  # type: ignore[arg-type]


def test_one_claim_is_enough() -> None:
    result = infer(Claims.from_columns(["o"], ["x"], ["a"], ["v"]))
    assert result.truths["value"].tolist() == ["v"]
    assert 0 < result.truths["probability"][0] < 1
    assert odds_left_unexplained(result) < 1e-9
