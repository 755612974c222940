"""Messages between the two ends of a boundary, quantized or not, and what guards them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm import Quantizer
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.channel import HEADER_BYTES, MESSAGES_BETWEEN_DIGESTS, SHAPE, Channel
from pdadmm.admm.link import Link
from pdadmm.admm.packet import behind_header
from pdadmm.parallel.envelope import CHECKSUMS
from pdadmm.parallel.ledger import Ledger


class Wire:
    """A transport between two ranks of one test: a message is copied when both sides have started it."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, int], list[torch.Tensor]] = {}
        self.ledger = Ledger()

    def sender(self, buffer, peer, tag, kind):
        return _Send(self.queues.setdefault((kind, tag), []), buffer, self.ledger, kind)

    def receiver(self, buffer, peer, tag, kind):
        return _Receive(self.queues.setdefault((kind, tag), []), buffer)


class _Send:
    def __init__(self, queue, buffer, ledger, kind) -> None:
        self.queue, self.buffer, self.ledger, self.kind = queue, buffer, ledger, kind

    def start(self) -> None:
        self.queue.append(self.buffer.clone())
        self.ledger.record_sent(self.kind, self.buffer.numel() * self.buffer.dtype.itemsize)

    def wait(self) -> None:
        pass


class _Receive:
    def __init__(self, queue, buffer) -> None:
        self.queue, self.buffer = queue, buffer

    def start(self) -> None:
        pass

    def wait(self) -> None:
        self.buffer.copy_(self.queue.pop(0))


def boundary(quantizer: Quantizer | None, accelerate: bool = False) -> tuple[Link, Link, Link, Wire]:
    """Return one boundary three times: in one process, and as the lower and upper side of two ranks."""
    h = torch.rand(40, 8, generator=torch.Generator().manual_seed(1))
    quantizer = None if quantizer is None else quantizer.checked()
    wire = Wire()
    more = {"quantizer": quantizer, "seed": 5, "accelerate": accelerate}
    local = Link(h.clone(), 4, lower=True, upper=True, **more)
    lower = Link(h.clone(), 4, lower=True, upper=False, **more)
    upper = Link(h.clone(), 4, lower=False, upper=True, **more)
    lower.connect(wire, 1)
    upper.connect(wire, 0)
    return local, lower, upper, wire


def exchange(local: Link, lower: Link, upper: Link, random: torch.Generator) -> list[tuple[torch.Tensor, ...]]:
    """One iteration of the boundary with made-up p, z and r, the same in one process and across ranks.

    Returns (z, r) as one process and as the lower side leaves them.
    """
    p, z, r = (torch.rand(local.p.shape, generator=random) for _ in range(3))
    for link in (local, upper):
        link.wait_q()
        link.own_p.copy_(p)
        if link is upper:
            lower.post_p()
        link.send_p(0.5)
    changed = []
    for link in (local, lower):
        link.wait_p()
        changed.append((z.clone(), r.clone()))
        link.update_q_u(*changed[-1], ACTIVATIONS["relu"], 0.3, 0.5)
    for new_z, new_r in changed:
        if local.momentum is None:
            assert torch.equal(new_z, z)
            assert torch.equal(new_r, r)
        torch.testing.assert_close(new_z - new_r, z - r, rtol=0, atol=1e-6)  # a = z - r stays
    return changed


QUANTIZERS = [
    None,
    *(Quantizer(bits=bits) for bits in (16, 8, 4, 2, 1, 0)),
    Quantizer(bits=4, coding="value"),
    Quantizer(bits=4, rounding="stochastic"),
    Quantizer(bits=2, error_feedback=True),
    Quantizer(bits=8, delta="message"),
    Quantizer(bits=8, q_bits=32),
]


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_both_sides_of_a_boundary_know_what_one_process_knows(quantizer, accelerate):
    local, lower, upper, _ = boundary(quantizer, accelerate)
    random = torch.Generator().manual_seed(2)
    betas = []
    for _ in range(2 * MESSAGES_BETWEEN_DIGESTS + 1):
        ours, theirs = exchange(local, lower, upper, random)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
        assert torch.equal(lower.own_q, local.own_q)
        betas.append(local.momentum.beta if accelerate else 0.0)
    for link in (lower, upper):
        link.finish()
        for name in ("p", "q", "u"):
            assert torch.equal(getattr(link, name), getattr(local, name)), name
        assert link.p_channel.resent == link.q_channel.resent == 0
        if accelerate:
            assert momentum_of(link) == momentum_of(local)
    if accelerate and (quantizer is None or (quantizer.bits > 0 and not quantizer.error_feedback)):
        assert 0.0 in betas[1:]  # it started again,
        assert max(betas) > 0.2  # and it went on


def momentum_of(link: Link) -> list:
    """What both sides must agree on of the momentum of their boundary."""
    m = link.momentum
    return [m.t, m.beta, m.measure, *(x.tolist() for x in (m.q, m.last_q, m.last_u))]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_a_message_is_as_long_as_the_channel_says(quantizer):
    local, lower, upper, wire = boundary(quantizer)
    random = torch.Generator().manual_seed(2)
    for _ in range(3):
        exchange(local, lower, upper, random)
    assert wire.ledger.sent["p"] == 3 * local.p_channel.payload_bytes
    assert wire.ledger.sent["q"] == 3 * local.q_channel.payload_bytes


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["p", "q"])
def test_ends_that_differ_are_brought_together_by_one_whole_message(kind, bits, accelerate):
    local, lower, upper, _ = boundary(Quantizer(bits=bits), accelerate)
    random = torch.Generator().manual_seed(2)
    exchange(local, lower, upper, random)
    receiver = lower.p_channel if kind == "p" else upper.q_channel
    receiver.value[3, 2] += 0.25  # as a flipped bit in memory would
    for _ in range(MESSAGES_BETWEEN_DIGESTS + 2):
        exchange(local, lower, upper, random)
        if accelerate and lower.resent:  # its first iteration after the whole value: the momentum starts anew
            assert lower.momentum.beta == 0.0
            assert lower.momentum.measure == np.inf
            break
    for _ in range(3):
        exchange(local, lower, upper, random)
    for link in (lower, upper):
        link.finish()
    assert receiver.resent == 1
    assert torch.equal(lower.p, upper.p)
    assert torch.equal(lower.q, upper.q)
    assert torch.equal(lower.u, upper.u)
    if accelerate:
        assert lower.resent == upper.resent == 1
        assert momentum_of(lower) == momentum_of(upper)


def test_a_value_that_is_not_finite_arrives_as_nan_and_ends_nobody():
    local, lower, upper, _ = boundary(Quantizer(bits=4))
    for link in (local, upper):
        link.wait_q()
        link.own_p.fill_(torch.inf)
    lower.post_p()
    local.send_p(0.5)
    upper.send_p(0.5)
    lower.wait_p()
    assert bool(torch.isnan(lower.p).all())
    assert bool(torch.isnan(local.p).all())


@pytest.mark.parametrize("quantizer", [None, Quantizer(bits=4), Quantizer(bits=0)], ids=str)
@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ({"number": 6}, "p of boundary 4, message 7, 40 x 8"),
        ({"layer": 3}, "p of boundary 3, message 1, 40 x 8"),
        ({"kind": "q"}, "q of boundary 4, message 1, 40 x 8"),
        ({"shape": SHAPE.pack(39, 9 | 64 << 24)}, "p of boundary 4, message 1, 39 x 9 in 64 bits"),
    ],
)
def test_a_message_that_is_not_due_is_refused_with_words(quantizer, change, sent):
    """Of another iteration, boundary or kind, or of another shape or type."""
    _, lower, upper, _ = boundary(quantizer)
    lower.post_p()
    for name, value in change.items():
        setattr(upper.p_channel, name, value)
    upper.send_p(0.5)
    with pytest.raises(RuntimeError, match="out of order") as caught:
        lower.wait_p()
    bits = 32 if quantizer is None else quantizer.bits
    assert sent in str(caught.value)
    assert f"p of boundary 4, message 1, 40 x 8 in {bits} bits was due" in str(caught.value)


@pytest.mark.parametrize("quantizer", [None, Quantizer(bits=4), Quantizer(bits=8, q_bits=32)], ids=str)
def test_with_checksums_every_damaged_message_is_noticed(quantizer, monkeypatch):
    """A bit that falls over on the way: a coded value is sent again, whole; a plain one ends the run."""
    monkeypatch.setenv(CHECKSUMS, "1")
    local, lower, upper, wire = boundary(quantizer)
    random = torch.Generator().manual_seed(2)
    exchange(local, lower, upper, random)
    start = upper.p_channel.send

    def damaged(ask_resend=False):
        start(ask_resend)
        wire.queues["p", 9][-1][HEADER_BYTES + 70] ^= 16

    upper.p_channel.send = damaged
    if quantizer is None:
        with pytest.raises(RuntimeError, match="message 2 of p on boundary 4 arrived damaged"):
            exchange(local, lower, upper, random)
        return
    exchange(local, lower, upper, random)
    assert lower.p_channel.differs
    upper.p_channel.send = start
    for _ in range(2):
        exchange(local, lower, upper, random)
    assert lower.p_channel.resent == 1
    for link in (lower, upper):
        link.finish()
    assert all(torch.equal(getattr(lower, name), getattr(upper, name)) for name in "pqu")


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=20, deadline=None)
def test_a_value_behind_its_header_is_the_value_and_stays_aligned(rows, columns, dtype):
    value = torch.rand(rows, columns, dtype=dtype)
    message, inside = behind_header(value)
    assert torch.equal(inside, value)
    assert inside.data_ptr() % 64 == 0
    assert message.numel() == HEADER_BYTES + value.numel() * value.element_size()
    assert message[HEADER_BYTES:].numpy().tobytes() == value.numpy().tobytes()


def test_without_a_quantizer_no_copy_is_made():
    channel = Channel(torch.zeros(4, 2), "p", 0, None, ())
    assert channel.value is channel.own
    assert channel.payload_bytes == HEADER_BYTES + 4 * 2 * 4


def test_ends_that_differ_are_brought_together_where_q_is_sent_as_it_is():
    local, lower, upper, _ = boundary(Quantizer(bits=4, q_bits=32))
    random = torch.Generator().manual_seed(2)
    exchange(local, lower, upper, random)
    lower.p_channel.value[0, 0] += 1.0
    for _ in range(MESSAGES_BETWEEN_DIGESTS + 1):
        exchange(local, lower, upper, random)
    for link in (lower, upper):
        link.finish()
    assert lower.p_channel.resent == upper.p_channel.resent == 1
    assert all(torch.equal(getattr(lower, name), getattr(upper, name)) for name in "pqu")


# 3 arrays of 32 bits a boundary is what the authors' code moves; header and column scales are counted.
@pytest.mark.parametrize(("bits", "least"), [(8, 5.9), (4, 11.5), (2, 22.0), (1, 40.0)])
def test_messages_shrink_by_what_the_bits_say(bits, least):
    nodes, width = 2000, 100
    link = Link(torch.zeros(nodes, width), 0, True, True, Quantizer(bits=bits).checked())
    sent = link.p_channel.payload_bytes + link.q_channel.payload_bytes
    assert sent == 2 * (HEADER_BYTES + 8 * width + -(-nodes * width * bits // 8))
    assert 3 * 4 * nodes * width / sent >= least
