"""Reader of folders with scipy's sparse matrices: adjacency.npz, features.npz or .npy, labels.npy."""

from __future__ import annotations

from pathlib import Path

import scipy.sparse as sp

from pdadmm.data.checks import SPLIT_NAMES, whole_numbers
from pdadmm.data.graph import Graph
from pdadmm.data.npz import in_file, opened_npz, read_npy
from pdadmm.data.parts import class_numbers, compressed, coordinates
from pdadmm.errors import InputError

__all__ = ["holds_scipy", "read_scipy", "read_sparse"]


def holds_scipy(path: Path) -> bool:
    """Whether ``path`` is a folder in this format."""
    return (path / "adjacency.npz").is_file()


def read_scipy(folder: str | Path, name: str | None = None, own_split: str = "file") -> Graph:
    """Read a graph from a folder of arrays, its adjacency as ``scipy.sparse.save_npz`` writes it.

    ``adjacency.npz`` [V, V], values other than 1 are weights; ``features.npz`` (sparse) or ``features.npy``
    [V, F]; ``labels.npy`` [V] with -1 for unlabelled; and, all or none, ``train_idx.npy``, ``val_idx.npy``,
    ``test_idx.npy``. Matrices may be CSR, CSC or COO. Edges are undirected.

    Raises InputError for a file that is missing, damaged or does not fit the others.

    >>> read_scipy("folder")  # doctest: +SKIP
    Graph(folder: 3 nodes, 2 edges, 4 sparse features, 2 classes, no splits)
    """
    folder = Path(folder)
    labels = class_numbers("labels", read_npy(folder / "labels.npy"))
    adjacency = read_sparse(folder / "adjacency.npz", labels.size)
    sparse = (folder / "features.npz").is_file()
    features = read_sparse(folder / "features.npz", labels.size) if sparse else read_npy(folder / "features.npy")
    files = {part: folder / f"{part}_idx.npy" for part in SPLIT_NAMES}
    splits = None
    if any(file.exists() for file in files.values()):
        splits = {part: read_npy(file) for part, file in files.items()}
    with in_file(folder):
        return Graph.from_adjacency(adjacency, features, labels, splits, name or folder.resolve().name,
                                    own_split=own_split if splits else "")  # fmt: skip


def read_sparse(path: Path, rows: int) -> sp.csr_array:
    """The matrix with ``rows`` rows that ``scipy.sparse.save_npz`` wrote, as CSR; no pickles are loaded.

    Raises InputError for any other file, or another number of rows (which could take any memory).
    """
    with opened_npz(path) as file:
        kind = file.text("format") if "format" in file.keys else "an unknown format"
        if kind not in ("csr", "csc", "coo"):
            raise InputError("dataset", f"{path} with {kind}", "a matrix in csr, csc or coo, by scipy.sparse.save_npz")
        size = whole_numbers("shape", file["shape"])
        if size.size != 2 or size[0] != rows or size[1] < 1:
            raise InputError("shape", size.tolist(), f"two whole numbers, the first {rows}, the number of nodes")
        shape = int(size[0]), int(size[1])
        if kind == "coo":
            return coordinates("matrix", (file["data"], file["row"], file["col"]), shape)
        return compressed("matrix", (file["data"], file["indices"], file["indptr"]), shape, by_column=kind == "csc")
