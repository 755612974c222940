"""The boundary between layers l and l+1: p_{l+1}, q_l and u_l as both neighbours see them."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.updates import update_u_
from pdadmm.parallel.transport import Message, Transport

__all__ = ["Link"]


class Link:
    """Holds p (= p_{l+1}), q (= q_l) and u (= u_l), each (V, n_l), for the sides that live on this rank.

    When both layers are local the neighbours share the arrays. Otherwise p travels down, q travels up and
    each side keeps a copy of what it received; u never travels, since both sides apply the same update to
    the same p and q. ``h`` is the activation that the stage starts from, known to both sides.
    """

    def __init__(self, h: Tensor, lower: bool, upper: bool) -> None:
        assert lower or upper
        self.q, self.p, self.u = h, h.clone(), torch.zeros_like(h)
        self.lower, self.upper = lower, upper
        self.p_message: Message | None = None
        self.q_message: Message | None = None
        self.q_under_way = False

    def connect(self, transport: Transport, peer: int, layer: int) -> None:
        """Prepare the messages with the rank that holds the other side; ``layer`` numbers the boundary."""
        make_p = transport.sender if self.upper else transport.receiver
        make_q = transport.sender if self.lower else transport.receiver
        self.p_message = make_p(self.p, peer, tag=2 * layer + 1, kind="p")
        self.q_message = make_q(self.q, peer, tag=2 * layer + 2, kind="q")

    @property
    def remote(self) -> bool:
        """Whether the other side lives on another rank."""
        return self.p_message is not None

    # The upper side: it holds p, and waits for q.

    def wait_q(self, rho: float) -> None:
        """Upper side, before p is updated: take q of the last iteration and bring u up to date."""
        if self.remote and self.q_under_way:
            self.q_message.wait()
            self.q_under_way = False
            update_u_(self.u, self.p, self.q, rho)
        if self.remote:
            self.p_message.wait()  # p of the last iteration has left: its buffer may be written

    def send_p(self) -> None:
        """Upper side, after p was updated: send it down and be ready for q."""
        if self.remote:
            self.q_message.start()
            self.q_under_way = True
            self.p_message.start()

    # The lower side: it holds q, and waits for p.

    def post_p(self) -> None:
        """Lower side, as the iteration begins: be ready for p."""
        if self.remote:
            self.p_message.start()

    def wait_p(self) -> None:
        """Lower side, before q is updated: take p of this iteration."""
        if self.remote:
            self.p_message.wait()
            self.q_message.wait()  # q of the last iteration has left

    def send_q(self, rho: float) -> None:
        """Lower side, after q was updated: send it up and bring u up to date."""
        if self.remote:
            self.q_message.start()
        update_u_(self.u, self.p, self.q, rho)

    def finish(self, rho: float) -> None:
        """End of the stage: complete what is under way, so that both sides agree."""
        if self.remote and self.upper:
            self.wait_q(rho)
        elif self.remote:
            self.q_message.wait()
