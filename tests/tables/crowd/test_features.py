"""The classifier: what features tell, and that nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest

from gradbase.common.errors import InfeasibleError, UsageError
from gradbase.tables.crowd import Claims, Config, Features, Result, infer
from gradbase.tables.crowd._features import Encoder, Order, content_hashes
from gradbase.tables.crowd._rivals import margins
from gradbase.tables.crowd._sides import sides
from gradbase.tables.crowd._text import Rarity, compare, number, paired
from tests.tables.crowd.worlds import world

QUICK = Config(folds=2, rounds=2, steps=40)


def known_world(seed: int = 0):
    simulated = world(seed, quality=[0.7] * 9, per_item=3, n_items=150)
    generator = np.random.default_rng(seed)
    matrix = np.eye(2)[simulated.truth] + generator.normal(0, 0.4, (150, 2))
    return simulated, Features(embedding=matrix)


def test_features_help_and_the_classifier_predicts_what_it_has_not_seen() -> None:
    simulated, features = known_world()
    alone, informed = infer(simulated.claims), infer(simulated.claims, features, QUICK)
    assert simulated.accuracy(informed.value) > simulated.accuracy(alone.value)
    other = known_world(1)
    told = informed.classifier.predict(other[1])
    assert other[0].accuracy(told.argmax(1)) > 0.85
    np.testing.assert_allclose(told.sum(1), 1.0, atol=1e-5)
    why = informed.why()
    odds = np.log(informed.probability / informed.runner_up_probability)
    np.testing.assert_allclose(np.bincount(why.item, why.log_odds), odds, atol=1e-9)
    assert "features" in why.reason


@pytest.mark.parametrize("seed", [1, 3])
def test_beside_good_workers_features_that_tell_little_cost_nothing(seed: int) -> None:
    """Nobody errs by what an item looks like: labels left out say that all of them count."""
    simulated = world(seed, quality=[0.75] * 9, per_item=4, n_items=240)
    noise = np.random.default_rng(seed).normal(0, 1.0, (240, 2))
    weak = Features(embedding=np.eye(2)[simulated.truth] + noise)
    alone, informed = infer(simulated.claims), infer(simulated.claims, weak, QUICK)
    assert simulated.accuracy(informed.value) > simulated.accuracy(alone.value)


def test_where_all_err_by_what_an_item_looks_like_a_classifier_that_knows_is_believed() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 400)
    looks = np.where(generator.random(400) < 0.25, (truth + 1) % 3, truth)
    item, worker = np.repeat(np.arange(400), 4), np.stack([generator.permutation(9)[:4] for _ in range(400)]).ravel()
    meant = np.where(generator.random(1600) < 0.85, looks[item], truth[item])
    said = np.where(generator.random(1600) < 0.85, meant, generator.integers(0, 3, 1600))
    claims = Claims(item, worker, said, np.arange(400), np.arange(9), np.arange(3))
    features = Features(embedding=np.eye(3)[truth] * 2 + generator.normal(0, 0.6, (400, 3)))
    longer = Config(folds=3, rounds=3, steps=60)
    right = [(infer(claims, given, longer).value == truth).mean() for given in (None, features)]
    assert right[1] > right[0] + 0.1


def test_features_of_pure_noise_do_little_harm() -> None:
    simulated, _ = known_world(2)
    noise = Features(numeric=np.random.default_rng(0).normal(size=(150, 3)))
    alone, informed = infer(simulated.claims), infer(simulated.claims, noise, QUICK)
    assert simulated.accuracy(informed.value) > simulated.accuracy(alone.value) - 0.08


def test_names_and_the_order_of_items_mean_nothing() -> None:
    simulated, features = known_world(3)
    claims, order = simulated.claims, np.random.default_rng(0).permutation(150)
    place = np.argsort(order)
    moved = Claims(place[claims.item], claims.worker, claims.label, claims.items, claims.workers, claims.classes)
    first = infer(claims, features, QUICK)
    second = infer(moved, Features(embedding=features.embedding[order]), QUICK)
    np.testing.assert_allclose(second.posterior, first.posterior[order], atol=1e-3)


def test_items_with_the_same_features_are_told_apart_by_their_labels_and_not_by_names() -> None:
    simulated, longer = world(5, quality=[0.85] * 9, n_items=150), Config(folds=2, rounds=2, steps=120)
    generator = np.random.default_rng(0)
    claims, order = simulated.claims, generator.permutation(150)
    place, alike = np.argsort(order), np.round(np.eye(2)[simulated.truth] + generator.normal(0, 0.4, (150, 2)))
    moved = Claims(place[claims.item], claims.worker, claims.label, claims.items, claims.workers, claims.classes)
    first = infer(claims, Features(embedding=alike), longer)
    second = infer(moved, Features(embedding=alike[order]), longer)
    assert len(np.unique(alike, axis=0)) < 20 and "features" in first.why().reason
    np.testing.assert_allclose(second.posterior, first.posterior[order], atol=1e-9)


def test_names_and_the_order_of_columns_mean_nothing() -> None:
    simulated, known = known_world(5)
    generator = np.random.default_rng(0)
    numbers = np.concatenate([known.embedding, generator.integers(0, 3, (150, 2))], axis=1)
    numbers[generator.random(numbers.shape) < 0.1] = np.nan
    texts = {name: generator.choice(["red car", "blue", "old car"], 150).tolist() for name in ("u", "l_x", "r_x")}
    other = {"r_a": texts["r_x"], "l_a": texts["l_x"], "b": texts["u"]}
    first = infer(simulated.claims, Features(numbers, texts), QUICK)
    second = infer(simulated.claims, Features(numbers[:, [3, 1, 0, 2]], other), QUICK)
    np.testing.assert_array_equal(second.posterior, first.posterior)
    assert first.classifier is not None and second.classifier is not None
    told = first.classifier.predict(Features(numbers, texts))
    np.testing.assert_array_equal(told, second.classifier.predict(Features(numbers[:, [3, 1, 0, 2]], other)))


def test_a_budget_changes_no_number_and_one_that_cannot_be_met_is_refused() -> None:
    simulated, features = known_world(4)

    def within(memory: str | None) -> Result:
        return infer(simulated.claims, features, Config(memory=memory, folds=2, rounds=1, steps=20))

    assert (within("80%").posterior == within(None).posterior).all()
    with pytest.raises(InfeasibleError, match="no plan for this step fits in 10.00 KiB"):
        within("10KiB")


def test_items_with_the_same_features_are_in_one_fold() -> None:
    features = Features(text={"name": ["a", "b", "a"]}, numeric=np.array([[1.0], [1.0], [1.0]]))
    first, second, third = content_hashes(features, Order.of(features))
    assert first == third != second


def test_missing_numbers_are_known_to_be_missing() -> None:
    matrix = np.array([[1.0, 2.0], [np.nan, 4.0], [3.0, 6.0]])
    features = Features(numeric=matrix)
    order = Order.of(features)
    encoded = Encoder.of(features, order)(features)
    assert encoded.shape == (3, 4) and bool(encoded.isfinite().all())
    first = order.numbers.tolist().index(0)
    assert encoded[1, first] == 0 and encoded[1, 2 + first] != encoded[0, 2 + first]


def test_pairs_of_columns_are_compared() -> None:
    assert paired(["name_a", "name_b", "price", "l_x", "r_x"]) == [("l_x", "r_x"), ("name_a", "name_b")]
    first, second = ["Netgear FS116P switch", "Sony lens"], ["netgear switch FS-116P", "Canon camera"]
    likeness = compare(first, second, Rarity.of([*first, *second]))
    assert (likeness[0, :6] > likeness[1, :6]).all()


@pytest.mark.parametrize(("text", "value"), [("$1,299.50", 1299.5), (" 7 ", 7.0), ("-3", -3.0), ("7 inches", np.nan)])
def test_numbers_in_text(text: str, value: float) -> None:
    np.testing.assert_equal(number(text), value)


def test_features_of_another_length_are_an_error() -> None:
    simulated, _ = known_world()
    with pytest.raises(UsageError, match="'embedding' have 3 rows, expected 150"):
        infer(simulated.claims, Features(embedding=np.zeros((3, 2))))
    with pytest.raises(UsageError, match="no features"):
        infer(simulated.claims, Features())


def test_a_pair_is_measured_against_the_best_other_pair_of_its_record() -> None:
    likeness = np.array([[0.9], [0.4], [0.6], [0.5]])
    found = margins(likeness, ["x", "x", "x", "y"])
    assert np.allclose(found[:, 0], [0.3, -0.5, -0.3, 0.0])
    assert found[:, 1].tolist() == [0, 0, 0, 1]
    assert np.allclose(found[:, 2], np.log([3, 3, 3, 1]))


def records_in_pairs(seed: int, rows: int = 600) -> dict[str, list[str]]:
    """Texts of two records a row, from two shops that write alike: title, maker (some lack), price."""
    generator = np.random.default_rng(seed)
    kinds, makers = [f"kind{k} of thing" for k in range(12)], [f"maker{k}" for k in range(5)]
    shops = []
    for shop in range(2):
        number = generator.permutation(120) + 1000
        maker = generator.integers(0, 5, 120)
        titles = [f"{kinds[n % 12]} model {n} shop{shop}" for n in number]
        of_makers = ["" if n % 4 == 0 else makers[m] for n, m in zip(number, maker, strict=True)]
        shops.append((titles, of_makers, [f"${n % 37}.99" for n in number]))
    chosen = generator.integers(0, 120, (2, rows))
    names = ("title", "maker", "price")
    return {
        f"{name}_{side}": [column[row] for row in chosen[k]]
        for k, side in enumerate("ab")
        for name, column in zip(names, shops[k], strict=True)
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_records_in_pairs_are_found_by_what_their_columns_hold(seed: int) -> None:
    texts = records_in_pairs(seed)
    wanted = {frozenset((f"{name}_a", f"{name}_b")) for name in ("title", "maker", "price")}
    given = np.random.default_rng(seed).permutation(sorted(texts)).tolist()
    called = {f"column {place}": name for place, name in enumerate(given)}
    nameless = {new: texts[old] for new, old in called.items()}
    order = Order.of(Features(text=nameless))
    found = sides(nameless, order.texts)
    assert {frozenset((called[one], called[other])) for one, other in found} == wanted
    named = Features(text=texts)
    encoded = Encoder.of(named, Order.of(named))(named)
    assert Encoder.of(Features(text=nameless), order)(Features(text=nameless)).shape == encoded.shape


def test_texts_that_are_no_two_records_are_not_compared() -> None:
    generator = np.random.default_rng(0)
    questions = [f"what is thing{k} made of" for k in range(40)]
    asked = generator.integers(0, 40, 500)
    answered = [f"it is {generator.choice(['wood', 'glass', 'iron'])} number {k}" for k in range(500)]
    colours = generator.choice(["red car", "blue", "old car"], 500).tolist()
    for texts in (
        {"u": [questions[k] for k in asked], "v": answered},
        {"u": colours, "v": [f"name{k}" for k in asked]},
        {"u": [questions[k] for k in asked], "v": [f"group {k % 7}" for k in asked]},
    ):
        assert sides(texts, sorted(texts)) == []
