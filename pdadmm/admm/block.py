"""One block of nodes in a streamed training: its p, z, q and what it adds to the sums, all layers in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdadmm.admm.acceleration import movement
from pdadmm.admm.layer import HiddenLayer, Terms, link_sums
from pdadmm.admm.updates import (
    Moments,
    dual,
    inverse_p,
    prepare_p_exact,
    squared_norm,
    update_p_exact_,
    update_p_gradient_,
    update_q_u_,
)

__all__ = ["BlockUpdates", "Tally", "Weights"]

State = dict[str, Tensor]


@dataclass
class Weights:
    """W, b of a layer and, for an exact p-update, the inverse that all nodes share."""

    W: Tensor
    b: Tensor
    inverse: Tensor | None

    @classmethod
    def of(cls, layer: HiddenLayer) -> Weights:
        """Return the present weights of a layer above the first."""
        penalties = layer.penalties
        return cls(layer.W, layer.b, inverse_p(layer.W, penalties.nu, penalties.rho) if layer.exact else None)


class Seen(NamedTuple):
    """z_l, q_l, u_l as the next iteration takes them, extrapolated where that is asked for; layer L has z alone."""

    z: Tensor
    q: Tensor | Any = None
    u: Tensor | Any = None


class Tally:
    """What the blocks add up to in a pass, a list entry for each layer.

    ``sums`` are the Moments that W, b of the next iteration need: of p and z, in the gradient form of p and r; layer
    1's without those of p alone. ``measures`` are what restarts the extrapolation, ``plain`` and ``ahead`` the terms of
    the iteration as it was updated and as it is extrapolated, ``squares`` |p_l|^2 at a stage's start.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.sums: list[Moments | None] = [None for _ in layers]
        self.measures = [0.0 for _ in layers]
        self.squares = [0.0 for _ in layers]
        self.plain, self.ahead = [Terms() for _ in layers], [Terms() for _ in layers]

    def add(self, layer: int, moments: Moments) -> None:
        """Add the sums of a block."""
        before = self.sums[layer]
        self.sums[layer] = moments if before is None else before + moments


class BlockUpdates:
    """The updates of one block after the other: ``rows`` nodes at most, arrays on ``device`` for what lives within one.

    ``layers`` are a FirstLayer, whose solver is a StreamedFirst, and the HiddenLayers above it.
    The state of a block is a dict of arrays by name, see pdadmm.disk.storage.state_columns.
    """

    def __init__(self, layers: Sequence[Any], rows: int, accelerate: bool, device: torch.device) -> None:
        self.layers, self.rows, self.accelerate, self.device = layers, rows, accelerate, device
        self.penalties, self.activation = layers[0].penalties, layers[0].activation
        self.depth, self.products = len(layers), layers[0].solver.products
        self.memory: dict[str, Tensor] = {}

    def _array(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return memory to be filled, the same for the same name."""
        if name not in self.memory or self.memory[name].numel() < rows * columns:
            self.memory[name] = torch.empty(self.rows * columns, dtype=dtype, device=self.device)
        return self.memory[name][: rows * columns].view(rows, columns)

    def _like(self, name: str, x: Tensor) -> Tensor:
        return self._array(name, x.shape[0], x.shape[1], x.dtype)

    def start(self, X: Tensor, state: State, weights: Sequence[Weights], tally: Tally) -> None:
        """Fill the state with a stage's feasible start: z = a, p = q = f(a)."""
        p = X
        for layer, now in enumerate(weights):
            tally.squares[layer] += squared_norm(p) if layer else 0.0
            a = torch.addmm(now.b, p, now.W.mT, out=state[f"z{layer}"])
            if f"p{layer}" in state:
                state[f"p{layer}"].copy_(p)
            if layer + 1 < self.depth:
                p = state[f"q{layer}"].copy_(self.activation(a))
                if self.accelerate:
                    state[f"last_z{layer}"].copy_(a)
                    state[f"last_q{layer}"].copy_(p)

    def look(self, X: Tensor, state: State, weights: Sequence[Weights], betas: Sequence[float], tally: Tally) -> None:
        """Add what the next W, b need, from the state and the weights as they are."""
        below = Seen(X)
        for layer, now in enumerate(weights):
            seen, r = self._seen(layer, state, "new", betas[layer]), None
            if self._stepped(layer, now):
                r = self._residual(seen.z, state[f"p{layer}"] if layer else X, now, "r")
            self._add_sums(layer, X, state, now, seen, r, below, tally)
            below = seen

    def advance(
        self, X: Tensor, y: Tensor, state: State, before: Sequence[Weights], now: Sequence[Weights],
        betas: tuple[Sequence[float], Sequence[float]], tally: Tally,
    ) -> None:  # fmt: skip
        """Bring the state through an iteration with W, b ``now``; p comes from those ``before``.

        ``betas`` are those that the state is seen with, and those that the new one is, where no boundary starts again.
        """
        p, old, below = X, self._seen(0, state, "old", betas[0][0]), Seen(X)
        for layer in range(self.depth):
            above = Seen(X)
            if layer + 1 < self.depth:  # p_{l+1} by z_{l+1}, q_l and u_l of the last iteration
                above = self._seen(layer + 1, state, "old", betas[0][layer + 1])
                p_next = self._p_before(layer + 1, state, before[layer + 1], above.z, old)
            W, b = now[layer].W, now[layer].b
            r = self.products.addmm(b, p, W.mT, out=self._array("r", len(X), len(b), X.dtype))
            a = self._like("a", r).copy_(r) if self._stepped(layer, now[layer]) else None
            if layer + 1 < self.depth:
                tally.measures[layer] += self._update(layer, state, r, old, p_next)
                seen = self._add_terms(layer, state, r, p_next, betas[1][layer], tally)
                p = p_next
            else:
                seen = self._update_last(state, r, y, tally)
            if a is not None:  # not as r came to be: a run that goes on must find the same bits
                torch.sub(seen.z, a, out=r)
            self._add_sums(layer, X, state, now[layer], seen, r, below, tally)
            below, old = seen, above

    # Parts of an iteration

    def _stepped(self, layer: int, weights: Weights) -> bool:
        """Whether W of a layer takes gradient steps, which need r."""
        return weights.inverse is None if layer else not self.layers[0].solver.exact

    def _seen(self, layer: int, state: State, name: str, beta: float) -> Seen:
        """Return z, q, u of a layer, moved on by ``beta`` times their last step; u = nu (q - f(z))."""
        z = state[f"z{layer}"]
        if layer + 1 == self.depth:
            return Seen(z)
        q, name = state[f"q{layer}"], f"{name}, {layer % 2}"  # two neighbours are looked at together
        u = dual(q, z, self.activation, self.penalties.nu, out=self._like(f"u {name}", q))
        if beta == 0.0:
            return Seen(z, q, u)
        last_z, last_q = state[f"last_z{layer}"], state[f"last_q{layer}"]
        last_u = dual(last_q, last_z, self.activation, self.penalties.nu, out=self._like("last u", q))
        moved_z, moved_q = (
            torch.sub(x, last, out=self._like(f"{part} {name}", x)).mul_(beta).add_(x)
            for part, x, last in (("z", z, last_z), ("q", q, last_q))
        )
        return Seen(moved_z, moved_q, u.add_(torch.sub(u, last_u, out=last_u), alpha=beta))

    def _residual(self, z: Tensor, p: Tensor, weights: Weights, name: str) -> Tensor:
        """Return z - p W^T - b."""
        a = self.products.addmm(weights.b, p, weights.W.mT, out=self._like(name, z))
        return torch.sub(z, a, out=a)

    def _p_before(self, layer: int, state: State, before: Weights, z: Tensor, below: Seen) -> Tensor:
        """Return p of this iteration, which the last pass found for its sums and did not keep."""
        nu, rho = self.penalties.nu, self.penalties.rho
        if before.inverse is None:
            p = state[f"p{layer}"]
            r = self._residual(z, p, before, "old r")
            update_p_gradient_(p, r, before.W, below.q, below.u, nu, rho, self.products)
            return p
        return self._p_exact(f"p {layer % 2}", z, before, below)

    def _p_exact(self, name: str, z: Tensor, weights: Weights, below: Seen) -> Tensor:
        nu, rho, q = self.penalties.nu, self.penalties.rho, below.q
        right = self._like("right", q)
        prepared = prepare_p_exact(z, weights.W, weights.b, nu, rho, right, weights.inverse, self.products)
        p = self._like(name, q)
        update_p_exact_(p, prepared, q, below.u, rho, self.products)
        return p

    def _update(self, layer: int, state: State, r: Tensor, old: Seen, p_next: Tensor) -> float:
        """Update z, q and u of a hidden layer; return what restarts its extrapolation, 0 without any."""
        nu, rho = self.penalties.nu, self.penalties.rho
        z, q, used = state[f"z{layer}"], state[f"q{layer}"], old.q
        if self.accelerate:
            state[f"last_z{layer}"].copy_(z)
            state[f"last_q{layer}"].copy_(q)
            if old.z is z:
                used = state[f"last_q{layer}"]  # q itself is about to change
            else:
                z.copy_(old.z)
        self.activation.update_z_(z, r, used, self.penalties.prox_z)
        update_q_u_(q, old.u, p_next, z, self.activation, nu, rho)
        if not self.accelerate:
            return 0.0
        return movement(p_next, q, used)

    def _add_terms(self, layer: int, state: State, r: Tensor, p_next: Tensor, beta: float, tally: Tally) -> Seen:
        """Add a hidden layer's terms; return z, q, u as the next iteration sees them, and move r along."""

        def add(terms: Terms, r: Tensor, seen: Seen) -> None:
            terms.linear += squared_norm(r)
            terms.activation += self.activation.squared_distance(seen.q, seen.z)
            link, dual_term, q_squared = link_sums(p_next, seen.q, seen.u)
            terms.link, terms.dual = terms.link + link, terms.dual + dual_term
            terms.q_squared += q_squared

        seen = self._seen(layer, state, "new", 0.0)
        if self.accelerate:
            if beta:
                seen = self._seen(layer, state, "plain", 0.0)
            add(tally.plain[layer], r, seen)
        if beta:
            seen = self._seen(layer, state, "new", beta)
            r.sub_(state[f"z{layer}"]).add_(seen.z)
        add(tally.ahead[layer], r, seen)
        return seen

    def _update_last(self, state: State, r: Tensor, y: Tensor, tally: Tally) -> Seen:
        """Update z_L, which is never extrapolated, and add its terms; r, which holds a, becomes z - a."""
        z, last = state[f"z{self.depth - 1}"], self.layers[-1]
        z.copy_(last.loss.minimise(r, y, self.penalties.nu, z))
        torch.sub(z, r, out=r)
        linear, risk = squared_norm(r), last.loss.value(z, y)
        for terms in (tally.plain[-1], tally.ahead[-1]):
            terms.linear, terms.risk = terms.linear + linear, terms.risk + risk
        return Seen(z)

    def _add_sums(
        self, layer: int, X: Tensor, state: State, now: Weights, seen: Seen, r: Tensor | None, below: Seen, tally: Tally
    ) -> None:
        """Add what W, b of the next iteration need of this block; ``r`` is the residual of ``seen``, and is used up."""
        if layer == 0:
            moved = seen.z if self.layers[0].solver.exact else r
            nothing = X.new_empty(0)
            tally.add(0, Moments(nothing, self.products.mm(moved.mT, X), nothing, moved.sum(0), len(X)))
        elif now.inverse is None:
            assert r is not None  # as the layer takes steps
            p = self._like("p ahead", state[f"p{layer}"]).copy_(state[f"p{layer}"])
            update_p_gradient_(p, r, now.W, below.q, below.u, self.penalties.nu, self.penalties.rho, self.products)
            tally.add(layer, Moments.of(p, r, self.products))
        else:
            p = self._p_exact("p ahead", seen.z, now, below)
            if self.products.terms:  # at a stage's start the centre is 0: sums must see p as rounded
                moments = Moments.of(p, seen.z, self.products)
            else:
                moments = Moments.about(self.layers[layer].centre, p, seen.z, out=p)
            tally.add(layer, moments)
