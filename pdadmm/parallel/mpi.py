"""The MPI transport: the only module that knows mpi4py."""

from __future__ import annotations

import copy
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from torch import Tensor

from pdadmm.errors import InputError
from pdadmm.parallel import launch
from pdadmm.parallel.envelope import ENVELOPE_BYTES, Envelope, check_arrays, check_call, checksums
from pdadmm.parallel.gpu_aware import Support, support
from pdadmm.parallel.ledger import Ledger, ring_bytes
from pdadmm.trace import NO_TRACE

__all__ = ["MPITransport", "let_be_read"]

PIECE = 1 << 30  # numbers in one call of MPI


def abort(status: int) -> None:
    """End the whole job, all ranks, with this exit status, starting MPI where need be; nothing for one rank alone."""
    from mpi4py import MPI

    if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
        try:
            let_be_read()
        finally:
            MPI.COMM_WORLD.Abort(status)


def let_be_read() -> None:
    """Wait until mpiexec has read what this rank has printed, a second at most: ending the job, it drops the rest."""
    import fcntl
    import termios

    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is None:
                continue
            stream.flush()
            file = stream.fileno()
            if not stat.S_ISFIFO(os.fstat(file).st_mode):
                continue
            until = time.monotonic() + 1.0
            while int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, bytes(4)), sys.byteorder):
                if time.monotonic() > until:
                    break
                time.sleep(0.002)
        except (AttributeError, OSError, ValueError):  # closed, or not a file: nobody to wait for
            continue


@cache
def _world(mpi: Any) -> Any:
    """Our copy of the world's communicator, one for the whole process: copies are few and not collected."""
    return mpi.COMM_WORLD.Dup()


def pieces(view: Any) -> Iterator[Any]:
    """Yield the numbers of an array in runs of ``PIECE`` at most: MPI counts in 32 bits."""
    flat = view.reshape(-1)
    for start in range(0, len(flat), PIECE):
        yield flat[start : start + PIECE]


# Requests that an exception left under way: MPI may still touch their buffers.
_ABANDONED: list[Any] = []


class _Persistent:
    """Persistent requests on torch buffers, one message of the ledger; MPI's own count is compared with what is due."""

    def __init__(
        self, requests: list[Any], buffers: list[Tensor], mpi: Any, record: Callable[[int], None], receives: bool
    ) -> None:
        self.requests, self.buffers, self.status, self.byte = requests, buffers, mpi.Status(), mpi.BYTE
        self.sizes = [size_of(buffer) for buffer in buffers]
        self.record, self.receives, self.under_way = record, receives, False

    def start(self) -> None:
        assert not self.under_way
        for request in self.requests:
            request.Start()
        self.under_way = True
        if not self.receives:
            self.record(sum(self.sizes))

    def wait(self) -> None:
        if not self.under_way:
            return
        for request, size in zip(self.requests, self.sizes, strict=True):
            self._complete(request, size)
        self.under_way = False
        if self.receives:
            self.record(sum(self.sizes))

    def _complete(self, request: Any, size: int) -> None:
        try:
            request.Wait(self.status)
        except Exception as error:  # of a longer message, above all
            raise RuntimeError(f"a message of {size} bytes did not arrive: {error}") from error
        if self.receives:
            count = self.status.Get_count(self.byte)
            if count != size:
                raise RuntimeError(f"a message of {count} bytes arrived where {size} were expected")

    def __del__(self) -> None:
        if self.under_way:
            _ABANDONED.append((self.requests, self.buffers))
            return
        for request in self.requests:
            if request:
                request.Free()


def size_of(buffer: Tensor) -> int:
    """Return the bytes of an array."""
    return buffer.numel() * buffer.element_size()


def address_of(buffer: Tensor) -> int:
    """Return where an array lies in the memory of its device."""
    return buffer.data_ptr()


def _no_communicator(value: Any) -> InputError:
    """Return what to say of a ``comm`` that is none; arrays land there where a graph was given in parts."""
    shape = getattr(value, "shape", None)
    shown = f"{value!r:.40}" if shape is None else f"a {type(value).__name__} of shape {tuple(shape)}"
    remedy = "None is the world's"
    if shape is not None or isinstance(value, (list, tuple)):
        remedy += "; a graph is one argument, such as Graph.from_adjacency(A, X, y)"
    return InputError("comm", shown, "an mpi4py communicator that this rank is of", remedy)


class MPITransport:
    """Ranks of an mpi4py communicator; p and q go as persistent point-to-point requests, also from a GPU's memory.

    ``comm`` defaults to COMM_WORLD. Building one installs a hook that aborts the job with the traceback
    when a rank raises.
    """

    direct = False

    def __init__(self, comm: Any = None) -> None:
        if comm is not None and not hasattr(comm, "Get_rank"):
            raise _no_communicator(comm)
        try:
            from mpi4py import MPI
        except ImportError as error:
            remedy = "run: pip install mpi4py mpich"
            raise InputError("mpirun", "started", "used where mpi4py is installed", remedy) from error
        if comm is not None and (not isinstance(comm, MPI.Comm) or comm == MPI.COMM_NULL):
            raise _no_communicator("COMM_NULL" if isinstance(comm, MPI.Comm) else comm)
        self.mpi = MPI
        # a communicator of our own: messages of the user's program cannot mix in
        self.owned = comm is not None and comm != self.mpi.COMM_WORLD
        self.comm = comm.Dup() if self.owned else _world(self.mpi)
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        launch.install_abort_hook(self.mpi.COMM_WORLD.Get_size())
        self.ledger, self.trace = Ledger(), NO_TRACE
        self.local_size, self.local_rank = launch.local_ranks(), launch.local_rank()
        if not self.local_size or self.local_rank < 0:
            self.local_size, self.local_rank = self._place_on_host()
        self.checks = checksums()
        self.calls = 0  # collective calls so far, equal on all ranks
        self.sent, self.received = [0] * self.size, [0] * self.size  # single arrays so far, by peer

    def _place_on_host(self) -> tuple[int, int]:
        """Return how many ranks of this communicator share memory, and so this host, and this one's number there."""
        host = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)
        size, rank = host.Get_size(), host.Get_rank()
        host.Free()
        return size, rank

    @staticmethod
    def _view(buffer: Tensor):
        # a transposed tensor would be sent silently in memory order
        assert buffer.is_contiguous(), "MPI buffers are contiguous"
        return buffer.numpy()

    def gpu_aware(self) -> Support:
        return support(self.mpi)

    def sender(self, buffer: Tensor, peer: int, tag: int, kind: str, header: Tensor | None = None) -> _Persistent:
        # messages of one tag arrive in the order in which they were started
        buffers = [part for part in (header, buffer) if part is not None]
        requests = [self.comm.Send_init(self._given(part), dest=peer, tag=tag) for part in buffers]
        return _Persistent(requests, buffers, self.mpi, partial(self.ledger.record_sent, kind), receives=False)

    def receiver(self, buffer: Tensor, peer: int, tag: int, kind: str, header: Tensor | None = None) -> _Persistent:
        buffers = [part for part in (header, buffer) if part is not None]
        requests = [self.comm.Recv_init(self._given(part), source=peer, tag=tag) for part in buffers]
        return _Persistent(requests, buffers, self.mpi, partial(self.ledger.record_received, kind), receives=True)

    def _given(self, buffer: Tensor) -> Any:
        """Return what MPI is given of a buffer: numpy's view, or an address on a device, which is all MPI asks for."""
        if buffer.is_cpu:
            return self._view(buffer)
        assert buffer.is_contiguous(), "MPI buffers are contiguous"
        return [self.mpi.buffer.fromaddress(address_of(buffer), size_of(buffer)), self.mpi.BYTE]

    def send(self, array: Tensor, peer: int, kind: str) -> None:
        view = self._view(array)
        self.sent[peer] += 1
        self.comm.Send(Envelope(kind, view, self.sent[peer]).packed, dest=peer, tag=0)
        for piece in pieces(view):
            self.comm.Send(piece, dest=peer, tag=0)
        self.ledger.record_sent(kind, ENVELOPE_BYTES + view.nbytes)

    def receive(self, array: Tensor, peer: int, kind: str) -> Tensor:
        view = self._view(array)
        self.received[peer] += 1
        found = bytearray(ENVELOPE_BYTES)
        self.comm.Recv(found, source=peer, tag=0)
        Envelope(kind, view, self.received[peer]).check(bytes(found), peer)
        for piece in pieces(view):
            self.comm.Recv(piece, source=peer, tag=0)
        self.ledger.record_received(kind, ENVELOPE_BYTES + view.nbytes)
        return array

    def _packed(self, operation: str, kind: str, value: Any) -> tuple[bytes, tuple[str, str, int]]:
        """Return a value as bytes, with the name of this collective call, and that name."""
        self.calls += 1
        due = operation, kind, self.calls
        return self.mpi.pickle.dumps((*due, value)), due

    def _unpacked(self, packed: bytes, peer: int, due: tuple[str, str, int]) -> Any:
        *found, value = self.mpi.pickle.loads(packed)
        check_call(tuple(found), peer, due)
        return value

    def gather(self, value: Any, kind: str = "control") -> list[Any] | None:
        packed, due = self._packed("gather", kind, value)
        if self.rank:
            self.ledger.record_sent(kind, len(packed))
        parts = self.comm.gather(packed, root=0)
        if parts is None:
            return None
        self._record_parts(kind, parts)
        return [self._unpacked(part, peer, due) for peer, part in enumerate(parts)]

    def bcast(self, value: Any, root: int = 0, kind: str = "control") -> Any:
        packed, due = self._packed("bcast", kind, value if self.rank == root else None)
        packed = self.comm.bcast(packed, root=root)
        if self.rank == root:
            self.ledger.record_sent(kind, len(packed) * (self.size - 1))
            return value
        self.ledger.record_received(kind, len(packed))
        return self._unpacked(packed, root, due)

    def allgather(self, value: Any, kind: str = "control") -> list[Any]:
        packed, due = self._packed("allgather", kind, value)
        self.ledger.record_sent(kind, len(packed) * (self.size - 1))
        parts = self.comm.allgather(packed)
        self._record_parts(kind, parts)
        return [self._unpacked(part, peer, due) for peer, part in enumerate(parts)]

    def sum_(self, array: Tensor, kind: str) -> Tensor:
        if self.size == 1:
            return array
        view = self._view(array)
        self._agree("sum", kind, view, [view.size], [view.size])
        for piece in pieces(view):
            self.comm.Allreduce(self.mpi.IN_PLACE, piece, op=self.mpi.SUM)
        nbytes = ring_bytes(view.nbytes, self.size)
        self.ledger.record_sent(kind, nbytes)
        self.ledger.record_received(kind, nbytes)
        return array

    def alltoall(
        self, outgoing: Tensor, counts: Sequence[int], incoming: Tensor, incoming_counts: Sequence[int], kind: str
    ) -> Tensor:
        send, receive = self._view(outgoing), self._view(incoming)
        self._agree("all-to-all", kind, send, counts, incoming_counts)
        self.comm.Alltoallv((send, list(counts)), (receive, list(incoming_counts)))
        self.ledger.record_sent(kind, (send.size - counts[self.rank]) * send.itemsize)
        self.ledger.record_received(kind, (receive.size - incoming_counts[self.rank]) * receive.itemsize)
        return incoming

    def _agree(
        self, operation: str, kind: str, view: Any, counts: Sequence[int], incoming_counts: Sequence[int]
    ) -> None:
        """Compare what the ranks are about to do with their arrays, where every message is checked."""
        if self.checks:
            own = operation, kind, view.dtype.char, list(counts), list(incoming_counts)
            check_arrays(self.comm.allgather(own))

    def _record_parts(self, kind: str, parts: list[bytes]) -> None:
        for rank, part in enumerate(parts):
            if rank != self.rank:
                self.ledger.record_received(kind, len(part))

    def split(self, color: int) -> MPITransport:
        part = copy.copy(self)
        part.comm, part.owned = self.comm.Split(color, self.rank), True
        part.rank, part.size = part.comm.Get_rank(), part.comm.Get_size()
        part.calls, part.sent, part.received = 0, [0] * part.size, [0] * part.size
        return part

    def barrier(self) -> None:
        self.comm.Barrier()

    def close(self) -> None:
        if self.owned:
            self.comm.Free()
            self.owned = False
