"""Where the arrays of a rank live: in main memory or on a GPU of its own; and what GPUs of several ranks exchange."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdadmm.errors import InputError
from pdadmm.kernels import gpu_launch
from pdadmm.parallel import gpu_aware, launch
from pdadmm.parallel.launch import together
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import one_of, param

__all__ = [
    "DEVICES",
    "DirectTransport",
    "HostMemory",
    "StagedTransport",
    "check_device",
    "choose_device",
    "device_param",
    "free_bytes",
    "host_bytes",
    "join_device",
    "messages_of",
    "moved",
    "own_device",
    "switched_on",
    "synchronize",
]

DEVICES = ("cpu", "cuda", "auto")
CPU = torch.device("cpu")
log = logging.getLogger("pdadmm")


def device_param() -> Any:
    """Declare the parameter ``device`` of a solver."""
    told = "where arrays live: cpu, cuda (a GPU for each rank), or auto: cuda where it can be used"
    return param("cpu", one_of(DEVICES), told)


def check_device(name: str) -> None:
    """Raise InputError where "cuda" is asked for and torch can use no GPU, or the setting of its messages is none."""
    if name != "cpu":
        gpu_aware.setting()
    if name == "cuda" and not torch.cuda.is_available():
        build = f"torch {torch.__version__}"
        cure = f"{build} has no CUDA: install a CUDA build" if torch.version.cuda is None else f"{build} finds no GPU"
        raise InputError("device", name, "cpu or auto where torch can use no GPU", cure)


def choose_device(name: str, transport: Transport, kernels: bool = True) -> torch.device:
    """Return where this rank's arrays live; ``name`` is one of DEVICES. Collective, but for "cpu".

    A rank has the GPU whose number is its own among the ranks of its host, modulo the host's GPUs. "auto" is "cuda"
    where every rank has a GPU. Both sides of a boundary do the same sums: raises InputError where GPUs differ in model,
    or CuPy does not run on all ranks alike; without ``kernels`` none of ours is asked for.
    """
    if name == "cpu":
        return CPU
    device, own = CPU, None
    if torch.cuda.is_available():
        device = torch.device("cuda", transport.local_rank % torch.cuda.device_count())
        # what asks for no GPU by name, CuPy and MPI among it, must not open the first one besides
        torch.cuda.set_device(device)
        own = torch.cuda.get_device_name(device), kernels and gpu_launch.available(device)
    found = transport.allgather(own)
    if None in found:
        check_device(name)
        if name == "auto":
            return CPU
        raise InputError("device", name, "cpu or auto where ranks are without a GPU")
    if len(set(found)) > 1:
        told = " and ".join(sorted({f"{model} with{'' if fused else 'out'} CuPy's kernels" for model, fused in found}))
        raise InputError("device", name, "cpu where the ranks' GPUs differ", f"there are {told}")
    why = gpu_launch.lacking(device) if kernels else None
    if why is not None and transport.rank == 0:
        log.info("device cuda: without its kernels the updates take several passes over their arrays: %s", why)
    return device


def own_device(name: str) -> torch.device:
    """Return where this process works by itself, asking no other rank; ``name`` is one of DEVICES.

    Its GPU is choose_device's, as far as the launcher tells; "auto" is that GPU where there is one. Raises InputError
    for "cuda" where there is none.
    """
    check_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        return CPU
    number = launch.local_rank() if launch.launched_size() > 1 else 0
    return torch.device("cuda", max(number, 0) % torch.cuda.device_count())


def free_bytes(device: torch.device) -> int:
    """Return the memory of a GPU that this process can have: what nobody holds, and what torch holds without need."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def switched_on(setting: str) -> bool:
    """Whether an environment variable, 1 by default, lets GPUs do what 0 turns off; InputError for another value."""
    given = os.environ.get(setting) or "1"
    if given not in ("0", "1"):
        raise InputError(setting, given, "0 or 1")
    return given == "1"


def synchronize(device: torch.device) -> None:
    """Wait for the work that this rank gave its GPU, if it has one: clocks would run ahead of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def moved(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return ``state`` with its arrays on ``device``; those that are there already are not copied."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()}


def host_bytes(count: int, device: torch.device) -> Tensor:
    """Return ``count`` zero bytes of main memory, pinned where they are to be copied from or to a GPU."""
    return torch.zeros(count, dtype=torch.uint8, pin_memory=device.type == "cuda")


class HostMemory:
    """Main memory through which one array after the other goes, as much as the largest needs."""

    def __init__(self) -> None:
        self.bytes: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """Return memory of the shape and type of ``x``, the same for every call."""
        size = x.numel() * x.element_size()
        if self.bytes is None or self.bytes.numel() < size:
            self.bytes = host_bytes(size, x.device)
        return self.bytes[:size].view(x.dtype).view(x.shape)


class StagedTransport:
    """Passes arrays of a device through main memory, so that MPI sees no other; arrays in main memory go as they are.

    Each copy waits for the device, before MPI reads what was copied there and after it wrote what is copied from there.
    Repeated messages have buffers in main memory: see pdadmm.admm.packet. What else is exchanged is pickled, and must
    hold no array of a device.
    """

    direct = False

    def __init__(self, inner: Transport, memory: HostMemory | None = None) -> None:
        self.inner, self.memory = inner, memory or HostMemory()
        self.rank, self.size = inner.rank, inner.size
        self.local_rank, self.local_size = inner.local_rank, inner.local_size
        self.ledger, self.trace = inner.ledger, inner.trace
        self.sender, self.receiver = inner.sender, inner.receiver
        self.gather, self.bcast, self.allgather = inner.gather, inner.bcast, inner.allgather
        self.barrier, self.close, self.gpu_aware = inner.barrier, inner.close, inner.gpu_aware

    def send(self, array: Tensor, peer: int, kind: str) -> None:
        self.inner.send(array if array.is_cpu else self.memory.like(array).copy_(array), peer, kind)

    def receive(self, array: Tensor, peer: int, kind: str) -> Tensor:
        if array.is_cpu:
            return self.inner.receive(array, peer, kind)
        return array.copy_(self.inner.receive(self.memory.like(array), peer, kind))

    def sum_(self, array: Tensor, kind: str) -> Tensor:
        if self.size == 1:
            return array
        if array.is_cpu:
            return self.inner.sum_(array, kind)
        return array.copy_(self.inner.sum_(self.memory.like(array).copy_(array), kind))

    def alltoall(
        self, outgoing: Tensor, counts: Sequence[int], incoming: Tensor, incoming_counts: Sequence[int], kind: str
    ) -> Tensor:
        host = torch.empty(incoming.shape, dtype=incoming.dtype)
        return incoming.copy_(self.inner.alltoall(outgoing.cpu(), counts, host, incoming_counts, kind))

    def split(self, color: int) -> StagedTransport:
        return type(self)(self.inner.split(color), self.memory)


class DirectTransport(StagedTransport):
    """The same, but repeated messages of p and q lie on the device: MPI reads and writes its memory itself.

    Sums stay staged: a sum of MPI's own over GPU memory may add in another order, and staged ones have the same bits
    whichever MPI it is. Single arrays and all-to-alls are of start, growth and evaluation.
    """

    direct = True


def join_device(transport: Transport, device: torch.device) -> StagedTransport:
    """Return what passes arrays of ``device`` on: direct where MPI takes GPU memory on every rank, else staged.

    Collective, but for one process, which sends none.
    """
    if transport.size == 1:
        return StagedTransport(transport)
    own = together(transport, transport.gpu_aware)
    told = transport.allgather(bool(own.takes))
    joined = (DirectTransport if all(told) else StagedTransport)(transport)
    if transport.rank == 0:
        refuses = told.index(False) if not all(told) else 0
        answer = own if refuses == 0 else "no"
        log.info("device cuda: p and q go %s; rank %d: MPI takes GPU memory: %s", messages_of(joined), refuses, answer)
    return joined


def messages_of(transport: Transport) -> str | None:
    """Return how p and q go between devices, "direct" or "staged"; None where they need not, and between CPUs."""
    if transport.size == 1 or not isinstance(transport, StagedTransport):
        return None
    return "direct" if transport.direct else "staged"
