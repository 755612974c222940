"""The first layer of a streamed training: W_1, b_1 from sums over the nodes alone."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.first_layer import GradientFirst, GramFirst, fixed_ridge
from pdadmm.admm.node_storage import NodeStorage
from pdadmm.admm.products import FULL, Products, transposed
from pdadmm.admm.updates import Moments, spd_inverse, update_W_b_gradient
from pdadmm.checkpoint import State

__all__ = ["StreamedFirst"]


class StreamedFirst:
    """GramFirst, or GradientFirst where ``form`` is "gradient", whose X is read block by block.

    p^T p is summed once, by blocks. ``squared`` is |p_1|^2.
    """

    def __init__(self, form: str, storage: NodeStorage, kappa_first: float, products: Products = FULL) -> None:
        self.exact, self.products = form != "gradient", products
        self.name = (GramFirst if self.exact else GradientFirst).name
        nodes, n_0 = storage.nodes, storage.inputs
        gram = torch.zeros(n_0, n_0, dtype=storage.dtype, device=storage.device)
        self.p_sum = torch.zeros(n_0, dtype=storage.dtype, device=storage.device)
        for _, X in storage.X(nodes):
            parts = products.operand(X)
            products.addmm_parts(gram, transposed(parts), parts, out=gram)
            self.p_sum += X.sum(0)
        self.squared, self.count = float(gram.diagonal().double().sum()), nodes
        if self.exact:
            self.kappa = fixed_ridge(gram, nodes, kappa_first)
            gram.diagonal().add_(self.kappa)
            self.factor = spd_inverse(gram)
        else:
            self.kappa, self.factor = kappa_first * self.squared / nodes, gram

    def set_weights(self, W: Tensor, b: Tensor) -> None:
        """Set W_1 and b_1."""
        self.W, self.b = W, b

    def update(self, zp: Tensor, z_sum: Tensor) -> None:
        """Solve for W_1, b_1 from z^T p (n, n_0) and the sum of z (n,); the gradient form takes those of r."""
        if self.exact:
            self.W, self.b = zp @ self.factor, z_sum / self.count
        else:
            moments = Moments(self.factor, zp, self.p_sum, z_sum, self.count)
            self.W, self.b = update_W_b_gradient(moments, self.W, self.b, nu=1.0, mu=self.kappa)

    def snapshot(self) -> State:
        """Return copies of the weights."""
        return {"W": self.W.clone(), "b": self.b.clone()}

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        self.set_weights(state["W"].clone(), state["b"].clone())

    def penalty(self) -> float:
        """Return kappa_1 |W_1|^2."""
        return self.kappa * float(self.W.double().square().sum())

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return W_1 and b_1 for the shifted features."""
        return self.W, self.b

