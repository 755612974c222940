"""The boundary between layers l and l+1: p_{l+1}, q_l and u_l as both neighbours know them."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.acceleration import Momentum
from pdadmm.admm.activations import PiecewiseLinear
from pdadmm.admm.channel import Channel
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.shard import WHOLE, Shard
from pdadmm.admm.updates import update_q_, update_q_u_, update_u_
from pdadmm.checkpoint import State, prefixed, under
from pdadmm.parallel.transport import Transport

__all__ = ["Link"]


class Link:
    """p (= p_{l+1}), q (= q_l) and u (= u_l), each (V, n_l), for the sides that live on this rank.

    ``p`` and ``q`` are as transmitted; ``own_p`` and ``own_q`` are those of the side that updates them, the same
    tensors unless messages are quantized. p travels down and q up; u never travels, since both sides apply the
    same update to the same p and q. ``h`` is the activation that the stage starts from, known to both sides;
    ``layer`` numbers the boundary (l - 1). Where ``accelerate`` is set, q, own_q and u are extrapolated after
    every iteration. ``shard`` says which nodes these are.
    """

    def __init__(
        self,
        h: Tensor,
        layer: int,
        lower: bool,
        upper: bool,
        quantizer: Quantizer | None = None,
        seed: int = 0,
        accelerate: bool = False,
        shard: Shard = WHOLE,
    ) -> None:
        assert lower or upper
        self.lower, self.upper = lower, upper
        p = h.clone() if quantizer is None else quantizer.start_p(h)
        coders = (None, None) if quantizer is None else (quantizer.coder("p"), quantizer.coder("q"))
        self.p_channel = Channel(p, "p", layer, coders[0], (seed, layer), shard.rows.start)
        self.q_channel = Channel(h, "q", layer, coders[1], (seed, layer), shard.rows.start)
        self.u = torch.zeros_like(h)
        self.momentum = Momentum(h, coders[1] is not None, shard) if accelerate else None
        self.resent = 0
        self.q_under_way = False
        self.remote = False

    @property
    def p(self) -> Tensor:
        """p_{l+1} as both sides know it."""
        return self.p_channel.value

    @property
    def q(self) -> Tensor:
        """q_l as both sides know it."""
        return self.q_channel.value if self.momentum is None else self.momentum.q

    @property
    def own_p(self) -> Tensor:
        """p_{l+1} of the upper side, before it is quantized."""
        return self.p_channel.own

    @property
    def own_q(self) -> Tensor:
        """q_l of the lower side, before it is quantized."""
        return self.q_channel.own if self.momentum is None else self.momentum.own_q

    @property
    def plain(self) -> bool:
        """Whether both sides are on this rank and see p, q and u as they were updated."""
        return not self.remote and self.momentum is None and self.p_channel.coder is self.q_channel.coder is None

    def adopt(self, p: Tensor, q: Tensor, u: Tensor) -> None:
        """Let p, q and u of a plain link lie in these arrays, which hold their numbers."""
        assert self.plain
        for channel, value in ((self.p_channel, p), (self.q_channel, q)):
            channel.own = channel.value = value
        self.u = u

    def connect(self, transport: Transport, peer: int) -> None:
        """Prepare the messages with the rank that holds the other side."""
        self.remote = True
        self.p_channel.connect(transport, peer, sends=self.upper, u=self.u)
        self.q_channel.connect(transport, peer, sends=self.lower, u=self.u)

    def start_messages(self, wait: bool = True) -> None:
        """Start what was put off until the device is done with it; without ``wait`` only what may start now."""
        channels = (self.q_channel, self.p_channel) if self.upper else (self.p_channel, self.q_channel)
        for channel in channels:  # the one that receives first: its peer may be sending
            channel.start(wait)

    def state_of_upper(self) -> State:
        """Return what the upper side alone knows, for its layer's checkpoint; nothing is under way (``finish``)."""
        return prefixed("p", self.p_channel.state())

    def state_of_lower(self) -> State:
        """Return what the lower side knows, and what both do, for its layer's checkpoint."""
        momentum = {} if self.momentum is None else prefixed("momentum", self.momentum.state())
        return prefixed("q", self.q_channel.state()) | {"u": self.u} | momentum

    def restore(self, lower: State, upper: State) -> None:
        """Go on from the checkpoints of the layers on both sides."""
        self.p_channel.restore(under("p", upper))
        self.q_channel.restore(under("q", lower))
        self.u.copy_(lower["u"])
        if self.momentum is not None:
            self.momentum.restore(under("momentum", lower))

    # The upper side: it writes p, and waits for q.

    def wait_q(self) -> None:
        """Upper side, before p is updated: take q of the last iteration and bring u up to date."""
        if self.q_under_way:
            self.p_channel.send_whole = self.q_channel.take()
            self.q_under_way = False
            update_u_(self.u, self.p, self.q_channel.value, self.rho)
            self._accelerate()
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

    def update_q_u(self, z: Tensor, r: Tensor, activation: PiecewiseLinear, nu: float, rho: float) -> None:
        """Lower side: update q, send it up, and bring u up to date; z and r change where it is accelerated."""
        ask_resend, channel = self.p_channel.differs, self.q_channel
        if channel.coder is None:
            update_q_u_(channel.own, self.u, self.p, z, activation, nu, rho)
            channel.send(ask_resend)
        else:
            # u sees q as transmitted
            update_q_(channel.own, self.p, self.u, activation(z), nu, rho)
            channel.send(ask_resend)
            update_u_(self.u, self.p, channel.value, rho)
        self._accelerate()
        if self.momentum is not None:
            self.momentum.step_lower(channel.own, channel.value, z, r)

    def _accelerate(self) -> None:
        """Either side, after u was updated: extrapolate q and u; anew after a value had to be sent whole."""
        if self.momentum is not None:
            resent = self.p_channel.resent + self.q_channel.resent
            self.momentum.step(self.p, self.q_channel.value, self.u, restart=resent != self.resent)
            self.resent = resent

    def finish(self) -> None:
        """Complete what is under way, so that both sides agree: a stage ends, or a checkpoint is due."""
        if self.remote and self.upper:
            self.wait_q()
        elif self.remote:
            self.q_channel.wait_sent()
        if self.remote:  # the arrays may be freed now
            self.p_channel.settle()
            self.q_channel.settle()
