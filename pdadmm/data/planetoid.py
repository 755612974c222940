"""Reader of the raw Planetoid files (ind.NAME.allx, tx, y, ty, ally, graph, test.index), pickles included.

A pickle can name any function to be called. Here every name is looked up in a table of inert stand-ins that
only keep what they are given; arrays are rebuilt afterwards from their bytes, shape and type. Nothing of
numpy or scipy runs during the unpickling, and a name outside the table is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pdadmm.data.checks import check_csr
from pdadmm.data.graph import Graph
from pdadmm.errors import InputError

__all__ = ["find_planetoid", "read_planetoid"]

_NUM_VALIDATION = 500  # of the public split


def find_planetoid(folder: str | Path, name: str) -> Path | None:
    """The folder with ``ind.NAME.allx``: ``folder``, its ``raw``, or ``NAME/raw`` (any case), else None."""
    folder = Path(folder)
    named = [path / "raw" for path in sorted(folder.iterdir()) if path.name.lower() == name.lower()]
    candidates = [folder, folder / "raw", *named]
    return next((path for path in candidates if (path / f"ind.{name}.allx").is_file()), None)


def read_planetoid(folder: str | Path, name: str) -> Graph:
    """Read the raw Planetoid files of ``name`` in ``folder``, with the public split.

    Training nodes are the first ones, as many as ``y`` has rows; validation nodes the next 500; test nodes
    those of ``test.index``; unlabelled ones are left out of the latter two. A node that no file describes
    (15 in Citeseer) gets zero features and label -1.

    Raises InputError for files that are missing, damaged, inconsistent, or name anything but plain arrays.

    >>> read_planetoid("planetoid/data", "cora")  # doctest: +SKIP
    Graph(cora: 2,708 nodes, 5,278 edges, 1,433 sparse features, 7 classes, splits 140/500/1,000)
    """
    stem = Path(folder) / f"ind.{name}"
    features, test_features = (_as_csr(stem, part) for part in ("allx", "tx"))
    onehot, test_onehot, train_onehot = (_as_dense(stem, part) for part in ("ally", "ty", "y"))
    test_nodes = _test_nodes(Path(f"{stem}.test.index"))
    known = features.shape[0]
    _agree(stem, "ally", onehot.shape[0], known, "rows, those of allx")
    _agree(stem, "ty", test_onehot.shape[0], test_features.shape[0], "rows, those of tx")
    _agree(stem, "test.index", test_nodes.size, test_features.shape[0], "lines, the rows of tx")
    _agree(stem, "tx", test_features.shape[1], features.shape[1], "columns, those of allx")
    _agree(stem, "ty", test_onehot.shape[1], onehot.shape[1], "columns, those of ally")
    if test_nodes.min() < known or np.unique(test_nodes).size < test_nodes.size:
        raise _wrong(stem, "test.index", f"distinct node numbers from {known} on, after the rows of allx")
    if not 0 < train_onehot.shape[0] <= known:
        raise _wrong(stem, "y", f"1 to {known} rows, the first of allx")
    pairs = _as_pairs(stem, _load(Path(f"{stem}.graph")))
    num_nodes = max(int(test_nodes.max()), int(pairs.max(initial=0))) + 1
    if num_nodes > 2 * (known + test_nodes.size):  # a stray number, which would size the arrays below
        raise _wrong(stem, "graph", f"node numbers below {2 * (known + test_nodes.size)}")
    place = np.full(num_nodes, -1)
    place[:known] = np.arange(known)
    place[test_nodes] = known + np.arange(test_nodes.size)
    labels = np.full(num_nodes, -1)
    stacked_labels = _classes(np.concatenate([onehot, test_onehot]))
    labels[place >= 0] = stacked_labels[place[place >= 0]]
    empty = sp.csr_array((1, features.shape[1]), dtype=np.float32)  # the row of nodes that no file describes
    stacked = sp.vstack([features, test_features, empty], format="csr")
    rows = np.where(place >= 0, place, stacked.shape[0] - 1)
    train = train_onehot.shape[0]
    splits = {"train": np.arange(train), "val": np.arange(train, min(train + _NUM_VALIDATION, known))}
    splits["val"] = splits["val"][labels[splits["val"]] >= 0]
    splits["test"] = np.sort(test_nodes[labels[test_nodes] >= 0])
    return Graph.from_edges(pairs, sp.csr_array(stacked[rows]), labels, splits, name,
                            num_classes=onehot.shape[1], own_split="public")  # fmt: skip


def _wrong(stem: Path, part: str, allowed: str) -> InputError:
    return InputError("dataset", f"{stem}.{part}", f"a file with {allowed}", "fetch the files again")


def _agree(stem: Path, part: str, found: int, expected: int, what: str) -> None:
    if found != expected:
        raise _wrong(stem, part, f"{expected} {what} (it has {found})")


def _test_nodes(path: Path) -> np.ndarray:
    words = _read_bytes(path).split()
    if not words or not all(word.isdigit() and len(word) < 10 for word in words):
        raise InputError("dataset", str(path), "a file with one node number a line")
    return np.array([int(word) for word in words])


def _classes(onehot: np.ndarray) -> np.ndarray:
    """Class of each row; -1 where the row is all zero."""
    return np.where(onehot.any(axis=1), onehot.argmax(axis=1), -1)


def _as_pairs(stem: Path, graph: object) -> np.ndarray:
    """Node pairs [2, E] of the dict node -> list of neighbours."""
    if not isinstance(graph, dict) or not all(isinstance(nodes, list) for nodes in graph.values()):
        raise _wrong(stem, "graph", "a dict of node -> list of neighbours")
    ends = [node for nodes in graph.values() for node in nodes]
    if not all(type(node) is int and 0 <= node < 2**31 for part in (graph, ends) for node in part):
        raise _wrong(stem, "graph", "whole node numbers")
    starts = np.repeat(np.array(list(graph), dtype=np.int64), [len(nodes) for nodes in graph.values()])
    return np.stack([starts, np.array(ends, dtype=np.int64)])


def _as_csr(stem: Path, part: str) -> sp.csr_array:
    value = _load(Path(f"{stem}.{part}"))
    if not isinstance(value, _Csr):
        raise _wrong(stem, part, "a CSR matrix")
    try:
        rows, columns = (int(size) for size in value.state.get("_shape", value.state.get("shape")))
        data, indices, indptr = (value.state[key].array() for key in ("data", "indices", "indptr"))
        if data.shape != indices.shape or data.ndim != 1 or min(rows, columns) < 0:
            raise ValueError
        if indices.dtype.kind != "i" or indptr.dtype.kind != "i":
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _wrong(stem, part, "a CSR matrix of plain arrays") from None
    check_csr(f"{stem}.{part}", indptr, indices, rows, columns)
    return sp.csr_array((data, indices, indptr), shape=(rows, columns))


def _as_dense(stem: Path, part: str) -> np.ndarray:
    value = _load(Path(f"{stem}.{part}"))
    try:
        array = value.array()
    except (TypeError, ValueError, AttributeError):
        raise _wrong(stem, part, "a plain array") from None
    onehot = array.ndim == 2 and array.shape[1] > 0 and np.isin(array, (0, 1)).all()
    if not onehot or (array.sum(axis=1) > 1).any():
        raise _wrong(stem, part, "one-hot rows")
    return array


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        allowed = f"a file that can be read ({problem.strerror})"
        remedy = "a Planetoid set needs its files tx, allx, y, ty, ally, graph and test.index"
        raise InputError("dataset", str(path), allowed, remedy) from None


def _load(path: Path) -> object:
    """The object pickled in ``path``, with stand-ins for arrays and matrices."""
    content = _read_bytes(path)
    try:
        return _InertUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _RefusedError as problem:
        allowed = "a pickle of arrays, CSR matrices, dicts and lists alone"
        value = f"{path}, which names {problem}"
        raise InputError("dataset", value, allowed, "do not trust this file; fetch it again") from None
    except Exception as problem:
        # A damaged pickle surfaces as almost any type.
        value = f"{path} ({problem or type(problem).__name__})"
        raise InputError("dataset", value, "a complete pickle", "fetch the file again") from None


class _RefusedError(Exception):
    """A pickle names something outside the table of stand-ins."""


class _Inert:
    """Base of the stand-ins. Pickle's BUILD finds __setstate__ on classes and objects alike, so that no
    attribute of either can be set by a file."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise ValueError("unexpected state")


class _Dtype(_Inert):
    """numpy.dtype: keeps a code such as f4 and a byte order; numbers only."""

    __slots__ = ("code", "order")

    def __new__(cls, code: str, *flags: object) -> _Dtype:
        self = object.__new__(cls)
        if not isinstance(code, str) or not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
            raise ValueError(f"an array of {str(code)[:20]}, not of plain numbers")
        self.code, self.order = code, "="
        return self

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError("an unknown byte order")
        self.order = state[1].replace("|", "=")


class _Array(_Inert):
    """numpy.ndarray: keeps shape, type, order and bytes."""

    __slots__ = ("state",)

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, raw = self.state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 strings
        if not isinstance(raw, bytes) or not isinstance(dtype, _Dtype):
            raise ValueError("not an array of plain numbers")
        if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            raise ValueError("not a shape")
        kind = np.dtype(dtype.code).newbyteorder(dtype.order)
        if math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError("the bytes do not fit the shape")
        flat = np.frombuffer(raw, dtype=kind).astype(kind.newbyteorder("="))
        return flat.reshape(shape, order="F" if fortran else "C")


class _Scalar(_Inert):
    """numpy's scalar: becomes a Python number at once."""

    def __new__(cls, dtype: _Dtype, raw: bytes | str) -> object:
        whole = _Array()
        whole.__setstate__((1, (), dtype, False, raw))
        return whole.array().item()


class _Csr(_Inert):
    """scipy.sparse.csr_matrix: keeps its attributes as a dict."""

    __slots__ = ("state",)

    def __setstate__(self, state: dict) -> None:
        if not isinstance(state, dict):
            raise ValueError("a CSR matrix without attributes")
        self.state = state


class _Reconstruct(_Inert):
    """numpy's _reconstruct and copyreg's _reconstructor: an empty array or matrix, filled by its state."""

    def __new__(cls, kind: object, *rest: object) -> object:
        if kind not in (_Array, _Csr):
            raise ValueError("an object that is neither array nor matrix")
        return object.__new__(kind)


class _Encode(_Inert):
    """_codecs.encode, by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes in an unknown encoding")
        return text.encode("latin1")


class _Object(_Inert):
    """The builtin object, named (never made) by old pickles."""

    def __new__(cls, *rest: object) -> object:
        raise ValueError("a plain object")


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_array"): _Csr,
    ("copy_reg", "_reconstructor"): _Reconstruct,
    ("copyreg", "_reconstructor"): _Reconstruct,
    ("__builtin__", "object"): _Object,
    ("builtins", "object"): _Object,
    ("_codecs", "encode"): _Encode,
    ("__builtin__", "bytes"): _Encode,
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None
