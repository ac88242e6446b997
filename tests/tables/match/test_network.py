from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import InfeasibleError
from gradbase.tables.match import Config, _network
from gradbase.tables.match._network import FOLDS, GUESSES_WEIGH, Encoder, Lessons, folds_of, train


def world(seed=0, rows=160):
    chance = np.random.default_rng(seed)
    values = chance.random((rows, 5)).astype(np.float32)
    return values, (values[:, 0] + values[:, 1] > 1).astype(float)


@pytest.fixture(scope="module")
def trained():
    """On all rows but the last ten, and again with the label of row 0 turned round."""
    values, targets = world()
    targets[150:] = np.nan
    guesses = np.full(160, 0.5)
    folds = np.append(folds_of(150, 0), np.full(10, -1))
    turned = targets.copy()
    turned[0] = 1 - turned[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_network, "_STEPS", 120)
        models = [train(values, Lessons.of(t, guesses, folds, 0), Config()) for t in (targets, turned)]
    return SimpleNamespace(values=values, targets=targets, folds=folds, model=models[0], turned=models[1])


def test_held_out_scores_find_the_answer(trained):
    scores = trained.model.log_odds(trained.values, trained.folds)
    assert ((scores > 0) == (world()[1] > 0.5)).mean() > 0.9


def test_no_pair_is_scored_by_a_network_that_saw_its_label(trained):
    """Bit for bit: turning a label round changes no score of its own fold, and some of the others."""
    before, after = (m.log_odds(trained.values, trained.folds) for m in (trained.model, trained.turned))
    own = trained.folds == trained.folds[0]
    assert np.array_equal(before[own], after[own])
    assert not np.array_equal(before[~own], after[~own])


def test_contributions_add_up_to_the_log_odds(trained):
    rows = np.array([0, 1, 77, 155])
    parts, base = trained.model.contributions(trained.values[rows], trained.folds[rows])
    scores = trained.model.log_odds(trained.values[rows], trained.folds[rows])
    assert np.allclose(parts.sum(axis=1) + base, scores, atol=1e-6)


def test_contributions_are_of_the_features_that_matter(trained):
    parts, _ = trained.model.contributions(trained.values[150:], trained.folds[150:])
    sizes = np.abs(parts).mean(axis=0)
    assert sizes[:2].min() > 3 * sizes[2:].max()


def test_training_leaves_the_random_state_and_keeps_the_budget(monkeypatch):
    import torch

    monkeypatch.setattr(_network, "_STEPS", 3)
    values, targets = world(rows=40)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    lessons = Lessons.of(targets, targets, folds_of(40, 0), 0)
    train(values, lessons, Config(memory="1GB"))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InfeasibleError):
        train(values, lessons, Config(memory=1000))


@settings(max_examples=40)
@given(st.lists(st.integers(-50, 50).map(lambda k: k / 8), min_size=2, max_size=30), st.integers(1, 8))
def test_encoding_keeps_the_order_and_is_centred(values, bins):
    table = np.array(values, dtype=np.float32)[:, None]
    encoder = Encoder.fit(table, bins)
    encoded = encoder.encode(table)
    assert np.allclose(encoded.mean(axis=0), 0, atol=1e-5)
    totals = encoded.sum(axis=1)[np.argsort(table[:, 0], kind="stable")]
    assert (np.diff(totals) >= -1e-5).all()


def test_folds_have_equal_sizes():
    counts = np.bincount(folds_of(100, 3), minlength=FOLDS)
    assert counts.max() - counts.min() <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_guesses_together_weigh_what_is_said(known):
    targets = np.where(known, 1.0, np.nan)
    lessons = Lessons.of(targets, np.full(len(known), 0.25), np.where(known, 0, -1), 0)
    weights = lessons.weights()
    assert lessons.labelled == sum(known) and set(lessons.targets[: lessons.labelled]) <= {1.0}
    assert np.allclose(weights[: lessons.labelled], 1)
    assert np.isclose(weights[lessons.labelled :].sum(), GUESSES_WEIGH if not all(known) else 0)
