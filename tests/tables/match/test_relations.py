from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.tables.match import _relations
from gradbase.tables.match._relations import LIMIT, NAMES, Labels, best_rival, evidence, fit_logistic

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-6, 6), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=50)
@given(ROWS)
def test_the_best_rival_is_the_best_other_open_pair_of_the_record(rows):
    records, scores, open_ = (np.array([r[k] for r in rows]) for k in range(3))
    found = best_rival(records, scores.astype(float), open_)
    for k, (record, _, _) in enumerate(rows):
        others = [s for j, (r, s, o) in enumerate(rows) if r == record and o and j != k]
        assert found[k] == max(others, default=-LIMIT)


def column(table, name):
    return table[:, NAMES.index(name)].tolist()


def test_a_pair_sees_the_labels_of_others_never_its_own():
    left, right = np.array([0, 0, 0]), np.array([0, 1, 2])
    labels = Labels(np.array([0, 1, -1]), np.array([1.0, 0.0, 0.0]))
    table = evidence(np.zeros(3), np.zeros(3), left, right, labels)
    assert column(table, "left has a known match") == [0, 1, 1]
    flipped = Labels(labels.folds, np.array([0.0, 0.0, 0.0]))
    other = evidence(np.zeros(3), np.zeros(3), left, right, flipped)
    assert np.array_equal(other[0], table[0]) and not np.array_equal(other[2], table[2])


def test_a_better_candidate_is_counted_only_while_its_label_is_not_known():
    left, right = np.array([0, 0]), np.array([0, 1])
    scores = np.array([1.0, 3.0])
    unknown = evidence(scores, scores, left, right, Labels(np.array([-1, -1]), np.zeros(2)))
    assert column(unknown, "left has a better candidate") == [2.0, 0.0]
    known = evidence(scores, scores, left, right, Labels(np.array([-1, 0]), np.zeros(2)))
    assert column(known, "left has a better candidate")[0] == 0.0


def test_logistic_model_finds_the_weights_and_adds_up():
    chance = np.random.default_rng(0)
    table = chance.normal(size=(4000, 2))
    target = chance.random(4000) < 1 / (1 + np.exp(-(2 * table[:, 0] - 1)))
    model = fit_logistic(table, target.astype(float), np.ones(4000))
    assert np.allclose(model.weights / model.scale, [2, 0], atol=0.2)
    assert np.allclose(model.contributions(table).sum(axis=1) + model.intercept, model.log_odds(table))


def test_the_names_of_own_evidence_come_first():
    assert all("alike" in name for name in NAMES[: _relations.OWN])
    assert not any("alike" in name for name in NAMES[_relations.OWN :])
