"""Where a training with a limit on device memory keeps X and its state: in main memory, beside the device."""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pdadmm.admm.problem import Problem
from pdadmm.admm.products import PRODUCTS
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.streamed import largest_state
from pdadmm.console import human_bytes
from pdadmm.disk.blocks import Traffic
from pdadmm.disk.storage import Blocks, fixed_bytes
from pdadmm.errors import InputError
from pdadmm.files import memory_bytes, resident_bytes
from pdadmm.parallel.device import free_bytes
from pdadmm.parallel.pinned import PinError, Pinned, whole_pages
from pdadmm.parallel.shuttle import Shuttle

__all__ = ["HostStorage", "device_blocks", "storage_beside"]

log = logging.getLogger("pdadmm")

ALLOWANCE = 128 << 20  # bytes for what no formula knows: workspaces of cuBLAS, pieces that torch rounds up to
WORKED = 24, 12  # numbers a node as wide as the widest layer, and as the last, that live within an update


def device_blocks(
    rows: int, widths: Sequence[int], columns: dict[str, int], dtype: torch.dtype, terms: int = 0
) -> Blocks:
    """Return what blocks take of a device's memory; arguments are HostStorage's.

    A node has two rooms for its state and its row of X, and ``WORKED``. The factor of layer 1 takes n_0^2 numbers five
    times while it is made, the weights what training from disk has them take.
    """
    size, n_0, n, n_L = dtype.itemsize, widths[0], max(widths[1:]), widths[-1]
    state = size * sum(columns.values())
    parts = terms * (2 * n_0 + 4 * n + 4 * n_L)
    work = size * (WORKED[0] * n + WORKED[1] * n_L + parts) + 128
    fixed = ALLOWANCE + fixed_bytes(0, widths, size, terms) + 2 * size * n_0**2
    return Blocks(rows, state, 2 * (state + size * n_0) + work, fixed, cached=False)


def storage_beside(device: torch.device, problem: Problem, settings: ADMMSettings) -> HostStorage | None:
    """Return the storage that ``device_memory`` asks for; X leaves ``problem``. None where the CPU was chosen."""
    assert isinstance(settings.device_memory, int)  # checked
    if device.type == "cpu":
        log.info("device auto: there is no GPU, so device_memory limits nothing")
        return None
    X, problem.X = problem.X, None
    columns, widths = largest_state(settings, problem.nodes, problem.inputs, problem.classes)
    dtype, terms = getattr(torch, settings.dtype), PRODUCTS[settings.products].terms
    return HostStorage(settings.device_memory, device, X, problem.nodes, widths, columns, dtype, terms)


class HostStorage:
    """X (N, n_0) and the state in main memory, pinned for a GPU; blocks of nodes come to ``device`` and go back.

    ``memory`` (bytes) limits what the training takes of the device's beyond what it starts with; the blocks have

        B = (memory - 128 MiB - fixed) / (2 s + 2 n_0 + 24 n + 12 n_L + 128 bytes)

    nodes with a state of s bytes each, and never below 64 nodes; see ``device_blocks``. Raises InputError where that
    does not fit into ``memory``, or into what is free on the device, or X and the state not into main memory.

    ``nodes``, ``widths``, ``columns``, ``dtype`` and ``terms`` as of pdadmm.disk.storage.Storage. It is a
    pdadmm.admm.node_storage.NodeStorage.
    """

    kind: ClassVar[str] = "blocks"
    waiting: ClassVar[str] = "wait for the copies"

    def __init__(
        self, memory: int, device: torch.device, X: Tensor, nodes: int, widths: Sequence[int],
        columns: dict[str, int], dtype: torch.dtype, terms: int = 0,
    ) -> None:  # fmt: skip
        self.memory, self.device, self.nodes, self.dtype = memory, device, nodes, dtype
        self.inputs = X.shape[1]
        self.state_bytes = dtype.itemsize * sum(columns.values()) * nodes
        self._check_main_memory(X)
        self.block = self._plan(device_blocks(len(X), widths, columns, dtype, terms))
        self.start = self._on_device()
        self.traffic, self.moved = Traffic(), list[int]()
        self.shuttle = Shuttle(device, self.block, self.traffic)
        self.pinned_X, self.pinned_state = Pinned(device), Pinned(device)
        self.features = self._pinned(X.contiguous(), self.pinned_X)
        self.state: dict[str, Tensor] = {}
        self.stage: int | None = None
        self.has_state = False

    # Room

    def _check_main_memory(self, X: Tensor) -> None:
        taken, there = resident_bytes() + self.state_bytes, memory_bytes()
        if taken > there:
            whole = human_bytes(self.state_bytes + X.numel() * X.element_size())
            allowed = f"used where main memory holds X and the state: they take {whole}, and there are"
            raise InputError("device_memory", human_bytes(self.memory), f"{allowed} {human_bytes(there)} in all",
                             "train from disk, with memory")  # fmt: skip

    def _plan(self, blocks: Blocks) -> int:
        """Return B; InputError where the limit, or the device, is too small."""
        blocks.check("device_memory", self.memory)
        block = blocks.nodes(self.memory)
        needed = blocks.fixed + int(block * blocks.each)
        if self.device.type == "cuda":
            free = free_bytes(self.device)
            if needed > free:
                allowed = f"at most the {human_bytes(free)} that are free on the device"
                raise InputError("device_memory", human_bytes(self.memory), allowed)
        log.info("%s of state in main memory, blocks of %d nodes take up to %s of the device's",
                 human_bytes(self.state_bytes), block, human_bytes(needed))  # fmt: skip
        return block

    def _on_device(self) -> int:
        """Return the bytes that torch has on a GPU now, and let its peak begin here."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _pinned(self, x: Tensor, pinned: Pinned) -> Tensor:
        try:
            return pinned.pin(x)
        except PinError as error:
            allowed = "used where CUDA can pin the main memory of X and the state"
            raise InputError("device_memory", human_bytes(self.memory), allowed, str(error)) from None

    # X

    def X(self, stop: int) -> Iterator[tuple[range, Tensor]]:
        """Yield the numbers of a block's nodes and their rows of X, up to node ``stop``."""
        for nodes, rows in self.shuttle.passing({"X": self.features}, stop, ["X"], []):
            yield nodes, rows["X"]

    def here(self, rows: Tensor) -> Tensor:
        """Return a block's rows of another array on the device."""
        self.traffic.add(read=rows.numel() * rows.element_size())
        return rows.to(self.device)

    # The state

    def begin(self, stage: int, columns: dict[str, int]) -> None:
        """Begin a stage, or begin it again: there is no state yet."""
        if stage != self.stage:
            self._leave()
            for name, width in columns.items():
                self.state[name] = self._pinned(whole_pages(self.nodes, width, self.dtype), self.pinned_state)
            self.stage = stage
        self.has_state, self.moved = False, []

    def _leave(self) -> None:
        """Give back the state and its rooms on the device."""
        self.pinned_state.release()
        self.shuttle.clear([*self.state])
        self.state.clear()

    def sweep(self, write: bool) -> Iterator[tuple[range, Tensor, dict[str, Tensor]]]:
        """Yield the training nodes of every block, their rows of X and their state, or memory to be filled with it.

        With ``write`` the state goes back as it is when the next block is asked for.
        """
        arrays = {"X": self.features} | self.state
        fetched = [*arrays] if self.has_state else ["X"]
        for nodes, rows in self.shuttle.passing(arrays, self.nodes, fetched, [*self.state] if write else []):
            yield nodes, rows.pop("X"), rows
        self.has_state = self.has_state or write

    def record(self) -> dict[str, Any]:
        """Return nothing: checkpoints hold the state themselves."""
        return {}

    def kept(self, layer: int) -> dict[str, Tensor]:
        """Return the arrays of a layer's state."""
        return {name: array for name, array in self.state.items() if _layer_of(name) == layer}

    def not_saved(self) -> None:
        """Nothing is lost but a checkpoint: no file depends on it."""

    def go_on(
        self, stage: int, columns: dict[str, int], record: dict[str, Any], kept: list[dict[str, Any]]
    ) -> None:
        """Go on with the stage of a checkpoint; what was ``kept`` is taken out of the layers' states."""
        self.begin(stage, columns)
        for name, array in self.state.items():
            array.copy_(kept[_layer_of(name)].pop(name))  # so that there are never two of all
        self.has_state = True

    def summary(self) -> dict[str, int | None]:
        """Return the sizes and the traffic."""
        on_gpu = self.device.type == "cuda"
        return {
            "device_memory_bytes": self.memory,
            "device_memory_peak_bytes": torch.cuda.max_memory_allocated(self.device) - self.start if on_gpu else None,
            "block_nodes": self.block,
            "state_bytes": self.state_bytes,
            "bytes_to_device": self.traffic.read,
            "bytes_from_device": self.traffic.written,
            "device_bytes_per_iteration": statistics.median_low(self.moved[1:] or self.moved) if self.moved else None,
        }

    def remove(self) -> None:
        """Give back X, the state and the rooms on the device."""
        self._leave()
        self.shuttle.clear(["X"])
        self.pinned_X.release()
        del self.features


def _layer_of(name: str) -> int:
    """Return the layer of a column of the state, counted from 0: of "last_z12", 12."""
    return int(re.sub(r"\D", "", name))
