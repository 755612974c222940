"""A steady iteration as one CUDA graph: its kernels are launched at once, while nothing but the numbers changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.layer import FirstLayer, HiddenLayer, Layer
from pdadmm.admm.link import Link
from pdadmm.admm.stack import Stack, small_and_plain
from pdadmm.kernels import gpu_launch
from pdadmm.parallel.device import switched_on
from pdadmm.parallel.transport import Transport
from pdadmm.trace import NO_TRACE

__all__ = ["SETTING", "Replay", "repeatable", "replays_on"]

SETTING = "PDADMM_GRAPHS"  # environment variable: 0 launches every kernel of every iteration
STEADY = 3  # iterations before one is recorded: kernels are loaded by then, and libraries have their handles
TRIED = 2  # iterations that a graph must find as they are found without it: what one leaves, the next one takes

log = logging.getLogger("pdadmm")

Slot = tuple[Any, str]


class Replay:
    """Repeats the iterations of a network on one GPU.

    After STEADY iterations with the same penalties one is recorded. The graph is used once it has found the numbers of
    TRIED iterations; where it cannot be recorded, or finds others, every kernel is launched by itself, as before. A
    change of the penalties begins anew.

    What an iteration takes from the last one must lie in the same place in all of them. Updates in place leave it
    there; new arrays (W and b, mostly) are copied there at the end of the recorded iteration.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.forget()

    def forget(self) -> None:
        """Begin anew: the arrays of the network are others."""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.penalties: tuple[float, ...] = ()
        self.steady = 0  # iterations with these penalties

    def iterate(self) -> None:
        """Do one iteration."""
        penalties = tuple(vars(self.network.layers[0].penalties).values())
        if penalties != self.penalties:
            self.forget()
            self.penalties = penalties
        if self.steady == STEADY:
            self.graph = self._recorded()
        self.steady += 1
        if self.graph is None:
            self.network.update()
        else:
            self._replay(self.graph)

    def _replay(self, graph: torch.cuda.CUDAGraph) -> None:
        graph.replay()
        for channel in channels_of(self.network.units):
            channel.number += 1

    def _recorded(self) -> torch.cuda.CUDAGraph | None:
        """Return a graph of an iteration that was tried; the network is left as it was found."""
        state, graph = Kept(self.network.units), new_graph()
        try:
            self._record(graph, state)
            for _ in range(TRIED):
                self._replay(graph)
        except RuntimeError as error:  # CUDA's, of what cannot be recorded
            log.info("iterations are not repeated as a CUDA graph: %s", str(error).partition("\n")[0])
            state.put_back()
            return None
        found = state.copies()
        state.put_back()
        for _ in range(TRIED):
            self.network.update()
        expected = state.copies()
        state.put_back()
        other = first_other(state.slots, found, expected)
        if other is not None:
            log.warning("a CUDA graph found another %s: it is not used", other)
            return None
        return graph

    def _record(self, graph: torch.cuda.CUDAGraph, state: Kept) -> None:
        """Record an iteration, without doing it, from ``state`` to the same arrays."""
        try:
            with recording(graph):
                self.network.update()
                for (holder, name), own in zip(state.slots, state.arrays, strict=True):
                    left = getattr(holder, name)
                    if left is not own:
                        own.copy_(left)
        finally:
            state.own_again()


def replays_on(device: torch.device, transport: Transport) -> bool:
    """Whether iterations on ``device`` are repeated as graphs: on a GPU with our kernels, in one process, untraced."""
    if device.type != "cuda" or transport.size > 1 or transport.trace is not NO_TRACE:
        return False
    return switched_on(SETTING) and gpu_launch.available(device)


def repeatable(layers: Sequence[Layer], rows: int) -> bool:
    """Whether an iteration is worth a graph, and may be one: small, and the device is never waited for in it."""
    uppers = [layer for layer in layers if isinstance(layer, HiddenLayer)]
    return bool(uppers) and all(small_and_plain(layer, rows) for layer in uppers) and kernels_take(uppers)


def kernels_take(uppers: Sequence[HiddenLayer]) -> bool:
    """Whether our kernels do what torch waits for the device in: the systems of every layer, and Newton for z_L."""
    from pdadmm.kernels import gpu, gpu_factor  # for who has a GPU

    systems = (layer.W.new_empty(2 * layer.W.shape[1:]) for layer in uppers)
    return all(map(gpu_factor.takes, systems)) and len(uppers[-1].b) <= gpu.MAX_CLASSES


class Kept:
    """The arrays that an iteration takes from the last one, where they lie, and copies of what they hold."""

    def __init__(self, units: Sequence[Layer | Stack]) -> None:
        self.units, self.slots = units, list(slots_of(units))
        self.arrays: list[Tensor] = [getattr(holder, name) for holder, name in self.slots]
        self.held = self.copies()
        self.channels = channels_of(units)
        self.numbers = [channel.number for channel in self.channels]

    def copies(self) -> list[Tensor]:
        """Return copies of what the network holds now."""
        return [getattr(holder, name).clone() for holder, name in self.slots]

    def own_again(self) -> None:
        """Give the network the arrays that it had, whatever they hold."""
        for (holder, name), own in zip(self.slots, self.arrays, strict=True):
            setattr(holder, name, own)
        for unit in self.units:
            if isinstance(unit, Stack):
                unit.set_weights(unit.W, unit.b, unit.centre)
        for channel, number in zip(self.channels, self.numbers, strict=True):
            channel.number = number

    def put_back(self) -> None:
        """Give the network the arrays that it had, with what they held."""
        self.own_again()
        for own, held in zip(self.arrays, self.held, strict=True):
            own.copy_(held)


def slots_of(units: Sequence[Layer | Stack]) -> Iterator[Slot]:
    """Yield where the arrays are that an iteration takes from the last one."""
    holders: list[tuple[Any, str]] = [(unit, "W b centre z r") for unit in units]
    holders += [(unit.solver, "W b a alpha direction along") for unit in units if isinstance(unit, FirstLayer)]
    holders += [(link, "u") for link in links_of(units)]
    holders += [(channel, "own") for channel in channels_of(units)]
    for holder, names in holders:
        yield from ((holder, name) for name in names.split() if isinstance(getattr(holder, name, None), Tensor))


def links_of(units: Sequence[Layer | Stack]) -> list[Link]:
    """Return the links between the layers."""
    return [link for unit in units for link in unit.aboves]


def channels_of(units: Sequence[Layer | Stack]) -> list[Any]:
    """Return the channels of all links."""
    return [channel for link in links_of(units) for channel in (link.p_channel, link.q_channel)]


def first_other(slots: Sequence[Slot], found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """Name the first array that is not the expected one but for rounding, None where all are; NaN is another number.

    Rounding is beside the largest array of a holder: a residual is what it leaves of two others.
    """
    sizes: dict[int, float] = {}
    for (holder, _), due in zip(slots, expected, strict=True):
        sizes[id(holder)] = max(sizes.get(id(holder), 0.0), float(due.norm()))
    for (holder, name), ours, due in zip(slots, found, expected, strict=True):
        if not float((ours - due).norm()) <= sizes[id(holder)] * torch.finfo(due.dtype).eps ** 0.5:
            return f"{name} of {type(holder).__name__}"
    return None


def new_graph() -> torch.cuda.CUDAGraph:
    """Return a graph without anything in it."""
    return torch.cuda.CUDAGraph()


@contextmanager
def recording(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Let what is launched be recorded in ``graph`` instead; other threads may go on with what they do."""
    pool, work = torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    try:
        # where it fails, torch.cuda.graph leaves its own stream the current one: the outer context brings back this one
        with torch.cuda.stream(work), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    except RuntimeError:
        # up to 2.11 torch goes on as if it still recorded there, and gives no memory back; later ones say they do not
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise
