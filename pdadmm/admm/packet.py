"""The memory of a repeated message: a header and a body behind it, in main memory, where MPI finds both."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.parallel.device import host_bytes

__all__ = ["HEADER_BYTES", "Packet", "behind_header", "header_of"]

HEADER_BYTES = 16
ALIGNMENT = 64  # bytes; torch's own, which a value behind its header keeps


def behind_header(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return a message of header and value, and the copy of ``value`` inside it."""
    room = torch.zeros(ALIGNMENT + value.numel() * value.element_size(), dtype=torch.uint8)
    inside = room[ALIGNMENT:].view(value.dtype).view(value.shape)
    inside.copy_(value)
    return room[ALIGNMENT - HEADER_BYTES :], inside


def header_of(buffer: Tensor) -> memoryview:
    """Return the bytes of a message's header, to be written and read in place."""
    return buffer.numpy().data[:HEADER_BYTES]


class Packet:
    """A message whose ``body`` lies where its array does: inside ``buffer``, or on a device with a copy in there.

    ``buffer`` is in main memory, ``header`` its first bytes. The sender calls ``to_host`` after it filled the body and
    before the message starts, the receiver ``to_device`` once it is there; both do nothing for a body inside.
    """

    def __init__(self, buffer: Tensor, body: Tensor) -> None:
        self.buffer, self.body, self.header = buffer, body, header_of(buffer)
        self.on_device = None if body.is_cpu else body.view(-1).view(torch.uint8)

    @classmethod
    def holding(cls, value: Tensor) -> Packet:
        """Return a message whose body is ``value``: a copy of it inside, or on a device the array itself."""
        if value.is_cpu:
            return cls(*behind_header(value))
        return cls(host_bytes(HEADER_BYTES + value.numel() * value.element_size(), value.device), value)

    @classmethod
    def of_bytes(cls, count: int, device: torch.device) -> Packet:
        """Return a message with a body of ``count`` bytes."""
        buffer = host_bytes(HEADER_BYTES + count, device)
        inside = buffer[HEADER_BYTES:]
        return cls(buffer, inside if device.type == "cpu" else inside.to(device))

    def to_host(self) -> None:
        """Copy the body behind the header, and wait for that."""
        if self.on_device is not None:
            self.buffer[HEADER_BYTES:].copy_(self.on_device)

    def to_device(self) -> None:
        """Copy the body from behind the header, and wait for that: the next message may come there."""
        if self.on_device is not None:
            self.on_device.copy_(self.buffer[HEADER_BYTES:])
