"""Hops against dense powers; slices and kept rows must not change a bit."""

from __future__ import annotations

import math
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.augment import WEIGHTINGS, hop_weights, propagate, spmm
from pdadmm.errors import InputError
from pdadmm.kernels import spmm as kernel

SEEDS = st.integers(0, 2**32 - 1)
FORMS = {"dense": np.asarray, "fortran": np.asfortranarray, "csr": sp.csr_array, "csc": sp.csc_array}


def random_problem(seed: int, dtype="float64"):
    rng = np.random.default_rng(seed)
    V, F = int(rng.integers(1, 20)), int(rng.integers(1, 40))
    S = sp.random_array((V, V), density=rng.random(), rng=rng, dtype=dtype, format="csr")
    X = rng.normal(size=(V, F)) * (rng.random((V, F)) < 0.6)
    rows = rng.permutation(V)[: rng.integers(0, V + 1)]
    return S, X.astype(dtype), int(rng.integers(0, 5)), rows


def dense_powers(S, X, hops: int) -> list[np.ndarray]:
    return [np.linalg.matrix_power(S.toarray(), k) @ X for k in range(hops + 1)]


@pytest.mark.parametrize("form", FORMS)
@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_powers_equal_the_dense_formula(form, seed):
    S, X, hops, _ = random_problem(seed)
    out = propagate(S, FORMS[form](X), hops)
    np.testing.assert_allclose(out, np.hstack(dense_powers(S, X, hops)), rtol=1e-10, atol=1e-12)
    assert out.flags.c_contiguous


@pytest.mark.parametrize("weighting", ["ppr", "heat"])
@given(seed=SEEDS, parameter=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_averages_equal_the_dense_formula(weighting, seed, parameter):
    S, X, hops, _ = random_problem(seed)
    alpha, t = parameter, 10 * parameter
    if weighting == "ppr":
        weights = [alpha * (1 - alpha) ** k for k in range(hops)] + [(1 - alpha) ** hops]
    else:
        terms = [math.exp(-t) * t**k / math.factorial(k) for k in range(hops + 1)]
        weights = [term / sum(terms) for term in terms]
    expected = sum(w * P for w, P in zip(weights, dense_powers(S, X, hops)))
    ours = hop_weights(weighting, hops, alpha, t)
    np.testing.assert_allclose(ours, weights, rtol=1e-12, atol=1e-300)  # subnormal numbers are coarse
    np.testing.assert_allclose(propagate(S, X, hops, ours), expected, rtol=1e-10, atol=1e-12)


@given(hops=st.integers(0, 300), alpha=st.floats(0, 1), t=st.floats(0, 1e6))
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_one_at_any_size(hops, alpha, t):
    for weighting in ("ppr", "heat"):
        weights = hop_weights(weighting, hops, alpha, t)
        assert len(weights) == hops + 1
        assert min(weights) >= 0
        assert math.isclose(math.fsum(weights), 1, rel_tol=1e-12)


def test_ppr_is_the_appnp_iteration():
    S, X, _, _ = random_problem(3)
    Z = X
    for _ in range(6):
        Z = 0.9 * (S @ Z) + 0.1 * X
    np.testing.assert_allclose(propagate(S, X, 6, hop_weights("ppr", 6, 0.1)), Z, rtol=1e-12, atol=1e-13)


def test_two_hops_by_hand():
    S = sp.csr_array(np.array([[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]]))
    X = np.array([[4.0], [0.0], [8.0]])
    np.testing.assert_array_equal(propagate(S, X, 2), [[4, 2, 2.5], [0, 3, 3], [8, 4, 3.5]])
    np.testing.assert_array_equal(propagate(S, X, 2, [0.5, 0.25, 0.25]), [[3.125], [1.5], [5.875]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_slices_forms_and_kept_rows_do_not_change_a_bit(weighting, dtype, seed):
    S, X, hops, rows = random_problem(seed, dtype)
    weights = hop_weights(weighting, hops)
    full = propagate(S, X, hops, weights)
    for width in (1, 3, 16, 33):
        for form in FORMS.values():
            np.testing.assert_array_equal(propagate(S, form(X), hops, weights, None, width), full)
        np.testing.assert_array_equal(propagate(S, X, hops, weights, rows, width), full[rows])
    repeated = np.arange(3 * len(X)) % len(X)
    np.testing.assert_array_equal(propagate(S, X, hops, weights, repeated, 2), full[repeated])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_c_product_has_the_bits_of_scipy(dtype, seed):
    rng = np.random.default_rng(seed)
    m, V, w = (int(size) for size in rng.integers(0, (40, 40, 300)))
    S = sp.random_array((m, V), density=rng.random() ** 2, rng=rng, dtype=dtype, format="csr")
    S.indices, S.indptr = S.indices.astype(np.int32), S.indptr.astype(np.int32)
    X = rng.normal(size=(V, w)).astype(dtype)
    X[rng.random((V, w)) < 0.01] = np.inf
    whole = S @ X
    before = torch.get_num_threads()
    widest = kernel.registers() if kernel.available() else 0
    for threads, share, width in ((1, 1 << 18, widest), (3, 1, widest), *((1, 1, width) for width in range(widest))):
        torch.set_num_threads(threads)
        out = np.full((m, w), np.nan, dtype)
        if kernel.available():
            assert kernel.registers(width) == width
        with mock.patch("pdadmm.kernels.spmm.SMALLEST_SHARE", share):
            assert spmm(S, X, out) is out
        np.testing.assert_array_equal(out, whole)
    torch.set_num_threads(before)
    if kernel.available():
        kernel.registers()


def test_the_c_product_is_there_and_leaves_what_it_cannot_take():
    S, X = sp.eye_array(3, dtype=np.float32, format="csr"), np.ones((3, 2), np.float32)
    S.indices = S.indices.astype(np.int32)
    if kernel.available():
        assert kernel.takes(S, X, X.copy())
    long = S.copy()
    long.indices = long.indices.astype(np.int64)
    for other in (long, S.astype(np.int32), S.astype(np.float64)):
        assert not kernel.takes(other, X, X.copy())
    assert not kernel.takes(S, np.asfortranarray(X), X.copy())
    np.testing.assert_array_equal(spmm(long, X, X.copy()), X)


@pytest.mark.parametrize("width", [1, 5, 64])
def test_spmm_in_row_blocks_equals_one_product(monkeypatch, width):
    monkeypatch.setattr(kernel, "takes", lambda *arrays: False)
    rng = np.random.default_rng(0)
    S = sp.random_array((50, 30), density=0.3, rng=rng, dtype=np.float32, format="csr")
    X, out = rng.normal(size=(30, width)).astype(np.float32), np.full((50, width), np.nan, np.float32)
    whole = S @ X
    for size in (1, 300, 1 << 20):
        monkeypatch.setattr("pdadmm.augment.product._BLOCK_BYTES", size)
        assert spmm(S, X, out) is out
        np.testing.assert_array_equal(out, whole)
    with pytest.raises(ValueError, match="do not fit"):
        spmm(S, X, out[1:])


def test_memory_is_the_output_and_two_slices():
    rng = np.random.default_rng(0)
    V, F, hops, width = 4000, 256, 3, 32
    S = sp.random_array((V, V), density=0.001, rng=rng, dtype=np.float32, format="csr")
    X = rng.random((V, F), dtype=np.float32)
    for rows in (None, np.arange(0, V, 2)):
        tracemalloc.start()
        out = propagate(S, X, hops, None, rows, width)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # 1 MiB block temporaries: one in spmm with its copy of indptr, one in the store
        assert peak <= out.nbytes + 2 * 4 * V * width + 8 * S.nnz + (2 << 20)


def test_sparse_features_of_any_type():
    S = sp.csr_array(np.float32([[0.5, 0.5], [0.5, 0.5]]))
    X = np.array([[1, 0, 2], [0, 0, 4]])
    expected = np.float32([[1, 0, 2, 0.5, 0, 3], [0, 0, 4, 0.5, 0, 3]])
    for dtype in (np.uint8, np.int64, np.float16, np.float64):
        np.testing.assert_array_equal(propagate(S, X.astype(dtype), 1), expected)
        np.testing.assert_array_equal(propagate(S, sp.coo_array(X.astype(np.float64)), 1), expected)
    duplicates = sp.csr_array((np.ones(3), [0, 0, 2], [0, 3, 3]), shape=(2, 3))
    np.testing.assert_array_equal(propagate(S, duplicates, 0), [[2, 0, 1], [0, 0, 0]])
    assert duplicates.nnz == 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_feature_that_is_not_finite_is_named(form, bad):
    X = np.ones((3, 5))
    X[1, 4] = bad
    S = sp.eye_array(3, dtype=np.float32, format="csr")
    with pytest.raises(InputError, match="node 1, column 4: must be finite in float32"):
        propagate(S, FORMS[form](X), 2, slice_columns=3)


def test_no_features_and_no_nodes():
    assert propagate(sp.eye_array(3, format="csr"), np.empty((3, 0)), 2).shape == (3, 0)
    assert propagate(sp.csr_array((0, 0)), np.empty((0, 2)), 2).shape == (0, 6)


def test_unknown_weighting_is_refused():
    with pytest.raises(InputError, match="one of powers, ppr, heat"):
        hop_weights("mean", 2)
