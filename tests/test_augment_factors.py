"""Factors of hops from leave-one-out errors, against refits without each node."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pdadmm import Augmenter, csbm, make_splits
from pdadmm.augment import Scaler, hop_factors
from pdadmm.augment.factors import LeaveOneOut
from pdadmm.errors import InputError

SEEDS = st.integers(0, 2**32 - 1)


def random_problem(seed: int):
    """Centred features of some hops, and labels of at least two classes."""
    rng = np.random.default_rng(seed)
    m, blocks, F = int(rng.integers(4, 20)), int(rng.integers(2, 5)), int(rng.integers(1, 6))
    labels = np.concatenate([[0, 2], rng.integers(0, 4, m - 2)])
    p = rng.normal(size=(m, blocks * F)) + rng.normal(size=blocks * F) * labels[:, None]
    return p - p.mean(axis=0), labels, blocks


def function_of(p, labels, blocks) -> LeaveOneOut:
    hops = p.reshape(len(p), blocks, -1)
    target = (labels[:, None] == np.unique(labels)).astype(float)
    return LeaveOneOut(np.einsum("mkf,nkf->kmn", hops, hops), target - target.mean(axis=0))


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_error_is_that_of_fits_without_each_node(seed):
    p, labels, blocks = random_problem(seed)
    logs = np.random.default_rng(seed + 1).normal(size=blocks)
    value, _ = (problem := function_of(p, labels, blocks))(logs)
    x = p * np.repeat(np.exp(logs), p.shape[1] // blocks)
    ridge = 0.2 * (x**2).sum() / len(x)
    errors = 0.0
    for i in range(len(x)):
        rest, Y = np.delete(x, i, axis=0), np.delete(problem.target, i, axis=0)
        W = np.linalg.solve(rest.T @ rest + ridge * np.eye(x.shape[1]), rest.T @ Y)
        errors += ((problem.target[i] - x[i] @ W) ** 2).sum()
    assert value == pytest.approx(errors / (problem.target**2).sum() + 0.001 * (logs**2).sum(), rel=1e-6)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_gradient_is_that_of_differences(seed):
    problem = function_of(*random_problem(seed))
    logs = np.random.default_rng(seed + 1).normal(size=len(problem.kernels))
    _, gradient = problem(logs)
    for k, step in enumerate(1e-5 * np.eye(len(logs))):
        slope = (problem(logs + step)[0] - problem(logs - step)[0]) / 2e-5
        assert gradient[k] == pytest.approx(slope, rel=1e-4, abs=1e-7)


@given(seed=SEEDS)
@example(seed=341)  # a line search that tries factors of e^5000
@settings(max_examples=30, deadline=None)
def test_factors_lower_the_error_and_keep_the_length_of_rows(seed):
    p, labels, blocks = random_problem(seed)
    factors = hop_factors(p, labels, blocks)
    problem = function_of(p, labels, blocks)
    assert (
        problem(np.log(factors))[0] <= problem(np.zeros(blocks))[0] * (1 + 0.01) + 0.001 * (np.log(factors) ** 2).sum()
    )
    scaled = p * np.repeat(factors, p.shape[1] // blocks)
    assert (scaled**2).sum() == pytest.approx((p**2).sum(), rel=0.03)  # factors are rounded to 2^(1/64)
    assert np.allclose(np.log2(factors) * 64, np.round(np.log2(factors) * 64))


def test_the_hop_that_tells_classes_apart_has_the_largest_factor():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    noise = rng.normal(size=(60, 5))
    telling = np.eye(3)[labels] @ rng.normal(size=(3, 5)) * 2 + 0.1 * rng.normal(size=(60, 5))
    p = np.concatenate([noise, telling, rng.normal(size=(60, 5))], axis=1)
    factors = hop_factors(p - p.mean(axis=0), labels, 3)
    assert factors.argmax() == 1
    assert factors[1] > 1.5 * max(factors[0], factors[2])


@pytest.mark.parametrize("case", ["one class", "one hop", "many nodes", "zeros", "squares are zeros"])
def test_where_nothing_can_be_learned_factors_are_one(case):
    rng = np.random.default_rng(0)
    m = 513 if case == "many nodes" else 12
    p = rng.normal(size=(m, 4)) * {"zeros": 0, "squares are zeros": 1e-200}.get(case, 1)
    labels = np.zeros(m, int) if case == "one class" else np.arange(m) % 2
    assert (hop_factors(p, labels, 1 if case == "one hop" else 2) == 1).all()


# As a scaling


def test_hop_loo_is_hop_std_times_the_factors_of_the_labelled_rows():
    rng = np.random.default_rng(3)
    X, labels = rng.normal(size=(30, 12)), np.arange(30) % 4 - 1
    rows = rng.permutation(30)[:20]
    plain = Scaler("hop-std", 3).fit(X, rows)
    p = plain.transform(X.copy())[rows]
    known = labels[rows] >= 0
    factors = hop_factors(p[known], labels[rows][known], 3)
    found = Scaler("hop-loo", 3).fit(X, rows, labels[rows])
    np.testing.assert_allclose(found.scale, plain.scale * np.repeat(factors, 4), rtol=1e-12)
    assert factors.std() > 0.01


def test_the_augmenter_takes_the_labels_of_the_training_nodes_alone():
    graph = csbm(400, num_features=12, seed=2)
    splits = make_splits(graph, "random:20", 0)
    train, kept = splits["train"], np.concatenate([splits[name] for name in ("train", "val", "test")])
    learned, plain = Augmenter(hops=2, scaling="hop-loo"), Augmenter(hops=2)
    p = learned.fit_transform(graph, train, kept)
    plain.fit_transform(graph, train, kept)
    ratio = (learned.scale_ / plain.scale_).reshape(3, -1)
    np.testing.assert_allclose(ratio, ratio[:, :1].repeat(12, axis=1), rtol=1e-6)
    assert np.ptp(ratio[:, 0]) > 0.1
    others = np.setdiff1d(np.arange(400), train)
    wrong = dataclasses.replace(graph, labels=np.where(np.isin(np.arange(400), others), 0, graph.labels))
    assert Augmenter(hops=2, scaling="hop-loo").fit_transform(wrong, train, kept).tobytes() == p.tobytes()
    assert learned.transform(wrong, kept).tobytes() == p.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_errors_teach_no_factor(dtype):
    X = np.full((20, 12), [0.37, 0.74, 1.11] * 4, dtype)
    X += (np.random.default_rng(0).normal(size=X.shape) * np.finfo(dtype).eps).astype(dtype)
    assert (Scaler("hop-loo", 4).fit(X, labels=np.arange(20) % 2).scale == 1).all()


@pytest.mark.parametrize(("labels", "words"), [(None, "labels = not given"), ([0, 1], "labels = 2 labels")])
def test_labels_are_asked_for(labels, words):
    with pytest.raises(InputError, match=words):
        Scaler("hop-loo", 2).fit(np.eye(4), labels=labels)
