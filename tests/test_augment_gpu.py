"""Hops on a real GPU: the CPU's features to rounding, within the memory that there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from augment_checks import assert_hops, hub_graph, reference_hops
from test_augment_augmenter import random_graph

from pdadmm import InputError
from pdadmm.augment import OPERATORS, SCALINGS, WEIGHTINGS, Augmenter, hop_weights, propagation_matrix
from pdadmm.augment.device import propagate_on
from pdadmm.kernels import gpu, gpu_launch
from pdadmm.parallel.device import free_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
GPU = torch.device("cuda", 0)


@pytest.fixture(params=["torch's product", "our kernel"])
def product(request, monkeypatch):
    """Both products in turn."""
    if request.param == "torch's product":
        monkeypatch.setattr(gpu, "available", lambda device: False)
    elif not gpu.available(GPU):
        pytest.skip(gpu_launch.lacking(GPU))
    return request.param


@pytest.mark.parametrize("rows", [None, np.array([7, 3999, 0, 7, 3])])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_hops_agree_with_exact_ones(product, weighting, dtype, rows):
    S, X = hub_graph(4000, 150)
    S, X, weights = S.astype(dtype), X.astype(dtype), hop_weights(weighting, 3)
    exact = reference_hops(S, X, 3, weights, rows)
    for width in (None, 1, 33, 64, 68):
        found = propagate_on(GPU, S, X, 3, weights, rows, width)
        assert found.dtype == dtype
        assert_hops(found, *exact)


def test_a_columns_bits_depend_on_no_width():
    if not gpu.available(GPU):
        pytest.skip(gpu_launch.lacking(GPU))
    S, X = hub_graph(4000, 150)
    full = propagate_on(GPU, S, X, 3)
    for width in (1, 4, 33, 64, 68, 128):
        np.testing.assert_array_equal(propagate_on(GPU, S, X, 3, None, None, width), full)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_augmenter_gives_the_cpus_features(product, operator, scaling):
    graph, train = random_graph(2, sparse=True, weighted=True), np.array([3, 50, 7, 21, 30])
    found, expected = (
        Augmenter(3, operator, scaling=scaling, slice_columns=4, device=device).fit_transform(graph, train)
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_memory_is_given_back_and_slices_follow_it(product):
    """Torch is held to so little memory that not all columns fit, then to less than a column."""
    graph = random_graph(V=100_000, F=200)
    S, total = propagation_matrix(graph), torch.cuda.get_device_properties(GPU).total_memory
    S_bytes = 8 * S.nnz + 4 * 100_001
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(GPU)
    assert free_bytes(GPU) > 0
    full = propagate_on(GPU, S, graph.features, 2)
    torch.cuda.reset_peak_memory_stats(GPU)
    try:
        torch.cuda.set_per_process_memory_fraction((held + S_bytes + (80 << 20)) / total, GPU)
        found = propagate_on(GPU, S, graph.features, 2)
        assert torch.cuda.max_memory_allocated(GPU) <= held + S_bytes + (80 << 20)
        torch.cuda.set_per_process_memory_fraction((held + (1 << 20)) / total, GPU)
        with pytest.raises(InputError, match="device = cuda, where S of 100,000 nodes need"):
            propagate_on(GPU, S, graph.features, 2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert torch.cuda.memory_reserved(GPU) <= held
    np.testing.assert_allclose(found, full, rtol=1e-5, atol=1e-5)
    if product == "our kernel":
        np.testing.assert_array_equal(found, full)
