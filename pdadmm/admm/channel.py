"""One direction of a boundary between layers: an array of one side, and the value that both sides know."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.packet import HEADER_BYTES, header_of, packet_of, room_for
from pdadmm.parallel.envelope import checksums
from pdadmm.parallel.transport import Message, Transport
from pdadmm.quantize import Coder, NotFiniteError, digest

__all__ = ["HEADER_BYTES", "Channel"]

# Header of a message: flags, kind, layer, number of the message; then shape and bits, or a hash of the value after it.
HEADER = struct.Struct("<BBHI8s")
SHAPE = struct.Struct("<II")  # rows; columns and, in the highest byte, bits of a number
assert HEADER.size == HEADER_BYTES
HAS_DIGEST, RESEND, NOT_FINITE = 1, 2, 4
KINDS = {"p": 1, "q": 2}
NAMES = {number: kind for kind, number in KINDS.items()}
# A hash reads the whole value: now and then is enough to notice that the two ends differ.
MESSAGES_BETWEEN_DIGESTS = 16


class Channel:
    """Carries p down or q up across one boundary, as it is or through a Coder.

    ``own`` is the sender's array, written by its update; ``value`` is what both ends know of it, the same
    bits at both. A message is a 16-byte header (kind, layer, number, shape, bits) and a body; one that the receiver
    did not expect is a RuntimeError that names both. Without a coder ``own`` and ``value`` are one tensor, which is
    the body. With one, the body is the coder's packed buffer; sender and receiver start from the same ``initial``,
    and a hash now and then guards that they agree. A receiver whose value differs asks, in its next message of
    the other direction, for the value itself; that message also brings u, which had been fed with it. Where the
    environment variable PDADMM_CHECKSUMS is 1, every message carries the hash.

    On a device MPI may not have a message's buffer at once: ``send`` and ``post`` then put its start off, until
    ``start``. Whoever goes on to wait for another rank must call that first, or both may wait for ever.

    ``key`` (seed, layer) seeds stochastic rounding together with the number of the message and those of the nodes,
    of which ``first_row`` is the first.
    """

    def __init__(
        self, initial: Tensor, kind: str, layer: int, coder: Coder | None, key: tuple[int, ...], first_row: int = 0
    ) -> None:
        self.kind, self.layer, self.coder, self.first_row = kind, layer, coder, first_row
        self.key = (*key, KINDS[kind])
        self.own = initial
        self.value = initial
        self.number = 0
        self.message: Message | None = None
        self.put_off = False  # the message is to start once its buffer is released
        self.whole: Message | None = None  # a message with the value itself, after the ends differed
        self.differs = False  # receiver: ask for the value itself
        self.send_whole = False  # sender: the receiver asked
        self.resent = 0
        if coder is not None:
            coder.start(initial)
            self.value = coder.value

    @property
    def payload_bytes(self) -> int:
        """Bytes of one regular message, its header included."""
        if self.coder is None:
            return HEADER_BYTES + self.value.numel() * self.value.dtype.itemsize
        return HEADER_BYTES + self.coder.nbytes

    def connect(self, transport: Transport, peer: int, sends: bool, u: Tensor) -> None:
        """Prepare the repeated message with ``peer``; ``u`` travels along when the value is sent whole."""
        self.transport, self.peer, self.sends, self.u = transport, peer, sends, u
        direct = not self.value.is_cpu and transport.direct
        if self.coder is None:
            self.packet = packet_of(self.value, direct)
            self.own = self.value = self.packet.body
        else:
            self.packet = room_for(self.coder.nbytes, self.value.device, direct)
        columns, bits = self.value.shape[1], self._bits()
        self.shape = SHAPE.pack(self.value.shape[0], columns | bits << 24)
        self.every = 1 if checksums() else MESSAGES_BETWEEN_DIGESTS if self.coder else 0
        self.message = self._prepare(self.packet.buffer, **self.packet.apart)

    def _bits(self) -> int:
        """Bits of a number in a message: of a code, or of the state's type."""
        if self.coder is None:
            return 8 * self.value.element_size()
        return self.coder.codec.grid.bits if self.coder.codec is not None else 0

    def _prepare(self, buffer: Tensor, **apart: Tensor) -> Message:
        make = self.transport.sender if self.sends else self.transport.receiver
        return make(buffer, self.peer, tag=2 * self.layer + KINDS[self.kind], kind=self.kind, **apart)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs of the sender between two messages."""
        coded = {} if self.coder is None else self.coder.state_dict()
        return {"own": self.own, "number": self.number, **coded}

    def restore(self, state: dict[str, Any]) -> None:
        """Take a sender's ``state``, at either end, before the next message."""
        self.own.copy_(state["own"])
        self.number = state["number"]
        if self.coder is not None:
            self.coder.load_state_dict(state)

    def start(self, wait: bool = True) -> None:
        """Start the message if it was put off; without ``wait`` only where the device is done with its buffer."""
        if self.put_off and (wait or self.packet.released.query()):
            self.packet.released.synchronize()
            self.put_off = False
            self.message.start()

    def _start_or_put_off(self) -> None:
        self.put_off = True
        self.start(wait=False)

    def settle(self) -> None:
        """Return once the device copies nothing to or from the buffer any more."""
        self.packet.released.synchronize()

    # The sender

    def wait_sent(self) -> None:
        """Return once the last message has left, so that its buffer may be written."""
        if self.message is not None:
            self.start()
            self.message.wait()
            self._finish_whole()

    def send(self, ask_resend: bool = False) -> None:
        """Bring ``value`` up to date with ``own`` and send it; ``ask_resend`` sets the flag for the peer."""
        self.number += 1
        remote = self.message is not None
        if self.send_whole:
            self._send_whole(ask_resend)
            return
        flags = RESEND if ask_resend else 0
        if self.coder is not None:
            flags |= self._encode(remote)
        if remote:
            self._write_header(self.packet.header, flags)
            self.packet.before_send()
            self._start_or_put_off()

    def _encode(self, remote: bool) -> int:
        """Bring ``value`` up to date through the coder; return the flag of a value that is not finite."""
        try:
            out = self.packet.body if remote else None
            self.coder.encode(self.own, (*self.key, self.number), self.first_row, out)
        except NotFiniteError:
            # the objective shows it after this iteration, on all ranks at once
            self.value.fill_(torch.nan)
            return NOT_FINITE
        return 0

    def _write_header(self, header: memoryview, flags: int) -> None:
        guarded = self.every and self.number % self.every == 0
        flags, tail = (flags | HAS_DIGEST, digest(self.value)) if guarded else (flags, self.shape)
        HEADER.pack_into(header, 0, flags, KINDS[self.kind], self.layer, self.number, tail)

    def _send_whole(self, ask_resend: bool) -> None:
        self.send_whole = False
        self.resent += 1
        self.coder.start(self.own)
        arrays = [part.reshape(-1).view(torch.uint8).cpu() for part in (self.value, self.u)]
        buffer = torch.cat([torch.zeros(HEADER_BYTES, dtype=torch.uint8), *arrays])
        self._write_header(header_of(buffer), RESEND if ask_resend else 0)
        self.whole = self._prepare(buffer)
        self.whole.start()

    def _finish_whole(self) -> None:
        if self.whole is not None:
            self.whole.wait()
            self.whole = None

    # The receiver

    def post(self) -> None:
        """Be ready for the next message; after ``differs`` it is the value itself."""
        if self.message is None:
            return
        if self.differs:
            size = HEADER_BYTES + 2 * self.value.numel() * self.value.dtype.itemsize
            self.whole_buffer = torch.empty(size, dtype=torch.uint8)
            self.whole = self._prepare(self.whole_buffer)
            self.whole.start()
        else:
            self.packet.before_receive()
            self._start_or_put_off()

    def take(self) -> bool:
        """Wait for the message and bring ``value`` up to date; whether the peer asks for the other value."""
        if self.message is None:
            return False
        self.number += 1
        if self.whole is not None:
            return self._take_whole()
        self.start()
        self.message.wait()
        self.packet.after_receive()
        flags, found = self._read_header(self.packet.header)
        if flags & NOT_FINITE:
            self.value.fill_(torch.nan)
        elif self.coder is not None:
            self.coder.decode(self.packet.body)
        if flags & HAS_DIGEST and not flags & NOT_FINITE:
            self.differs = found != digest(self.value)
            if self.differs and self.coder is None:  # the value itself came, and came damaged
                raise RuntimeError(f"message {self.number} of {self.kind} on boundary {self.layer} arrived damaged")
        return bool(flags & RESEND)

    def _read_header(self, header: memoryview) -> tuple[int, bytes]:
        """Return flags and hash of a message; RuntimeError where it is not the one that is due."""
        flags, kind, layer, number, tail = HEADER.unpack_from(header)
        expected = (KINDS[self.kind], self.layer, self.number)
        if (kind, layer, number) != expected or (tail != self.shape and not flags & HAS_DIGEST):
            found = describe(kind, layer, number, self.shape if flags & HAS_DIGEST else tail)
            raise RuntimeError(
                f"message out of order on boundary {self.layer}: rank {self.peer} sent {found}, where "
                f"{describe(*expected, self.shape)} was due; do all ranks run the same program on the same graph?"
            )
        return flags, tail

    def _take_whole(self) -> bool:
        self.whole.wait()
        self.whole = None
        flags, _ = self._read_header(header_of(self.whole_buffer))
        size = self.value.numel() * self.value.dtype.itemsize
        body = self.whole_buffer[HEADER_BYTES:].clone().to(self.value.device)
        self.coder.start(body[:size].view(self.value.dtype).view(self.value.shape))
        self.u.copy_(body[size:].view(self.u.dtype).view(self.u.shape))
        self.differs = False
        self.resent += 1
        return bool(flags & RESEND)


def describe(kind: int, layer: int, number: int, shape: bytes) -> str:
    """Say what a header holds."""
    rows, rest = SHAPE.unpack(shape)
    name = NAMES.get(kind, f"kind {kind}")
    return f"{name} of boundary {layer}, message {number}, {rows} x {rest & 0xFFFFFF} in {rest >> 24} bits"
