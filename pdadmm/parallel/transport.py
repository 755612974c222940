"""What the solver asks of a transport, and the in-process transport that a single rank uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pdadmm.parallel.gpu_aware import Support
from pdadmm.parallel.ledger import Ledger
from pdadmm.trace import NO_TRACE, Trace

if TYPE_CHECKING:  # the command line starts without torch
    from torch import Tensor

__all__ = ["LocalTransport", "Message", "Transport", "alone"]


class Message(Protocol):
    """A message that is sent, or received, over and over from the same buffer."""

    def start(self) -> None:
        """Post the message. The buffer must be left alone until ``wait`` returns."""

    def wait(self) -> None:
        """Return once the message is complete; does nothing when none is under way."""


class Transport(Protocol):
    """How ranks exchange arrays; ``kind`` names the entry of the byte ledger, ``trace`` is told what takes time."""

    rank: int
    size: int
    local_size: int  # ranks of this host
    local_rank: int  # this rank's number among them
    ledger: Ledger
    trace: Trace
    direct: bool  # sender and receiver take buffers of a GPU, whatever else goes through main memory

    def gpu_aware(self) -> Support:
        """Whether sender and receiver of this rank can take buffers of a GPU, and who says so."""

    def sender(self, buffer: Tensor, peer: int, tag: int, kind: str, header: Tensor | None = None) -> Message:
        """Prepare repeated sends of ``buffer`` (contiguous) to rank ``peer``.

        ``header``, in main memory, goes ahead of a buffer on a GPU; the ledger counts both as one message.
        """

    def receiver(self, buffer: Tensor, peer: int, tag: int, kind: str, header: Tensor | None = None) -> Message:
        """Prepare repeated receives into ``buffer``, and ``header``, from rank ``peer``: what its ``sender`` sends."""

    def send(self, array: Tensor, peer: int, kind: str) -> None:
        """Send one array to ``peer`` and return when the buffer may be reused."""

    def receive(self, array: Tensor, peer: int, kind: str) -> Tensor:
        """Receive one array from ``peer`` into ``array`` and return it."""

    def gather(self, value: Any, kind: str = "control") -> list[Any] | None:
        """Return the values of all ranks, in rank order, on rank 0; None elsewhere."""

    def bcast(self, value: Any, root: int = 0, kind: str = "control") -> Any:
        """Return ``root``'s value on every rank."""

    def allgather(self, value: Any, kind: str = "control") -> list[Any]:
        """Return the values of all ranks, in rank order, on every rank."""

    def sum_(self, array: Tensor, kind: str) -> Tensor:
        """Put the sum over all ranks into ``array`` (contiguous, the same shape on each) and return it.

        The ledger counts 2 n (R - 1) / R bytes sent, and as many received, of an array of n bytes on R ranks:
        what a ring moves (reduce-scatter, then allgather), the least that a sum of long arrays can do with.
        """

    def alltoall(
        self, outgoing: Tensor, counts: Sequence[int], incoming: Tensor, incoming_counts: Sequence[int], kind: str
    ) -> Tensor:
        """Send rank r the r-th run of ``outgoing`` and return ``incoming`` with what came, a run for each rank.

        Both are flat and contiguous; ``counts`` are numbers, not bytes. What a rank sends itself is copied and not
        counted. Collective.
        """

    def split(self, color: int) -> Transport:
        """Return a transport of the ranks that give the same ``color``, in their order here; collective.

        It shares the ledger and the trace, and is closed by itself.
        """

    def barrier(self) -> None:
        """Return once every rank has called it."""

    def close(self) -> None:
        """Give back what the transport holds; every rank calls it, after its last message."""


class LocalTransport:
    """The transport of a run in one process: nothing is ever sent.

    >>> LocalTransport().gather(3)
    [3]
    """

    rank = 0
    size = 1
    direct = False

    def __init__(self, local_size: int = 1, local_rank: int = 0) -> None:
        self.ledger, self.trace = Ledger(), NO_TRACE
        self.local_size, self.local_rank = local_size, local_rank

    def gpu_aware(self) -> Support:
        return Support(None)

    def sender(self, buffer: Tensor, peer: int, tag: int, kind: str, header: Tensor | None = None) -> Message:
        raise AssertionError("one process has no peer to send to")

    def receiver(self, buffer: Tensor, peer: int, tag: int, kind: str, header: Tensor | None = None) -> Message:
        raise AssertionError("one process has no peer to receive from")

    def send(self, array: Tensor, peer: int, kind: str) -> None:
        raise AssertionError("one process has no peer to send to")

    def receive(self, array: Tensor, peer: int, kind: str) -> Tensor:
        raise AssertionError("one process has no peer to receive from")

    def gather(self, value: Any, kind: str = "control") -> list[Any] | None:
        return [value]

    def bcast(self, value: Any, root: int = 0, kind: str = "control") -> Any:
        return value

    def allgather(self, value: Any, kind: str = "control") -> list[Any]:
        return [value]

    def sum_(self, array: Tensor, kind: str) -> Tensor:
        return array

    def alltoall(
        self, outgoing: Tensor, counts: Sequence[int], incoming: Tensor, incoming_counts: Sequence[int], kind: str
    ) -> Tensor:
        return incoming.copy_(outgoing)

    def split(self, color: int) -> Transport:
        return self

    def barrier(self) -> None:
        return None

    def close(self) -> None:
        return None


def alone(transport: Transport) -> LocalTransport:
    """Return the transport of one rank by itself, with the ledger and the trace of ``transport``."""
    own = LocalTransport(transport.local_size, transport.local_rank)
    own.ledger, own.trace = transport.ledger, transport.trace
    return own
