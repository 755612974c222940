"""GCN and GraphSAGE: functions of (operators, features, weights), and the trained network as a torch module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

from pdadmm.admm.activations import get_activation
from pdadmm.augment import propagation_matrix
from pdadmm.augment.product import spmm
from pdadmm.baselines.initial import WEIGHTS, generator
from pdadmm.recording import Breakdown

__all__ = [
    "ARCHITECTURES",
    "GNN",
    "Aggregation",
    "Architecture",
    "activate",
    "dense_input",
    "forward",
    "infer",
    "init_weights",
    "operator_of",
    "product",
]


class Architecture(NamedTuple):
    """How a layer sees its input h: ``copies`` matrices of h's width side by side, in front of the dense product."""

    copies: int
    formula: str


ARCHITECTURES: dict[str, Architecture] = {
    "gcn": Architecture(1, "z = (S h) W^T + b"),
    "sage": Architecture(2, "z = [h, M h] W^T + b"),
}


def operator_of(graph, architecture: str, dtype: str = "float32") -> sp.csr_array:
    """Return what an architecture aggregates with, csr (V, V), degrees of the whole graph.

        gcn    S = D_r^-1/2 (A + I) D_c^-1/2   (Kipf and Welling 2017)
        sage   M = D_r^-1 A, the mean over the neighbours; a node without any gets 0   (Hamilton et al. 2017)

    >>> import scipy.sparse as sp, types
    >>> pair = types.SimpleNamespace(adjacency=sp.csr_array([[0.0, 2.0], [0.0, 0.0]]))
    >>> operator_of(pair, "sage").toarray().tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    if architecture == "gcn":
        return propagation_matrix(graph, "sym", dtype)
    M = sp.csr_array(graph.adjacency, dtype=np.float64, copy=True)
    sums = M.sum(axis=1)
    M.data /= np.repeat(np.where(sums > 0, sums, 1.0), np.diff(M.indptr))
    return M.astype(dtype)


class Aggregation:
    """A sparse matrix S (m, n) applied to h (n, w), with S^T g as its way back for autograd.

    The m nodes of the rows are the first m of the n nodes of the columns, in the same order: the whole graph, a
    sampled block and a part with its halo all fit.

    >>> S = Aggregation(sp.csr_array([[1.0, 0.5]]))
    >>> S(torch.tensor([[2.0], [4.0]], dtype=torch.float64)).tolist()
    [[4.0]]
    """

    def __init__(self, S: sp.csr_array) -> None:
        self.S = S
        self.times: Breakdown | None = None  # where its products' seconds are counted, as "sparse"

    @cached_property
    def transposed(self) -> sp.csr_array:
        """S^T in csr, made when it is first asked for."""
        return sp.csr_array(self.S.T)

    def __call__(self, h: Tensor) -> Tensor:
        return _Product.apply(h, self)

    def product(self, S: sp.csr_array, h: Tensor) -> Tensor:
        """Return S h, S being its own or its transpose, with the seconds counted."""
        if self.times is None:
            return product(S, h)
        with self.times("sparse"):
            return product(S, h)


def product(S: sp.csr_array, h: Tensor) -> Tensor:
    """Return S h, (m, w), as a tensor that autograd knows nothing of."""
    h = h.detach().contiguous()
    out = torch.empty(S.shape[0], h.shape[1], dtype=h.dtype)
    spmm(S, h.numpy(), out.numpy())
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, aggregation: Aggregation) -> Tensor:
        ctx.aggregation = aggregation
        return aggregation.product(aggregation.S, h)

    @staticmethod
    def backward(ctx, g: Tensor):
        return ctx.aggregation.product(ctx.aggregation.transposed, g), None


def dense_input(architecture: str, S: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """Return what meets W: S h (m, w), or [h, S h] (m, 2 w) for GraphSAGE; ``S`` is an Aggregation or acts like one."""
    mixed = S(h)
    return mixed if ARCHITECTURES[architecture].copies == 1 else torch.cat([h[: len(mixed)], mixed], dim=1)


def activate(activation: str, z: Tensor) -> Tensor:
    """Return f(z); the derivative of relu at 0 is 0, as torch has it: dropout and lone nodes make exact zeros."""
    slope = get_activation(activation).negative_slope
    return F.relu(z) if slope == 0.0 else F.leaky_relu(z, slope)


def forward(
    architecture: str,
    operators: Sequence[Callable[[Tensor], Tensor]],
    h: Tensor,
    weights: Sequence[tuple[Tensor, Tensor]],
    activation: str = "relu",
    dropout: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the logits of the last operator's rows: h_{l+1} = f(z_l), with z_l by the architecture's formula.

    ``operators`` has an Aggregation a layer, whose columns are the rows of the one before: the whole graph L times, or
    sampled blocks. ``weights`` are (W, b), W (n_l, copies n_{l-1}); narrower slices of them (sub-networks) fit
    as well. ``dropout(l, h_l)`` returns h_l with dropout, l from 0. Differentiable in h and the weights.
    """
    last = len(weights) - 1
    for l, (S, (W, b)) in enumerate(zip(operators, weights)):
        h = h if dropout is None else dropout(l, h)
        z = F.linear(dense_input(architecture, S, h), W, b)
        h = z if l == last else activate(activation, z)
    return h


def infer(
    architecture: str,
    S: Aggregation,
    X: Tensor,
    weights: Sequence[tuple[Tensor, Tensor]],
    activation: str = "relu",
) -> Tensor:
    """Return the logits (V, C) of every node of a graph, exactly: layer after layer with all neighbours, no dropout.

    >>> S, X = Aggregation(sp.eye_array(3, format="csr")), torch.ones(3, 2, dtype=torch.float64)
    >>> infer("gcn", S, X, init_weights("gcn", [2, 4, 3], 0, torch.float64)).shape
    torch.Size([3, 3])
    """
    with torch.no_grad():
        return forward(architecture, [S] * len(weights), X, weights, activation)


def init_weights(
    architecture: str, widths: Sequence[int], seed: int, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Return (W, b) of every layer of ``widths`` = [n_0, .., n_L]; W (n_l, copies n_{l-1}) is uniform within
    sqrt(6 / (n_{l-1} + n_l)) (Glorot and Bengio 2010), b is 0. A draw depends on (seed, layer) alone.

    >>> [W.shape for W, b in init_weights("sage", [4, 3, 2], 0, torch.float32)]
    [torch.Size([3, 8]), torch.Size([2, 6])]
    """
    weights = []
    for l, (m, n) in enumerate(itertools.pairwise(widths)):
        shape = n, ARCHITECTURES[architecture].copies * m
        W = torch.rand(shape, generator=generator(seed, WEIGHTS, l), dtype=torch.float64)
        W = (2.0 * W - 1.0) * math.sqrt(6.0 / (m + n))
        weights.append((W.to(dtype), torch.zeros(n, dtype=dtype)))
    return weights


class GNN(torch.nn.Module):
    """A GCN or GraphSAGE of ``widths`` = [n_0, .., n_L]; ``layers[l]`` is a torch.nn.Linear behind ``dense_input``.

    >>> GNN("gcn", [2, 4, 3])(sp.eye_array(5, format="csr", dtype="float32"), torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    FORMAT = "pdadmm-gnn-2"

    layers: Any  # a ModuleList does not say of what: torch.nn.Linear

    def __init__(
        self, architecture: str, widths: Sequence[int], activation: str = "relu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.architecture, self.activation_name = architecture, activation
        self.widths = [int(n) for n in widths]
        copies = ARCHITECTURES[architecture].copies
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(copies * m, n, dtype=dtype) for m, n in itertools.pairwise(self.widths)
        )

    @classmethod
    def from_weights(cls, architecture: str, weights: Sequence[tuple[Tensor, Tensor]], activation: str) -> GNN:
        """Build the module around given (W, b), first layer first."""
        widths = [weights[0][0].shape[1] // ARCHITECTURES[architecture].copies, *(len(b) for _, b in weights)]
        with torch.random.fork_rng(devices=[]):  # Linear draws weights that are overwritten here
            model = cls(architecture, widths, activation, weights[0][0].dtype)
        with torch.no_grad():
            for layer, (W, b) in zip(model.layers, weights):
                layer.weight.copy_(W)
                layer.bias.copy_(b)
        return model.eval()

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Return (W, b) of every layer."""
        return [(layer.weight, layer.bias) for layer in self.layers]

    def forward(self, S: sp.csr_array, X: Tensor) -> Tensor:
        """Return the logits (V, n_L) of features X (V, n_0) on a graph whose ``operator_of`` is S, in X's dtype."""
        return forward(
            self.architecture, [Aggregation(S)] * len(self.layers), X, self.weights(), self.activation_name
        )

    def description(self) -> dict:
        """Return what a file says of the network beside its weights."""
        own = {"format": self.FORMAT, "architecture": self.architecture}
        return own | {"widths": self.widths, "activation": self.activation_name}

    @classmethod
    def from_description(cls, described: dict, dtype: torch.dtype) -> GNN:
        """Build a network, its weights yet to be loaded, from what ``description`` returned."""
        return cls(described["architecture"], described["widths"], described["activation"], dtype)
