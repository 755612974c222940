"""For users of PyTorch and PyTorch Geometric: hops added to a Data object, predictions as tensors.

Nothing here needs torch_geometric: a Data object is whatever has ``x`` and ``edge_index``. The trained network is a
torch.nn.Module already: ``solver.model_``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pdadmm.augment import propagate, propagation_matrix
from pdadmm.augment.hops import default_slice_columns
from pdadmm.data import Graph
from pdadmm.errors import InputError
from pdadmm.parameters import boolean, optional, whole

__all__ = ["SIGN", "logits"]


class SIGN:
    """A transform that adds x1 = S x, .., xK = S^K x to a Data object, in the place of PyTorch Geometric's T.SIGN.

        S = D^-1/2 A D^-1/2                      as T.SIGN has it; a node without edges gets zeros
        S = D^-1/2 (A + I) D^-1/2                with ``self_loops``, as the estimators have it ("sym")

    Source: SIGN (Frasca et al. 2020). ``K``: hops, at least 1; ``slice_columns``: columns that travel together
    (default: about 8 MiB of them; the result is the same for all).

    The call reads ``x`` [V, F] (float32 or float64, on the CPU), ``edge_index`` [2, E] (node edge_index[1, j] collects
    from edge_index[0, j]; equal edges add up) and, where it is not None, ``edge_weight`` [E], at least 0; it sets
    ``x1`` .. ``xK`` and returns the same object. Memory: the K results, A (8 bytes an edge, twice that while it is
    built) and K + 3 slices. Raises InputError for anything that does not fit.

    >>> from types import SimpleNamespace
    >>> data = SimpleNamespace(x=torch.tensor([[2.0], [4.0]]), edge_index=torch.tensor([[0, 1], [1, 0]]))
    >>> SIGN(2)(data).x1.tolist(), data.x2.tolist()
    ([[4.0], [2.0]], [[2.0], [4.0]])
    """

    def __init__(self, K: int, self_loops: bool = False, slice_columns: int | None = None) -> None:
        self.K = _accepted("K", K, whole(1))
        self.self_loops = _accepted("self_loops", self_loops, boolean)
        self.slice_columns = _accepted("slice_columns", slice_columns, optional(whole(1)))

    def __call__(self, data: Any) -> Any:
        """Return ``data`` with x1 .. xK set."""
        x = _features(data)
        V, F = x.shape
        A = _adjacency(data, V, x.dtype)
        S = propagation_matrix(SimpleNamespace(adjacency=A), "sym", x.dtype) if self.self_loops else _normalised(A)
        results = [np.empty_like(x) for _ in range(self.K)]
        width = self.slice_columns or default_slice_columns(V, x.dtype)
        for a in range(0, F, width):
            part = np.ascontiguousarray(x[:, a : a + width])
            w = part.shape[1]
            hops = propagate(S, part, self.K, slice_columns=w)
            for k, result in enumerate(results, start=1):
                result[:, a : a + w] = hops[:, k * w : (k + 1) * w]
        for k, result in enumerate(results, start=1):
            setattr(data, f"x{k}", torch.from_numpy(result))
        return data

    def __repr__(self) -> str:
        return f"SIGN({self.K}, self_loops={self.self_loops}, slice_columns={self.slice_columns})"


def logits(solver: Any, graph: Graph | Any) -> Tensor:
    """Return the logits (V, C) of a fitted estimator for a Graph, or augmented arrays, as a tensor without gradient.

    Columns as in ``classes_``; softmax gives ``predict_proba``. Raises scikit-learn's NotFittedError before ``fit``.

    >>> from pdadmm import PDADMMG, digits
    >>> graph = digits()
    >>> logits(PDADMMG(layers=2, hidden=8, hops=1, iterations=1).fit(graph), graph).shape
    torch.Size([1797, 10])
    """
    return solver._logits(graph)


def _accepted(name: str, value: Any, check: Any) -> Any:
    try:
        return check.accept(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise InputError(name, value, check.allowed) from None


def _features(data: Any) -> np.ndarray:
    x = getattr(data, "x", None)
    allowed = "a tensor [V, F] of float32 or float64 on the CPU"
    if not isinstance(x, Tensor) or x.ndim != 2 or x.dtype not in (torch.float32, torch.float64):
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError("data.x", got, allowed)
    if x.device.type != "cpu" or x.layout != torch.strided:
        raise InputError("data.x", f"{x.layout} on {x.device}", allowed, "call data.x.cpu() or .to_dense()")
    return x.detach().numpy()


def _adjacency(data: Any, V: int, dtype: np.dtype) -> sp.csr_array:
    """Return A [V, V]: row i has the weights of the edges that end at node i."""
    edges, weights = getattr(data, "edge_index", None), getattr(data, "edge_weight", None)
    if not isinstance(edges, Tensor) or edges.ndim != 2 or edges.shape[0] != 2 or edges.is_floating_point():
        got = f"{edges.dtype} of shape {tuple(edges.shape)}" if isinstance(edges, Tensor) else type(edges).__name__
        raise InputError("data.edge_index", got, "a tensor [2, E] of node numbers")
    source, target = edges.cpu().numpy()
    if len(source) and (edges.min() < 0 or edges.max() >= V):
        raise InputError("data.edge_index", f"{edges.min()} to {edges.max()}", f"node numbers from 0 to {V - 1}")
    values = np.ones(len(source), dtype) if weights is None else weights.detach().cpu().numpy().astype(dtype)
    if values.shape != source.shape:
        raise InputError("data.edge_weight", f"shape {values.shape}", f"of shape ({len(source)},), one for each edge")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise InputError("data.edge_weight", "negative, infinite or NaN somewhere", "finite and at least 0")
    return sp.csr_array((values, (target.astype(np.int32), source.astype(np.int32))), shape=(V, V))


def _normalised(A: sp.csr_array) -> sp.csr_array:
    """Return D^-1/2 A D^-1/2 in place of A, D the row sums, 0^-1/2 = 0; computed in float64, rounded once."""
    D = A.sum(1, dtype=np.float64)
    root = np.divide(1.0, np.sqrt(D), out=np.zeros_like(D), where=D > 0)
    A.data[:] = np.repeat(root, np.diff(A.indptr)) * A.data * root[A.indices]
    return A
