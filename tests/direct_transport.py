"""A stand-in for an MPI that takes GPU memory: ranks as threads whose messages of p and q stay on their devices.

It is as unkind as MPI may be. A buffer that is to receive is spoilt as soon as the receive starts, one that is sent
must be the same when the send ends, and the device must have been waited for since it was last given work on it.
So is the stand-in's side stream: no event is reached, and nothing is copied, before it is waited for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from stand_in_device import DeviceTensor, StandIn
from thread_transport import ThreadTransport
from torch.utils._mode_utils import no_dispatch

from pdadmm.parallel.gpu_aware import Support

__all__ = ["OWN", "DirectThreads", "Late", "Watched", "watching"]

OWN = threading.local()  # each rank's Watched


class Watched(StandIn):
    """A stand-in that counts what is done on its arrays, and knows how much of it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.waited_for, self.waits, self.starts = 0, -1, 0, 0
        self.touched, self.written = Counter[int](), Counter[int]()  # in which operation the memory was, at the last
        self.sizes: set[int] = set()  # in numbers and in bytes, of arrays on the device that were sent or received

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, due = kwargs or {}, function._schema.arguments
        given = [*zip(due, args, strict=False), *((one, kwargs[one.name]) for one in due if one.name in kwargs)]
        arrays = [(one, x) for one, x in given if isinstance(x, DeviceTensor) and x.layout == torch.strided]
        self.operations += bool(arrays)
        for one, x in arrays:
            self.touched[memory(x)] = self.operations
            if one.alias_info is not None and one.alias_info.is_write:
                self.written[memory(x)] = self.operations
        return super().__torch_dispatch__(function, types, args, kwargs)

    def before_start(self, buffer: torch.Tensor, receives: bool) -> None:
        """Work that reads what is sent may go on."""
        last = (self.touched if receives else self.written)[memory(buffer)]
        assert last <= self.waited_for, "a message started while the device was at work on it"
        self.starts += 1
        self.sizes |= {buffer.numel(), buffer.numel() * buffer.element_size()}


def memory(x: DeviceTensor) -> int:
    """Return where the memory of an array begins that its views share."""
    with no_dispatch():
        return x.inner.untyped_storage().data_ptr()


class Point:
    """An event of a Late that is reached when it is waited for, and not before."""

    def __init__(self, reach: Callable[[], Any]) -> None:
        self.reach: Callable[[], Any] | None = reach

    def query(self) -> bool:
        return self.reach is None

    def synchronize(self) -> None:
        if self.reach is not None:
            self.reach()
            self.reach = None


class Late:
    """A side stream whose copies are done as late as they may be."""

    def mark(self) -> Point:
        device = getattr(OWN, "device", None)  # none where a plain StandIn is entered
        number = 0 if device is None else device.operations

        def reach() -> None:
            if device is not None:
                device.waits, device.waited_for = device.waits + 1, max(device.waited_for, number)

        return Point(reach)

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Point) -> Point:
        return Point(lambda: target.copy_(source))

    def hold(self, event: Point) -> None:
        event.synchronize()  # the stand-in's work is done as it is asked for


def watching(work: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Watched]]:
    """Return ``work`` of a rank done on a Watched, which is returned with its result."""

    def watched(transport: Any) -> tuple[Any, Watched]:
        with Watched() as OWN.device:
            return work(transport), OWN.device

    return watched


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
            OWN.device.before_start(self.parts[1], self.receives)
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
