"""A stand-in for an MPI that takes GPU memory: ranks as threads whose messages of p and q stay on their devices.

It is as unkind as MPI may be. A buffer that is to receive is spoilt as soon as the receive starts, one that is sent
must be the same when the send ends, and nothing may have been given to the device since it was last waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from stand_in_device import DeviceTensor, StandIn
from thread_transport import ThreadTransport

from pdadmm.parallel.gpu_aware import Support

__all__ = ["OWN", "DirectThreads", "Watched", "wait_for_stream", "watching"]

OWN = threading.local()  # each rank's Watched


class Watched(StandIn):
    """A stand-in that counts what is done on its arrays, and knows when it was last waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.waited_at, self.waits, self.starts = 0, -1, 0, 0
        self.sizes: set[int] = set()  # in numbers and in bytes, of arrays on the device that were sent or received

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += any(isinstance(x, DeviceTensor) for x in args)
        return super().__torch_dispatch__(function, types, args, kwargs)

    def wait(self) -> None:
        self.waits, self.waited_at = self.waits + 1, self.operations

    def before_start(self, buffer: torch.Tensor) -> None:
        assert self.waited_at == self.operations, "a message started while the device was at work"
        self.starts += 1
        self.sizes |= {buffer.numel(), buffer.numel() * buffer.element_size()}


def watching(work: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Watched]]:
    """Return ``work`` of a rank done on a Watched, which is returned with its result."""

    def watched(transport: Any) -> tuple[Any, Watched]:
        with Watched() as OWN.device:
            return work(transport), OWN.device

    return watched


def wait_for_stream(device: torch.device) -> None:
    """What takes the place of pdadmm.parallel.device's."""
    OWN.device.wait()


class DirectMessage:
    """A header in main memory and a body on a device, through a queue; counted as one."""

    def __init__(self, buffer: torch.Tensor, header: torch.Tensor, box: Any, record: Any, receives: bool) -> None:
        assert not buffer.is_cpu
        assert header.is_cpu
        assert buffer.is_contiguous()
        self.parts, self.box, self.record, self.receives = (header, buffer), box, record, receives
        self.under_way = False

    def start(self) -> None:
        assert not self.under_way
        if isinstance(self.parts[1], DeviceTensor):
            OWN.device.before_start(self.parts[1])
        self.under_way = True
        if self.receives:
            for part in self.parts:
                raw(part).fill_(255)  # NaN, whatever the type
        else:
            self.sent = [raw(part).clone() for part in self.parts]
            self.box.put(self.sent)
            self._count()

    def wait(self) -> None:
        if not self.under_way:
            return
        self.under_way = False
        if self.receives:
            for part, sent in zip(self.parts, self.box.get(timeout=60), strict=True):
                raw(part).copy_(sent)
            self._count()
        else:
            same = (torch.equal(raw(part), sent) for part, sent in zip(self.parts, self.sent, strict=True))
            assert all(same), "a message was written to while it was sent"

    def _count(self) -> None:
        self.record(sum(raw(part).numel() for part in self.parts))


def raw(part: torch.Tensor) -> torch.Tensor:
    """The bytes of an array, in the memory where MPI would find them."""
    inside = part.inner if isinstance(part, DeviceTensor) else part
    return inside.view(-1).view(torch.uint8)


class DirectThreads(ThreadTransport):
    """One rank whose messages may lie on a device; sums and single arrays must be in main memory, as ever."""

    takes = True

    def gpu_aware(self) -> Support:
        return Support(self.takes, "test")

    def sender(self, buffer, peer, tag, kind, header=None):
        if header is None:
            return super().sender(buffer, peer, tag, kind)
        box = self.meeting.mail[self.rank, peer, tag]
        return DirectMessage(buffer, header, box, lambda n: self.ledger.record_sent(kind, n), receives=False)

    def receiver(self, buffer, peer, tag, kind, header=None):
        if header is None:
            return super().receiver(buffer, peer, tag, kind)
        box = self.meeting.mail[peer, self.rank, tag]
        return DirectMessage(buffer, header, box, lambda n: self.ledger.record_received(kind, n), receives=True)
