"""Reader of the raw Planetoid files (ind.NAME.allx, tx, y, ty, ally, graph, test.index), pickles included.

A pickle can name any function to be called. Here every name is looked up in a table of inert stand-ins
(pdadmm.data.unpickle) that only keep what they are given; arrays are rebuilt afterwards from their bytes, shape and
type. Nothing of numpy or scipy runs during the unpickling, and a name outside the table is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.data.checks import check_csr
from pdadmm.data.graph import Graph
from pdadmm.data.unpickle import Csr, InertUnpickler, RefusedError
from pdadmm.errors import InputError, reason_of
from pdadmm.files import regular_file

__all__ = ["find_planetoid", "holds_planetoid", "read_planetoid", "read_planetoid_folder"]

_NUM_VALIDATION = 500  # of the public split


def find_planetoid(folder: str | Path, name: str) -> Path | None:
    """The folder with ``ind.NAME.allx``: ``folder``, its ``raw``, or ``NAME/raw`` (any case), else None."""
    folder = Path(folder)
    named = [path / "raw" for path in sorted(folder.iterdir()) if path.name.lower() == name.lower()]
    candidates = [folder, folder / "raw", *named]
    return next((path for path in candidates if (path / f"ind.{name}.allx").is_file()), None)


def holds_planetoid(path: Path) -> bool:
    """Whether ``path`` is a folder with a set in this format."""
    return path.is_dir() and any(path.glob("ind.*.allx"))


def read_planetoid_folder(folder: Path, name: str | None = None) -> Graph:
    """Read the one set in ``folder``, under ``name`` where it is given. Raises InputError as read_planetoid does."""
    sets = sorted(path.name.removeprefix("ind.").removesuffix(".allx") for path in folder.glob("ind.*.allx"))
    if len(sets) != 1:
        remedy = "name the set with --dataset and this folder with --data-dir" if sets else ""
        value = f"{folder} with {', '.join(sets) or 'no ind.NAME.allx'}"
        raise InputError("dataset", value, "a folder of one Planetoid set", remedy)
    graph = read_planetoid(folder, sets[0])
    return graph if name is None else dataclasses.replace(graph, name=name)


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
    path = Path(f"{stem}.graph")
    pairs = _as_pairs(stem, _load(path), path.stat().st_size)
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


def _as_pairs(stem: Path, graph: object, nbytes: int) -> np.ndarray:
    """Node pairs [2, E] of the dict node -> list of neighbours, out of a file of ``nbytes`` bytes."""
    if not isinstance(graph, dict) or not all(isinstance(nodes, list) for nodes in graph.values()):
        raise _wrong(stem, "graph", "a dict of node -> list of neighbours")
    if sum(map(len, graph.values())) > nbytes:  # one list given to many nodes would take any amount of memory
        raise _wrong(stem, "graph", "a list of its own for every node")
    ends = [node for nodes in graph.values() for node in nodes]
    if not all(type(node) is int and 0 <= node < 2**31 for part in (graph, ends) for node in part):
        raise _wrong(stem, "graph", "whole node numbers")
    starts = np.repeat(np.array(list(graph), dtype=np.int64), [len(nodes) for nodes in graph.values()])
    return np.stack([starts, np.array(ends, dtype=np.int64)])


def _as_csr(stem: Path, part: str) -> sp.csr_array:
    value = _load(Path(f"{stem}.{part}"))
    if not isinstance(value, Csr):
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
        return regular_file(path).read_bytes()
    except OSError as problem:
        allowed = f"a file that can be read ({problem.strerror})"
        remedy = "a Planetoid set needs its files tx, allx, y, ty, ally, graph and test.index"
        raise InputError("dataset", str(path), allowed, remedy) from None


def _load(path: Path) -> Any:
    """The object pickled in ``path``, with stand-ins for arrays and matrices."""
    content = _read_bytes(path)
    try:
        return InertUnpickler(content).load()
    except RefusedError as problem:
        allowed = "a pickle of arrays, CSR matrices, dicts and lists alone"
        value = f"{path}, which names {problem}"
        raise InputError("dataset", value, allowed, "do not trust this file; fetch it again") from None
    except Exception as problem:
        # A damaged pickle surfaces as almost any type.
        value = f"{path} ({reason_of(problem)})"
        raise InputError("dataset", value, "a complete pickle", "fetch the file again") from None
