"""The memory of a repeated message, a header and a body, and the copies before and after it travels."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.parallel.device import host_bytes
from pdadmm.parallel.side_stream import REACHED, Event, side_stream

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

    ``before_send`` is called once the work that fills the body has been asked for, ``before_receive`` once all that
    reads it has, ``after_receive`` once the message is there. None of them waits for a device: MPI may have the buffer
    once the event ``released`` is reached, and work asked for after ``after_receive`` finds the body.
    ``apart`` is what a transport is given beside the buffer.

    A body is written again after the message has left (``Channel.wait_sent``), so no copy from it is under way then.
    Bodies and buffers live as long as the channel, and the channel until both have been waited for (``Link.finish``).
    Where an error cuts that short, a copy to the body still ends before later work of the device, and a copy from
    it to pinned memory that nobody reads; torch keeps pinned memory until copies from and to it are done.
    """

    def __init__(self, buffer: Tensor, body: Tensor) -> None:
        self.buffer, self.body, self.header = buffer, body, header_of(buffer)
        self.apart: dict[str, Tensor] = {}
        self.released: Event = REACHED

    def before_send(self) -> None:
        """Begin to make the message what MPI is to read."""

    def before_receive(self) -> None:
        """Note that nobody reads the body from here on."""

    def after_receive(self) -> None:
        """Begin to make the body what MPI wrote."""


class StagedPacket(Packet):
    """A message whose body lies on a device, and is copied behind the header in main memory and from there.

    The copies are the side stream's: to main memory behind the work that fills the body, to the device behind the work
    that reads the last message, as it stood when MPI was given the buffer.
    """

    def __init__(self, body: Tensor) -> None:
        super().__init__(host_bytes(HEADER_BYTES + body.numel() * body.element_size(), body.device), body)
        self.on_device, self.in_main = body.view(-1).view(torch.uint8), self.buffer[HEADER_BYTES:]
        self.side = side_stream(body.device)
        self.last_read = self.side.mark()

    def before_send(self) -> None:
        self.released = self.side.copy(self.in_main, self.on_device, after=self.side.mark())

    def before_receive(self) -> None:
        self.last_read = self.side.mark()  # the buffer is released once the last message was copied from there

    def after_receive(self) -> None:
        self.released = self.side.copy(self.on_device, self.in_main, after=self.last_read)
        self.side.hold(self.released)


class DirectPacket(Packet):
    """A message whose body MPI reads and writes on the device; its header goes ahead of it, from main memory.

    A header in front of the body on the device would be one message instead of two, but two more copies between the
    memories, and the receiver would have to wait for its device before it could look at the flags.
    """

    def __init__(self, body: Tensor) -> None:
        header = host_bytes(HEADER_BYTES, body.device)
        super().__init__(header, body)
        self.buffer, self.apart = body, {"header": header}
        self.side = side_stream(body.device)

    def before_send(self) -> None:
        self.released = self.side.mark()  # behind the work that fills the body

    def before_receive(self) -> None:
        self.released = self.side.mark()  # behind the work that reads the last message


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
