"""The first layer's W, b update: p_1 never changes, so its factor is computed once and reused.

FIRST_LAYERS has one row per form. All of them see X (N, n_0), the augmented features of every labelled
node with the V training nodes first, shifted so that the training rows have mean zero; kappa_1, the ridge
on W_1, is fixed over the whole run, whatever nu does. ``update(z)`` solves for W_1, b_1 and returns
a = p_1 W_1^T + b_1; ``forward()`` gives the same for all N nodes; ``begin_at_labels`` starts W_1 near the labels. On a
Shard X, z and a are its rows, V stays the number of all training nodes, and everything but ``start``, ``snapshot`` and
``restore`` is collective over the shards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pdadmm.admm.conjugate import conjugate_ridge, steps_in_plane
from pdadmm.admm.products import FULL, Parts, Products, transposed
from pdadmm.admm.shard import WHOLE, Shard
from pdadmm.admm.updates import spd_inverse, squared_norm, update_b_, update_W_gradient_
from pdadmm.checkpoint import State

__all__ = ["FIRST_LAYERS", "ConjugateFirst", "GradientFirst", "GramFirst", "KernelFirst", "choose_first_layer"]

START_STEPS = 16  # of conjugate gradients (docs/benchmarks/accuracy.md)


def fixed_ridge(factor: Tensor, nodes: int, kappa_first: float) -> float:
    """Return kappa_1 = ``kappa_first`` times the mean squared length of a row of p_1.

    trace(p_1^T p_1) = trace(p_1 p_1^T) is the sum of these squares, so both factors give one ridge. Below the root
    of the number format's precision, in units of its mean diagonal, a solve would return rounding errors: that is
    the least.
    """
    trace = float(factor.diagonal().double().sum()) or 1.0  # constant features leave nothing after centring
    return max(kappa_first / nodes * trace, least_ridge(trace, len(factor), factor.dtype))


def least_ridge(trace: float, size: int, dtype: torch.dtype) -> float:
    """Return the least ridge for a matrix of ``size`` rows: the root of the precision, in its mean diagonal's units."""
    return torch.finfo(dtype).eps ** 0.5 / size * trace


def gram_matrix(p: Tensor | Parts, block: int = 512, products: Products = FULL) -> Tensor:
    """Return p^T p (n, n) for p (V, n), or its parts: the lower triangle in strips of columns, and its mirror image."""
    parts = (p,) if isinstance(p, Tensor) else p
    dtype = torch.float32 if products.terms else parts[0].dtype  # bf16 arrays have products in float32
    gram = parts[0].new_empty(parts[0].shape[1], parts[0].shape[1], dtype=dtype)
    for start in range(0, len(gram), block):
        strip, below = slice(start, start + block), slice(start + block)
        rows, columns = (tuple(part[:, own] for part in parts) for own in (strip, below))
        products.mm_parts(transposed(rows), columns, out=gram[strip, below])
        gram[:start, strip] = gram[strip, :start].mT
        square = gram[strip, strip]  # which products in bf16 need not leave symmetric
        square.copy_(square.tril().add_(square.tril(-1).mT))
    return gram


def own_rows(X: Tensor, nodes: int, shard: Shard) -> Tensor:
    """Return p_1: the rows of X that are training nodes, all V = ``nodes`` of them or the shard's."""
    return X[: nodes if shard.alone else len(shard.rows)]


class FirstForm(ABC):
    """What the forms have in common: W_1 and b_1 as they are, and a = p_1 W_1^T + b_1; ``squared`` is |p_1|^2."""

    name: str
    kappa: float

    def __init__(self, X: Tensor, nodes: int, shard: Shard, products: Products) -> None:
        self.X, self.p, self.shard, self.products = X, own_rows(X, nodes, shard), shard, products
        (self.squared,) = shard.sums(squared_norm(self.p))

    def set_weights(self, W: Tensor, b: Tensor) -> None:
        """Set W_1 and b_1."""
        self.W, self.b = W, b
        self.a = torch.addmm(b, self.p, W.mT)

    def begin_at_labels(self, W: Tensor, b: Tensor, Y: Tensor, codes: Tensor) -> None:
        """Set W_1 and b_1 to W, b and the ridge regression of Y codes^T on p_1 beside them, by conjugate gradients.

        Y (V, C) has mean zero, ``codes`` are (n_1, C).
        """
        kappa = max(self.kappa, least_ridge(self.squared, self.p.shape[1], self.p.dtype))
        fitted = conjugate_ridge(self.operand(), Y, kappa, START_STEPS, self.shard, self.products)
        self.set_weights(W + codes @ fitted, b)

    def operand(self) -> Parts:
        """Return p_1 as the products take it."""
        return self.products.operand(self.p)

    @abstractmethod
    def update(self, z: Tensor) -> Tensor:
        """Bring W_1 and b_1 nearer to the least |z - p W^T - b|^2 + kappa_1 |W|^2 and return a = p W^T + b."""

    def start(self) -> Tensor:
        """Return a = p_1 W_1^T + b_1 with the present weights, for a stage to start from."""
        return self.a.clone()

    def forward(self) -> Tensor:
        """Return X W_1^T + b_1 for every row of X; the training rows are known from the update."""
        return torch.cat([self.a, torch.addmm(self.b, self.X[len(self.a) :], self.W.mT)])

    def penalty(self) -> float:
        """Return this shard's share of kappa_1 |W_1|^2: the first shard counts it."""
        return self.kappa * float(self.W.double().square().sum()) if self.shard.leads else 0.0

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return W_1 and b_1 for the shifted features."""
        return self.W, self.b

    def snapshot(self) -> State:
        """Return a copy of the weights that ``restore`` takes."""
        return {"W": self.W.clone(), "b": self.b.clone(), "a": self.a.clone()}

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        self.W, self.b, self.a = (state[name].clone() for name in ("W", "b", "a"))


class FactoredFirst(FirstForm):
    """A form whose update is exact."""

    def begin_at_labels(self, W: Tensor, b: Tensor, Y: Tensor, codes: Tensor) -> None:
        """Set W_1 and b_1 to the ridge regression of p_1 W^T + b + Y codes^T on p_1."""
        self.set_weights(W, b)
        self.update(self.a + Y @ codes.mT)


class GramFirst(FactoredFirst):
    """W_1 = z_c^T p (p^T p + kappa_1 I)^-1 through the Gram matrix, for V >= n_0; z_c is z less its mean.

    kappa_1 is ``kappa_first`` times the mean squared length of a row of p. The inverse costs n_0^3 once.
    """

    name = "gram"

    def __init__(
        self, X: Tensor, nodes: int, kappa_first: float, shard: Shard = WHOLE, products: Products = FULL
    ) -> None:
        super().__init__(X, nodes, shard, products)
        self.parts = products.operand(self.p)
        gram = shard.total(gram_matrix(self.parts, products=products))
        self.kappa = fixed_ridge(gram, nodes, kappa_first)
        gram.diagonal().add_(self.kappa)
        self.inverse = spd_inverse(gram)

    @staticmethod
    def cost(nodes: int, inputs: int, width: int) -> float:
        """Floating-point operations per iteration."""
        return 2.0 * width * inputs * (2 * nodes + inputs)

    def update(self, z: Tensor) -> Tensor:
        """Minimise |z - p W^T - b|^2 + kappa_1 |W|^2 over W, b and return a = p W^T + b."""
        self.b = self.shard.mean(z)
        # p has mean zero, so z and its centred form have the same cross product
        products = self.products
        cross = products.mm_parts(transposed(products.operand(z)), self.parts)
        self.W = self.shard.total(cross) @ self.inverse
        self.a = products.addmm_parts(self.b, self.parts, transposed(products.operand(self.W)))
        return self.a


class KernelFirst(FactoredFirst):
    """W_1 = alpha^T p with alpha = (p p^T + kappa_1 I)^-1 z_c, for V < n_0; W_1 is not formed in the loop.

    a = z - kappa_1 alpha costs one V x V x n_1 product. kappa_1 is ``kappa_first`` times the mean squared
    length of a row of p. For evaluation the kernel of the other labelled nodes with the training nodes is kept.
    A shard has the rows of its nodes of alpha, kernel and inverse.
    """

    name = "kernel"

    def __init__(
        self, X: Tensor, nodes: int, kappa_first: float, shard: Shard = WHOLE, products: Products = FULL
    ) -> None:
        super().__init__(X, nodes, shard, products)
        p = shard.whole(self.p)  # every shard has all rows for a moment: they are fewer than the columns
        # of the other labelled nodes: made when they are first evaluated, on shards while all rows are here
        self.kernel = None if shard.alone else X[len(self.p) :] @ p.mT
        system = gram_matrix(p.mT)
        self.kappa = fixed_ridge(system, nodes, kappa_first)
        system.diagonal().add_(self.kappa)
        self.inverse = products.operand(shard.cut(spd_inverse(system)))
        self.alpha: Tensor | None = None

    @staticmethod
    def cost(nodes: int, inputs: int, width: int) -> float:
        """Floating-point operations per iteration."""
        return 2.0 * width * nodes * nodes

    def set_weights(self, W: Tensor, b: Tensor) -> None:
        """Set W_1, explicit until the first update, and b_1."""
        super().set_weights(W, b)
        self.alpha = None

    def update(self, z: Tensor) -> Tensor:
        """Minimise |z - p W^T - b|^2 + kappa_1 |W|^2 over W, b and return a = p W^T + b."""
        everywhere = self.shard.whole(z)
        self.b = everywhere.mean(0)
        self.alpha = self.products.mm_parts(self.inverse, self.products.operand(everywhere - self.b))
        self.a = z - self.kappa * self.alpha
        return self.a

    def forward(self) -> Tensor:
        """Return X W_1^T + b_1 for every row of X; the training rows are known from the update."""
        if self.alpha is None:
            return torch.addmm(self.b, self.X, self.W.mT)
        if self.kernel is None:
            self.kernel = self.X[len(self.p) :] @ self.p.mT
        alpha = self.shard.whole(self.alpha, "evaluation")
        return torch.cat([self.a, torch.addmm(self.b, self.kernel, alpha)])

    def penalty(self) -> float:
        """Return this shard's share of kappa_1 |W_1|^2 = kappa_1 <alpha, p p^T alpha>; p p^T alpha = a - b."""
        if self.alpha is None:
            return super().penalty()
        return self.kappa * float(((self.a - self.b).double() * self.alpha).sum())

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return W_1 and b_1 for the shifted features."""
        if self.alpha is None:
            return self.W, self.b
        return self.shard.total(self.alpha.mT @ self.p, "migration"), self.b

    def snapshot(self) -> State:
        """Return a copy of the weights that ``restore`` takes."""
        if self.alpha is None:
            return {"W": self.W.clone(), "b": self.b.clone()}
        return {"b": self.b.clone(), "alpha": self.alpha.clone(), "a": self.a.clone()}

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        if "W" in state:
            self.set_weights(state["W"], state["b"])
        else:
            self.b, self.alpha, self.a = state["b"], state["alpha"].clone(), state["a"].clone()


class GradientFirst(FirstForm):
    """The paper's own W_1 step: one majorised gradient step an iteration, nothing factored."""

    name = "gradient"

    def __init__(
        self, X: Tensor, nodes: int, kappa_first: float, shard: Shard = WHOLE, products: Products = FULL
    ) -> None:
        super().__init__(X, nodes, shard, products)
        self.kappa = kappa_first * self.squared / nodes  # as the prefactored forms

    @staticmethod
    def cost(nodes: int, inputs: int, width: int) -> float:
        """Floating-point operations per iteration."""
        return 4.0 * width * inputs * nodes

    def update(self, z: Tensor) -> Tensor:
        """Take one gradient step on |z - p W^T - b|^2 + kappa_1 |W|^2 in W, then the exact b; return a."""
        r = z - self.a
        update_W_gradient_(self.W, r, self.p, nu=1.0, mu=self.kappa, shard=self.shard, products=self.products)
        update_b_(self.b, r, self.shard)
        self.a = z - r
        return self.a


class ConjugateFirst(GradientFirst):
    """Two directions an iteration, the gradient and the last step, and each neuron's best point in their plane.

    Conjugate gradients where z stands still; nothing is factored, and an iteration costs two products as in the
    gradient form.
    """

    name = "cg"

    def __init__(
        self, X: Tensor, nodes: int, kappa_first: float, shard: Shard = WHOLE, products: Products = FULL
    ) -> None:
        super().__init__(X, nodes, kappa_first, shard, products)
        self.kappa = max(self.kappa, least_ridge(self.squared, X.shape[1], X.dtype))
        self.parts = products.operand(self.p)

    def operand(self) -> Parts:
        """Return p_1 as the products take it, split once."""
        return self.parts

    def set_weights(self, W: Tensor, b: Tensor) -> None:
        """Set W_1 and b_1, with no last step."""
        super().set_weights(W, b)
        self.direction, self.along = torch.zeros_like(W), torch.zeros_like(self.a)

    def update(self, z: Tensor) -> Tensor:
        """Minimise |z - p W^T - b|^2 + kappa_1 |W|^2 over b and two numbers a neuron; return a."""
        products, E, Q = self.products, self.direction, self.along
        shift = self.shard.mean(z) - self.b
        residual = z - self.a - shift  # p has mean zero, so b is the mean of z whatever W is
        cross = products.mm_parts(transposed(products.operand(residual)), self.parts)
        G = self.shard.total(cross) - self.kappa * self.W
        P = products.mm_parts(self.parts, transposed(products.operand(G)))
        PP, PQ, QQ = self.shard.total(torch.stack([(P * P).sum(0), (P * Q).sum(0), (Q * Q).sum(0)]))
        s, t = steps_in_plane(G, E, (PP, PQ, QQ), self.kappa)
        self.direction = s[:, None] * G + t[:, None] * E
        self.along = s * P + t * Q
        self.W, self.b = self.W + self.direction, self.b + shift
        self.a = self.a + self.along + shift
        return self.a

    def snapshot(self) -> State:
        """Return a copy of the weights and of the last step that ``restore`` takes."""
        return super().snapshot() | {"direction": self.direction.clone(), "along": self.along.clone()}

    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        super().restore(state)
        self.direction, self.along = state["direction"].clone(), state["along"].clone()


FIRST_LAYERS: dict[str, type[GramFirst | KernelFirst | GradientFirst]] = {
    row.name: row for row in (GramFirst, KernelFirst, GradientFirst, ConjugateFirst)
}


def choose_first_layer(name: str, nodes: int, inputs: int) -> type[GramFirst | KernelFirst | GradientFirst]:
    """Return the row for ``name``; "auto" is the smaller of the two factors."""
    if name == "auto":
        name = "gram" if nodes >= inputs else "kernel"
    return FIRST_LAYERS[name]
