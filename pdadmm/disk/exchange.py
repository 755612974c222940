"""Augmentation from disk over ranks that see no folder together but the result's: what they send each other.

Columns of X go from the rank that read a row to the rank that owns the slice, and after the hops columns of the
augmented features from there to the rank that owns the row: all-to-alls in steps of a bounded number of rows.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.augment.scaling import Scaler
from pdadmm.disk import assemble, blocks
from pdadmm.disk.assemble import SlicedRows, unit_name
from pdadmm.disk.blocks import NewArray, raw, read_ahead, write_from
from pdadmm.disk.manifest import Manifest
from pdadmm.disk.slices import SliceFiles, check_finite, feature_blocks
from pdadmm.errors import InputError
from pdadmm.parallel.placement import run_of
from pdadmm.parallel.transport import Transport

__all__ = ["EXCHANGE_KINDS", "Exchange", "OnAll", "Tell"]

# Kinds of the ledger: X to the owners of slices, rows that the scaling is learned from, rows of the result.
EXCHANGE_KINDS = ("columns", "fit", "rows")
LIMIT = 1 << 31  # MPI counts in 32 bits

Chunk = tuple[str, int, int]
Job = tuple[tuple[int | None, ...], int, int]  # the block of each rank, and which of its rows are sent
OnAll = Callable[[Callable[[], Any]], Any]
Tell = Callable[[Iterator[int]], None]
Read = Callable[[int, int, np.ndarray], np.ndarray]  # SlicedRows.rows


class Exchange:
    """The steps between the hops, for slices that stay in a folder of each rank's own. All methods are collective.

    Rank r of R owns slices r, r + R, .. (F_r columns), reads the r-th run of the chunks of X (V_r rows) and writes the
    r-th run of the result's blocks (K_r of the V_keep rows): ``run_of``, in whole blocks, so that a block's checksum
    is one rank's. ``on_all`` and ``shared`` do a piece of work on every rank and raise what went wrong on any on all,
    in words about the rank's folder, or about the result's.
    """

    def __init__(self, files: SliceFiles, transport: Transport, on_all: OnAll, shared: OnAll) -> None:
        ranks, F = range(transport.size), files.plan.shape.features
        self.transport, self.on_all, self.shared, self.columns = transport, on_all, shared, files.columns
        self.slices = [range(rank, files.plan.slices, transport.size) for rank in ranks]
        self.widths = [sum(b - a for a, b in map(self.columns.__getitem__, own)) for own in self.slices]
        self.most = max(F, transport.size * max(self.widths))  # columns of a row, as sent to all or as come from all
        chunks, count = files.chunks(), -(-files.plan.shape.kept // files.kept_block)
        self.chunks = [[chunks[k] for k in run_of(len(chunks), rank, transport.size)] for rank in ranks]
        self.shards = [run_of(count, rank, transport.size) for rank in ranks]
        self.files = replace(files, plan=replace(files.plan, exchange=self._planned(files)))

    def _planned(self, files: SliceFiles) -> dict[str, int]:
        """Return what all ranks together send in a run that is not cut off, by kind, in bytes:

            columns   sum_r V_r (F - F_r) s          0 where one slice holds all columns
            fit       passes H V_fit (F - F_0) s     one pass where these rows are one block, which is kept
            rows      sum_r H K_r (F - F_r) s

        Source: the design of this library's augmentation from disk (docs/big-graphs.md).
        """
        x, block = files.plan.shape, files.kept_block
        away = [x.features - own for own in self.widths]
        read = [sum(last - first for _, first, last in chunks) for chunks in self.chunks]
        kept = [min(run.stop * block, x.kept) - min(run.start * block, x.kept) for run in self.shards]
        number = x.blocks * x.number_bytes
        passes = min(files.plan.passes, 1) if x.fit_rows <= block else files.plan.passes
        return {
            "columns": x.feature_bytes * sum(V * F for V, F in zip(read, away)),
            "fit": passes * x.fit_rows * away[0] * number,
            "rows": number * sum(K * F for K, F in zip(kept, away)),
        }

    def _step(self, column_bytes: int) -> int:
        """Return how many rows are sent at a time: what leaves or reaches a rank is 16 MiB, or one row for each rank.

        Raises InputError where that is more than MPI counts.
        """
        row = self.most * column_bytes
        if row >= LIMIT:
            value = f"{self.transport.size}, with {row} bytes for a row of each"
            raise InputError("ranks", value, f"so few that these are less than {LIMIT} bytes", "start fewer")
        return max(1, blocks.BLOCK_BYTES // row)

    @staticmethod
    def _steps(rows: int, block: int, step: int) -> list[tuple[int, int]]:
        """Return ranges of ``step`` rows at most, none across the end of a block."""
        return [
            (a, min(a + step, first + block, rows))
            for first in range(0, rows, block)
            for a in range(first, min(first + block, rows), step)
        ]

    def _swap(
        self, outgoing: np.ndarray, counts: list[int], incoming: np.ndarray, incoming_counts: list[int], kind: str
    ) -> np.ndarray:
        """Send runs of bytes, one for each rank, and return those that came."""
        sent, came = sum(counts), sum(incoming_counts)
        assert max(sent, came) < LIMIT
        if self.transport.size == 1:
            return outgoing[:sent]
        import torch  # MPI brought it

        buffers = torch.from_numpy(outgoing[:sent]), torch.from_numpy(incoming[:came])
        self.transport.alltoall(buffers[0], counts, buffers[1], incoming_counts, kind)
        return incoming[:came]

    # X to the owners of its slices

    def cut(self, tell: Tell) -> None:
        """Read the own rows of X, and write the own columns of all; ``tell`` the bytes of each chunk that was read.

        X is read once by all ranks together. A chunk is sent to the ranks that lack it.
        """
        tell(self._cut())

    def _cut(self) -> Iterator[int]:
        files, rank = self.files, self.transport.rank
        own = [(c[0], bool(self.widths[rank]) and not files.chunk_done(*c)) for run in self.chunks for c in run]
        lacking = [dict(each) for each in self.transport.allgather(own)]
        due = [[c for c in run if any(names[c[0]] for names in lacking)] for run in self.chunks]

        def size(chunks: Iterable[Chunk]) -> int:
            return sum(last - first for _, first, last in chunks) * files.graph.features.row_bytes

        yield size(set(self.chunks[rank]) - set(due[rank]))
        for chunks in zip_longest(*due):
            self._cut_chunks(chunks, [[bool(chunk and names[chunk[0]]) for names in lacking] for chunk in chunks])
            yield size(filter(None, [chunks[rank]]))

    def _cut_chunks(self, chunks: tuple[Chunk | None, ...], takers: list[list[bool]]) -> None:
        """Cut a chunk of each rank's and write the own columns of those that this rank takes."""
        files, rank = self.files, self.transport.rank
        size = files.graph.features.dtype.itemsize
        block, step = files.graph.header["files"]["features"]["block"], self._step(size)
        outgoing, incoming = (np.empty(step * self.most * size, np.uint8) for _ in range(2))
        pieces = self._pieces(chunks[rank], takers[rank], step, outgoing)
        opened: dict[str, int] = {}
        sums: dict[str, list[int]] = {}

        def begin() -> None:
            for chunk, to in zip(chunks, takers):
                if chunk and to[rank]:
                    opened[chunk[0]], sums[chunk[0]] = files.begin(chunk[0]), [0] * len(files.own)

        def put(a: int, counts: list[int], came: np.ndarray) -> None:
            ends = np.cumsum(counts).tolist()
            for chunk, count, end in zip(chunks, counts, ends):
                if chunk and count:
                    self._put_columns(opened[chunk[0]], chunk, chunk[1] + a, came[end - count : end], sums[chunk[0]])

        def finish() -> None:
            for name in list(opened):
                files.finish(name, opened.pop(name), sums[name])

        try:
            self.on_all(begin)
            for a, b in self._steps(max(last - first for _, first, last in filter(None, chunks)), block, step):
                rows = [max(0, min(b, chunk[2] - chunk[1]) - a) if chunk else 0 for chunk in chunks]
                self.on_all(partial(next, pieces, None))
                counts = [rows[rank] * F * size * to for F, to in zip(self.widths, takers[rank])]
                coming = [n * self.widths[rank] * size * to[rank] for n, to in zip(rows, takers)]
                came = self._swap(outgoing, counts, incoming, coming, "columns")
                self.on_all(partial(put, a, coming, came))
            self.on_all(finish)
        finally:
            pieces.close()
            for file in opened.values():
                os.close(file)

    def _pieces(
        self, chunk: Chunk | None, takers: list[bool], step: int, outgoing: np.ndarray
    ) -> Generator[None, None, None]:
        """Fill ``outgoing`` for one step after the other: for each rank that takes the chunk, slice after slice."""
        if chunk is None:
            return
        for start, found in feature_blocks(self.files, *chunk[1:]):
            for a, b in self._steps(len(found), len(found), step):
                at = 0
                for own, takes in zip(self.slices, takers):
                    for first, last in map(self.columns.__getitem__, own if takes else ()):
                        piece = found[a:b, first:last]
                        check_finite(piece, start + a, first, self.files.dtype)
                        to = outgoing[at : at + piece.nbytes].view(piece.dtype).reshape(piece.shape)
                        to[:] = piece
                        at += piece.nbytes
                yield

    def _put_columns(self, file: int, chunk: Chunk, row: int, came: np.ndarray, sums: list[int]) -> None:
        """Write the own slices' columns of some rows of a chunk."""
        widths, at = [self.columns[number][1] - self.columns[number][0] for number in self.files.own], 0
        for place, (number, w) in enumerate(zip(self.files.own, widths)):
            count = len(came) // sum(widths) * w
            piece = came[at : at + count]
            write_from(file, piece, self.files.chunk_offset(number, *chunk[1:], row), self.files.traffic)
            sums[place] = zlib.crc32(raw(piece), sums[place])
            at += count

    # The rows that the scaling is learned from to rank 0

    def fit(self, scaler: Scaler, labels: np.ndarray) -> None:
        """Let rank 0 learn the scaling, from the rows in order, a block at a time: the bits are those of one rank."""
        source = self.on_all(lambda: (SlicedRows if self.transport.rank else _CollectedRows)(self.files, fit=True))
        try:
            if isinstance(source, _CollectedRows):
                self._learn(scaler, source, labels)
                return
            while isinstance(call := self.transport.bcast(None), tuple):
                self.collect(source.rows, *call)
            if call is not None:
                raise call
        finally:
            source.close()

    def _learn(self, scaler: Scaler, source: _CollectedRows, labels: np.ndarray) -> None:
        """Learn from rows as they are collected; at the end tell the other ranks, which wait for the next rows."""
        source.exchange, problem = self, None
        try:
            scaler.fit(source, labels=labels)  # type: ignore[arg-type]
        except InputError as error:
            if source.broken:  # raised on all ranks
                raise
            problem = error
        self.transport.bcast(problem)
        if problem is not None:
            raise problem

    def collect(self, read: Read, start: int, stop: int, out: np.ndarray | None = None) -> None:
        """Bring rows ``start`` to ``stop``, of one block, of all columns to rank 0, into its ``out``."""
        x, rank = self.files.plan.shape, self.transport.rank
        step = self._step(x.blocks * x.number_bytes)
        outgoing, incoming = (np.empty(step * F * x.blocks * x.number_bytes, np.uint8)
                              for F in (self.widths[rank], x.features if rank == 0 else 0))  # fmt: skip
        for a, b in self._steps(stop - start, stop - start, step):
            own = self._row_bytes(b - a, rank)
            self.on_all(partial(self._read, read, start + a, start + b, outgoing))
            coming = [self._row_bytes(b - a, peer) if rank == 0 else 0 for peer in range(self.transport.size)]
            counts = [own] + [0] * (self.transport.size - 1)
            came = self._swap(outgoing, counts, incoming, coming, "fit")
            if out is not None:
                self._put_rows(came, out[a:b])

    def _row_bytes(self, rows: int, peer: int) -> int:
        """Bytes of so many rows of a rank's own columns of the result."""
        return rows * self.widths[peer] * self.files.plan.shape.blocks * self.files.plan.shape.number_bytes

    def _read(self, read: Read, start: int, stop: int, outgoing: np.ndarray) -> None:
        """Read rows of the own columns, of one block, into the bytes ``outgoing``."""
        rank, files = self.transport.rank, self.files
        out = outgoing[: self._row_bytes(stop - start, rank)].view(files.dtype)
        read(start, stop, out.reshape(stop - start, self.widths[rank] * files.plan.shape.blocks))

    def _put_rows(self, came: np.ndarray, out: np.ndarray) -> None:
        """Put rows of every rank's columns in their places in ``out`` (rows, n_0)."""
        x, at = self.files.plan.shape, 0
        places = out.reshape(len(out), x.blocks, x.features)
        for peer, own in enumerate(self.slices):
            bytes_, first = self._row_bytes(len(out), peer), 0
            part = came[at : at + bytes_].view(out.dtype).reshape(len(out), x.blocks, self.widths[peer])
            for a, b in map(self.columns.__getitem__, own):
                places[:, :, a:b] = part[:, :, first : first + b - a]
                first += b - a
            at += bytes_

    # The result's rows to the ranks that write them

    def write(self, scaler: Scaler, path: Path, tell: Tell) -> None:
        """Bring the rows to their owners, which scale them and write them to ``path``.partial, which is there.

        Blocks are listed once they are on the disk, beside the result, as write_rows does.
        """
        listed = self.shared(lambda: Manifest(path.parent / "work", self.transport.rank))
        tell(self._write(scaler, path, listed))

    def _write(self, scaler: Scaler, path: Path, listed: Manifest) -> Iterator[int]:
        rank, x, block = self.transport.rank, self.files.plan.shape, self.files.kept_block
        left = self.transport.allgather([k for k in self.shards[rank] if unit_name(k) not in listed.done])
        step, block_bytes = self._step(x.blocks * x.number_bytes), block * self.files.result_shape[1] * x.number_bytes
        jobs = [(blocks, a, b) for blocks in zip_longest(*left) for a, b in self._steps(block, block, step)]
        source = self.on_all(partial(SlicedRows, self.files))
        own = self.shared(partial(_OwnBlocks, self.files, path, scaler, listed))
        room = step * self.most * x.blocks * x.number_bytes
        buffers, incoming = [np.empty(room, np.uint8) for _ in range(2)], np.empty(room, np.uint8)
        packed = read_ahead(jobs, lambda job, which: self._pack(source.rows, job, buffers[which]))
        yield (len(self.shards[rank]) - len(left[rank])) * block_bytes
        try:
            for number, job in enumerate(jobs):
                rows = [b - a for a, b in self._spans(job)]
                outgoing = self.on_all(partial(next, packed))
                coming = [self._row_bytes(rows[rank], peer) for peer in range(self.transport.size)]
                counts = [self._row_bytes(n, rank) for n in rows]
                came = self._swap(outgoing, counts, incoming, coming, "rows")
                self._put_rows(came, own.rows[job[1] : job[1] + rows[rank]])
                if job[2] == block:
                    self.shared(partial(own.put, job[0][rank], number == len(jobs) - 1))
                    yield 0 if job[0][rank] is None else block_bytes
        finally:
            packed.close()
            own.close()
            source.close()

    def _spans(self, job: Job) -> list[tuple[int, int]]:
        """Return the rows that each rank gets, none where it has no block left."""
        blocks, first, stop = job
        kept, block = self.files.plan.shape.kept, self.files.kept_block
        starts = [kept if k is None else k * block + first for k in blocks]
        return [(min(a, kept), min(a + stop - first, kept)) for a in starts]

    def _pack(self, read: Read, job: Job, buffer: np.ndarray) -> np.ndarray:
        """Read the own columns of the rows that each rank gets into ``buffer``, one rank's after the other's."""
        at = 0
        for a, b in self._spans(job):
            if a < b:
                self._read(read, a, b, buffer[at:])
            at += self._row_bytes(b - a, self.transport.rank)
        return buffer


class _OwnBlocks:
    """The result's blocks that a rank writes, one after the other: ``rows`` is the one that is being collected."""

    def __init__(self, files: SliceFiles, path: Path, scaler: Scaler, listed: Manifest) -> None:
        self.new = NewArray(path, files.result_shape, files.dtype, files.traffic, resume=True)
        self.scaler, self.listed = scaler, listed
        self.rows = np.empty((files.kept_block, files.result_shape[1]), files.dtype)
        self.fresh: list[int] = []

    def put(self, number: int | None, last: bool) -> None:
        """Scale and write ``rows`` as block ``number``, where it is one; list blocks once they are on the disk."""
        if number is not None:
            start = number * len(self.rows)
            self.new.write(start, self.scaler.transform(self.rows[: self.new.shape[0] - start]))
            self.fresh.append(number)
        if self.fresh and (last or len(self.fresh) == assemble.SYNC_BLOCKS):
            self.new.sync()
            self.listed.add({unit_name(each): self.new.crcs[each] for each in self.fresh})
            self.fresh.clear()

    def close(self) -> None:
        self.new.close()


class _CollectedRows(SlicedRows):
    """On rank 0: rows of all columns, which come from the ranks as they are asked for; the others follow."""

    exchange: Exchange

    def __init__(self, files: SliceFiles, fit: bool) -> None:
        super().__init__(files, fit)
        self.broken, self.shape = False, (self.shape[0], files.result_shape[1])

    def rows(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Fill ``out`` with rows ``start`` to ``stop``, of one block, and return it."""
        self.exchange.transport.bcast((start, stop))
        self.broken = True
        self.exchange.collect(super().rows, start, stop, out)
        self.broken = False
        return out
