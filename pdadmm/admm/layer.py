"""One layer's state (p, W, b, z, q, r) and its updates, on the rank that holds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.activations import PiecewiseLinear
from pdadmm.admm.first_layer import GradientFirst, GramFirst, KernelFirst
from pdadmm.admm.label_start import CentredLabels, regress_labels
from pdadmm.admm.link import Link
from pdadmm.admm.losses import CrossEntropy, SquaredError
from pdadmm.admm.products import FULL, Products, transposed
from pdadmm.admm.shard import WHOLE, Shard
from pdadmm.admm.updates import (
    Moments,
    prepare_p_exact,
    squared_norm,
    update_b_,
    update_p_constrained_,
    update_p_exact_,
    update_p_gradient_,
    update_W_b_exact,
    update_W_gradient_,
)
from pdadmm.checkpoint import State
from pdadmm.kernels.fused import updates_for
from pdadmm.quantize import Grid

__all__ = ["UPDATED", "FirstLayer", "HiddenLayer", "Layer", "Penalties", "Terms", "link_sums"]


# The order of the updates of one layer; the kernel form of the first has alpha in W's place.
UPDATED = ("p", "W", "alpha", "b", "z", "q")


@dataclass
class Penalties:
    """The scalars of the augmented Lagrangian and of the proximal terms; rho may change on a schedule."""

    nu: float
    rho: float
    mu: float
    kappa_identity: float
    prox_W: float
    prox_z: float


@dataclass
class Terms:
    """What one layer, or one shard of it, adds to the objective and to the residuals, in float64."""

    risk: float = 0.0
    linear: float = 0.0  # |z - p W^T - b|^2
    activation: float = 0.0  # |q - f(z)|^2
    ridge: float = 0.0  # every ridge on W, as it stands in the objective
    link: float = 0.0  # |p_{l+1} - q_l|^2
    dual: float = 0.0  # <u_l, p_{l+1} - q_l>
    q_squared: float = 0.0

    def __add__(self, other: Terms) -> Terms:
        return Terms(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def squared_distance(x: Tensor, y: Tensor) -> float:
    """Return |x - y|^2, summed in float64."""
    fused = updates_for(x, y)
    if fused is not None:
        return fused.distance(x, y, negative_slope=1.0)
    return float((x.double() - y).square().sum())


def link_sums(p: Tensor, q: Tensor, u: Tensor) -> list[float]:
    """Return |p - q|^2, <u, p - q> and |q|^2, summed in float64; all (V, n)."""
    fused = updates_for(p, q, u)
    if fused is not None:
        return fused.link_sums(p, q, u)
    gap = p.double() - q
    sums = gap.square().sum(), (u.double() * gap).sum(), q.double().square().sum()
    return torch.stack(sums).tolist()  # one copy from a device


class Layer(ABC):
    """What every layer has in common: z, r, the links to its neighbours, the z- and q-updates."""

    y: Tensor

    def __init__(self, index: int, activation: PiecewiseLinear, penalties: Penalties) -> None:
        self.index, self.activation, self.penalties = index, activation, penalties
        self.below: Link | None = None  # None for layer 1
        self.above: Link | None = None  # None for layer L
        self.loss: CrossEntropy | SquaredError | None = None  # set for layer L, and y with it

    @property
    def belows(self) -> list[Link]:
        """The link below, if there is one."""
        return [] if self.below is None else [self.below]

    @property
    def aboves(self) -> list[Link]:
        """The link above, if there is one."""
        return [] if self.above is None else [self.above]

    def attach_loss(self, loss: CrossEntropy | SquaredError, y: Tensor) -> None:
        """Make this the last layer; y (V,) are the classes of the training nodes."""
        self.loss, self.y = loss, y

    def begin(self, a: Tensor) -> Tensor:
        """Begin a stage at a feasible point: z = a and no residual."""
        self.z, self.r = a, torch.zeros_like(a)
        return a

    def state(self) -> State:
        """Return what a checkpoint needs of this layer and of its sides of the links."""
        below = {} if self.below is None else self.below.state_of_upper()
        above = {} if self.above is None else self.above.state_of_lower()
        return self.snapshot() | {"z": self.z, "r": self.r} | below | above

    def first_not_finite(self) -> str | None:
        """Return the first of p, W, b, z, q, in the order of their updates, that is not finite; None for none."""
        own = self.snapshot() | {"z": self.z}
        own |= {"p": self.below.own_p} if self.below is not None else {}
        own |= {"q": self.above.own_q} if self.above is not None else {}
        return next((name for name in UPDATED if name in own and not bool(torch.isfinite(own[name]).all())), None)

    def update_z(self) -> None:
        """z_l: element-wise minimiser, or the loss's Newton steps on the last layer; then r = z - a."""
        if self.loss is not None:
            self.z = self.loss.minimise(self.r, self.y, self.penalties.nu, self.z)
            torch.sub(self.z, self.r, out=self.r)
        else:
            self.activation.update_z_(self.z, self.r, self.above.own_q, self.penalties.prox_z)

    def update_q(self) -> None:
        """q_l from p_{l+1} of this iteration, sent up at once; then u_l."""
        self.above.update_q_u(self.z, self.r, self.activation, self.penalties.nu, self.penalties.rho)

    def terms(self) -> list[Terms]:
        """Return this layer's share of the objective and the residuals."""
        terms = Terms(linear=squared_norm(self.r), ridge=self.ridge())
        if self.loss is not None:
            terms.risk = self.loss.value(self.z, self.y)
        else:
            terms.activation = self.activation.squared_distance(self.above.own_q, self.z)
            terms.link, terms.dual, terms.q_squared = link_sums(self.above.p, self.above.q, self.above.u)
        return [terms]

    # What the first layer and the others do each in their own way

    @abstractmethod
    def start(self) -> Tensor:
        """Begin a stage; return a."""

    @abstractmethod
    def snapshot(self) -> State:
        """Return copies of the weights."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Go on from a checkpoint's state."""

    @abstractmethod
    def update_W_b(self, scratch: dict[torch.Size, Tensor]) -> None:
        """W_l, then b_l; until z is updated, r holds a. ``scratch`` holds arrays to reuse."""

    @abstractmethod
    def ridge(self) -> float:
        """Return this shard's share of the ridges on W_l."""

    @abstractmethod
    def forward(self, h: Any) -> Tensor:
        """Return a for the input ``h``, which layer 1 has itself."""


class FirstLayer(Layer):
    """Layer 1: p_1 is fixed, and W_1, b_1 are solved by one of FIRST_LAYERS."""

    def __init__(
        self,
        solver: GramFirst | KernelFirst | GradientFirst,
        activation: PiecewiseLinear,
        penalties: Penalties,
    ) -> None:
        super().__init__(0, activation, penalties)
        self.solver = solver

    def start(self) -> Tensor:
        """Begin a stage from the present W_1 and b_1; return a."""
        return self.begin(self.solver.start())

    def snapshot(self) -> State:
        """Return copies of the weights, in the solver's own form."""
        return self.solver.snapshot()

    def restore(self, state: State) -> None:
        """Go on from a checkpoint's state."""
        self.solver.restore(state)
        self.z, self.r = state["z"], state["r"]

    def update_W_b(self, scratch: dict[torch.Size, Tensor]) -> None:
        """Solve for W_1 and b_1; until z is updated, r holds a = p_1 W_1^T + b_1."""
        self.r.copy_(self.solver.update(self.z))

    def ridge(self) -> float:
        """Return this shard's share of nu/2 kappa_1 |W_1|^2."""
        return 0.5 * self.penalties.nu * self.solver.penalty()

    def forward(self, _: Tensor | None) -> Tensor:
        """Return X W_1^T + b_1 for every labelled node."""
        return self.solver.forward()


class HiddenLayer(Layer):
    """Layers 2..L; ``exact`` chooses between the two forms of the p- and the W-update.

    ``identity`` says whether W is pulled toward I (hidden layers that growth starts at I), ``grid`` the fixed
    grid that p is constrained to, if any, ``shard`` which nodes these are, ``products`` the number format of products.
    """

    def __init__(
        self,
        index: int,
        W: Tensor,
        b: Tensor,
        activation: PiecewiseLinear,
        penalties: Penalties,
        exact: bool,
        identity: bool,
        grid: Grid | None = None,
        shard: Shard = WHOLE,
        products: Products = FULL,
    ) -> None:
        super().__init__(index, activation, penalties)
        self.W, self.b, self.exact, self.grid, self.shard, self.products = W, b, exact, grid, shard, products
        square = identity and W.shape[0] == W.shape[1]
        self.target = torch.eye(len(W), dtype=W.dtype, device=W.device) if square else None

    def start(self) -> Tensor:
        """Begin a stage from the p of the link below; return a. Fixes the unit of the relative ridges."""
        p = self.below.own_p
        # the mean diagonal of p^T p at the stage's start: fixed, so that the objective is one function
        self.unit = self.shard.sums(squared_norm(p))[0] / p.shape[1] or 1.0
        self.centre = self.shard.mean(p, "init")
        return self.begin(torch.addmm(self.b, p, self.W.mT))

    def begin_at_labels(self, labels: CentredLabels) -> None:
        """Begin a stage anew, as the last layer, from the ridge regression of the labels on p."""
        about = self.below.own_p - self.centre
        gram, cross = self.shard.totals((about.mT @ about, labels.of(self.y).mT @ about))
        self.W, self.b = regress_labels(gram, cross, self.centre, labels.mean)
        self.begin(torch.addmm(self.b, self.below.own_p, self.W.mT))

    def snapshot(self) -> State:
        """Return copies of the weights."""
        return {"W": self.W.clone(), "b": self.b.clone()}

    def state(self) -> State:
        """Return what a checkpoint needs of this layer and of its sides of the links."""
        return super().state() | {"unit": self.unit, "centre": self.centre}

    def restore(self, state: State) -> None:
        """Go on from a checkpoint's state."""
        self.W, self.b, self.z, self.r = (state[name] for name in ("W", "b", "z", "r"))
        self.unit, self.centre = state["unit"], state["centre"]

    @property
    def kappa(self) -> float:
        """The ridge toward I, as a W-update sees it."""
        return 0.0 if self.target is None else self.penalties.kappa_identity * self.unit

    def prepare_p(self, scratch: dict[torch.Size, Tensor]) -> None:
        """What the p-update can do before q of the last iteration has arrived; ``scratch`` holds arrays to reuse."""
        nu, rho = self.penalties.nu, self.penalties.rho
        if self.exact and self.grid is None:
            p = self.below.own_p
            if p.shape not in scratch:
                scratch[p.shape] = torch.empty_like(p)
            self.prepared = prepare_p_exact(
                self.z, self.W, self.b, nu, rho, scratch[p.shape], products=self.products
            )

    def update_p(self) -> None:
        """p_l from q_{l-1} and u_{l-1} of the last iteration."""
        nu, rho, link = self.penalties.nu, self.penalties.rho, self.below
        if self.grid is not None:
            update_p_constrained_(link.own_p, self.r, self.W, link.q, link.u, nu, rho, self.grid, self.products)
        elif self.exact:
            update_p_exact_(link.own_p, self.prepared, link.q, link.u, rho, self.products)
            del self.prepared
        else:
            update_p_gradient_(link.own_p, self.r, self.W, link.q, link.u, nu, rho, self.products)

    def update_W_b(self, scratch: dict[torch.Size, Tensor]) -> None:
        """W_l, then b_l; until z is updated, r holds a = p W^T + b."""
        p = self.below.own_p
        if not self.exact:
            nu, mu = self.penalties.nu, self.penalties.mu
            update_W_gradient_(self.W, self.r, p, nu, mu, self.kappa, self.target, self.shard, self.products)
            update_b_(self.b, self.r, self.shard)
            torch.sub(self.z, self.r, out=self.r)
            return
        P = self.products.operand(p) if self.products.centres else self.products.parts(p)
        self.solve_W_b(Moments.about(self.centre, p, self.z, self.products, P, scratch.get(p.shape)).over(self.shard))
        self.products.addmm_parts(self.b, P, transposed(self.products.operand(self.W)), out=self.r)

    def solve_W_b(self, moments: Moments) -> None:
        """Set W_l and b_l from the sums of all nodes, and the centre of the next ones."""
        prox, mu_over_nu = self.penalties.prox_W * self.unit, self.penalties.mu / self.penalties.nu
        self.W, self.b = update_W_b_exact(moments, self.W, mu_over_nu, prox, self.kappa, self.target)
        if moments.centre is not None:
            self.centre = moments.mean_p()

    def ridge(self) -> float:
        """Return this shard's share of mu/2 |W|^2 + nu/2 kappa |W - I|^2: the first shard counts it."""
        if not self.shard.leads:
            return 0.0
        value = 0.5 * self.penalties.mu * squared_norm(self.W) if self.penalties.mu else 0.0
        if self.target is not None:
            value += 0.5 * self.penalties.nu * self.kappa * squared_distance(self.W, self.target)
        return value

    def forward(self, h: Tensor) -> Tensor:
        """Return h W^T + b."""
        return torch.addmm(self.b, h, self.W.mT)
