"""The memory of a repeated message, a header and a body, and what is waited for before and after it travels."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.parallel.device import host_bytes, wait_for_stream

__all__ = ["HEADER_BYTES", "Packet", "behind_header", "header_of", "packet_of", "room_for"]

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
    """A message in main memory: ``buffer`` is all of it, ``header`` its first bytes, ``body`` the array inside.

    ``before_send`` is called once the body is filled, ``before_receive`` once it may be overwritten, ``after_receive``
    once the message is there. ``apart`` is what a transport is given beside the buffer.
    """

    def __init__(self, buffer: Tensor, body: Tensor) -> None:
        self.buffer, self.body, self.header = buffer, body, header_of(buffer)
        self.apart: dict[str, Tensor] = {}

    def before_send(self) -> None:
        """Make the message what MPI is to read."""

    def before_receive(self) -> None:
        """Make sure that nobody reads the body any more."""

    def after_receive(self) -> None:
        """Make the body what MPI wrote."""


class StagedPacket(Packet):
    """A message whose body lies on a device, and is copied behind the header in main memory and from there."""

    def __init__(self, body: Tensor) -> None:
        super().__init__(host_bytes(HEADER_BYTES + body.numel() * body.element_size(), body.device), body)
        self.on_device = body.view(-1).view(torch.uint8)

    def before_send(self) -> None:
        self.buffer[HEADER_BYTES:].copy_(self.on_device)  # waits

    def after_receive(self) -> None:
        self.on_device.copy_(self.buffer[HEADER_BYTES:])  # waits: the next message may come there


class DirectPacket(Packet):
    """A message whose body MPI reads and writes on the device; its header goes ahead of it, from main memory.

    A header in front of the body on the device would be one message instead of two, but two more copies between the
    memories, and the receiver would have to wait for its device before it could look at the flags.
    """

    def __init__(self, body: Tensor) -> None:
        header = host_bytes(HEADER_BYTES, body.device)
        super().__init__(header, body)
        self.buffer, self.apart = body, {"header": header}

    def before_send(self) -> None:
        wait_for_stream(self.body.device)  # for the kernels that fill the body

    def before_receive(self) -> None:
        wait_for_stream(self.body.device)  # for those that read the last message


def packet_of(value: Tensor, direct: bool) -> Packet:
    """Return a message whose body is ``value``: a copy of it inside, or on a device the array itself."""
    if value.is_cpu:
        return Packet(*behind_header(value))
    return DirectPacket(value) if direct else StagedPacket(value)


def room_for(count: int, device: torch.device, direct: bool) -> Packet:
    """Return a message with a body of ``count`` bytes."""
    if device.type == "cpu":
        buffer = torch.zeros(HEADER_BYTES + count, dtype=torch.uint8)
        return Packet(buffer, buffer[HEADER_BYTES:])
    body = torch.zeros(count, dtype=torch.uint8, device=device)
    return DirectPacket(body) if direct else StagedPacket(body)
