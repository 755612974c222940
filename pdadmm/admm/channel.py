"""One direction of a boundary between layers: an array of one side, and the value that both sides know."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from pdadmm.parallel.transport import Message, Transport
from pdadmm.quantize import Coder, NotFiniteError

__all__ = ["HEADER_BYTES", "Channel"]

# Header of a coded message: flags, kind, layer, number of the message, hash of the value after it.
HEADER = numpy.dtype([("flags", "u1"), ("kind", "u1"), ("layer", "<u2"), ("number", "<u4"), ("digest", "V8")])
HEADER_BYTES = HEADER.itemsize
HAS_DIGEST, RESEND, NOT_FINITE = 1, 2, 4
KINDS = {"p": 1, "q": 2}
# A hash reads the whole value: now and then is enough to notice that the two ends differ.
MESSAGES_BETWEEN_DIGESTS = 16


class Channel:
    """Carries p down or q up across one boundary, as it is or through a Coder.

    ``own`` is the sender's array, written by its update; ``value`` is what both ends know of it, the same
    bits at both. Without a coder they are one tensor, which is the message. With one, the message is a
    16-byte header and the coder's packed buffer; sender and receiver start from the same ``initial``, and a
    hash now and then guards that they agree. A receiver whose value differs asks, in its next message of
    the other direction, for the value itself; that message also brings u, which had been fed with it.

    ``key`` (seed, layer) seeds stochastic rounding together with the number of the message.
    """

    def __init__(self, initial: Tensor, kind: str, layer: int, coder: Coder | None, key: tuple[int, ...]) -> None:
        self.kind, self.layer, self.coder = kind, layer, coder
        self.key = (*key, KINDS[kind])
        self.own = initial
        self.value = initial
        self.number = 0
        self.message: Message | None = None
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
            return self.value.numel() * self.value.dtype.itemsize
        return HEADER_BYTES + self.coder.nbytes

    def connect(self, transport: Transport, peer: int, sends: bool, u: Tensor) -> None:
        """Prepare the repeated message with ``peer``; ``u`` travels along when the value is sent whole."""
        self.transport, self.peer, self.sends, self.u = transport, peer, sends, u
        self.buffer = self.value if self.coder is None else torch.zeros(self.payload_bytes, dtype=torch.uint8)
        self.message = self._prepare(self.buffer)

    def _prepare(self, buffer: Tensor) -> Message:
        make = self.transport.sender if self.sends else self.transport.receiver
        return make(buffer, self.peer, tag=2 * self.layer + KINDS[self.kind], kind=self.kind)

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

    # The sender

    def wait_sent(self) -> None:
        """Return once the last message has left, so that its buffer may be written."""
        if self.message is not None:
            self.message.wait()
            self._finish_whole()

    def send(self, ask_resend: bool = False) -> None:
        """Bring ``value`` up to date with ``own`` and send it; ``ask_resend`` sets the flag for the peer."""
        self.number += 1
        if self.coder is None:
            if ask_resend:  # this message has no header to say so in
                raise RuntimeError(f"the ends of boundary {self.layer} no longer agree: memory or a message is damaged")
            if self.message is not None:
                self.message.start()
            return
        remote = self.message is not None
        if self.send_whole:
            self._send_whole(ask_resend)
            return
        flags = RESEND if ask_resend else 0
        try:
            out = self.buffer[HEADER_BYTES:] if remote else None
            self.coder.encode(self.own, (*self.key, self.number), out=out)
        except NotFiniteError:
            # the objective shows it after this iteration, on all ranks at once
            self.value.fill_(torch.nan)
            flags |= NOT_FINITE
        if remote:
            self._write_header(self.buffer, flags)
            self.message.start()

    def _write_header(self, buffer: Tensor, flags: int) -> None:
        header = buffer[:HEADER_BYTES].numpy().view(HEADER)
        guarded = self.number % MESSAGES_BETWEEN_DIGESTS == 0
        digest = self.coder.digest() if guarded else bytes(8)
        header[0] = (flags | (HAS_DIGEST if guarded else 0), KINDS[self.kind], self.layer, self.number, digest)

    def _send_whole(self, ask_resend: bool) -> None:
        self.send_whole = False
        self.resent += 1
        self.coder.start(self.own)
        arrays = [part.reshape(-1).view(torch.uint8) for part in (self.value, self.u)]
        buffer = torch.cat([torch.zeros(HEADER_BYTES, dtype=torch.uint8), *arrays])
        self._write_header(buffer, RESEND if ask_resend else 0)
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
            self.message.start()

    def take(self) -> bool:
        """Wait for the message and bring ``value`` up to date; whether the peer asks for the other value."""
        if self.message is None:
            return False
        self.number += 1
        if self.whole is not None:
            return self._take_whole()
        self.message.wait()
        if self.coder is None:
            return False
        header = self._read_header(self.buffer)
        if header["flags"] & NOT_FINITE:
            self.value.fill_(torch.nan)
        else:
            self.coder.decode(self.buffer[HEADER_BYTES:])
        if header["flags"] & HAS_DIGEST and not header["flags"] & NOT_FINITE:
            self.differs = bytes(header["digest"]) != self.coder.digest()
        return bool(header["flags"] & RESEND)

    def _read_header(self, buffer: Tensor) -> numpy.void:
        header = buffer[:HEADER_BYTES].numpy().view(HEADER)[0]
        found = (int(header["kind"]), int(header["layer"]), int(header["number"]))
        expected = (KINDS[self.kind], self.layer, self.number)
        if found != expected:
            raise RuntimeError(
                f"message out of order on boundary {self.layer}: got kind, layer, number {found}, expected {expected}"
            )
        return header

    def _take_whole(self) -> bool:
        self.whole.wait()
        self.whole = None
        header = self._read_header(self.whole_buffer)
        size = self.value.numel() * self.value.dtype.itemsize
        body = self.whole_buffer[HEADER_BYTES:].clone()
        self.coder.start(body[:size].view(self.value.dtype).view(self.value.shape))
        self.u.copy_(body[size:].view(self.u.dtype).view(self.u.shape))
        self.differs = False
        self.resent += 1
        return bool(header["flags"] & RESEND)
