"""A layer of random numbers, and what it is to be the minimum of a function."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from pdadmm.admm.activations import ACTIVATIONS, PiecewiseLinear

__all__ = ["EPS", "FUNCTIONS", "PENALTIES", "SEEDS", "SHAPES", "Layer", "assert_minimum", "gradient_of"]

EPS = torch.finfo(torch.float64).eps
SEEDS = st.integers(0, 2**32 - 1)
PENALTIES = st.floats(-4, 3).map(lambda exponent: 10.0**exponent)
SHAPES = st.tuples(  # V, n, m: V=1, n=1, V < n and V >> n all occur
    st.sampled_from([1, 2, 3, 7, 20, 60]), st.sampled_from([1, 2, 5, 12]), st.sampled_from([1, 2, 5, 12])
)
# the library's activations, and two of a user's
FUNCTIONS = ACTIVATIONS | {"abs": PiecewiseLinear("abs", -1.0), "steep": PiecewiseLinear("steep", 1.5)}


class Layer:
    """Random p W b z q u r of one layer in float64; some columns of p dead, some equal."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        V, n, m = shape
        random = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=random, dtype=torch.float64)

        self.p, self.W, self.b, self.z = draw(V, m), draw(n, m), draw(n), draw(V, n)
        self.q, self.u = draw(V, m), 0.3 * draw(V, m)
        if m > 1 and seed % 3 == 0:
            self.p[:, seed % m] = 0.0
        if m > 2 and seed % 3 == 1:
            self.p[:, 0] = self.p[:, 1]
        if seed % 5 == 0:
            self.W[seed % n] = 0.0

    @property
    def r(self) -> torch.Tensor:
        return self.z - self.p @ self.W.mT - self.b

    def phi_p(self, p: torch.Tensor, nu: float, rho: float) -> torch.Tensor:
        """The p-subproblem, one value a node."""
        gap = p - self.q
        linear = (self.z - p @ self.W.mT - self.b).square().sum(1)
        return nu / 2 * linear + (self.u * gap).sum(1) + rho / 2 * gap.square().sum(1)


def gradient_of(function, *arguments):
    arguments = [x.clone().requires_grad_() for x in arguments]
    return torch.autograd.grad(function(*arguments).sum(), arguments)


def assert_minimum(function, point: list[torch.Tensor], slack: float, seed: int) -> None:
    """No perturbation of ``point``, of any size, goes below its value."""
    random = torch.Generator().manual_seed(seed)
    least = function(*point)
    for scale in (1e-6, 1e-3, 0.1, 1.0, 10.0):
        for _ in range(4):
            other = [x + scale * torch.randn(x.shape, generator=random, dtype=x.dtype) for x in point]
            assert bool((function(*other) >= least - slack).all())
