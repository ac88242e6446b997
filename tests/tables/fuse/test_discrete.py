"""Truths told by sources: adversaries, vague values, lone claims, copiers, and the reasons given."""

from dataclasses import replace

import numpy as np
import pytest

from gradbase.tables.fuse import AttributeOptions, Claims, Config, Hierarchy, Result, infer
from tests.tables.fuse.worlds import World, changing, odds_left_unexplained, opinions, said_again, vote, with_copiers


def gate(result: Result, name: str) -> tuple[bool, float]:
    """Whether the gate was opened, and the gain it saw."""
    (i,) = [i for i, n in enumerate(result.gates["name"]) if n.startswith(name)]
    return bool(result.gates["kept"][i]), float(result.gates["gain"][i])


def quality(claims: Claims, result: Result) -> dict[str, float]:
    names = (claims.source_names[s] for s in result.sources["source"])
    return dict(zip(names, result.sources["quality"].tolist(), strict=True))


def test_good_sources_outvote_many_bad_ones() -> None:
    world = opinions([0.95, 0.9, 0.9, *[0.25] * 8], cover=0.7)
    claims = world.claims()
    result = infer(claims)
    assert world.accuracy(claims, result) > vote(world) + 0.1
    assert world.accuracy(claims, result) > 0.9


def test_adversaries_that_agree_on_nothing_count_little() -> None:
    world = opinions([0.9, 0.8, 0.8, 0.7, 0.02, 0.02, 0.02], values=3, seed=3)
    claims = world.claims()
    result = infer(claims)
    assert max(quality(claims, result)[f"s{s}"] for s in (4, 5, 6)) < 0.25
    assert world.accuracy(claims, result) > vote(world)


def test_quality_is_recovered_within_its_interval() -> None:
    accuracies = [0.95, 0.85, 0.75, 0.65, 0.5, 0.9, 0.8]
    world = opinions(accuracies, items=400, seed=1)
    claims = world.claims()
    table = infer(claims).sources
    for source, share, low, high in zip(*(table[n] for n in ("source", "quality", "low", "high")), strict=True):
        true = accuracies[int(claims.source_names[source][1:])]
        assert low < share < high
        assert low - 0.05 < true < high + 0.05


def test_probabilities_are_calibrated() -> None:
    world = opinions([0.6, 0.65, 0.7, 0.75, 0.8, 0.85], items=600, cover=0.6, seed=2)
    claims = world.claims()
    result = infer(claims)
    assert abs(result.truths["probability"].mean() - world.accuracy(claims, result)) < 0.1


def test_a_lone_claim_is_as_probable_as_its_source_is_good() -> None:
    world = opinions([0.95, 0.9, 0.9, 0.3], items=300, seed=4)
    world.say("alone good", "s0", "v")
    world.say("alone bad", "s3", "v")
    claims = world.claims()
    result = infer(claims)
    probability = {
        claims.object_names[o]: p for o, p in zip(result.truths["object"], result.truths["probability"], strict=True)
    }
    assert probability["alone bad"] < probability["alone good"] < 1
    i = [claims.object_names[o] for o in result.truths["object"]].index("alone good")
    assert result.truths["runner_up"][i] is None


def places() -> tuple[World, Hierarchy]:
    """Careful sources name the town, careless ones the country, two bad ones a wrong town of another."""
    random, world = np.random.default_rng(0), World()
    child, parent = [], []
    for c in range(10):
        for t in range(8):
            child.append(f"town {c} {t}")
            parent.append(f"country {c}")
    for i in range(200):
        c, t = int(random.integers(10)), int(random.integers(8))
        world.truth[f"o{i}"] = f"town {c} {t}"
        for s, (exact, vague) in enumerate([(0.8, 0.15), (0.1, 0.85), (0.1, 0.85), (0.3, 0.1), (0.3, 0.1)]):
            draw = random.random()
            wrong = f"town {random.integers(10)} {random.integers(8)}"
            told = world.truth[f"o{i}"] if draw < exact else f"country {c}" if draw < exact + vague else wrong
            world.say(f"o{i}", f"s{s}", told)
    return world, Hierarchy.from_edges(child, parent)


def test_a_general_claim_supports_a_special_one() -> None:
    world, hierarchy = places()
    claims = world.claims()
    having, without = infer(claims, hierarchy=hierarchy), infer(claims)
    assert having.kinds == {"x": "hierarchy"}
    assert gate(having, "similarity")[0]
    assert world.accuracy(claims, having) > world.accuracy(claims, without) + 0.05


def test_numbers_that_are_nearly_the_same_support_each_other() -> None:
    claims = Claims.from_columns(
        ["o"] * 5 + [f"p{i}" for i in range(40) for _ in range(5)],
        ["x"] * 205,
        list("abcde") * 41,
        [1000, 1001, 999, 5, 5] + [i * 100 + d for i in range(1, 41) for d in (0, 1e-3 * i, 0, 0, 0)],
    )
    result = infer(claims, attributes={"x": AttributeOptions(kind="number")})
    assert result.truths["value"][0] in (1000, 1001, 999)


def test_what_a_source_says_wrongly_of_one_value_is_learned() -> None:
    random, world = np.random.default_rng(0), World()
    for i in range(400):
        world.truth[f"o{i}"] = f"place {random.integers(300)}"
        mistaken = i % 5 == 0
        world.say(f"o{i}", "parser", "Elizabeth" if mistaken else world.truth[f"o{i}"])
        for source in ("other", "third"):
            right = random.random() < 0.7
            world.say(f"o{i}", source, world.truth[f"o{i}"] if right else f"place {random.integers(300)}")
    claims = world.claims()
    result = infer(claims)
    assert gate(result, "lift")[0]
    told = [claims.object_names[o] for o in result.truths["object"]]
    values = dict(zip(told, result.truths["value"], strict=True))
    assert np.mean([values[f"o{i}"] == "Elizabeth" for i in range(0, 400, 5)]) < 0.2


def test_copiers_are_found_and_discounted() -> None:
    world = with_copiers(opinions([0.85, 0.8, 0.8, 0.8, 0.8, 0.35], items=300, cover=0.6, values=40), "s5", 3)
    claims = world.claims()
    gated, off = infer(claims), infer(claims, config=Config(copies="off"))
    assert gate(gated, "copies")[0]
    assert world.accuracy(claims, gated) > world.accuracy(claims, off) + 0.2
    named = {
        (claims.source_names[c], claims.source_names[o])
        for c, o in zip(gated.copies["copier"], gated.copies["original"], strict=True)
    }
    clique = {"s5", *(f"copier{i}" for i in range(3))}
    assert named and all(copier in clique and original in clique for copier, original in named)
    assert len(off.copies["copier"]) == 0


def test_copiers_of_one_attribute_are_found_beside_others() -> None:
    random = np.random.default_rng(8)
    quality = random.uniform(0.3, 0.95, 16).tolist()
    world = with_copiers(opinions(quality, items=250, cover=0.35, seed=8), "s3", 3, rate=1.0)
    rows = [(object, "color", source, value) for object, _, source, value, _ in world.rows]
    for item in range(250):
        born = f"{random.integers(1950, 2000)}-01-02"
        for source in np.flatnonzero(random.random(16) < 0.35).tolist():
            said = born if random.random() < 0.8 else str(random.integers(1950, 2000))
            rows.append((f"o{item}", "born", f"s{source}", said))
    claims = Claims.from_columns(*zip(*rows, strict=True))
    result = infer(claims)
    told = [result.truths[name].tolist() for name in ("object", "attribute", "value")]
    right = [
        world.truth[claims.object_names[o]] == value
        for o, a, value in zip(*told, strict=True)
        if claims.attribute_names[a] == "color"
    ]
    assert len(result.copies["copier"]) == 6 and np.mean(right) > vote(world) + 0.05


def test_independent_sources_are_not_called_copiers() -> None:
    world = opinions([0.9, 0.85, 0.8, 0.7, 0.6, 0.5], items=300, seed=5)
    result = infer(world.claims())
    assert not gate(result, "copies")[0]
    assert len(result.copies["copier"]) == 0


def test_the_gate_can_be_forced() -> None:
    claims = opinions([0.9, 0.8, 0.7], items=60).claims()
    assert gate(infer(claims, config=Config(copies="ungated")), "copies")[0]


@pytest.mark.parametrize("seed", range(3))
def test_reasons_sum_to_the_decision(seed: int) -> None:
    world = opinions([0.9, 0.6, 0.5, 0.4], items=80, seed=seed)
    world.say("alone", "s0", "v")
    result = infer(world.claims())
    assert odds_left_unexplained(result) < 1e-9
    assert set(result.why["claim"][result.why["claim"] >= 0]) == set(range(len(world.rows)))


def test_confidence_weighs_claims() -> None:
    claims = Claims.from_columns(
        ["o", "o", "o"], ["x"] * 3, ["a", "b", "c"], ["one", "two", "two"], confidence=[1.0, 0.1, 0.1]
    )
    assert infer(claims).truths["value"].tolist() == ["one"]
    assert infer(replace(claims, confidence=None)).truths["value"].tolist() == ["two"]


@pytest.mark.parametrize("accuracies", [[0.9] * 8, [0.95, 0.9, 0.8, 0.7, 0.6, 0.5]])
def test_what_sources_say_again_later_makes_nobody_a_copier(accuracies: list[float]) -> None:
    world = opinions(accuracies, items=300, cover=0.6)
    again = said_again(world, (0.0, 10.0, 20.0), spread=5.0)
    claims = again.claims(dated=True)
    result = infer(claims, config=Config(copies="ungated"))
    assert len(result.copies["copier"]) == 0
    assert again.accuracy(claims, result) > world.accuracy(world.claims(), infer(world.claims())) - 0.01


def test_copiers_are_found_as_well_when_everything_is_said_twice() -> None:
    world = with_copiers(opinions([0.7] * 8, items=300, cover=0.6, values=200), "s3", 4)
    again = said_again(world, (0.0, 100.0), spread=0.0)
    claims = again.claims(dated=True)
    result = infer(claims)
    copier, original = (
        {claims.source_names[code] for code in result.copies[role]} for role in ("copier", "original")
    )
    assert len(result.copies["copier"]) == 10 and copier | original == {"s3", *(f"copier{c}" for c in range(4))}
    assert again.accuracy(claims, result) > vote(world) + 0.05


@pytest.mark.parametrize("changes", [0.0, 1.0])
def test_sources_that_speak_of_an_item_several_times_need_not_copy(changes: float) -> None:
    """Of what was true then and is now, several sources say both: by that they would all be copiers."""
    world = changing(items=200, claims=14, changes=changes, seed=1)
    claims = world.claims(dated=True)
    gated, off = infer(claims), infer(claims, config=Config(copies="off"))
    assert len(gated.copies["copier"]) == 0
    assert world.accuracy(claims, gated) > world.accuracy(claims, off) - 0.01
    assert len(infer(claims, config=Config(copies="ungated")).copies["copier"]) < 5


@pytest.mark.parametrize("values", [2, 3, 5])
@pytest.mark.parametrize("accuracies", [[0.75] * 6, [0.95, 0.8, 0.6, 0.6, 0.6, 0.6]])
def test_of_a_few_values_one_is_true_however_much_sources_differ(accuracies: list[float], values: int) -> None:
    """Yes and no are all there is: that nobody says the truth explains no disagreement."""
    right, voted, believed = [], [], []
    for seed in range(3):
        world = opinions(accuracies, items=200, cover=0.6, values=values, seed=seed)
        claims = world.claims()
        result = infer(claims)
        right.append(world.accuracy(claims, result))
        voted.append(vote(world))
        believed.append(float(result.truths["probability"].mean()))
    assert np.mean(right) > np.mean(voted) - 0.01
    assert abs(np.mean(right) - np.mean(believed)) < 0.1
