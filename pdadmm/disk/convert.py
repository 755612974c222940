"""Graphs on disk from lists of edges of any size: an external sort within a limit of memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdadmm.data.checks import SPLIT_NAMES, check_labels, check_splits
from pdadmm.disk.blocks import DiskArray, NewArray, RawArray, Traffic, copy_array
from pdadmm.disk.graph import COUNTS, WORK, finish_folder, new_folder
from pdadmm.disk.text import number_blocks
from pdadmm.errors import InputError

__all__ = ["Sources", "convert_graph", "least_memory"]

WORK_BYTES = 48 << 20  # blocks of 16 MiB, and what Python itself takes meanwhile
LEAST_KEYS = 1 << 16  # a run of the sort


@dataclass(frozen=True)
class Sources:
    """The files of a graph: ``edges``, ``features``, ``labels`` or None, ``splits`` (train, val, test) or None.

    ``raw`` is (columns, type) where the features are bare numbers without a header.
    """

    edges: Sequence[Path]
    features: Path
    labels: Path | None = None
    splits: Sequence[Path] | None = None
    raw: tuple[int, str] | None = None

    def check_apart(self, out: Path) -> None:
        """Raise InputError for a source in the folder ``out``, where files of the graph have such names."""
        for path in filter(None, (*self.edges, self.features, self.labels, *(self.splits or ()))):
            if Path(path).resolve().parent == out.resolve():
                raise InputError("out", str(out), f"another folder than that of {path}", "its files would be replaced")


def least_memory(nodes: int) -> int:
    """Return the least memory that a conversion takes: 40 bytes a node (labels, splits, row counts) and 48 MiB."""
    return 40 * nodes + WORK_BYTES + 64 * LEAST_KEYS


def convert_graph(sources: Sources, out: str | os.PathLike, memory: int, traffic: Traffic | None = None) -> None:
    """Write the graph of these files to the folder ``out``, with at most ``memory`` bytes at a time.

    Edges are undirected; self-loops and duplicates are dropped, as Graph.from_edges does. Every edge becomes two keys
    i V + j; runs of keys are sorted in memory and written, then merged. Needs 16 bytes an edge of disk for the runs.
    Raises InputError for what cannot be read or does not fit together.
    """
    traffic = traffic or Traffic()
    features = (
        DiskArray(sources.features, traffic)
        if sources.raw is None
        else RawArray(sources.features, sources.raw[0], sources.raw[1], traffic)
    )
    with features:
        if len(features.shape) != 2 or 0 in features.shape or features.dtype.kind not in "fiub":
            value = f"{features.path} of shape {features.shape} and type {features.dtype}"
            raise InputError("features", value, "a matrix of numbers (nodes, features)")
        V = features.shape[0]
        if memory < least_memory(V):
            remedy = f"give at least {-(-least_memory(V) // 2**20)}MiB"
            raise InputError("memory", f"{memory} bytes", f"at least {least_memory(V)} bytes for {V} nodes", remedy)
        if V > 3 * 10**9:
            raise InputError("features", f"{V} rows", "at most 3 billion nodes")
        with new_folder(out) as folder:
            sources.check_apart(folder)
            work = folder / WORK
            shutil.rmtree(work, ignore_errors=True)  # of a conversion that was killed
            work.mkdir()
            room = (memory - 40 * V - WORK_BYTES) // 64  # keys; up to eight copies are in memory, parts included
            runs = list(_runs(_keys(sources.edges, V, 16 * room, traffic), work, room, traffic))
            files = _write_adjacency(runs, V, room, folder, traffic)
            shutil.rmtree(work)
            files |= _write_nodes(sources, V, folder, traffic)
            classes = files.pop("classes")
            files["features"] = _write_features(features, folder, traffic)
            counts = (V, files["indices"]["shape"][0], features.shape[1], classes)
            finish_folder(folder, dict(zip(COUNTS, counts)), files)


def _keys(edges: Iterable[Path], V: int, size: int, traffic: Traffic) -> Iterator[np.ndarray]:
    """Yield the keys i V + j of edges, both ways, without self-loops."""
    for path in edges:
        for pairs in number_blocks(path, 2, size, traffic):
            bad = ((pairs < 0) | (pairs >= V)).any(1)
            if bad.any():
                i, j = pairs[np.argmax(bad)]
                value = f"{path} with an edge {i}, {j}"
                raise InputError("edges", value, f"node numbers from 0 to {V - 1}, as there are {V} rows of features")
            i, j = pairs[pairs[:, 0] != pairs[:, 1]].T
            yield i * V + j
            yield j * V + i


def _runs(keys: Iterable[np.ndarray], work: Path, room: int, traffic: Traffic) -> Iterator[Path]:
    """Yield files of at most ``2 room`` keys each, sorted, without duplicates."""
    memory, filled, number = np.empty(2 * room, np.int64), 0, 0

    def write() -> Path:
        memory[:filled].sort()
        path = work / f"run-{number:06d}.npy"
        copy_array(_distinct(memory[:filled]), path, traffic)
        return path

    for found in keys:
        while len(found):
            part = found[: len(memory) - filled]
            memory[filled : filled + len(part)] = part
            filled, found = filled + len(part), found[len(part) :]
            if filled == len(memory):
                yield write()
                filled, number = 0, number + 1
    if filled:
        yield write()


def _distinct(values: np.ndarray) -> np.ndarray:
    """Return sorted values without repeats, moved together in place."""
    count, step, last = 0, 1 << 20, None
    for start in range(0, len(values), step):
        part = values[start : start + step]
        new = np.ones(len(part), bool)
        np.not_equal(part[1:], part[:-1], out=new[1:])
        new[0] = last is None or part[0] != last
        last = part[-1]
        kept = part[new]
        values[count : count + len(kept)] = kept
        count += len(kept)
    return values[:count]


def _merged(runs: Sequence[Path], room: int, traffic: Traffic) -> Iterator[np.ndarray]:
    """Yield the keys of all runs in rising order, without duplicates.

    A buffer for each run: what is not above the smallest of the buffers' last keys is complete, and leaves together.
    """
    arrays = [DiskArray(path, traffic) for path in runs]
    try:
        size = max(1, room // max(1, len(runs)))
        buffers, read = [np.empty(0, np.int64)] * len(runs), [0] * len(runs)
        while True:
            for k, array in enumerate(arrays):
                if not len(buffers[k]) and read[k] < array.shape[0]:
                    stop = min(read[k] + size, array.shape[0])
                    buffers[k], read[k] = array.rows(read[k], stop), stop
            full = [buffer for buffer in buffers if len(buffer)]
            if not full:
                return
            # of a run that is read to its end nothing more comes: it does not hold the others back
            bound = min((b[-1] for b, array, r in zip(buffers, arrays, read) if len(b) and r < array.shape[0]),
                        default=max(buffer[-1] for buffer in full))  # fmt: skip
            cuts = [int(np.searchsorted(buffer, bound, side="right")) for buffer in buffers]
            together = np.concatenate([buffer[:cut] for buffer, cut in zip(buffers, cuts)])
            buffers = [buffer[cut:] for buffer, cut in zip(buffers, cuts)]
            together.sort()
            yield _distinct(together)
    finally:
        for array in arrays:
            array.close()


def _write_adjacency(runs: Sequence[Path], V: int, room: int, folder: Path, traffic: Traffic) -> dict:
    counts, stored = np.zeros(V + 1, np.int64), 0
    most = sum(max(0, (path.stat().st_size - 128) // 8) for path in runs)
    index = np.int32 if np.iinfo(np.int32).max >= V else np.int64
    new = NewArray(folder / "indices.npy", (most,), index, traffic)
    try:
        for keys in _merged(runs, room, traffic):
            rows = keys // V
            first = int(rows[0])
            found = np.bincount(rows - first)
            counts[first + 1 : first + 1 + len(found)] += found
            keys -= rows * V
            new.write(stored, keys)
            stored += len(keys)
        new.commit(stored)
    finally:
        new.close()
    np.cumsum(counts, out=counts)
    return {"indices": new.entry(), "indptr": copy_array(counts, folder / "indptr.npy", traffic)}


def _write_nodes(sources: Sources, V: int, folder: Path, traffic: Traffic) -> dict:
    """Write labels and splits; the entry "classes" is their number."""
    labels = np.full(V, -1, np.int64)
    if sources.labels is not None:
        labels = _column("labels", sources.labels, V, traffic)
        if len(labels) != V:
            raise InputError("labels", f"{sources.labels} with {len(labels)} labels", f"one for each of {V} nodes")
    labels, classes = check_labels(labels, V, None)
    files: dict = {"classes": classes, "labels": copy_array(labels, folder / "labels.npy", traffic)}
    if sources.splits is not None:
        given = {name: _column(name, path, V, traffic) for name, path in zip(SPLIT_NAMES, sources.splits)}
        for name, nodes in (check_splits(given, labels) or {}).items():
            files[name] = copy_array(nodes, folder / f"{name}.npy", traffic)
    return files


def _column(name: str, path: Path, V: int, traffic: Traffic) -> np.ndarray:
    """Return the numbers of a file, at most one a node."""
    parts, count = [np.empty(0, np.int64)], 0
    for part in number_blocks(path, 1, 16 << 20, traffic):
        parts.append(part[:, 0])
        count += len(part)
        if count > V:
            raise InputError(name, f"{path} with more than {V} numbers", f"at most one for each of {V} nodes")
    return np.concatenate(parts)


def _write_features(features: DiskArray, folder: Path, traffic: Traffic) -> dict:
    kind = "float16" if features.dtype == np.float16 else "float32"
    new = NewArray(folder / "features.npy", features.shape, kind, traffic)
    step = max(1, min(new.block, (16 << 20) // max(1, features.row_bytes)))
    try:
        for start in range(0, features.shape[0], step):
            rows = features.rows(start, min(start + step, features.shape[0]))
            with np.errstate(over="ignore", under="ignore"):
                rows = rows.astype(kind)
            if not np.isfinite(rows).all():
                i, j = np.argwhere(~np.isfinite(rows))[0]
                value = f"{features.path}, {rows[i, j]} at node {start + i}, column {j}"
                raise InputError("features", value, f"finite in {kind}", "clean or rescale the features")
            new.write(start, rows)
        new.commit()
    finally:
        new.close()
    return new.entry()
