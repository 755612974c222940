"""Ranks as threads of one process: many shapes of a grid in the time of one mpiexec."""

from __future__ import annotations

import functools
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from pdadmm.admm.channel import Channel
from pdadmm.errors import DivergenceError
from pdadmm.parallel.gpu_aware import Support
from pdadmm.parallel.ledger import Ledger, ring_bytes
from pdadmm.trace import NO_TRACE

__all__ = ["ThreadTransport", "going_astray", "run_ranks"]

PATIENCE = 60  # seconds: a rank that waits longer has been left alone


class Meeting:
    """Where the ranks of one communicator exchange values, and leave each other mail."""

    def __init__(self, size: int) -> None:
        self.barrier, self.values = threading.Barrier(size, timeout=PATIENCE), [None] * size
        self.mail: dict[tuple, queue.SimpleQueue] = defaultdict(queue.SimpleQueue)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


class ThreadMessage:
    """A repeated message through a queue: what is put there is a copy."""

    def __init__(self, buffer: torch.Tensor, box: queue.SimpleQueue, record: Callable, receives: bool) -> None:
        self.buffer, self.box, self.record, self.receives, self.under_way = buffer, box, record, receives, False

    def start(self) -> None:
        self.under_way = True
        if not self.receives:
            self.box.put(self.buffer.clone())
            self.record(self.buffer.numel() * self.buffer.element_size())

    def wait(self) -> None:
        if self.under_way and self.receives:
            self.buffer.copy_(self.box.get(timeout=PATIENCE))
            self.record(self.buffer.numel() * self.buffer.element_size())
        self.under_way = False


class ThreadTransport:
    """One rank; the ledger counts arrays alone, not what would go ahead of them."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        self.rank, self.size, self.meeting = rank, size, meeting
        self.local_rank, self.local_size = rank, size
        self.ledger, self.trace = Ledger(), NO_TRACE

    def gpu_aware(self):
        return Support(None)

    def sender(self, buffer, peer, tag, kind):
        assert buffer.is_cpu  # MPI knows no other memory
        box = self.meeting.mail[self.rank, peer, tag]
        return ThreadMessage(buffer, box, functools.partial(self.ledger.record_sent, kind), receives=False)

    def receiver(self, buffer, peer, tag, kind):
        assert buffer.is_cpu
        box = self.meeting.mail[peer, self.rank, tag]
        return ThreadMessage(buffer, box, functools.partial(self.ledger.record_received, kind), receives=True)

    def send(self, array, peer, kind):
        assert array.is_contiguous()
        self.sender(array, peer, 0, kind).start()

    def receive(self, array, peer, kind):
        message = self.receiver(array, peer, 0, kind)
        message.start()
        message.wait()
        return array

    def allgather(self, value, kind="control"):
        return self.meeting.exchange(self.rank, value)

    def gather(self, value, kind="control"):
        found = self.allgather(value)
        return found if self.rank == 0 else None

    def bcast(self, value, root=0, kind="control"):
        return self.allgather(value)[root]

    def sum_(self, array, kind):
        assert array.is_cpu
        parts = self.meeting.exchange(self.rank, array.clone())
        array.copy_(functools.reduce(torch.add, parts))
        nbytes = ring_bytes(array.numel() * array.element_size(), self.size)
        self.ledger.record_sent(kind, nbytes)
        self.ledger.record_received(kind, nbytes)
        return array

    def alltoall(self, outgoing, counts, incoming, incoming_counts, kind):
        parts = self.meeting.exchange(self.rank, outgoing.clone().split(counts))
        runs = [part[self.rank] for part in parts]
        own = sum(len(run) for peer, run in enumerate(runs) if peer != self.rank) * outgoing.element_size()
        self.ledger.record_sent(kind, (len(outgoing) - counts[self.rank]) * outgoing.element_size())
        self.ledger.record_received(kind, own)
        return incoming.copy_(torch.cat(runs))

    def split(self, color):
        colors = self.allgather(color)
        members = [rank for rank, other in enumerate(colors) if other == color]
        made = Meeting(len(members)) if members[0] == self.rank else None
        part = type(self)(members.index(self.rank), len(members), self.allgather(made)[members[0]])
        part.ledger, part.trace = self.ledger, self.trace
        return part

    def barrier(self):
        self.meeting.barrier.wait()

    def close(self):
        return None


def run_ranks(ranks: int, work: Callable[[Any], Any], kind: type[ThreadTransport] = ThreadTransport) -> list[Any]:
    """Return what ``work(transport)`` returns on each of so many ranks; the first error of any is raised."""
    meeting, results, errors = Meeting(ranks), [None] * ranks, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(kind(rank, ranks, meeting))
        except threading.BrokenBarrierError:  # another rank's error broke it
            pass
        except DivergenceError as error:  # raised by all ranks, which need each other until then
            errors.append(error)
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


def going_astray(monkeypatch) -> list:
    """Change each receiver's third value behind its back, once; return the (kind, layer) of those that were."""
    held, changed = Channel.take, []

    def take(channel):
        if channel.number == 3 and channel.message is not None and (channel.kind, channel.layer) not in changed:
            changed.append((channel.kind, channel.layer))
            channel.coder.value[0, 0] += 1.0
        return held(channel)

    monkeypatch.setattr(Channel, "take", take)
    return changed
