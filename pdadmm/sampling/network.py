"""The network on a batch: features of its nodes, dropout keyed by node, products in their cheaper order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

from pdadmm.baselines.dropout import drop_nodes, entry_mask
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, activate, dense_input
from pdadmm.recording import Breakdown
from pdadmm.sampling.batch import Batch, csr, entries_of

__all__ = ["Dropout", "Features", "StreamedRows", "batch_logits", "layer"]

DENSE = 0.25  # share of non-zeros from which features are kept dense


@dataclass(frozen=True)
class Dropout:
    """Dropout of share ``share`` in one step, keyed by (seed, step, layer, global node, column).

    ``first`` is added to the layers' numbers, so that the narrow networks of one step can drop out apart.
    """

    seed: int
    step: int
    share: float
    first: int = 0

    def __call__(self, h: Tensor, layer: int, nodes: np.ndarray) -> Tensor:
        """Return h (nodes, width), the input of ``layer`` counted from 0, with dropout."""
        return drop_nodes(h, self.seed, self.step, self.first + layer, nodes, self.share)

    def entries(self, data: np.ndarray, nodes: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
        """Return entries (node, column) of sparse features (V, ``width``) with the dropout they would have as dense."""
        mask = entry_mask((self.seed, self.step, self.first), nodes, columns, width, self.share)
        return (data * mask).astype(data.dtype)


class Features:
    """The features of all nodes, (V, n_0), kept sparse where few are other than 0."""

    def __init__(self, X: np.ndarray) -> None:
        self.times: Breakdown | None = None  # of the products with sparse features
        sparse = np.count_nonzero(X) < DENSE * X.size
        self.sparse = sp.csr_array(X) if sparse else None
        self.dense = None if sparse else torch.from_numpy(X)
        self.width = X.shape[1]

    def rows(self, nodes: np.ndarray, dropout: Dropout | None = None) -> Tensor | Aggregation | StreamedRows:
        """Return x (nodes, n_0), dense, as an Aggregation or in chunks, with dropout where given."""
        return self.held(nodes, dropout)

    def held(self, nodes: np.ndarray, dropout: Dropout | None = None) -> Tensor | Aggregation:
        """Return x (nodes, n_0) of nodes that are in memory."""
        if self.sparse is None:
            rows = self._dense(nodes)
            return rows if dropout is None else dropout(rows, 0, nodes)
        data, columns, counts = self._entries(nodes)
        if dropout is not None:
            data = dropout.entries(data, np.repeat(nodes, counts), columns, self.width)
        x = Aggregation(csr(data, columns, np.append(0, np.cumsum(counts)), self.width))
        x.times = self.times
        return x

    def _dense(self, nodes: np.ndarray) -> Tensor:
        assert self.dense is not None
        return self.dense[torch.from_numpy(nodes)]

    def _entries(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the numbers of sparse rows, their columns, and how many each row has."""
        found, counts = entries_of(self.sparse, nodes)
        return self.sparse.data[found], self.sparse.indices[found], counts


class StreamedRows:
    """Features x (nodes, n_0) that are in memory a chunk at a time, twice: for x W^T, and for the gradient of W.

    ``chunks(back)`` yields (positions in nodes, their rows of x, dense or as an Aggregation), in the way back in any
    other order; each node is in one chunk.
    """

    def __init__(
        self, count: int, chunks: Callable[[bool], Iterator[tuple[np.ndarray, Tensor | Aggregation]]]
    ) -> None:
        self.count, self.chunks = count, chunks

    def __call__(self, B: Tensor) -> Tensor:
        """Return x B (nodes, w), differentiable in B."""
        return _StreamedProduct.apply(B, self)


class _StreamedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, B: Tensor, rows: StreamedRows) -> Tensor:
        ctx.rows, ctx.shape = rows, B.shape
        out = torch.empty(rows.count, B.shape[1], dtype=B.dtype)
        for positions, x in rows.chunks(False):
            out[torch.from_numpy(positions)] = x.product(x.S, B) if isinstance(x, Aggregation) else x @ B
        return out

    @staticmethod
    def backward(ctx, g: Tensor):
        total = torch.zeros(ctx.shape, dtype=g.dtype)
        for positions, x in ctx.rows.chunks(True):
            own = g[torch.from_numpy(positions)]
            total += x.product(x.transposed, own) if isinstance(x, Aggregation) else x.T @ own
        return total, None


def layer(architecture: str, S: Aggregation, h: Tensor | Aggregation | StreamedRows, W: Tensor, b: Tensor) -> Tensor:
    """Return z (rows of S, n) = (S h) W^T + b, or [h, S h] W^T + b for GraphSAGE, the cheaper product first.

    The sum over neighbours runs over the narrower of h and h W^T; sparse and streamed features meet W first.
    """
    copies, rows = ARCHITECTURES[architecture].copies, S.S.shape[0]
    if isinstance(h, Tensor) and h.shape[1] <= len(W):
        return F.linear(dense_input(architecture, S, h), W, b)
    if isinstance(h, StreamedRows):  # both matrices in one pass
        parts = list(h(torch.cat(W.chunk(copies, dim=1)).T).chunk(copies, dim=1))
    else:
        parts = [h(part.T) if isinstance(h, Aggregation) else h @ part.T for part in W.chunk(copies, dim=1)]
    mixed = S(parts[-1]) + b
    return mixed if copies == 1 else parts[0][:rows] + mixed


def batch_logits(
    architecture: str,
    batch: Batch,
    features: Features,
    weights: Sequence[tuple[Tensor, Tensor]],
    activation: str,
    dropout: Dropout | None = None,
) -> Tensor:
    """Return the logits of the batch's ``nodes``, differentiable in the weights [(W_1, b_1), .., (W_L, b_L)]."""
    z = layer(architecture, batch.operators[0], features.rows(batch.sources[0], dropout), *weights[0])
    for number, (S, nodes, (W, b)) in enumerate(zip(batch.operators[1:], batch.sources[1:], weights[1:]), start=1):
        h = activate(activation, z)
        h = h if dropout is None else dropout(h, number, nodes)
        z = layer(architecture, S, h, W, b)
    return z[torch.from_numpy(batch.outputs)]
