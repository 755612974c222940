"""The boundary between layers l and l+1: p_{l+1}, q_l and u_l as both neighbours know them."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.activations import PiecewiseLinear
from pdadmm.admm.channel import Channel
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.updates import update_q_, update_q_u_, update_u_
from pdadmm.parallel.transport import Transport

__all__ = ["Link"]


class Link:
    """p (= p_{l+1}), q (= q_l) and u (= u_l), each (V, n_l), for the sides that live on this rank.

    ``p`` and ``q`` are as transmitted; ``own_p`` and ``own_q`` are the arrays that the updates write, the same
    tensors unless messages are quantized. p travels down and q up; u never travels, since both sides apply the
    same update to the same p and q. ``h`` is the activation that the stage starts from, known to both sides;
    ``layer`` numbers the boundary (l - 1).
    """

    def __init__(
        self, h: Tensor, layer: int, lower: bool, upper: bool, quantizer: Quantizer | None = None, seed: int = 0
    ) -> None:
        assert lower or upper
        self.lower, self.upper = lower, upper
        p = h.clone() if quantizer is None else quantizer.start_p(h)
        coders = (None, None) if quantizer is None else (quantizer.coder("p"), quantizer.coder("q"))
        self.p_channel = Channel(p, "p", layer, coders[0], (seed, layer))
        self.q_channel = Channel(h, "q", layer, coders[1], (seed, layer))
        self.u = torch.zeros_like(h)
        self.q_under_way = False
        self.remote = False

    @property
    def p(self) -> Tensor:
        """p_{l+1} as both sides know it."""
        return self.p_channel.value

    @property
    def q(self) -> Tensor:
        """q_l as both sides know it."""
        return self.q_channel.value

    @property
    def own_p(self) -> Tensor:
        """p_{l+1} of the upper side, before it is quantized."""
        return self.p_channel.own

    @property
    def own_q(self) -> Tensor:
        """q_l of the lower side, before it is quantized."""
        return self.q_channel.own

    def connect(self, transport: Transport, peer: int) -> None:
        """Prepare the messages with the rank that holds the other side."""
        self.remote = True
        self.p_channel.connect(transport, peer, sends=self.upper, u=self.u)
        self.q_channel.connect(transport, peer, sends=self.lower, u=self.u)

    # The upper side: it writes p, and waits for q.

    def wait_q(self) -> None:
        """Upper side, before p is updated: take q of the last iteration and bring u up to date."""
        if self.q_under_way:
            self.p_channel.send_whole = self.q_channel.take()
            self.q_under_way = False
            update_u_(self.u, self.p, self.q, self.rho)
        if self.remote:
            self.p_channel.wait_sent()

    def send_p(self, rho: float) -> None:
        """Upper side, after p was updated: send it down and be ready for q; ``rho`` is this iteration's."""
        self.rho = rho
        self.p_channel.send(ask_resend=self.q_channel.differs)
        if self.remote:
            self.q_channel.post()
            self.q_under_way = True

    # The lower side: it writes q, and waits for p.

    def post_p(self) -> None:
        """Lower side, as the iteration begins: be ready for p."""
        if self.remote:
            self.p_channel.post()

    def wait_p(self) -> None:
        """Lower side, before q is updated: take p of this iteration."""
        if self.remote:
            self.q_channel.send_whole = self.p_channel.take()
            self.q_channel.wait_sent()

    def update_q_u(self, z: Tensor, activation: PiecewiseLinear, nu: float, rho: float) -> None:
        """Lower side: update q, send it up, and bring u up to date."""
        ask_resend = self.p_channel.differs
        if self.q_channel.coder is None:
            update_q_u_(self.own_q, self.u, self.p, z, activation, nu, rho)
            self.q_channel.send(ask_resend)
        else:
            # u sees q as transmitted
            update_q_(self.own_q, self.p, self.u, activation(z), nu, rho)
            self.q_channel.send(ask_resend)
            update_u_(self.u, self.p, self.q, rho)

    def finish(self) -> None:
        """End of the stage: complete what is under way, so that both sides agree."""
        if self.remote and self.upper:
            self.wait_q()
        elif self.remote:
            self.q_channel.wait_sent()
