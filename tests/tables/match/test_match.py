"""Whole matchings of made-up people whose identity is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradbase.common.errors import UsageError
from gradbase.tables.match import Config, Labelled, Records, _network, claims, match, score_pairs
from tests.tables.match.people import labels_for, permuted, two_tables


def f1(result, truth):
    table = result.pairs_table()
    found = {(a, b) for a, b, m in zip(table["left"], table["right"], table["matched"], strict=True) if m}
    return 2 * len(found & truth) / (len(found) + len(truth))


def answers(result):
    table = result.pairs_table()
    return {(a, b): (p, m) for a, b, p, m in zip(*table.values(), strict=True)}


@pytest.fixture(scope="module", autouse=True)
def quick_training():
    """A quarter of the steps: what is tested here is easy to learn, and holds for any network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_network, "_STEPS", 150)
        yield


@pytest.fixture(scope="module")
def people():
    return two_tables(150)


@pytest.fixture(scope="module")
def few(people):
    return labels_for(people[2], 40)


@pytest.fixture(scope="module")
def trained(people, few):
    return match(people[0], people[1], few)


def test_matches_are_found_without_labels(people):
    a, b, truth = people
    result = match(a, b)
    assert f1(result, truth) > 0.95
    assert result.learned_from == "no labels" and result.one_to_one
    assert result.blocking.candidates == len(result.pairs) and result.blocking.recall is None


def test_matches_are_found_with_few_labels(people, trained):
    assert f1(trained, people[2]) > 0.95
    assert trained.learned_from == "labels" and trained.blocking.recall == 1.0


def test_too_few_labels_only_anchor_what_is_learned_without(people):
    a, b, truth = people
    result = match(a, b, labels_for(truth, 10))
    assert result.learned_from == "no labels" and f1(result, truth) > 0.95


def test_reasons_add_up_to_the_log_odds(trained):
    rows = np.arange(len(trained.pairs))
    parts, intercept = trained.pairs.explain(rows)
    assert np.allclose(parts.sum(axis=1) + intercept, trained.pairs.log_odds, atol=1e-5)
    assert parts.shape[1] == len(trained.pairs.features)


def test_why_is_a_table_of_matched_pairs(trained):
    why = trained.why_table(least=0.5)
    rows = list(zip(*why.values(), strict=True))
    intercepts = [r for r in rows if r[2] == "intercept"]
    assert len(intercepts) == trained.pairs.matched.sum()
    assert all(abs(r[4]) >= 0.5 for r in rows if r[2] != "intercept")
    assert {r[3] for r in rows} <= {"", *trained.records_a.columns}


def test_order_of_rows_and_columns_and_ids_change_nothing(people, few, trained):
    a, b, _ = people
    names = {i: f"x{k}" for k, i in enumerate(reversed([*a.ids, *b.ids]))}
    mixed = [permuted(replace(t, ids=tuple(names[i] for i in t.ids)), seed) for seed, t in enumerate((a, b))]
    order = np.random.default_rng(0).permutation(len(few))
    renamed = Labelled(
        tuple(names[few.left[k]] for k in order),
        tuple(names[few.right[k]] for k in order),
        tuple(few.label[k] for k in order),
    )
    expected = {(names[x], names[y]): answer for (x, y), answer in answers(trained).items()}
    assert answers(match(*mixed, renamed)) == expected


def test_order_changes_nothing_without_labels(people):
    a, b, _ = people
    assert answers(match(permuted(a, 3), permuted(b, 4))) == answers(match(a, b))


@pytest.mark.parametrize("labels", [0, 40])
def test_what_columns_are_called_changes_nothing(people, labels):
    a, b, truth = people
    known = labels_for(truth, labels) if labels else None
    other = dict(zip(a.columns, ("2", "z", "Ort", "a b"), strict=True))
    renamed = [replace(t, columns=tuple(other[name] for name in t.columns)) for t in (a, permuted(b, 5))]
    assert answers(match(*renamed, known)) == answers(match(a, b, known))


def test_given_pairs_keep_their_order_and_may_repeat(people):
    a, b, _ = people
    left, right = [3, 0, 3, 5], [3, 1, 3, 5]
    result = score_pairs(a, b, left, right)
    assert result.pairs.left.tolist() == left and result.pairs.right.tolist() == right
    assert result.pairs.probability[0] == result.pairs.probability[2]
    assert result.blocking is None


def test_a_label_decides_its_pair(people):
    a, b, _ = people
    wrong = Labelled(("a0", "a0"), ("b0", "b1"), (0, 1))
    found = answers(match(a, b, wrong))
    assert not found["a0", "b0"][1] and found["a0", "b1"][1]


def test_a_pair_labelled_twice_counts_with_its_mean(people):
    a, b, _ = people
    both = Labelled(("a0",) * 3, ("b0",) * 3, (0, 1, 1))
    assert answers(match(a, b, both))["a0", "b0"][1]


def test_repeated_records_of_one_table_form_clusters():
    a, b, truth = two_tables(80)
    every = Records(
        "people", a.columns, tuple(x + y for x, y in zip(a.values, b.values, strict=True)), (*a.ids, *b.ids)
    )
    result = match(every)
    table = dict(zip(result.clusters_table()["record"], result.clusters, strict=True))
    together = sum(table[x] == table[y] for x, y in truth)
    assert together >= 0.9 * len(truth)
    assert len(set(result.clusters)) >= 0.9 * (len(every) - len(truth))
    assert not result.one_to_one


def test_clusters_of_two_tables_are_named_by_table_and_id(people, trained):
    clusters = dict(zip(*(trained.clusters_table()[c] for c in ("record", "cluster")), strict=True))
    assert clusters["b0"] == clusters["a0"] == "a:a0"
    sizes = [trained.clusters.count(c) for c in set(trained.clusters)]
    assert max(sizes) == 2


def test_claims_are_the_cells_that_are_there(trained):
    found = claims(trained)
    cells = sum(v is not None for t in (trained.records_a, trained.records_b) for c in t.values for v in c)
    assert len(found["value"]) == cells and None not in found["value"]
    assert set(found["source"]) == {"a", "b"} and set(found["object"]) == set(trained.clusters)


def test_claims_may_name_their_source():
    shops = Records.from_columns({"name": ["red mug", "blue cup"], "shop": ["north", None]}, name="offers")
    found = claims(match(shops), source_column="shop")
    assert found["attribute"] == ["name", "name"] and found["source"] == ["north", "offers"]
    with pytest.raises(UsageError, match="'seller' is no column"):
        claims(match(shops), source_column="seller")


def test_a_threshold_given_is_kept(people):
    a, b, _ = people
    strict = match(a, b, config=Config(threshold=0.95))
    assert strict.pairs.probability[strict.pairs.matched].min() > 0.95
    assert np.isclose(strict.pairs.threshold, 0.95)


def test_one_partner_at_most_only_where_it_holds():
    a = Records.from_columns({"x": ["grand hotel berlin 77", "alpha", "beta"]})
    b = Records.from_columns({"x": ["grand hotel berlin 77", "grand hotel berlin 77", "gamma"]}, name="b")
    wanted = Labelled(("0", "0"), ("0", "1"), (1, 1))
    assert match(a, b, wanted, Config(one_to_one="no")).pairs.matched.sum() == 2


@pytest.mark.parametrize("count", [0, 1])
def test_tables_with_next_to_nothing_in_them(count):
    a = Records.from_columns({"x": ["only one"][:count]})
    b = Records.from_columns({"x": []}, name="b")
    for result in (match(a), match(a, b)):
        assert len(result.pairs) == 0 and len(result.clusters) == count
        assert result.why_table()["feature"] == []


def test_what_is_refused(people):
    a, b, _ = people
    with pytest.raises(UsageError, match="different columns"):
        match(a, Records.from_columns({"other": ["x"]}, name="b"))
    with pytest.raises(UsageError, match="'nobody', which is no id of table 'b'"):
        match(a, b, Labelled(("a0",), ("nobody",), (1,)))
    with pytest.raises(UsageError, match="right row 999"):
        score_pairs(a, b, [0], [999])
    with pytest.raises(UsageError, match="record 'a0' with itself"):
        score_pairs(a, None, [0], [0])
    with pytest.raises(UsageError, match="2 left rows and 1 right"):
        score_pairs(a, b, [0, 1], [1])
