"""Scalings against the formulas written out with whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.augment import SCALINGS, Scaler
from pdadmm.errors import InputError

SEEDS = st.integers(0, 2**32 - 1)


def unit(X: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(X, axis=-1, keepdims=True)
    return np.divide(X, length, out=np.zeros_like(X), where=length > 0)


def reference(scaling: str, X: np.ndarray, rows: np.ndarray, blocks: int, eps: float) -> np.ndarray:
    if scaling == "none":
        return X
    if scaling == "row-l2":
        return unit(X)
    if scaling.startswith("hop"):
        X = unit(X.reshape(len(X), blocks, -1)).reshape(X.shape)
        centred = X - X[rows].mean(axis=0)
        return centred if scaling == "hop-l2" else shrunk(centred, rows, eps)  # hop-loo: no label is known
    deviation = X[rows].std(axis=0)
    constant = np.ptp(X[rows], axis=0) == 0
    return np.where(constant, 0, (X - X[rows].mean(axis=0)) / np.where(constant, 1, deviation))


def shrunk(X: np.ndarray, rows: np.ndarray, eps: float) -> np.ndarray:
    """Divide centred columns by the root of v_j + 0.3 n_0/m mean(v), then give the rows their mean length back."""
    variance = (X[rows] ** 2).mean(axis=0)
    if np.sqrt(variance.sum()) <= 16 * eps:  # all columns are constant
        return X
    divided = X / np.sqrt(variance + 0.3 * X.shape[1] / len(rows) * variance.mean())
    return divided * np.sqrt((X[rows] ** 2).sum() / (divided[rows] ** 2).sum())


def random_features(seed: int):
    rng = np.random.default_rng(seed)
    m, blocks, F = rng.integers(1, 30), int(rng.integers(1, 4)), rng.integers(1, 8)
    X = np.round(rng.normal(size=(m, blocks * F)) * 10.0 ** rng.integers(-3, 4), 6)
    X[rng.random(m) < 0.2] = 0
    X[:, rng.random(blocks * F) < 0.2] = rng.normal()
    return X, rng.permutation(m)[: rng.integers(1, m + 1)], blocks


@pytest.mark.parametrize("scaling", SCALINGS)
@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_every_scaling_equals_its_formula(scaling, seed):
    X, rows, blocks = random_features(seed)
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 3e-4)):
        given_X = X.astype(dtype)
        expected = reference(scaling, given_X.astype(np.float64), rows, blocks, np.finfo(dtype).eps)
        scaler = Scaler(scaling, blocks).fit(given_X, rows, np.full(len(rows), -1))
        np.testing.assert_array_equal(given_X, X.astype(dtype))  # fit leaves its input alone
        out = scaler.transform(given_X)
        assert out is given_X
        assert scaler.shift.dtype == scaler.scale.dtype == out.dtype == dtype
        size = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_blocks_of_rows_do_not_matter(scaling, monkeypatch):
    X = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    labels = np.arange(30) % 4
    whole = Scaler(scaling, 3).fit(X[:30], labels=labels)
    monkeypatch.setattr("pdadmm.augment.scaling._BLOCK", 24)
    blocked = Scaler(scaling, 3).fit(X, np.arange(30), labels)
    np.testing.assert_allclose(blocked.shift, whole.shift, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(blocked.scale, whole.scale, rtol=1e-6)
    few = blocked.transform(X.copy())
    monkeypatch.undo()
    np.testing.assert_array_equal(blocked.transform(X.copy()), few)


def test_hop_l2_by_hand():
    X = np.array([[3.0, 4.0, 0.0, 2.0], [0.0, 0.0, 5.0, 0.0]])
    scaler = Scaler("hop-l2", 2).fit(X)
    np.testing.assert_allclose(scaler.shift, [0.3, 0.4, 0.5, 0.5])
    np.testing.assert_array_equal(scaler.scale, 1)
    np.testing.assert_allclose(scaler.transform(X), [[0.3, 0.4, -0.5, 0.5], [-0.3, -0.4, 0.5, -0.5]])


def test_hop_std_by_hand():
    """Columns (0, 1), (1, 0), (1, 1): means 1/2, 1/2, 1; variances 1/4, 1/4, 0, whose mean is 1/6."""
    X = np.array([[0.0, 5.0, 2.0], [3.0, 0.0, 2.0]])
    scaler = Scaler("hop-std", 3).fit(X)
    np.testing.assert_allclose(scaler.shift, [0.5, 0.5, 1.0])
    shrinkage = 0.3 * 3 / 2 / 6
    np.testing.assert_allclose(scaler.scale, [1, 1, np.sqrt((0.25 + shrinkage) / shrinkage)])
    np.testing.assert_allclose(scaler.transform(X), [[-0.5, 0.5, 0.0], [0.5, -0.5, 0.0]])


def uneven(seed: int, m: int, blocks: int, F: int) -> np.ndarray:
    """Features whose columns have quite different deviations."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, blocks * F)) * 10.0 ** rng.uniform(-1, 1, size=blocks * F)


@given(seed=SEEDS, blocks=st.integers(1, 3), F=st.integers(2, 5))
@settings(max_examples=10, deadline=None)
def test_hop_std_evens_the_columns_out_where_rows_are_many(seed, blocks, F):
    X = uneven(seed, 40_000, blocks, F)
    before = Scaler("hop-l2", blocks).fit(X).transform(X.copy()).std(axis=0)
    after = Scaler("hop-std", blocks).fit(X).transform(X.copy()).std(axis=0)
    # what is left of the unevenness: sqrt(1 + 0.3 n_0 mean(v) / (m v_j))
    left = np.sqrt(1 + 0.3 * len(before) * (before**2).mean() / (len(X) * before**2))
    np.testing.assert_allclose(after / after.max() * left / left[after.argmax()], 1, rtol=1e-9)
    clear = before**2 > 0.01 * (before**2).mean()
    np.testing.assert_allclose(after[clear], after[clear].mean(), rtol=0.02)


@given(seed=SEEDS, blocks=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_hop_std_is_hop_l2_where_rows_are_few(seed, blocks):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3, blocks * 4000))
    ours, theirs = (Scaler(name, blocks).fit(X).transform(X.copy()) for name in ("hop-std", "hop-l2"))
    # a column's own variance is m / (0.3 n_0) < 1/400 of what is added to it, where it has the mean variance
    assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)


@given(seed=SEEDS, m=st.integers(2, 60), blocks=st.integers(1, 4), F=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_hop_std_keeps_the_mean_squared_length_of_the_fitting_rows(seed, m, blocks, F):
    X = uneven(seed, m + 3, blocks, F)
    rows = np.random.default_rng(seed).permutation(m + 3)[:m]
    ours, theirs = (Scaler(name, blocks).fit(X, rows).transform(X.copy()) for name in ("hop-std", "hop-l2"))
    assert (ours[rows] ** 2).sum() == pytest.approx((theirs[rows] ** 2).sum(), rel=1e-10)
    np.testing.assert_allclose(ours[rows].mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hop_std_of_columns_without_variance(dtype):
    """They are 0 on the fitting rows; on others they grow by a bounded factor, sqrt(1 + m / 0.3)."""
    X = uneven(3, 50, 2, 4).astype(dtype)
    X[:, 4:] = [1, 2, 2, 4]  # the second block: constant in every column, lengths 5
    scaler = Scaler("hop-std", 2).fit(X)
    out = scaler.transform(X.copy())
    np.testing.assert_allclose(out[:, 4:], 0, atol=50 * np.finfo(dtype).eps)
    assert np.abs(out[:, :4]).max() > 0.1
    assert np.isfinite(scaler.scale).all()
    assert (scaler.scale <= np.sqrt(50 / 0.3 + 1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 7])
def test_hop_std_learns_no_scale_where_nothing_varies(dtype, rows):
    X = np.tile(np.array([[1, 3, 0.1, 0.7]], dtype), (rows, 1))
    scaler = Scaler("hop-std").fit(X)
    np.testing.assert_array_equal(scaler.scale, 1)
    np.testing.assert_allclose(scaler.transform(X.copy()), 0, atol=2 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(Scaler("hop-std").fit(np.zeros((3, 4), dtype)).scale, 1)
    tiny = np.array([[1.0, 0.0], [1.0, 1e-161]])  # its variance has no reciprocal
    np.testing.assert_array_equal(Scaler("hop-std").fit(tiny).scale, 1)


@pytest.mark.parametrize("scaling", ["row-l2", "none"])
def test_zero_rows_stay_zero(scaling):
    X = np.zeros((2, 3), np.float32)
    assert not Scaler(scaling).fit(X).transform(X).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_constant_up_to_rounding_get_scale_zero(dtype):
    rng = np.random.default_rng(0)
    X = np.ones((50, 3), dtype) * dtype(1234.5)
    X[:, 1] *= 1 + 2 * np.finfo(dtype).eps * rng.integers(-1, 2, 50).astype(dtype)
    X[:, 2] += rng.normal(size=50).astype(dtype)
    scaler = Scaler("standard").fit(X)
    assert scaler.scale[0] == scaler.scale[1] == 0
    assert scaler.scale[2] > 0
    other = np.full((1, 3), 7, dtype)  # another graph may have other values there
    assert not scaler.transform(other)[0, :2].any()


def test_standard_is_exact_far_from_zero():
    X = (1e4 + np.random.default_rng(0).normal(size=(1000, 2))).astype(np.float32)
    out = Scaler("standard").fit(X).transform(X.copy())
    np.testing.assert_allclose(out.std(axis=0, dtype=np.float64), 1, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("scaling", ["hop-l2", "row-l2"])
def test_lengths_of_extreme_float32_rows(scaling, scale):
    X = np.float32([[3 * scale, 4 * scale]])
    scaler = Scaler(scaling).fit(X)
    np.testing.assert_allclose(scaler.transform(X) + scaler.shift, [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(scaling, bad):
    X = np.ones((4, 4), np.float32)
    fitted = Scaler(scaling, 2).fit(X, labels=np.arange(4) % 2)
    X[2, 1] = bad
    with pytest.raises(InputError, match=r"\(row 2\): must be finite"):
        fitted.transform(X.copy())
    if scaling != "row-l2" and scaling != "none":
        with pytest.raises(InputError, match=r"\(row 2\): must be finite"):
            Scaler(scaling, 2).fit(X, np.array([0, 2]), np.arange(2))


def test_what_overflows_is_refused():
    with pytest.raises(InputError, match="overflow"):
        Scaler("row-l2").fit(np.ones((1, 2))).transform(np.full((1, 2), 1e300))
    tiny = np.float32([[1e-35], [2e-35]])
    with pytest.raises(InputError, match="overflow"):
        Scaler("standard").fit(tiny).transform(np.float32([[1e35]]))


def test_misuse_is_refused():
    X = np.ones((2, 4))
    with pytest.raises(InputError, match="call fit first"):
        Scaler().transform(X)
    with pytest.raises(InputError, match="at least one row"):
        Scaler().fit(X, np.empty(0, int))
    with pytest.raises(InputError, match="multiple of 3"):
        Scaler(blocks=3).fit(X)
    with pytest.raises(InputError, match="4 columns wide"):
        Scaler().fit(X).transform(X[:, :3])
    assert Scaler().scaling == "hop-std"
    with pytest.raises(InputError, match="one of hop-std, hop-loo, hop-l2, row-l2, standard, none"):
        Scaler("l2")
