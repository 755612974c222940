"""For users of torch and PyTorch Geometric: hops on a Data object, predictions as tensors."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from pdadmm import GCN, PDADMMG, InputError, csbm
from pdadmm.torch import SIGN, logits


def data_object(V: int, F: int, E: int, seed: int, dtype=torch.float32, weighted: bool = False) -> SimpleNamespace:
    """What torch_geometric.data.Data looks like from here; nodes without edges, equal edges and loops included."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(V, F, generator=random, dtype=dtype)
    edges = torch.randint(V, (2, E), generator=random)
    weights = torch.rand(E, generator=random, dtype=dtype) if weighted else None
    return SimpleNamespace(x=x, edge_index=edges, edge_weight=weights, num_nodes=V)


def reference(data: SimpleNamespace, K: int, self_loops: bool) -> list[torch.Tensor]:
    """Dense, as the equation reads."""
    V, x = len(data.x), data.x.double()
    A = torch.zeros(V, V, dtype=torch.float64)
    weights = torch.ones(data.edge_index.shape[1]) if data.edge_weight is None else data.edge_weight
    A.index_put_((data.edge_index[1], data.edge_index[0]), weights.double(), accumulate=True)
    if self_loops:
        A += torch.eye(V, dtype=torch.float64)
    rows, columns = A.sum(1), A.sum(0) if self_loops else A.sum(1)
    left, right = (torch.where(d > 0, d**-0.5, 0.0) for d in (rows, columns))
    S = left[:, None] * A * right
    results = []
    for _ in range(K):
        x = S @ x
        results.append(x)
    return results


@settings(deadline=None, max_examples=40)
@given(
    V=st.integers(1, 12), F=st.integers(0, 5), E=st.integers(0, 40), K=st.integers(1, 4), seed=st.integers(0, 99),
    self_loops=st.booleans(), weighted=st.booleans(), double=st.booleans(), width=st.none() | st.integers(1, 6),
)  # fmt: skip
def test_sign_is_the_equation(V, F, E, K, seed, self_loops, weighted, double, width):
    data = data_object(V, F, E, seed, torch.float64 if double else torch.float32, weighted)
    before = data.x.clone()
    assert SIGN(K, self_loops, width)(data) is data
    assert torch.equal(data.x, before)
    assert not hasattr(data, f"x{K + 1}")
    for k, wanted in enumerate(reference(data, K, self_loops), start=1):
        found = getattr(data, f"x{k}")
        assert found.dtype == data.x.dtype
        assert found.is_contiguous()
        assert torch.allclose(found.double(), wanted, rtol=1e-12 if double else 1e-4, atol=1e-12 if double else 1e-5)


def test_slices_do_not_change_the_bits():
    found = [SIGN(3, slice_columns=width)(data_object(50, 37, 300, 0)).x3 for width in (None, 1, 16, 37)]
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"x": None}, "data.x"),
        ({"x": torch.ones(4, 2, dtype=torch.int64)}, "data.x"),
        ({"x": torch.ones(4)}, "data.x"),
        ({"x": torch.ones(4, 2).to_sparse()}, "data.x"),
        ({"x": torch.full((4, 2), torch.nan)}, "features"),
        ({"edge_index": None}, "data.edge_index"),
        ({"edge_index": torch.ones(3, 2, dtype=torch.int64)}, "data.edge_index"),
        ({"edge_index": torch.ones(2, 3)}, "data.edge_index"),
        ({"edge_index": torch.tensor([[0], [4]])}, "data.edge_index"),
        ({"edge_index": torch.tensor([[-1], [0]])}, "data.edge_index"),
        ({"edge_weight": torch.ones(3)}, "data.edge_weight"),
        ({"edge_weight": -torch.ones(5)}, "data.edge_weight"),
    ],
)
def test_data_that_does_not_fit(changes, name):
    data = data_object(4, 2, 5, 0)
    vars(data).update(changes)
    with pytest.raises(InputError, match=name):
        SIGN(1)(data)
    assert not hasattr(data, "x1")


def test_settings_that_do_not_fit():
    for arguments in ({"K": 0}, {"K": 1.5}, {"K": 1, "self_loops": "maybe"}, {"K": 1, "slice_columns": 0}):
        with pytest.raises(InputError):
            SIGN(**arguments)
    assert repr(SIGN(2)) == "SIGN(2, self_loops=False, slice_columns=None)"


@pytest.mark.parametrize("solver", [PDADMMG(layers=2, hidden=5, hops=1, iterations=2), GCN(hidden=4, iterations=2)])
def test_predictions_as_tensors(solver):
    graph = csbm(120)
    with pytest.raises(NotFittedError):
        logits(type(solver)(), graph)
    found = logits(solver.fit(graph), graph)
    assert isinstance(solver.model_, torch.nn.Module)
    assert not found.requires_grad
    assert np.array_equal(torch.softmax(found, 1).numpy(), solver.predict_proba(graph))
    assert np.array_equal(solver.classes_[found.argmax(1)], solver.predict(graph))


def test_the_package_stays_light():
    code = "import pdadmm, sys; assert 'torch' not in sys.modules; import pdadmm.torch, torch; torch.nn.Linear"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
