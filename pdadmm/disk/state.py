"""The state of a training in two files, read and written a block of nodes at a time.

The two hold the state of an iteration and of the one before it, in turn: a pass reads one and writes the other, so that
a kill in the middle of it costs nothing but that pass. Every block starts with a header that says which run and which
pass wrote it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pdadmm.checkpoint import DamagedError
from pdadmm.disk.blocks import Traffic, forget, read_into, write_from

__all__ = ["BUFFERS", "Layout", "StateFiles"]

HEADER = struct.Struct("<8s16sQQ")  # magic, run, number of the pass, number of the block
MAGIC = b"pdadmmS1"
ALIGNMENT = 64  # bytes; where torch's own arrays start
SYNC_BYTES = 64 << 20  # written before the disk is waited for: pages of a file must not pile up in memory
BUFFERS = 3  # blocks in memory: one being read, one computed on, one being written


def aligned(count: int) -> int:
    """Return the bytes that ``count`` of them take up.

    >>> aligned(1), aligned(64)
    (64, 64)
    """
    return -(-count // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Layout:
    """Which arrays (rows, columns) a block of nodes holds, one after the other behind its header."""

    columns: dict[str, int]
    dtype: torch.dtype

    def nbytes(self, rows: int) -> int:
        """Return the bytes of a block of ``rows`` nodes."""
        size = self.dtype.itemsize
        return aligned(HEADER.size) + sum(aligned(rows * columns * size) for columns in self.columns.values())

    def arrays(self, buffer: Tensor, rows: int) -> dict[str, Tensor]:
        """Return the arrays of a block of ``rows`` nodes by name, views of ``buffer`` (bytes)."""
        found, start = {}, aligned(HEADER.size)
        for name, columns in self.columns.items():
            size = rows * columns * self.dtype.itemsize
            found[name] = buffer[start : start + size].view(self.dtype).view(rows, columns)
            start += aligned(size)
        return found


class StateFiles:
    """Two files in ``folder`` for the state of ``nodes`` nodes, cut into blocks of ``block`` nodes.

    ``run`` (16 bytes) names the run in every header, ``traffic`` counts the bytes. ``sweep`` reads ahead and writes
    behind, in threads of its own; at most BUFFERS blocks are in memory.
    """

    def __init__(self, folder: Path, nodes: int, block: int, run: bytes, traffic: Traffic) -> None:
        self.folder, self.nodes, self.block, self.run, self.traffic = folder, nodes, block, run, traffic
        self.blocks = -(-nodes // block)
        self.files: list[int] = []
        self.unsynced = 0
        self.buffers: list[Tensor] = []
        self.reads: dict[int, Future] = {}
        self.writes: dict[int, Future] = {}

    @property
    def nbytes(self) -> int:
        """The size of each file."""
        return sum(self.layout.nbytes(len(self._rows(number))) for number in range(self.blocks))

    def _rows(self, number: int) -> range:
        return range(number * self.block, min(self.nodes, (number + 1) * self.block))

    def _offset(self, number: int) -> int:
        return number * self.layout.nbytes(self.block)

    def open(self, layout: Layout, new: bool) -> None:
        """Open both files for blocks of this layout; ``new`` ones get their room on the disk now, or OSError."""
        self.close()
        self.layout = layout
        self.reader, self.writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.buffers = []  # given back before the next ones are taken
        for generation in (0, 1):
            path, flags = self.folder / f"state-{generation}", os.O_RDWR | (os.O_CREAT | os.O_TRUNC if new else 0)
            if not new and not path.exists():
                raise DamagedError(f"{path.name} is missing")
            self.files.append(os.open(path, flags, 0o666))
            if new and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.files[-1], 0, self.nbytes)
            elif new:
                os.ftruncate(self.files[-1], self.nbytes)
        size = layout.nbytes(min(self.block, self.nodes))
        self.buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(min(BUFFERS, self.blocks))]

    def check(self, source: int, number: int) -> None:
        """Raise DamagedError where file ``source`` is not, block by block, what pass ``number`` of this run wrote."""
        size = os.fstat(self.files[source]).st_size
        if size != self.nbytes:
            raise DamagedError(f"state-{source} has {size} bytes and not {self.nbytes}")
        header = np.empty(HEADER.size, np.uint8)
        for block in range(self.blocks):
            read_into(self.files[source], header, self._offset(block))
            self._compare(header, source, number, block)

    def _compare(self, header: np.ndarray, source: int, number: int, block: int) -> None:
        if header.tobytes() != HEADER.pack(MAGIC, self.run, number, block):
            raise DamagedError(f"block {block} of state-{source} is not what pass {number} of this run wrote")

    def sweep(
        self, source: int | None, target: int | None, number: int
    ) -> Iterator[tuple[range, dict[str, Tensor]]]:
        """Yield the nodes of every block and its arrays, in order.

        They are read from file ``source`` (None: not at all, the memory is there to be filled), as pass ``number`` - 1
        wrote them; what the caller then did to them is written to file ``target`` as pass ``number``, where given.
        """
        self._wait()
        reads, writes = self.reads, self.writes
        for block in range(self.blocks + 1):  # each is asked for while the one before it is worked on
            if block < self.blocks:
                if block - BUFFERS in writes:  # it has the same buffer
                    writes.pop(block - BUFFERS).result()
                if source is not None:
                    reads[block] = self.reader.submit(self._read, source, number - 1, block)
            if block == 0:
                continue
            done = block - 1
            if done in reads:
                reads.pop(done).result()
            rows = self._rows(done)
            yield rows, self.layout.arrays(self._buffer(done), len(rows))
            if target is not None:
                writes[done] = self.writer.submit(self._write, target, number, done)
        for future in writes.values():
            future.result()

    def _wait(self) -> None:
        """Return once no thread touches a buffer: a pass that was cut off leaves reads and writes under way."""
        for future in (*self.reads.values(), *self.writes.values()):
            future.exception()
        self.reads.clear()
        self.writes.clear()

    def _buffer(self, block: int) -> Tensor:
        return self.buffers[block % BUFFERS]

    def _bytes(self, block: int) -> np.ndarray:
        return self._buffer(block)[: self.layout.nbytes(len(self._rows(block)))].numpy()

    def _read(self, source: int, number: int, block: int) -> None:
        content = self._bytes(block)
        read_into(self.files[source], content, self._offset(block), self.traffic)
        forget(self.files[source], self._offset(block), len(content))
        self._compare(content[: HEADER.size], source, number, block)

    def _write(self, target: int, number: int, block: int) -> None:
        content = self._bytes(block)
        content[: HEADER.size] = np.frombuffer(HEADER.pack(MAGIC, self.run, number, block), np.uint8)
        write_from(self.files[target], content, self._offset(block), self.traffic)
        self.unsynced += len(content)
        if self.unsynced >= SYNC_BYTES:
            self.flush(target)

    def flush(self, target: int) -> None:
        """Bring file ``target`` to the disk and give back its pages."""
        getattr(os, "fdatasync", os.fsync)(self.files[target])
        forget(self.files[target])
        self.unsynced = 0

    def close(self) -> None:
        """Close both files, once nothing is under way."""
        if self.files:
            self._wait()
            self.reader.shutdown()
            self.writer.shutdown()
        self._close_files()

    def _close_files(self) -> None:
        for file in self.files:
            os.close(file)
        self.files = []

    def __del__(self) -> None:
        # work under way holds this object: there is none; and any thread may be here, which must not wait for another
        if self.files:
            self.reader.shutdown(wait=False)
            self.writer.shutdown(wait=False)
        self._close_files()
