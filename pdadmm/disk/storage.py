"""Where a training from disk keeps X and its state, and how large its blocks of nodes are under a limit of memory."""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pdadmm.checkpoint import DamagedError
from pdadmm.console import human_bytes
from pdadmm.disk.blocks import DiskArray, NewArray, Traffic
from pdadmm.disk.rows import Centred
from pdadmm.disk.state import BUFFERS, Layout, StateFiles
from pdadmm.errors import InputError

__all__ = ["Blocks", "Storage", "fixed_bytes", "state_columns"]

log = logging.getLogger("pdadmm")

LEAST_BLOCK = 64  # nodes; thinner blocks would spend their time between the calls
LARGEST_BLOCK = 16 << 20  # bytes of state; larger blocks fall out of the processor's cache and win nothing
ALLOWANCE = 64 << 20  # bytes for what no formula knows: the allocator's leftovers, code pages, BLAS
MIB = 1 << 20


def state_columns(widths: Sequence[int], stored_p: Sequence[int], accelerated: bool) -> dict[str, int]:
    """Return name -> columns of what is kept of every node between two iterations.

    z_l, and below the last layer q_l, with both of the iteration before where they are extrapolated; p_l of the layers
    ``stored_p``, counted from 0, whose p-update starts from the old p. ``widths`` are [n_0, .., n_L].

    >>> state_columns([9, 5, 3], [], False)
    {'z0': 5, 'q0': 5, 'z1': 3}
    """
    columns: dict[str, int] = {}
    for layer, width in enumerate(widths[1:]):
        hidden = layer + 2 < len(widths)
        names = ["z", "q"] + (["last_z", "last_q"] if accelerated else []) if hidden else ["z"]
        columns |= {f"{name}{layer}": width for name in names}
        columns |= {f"p{layer}": widths[layer]} if layer in stored_p else {}
    return columns


@dataclass(frozen=True)
class Blocks:
    """What blocks of nodes take, in bytes: ``state`` and all, ``each``, for a node, ``fixed`` besides.

    ``rows``: N, the labelled nodes; ``cached``: whether the state of a block should fit a processor's cache.
    """

    rows: int
    state: float
    each: float
    fixed: int
    cached: bool = True

    @classmethod
    def of(
        cls, rows: int, widths: Sequence[int], columns: dict[str, int], dtype: torch.dtype, terms: int = 0
    ) -> Blocks:
        """Return those of a training, whose arguments are Storage's."""
        size = dtype.itemsize
        state = Layout(columns, dtype).nbytes(1024) / 1024
        parts = terms * (2 * widths[0] + 4 * max(widths[1:]) + 4 * widths[-1])
        work = size * (16 * max(widths[1:]) + 16 * widths[-1] + widths[0] + parts) + 128
        return cls(rows, state, BUFFERS * state + work, ALLOWANCE + fixed_bytes(rows, widths, size, terms))

    def least(self) -> float:
        """Return the least memory that will do."""
        return self.fixed + min(LEAST_BLOCK, self.rows) * self.each

    def check(self, argument: str, memory: int) -> None:
        """Raise InputError where ``memory`` bytes, which that argument gave, will not do."""
        least = self.least()
        if memory < least:
            allowed = f"at least {-(-int(least) // MIB)}MiB for this network and these nodes"
            raise InputError(argument, f"{memory // MIB}MiB", allowed)

    def nodes(self, memory: int) -> int:
        """Return B, the nodes of a block under a limit of ``memory`` bytes."""
        largest = LARGEST_BLOCK // self.state if self.cached else math.inf
        block = int(min((memory - self.fixed) // self.each, largest, self.rows))
        return max(min(LEAST_BLOCK, self.rows), block)


class Storage:
    """The scratch folder of a training: X in ``features.npy``, the state in two files, blocks of nodes in memory.

    ``memory`` (bytes) limits what the training takes beyond what it starts with; the blocks have

        B = (memory - 64 MiB - fixed) / (3 s + n_0 + 16 n + 16 n_L + 128 bytes)

    nodes with a state of s bytes each, but no more than 16 MiB of state, and never below 64 nodes; n_0, n, n_L are the
    bytes of a row of that width, ``fixed`` what does not grow with the block, see ``fixed_bytes``. Raises InputError
    where that does not fit into the memory, or X and two states not onto the disk.

    ``widths`` [n_0, .., n_L] of the deepest stage; ``columns`` the state of the stage that has the largest. ``terms``
    numbers stand for each number of a product (Products); a block's operands then take
    terms (2 n_0 + 4 n + 4 n_L) bytes a node more, those of the weights go into ``fixed``.

    It is a pdadmm.admm.node_storage.NodeStorage.
    """

    kind: ClassVar[str] = "files"
    waiting: ClassVar[str] = "wait for the disk"
    device = torch.device("cpu")

    def __init__(
        self, folder: Path, memory: int, X: Centred | Tensor, nodes: int, widths: Sequence[int],
        columns: dict[str, int], dtype: torch.dtype, terms: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.memory, self.nodes, self.dtype = folder, memory, nodes, dtype
        self.rows, self.inputs = int(X.shape[0]), int(X.shape[1])
        self.traffic = Traffic()
        self.run, self.number = secrets.token_bytes(16), 0
        self.current: int | None = None  # the file with the state to go on from; None before a stage's first iteration
        self.saved: int | None = None  # the file that a checkpoint counts on
        self.stage: int | None = None
        self.moved: list[int] = []  # bytes read and written in each iteration of the stage
        self.block = self._plan(Blocks.of(self.rows, widths, columns, dtype, terms))
        self.state = StateFiles(folder, nodes, self.block, self.run, self.traffic)
        with self._on_disk():
            self._write_features(X)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Turn what the system says of the folder into an InputError."""
        try:
            yield
        except OSError as error:
            value = f"{self.folder} ({error.strerror or error})"
            raise InputError("scratch", value, "on a disk that takes the data") from None
        except DamagedError as error:
            remedy = "remove the folder to start again"
            raise InputError("scratch", f"{self.folder} ({error})", "the folder as the run left it", remedy) from None

    # How large the blocks are

    def _plan(self, blocks: Blocks) -> int:
        """Return B; InputError where the memory or the disk is too small."""
        blocks.check("memory", self.memory)
        self.state_bytes = int(blocks.state * self.nodes)
        needed = 2 * self.state_bytes + self.rows * self.inputs * self.dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        free += sum(path.stat().st_size for path in self.folder.glob("state-?")) + self._old_features()
        if free < needed:
            allowed = f"on a disk with {human_bytes(needed)} free for X and two states; it has {human_bytes(free)}"
            raise InputError("scratch", str(self.folder), allowed)
        block = blocks.nodes(self.memory)
        log.info("%s on disk for X and two states, blocks of %d nodes", human_bytes(needed), block)
        return block

    def _old_features(self) -> int:
        path = self.folder / "features.npy"
        return path.stat().st_size if path.exists() else 0

    # X

    def _write_features(self, X: Centred | Tensor) -> None:
        kind = str(self.dtype).removeprefix("torch.")
        new = NewArray(self.folder / "features.npy", (self.rows, self.inputs), kind, self.traffic)
        try:
            for start, rows in X.blocks() if isinstance(X, Centred) else self._cut(X):
                new.write(start, rows.numpy())
            new.commit()
        finally:
            new.close()
        self.features = DiskArray(self.folder / "features.npy", self.traffic)

    def _cut(self, X: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield from ((start, X[start : start + self.block]) for start in range(0, len(X), self.block))

    def X(self, stop: int) -> Iterator[tuple[range, Tensor]]:
        """Yield the numbers of a block's nodes and their rows of X, up to node ``stop``; the memory is used again."""
        memory = torch.empty(min(self.block, stop), self.inputs, dtype=self.dtype).numpy()  # aligned as torch likes it
        for start in range(0, stop, self.block):
            end = min(start + self.block, stop)
            self.features.fetch(end, min(end + self.block, stop))
            yield range(start, end), torch.from_numpy(self.features.rows(start, end, memory[: end - start]))

    def here(self, rows: Tensor) -> Tensor:
        """Return a block's rows of another array: blocks are computed on in main memory."""
        return rows

    # The state

    @property
    def has_state(self) -> bool:
        """Whether a file holds a state to go on from."""
        return self.current is not None

    def begin(self, stage: int, columns: dict[str, int]) -> None:
        """Begin a stage, or begin it again: there is no state yet, and the file that a checkpoint counts on is kept."""
        if stage != self.stage:
            with self._on_disk():
                self.state.open(Layout(columns, self.dtype), new=True)
            self.stage, self.saved = stage, None
        self.current, self.moved = None, []

    def go_on(
        self, stage: int, columns: dict[str, int], record: dict[str, Any], kept: list[dict[str, Any]]
    ) -> None:
        """Go on with the stage of a checkpoint; InputError where the files are not what it says."""
        self.run, self.number = bytes.fromhex(record["run"]), record["pass"]
        self.state.run = self.run
        with self._on_disk():
            self.state.open(Layout(columns, self.dtype), new=False)
            self.state.check(record["file"], self.number)
        self.stage, self.current, self.saved = stage, record["file"], record["file"]

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint needs to find the state again, and count on it from now on."""
        assert self.current is not None  # there was an iteration
        with self._on_disk():
            self.state.flush(self.current)
        self.saved = self.current
        return {"run": self.run.hex(), "pass": self.number, "file": self.current}

    def kept(self, layer: int) -> dict[str, Tensor]:
        """Return nothing: the state of all layers is in the files."""
        return {}

    def not_saved(self) -> None:
        """Raise InputError: the next iteration would write over the state that the last checkpoint counts on."""
        allowed = "a folder with room for checkpoints"
        raise InputError("scratch", str(self.folder), allowed, "resume goes on from the last one")

    def sweep(self, write: bool) -> Iterator[tuple[range, Tensor, dict[str, Tensor]]]:
        """Yield the training nodes of every block, their rows of X and their state.

        The state is what the last pass wrote, or memory to be filled where the stage has none yet. With ``write`` it is
        written, as it is when the next block is asked for, beside what a checkpoint counts on.
        """
        kept = self.current if self.saved is None else self.saved
        target = (0 if kept is None else 1 - kept) if write else None
        blocks = self.state.sweep(self.current, target, self.number + 1)
        with self._on_disk():
            for (nodes, state), (_, X) in zip(blocks, self.X(self.nodes), strict=True):
                yield nodes, X, state
        if write:
            self.current, self.number = target, self.number + 1

    def summary(self) -> dict[str, int | None]:
        """Return the sizes and the traffic of this process."""
        return {
            "memory_bytes": self.memory,
            "block_nodes": self.block,
            "state_bytes": self.state_bytes,
            "bytes_read": self.traffic.read,
            "bytes_written": self.traffic.written,
            "disk_bytes_per_iteration": statistics.median_low(self.moved[1:] or self.moved) if self.moved else None,
        }

    def remove(self) -> None:
        """Remove X and the state, which nobody needs once the training has ended."""
        self.state.close()
        self.features.close()
        for path in (*self.folder.glob("state-?"), self.folder / "features.npy"):
            path.unlink(missing_ok=True)


def fixed_bytes(rows: int, widths: Sequence[int], size: int, terms: int = 0) -> int:
    """Return the bytes that do not grow with the block: the factor of layer 1 while it is made, weights, sums, labels.

    3 n_0^2 numbers for the factor, 16 weight matrices of every layer (now, before, best, sums, on their way into a
    checkpoint) and two more for each of the ``terms`` that stand for a number in a product, 32 bytes a labelled node.
    """
    weights = widths[0] * widths[1] + sum(m * max(m, n) for m, n in itertools.pairwise(widths[1:]))
    return size * (3 * widths[0] ** 2 + (16 + 2 * terms) * weights) + 32 * rows
