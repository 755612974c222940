"""Readers of .npz graphs: this library's own layout, which takes what PyTorch Geometric and GraphBolt name too, and
that of Shchur et al.'s gnn-benchmark.

Nothing in the file is trusted: no pickles are loaded, a member's size is bounded by the file's before memory
is set aside for it, and every array is checked before it is used.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import scipy.sparse as sp

from pdadmm.data.checks import as_numbers, check_csr, whole_numbers
from pdadmm.data.graph import Graph
from pdadmm.data.parts import class_numbers, nodes_in_masks, unlabelled
from pdadmm.errors import InputError, reason_of
from pdadmm.files import memory_bytes, regular_file

__all__ = ["Arrays", "in_file", "npy_header", "opened_npz", "read_npy", "read_npz", "write_npz"]

log = logging.getLogger("pdadmm")

_SPLIT_KEYS = {"train": "train_idx", "val": "val_idx", "test": "test_idx"}
_MASK_KEYS = {"train": "train_mask", "val": "val_mask", "test": "test_mask"}
_LABEL_KEYS = ("y", "label", "labels")
_KNOWN = (
    *("edge_index", "edge_weight", "csc_indptr", "indices", "x", "feat", "x_data", "x_indices", "x_indptr", "x_shape"),
    *_LABEL_KEYS, *_SPLIT_KEYS.values(), *_MASK_KEYS.values(),
)  # fmt: skip
_LARGEST_RATIO = 1040  # deflate cannot shrink data further than about 1032 to 1
_HEADER_BYTES = 65536  # far more than a header has
_LAYOUTS = "a file with edge_index and x (or x_data, x_indices, x_indptr, x_shape), or in Shchur's layout"


def read_npz(path: str | Path, name: str | None = None, own_split: str = "file") -> Graph:
    """Read a graph from an .npz file, in this library's layout or in Shchur's (told apart by their keys).

    Own layout: ``edge_index`` [2, E] stored pairs, features as CSR parts ``x_data``, ``x_indices``,
    ``x_indptr``, ``x_shape`` or dense ``x`` [V, F], and optionally ``y`` [V] with -1 for unlabelled (without it all
    nodes are), ``edge_weight`` [E] and all of ``train_idx``, ``val_idx``, ``test_idx``. Names of PyTorch Geometric and
    GraphBolt stand for these: ``train_mask``, ``val_mask``, ``test_mask`` [V] of truth values; ``feat`` for
    ``x``; ``label`` or ``labels`` for ``y``, also [V, 1]; ``csc_indptr`` [V + 1] with ``indices`` [E] for
    ``edge_index``. Shchur's: ``adj_*`` and ``attr_*`` CSR parts (or dense ``attr_matrix``) and ``labels``;
    no splits; its edges are taken as unweighted and undirected, as the benchmark does. Other keys are not read.

    Raises InputError for a file that is missing, damaged, in neither layout, or holds an invalid graph.

    >>> read_npz("cora.npz")  # doctest: +SKIP
    Graph(cora: 2,708 nodes, 5,278 edges, 1,433 sparse features, 7 classes, splits 140/500/1,000)
    """
    path = Path(path)
    with opened_npz(path) as file:
        if "edge_index" in file.keys or "csc_indptr" in file.keys:
            return _read_own(file, name or path.stem, own_split)
        if "adj_indptr" in file.keys:
            return _read_shchur(file, name or path.stem)
    remedy = ""
    if {"format", "shape"} <= file.keys:
        remedy = "scipy's save_npz keeps one matrix: name it adjacency.npz, in a folder with features and labels"
    raise InputError("dataset", f"{path} with the keys {sorted(file.keys)[:12]}", _LAYOUTS, remedy)


def write_npz(graph: Graph, path: str | Path) -> None:
    """Write an undirected ``graph`` to ``path`` in the layout that read_npz reads; each edge is stored once.

    Raises InputError for a directed graph, which the layout cannot express.

    >>> write_npz(graph, "mine.npz")  # doctest: +SKIP
    """
    if not graph.is_undirected:
        raise InputError("graph", repr(graph), "undirected", "build it with from_edges(..., undirected=True)")
    rows = np.repeat(np.arange(graph.num_nodes, dtype=np.int32), np.diff(graph.indptr))
    once = rows < graph.indices
    arrays = {"edge_index": np.stack([rows[once], graph.indices[once]]), "y": graph.labels}
    if graph.weights is not None:
        arrays["edge_weight"] = graph.weights[once]
    if sp.issparse(graph.features):
        arrays.update({f"x_{key}": getattr(graph.features, key) for key in ("data", "indices", "indptr")})
        arrays["x_shape"] = np.array(graph.features.shape)
    else:
        arrays["x"] = graph.features
    if graph.splits is not None:
        arrays.update({key: graph.splits[part] for part, key in _SPLIT_KEYS.items()})
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _read_own(file: Arrays, name: str, own_split: str) -> Graph:
    dense = next((key for key in ("x", "feat") if key in file.keys), None)
    features = file[dense] if dense else file.csr("x")
    weights = file["edge_weight"] if "edge_weight" in file.keys else None
    label = next((key for key in _LABEL_KEYS if key in file.keys), None)
    labels = unlabelled(features) if label is None else class_numbers(label, file[label])
    splits = _all_or_none(file, _SPLIT_KEYS, "a file with train_idx, val_idx and test_idx, or none of them")
    if splits is None:
        masks = _all_or_none(file, _MASK_KEYS, "a file with all three masks, or none")
        splits = None if masks is None else nodes_in_masks(masks, labels.size)
    unread = sorted(file.keys - set(_KNOWN))
    if unread:
        log.info("%s: keys that are not read: %s", file.path, ", ".join(unread[:12]))
    pairs = file["edge_index"] if "edge_index" in file.keys else _pairs_by_column(file, labels.size)
    return Graph.from_edges(pairs, features, labels, splits, name, weights, own_split=own_split if splits else "")


def _all_or_none(file: Arrays, keys: dict[str, str], allowed: str) -> dict[str, np.ndarray] | None:
    """The arrays of ``keys``, part -> key, or None without any of them; InputError where only some are there."""
    lacks = [key for key in keys.values() if key not in file.keys]
    if len(lacks) == len(keys):
        return None
    if lacks:
        raise InputError("dataset", f"{file.path} without the key {lacks[0]}", allowed)
    return {part: file[key] for part, key in keys.items()}


def _pairs_by_column(file: Arrays, num_nodes: int) -> np.ndarray:
    """Node pairs [2, E] of GraphBolt's form: ``indices`` from csc_indptr[j] on are the sources of edges to j."""
    indptr, indices = (whole_numbers(key, file[key]) for key in ("csc_indptr", "indices"))
    check_csr("csc", indptr, indices, num_nodes, num_nodes)
    targets = np.repeat(np.arange(num_nodes, dtype=np.int32), np.diff(indptr))
    return np.stack([indices.astype(np.int32, copy=False), targets])


def _read_shchur(file: Arrays, name: str) -> Graph:
    features = file["attr_matrix"] if "attr_matrix" in file.keys else file.csr("attr")
    adjacency = file.csr("adj", values=False)
    if adjacency.shape[0] != adjacency.shape[1]:
        raise InputError("adj_shape", adjacency.shape, "square")
    rows = np.repeat(np.arange(adjacency.shape[0], dtype=np.int32), np.diff(adjacency.indptr))
    pairs = np.stack([rows, adjacency.indices.astype(np.int32, copy=False)])
    return Graph.from_edges(pairs, features, file["labels"], name=name, num_nodes=adjacency.shape[0])


@contextmanager
def opened_npz(path: Path) -> Iterator[Arrays]:
    """The arrays of an .npz file; an InputError raised inside names the file."""
    if not path.is_file():
        raise InputError("dataset", str(path), "a file that exists", "check the path")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as problem:
        # A damaged zip surfaces as any of a dozen types, struct.error and UnicodeDecodeError among them.
        raise _damaged(path, problem) from None
    with archive, in_file(path):
        keys = {member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")}
        yield Arrays(path, archive, keys)


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Add the file to the first words of an InputError about one of its arrays."""
    try:
        yield
    except InputError as problem:
        if problem.argument == "dataset":
            raise
        argument = f"{problem.argument} in {path}"
        raise InputError(argument, problem.value, problem.allowed, problem.remedy) from None


def _damaged(path: Path, problem: Exception) -> InputError:
    return InputError("dataset", f"{path} ({reason_of(problem)})", "a complete .npz file", "fetch the file again")


class NotNumbers(ValueError):
    """An .npy file of something else, such as names; ``kind`` is its type."""

    def __init__(self, kind: np.dtype) -> None:
        super().__init__(f"holds {kind}, not plain numbers; numpy.unique(.., return_inverse=True) numbers names")
        self.kind = kind


class Arrays:
    """The arrays of an open .npz by key, read when asked for, without pickles."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, keys: set[str]) -> None:
        self.path, self.archive, self.keys = path, archive, keys

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.keys:
            raise InputError("dataset", f"{self.path} without the key {key}", _LAYOUTS)
        try:
            content = self._content(f"{key}.npy")
            return _parse_npy(content)
        except NotNumbers as problem:
            remedy = "number names: names, numbers = numpy.unique(.., return_inverse=True)"
            raise InputError(key, f"an array of {problem.kind}", "plain numbers", remedy) from None
        except Exception as problem:
            raise _damaged(self.path, ValueError(f"{key}: {reason_of(problem)}")) from None

    def _content(self, member: str) -> bytearray:
        info = self.archive.getinfo(member)
        stored = min(info.compress_size, self.path.stat().st_size)
        if info.file_size > min(_LARGEST_RATIO * stored + 1024, memory_bytes()):
            raise ValueError(f"claims {info.file_size} bytes out of {stored}")
        with self.archive.open(info) as stream:  # the header first: what it claims is the size, or nothing is read
            npy_header(stream.read(_HEADER_BYTES), info.file_size)
        content = bytearray(info.file_size)  # ours, hence writable, and filled without a second copy
        view, filled = memoryview(content), 0
        with self.archive.open(info) as stream:
            while count := cast(io.BufferedIOBase, stream).readinto(view[filled : filled + (1 << 20)]):
                filled += count
            if filled != info.file_size or stream.read(1):  # reading to the end checks the checksum too
                raise ValueError(f"{filled} bytes of {info.file_size}")
        return content

    def text(self, key: str) -> str:
        """The one short text stored under ``key``, such as the format in a file of scipy's save_npz."""
        if key not in self.keys:
            raise InputError("dataset", f"{self.path} without the key {key}", _LAYOUTS)
        try:
            info = self.archive.getinfo(f"{key}.npy")
            if info.file_size > 1024:
                raise ValueError("longer than a name")
            value = np.lib.format.read_array(io.BytesIO(self.archive.read(info)), allow_pickle=False)
            if value.shape != () or value.dtype.kind not in "SU":
                raise ValueError(f"an array of {value.dtype}, not a text")
            return value.item().decode("latin-1") if value.dtype.kind == "S" else str(value.item())
        except Exception as problem:
            raise _damaged(self.path, ValueError(f"{key}: {reason_of(problem)}")) from None

    def csr(self, prefix: str, values: bool = True) -> sp.csr_array:
        """The CSR matrix stored as ``prefix``_data, _indices, _indptr and _shape; float32, or int8 ones."""
        shape = whole_numbers(f"{prefix}_shape", self[f"{prefix}_shape"])
        if shape.size != 2 or shape.min() < 1:
            raise InputError(f"{prefix}_shape", shape.tolist(), "two whole numbers of at least 1")
        rows, columns = map(int, shape)
        indices = whole_numbers(f"{prefix}_indices", self[f"{prefix}_indices"])
        indptr = whole_numbers(f"{prefix}_indptr", self[f"{prefix}_indptr"])
        check_csr(prefix, indptr, indices, rows, columns)
        if values:
            data = as_numbers(f"{prefix}_data", self[f"{prefix}_data"], 1)
        else:
            data = np.ones(indices.size, dtype=np.int8)
        if data.shape != indices.shape:
            raise InputError(f"{prefix}_data", f"{data.size} values", f"{indices.size}, one per index")
        index = np.int32 if indices.size <= np.iinfo(np.int32).max else np.int64
        parts = data, indices.astype(index, copy=False), indptr.astype(index, copy=False)
        return sp.csr_array(parts, shape=(rows, columns))


def read_npy(path: Path) -> np.ndarray:
    """The array in an .npy file, plain numbers only. Raises InputError for a file that holds anything else.

    >>> read_npy(Path("feats.npy")).shape  # doctest: +SKIP
    (89250, 500)
    """
    try:
        with regular_file(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            npy_header(file.read(_HEADER_BYTES), size)
            file.seek(0)
            content = bytearray(size)
            if file.readinto(content) != size:
                raise ValueError("cut off")
        return _parse_npy(content)
    except FileNotFoundError:
        raise InputError("dataset", str(path), "a file that exists", "check the folder") from None
    except Exception as problem:
        value = f"{path} ({reason_of(problem)})"
        raise InputError("dataset", value, "a complete .npy file of plain numbers", "fetch the file again") from None


def npy_header(start: bytes | memoryview, size: int) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, Fortran order, type, where the numbers start) of an .npy file of ``size`` bytes; ValueError for all but
    plain numbers that fill it."""
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown .npy version {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote; they are fine
        shape, fortran_order, dtype = readers[version](stream)
    if dtype.kind not in "biuf":
        raise NotNumbers(dtype)
    if any(not isinstance(length, int) or length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    if math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"{size - stream.tell()} bytes for an array of {dtype} and shape {shape}")
    return shape, fortran_order, dtype, stream.tell()


def _parse_npy(content: bytearray) -> np.ndarray:
    """The array in the bytes of an .npy file, sharing their memory; ValueError for all but plain numbers."""
    shape, fortran_order, dtype, offset = npy_header(memoryview(content)[:_HEADER_BYTES], len(content))
    array = np.frombuffer(content, dtype=dtype, offset=offset)
    array = array.reshape(shape, order="F" if fortran_order else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
