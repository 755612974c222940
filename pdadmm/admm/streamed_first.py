"""The first layer of a streamed training: W_1, b_1 from sums over the nodes alone."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.conjugate import conjugate_gradients, steps_in_plane
from pdadmm.admm.first_layer import START_STEPS, ConjugateFirst, GradientFirst, GramFirst, fixed_ridge, least_ridge
from pdadmm.admm.label_start import CentredLabels
from pdadmm.admm.node_storage import NodeStorage
from pdadmm.admm.products import FULL, Products, transposed
from pdadmm.admm.updates import Moments, spd_inverse, update_W_b_gradient
from pdadmm.checkpoint import State

__all__ = ["StreamedFirst", "label_products"]


def label_products(storage: NodeStorage, labels: CentredLabels, products: Products) -> Tensor:
    """Return Y^T p_1 (C, n_0), summed over the blocks of training nodes."""
    cross = torch.zeros(labels.classes, storage.inputs, dtype=storage.dtype, device=storage.device)
    for nodes, X in storage.X(storage.nodes):
        Y = labels.of(storage.here(labels.y[nodes.start : nodes.stop]))
        products.addmm_parts(cross, transposed(products.operand(Y)), products.operand(X), out=cross)
    return cross


class StreamedFirst:
    """GramFirst, GradientFirst or ConjugateFirst, as ``form`` has it, whose X is read block by block.

    p^T p is summed once, by blocks, for every form: no step then needs a pass of its own. ``squared`` is |p_1|^2.
    """

    def __init__(self, form: str, storage: NodeStorage, kappa_first: float, products: Products = FULL) -> None:
        self.exact, self.products = form not in (GradientFirst.name, ConjugateFirst.name), products
        self.name = GramFirst.name if self.exact else form
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
            self.least = least_ridge(self.squared, n_0, storage.dtype)
            if self.name == ConjugateFirst.name:
                self.kappa = max(self.kappa, self.least)

    def set_weights(self, W: Tensor, b: Tensor) -> None:
        """Set W_1 and b_1, with no last step."""
        self.W, self.b = W, b
        self.direction = torch.zeros_like(W) if self.name == ConjugateFirst.name else None

    def begin_at_labels(self, W: Tensor, b: Tensor, cross: Tensor, codes: Tensor) -> None:
        """Set W_1 and b_1 as FirstForm.begin_at_labels does, from ``cross`` = Y^T p (C, n_0)."""
        if self.exact:  # W p^T p (p^T p + kappa_1 I)^-1 = W - kappa_1 W (p^T p + kappa_1 I)^-1
            self.set_weights(W - self.kappa * (W @ self.factor) + codes @ (cross @ self.factor), b)
            return

        def curved(D: Tensor) -> tuple[Tensor, Tensor]:
            along = D @ self.factor
            return along, (along * D).sum(1)

        kappa = max(self.kappa, self.least)
        self.set_weights(W + codes @ conjugate_gradients(cross, curved, kappa, START_STEPS), b)

    def update(self, zp: Tensor, z_sum: Tensor) -> None:
        """Find W_1, b_1 from z^T p (n, n_0) and the sum of z (n,); the forms that take steps, from those of r."""
        if self.exact:
            self.W, self.b = zp @ self.factor, z_sum / self.count
        elif self.direction is None:
            moments = Moments(self.factor, zp, self.p_sum, z_sum, self.count)
            self.W, self.b = update_W_b_gradient(moments, self.W, self.b, nu=1.0, mu=self.kappa)
        else:
            self._step(self.direction, zp, z_sum / self.count)

    def _step(self, E: Tensor, rp: Tensor, shift: Tensor) -> None:
        """Do as ConjugateFirst.update: the best point in the plane of the gradient and the last step ``E``."""
        G = rp - shift[:, None] * self.p_sum - self.kappa * self.W
        along_G, along_E = (torch.cat([G, E]) @ self.factor).split(len(G))
        curvatures = (along_G * G).sum(1), (along_G * E).sum(1), (along_E * E).sum(1)
        s, t = steps_in_plane(G, E, curvatures, self.kappa)
        self.direction = s[:, None] * G + t[:, None] * E
        self.W, self.b = self.W + self.direction, self.b + shift

    def snapshot(self) -> State:
        """Return copies of the weights, and of the last step where the next one needs it."""
        step = {} if self.direction is None else {"direction": self.direction.clone()}
        return {"W": self.W.clone(), "b": self.b.clone()} | step

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        self.set_weights(state["W"].clone(), state["b"].clone())
        if self.direction is not None:
            self.direction = state["direction"].clone()

    def penalty(self) -> float:
        """Return kappa_1 |W_1|^2."""
        return self.kappa * float(self.W.double().square().sum())

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return W_1 and b_1 for the shifted features."""
        return self.W, self.b

