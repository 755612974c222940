"""Coders: the two ends of a channel that carries one array again and again, and what they remember of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import sweep
from .codec import Codec, make_codec
from .grid import BITS, GRIDS, ROUNDINGS

__all__ = ["CODERS", "MODES", "Coder", "digest", "make_coder"]

MODES = ("difference", "value")


def digest(x: Tensor) -> bytes:
    """An 8-byte hash of an array: its type, shape and bytes.

    >>> digest(torch.zeros(2, 3)) == digest(torch.zeros(3, 2))
    False
    """
    array = x.cpu().numpy()
    state = blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=8)
    state.update(array.reshape(-1).view("u1").data)
    return state.digest()


class Coder(ABC):
    """One end of a channel. Both ends ``start`` from equal arrays; then one encodes what the other decodes.

    ``value`` is the array as the receiver has it, equal bit for bit at both ends (the sender decodes what it packed);
    read it, do not write to it. It keeps its storage, and so does the buffer that ``encode`` returns: finish sending
    it before the next ``encode``. One object serves one direction.

    >>> sender, receiver = make_coder(bits=8), make_coder(bits=8)
    >>> sender.start(torch.zeros(5, 3)); receiver.start(torch.zeros(5, 3))
    >>> value = receiver.decode(sender.encode(torch.rand(5, 3)))
    >>> torch.equal(value, sender.value), sender.digest() == receiver.digest(), sender.nbytes
    (True, True, 39)
    """

    name: str
    _value: Tensor | Any = None  # before start
    _buffer: Tensor | Any = None

    def __init__(self, codec: Codec | None = None) -> None:
        self.codec = codec

    def start(self, initial: Tensor) -> None:
        """Take a copy of ``initial`` (any shape, float32 or float64) as the value that both ends hold."""
        sweep.check_array("initial", initial)
        initial, held = initial.detach(), self._value
        if held is not None and (held.shape, held.dtype, held.device) == (initial.shape, initial.dtype, initial.device):
            held.copy_(initial)
        else:
            self._value = initial.clone(memory_format=torch.contiguous_format)
            self._buffer = self._make_buffer()

    def _make_buffer(self) -> Tensor:
        return torch.empty(self.nbytes, dtype=torch.uint8, device=self._value.device)

    @property
    def value(self) -> Tensor:
        """The array as the receiver has it."""
        if self._value is None:
            raise InputError("start", "not called", "called before the first message")
        return self._value

    @property
    def nbytes(self) -> int:
        """Bytes of every message of this channel."""
        return self.codec.nbytes(self.value.shape, self.value.dtype)

    def encode(
        self, x: Tensor, key: tuple[int, ...] = (), first_row: int = 0, out: Tensor | None = None,
    ) -> Tensor:
        """The message that tells the other end ``x``: flat uint8, the own buffer or ``out``.

        ``key`` and ``first_row`` seed stochastic rounding, see ``Grid.project``. Errors: ``InputError`` for a wrong
        shape or dtype, ``NotFiniteError`` for NaN or infinity; the coder is then unchanged.
        """
        value = self.value
        sweep.check_array("x", x, like=value)
        if out is None:
            out = self._buffer
        elif out is not self._buffer:
            sweep.check_output("out", out, self._buffer.shape, torch.uint8, value.device)
        self._encode(sweep.plain(x), key, first_row, out)
        return out

    def decode(self, buffer: Tensor) -> Tensor:
        """Take a message in; returns ``value``. Errors: ``InputError`` for a buffer of another length."""
        value = self.value
        if buffer is not self._buffer:
            sweep.check_output("buffer", buffer, self._buffer.shape, torch.uint8, value.device)
        self._decode(buffer)
        return value

    @abstractmethod
    def _encode(self, x: Tensor, key, first_row: int, buffer: Tensor) -> None:
        """Fill ``buffer`` with the message, and bring the value up to date."""

    @abstractmethod
    def _decode(self, buffer: Tensor) -> None:
        """Take a message in."""

    def digest(self) -> bytes:
        """An 8-byte hash of ``value``: both ends compare it now and then."""
        return digest(self.value)

    def state_dict(self) -> dict:
        """What a checkpoint needs: copies of the value and of carried errors, and the coder's name."""
        return {"coder": self.describe(), "value": self.value.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state_dict``, started or not. Errors: ``InputError`` where the coder was another one."""
        if state["coder"] != self.describe():
            raise InputError("checkpoint", state["coder"], self.describe(), "build the coder with the same options")
        self.start(state["value"])

    def describe(self) -> str:
        """The coder's name and options in one word, as ``difference-4-column-nearest``."""
        if self.codec is None:
            return self.name
        grid = self.codec.grid
        ends = f"({grid.lo:g},{grid.step:g})" if grid.fixed else ""
        return f"{self.name}-{grid.bits}-{grid.name}{ends}-{self.codec.rounding}"


class DifferenceCoder(Coder):
    """Sends the quantized difference from the last transmitted value: ``value += decode(encode(x - value))``.

    With a (lo, step) per column 4 bits train as 32 do. What one message rounds away is still in the next
    difference, so nothing is lost for good and no error needs to be carried.
    """

    name = "difference"

    def _encode(self, x: Tensor, key, first_row: int, buffer: Tensor) -> None:
        value, codec = self._value, self.codec
        sweep.encode_into(codec.grid, x, value, value, buffer, codec.stochastic, key, first_row)

    def _decode(self, buffer: Tensor) -> None:
        sweep.decode_into(self.codec.grid, buffer, self._value, add=True)


class ValueCoder(Coder):
    """Sends the value itself, quantized: ``value = decode(encode(x))``; right for x on a fixed grid (Problem 3)."""

    name = "value"

    def _encode(self, x: Tensor, key, first_row: int, buffer: Tensor) -> None:
        codec = self.codec
        sweep.encode_into(codec.grid, x, None, self._value, buffer, codec.stochastic, key, first_row)

    def _decode(self, buffer: Tensor) -> None:
        sweep.decode_into(self.codec.grid, buffer, self._value)


class IdentityCoder(Coder):
    """Sends the raw bytes of ``x``: no grid, no loss, no check for NaN. The buffer is the value's own storage."""

    name = "identity"

    def _make_buffer(self) -> Tensor:
        return self._value.view(-1).view(torch.uint8)

    @property
    def nbytes(self) -> int:
        return self.value.numel() * self.value.dtype.itemsize

    def _encode(self, x: Tensor, key, first_row: int, buffer: Tensor) -> None:
        self._value.copy_(x)
        if buffer is not self._buffer:
            buffer.copy_(self._buffer)

    def _decode(self, buffer: Tensor) -> None:
        self._buffer.copy_(buffer)


class FrozenCoder(Coder):
    """Sends nothing: the receiver keeps the initial value. The control that every quantizer must beat."""

    name = "frozen"

    @property
    def nbytes(self) -> int:
        return 0

    def _encode(self, x: Tensor, key, first_row: int, buffer: Tensor) -> None:
        pass

    def _decode(self, buffer: Tensor) -> None:
        pass


class _ErrorFeedback(Coder):
    """Wraps a coder: the sender adds the error of its last message, ``y = x + e; send y; e = y - value``.

    Around "value" this is classical error feedback. Around "difference" the last error is also contained in the
    next difference, so it counts twice: in exact arithmetic delta = x - value + e, e = delta - decoded.
    """

    def __init__(self, inner: Coder) -> None:
        super().__init__(inner.codec)
        self.inner, self.name = inner, inner.name

    def start(self, initial: Tensor) -> None:
        self.inner.start(initial)
        self._value, self._buffer = self.inner._value, self.inner._buffer
        self._error = torch.zeros_like(self._value)
        self._sum = torch.empty_like(self._value)

    def _encode(self, x: Tensor, key, first_row: int, buffer: Tensor) -> None:
        torch.add(x, self._error, out=self._sum)
        self.inner._encode(self._sum, key, first_row, buffer)
        torch.sub(self._sum, self._value, out=self._error)

    def _decode(self, buffer: Tensor) -> None:
        self.inner._decode(buffer)

    def state_dict(self) -> dict:
        return super().state_dict() | {"error": self._error.clone()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._error.copy_(state["error"])

    def describe(self) -> str:
        return super().describe() + "-feedback"


CODERS: dict[str, type[Coder]] = {
    row.name: row for row in (DifferenceCoder, ValueCoder, IdentityCoder, FrozenCoder)
}


def make_coder(
    bits: int = 32, mode: str = "difference", grid: str = "column", rounding: str = "nearest",
    error_feedback: bool = False, lo: float | None = None, hi: float | None = None,
) -> Coder:
    """A coder by names: 32 bits send the array as it is (``Identity``), 0 bits nothing (``Frozen``), others a grid.

    ``mode``: "difference" or "value"; ``grid``: a name of ``GRIDS`` ("linspace" takes ``lo`` and ``hi``);
    ``rounding``: "nearest" or "stochastic". At 32 and 0 bits nothing is rounded and these have no effect, so that a
    sweep over bits needs no special case. Errors: ``InputError`` for unknown names and for combinations without a
    meaning: the paper's grid with fewer than 5 bits or with "difference", ends without "linspace".

    >>> [make_coder(bits).describe() for bits in (32, 4, 0)]
    ['identity', 'difference-4-column-nearest', 'frozen']
    """
    choices = (("mode", mode, MODES), ("grid", grid, GRIDS), ("rounding", rounding, ROUNDINGS))
    for name, given, allowed in choices:
        if given not in allowed:
            raise InputError(name, given, "one of " + ", ".join(allowed))
    if isinstance(bits, bool) or bits not in (0, *BITS, 32):
        raise InputError("bits", bits, "one of " + ", ".join(map(str, (0, *BITS, 32))))
    if bits in (0, 32):
        return CODERS["identity" if bits else "frozen"]()
    if grid == "paper" and mode == "difference":
        raise InputError("grid", grid, 'used with mode="value"', "it holds values of p, not differences")
    coder = CODERS[mode](make_codec(bits, grid, rounding, lo, hi))
    return _ErrorFeedback(coder) if error_feedback else coder
