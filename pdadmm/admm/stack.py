"""Hidden layers of one width that lie on one rank: their arrays lie in one, and each update is one for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.layer import HiddenLayer, Layer, Terms
from pdadmm.admm.updates import Moments, assemble_p_, assemble_W, inverse_p, spd_solve, update_q_u_
from pdadmm.parallel.device import switched_on
from pdadmm.parallel.launch import together
from pdadmm.parallel.transport import Transport

__all__ = ["SETTING", "Stack", "small_and_plain", "stacked", "stacks_on"]

SETTING = "PDADMM_STACKS"  # environment variable: 0 updates layer after layer on a GPU, too
# Numbers in an array of one layer: beyond, its updates fill a GPU by themselves, and their launches cost little.
LARGEST = 1 << 20


class Stack:
    """K hidden layers of width n, one above the other, as one: p, z, r, q, u are (K, V, n), W is (K, n, n).

    The sums and products are those of ``HiddenLayer`` in its exact form, of all layers at once, which are equal to
    rounding. p, q and u of the K + 1 links around the layers lie in one array each; layers and links go on as views,
    so that whatever else reads them, or updates those of the layers beside, finds them in their places.
    """

    def __init__(self, layers: Sequence[HiddenLayer]) -> None:
        lowest = layers[0]
        self.layers, self.index, self.penalties = list(layers), lowest.index, lowest.penalties
        assert lowest.target is not None
        self.activation, self.shard, self.target = lowest.activation, lowest.shard, lowest.target
        self.belows = [link for layer in layers for link in layer.belows]
        self.aboves = [link for layer in layers for link in layer.aboves]
        links = [self.belows[0], *self.aboves]
        self.p, self.q, self.u = gathered(links, "p", "q", "u")
        for link, *own in zip(links, self.p, self.q, self.u, strict=True):
            link.adopt(*own)
        self.z, self.r = gathered(layers, "z", "r")
        for layer, z, r in zip(layers, self.z, self.r, strict=True):
            layer.z, layer.r = z, r
        self.set_weights(*gathered(layers, "W", "b", "centre"))
        self.unit = self.z.new_tensor([layer.unit for layer in layers])

    def set_weights(self, W: Tensor, b: Tensor, centre: Tensor) -> None:
        """Set W (K, n, n), b and the centres (K, n), and let the layers have theirs."""
        self.W, self.b, self.centre = W, b, centre
        for layer, *own in zip(self.layers, W, b, centre, strict=True):
            layer.W, layer.b, layer.centre = own

    def prepare_p(self, scratch: dict[torch.Size, Tensor]) -> None:
        """nu (z - b) W and (nu W^T W + rho I)^-1 of every layer."""
        nu, rho = self.penalties.nu, self.penalties.rho
        if self.z.shape not in scratch:
            scratch[self.z.shape] = torch.empty_like(self.z)
        bW = self.b[:, None] @ self.W
        self.right = torch.baddbmm(bW, self.z, self.W, beta=-nu, alpha=nu, out=scratch[self.z.shape])
        self.inverse = inverse_p(self.W, nu, rho)

    def update_p(self) -> None:
        """p of every layer from q and u of the link below it."""
        assemble_p_(self.right, self.q[:-1], self.u[:-1], self.penalties.rho)
        torch.bmm(self.right, self.inverse, out=self.p[:-1])
        del self.inverse

    def update_W_b(self, scratch: dict[torch.Size, Tensor]) -> None:
        """W, then b, of every layer; until z is updated, r holds a = p W^T + b."""
        p, penalties = self.p[:-1], self.penalties
        about = torch.sub(p, self.centre[:, None], out=scratch[p.shape])
        sums = about.mT @ about, self.z.mT @ about, about.sum(1), self.z.sum(1)
        moments = Moments(*sums, p.shape[1], self.centre).over(self.shard)
        prox, kappa = penalties.prox_W * self.unit, penalties.kappa_identity * self.unit
        mu_over_nu = penalties.mu / penalties.nu
        W = spd_solve(*assemble_W(moments, self.W, mu_over_nu, prox, kappa, self.target))
        centre = moments.mean_p()
        b = moments.z_sum / moments.count - (W @ centre[..., None]).squeeze(-1)
        self.set_weights(W, b, centre)
        torch.baddbmm(b[:, None], p, W.mT, out=self.r)

    def update_z(self) -> None:
        """z of every layer, and r = z - a."""
        self.activation.update_z_(self.z, self.r, self.q[1:], self.penalties.prox_z)

    def update_q(self) -> None:
        """q and u of the link above every layer."""
        nu, rho = self.penalties.nu, self.penalties.rho
        update_q_u_(self.q[1:], self.u[1:], self.p[1:], self.z, self.activation, nu, rho)
        for link in self.aboves:
            link.q_channel.send()

    def terms(self) -> list[Terms]:
        """Return every layer's share of the objective and the residuals; the device is waited for once."""
        penalties, q = self.penalties, self.q[1:].double()
        gap = self.p[1:] - q
        rows = {
            "linear": self.r.double().square(),
            "activation": (q - self.activation(self.z)).square(),
            "link": gap.square(),
            "dual": self.u[1:].double() * gap,
            "q_squared": q.square(),
        }
        sums = {name: values.sum((1, 2)) for name, values in rows.items()}
        if self.shard.leads:
            kappa = penalties.kappa_identity * self.unit.double()
            drawn = (self.W.double() - self.target).square().sum((1, 2))
            sums["ridge"] = 0.5 * penalties.nu * kappa * drawn
            if penalties.mu:
                sums["ridge"] += 0.5 * penalties.mu * self.W.double().square().sum((1, 2))
        columns = torch.stack([*sums.values()], 1).tolist()
        return [Terms(**dict(zip(sums, column, strict=True))) for column in columns]


def gathered(holders: Sequence[Any], *names: str) -> list[Tensor]:
    """Return an array of each name that has those of all holders, one behind the other."""
    return [torch.stack([getattr(holder, name) for holder in holders]) for name in names]


def stacks_on(device: torch.device, transport: Transport) -> bool:
    """Whether equal layers are stacked on ``device``: on a GPU, unless a rank's PDADMM_STACKS is 0; collective there.

    On the CPU products fill a core, and one layer after the other has the same bits on every number of ranks.
    InputError, on all ranks, where one's is neither 0 nor 1.
    """
    if device.type != "cuda":
        return False
    return all(transport.allgather(together(transport, lambda: switched_on(SETTING))))


def small_and_plain(layer: HiddenLayer, rows: int) -> bool:
    """Whether a layer is small, in its exact form, with products in full, beside plain links of this rank."""
    links = (*layer.belows, *layer.aboves)
    return (
        layer.exact
        and layer.grid is None
        and not layer.products.terms
        and all(link.plain for link in links)
        and rows * max(layer.W.shape) <= LARGEST
    )


def stackable(layer: Layer, rows: int) -> bool:
    """Whether a layer may be part of a stack: hidden, square, with nothing of its own that the others have not."""
    return (
        isinstance(layer, HiddenLayer)
        and layer.loss is None
        and layer.target is not None
        and small_and_plain(layer, rows)
    )


def stacked(layers: Sequence[Layer], rows: int) -> list[Layer | Stack]:
    """Return ``layers``, lowest first, with those that follow each other and may be stacked in one Stack.

    ``rows`` is the number of nodes of the largest shard: all shards of a layer sum the same sums.
    """
    units: list[Layer | Stack] = []
    for fitting, run in groupby(layers, lambda layer: stackable(layer, rows)):
        members = list(run)
        if fitting and len(members) > 1:
            units.append(Stack([layer for layer in members if isinstance(layer, HiddenLayer)]))
        else:
            units += members
    return units
