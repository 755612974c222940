"""Graphs in a folder of plain .npy files, which need not fit in memory: opening, checking, reading, writing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.data.checks import SPLIT_NAMES, check_labels, check_splits
from pdadmm.data.graph import Graph
from pdadmm.disk.blocks import DiskArray, NewArray, Traffic, checked_blocks, copy_array, entry_of
from pdadmm.errors import InputError
from pdadmm.files import memory_bytes, parse_json, regular_file, replace_file

__all__ = ["FORMAT", "WORK", "DiskGraph", "finish_folder", "new_folder", "row_blocks", "write_graph"]

FORMAT = "pdadmm-graph-1"
HEADER = "graph.json"
COUNTS = ("nodes", "edges", "features", "classes")
# name -> the types it may have and the shape, in terms of the counts
FILES: dict[str, tuple[tuple[str, ...], tuple[str | int, ...]]] = {
    "indptr": (("int64",), ("nodes + 1",)),
    "indices": (("int32", "int64"), ("edges",)),
    "features": (("float32", "float16"), ("nodes", "features")),
    "labels": (("int64",), ("nodes",)),
}
# What a killed conversion leaves in the folder: these files, and those of its work in a folder of that name.
OURS = {f"{name}.npy{end}" for name in (*FILES, *SPLIT_NAMES) for end in ("", ".partial")} | {HEADER + ".partial"}
WORK = "convert.partial"
ADJACENCY_ENTRIES = 1 << 18  # stored entries that are looked at together


class DiskGraph:
    """A graph in a folder, opened for reading; the numbers stay on the disk until they are asked for.

    The folder has graph.json, indptr.npy int64 (V + 1,), indices.npy int32 or int64 (edges,), features.npy float32
    or float16 (V, F), labels.npy int64 (V,), -1 for unlabelled, and all or none of train.npy, val.npy, test.npy int64.
    The adjacency is symmetric, without weights, self-loops or duplicates, its columns sorted in each row.
    ``num_nodes`` V, ``num_edges`` stored entries (two for each edge), ``num_features`` F, ``num_classes``.

    Opening compares graph.json with the size and header of every file; ``check`` reads them all. Raises InputError
    for a folder that is no graph.

    >>> with DiskGraph("papers") as graph:  # doctest: +SKIP
    ...     graph.features.rows(0, 1000).shape
    (1000, 128)
    """

    def __init__(self, folder: str | os.PathLike, traffic: Traffic | None = None) -> None:
        self.folder, self.traffic = Path(folder), traffic or Traffic()
        self.header = read_header(self.folder, HEADER, FORMAT)
        counts = [self.header.get(name, -1) for name in COUNTS]
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
            raise InputError("dataset", f"{self.folder / HEADER}", "with whole numbers as " + ", ".join(COUNTS))
        self.num_nodes, self.num_edges, self.num_features, self.num_classes = map(int, counts)
        self.name = self.folder.resolve().name
        expected = dict(FILES)
        if any(name in self.header["files"] for name in SPLIT_NAMES):
            expected |= {name: (("int64",), (name,)) for name in SPLIT_NAMES}
        self._arrays: dict[str, DiskArray] = {}
        self._last = -1  # the column before a part of the adjacency that is being checked
        try:
            for name, (types, shape) in expected.items():
                self._arrays[name] = open_listed(self.folder, name, self.header, self.traffic)
                self._compare(name, types, shape)
        except BaseException:
            self.close()
            raise

    def _compare(self, name: str, types: tuple[str, ...], shape: tuple[str | int, ...]) -> None:
        array = self._arrays[name]
        counts: dict[str | int, int] = {part: self.header[part] for part in COUNTS}
        counts["nodes + 1"] = self.num_nodes + 1
        wanted = tuple(counts.get(part, array.shape[0]) for part in shape)
        if array.shape != wanted or array.dtype.name not in types:
            value = f"{array.path} of shape {array.shape} and type {array.dtype}"
            raise InputError("dataset", value, f"of shape {wanted} and type {' or '.join(types)}")

    @property
    def features(self) -> DiskArray:
        """The features (V, F)."""
        return self._arrays["features"]

    @property
    def indices(self) -> DiskArray:
        """The columns of the stored entries (edges,)."""
        return self._arrays["indices"]

    @property
    def adjacency_bytes(self) -> int:
        """Bytes of indptr and indices, what a pass over the adjacency reads."""
        return 8 * (self.num_nodes + 1) + self.num_edges * self.indices.dtype.itemsize

    def indptr(self) -> np.ndarray:
        """Return where each row's entries start, int64 (V + 1,), checked."""
        indptr = np.empty(self.num_nodes + 1, np.int64)
        for start, stop, rows in checked_blocks(self._arrays["indptr"], self.header["files"]["indptr"]):
            indptr[start:stop] = rows
        if indptr[0] != 0 or indptr[-1] != self.num_edges or any_fall(indptr):
            value = f"{self._arrays['indptr'].path}"
            raise InputError("dataset", value, f"never decreasing, from 0 to {self.num_edges}")
        return indptr

    def labels(self) -> np.ndarray:
        """Return the class of every node, int64 (V,), -1 where unknown."""
        return check_labels(self._arrays["labels"].rows(0, self.num_nodes), self.num_nodes, self.num_classes or None)[0]

    def splits(self) -> dict[str, np.ndarray] | None:
        """Return the nodes of "train", "val" and "test", int64, or None where the folder has no split."""
        if "train" not in self._arrays:
            return None
        found = {name: self._arrays[name].rows(0, self._arrays[name].shape[0]) for name in SPLIT_NAMES}
        return check_splits(found, self.labels())

    def check(self) -> None:
        """Read every file once, in blocks, and raise InputError where one is damaged or breaks the format's rules."""
        self.check_adjacency(self.indptr())
        for name in sorted(self._arrays.keys() - {"indptr", "indices"}):
            for start, _, rows in checked_blocks(self._arrays[name], self.header["files"][name]):
                if name == "features" and not np.isfinite(rows).all():
                    i, j = np.argwhere(~np.isfinite(rows))[0]
                    value = f"{rows[i, j]} at node {start + i}, column {j}"
                    raise InputError("features", value, "finite", "clean or rescale the features")
        self.splits()

    def check_adjacency(self, indptr: np.ndarray, keep: np.ndarray | None = None) -> None:
        """Read the columns once: checksums, range, order, symmetry; put them into ``keep`` (edges,) where given.

        Symmetry by the sum over the entries (i, j) of s(i) t(j) - t(i) s(j) modulo 2^64, with s a hash and t its upper
        half: it is 0 for a symmetric matrix, and hardly ever for another.
        """
        total, self._last = 0, -1
        for start, stop, columns in checked_blocks(self.indices, self.header["files"]["indices"]):
            if keep is not None:
                keep[start:stop] = columns
            for a in range(start, stop, ADJACENCY_ENTRIES):
                total += self._check_entries(indptr, a, columns[a - start : a - start + ADJACENCY_ENTRIES])
        if total % 2**64:
            value = str(self.indices.path)
            raise InputError("dataset", value, "symmetric", "pdadmm convert makes every edge both ways")

    def _check_entries(self, indptr: np.ndarray, start: int, columns: np.ndarray) -> int:
        """Check entries from number ``start`` on and return their part of the sum that is 0 for a symmetric matrix."""
        places = np.arange(start, start + len(columns))
        rows = np.searchsorted(indptr, places, side="right") - 1
        columns = columns.astype(np.int64)
        follows = rows[1:] == rows[:-1]
        wrong = (columns < 0) | (columns >= self.num_nodes) | (columns == rows)
        wrong[1:] |= follows & (columns[1:] <= columns[:-1])
        if start and indptr[rows[0]] < start:  # the row began in the part before
            wrong[0] |= columns[0] <= self._last
        if wrong.any():
            place = int(np.argmax(wrong))
            value = f"{self.indices.path} with column {columns[place]} in row {rows[place]}"
            allowed = f"columns 0 to {self.num_nodes - 1} in rising order in each row, without the diagonal"
            raise InputError("dataset", value, allowed)
        self._last = int(columns[-1])
        g, h = scrambled(rows), scrambled(columns)
        return int((g * (h >> np.uint64(32)) - h * (g >> np.uint64(32))).sum(dtype=np.uint64))

    def to_graph(self, name: str | None = None, own_split: str = "file") -> Graph:
        """Return the graph in memory, called as its folder unless ``name`` says; InputError where it is too large."""
        needed = self.adjacency_bytes + 4 * self.num_nodes * self.num_features + 8 * self.num_nodes
        if needed > memory_bytes():
            value, remedy = f"{self.folder} of {needed} bytes", "augment it from disk with pdadmm augment"
            raise InputError("dataset", value, "a graph that fits in memory", remedy)
        if self.num_nodes > np.iinfo(np.int32).max:
            raise InputError("dataset", str(self.folder), "a graph of less than 2^31 nodes")
        indptr, columns = self.indptr(), np.empty(self.num_edges, self.indices.dtype)
        self.check_adjacency(indptr, columns)
        features = np.empty(self.features.shape, np.float32)
        for start, stop, rows in checked_blocks(self.features, self.header["files"]["features"]):
            features[start:stop] = rows
        splits = self.splits()
        own = own_split if splits else ""
        classes = self.num_classes or None
        return Graph(indptr, columns, None, features, self.labels(), splits, name or self.name, classes, own)

    def close(self) -> None:
        """Close the files."""
        for array in self._arrays.values():
            array.close()

    def __enter__(self) -> DiskGraph:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def any_fall(values: np.ndarray) -> bool:
    """Whether a value is below the one before it; in parts, so that masks stay small."""
    step = ADJACENCY_ENTRIES
    return any((np.diff(values[a : a + step + 1]) < 0).any() for a in range(0, len(values) - 1, step))


def scrambled(numbers: np.ndarray) -> np.ndarray:
    """Return a hash of each number, uint64: the finish of splitmix64 (Steele et al. 2014)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def row_blocks(
    indptr: np.ndarray, entries: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield ranges of at most ``entries`` rows with as many entries, or of one row that has more, from ``first`` on.

    >>> list(row_blocks(np.array([0, 2, 3, 9, 10]), 4))
    [(0, 2), (2, 3), (3, 4)]
    """
    start, last = first, len(indptr) - 1 if last is None else last
    while start < last:
        stop = int(np.searchsorted(indptr, indptr[start] + entries, side="right")) - 1
        stop = min(max(stop, start + 1), start + entries, last)
        yield start, stop
        start = stop


def read_header(folder: Path, name: str, format: str) -> dict[str, Any]:
    """Return the JSON that says what a folder holds; InputError where it is not of this format."""
    try:
        header = parse_json(regular_file(folder / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError("dataset", f"{folder} ({name}: {reason})", f"a folder with a {name} of {format}") from None
    if header.get("format") != format or not isinstance(header.get("files"), dict):
        raise InputError("dataset", f"{folder / name} of {header.get('format')!r}", f"of the format {format}")
    return header


def open_listed(folder: Path, name: str, header: dict[str, Any], traffic: Traffic) -> DiskArray:
    """Open one array of a folder; InputError where its shape or type is not what the folder's JSON says."""
    path = folder / f"{name}.npy"
    if not path.exists():
        raise InputError("dataset", str(path), "a file that exists", "make the folder again")
    array = DiskArray(path, traffic)
    entry = header["files"].get(name)
    if isinstance(entry, dict) and isinstance(entry.get("block"), int) and entry["block"] > 0:
        block, crcs = entry["block"], entry.get("crc32")
        known = isinstance(crcs, list) and len(crcs) == -(-array.shape[0] // block)
        if known and entry == entry_of(array.shape, array.dtype, block, crcs or []):
            return array
    array.close()
    value = f"{array.path} of shape {array.shape} and type {array.dtype}"
    raise InputError("dataset", value, "as the folder's JSON lists it", "it was changed: make the folder again")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Make the folder of a graph; where what is to fill it fails, our new files in it, or the new folder, go again.

    InputError where it cannot be made, or has more than what a killed conversion leaves.
    """
    folder, made = Path(path), not os.path.lexists(path)
    before = _make(folder)
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what is told
            shutil.rmtree(folder / WORK, ignore_errors=True)
            for name in (OURS | {HEADER}) - before:
                (folder / name).unlink(missing_ok=True)
            if made:
                folder.rmdir()
        raise


def _make(folder: Path) -> set[str]:
    """Make the folder of a graph, or take what a killed conversion left, and return the names of its files."""
    try:
        folder.mkdir(exist_ok=True)
        names = {entry.name for entry in folder.iterdir()}
        other = sorted(names - OURS - {WORK})
    except OSError as error:
        raise InputError("out", str(folder), "a folder that can be made", error.strerror or "") from None
    if other:
        raise InputError("out", f"{folder}, which has {other[0]}", "a new or empty folder", "remove it or name another")
    if not os.access(folder, os.W_OK):
        raise InputError("out", str(folder), "a folder that can be written to")
    return names


def finish_folder(folder: Path, counts: dict[str, int], files: dict[str, dict[str, Any]]) -> None:
    """Write graph.json, the last file of a folder: with it the graph is there."""
    header = {"format": FORMAT, **counts, "files": files}
    replace_file(folder / HEADER, json.dumps(header, indent=1).encode() + b"\n")


def write_graph(graph: Graph, path: str | os.PathLike, traffic: Traffic | None = None) -> None:
    """Write an undirected graph without weights to a folder; sparse features become dense, block by block.

    Raises InputError for another graph, and for a folder that has one.

    >>> write_graph(digits(), "digits")  # doctest: +SKIP
    """
    if graph.weights is not None or not graph.is_undirected:
        value = f"{graph!r} with weights" if graph.weights is not None else f"{graph!r}, directed"
        raise InputError("graph", value, "undirected and without weights", "pass it through Graph.from_edges")
    arrays = {"indptr": graph.indptr, "indices": graph.indices, "labels": graph.labels} | (graph.splits or {})
    with new_folder(path) as folder:
        files = {name: copy_array(array, folder / f"{name}.npy", traffic) for name, array in arrays.items()}
        new = NewArray(folder / "features.npy", graph.features.shape, np.float32, traffic)
        try:
            for start in range(0, graph.num_nodes, new.block):
                rows = graph.features[start : start + new.block]
                new.write(start, rows.toarray() if sp.issparse(rows) else rows)
            new.commit()
        finally:
            new.close()
        files["features"] = new.entry()
        counts = (graph.num_nodes, graph.indices.size, graph.num_features, int(graph.num_classes or 0))
        finish_folder(folder, dict(zip(COUNTS, counts)), files)
