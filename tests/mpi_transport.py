"""What every transport must do, checked on all of its ranks: the same function in one process and under mpirun."""

from __future__ import annotations

import torch

from pdadmm.errors import InputError
from pdadmm.parallel.launch import together

__all__ = ["check_transport"]


def check_transport(transport) -> None:
    """Run every operation of a transport; AssertionError where one does not keep its word."""
    rank, size, ledger = transport.rank, transport.size, transport.ledger
    assert 0 <= rank < size
    check_collectives(transport)
    check_arrays(transport)
    check_messages(transport)
    check_sums(transport)
    check_alltoall(transport)
    check_together(transport)
    transport.barrier()
    sent = transport.allgather((dict(ledger.sent), dict(ledger.received)))
    for kind in ("p", "q", "gradients", "init"):
        assert sum(s.get(kind, 0) for s, _ in sent) == sum(r.get(kind, 0) for _, r in sent), kind
    if size == 1:
        assert ledger.bytes_sent == ledger.bytes_other == 0
        assert not ledger.messages


def check_collectives(transport) -> None:
    rank, size = transport.rank, transport.size
    gathered = transport.gather({"rank": rank})
    assert (gathered is None) == (rank > 0)
    if rank == 0:
        assert gathered == [{"rank": peer} for peer in range(size)]
    everyone = transport.allgather(("value", rank))
    assert list(everyone) == [("value", peer) for peer in range(size)]
    for root in range(size):
        value = transport.bcast([root, None] if rank == root else None, root=root, kind="other")
        assert value == [root, None]
    before = transport.ledger.bytes_sent
    transport.allgather(torch.zeros(1000), "evaluation")
    assert transport.ledger.bytes_sent == before  # only what an iteration needs counts as sent


def check_arrays(transport) -> None:
    """A ring of single sends: even ranks send first."""
    rank, size = transport.rank, transport.size
    if size == 1:
        return
    for dtype in (torch.float32, torch.float64, torch.int64, torch.uint8):
        for shape in ((3, 2), (4,), (0, 5)):
            own, found = torch.full(shape, rank, dtype=dtype), torch.full(shape, 99, dtype=dtype)
            after, before = (rank + 1) % size, (rank - 1) % size
            if rank % 2 == 0:
                transport.send(own, after, "init")
                same = transport.receive(found, before, "init")
            else:
                same = transport.receive(found, before, "init")
                transport.send(own, after, "init")
            assert same is found
            assert torch.equal(found, torch.full(shape, before, dtype=dtype))


def check_messages(transport) -> None:
    """Repeated messages from the same buffers: up with q, down with p, as the links use them."""
    rank, size = transport.rank, transport.size
    if size == 1:
        return
    q_out, q_in = torch.zeros(5, 3), torch.zeros(5, 3)
    up = transport.sender(q_out, rank + 1, tag=2, kind="q") if rank + 1 < size else None
    down = transport.receiver(q_in, rank - 1, tag=2, kind="q") if rank > 0 else None
    p_out, p_in = torch.zeros(5, 3), torch.zeros(5, 3)
    send_p = transport.sender(p_out, rank - 1, tag=1, kind="p") if rank > 0 else None
    take_p = transport.receiver(p_in, rank + 1, tag=1, kind="p") if rank + 1 < size else None
    before = transport.ledger.sent["p"] + transport.ledger.sent["q"]
    for message in (up, down, send_p, take_p):
        if message is not None:
            message.wait()  # nothing is under way: no effect
    for turn in range(4):
        for message in (take_p, down):
            if message is not None:
                message.start()
        p_out.fill_(100 * turn + rank)
        q_out.fill_(1000 * turn + rank)
        for message in (send_p, up):
            if message is not None:
                message.start()
        for message in (take_p, down, send_p, up):
            if message is not None:
                message.wait()
                message.wait()
        if take_p is not None:
            assert torch.equal(p_in, torch.full((5, 3), 100.0 * turn + rank + 1))
        if down is not None:
            assert torch.equal(q_in, torch.full((5, 3), 1000.0 * turn + rank - 1))
    count = (send_p is not None) + (up is not None)
    assert transport.ledger.sent["p"] + transport.ledger.sent["q"] - before == 4 * count * 5 * 3 * 4
    assert transport.ledger.bytes_sent == transport.ledger.sent["p"] + transport.ledger.sent["q"]


def check_sums(transport) -> None:
    """Sums in place: the same on every rank, and a ring's bytes in the ledger."""
    rank, size, ledger = transport.rank, transport.size, transport.ledger
    for dtype in (torch.float32, torch.float64):
        for shape in ((7,), (3, 4), (0,)):
            before, messages = ledger.sent["gradients"], ledger.messages["gradients"]
            array = torch.full(shape, 10.0 + rank, dtype=dtype)
            assert transport.sum_(array, "gradients") is array
            assert torch.equal(array, torch.full(shape, 10.0 * size + size * (size - 1) / 2, dtype=dtype))
            nbytes = array.numel() * array.element_size()
            assert ledger.sent["gradients"] - before == 2 * nbytes * (size - 1) // size
            assert ledger.messages["gradients"] - messages == (size > 1)
    assert ledger.bytes_sent == sum(ledger.sent[kind] for kind in ("p", "q", "gradients"))
    random = torch.linspace(0, 1, 1001) * (1 + rank) ** 0.5
    totals = transport.allgather(transport.sum_(random, "gradients").numpy().tobytes())
    assert set(totals) == {random.numpy().tobytes()}  # the weights of all ranks stay equal, bit for bit


def check_alltoall(transport) -> None:
    """Runs of unequal length arrive in the order of ranks; what stays on a rank is not counted."""
    rank, size, ledger = transport.rank, transport.size, transport.ledger
    sent, received = ledger.sent["blocks"], ledger.received["blocks"]
    runs = [torch.full((rank + peer,), 100.0 * rank + peer) for peer in range(size)]
    expected = torch.cat([torch.full((rank + peer,), 100.0 * peer + rank) for peer in range(size)])
    counts = [rank + peer for peer in range(size)]
    incoming = torch.empty(sum(counts))
    assert transport.alltoall(torch.cat(runs), counts, incoming, counts, "blocks") is incoming
    assert torch.equal(incoming, expected)
    moved = 4 * (sum(counts) - 2 * rank)
    assert ledger.sent["blocks"] - sent == ledger.received["blocks"] - received == moved


def check_together(transport) -> None:
    rank, size = transport.rank, transport.size
    assert together(transport, lambda: rank) == rank

    def refuse():
        if rank >= size // 2:
            raise InputError("thing", rank, "something else", "change it")

    told = None
    try:
        together(transport, refuse)
    except InputError as error:
        told = str(error)
    assert told == f"thing = {size // 2}: must be something else; change it"  # the lowest rank's, on all
