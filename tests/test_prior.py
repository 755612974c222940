"""Logits moved to the class shares of the nodes to classify: the same training, another b_L and another choice."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdadmm import InputError, csbm, prior
from pdadmm.graph_classifier import GraphClassifier
from pdadmm.prior import logit_shift
from pdadmm.solvers import SOLVERS, solver_class

GA_MLPS = [name for name in SOLVERS if issubclass(solver_class(name), GraphClassifier)]
SMALL = {"layers": 3, "hidden": 8, "iterations": 6, "hops": 2, "dtype": "float64"}
SHARES = (0.6, 0.1, 0.3)


@pytest.fixture(scope="module")
def graph():
    """Three classes, of which the validation nodes hold few of the first."""
    graph = csbm(240, num_classes=3, num_features=4, seed=5)
    labels, splits = graph.labels, graph.splits
    others = np.concatenate([splits["val"], splits["test"]])
    val = np.concatenate([others[labels[others] == c][:size] for c, size in enumerate((2, 30, 12))])
    return graph.with_splits({"train": splits["train"], "val": val, "test": np.setdiff1d(others, val)})


def parts_of(train: int, val: int) -> dict[str, slice]:
    return {"train": slice(0, train), "val": slice(train, train + val)}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_the_shift_turns_shares_into_shares(train, val):
    found = logit_shift("val", 1.0, np.array(train + val), parts_of(len(train), len(val)), 4).numpy()
    old, new = (np.array([labels.count(c) + 1 for c in range(4)]) / (len(labels) + 4) for labels in (train, val))
    moved = old * np.exp(found)  # Bayes: probabilities that were the shares of training become those asked for
    np.testing.assert_allclose(moved / moved.sum(), new, rtol=1e-12)
    half = logit_shift("val", 0.5, np.array(train + val), parts_of(len(train), len(val)), 4).numpy()
    np.testing.assert_allclose(2 * half, found, rtol=1e-12)


def test_shares_need_not_sum_to_one():
    labels, parts = np.array([0, 1, 1]), parts_of(3, 0)
    ours, theirs = (logit_shift(shares, 1.0, labels, parts, 2) for shares in ((1.0, 3.0), (0.25, 0.75)))
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.exp().numpy(), [0.25 / 0.4, 0.75 / 0.6], rtol=1e-12)


@pytest.mark.parametrize("name", GA_MLPS)
def test_only_the_last_bias_differs(graph, name):
    """Where no validation chooses an iteration, training with a prior is training without one."""
    X, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    plain = solver_class(name)(**SMALL).fit(X, y).model_.state_dict()
    moved = solver_class(name)(**SMALL, prior=SHARES, prior_weight=0.5).fit(X, y).model_.state_dict()
    *same, last = plain
    assert all(torch.equal(plain[key], moved[key]) for key in same)
    np.testing.assert_allclose((moved[last] - plain[last]).numpy(), 0.5 * np.log(np.array(SHARES) * 3), rtol=1e-9)


@pytest.mark.parametrize("name", GA_MLPS)
def test_what_is_reported_is_what_the_model_scores(graph, name):
    found = solver_class(name)(**SMALL, prior_weight=1.0).fit(graph)
    for part in ("train", "val", "test"):
        assert found.score(graph, split=part) == found.summary_[f"{part}_accuracy"]
    best = max(row["val_accuracy"] for row in found.history_ if row["layers"] == 3)
    assert best == found.summary_["val_accuracy"]
    plain = solver_class(name)(**SMALL).fit(graph)
    rare, common = ((found.predict(graph) == c).sum() - (plain.predict(graph) == c).sum() for c in (0, 1))
    assert rare <= 0 <= common
    assert rare < common


def test_from_disk_the_same(graph, tmp_path):
    more = SMALL | {"prior_weight": 1.0, "first_layer": "gram"}
    memory = solver_class("pdadmm-g")(**more).fit(graph)
    disk = solver_class("pdadmm-g")(**more).fit(graph, memory="128MiB", scratch=tmp_path)
    assert disk.history_.column("val_accuracy") == memory.history_.column("val_accuracy")
    for name, value in memory.model_.state_dict().items():
        np.testing.assert_allclose(disk.model_.state_dict()[name].numpy(), value.numpy(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prior_weight": 0.5, "prior": (0.5, 0.5)}, r"prior = \(0.5, 0.5\): must be 3 numbers, one for each class"),
        ({"prior": SHARES}, "must be val where prior_weight is 0; set prior_weight above 0"),
        ({"prior_weight": 0.5, "prior": "test"}, "prior = test: must be val, or a positive number for each class"),
        ({"prior_weight": 0.5, "prior": (0.5, 0.0, 0.5)}, "must be val, or a positive number for each class"),
        ({"prior_weight": 0.5, "loss": "squared_error"}, "prior_weight = 0.5: must be 0 with loss squared_error"),
        ({"prior_weight": -1.0}, "prior_weight = -1.0: must be a number from 0"),
    ],
    ids=str,
)
def test_wrong_priors_are_refused(graph, given, message):
    with pytest.raises(InputError, match=message):
        solver_class("pdadmm-g")(**SMALL, **given).fit(graph)


def test_val_needs_validation_nodes():
    with pytest.raises(InputError, match="prior = val: must be a share for each class without validation nodes"):
        solver_class("adam")(**SMALL, prior_weight=1.0).fit(np.eye(6), np.arange(6) % 3)


def test_the_examples_in_the_docstrings_run():
    assert doctest.testmod(prior).failed == 0
